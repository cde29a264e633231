"""The engine benchmark's arithmetic, and what it says where something is not there to be measured."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from pairs import class_pair

from hybrid.benchmarks import engine, engine_gpu
from hybrid.benchmarks.engine_lanes import Lane, Reach, best, drawn, measure, ratio
from hybrid.benchmarks.engine_original import original
from hybrid.benchmarks.engine_scene import pass_flops, token_bytes
from hybrid.benchmarks.engine_table import show, shown

CPU = torch.device("cpu")


def lane(name: str, times: list[float], log: list[str], **more: Any) -> Lane:
    left = list(times)

    def draw() -> tuple[float, float]:
        log.append(name)
        seconds = left.pop(0)
        return seconds, 2 * seconds

    return Lane(name, draw, 10, **more)


def test_lanes_take_turns_after_a_warm_up() -> None:
    log: list[str] = []
    lanes = [lane("a", [9, 1, 3, 2], log, bytes=40), lane("b", [9, 4, 4, 4], log)]
    found = measure(lanes, 3, memory=400.0)
    assert log == ["a", "b"] * 4
    assert found["a"]["tokens_seconds"] == {"p10": 1.2, "median": 2.0, "p90": pytest.approx(2.8)}
    assert found["a"]["whole_seconds"]["median"] == 4.0
    assert found["a"]["ms_per_token"] == 200.0
    assert found["a"]["bandwidth_share"] == 0.5  # 40 bytes a token, 5 tokens a second, of 400 bytes a second
    assert found["b"]["bandwidth_share"] is None
    assert found["a"]["turns"] == [[1.0, 2.0], [3.0, 6.0], [2.0, 4.0]]
    assert best(found, "a") == 2.0 and best(found, "") == 2.0 and best(found, "none") is None


def test_a_ratio_is_reached_missed_or_not_measured() -> None:
    assert ratio("x", 1.5, 3.0, 2.0, "why") == Reach("x", "≥ 1.5×", 1.5, True)
    assert ratio("x", 2, 3.0, 2.0, "why") == Reach("x", "≥ 2×", 1.5, False)
    assert ratio("x", 2, None, 2.0, "why") == Reach("x", "≥ 2×", None, None, "why")


def test_figures_are_shown_in_the_unit_of_their_reach() -> None:
    shapes = {"≥ 2×": "0.52×", "≥ 45 %": "52%", "≤ 0.4 s": "0.52 s"}
    for least, text in shapes.items():
        assert shown({"least": least, "value": 0.523, "note": ""}) == text
    assert shown({"least": "≥ 2×", "value": None, "note": "not measured (no GPU)"}) == "not measured (no GPU)"


def test_without_a_card_its_rows_say_so() -> None:
    lanes, rows = engine_gpu.rows(argparse.Namespace(), CPU, 1, {}, lambda text: None)
    assert lanes == {}
    assert [row.note for row in rows] == ["not measured (no GPU)"] * 5
    assert all(row.value is None and row.met is None for row in rows)


def test_rows_without_the_original_say_so() -> None:
    times = {"tokens_seconds": {"median": 1.0}, "whole_seconds": {"median": 0.3}}
    pair = {"pair ar": {"tokens_seconds": {"median": 1.0}}, "pair hybrid": times}
    rows = engine.reaches(
        {"ar fp32": times, "ar bf16": times, "ar int8": times, "hybrid": times}, pair, [7.0, 5.0, 9.0]
    )
    assert [row.note for row in rows[:5]] == ["not measured (no --original)"] * 5
    assert [(row.value, row.met) for row in rows[5:]] == [(0.3, True), (1.0, False), (7.0, False)]


def test_times_of_a_request_leave_the_decoder_out() -> None:
    pipe = class_pair()
    tokens, whole = drawn(pipe, 1, ar_fraction=0.5, steps=2)
    assert 0 < tokens < whole


def test_costs_by_hand() -> None:
    pipe = class_pair()
    width, hidden, codes, places, rows = 16, pipe.ar.layers[0].feed_forward.w1.out_features, 12, 16, 2
    weights = 4 * width * width + 3 * width * hidden
    norms = 3 * width
    cache = 2 * rows * width * places // 2
    assert token_bytes(pipe.ar, rows, places) == 4 * (weights + norms + width * codes + cache)
    masked = weights + width * (codes + 1)
    assert pass_flops(pipe.masked, rows, places) == rows * places * (2 * masked + 4 * places * width)


def test_the_original_is_given_our_weights_and_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "autoregressive" / "models"
    folder.mkdir(parents=True)
    with pytest.raises(ValueError, match=r"^--original .*: has no autoregressive/models/gpt.py; give a checkout of"):
        original(tmp_path, {}, {}, device=CPU, dtype=torch.float32, scale=1.0, top_k=1)
    (folder / "gpt.py").write_text(
        "import torch\n"
        "class ModelArgs:\n"
        "    def __init__(self, **fields): self.fields = fields\n"
        "class Transformer(torch.nn.Linear):\n"
        "    def __init__(self, args): super().__init__(2, 1); self.args = args\n"
    )
    (folder / "generate.py").write_text(
        "import torch\n"
        "def generate(model, label, places, **settings):\n"
        "    seen = (model.weight.dtype, model.weight.tolist(), model.args.fields['n_layer'], settings)\n"
        "    generate.seen = seen\n"
        "    return label.repeat(1, places).int()\n"
    )
    monkeypatch.setattr(sys, "path", list(sys.path))
    state = {"weight": torch.tensor([[1.0, 2.0]]), "bias": torch.zeros(1)}
    config = {"dim": 8, "n_layer": 3, "n_head": 2, "block_size": 4}
    loop = original(tmp_path, config, state, device=CPU, dtype=torch.bfloat16, scale=4.0, top_k=9)
    assert loop(7).tolist() == [[7, 7, 7, 7]] and loop(7).dtype == torch.long
    module = sys.modules["autoregressive.models.generate"]
    settings = {"cfg_scale": 4.0, "temperature": 1.0, "top_k": 9}
    assert module.generate.seen == (torch.bfloat16, [[1.0, 2.0]], 3, settings)
    for name in [name for name in sys.modules if name.split(".")[0] == "autoregressive"]:
        monkeypatch.delitem(sys.modules, name)


def test_mistakes_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert engine.main(["--turns", "0"]) == 2
    assert capsys.readouterr().err == "engine: --turns 0: must be at least 1\n"
    assert engine.main(["--original", "nowhere"]) == 2
    assert capsys.readouterr().err.startswith("engine: --original nowhere: has no autoregressive/models/gpt.py; give a")
    assert engine.main(["--device", "tpu"]) == 2
    assert capsys.readouterr().err.startswith("engine: device 'tpu': use auto, cpu")


def test_the_report_prints_what_was_measured(capsys: pytest.CaptureFixture[str]) -> None:
    spread = {"p10": 1.0, "median": 2.0, "p90": 3.0}
    show(
        {
            "grid": [5, 5],
            "quick": True,
            "header": {
                "device": "a machine",
                "cores": 2,
                "threads": 2,
                "load": 0.1,
                "commit": "abc",
                "time": "now",
                "versions": {"torch": "2"},
            },
            "load_after": 0.2,
            "limits": {"memory_bytes_per_second": 3e10, "flops_per_second": {"float32": 2e11}},
            "lanes": {
                "ar fp32": {
                    "tokens_seconds": spread,
                    "whole_seconds": spread,
                    "ms_per_token": 80.0,
                    "bandwidth_share": 0.5,
                }
            },
            "reach": [{"what": "speed", "least": "≥ 2×", "value": 2.5, "met": True, "note": ""}],
        }
    )
    printed = capsys.readouterr().out
    for text in ("5 × 5 tokens", "30.0 GB/s", "2.000 (1.000–3.000)", "50%", "2.50×", "reached", "commit abc"):
        assert text in printed
