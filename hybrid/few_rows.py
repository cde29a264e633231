"""Linear layers for the few rows of a decoding step, which takes as long as its weights take to read.

``Linear`` is torch's own but for its route through few rows on a CPU, where nothing is learned: the same numbers up to
rounding. ``Int8Linear`` holds a byte for each weight. This file knows no model.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FEW_ROWS = 8
"""Up to so many rows, reading the weights takes longer than the arithmetic: four pictures with guidance."""

KERNEL_BLOCK = 32
"""Torch's int8 kernel reads past the end of rows that are no multiple of its vectors, and does not check."""


def few_on_cpu(x: Tensor) -> bool:
    """Whether rows (..., inputs) are few, on a CPU, with nothing to learn."""
    return not torch.is_grad_enabled() and x.device.type == "cpu" and x.shape[:-1].numel() <= FEW_ROWS


def sums_of_products(x: Tensor, weight: Tensor) -> Tensor:
    """x @ weight.T, summed in float32, a row at a time: what inductor turns into one loop over the weights, of all rows
    and with whatever follows, where a matrix product would be a call of its own that copies them first."""
    wide = weight.float()
    products = torch.stack([(wide * row.float()).sum(-1) for row in x.flatten(0, -2)])
    return products.view(*x.shape[:-1], len(weight))


def product(x: Tensor, weight: Tensor) -> Tensor:
    """x @ weight.T, by the route that is fast for its rows."""
    if few_on_cpu(x):
        if torch.compiler.is_compiling():
            return sums_of_products(x, weight).to(x.dtype)
        if x.dtype == torch.float32:
            # The weights first: a BLAS may copy its second matrix before it multiplies, however few the rows.
            rows = torch.mm(weight, x.flatten(0, -2).t()).t()
            return rows.contiguous().view(*x.shape[:-1], len(weight))
    return F.linear(x, weight)


def split_fused(module: nn.Module) -> None:
    """Before weights are replaced or moved one by one: undo in every part what it has laid side by side, as
    ``llama.FeedForward.fuse`` does."""
    for part in module.modules():
        getattr(part, "split", lambda: None)()


class Linear(nn.Linear):
    """A linear layer without bias that reads its weights once where there are few rows."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return product(x, self.weight)


class Int8Linear(nn.Module):
    """A linear layer with int8 weights and a scale for each output.

    The activations keep their type, but for few rows on a CPU outside of compiled code: torch's kernel takes those in
    bfloat16, so that a picture depends on how many are drawn with it.

    Args:
        linear: the layer to quantize: its weights are rounded to 127 steps of their row's largest.
    """

    weight: Tensor
    scale: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach().float()
        scale = weight.abs().amax(1).clamp_min(torch.finfo(torch.float32).tiny) / 127
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.register_buffer("weight", (weight / scale[:, None]).round().to(torch.int8))
        self.register_buffer("scale", scale.to(linear.weight.dtype))
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        if few_on_cpu(x) and torch.compiler.is_compiling():
            out = (sums_of_products(x, self.weight) * self.scale).to(x.dtype)
        elif few_on_cpu(x) and self.in_features % KERNEL_BLOCK == 0 and self.out_features % KERNEL_BLOCK == 0:
            # Torch's kernel for these is fast in bfloat16 alone.
            rows = x.flatten(0, -2).bfloat16()
            out = torch._weight_int8pack_mm(rows, self.weight, self.scale.bfloat16()).to(x.dtype)
            out = out.view(*x.shape[:-1], self.out_features)
        else:
            out = F.linear(x, self.weight.to(x.dtype)) * self.scale
        return out if self.bias is None else out + self.bias
