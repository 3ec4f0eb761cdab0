# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The shape of the two networks."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class NetworkConfig:
    """Widths and depths of Image2Points and Local2World; the defaults are those of the official checkpoints."""

    encoder_width: int = 1024
    encoder_depth: int = 24
    encoder_heads: int = 16
    decoder_width: int = 768
    decoder_depth: int = 12
    decoder_heads: int = 12
    patch: int = 16  # pixels, edge of the square that becomes one token
    mlp_ratio: int = 4
    rope_base: float = 100.0
    confidence_floor: float = 1.0  # smallest confidence of a pixel

    @classmethod
    def from_official(cls, values: Mapping[str, Any]) -> 'NetworkConfig':
        """Translate the names of an official `config.json`; what is not named there keeps its default."""
        names = {
            'enc_embed_dim': 'encoder_width',
            'enc_depth': 'encoder_depth',
            'enc_num_heads': 'encoder_heads',
            'dec_embed_dim': 'decoder_width',
            'dec_depth': 'decoder_depth',
            'dec_num_heads': 'decoder_heads',
            'patch_size': 'patch',
            'mlp_ratio': 'mlp_ratio',
        }
        fields = {ours: int(values[theirs]) for theirs, ours in names.items() if theirs in values}
        if 'pos_embed' in values:
            fields['rope_base'] = float(values['pos_embed'].removeprefix('RoPE'))
        if 'conf_mode' in values:
            fields['confidence_floor'] = float(values['conf_mode'][1])
        return cls(**fields)


OFFICIAL = NetworkConfig()
SIDE = 224  # pixels; the official networks were trained on squares of this size only
