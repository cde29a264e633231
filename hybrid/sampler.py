"""The hybrid line: AR prefix, alignment, masked fill, decoding.

Everything here works on the protocols of ``hybrid.types``; no model is known. ``ar_prefix`` and ``masked_fill`` are
plain functions, ``HybridSampler.generate`` puts them in a row and keeps the times.

Randomness is data. Image i owns a CPU generator, from which its uniforms are drawn ahead in a fixed order: n for the
AR places, then for each masked pass n for the tokens and n for the order. Each is used at its own place, so an image
does not depend on its neighbours in the batch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from hybrid.align import Alignment, align
from hybrid.orders import priority, reveal
from hybrid.sampling import Guidance, check_sampling, draw, guide, uniforms
from hybrid.schedules import counts, progress_of
from hybrid.types import (
    FROM_AR,
    FROM_INPUT,
    MASK,
    PHASES,
    ARModel,
    Condition,
    Generation,
    Grid,
    ImageTokenizer,
    MaskedModel,
    Phases,
    Prompts,
    require_no_mask,
)


class Cancelled(RuntimeError):
    """A callback returned False."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn from logits. Temperature divides; 0 is argmax."""

    guidance: Guidance = field(default_factory=Guidance)
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        check_sampling(self.temperature, self.top_k, self.top_p)

    def tokens(self, logits: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens and their log-probabilities."""
        return draw(logits, uniforms, temperature=self.temperature, top_k=self.top_k, top_p=self.top_p)


@dataclass(frozen=True)
class Fill:
    """How the masked phase runs.

    Attributes:
        steps: masked passes.
        schedule: how many places each pass reveals (``hybrid.schedules``).
        resume: after a prefix, ``remaining`` schedules what is left; ``continue`` enters the full grid's curve.
        order: which places come first (``hybrid.orders``).
        noise: Gumbel noise of the confidence order at the first pass; it fades linearly.
        sampling: how tokens are drawn.

    Raises:
        ValueError: an unknown name, fewer than 1 step, a negative noise.
    """

    steps: int = 8
    schedule: str = "arccos"
    resume: Literal["remaining", "continue"] = "remaining"
    order: str = "confidence"
    noise: float = 4.5
    sampling: Sampling = field(default_factory=Sampling)

    def __post_init__(self) -> None:
        # Asked here of the functions that know, so that a wrong name fails before the AR model has run.
        nothing = torch.zeros(1, 1)
        counts(self.schedule, self.steps, max(self.steps, 1), resume=self.resume)
        priority(self.order, grid=Grid(1, 1), confidence_bn=nothing, uniforms_bn=nothing, noise=self.noise)


@dataclass(frozen=True)
class Step:
    """What a callback sees after each AR row and each masked pass.

    Attributes:
        phase: ``prefix`` or ``fill``.
        index: rows or passes done, from 1.
        total: rows or passes of this phase.
        tokens_bn: the grid so far, in the codebook of the phase, MASK where nothing is written yet.
        grid: the token grid.
    """

    phase: str
    index: int
    total: int
    tokens_bn: Tensor
    grid: Grid


Callback = Callable[[Step], Any]


def _report(callback: Callback | None, step: Step) -> None:
    if callback is not None and callback(step) is False:
        raise Cancelled(f"cancelled after {step.phase} {step.index} of {step.total}")


def ar_prefix(
    model: ARModel,
    condition: Condition,
    null: Condition,
    length: int,
    uniforms_bn: Tensor,
    sampling: Sampling,
    callback: Callback | None = None,
) -> tuple[Tensor, int]:
    """Write the first ``length`` tokens in raster order.

    Args:
        model: the AR model.
        condition: what is asked for, b images.
        null: what guidance moves away from; unused where the guidance scale stays 1.
        length: tokens to write, 0 to all places.
        uniforms_bn: one uniform for each place.
        sampling: how tokens are drawn.
        callback: called after each finished row (and the last, unfinished one).

    Returns:
        tokens_bn with MASK after the prefix, and the number of forward passes.
    """
    grid, batch, device = condition.grid, len(condition), uniforms_bn.device
    tokens_bn = torch.full((batch, grid.places), MASK, dtype=torch.long, device=device)
    if length == 0:
        return tokens_bn, 0
    scales = [sampling.guidance.at(progress_of(place, grid.places)) for place in range(length)]
    guided = any(scale != 1 for scale in scales)
    logits, state = model.prefill(condition.cat(null) if guided else condition, length)
    rows = -(-length // grid.width)
    for place in range(length):
        asked = logits[:batch]
        if scales[place] != 1:
            asked = guide(asked, logits[batch:], scales[place])
        tokens_bn[:, place], _ = sampling.tokens(asked, uniforms_bn[:, place])
        if (place + 1) % grid.width == 0 or place + 1 == length:
            _report(callback, Step("prefix", place // grid.width + 1, rows, tokens_bn.clone(), grid))
        if place + 1 < length:
            fed = tokens_bn[:, place].repeat(2) if guided else tokens_bn[:, place]
            places_b = torch.full((len(fed),), place, device=device)
            logits = model.decode(fed[:, None], places_b, state)[:, -1]
    return tokens_bn, length


def masked_fill(
    model: MaskedModel,
    condition: Condition,
    null: Condition,
    tokens_bn: Tensor,
    uniforms_bt2n: Tensor,
    fill: Fill,
    callback: Callback | None = None,
) -> tuple[Tensor, Tensor, int]:
    """Write every place that holds MASK, in ``fill.steps`` parallel passes. Other places are never touched.

    Args:
        model: the masked model.
        condition: what is asked for, b images.
        null: what guidance moves away from; unused where the guidance scale is 1.
        tokens_bn: the grid so far.
        uniforms_bt2n: for each pass, uniforms of the tokens and of the order, by place.
        fill: how the phase runs.
        callback: called after each pass.

    Returns:
        tokens_bn without MASK; origin_bn, the pass (from 1) that wrote each place or 0 where it was known; and the
        number of forward passes.
    """
    grid, batch, places = condition.grid, len(condition), tokens_bn.shape[1]
    tokens_bn, origin_bn = tokens_bn.clone(), torch.zeros_like(tokens_bn)
    unknown_b = (tokens_bn == MASK).sum(1).tolist()
    if not any(unknown_b):
        return tokens_bn, origin_bn, 0
    plan_bt = [
        counts(fill.schedule, fill.steps, places, places - unknown, fill.resume) or [0] * fill.steps
        for unknown in unknown_b
    ]
    counts_bt = torch.tensor(plan_bt, device=tokens_bn.device)
    for index in range(fill.steps):
        progress = progress_of(index, fill.steps)
        masked_bn = tokens_bn == MASK
        # Only unknown places need logits; an image with fewer than its neighbours adds known ones, which stay.
        unknown = max(sum(plan[index:]) for plan in plan_bt)
        places_bm = masked_bn.long().argsort(dim=1, descending=True, stable=True)[:, :unknown]
        # A single pass is the last one: it gets the whole scale of a ramp.
        scale = fill.sampling.guidance.at(progress if fill.steps > 1 else 1.0)
        if scale == 1:
            logits_bmk = model.logits(tokens_bn, condition, places_bm)
        else:
            both = model.logits(tokens_bn.repeat(2, 1), condition.cat(null), places_bm.repeat(2, 1))
            logits_bmk = guide(both[:batch], both[batch:], scale)
        drawn_bm, log_p_bm = fill.sampling.tokens(logits_bmk, uniforms_bt2n[:, index, 0].gather(1, places_bm))
        drawn_bn = tokens_bn.scatter(1, places_bm, drawn_bm)
        priority_bn = priority(
            fill.order,
            grid=grid,
            confidence_bn=torch.zeros(batch, places, device=log_p_bm.device).scatter(1, places_bm, log_p_bm),
            # The random order keeps one ranking for all passes: the first pass's uniforms.
            uniforms_bn=uniforms_bt2n[:, 0 if fill.order == "random" else index, 1],
            noise=fill.noise,
            progress=progress,
        )
        chosen_bn = reveal(priority_bn, masked_bn, counts_bt[:, index])
        tokens_bn = torch.where(chosen_bn, drawn_bn, tokens_bn)
        origin_bn = torch.where(chosen_bn, index + 1, origin_bn)
        _report(callback, Step("fill", index + 1, fill.steps, tokens_bn, grid))
    return tokens_bn, origin_bn, fill.steps


class _Clock:
    """Seconds by phase, with the device's queue drained at both ends."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds = dict.fromkeys(PHASES, 0.0)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        start = self._now()
        yield
        self.seconds[name] += self._now() - start

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()
        return time.perf_counter()


class HybridSampler:
    """An AR model and a masked model as one sampler.

    Args:
        ar: the AR model, or None where only the masked phase is used.
        masked: the masked model, or None where only the AR model is used.
        tokenizer: decodes the masked model's tokens, and the AR model's where ``ar_tokenizer`` is None.
        ar_tokenizer: the AR model's own tokenizer where it is another one; the two are compared at once.
        lossy: accept an alignment that changes the prefix (nearest codes) instead of refusing it.

    Raises:
        ValueError: codebooks that do not fit each other or their models.
    """

    def __init__(
        self,
        ar: ARModel | None,
        masked: MaskedModel | None,
        tokenizer: ImageTokenizer,
        *,
        ar_tokenizer: ImageTokenizer | None = None,
        lossy: bool = False,
    ) -> None:
        if ar is None and masked is None:
            raise ValueError("a sampler needs an AR model, a masked model or both")
        self.ar, self.masked, self.tokenizer = ar, masked, tokenizer
        self.ar_tokenizer = tokenizer if ar_tokenizer is None else ar_tokenizer
        for name, model, codes in (("AR", ar, self.ar_tokenizer), ("masked", masked, tokenizer)):
            size = len(codes.codebook_kd)
            if model is not None and model.codebook_size != size:
                raise ValueError(f"the {name} model has {model.codebook_size} codes, its tokenizer {size}")
        self.alignment: Alignment | None = None
        if ar is not None and masked is not None:
            self.alignment = align(self.ar_tokenizer, tokenizer, lossy=lossy)

    @torch.inference_mode()
    def generate(
        self,
        prompts: Prompts,
        *,
        seeds: Sequence[int | torch.Generator],
        grid: Grid | None = None,
        ar_fraction: float | None = None,
        ar_tokens: int | None = None,
        prefix: Sampling | None = None,
        fill: Fill | None = None,
        negative: Prompts | None = None,
        tokens: Tensor | None = None,
        keep: Tensor | None = None,
        callback: Callback | None = None,
        decode: bool = True,
    ) -> Generation:
        """Draw one image for each prompt.

        Args:
            prompts: what both models' ``condition`` takes.
            seeds: one for each image, or one CPU generator each.
            grid: the token grid; None is the checkpoint's own.
            ar_fraction: share of the places that the AR model writes, rounded to a whole token; default 0.25 with
                both models.
            ar_tokens: the same as a number of tokens; excludes ``ar_fraction``.
            prefix: how the AR model draws.
            fill: how the masked phase runs.
            negative: prompts that stand in for the null condition in guidance.
            tokens: (b, n) or (n,) given tokens for in-painting, in the masked model's codes.
            keep: (b, n) or (n,) True where a given token stays.
            callback: called with a ``Step`` after each AR row and masked pass; returning False cancels.
            decode: make images (b, 3, h, w) in [-1, 1]; otherwise only tokens.

        Raises:
            ValueError: settings that contradict each other or the models.
            Cancelled: the callback returned False.
        """
        prefix, fill = prefix or Sampling(), fill or Fill()
        generators = [
            seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(seed) for seed in seeds
        ]
        # The masked model's own grid counts, in the baselines too; where one is given, pure AR asks it for nothing.
        pure_ar = self.masked is None or (ar_fraction == 1 and grid is not None)
        lead: Any = self.ar if pure_ar and self.ar is not None else self.masked
        device = _device_of(lead, self.tokenizer)
        clock, passes = _Clock(device), dict.fromkeys(PHASES, 0)
        lossy = None

        with clock.phase("condition"):
            asked, null = _condition(lead, prompts, negative, grid, len(generators))
            shape, batch = asked.grid, len(asked)
            length = self._prefix_length(ar_fraction, ar_tokens, shape, inpainting=tokens is not None)
            only_ar = length == shape.places
            if length and not only_ar:
                counts(fill.schedule, fill.steps, shape.places, length, fill.resume)  # raises before the prefix runs
            noise_bn = uniforms(generators, (shape.places,)).to(device)
            noise_bt2n = uniforms(generators, (0 if only_ar else fill.steps, 2, shape.places)).to(device)
            codes_bn = _given(tokens, keep, batch, shape, len(self.tokenizer.codebook_kd), device)
            given_bn = codes_bn != MASK
            ar_asked, ar_null = asked, null
            if length and lead is not self.ar:
                ar_asked, ar_null = _condition(self.ar, prompts, negative, shape, batch)

        if length:
            assert self.ar is not None
            with clock.phase("prefix"):
                codes_bn, passes["prefix"] = ar_prefix(self.ar, ar_asked, ar_null, length, noise_bn, prefix, callback)
        origin_bn = torch.full_like(codes_bn, FROM_AR)
        if not only_ar:
            assert self.masked is not None
            if length and self.alignment is not None:
                with clock.phase("align"):
                    codes_bn, lossy = self.alignment.translate(codes_bn), self.alignment.lossy
            with clock.phase("fill"):
                codes_bn, pass_bn, passes["fill"] = masked_fill(
                    self.masked, asked, null, codes_bn, noise_bt2n, fill, callback
                )
            origin_bn = torch.where(pass_bn > 0, pass_bn, origin_bn)
        origin_bn = torch.where(given_bn, FROM_INPUT, origin_bn)
        require_no_mask(codes_bn)
        images = None
        if decode:
            with clock.phase("decode"):
                decoder = self.ar_tokenizer if only_ar else self.tokenizer
                images = decoder.decode(codes_bn, shape).float()
                passes["decode"] = 1
        settings = {
            "ar_tokens": length,
            "ar_fraction": length / shape.places,
            "grid": [shape.height, shape.width],
            "prefix": asdict(prefix) if length else None,
            "fill": None if only_ar else asdict(fill),
        }
        return Generation(images, codes_bn, origin_bn, shape, Phases(clock.seconds, passes), settings, lossy)

    def _prefix_length(self, fraction: float | None, tokens: int | None, grid: Grid, *, inpainting: bool) -> int:
        """Tokens of the AR prefix, checked against the models at hand."""
        if fraction is not None and tokens is not None:
            raise ValueError("give ar_fraction or ar_tokens, not both")
        if inpainting and self.masked is None:
            raise ValueError("in-painting runs in the masked phase, and there is no masked model")
        if inpainting and (fraction or tokens):
            raise ValueError("in-painting runs in the masked phase: use ar_fraction 0")
        if fraction is None and tokens is None:
            default = 0.25 if self.ar is not None else 0.0
            fraction = 1.0 if self.masked is None else 0.0 if inpainting else default
        if tokens is None:
            assert fraction is not None
            if not 0 <= fraction <= 1:
                raise ValueError(f"ar_fraction {fraction:g}: must be in [0, 1]")
            tokens = round(fraction * grid.places)
        if not 0 <= tokens <= grid.places:
            raise ValueError(f"ar_tokens {tokens}: must be 0..{grid.places} for a {grid} grid")
        if tokens and self.ar is None:
            raise ValueError("there is no AR model: use ar_fraction 0")
        if tokens < grid.places and self.masked is None:
            raise ValueError("there is no masked model: use ar_fraction 1")
        return tokens


def _device_of(model: Any, tokenizer: ImageTokenizer) -> torch.device:
    """Where a model computes; fakes without parameters compute where the codebook is."""
    device = getattr(model, "device", None)
    return device if isinstance(device, torch.device) else tokenizer.codebook_kd.device


def _condition(
    model: Any, prompts: Prompts, negative: Prompts | None, grid: Grid | None, batch: int
) -> tuple[Any, Any]:
    """What a model is asked for, and what guidance moves away from."""
    asked = model.condition(prompts, grid)
    if len(asked) != batch:
        raise ValueError(f"{len(asked)} prompts but {batch} seeds")
    null = asked.null() if negative is None else model.condition(negative, asked.grid)
    if len(null) != batch:
        raise ValueError(f"{len(null)} negative prompts but {batch} prompts; give one for each")
    return asked, null


def _given(
    tokens: Tensor | None, keep: Tensor | None, batch: int, grid: Grid, codes: int, device: torch.device
) -> Tensor:
    """Tokens_bn that stay, MASK where one is to be drawn."""
    if (tokens is None) != (keep is None):
        raise ValueError("in-painting takes tokens and keep together")
    if tokens is None or keep is None:
        return torch.full((batch, grid.places), MASK, dtype=torch.long, device=device)
    for name, value in (("tokens", tokens), ("keep", keep)):
        if value.shape not in ((grid.places,), (batch, grid.places)):
            raise ValueError(f"{name}: expected ({grid.places},) or ({batch}, {grid.places}), got {tuple(value.shape)}")
    tokens, keep = tokens.to(device, torch.long), keep.to(device).bool()
    if bool((keep & (tokens == MASK)).any()):
        raise ValueError("keep marks places whose token is not known")
    if bool((keep & ((tokens < 0) | (tokens >= codes))).any()):
        raise ValueError(f"tokens: codes must be 0..{codes - 1}")
    return torch.where(keep, tokens, MASK).expand(batch, grid.places)
