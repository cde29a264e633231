"""Points of a sweep: products of lists, names, mistakes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hybrid.benchmarks.points import Point, check_sweep, read_sweep

CONFIGS = Path(__file__).parent.parent / "configs"
LEAST: dict[str, Any] = {"pair": "fashion", "data_set": "fashion", "points": [{"method": "masked"}]}


def sweep(**changes: Any) -> Any:
    return check_sweep({**LEAST, **changes}, "s.yaml")


def test_lists_are_multiplied_and_points_come_once() -> None:
    points = [
        {"method": "hybrid", "ar_fraction": [0.25, 0.5], "steps": [4, 8], "dtype": "bf16"},
        {"method": "hybrid", "ar_fraction": 0.5, "steps": 8, "dtype": "bf16"},
        {"method": "ar"},
    ]
    found = sweep(points=points)
    assert found.baselines == (Point((("method", "ar"),)),)
    assert [point.label for point in found.others] == [
        "hybrid, 25 % AR, 4 steps, bf16",
        "hybrid, 25 % AR, 8 steps, bf16",
        "hybrid, 50 % AR, 4 steps, bf16",
        "hybrid, 50 % AR, 8 steps, bf16",
    ]
    assert found.others[0].request() == {"method": "hybrid", "ar_fraction": 0.25, "steps": 4}
    assert len({point.key for point in found.points}) == 5


def test_the_key_tells_type_and_compilation_apart() -> None:
    one = Point((("method", "ar"),))
    others = [Point(one.settings, "bf16"), Point(one.settings, "auto", True), Point((("method", "exact"),))]
    assert len({one.key, *(point.key for point in others)}) == 4
    assert others[1].label == "ar, compiled" and one.key == Point((("method", "ar"),)).key


def test_baseline_paths() -> None:
    found = sweep(baseline={"guidance_scale": 1.5, "dtype": ["fp32", "bf16"], "compile": [False, True]})
    assert [(point.dtype, point.compile) for point in found.baselines] == [
        ("fp32", False), ("bf16", False), ("fp32", True), ("bf16", True),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"baseline": {"temperature": [0.9, 1.0]}}, "s.yaml: baseline: only dtype and compile may be lists"),
        ({"baseline": {"method": "hybrid"}}, "s.yaml: baseline.method: must be ar"),
        ({"points": [{"method": "ar", "step": 4}]}, "s.yaml: points.0: unknown setting 'step'; did you mean 'steps'?"),
        ({"points": [{"method": "ar"}, {"steps": 4}]}, "s.yaml: points.1: give its method"),
        ({"points": [{"method": "ar", "steps": []}]}, "s.yaml: points.0: steps: an empty list"),
        ({"points": [{"method": "ar", "seed": 4}]}, "s.yaml: points.0: unknown setting 'seed'"),
        ({"points": [{"method": "ar", "compile": "yes"}]}, "s.yaml: points.0: compile: must be true or false"),
        ({"points": []}, "s.yaml: points: List should have at least 1 item"),
        ({"pictures": 79}, "s.yaml: pictures: 79 are too few; the statistics need 80"),
        ({"seeds": [0, 0]}, "s.yaml: seeds: must be different and 0 or above"),
        ({"speed": {"batch_sizes": [0]}}, "s.yaml: speed.batch_sizes: must be at least 1"),
        ({"speed": {"repeat": 3}}, "s.yaml: unknown key 'speed.repeat'; did you mean 'repeats'?"),
        ({"picture": 100}, "s.yaml: unknown key 'picture'; did you mean 'pictures'?"),
    ],
)
def test_mistakes_name_file_and_key(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        sweep(**changes)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("bench-*.yaml")), ids=lambda path: path.stem)
def test_shipped_sweeps_are_right(path: Path) -> None:
    assert len(read_sweep(path).points) > 1
