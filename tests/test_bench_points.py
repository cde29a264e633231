"""Points of a sweep: products of lists, names, mistakes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hybrid.benchmarks.points import NOT_SWEPT, FidConfig, Point, arguments, check_sweep, read_sweep

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


def test_baseline_settings_to_choose_from() -> None:
    """Each by the first path; the chosen one takes all paths, and its point in the list is no other point then."""
    found = sweep(
        baseline={"guidance_scale": [1.5, 2.0], "dtype": ["fp32", "bf16"]},
        points=[{"method": "masked"}, {"method": "ar", "guidance_scale": [1.5, 2.0], "dtype": "fp32"}],
    )
    assert [point.label for point in found.candidates] == [
        "ar, guidance scale 1.5, fp32", "ar, guidance scale 2.0, fp32",
    ]  # fmt: skip
    assert found.baselines[0] == found.candidates[0] and found.others[1] == found.candidates[1]
    chosen = found.choose(found.candidates[1])
    assert [point.label for point in chosen.baselines] == [
        "ar, guidance scale 2.0, fp32", "ar, guidance scale 2.0, bf16",
    ]  # fmt: skip
    assert chosen.others[1] == found.candidates[0]
    assert sweep(baseline={"dtype": ["fp32", "bf16"]}).candidates == ()


def test_a_point_takes_whatever_the_pipeline_knows() -> None:
    import inspect

    from hybrid.pipeline import HybridPipeline
    from hybrid.request import METHODS

    parameters = inspect.signature(HybridPipeline.__call__).parameters
    assert set(arguments()) - {"compile"} == set(parameters) - NOT_SWEPT
    found = sweep(points=[{"method": list(METHODS), "window": 4}]).others
    assert [point.method for point in found] == list(METHODS)
    assert found[0].label == "hybrid, window 4" and found[0].request() == {"method": "hybrid", "window": 4}


def test_fid_is_a_word_or_its_fields() -> None:
    assert sweep(fid=True).config.fid == FidConfig() and sweep(fid=False).config.fid is None
    assert sweep(fid={"clip": "c.pt"}).config.fid == FidConfig(clip="c.pt")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"baseline": {"temperature": [0.9, 1.0]}, "data_set": None, "prompts": [0]},
            "s.yaml: baseline: choosing among 2 settings needs a data_set",
        ),
        ({"data_set": None, "prompts": [0], "fid": True}, "s.yaml: fid: needs a data_set to compare with"),
        ({"fid": {"inceptions": "x"}}, "s.yaml: unknown key 'fid.inceptions'; did you mean 'inception'?"),
        ({"choice_pictures": 63}, "s.yaml: choice_pictures: Input should be greater than or equal to 64"),
        ({"baseline": {"method": "hybrid"}}, "s.yaml: baseline.method: must be ar"),
        ({"points": [{"method": "ar", "step": 4}]}, "s.yaml: points.0: unknown setting 'step'; did you mean 'steps'?"),
        ({"points": [{"method": "ar"}, {"steps": 4}]}, "s.yaml: points.1: give its method"),
        ({"points": [{"method": "ar", "steps": []}]}, "s.yaml: points.0: steps: an empty list"),
        ({"points": [{"method": "ar", "seed": 4}]}, "s.yaml: points.0: unknown setting 'seed'"),
        ({"points": [{"method": "ar", "compile": "yes"}]}, "s.yaml: points.0: compile: must be true or false"),
        (
            {"points": [{"method": "hybrid", "steps": [8, "eight"]}]},
            "s.yaml: points.0: steps: must be a whole number (got 'eight')",
        ),
        ({"points": [{"method": "hybrid", "steps": 8.5}]}, "steps: must be a whole number (got 8.5)"),
        ({"points": [{"method": "ar", "temperature": True}]}, "temperature: must be a number (got True)"),
        ({"points": [{"method": 3}]}, "s.yaml: points.0: method: must be text (got 3)"),
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
