# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Plane-sweep stereo: the depth of one view from several posed views of the same camera.

The image of each neighbour is warped over planes that stand parallel to the view (Collins 1996), compared by
zero-mean normalised cross-correlation, fused over the better half of the neighbours, which forgives occlusion
(Kang, Szeliski and Chai 2001), and regularised by semi-global aggregation along four directions (Hirschmueller
2008).  Costs are fixed-point int16, `ONE` for a correlation of 0, so that aggregation is exact.

The kernels are compiled, single-threaded and hold no GIL: they may run beside anything else.
"""

from typing import NamedTuple

import cv2
import numpy as np
from numba import njit

ONE = 1024  # cost of a correlation of 0 or less; 0 is a perfect match
UNSEEN = 768  # cost where a neighbour does not see the point: worse than a fair match, better than a bad one
SUPPORT = 512  # a neighbour of less cost than this sees the surface
RADIUS = 2  # of the correlation window
NOISE = 2e-5  # variance of image noise, grey levels from 0 to 1: below it texture counts for nothing
SMALL_JUMP = 41  # penalty for a step of one plane between neighbouring pixels
LARGE_JUMP = 358  # penalty for a larger step, less where the image has an edge
EDGE_GAIN = 12.0  # how fast an edge in grey levels lowers LARGE_JUMP
SMOOTHING = (5, 1.5, 1.5)  # bilateral filter of the depth: pixels across, planes, pixels


class Sweep(NamedTuple):
    """Depth of every pixel and what speaks for it."""

    depth: np.ndarray  # (H, W) float32, along the optical axis
    correlation: np.ndarray  # (H, W) float32 in [0, 1], of the winning plane
    distinctness: np.ndarray  # (H, W) float32 in [0, 1], how far the winner leads before every plane not beside it
    inside: np.ndarray  # (H, W) bool, the winner is neither the first nor the last plane


def inverse_depth_planes(near: float, far: float, count: int) -> np.ndarray:
    """Return `count` inverse depths, far plane first, evenly spaced: even steps in the image."""
    return np.linspace(1 / far, 1 / near, count).astype(np.float32)


def sweep(
    reference: np.ndarray,
    neighbours: list[tuple[np.ndarray, np.ndarray]],
    camera: np.ndarray,
    planes: np.ndarray,
) -> Sweep:
    """Estimate the depth of `reference`.

    Args:
        reference: grey image, (H, W) float32 from 0 to 1.
        neighbours: grey image of the same size, and T_neighbour_reference (4, 4), of each neighbour.
        camera: K of them all, (3, 3).
        planes: inverse depths, (D,) float32, ascending and evenly spaced.
    """
    mean, inverse_deviation = window_statistics(reference)
    costs = np.empty((len(neighbours), len(planes), *reference.shape), np.int16)
    for cost, (image, T_neighbour_reference) in zip(costs, neighbours, strict=True):
        rotate = (camera @ T_neighbour_reference[:3, :3] @ np.linalg.inv(camera)).astype(np.float32)
        shift = (camera @ T_neighbour_reference[:3, 3]).astype(np.float32)
        correlate(reference, mean, inverse_deviation, image, rotate, shift, planes, cost)
    fused = fuse(costs)
    total = aggregate(fused, cv2.boxFilter(reference, -1, (3, 3)))
    depth, *support = select(total, fused, costs, planes)
    spacing = planes[1] - planes[0]
    inverse_depth = spacing * cv2.bilateralFilter(1 / (spacing * depth), *SMOOTHING)
    return Sweep(1 / inverse_depth, *support)


def window_statistics(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and inverse standard deviation of the window around each pixel."""
    size = (2 * RADIUS + 1, 2 * RADIUS + 1)
    mean = cv2.boxFilter(image, -1, size, borderType=cv2.BORDER_REPLICATE)
    square = cv2.sqrBoxFilter(image, cv2.CV_32F, size, borderType=cv2.BORDER_REPLICATE)
    return mean, 1 / np.sqrt(np.maximum(square - mean * mean, 0) + np.float32(NOISE))


