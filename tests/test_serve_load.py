"""``benchmarks.serve_load``: its arithmetic on hand-written figures, and a short load on a tiny server."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from pairs import text_pair
from serving import listening

from hybrid.benchmarks.serve_load import (
    BATCHES,
    DRAWN,
    MEMORY,
    SAMPLES,
    TOGETHER,
    Tally,
    main,
    quantile,
    read_counters,
    summary,
)


def test_quantiles_are_nearest_ranks() -> None:
    values = [float(value) for value in range(20, 0, -1)]
    assert (quantile(values, 0.5), quantile(values, 0.95), quantile(values, 1.0), quantile([7.0], 0.95)) == (
        10,
        19,
        20,
        7,
    )
    with pytest.raises(ValueError, match="no request was finished"):
        quantile([], 0.5)


def test_counters_are_read_by_name_and_labels() -> None:
    text = '# HELP a b\na 1.5\nb{path="/x y",status="200"} 2.0\n'
    assert read_counters(text) == {"a": 1.5, 'b{path="/x y",status="200"}': 2.0}


def test_the_summary_tells_refusals_from_errors() -> None:
    tally = Tally([1.0, 2.0, 3.0], Counter({"200": 3, "429": 5, "500": 1}))
    before = {MEMORY: 100 * 2**20, BATCHES: 1.0, TOGETHER: 1.0, DRAWN: 1.0}
    after = {MEMORY: 112.5 * 2**20, BATCHES: 3.0, TOGETHER: 11.0, DRAWN: 9.0}
    assert summary(tally, before, [110 * 2**20, 112.54 * 2**20], after, 4.0) == {
        "finished": 3,
        "refused_429": 5,
        "errors": {"500": 1},
        "seconds": {"p50": 2.0, "p95": 3.0},
        "pictures_per_second": 2.0,
        "pictures_per_batch": 5.0,
        "memory": {"before": 100.0, "under_load": [110.0, 112.5], "after": 112.5},
    }


def test_a_short_load_is_told_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with listening(text_pair()) as address:
        assert main([address, "--clients", "4", "--seconds", "0.5", "--out", str(tmp_path), "--server", "tiny"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == json.loads((tmp_path / "load.json").read_text())
    assert len(told["memory"]["under_load"]) == SAMPLES and told["left"] == {"waiting": 0, "running": 0}
    shown = (tmp_path / "README.md").read_text()
    assert "on a running `tiny`" in shown and f"| finished requests | {told['finished']} |" in shown
    assert told["finished"] >= 4 and told["errors"] == {} and told["seconds"]["p95"] >= told["seconds"]["p50"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("http://127.0.0.1:9 --seconds 1", "http://127.0.0.1:9: no server answers there"),
        ("http://127.0.0.1:9 --clients 0", "--clients must be at least 1"),
    ],
)
def test_a_mistake_is_one_line(line: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(line.split()) == 2
    assert capsys.readouterr().err.startswith(f"serve_load: {message}")
