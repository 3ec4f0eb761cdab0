# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""SLAM3R's two networks (Liu et al., CVPR 2025): Image2Points and Local2World.

Both turn a window of views into one pointmap per view by the same trunk, in which *references* and *sources* look at
each other and never at their own kind.  Image2Points gives all points in the camera frame of its one reference;
Local2World moves the pointmaps of its sources into the world of its references.  Both start from the same image
tokens, so every frame is encoded once.

V views, R references, K = V - R sources, B windows in a batch, S tokens of a view, E and D widths of the tokens.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from slam3r_ros.engines.slam3r.config import NetworkConfig
from slam3r_ros.engines.slam3r.decoder import Memory, MultiviewDecoderBlock
from slam3r_ros.engines.slam3r.head import LinearHead
from slam3r_ros.engines.slam3r.layers import (
    EncoderBlock,
    LayerNorm,
    Mlp,
    PatchEmbed,
    Rotation,
    embed_patches,
    grid_rotation,
)


class Sides(NamedTuple):
    """Tokens of the two kinds of views, (R, B, S, D) and (K, B, S, D); None for what is not wanted."""

    references: Tensor | None
    sources: Tensor | None


class Maps(NamedTuple):
    """Pointmaps (N, B, H, W, 3) and confidences (N, B, H, W) of N views."""

    points: Tensor
    confidence: Tensor


class Candidates(NamedTuple):
    """What retrieval needs of K candidates and does not depend on the query: the first layer's own work."""

    tokens: Tensor  # (K, B, S, D), after the self-attention of layer 0
    queries: Tensor  # (K, B, heads, S, head width)
    memory: Memory  # for the reference side

    def split(self, at_once: int) -> list['Candidates']:
        """Part them, so many at once; nothing is copied."""
        tokens, queries, keys, values = (part.split(at_once) for part in (self.tokens, self.queries, *self.memory))
        return [Candidates(*some, Memory(*memory)) for *some, memory in zip(tokens, queries, zip(keys, values))]