@njit(nogil=True, cache=True, fastmath=True, error_model='numpy')
def warp(source, rotate, shift, inverse_depth, warped, seen):
    """Sample `source` where a plane shows each pixel of the reference; beyond its border, the border."""
    height, width = warped.shape
    rows, columns = source.shape
    flat = source.reshape(-1)
    zero, one = np.float32(0), np.float32(1)
    last_x, last_y = np.float32(columns - 1), np.float32(rows - 1)
    end_x, end_y = np.float32(columns - 1.001), np.float32(rows - 1.001)  # so that the pixel after exists
    index = np.empty(width, np.int32)
    right = np.empty(width, np.float32)
    down = np.empty(width, np.float32)
    for y in range(height):
        base = rotate[:, 1] * np.float32(y) + rotate[:, 2] + shift * inverse_depth
        for x in range(width):  # two loops, since the compiler makes vectors of each
            z = one / max(rotate[2, 0] * np.float32(x) + base[2], np.float32(1e-6))
            u = (rotate[0, 0] * np.float32(x) + base[0]) * z
            v = (rotate[1, 0] * np.float32(x) + base[1]) * z
            seen[y, x] = (u >= zero) & (u <= last_x) & (v >= zero) & (v <= last_y)
            u, v = min(max(u, zero), end_x), min(max(v, zero), end_y)
            column, row = np.int32(u), np.int32(v)
            index[x], right[x], down[x] = row * columns + column, u - np.float32(column), v - np.float32(row)
        for x in range(width):
            i = np.uint64(index[x])  # unsigned, since a signed index costs a test for wrap-around
            top = flat[i] + (flat[i + np.uint64(1)] - flat[i]) * right[x]
            i += np.uint64(columns)
            bottom = flat[i] + (flat[i + np.uint64(1)] - flat[i]) * right[x]
            warped[y, x] = top + (bottom - top) * down[x]


@njit(nogil=True, cache=True, fastmath=True, error_model='numpy')
def correlate(reference, mean, inverse_deviation, source, rotate, shift, planes, costs):
    """Fill `costs` (D, H, W) int16 with those of one neighbour."""
    height, width = reference.shape
    warped = np.empty((height, width), np.float32)
    seen = np.empty((height, width), np.bool_)
    size = 2 * RADIUS + 1
    columns = np.empty((3, width + 2 * RADIUS), np.float32)  # sums over the window's column: source, square, product
    sums = np.empty((3, width), np.float32)  # over the window
    area = np.float32(1 / size**2)
    zero, one, noise, scale = np.float32(0), np.float32(1), np.float32(NOISE), np.float32(ONE)
    for plane in range(len(planes)):
        warp(source, rotate, shift, planes[plane], warped, seen)
        for y in range(height):
            columns[:] = 0
            for row in range(y - RADIUS, y + RADIUS + 1):
                row = min(max(row, 0), height - 1)
                for x in range(width):
                    value = warped[row, x]
                    columns[0, x + RADIUS] += value
                    columns[1, x + RADIUS] += value * value
                    columns[2, x + RADIUS] += value * reference[row, x]
            for k in range(3):
                columns[k, :RADIUS] = columns[k, RADIUS]
                columns[k, width + RADIUS :] = columns[k, width + RADIUS - 1]
                for x in range(width):
                    total = zero
                    for i in range(size):
                        total += columns[k, x + i]
                    sums[k, x] = total * area
            for x in range(width):
                variance = max(sums[1, x] - sums[0, x] * sums[0, x], zero) + noise
                correlation = (sums[2, x] - sums[0, x] * mean[y, x]) * inverse_deviation[y, x] / np.sqrt(variance)
                value = min(max(one - correlation, zero), one) * scale + np.float32(0.5)
                costs[plane, y, x] = np.int16(value) if seen[y, x] else np.int16(UNSEEN)


@njit(nogil=True, cache=True)
def fuse(costs):
    """Average the costs of the better half of the neighbours: (N, D, H, W) -> (H, W, D) int16."""
    count, planes, height, width = costs.shape
    half = (count + 1) // 2
    fused = np.empty((height, width, planes), np.int16)
    best = np.empty((half, width), np.int16)  # ascending
    cost = np.empty(width, np.int16)
    total = np.empty(width, np.int16)
    for y in range(height):
        for d in range(planes):
            best[:] = ONE
            for n in range(count):
                cost[:] = costs[n, d, y]
                for k in range(half):
                    for x in range(width):
                        other = best[k, x]
                        best[k, x] = min(other, cost[x])
                        cost[x] = max(other, cost[x])
            total[:] = best[0]
            for k in range(1, half):
                total += best[k]
            for x in range(width):
                fused[y, x, d] = total[x] // half
    return fused


