"""Reports from made-up raw rows: comparison, recommendation, fronts, intervals."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hybrid.benchmarks import cli
from hybrid.benchmarks.differences import compare, difference
from hybrid.benchmarks.plots import ROOM, _number, draw, front
from hybrid.benchmarks.report import against_fastest, make_report
from hybrid.benchmarks.times import limit_shares, mean_of, median_of, speedup_of, times_of
from hybrid.recommend import read_report, recommend

HEADER = {"device": "cpu", "cores": 2, "threads": 1, "load": 0.1, "commit": "c", "versions": {}, "time": "now"}


def region(frechet: float, ar: float, spread: float = 0.01) -> dict[str, Any]:
    """Raw figures of a region: the Fréchet distance and how far its draws lie on both sides."""

    def side(value: float) -> dict[str, Any]:
        draws = np.linspace(1 - spread, 1 + spread, 101) * value
        kids = [value / 100 - 0.001, value / 100 + 0.001]
        distances = {"frechet": value, "frechet_components": 4, "frechet_draws": draws.tolist()}
        return {**distances, "kid_blocks": kids, "precision": 0.5, "recall": 0.25}

    near = {"tokens": [0.5, 0.7], "squared_error": [0.01, 0.01], "feature_distance": [1.0, 3.0]}
    return {
        "places": 16, "rows": [0, 4], "own": side(frechet), "ar": side(ar),
        "log_likelihood": [-2.0, -1.0], "ar_log_likelihood": [-1.5, -1.5], "agreement": near, "ar_agreement": near,
    }  # fmt: skip


def raw(points: dict[str, tuple[float, float, float]], spread: float = 0.01) -> dict[str, Any]:
    """Raw rows from (seconds, Fréchet distance, accuracy) of each point, the first being the AR model."""
    base = next(iter(points.values()))
    described, rows = [], {}
    for name, (seconds, frechet, accuracy) in points.items():
        settings = {"method": "ar" if not rows else "hybrid", **({"steps": len(rows)} if rows else {})}
        point = {"key": name, "label": name, "method": settings["method"], "settings": settings}
        described.append({**point, "dtype": "fp32", "compile": False})
        hits, ar_hits = ([1.0] * round(100 * share) + [0.0] * round(100 - 100 * share) for share in (accuracy, base[2]))
        turns = [
            {"seconds": value * (1 + place / 100), "phases": {"fill": value}}
            for value in [seconds] for place in (-1, 0, 1)
        ]  # fmt: skip
        ar_turns = [{**turn, "seconds": turn["seconds"] / seconds * base[0]} for turn in turns]
        batch = {
            "batch": 1, "against": "AR", "ar": ar_turns, "own": turns, "passes": {"fill": 2}, "ar_passes": {},
            "peak_memory_bytes": 10, "peak_memory_is": "", "load": [0.1, 0.2],
        }  # fmt: skip
        cost = {"masked": {"calls": 2, "flops": 400, "weight_bytes": 80, "cache_bytes": 8}}
        parts, settled = (
            region(frechet, base[1], spread),
            {"ar_fraction": 0.25, "fill": {"steps": 2}, "dtype": "float32"},
        )
        rows[name] = {
            "speed": {"batches": [batch]},
            "fidelity": {"pictures": 100, "score": hits, "ar_score": ar_hits, "regions": {"all": parts}},
            "shown": {"settings": settled, "prompts": [0, 1], "cost": cost},
        }
    sweep = {"pair": "p", "weights_sha256": {}, "data_set": "fashion", "seeds": [0], "points": described}
    scene = {
        "digest": "d",
        "score_name": "accuracy",
        "real_score": 0.9,
        "feature_network_sha256": "n",
        "machine": HEADER,
    }
    limits = {
        "weights_bytes_per_second": 100.0,
        "memory_bytes_per_second": 50.0,
        "flops_per_second": {"float32": 1000.0},
    }
    return {
        "sweep": {**sweep, "baselines": ["AR"], "speed": {"repeats": 5}},
        "scene": {**scene, "feature_network": "net", "reference_pictures": 100, "data": {}, "floors": {}},
        "machine": {"machine": HEADER, "limits": limits},
        "rows": rows,
    }


POINTS = {
    "AR": (1.0, 4.0, 0.9),
    "good": (0.5, 4.1, 0.9),
    "fast": (0.2, 5.0, 0.8),
    "bad": (0.4, 40.0, 0.1),
    "slow": (9.0, 4.4, 0.9),
}


@pytest.fixture
def report() -> dict[str, Any]:
    return make_report(raw(POINTS))


@pytest.fixture
def path(report: dict[str, Any], tmp_path: Path) -> Path:
    (tmp_path / "report.json").write_text(json.dumps(report))
    return tmp_path


# Figures


def test_planted_slow_and_bad_are_last(report: dict[str, Any]) -> None:
    assert report["ranking"]["speedup"] == ["fast", "bad", "good", "AR", "slow"]
    assert report["ranking"]["frechet"] == ["AR", "good", "slow", "fast", "bad"]
    assert report["ranking"]["fidelity"] == ["AR", "good", "slow", "fast", "bad"]


def test_fidelity_is_the_smaller_share(report: dict[str, Any]) -> None:
    rows = {row["label"]: row for row in report["rows"]}
    assert rows["AR"]["fidelity"] == 1.0
    assert rows["fast"]["fidelity"] == pytest.approx(4 / 5)  # Fréchet's share; accuracy's is 8/9
    assert rows["bad"]["fidelity"] == pytest.approx(0.1)  # Fréchet's share; accuracy's is 1/9
    low, high = rows["fast"]["fidelity_interval"]
    assert low < 0.8 <= high <= 1


def test_agreement_and_likelihood(report: dict[str, Any]) -> None:
    row = report["rows"][1]
    assert row["agreement"]["tokens"] == pytest.approx(0.6) and row["agreement"]["psnr_db"] == pytest.approx(20)
    assert row["agreement"]["feature_distance"] == 2.0
    assert (row["log_likelihood"], row["log_likelihood_over_ar"]) == (-1.5, 0.0)


def test_a_weak_baseline_shows() -> None:
    rows = raw(POINTS)
    rows["sweep"]["points"][1]["method"] = "ar"
    rows["rows"]["good"]["fidelity"]["regions"]["all"]["own"]["frechet"] = 3.0
    assert make_report(rows)["baseline"]["lower_frechet"] == ["good"]


def test_quantiles_of_turns() -> None:
    turns = [{"seconds": value, "phases": {"fill": value}} for value in (5.0, 1.0, 2.0, 4.0, 3.0)]
    batch = {"batch": 2, "against": "AR", "own": turns, "ar": [{**turn, "seconds": 6.0} for turn in turns]}
    batch |= {"passes": {}, "peak_memory_bytes": 1, "peak_memory_is": "", "load": [0, 0]}
    found = times_of(batch, None, None)
    assert (found["p10"], found["median"], found["p90"]) == pytest.approx((1.4, 3.0, 4.6))
    assert found["images_per_second"] == pytest.approx(2 / 3) and found["speedup"] == 2.0
    assert found["phases"] == {"fill": 3.0} and found["bandwidth_share"] is None


def test_speedup_is_paired() -> None:
    """A slow moment that meets both lanes leaves no scatter."""
    own = np.asarray([1.0, 3.0, 1.0, 2.0, 1.0])
    found = speedup_of(own, 4 * own)
    assert found.value == 4.0 and found.interval == (4.0, 4.0)


def test_shares_of_the_limits() -> None:
    cost = {
        "ar": {"flops": 0, "weight_bytes": 30, "cache_bytes": 40},
        "masked": {"flops": 400, "weight_bytes": 0, "cache_bytes": 0},
    }
    shown = {"prompts": [0, 1], "cost": cost, "settings": {"dtype": "float32"}}
    limits = {"weights_bytes_per_second": 100.0, "flops_per_second": {"float32": 1000.0}}
    found = limit_shares(4, {"prefix": 2.0, "fill": 1.0}, shown, limits)
    assert found == {"bandwidth_share": (30 + 80) / 2 / 100, "compute_share": 800 / 1000}


def test_speedup_over_the_fastest_exact_way() -> None:
    """A method that draws from the AR model's distribution, and faster, is what the last column is over."""
    rows = raw({"AR": (1.0, 4.0, 0.9), "jacobi": (0.5, 4.0, 0.9), "masked": (0.2, 5.0, 0.8)})
    rows["sweep"]["points"][1]["method"] = "jacobi"
    assert make_report(rows)["rows"][2]["speedup_over_exact"] == pytest.approx(2.5)
    found = make_report(rows)
    assert found["baseline"]["fastest_exact"] == {"1": {"label": "jacobi", "speedup": pytest.approx(2.0)}}
    # With another temperature it is another distribution.
    rows["rows"]["jacobi"]["shown"]["settings"]["prefix"] = {"temperature": 0.5}
    found = make_report(rows)
    assert found["rows"][2]["speedup_over_exact"] == pytest.approx(5.0)


