"""Foreign systems as the core's protocols, one file each. ``ADAPTERS`` names them all.

Importing this package loads none of them. Other packages add kinds through the entry point group
``hybrid.adapters``, whose values are ``"module:function"`` like the ones below.
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import torch

ADAPTERS = {
    "llamagen": "hybrid.adapters.llamagen:load",
    "maskgil": "hybrid.adapters.maskgil:load",
    "llamagen-vq": "hybrid.adapters.vq:load_llamagen_vq",
    "chameleon-vq": "hybrid.adapters.vq:load_chameleon_vq",
    "movqgan": "hybrid.adapters.vq:load_movqgan",
    "fsq": "hybrid.adapters.fsq:load",
    "minilm": "hybrid.adapters.text:load_minilm",
}


def load(
    kind: str,
    weights: str | Path | Mapping[str, Any] | None,
    config: str | Mapping[str, Any] | None = None,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
) -> Any:
    """Load a model, image tokenizer or text encoder in eval mode.

    Args:
        kind: a key of ``ADAPTERS`` or of an installed entry point.
        weights: a file, a folder, or a state-dict mapping.
        config: a known size's name or a mapping with the original's own field names; may be left out where the
            weights tell everything.
        device: where the parameters go.
        dtype: their type; None keeps float32.

    Raises:
        ValueError: unknown kind, or weights that do not fit the configuration (the message names key and shapes).
    """
    target = ADAPTERS.get(kind)
    if target is None:
        target = {point.name: point.value for point in entry_points(group="hybrid.adapters")}.get(kind)
    if target is None:
        near = get_close_matches(kind, ADAPTERS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"unknown kind {kind!r}{hint} Known: {', '.join(sorted(ADAPTERS))}")
    module, function = target.split(":")
    return getattr(import_module(module), function)(weights, config, device=torch.device(device), dtype=dtype)
