"""A patch discriminator and what image tokenizers learn from it (VQGAN, Esser et al., arXiv 2012.09841).

This file knows pictures and networks. It does not know steps, optimisers or processes' shares; the closed forms are in
``losses``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from hybrid import losses

GROUPS = 8
SLOPE = 0.2
WIDEST = 8
"""Times the first layer's width, at most."""


class PatchDiscriminator(nn.Module):
    """Scores overlapping patches of a picture: positive is real (PatchGAN, Isola et al., arXiv 1611.07004).

    Group norms stand for the original's batch norms, so that a picture's score depends neither on its neighbours in
    the batch nor on how a batch is shared out.

    Args:
        width: channels of the first layer, a multiple of 8; each further one has twice as many, 8 × ``width`` at most.
        layers: convolutions of stride 2; a patch is 34 pixels wide with two of them, 70 with three.

    Raises:
        ValueError: a width that the norms cannot group.
    """

    def __init__(self, *, width: int = 64, layers: int = 3) -> None:
        super().__init__()
        if width % GROUPS:
            raise ValueError(f"a discriminator's width is a multiple of {GROUPS}, not {width}")
        self.layers = layers
        modules: list[nn.Module] = [nn.Conv2d(3, width, 4, stride=2, padding=1), nn.LeakyReLU(SLOPE)]
        before = width
        for layer in range(1, layers + 1):
            after = width * min(2**layer, WIDEST)
            stride = 2 if layer < layers else 1
            modules += [nn.Conv2d(before, after, 4, stride=stride, padding=1, bias=False)]
            modules += [nn.GroupNorm(GROUPS, after), nn.LeakyReLU(SLOPE)]
            before = after
        modules.append(nn.Conv2d(before, 1, 4, padding=1))
        self.network = nn.Sequential(*modules)
        for module in modules:
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.02)

    @property
    def smallest_side(self) -> int:
        """Pixels that a picture needs along each side."""
        return 3 * 2**self.layers

    def forward(self, images_bchw: Tensor) -> Tensor:
        """RGB images to a score for each patch, (b, 1, rows, columns)."""
        return self.network(images_bchw)


@dataclass(frozen=True)
class AdversarialLosses:
    """What one batch gives.

    Attributes:
        tokenizer: −mean score of the reconstructions; its gradients reach the tokenizer only.
        discriminator: the hinge loss; its gradients reach the discriminator only.
        ratio: by which the first is multiplied so that it weighs as much as the other losses.
    """

    tokenizer: Tensor
    discriminator: Tensor
    ratio: Tensor


def adversarial_losses(
    discriminator: nn.Module, output_bchw: Tensor, target_bchw: Tensor, base: Tensor, last: Tensor
) -> AdversarialLosses:
    """Both sides' losses at the same weights, so one backward pass and one step of each optimiser train both.

    Args:
        discriminator: scores pictures.
        output_bchw: reconstructions, with their graph.
        target_bchw: the pictures.
        base: the loss of the reconstructions without the adversarial part.
        last: the weights of the decoder's last layer, where the two losses' gradients are compared.
    """
    frozen = {name: value.detach() for name, value in discriminator.named_parameters()}
    tokenizer = losses.hinge_generator_loss(functional_call(discriminator, frozen, (output_bchw,)))
    base_gradient, gradient = (
        _mean_over_processes(torch.autograd.grad(loss, last, retain_graph=True)[0]) for loss in (base, tokenizer)
    )
    ratio = losses.adaptive_weight(base_gradient, gradient)
    real, made = discriminator(torch.cat((target_bchw, output_bchw.detach().to(target_bchw)))).chunk(2)
    return AdversarialLosses(tokenizer, losses.hinge_discriminator_loss(real, made), ratio)


def idle_losses(discriminator: nn.Module) -> AdversarialLosses:
    """Before the discriminator's first step: all zero.

    Every parameter takes part, since several processes wait for each other's gradient of each.
    """
    zero = torch.stack([value.sum() for value in discriminator.parameters()]).sum() * 0
    return AdversarialLosses(zero.detach(), zero, zero.detach())


def _mean_over_processes(gradient: Tensor) -> Tensor:
    """The whole batch's gradient, of which each process has its share's."""
    if not torch.distributed.is_initialized():
        return gradient
    total = gradient.clone()
    torch.distributed.all_reduce(total)
    return total / torch.distributed.get_world_size()
