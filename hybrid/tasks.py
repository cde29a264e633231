"""The three training tasks: how numbered samples become batches and batches become a loss.

Every draw of a sample (view, caption, dropout, mask) comes from that sample's own stream, see ``training``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hybrid import losses
from hybrid.data.codes import CaptionTable, to_images
from hybrid.data.folder import DataFolder
from hybrid.pictures import sheet
from hybrid.training import DataOrder, sample_generator
from hybrid.types import MASK, Grid

EVAL_PICTURES = 256


def group_weights(items: Sequence[Mapping[str, Any]]) -> Tensor:
    """Weights that make every concept group equally likely, whatever its number of pictures."""
    sizes: dict[str, int] = {}
    for item in items:
        sizes[item["group"]] = sizes.get(item["group"], 0) + 1
    return torch.tensor([1 / sizes[item["group"]] for item in items])


def held_split(folder: DataFolder) -> str:
    """The folder's split that no model trains on."""
    return "heldout" if any(item["split"] == "heldout" for item in folder.items) else "test"


def pick(folder: DataFolder, split: str, sets: Sequence[str] | None) -> NDArray[np.int64]:
    """Places of a split's pictures, only those of the named sets where ``sets`` is given.

    Raises:
        ValueError: no picture is left, or a name is not among the folder's sets.
    """
    found = folder.indices(split)
    if sets is None:
        return found
    known = sorted({str(item["set"]) for item in folder.items if "set" in item})
    unknown = [name for name in sets if name not in known]
    chosen = np.asarray([place for place in found if folder.items[place].get("set") in sets], dtype=np.int64)
    if unknown or not len(chosen):
        wrong = f"no set is called {unknown[0]!r}" if unknown else f"no {split} picture is of {list(sets)}"
        raise ValueError(f"sets: {wrong}; {folder.path} has {', '.join(known) or 'no sets'}")
    return chosen


