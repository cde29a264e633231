"""The training task of image tokenizers: pictures through the quantiser and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hybrid import losses
from hybrid.data.codes import to_images
from hybrid.data.folder import DataFolder
from hybrid.data.splits import held_out, pick
from hybrid.pictures import sheet
from hybrid.training import DataOrder, sample_generator
from hybrid.types import Grid

EVAL_BATCH = 64
SHEET_PICTURES = 16


class TokenizerTask:
    """Reconstruction of pictures through the quantiser, gradients passed straight through it."""

    places = 0
    units: Mapping[str, str] = {
        "loss": "L1 + MSE + L1 of gradients",
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
    ) -> None:
        self.model, self.folder, self.seed, self.metadata = model, folder, seed, metadata
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
        return {"images": to_images(np.stack(chosen)).to(device)}

    def loss(self, model: Any, batch: Mapping[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """Reconstruction loss and the batch's PSNR."""
        latent = model.latent(batch["images"])
        codes = latent + (model.quantise(latent) - latent).detach()
        output = model.render(codes)
        return losses.reconstruction_loss(output, batch["images"]), {"psnr": losses.psnr(output, batch["images"])}

    def _reconstruct(self, model: Any, images: Tensor) -> tuple[Tensor, Tensor]:
        grid = Grid(images.shape[-2] // model.factor, images.shape[-1] // model.factor)
        with torch.autocast(images.device.type, enabled=False):  # as codes are extracted, in full precision
            tokens = model.encode(images)
            return tokens, model.decode(tokens, grid)

    def evaluate(self, model: Any) -> dict[str, float]:
        """PSNR on held-out pictures and the share of codes in use there."""
        images = self.held.to(next(model.parameters()).device)
        parts = [self._reconstruct(model, part) for part in images.split(EVAL_BATCH)]
        tokens, output = torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
        return {
            "psnr": float(losses.psnr(output, images)),
            "codes_used": len(tokens.unique()) / model.codebook_size,
        }

    def sample(self, model: Any, path: Path) -> None:
        """Held-out pictures above their reconstructions."""
        images = self.held[:SHEET_PICTURES].to(next(model.parameters()).device)
        sheet([*images, *self._reconstruct(model, images)[1]], columns=len(images)).save(path)

    def export(self) -> dict[str, Any]:
        return self.metadata
