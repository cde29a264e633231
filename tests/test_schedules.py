"""Schedules: golden counts, every small case, the curve after a prefix, and the messages of errors."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import pytest

from hybrid.schedules import _CURVES, _INCREMENTS, SCHEDULES, continue_counts, counts, progress_of, reveal_counts

GOLDEN = Path(__file__).parent / "golden" / "maskgil_schedules.json"
LARGE = [(1, 9216), (8, 9216), (64, 9216), (9216, 9216), (9000, 9216), (32, 576), (575, 576), (300, 577), (100, 2304)]


def check(result: list[int], steps: int, places: int) -> None:
    assert len(result) == steps and sum(result) == places and min(result) >= 1


def test_equals_maskgil() -> None:
    golden = json.loads(GOLDEN.read_text())
    assert len(golden) == 75
    for key, expected in golden.items():
        schedule, steps, places = key.split("/")
        assert reveal_counts(schedule, int(steps), int(places)) == expected, key


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_small_case_and_some_large_ones(schedule: str) -> None:
    small = [(steps, places) for places in range(1, 65) for steps in range(1, places + 1)]
    for steps, places in small + LARGE:
        result = reveal_counts(schedule, steps, places)
        check(result, steps, places)
        assert all(type(count) is int for count in result)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_one_step_and_one_per_step(schedule: str) -> None:
    for places in (1, 2, 7, 256):
        assert reveal_counts(schedule, 1, places) == [places]
        assert reveal_counts(schedule, places, places) == [1] * places


def test_deficit_comes_from_the_largest() -> None:
    # round(8 i / 28) is 0 0 1 1 1 1 2 2: two zeros become 1, which leaves 0 for the last; the 2 gives one.
    assert reveal_counts("linear", 8, 8) == [1] * 8
    # Square, 7 places in 6: rounded 0 1 1 2 2 2, with 1 for the zero the last gets 0; the first of the 2s gives one.
    assert reveal_counts("square", 6, 7) == [1, 1, 1, 1, 2, 1]
    # Linear, 9 in 7: rounded 0 0 1 1 2 2 3, the last gets the remainder of 1 and nothing is taken.
    assert reveal_counts("linear", 7, 9) == [1, 1, 1, 1, 2, 2, 1]


def test_halton_is_the_formula() -> None:
    for places in [*range(1, 65), 256, 576, 1024]:
        for steps in range(1, min(places, 64) + 1):
            totals = [
                max(i + 1, math.floor(places * (1 - math.acos((i + 1) / steps) * 2 / math.pi))) for i in range(steps)
            ]
            expected = [after - before for before, after in itertools.pairwise([0, *totals])]
            assert reveal_counts("halton", steps, places) == expected
    assert reveal_counts("halton", 32, 576)[:4] == [11, 11, 12, 11]


@pytest.mark.parametrize("schedule", sorted(_INCREMENTS))
def test_curve_is_the_integral_of_the_increments(schedule: str) -> None:
    parts = 4000
    values = [_INCREMENTS[schedule](1 - (i + 0.5) / parts) for i in range(parts)]
    total, done = sum(values), 0.0
    for i, value in enumerate(values):
        done += value
        assert _CURVES[schedule]((i + 1) / parts) == pytest.approx(done / total, abs=1e-4)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_curve_rises_from_0_to_1(schedule: str) -> None:
    curve = _CURVES[schedule]
    values = [curve(i / 1000) for i in range(1001)]
    assert values[0] == pytest.approx(0, abs=1e-12) and values[-1] == pytest.approx(1, abs=1e-12)
    assert all(after > before for before, after in itertools.pairwise(values))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_continue_every_small_case(schedule: str) -> None:
    for places in (1, 2, 3, 5, 8, 13, 24):
        for known in range(places):
            for steps in range(1, places - known + 1):
                check(continue_counts(schedule, steps, places, known), steps, places - known)
        assert continue_counts(schedule, 3, places, places) == []
    for steps, places in LARGE:
        known = min(places // 3, places - steps)
        check(continue_counts(schedule, steps, places, known), steps, places - known)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("known", [0, 64, 128, 500])
def test_continue_follows_the_curve(schedule: str, known: int) -> None:
    places, steps, curve = 1024, 8, _CURVES[schedule]
    low, high = 0.0, 1.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if curve(middle) < known / places else (low, middle)
    done = known
    for k, count in enumerate(continue_counts(schedule, steps, places, known), 1):
        done += count
        assert abs(done - places * curve(low + (1 - low) * k / steps)) <= 1 + 1e-6


def test_continue_known_by_hand() -> None:
    # Linear: F = t^2. A quarter known is t0 = 1/2, and the middle of the rest is F(3/4) = 9/16.
    assert continue_counts("linear", 2, 16, 4) == [5, 7]
    assert continue_counts("halton", 32, 576, 0) == reveal_counts("halton", 32, 576)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_counts_chooses(schedule: str) -> None:
    assert counts(schedule, 8, 256) == reveal_counts(schedule, 8, 256)
    assert counts(schedule, 8, 256, 64) == reveal_counts(schedule, 8, 192)
    assert counts(schedule, 8, 256, 64, "continue") == continue_counts(schedule, 8, 256, 64)
    assert counts(schedule, 8, 256, 256) == counts(schedule, 8, 256, 256, "continue") == []


def test_progress() -> None:
    assert [progress_of(t, 5) for t in range(5)] == [0, 0.25, 0.5, 0.75, 1]
    assert progress_of(0, 1) == 0
    with pytest.raises(ValueError, match="step 3: must be from 0 to 2"):
        progress_of(3, 3)


@pytest.mark.parametrize("resume", ["remaining", "continue"])
def test_errors(resume: str) -> None:
    with pytest.raises(ValueError, match=r"schedule 'cosin': unknown; did you mean 'cosine'\? choose one of root, "):
        counts("cosin", 4, 16, 0, resume)
    with pytest.raises(ValueError, match="schedule 'xyz': unknown; choose one of root, linear"):
        counts("xyz", 4, 16, 16, resume)
    with pytest.raises(ValueError, match="0 steps: use at least 1 step"):
        counts("linear", 0, 16, 16, resume)
    with pytest.raises(ValueError, match="12 steps for 8 places: use at most 8 steps"):
        counts("linear", 12, 8, 0, resume)
    with pytest.raises(ValueError, match="12 steps for 8 places: use at most 8 steps"):
        counts("halton", 12, 16, 8, resume)
    with pytest.raises(ValueError, match=r"2 steps for 1 place: use at most 1 step$"):
        counts("linear", 2, 1, 0, resume)
    with pytest.raises(ValueError, match="0 places: a grid has at least 1 place"):
        counts("linear", 1, 0, 0, resume)
    for known in (-1, 17):
        with pytest.raises(ValueError, match=f"{known} known places: must be from 0 to the 16 places of the grid"):
            counts("linear", 1, 16, known, resume)


def test_more_errors() -> None:
    with pytest.raises(ValueError, match="0 places: a schedule needs at least 1 place"):
        reveal_counts("linear", 1, 0)
    with pytest.raises(ValueError, match="resume 'rest': unknown; choose one of remaining, continue"):
        counts("linear", 4, 16, 0, "rest")
