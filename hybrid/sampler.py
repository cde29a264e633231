"""The hybrid line: AR prefix, alignment, masked fill, decoding; with the AR model as judge where that is asked for.

Everything here works on the protocols of ``hybrid.types``; no model is known. ``HybridSampler.generate`` puts the
functions of ``phases``, ``verify`` and ``refine`` in a row and keeps the times.

Randomness is data. Image i owns a CPU generator, from which its uniforms are drawn ahead in a fixed order: n for the
AR places, then for each masked pass n for the tokens and n for the order, then the same for each pass of a refinement.
Each is used at its own place, so an image does not depend on its neighbours in the batch. Verification draws its own.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from hybrid.align import Alignment, Lossy, align
from hybrid.phases import Callback, Fill, Sampling, ar_prefix, masked_fill
from hybrid.refine import Refine, refine_tokens
from hybrid.sampling import uniforms
from hybrid.schedules import counts
from hybrid.transcode import carry_over, same_picture, whole_rows
from hybrid.types import (
    FROM_AR,
    FROM_INPUT,
    MASK,
    PHASES,
    ARModel,
    Generation,
    Grid,
    ImageTokenizer,
    MaskedModel,
    Phases,
    Prompts,
    require_no_mask,
)
from hybrid.verify import Verify, exact_generate


class Clock:
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
        lossy: accept an alignment that changes the prefix instead of refusing it: nearest codes, or with ``pixels``
            whole rows that are decoded and encoded anew.

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
        lossy: Lossy = False,
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
        verify: Verify | None = None,
        refine: Refine | None = None,
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
            verify: the AR model writes all tokens, judging the masked model's drafts (``hybrid.verify``).
            refine: after the fill, the tokens that the AR model finds least likely are drawn anew (``hybrid.refine``).
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
        drafted = verify is not None and verify.draft == "masked"
        pure_ar = self.masked is None or (ar_fraction == 1 and grid is not None and not drafted)
        lead: Any = self.ar if pure_ar and self.ar is not None else self.masked
        device = _device_of(lead, self.tokenizer)
        clock, passes = Clock(device), dict.fromkeys(PHASES, 0)
        lossy = None

        with clock.phase("condition"):
            asked, null = _condition(lead, prompts, negative, grid, len(generators))
            shape, batch = asked.grid, len(asked)
            ar_shape = self._ar_grid(shape) if lead is self.masked else shape
            length = self._prefix_length(ar_fraction, ar_tokens, ar_shape, inpainting=tokens is not None)
            only_ar = length == ar_shape.places
            if only_ar:
                shape = ar_shape
            else:
                length, known = self._whole_rows(length, ar_shape, shape, exactly=ar_tokens is not None)
            self._check_judge(verify, refine, only_ar=only_ar)
            if length and not only_ar:
                counts(fill.schedule, fill.steps, shape.places, known, fill.resume)  # raises before the prefix runs
                fill.sampling.guidance.at(1)  # so does a kind that only an AR model can have
            noise_bn = uniforms(generators, (ar_shape.places,)).to(device)
            noise_bt2n = uniforms(generators, (0 if only_ar else fill.steps, 2, shape.places)).to(device)
            again = 0 if refine is None else refine.rounds * refine.steps
            noise_brt2n = uniforms(generators, (again, 2, shape.places)).to(device)
            codes_bn = _given(tokens, keep, batch, shape, len(self.tokenizer.codebook_kd), device)
            given_bn = codes_bn != MASK
            ar_asked, ar_null = asked, null
            if (length or refine) and lead is not self.ar:
                ar_asked, ar_null = _condition(self.ar, prompts, negative, ar_shape, batch)

        origin_bn = torch.full_like(codes_bn, FROM_AR)
        if verify is not None:
            assert self.ar is not None
            found = exact_generate(
                self.ar,
                self.masked,
                ar_asked,
                ar_null,
                asked,
                null,
                generators=generators,
                prefix=prefix,
                draft=fill.sampling,
                verify=verify,
                alignment=self.alignment,
                callback=callback,
                phase=clock.phase,
            )
            codes_bn, origin_bn = found.tokens_bn, found.origin_bn
            passes["verify"], passes["draft"] = found.passes["ar"], found.passes["masked"]
        elif length:
            assert self.ar is not None
            with clock.phase("prefix"):
                codes_bn, passes["prefix"] = ar_prefix(self.ar, ar_asked, ar_null, length, noise_bn, prefix, callback)
        if not only_ar:
            assert self.masked is not None
            if length and self.alignment is not None:
                with clock.phase("align"):
                    codes_bn, lossy = self._translate(codes_bn, length, ar_shape, shape), self.alignment.lossy
            origin_bn = torch.full_like(codes_bn, FROM_AR)
            with clock.phase("fill"):
                codes_bn, pass_bn, passes["fill"] = masked_fill(
                    self.masked, asked, null, codes_bn, noise_bt2n, fill, callback
                )
            origin_bn = torch.where(pass_bn > 0, pass_bn, origin_bn)
            if refine is not None:
                assert self.ar is not None
                codes_bn, pass_bn, counted = refine_tokens(
                    self.ar,
                    self.masked,
                    ar_asked,
                    ar_null,
                    asked,
                    null,
                    codes_bn,
                    pass_bn > 0,
                    noise_brt2n,
                    prefix=prefix,
                    fill=fill,
                    refine=refine,
                    alignment=self.alignment,
                    callback=callback,
                    phase=clock.phase,
                )
                passes["score"], passes["refill"] = counted["ar"], counted["masked"]
                origin_bn = torch.where(pass_bn > 0, passes["fill"] + pass_bn, origin_bn)
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
            "ar_fraction": length / ar_shape.places,
            "grid": [shape.height, shape.width],
            "prefix": asdict(prefix) if length or refine else None,
            "fill": None if only_ar and not drafted else asdict(fill),
            "verify": None if verify is None else asdict(verify),
            "refine": None if refine is None else asdict(refine),
        }
        return Generation(images, codes_bn, origin_bn, shape, Phases(clock.seconds, passes), settings, lossy)

    @property
    def _through_pixels(self) -> bool:
        return self.alignment is not None and self.alignment.kind == "pixels"

    def _ar_grid(self, grid: Grid) -> Grid:
        """The AR model's grid of a picture that has ``grid`` in the masked model's tokens."""
        if not self._through_pixels:
            return grid
        return same_picture(grid, self.tokenizer.factor, self.ar_tokenizer.factor)  # type: ignore[attr-defined]

    def _whole_rows(self, length: int, ar_grid: Grid, grid: Grid, *, exactly: bool) -> tuple[int, int]:
        """The prefix length that can be carried over, and how many places of the masked model's grid it fills."""
        if not self._through_pixels:
            return length, length
        factors = self.ar_tokenizer.factor, self.tokenizer.factor  # type: ignore[attr-defined]
        whole = whole_rows(length, ar_grid, *factors)
        if exactly and whole != length:
            raise ValueError(f"ar_tokens {length}: transcoding carries whole rows only; use {whole} or ar_fraction")
        return whole, whole // ar_grid.width * factors[0] // factors[1] * grid.width

    def _translate(self, codes_bn: Tensor, length: int, ar_grid: Grid, grid: Grid) -> Tensor:
        """The AR model's tokens as the masked model's."""
        assert self.alignment is not None
        if not self._through_pixels:
            return self.alignment.translate(codes_bn)
        return carry_over(
            codes_bn,
            length,
            source=self.ar_tokenizer,
            source_grid=ar_grid,
            target=self.tokenizer,
            target_grid=grid,
        )

    def _check_judge(self, verify: Verify | None, refine: Refine | None, *, only_ar: bool) -> None:
        """Raise where the AR model cannot judge."""
        if verify is not None and not (only_ar and self.ar is not None):
            raise ValueError("verification writes all tokens with the AR model: use ar_fraction 1")
        if verify is not None and refine is not None:
            raise ValueError("give verify or refine, not both")
        if refine is not None and (only_ar or self.ar is None):
            raise ValueError("refinement needs an AR model and a masked phase: use an ar_fraction below 1")

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
