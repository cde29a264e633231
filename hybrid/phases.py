"""The two drawing phases as plain functions, and how they are set: ``ar_prefix``, ``masked_fill``.

Everything here works on the protocols of ``hybrid.types``; no model is known. Uniforms are given, one for each place,
so that an image does not depend on its neighbours in the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from hybrid.orders import LASTING, noise_left, priority, reveal
from hybrid.reuse import Recall
from hybrid.sampling import Guidance, check_sampling, draw, draw_unseen, guide, require_sound, require_uniforms
from hybrid.schedules import counts, progress_of
from hybrid.types import MASK, ARModel, Condition, Grid, MaskedModel


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

    def unseen(self, logits: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens, and whether their logits were sound; see ``hybrid.sampling.draw_unseen``."""
        return draw_unseen(logits, uniforms, temperature=self.temperature, top_k=self.top_k, top_p=self.top_p)


@dataclass(frozen=True)
class Fill:
    """How the masked phase runs.

    Attributes:
        steps: masked passes.
        schedule: how many places each pass reveals (``hybrid.schedules``).
        resume: after a prefix, ``remaining`` schedules what is left; ``continue`` enters the full grid's curve.
        order: which places come first (``hybrid.orders``).
        noise: Gumbel noise of the confidence order at the first pass, and of the spread order for each pass that
            follows; it fades linearly (``hybrid.orders.noise_left``).
        sampling: how tokens are drawn.
        reuse: passes from one reading of the known places to the next; above 1 is approximate (``hybrid.reuse``).

    Raises:
        ValueError: an unknown name, fewer than 1 step, a negative noise, a reuse below 1.
    """

    steps: int = 8
    schedule: str = "arccos"
    resume: Literal["remaining", "continue"] = "remaining"
    order: str = "confidence"
    noise: float = 4.5
    sampling: Sampling = field(default_factory=Sampling)
    reuse: int = 1

    def __post_init__(self) -> None:
        if self.reuse < 1:
            raise ValueError(f"reuse {self.reuse}: must be at least 1 (every pass reads every place)")
        # Asked here of the functions that know, so that a wrong name fails before the AR model has run. Whether there
        # are as many places as steps is asked where the places are known.
        nothing = torch.zeros(1, 1)
        counts(self.schedule, min(self.steps, 1), 1, resume=self.resume)
        priority(self.order, grid=Grid(1, 1), confidence_bn=nothing, uniforms_bn=nothing, noise=self.noise)


@dataclass(frozen=True)
class Step:
    """What a callback sees after each AR row and each masked pass.

    Attributes:
        phase: ``prefix``, ``fill``, ``refill`` (see ``hybrid.refine``) or ``verify`` (``hybrid.verify``).
        index: rows or passes done, from 1; of ``verify`` the tokens of the slowest image.
        total: rows, passes or tokens of this phase.
        tokens_bn: the grid so far, in the codebook of the phase, MASK where nothing is written yet.
        grid: the token grid.
    """

    phase: str
    index: int
    total: int
    tokens_bn: Tensor
    grid: Grid


Callback = Callable[[Step], Any]


def place_scales(sampling: Sampling, grid: Grid) -> Tensor:
    """The guidance scale of each place, scales_n."""
    return torch.tensor(sampling.guidance.along(grid.places, grid.width))


def guide_places(logits: Tensor, scales_bw: Tensor, floor: float = 0.0) -> Tensor:
    """Guided logits_bwk from conditional rows, followed by as many unconditional ones unless no scale needs them; see
    ``hybrid.sampling.guide`` for the floor."""
    batch = len(scales_bw)
    if len(logits) == batch:
        return logits
    # Where the scale is 1 the conditional logits count as they are, as in ``ar_prefix``.
    scales_bw1 = scales_bw[..., None]
    guided_bwk = guide(logits[:batch], logits[batch:], scales_bw1, floor)
    return torch.where(scales_bw1 == 1, logits[:batch].float(), guided_bwk)


