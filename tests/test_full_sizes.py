"""Every published full size: what the adapter builds has exactly the keys and shapes of the original's state dict.

A new entry of the golden files is tested here without naming it, and one that no adapter's size is called after fails.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from hybrid.adapters import ADAPTERS, load
from hybrid.adapters.families import SIZES, find_family
from hybrid.memory import build

GOLDEN = Path(__file__).parent / "golden"
WHOLE: dict[str, dict[str, list[int]]] = json.loads((GOLDEN / "checkpoint_shapes.json").read_text())
LAYERS: dict[str, dict[str, Any]] = json.loads((GOLDEN / "layer_shapes.json").read_text())
BLOCK = r"^((?:blocks|layers)[a-z_.]*)\.\d+\."
"""A block's number in a key, which ``layer_shapes.json`` has a ``*`` for."""

UNUSED = "quantize.codebook_used"
"""Statistics of a codebook's training, which no model reads."""


def size_of(kind: str, name: str) -> str:
    """The named size that an entry is called after."""
    sizes = getattr(import_module(ADAPTERS[kind].split(":")[0]), SIZES.get(kind, "CONFIGS"))
    found = [size for size in sizes if name.endswith(size)]
    assert found, f"{name}: no size of {kind} has this name"
    return max(found, key=len)


@pytest.mark.parametrize("name", WHOLE)
def test_keys_and_shapes_by_name_and_as_the_weights_tell_them(name: str) -> None:
    state = {key: torch.empty(shape, device="meta") for key, shape in WHOLE[name].items()}
    kind = find_family(state, name)
    for config in (size_of(kind, name), None):
        found = {key: list(value.shape) for key, value in load(kind, state, config, device="meta").state_dict().items()}
        assert found == {key: shape for key, shape in WHOLE[name].items() if key != UNUSED}


@pytest.mark.parametrize("name", LAYERS)
def test_keys_and_shapes_of_the_families_whose_golden_file_counts_layers(name: str) -> None:
    kind = max((kind for kind in ADAPTERS if name.startswith(kind)), key=len)
    size = name.removeprefix(kind).removeprefix("-") or "f16-256"
    state = build(kind, size, torch.float32).state_dict()
    found: dict[str, Any] = {key: list(value.shape) for key, value in state.items()}
    if kind != "maskgit-vq":
        counts = Counter((re.sub(BLOCK, r"\1.*.", key), tuple(shape)) for key, shape in found.items())
        found = {key: [count, list(shape)] for (key, shape), count in counts.items()}
        assert len(found) == len(counts)
    assert found == LAYERS[name]
