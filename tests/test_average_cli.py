"""The mean of several runs' weights, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hybrid.adapters import load, unified
from hybrid.average_cli import main
from hybrid.checkpoint import read_weights, save_weights

SHAPE = {"dim": 16, "n_layer": 2, "n_head": 2, "multiple_of": 8, "vocab_size": 12, "block_size": 16, "num_classes": 3}


def network(path: Path, *, dtype: torch.dtype = torch.float32, **changes: Any) -> dict[str, torch.Tensor]:
    """Random weights in a file, as a run writes them; returns them."""
    model, fields = unified.create(SHAPE | changes)
    state = {key: value.to(dtype) for key, value in model.state_dict().items()}
    save_weights(path, state, metadata={"kind": "unified", "config": fields, "origin": {"tokenizer": "a"}})
    return state


def test_the_mean_is_that_of_every_weight(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = network(tmp_path / "one" / "model.safetensors"), network(tmp_path / "two.safetensors")
    out = tmp_path / "mean.safetensors"
    given = [str(tmp_path / "one"), str(tmp_path / "two.safetensors"), "-o", str(out)]
    assert main(given) == 0
    assert capsys.readouterr().out == f"{out}: mean of 2 runs, 0.5, 0.5\n"
    found, told = read_weights(out)
    assert all(torch.allclose(found[key], (one[key] + two[key]) / 2, atol=1e-7) for key in one)
    assert sorted(told["mean_of"].values()) == [0.5, 0.5]
    assert main([*given, "--parts", "2", "3"]) == 0
    found = read_weights(out)[0]
    assert all(torch.allclose(found[key], 0.4 * one[key] + 0.6 * two[key], atol=1e-7) for key in one)
    assert torch.equal(load("unified", out).output.weight, found["output.weight"]), "an adapter reads it as it is"


def test_half_precision_is_added_in_full(tmp_path: Path) -> None:
    names = [tmp_path / f"{index}.safetensors" for index in range(3)]
    states = [network(name, dtype=torch.float16) for name in names]
    assert main([*map(str, names), "-o", str(tmp_path / "mean.safetensors")]) == 0
    for key, value in read_weights(tmp_path / "mean.safetensors")[0].items():
        assert value.dtype == torch.float16
        exact = sum(state[key].float() for state in states) / 3
        assert torch.allclose(value.float(), exact, rtol=1e-3, atol=1e-7)


def test_what_cannot_be_averaged_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two, deep, wide = (str(tmp_path / f"{name}.safetensors") for name in ("one", "two", "deep", "wide"))
    state, other = network(Path(one)), network(Path(two))
    network(Path(deep), n_layer=3)
    network(Path(wide), num_classes=4)
    out = ["-o", str(tmp_path / "mean.safetensors")]
    told = read_weights(one)[1]
    save_weights(tmp_path / "codes.safetensors", other, metadata=told | {"origin": {"tokenizer": "b"}})
    save_weights(
        tmp_path / "theta.safetensors", other, metadata={**told, "config": told["config"] | {"rope_base": 7.0}}
    )
    broken = {key: value * torch.nan if value.is_floating_point() else value for key, value in state.items()}
    save_weights(tmp_path / "nan.safetensors", broken, metadata=told)
    for name, count in (("three", 3), ("four", 4)):
        save_weights(tmp_path / f"{name}.safetensors", {**state, "count": torch.tensor(count)}, metadata=told)
    mistakes = [
        ([one, *out], "give two runs or more"),
        ([one, two, *out, "--parts", "1"], "--parts: give 2 numbers above 0"),
        ([one, two, *out, "--parts", "1", "-1"], "--parts: give 2 numbers above 0"),
        ([one, two, *out, "--parts", "1", "nan"], "--parts: give 2 numbers above 0"),
        ([one, two, *out, "--parts", "1e308", "1e308"], "--parts: give 2 numbers above 0"),
        ([one, str(tmp_path / "nan.safetensors"), *out], "is not finite; one of the runs diverged"),
        ([one, two, *out, "--part"], "argument --parts: expected at least one argument"),
        ([one, two, "-o", str(tmp_path / "mean.pt")], "expected a name that ends in .safetensors"),
        ([one, two, "-o", two], "is a file to be read; name another one"),
        ([one, two, one, *out], "one.safetensors: is given twice; say with --parts how much of each"),
        ([one, deep, *out], f"{deep}: is another network than {one}; only one of them has layers.2."),
        ([one, wide, *out], f"{wide}: is another network than {one}; cls_embedding.embedding_table.weight is"),
        ([one, str(tmp_path / "codes.safetensors"), *out], "was trained on another tokenizer's codes than"),
        ([one, str(tmp_path / "theta.safetensors"), *out], "its config differs"),
        (
            [str(tmp_path / "three.safetensors"), str(tmp_path / "four.safetensors"), *out],
            "count is no weight and differs",
        ),
        ([one, str(tmp_path / "none"), *out], "none"),
    ]
    for arguments, message in mistakes:
        assert main(arguments) == 2, message
        error = capsys.readouterr().err
        assert error.startswith("hybrid-average: ") and message in error and error.count("\n") == 1, error
    assert not (tmp_path / "mean.safetensors").exists()