def test_the_front_holds_what_nothing_beats() -> None:
    rows = [
        {"speedup": s, "frechet": f, "fidelity": q} for s, f, q in ((1, 1, 1), (2, 3, 0.5), (3, 2, 0.8), (4, 9, 0.1))
    ]
    assert [row["speedup"] for row in front(rows, "frechet")] == [1, 3, 4]
    assert [row["speedup"] for row in front(rows, "fidelity")] == [1, 3, 4]


def test_pictures_of_a_report(tmp_path: Path) -> None:
    """All that have something to show, at page width, whatever the methods are called."""
    pytest.importorskip("matplotlib")
    rows = raw({"AR": (1.0, 4.0, 0.9), "a": (0.5, 4.1, 0.9), "b": (0.4, 4.2, 0.9), "new": (0.2, 5.0, 0.8)})
    for name, fraction, steps in (("a", 0.25, 4), ("b", 0.25, 8)):
        rows["rows"][name]["shown"]["settings"] |= {"ar_fraction": fraction, "fill": {"steps": steps}}
    rows["sweep"]["points"][3]["method"] = "novel"
    rows["rows"]["new"]["speed"]["batches"][0]["own"][0]["phases"] = {"dream": 0.2}
    made = draw(make_report(rows), tmp_path)
    assert set(made) == {"pareto", "phases", "quality"}
    for path in made.values():
        with Image.open(path) as picture:
            assert picture.width == 1300


