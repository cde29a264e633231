"""Weights that leave a run: which ones, in half precision, in shards that stay below their size."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import yaml

from hybrid.adapters import load
from hybrid.checkpoint import read_weights, save_weights
from hybrid.export import export_weights, run_weights
from hybrid.run_folder import finished
from hybrid.tasks_build import build_model
from hybrid.train_cli import main

METADATA = {"kind": "maskgil", "config": tiny.MODELS["masked"]["config"]}


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A tiny masked model's file, about 16 kB in float32."""
    torch.manual_seed(0)
    state = build_model("masked", "maskgil", tiny.MODELS["masked"]["config"])[0].state_dict()
    state["output.weight"] = torch.randn(state["output.weight"].shape)
    save_weights(tmp_path / "model.safetensors", state, metadata=METADATA | {"updates": 9})
    return tmp_path / "model.safetensors"


def test_shards_stay_below_their_size_and_load_as_one(weights: Path, tmp_path: Path) -> None:
    shards = export_weights(weights, tmp_path / "out", shard_mb=0.006)
    assert len(shards) > 1 and all(shard.stat().st_size < 6000 for shard in shards)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *(f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)),
        "model.safetensors.index.json",
    ]
    state, metadata = read_weights(tmp_path / "out")
    assert metadata == METADATA | {"format": "pt"}
    whole = read_weights(weights)[0]
    assert state.keys() == whole.keys()
    assert all(value.dtype == torch.float16 and torch.equal(value, whole[key].half()) for key, value in state.items())
    model = load("maskgil", tmp_path / "out")
    assert torch.equal(model.output.weight, whole["output.weight"].half().float())


def test_another_size_replaces_the_shards_before(weights: Path, tmp_path: Path) -> None:
    many = export_weights(weights, tmp_path / "out", shard_mb=0.006)
    one = export_weights(weights, tmp_path / "out", shard_mb=1)
    assert len(many) > len(one) == 1
    assert list((tmp_path / "out").glob("model-*")) == one
    assert read_weights(tmp_path / "out")[0].keys() == read_weights(weights)[0].keys()


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    save_weights(tmp_path / "a.safetensors", {"big.weight": torch.zeros(3_000_000), "small": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"a\.safetensors: big\.weight alone fills more than .* 5 MB; use 7 or more"):
        export_weights(tmp_path / "a.safetensors", tmp_path / "out", shard_mb=5)
    assert export_weights(tmp_path / "a.safetensors", tmp_path / "out", shard_mb=7)[0].stat().st_size < 7e6
    save_weights(tmp_path / "b.safetensors", {"w": torch.tensor([1e6]), "ids": torch.tensor([1])})
    with pytest.raises(ValueError, match=r"b\.safetensors: w has values that float16 cannot hold"):
        export_weights(tmp_path / "b.safetensors", tmp_path / "other", shard_mb=1)
    assert not (tmp_path / "other").exists()


def test_a_runs_weights(tmp_path: Path) -> None:
    def touch(name: str, time: int, step: int | None = None) -> Path:
        path = tmp_path / "run" / name
        save_weights(path, {"w": torch.ones(1)}, metadata={} if step is None else {"step": step})
        os.utime(path, (time, time))
        os.utime(path.parent, (time, time))
        return path

    with pytest.raises(ValueError, match=r"run: no model\.safetensors, best\.safetensors or step-N checkpoint"):
        run_weights(tmp_path / "run")
    plain = touch("step-0000002/model.safetensors", 10)
    assert run_weights(tmp_path / "run") == plain
    average = touch("step-0000002/ema.safetensors", 10)
    assert run_weights(tmp_path / "run") == average == run_weights(average.parent)
    best = touch("best.safetensors", 5)
    assert run_weights(tmp_path / "run") == best
    final = touch("model.safetensors", 20)
    assert run_weights(tmp_path / "run") == final, "written before the step was noted: told by the time"
    touch("model.safetensors", 5, step=2)
    assert run_weights(tmp_path / "run") == final, "a copy that kept no times"
    assert finished(tmp_path / "run", 2) == 2
    touch("step-0000009/ema.safetensors", 1)
    assert run_weights(tmp_path / "run") == best, "the run went on after its end"
    assert run_weights(average) == average
    final.write_bytes(b"cut")
    with pytest.raises(ValueError, match=r"model\.safetensors: not the weights of a run"):
        run_weights(tmp_path / "run")


@pytest.fixture
def command(tmp_path: Path) -> Callable[..., int]:
    """``hybrid-train`` of a tiny masked model for two steps."""
    folder = tiny.data_folder(tmp_path / "data")
    path, changes = tmp_path / "run.yaml", {"loop": {"steps": 2}}
    path.write_text(yaml.safe_dump(tiny.config("masked", **changes).model_dump(mode="json")))
    given = ["--data", str(folder), "--tokenizer", str(tiny.tokenizer_file(folder)), "--out", str(tmp_path / "out")]
    return lambda *arguments: main([str(path), *given, *arguments])


@pytest.mark.usefixtures("no_plots")
def test_the_command_exports(
    command: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert command("--shard-mb", "0.006") == 0
    assert "model.safetensors as float16, shards: " in capsys.readouterr().out
    folder = tmp_path / "out" / "export"
    first = read_weights(folder)[0]
    assert len(list(folder.glob("model-*"))) > 1 and read_weights(folder)[1]["kind"] == "maskgil"
    assert command("--shard-mb", "1") == 0, "a run that is done exports again"
    assert len(list(folder.glob("model-*"))) == 1

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("trained")

    (tmp_path / "out" / "model.safetensors").unlink()
    (tmp_path / "out" / "best.safetensors").unlink(missing_ok=True)
    monkeypatch.setattr("hybrid.training.train", never)
    capsys.readouterr()
    assert command("--export-only", "--shard-mb", "1") == 0
    assert "ema.safetensors as float16" in capsys.readouterr().out
    assert all(torch.equal(value, first[key]) for key, value in read_weights(folder)[0].items())
