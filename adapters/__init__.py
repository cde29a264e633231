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
    "unified": "hybrid.adapters.unified:load",
    "halton": "hybrid.adapters.halton:load",
    "randar": "hybrid.adapters.randar:load",
    "arpg": "hybrid.adapters.arpg:load",
    "rar": "hybrid.adapters.rar:load",
    "lumina": "hybrid.adapters.lumina:load",
    "llamagen-vq": "hybrid.adapters.vq:load_llamagen_vq",
    "chameleon-vq": "hybrid.adapters.vq:load_chameleon_vq",
    "movqgan": "hybrid.adapters.vq:load_movqgan",
    "maskgit-vq": "hybrid.adapters.maskgit_vq:load",
    "fsq": "hybrid.adapters.fsq:load",
    "minilm": "hybrid.adapters.text:load_minilm",
    "t5": "hybrid.adapters.t5:load",
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
    if kind in ADAPTERS:
        module, name = ADAPTERS[kind].split(":")
        function = getattr(import_module(module), name)
    else:
        points = {point.name: point for point in entry_points(group="hybrid.adapters")}
        if kind not in points:
            known = sorted({*ADAPTERS, *points})
            near = get_close_matches(kind, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else "."
            raise ValueError(f"unknown kind {kind!r}{hint} Known: {', '.join(known)}")
        function = points[kind].load()
    return function(weights, config, device=torch.device(device), dtype=dtype)
