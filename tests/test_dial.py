"""The dial's figure: what is joined, what is read off it, and the files that it comes with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from bench_scene import runner, tiny_sweep, write_scene

from hybrid.benchmarks import machine
from hybrid.benchmarks.dial import DIAL, dial, main, sorted_rows
from hybrid.benchmarks.points import read_sweep
from hybrid.tasks_build import find_config

pytest.importorskip("matplotlib")


def row(method: str, seconds: float | None, frechet: float, **settings: Any) -> dict[str, Any]:
    figures = {"frechet": frechet, "frechet_over_ar": frechet, "accuracy": 0.4}
    spread = {f"{name}_interval": [0.8 * value, 1.2 * value] for name, value in figures.items()}
    times = {"median": seconds, "p10": seconds and 0.9 * seconds, "p90": seconds and 1.1 * seconds, "batch": 1}
    return {"method": method, "region": "all", "settings": settings, **figures, **spread, **times}


ROWS = [
    row("ar", 0.8, 1.0),
    row("masked", 0.4, 1.5, steps=16),
    row("masked", 0.1, 3.0, steps=4),
    row("hybrid", 0.5, 1.25, ar_fraction=0.5),
    {**row("hybrid", 0.5, 9.0, ar_fraction=0.5), "region": "ar"},
    row("hybrid", None, 2.0, ar_fraction=0.75),
    row("jacobi", 0.45, 1.0),
]


def report(score: str | None = "accuracy") -> dict[str, Any]:
    return {"rows": ROWS, "header": {"score": score, "real_score": 0.8}}


def test_points_of_a_method_are_joined_along_their_setting() -> None:
    assert [one["settings"]["steps"] for one in sorted_rows(ROWS[:3], DIAL[0])] == [4, 16]
    upper, lower = dial(report()).axes
    drawn = {one.get_label(): one for one in upper.containers}
    plain = [one for one in DIAL if not one.compiled and one.reuse == 1]
    assert list(drawn) == [one.name for one in plain if one.method in ("masked", "hybrid", "jacobi", "ar")]
    masked = drawn[DIAL[0].name].lines[0]
    assert masked.get_xydata().tolist() == [[0.1, 3.0], [0.4, 1.5]]
    # Only rows of the whole picture that have both figures; a second panel has the score over real pictures'.
    assert drawn[DIAL[1].name].lines[0].get_xydata().tolist() == [[0.5, 1.25]]
    assert all(y == 0.5 for one in lower.containers for _, y in one.lines[0].get_xydata())
    assert {text.get_text() for text in upper.texts} == {"4", "16", "0.5", ""}
    assert lower.get_xscale() == "log" and "seconds of one request of 1 picture" in lower.get_xlabel()


def test_methods_differ_without_colour() -> None:
    looks = [(one.marker, one.filled) for one in DIAL]
    assert len(set(looks)) == len(DIAL)
    upper = dial(report()).axes[0]
    assert {one.lines[0].get_color() for one in upper.containers} == {"black"}


def test_without_a_score_there_is_one_panel_and_without_points_none() -> None:
    assert len(dial(report(None)).axes) == 1
    with pytest.raises(ValueError, match="no point has both times and fidelity; run both stages of the sweep"):
        dial({"rows": ROWS[5:6], "header": {"score": None, "real_score": None}})


def test_the_shipped_sweep_has_every_method_of_the_dial() -> None:
    sweep = read_sweep(find_config("bench-dial"))
    assert {point.method for point in sweep.points} == {one.method for one in DIAL}
    for one in DIAL:
        points = [point for point in sweep.points if point.method == one.method and point.compile == one.compiled]
        own = [dict(point.settings) for point in points if dict(point.settings).get("reuse", 1) == one.reuse]
        assert all(one.label.format(**settings) for settings in own) or not one.label
        assert len(own) <= 1 or one.along is not None
        assert all(settings["draft"] == "jacobi" for settings in own if one.method == "relaxed")  # as its name says


def test_the_command_writes_report_and_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(machine, "MEMORY_BYTES", 2**20)
    monkeypatch.setattr(machine, "MATRIX", {"cpu": 64})
    points = [{"method": "hybrid", "ar_fraction": 0.5, "steps": 2}, {"method": "masked", "steps": 4}]
    sweep = tiny_sweep(*write_scene(tmp_path), points=points, speed={"batch_sizes": [1], "repeats": 5})
    list(runner(sweep, tmp_path / "run").jobs())
    out = tmp_path / "out"
    assert main([str(tmp_path / "run"), "--out", str(out)]) == 0
    assert (out / "dial.png").read_bytes().startswith(b"\x89PNG") and (out / "dial.png").stat().st_size < 150_000
    assert json.loads((out / "report.json").read_text())["header"]["pair"] == str(tmp_path / "tiny")
    assert (out / "report.md").read_text().startswith("![Time against fidelity](dial.png)\n\n# Speed against fidelity")
    capsys.readouterr()
    assert main([str(tmp_path), "--out", str(out)]) == 2
    assert "dial: " in capsys.readouterr().err
