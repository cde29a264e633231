"""Spreading an AR model that no single device holds: over GPUs, the main memory and the disk, through accelerate.

Whole layers are spread, in order; embeddings, norms and the head stay on the main device. A layer on another GPU
computes there and keeps its part of the cache there; one in main memory or on the disk is brought to the main device
each time that it is needed, which is slow: every token waits for it. This file knows layers and bytes and no model.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hybrid.few_rows import split_fused

logger = logging.getLogger(__name__)

KEPT_FREE = 0.1
"""Share of each device's free memory that no weights take: the cache and activations need room."""

Place = int | str
"""Accelerate's name of a place: a GPU's number, ``mps``, ``cpu`` or ``disk``."""


def plan_places(layers: Sequence[int], other: int, room: Mapping[Place, int], main: Place) -> list[Place]:
    """Where each layer goes: the main device is filled first, then the others as they come; the disk takes the rest.

    Args:
        layers: bytes of each layer, in order.
        other: bytes of what stays on the main device.
        room: bytes that each place may hold, the main device's among them.
        main: the main device.

    Raises:
        ValueError: the main device does not hold what must stay there, with the largest layer brought to it.
    """
    left = {main: room[main], **{place: size for place, size in room.items() if place != main}}
    left[main] -= other
    if sum(layers) > left[main]:
        left[main] -= max(layers)  # what lies elsewhere may have to be brought
    if left[main] < 0:
        needed = other + max(layers)
        raise ValueError(f"device_map: {main} has {room[main]:,} bytes, but at least {needed:,} must be there")
    places: list[Place] = []
    order = [*left, "disk"]
    for size in layers:
        while order[0] != "disk" and left[order[0]] < size:
            order.pop(0)
        if order[0] != "disk":
            left[order[0]] -= size
        places.append(order[0])
    return places


def spread(
    model: nn.Module,
    main: torch.device,
    *,
    max_memory: Mapping[Place, int | str] | None = None,
    offload_folder: str | Path | None = None,
) -> list[Place]:
    """Put a model's layers where there is room, in place.

    Args:
        model: with ``layers``, as LlamaGen, RAR and Lumina-mGPT have.
        main: device of all else, and of what goes in and comes out.
        max_memory: what each place may hold, in bytes or as ``"10GiB"``; None is nine tenths of what is free.
        offload_folder: where layers go that fit nowhere.

    Returns:
        The place of each layer.

    Raises:
        ValueError: a model without layers, too little room, or the disk is needed and no folder given.
    """
    from accelerate import dispatch_model
    from accelerate.utils import get_max_memory

    layers: Any = getattr(model, "layers", None)
    if not isinstance(layers, nn.ModuleList) or not len(layers):
        raise ValueError(f"device_map: a {type(model).__name__} has no layers to spread")
    split_fused(model)
    device: Place = (main.index or 0) if main.type == "cuda" else main.type
    room: dict[Place, int] = get_max_memory(None if max_memory is None else dict(max_memory))
    if max_memory is None:
        room = {place: int(size * (1 - KEPT_FREE)) for place, size in room.items()}
    if device not in room:
        raise ValueError(f"device_map: max_memory says nothing of {device}, the main device; it names {list(room)}")
    sizes = [_bytes(layer) for layer in layers]
    places = plan_places(sizes, _bytes(model) - sum(sizes), room, device)
    if "disk" in places and offload_folder is None:
        raise ValueError(
            f"device_map: {places.count('disk')} of {len(places)} layers fit nowhere; give more max_memory, or an "
            "offload_folder on the disk"
        )
    names = {id(module): name for name, module in model.named_modules()}
    where = {names[id(layer)]: place for layer, place in zip(layers, places, strict=True)}
    inside = {id(part) for layer in layers for part in layer.modules()}
    for name, module in model.named_modules():
        if id(module) not in inside and name and _own(module):
            where[name] = device
    where |= {name: device for name, _ in model.named_parameters(recurse=False)}
    logger.info("device_map: %s", {place: places.count(place) for place in dict.fromkeys(places)})
    folder = None if offload_folder is None else str(offload_folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # accelerate takes parameters outside of every submodule for mistakes
        dispatch_model(model, where, main_device=device, offload_dir=folder)
    return places


def check_spread(device_map: str | None, *, compiled: bool, quantized: bool, ar: bool) -> None:
    """Refuse what does not go with ``device_map``.

    Raises:
        ValueError: an unknown map, limits without one, compiled or quantized layers, or no AR model.
    """
    if device_map is None:
        raise ValueError("max_memory and offload_folder: only with device_map")
    if device_map != "auto":
        raise ValueError(f"device_map {device_map!r}: use auto")
    if compiled or quantized:
        raise ValueError(f"device_map: excludes {'compile' if compiled else 'quantize'}")
    if not ar:
        raise ValueError("device_map: spreads the AR model, and this pairing has none")


def is_spread(model: Any) -> bool:
    """Whether ``spread`` has put parts of a model elsewhere, so that it cannot be copied, cast or written."""
    return hasattr(model, "hf_device_map")


def _own(module: nn.Module) -> bool:
    return any(True for _ in (*module.parameters(recurse=False), *module.buffers(recurse=False)))


def _bytes(module: nn.Module) -> int:
    return sum(value.nbytes for value in (*module.parameters(), *module.buffers()))
