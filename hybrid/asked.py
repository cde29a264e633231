"""A request before and after its drawing: ``ask`` puts it together, ``Asked.answer`` makes a result of what was drawn.

``HybridPipeline`` has ``ask`` as a method. This file knows a request's arguments, their defaults and the result's
settings; the arguments' checks are in ``request``, the drawing is in ``sampler`` and ``batching``.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec

import torch
from torch import Tensor

from hybrid.dtypes import AnyType
from hybrid.phases import Fill, Step
from hybrid.pictures import to_pil
from hybrid.prepare import ar_grid, carried_places
from hybrid.request import (
    as_list,
    find_grid,
    find_inpainting,
    find_judge,
    find_sampling,
    find_seeds,
    find_split,
    find_zipar,
    require_noisy,
    require_own,
    require_whole,
)
from hybrid.types import Generation, Grid, Phases

if TYPE_CHECKING:
    from PIL import Image

    from hybrid.pipeline import HybridPipeline

OUTPUT_TYPES = ("pil", "np", "pt", "tokens")
P = ParamSpec("P")


@dataclass(frozen=True)
class Asked:
    """A request that is not drawn yet.

    Attributes:
        pipe: whose sampler draws it.
        arguments: of ``HybridSampler.generate``, or of ``hybrid.batching.Batcher.submit``.
        note: settings that the sampler does not know.
        output_type: kind of the pictures.
        seconds, passes: what embedding the prompts took.
    """

    pipe: HybridPipeline
    arguments: Mapping[str, Any]
    note: Mapping[str, Any]
    output_type: str
    seconds: float
    passes: int

    def answer(self, drawn: Generation) -> Generation:
        """The result, from what the sampler drew."""
        images = None if self.output_type == "tokens" else _output(drawn.images, self.output_type)
        seconds, passes = dict(drawn.phases.seconds), dict(drawn.phases.passes)
        seconds["condition"] += self.seconds
        passes["condition"] = self.passes
        return replace(drawn, images=images, phases=Phases(seconds, passes), settings={**self.note, **drawn.settings})


def drawn(
    ask: Callable[Concatenate[HybridPipeline, P], Asked],
) -> Callable[Concatenate[HybridPipeline, P], Generation]:
    """``ask``, with the drawing and the answer after it."""

    @functools.wraps(ask)
    def draw(self: HybridPipeline, *args: P.args, **kwargs: P.kwargs) -> Generation:
        asked = ask(self, *args, **kwargs)
        return asked.answer(asked.pipe.sampler.generate(**asked.arguments))

    return draw


def ask(
    self: HybridPipeline,
    prompt: str | int | Sequence[str | int],
    *,
    negative_prompt: str | int | Sequence[str | int] | None = None,
    method: str | None = None,
    ar_fraction: float | None = None,
    ar_tokens: int | None = None,
    steps: int | None = None,
    schedule: str | None = None,
    resume: str | None = None,
    order: str | None = None,
    noise: float | None = None,
    reuse: int | None = None,
    rounds: int | None = None,
    redraw: float | None = None,
    window: int | None = None,
    relax: float | None = None,
    draft: str | None = None,
    guidance_scale: float | None = None,
    guidance_kind: str | None = None,
    guidance_floor: float | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    height: int | None = None,
    width: int | None = None,
    image: Any = None,
    mask: Any = None,
    num_images_per_prompt: int = 1,
    seed: int | None = None,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
    output_type: str = "pil",
    tile: int | None = None,
    dtype: AnyType | None = None,
    callback_on_step_end: Callable[[HybridPipeline, int, str, dict[str, Any]], Any] | None = None,
) -> Asked:
    """Draw pictures; under the name ``ask``, put the request together and leave it undrawn.

    Args:
        prompt: a caption or a class (name or label), or several.
        negative_prompt: what guidance moves away from, instead of the null condition.
        method: ``hybrid``, ``ar`` (fraction 1), ``masked`` (fraction 0), ``refined`` (the hybrid, then the AR model
            says what is drawn anew), ``exact`` (the AR model's own distribution, from drafts of the masked model)
            ``relaxed`` (the same with drafts accepted more often, see ``hybrid.verify.accept``), ``jacobi``
            (the AR model's distribution from its own drafts: speculative Jacobi decoding) or ``zipar`` (the AR
            model writes rows side by side; approximate, see ``hybrid.zipar``).
        ar_fraction: share of the tokens that the AR model writes, in [0, 1].
        ar_tokens: the same as a number of tokens.
        steps: masked passes.
        schedule, resume, order, noise, reuse: see ``hybrid.phases.Fill``.
        rounds, redraw: of ``refined``, see ``hybrid.refine.Refine``.
        window, relax, draft: of ``exact``, ``relaxed`` and ``jacobi``, see ``hybrid.verify.Verify``; the window of
            ``zipar`` counts columns.
        guidance_scale, guidance_kind: u + s (c − u) for both phases; 1 is none.
        guidance_floor: for both phases, no code that is less likely than this share of the likeliest one, as asked for
            without guidance; 0 is off, see ``hybrid.sampling.guide``.
        temperature, top_k, top_p: for both phases; temperature 0 is argmax.
        height, width: picture size in pixels; None is the checkpoint's own.
        image, mask: in-painting: a picture of the right size and a mask whose white places are drawn anew.
        num_images_per_prompt: pictures of each prompt.
        seed: picture i of the request has seed + i; None draws one. The result's settings tell it as ``seed`` and
            every picture's as ``seeds``.
        generator: a CPU generator from which each picture's seed is drawn, or one for each picture.
        output_type: ``pil``, ``np`` (b, h, w, 3 in [0, 1]), ``pt`` (b, 3, h, w in [-1, 1]) or ``tokens``.
        tile: decode in tiles with sides of so many pixels, for large pictures; their seams are not exact
            (``hybrid.tiling``).
        dtype: run the image models in other types than they were loaded in; as in ``from_pretrained``.
        callback_on_step_end: called with (pipeline, index, phase, {"step": Step}) after each AR row and masked
            pass; returning False cancels by raising ``Cancelled``.

    Raises:
        ValueError: one line naming the argument, what is wrong with it and what would be right.
        Cancelled: the callback returned False.
    """
    types = self.types_for(dtype, prompt, num_images_per_prompt)
    if types != self.types:
        return ask(self.in_dtype(types), **_arguments(locals()), dtype=types)
    defaults = self.defaults
    sizes = {"ar_tokens": ar_tokens, "height": height, "width": width, "tile": tile, "seed": seed, "top_k": top_k}
    passes = {"steps": steps, "reuse": reuse, "rounds": rounds, "window": window}
    require_whole({**passes, **sizes, "num_images_per_prompt": num_images_per_prompt})
    prompts = as_list(prompt)
    if not prompts:
        raise ValueError("prompt: give at least one")
    if num_images_per_prompt < 1:
        raise ValueError(f"num_images_per_prompt {num_images_per_prompt}: must be at least 1")
    if output_type not in OUTPUT_TYPES:
        raise ValueError(f"output_type {output_type!r}: use one of {', '.join(OUTPUT_TYPES)}")
    repeated = [entry for entry in prompts for _ in range(num_images_per_prompt)]
    seeds = find_seeds(seed, generator, len(repeated))
    if (image is None) != (mask is None):
        raise ValueError("in-painting takes image and mask together")
    chosen, fraction, count = find_split(
        method,
        ar_fraction,
        ar_tokens,
        defaults,
        ar=self.ar is not None,
        masked=self.masked is not None,
        inpainting=image is not None,
        draft=draft,
    )
    filling = {"schedule": schedule, "resume": resume, "order": order, "noise": noise}
    judge = {"rounds": rounds, "redraw": redraw, "window": window, "relax": relax, "draft": draft}
    require_own(chosen, {"steps": steps, "reuse": reuse} | filling | judge)
    require_noisy(order or defaults.order, noise)
    verify, refine = find_judge(chosen, judge, defaults)
    zipar = find_zipar(chosen, window, defaults)
    guidance = {"guidance_scale": guidance_scale, "guidance_kind": guidance_kind, "guidance_floor": guidance_floor}
    drawing = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    prefix = find_sampling(defaults.ar, guidance | drawing)
    sized = height is not None or width is not None
    grid = find_grid(height, width, self.tokenizer.factor) if sized else self.grid
    tokens, keep = None, None
    if image is not None:
        lead = self.masked if self.masked is not None else self.ar
        own = grid or getattr(lead, "grid", None)
        tokens, keep = find_inpainting(image, mask, own, self.tokenizer, self.types.decode)
    fill = Fill(
        steps=_default_steps(self, grid, fraction, count, keep) if steps is None else steps,
        schedule=schedule or defaults.schedule,
        resume=resume or defaults.resume,  # type: ignore[arg-type]
        order=order or defaults.order,
        noise=defaults.noise if noise is None else noise,
        reuse=defaults.reuse if reuse is None else reuse,
        sampling=find_sampling(defaults.masked, guidance | drawing),
    )
    started = time.perf_counter()
    encoded, negative = self.encode(repeated), None
    if negative_prompt is not None:
        if prefix.guidance.scale == 1 and fill.sampling.guidance.scale == 1:
            raise ValueError("negative_prompt: does nothing at guidance scale 1; give a higher guidance_scale")
        entries = as_list(negative_prompt)
        if len(entries) not in (1, len(prompts)):
            raise ValueError(f"negative_prompt: {len(entries)} for {len(prompts)} prompts; give one or as many")
        entries = entries * (len(prompts) // len(entries))
        entries = [entry for entry in entries for _ in range(num_images_per_prompt)]
        negative = self.encode(entries, "negative_prompt")
    encoding = time.perf_counter() - started
    report: Callable[[Step], Any] | None = None
    if callback_on_step_end is not None:
        tell = callback_on_step_end

        def report(step: Step) -> Any:
            return tell(self, step.index, step.phase, {"step": step})

    arguments = {
        "prompts": encoded,
        "seeds": seeds,
        "grid": grid,
        "ar_fraction": fraction,
        "ar_tokens": count,
        "prefix": prefix,
        "fill": fill,
        "verify": verify,
        "refine": refine,
        "zipar": zipar,
        "negative": negative,
        "tokens": tokens,
        "keep": keep,
        "callback": report,
        "decode": output_type != "tokens",
        "tile": defaults.tile if tile is None else tile,
    }
    note = {
        "model": self.name,
        "prompt": prompts if len(prompts) > 1 else prompts[0],
        "negative_prompt": negative_prompt,
        "num_images_per_prompt": num_images_per_prompt,
        "seed": seeds[0] if generator is None else None,
        "seeds": None if isinstance(seeds[0], torch.Generator) else seeds,
        "dtype": self.types.name,
    }
    encoders = 0 if self.text is None else 1 + (negative is not None)
    return Asked(self, arguments, note, output_type, encoding, encoders)


def _default_steps(
    pipe: HybridPipeline, grid: Grid | None, fraction: float | None, count: int | None, keep: Tensor | None
) -> int:
    """The default number of masked passes, or as many as there are places to fill where those are fewer."""
    grid = grid or getattr(pipe.masked, "grid", None)
    if grid is None or not 0 <= (fraction or 0) <= 1:  # the sampler says what is wrong with the fraction
        return pipe.defaults.steps
    written = ar_grid(pipe.sampler, grid)
    length = count if count is not None else round((fraction or 0) * written.places)
    known = carried_places(pipe.sampler, length, written, grid)[1]
    left = grid.places - known if keep is None else int((~keep).sum())
    return max(1, min(pipe.defaults.steps, left))


def _arguments(scope: dict[str, Any]) -> dict[str, Any]:
    """A call's arguments from its locals, to make the same call on another pipeline."""
    return {name: value for name, value in scope.items() if name not in ("self", "dtype", "types")}


def _output(images_bchw: Tensor, output_type: str) -> list[Image.Image] | Any:
    if output_type == "pt":
        return images_bchw
    if output_type == "np":
        return ((images_bchw.clamp(-1, 1) + 1) / 2).permute(0, 2, 3, 1).cpu().numpy()
    return [to_pil(image) for image in images_bchw]
