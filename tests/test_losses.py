"""What the models minimise, against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from hybrid.losses import (
    adaptive_weight,
    codebook_loss,
    entropy_loss,
    hinge_discriminator_loss,
    hinge_generator_loss,
    mask_ratio,
    masked_loss,
    next_token_loss,
    psnr,
    reconstruction_loss,
)


def test_reconstruction_is_zero_for_equal_pictures_and_counts_edges() -> None:
    flat = torch.zeros(1, 3, 4, 4)
    assert reconstruction_loss(flat, flat) == 0
    # A constant error of 0.5 has no gradient: L1 0.5 + MSE 0.25.
    assert reconstruction_loss(flat + 0.5, flat) == pytest.approx(0.75)
    # One column of 1: L1 and MSE 1/4 each, and of the 3 horizontal differences one is 1.
    column = flat.clone()
    column[..., 0] = 1
    assert reconstruction_loss(column, flat) == pytest.approx(0.25 + 0.25 + 1 / 3)


def test_psnr_counts_a_range_of_two_and_cuts_overshoot() -> None:
    target = torch.ones(1, 3, 2, 2)
    assert psnr(target - 0.2, target) == pytest.approx(20.0)
    assert psnr(target + 5, target).isinf()


def test_codebook_loss_pulls_codes_and_latents_apart_from_each_other() -> None:
    latent = torch.tensor([1.0, 2.0]).requires_grad_()
    codes = torch.tensor([3.0, 2.0]).requires_grad_()
    loss = codebook_loss(latent, codes, 0.25)
    assert loss.item() == pytest.approx(2 + 0.25 * 2)
    loss.backward()
    assert codes.grad is not None and codes.grad.tolist() == [2.0, 0.0]
    assert latent.grad is not None and latent.grad.tolist() == [-0.5, 0.0]


def test_entropy_loss_is_lowest_where_latents_are_sure_and_use_all_codes() -> None:
    codes = torch.eye(4)
    assert entropy_loss(codes, codes) == pytest.approx(-math.log(4), abs=1e-5)
    assert entropy_loss(codes[:1].expand(5, 4), codes) == pytest.approx(0, abs=1e-5)
    assert entropy_loss(torch.zeros(3, 4), codes) == pytest.approx(0, abs=1e-5)
    # One latent at distances² 0 and 1, another at 1 and 0: each is sure to σ(1 / 0.5).
    sure = 1 / (1 + math.exp(-2))
    each = -(sure * math.log(sure) + (1 - sure) * math.log(1 - sure))
    line = torch.tensor([[0.0], [1.0]])
    assert entropy_loss(line, line, temperature=0.5) == pytest.approx(each - math.log(2), rel=1e-5)
    moved = torch.zeros(2, 1, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        entropy_loss(moved, line + 0.125).backward()
    assert moved.grad is not None and bool(moved.grad.isfinite().all())


def test_hinge_losses() -> None:
    real, made = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-3.0, -0.5, 1.0])
    assert hinge_discriminator_loss(real, made) == pytest.approx(0.5 * ((0 + 0.5 + 2) / 3 + (0 + 0.5 + 2) / 3))
    assert hinge_generator_loss(made) == pytest.approx(2.5 / 3)


def test_adaptive_weight_is_the_ratio_of_norms() -> None:
    assert adaptive_weight(torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 2.0]])) == pytest.approx(2.5)
    assert adaptive_weight(torch.ones(4), torch.zeros(4)) == 1e4
    assert not adaptive_weight(torch.ones(1, requires_grad=True), torch.ones(1)).requires_grad


def test_next_token_loss_of_a_uniform_model_is_log_k() -> None:
    tokens = torch.tensor([[0, 3], [2, 1]])
    assert next_token_loss(torch.zeros(2, 2, 5), tokens) == pytest.approx(math.log(5))


def test_mask_ratio() -> None:
    assert mask_ratio(0.0) == 1 and mask_ratio(1.0) == 0
    assert mask_ratio(math.cos(math.pi / 4)) == pytest.approx(0.5)


def test_masked_loss_counts_only_the_given_places() -> None:
    logits, tokens = torch.zeros(2, 3, 4), torch.zeros(2, 3, dtype=torch.long)
    logits[0, 0, 0] = 100.0
    counted = torch.tensor([[True, True, False], [False, False, False]])
    loss, nats = masked_loss(logits, tokens, counted)
    assert nats == pytest.approx(math.log(4) / 2)
    assert loss == pytest.approx(math.log(4) / 6)
    assert masked_loss(logits, tokens, torch.zeros_like(counted))[1] == 0


def test_masked_loss_splits_exactly_into_parts() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, tokens = torch.randn(4, 6, 5, generator=generator), torch.randint(5, (4, 6), generator=generator)
    counted = torch.rand(4, 6, generator=generator) < 0.4
    whole = masked_loss(logits, tokens, counted, 0.1)[0]
    parts = [masked_loss(logits[i : i + 2], tokens[i : i + 2], counted[i : i + 2], 0.1)[0] for i in (0, 2)]
    assert sum(parts) / 2 == pytest.approx(float(whole), rel=1e-6)


def test_label_smoothing_is_left_out_of_the_logged_nats() -> None:
    logits, tokens = torch.randn(1, 4, 5, generator=torch.Generator().manual_seed(1)), torch.zeros(1, 4).long()
    counted = torch.ones(1, 4, dtype=torch.bool)
    plain, smoothed = masked_loss(logits, tokens, counted), masked_loss(logits, tokens, counted, 0.3)
    assert plain[1] == smoothed[1] == plain[0] and smoothed[0] != plain[0]
