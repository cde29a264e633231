"""The memory plan of Lumina's whole grid with a MaskGIL completer, against the tensors that a real request keeps alive.

Width and depth are tiny; the grid of 48×48, the 8192 codes and both guidance streams are those of the shipped pairing.
"""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
from originals import write_pair

from hybrid.memory import Alive, work_out
from hybrid.pipeline import HybridPipeline
from hybrid.types import FROM_AR, Grid

GRID = Grid(48, 48)
KEPT = 100
"""Bytes for each place that a request keeps beside what its phases need: tokens, order, who wrote it, draws."""

ROWS = 2
"""Rows by the AR model: enough for its prefix and cache, whose bytes ``test_memory`` has in closed form."""


def test_a_request_keeps_alive_what_the_plan_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYBRID_WEIGHTS", str(tmp_path))
    overrides = write_pair("lumina-maskgil-768", tmp_path) | {"grid": (48, 48)}
    pipe = HybridPipeline.from_pretrained("lumina-maskgil-768", overrides=overrides)
    count = ROWS * GRID.width
    shapes = {name: copy.deepcopy(getattr(pipe, name)).to("meta") for name in ("ar", "masked")}
    told = work_out(shapes, GRID, ar_tokens=count)
    with Alive() as alive:
        drawn = pipe("a red apple", ar_tokens=count, steps=1, seed=1, output_type="tokens")
    assert int((drawn.origin == FROM_AR).sum()) == count
    beside_weights = told.peak - sum(told.weights.values())
    assert beside_weights * 0.99 < alive.peak <= beside_weights + KEPT * GRID.places
    assert beside_weights > 2 * (GRID.places - count) * 8192 * 4  # both streams' logits in float32
