"""``HybridPipeline`` saved, loaded and put together from files, on tiny models with random weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pairs import class_pair, refused, tokens

from hybrid import HybridPipeline
from hybrid.pairing import find_pair, read_pair
from hybrid.types import Grid


def test_saved_and_loaded_draws_the_same(pipe: HybridPipeline, pair_folder: Path) -> None:
    loaded = HybridPipeline.from_pretrained(pair_folder)
    assert tokens(loaded, "bag", 0) == tokens(pipe, "bag", 0)
    assert (loaded.name, loaded.classes, loaded.defaults) == ("tiny", pipe.classes, pipe.defaults)
    index = json.loads((pair_folder / "model_index.json").read_text())
    assert index["_class_name"] == "HybridPipeline"
    assert index["ar"]["weights"] == "ar/model.safetensors"
    assert "| masked | maskgil |" in (pair_folder / "README.md").read_text()


def test_saving_keeps_grid_lossy_card_and_type(tmp_path: Path) -> None:
    pipe = class_pair(grid=Grid(2, 4), lossy=True)
    pipe.card = "# ours\n"
    pipe.save_pretrained(tmp_path / "a" / "b", dtype=torch.bfloat16)
    loaded = HybridPipeline.from_pretrained(tmp_path / "a" / "b")
    assert (loaded.grid, loaded.lossy, loaded.card) == (Grid(2, 4), True, "# ours\n")
    assert loaded("bag", seed=0).images[0].size == (8, 4)


def test_text_pair_round_trip_keeps_the_encoders_settings(text: HybridPipeline, tmp_path: Path) -> None:
    text.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["text"] == {"kind": "minilm", "config": {}, "weights": None}
    index["text"]["config"] = {"tokens": 16}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    loaded = HybridPipeline.from_pretrained(tmp_path)
    assert loaded.text_source == {"config": {"tokens": 16}, "weights": None}
    assert tokens(loaded, "a red apple") == tokens(text, "a red apple")


def test_saving_what_no_adapter_loaded_is_refused_before_writing(tmp_path: Path) -> None:
    pipe = class_pair()
    del pipe.kinds["masked"]
    assert refused(lambda: pipe.save_pretrained(tmp_path / "new")).startswith("masked: not loaded by an adapter")
    assert not (tmp_path / "new").exists()


def test_yaml_pairing_with_weights_relative_to_it(pipe: HybridPipeline, pair_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "weights").symlink_to(pair_folder)
    spec = {
        "ar": {"kind": "llamagen", "weights": "weights/ar"},
        "tokenizer": {"kind": "fsq", "weights": "weights/tokenizer/model.safetensors"},
        "classes": ["sneaker", "boot", "bag"],
    }
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(spec))
    loaded = HybridPipeline.from_pretrained(path)
    assert (loaded.name, loaded.masked) == ("mine", None)
    assert tokens(loaded) == tokens(pipe, method="ar")
    assert HybridPipeline.from_pretrained(path, overrides={"classes": ["x", "y", "z"]}).classes == ["x", "y", "z"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("tokeniser: {kind: fsq}\n", "unknown key 'tokeniser'; did you mean 'tokenizer'?"),
        ("tokenizer: {kind: fsq, weight: a}\n", "unknown key 'tokenizer.weight'; did you mean 'weights'?"),
        ("tokenizer: {kind: fsqq, weights: w/a.pt}\n", "unknown kind 'fsqq'; did you mean 'fsq'?"),
        (
            "tokenizer: {kind: fsq, weights: gone.safetensors}\n",
            "gone.safetensors: neither beside the configuration nor in the current directory",
        ),
        ("- 1\n", "expected a mapping of settings, got list"),
    ],
)
def test_wrong_yaml_names_file_or_key_and_the_nearest_right_name(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "pair.yaml"
    path.write_text(content)
    assert message in refused_or_missing(lambda: HybridPipeline.from_pretrained(path))


def refused_or_missing(call: Callable[[], Any]) -> str:
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        call()
    return str(caught.value)


def test_truncated_and_wrong_weights_name_the_file(pair_folder: Path, tmp_path: Path) -> None:
    spec = {"tokenizer": {"kind": "fsq", "weights": str(pair_folder / "tokenizer")}}
    whole = (pair_folder / "ar" / "model.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    for weights, message in (
        (tmp_path / "cut.safetensors", "cut.safetensors: truncated or not a safetensors file"),
        (pair_folder / "masked", "has no tok_embeddings.weight"),
    ):
        path = tmp_path / "pair.yaml"
        path.write_text(yaml.safe_dump(spec | {"ar": {"kind": "llamagen", "weights": str(weights)}}))
        assert message in refused(lambda path=path: HybridPipeline.from_pretrained(path))


def test_truncated_index_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text('{"ar": ')
    assert refused(lambda: HybridPipeline.from_pretrained(tmp_path)).startswith(
        f"{tmp_path}/model_index.json: truncated or not JSON"
    )


def test_names_are_looked_up_here_then_among_the_shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "no such model, folder or file; shipped models: " in refused(lambda: find_pair("quite-another"))
    (tmp_path / "empty").mkdir()
    assert refused(lambda: find_pair("empty")) == "empty: no model_index.json in this folder"
    shipped = tmp_path / "shipped"
    for name in ("emoji", "fashion"):
        (shipped / name).mkdir(parents=True)
        (shipped / name / "model_index.json").write_text("{}")
    monkeypatch.setattr("hybrid.pairing.files", lambda package: shipped if package == "hybrid.pretrained" else tmp_path)
    assert find_pair("fashion") == shipped / "fashion" / "model_index.json"
    (tmp_path / "fashion").mkdir()  # a folder of pictures, say
    assert find_pair("fashion") == shipped / "fashion" / "model_index.json"
    assert "did you mean 'fashion'? shipped models: emoji, fashion" in refused(lambda: find_pair("fashon"))


def test_index_fields_may_be_overridden(pair_folder: Path) -> None:
    config = read_pair(pair_folder / "model_index.json", {"lossy": True})
    assert config.lossy
    assert "unknown key 'lossi'; did you mean 'lossy'?" in refused(
        lambda: read_pair(pair_folder / "model_index.json", {"lossi": True})
    )


def test_pairing_of_two_tokenizers_is_refused(pair_folder: Path, tmp_path: Path) -> None:
    class_pair(seed=1).save_pretrained(tmp_path / "other")
    spec = yaml.safe_load((pair_folder / "model_index.json").read_text())
    spec = {key: spec[key] for key in ("ar", "masked", "tokenizer")}
    for part in spec.values():
        part["weights"] = str(pair_folder / part["weights"])
    spec["ar_tokenizer"] = {"kind": "fsq", "weights": str(tmp_path / "other" / "tokenizer")}
    (tmp_path / "pair.yaml").write_text(yaml.safe_dump(spec))
    assert "the tokenizers have different decoders" in refused(
        lambda: HybridPipeline.from_pretrained(tmp_path / "pair.yaml")
    )
