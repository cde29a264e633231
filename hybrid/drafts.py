"""What drafts are drawn from: distributions as whole numbers, and who proposes them.

A *drafter* gives, for places not yet written, independent distributions q that depend on nothing but what is verified
and on its own past; that is all that exact verification asks (``hybrid.verify``). The masked model is one, in one pass;
the AR model's own last look at those places is another and costs no pass at all (speculative Jacobi decoding, Teng et
al., arXiv 2410.01699). One network that is both models drafts from the AR phase's cache. This file knows protocols and
no model.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from hybrid.phases import Sampling, guide_places, place_scales
from hybrid.sampling import ONE, filter_logits, fraction_of
from hybrid.types import Condition, Grid, MaskedModel


def distribution(logits: Tensor, sampling: Sampling) -> Tensor:
    """Probabilities (..., k), float32, of what ``sampling`` draws from guided logits; one-hot at temperature 0.

    Raises:
        ValueError: logits that hold NaN or +inf, or only -inf.
    """
    logits = logits.float().contiguous()
    if not torch.isfinite(logits.amax(-1)).all():
        raise ValueError("logits: hold NaN, +inf or nothing but -inf; the model or its weights are broken")
    if sampling.temperature == 0:
        return torch.zeros_like(logits).scatter_(-1, logits.argmax(-1, keepdim=True), 1.0)
    logits = filter_logits(logits, temperature=sampling.temperature, top_k=sampling.top_k, top_p=sampling.top_p)
    return logits.softmax(-1)


def whole_weights(p: Tensor, where: Tensor | None = None) -> Tensor:
    """Probabilities (..., k) as int64 in units of 2^-52 that sum to 1 exactly; the likeliest code takes the rounding.

    Equal sums are what makes the rule work: whenever q(x) exceeds p(x), p exceeds q somewhere.

    Raises:
        ValueError: a sum that is not 1, at any place or at those ``where`` says.
    """
    weights = (p * ONE).long()
    missing = ONE - weights.sum(-1, keepdim=True)
    wrong = missing[..., 0].abs() > ONE // 1000
    if bool((wrong if where is None else wrong & where).any()) or bool((weights < 0).any()):
        raise ValueError("probabilities: must be from 0 and sum to 1")
    return weights.scatter_add(-1, weights.argmax(-1, keepdim=True), missing)


def pick(weights: Tensor, uniforms: Tensor) -> Tensor:
    """Codes (...) by inverse CDF from whole weights (..., k), as ``hybrid.sampling.draw`` does it."""
    reached = weights.cumsum(-1)
    return torch.searchsorted(reached, fraction_of(reached[..., -1], uniforms)[..., None], right=True)[..., 0]


class Drafter(Protocol):
    """Proposes distributions for places that are not verified yet.

    Attributes:
        passes: forward passes of a masked model that a proposal costs.
    """

    passes: int

    def propose(self, tokens_bn: Tensor, places_bw: Tensor) -> Tensor:
        """q_bwk for the given places of each image; ``tokens_bn`` holds MASK where nothing is verified."""
        ...

    def learn(self, places_bw: Tensor, p_bwk: Tensor, looked_bw: Tensor) -> None:
        """Hear what the AR model said of these places, given the draft before each, where ``looked_bw`` is True."""
        ...


class MaskedDrafter:
    """The masked model, given the verified prefix.

    Args:
        model: the masked model.
        condition, null: what it is asked for, b images, and what its guidance moves away from.
        sampling: how it drafts; guidance that changes does so over places.
    """

    passes = 1

    def __init__(self, model: MaskedModel, condition: Condition, null: Condition, sampling: Sampling) -> None:
        self.model, self.sampling, self.batch = model, sampling, len(condition)
        self.scales_n = place_scales(sampling, condition.grid)
        self.asked = condition.cat(null) if bool((self.scales_n != 1).any()) else condition

    def propose(self, tokens_bn: Tensor, places_bw: Tensor) -> Tensor:
        many = len(self.asked) // self.batch
        logits_bwk = self.model.logits(tokens_bn.repeat(many, 1), self.asked, places_bw.repeat(many, 1))
        scales_bw = self.scales_n.to(places_bw.device)[places_bw]
        return distribution(guide_places(logits_bwk, scales_bw, self.sampling.guidance.floor), self.sampling)

    def learn(self, places_bw: Tensor, p_bwk: Tensor, looked_bw: Tensor) -> None:
        """The masked model has no use for it."""


@runtime_checkable
class DraftingModel(Protocol):
    """One network that is AR and masked model, and drafts from the AR phase's cache."""

    def draft_logits(self, tokens_bn: Tensor, places_bw: Tensor, state: Any) -> Tensor:
        """Logits (b, w, k) of the places ``places_bw``, the first of which follows each image's last known token, from
        the state that verification left. What the state holds at these places and after them is lost."""
        ...


class CacheDrafter:
    """The masked half of a ``DraftingModel``, which reads the verified prefix from the AR model's cache.

    Args:
        model: the network.
        state: the AR phase's, with the null's rows after the others where drafts are guided.
        grid: of the tokens.
        sampling: how it drafts; guidance that changes does so over places.
    """

    passes = 1

    def __init__(self, model: DraftingModel, state: Any, grid: Grid, sampling: Sampling) -> None:
        self.model, self.state, self.sampling = model, state, sampling
        self.scales_n = place_scales(sampling, grid)

    def propose(self, tokens_bn: Tensor, places_bw: Tensor) -> Tensor:
        scales_bw = self.scales_n.to(places_bw.device)[places_bw]
        many = 2 if bool((scales_bw != 1).any()) else 1
        logits_bwk = self.model.draft_logits(tokens_bn.repeat(many, 1), places_bw.repeat(many, 1), self.state)
        return distribution(guide_places(logits_bwk, scales_bw, self.sampling.guidance.floor), self.sampling)

    def learn(self, places_bw: Tensor, p_bwk: Tensor, looked_bw: Tensor) -> None:
        """What the masked half knows is in the cache."""


class JacobiDrafter:
    """What the AR model said of a place when it last looked there, given the draft of that time.

    A place that it never looked at gets the distribution of the last place before it that it did look at. Every attempt
    draws from these anew, so that drafts stay independent draws from q.

    Args:
        places: of the grid; the first one needs no draft.
        first_bk: the AR model's distribution at place 0.
    """

    passes = 0

    def __init__(self, places: int, first_bk: Tensor) -> None:
        self.p_bnk = first_bk[:, None].expand(-1, places, -1).clone()
        self.seen_b = torch.zeros(len(first_bk), dtype=torch.long, device=first_bk.device)

    def propose(self, tokens_bn: Tensor, places_bw: Tensor) -> Tensor:
        known_bw = torch.minimum(places_bw, self.seen_b[:, None])
        return self.p_bnk.gather(1, known_bw[..., None].expand(-1, -1, self.p_bnk.shape[-1]))

    def learn(self, places_bw: Tensor, p_bwk: Tensor, looked_bw: Tensor) -> None:
        self.p_bnk[looked_bw.nonzero()[:, 0], places_bw[looked_bw]] = p_bwk[looked_bw]
        self.seen_b = torch.maximum(self.seen_b, places_bw.masked_fill(~looked_bw, 0).amax(1))
