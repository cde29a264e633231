"""The training tasks of AR and masked models: how numbered samples become batches and batches become a loss.

Every draw of a sample (view, caption, dropout, mask) comes from that sample's own stream, see ``training``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hybrid import losses
from hybrid.data.codes import CaptionTable
from hybrid.data.concepts import EVERYDAY
from hybrid.data.folder import DataFolder
from hybrid.data.splits import favour, group_weights, held_out, pick
from hybrid.pictures import sheet
from hybrid.sampler import Fill, HybridSampler, Sampling
from hybrid.sampling import Guidance
from hybrid.training import DataOrder, sample_generator
from hybrid.types import MASK

EVAL_BATCH = 64
SHEET_PICTURES = 16
SHEET_GUIDANCE = 2.0


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
        everyday: float = 0.0,
        sets: Sequence[str] | None = None,
        tokenizer: Any = None,
    ) -> None:
        self.model, self.folder, self.codes, self.captions = model, folder, codes, captions
        self.seed, self.metadata, self.condition_dropout = seed, metadata, condition_dropout
        self.tokenizer = tokenizer
        self.places = int(codes.shape[2])
        self.train = pick(folder, "train", sets)
        items = [folder.items[index] for index in self.train]
        weights = group_weights(items) if balance else None
        if everyday:
            asked = [not set(EVERYDAY).isdisjoint(item["captions"]) for item in items]
            weights = favour(torch.ones(len(items)) if weights is None else weights, asked, everyday)
        self.order = DataOrder(len(self.train), seed, weights)
        self.held = held_out(folder, sets)
        if captions is not None:
            number = {caption: place for place, caption in enumerate(captions.captions)}
            self.caption_ids = [[number[caption] for caption in item["captions"]] for item in folder.items]

    def _prompts(self, pictures: Sequence[int], captions: Sequence[int], device: torch.device) -> Any:
        """Labels or caption embeddings, as a model's ``condition`` takes them."""
        if self.captions is None:
            return [int(self.folder.items[picture]["label"]) for picture in pictures]
        embedding = torch.from_numpy(self.captions.embedding_csd[list(captions)]).float().to(device)
        return embedding, torch.from_numpy(self.captions.mask_cs[list(captions)]).to(device)

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
        return tokens, self.model.condition(self._prompts(pictures, captions, device)).drop(dropped), generators

    def _held_prompts(self, pictures: Sequence[int], device: torch.device) -> Any:
        """What is asked for in evaluation: each picture's label or first caption."""
        captions = [] if self.captions is None else [self.caption_ids[picture][0] for picture in pictures]
        return self._prompts(pictures, captions, device)

    def _held_tokens(self, pictures: Sequence[int], device: torch.device) -> Tensor:
        """Codes of the plain view."""
        return torch.from_numpy(self.codes[list(pictures), 0].astype(np.int64)).to(device)

    def held_batches(self, device: torch.device) -> Iterator[tuple[Tensor, Any, Any]]:
        """Tokens of the evaluation pictures, their own condition and another picture's."""
        others = np.roll(self.held, len(self.held) // 2 + 1)
        for start in range(0, len(self.held), EVAL_BATCH):
            own, other = (list(each[start : start + EVAL_BATCH]) for each in (self.held, others))
            conditions = [self.model.condition(self._held_prompts(each, device)) for each in (own, other)]
            yield self._held_tokens(own, device), *conditions

    def sampler(self, model: Any) -> HybridSampler:
        """The model with the task's tokenizer, for ``sample``."""
        raise NotImplementedError

    def sample(self, model: Any, path: Path) -> None:
        """Held-out pictures as the tokenizer gives them, and below each what the model draws for its condition.

        Nothing is written where the task was given no tokenizer.
        """
        if self.tokenizer is None:
            return
        device = next(model.parameters()).device
        self.tokenizer.to(device)
        pictures = self.held[:: max(1, len(self.held) // SHEET_PICTURES)][:SHEET_PICTURES].tolist()
        sampling = Sampling(Guidance(SHEET_GUIDANCE if self.condition_dropout else 1.0))
        made = self.sampler(model).generate(
            self._held_prompts(pictures, device),
            seeds=list(range(len(pictures))),
            prefix=sampling,
            fill=Fill(sampling=sampling),
        )
        real = self.tokenizer.decode(self._held_tokens(pictures, device), made.grid)
        sheet([*real, *made.images], columns=len(pictures)).save(path)

    def export(self) -> dict[str, Any]:
        return self.metadata


class ARTask(CodesTask):
    """Next-token prediction."""

    units: Mapping[str, str] = dict.fromkeys(("loss", "nats", "nats_without", "nats_wrong"), "nats per token")

    def sampler(self, model: Any) -> HybridSampler:
        return HybridSampler(model, None, self.tokenizer)

    def batch(self, samples: range, device: torch.device) -> Mapping[str, Any]:
        tokens, condition, _ = self._draw(samples, device)
        return {"tokens": tokens, "condition": condition}

    def loss(self, model: Any, batch: Mapping[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy in nats per token."""
        return losses.next_token_loss(model(batch["tokens"], batch["condition"]), batch["tokens"]), {}

    def evaluate(self, model: Any) -> dict[str, float]:
        """Nats per token on held-out pictures with their own, no and another picture's condition."""
        found = dict.fromkeys(("nats", "nats_without", "nats_wrong"), 0.0)
        for tokens, own, other in self.held_batches(next(model.parameters()).device):
            for name, asked in zip(found, (own, own.null(), other), strict=True):
                found[name] += float(losses.next_token_loss(model(tokens, asked), tokens)) * len(tokens)
        return {name: total / len(self.held) for name, total in found.items()}


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

    units: Mapping[str, str] = {
        "loss": "nats per place, as trained",
        **dict.fromkeys(("nats", "nats_half", "nats_quarter_prefix", "nats_half_prefix"), "nats per masked place"),
    }

    def __init__(
        self,
        *args: Any,
        prefix_share: float = 0.0,
        label_smoothing: float = 0.0,
        loss_on: Literal["masked", "all"] = "masked",
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.prefix_share, self.label_smoothing, self.loss_on = prefix_share, label_smoothing, loss_on

    def sampler(self, model: Any) -> HybridSampler:
        return HybridSampler(None, model, self.tokenizer)

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
        device = next(model.parameters()).device
        position = torch.arange(self.places, device=device)
        half = torch.rand((len(self.held), self.places), generator=sample_generator(0, 0)) < 0.5
        found = dict.fromkeys(("nats_half", "nats_quarter_prefix", "nats_half_prefix"), 0.0)
        counts = dict.fromkeys(found, 0)
        start = 0
        for tokens, condition, _ in self.held_batches(device):
            random = half[start : start + len(tokens)].to(device)
            prefixes = [(position >= kept).expand_as(tokens) for kept in (self.places // 4, self.places // 2)]
            for name, masked in zip(found, (random, *prefixes), strict=True):
                nats = losses.masked_loss(model(tokens.masked_fill(masked, MASK), condition), tokens, masked)[1]
                found[name] += float(nats) * int(masked.sum())
                counts[name] += int(masked.sum())
            start += len(tokens)
        return {name: total / counts[name] for name, total in found.items()}
