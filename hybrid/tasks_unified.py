"""The training task of one network that is AR model and masked model at once (``hybrid.adapters.unified``).

Each sample is cut at a random place: what stands before it is learned token by token, what stands after it as a masked
model's fill. One forward pass serves both losses.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hybrid import losses
from hybrid.data.coded import CodedPictures
from hybrid.sampler import HybridSampler
from hybrid.tasks import ARTask, CodesTask, MaskedTask
from hybrid.training import Merit
from hybrid.types import MASK


def draw_cut(places: int, generator: torch.Generator, prefix_share: float) -> tuple[int, Tensor]:
    """One sample's prefix length, and which places after it to mask.

    With probability ``prefix_share`` the sample rehearses a hand-off: the length is uniform in 0..places − 1. Of the
    other samples half have no prefix, as where the masked phase runs alone, and half are all prefix. After the prefix
    the share arccos(u)/(π/2) of the places is masked, at least one.
    """
    choice, length, ratio = torch.rand(3, generator=generator).tolist()
    masked = torch.rand(places, generator=generator) < losses.mask_ratio(ratio)
    alone = places if length < 0.5 else 0
    prefix = int(length * places) if choice < prefix_share else alone
    masked[:prefix] = False
    if prefix < places:
        masked[-1] |= not bool(masked.any())
    return prefix, masked


def cut_loss(
    model: Any,
    tokens_bn: Tensor,
    condition: Any,
    prefix_b: Tensor,
    masked_bn: Tensor,
    read_bn: Tensor,
    masked_weight: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Cross-entropy at the places 0..r of each image with a prefix of r tokens, from the token before, and at the
    masked places after it, from their surroundings. The model reads ``read_bn``, which may differ from the tokens.

    Returns the first plus ``masked_weight`` times the second, summed over places and divided by all places b·n (so
    that batches may be split and accumulated exactly), and the mean of each in nats per place that it predicts.
    """
    following, own = model(read_bn.masked_fill(masked_bn, MASK), condition, prefix_b)
    predicted_bn = torch.arange(tokens_bn.shape[1], device=tokens_bn.device) <= prefix_b[:, None]
    loss, nats = losses.masked_loss(following, tokens_bn, predicted_bn)
    masked_loss, masked_nats = losses.masked_loss(own, tokens_bn, masked_bn)
    return loss + masked_weight * masked_loss, nats, masked_nats


class UnifiedTask(CodesTask):
    """Next-token prediction in the prefix, where r tokens predict the places 0..r, and prediction of masked tokens
    after it, each of which weighs ``masked_weight`` times as much as a next token. With half of the samples rehearsing
    a hand-off, masked places are two fifths of all that are predicted."""

    merit = Merit("nats_quarter_prefix", higher=False)
    units: Mapping[str, str] = {
        **MaskedTask.units,
        **{name: unit for name, unit in ARTask.units.items() if name != "loss"},
        **dict.fromkeys(("nats_next", "nats_masked"), "nats per predicted place"),
    }

    def __init__(
        self,
        model: Any,
        buckets: Sequence[CodedPictures],
        *,
        prefix_share: float = 0.5,
        masked_weight: float = 1.0,
        **common: Any,
    ) -> None:
        super().__init__(model, buckets, **common)
        self.prefix_share, self.masked_weight = prefix_share, masked_weight
        self.judges: tuple[CodesTask, CodesTask] = (
            ARTask(model, buckets, **common),
            MaskedTask(model, buckets, **common),
        )

    def _judging(self, buckets: Sequence[CodedPictures]) -> CodesTask:
        other = copy.copy(self)
        other.judged = list(buckets)
        ar, masked = (judge._judging(buckets) for judge in self.judges)
        other.judges = ar, masked
        return other

    def sampler(self, model: Any) -> HybridSampler:
        return HybridSampler(model, model, self.tokenizer)

    def batch(self, samples: range, device: torch.device) -> Mapping[str, Any]:
        tokens, condition, dropped, generators = self._draw(samples, device)
        cuts = [draw_cut(tokens.shape[1], generator, self.prefix_share) for generator in generators]
        prefix = torch.tensor([length for length, _ in cuts], device=device)
        masked = torch.stack([masked for _, masked in cuts]).to(device)
        read = self._misread(tokens, dropped, samples, generators)
        return {"tokens": tokens, "condition": condition, "prefix": prefix, "masked": masked, "read": read}

    def loss(self, model: Any, batch: Mapping[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """See ``cut_loss``; logs the mean of each kind in nats per place that it predicts."""
        tokens, condition, prefix, masked, read = (
            batch[name] for name in ("tokens", "condition", "prefix", "masked", "read")
        )
        loss, following, own = cut_loss(model, tokens, condition, prefix, masked, read, self.masked_weight)
        return loss, {"nats_next": following, "nats_masked": own}

    def evaluate(self, model: Any) -> dict[str, float]:
        """The figures of an AR model and those of a masked model, see their tasks."""
        ar, masked = self.judges
        return {**ar.evaluate(_Role(model, "score")), **masked.evaluate(_Role(model, "logits"))}


class _Role(nn.Module):
    """A model whose ``forward`` is one of its methods."""

    def __init__(self, model: nn.Module, method: str) -> None:
        super().__init__()
        self.model, self.method = model, method

    def forward(self, tokens_bn: Tensor, condition: Any) -> Tensor:
        return getattr(self.model, self.method)(tokens_bn, condition)  # type: ignore[no-any-return]
