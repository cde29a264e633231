"""Looking into weight files, and writing them anew as safetensors with their configuration and a card.

A component folder (``model.safetensors``, ``config.json``) is what ``HybridPipeline.save_pretrained`` writes for each
part of a pairing, and what ``hybrid.adapters.load`` reads back. This file knows files; the adapters know the models.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hybrid.checkpoint import find_wrapper, read_weights, save_weights, source_name
from hybrid.whole_files import holds_others

TEXT = ("t5", "minilm")
"""Kinds that read prompts: their tokenizer's files belong to them, and a component folder has none."""


@dataclass(frozen=True)
class Inspection:
    """What a weight file holds.

    Attributes:
        source: what messages call it.
        kind: of ``hybrid.adapters.load``.
        sizes: names of the published sizes that it may be; several differ in the grid alone.
        config: the configuration in full.
        wrapper: key prefix that was opened, such as ``model.``; empty without one.
        beside: names of what stands beside the weights in the file (optimizer, step, …).
        parameters: number of them that the model uses.
        dtypes: types in the file, with their numbers of tensors.
        codes: codebook size; None of a text encoder.
        grid: the token grid that the configuration fixes, or None where there is none or the file does not tell it.
        grids: the grids that it may have, where the file does not tell which; else empty.
    """

    source: str
    kind: str
    sizes: tuple[str, ...]
    config: dict[str, Any]
    wrapper: str
    beside: tuple[str, ...]
    parameters: int
    dtypes: dict[str, int]
    codes: int | None
    grid: str | None
    grids: tuple[str, ...]


def inspect(path: Path, *, kind: str | None = None, config: str | None = None) -> Inspection:
    """Tell what a file or folder is, with every shape checked against the model that it must be. Runs no pickle code.

    Args:
        path: a weight file or a folder of shards.
        kind: of ``hybrid.adapters.load``; None finds it.
        config: a named size, where the shapes do not tell everything.

    Raises:
        ValueError: of no known family, or keys and shapes that are not that family's (``hybrid.checkpoint.Mismatch``).
        FileNotFoundError: no such file.
    """
    from hybrid.adapters import load
    from hybrid.adapters.families import MARKERS, find_family, find_sizes

    state, metadata = read_weights(path)
    source = source_name(path)
    found = kind or find_family(state, source)
    marker = MARKERS.get(found)
    wrapper = "" if marker is None else find_wrapper(state, (marker,)) or ""
    module = load(found, path, config, device="meta")
    full = dict(getattr(module, "config", {}))
    codes = getattr(module, "codebook_size", None)
    if codes is None and hasattr(module, "codebook_kd"):
        codes = len(module.codebook_kd)
    grid = getattr(module, "grid", None)
    sizes = find_sizes(found, state)
    untold: tuple[str, ...] = ()
    if grid is not None and config is None and "config" not in metadata:
        grids = {str(load(found, state, name, device="meta").grid) for name in sizes}
        untold = tuple(sorted(grids)) if len(grids) > 1 else ()
    return Inspection(
        source=source,
        kind=found,
        sizes=sizes,
        config=full,
        wrapper=wrapper,
        beside=tuple(sorted(set(metadata) - {"format", "kind", "config"})),
        parameters=count_parameters(module),
        dtypes=dict(Counter(str(value.dtype).removeprefix("torch.") for value in state.values())),
        codes=codes,
        grid=None if grid is None or untold else str(grid),
        grids=untold,
    )


def convert(
    path: Path, folder: Path, *, kind: str | None = None, config: str | None = None, dtype: torch.dtype | None = None
) -> Inspection:
    """Write a file's weights as a component folder.

    Args:
        path: a weight file or a folder of shards.
        folder: where to; made if missing.
        kind: of ``hybrid.adapters.load``; None finds it.
        config: a named size, where the shapes do not tell everything.
        dtype: of the stored floating-point weights; None is float32.

    Raises:
        ValueError: see ``inspect``; or the folder is the file's own; or the file does not tell its grid, which a folder
            says; or it is a text encoder's, whose own folder is what loads; or the folder holds something else.
    """
    from hybrid.adapters import load

    told = inspect(path, kind=kind, config=config)
    if folder.resolve() in (path.resolve(), path.resolve().parent):
        raise ValueError(f"{folder}: holds the file to be read; name another folder")
    if told.grids:
        names = " or ".join(told.sizes)
        raise ValueError(f"{told.source}: does not tell its grid ({' or '.join(told.grids)}); say --config {names}")
    if told.kind in TEXT:
        raise ValueError(f"{told.source}: a text encoder loads from its Hugging Face folder; keep that as it is")
    if holds_others(folder, own=_is_component(folder)):
        raise ValueError(f"{folder}: exists and is no component's folder; name another one or move it away")
    module = load(told.kind, path, config)
    save_component(folder, told.kind, module, dtype=dtype)
    (folder / "README.md").write_text(card(folder.resolve().name, told), encoding="utf-8")
    return told


def _is_component(folder: Path) -> bool:
    """Whether ``convert`` wrote a folder."""
    try:
        return "kind" in json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False


def save_component(folder: Path, kind: str, module: Any, *, dtype: torch.dtype | None = None) -> dict[str, Any]:
    """Write one component as ``model.safetensors`` and ``config.json``, with its text tokenizer where it has one.

    Args:
        folder: where; made if missing.
        kind: of ``hybrid.adapters.load``.
        module: the component.
        dtype: type of the stored floating-point weights; None keeps each tensor's own.

    Returns:
        What ``config.json`` says, which is also an entry of a pairing whose folder holds this one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    spec = {"kind": kind, "config": getattr(module, "config", {}), "weights": "model.safetensors"}
    (folder / "config.json").write_text(json.dumps(spec, indent=1), encoding="utf-8")
    state = {key: _cast(value, dtype) for key, value in module.state_dict().items()}
    save_weights(folder / "model.safetensors", state, metadata={"kind": kind, "config": spec["config"]})
    if getattr(module, "text_tokenizer", None) is not None:
        module.text_tokenizer.save(str(folder / "tokenizer.json"))
    if getattr(module, "begin", None) is not None:  # the token that begins a prompt of Lumina-mGPT 2.0
        (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": module.begin}), encoding="utf-8")
    return spec


def card(name: str, told: Inspection) -> str:
    """A model card that says no more than the file does."""
    size = f", {' or '.join(told.sizes)}" if told.sizes else ""
    lines = [
        f"# {name}",
        "",
        f"Converted from `{told.source}`: {told.kind}{size}, {told.parameters / 1e6:.1f}M parameters.",
    ]
    lines += [
        "",
        f'Load it with `hybrid.adapters.load("{told.kind}", "{name}")`. Data, licence and figures: see the original.',
    ]
    return "\n".join([*lines, ""])


def count_parameters(module: Any) -> int:
    """Parameters of a module; a tokenizer's fixed codebook is none of them."""
    return sum(value.numel() for value in module.parameters()) if isinstance(module, nn.Module) else 0


def _cast(value: Tensor, dtype: torch.dtype | None) -> Tensor:
    return value.to(dtype) if dtype is not None and value.is_floating_point() else value
