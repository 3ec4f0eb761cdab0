# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The networks' linear layers made for one device and one number format; everything between them stays as it is.

Nearly all work of the networks is in these layers.  Norms, residuals, positions and heads stay in float32: a bfloat16
holds a coordinate to 0.4 % only.

- On a GPU weights and products are in bfloat16 or float16.
- On a CPU oneDNN multiplies, in float32, bfloat16 or int8, with weights that were put in its order once.  In float32
  it is about twice as fast as MKL on AMD, which is not let at AVX-512 there.
- bfloat16 leaves the encoder in float32 there: it has a tenth of the work and would cause half of the error.
- int8 is for the layers that bear it, the others stay in float32: in both networks what makes queries and keys, in the
  decoders; in Image2Points the first layer of the sources' MLP, but for four blocks; in Local2World all of the MLPs.
  It scales each output channel of the weights and each token apart.
"""

import platform
import re

import torch
from torch import Tensor, nn
from torch.nn import functional

from slam3r_ros.engines.slam3r.decoder import CrossAttention
from slam3r_ros.engines.slam3r.layers import SelfAttention, pairs
from slam3r_ros.engines.slam3r.networks import Image2Points, Local2World, TwoSidedNetwork

PRECISIONS = ('auto', 'float32', 'bfloat16', 'float16', 'int8')
_ALL = slice(None)
_TINY = 1e-12
_GELU_LOWEST = -0.17  # value
_TOKENS = 2156  # that oneDNN is told to expect: a window of 11; others are as fast
_INT8 = {  # names of such layers; the self-attention's are parts of layers
    Image2Points: r'mv_dec_blocks\d\..*proj[qk]|mv_dec_blocks2\.([4-9]|1\d)\..*fc1',
    Local2World: r'mv_dec_blocks\d\..*proj[qk]|mv_dec_blocks\d\..*fc\d',
}


class PrecisionError(ValueError):
    """The device cannot compute in that precision; the message names those that it can."""


def choose(precision: str, device: torch.device) -> str:
    """Return the precision to use.

    Args:
        precision: one of `PRECISIONS`; `auto` takes the fastest that stays under 1 % of error in points.
        device: where the networks are to run.

    Raises:
        PrecisionError: the device cannot.
    """
    if precision == 'auto':
        return 'float16' if device.type == 'cuda' else 'float32'  # a CPU's others reach about 1 %, as a GPU's bfloat16
    able = available(device)
    if precision not in able:
        raise PrecisionError(
            f'there is no precision {precision!r} on {device.type}: use one of auto, {", ".join(able)}'
        )
    return precision


def available(device: torch.device) -> tuple[str, ...]:
    """Return the precisions that a device computes in."""
    if device.type == 'cuda':
        native = torch.cuda.get_device_capability(device) >= (8, 0)
        return ('float32', 'float16', 'bfloat16') if native else ('float32', 'float16')
    return ('float32', 'bfloat16', 'int8') if _has_onednn() else ('float32', 'bfloat16')


def _has_onednn() -> bool:
    return torch.backends.mkldnn.is_available() and platform.machine() in ('x86_64', 'AMD64')


class PackedLinear(nn.Module):
    """A linear layer by oneDNN on a CPU."""

    def __init__(self, linear: nn.Linear, dtype: torch.dtype, rows: slice = _ALL) -> None:
        """Take the weights of some outputs, to compute in float32 or bfloat16."""
        super().__init__()
        self.dtype = dtype
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach()[rows].to(dtype), _TOKENS)
        self.bias = linear.bias.detach()[rows].to(dtype)

    def forward(self, tokens: Tensor) -> Tensor:
        """Turn tokens (..., in) into (..., out) of the layer's type."""
        return torch.ops.mkldnn._linear_pointwise(tokens.to(self.dtype), self.weight, self.bias, 'none', [], '')


class CastLinear(nn.Module):
    """A linear layer in the type of its weights, whatever comes."""

    def __init__(self, linear: nn.Linear, dtype: torch.dtype) -> None:
        """Take the weights."""
        super().__init__()
        self.weight, self.bias = (nn.Parameter(part.detach().to(dtype), False) for part in (linear.weight, linear.bias))

    def forward(self, tokens: Tensor) -> Tensor:
        """Turn tokens (..., in) into (..., out) of the weights' type."""
        return functional.linear(tokens.to(self.weight.dtype), self.weight, self.bias)


