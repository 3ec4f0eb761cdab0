# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Procedural textures of the synthetic room: (H, W, 3) float32 sRGB in [0, 1], from a seeded generator.

They are drawn with NumPy and `cv2.resize` alone, so that any OpenCV version gives the same picture.
"""

import cv2
import numpy as np

TEXELS_PER_METRE = 160


def size(width: float, height: float) -> tuple[int, int]:
    """Return rows and columns of the texture of a surface of `width` by `height` metres."""
    return max(int(height * TEXELS_PER_METRE), 4), max(int(width * TEXELS_PER_METRE), 4)


def noise(rng: np.random.Generator, shape: tuple[int, int], cell: tuple[float, float], octaves: int = 3) -> np.ndarray:
    """Return smooth noise, zero mean, about unit deviation; `cell` = rows and columns of the coarsest lattice cell."""
    total, weight = np.zeros(shape, np.float32), 1.0
    for octave in range(octaves):
        lattice = [max(int(n / (c / 2**octave)), 1) + 2 for n, c in zip(shape, cell)]
        values = rng.standard_normal(lattice).astype(np.float32)
        total += weight * cv2.resize(values, shape[::-1], interpolation=cv2.INTER_LINEAR)
        weight *= 0.6
    return total / max(float(total.std()), 1e-6)


def paint(color: tuple, relief: np.ndarray, strength: float = 0.08) -> np.ndarray:
    """Return a colour modulated by `relief`, (H, W)."""
    return np.clip(np.float32(color) * (1 + strength * relief[..., None]), 0.02, 0.98).astype(np.float32)


def plaster(rng: np.random.Generator, shape: tuple[int, int], color: tuple) -> np.ndarray:
    """Return rough painted plaster."""
    return paint(color, noise(rng, shape, (60, 60), 3) + 0.7 * noise(rng, shape, (9, 9), 2), 0.09)


def wood(rng: np.random.Generator, shape: tuple[int, int], color: tuple) -> np.ndarray:
    """Return wood with its grain along the columns."""
    grain = noise(rng, shape, (6, 70), 3) + 0.6 * noise(rng, shape, (5, 12), 2) + 0.4 * noise(rng, shape, (60, 200), 2)
    grain += 0.5 * noise(rng, shape, (2, 6), 1)
    return paint(color, grain, 0.12)


def planks(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Return a floor of wooden planks."""
    image = wood(rng, shape, (0.56, 0.40, 0.26))
    for top in range(0, shape[0], 22):
        left = -int(rng.integers(0, 160))
        while left < shape[1]:
            right = left + int(rng.integers(110, 200))
            board = image[top : top + 22, max(left, 0) : right]
            board *= np.float32(rng.uniform(0.72, 1.22)) * (1 + 0.05 * rng.standard_normal(3).astype(np.float32))
            board[-2:] *= 0.45
            board[:, -2:] *= 0.45
            left = right
    return image.clip(0.02, 0.98)