def test_numbers_keep_clear_of_each_other() -> None:
    figure = pytest.importorskip("matplotlib.figure").Figure()
    axes = figure.subplots()
    axes.set_xlim(0, 2)
    axes.set_ylim(0, 2)
    _number(axes, {1: (1, 1), 2: (1, 1), 3: (1.01, 1), 4: (0.2, 0.2)})
    centres = [np.asarray(text.xyann) + axes.transData.transform(text.xy) * 72 / figure.dpi for text in axes.texts]
    apart = [np.linalg.norm(one - other) for place, one in enumerate(centres) for other in centres[:place]]
    assert [text.get_text() for text in axes.texts] == ["4", "1", "2", "3"] and min(apart) >= ROOM - 0.1


# Comparison


def test_equal_reports_differ_by_noise(report: dict[str, Any]) -> None:
    found = compare(report, report)
    assert found.differences and all(one.noise and one.after == one.before for one in found.differences)
    assert (found.only_before, found.only_after, found.notes) == ((), (), ())


def test_a_change_is_told_from_noise(report: dict[str, Any]) -> None:
    changed = make_report(raw({**POINTS, "fast": (0.2, 8.0, 0.8), "good": (0.2, 4.11, 0.9)}))
    moved = {(one.label, one.figure) for one in compare(report, changed).differences if not one.noise}
    assert ("fast", "Fréchet distance") in moved and ("good", "seconds, batch 1") in moved
    assert ("good", "Fréchet distance") not in moved and ("fast", "seconds, batch 1") not in moved


def test_interval_of_a_difference() -> None:
    """Two independent normal figures: the interval is that of their difference."""
    low, high = difference(10.0, 12.0, [7.0, 13.0], [8.0, 16.0])
    assert (low, high) == (2 - 5.0, 2 + 5.0)


def test_other_points_and_other_machines(report: dict[str, Any]) -> None:
    other = make_report(raw({name: POINTS[name] for name in ("AR", "bad")}))
    other["header"]["device"] = "elsewhere"
    found = compare(report, other)
    assert found.only_before == ("good", "fast", "slow") and found.only_after == ()
    assert found.notes == ("times are not compared: cpu with 1 threads and elsewhere with 1 threads",)
    assert not [one for one in found.differences if "seconds" in one.figure]


