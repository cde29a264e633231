"""Layers in several places: where they go, that the model computes the same, and what a spread model refuses."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from pairs import pair
from torch import nn

from hybrid import HybridPipeline
from hybrid.adapters import load
from hybrid.adapters.llama import devices_of
from hybrid.dispatch import is_spread, plan_places, spread
from hybrid.types import Grid

GOLDEN = Path(__file__).parent / "golden"
CPU = torch.device("cpu")
PROMPTS: dict[str, Any] = {"llamagen": [3, 5], "rar": [3, 5], "lumina": [torch.tensor([0, 8200, 8710])] * 2}
TWO_LAYERS = {"num_classes": 3, "n_layer": 2}
KINDS = {"llamagen_c2i": "llamagen", "rar_c2i": "rar", "lumina": "lumina"}


def test_the_main_device_is_filled_first_and_the_disk_takes_the_rest() -> None:
    assert plan_places([3, 3, 3], 1, {0: 10, "cpu": 99}, 0) == [0, 0, 0]
    # 10 - 1 for the rest - 3 for a layer that is brought leaves room for two.
    assert plan_places([3, 3, 3, 3, 3], 1, {0: 10, 1: 4, "cpu": 5}, 0) == [0, 0, 1, "cpu", "disk"]
    assert plan_places([3, 3], 1, {"cpu": 99, 1: 6, 0: 4}, 0) == ["cpu", "cpu"]
    # Order counts, not fit: a small layer does not jump back to an earlier place.
    assert plan_places([2, 9, 2], 0, {"cpu": 12}, "cpu") == ["cpu", "disk", "disk"]
    with pytest.raises(ValueError, match=r"^device_map: 0 has 3 bytes, but at least 4 must be there$"):
        plan_places([3, 3], 1, {0: 3, "cpu": 99}, 0)


def limit(model: Any, layers: int) -> dict[Any, Any]:
    """Memory for all but the layers, and for that many of them, one of which is brought when it is needed."""
    size = sum(value.nbytes for value in model.layers[0].parameters())
    other = sum(value.nbytes for value in (*model.parameters(), *model.buffers())) - len(model.layers) * size
    return {"cpu": other + layers * size}


@pytest.mark.parametrize(("name", "kind"), KINDS.items())
def test_a_spread_model_computes_exactly_what_it_did(name: str, kind: str, tmp_path: Path) -> None:
    one, other = (load(kind, GOLDEN / f"{name}.safetensors") for _ in range(2))
    for model in (one, other):
        model.layers.append(copy.deepcopy(model.layers[0]))
    places = spread(other, CPU, max_memory=limit(other, 2), offload_folder=tmp_path)
    assert places == ["cpu", "disk", "disk"] and is_spread(other) and not is_spread(one)
    assert next(other.layers[1].parameters()).is_meta and list(tmp_path.iterdir())
    assert devices_of(other.layers) == [CPU] * 3 and other.device == CPU
    grid = one.grid or Grid(4, 4)
    tokens = torch.randint(64, (2, grid.places), generator=torch.Generator().manual_seed(0))
    logits = []
    with torch.inference_mode():
        for model in (one, other):
            condition = model.condition(PROMPTS[kind], grid)
            first, state = model.prefill(condition, grid.places)
            fed = model.decode(tokens[:, :2], torch.zeros(2, dtype=torch.long), state)
            apart = model.decode(tokens[:, 2:4], torch.tensor([2, 1]), state)
            logits.append([first, fed, apart, model.score(tokens, condition)])
    for mine, its in zip(*logits, strict=True):
        assert torch.equal(mine, its)
    assert next(other.layers[1].parameters()).is_meta  # it went back


def test_a_pairing_is_loaded_spread(tmp_path: Path) -> None:
    pair(TWO_LAYERS).save_pretrained(tmp_path / "pair")
    whole = HybridPipeline.from_pretrained(tmp_path / "pair")
    parts = HybridPipeline.from_pretrained(
        tmp_path / "pair", device_map="auto", max_memory=limit(whole.ar, 1), offload_folder=tmp_path / "disk"
    )
    assert is_spread(parts.ar) and not is_spread(parts.masked)
    one, other = (pipe(1, seed=2, steps=4, output_type="tokens").tokens for pipe in (whole, parts))
    assert torch.equal(one, other)
    with pytest.raises(ValueError, match=r"^dtype: a model spread by device_map keeps the type that it was loaded in$"):
        parts(1, dtype="bf16")
    with pytest.raises(ValueError, match=r"^ar: spread by device_map; load it without one to write it$"):
        parts.save_pretrained(tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    small = pair(TWO_LAYERS)
    small.save_pretrained(tmp_path)
    for options, message in (
        ({"device_map": "balanced"}, r"device_map 'balanced': use auto"),
        ({"max_memory": {"cpu": "1GiB"}}, r"max_memory and offload_folder: only with device_map"),
        ({"device_map": "auto", "compile": True}, r"device_map: excludes compile"),
        ({"device_map": "auto", "quantize": "int8"}, r"device_map: excludes quantize"),
        ({"device_map": "auto", "max_memory": limit(small.ar, 1)}, r"device_map: 2 of 2 layers fit nowhere; give .*"),
        ({"device_map": "auto", "max_memory": {"cpu": 9}}, r"device_map: cpu has 9 bytes, but at least .* be there"),
        ({"device_map": "auto", "max_memory": {0: "1GiB"}}, r"device_map: max_memory says nothing of cpu, the main .*"),
    ):
        with pytest.raises(ValueError, match=rf"^{message}$"):
            HybridPipeline.from_pretrained(tmp_path, **options)
    with pytest.raises(ValueError, match=r"^device_map: a Linear has no layers to spread$"):
        spread(nn.Linear(2, 2), CPU)
    masked_only = {"ar": None}
    with pytest.raises(ValueError, match=r"^device_map: spreads the AR model, and this pairing has none$"):
        HybridPipeline.from_pretrained(tmp_path, overrides=masked_only, device_map="auto")
