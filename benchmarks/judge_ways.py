"""Ways to draw that were tried against the hybrid and are no part of it: a guided fill, and scattered seeds.

A *guided fill* adds the AR model's log-probabilities to the masked model's logits in every pass: exactly at the first
unknown place, whose whole raster past is known, or at all places, with the masked model's likeliest tokens standing in
for the past that is not known. *Scattered seeds* replace the AR model's prefix: the masked model draws places spread
over the grid one at a time, and the usual fill does the rest.

This file knows protocols and the pipeline; ``judge`` compares. Nothing in the core uses it.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hybrid.orders import halton_order
from hybrid.phases import Fill, Sampling, guide_places, place_scales
from hybrid.pictures import to_pil
from hybrid.pipeline import HybridPipeline
from hybrid.request import find_sampling
from hybrid.sampler import HybridSampler
from hybrid.sampling import guide, uniforms
from hybrid.types import MASK, ARModel, Condition, Generation, Grid, MaskedModel, Phases, Prompts, fill_unknown

SEED_STREAM = 2**40
"""Added to a picture's seed for the uniforms of its scattered tokens, so that the fill after them has fresh ones."""


@dataclass(frozen=True)
class JudgedCondition:
    """What both models are asked for. The AR model's part keeps its condition where the masked one's is dropped."""

    masked: Condition
    ar: Condition

    @property
    def grid(self) -> Grid:
        """The masked model's grid."""
        return self.masked.grid

    def __len__(self) -> int:
        return len(self.masked)

    def null(self) -> JudgedCondition:
        """The masked model's condition dropped."""
        return replace(self, masked=self.masked.null())

    def cat(self, other: JudgedCondition) -> JudgedCondition:
        """These images, then the others, for the masked model; the AR model is asked once for each."""
        return replace(self, masked=self.masked.cat(other.masked))


