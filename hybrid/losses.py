"""What the three kinds of model minimise. Pure functions of tensors."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def reconstruction_loss(output_bchw: Tensor, target_bchw: Tensor) -> Tensor:
    """L1 + MSE + L1 of horizontal and vertical differences, which keeps edges sharp. Images in [-1, 1]."""
    difference = output_bchw.float() - target_bchw.float()
    gradient = difference.diff(dim=-1).abs().mean() + difference.diff(dim=-2).abs().mean()
    return difference.abs().mean() + difference.square().mean() + gradient


def psnr(output_bchw: Tensor, target_bchw: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of images in [-1, 1], over the whole batch's mean squared error."""
    error = (output_bchw.float().clamp(-1, 1) - target_bchw.float()).square().mean()
    return 10 * torch.log10(4 / error)


def next_token_loss(logits_bnk: Tensor, tokens_bn: Tensor) -> Tensor:
    """Mean cross-entropy in nats per token."""
    return F.cross_entropy(logits_bnk.float().flatten(0, 1), tokens_bn.flatten())


def mask_ratio(uniform: float) -> float:
    """Share of places to mask for a uniform draw: arccos(u) / (π/2) (MaskGIL)."""
    return math.acos(uniform) / (math.pi / 2)


def masked_loss(
    logits_bnk: Tensor, tokens_bn: Tensor, counted_bn: Tensor, label_smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Cross-entropy at the counted places.

    Returns the sum divided by all places b·n (so that batches may be split and accumulated exactly) and, for the log,
    the mean in nats per counted place without smoothing.
    """
    logits = logits_bnk.float().flatten(0, 1)
    counted = counted_bn.flatten().float()
    plain = F.cross_entropy(logits.detach(), tokens_bn.flatten(), reduction="none")
    loss = F.cross_entropy(logits, tokens_bn.flatten(), reduction="none", label_smoothing=label_smoothing)
    return (loss * counted).sum() / counted.numel(), (plain * counted).sum() / counted.sum().clamp(min=1)