class TokenizerTask:
    """Reconstruction of pictures through the quantiser, gradients passed straight through it."""

    def __init__(self, model: nn.Module, folder: DataFolder, *, seed: int, metadata: dict[str, Any], sets: Sequence[str] | None = None) -> None:
        self.model, self.folder, self.seed, self.metadata = model, folder, seed, metadata
        self.train = pick(folder, "train", sets)
        self.order = DataOrder(len(self.train), seed)
        held = pick(folder, held_split(folder), sets)
        self.held = to_images(folder.images[held[:: max(1, len(held) // EVAL_PICTURES)][:EVAL_PICTURES], 0])

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
        tokens = model.encode(images)
        grid = Grid(images.shape[-2] // model.factor, images.shape[-1] // model.factor)
        return tokens, model.decode(tokens, grid)

    def evaluate(self, model: Any) -> dict[str, float]:
        """PSNR on held-out pictures and the share of codes in use there."""
        images = self.held.to(next(model.parameters()).device)
        parts = [self._reconstruct(model, part) for part in images.split(64)]
        tokens, output = torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
        return {
            "psnr": float(losses.psnr(output, images)),
            "codes_used": len(tokens.unique()) / model.codebook_size,
        }

    def sample(self, model: Any, path: Path) -> None:
        """Held-out pictures above their reconstructions."""
        images = self.held[:16].to(next(model.parameters()).device)
        sheet([*images, *self._reconstruct(model, images)[1]], columns=16).save(path)

    def export(self) -> dict[str, Any]:
        return self.metadata


class CodesTask:
    """What AR and masked training share: tokens of a random view with a label or a random caption."""

    def __init__(
        self,
        model: Any,
        folder: DataFolder,
        codes: NDArray[np.uint16],
        captions: CaptionTable | None,
        *,
        seed: int,
        metadata: dict[str, Any],
        condition_dropout: float = 0.1,
        balance: bool = False,
        sets: Sequence[str] | None = None,
    ) -> None:
        self.model, self.folder, self.codes, self.captions = model, folder, codes, captions
        self.seed, self.metadata, self.condition_dropout = seed, metadata, condition_dropout
        self.train = pick(folder, "train", sets)
        weights = group_weights([folder.items[index] for index in self.train]) if balance else None
        self.order = DataOrder(len(self.train), seed, weights)
        held = pick(folder, held_split(folder), sets)
        self.held = held[:: max(1, len(held) // EVAL_PICTURES)][:EVAL_PICTURES]
        if captions is not None:
            number = {caption: place for place, caption in enumerate(captions.captions)}
            self.caption_ids = [[number[caption] for caption in item["captions"]] for item in folder.items]

    def _condition(self, pictures: Sequence[int], captions: Sequence[int], device: torch.device) -> Any:
        if self.captions is None:
            return self.model.condition([int(self.folder.items[picture]["label"]) for picture in pictures])
        embedding = torch.from_numpy(self.captions.embedding_csd[list(captions)]).float().to(device)
        mask = torch.from_numpy(self.captions.mask_cs[list(captions)]).to(device)
        return self.model.condition((embedding, mask))

    def _draw(self, samples: range, device: torch.device) -> tuple[Tensor, Any, list[torch.Generator]]:
        """Tokens, the condition after dropout, and each sample's stream, ready for further draws."""
        generators = [sample_generator(self.seed, number) for number in samples]
        draws = [torch.rand(3, generator=generator) for generator in generators]
        pictures = [int(self.train[self.order[number]]) for number in samples]
        views = [int(draw[0] * self.codes.shape[1]) for draw in draws]
        captions: list[int] = []
        if self.captions is not None:
            captions = [
                self.caption_ids[picture][int(draw[1] * len(self.caption_ids[picture]))]
                for picture, draw in zip(pictures, draws, strict=True)
            ]
        tokens = torch.from_numpy(self.codes[pictures, views].astype(np.int64)).to(device)
        dropped = torch.tensor([float(draw[2]) < self.condition_dropout for draw in draws], device=device)
        return tokens, self._condition(pictures, captions, device).drop(dropped), generators

    def held_batch(self, device: torch.device) -> tuple[Tensor, Any]:
        """Tokens and condition of the evaluation pictures: plain view, first caption."""
        tokens = torch.from_numpy(self.codes[self.held, 0].astype(np.int64)).to(device)
        captions = [] if self.captions is None else [self.caption_ids[picture][0] for picture in self.held]
        return tokens, self._condition([int(picture) for picture in self.held], captions, device)

    def sample(self, model: Any, path: Path) -> None:
        """Set by the command that knows a tokenizer and a sampler; nothing to draw without them."""

    def export(self) -> dict[str, Any]:
        return self.metadata


class ARTask(CodesTask):
    """Next-token prediction."""

    def batch(self, samples: range, device: torch.device) -> Mapping[str, Any]:
        tokens, condition, _ = self._draw(samples, device)
        return {"tokens": tokens, "condition": condition}

    def loss(self, model: Any, batch: Mapping[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy in nats per token."""
        return losses.next_token_loss(model(batch["tokens"], batch["condition"]), batch["tokens"]), {}

    def evaluate(self, model: Any) -> dict[str, float]:
        """Nats per token on held-out pictures with their own, no and another picture's condition."""
        tokens, condition = self.held_batch(next(model.parameters()).device)
        wrong = self._shuffled(condition)
        found = {}
        for name, asked in (("nats", condition), ("nats_without", condition.null()), ("nats_wrong", wrong)):
            found[name] = float(losses.next_token_loss(model(tokens, asked), tokens))
        return found

    def _shuffled(self, condition: Any) -> Any:
        from dataclasses import fields, replace

        moved = {}
        for entry in fields(condition):
            value = getattr(condition, entry.name)
            if isinstance(value, Tensor):
                moved[entry.name] = value.roll(len(value) // 2 + 1, dims=0)
        return replace(condition, **moved)


def draw_mask(places: int, generator: torch.Generator, prefix_share: float) -> tuple[Tensor, bool]:
    """Which places of one sample to mask, and whether it is a hand-off.

    With probability ``prefix_share`` the sample rehearses a hand-off: a raster prefix of uniform length is kept, and
    of the rest the share arccos(u)/(π/2) is masked, so that both the first pass after a hand-off and later ones occur.
    Otherwise the same share of all places is masked (MaskGIL). At least one place is masked.
    """
    choice, length, ratio = torch.rand(3, generator=generator).tolist()
    known = torch.rand(places, generator=generator) >= losses.mask_ratio(ratio)
    handoff = choice < prefix_share
    if handoff:
        known[: int(length * places)] = True
    masked = ~known
    masked[-1] |= not bool(masked.any())
    return masked, handoff


class MaskedTask(CodesTask):
    """Prediction of masked tokens, with hand-offs rehearsed (see ``draw_mask``)."""

    def __init__(
        self, *args: Any, prefix_share: float = 0.0, label_smoothing: float = 0.0, loss_on: str = "masked", **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.prefix_share, self.label_smoothing, self.loss_on = prefix_share, label_smoothing, loss_on

    def batch(self, samples: range, device: torch.device) -> Mapping[str, Any]:
        tokens, condition, generators = self._draw(samples, device)
        masks = [draw_mask(tokens.shape[1], generator, self.prefix_share)[0] for generator in generators]
        return {"tokens": tokens, "condition": condition, "masked": torch.stack(masks).to(device)}

    def loss(self, model: Any, batch: Mapping[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy at masked (or all) places; logs nats per masked place."""
        tokens, masked = batch["tokens"], batch["masked"]
        logits = model(tokens.masked_fill(masked, MASK), batch["condition"])
        counted = masked if self.loss_on == "masked" else torch.ones_like(masked)
        loss, nats = losses.masked_loss(logits, tokens, counted, self.label_smoothing)
        return loss, {"nats": nats}

    def evaluate(self, model: Any) -> dict[str, float]:
        """Nats per masked place on held-out pictures: half masked at random, after a quarter's and a half's prefix."""
        tokens, condition = self.held_batch(next(model.parameters()).device)
        places = tokens.shape[1]
        random = torch.rand(tokens.shape, generator=sample_generator(0, 0)).to(tokens.device) < 0.5
        position = torch.arange(places, device=tokens.device).expand_as(tokens)
        cases = {"nats_half": random, "nats_quarter_prefix": position >= places // 4}
        cases["nats_half_prefix"] = position >= places // 2
        found = {}
        for name, masked in cases.items():
            logits = model(tokens.masked_fill(masked, MASK), condition)
            found[name] = float(losses.masked_loss(logits, tokens, masked)[1])
        return found