class TwoSidedNetwork(nn.Module):
    """The trunk and heads that both networks share."""

    def __init__(self, config: NetworkConfig) -> None:
        """Make the layers, with random weights."""
        super().__init__()
        self.config = config
        self.pairs = False  # `precision.convert` has put the channels of heads in pairs
        E, D = config.encoder_width, config.decoder_width
        self.patch_embed = PatchEmbed(3, E, config.patch)
        self.enc_norm = LayerNorm(E)
        self.decoder_embed = nn.Linear(E, D)
        self.mv_dec_blocks1 = self._blocks()  # of the references
        self.mv_dec_blocks2 = self._blocks()  # of the sources
        self.dec_norm = LayerNorm(D)
        self.downstream_head1 = LinearHead(D, config.patch, config.confidence_floor)
        self.downstream_head2 = LinearHead(D, config.patch, config.confidence_floor)

    def _blocks(self) -> nn.ModuleList:
        c = self.config
        return nn.ModuleList(
            MultiviewDecoderBlock(c.decoder_width, c.decoder_heads, c.mlp_ratio) for _ in range(c.decoder_depth)
        )

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Return the rows and columns of tokens of an image."""
        if height % self.config.patch or width % self.config.patch:
            raise ValueError(f'images must be multiples of {self.config.patch} pixels, got {height} x {width}')
        return height // self.config.patch, width // self.config.patch

    def rotation(self, rows: int, columns: int) -> Rotation | Tensor:
        """Return the decoder's position code."""
        return self._rotation(rows, columns, self.config.decoder_width // self.config.decoder_heads)

    def _rotation(self, rows: int, columns: int, width: int) -> Rotation | Tensor:
        return grid_rotation(rows, columns, width, self.config.rope_base, self.dec_norm.weight.device, self.pairs)

    def embed(self, tokens: Tensor) -> Tensor:
        """Bring image tokens (..., S, E), as the encoder gives them, to the decoder's width (..., S, D)."""
        return self.decoder_embed(self.enc_norm(tokens)).float()

    def decode(
        self,
        references: Tensor,
        sources: Tensor,
        rotation: Rotation | Tensor,
        positional: Sides | None = None,
        wanted: str = 'both',
        layers: slice = slice(None),
    ) -> Sides:
        """Let both sides look at each other, layer by layer.

        Each layer sees both sides as they came into it.

        Args:
            references: (R, B, S, D).
            sources: (K, B, S, D).
            rotation: position code.
            positional: embedded pointmaps of the same shapes, added to the input of every layer.
            wanted: 'references', 'sources' or 'both'; the last block of the other side is skipped.
            layers: which of them.

        Returns:
            The sides after the last layer; what is not wanted is None.
        """
        blocks = list(zip(self.mv_dec_blocks1[layers], self.mv_dec_blocks2[layers]))
        for number, (block1, block2) in enumerate(blocks, 1):
            if positional is not None:
                references, sources = references + positional.references, sources + positional.sources
            keep = wanted if number == len(blocks) else 'both'
            references, sources = (
                block1(references, sources, rotation) if keep != 'sources' else None,
                block2(sources, references, rotation) if keep != 'references' else None,
            )
        return Sides(references, sources)

    def maps(self, head: LinearHead, tokens: Tensor | None, rows: int, columns: int) -> Maps | None:
        """Turn decoded tokens (N, B, S, D) into pointmaps."""
        if tokens is None:
            return None
        points, confidence = head(self.dec_norm(tokens.flatten(0, 1)), rows, columns)
        return Maps(points.unflatten(0, tokens.shape[:2]), confidence.unflatten(0, tokens.shape[:2]))

    def heads(self, decoded: Sides, rows: int, columns: int) -> tuple[Maps | None, Maps | None]:
        """Turn both sides into pointmaps."""
        return (
            self.maps(self.downstream_head1, decoded.references, rows, columns),
            self.maps(self.downstream_head2, decoded.sources, rows, columns),
        )


class Image2Points(TwoSidedNetwork):
    """Encodes images, reconstructs a window in its reference's camera frame, and scores how well views correlate."""

    def __init__(self, config: NetworkConfig) -> None:
        """Make the layers, with random weights."""
        super().__init__(config)
        E, D = config.encoder_width, config.decoder_width
        self.enc_blocks = nn.ModuleList(
            EncoderBlock(E, config.encoder_heads, config.mlp_ratio) for _ in range(config.encoder_depth)
        )
        self.corr_score_norm = nn.LayerNorm(D, eps=1e-5)  # the only norm with this eps
        self.corr_score_proj = Mlp(D, D, 1)

    def encode(self, images: Tensor) -> Tensor:
        """Turn images (N, 3, H, W) in [-1, 1] into tokens (N, S, E), without the final norm, each network's own."""
        config = self.config
        rotation = self._rotation(*self.grid(*images.shape[-2:]), config.encoder_width // config.encoder_heads)
        tokens = self.patch_embed(images)
        for block in self.enc_blocks:
            tokens = block(tokens, rotation)
        return tokens

    def forward(
        self, reference: Tensor, sources: Tensor, height: int, width: int, wanted: str = 'both'
    ) -> tuple[Maps | None, Maps | None]:
        """Reconstruct windows.

        Args:
            reference: (1, B, S, E) image tokens.
            sources: (K, B, S, E) image tokens, K >= 1.
            height: of the images, pixels.
            width: of the images, pixels.
            wanted: 'references', 'sources' or 'both'.

        Returns:
            Maps of the reference and of the sources, in the reference's optical frame and an arbitrary unit.
        """
        rows, columns = self.grid(height, width)
        decoded = self.decode(
            self.embed(reference), self.embed(sources), self.rotation(rows, columns), wanted=wanted
        )
        return self.heads(decoded, rows, columns)

    def prepare(self, tokens: Tensor, height: int, width: int) -> Candidates:
        """Do the part of `correlation` that depends on the candidates (K, B, S, E) alone."""
        rotation = self.rotation(*self.grid(height, width))
        embedded = self.embed(tokens)
        attended = self.mv_dec_blocks2[0].attend_self(embedded, rotation)
        queries = self.mv_dec_blocks2[0].queries(attended, rotation)
        return Candidates(attended, queries, self.mv_dec_blocks1[0].memory(embedded, rotation))

    def correlation(
        self,
        query: Tensor,
        candidates: Candidates,
        height: int,
        width: int,
        depth: int = 2,
        at_once: int | None = None,
    ) -> Tensor:
        """Score how much candidates see of the query, by the first layers of the decoder.

        Args:
            query: (1, B, S, E) image tokens.
            candidates: of K views, see `prepare`.
            height: of the images, pixels.
            width: of the images, pixels.
            depth: how many layers.
            at_once: candidates to work on together, for the sake of memory; None for all.

        Returns:
            (K, B, S) scores above 1 of every token of every candidate.
        """
        rotation = self.rotation(*self.grid(height, width))
        block1, block2 = self.mv_dec_blocks1[0], self.mv_dec_blocks2[0]
        parts = candidates.split(at_once or len(candidates.tokens))
        embedded = self.embed(query)
        memory = block2.memory(embedded, rotation)
        sources = [block2.attend_memory(part.tokens, part.queries, memory) for part in parts]
        if depth > 1:
            attended = block1.attend_self(embedded, rotation)
            queries = block1.queries(attended, rotation)
            reference = block1.attend_memory(attended, queries, *(part.memory for part in parts))
        for layer, (block1, block2) in enumerate(zip(self.mv_dec_blocks1[1:depth], self.mv_dec_blocks2[1:depth]), 2):
            before = sources
            sources = [block2(part, reference, rotation) for part in before]
            reference = block1(reference, torch.cat(before), rotation) if layer < depth else None
        scores = [self.corr_score_proj(self.corr_score_norm(part)) for part in sources]
        return 1 + torch.cat(scores).squeeze(-1).exp()


class Local2World(TwoSidedNetwork):
    """Brings local pointmaps of sources into the world of references."""

    def __init__(self, config: NetworkConfig) -> None:
        """Make the layers, with random weights."""
        super().__init__(config)
        D = config.decoder_width
        self.ponit_embedder = nn.Conv2d(3, D, config.patch, stride=config.patch)  # spelt as in the checkpoint
        self.void_pe_token = nn.Parameter(torch.zeros(1, 1, D))

    def embed_points(self, points: Tensor, void: Tensor | None = None) -> Tensor:
        """Turn pointmaps (N, B, H, W, 3) into tokens (N, B, S, D).

        Args:
            points: the pointmaps.
            void: (N, B, S) bool, tokens that have no geometry.
        """
        tokens = embed_patches(points.flatten(0, 1).permute(0, 3, 1, 2), self.ponit_embedder)
        tokens = tokens.unflatten(0, points.shape[:2])
        return tokens if void is None else torch.where(void[..., None], self.void_pe_token.to(tokens.dtype), tokens)

    def forward(
        self,
        references: Tensor,
        sources: Tensor,
        reference_points: Tensor,
        source_points: Tensor,
        wanted: str = 'both',
        void: Sequence[Tensor | None] = (None, None),
    ) -> tuple[Maps | None, Maps | None]:
        """Register sources.

        Args:
            references: (R, B, S, E) image tokens.
            sources: (K, B, S, E) image tokens.
            reference_points: (R, B, H, W, 3) in the world.
            source_points: (K, B, H, W, 3), each in its own optical frame.
            wanted: 'references', 'sources' or 'both'.
            void: tokens (R, B, S) and (K, B, S) bool whose points are unknown.

        Returns:
            Refined maps of the references and maps of the sources, both in the world and its unit.
        """
        rows, columns = self.grid(*reference_points.shape[2:4])
        positional = Sides(self.embed_points(reference_points, void[0]), self.embed_points(source_points, void[1]))
        decoded = self.decode(
            self.embed(references), self.embed(sources), self.rotation(rows, columns), positional, wanted
        )
        return self.heads(decoded, rows, columns)