def test_different_data_is_refused(report: dict[str, Any], path: Path, tmp_path: Path, capsys: Any) -> None:
    other = copy.deepcopy(report)
    other["header"]["data_digest"] = "e"
    (tmp_path / "b.json").write_text(json.dumps(other))
    assert cli.main(["compare", str(path), str(tmp_path / "b.json")]) == 2
    told = capsys.readouterr().err
    assert told.startswith("hybrid-bench: the reports are of different data or prompts (d and e); only")
    assert told.count("\n") == 1


def test_compare_prints_what_changed(report: dict[str, Any], path: Path, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "b.json").write_text(json.dumps(make_report(raw({**POINTS, "fast": (0.2, 8.0, 0.8)}))))
    assert cli.main(["compare", str(path), str(tmp_path / "b.json")]) == 0
    told = capsys.readouterr().out
    assert "Fréchet" in told and "are noise" in told
    assert cli.main(["compare", str(path), str(path)]) == 0
    assert "0 differ" in capsys.readouterr().out


# Recommendation


def test_recommend(report: dict[str, Any], path: Path) -> None:
    assert recommend(report, quality=0.95).label == "good"
    assert recommend(path, quality=0.75).label == "fast"
    assert recommend(path / "report.json", quality=1.0).label == "AR"
    assert recommend(report, max_ms=600).label == "good"
    assert recommend(report, max_ms=300).label == "fast"
    assert recommend(report, quality=0.5, max_ms=10_000).label == "fast"
    chosen = recommend(report, quality=0.95)
    assert chosen.settings == {"method": "hybrid", "steps": 1} and chosen.dtype == "fp32" and not chosen.compile
    assert (chosen.batch, chosen.seconds, chosen.speedup) == (1, 0.5, 2.0)


