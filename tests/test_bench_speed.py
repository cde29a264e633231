"""Turns, their order and what is recorded; a sweep of speed alone."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from bench_scene import FIELDS, runner, write_scene

from hybrid.benchmarks import machine
from hybrid.benchmarks.points import Point, SpeedConfig, check_sweep
from hybrid.benchmarks.publish import publish
from hybrid.benchmarks.speed import measure

AR, OWN = Point((("method", "ar"),)), Point((("method", "masked"), ("steps", 2)))


class Diary:
    """A pipeline that notes its requests and takes a second longer each time."""

    device = torch.device("cpu")

    def __init__(self, notes: list[tuple[str, int]]) -> None:
        self.notes, self.seconds = notes, 0.0

    def __call__(self, prompts: list[int], *, method: str, seed: int, output_type: str, **_: Any) -> Any:
        self.notes.append((method, len(prompts)))
        self.seconds += len(self.notes)
        phases = SimpleNamespace(seconds={"prefix": 0.0, "fill": 1.0}, passes={"prefix": 0, "fill": 2})
        return SimpleNamespace(phases=phases)


def test_turns_alternate_after_warm_up_and_memory() -> None:
    notes: list[tuple[str, int]] = []
    pipe = Diary(notes)
    config = SpeedConfig(repeats=5, warmup=2)
    found = measure((pipe, AR), (pipe, OWN), [7, 8], 3, config, clock=lambda: pipe.seconds)
    warm = [("ar", 3)] * 3 + [("masked", 3)] * 3  # two to warm up and one for the memory
    assert notes == [*warm, *[("ar", 3), ("masked", 3)] * 5]
    assert [turn["seconds"] for turn in found["ar"]] == [7, 9, 11, 13, 15]
    assert [turn["seconds"] for turn in found["own"]] == [8, 10, 12, 14, 16]
    assert found["own"][0]["phases"] == {"fill": 1.0} and found["passes"] == {"fill": 2}
    assert found["batch"] == 3 and found["against"] == AR.key and found["peak_memory_bytes"] > 0
    assert found["threads"] == torch.get_num_threads() and len(found["load"]) == 2


def test_speed_alone_needs_no_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "MEMORY_BYTES", 2**20)
    monkeypatch.setattr(machine, "MATRIX", {"cpu": 64})
    pair, _ = write_scene(tmp_path)
    fields = {**FIELDS, "pair": str(pair), "data_set": None, "prompts": ["Bag", 0]}
    alone = check_sweep(fields, "alone.yaml")
    assert [what.split(":")[0] for what, _, _ in runner(alone, tmp_path / "out").jobs()] == [
        *["shown"] * 4, *["speed"] * 4, "done",
    ]  # fmt: skip
    report = publish(tmp_path / "out")
    assert [row["speedup"] for row in report["rows"]] == [1.0, 2.0, 0.25, 4.0]
    assert all(row["frechet"] is None and row["fidelity"] is None for row in report["rows"])
    assert report["header"]["pictures"] == 0 and not report["floors"]
    assert "Preliminary" not in (tmp_path / "out" / "report.md").read_text()
