"""The training tasks of AR and masked models: how numbered samples become batches and batches become a loss.

Every draw of a sample (view, caption, dropout, mask) comes from that sample's own stream, see ``training``.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from hybrid import losses
from hybrid.data.coded import CodedPictures
from hybrid.data.splits import spread
from hybrid.optimization import Auxiliary
from hybrid.phases import Fill, Sampling
from hybrid.pictures import sheet
from hybrid.sampler import HybridSampler
from hybrid.sampling import Guidance
from hybrid.training import DataOrder, Merit, sample_generator
from hybrid.types import MASK

EVAL_BATCH = 64
SHEET_PICTURES = 16
SHEET_GUIDANCE = 2.0


class BucketOrder:
    """Which bucket of pictures each step of the run draws from, so that every picture is drawn equally often.

    In epoch e, bucket b of n_b pictures has ⌊(e + 1) n_b / s⌋ - ⌊e n_b / s⌋ steps of s samples, in shuffled order.
    So a step's number tells what it draws, and nothing is lost where s does not divide n_b.
    """

    def __init__(self, sizes: Sequence[int], per_step: int, seed: int) -> None:
        self.sizes, self.per_step, self.seed = list(sizes), per_step, seed
        self._epoch = -1
        self._steps: list[tuple[int, int]] = []

    def _before(self, epoch: int) -> list[int]:
        """Steps of each bucket before an epoch."""
        return [epoch * size // self.per_step for size in self.sizes]

    def __getitem__(self, step: int) -> tuple[int, int]:
        """The step's bucket, and how many earlier steps drew from the same one."""
        epoch = max(0, step * self.per_step // sum(self.sizes) - 1)
        while sum(self._before(epoch + 1)) <= step:
            epoch += 1
        if epoch != self._epoch:
            turns, ends = self._before(epoch), self._before(epoch + 1)
            steps = [end - start for start, end in zip(turns, ends, strict=True)]
            buckets = torch.arange(len(steps)).repeat_interleave(torch.tensor(steps))
            generator = sample_generator(~self.seed, epoch)
            self._steps = []
            for bucket in buckets[torch.randperm(len(buckets), generator=generator)].tolist():
                self._steps.append((bucket, turns[bucket]))
                turns[bucket] += 1
            self._epoch = epoch
        return self._steps[step - sum(self._before(self._epoch))]


class CodesTask:
    """What AR and masked training share: tokens of a random view with a label or a random caption.

    Args:
        model: an AR or masked model.
        buckets: pictures of one grid each. All samples of a step are of one bucket.
        seed: of every draw.
        metadata: what is stored beside the weights.
        per_step: samples of a step, over all processes and accumulated parts.
        condition_dropout: share of samples whose condition is dropped.
        token_noise: largest share of a sample's tokens that are read wrongly, see ``_misread``.
        null_noise: that very share for samples whose condition is dropped; None treats them like the others.
        tokenizer: decodes the sample sheets; None draws none.

    Raises:
        ValueError: no pictures to train on, or none to evaluate on.
    """

    auxiliary: Auxiliary | None = None

    def __init__(
        self,
        model: Any,
        buckets: Sequence[CodedPictures],
        *,
        seed: int,
        metadata: dict[str, Any],
        per_step: int,
        condition_dropout: float = 0.1,
        token_noise: float = 0.0,
        null_noise: float | None = None,
        tokenizer: Any = None,
    ) -> None:
        self.model, self.seed, self.metadata = model, seed, metadata
        self.condition_dropout, self.tokenizer = condition_dropout, tokenizer
        self.token_noise, self.null_noise = token_noise, null_noise
        self.buckets = [bucket for bucket in buckets if len(bucket.train)]
        # "Another picture's condition" needs another picture.
        self.judged = [bucket for bucket in buckets if len(bucket.held) > 1]
        if not self.buckets or not self.judged:
            lacking = "train on" if not self.buckets else "evaluate on: hold a larger share of them out"
            raise ValueError(f"the data has too few pictures to {lacking}")
        sizes = [len(bucket.train) for bucket in self.buckets]
        self.steps = BucketOrder(sizes, per_step, seed)
        self.orders = [DataOrder(len(bucket.train), seed, bucket.weights) for bucket in self.buckets]
        weighted = sum(size * bucket.grid.places for size, bucket in zip(sizes, self.buckets, strict=True))
        self.places = round(weighted / sum(sizes))

    def _pictures(self, samples: range) -> tuple[CodedPictures, list[int]]:
        """The bucket that samples are of, and their pictures in it."""
        per_step = self.steps.per_step
        turns = [self.steps[number // per_step] for number in samples]
        chosen = turns[0][0]
        if any(bucket != chosen for bucket, _ in turns):
            raise ValueError(f"samples {samples.start}..{samples.stop - 1} are of several steps and grids")
        bucket, order = self.buckets[chosen], self.orders[chosen]
        numbers = [turn * per_step + number % per_step for (_, turn), number in zip(turns, samples, strict=True)]
        return bucket, [int(bucket.train[order[number]]) for number in numbers]

    def _misread(
        self, tokens_bn: Tensor, dropped_b: Tensor, samples: range, generators: Sequence[torch.Generator]
    ) -> Tensor:
        """The tokens as the model reads them; what it is to predict stays as it is.

        Of each sample a share, uniform in 0..``token_noise``, comes from the same places of another training picture. A
        model that draws reads its own mistakes, which no training picture holds; this way it has met the like, and
        cannot tell by the tokens alone which picture it is to draw.

        Of samples without a condition it is the share ``null_noise``, always, so that what guidance moves away from
        trusts its context less than the rest of the model: a weaker model rather than only one that was asked for
        nothing (after autoguidance, Karras et al., arXiv 2406.02507).
        """
        if not (self.token_noise or self.null_noise):
            return tokens_bn
        chosen, _ = self.steps[samples.start // self.steps.per_step]  # one for all, as ``_pictures`` checked
        bucket = self.buckets[chosen]
        draws = torch.stack([torch.rand(2 + tokens_bn.shape[1], generator=generator) for generator in generators])
        others = [int(bucket.train[int(draw * len(bucket.train))]) for draw in draws[:, 0]]
        shares_b = draws[:, 1] * self.token_noise
        if self.null_noise is not None:
            shares_b = torch.where(dropped_b.cpu(), self.null_noise, shares_b)
        wrong_bn = (draws[:, 2:] < shares_b[:, None]).to(tokens_bn.device)
        return torch.where(wrong_bn, bucket.tokens(others, [0] * len(others)).to(tokens_bn.device), tokens_bn)

    def _draw(self, samples: range, device: torch.device) -> tuple[Tensor, Any, Tensor, list[torch.Generator]]:
        """Tokens, the condition after dropout, where it was dropped, and each sample's stream, ready for further
        draws."""
        generators = [sample_generator(self.seed, number) for number in samples]
        draws = [torch.rand(3, generator=generator).tolist() for generator in generators]
        bucket, pictures = self._pictures(samples)
        tokens = bucket.tokens(pictures, [int(view * bucket.views) for view, _, _ in draws]).to(device)
        dropped = torch.tensor([dropout < self.condition_dropout for _, _, dropout in draws], device=device)
        condition = self._condition(bucket, pictures, [caption for _, caption, _ in draws], device)
        return tokens, condition.drop(dropped), dropped, generators

    def _condition(
        self, bucket: CodedPictures, pictures: Sequence[int], choices: Sequence[float], device: torch.device
    ) -> Any:
        return self.model.condition(_to(bucket.prompts(pictures, choices), device), bucket.grid)

    def on_training_pictures(self, number: int) -> CodesTask:
        """This task, but ``evaluate`` looks at training pictures, about ``number`` of all parts of their order: what a
        model says better of them than of held-out ones it knows by heart."""
        total = sum(len(bucket.train) for bucket in self.buckets)
        known = []
        for bucket in self.buckets:
            own = copy.copy(bucket)
            own.held = spread(bucket.train, max(2, round(number * len(bucket.train) / total)))
            known.append(own)
        return self._judging(known)

    def _judging(self, buckets: Sequence[CodedPictures]) -> CodesTask:
        """This task with the ``held`` pictures of other buckets to evaluate on."""
        other = copy.copy(self)
        other.judged = list(buckets)
        return other

    def held_batches(self, bucket: CodedPictures, device: torch.device) -> Iterator[tuple[Tensor, Any, Any]]:
        """Tokens of a bucket's evaluation pictures (plain views), their own condition and another picture's."""
        others = np.roll(bucket.held, len(bucket.held) // 2)
        for start in range(0, len(bucket.held), EVAL_BATCH):
            own, other = (each[start : start + EVAL_BATCH].tolist() for each in (bucket.held, others))
            first = [0] * len(own)
            conditions = [self._condition(bucket, each, first, device) for each in (own, other)]
            yield bucket.tokens(own, first).to(device), *conditions

    def sampler(self, model: Any) -> HybridSampler:
        """The model with the task's tokenizer, for ``sample``."""
        raise NotImplementedError

    def evaluate(self, model: Any) -> dict[str, float]:
        """Figures of the pictures that are held out."""
        raise NotImplementedError

    def sample(self, model: Any, path: Path) -> None:
        """Held-out pictures as the tokenizer gives them, and below each what the model draws for its condition.

        Nothing is written where the task was given no tokenizer.
        """
        if self.tokenizer is None:
            return
        device = next(model.parameters()).device
        self.tokenizer.to(device)
        bucket = max(self.judged, key=lambda each: len(each.held))
        pictures = spread(bucket.held, SHEET_PICTURES).tolist()
        sampling = Sampling(Guidance(SHEET_GUIDANCE if self.condition_dropout else 1.0))
        made = self.sampler(model).generate(
            _to(bucket.prompts(pictures, [0] * len(pictures)), device),
            seeds=list(range(len(pictures))),
            grid=bucket.grid,
            prefix=sampling,
            fill=Fill(sampling=sampling),
        )
        real = self.tokenizer.decode(bucket.tokens(pictures, [0] * len(pictures)).to(device), bucket.grid)
        sheet([*real, *made.images], columns=len(pictures)).save(path)

    def export(self) -> dict[str, Any]:
        return self.metadata


def _to(prompts: Any, device: torch.device) -> Any:
    """Embedded captions on a device; labels as they are."""
    return tuple(part.to(device) for part in prompts) if isinstance(prompts, tuple) else prompts


class ARTask(CodesTask):
    """Next-token prediction."""

    merit = Merit("nats", higher=False)
    units: Mapping[str, str] = dict.fromkeys(("loss", "nats", "nats_without", "nats_wrong"), "nats per token")

    def sampler(self, model: Any) -> HybridSampler:
        return HybridSampler(model, None, self.tokenizer)

    def batch(self, samples: range, device: torch.device) -> Mapping[str, Any]:
        tokens, condition, dropped, generators = self._draw(samples, device)
        return {"tokens": tokens, "condition": condition, "read": self._misread(tokens, dropped, samples, generators)}

    def loss(self, model: Any, batch: Mapping[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy in nats per token."""
        return losses.next_token_loss(model(batch["read"], batch["condition"]), batch["tokens"]), {}

    def evaluate(self, model: Any) -> dict[str, float]:
        """Nats per token on held-out pictures of all grids, with their own, no and another picture's condition."""
        found = dict.fromkeys(("nats", "nats_without", "nats_wrong"), 0.0)
        device, count = next(model.parameters()).device, 0
        for bucket in self.judged:
            for tokens, own, other in self.held_batches(bucket, device):
                for name, asked in zip(found, (own, own.null(), other), strict=True):
                    found[name] += float(losses.next_token_loss(model(tokens, asked), tokens)) * tokens.numel()
                count += tokens.numel()
        return {name: total / count for name, total in found.items()}


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

    merit = Merit("nats_half", higher=False)
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
        tokens, condition, dropped, generators = self._draw(samples, device)
        masks = [draw_mask(tokens.shape[1], generator, self.prefix_share)[0] for generator in generators]
        read = self._misread(tokens, dropped, samples, generators)
        return {"tokens": tokens, "condition": condition, "read": read, "masked": torch.stack(masks).to(device)}

    def loss(self, model: Any, batch: Mapping[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy at masked (or all) places; logs nats per masked place."""
        tokens, masked = batch["tokens"], batch["masked"]
        logits = model(batch["read"].masked_fill(masked, MASK), batch["condition"])
        counted = masked if self.loss_on == "masked" else torch.ones_like(masked)
        loss, nats = losses.masked_loss(logits, tokens, counted, self.label_smoothing)
        return loss, {"nats": nats}

    def evaluate(self, model: Any) -> dict[str, float]:
        """Nats per masked place on held-out pictures of all grids.

        Half of the places masked at random; all after a quarter's prefix; all after a half's prefix.
        """
        device = next(model.parameters()).device
        found = dict.fromkeys(("nats_half", "nats_quarter_prefix", "nats_half_prefix"), 0.0)
        counts = dict.fromkeys(found, 0)
        for number, bucket in enumerate(self.judged):
            places = bucket.grid.places
            position = torch.arange(places, device=device)
            half = torch.rand((len(bucket.held), places), generator=sample_generator(0, number)) < 0.5
            start = 0
            for tokens, condition, _ in self.held_batches(bucket, device):
                random = half[start : start + len(tokens)].to(device)
                prefixes = [(position >= kept).expand_as(tokens) for kept in (places // 4, places // 2)]
                for name, masked in zip(found, (random, *prefixes), strict=True):
                    nats = losses.masked_loss(model(tokens.masked_fill(masked, MASK), condition), tokens, masked)[1]
                    found[name] += float(nats) * int(masked.sum())
                    counts[name] += int(masked.sum())
                start += len(tokens)
        return {name: total / counts[name] for name, total in found.items()}