def bricks(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Return a brick wall in running bond."""
    image = paint((0.72, 0.69, 0.64), noise(rng, shape, (12, 12), 2))
    relief = noise(rng, shape, (14, 14), 3)[..., None]
    for row, top in enumerate(range(0, shape[0], 14)):
        for left in range(-38 + 19 * (row % 2), shape[1], 38):
            part = (slice(top, top + 12), slice(max(left, 0), max(left + 36, 0)))
            color = np.float32([0.60, 0.29, 0.20]) * np.float32(rng.uniform(0.6, 1.25))
            image[part] = color * (1 + 0.10 * relief[part])
    return image.clip(0.02, 0.98)


def wallpaper(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Return a wallpaper of stripes with scattered diamonds."""
    image = plaster(rng, shape, (0.80, 0.77, 0.62))
    rows, columns = np.indices(shape)
    image *= np.where(columns % 48 < 24, 0.9, 1.05).astype(np.float32)[..., None]
    for _ in range(shape[0] * shape[1] // 900):
        row, column, radius = rng.integers(0, shape[0]), rng.integers(0, shape[1]), rng.integers(3, 9)
        part = (slice(max(row - radius, 0), row + radius + 1), slice(max(column - radius, 0), column + radius + 1))
        inside = np.abs(rows[part] - row) + np.abs(columns[part] - column) <= radius
        image[part][inside] = rng.uniform(0.15, 0.7, 3)
    return image.clip(0.02, 0.98)


def checker(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Return a woven carpet of checks with a border."""
    rows, columns = np.indices(shape)
    palette = np.float32([(0.62, 0.16, 0.14), (0.85, 0.78, 0.62), (0.15, 0.22, 0.40), (0.75, 0.55, 0.20)])
    cells = rng.integers(0, len(palette), (shape[0] // 24 + 1, shape[1] // 24 + 1))
    image = palette[cells[rows // 24, columns // 24]]
    edge = np.minimum(np.minimum(rows, shape[0] - 1 - rows), np.minimum(columns, shape[1] - 1 - columns))
    image[edge < 14] = palette[2]
    image[(edge >= 5) & (edge < 9)] = palette[1]
    return (image * (1 + 0.13 * noise(rng, shape, (4, 4), 2)[..., None])).clip(0.02, 0.98).astype(np.float32)


def fabric(rng: np.random.Generator, shape: tuple[int, int], color: tuple) -> np.ndarray:
    """Return a tartan fabric."""
    rows, columns = np.indices(shape)
    bands = np.where(rows % 34 < 12, 0.65, 1.0) * np.where(columns % 26 < 9, 0.7, 1.0)
    bands *= np.where((rows % 34 == 22) | (columns % 26 == 17), 1.5, 1.0)
    return (paint(color, noise(rng, shape, (5, 5), 2), 0.15) * bands[..., None]).clip(0.02, 0.98).astype(np.float32)


def poster(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Return an abstract print: discs, bars and lines of text-like marks on a ground, with a white border."""
    rows, columns = np.indices(shape)
    image = np.tile(rng.uniform(0.2, 0.9, 3).astype(np.float32), (*shape, 1))
    for _ in range(22):
        row, column = rng.integers(0, shape[0]), rng.integers(0, shape[1])
        extent = rng.uniform(0.04, 0.25) * min(shape)
        if rng.random() < 0.5:
            inside = np.hypot(rows - row, columns - column) < extent
        else:
            turn = rng.uniform(0, np.pi)
            along = (rows - row) * np.sin(turn) + (columns - column) * np.cos(turn)
            across = (columns - column) * np.sin(turn) - (rows - row) * np.cos(turn)
            inside = (np.abs(along) < 1.5 * extent) & (np.abs(across) < 0.4 * extent)
        image[inside] = rng.uniform(0.05, 0.95, 3)
    for row in range(int(0.75 * shape[0]), int(0.92 * shape[0]), 7):
        for column in range(10, shape[1] - 14, 5):
            if rng.random() < 0.75:
                image[row : row + 4, column : column + int(rng.integers(2, 5))] = 0.06
    edge = np.minimum(np.minimum(rows, shape[0] - 1 - rows), np.minimum(columns, shape[1] - 1 - columns))
    image[edge < 5] = 0.93
    return (image * (1 + 0.04 * noise(rng, shape, (9, 9), 2)[..., None])).clip(0.02, 0.98).astype(np.float32)


def window(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Return a window that shows sky, trees and its bars."""
    rows, columns = np.indices(shape)
    height = (rows / shape[0])[..., None]
    clouds = noise(rng, shape, (40, 70), 4)[..., None]
    image = np.float32([0.50, 0.68, 0.92]) * (1 - 0.25 * height) + 0.07 * clouds
    trees = height[..., 0] > 0.62 + 0.06 * noise(rng, shape, (60, 30), 4)
    image[trees] = paint((0.22, 0.36, 0.16), noise(rng, shape, (10, 10), 3), 0.3)[trees]
    bars = (columns % (shape[1] // 3) < 5) | (rows % (shape[0] // 2) < 5)
    edge = np.minimum(np.minimum(rows, shape[0] - 1 - rows), np.minimum(columns, shape[1] - 1 - columns))
    image[bars | (edge < 9)] = 0.9
    return image.clip(0.02, 0.98).astype(np.float32)


def panels(rng: np.random.Generator, shape: tuple[int, int], color: tuple, rows: int, columns: int) -> np.ndarray:
    """Return wooden panels or drawer fronts with knobs, `rows` by `columns` of them."""
    image = wood(rng, shape, color)
    for top in np.linspace(0, shape[0], rows + 1)[:-1].astype(int):
        for left in np.linspace(0, shape[1], columns + 1)[:-1].astype(int):
            bottom, right = top + shape[0] // rows, left + shape[1] // columns
            image[top : top + 3, left:right] *= 0.35
            image[top:bottom, left : left + 3] *= 0.35
            image[top + 7 : top + 9, left + 7 : right - 5] *= 0.6
            image[bottom - 7 : bottom - 5, left + 7 : right - 5] *= 1.3
            knob = (slice((top + bottom) // 2 - 3, (top + bottom) // 2 + 3), slice(right - 18, right - 11))
            image[knob] = (0.85, 0.75, 0.35)
    return image.clip(0.02, 0.98)


def carton(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Return cardboard with tape and a printed label."""
    image = paint((0.66, 0.50, 0.33), noise(rng, shape, (20, 7), 3) + 0.5 * noise(rng, shape, (2, 2), 1), 0.1)
    middle = shape[1] // 2
    image[:, middle - 4 : middle + 4] = image[:, middle - 4 : middle + 4] * 0.4 + 0.5
    top, left = int(rng.integers(2, max(shape[0] // 3, 3))), int(rng.integers(2, max(shape[1] // 3, 3)))
    label = image[top : top + shape[0] // 3, left : left + shape[1] // 3]
    label[:] = 0.9
    for row in range(3, label.shape[0] - 3, 5):
        marks = rng.random(label.shape[1]) < 0.6
        marks[:3] = marks[-3:] = False
        label[row : row + 2, marks] = 0.1
    return image


def spine(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Return the cloth of a book with bands across it."""
    image = paint(tuple(rng.uniform(0.1, 0.75, 3)), noise(rng, shape, (8, 8), 2), 0.12)
    for _ in range(3):
        row = int(rng.integers(0, max(shape[0] - 4, 1)))
        image[row : row + 4] = rng.uniform(0.3, 0.95, 3)
    return image