class JudgedModel:
    """A ``MaskedModel`` whose logits hear the AR model: log p of the masked one + ``weight`` · log p of the AR model.

    Guidance leaves the addition alone: what is added to both of its rows is added to the guided one. Each call costs
    one AR pass over the grid beside the masked pass.

    Args:
        masked, ar: the models, of one tokenizer.
        sampling: the AR model's guidance.
        weight: of the AR model.
        everywhere: at every unknown place, with guessed context; otherwise at the first unknown one alone.
    """

    def __init__(
        self, masked: MaskedModel, ar: ARModel, sampling: Sampling, *, weight: float, everywhere: bool
    ) -> None:
        self.masked, self.ar, self.sampling = masked, ar, sampling
        self.weight, self.everywhere = weight, everywhere
        self.codebook_size = masked.codebook_size

    @property
    def grid(self) -> Grid | None:
        """The masked model's own grid."""
        return getattr(self.masked, "grid", None)

    def condition(self, prompts: Prompts, grid: Grid | None = None) -> JudgedCondition:
        """Both models' conditions."""
        masked = self.masked.condition(prompts, grid)
        return JudgedCondition(masked, self.ar.condition(prompts, masked.grid))

    def logits(self, tokens_bn: Tensor, condition: JudgedCondition, places_bm: Tensor | None = None) -> Tensor:
        """See ``hybrid.types.MaskedModel``. Guided rows follow the others, as ``masked_fill`` asks."""
        own_bnk = self.masked.logits(tokens_bn, condition.masked)
        batch = len(condition.ar)
        open_bn = tokens_bn[:batch] == MASK
        likely_bn = fill_unknown(tokens_bn[:batch], own_bnk[:batch].argmax(-1))
        scales_n = place_scales(self.sampling, condition.grid).to(tokens_bn.device)
        guided = bool((scales_n != 1).any())
        asked = condition.ar.cat(condition.ar.null()) if guided else condition.ar
        logits_bnk = self.ar.score(likely_bn.repeat(2 if guided else 1, 1), asked)
        log_p_bnk = guide_places(logits_bnk, scales_n.expand(batch, -1)).float().log_softmax(-1)
        heard_bn = open_bn if self.everywhere else open_bn & (open_bn.cumsum(1) == 1)
        added_bnk = torch.where(heard_bn[..., None], self.weight * log_p_bnk, 0)
        found_bnk = own_bnk + added_bnk.repeat(len(tokens_bn) // batch, 1, 1)
        if places_bm is None:
            return found_bnk
        return found_bnk.gather(1, places_bm[..., None].expand(-1, -1, self.codebook_size))


def scatter_seeds(
    model: MaskedModel, condition: Condition, null: Condition, uniforms_bm: Tensor, sampling: Sampling
) -> Tensor:
    """Draw m tokens one at a time at the first m places of the Halton order, with full guidance; MASK elsewhere."""
    grid, (batch, count) = condition.grid, uniforms_bm.shape
    tokens_bn = torch.full((batch, grid.places), MASK, dtype=torch.long, device=uniforms_bm.device)
    scale = sampling.guidance.at(1.0)
    for turn, place in enumerate(halton_order(grid.height, grid.width)[:count].tolist()):
        at_b1 = torch.full((batch, 1), place, device=tokens_bn.device)
        if scale == 1:
            logits_b1k = model.logits(tokens_bn, condition, at_b1)
        else:
            both = model.logits(tokens_bn.repeat(2, 1), condition.cat(null), at_b1.repeat(2, 1))
            logits_b1k = guide(both[:batch], both[batch:], scale, sampling.guidance.floor)
        tokens_bn[:, place] = sampling.tokens(logits_b1k[:, 0], uniforms_bm[:, turn])[0]
    return tokens_bn


class Tried:
    """A pipeline that knows two methods more, ``guided`` and ``scattered``, and is otherwise the one it is given."""

    def __init__(self, pipeline: HybridPipeline) -> None:
        if pipeline.ar is None or pipeline.masked is None:
            raise ValueError(f"{pipeline.name}: needs an AR and a masked model")
        self.pipeline = pipeline

    def __getattr__(self, name: str) -> Any:
        return getattr(self.pipeline, name)

    def __call__(self, prompt: Sequence[str | int], *, method: str, **request: Any) -> Generation:
        """As ``HybridPipeline``; ``guided`` takes ``weight`` and ``everywhere``, ``scattered`` a number of ``seeds``
        and their ``seed_temperature``."""
        if method == "guided":
            return self._guided(request.pop("weight"), request.pop("everywhere"))(prompt, method="hybrid", **request)
        if method == "scattered":
            return self._scattered(prompt, **request)
        return self.pipeline(prompt, method=method, **request)

    def _guided(self, weight: float, everywhere: bool) -> HybridPipeline:
        """The pipeline with a masked model that hears the AR model."""
        own, other = self.pipeline, copy.copy(self.pipeline)
        assert own.ar is not None and own.masked is not None
        prefix = find_sampling(own.defaults.ar, {})
        other.masked = JudgedModel(own.masked, own.ar, prefix, weight=weight, everywhere=everywhere)
        other.sampler = HybridSampler(own.ar, other.masked, own.tokenizer)
        return other

    @torch.inference_mode()
    def _scattered(
        self,
        prompt: Sequence[str | int],
        *,
        seeds: int,
        seed_temperature: float,
        steps: int,
        seed: int,
        output_type: str = "pil",
    ) -> Generation:
        own, defaults = self.pipeline, self.pipeline.defaults
        assert own.masked is not None
        started = time.perf_counter()
        sampling = find_sampling(defaults.masked, {})
        encoded = own.encode(list(prompt))
        asked = own.masked.condition(encoded)
        drawn_from = [seed + row for row in range(len(prompt))]
        generators = [torch.Generator().manual_seed(SEED_STREAM + one) for one in drawn_from]
        noise_bm = uniforms(generators, (seeds,)).to(own.device)
        low = replace(sampling, temperature=seed_temperature)
        tokens_bn = scatter_seeds(own.masked, asked, asked.null(), noise_bm, low)
        spent = time.perf_counter() - started
        fill = Fill(steps, defaults.schedule, defaults.resume, defaults.order, defaults.noise, sampling)
        made = own.sampler.generate(
            encoded,
            seeds=drawn_from,
            ar_fraction=0,
            fill=fill,
            tokens=tokens_bn,
            keep=tokens_bn != MASK,
            decode=output_type != "tokens",
        )
        seconds = {**made.phases.seconds, "fill": made.phases.seconds["fill"] + spent}
        passes = {**made.phases.passes, "fill": made.phases.passes["fill"] + seeds}
        images = [to_pil(image) for image in made.images] if output_type == "pil" else made.images
        settings = {**made.settings, "dtype": str(own.dtype).removeprefix("torch.")}
        return replace(made, images=images, phases=Phases(seconds, passes), settings=settings)
