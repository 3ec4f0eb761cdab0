# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The parts of a vision transformer: patches, rotary positions, self-attention, MLP, encoder block.

Attribute names are the key names of the official checkpoints throughout this folder.
"""

from functools import cache, partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, linear, scaled_dot_product_attention

LayerNorm = partial(nn.LayerNorm, eps=1e-6)


class Rotation(NamedTuple):
    """Cosines and sines of the rotary position code, broadcastable to (..., S, head width)."""

    cos: Tensor
    sin: Tensor


def rotary(positions: Tensor, width: int, base: float) -> Rotation:
    """Tabulate the two-dimensional rotary code (RoPE, Su et al. 2021; two axes: Heo et al. 2024).

    The first half of a head turns with the row, the second with the column.  Within a half of m channels, channel j
    pairs with channel j + m/2 and turns by position * base^(-2j/m).

    Args:
        positions: (..., S, 2) integer rows and columns of the tokens.
        width: channels of a head, a multiple of 4.
        base: of the frequencies.
    """
    pairs = width // 4
    frequencies = base ** -(torch.arange(pairs, dtype=torch.float32, device=positions.device) / pairs)  # (m/2,)
    angles = positions[..., None].float() * frequencies  # (..., S, 2, m/2)
    angles = torch.cat([angles, angles], dim=-1).flatten(-2)  # (..., S, width)
    return Rotation(angles.cos(), angles.sin())


@cache  # a CUDA graph may refer to it: it must stay
def grid_rotation(
    rows: int, columns: int, width: int, base: float, device: torch.device, in_pairs: bool = False
) -> Rotation | Tensor:
    """Tabulate the rotary code of a grid of tokens in row-major order, (rows * columns, width), or as `paired` does."""
    with torch.inference_mode(False):  # the table outlives the call
        grid = torch.cartesian_prod(torch.arange(rows, device=device), torch.arange(columns, device=device))
        rotation = rotary(grid, width, base)
        return paired(rotation) if in_pairs else rotation


def paired(rotation: Rotation) -> Tensor:
    """Return the code for heads in the order of `pairs`: a complex number each, (..., S, head width / 2)."""
    order = pairs(rotation.cos.shape[-1])[::2]
    return torch.complex(rotation.cos[..., order], rotation.sin[..., order])


def pairs(width: int) -> Tensor:
    """Return the order of a head's channels (width,) in which those that turn together are neighbours."""
    return torch.arange(width).view(2, 2, -1).transpose(1, 2).flatten()


def rotate(tokens: Tensor, rotation: Rotation | Tensor) -> Tensor:
    """Turn the channels of queries or keys (..., S, head width) by their positions.

    Args:
        tokens: queries or keys.
        rotation: the code; that of `paired` for channels in the order of `pairs`, ten times as fast.
    """
    if isinstance(rotation, Tensor):
        turned = torch.view_as_complex(tokens.float().unflatten(-1, (-1, 2))) * rotation
        return torch.view_as_real(turned).flatten(-2).to(tokens.dtype)
    halves = tokens.unflatten(-1, (2, 2, -1))  # (..., S, row|column, u|v, m/2)
    u, v = halves.unbind(-2)
    turned = torch.stack([-v, u], dim=-2).flatten(-3)
    return (tokens * rotation.cos + turned * rotation.sin).to(tokens.dtype)


def split_heads(tokens: Tensor, heads: int) -> Tensor:
    """Turn (..., S, width) into (..., heads, S, width / heads)."""
    return tokens.unflatten(-1, (heads, -1)).transpose(-3, -2)


def join_heads(tokens: Tensor) -> Tensor:
    """Turn (..., heads, S, head width) into (..., S, width)."""
    return tokens.transpose(-3, -2).flatten(-2)


def embed_patches(image: Tensor, projection: nn.Conv2d) -> Tensor:
    """Project each square of an image (B, C, H, W) to a token, row by row, (B, S, width).

    A matrix product does what the convolution would; on CUDA that keeps float32, where cuDNN takes TF32.
    """
    (edge, _), batch = projection.kernel_size, len(image)
    squares = image.unfold(2, edge, edge).unfold(3, edge, edge)  # (B, C, rows, columns, edge, edge)
    squares = squares.permute(0, 2, 3, 1, 4, 5).reshape(batch, -1, projection.weight[0].numel())
    return linear(squares, projection.weight.flatten(1), projection.bias)


def attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Return the softmax attention of queries (..., Q, width) to keys and values (..., S, width)."""
    if queries.device.type == 'cpu' and queries.dtype == torch.bfloat16:  # torch's own is half as fast there
        scores = (queries * queries.shape[-1] ** -0.5) @ keys.transpose(-1, -2)
        return scores.softmax(dim=-1) @ values
    return scaled_dot_product_attention(queries, keys, values)


class PatchEmbed(nn.Module):
    """Cut an image into squares and project each to a token."""

    def __init__(self, channels: int, width: int, patch: int) -> None:
        """Make the projection from `channels` to `width`."""
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch, stride=patch)

    def forward(self, image: Tensor) -> Tensor:
        """Turn (B, C, H, W) into tokens (B, S, width)."""
        return embed_patches(image, self.proj)


class SelfAttention(nn.Module):
    """Let each token look at all tokens of its own view."""

    def __init__(self, width: int, heads: int) -> None:
        """Make an attention of `heads` heads."""
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor, rotation: Rotation | Tensor) -> Tensor:
        """Attend within each view (B, S, width)."""
        q, k, v = (split_heads(part, self.heads) for part in self.qkv(tokens).chunk(3, dim=-1))
        return self.proj(join_heads(attend(rotate(q, rotation), rotate(k, rotation), v)))


class Mlp(nn.Module):
    """Two linear layers with an exact GELU between them."""

    def __init__(self, width: int, hidden: int, out: int) -> None:
        """Make the layers."""
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, out)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map each token (..., width) by itself to (..., out)."""
        return self.fc2(gelu(self.fc1(tokens)))


class EncoderBlock(nn.Module):
    """Self-attention and MLP, each after a norm and around a residual."""

    def __init__(self, width: int, heads: int, mlp_ratio: int) -> None:
        """Make the layers."""
        super().__init__()
        self.norm1 = LayerNorm(width)
        self.attn = SelfAttention(width, heads)
        self.norm2 = LayerNorm(width)
        self.mlp = Mlp(width, mlp_ratio * width, width)

    def forward(self, tokens: Tensor, rotation: Rotation | Tensor) -> Tensor:
        """Refine tokens (B, S, width)."""
        tokens = tokens + self.attn(self.norm1(tokens), rotation)
        return tokens + self.mlp(self.norm2(tokens))