@njit(nogil=True, cache=True)
def aggregate(costs, image):
    """Sum the costs of the cheapest paths to each pixel from left, right, above and below: (H, W, D) int16."""
    height, width, planes = costs.shape
    total = np.zeros((height, width, planes), np.int16)
    for backward in range(2):
        row = np.empty((width, planes + 2), np.int16)  # path costs, one plane of padding at either side
        row_best = np.empty(width, np.int16)
        left = np.empty(planes + 2, np.int16)
        for j in range(height):
            y = height - 1 - j if backward else j
            above = y + 1 if backward else y - 1
            left_best = np.int16(0)
            for i in range(width):
                x = width - 1 - i if backward else i
                before = x + 1 if backward else x - 1
                if i == 0:
                    left_best = start(costs[y, x], left, total[y, x])
                else:
                    jump = jump_penalty(image[y, x] - image[y, before])
                    left_best = step(costs[y, x], left, left_best, jump, total[y, x])
                if j == 0:
                    row_best[x] = start(costs[y, x], row[x], total[y, x])
                else:
                    jump = jump_penalty(image[y, x] - image[above, x])
                    row_best[x] = step(costs[y, x], row[x], row_best[x], jump, total[y, x])
    return total


@njit(nogil=True, cache=True)
def jump_penalty(contrast):
    """Return the penalty of a jump in depth across two pixels: an edge in the image makes it likely."""
    return np.int16(max(LARGE_JUMP / (1 + EDGE_GAIN * abs(contrast)), 2 * SMALL_JUMP))


@njit(nogil=True, cache=True)
def start(cost, path, total):
    """Begin a path at its first pixel; return its least cost."""
    path[0] = path[-1] = 16384
    best = np.int16(16384)
    for d in range(len(cost)):
        path[d + 1] = cost[d]
        total[d] += cost[d]
        best = min(best, cost[d])
    return best


@njit(nogil=True, cache=True)
def step(cost, path, path_best, jump, total):
    """Go on to the next pixel of a path, in place; return its least cost."""
    planes = len(cost)
    best = np.int16(16384)
    limit = np.int16(path_best + jump)
    small = np.int16(SMALL_JUMP)
    before = path[0]
    for d in range(planes):
        here = path[d + 1]
        least = min(min(here, limit), min(np.int16(before + small), np.int16(path[d + 2] + small)))
        value = np.int16(cost[d] + least - path_best)
        before = here
        path[d + 1] = value
        total[d] += value
        best = min(best, value)
    return best


@njit(nogil=True, cache=True)
def select(total, fused, costs, planes):
    """Take the plane of least total cost and refine it; return the arrays of `Sweep`.

    The refinement is the vertex of a parabola through the plain costs of the neighbours that support the winner:
    aggregated costs would draw it to the planes.
    """
    height, width, count = total.shape
    depth = np.empty((height, width), np.float32)
    correlation = np.empty((height, width), np.float32)
    distinctness = np.empty((height, width), np.float32)
    inside = np.empty((height, width), np.bool_)
    spacing = planes[1] - planes[0]
    for y in range(height):
        for x in range(width):
            path = total[y, x]
            best = 0
            for d in range(1, count):
                if path[d] < path[best]:
                    best = d
            second = np.int32(32767)
            for d in range(count):
                if abs(d - best) > 2:
                    second = min(second, np.int32(path[d]))
            inside[y, x] = 0 < best < count - 1
            offset = np.float32(0)
            if inside[y, x]:
                slope, bend = np.int32(0), np.int32(0)
                for n in range(len(costs)):
                    below, here, above = costs[n, best - 1, y, x], costs[n, best, y, x], costs[n, best + 1, y, x]
                    if here < SUPPORT:
                        slope += np.int32(below) - np.int32(above)
                        bend += np.int32(below) + np.int32(above) - 2 * np.int32(here)
                if bend > 0:
                    offset = min(max(np.float32(slope) / np.float32(2 * bend), np.float32(-1)), np.float32(1))
            depth[y, x] = np.float32(1) / (planes[best] + offset * spacing)
            correlation[y, x] = np.float32(1) - np.float32(fused[y, x, best]) / np.float32(ONE)
            distinctness[y, x] = np.float32(1) - np.float32(path[best]) / np.float32(max(second, 1))
    return depth, correlation, distinctness, inside
