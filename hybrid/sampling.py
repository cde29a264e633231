"""From logits to tokens: guidance, temperature, top-k, top-p, and draws from given uniforms.

Pure functions of tensors: this file knows no model or schedule. Logits are taken to float32 whatever they were.
Nothing here draws a random number on its own; ``uniforms`` draws from the generators that it is handed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hybrid.schedules import progress_of

GUIDANCE_KINDS: tuple[str, ...] = ("constant", "linear", "interval", "decay")
"""How guidance changes over a generation."""

DECAY_FLOOR = 4.0
"""Where the guidance kind ``decay`` ends (Lumina-mGPT 2.0's released code)."""

_BITS = 24
"""Bits of a float32 uniform: torch.rand gives whole multiples of 2^-24, so that u * total is exact in integers."""

ONE = 2**52
"""Probability 1 as a whole number. The sum of a float32 softmax stays below 2 * ONE = 2^53."""

_TOP_P_SLACK = 2.0**-20
"""A mass this close to top-p counts as reached: float32 probabilities are not known any better."""


@dataclass(frozen=True)
class Guidance:
    """A classifier-free guidance scale over a generation, in the dialect u + s (c - u), where 1 means none.

    Attributes:
        scale: s, at least 0 (0 is the unconditional model).
        kind: ``constant``; ``linear``, a ramp from 1 at the first step to ``scale`` at the last (MaskGIL's released
            code: its w t / (T - 1) is s - 1 here); ``interval``, ``scale`` from ``start`` to ``end`` and 1 outside
            (Kynkäänniemi et al., arXiv 2404.07724); ``decay``, a fall from ``scale`` to 4 along the places of an AR
            model (Lumina-mGPT 2.0's released code; see ``along``).
        start, end: fractions of the generation, for ``interval`` only, both ends included.
        floor: where guidance acts, no code is drawn that the conditional model finds less likely than this share of its
            likeliest one; 0 is off, see ``guide``.

    Raises:
        ValueError: a scale below 0, an unknown kind, a start or end outside [0, 1] or in the wrong order, or one that
            the kind would ignore; a scale below 4 that should decay to 4; a floor outside [0, 1).
    """

    scale: float = 1.0
    kind: str = "constant"
    start: float = 0.0
    end: float = 1.0
    floor: float = 0.0

    def __post_init__(self) -> None:
        if not (self.scale >= 0 and math.isfinite(self.scale)):
            raise ValueError(f"guidance scale {self.scale:g}: must be a number from 0; 1 means no guidance")
        if self.kind not in GUIDANCE_KINDS:
            raise ValueError(f"guidance kind {self.kind!r}: unknown; choose one of {', '.join(GUIDANCE_KINDS)}")
        if not 0 <= self.start <= self.end <= 1:
            raise ValueError(f"guidance start {self.start:g}, end {self.end:g}: must be 0 <= start <= end <= 1")
        if self.kind != "interval" and (self.start, self.end) != (0, 1):
            raise ValueError(
                f"guidance start {self.start:g}, end {self.end:g}: kind {self.kind!r} ignores them; use kind 'interval'"
            )
        if self.kind == "decay" and self.scale != 1 and self.scale < DECAY_FLOOR:
            raise ValueError(
                f"guidance scale {self.scale:g}: kind 'decay' falls to {DECAY_FLOOR:g}; give 1 (none), "
                f"{DECAY_FLOOR:g} or more, or use kind 'constant'"
            )
        if not 0 <= self.floor < 1:
            raise ValueError(f"guidance floor {self.floor:g}: must be at least 0 (off) and below 1")

    def at(self, progress: float) -> float:
        """The scale at ``progress``, 0 at the first step of a generation and 1 at the last.

        Raises:
            ValueError: a progress outside [0, 1]; kind ``decay``, which counts an AR model's places.
        """
        if not 0 <= progress <= 1:
            raise ValueError(f"progress {progress:g}: must be from 0 to 1")
        if self.kind == "decay" and self.scale != 1:
            raise ValueError("guidance kind 'decay': counts an AR model's places; a masked model needs another kind")
        if self.kind == "linear":
            return 1 + (self.scale - 1) * progress
        if self.kind == "interval" and not self.start <= progress <= self.end:
            return 1.0
        return self.scale

    def along(self, places: int, width: int) -> list[float]:
        """The scale at each place of a grid that is written in raster order.

        For ``decay`` an id is written for each place and one after each row, after two that tell the size. Each step
        with n ids before it multiplies the scale by 1 - n / (places / 4), the steps of row ends included, and takes 4
        where that is more.

        Args:
            places: tokens of the grid.
            width: tokens of a row.
        """
        if self.kind != "decay" or self.scale == 1:
            return [self.at(progress_of(place, places)) for place in range(places)]
        scale, scales = self.scale, []
        for written in range(places + places // width):
            scale = max(DECAY_FLOOR, scale * (1 - 4 * (written + 2) / places))
            if (written + 1) % (width + 1):
                scales.append(scale)
        return scales

    def needed(self, progress: float) -> bool:
        """Whether the unconditional pass matters at ``progress``; not where the scale is exactly 1."""
        return self.at(progress) != 1


def guide(cond_bk: Tensor, uncond_bk: Tensor, scale: float | Tensor, floor: float | Tensor = 0.0) -> Tensor:
    """Guided logits u + s (c - u), float32 (Ho & Salimans, arXiv 2207.12598, in LlamaGen's form).

    Where both models are nearly sure, the difference of their logits is great at codes that neither would draw, and a
    scale above 1 can lift those to the top. The floor keeps them out: -inf at every code whose conditional probability
    is below that share of the highest one (the plausibility constraint of contrastive decoding, Li et al., arXiv
    2210.15097).

    Args:
        cond_bk: conditional logits, (b, k) or any other shape.
        uncond_bk: unconditional logits, the same shape.
        scale: s, a number or a tensor that broadcasts against the logits, such as (b, 1).
        floor: from 0 (off) to below 1, likewise.

    Raises:
        ValueError: logits of two shapes.
    """
    if cond_bk.shape != uncond_bk.shape:
        raise ValueError(f"unconditional logits: expected {tuple(cond_bk.shape)}, got {tuple(uncond_bk.shape)}")
    cond_bk, uncond_bk = cond_bk.float(), uncond_bk.float()
    guided_bk = uncond_bk + scale * (cond_bk - uncond_bk)
    if isinstance(floor, Tensor):
        lowest_bk = cond_bk.amax(-1, keepdim=True) + floor.log()
    elif floor:
        lowest_bk = cond_bk.amax(-1, keepdim=True) + math.log(floor)
    else:
        return guided_bk
    return guided_bk.masked_fill(cond_bk < lowest_bk, -math.inf)


def check_sampling(temperature: float, top_k: int | None = None, top_p: float | None = None) -> None:
    """Raise ValueError, naming the value and what is allowed, where ``draw`` could not work with these."""
    if not (temperature >= 0 and math.isfinite(temperature)):
        raise ValueError(f"temperature {temperature:g}: must be 0 (argmax) or above")
    if 0 < temperature < 1e-30:
        raise ValueError(f"temperature {temperature:g}: too small to divide by; use 0 for argmax")
    if top_k is not None and top_k < 0:
        raise ValueError(f"top_k {top_k}: must be 0 (off) or above")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p {top_p:g}: must be above 0 and at most 1 (off)")


def filter_logits(
    logits: Tensor, *, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None
) -> Tensor:
    """Logits (..., k) after temperature, then top-k, then top-p; float32, -inf where a code is removed.

    Args:
        logits: (..., k).
        temperature: divides the logits; above 0.
        top_k: keep every logit that is at least the k-th highest, so ties at that value all stay (as LlamaGen and
            transformers do). 0, None, or as many as there are codes: off.
        top_p: keep the fewest codes whose mass reaches top_p, at least one; of equal logits the lower code goes first
            (Holtzman et al., arXiv 1904.09751). A mass within 2^-20 of top_p has reached it. 1 or None: off.

    Raises:
        ValueError: as ``check_sampling``, and for temperature 0, where there is nothing to filter.
    """
    check_sampling(temperature, top_k, top_p)
    if temperature == 0:
        raise ValueError("temperature 0: is argmax and needs no filters; call draw")
    logits = logits.float() / temperature
    if top_k and top_k < logits.shape[-1]:
        lowest = logits.topk(top_k, dim=-1, sorted=False).values.amin(-1, keepdim=True)
        logits = logits.masked_fill(logits < lowest, -math.inf)
    if top_p is not None and top_p < 1:
        descending, codes = logits.sort(dim=-1, descending=True, stable=True)
        weights = _weights(descending)
        reached = weights.cumsum(-1)
        # Filled where it is, because a tensor made of a number is copied to a GPU, which waits for all before it.
        fraction = torch.full((), max(top_p - _TOP_P_SLACK, 0.0), device=logits.device)
        keep_sorted = (reached - weights) < fraction_of(reached[..., -1:], fraction)
        keep_sorted[..., 0] = True
        keep = torch.zeros_like(keep_sorted).scatter_(-1, codes, keep_sorted)
        logits = logits.masked_fill(~keep, -math.inf)
    return logits


def draw(
    logits: Tensor,
    uniforms: Tensor,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> tuple[Tensor, Tensor]:
    """One token per distribution, by inverse CDF, and its log-probability.

    The token is the first one whose cumulative probability exceeds u times the total. The cumulative sum is taken in
    whole numbers (probabilities in units of 2^-52), so it rises exactly where a code has probability, on any device and
    in any batch: a removed code can never be drawn, and row i of a batch equals row i alone.

    Args:
        logits: (..., k), finite or -inf.
        uniforms: (...) in [0, 1), of which 24 bits count.
        temperature: divides the logits. 0 takes the first maximum, whatever the uniforms and filters.
        top_k, top_p: see ``filter_logits``.

    Returns:
        tokens (...) int64, and log-probabilities (...) float32 under the distribution drawn from, after temperature and
        filters; at temperature 0 under the unfiltered softmax.

    Raises:
        ValueError: as ``check_sampling``; uniforms of another shape or outside [0, 1); logits that hold NaN or +inf, or
            only -inf.
    """
    check_sampling(temperature, top_k, top_p)
    if uniforms.shape != logits.shape[:-1]:
        raise ValueError(f"uniforms: expected {tuple(logits.shape[:-1])}, got {tuple(uniforms.shape)}")
    require_uniforms(uniforms)
    require_sound(torch.isfinite(logits.amax(-1)))
    tokens, logits = _pick(logits, uniforms, temperature, top_k, top_p)
    return tokens, logits.log_softmax(-1).gather(-1, tokens[..., None])[..., 0]


def draw_unseen(
    logits: Tensor,
    uniforms: Tensor,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> tuple[Tensor, Tensor]:
    """The tokens of ``draw``, without waiting for the device that computes them.

    The caller looks at the uniforms first (``require_uniforms``), and later at what is returned beside the tokens
    (``require_sound``): False where the logits are broken. The token is 0 there, so that it can be fed till then.
    """
    sound = torch.isfinite(logits.amax(-1))
    tokens, _ = _pick(logits, uniforms, temperature, top_k, top_p)
    return tokens.where(sound, 0), sound


def require_uniforms(uniforms: Tensor) -> None:
    """Raise ValueError where uniforms are outside [0, 1)."""
    if not ((uniforms >= 0) & (uniforms < 1)).all():
        raise ValueError("uniforms: must be at least 0 and below 1")


def require_sound(sound: Tensor) -> None:
    """Raise ValueError where logits were broken."""
    if not sound.all():
        raise ValueError("logits: hold NaN, +inf or nothing but -inf; the model or its weights are broken")


def _pick(
    logits: Tensor, uniforms: Tensor, temperature: float, top_k: int | None, top_p: float | None
) -> tuple[Tensor, Tensor]:
    """Tokens, and the logits that they were drawn from."""
    # Contiguous, because softmax takes another route, with other rounding, through a strided view.
    logits = logits.float().contiguous()
    if temperature == 0:
        return logits.argmax(-1), logits
    logits = filter_logits(logits, temperature=temperature, top_k=top_k, top_p=top_p)
    reached = _weights(logits).cumsum(-1)
    target = fraction_of(reached[..., -1], uniforms.to(logits.device))
    return torch.searchsorted(reached, target[..., None], right=True)[..., 0], logits


def uniforms(generators: Sequence[torch.Generator], shape: Sequence[int]) -> Tensor:
    """Uniforms (b, *shape) in [0, 1), float32 on the CPU: row i is what generator i, a CPU one, draws next.

    Raises:
        ValueError: no generators.
    """
    if not generators:
        raise ValueError("uniforms: no generators; give one per image")
    return torch.stack([torch.rand(tuple(shape), generator=generator, dtype=torch.float32) for generator in generators])


def _weights(logits: Tensor) -> Tensor:
    """Probabilities as int64 in units of 2^-52, zero where they are smaller; the scaling itself is exact."""
    return (logits.softmax(-1) * ONE).long()


def fraction_of(total: Tensor, fraction: Tensor) -> Tensor:
    """floor(fraction * total) for int64 totals below 2^54 and fractions in [0, 1) cut to 24 bits, without overflow."""
    numerator = (fraction * 2**_BITS).long()
    return numerator * (total >> _BITS) + ((numerator * (total & (2**_BITS - 1))) >> _BITS)
