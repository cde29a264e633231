"""The measure of accepted drafts, on fakes whose acceptance is known and on a tiny pair."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fakes import FakeTokenizer, always_ar, always_masked
from pairs import class_pair

from hybrid import HybridPipeline
from hybrid.benchmarks import acceptance
from hybrid.benchmarks.acceptance import WAYS, main, measure


def test_drafts_that_always_fit_are_all_accepted_and_those_that_never_do_are_not() -> None:
    right = measure(HybridPipeline(FakeTokenizer(), ar=always_ar(3), masked=always_masked(3)), [0, 1])
    wrong = measure(HybridPipeline(FakeTokenizer(), ar=always_ar(3), masked=always_masked(4)), [0, 1])
    for name in ("exact", "relaxed 0.3", "relaxed 0.6"):
        assert right[name]["accepted"] == 1 and right[name]["accepted_by_row"] == [1.0] * 4
        assert right[name]["accepted_by_column"] == [1.0] * 4 and wrong[name]["accepted_by_column"] == [0.0] * 4
        assert right[name]["ar_passes"] == 2 and right[name]["masked_passes"] == 1
        assert wrong[name]["accepted"] == 0 and wrong[name]["ar_passes"] == 16
    assert right["jacobi"] | {"seconds": 0} == wrong["jacobi"] | {"seconds": 0}
    assert right["jacobi"]["accepted"] == 1 and right["jacobi"]["masked_passes"] == 0
    assert right["ar"]["ar_passes"] == 16


def test_the_command_writes_figures_and_their_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    class_pair().save_pretrained(tmp_path / "pair")
    assert main([str(tmp_path / "pair"), "--pictures", "3", "--out", str(tmp_path)]) == 0
    told = json.loads((tmp_path / "acceptance.json").read_text())
    assert set(told["ways"]) == {"ar", *WAYS} and len(told["prompts"]) == 3
    assert told["ways"]["relaxed 0.6"]["accepted"] >= 0
    assert (tmp_path / "acceptance.png").read_bytes().startswith(b"\x89PNG")
    assert "exact: ar passes" in capsys.readouterr().out


def test_without_matplotlib_nothing_is_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(acceptance, "can_plot", lambda: False)
    monkeypatch.setattr(HybridPipeline, "from_pretrained", None)
    assert main(["fashion"]) == 2
    told = capsys.readouterr().err
    assert told == 'acceptance: the figure needs matplotlib: pip install "hybrid-imagegen[plots]"\n'


def test_mistakes_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["emojy"], ["fashion", "--pictures", "0"]):
        assert main(arguments) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