class Int8Linear(nn.Module):
    """A linear layer in int8 on a CPU, by VNNI where it has that; it takes and gives float32."""

    def __init__(self, linear: nn.Linear, rows: slice = _ALL, after_gelu: bool = False) -> None:
        """Round the weights.

        Args:
            linear: the layer.
            rows: which outputs are wanted.
            after_gelu: its input is hardly below zero, so that most of the steps can lie above.
        """
        super().__init__()
        weight = linear.weight.detach()[rows]
        scale = weight.abs().amax(dim=1).clamp(min=_TINY) / 127  # (out,)
        rounded = (weight / scale[:, None]).round().to(torch.int8)
        self.weight = torch.ops.onednn.qlinear_prepack(rounded, [_TOKENS, weight.shape[1]])
        self.scale, self.zero = scale, torch.zeros(len(scale), dtype=torch.int64)
        self.bias = linear.bias.detach()[rows]
        # Unsigned numbers, as VNNI wants them: where nought lies, the steps above it, and the smallest step.
        self.middle, self.steps, self.smallest = (20, 235, -_GELU_LOWEST / 20) if after_gelu else (128, 127, _TINY)

    def forward(self, tokens: Tensor) -> Tensor:
        """Turn tokens (..., in) into (..., out)."""
        largest = torch.maximum(tokens.amax(dim=-1, keepdim=True), -tokens.amin(dim=-1, keepdim=True))
        step = (largest / self.steps).clamp_(min=self.smallest)  # (..., 1)
        rounded = (tokens * step.reciprocal()).add_(self.middle + 0.5).to(torch.uint8)
        product = torch.ops.onednn.qlinear_pointwise(
            rounded, 1.0, self.middle, self.weight, self.scale, self.zero, None, 1.0, 0, torch.float32, 'none', [], ''
        )
        return torch.addcmul(self.bias, product, step, out=product)


class SplitLinear(nn.Module):
    """A linear layer whose first outputs come from one layer, the others from another."""

    def __init__(self, first: nn.Module, others: nn.Module) -> None:
        """Take both."""
        super().__init__()
        self.first, self.others = first, others

    def forward(self, tokens: Tensor) -> Tensor:
        """Turn tokens (..., in) into (..., out)."""
        return torch.cat([self.first(tokens), self.others(tokens)], dim=-1)


def convert(
    network: TwoSidedNetwork, precision: str, device: torch.device, as_on: str | None = None
) -> TwoSidedNetwork:
    """Put a network on its device, with the linear layers of its blocks in another form, in place.

    Args:
        network: with weights in float32, on the CPU.
        precision: what `choose` returned.
        device: where it is to run.
        as_on: kind of device that it is made for, that of `device` if None; what a GPU rounds a CPU can round, slowly.
    """
    kind = as_on or device.type
    if kind == 'cuda':
        _settle_kernels()
    for module in network.modules():
        if isinstance(module, SelfAttention):
            _pair_channels(module.qkv, module.heads, parts=3)
        elif isinstance(module, CrossAttention):
            _pair_channels(module.projq, module.heads)
            _pair_channels(module.projk, module.heads)
    network.pairs = True
    if precision == 'float32' and not (kind == 'cpu' and _has_onednn()):
        return network.to(device)
    linears = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    for name in linears:  # one after the other: of none but the present one there are both forms
        if re.match(r'enc_blocks|mv_dec_blocks|decoder_embed', name):
            parent, _, own = name.rpartition('.')
            made = _made(network.get_submodule(name), name, precision, kind, _INT8[type(network)])
            setattr(network.get_submodule(parent), own, made.to(device))
    return network.to(device)


def _settle_kernels() -> None:
    """Say which of its kernels for a GPU torch may take, in the whole process."""
    # cuDNN's attention, the first choice on Hopper, is compiled for each shape, in 30 ms: for each new scene frame.
    torch.backends.cuda.enable_cudnn_sdp(False)
    products = torch.backends.cuda.matmul  # also what is summed in parts is summed in float32: float16 may overflow
    products.allow_fp16_reduced_precision_reduction = products.allow_bf16_reduced_precision_reduction = False


def _made(linear: nn.Linear, name: str, precision: str, kind: str, bears_int8: str) -> nn.Module:
    """Return a layer in its new form, for a kind of device."""
    if precision == 'bfloat16' and kind == 'cpu' and name.startswith('enc_blocks'):
        precision = 'float32'
    if precision != 'int8':
        layer = PackedLinear if kind == 'cpu' and _has_onednn() else CastLinear
        return layer(linear, getattr(torch, precision))
    if re.fullmatch(bears_int8, name):
        return Int8Linear(linear, after_gelu=name.endswith('fc2'))
    if re.fullmatch(r'mv_dec_blocks.*qkv', name):
        values = 2 * linear.in_features  # after queries and keys
        return SplitLinear(Int8Linear(linear, slice(values)), PackedLinear(linear, torch.float32, slice(values, None)))
    return PackedLinear(linear, torch.float32)


def _pair_channels(linear: nn.Linear, heads: int, parts: int = 1) -> None:
    """Put a layer's outputs, heads side by side in each part, in the order of `layers.pairs`; not the third part."""
    out = torch.arange(linear.out_features)
    rows = out.view(parts, heads, -1)
    rows[:2] = rows[:2, :, pairs(rows.shape[-1])]
    linear.weight = nn.Parameter(linear.weight.detach()[out], False)
    linear.bias = nn.Parameter(linear.bias.detach()[out], False)
