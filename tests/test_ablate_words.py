"""The words and the picture of an ablation, of planted numbers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hybrid.benchmarks.ablate import label
from hybrid.benchmarks.ablate_plot import plot_sweep
from hybrid.benchmarks.ablate_words import chance, judge, number, paragraph, sentence, verdicts

MEASURE = {"says": "held-out loss", "unit": "nats", "better": "lower", "curve": False, "judged": True}


def test_overlapping_seeds_are_within_the_spread_and_separate_ones_exceed_it() -> None:
    overlapping = judge("loss", {"a": [1.0, 1.2], "b": [1.1, 1.3]}, better="lower")
    assert (overlapping.best, overlapping.exceeding, overlapping.within) == ("a", [], ["b"])
    assert overlapping.spread == pytest.approx(0.2)
    text = sentence(overlapping, MEASURE)
    assert "within the seeds' spread (0.200) for: b (+0.100)" in text and "exceeds" not in text
    separate = judge("loss", {"a": [2.0, 2.1], "b": [1.0, 1.1]}, better="lower")
    assert (separate.best, separate.exceeding, separate.within) == ("b", ["a"], [])
    text = sentence(separate, MEASURE)
    assert "lowest for b: 1.050 (seeds 1.000 to 1.100)" in text
    assert "exceeds the seeds' spread (0.100) for: a (+1.000)" in text and "within" not in text


def test_the_widest_variant_measures_them_all_and_higher_may_be_better() -> None:
    verdict = judge("psnr", {"a": [10.0, 10.1], "b": [9.0, 9.1], "c": [5.0, 7.0]}, better="higher")
    assert verdict.best == "a" and verdict.spread == 2.0
    assert verdict.within == ["b"] and verdict.exceeding == ["c"]
    assert "highest for a" in sentence(verdict, {**MEASURE, "better": "higher"})


def test_chance_is_that_of_two_variants_worked_out_by_hand() -> None:
    # Two seeds each: the means' difference is N(0, 1), each range |N(0, 2)|, all independent. That the first exceeds
    # both ranges is the solid angle of two square pyramids with slope 1/√2: 2 · 4 arcsin(1/3) / 4π.
    assert chance(2, 2) == pytest.approx(2 * math.asin(1 / 3) / math.pi, abs=0.01)
    assert chance(2, 4) < chance(2, 2)


def planted(values: dict[tuple[str, int], list[float]], within: str | None) -> dict[str, Any]:
    """A result with these values by schedule, steps and seed."""
    points = [
        {
            "variant": f"{schedule}, {steps} steps",
            "values": {"draw.schedule": schedule, "draw.steps": steps},
            "seed": seed,
            "figures": {"loss": value},
            "curve": [],
        }
        for (schedule, steps), pair in values.items()
        for seed, value in enumerate(pair)
    ]
    return {
        "title": "Planted",
        "question": "Which?",
        "limits": "Planted figures.",
        "quick": False,
        "seeds": [0, 1],
        "vary": {"draw.schedule": ["root", "arccos"], "draw.steps": [4, 8]},
        "names": {"draw.schedule": "{}", "draw.steps": "{} steps"},
        "across": "draw.steps",
        "within": within,
        "measures": {"loss": MEASURE},
        "references": {"loss": 0.5},
        "cpu_seconds": 90.0,
        "commit": "0123456789abcdef+",
        "versions": {"torch": "2"},
        "threads": 1,
        "points": points,
    }


VALUES = {
    ("root", 4): [2.0, 2.1],
    ("arccos", 4): [3.0, 3.1],
    ("root", 8): [1.0, 1.5],
    ("arccos", 8): [1.2, 1.4],
}


def test_steps_are_judged_apart() -> None:
    content = planted(VALUES, "draw.steps")
    four, eight = verdicts(content)
    assert (four.group, four.best, four.exceeding) == ("4 steps", "root", ["arccos"])
    assert (eight.group, eight.best, eight.within) == ("8 steps", "root", ["arccos"])
    text = paragraph(content)
    assert "held-out loss, 4 steps (nats): lowest for root" in text and "exceeds the seeds' spread (0.100)" in text
    assert "within the seeds' spread (0.500) for: arccos" in text
    assert "real pictures through the tokenizer: held-out loss 0.500" in text
    assert (
        "1.5 CPU-minutes" in text
        and "(1 thread, torch 2)" in text
        and "commit 0123456789ab with local changes." in text
    )
    (together,) = verdicts(planted(VALUES, None))
    assert together.group == "" and len(together.values) == 4


def test_a_plot_holds_every_series(tmp_path: Path) -> None:
    plot_sweep(planted(VALUES, "draw.steps"), tmp_path / "planted.png")
    picture = Image.open(tmp_path / "planted.png")
    assert picture.width == pytest.approx(7.2 * 150, abs=2)
    assert (np.asarray(picture.convert("L")) < 128).mean() > 0.005


def test_numbers_are_short() -> None:
    values = (0.0, 0.00123, 0.5, 12.346, 123.46, 4096.0)
    assert [number(value) for value in values] == ["0.000", "0.0012", "0.500", "12.35", "123.5", "4096"]
    assert number(0.25, sign=True) == "+0.250" and number(-1e-17, sign=True) == "+0.000"


def test_labels_read_as_words() -> None:
    values = {"a.qk_norm": True, "a.levels": [8, 5], "a.steps": 4, "a.lr": 0.1}
    assert label(values, {"a.qk_norm": "QK-norm", "a.steps": "{} steps"}) == "with QK-norm, levels 8·5, 4 steps, lr 0.1"
