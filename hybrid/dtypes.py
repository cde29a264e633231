"""Number types by phase: the AR model's, the masked model's and the decoder's may differ.

One token at a time waits for memory or launches, a parallel pass for arithmetic, so that what is fastest for one phase
need not be for another. This file reads such a choice and measures one. It knows no model.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from statistics import median
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import nn

from hybrid.phases import Sampling, ar_prefix
from hybrid.request import DTYPES, find_dtype
from hybrid.sampler import Clock
from hybrid.sampling import Guidance
from hybrid.types import MASK

if TYPE_CHECKING:
    from hybrid.pipeline import HybridPipeline

PARTS = ("ar", "masked", "decode")
"""What has a type of its own. A text encoder has the AR model's, or the masked one's where there is no other."""

FASTEST = "fastest"
"""The type that asks for a measurement."""

CANDIDATES = (torch.float32, torch.bfloat16)
PROBE_TOKENS, TURNS, PATIENCE = 8, 3, 3.0
"""AR tokens of one timed run, timed runs of each type, and the seconds after which no further turn begins."""

MARGIN = 0.95
"""Another type is taken where it needs less than this share of the loaded one's time."""


@dataclass(frozen=True)
class PhaseTypes:
    """The types of the AR model, of the masked model and of the tokenizers."""

    ar: torch.dtype
    masked: torch.dtype
    decode: torch.dtype

    def __str__(self) -> str:
        """What ``find_types`` takes: ``fp32``, or ``ar=fp32,masked=bf16,decode=fp32``."""
        short = {dtype: name for name, dtype in DTYPES.items()}
        names = {part: short.get(getattr(self, part), str(getattr(self, part))) for part in PARTS}
        if self.alike:
            return names["ar"]
        return ",".join(f"{part}={name}" for part, name in names.items())

    @property
    def alike(self) -> bool:
        """Whether all parts have one type."""
        return self.ar == self.masked == self.decode

    @property
    def name(self) -> str:
        """What results call it: ``float32``, or the parts' types where they differ."""
        return str(self.ar).removeprefix("torch.") if self.alike else str(self)

    def of(self, component: str) -> torch.dtype:
        """The type of a pipeline's component."""
        return self.decode if component.endswith("tokenizer") else self.masked if component == "masked" else self.ar


AnyType: TypeAlias = "str | torch.dtype | Mapping[str, str | torch.dtype] | PhaseTypes"
"""One type for all parts, or one for each (left out: ``auto``), as a mapping or as ``ar=fp32,masked=bf16``."""


def find_types(dtype: AnyType, device: torch.device) -> PhaseTypes:
    """The types that an argument means.

    Raises:
        ValueError: an unknown part or type, or a part that is named twice.
    """
    if isinstance(dtype, PhaseTypes):
        return dtype
    if isinstance(dtype, str) and "=" in dtype:
        pairs = [entry.strip().partition("=")[::2] for entry in dtype.split(",")]
        if len(dict(pairs)) < len(pairs):
            raise ValueError(f"dtype {dtype!r}: names a part twice")
        dtype = dict(pairs)
    if not isinstance(dtype, Mapping):
        one = _one(dtype, device)
        return PhaseTypes(one, one, one)
    for part in dtype:
        if part not in PARTS:
            near = get_close_matches(str(part), PARTS, n=1)
            raise ValueError(f"dtype: no part {part!r}; {f'did you mean {near[0]}?' if near else ', '.join(PARTS)}")
    return PhaseTypes(**{part: _one(dtype.get(part, "auto"), device) for part in PARTS})


def _one(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    long = {str(known).removeprefix("torch."): known for known in DTYPES.values()}
    return find_dtype(long.get(dtype, dtype) if isinstance(dtype, str) else dtype, device)


@torch.inference_mode()
def fastest_types(
    pipe: HybridPipeline, prompts: Sequence[str | int], now: Callable[[], float] | None = None
) -> PhaseTypes:
    """The fastest type of each part for a batch of these prompts, by a few short runs that take turns.

    Args:
        pipe: as it was loaded; copies in other types are made one part at a time, and dropped.
        prompts: one for each picture.
        now: tells the time in seconds; None is the wall clock with the device's queue drained.
    """
    asked, device = pipe.encode(prompts), pipe.device
    now = now or Clock(device).now
    loaded, chosen = pipe.types, {}
    lead = pipe.masked if pipe.masked is not None else pipe.ar
    grid = lead.condition(asked, pipe.grid).grid
    batch = len(prompts)

    def draft(model: Any) -> None:
        condition = model.condition(asked, grid)
        length = min(PROBE_TOKENS, grid.places)
        noise_bn = torch.zeros(batch, grid.places, device=device)
        ar_prefix(model, condition, condition.null(), length, noise_bn, Sampling(Guidance(2.0)))

    def fill(model: Any) -> None:
        condition = model.condition(asked, grid)
        tokens_bn = torch.full((2 * batch, grid.places), MASK, device=device)
        model.logits(tokens_bn, condition.cat(condition.null()))

    def decode(model: Any) -> None:
        model.decode(torch.zeros(batch, grid.places, dtype=torch.long, device=device), grid)

    for part, module, run in (
        ("ar", pipe.ar, draft),
        ("masked", pipe.masked, fill),
        ("decode", pipe.tokenizer, decode),
    ):
        own = getattr(loaded, part)
        chosen[part] = _fastest(module, own, run, now) if isinstance(module, nn.Module) else own
    if pipe.masked is pipe.ar:
        chosen["masked"] = chosen["ar"]
    return PhaseTypes(**chosen)


def _fastest(module: nn.Module, own: torch.dtype, run: Callable[[Any], None], now: Callable[[], float]) -> torch.dtype:
    """The type in which a module runs fastest; its own where the gain is within ``MARGIN``."""
    types = [own, *(dtype for dtype in CANDIDATES if dtype != own)]
    modules = {dtype: module if dtype == own else copy.deepcopy(module).to(dtype) for dtype in types}
    seconds: dict[torch.dtype, list[float]] = {dtype: [] for dtype in types}
    for each in modules.values():
        run(each)
    started = now()
    while len(seconds[own]) < TURNS and (not seconds[own] or now() - started < PATIENCE):
        for dtype, each in modules.items():
            before = now()
            run(each)
            seconds[dtype].append(now() - before)
    medians = {dtype: median(values) for dtype, values in seconds.items()}
    best = min(types, key=lambda dtype: medians[dtype])
    return best if medians[best] < MARGIN * medians[own] else own
