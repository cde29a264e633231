"""The shipped 256² pairings of public weights: their files, sizes and settings, and that they draw.

Small golden weights stand in for the real ones, in the originals' file formats and under their names.
"""

from __future__ import annotations

import json
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from hybrid.adapters import load
from hybrid.config import ComponentConfig, PairConfig
from hybrid.pairing import find_pair, read_pair
from hybrid.pipeline import HybridPipeline
from hybrid.schedules import counts
from hybrid.types import FROM_AR
from hybrid.weights import PUBLISHED

GOLDEN = Path(__file__).parent / "golden"
CONFIGS = Path(str(files("hybrid.configs")))
LAYERS: dict[str, dict[str, Any]] = json.loads((GOLDEN / "layer_shapes.json").read_text())
SHAPES: dict[str, dict[str, Any]] = json.loads((GOLDEN / "checkpoint_shapes.json").read_text())
PAIRS = ("llamagen-randar-256", "llamagen-arpg-256", "rar-randar-256")
SMALL = {
    "llamagen": "llamagen_c2i",
    "randar": "randar_c2i",
    "arpg": "arpg_c2i",
    "rar": "rar_c2i",
    "llamagen-vq": "llamagen_vq",
    "maskgit-vq": "maskgit_vq",
}
every_pair = pytest.mark.parametrize("name", PAIRS)


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of weights."""
    monkeypatch.setenv("HYBRID_WEIGHTS", str(tmp_path))
    return tmp_path


def pair(name: str) -> PairConfig:
    return read_pair(find_pair(name))


def parts(config: PairConfig) -> dict[str, ComponentConfig]:
    named = {"ar": config.ar, "masked": config.masked, "tokenizer": config.tokenizer}
    return {component: part for component, part in named.items() if part is not None}


def full_size(part: ComponentConfig) -> dict[str, torch.Tensor]:
    """An original's state dict at the size that a component names, without values."""
    if part.kind == "maskgit-vq":
        shapes = LAYERS["maskgit-vq"]
    elif part.kind in ("llamagen", "llamagen-vq"):
        shapes = SHAPES[f"llamagen-{part.config}"]
    else:
        starred = LAYERS[f"{part.kind}-{part.config}"]
        shapes = {key.replace("*", str(i)): shape for key, (count, shape) in starred.items() for i in range(count)}
    return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}


@every_pair
def test_files_are_published_and_fit_the_sizes_named(name: str) -> None:
    text = (CONFIGS / f"{name}.yaml").read_text()
    lines = re.findall(r"^(?:#   )?((?:ar|masked|tokenizer): \{.*\})$", text, flags=re.MULTILINE)
    assert len(lines) >= 5
    for line in lines:
        ((_, fields),) = yaml.safe_load(line).items()
        part = ComponentConfig(**fields)
        assert part.weights in PUBLISHED
        assert re.search(rf"https://huggingface\.co/{PUBLISHED[str(part.weights)]}$", text, flags=re.MULTILINE)
        net = load(part.kind, full_size(part), part.config, device="meta")
        assert getattr(net, "codebook_size", None) in (None, 1024 if name.startswith("rar") else 16384)


@every_pair
def test_the_classes_are_those_of_imagenet(name: str) -> None:
    config = pair(name)
    assert config.classes is not None and len(config.classes) == 1000
    assert config.classes == pair("llamagen-halton-384").classes
    assert config.classes[207] == "golden retriever"


def test_classes_of_an_unknown_pairing_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("tokenizer: {kind: fsq}\nclasses: imagnet\n")
    with pytest.raises(ValueError, match=r"mine\.yaml: classes: expected [^\n]*, got 'imagnet'$"):
        read_pair(path)


@every_pair
def test_the_passes_are_the_originals_curve_entered_at_a_quarter(name: str) -> None:
    """RandAR: 1 - cos(pi t / 2) of 88 passes; ARPG: 1 - 2 arccos(t) / pi of 64; what is left of either."""
    defaults, whole = pair(name).defaults, 64 if "arpg" in name else 88
    plan = counts(defaults.schedule, defaults.steps, 256, 64, defaults.resume)
    t = torch.arange(1, whole + 1, dtype=torch.float64) / whole
    curve = 1 - 2 / torch.pi * t.arccos() if "arpg" in name else 1 - (torch.pi / 2 * t).cos()
    known = 256 * curve[curve > 0.25]
    assert abs(len(known) - len(plan)) <= 1
    ours = 64 + torch.tensor(plan).cumsum(0)[-len(known) :]
    assert (ours - known).abs().max() < 4


@every_pair
def test_draws_with_small_weights_in_the_originals_files(name: str, models: Path) -> None:
    overrides: dict[str, Any] = {"grid": None}
    for component, part in parts(pair(name)).items():
        tensors = load_file(GOLDEN / f"{SMALL[part.kind]}.safetensors")
        state = {key.removeprefix("model."): t for key, t in tensors.items() if key.startswith("model.")}
        path = models / str(part.weights)
        if path.suffix == ".safetensors":
            save_file(state, path)
        elif path.suffix == ".bin":
            torch.save(state, path)
        else:
            torch.save({"model": state, "steps": 1, "optimizer": {"step": torch.ones(1)}}, path)
        config = load(part.kind, GOLDEN / f"{SMALL[part.kind]}.safetensors").config
        overrides[component] = part.model_dump() | {"config": config}
    pipeline = HybridPipeline.from_pretrained(name, overrides=overrides)
    drawn = pipeline(["goldfish", 3], seed=1, steps=12, output_type="pt")
    assert drawn.tokens.shape == (2, 36) and drawn.lossy is None
    assert ((drawn.origin == FROM_AR).sum(1) == 9).all() and drawn.origin.max() == 12
    assert drawn.phases.passes["prefix"] == 9 and drawn.phases.passes["fill"] == 12
    assert drawn.images.isfinite().all()


@every_pair
@pytest.mark.usefixtures("models")
def test_missing_files_are_told_where_they_are_published(name: str) -> None:
    part = pair(name).ar
    assert part is not None and part.weights is not None
    where = f"https://huggingface.co/{PUBLISHED[part.weights]}"
    with pytest.raises(ValueError, match=rf"^{re.escape(part.weights)}: neither [^\n]*{where}: [^\n]*$"):
        HybridPipeline.from_pretrained(name)
