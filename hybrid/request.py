"""What a request says, checked: devices, types, seeds, the share of the AR model, sizes, classes, in-painting masks.

Plain functions that ``HybridPipeline`` calls before anything is drawn. This file knows arguments and their errors; it
runs no network but the tokenizer's encoder.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hybrid.config import DefaultsConfig, PhaseConfig
from hybrid.orders import NOISY, ORDERS
from hybrid.pairing import is_shipped, pair_name
from hybrid.phases import Sampling
from hybrid.pictures import from_pil, mask_from_pil
from hybrid.recommend import Choice, recommend
from hybrid.refine import Refine
from hybrid.sampling import Guidance
from hybrid.types import Grid
from hybrid.verify import Verify
from hybrid.zipar import ZipAR

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
DEVICES = ("cpu", "cuda", "mps")
METHODS: dict[str, float | None] = {
    **dict.fromkeys(("hybrid", "refined")),
    "masked": 0.0,
    **dict.fromkeys(("ar", "exact", "relaxed", "jacobi", "zipar"), 1.0),
}
"""The AR fraction that a method stands for: None where it is the request's own. ``refined`` is the hybrid with
``hybrid.refine`` after it; ``exact`` and ``relaxed`` have the AR model judge the masked model's drafts, ``jacobi``
its own (``hybrid.verify``); ``zipar`` has it write rows side by side (``hybrid.zipar``)."""

SEEDS = 2**63
"""Seeds are below this."""


def find_device(device: str | torch.device) -> torch.device:
    """``auto`` is the best there is.

    Raises:
        ValueError: a device this machine or this torch does not have.
    """
    if device == "auto":
        best = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        return torch.device(best)
    try:
        found = torch.device(device)
    except RuntimeError:
        found = None
    if found is None or (isinstance(device, str) and found.type not in DEVICES):
        raise ValueError(f"device {device!r}: use auto, {', '.join(DEVICES)}")
    if found.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("device cuda: this machine or this torch build has no CUDA; use device cpu or auto")
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device {found}: there are only {torch.cuda.device_count()} CUDA devices, counted from 0")
    if found.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError("device mps: not available here; use device cpu or auto")
    return found


def find_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """``auto`` is bf16 on CUDA and fp32 elsewhere."""
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r}: use auto, {', '.join(DTYPES)}")
    return DTYPES[dtype]


def as_list(prompt: str | int | Sequence[str | int]) -> list[str | int]:
    """One prompt or several as a list.

    Raises:
        ValueError: what is neither caption nor class.
    """
    if prompt is None or isinstance(prompt, (bytes, float)):
        raise ValueError(f"prompt: give a caption, a class or a list of these, got {type(prompt).__name__}")
    entries = [prompt] if isinstance(prompt, (str, int)) else list(prompt)
    for entry in entries:
        if not isinstance(entry, str) and not hasattr(entry, "__index__"):
            raise ValueError(f"prompt: give captions or classes, got {type(entry).__name__}")
    return entries


def require_whole(given: Mapping[str, Any]) -> None:
    """Raise ValueError where an argument that counts is no whole number; None is one that was left out."""
    for name, value in given.items():
        if value is not None and not hasattr(value, "__index__"):
            raise ValueError(f"{name} {value!r}: must be a whole number")


def find_seeds(
    seed: int | None, generator: torch.Generator | Sequence[torch.Generator] | None, count: int
) -> list[int] | list[torch.Generator]:
    """A seed for each picture, or a generator where several were given.

    Raises:
        ValueError: both given, a seed out of range, or not one generator for each picture.
    """
    if seed is not None and generator is not None:
        raise ValueError("give seed or generator, not both")
    if isinstance(generator, torch.Generator):
        return [int(value) for value in torch.randint(2**62, (count,), generator=generator)]
    if generator is not None:
        if len(generator) != count:
            raise ValueError(f"{len(generator)} generators for {count} pictures; give one for each")
        return list(generator)
    first = secrets.randbelow(2**31) if seed is None else seed
    if not 0 <= first <= SEEDS - count:
        raise ValueError(f"seed {first}: must be 0 or above, and below 2^63")
    return [first + place for place in range(count)]


def find_sampling(defaults: PhaseConfig, given: Mapping[str, Any]) -> Sampling:
    """A phase's defaults with what the request says in their place."""
    chosen = defaults.model_dump() | {key: value for key, value in given.items() if value is not None}
    kind = chosen["guidance_kind"]
    window = {"start": chosen["guidance_start"], "end": chosen["guidance_end"]} if kind == "interval" else {}
    guidance = Guidance(chosen["guidance_scale"], kind, floor=chosen["guidance_floor"], **window)
    return Sampling(guidance, chosen["temperature"], chosen["top_k"], chosen["top_p"])


