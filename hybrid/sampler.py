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

from hybrid import tiling
from hybrid.align import Alignment, Lossy, align
from hybrid.handoff import Handoff, is_shared
from hybrid.phases import Callback, Fill, Sampling, ar_prefix, masked_fill
from hybrid.prepare import Ready, device_of, prepare, translate
from hybrid.refine import Refine, refine_tokens
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
from hybrid.zipar import ZipAR, zipar_prefix


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what it was told; on CUDA the current stream alone (``beside`` uses another)."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()
    elif device.type == "mps":
        torch.mps.synchronize()


class Clock:
    """Seconds by phase, with the device's queue drained at both ends."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self._away = 0.0

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        start = self.now()
        yield
        self.seconds[name] += self.now() - start

    def now(self) -> float:
        """Seconds, when the device has done all that it was told."""
        synchronise(self.device)
        return time.perf_counter() - self._away

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Stand still meanwhile."""
        start = self.now()
        yield
        self._away += self.now() - start


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

    def decoder(self, *, only_ar: bool) -> ImageTokenizer:
        """What decodes: the AR model's tokenizer where that model wrote all tokens, else the masked model's."""
        return self.ar_tokenizer if only_ar else self.tokenizer

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
        zipar: ZipAR | None = None,
        negative: Prompts | None = None,
        tokens: Tensor | None = None,
        keep: Tensor | None = None,
        callback: Callback | None = None,
        decode: bool = True,
        tile: int | None = None,
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
            zipar: the AR model writes rows side by side (``hybrid.zipar``); excludes ``verify``.
            negative: prompts that stand in for the null condition in guidance.
            tokens: (b, n) or (n,) given tokens for in-painting, in the masked model's codes.
            keep: (b, n) or (n,) True where a given token stays.
            callback: called with a ``Step`` after each AR row and masked pass; returning False cancels.
            decode: make images (b, 3, h, w) in [-1, 1]; otherwise only tokens.
            tile: decode in tiles with sides of so many pixels (``hybrid.tiling``).

        Raises:
            ValueError: settings that contradict each other or the models.
            Cancelled: the callback returned False.
        """
        fill = fill or Fill()
        if tile is not None:
            tiling.check_tile(self.tokenizer, tile)
        clock = Clock(device_of(self.masked if self.masked is not None else self.ar, self.tokenizer))
        with clock.phase("condition"):
            ready = prepare(
                self,
                prompts,
                seeds=seeds,
                grid=grid,
                ar_fraction=ar_fraction,
                ar_tokens=ar_tokens,
                fill=fill,
                verify=verify,
                refine=refine,
                negative=negative,
                tokens=tokens,
                keep=keep,
            )
        return self.draw(
            ready,
            clock,
            prefix=prefix or Sampling(),
            fill=fill,
            verify=verify,
            refine=refine,
            zipar=zipar,
            callback=callback,
            decode=decode,
            tile=tile,
        )

    @torch.inference_mode()
    def draw(
        self,
        ready: Ready,
        clock: Clock,
        *,
        prefix: Sampling,
        fill: Fill,
        verify: Verify | None,
        refine: Refine | None,
        zipar: ZipAR | None,
        callback: Callback | None,
        decode: bool,
        tile: int | None,
    ) -> Generation:
        """Draw what ``prepare`` settled with the same settings; ``clock`` has the seconds so far. See ``generate``."""
        if verify is not None and zipar is not None:
            raise ValueError("give verify or zipar, not both")
        passes, lossy = dict.fromkeys(PHASES, 0), None
        asked, null, ar_asked, ar_null = ready.asked, ready.null, ready.ar_asked, ready.ar_null
        length, only_ar, codes_bn = ready.length, ready.only_ar, ready.codes_bn
        given_bn = codes_bn != MASK

        origin_bn = torch.full_like(codes_bn, FROM_AR)
        handoff: Handoff | None = None
        if verify is not None:
            assert self.ar is not None
            found = exact_generate(
                self.ar,
                self.masked,
                ar_asked,
                ar_null,
                asked,
                null,
                generators=ready.generators,
                prefix=prefix,
                draft=fill.sampling,
                verify=verify,
                alignment=self.alignment,
                callback=callback,
                phase=clock.phase,
            )
            codes_bn, origin_bn = found.tokens_bn, found.origin_bn
            passes["verify"], passes["draft"] = found.passes["ar"], found.passes["masked"]
        elif length and zipar is not None:
            assert self.ar is not None
            with clock.phase("prefix"):
                codes_bn, passes["prefix"] = zipar_prefix(
                    self.ar, ar_asked, ar_null, length, ready.noise_bn, prefix, zipar, callback
                )
            lossy = zipar.lossy(ready.ar_grid)
        elif length:
            assert self.ar is not None
            handoff = Handoff(self.ar) if is_shared(self.ar, self.masked) else None
            writer: Any = self.ar if handoff is None else handoff
            with clock.phase("prefix"):
                codes_bn, passes["prefix"] = ar_prefix(
                    writer, ar_asked, ar_null, length, ready.noise_bn, prefix, callback
                )
        if not only_ar:
            assert self.masked is not None
            if length and self.alignment is not None:
                with clock.phase("align"):
                    codes_bn, lossy = translate(self, codes_bn, ready), self.alignment.lossy or lossy
            origin_bn = torch.full_like(codes_bn, FROM_AR)
            with clock.phase("fill"):
                filler = self.masked if handoff is None else handoff.masked(length)
                codes_bn, pass_bn, passes["fill"] = masked_fill(
                    filler, asked, null, codes_bn, ready.noise_bt2n, fill, callback
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
                    ready.noise_brt2n,
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
                decoder = self.decoder(only_ar=only_ar)
                images = tiling.decode(decoder, codes_bn, ready.grid, tile=tile).float()
                passes["decode"] = 1
        settings = settings_of(ready, prefix, fill, verify, refine, zipar, tile)
        return Generation(images, codes_bn, origin_bn, ready.grid, Phases(clock.seconds, passes), settings, lossy)


def settings_of(
    ready: Ready,
    prefix: Sampling,
    fill: Fill,
    verify: Verify | None = None,
    refine: Refine | None = None,
    zipar: ZipAR | None = None,
    tile: int | None = None,
) -> dict[str, Any]:
    """What a request was drawn with; None for what took no part."""
    drafted = verify is not None and verify.draft == "masked"
    return {
        "ar_tokens": ready.length,
        "ar_fraction": ready.length / ready.ar_grid.places,
        "grid": [ready.grid.height, ready.grid.width],
        "prefix": asdict(prefix) if ready.length or refine else None,
        "fill": None if ready.only_ar and not drafted else asdict(fill),
        "verify": None if verify is None else asdict(verify),
        "refine": None if refine is None else asdict(refine),
        "zipar": None if zipar is None else {"window": zipar.columns(ready.ar_grid)},
        "tile": tile,
    }
