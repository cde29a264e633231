"""What is settled before a request's first forward pass: conditions, lengths, uniforms, given tokens; all checked.

``prepare`` makes a ``Ready`` of it, from which ``hybrid.sampler`` draws a request alone and ``hybrid.batching`` draws
many together, so that both draw the same. This file runs no network but what ``condition`` runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hybrid.phases import Fill
from hybrid.refine import Refine
from hybrid.reuse import require_recall
from hybrid.sampling import uniforms
from hybrid.schedules import counts
from hybrid.transcode import carry_over, same_picture, whole_rows
from hybrid.types import MASK, Grid, ImageTokenizer, Prompts
from hybrid.verify import Verify

if TYPE_CHECKING:
    from hybrid.sampler import HybridSampler


@dataclass(frozen=True)
class Ready:
    """A request of b pictures, ready to be drawn.

    Attributes:
        asked, null: of the masked model, or of the AR model where it alone draws.
        ar_asked, ar_null: of the AR model, where it draws or judges.
        grid: of the finished picture's tokens.
        ar_grid: of the AR model's tokens.
        length: tokens that the AR model writes.
        codes_bn: given tokens, MASK elsewhere.
        noise_bn: uniforms of the AR model's places.
        noise_bt2n: for each masked pass, uniforms of the tokens and of the order.
        noise_brt2n: the same for the passes of a refinement.
        generators: of the pictures, where verification draws on.
    """

    asked: Any
    null: Any
    ar_asked: Any
    ar_null: Any
    grid: Grid
    ar_grid: Grid
    length: int
    codes_bn: Tensor
    noise_bn: Tensor
    noise_bt2n: Tensor
    noise_brt2n: Tensor
    generators: list[torch.Generator]

    @property
    def only_ar(self) -> bool:
        """Whether the AR model writes every token."""
        return self.length == self.ar_grid.places


def prepare(
    sampler: HybridSampler,
    prompts: Prompts,
    *,
    seeds: Sequence[int | torch.Generator],
    grid: Grid | None,
    ar_fraction: float | None,
    ar_tokens: int | None,
    fill: Fill,
    verify: Verify | None,
    refine: Refine | None,
    negative: Prompts | None,
    tokens: Tensor | None,
    keep: Tensor | None,
) -> Ready:
    """Settle a request; the arguments are ``HybridSampler.generate``'s.

    Raises:
        ValueError: settings that contradict each other or the models.
    """
    generators = [seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(seed) for seed in seeds]
    # The masked model's own grid counts, in the baselines too; where one is given, pure AR asks it for nothing.
    drafted = verify is not None and verify.draft == "masked"
    pure_ar = sampler.masked is None or (ar_fraction == 1 and grid is not None and not drafted)
    lead: Any = sampler.ar if pure_ar and sampler.ar is not None else sampler.masked
    if pure_ar and grid is not None:
        grid = ar_grid(sampler, grid)
    device = device_of(lead, sampler.tokenizer)
    asked, null = _condition(lead, prompts, negative, grid, len(generators))
    shape = asked.grid
    ar_shape = ar_grid(sampler, shape) if lead is sampler.masked else shape
    length = known = _prefix_length(sampler, ar_fraction, ar_tokens, ar_shape, inpainting=tokens is not None)
    if length < ar_shape.places:
        length, known = carried_places(sampler, length, ar_shape, shape, exactly=ar_tokens is not None)
    only_ar = length == ar_shape.places  # a share near 1 may have become all rows
    if only_ar:
        shape = ar_shape
    _check_judge(sampler, verify, refine, only_ar=only_ar)
    if length and not only_ar:
        counts(fill.schedule, fill.steps, shape.places, known, fill.resume)  # raises before the prefix runs
        fill.sampling.guidance.at(1)  # so does a kind that only an AR model can have
    if fill.reuse > 1 and not only_ar:
        require_recall(sampler.masked)
    noise_bn = uniforms(generators, (ar_shape.places,)).to(device)
    noise_bt2n = uniforms(generators, (0 if only_ar else fill.steps, 2, shape.places)).to(device)
    again = 0 if refine is None else refine.rounds * refine.steps
    noise_brt2n = uniforms(generators, (again, 2, shape.places)).to(device)
    codes_bn = _given(tokens, keep, len(asked), shape, len(sampler.tokenizer.codebook_kd), device)
    ar_asked, ar_null = asked, null
    if (length or refine) and lead is not sampler.ar:
        ar_asked, ar_null = _condition(sampler.ar, prompts, negative, ar_shape, len(asked))
    return Ready(
        asked, null, ar_asked, ar_null, shape, ar_shape, length, codes_bn, noise_bn, noise_bt2n, noise_brt2n, generators
    )


def join(requests: Sequence[Ready]) -> Ready:
    """Requests of equal grids, lengths and numbers of passes as one, their pictures in order; these stay as they are,
    their generators too."""
    generators = [generator.clone_state() for ready in requests for generator in ready.generators]
    joined: dict[str, Any] = {"generators": generators}
    for name in ("asked", "null", "ar_asked", "ar_null"):
        joined[name] = reduce(lambda some, more: some.cat(more), [getattr(ready, name) for ready in requests])
    for name in ("codes_bn", "noise_bn", "noise_bt2n", "noise_brt2n"):
        joined[name] = torch.cat([getattr(ready, name) for ready in requests])
    return replace(requests[0], **joined)


def through_pixels(sampler: HybridSampler) -> bool:
    """Whether the prefix is carried over by decoding and encoding it."""
    return sampler.alignment is not None and sampler.alignment.kind == "pixels"


def ar_grid(sampler: HybridSampler, grid: Grid) -> Grid:
    """The AR model's grid of a picture that has ``grid`` in the masked model's tokens."""
    if not through_pixels(sampler):
        return grid
    return same_picture(grid, *_factors(sampler)[::-1])


def translate(sampler: HybridSampler, codes_bn: Tensor, ready: Ready) -> Tensor:
    """The AR model's tokens as the masked model's."""
    assert sampler.alignment is not None
    if not through_pixels(sampler):
        return sampler.alignment.translate(codes_bn)
    return carry_over(
        codes_bn,
        ready.length,
        source=sampler.ar_tokenizer,
        source_grid=ready.ar_grid,
        target=sampler.tokenizer,
        target_grid=ready.grid,
    )


def device_of(model: Any, tokenizer: ImageTokenizer) -> torch.device:
    """Where a model computes; fakes without parameters compute where the codebook is."""
    device = getattr(model, "device", None)
    return device if isinstance(device, torch.device) else tokenizer.codebook_kd.device


def _factors(sampler: HybridSampler) -> tuple[int, int]:
    """Pixels of a token's side, of the AR model's tokenizer and of the masked model's."""
    return sampler.ar_tokenizer.factor, sampler.tokenizer.factor  # type: ignore[attr-defined]


