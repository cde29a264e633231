"""What ``hybrid-generate`` does about memory: ``--plan-memory`` tells what a request needs, ``--max-memory`` what fits.

This file knows options and requests; bytes are worked out in ``hybrid.memory``, batches in ``hybrid.budget``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from hybrid.budget import Budget, fit
from hybrid.config import PairConfig
from hybrid.dtypes import FASTEST, find_types
from hybrid.memory import Memory, plan_pair, table
from hybrid.pairing import find_pair, read_pair
from hybrid.request import DTYPES, carried_over, find_choice, find_device, find_split, with_settings

if TYPE_CHECKING:
    from hybrid.cli import Request

UNPLANNED = ("compare", "json", "max_memory", "tile")
"""Options that ``--plan-memory`` could only ignore."""

UNCOUNTED = ("refined", "exact", "relaxed", "jacobi")
"""Methods whose drafts, verification or refinement ``hybrid.memory`` leaves out."""


def plan_memory(options: argparse.Namespace, request: Request) -> int:
    """Print what the request's pictures need, as many at once as are drawn so.

    Raises:
        ValueError: an option or a method that the plan does not count, or what ``plan_pair`` refuses.
    """
    for name in UNPLANNED:
        if getattr(options, name):
            raise ValueError(f"--plan-memory: does not go with --{name.replace('_', '-')}; leave one out")
    if request.quantize is not None:
        raise ValueError(f"--plan-memory: does not count {request.quantize} weights; leave --quantize out")
    pair, dtype = _pair(options, request)
    if dtype == "auto":
        dtype = "bf16"  # as on CUDA, which is what memory is planned for
    if dtype not in DTYPES:
        raise ValueError(f"--plan-memory: --dtype {dtype}: use {', '.join(DTYPES)}")
    method, plan = _plan(pair, DTYPES[dtype], request.arguments)
    if method in UNCOUNTED:
        raise ValueError(f"--plan-memory: does not count what method {method} adds; use ar, hybrid, masked or zipar")
    batch = min(options.batch, len(request.prompts))
    need = plan(batch=batch)
    print(f"{request.config}, {dtype}, pictures at once: {batch}")
    print(table(need))
    return 0


def find_budget(options: argparse.Namespace, request: Request) -> Budget | None:
    """What fits into --max-memory, told on standard error; None without it."""
    if options.max_memory is None:
        return None
    if not options.max_memory > 0:
        raise ValueError(f"--max-memory {options.max_memory:g}: must be above 0 GB")
    device = find_device(options.device)
    pair, dtype = _pair(options, request)
    # A type that is still to be measured counts as the widest one.
    types = find_types("fp32" if dtype == FASTEST else dtype, device)
    widest = max((types.ar, types.masked, types.decode), key=lambda dtype: dtype.itemsize)
    method, plan = _plan(pair, widest, request.arguments)
    most = min(options.batch, len(request.prompts))
    budget = fit(lambda batch: plan(batch=batch), options.max_memory * 1e9, most, offload=device.type == "cuda")
    if not options.quiet or budget.layers is not None:
        more = f" (what method {method} adds is not counted)" if method in UNCOUNTED else ""
        print(f"hybrid-generate: --max-memory {options.max_memory:g}: {budget}{more}", file=sys.stderr)
    return budget


def _pair(options: argparse.Namespace, request: Request) -> tuple[PairConfig, str]:
    """The pairing, with the defaults that a report or a repeated picture gives it, and the type it is loaded in."""
    path, dtype = find_pair(request.config), request.dtype
    pair = read_pair(path)
    defaults = pair.defaults
    choice = find_choice(options.auto, options.quality, options.max_ms, path)
    if choice is not None:
        defaults, dtype = with_settings(defaults, choice.settings), choice.dtype if dtype == "auto" else dtype
    if request.source is not None:
        defaults = carried_over(request.source.drawing, defaults)
    return pair.model_copy(update={"defaults": defaults}), dtype


def _plan(pair: PairConfig, dtype: torch.dtype, asked: Mapping[str, Any]) -> tuple[str, Callable[..., Memory]]:
    """The method, and ``plan_pair`` for what is asked, but for the number of pictures.

    Args:
        pair: with the request's defaults.
        dtype: of all parts.
        asked: the pipeline's arguments.
    """
    method, fraction, tokens = find_split(
        asked.get("method"),
        asked.get("ar_fraction"),
        asked.get("ar_tokens"),
        pair.defaults,
        ar=pair.ar is not None,
        masked=pair.masked is not None,
        inpainting="image" in asked,
        draft=asked.get("draft"),
    )
    guidance = asked.get("guidance_scale")
    return method, partial(
        plan_pair,
        pair,
        dtype,
        height=asked.get("height"),
        width=asked.get("width"),
        ar_fraction=fraction,
        ar_tokens=tokens,
        guided=None if guidance is None else guidance != 1,
    )
