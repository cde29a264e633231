"""The largest batch within an amount of memory, and what must lie elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from generating import Run
from PIL import Image

from hybrid import cli_memory
from hybrid.budget import Budget, fit
from hybrid.cli import main
from hybrid.memory import Memory, plan_pair


def plan(batch: int) -> Memory:
    """Weights of 10 GB, 6 of them the AR model's, and 2 GB for each picture."""
    weights = {"ar": 6 * 10**9, "masked": 4 * 10**9}
    return Memory(weights, 0, {"fill": batch * 2 * 10**9})


@pytest.mark.parametrize(
    ("limit", "most", "batch"), [(12e9, 16, 1), (13.9e9, 16, 1), (14e9, 16, 2), (30e9, 16, 10), (99e9, 16, 16)]
)
def test_the_largest_batch_that_fits(limit: float, most: int, batch: int) -> None:
    assert fit(plan, limit, most) == Budget(batch, plan(batch))


def test_where_one_picture_does_not_fit_a_part_of_the_ar_model_goes_elsewhere() -> None:
    # Beside the masked model's 4 GB and the 2 GB that drawing needs.
    assert fit(plan, 8e9, 4, offload=True) == Budget(1, plan(1), 2 * 10**9)
    words = r"max_memory {} GB: one picture needs 12.00 GB \(10.00 GB of weights\); allow as much, or use .*"
    with pytest.raises(ValueError, match=words.format(8)):
        fit(plan, 8e9, 4)
    with pytest.raises(ValueError, match=words.format(6)):
        fit(plan, 6e9, 4, offload=True)  # the masked model alone, and what drawing needs


def test_what_was_chosen_in_words() -> None:
    assert str(Budget(1, plan(1))) == "1 picture at once needs 12.00 GB"
    assert str(Budget(3, plan(3))) == "3 pictures at once need 16.00 GB"
    told = "1 picture at once; at most 2.00 GB of the AR model's weights on the device, the rest of them elsewhere"
    assert str(Budget(1, plan(1), 2 * 10**9)) == told


def test_the_command_draws_in_turns_and_the_pictures_are_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from hybrid.memory import plan_pair
    from hybrid.pairing import find_pair, read_pair
    from hybrid.request import DTYPES

    pair = read_pair(find_pair("emoji"))
    two, three = (plan_pair(pair, DTYPES["fp32"], batch=batch, ar_fraction=0.0).peak for batch in (2, 3))
    asked = ["a red apple", "-n", "3", "--seed", "5", "--device", "cpu", "--steps", "2", "--ar-fraction", "0"]
    asked += ["--guidance-kind", "constant"]
    assert main([*asked, "-o", str(tmp_path / "whole")]) == 0
    assert main([*asked, "-o", str(tmp_path / "turns"), "--max-memory", f"{(two + three) / 2e9:.6f}"]) == 0
    assert "2 pictures at once need" in capsys.readouterr().err
    names = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert len(names) == 3
    for name in names:
        one, other = (np.asarray(Image.open(tmp_path / folder / name), int) for folder in ("whole", "turns"))
        assert abs(one - other).max() <= 2  # some CPUs round another batch's convolutions otherwise
    assert main([*asked, "-o", str(tmp_path / "none"), "--max-memory", "0.01"]) == 2
    assert capsys.readouterr().err.startswith("hybrid-generate: max_memory 0.01 GB: one picture needs ")


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the command asks ``plan_pair``, with the defaults of the pairing that it hands over."""
    told: list[dict[str, Any]] = []

    def plan(pair: Any, dtype: torch.dtype, **asked: Any) -> Memory:
        told.append({"dtype": dtype, "defaults": pair.defaults, **asked})
        return plan_pair(pair, dtype, **asked)

    monkeypatch.setattr(cli_memory, "plan_pair", plan)
    return told


@pytest.mark.parametrize("option", ["--plan-memory", "--max-memory 4"])
@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("", {"height": None, "width": None, "ar_fraction": 0.25, "ar_tokens": None, "guided": None, "batch": 1}),
        ("--ar-fraction 0.5", {"ar_fraction": 0.5}),
        ("--ar-tokens 3", {"ar_tokens": 3}),
        ("--method zipar", {"ar_fraction": 1.0}),
        ("--method masked", {"ar_fraction": 0.0}),
        ("--guidance 2", {"guided": True}),
        ("--guidance 1", {"guided": False}),
        ("--height 16 --width 8", {"height": 16, "width": 8}),
        ("--dtype bf16", {"dtype": torch.bfloat16}),
        ("--image in.png --mask mask.png", {"ar_fraction": 0.0}),
    ],
)
def test_what_a_request_says_is_planned(
    run: Run, planned: list[dict[str, Any]], option: str, line: str, wanted: dict[str, Any]
) -> None:
    Image.new("RGB", (8, 8)).save("in.png")
    Image.new("L", (8, 8), 255).save("mask.png")
    assert run("bag", *option.split(), *line.split(), "--device", "cpu")[0] == 0
    assert {name: planned[0][name] for name in wanted} == wanted


@pytest.mark.parametrize("option", ["--plan-memory", "--max-memory 4"])
def test_what_a_picture_or_a_report_says_is_planned(run: Run, planned: list[dict[str, Any]], option: str) -> None:
    assert run("bag", "--ar-tokens", 8, "--guidance", 2, "--height", 16, "--width", 8, "-o", "one.png")[0] == 0
    assert run("--from", "one.png", *option.split())[0] == 0
    told = planned.pop()
    assert (told["ar_fraction"], told["height"], told["width"]) == (0.25, 16, 8)
    assert told["defaults"].ar.guidance_scale == 2 and told["guided"] is None
    settings = {"method": "ar", "guidance_scale": 3.0}
    row = {"region": "all", "label": "one", "settings": settings, "dtype": "bf16", "compile": False, "batch": 1}
    row |= {"fidelity": 1.0, "speed": [{"batch": 1, "median": 0.2, "speedup": 1.0}]}
    Path("report.json").write_text(json.dumps({"kind": "hybrid-bench report", "header": {}, "rows": [row]}))
    assert run("bag", "--auto", "report.json", *option.split())[0] == 0
    told = planned.pop()
    assert (told["ar_fraction"], told["defaults"].masked.guidance_scale) == (1.0, 3.0)
    assert told["dtype"] == torch.bfloat16


def test_as_many_pictures_are_planned_as_are_drawn_at_once(run: Run, planned: list[dict[str, Any]]) -> None:
    for line, batch in (("-n 3", 3), ("bag sneaker -n 2", 4), ("-n 9 --batch 5", 5)):
        code, out, err = run("--plan-memory", *line.split())
        assert (code, err) == (0, "")
        assert out.splitlines()[0].endswith(f", bf16, pictures at once: {batch}")
        assert planned.pop()["batch"] == batch
