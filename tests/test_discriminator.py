"""The discriminator and the two sides of its game, against the definitions written out once more."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hybrid.discriminator import PatchDiscriminator, adversarial_losses, idle_losses


def discriminator(layers: int = 1) -> PatchDiscriminator:
    torch.manual_seed(0)
    return PatchDiscriminator(width=8, layers=layers)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_scores_patches_of_the_smallest_side_and_above(layers: int) -> None:
    network = discriminator(layers)
    side = network.smallest_side
    assert network(torch.zeros(2, 3, side, side)).shape == (2, 1, 1, 1)
    assert network(torch.zeros(1, 3, 64, 96)).shape == (1, 1, 64 // 2**layers - 2, 96 // 2**layers - 2)
    with pytest.raises(RuntimeError):
        network(torch.zeros(1, 3, side - 2**layers, side - 2**layers))


def test_a_patch_is_70_pixels_wide_with_three_layers() -> None:
    """A score moves with the pixels of its patch only: norms, which look at whole pictures, are taken out."""
    network = discriminator(3)
    for place, module in enumerate(network.network):
        if isinstance(module, nn.GroupNorm):
            network.network[place] = nn.Identity()
    images = torch.zeros(1, 3, 128, 128, requires_grad=True)
    scores = network(images)
    (gradient,) = torch.autograd.grad(scores[0, 0, scores.shape[2] // 2, scores.shape[3] // 2], images)
    rows = gradient.abs().sum((0, 1, 3)).nonzero()[:, 0]
    assert int(rows[-1] - rows[0]) + 1 == 70


def test_a_score_does_not_depend_on_the_rest_of_the_batch() -> None:
    network, images = discriminator(), torch.randn(3, 3, 8, 8)
    assert torch.allclose(network(images)[1:2], network(images[1:2]), atol=1e-6)


def test_a_width_that_cannot_be_grouped() -> None:
    with pytest.raises(ValueError, match="a multiple of 8, not 12"):
        PatchDiscriminator(width=12)


def test_losses_are_the_definitions_and_reach_their_own_side_only() -> None:
    network = discriminator()
    decoder = nn.Conv2d(3, 3, 3, padding=1)
    latent, target = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8)
    output = decoder(latent)
    found = adversarial_losses(network, output, target, F.mse_loss(output, target), decoder.weight)

    assert found.tokenizer.item() == pytest.approx(-float(network(output).mean()))
    real, made = network(target), network(output)
    assert found.discriminator.item() == pytest.approx(
        0.5 * float((1 - real).clamp(min=0).mean() + (1 + made).clamp(min=0).mean()), rel=1e-5
    )
    norms = [
        torch.autograd.grad(loss, decoder.weight)[0].norm()
        for loss in (F.mse_loss(decoder(latent), target), -network(decoder(latent)).mean())
    ]
    assert found.ratio.item() == pytest.approx(float(norms[0] / norms[1]), rel=1e-4)

    found.tokenizer.backward(retain_graph=True)
    assert decoder.weight.grad is not None and all(value.grad is None for value in network.parameters())
    decoder.zero_grad()
    found.discriminator.backward()
    assert decoder.weight.grad is None and all(value.grad is not None for value in network.parameters())


def test_before_its_start_a_discriminator_stays_as_it_is() -> None:
    network = discriminator()
    found = idle_losses(network)
    assert (found.tokenizer, found.discriminator.item(), found.ratio) == (0, 0, 0)
    found.discriminator.backward()
    assert all(value.grad is not None and not value.grad.any() for value in network.parameters())
