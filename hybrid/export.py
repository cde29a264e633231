"""What leaves a training run: its averaged weights in half precision, in shards below a given size.

This file knows a run's folder and its weight files. It does not know models.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hybrid.checkpoint import read_weights, save_weights, source_name
from hybrid.run_folder import STEP, ended, latest_checkpoint

FOLDER = "export"
MEGABYTE = 10**6
HEADER_ENTRY_BYTES = 160
"""More than a safetensors header says of a tensor beside its name: type, shape and two offsets."""


def run_weights(run: Path) -> Path:
    """The weights that a run stands for.

    A file, or a folder of shards, is itself. Of a run's folder it is ``model.safetensors``, unless the run went on
    since; then ``best.safetensors``; then the newest checkpoint's averaged weights, or its plain ones where nothing is
    averaged. A ``step-N`` folder is read in the same way. Name the file to choose otherwise.

    Raises:
        ValueError: none of these.
    """
    if run.is_file() or any(run.glob("*.safetensors.index.json")):
        return run
    final, averaged = run / "model.safetensors", ("ema.safetensors", "model.safetensors")
    newest = latest_checkpoint(run)
    if STEP.fullmatch(run.name):
        candidates = [run / name for name in averaged]
    elif newest is None:
        candidates = [final, run / "best.safetensors"]
    else:
        candidates = [final] if ended(run) else [run / "best.safetensors", *(newest[1] / name for name in averaged)]
    for place in candidates:
        if place.is_file():
            return place
    raise ValueError(f"{run}: no model.safetensors, best.safetensors or step-N checkpoint; train the model first")


def export_weights(source: Path, out: Path, *, shard_mb: float, dtype: torch.dtype = torch.float16) -> list[Path]:
    """Write weights as ``model-0000i-of-0000n.safetensors`` below ``shard_mb`` megabytes (10⁶ bytes) and their index.

    ``hybrid.adapters.load(kind, out)`` reads the folder.

    Args:
        source: a file or folder of weights that ``hybrid-train`` wrote.
        out: the folder; shards of an earlier export are replaced.
        shard_mb: every file is smaller.
        dtype: type of the stored floating-point weights.

    Returns:
        The shards.

    Raises:
        ValueError: a tensor that is too large for one shard, or has no finite value in ``dtype``.
    """
    state, metadata = read_weights(source)
    kept = {key: value for key, value in metadata.items() if key in ("kind", "config")}
    cast = {key: _cast(key, value, dtype, source_name(source)) for key, value in state.items()}
    room = int(shard_mb * MEGABYTE) - _header_bytes(cast, kept)
    largest = max(cast, key=lambda key: cast[key].nbytes)
    if cast[largest].nbytes >= room:
        wanted = (cast[largest].nbytes + _header_bytes(cast, kept)) // MEGABYTE + 1
        raise ValueError(
            f"{source_name(source)}: {largest} alone fills more than a shard of {shard_mb:g} MB; use {wanted} or more"
        )
    save_weights(out, cast, metadata=kept, shard_bytes=room)
    return sorted(out.glob("model-*.safetensors"))


def _cast(key: str, value: Tensor, dtype: torch.dtype, source: str) -> Tensor:
    if not value.is_floating_point():
        return value
    cast = value.to(dtype)
    if not bool(cast.isfinite().all()):
        raise ValueError(f"{source}: {key} has values that {str(dtype).removeprefix('torch.')} cannot hold")
    return cast


def _header_bytes(state: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> int:
    """At least the size of a file's header, were all tensors in one."""
    names = sum(len(json.dumps(key)) + HEADER_ENTRY_BYTES for key in state)
    return names + len(json.dumps({key: json.dumps(value) for key, value in metadata.items()})) + 64