def carried_places(
    sampler: HybridSampler, length: int, ar_grid: Grid, grid: Grid, *, exactly: bool = False
) -> tuple[int, int]:
    """The prefix length that can be carried over, and how many places of the masked model's grid it fills.

    Raises:
        ValueError: ``exactly``, and only another length can be.
    """
    if not through_pixels(sampler):
        return length, length
    factors = _factors(sampler)
    whole = whole_rows(length, ar_grid, *factors)
    if exactly and whole != length:
        raise ValueError(f"ar_tokens {length}: transcoding carries whole rows only; use {whole} or ar_fraction")
    return whole, whole // ar_grid.width * factors[0] // factors[1] * grid.width


def _check_judge(sampler: HybridSampler, verify: Verify | None, refine: Refine | None, *, only_ar: bool) -> None:
    """Raise where the AR model cannot judge."""
    if verify is not None and not (only_ar and sampler.ar is not None):
        raise ValueError("verification writes all tokens with the AR model: use ar_fraction 1")
    if verify is not None and refine is not None:
        raise ValueError("give verify or refine, not both")
    if refine is not None and (only_ar or sampler.ar is None):
        raise ValueError("refinement needs an AR model and a masked phase: use an ar_fraction below 1")


def _prefix_length(
    sampler: HybridSampler, fraction: float | None, tokens: int | None, grid: Grid, *, inpainting: bool
) -> int:
    """Tokens of the AR prefix, checked against the models at hand."""
    if fraction is not None and tokens is not None:
        raise ValueError("give ar_fraction or ar_tokens, not both")
    if inpainting and sampler.masked is None:
        raise ValueError("in-painting runs in the masked phase, and there is no masked model")
    if inpainting and (fraction or tokens):
        raise ValueError("in-painting runs in the masked phase: use ar_fraction 0")
    if fraction is None and tokens is None:
        default = 0.25 if sampler.ar is not None else 0.0
        fraction = 1.0 if sampler.masked is None else 0.0 if inpainting else default
    if tokens is None:
        assert fraction is not None
        if not 0 <= fraction <= 1:
            raise ValueError(f"ar_fraction {fraction:g}: must be in [0, 1]")
        tokens = round(fraction * grid.places)
    if not 0 <= tokens <= grid.places:
        raise ValueError(f"ar_tokens {tokens}: must be 0..{grid.places} for a {grid} grid")
    if tokens and sampler.ar is None:
        raise ValueError("there is no AR model: use ar_fraction 0")
    if tokens < grid.places and sampler.masked is None:
        raise ValueError("there is no masked model: use ar_fraction 1")
    return tokens


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