def test_a_busy_moment_does_not_decide(report: dict[str, Any]) -> None:
    """A point whose turns, and the AR model's between them, met a busy machine keeps its speed-up."""
    slow = next(row for row in report["rows"] if row["label"] == "good")
    slow["speed"][0]["median"] = 50.0
    assert recommend(report, quality=0.95).label == "good"


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({}, "give the least fidelity, the most milliseconds, or both"),
        ({"quality": 1.5}, "fidelity 1.5: must be above 0 and at most 1"),
        ({"max_ms": 0}, "0 ms: must be above 0"),
        ({"max_ms": 5}, "nothing in the report takes at most 5 ms; the fastest takes 200 ms: fast"),
        (
            {"quality": 0.95, "max_ms": 300},
            "nothing that is good enough takes at most 300 ms; the fastest takes 500 ms: good",
        ),
        ({"quality": 0.5, "batch": 8}, "the report has no times at batch 8"),
    ],
)
def test_recommend_says_how_near_it_comes(report: dict[str, Any], limits: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        recommend(report, **limits)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_nothing_is_good_enough(report: dict[str, Any]) -> None:
    report["rows"] = report["rows"][1:]
    with pytest.raises(ValueError, match=r"nothing in the report reaches fidelity 1; the best is 0\.976: good"):
        recommend(report, quality=1.0)


def test_recommend_prints_settings(path: Path, capsys: Any) -> None:
    assert cli.main(["recommend", str(path), "--min-fidelity", "0.95"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0] == "good: 500 ms at batch 1, 2.00x AR, fidelity 0.976"
    assert told[1:] == [
        "pipeline(prompt, method='hybrid', steps=1, dtype='fp32')",
        "hybrid-generate PROMPT --config p --method hybrid --steps 1 --dtype fp32",
    ]
    assert cli.main(["recommend", str(path), "--max-ms", "300", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["label"], found["pair"]) == ("fast", "p")


@pytest.mark.parametrize(("pair", "option"), [("emoji", ""), (None, ""), ("my pair.yaml", " --config 'my pair.yaml'")])
def test_the_default_pair_is_not_named(pair: str | None, option: str, report: Any, path: Path, capsys: Any) -> None:
    report["header"]["pair"] = pair
    (path / "report.json").write_text(json.dumps(report))
    assert cli.main(["recommend", str(path), "--min-fidelity", "0.95"]) == 0
    told = capsys.readouterr().out.splitlines()[-1]
    assert told == f"hybrid-generate PROMPT{option} --method hybrid --steps 1 --dtype fp32"


@pytest.mark.parametrize(("content", "message"), [(None, "no such report"), ("{", "truncated"), ("{}", "not a report")])
def test_files_that_are_no_reports(content: str | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "report.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_report(tmp_path)


def test_paths_of_the_baseline_are_compared_with_the_fastest() -> None:
    def row(key: str, speedup: float) -> dict[str, Any]:
        times = {"speedup": speedup, "speedup_interval": [speedup / 2, speedup * 2]}
        return {"key": key, "region": "all", "speed": [{"batch": 1, **times}], **times}

    rows = [row("plain", 1.02), row("compiled", 2.5), row("hybrid", 1.1)]
    assert against_fastest(rows, ["plain", "compiled"]) is rows[1]
    assert [one["speedup"] for one in rows] == [pytest.approx(0.408), 1.0, 1.1]
    assert rows[0]["speed"][0]["speedup_interval"] == [pytest.approx(0.204), pytest.approx(0.816)]
    alone = [row("plain", 1.02), row("hybrid", 1.1)]
    assert against_fastest(alone, ["plain"]) is alone[0] and alone[0]["speedup"] == 1.02
    halfway = [row("plain", 1.0), row("compiled", 2.5)]  # killed before the second path's turns of two pictures
    halfway[0]["speed"].append({"batch": 2, "speedup": 1.0, "speedup_interval": [1.0, 1.0]})
    assert against_fastest(halfway, ["plain", "compiled"]) is halfway[1]
    assert [times["speedup"] for times in halfway[0]["speed"]] == [0.4, 1.0]


def test_a_median_lies_between_order_statistics() -> None:
    values = np.array([5.0, 1.0, 9.0, 3.0, 7.0, 2.0, 8.0, 4.0, 6.0])
    assert median_of(values[:5]) == (5.0, (1.0, 9.0))  # too few for 95 %: the extremes
    assert median_of(values[:7]) == (5.0, (1.0, 9.0))
    assert median_of(values) == (5.0, (2.0, 8.0))  # 1 - 2 (1 + 9) / 2^9 = 96.1 %


def test_pictures_of_one_name_are_resampled_together() -> None:
    """Ten names of twenty equal pictures each say as little as ten pictures."""
    means = np.arange(10.0)
    groups = np.repeat(np.array([f"name {i}" for i in range(10)]), 20)
    few, many, grouped = mean_of(means), mean_of(np.repeat(means, 20)), mean_of(np.repeat(means, 20), groups)
    assert few.value == many.value == grouped.value == 4.5
    assert grouped.interval == few.interval
    assert many.interval[1] - many.interval[0] < (few.interval[1] - few.interval[0]) / 3
    uneven = mean_of([0.0, 1.0, 1.0, 1.0], np.array([0, 1, 1, 1]))
    assert uneven.value == 0.75 and uneven.interval == (0.0, 1.0)


def test_names_of_the_scene_widen_a_reports_intervals() -> None:
    rows = raw(POINTS)
    plain = make_report(rows)["rows"][2]
    rows["scene"]["groups"] = [f"name {place // 20}" for place in range(100)]
    for row in rows["rows"].values():
        for name in ("log_likelihood", "ar_log_likelihood"):
            row["fidelity"]["regions"]["all"][name] *= 50
    named = make_report(rows)["rows"][2]
    assert named["accuracy"] == plain["accuracy"]
    for name in ("accuracy_interval", "log_likelihood_over_ar_interval"):
        one, other = (row[name][1] - row[name][0] for row in (plain, named))
        assert other > 1.5 * one or name != "accuracy_interval"


def test_what_is_no_whole_report_is_refused(report: dict[str, Any], tmp_path: Path) -> None:
    for name in ("rows", "header"):
        (tmp_path / "report.json").write_text(json.dumps({key: report[key] for key in report if key != name}))
        with pytest.raises(ValueError, match="not a report of hybrid-bench run"):
            read_report(tmp_path)
