"""The training task of image tokenizers: pictures through the quantiser and back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hybrid import losses
from hybrid.data.codes import to_images
from hybrid.data.folder import DataFolder
from hybrid.data.splits import held_out, pick
from hybrid.discriminator import PatchDiscriminator, adversarial_losses, idle_losses
from hybrid.optimization import Auxiliary
from hybrid.pictures import sheet
from hybrid.training import DataOrder, Merit, sample_generator
from hybrid.types import Grid

EVAL_BATCH = 64
SHEET_PICTURES = 16
FEATURE_PICTURES = 512
"""At most so many held-out pictures, evenly spread, are compared by the feature network, which is slow on a CPU."""


@dataclass(frozen=True)
class Adversary:
    """A discriminator to train against.

    Attributes:
        discriminator: the network.
        weight: of the tokenizer's share, on top of the ratio of gradients.
        start: the run's first sample that it sees.
        lr: its peak learning rate.
    """

    discriminator: PatchDiscriminator
    weight: float
    start: int
    lr: float


class TokenizerTask:
    """Reconstruction of pictures through the quantiser, gradients passed straight through it.

    Args:
        model: an ``ImageTokenizer`` with ``latent``, ``quantise``, ``render``, ``last_layer``, ``factor`` and
            ``codebook_size``; with learned codes their ``codes_kd`` as well.
        folder: the pictures.
        seed: of the order and the views.
        metadata: what ``export`` gives.
        sets: the picture sets to train on; None is all.
        feature: a perceptual distance of two batches of pictures, and
        feature_weight: its weight.
        adversary: a discriminator, or None.
        codebook: weights of the commitment and the entropy loss; None where the codes are not learned.

    Raises:
        ValueError: pictures too small for the discriminator.
    """

    places = 0
    units: Mapping[str, str] = {
        "loss": "loss, all parts",
        "reconstruction": "L1 + MSE + L1 of gradients",
        "feature": "perceptual distance",
        "adversarial": "−mean score",
        "discriminator": "hinge loss",
        "ratio": "ratio of gradients",
        "codebook": "codebook + commitment loss",
        "entropy": "entropy loss, nats",
        "psnr": "PSNR, dB",
        "codes_used": "share of codes",
    }

    def __init__(
        self,
        model: nn.Module,
        folder: DataFolder,
        *,
        seed: int,
        metadata: dict[str, Any],
        sets: Sequence[str] | None = None,
        feature: nn.Module | None = None,
        feature_weight: float = 0.0,
        adversary: Adversary | None = None,
        codebook: tuple[float, float] | None = None,
    ) -> None:
        self.model, self.folder, self.seed, self.metadata = model, folder, seed, metadata
        self.feature, self.feature_weight, self.adversary, self.codebook = feature, feature_weight, adversary, codebook
        # What a perceptual loss trains for costs some PSNR, which would then call an early evaluation the best.
        self.merit = Merit("psnr", higher=True) if feature is None else Merit("feature", higher=False)
        self.auxiliary: Auxiliary | None = None
        if adversary is not None:
            side, smallest = min(folder.images.shape[2:4]), adversary.discriminator.smallest_side
            if side < smallest:
                raise ValueError(
                    f"adversarial.layers: {adversary.discriminator.layers} need pictures of {smallest} pixels a side, "
                    f"{folder.path} has {side}"
                )
            self.auxiliary = Auxiliary(adversary.discriminator, adversary.lr)
        self.train = pick(folder, "train", sets)
        self.order = DataOrder(len(self.train), seed)
        self.held = to_images(folder.images[held_out(folder, sets), 0])

    def batch(self, samples: range, device: torch.device) -> Mapping[str, Any]:
        """Pictures, one random view each."""
        chosen = []
        for number in samples:
            picture = self.train[self.order[number]]
            view = torch.randint(self.folder.images.shape[1], (), generator=sample_generator(self.seed, number))
            chosen.append(self.folder.images[picture, int(view)])
        found: dict[str, Any] = {"images": to_images(np.stack(chosen)).to(device)}
        if self.feature is not None:
            self.feature.to(device)
        if self.adversary is not None:
            found["adversarial"] = samples.start >= self.adversary.start
        return found

    def loss(self, model: Any, batch: Mapping[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum of all losses; each of them and the batch's PSNR to log."""
        images = batch["images"]
        latent = model.latent(images)
        codes = model.quantise(latent)
        output = model.render(latent + (codes - latent).detach())
        loss = reconstruction = losses.reconstruction_loss(output, images)
        figures = {"psnr": losses.psnr(output, images)}
        if self.feature is not None:
            figures["feature"] = self.feature(output, images)
            loss = loss + self.feature_weight * figures["feature"]
        if self.adversary is not None:
            discriminator = self.adversary.discriminator
            if batch["adversarial"]:
                found = adversarial_losses(discriminator, output, images, loss, model.last_layer)
            else:
                found = idle_losses(discriminator)
            loss = loss + self.adversary.weight * found.ratio * found.tokenizer + found.discriminator
            figures |= {"adversarial": found.tokenizer, "discriminator": found.discriminator, "ratio": found.ratio}
        if self.codebook is not None:
            commitment, entropy = self.codebook
            figures["codebook"] = losses.codebook_loss(latent, codes, commitment)
            loss = loss + figures["codebook"]
            if entropy:
                latent_md = latent.flatten(2).transpose(1, 2).flatten(0, 1)
                figures["entropy"] = losses.entropy_loss(latent_md, model.codes_kd())
                loss = loss + entropy * figures["entropy"]
        if loss is not reconstruction:
            figures["reconstruction"] = reconstruction
        return loss, figures

    def _reconstruct(self, model: Any, images: Tensor) -> tuple[Tensor, Tensor]:
        grid = Grid(images.shape[-2] // model.factor, images.shape[-1] // model.factor)
        with torch.autocast(images.device.type, enabled=False):  # as codes are extracted, in full precision
            tokens = model.encode(images)
            return tokens, model.decode(tokens, grid)

    def evaluate(self, model: Any) -> dict[str, float]:
        """PSNR on held-out pictures and the share of codes in use; with a feature loss the perceptual distance too."""
        images = self.held.to(next(model.parameters()).device)
        parts = [self._reconstruct(model, part) for part in images.split(EVAL_BATCH)]
        tokens, output = torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
        found = {
            "psnr": float(losses.psnr(output, images)),
            "codes_used": len(tokens.unique()) / model.codebook_size,
        }
        if self.feature is not None:
            feature = self.feature.to(images.device)
            some = slice(None, None, math.ceil(len(images) / FEATURE_PICTURES))
            pairs = zip(output[some].split(EVAL_BATCH), images[some].split(EVAL_BATCH), strict=True)
            found["feature"] = sum(float(feature(*pair)) * len(pair[0]) for pair in pairs) / len(images[some])
        return found

    def sample(self, model: Any, path: Path) -> None:
        """Held-out pictures above their reconstructions."""
        images = self.held[:SHEET_PICTURES].to(next(model.parameters()).device)
        sheet([*images, *self._reconstruct(model, images)[1]], columns=len(images)).save(path)

    def export(self) -> dict[str, Any]:
        return self.metadata