def find_split(
    method: str | None,
    fraction: float | None,
    tokens: int | None,
    defaults: DefaultsConfig,
    *,
    ar: bool,
    masked: bool,
    inpainting: bool,
    draft: str | None = None,
) -> tuple[str, float | None, int | None]:
    """The method, and its share or number of AR tokens.

    A request that says nothing takes the default where its models are there, and the only model otherwise. What the
    numbers themselves must be is checked by the sampler.

    Args:
        method, fraction, tokens: what the request says.
        defaults: what counts where it says nothing.
        ar, masked: whether there is such a model.
        inpainting: whether the request gives a picture.
        draft: who drafts for ``relaxed``; None where the request does not say.

    Raises:
        ValueError: an unknown method, one that contradicts the numbers, or one whose model is missing.
    """
    told = fraction is not None or tokens is not None
    by_ar = ("ar", "jacobi", "zipar", *(("relaxed",) if (draft or defaults.draft) == "jacobi" else ()))
    if method is None and not told:
        if not masked:
            return defaults.method if defaults.method in by_ar else "ar", 1.0, None
        if not ar or inpainting:
            return "masked", 0.0, None
    chosen = method or ("hybrid" if told and METHODS[defaults.method] is not None else defaults.method)
    if chosen not in METHODS:
        near = get_close_matches(chosen, METHODS, n=1)
        raise ValueError(f"method {chosen!r}: use {near[0] if near else ', '.join(METHODS)}")
    fixed = METHODS[chosen]
    if fixed is not None and (tokens is not None or fraction not in (None, fixed)):
        raise ValueError(f"method {chosen} fixes the AR fraction at {fixed:g}; drop one of the two")
    if method is not None and method not in ("ar", "masked", "jacobi", "zipar"):
        if not ar or not (masked or method in by_ar):
            have, lack = ("ar", "masked model") if ar else ("masked", "AR model")
            raise ValueError(f"method {method}: there is no {lack}; use method {have}")
        if inpainting:
            raise ValueError(f"method {method}: in-painting runs in the masked phase; use method masked")
    if fixed is not None:
        return chosen, fixed, None
    return (chosen, fraction, tokens) if told else (chosen, defaults.ar_fraction, None)


FILLING = ("hybrid", "refined", "masked")
"""Methods in which the masked model fills places."""

OWN: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("ar_fraction", "ar_tokens"), ("hybrid", "refined")),
    **dict.fromkeys(("steps", "schedule", "resume", "order", "noise", "reuse"), FILLING),
    **dict.fromkeys(("rounds", "redraw"), ("refined",)),
    "window": ("exact", "relaxed", "jacobi", "zipar"),
    **dict.fromkeys(("relax", "draft"), ("relaxed",)),
}
"""Arguments that only some methods take."""


def require_own(method: str, given: Mapping[str, Any]) -> None:
    """Raise ValueError where an argument is given that the method has no use for; None is one that was left out."""
    for name, value in given.items():
        if value is not None and method not in OWN[name]:
            raise ValueError(f"{name}: belongs to method {' or '.join(OWN[name])}, not {method}")


def require_noisy(order: str, noise: float | None) -> None:
    """Raise ValueError where noise is given that the order has no use for."""
    if noise and order in ORDERS and order not in NOISY:
        raise ValueError(f"noise: belongs to order {' or '.join(NOISY)}, not {order}")


def find_judge(method: str, given: Mapping[str, Any], defaults: DefaultsConfig) -> tuple[Verify | None, Refine | None]:
    """How the AR model judges, where the method has it do so.

    Args:
        method: as ``find_split`` found it.
        given: ``rounds``, ``redraw``, ``window``, ``relax`` and ``draft`` as the request says them, None where it does
            not.
        defaults: what counts where it says nothing.

    Raises:
        ValueError: a setting out of range.
    """
    known = [name for name in given if method in OWN[name]]
    if defaults.method == "zipar":  # whose window counts columns
        defaults = defaults.model_copy(update={"window": None})
    told = {name: getattr(defaults, name) if given[name] is None else given[name] for name in known}
    told = {name: value for name, value in told.items() if value is not None}
    if method == "refined":
        return None, Refine(**told)
    if method == "zipar":
        return None, None
    if method == "jacobi":
        told["draft"] = "jacobi"
    return (Verify(**told) if known else None), None


