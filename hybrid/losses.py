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


def codebook_loss(latent: Tensor, codes: Tensor, commitment: float) -> Tensor:
    """‖sg(z) − e‖² + commitment · ‖z − sg(e)‖², each a mean over elements (VQ-VAE, arXiv 1711.00937).

    The first part moves the codes to the latents z that chose them, the second the latents to their codes e.
    """
    latent, codes = latent.float(), codes.float()
    return F.mse_loss(codes, latent.detach()) + commitment * F.mse_loss(latent, codes.detach())


def entropy_loss(latent_md: Tensor, codebook_kd: Tensor, temperature: float = 0.01) -> Tensor:
    """Entropy of each latent's soft choice of a code, less that of the mean choice: low where each latent is sure and
    all codes are in use (MaskGIT's and LlamaGen's ``entropy_loss``). In nats, from −log k to 0.

    The choice is softmax(−‖z − e‖² / temperature). Its mean is over the latents at hand, so with several processes or
    accumulated parts it differs from the whole batch's.
    """
    logits = -torch.cdist(latent_md.float(), codebook_kd.float()).square() / temperature
    log_p = logits.log_softmax(-1)
    mean_log_p = log_p.logsumexp(0) - math.log(len(log_p))
    each = -(log_p.exp() * log_p).sum(-1).mean()
    return each + (mean_log_p.exp() * mean_log_p).sum()


def hinge_discriminator_loss(real: Tensor, made: Tensor) -> Tensor:
    """Half of mean(max(0, 1 − real)) + mean(max(0, 1 + made)), of scores (Geometric GAN, arXiv 1705.02894)."""
    return 0.5 * (F.relu(1 - real.float()).mean() + F.relu(1 + made.float()).mean())


def hinge_generator_loss(made: Tensor) -> Tensor:
    """−mean score."""
    return -made.float().mean()


def adaptive_weight(base_gradient: Tensor, adversarial_gradient: Tensor, largest: float = 1e4) -> Tensor:
    """‖∇base‖ / (‖∇adversarial‖ + 1e-6), at most ``largest`` (VQGAN, arXiv 2012.09841, equation 7)."""
    ratio = base_gradient.float().norm() / (adversarial_gradient.float().norm() + 1e-6)
    return ratio.clamp(max=largest).detach()


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