def report(callback: Callback | None, step: Step) -> None:
    """Tell the callback, where there is one; raise ``Cancelled`` where it returns False."""
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
        tokens_bn with MASK after the prefix, and the number of forward passes. Where the model has ``advance`` (feed
        every row its next token), nothing waits for the device but the end of each row of the grid.

    Raises:
        ValueError: uniforms outside [0, 1); logits that are no numbers.
    """
    grid, batch, device = condition.grid, len(condition), uniforms_bn.device
    tokens_bn = torch.full((batch, grid.places), MASK, dtype=torch.long, device=device)
    if length == 0:
        return tokens_bn, 0
    scales = sampling.guidance.along(grid.places, grid.width)[:length]
    guided = any(scale != 1 for scale in scales)
    require_uniforms(uniforms_bn)
    advance: Callable[[Tensor, Any], Tensor] | None = getattr(model, "advance", None)
    sound_b = torch.ones(batch, dtype=torch.bool, device=device)
    logits, state = model.prefill(condition.cat(null) if guided else condition, length)
    rows = -(-length // grid.width)
    for place in range(length):
        asked = logits[:batch]
        if scales[place] != 1:
            asked = guide(asked, logits[batch:], scales[place], sampling.guidance.floor)
        tokens_bn[:, place], drawn_b = sampling.unseen(asked, uniforms_bn[:, place])
        sound_b &= drawn_b
        if (place + 1) % grid.width == 0 or place + 1 == length:
            require_sound(sound_b)
            report(callback, Step("prefix", place // grid.width + 1, rows, tokens_bn.clone(), grid))
        if place + 1 < length:
            fed = tokens_bn[:, place].repeat(2) if guided else tokens_bn[:, place]
            if advance is not None:
                logits = advance(fed, state)
                continue
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

    Raises:
        ValueError: settings that do not fit the places; ``fill.reuse`` above 1 with a model that cannot recall.
    """
    grid, batch, places = condition.grid, len(condition), tokens_bn.shape[1]
    tokens_bn, origin_bn = tokens_bn.clone(), torch.zeros_like(tokens_bn)
    unknown_b = (tokens_bn == MASK).sum(1).tolist()
    if not any(unknown_b):
        return tokens_bn, origin_bn, 0
    plan_bt = plan_passes(fill, places, unknown_b)
    counts_bt = torch.tensor(plan_bt, device=tokens_bn.device)
    look = model.logits if fill.reuse == 1 else Recall(model, fill.reuse).logits
    for index in range(fill.steps):
        places_bm = unknown_places(tokens_bn, unknown_ahead(plan_bt, index))
        scale = pass_scale(fill, index)
        if scale == 1:
            logits_bmk = look(tokens_bn, condition, places_bm)
        else:
            both = look(tokens_bn.repeat(2, 1), condition.cat(null), places_bm.repeat(2, 1))
            logits_bmk = guide(both[:batch], both[batch:], scale, fill.sampling.guidance.floor)
        tokens_bn, chosen_bn = write_pass(tokens_bn, logits_bmk, places_bm, uniforms_bt2n, counts_bt, grid, fill, index)
        origin_bn = torch.where(chosen_bn, index + 1, origin_bn)
        report(callback, Step("fill", index + 1, fill.steps, tokens_bn, grid))
    return tokens_bn, origin_bn, fill.steps


def plan_passes(fill: Fill, places: int, unknown_b: Sequence[int]) -> list[list[int]]:
    """How many places of each image every pass reveals, of ``places`` of which so many are unknown."""
    return [
        counts(fill.schedule, fill.steps, places, places - unknown, fill.resume) or [0] * fill.steps
        for unknown in unknown_b
    ]


def unknown_ahead(plan_bt: Sequence[Sequence[int]], index: int) -> int:
    """Places that are still to be written from pass ``index`` on, of the image that has the most."""
    return max(sum(plan[index:]) for plan in plan_bt)


def unknown_places(tokens_bn: Tensor, most: int) -> Tensor:
    """The unknown places of each image, (b, most): only they need logits. An image with fewer adds known ones, which
    stay as they are."""
    return (tokens_bn == MASK).long().argsort(dim=1, descending=True, stable=True)[:, :most]


def pass_scale(fill: Fill, index: int) -> float:
    """Guidance of pass ``index``. A single pass gets the whole scale, of a ramp and of an interval too."""
    guidance = fill.sampling.guidance
    return guidance.at(progress_of(index, fill.steps) if fill.steps > 1 else guidance.end)


def write_pass(
    tokens_bn: Tensor,
    logits_bmk: Tensor,
    places_bm: Tensor,
    uniforms_bt2n: Tensor,
    counts_bt: Tensor,
    grid: Grid,
    fill: Fill,
    index: int,
) -> tuple[Tensor, Tensor]:
    """Draw from the logits of a masked pass and keep the tokens that the order puts first.

    Args:
        tokens_bn: the grid so far.
        logits_bmk: after guidance, at ``places_bm``, which hold every unknown place.
        uniforms_bt2n: as in ``masked_fill``.
        counts_bt: how many places every pass reveals.
        index: of the pass, from 0.

    Returns:
        The grid with the new tokens, and True where they are.
    """
    drawn_bm, log_p_bm = fill.sampling.tokens(logits_bmk, uniforms_bt2n[:, index, 0].gather(1, places_bm))
    drawn_bn = tokens_bn.scatter(1, places_bm, drawn_bm)
    confidence_bn = torch.zeros(tokens_bn.shape, device=log_p_bm.device).scatter(1, places_bm, log_p_bm)
    priority_bn = priority(
        fill.order,
        grid=grid,
        confidence_bn=confidence_bn,
        # A lasting order keeps one ranking for all passes: that of the first pass's uniforms.
        uniforms_bn=uniforms_bt2n[:, 0 if fill.order in LASTING else index, 1],
        noise=fill.noise,
        left=noise_left(fill.order, index, fill.steps),
    )
    chosen_bn = reveal(priority_bn, tokens_bn == MASK, counts_bt[:, index])
    return torch.where(chosen_bn, drawn_bn, tokens_bn), chosen_bn