def find_zipar(method: str, window: int | None, defaults: DefaultsConfig) -> ZipAR | None:
    """How rows are written side by side, where the method has it so. The default window is zipar's own, or what the
    defaults say where they are zipar's."""
    if method != "zipar":
        return None
    own = defaults.window if defaults.method == "zipar" else None
    return ZipAR(own if window is None else window)


def find_choice(auto: str | Path | None, quality: float | None, max_ms: float | None, path: Path) -> Choice | None:
    """What a report recommends for the pairing that ``path`` describes, or None without one.

    That the report is of this pairing is checked by name, and of shipped ones alone: one's own may be copied and
    renamed, and to hash its weights takes long.

    Raises:
        ValueError: a limit without a report; a shipped pairing and the report of another one; see
            ``hybrid.recommend`` for the others.
    """
    if auto is None:
        for name, value in (("quality", quality), ("max_ms", max_ms)):
            if value is not None:
                raise ValueError(f"{name}: says what auto must reach; give auto a report of hybrid-bench run")
        return None
    choice = recommend(auto, quality=0.95 if quality is None and max_ms is None else quality, max_ms=max_ms)
    name, measured = pair_name(path), choice.pair
    if measured is not None and is_shipped(path) and pair_name(Path(measured)) != name:
        raise ValueError(
            f"auto: the report is of {measured}, not of {name}; load {measured}, or give a report of {name}"
        )
    return choice


PHASE_ARGUMENTS = ("guidance_scale", "guidance_kind", "guidance_floor", "temperature", "top_k", "top_p")


def with_settings(defaults: DefaultsConfig, settings: Mapping[str, Any]) -> DefaultsConfig:
    """Defaults with arguments of ``HybridPipeline`` in their place, so that a request that says nothing repeats them.

    Raises:
        ValueError: an argument that is no default.
    """
    fields = defaults.model_dump()
    if settings.get("method") == "zipar":
        fields["window"] = None  # of drafts
    for name, value in settings.items():
        if name in PHASE_ARGUMENTS:
            for phase in ("ar", "masked"):
                fields[phase][name] = value
        elif name in fields:
            fields[name] = value
        else:
            raise ValueError(f"auto: the report's setting {name!r} is no default of a pipeline")
    return DefaultsConfig.model_validate(fields)


def as_defaults(settings: Mapping[str, Any], defaults: DefaultsConfig) -> DefaultsConfig:
    """What a result was drawn with, as defaults: a request that says nothing else repeats it.

    Args:
        settings: of a ``Generation`` that ``HybridPipeline`` returned.
        defaults: what the pipeline had; it stays for a phase that did not run, and where the method fixes the fraction.
    """
    fields = defaults.model_dump()
    fraction, fill = settings["ar_fraction"], settings["fill"]
    verify, refine = settings["verify"], settings["refine"]
    fields["method"] = "masked" if fraction == 0 else "ar" if fraction == 1 else "hybrid"
    if verify is not None:
        strict = "jacobi" if verify["draft"] == "jacobi" else "exact"
        fields |= {"method": "relaxed" if verify["relax"] else strict, "window": verify["window"]}
        fields |= {name: verify[name] for name in ("relax", "draft")} if verify["relax"] else {}
    if refine is not None:
        fields |= {"method": "refined", "rounds": refine["rounds"], "redraw": refine["redraw"]}
    if settings["zipar"] is not None:
        fields |= {"method": "zipar", "window": settings["zipar"]["window"]}
    fields["tile"] = settings["tile"]
    if METHODS[fields["method"]] is None:
        fields["ar_fraction"] = fraction
    if settings["prefix"] is not None:
        fields["ar"] = _phase(settings["prefix"])
    if fill is not None:
        fields["masked"] = _phase(fill["sampling"])
        height, width = settings["grid"]
        left = height * width - settings["ar_tokens"]
        cut = fill["steps"] == left <= defaults.steps  # the default is cut to the places left, and will be again
        filled = () if cut or verify is not None else ("steps",)  # drafts are no passes of a fill
        fields |= {key: fill[key] for key in (*filled, "schedule", "resume", "order", "noise", "reuse")}
    return DefaultsConfig.model_validate(fields)


def carried_over(drawing: DefaultsConfig, defaults: DefaultsConfig) -> DefaultsConfig:
    """What a picture was drawn with, as defaults that serve other methods too.

    A picture may hold an AR fraction that its method fixes, and a number of passes where nothing was filled. Neither
    was chosen, so that neither means anything to another method.

    Args:
        drawing: a picture's.
        defaults: the pairing's, which count instead.
    """
    fixed = METHODS[drawing.method]
    unchosen = () if fixed is None else ("ar_fraction",) if fixed == 0 else ("ar_fraction", "steps")
    return drawing.model_copy(update={name: getattr(defaults, name) for name in unchosen})


def _phase(sampling: Mapping[str, Any]) -> dict[str, Any]:
    drawing = {key: sampling[key] for key in ("temperature", "top_k", "top_p")}
    return drawing | {f"guidance_{key}": value for key, value in sampling["guidance"].items()}


def find_label(prompt: str | int, classes: Sequence[str] | None, model: str) -> str | int:
    """The class that a name, or a number in words, means. Without names the prompt stays what it is.

    Raises:
        ValueError: a name that is no class.
    """
    if isinstance(prompt, int) or prompt.strip().isdecimal():
        return int(prompt)
    if classes is None:
        return prompt
    name = prompt.strip().lower()
    names = [entry.lower() for entry in classes]
    for spelling in (name, name.removesuffix("s"), name.removeprefix("a ").removeprefix("an ")):
        if spelling in names:
            return names.index(spelling)
    near = get_close_matches(name, names, n=1)
    hint = f"did you mean {classes[names.index(near[0])]!r}? " if near else ""
    shown = ", ".join(classes[:12]) + (", …" if len(classes) > 12 else "")
    raise ValueError(f"prompt {prompt!r}: not a class of {model}; {hint}classes: {shown}")


MOST_PIXELS = 2**16
"""Of a side: far more than any model draws, and few enough to count with."""


def find_grid(height: int | None, width: int | None, factor: int) -> Grid | None:
    """The token grid of a picture of that many pixels; None where no size is given.

    Raises:
        ValueError: one side only, or sides that are no multiples of a token's, or too long.
    """
    if height is None and width is None:
        return None
    if height is None or width is None:
        raise ValueError("size: give height and width together")
    if height < 1 or width < 1 or height % factor or width % factor:
        raise ValueError(f"size {width}x{height}: width and height must be multiples of {factor} pixels, from {factor}")
    if max(height, width) > MOST_PIXELS:
        raise ValueError(f"size {width}x{height}: a side has at most {MOST_PIXELS} pixels")
    return Grid(height // factor, width // factor)


def find_inpainting(image: Any, mask: Any, grid: Grid | None, tokenizer: Any, dtype: torch.dtype) -> tuple[Tensor, Any]:
    """Tokens of the picture, and which of them stay: those whose pixels are all black in the mask.

    Args:
        image, mask: pictures, files or tensors.
        grid: what the model will fill; None accepts the picture's own.
        tokenizer: encodes the picture.
        dtype: the tokenizer's type.

    Raises:
        ValueError: a file that is no picture, sizes that do not fit, or a mask without a white place.
    """
    factor, device = tokenizer.factor, tokenizer.codebook_kd.device
    pixels = from_pil(image).to(device, dtype)
    size = (pixels.shape[-2], pixels.shape[-1])
    grid = grid or find_grid(*size, factor)
    assert grid is not None
    wanted = (grid.height * factor, grid.width * factor)
    if size != wanted:
        raise ValueError(
            f"image is {size[1]}x{size[0]} pixels; this model needs {wanted[1]}x{wanted[0]} (width x height)"
        )
    drawn = mask_from_pil(mask).to(device)
    if drawn.shape != size:
        raise ValueError(f"mask is {drawn.shape[1]}x{drawn.shape[0]} pixels, the image {size[1]}x{size[0]}")
    if not bool(drawn.any()):
        raise ValueError("mask has no white place, so there is nothing to draw; white marks what is drawn anew")
    blocks = drawn.unflatten(0, (-1, factor)).unflatten(2, (-1, factor))
    keep = ~blocks.any(dim=3).any(dim=1).flatten()
    with torch.inference_mode():
        return tokenizer.encode(pixels[None])[0], keep
