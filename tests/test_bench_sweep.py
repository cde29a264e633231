"""A whole sweep of planted points: ranks, resumption, the same digits twice, figures from raw rows, mistakes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bench_scene import FIELDS, Coarse, runner, tiny_sweep, write_scene

from hybrid.benchmarks import cli, machine, point_judge, sweep
from hybrid.benchmarks.inception import inception_score
from hybrid.benchmarks.publish import publish
from hybrid.benchmarks.report import make_report, read_raw
from hybrid.benchmarks.statistics import frechet_distance
from hybrid.pipeline import HybridPipeline

SLOW_LABEL, BAD_LABEL = "hybrid, 50 % AR, 2 steps, order raster", "masked, 4 steps, order halton"


@pytest.fixture(scope="module", autouse=True)
def quick_limits() -> Any:
    patch = pytest.MonkeyPatch()
    patch.setattr(machine, "MEMORY_BYTES", 2**20)
    patch.setattr(machine, "MATRIX", {"cpu": 64})
    yield
    patch.undo()


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_scene(tmp_path_factory.mktemp("scene"))


@pytest.fixture(scope="module")
def swept(scene: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("sweep") / "out"
    jobs = list(runner(tiny_sweep(*scene), out).jobs())
    assert [done for _, done, _ in jobs] == list(range(13)) and jobs[-1] == ("done", 12, 12)
    return out, publish(out)


def whole(report: dict[str, Any], label: str) -> dict[str, Any]:
    return next(row for row in report["rows"] if row["label"] == label and row["region"] == "all")


def test_planted_points_come_last(swept: tuple[Path, dict[str, Any]]) -> None:
    _, report = swept
    assert report["ranking"]["speedup"][-1] == SLOW_LABEL
    assert report["ranking"]["frechet"][-1] == report["ranking"]["fidelity"][-1] == BAD_LABEL
    assert report["ranking"]["fidelity"][0] == "ar"


def test_times_are_the_clocks(swept: tuple[Path, dict[str, Any]]) -> None:
    _, report = swept
    row = whole(report, SLOW_LABEL)
    assert (row["median"], row["p10"], row["p90"], row["speedup"]) == (4.0, 4.0, 4.0, 0.25)
    assert [times["images_per_second"] for times in row["speed"]] == [0.25, 0.5]
    assert whole(report, "hybrid, 50 % AR, 2 steps")["speedup"] == 2.0 and whole(report, "ar")["speedup"] == 1.0
    assert row["passes"] == {"prefix": 8, "fill": 2, "decode": 1}


def test_report_has_what_it_promises(swept: tuple[Path, dict[str, Any]]) -> None:
    out, report = swept
    assert json.loads((out / "report.json").read_text()) == report
    wanted = "method ar_fraction steps speedup median p90 frechet kid retrieval region".split()
    assert all(set(wanted) <= set(row) for row in report["rows"])
    assert {"commit", "threads", "feature_network"} <= set(report["header"])
    assert report["header"]["feature_network"] == "coarse pixels" and report["header"]["preliminary"]
    hybrid = [row for row in report["rows"] if row["label"] == "hybrid, 50 % AR, 2 steps"]
    assert [(row["region"], row["ar_fraction"], row["steps"]) for row in hybrid] == [
        ("all", 0.5, 2), ("ar", 0.5, 2), ("masked", 0.5, 2),
    ]  # fmt: skip
    # The AR part of a hybrid is the AR model's own under the same numbers, token for token.
    assert hybrid[1]["agreement"]["tokens"] == 1.0 and hybrid[1]["log_likelihood_over_ar"] == 0.0
    assert whole(report, "ar")["frechet_over_ar"] == 1.0 and whole(report, "ar")["agreement"]["psnr_db"] is None
    assert hybrid[2]["agreement"]["tokens"] < 0.6 and hybrid[1]["ar_seeds_agreement"]["tokens"] < 0.6
    assert whole(report, BAD_LABEL)["frechet"] > 3 * whole(report, "ar")["frechet"]
    assert set(report["floors"]) == {"reconstruction", "real"}
    assert report["baseline"]["median"] == 1.0 and report["header"]["limits"]["flops_per_second"]["float32"] > 0
    assert all(times["bandwidth_share"] > 0 for times in whole(report, "ar")["speed"])


def test_figures_come_from_raw_rows(swept: tuple[Path, dict[str, Any]]) -> None:
    out, report = swept
    raw = read_raw(out)
    assert make_report(raw) == report
    row = whole(report, "hybrid, 50 % AR, 2 steps")
    own = raw["rows"][row["key"]]
    assert row["accuracy"] == np.mean(own["fidelity"]["score"])
    assert row["kid"] == np.mean(own["fidelity"]["regions"]["all"]["own"]["kid_blocks"])
    assert row["log_likelihood"] == np.mean(own["fidelity"]["regions"]["all"]["log_likelihood"])
    for turn in own["speed"]["batches"][0]["own"]:
        turn["seconds"] = 0.125
    own["fidelity"]["regions"]["all"]["own"]["frechet"] *= 2
    changed = whole(make_report(raw), row["label"])
    assert (changed["median"], changed["speedup"]) == (0.125, 8.0)
    assert changed["frechet"] == 2 * row["frechet"]


def test_fidelity_is_of_the_pictures(swept: tuple[Path, dict[str, Any]], scene: tuple[Path, Path]) -> None:
    """The Fréchet distance in the report is that of the pictures that the pipeline draws, by another way."""
    from hybrid.benchmarks.statistics import fit_components
    from hybrid.data.folder import DataFolder

    _, report = swept
    folder = DataFolder.open(scene[1])
    labels = [item["label"] for item in folder.items if item["split"] == "test"][:80]
    drawn = HybridPipeline.from_pretrained(scene[0])(labels, method="ar", seed=0, output_type="pil").images
    features = [Coarse()(images).astype(np.float32) for images in (np.stack(drawn), folder.images[100:190, 0])]
    components = fit_components(features[1], features[1].shape[1])
    expected = frechet_distance(*map(components, features))
    assert whole(report, "ar")["frechet"] == pytest.approx(expected, rel=1e-9)


def test_same_seed_same_digits(swept: tuple[Path, dict[str, Any]], scene: tuple[Path, Path], tmp_path: Path) -> None:
    pair, data = scene
    copied = tmp_path / "fashion"
    shutil.copytree(data, copied, ignore=shutil.ignore_patterns("figures", "features"))
    list(runner(tiny_sweep(pair, copied), tmp_path / "out").jobs(["fidelity"]))
    again, first = read_raw(tmp_path / "out"), read_raw(swept[0])
    for key, row in first["rows"].items():
        own, other = ({**rows["fidelity"], "load": None} for rows in (row, again["rows"][key]))
        assert own == other
    assert [row["median"] for row in make_report(again)["rows"]] == [None] * 8


def test_a_kill_loses_one_point(scene: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[str] = []
    whole_measure = sweep.Runner._measure

    def killed(self: sweep.Runner, point: Any) -> None:
        measured.append(point.label)
        if len(measured) == 3:
            raise KeyboardInterrupt
        whole_measure(self, point)

    monkeypatch.setattr(sweep.Runner, "_measure", killed)
    with pytest.raises(KeyboardInterrupt):
        list(runner(tiny_sweep(*scene), tmp_path / "out").jobs())
    assert len(list((tmp_path / "out" / "raw").glob("fidelity-*.json"))) == 2
    assert [row["frechet"] is not None for row in publish(tmp_path / "out")["rows"] if row["region"] == "all"] == [
        True, True, False, False,
    ]  # fmt: skip
    before = list(measured)
    jobs = list(runner(tiny_sweep(*scene), tmp_path / "out").jobs(["fidelity"]))
    assert jobs[0][1:] == (6, 8) and measured == [*before, *before[2:], BAD_LABEL]
    assert list(runner(tiny_sweep(*scene), tmp_path / "out").jobs(["fidelity"])) == [("done", 8, 8)]


def test_speed_anew_keeps_fidelity(
    swept: tuple[Path, dict[str, Any]], scene: tuple[Path, Path], tmp_path: Path
) -> None:
    """Without the data folder: prompts are in the raw rows."""
    out = tmp_path / "out"
    shutil.copytree(swept[0], out)
    before = {path.name: path.read_bytes() for path in (out / "raw").glob("fidelity-*")}
    again = tiny_sweep(scene[0], tmp_path / "nowhere", speed={"batch_sizes": [4], "repeats": 6})
    jobs = list(runner(again, out).jobs(["speed"], again=True))
    assert [what.split(":")[0] for what, _, _ in jobs] == ["speed"] * 4 + ["done"]
    assert before == {path.name: path.read_bytes() for path in (out / "raw").glob("fidelity-*")}
    row = whole(publish(out), SLOW_LABEL)
    assert row["batch"] == 4 and row["speed"][0]["turns"] == 6 and row["frechet"] is not None
    assert list(runner(again, out).jobs(["speed"])) == [("done", 8, 8)]
    more = tiny_sweep(scene[0], tmp_path / "nowhere", speed={"batch_sizes": [4, 1], "repeats": 5})
    assert len(list(runner(more, out).jobs(["speed"]))) == 4 + 1


def test_the_fastest_ar_path_is_the_baseline(scene: tuple[Path, Path], tmp_path: Path) -> None:
    chosen = tiny_sweep(*scene, baseline={"dtype": ["fp32", "auto"]}, points=FIELDS["points"][:1])
    run = runner(chosen, tmp_path / "out")
    list(run.jobs(["speed"]))
    first, second = chosen.baselines
    path = run.path("speed", second)
    row = json.loads(path.read_text())
    assert [batch["against"] for batch in row["batches"]] == [first.key] * 2
    for turn in row["batches"][0]["own"]:
        turn["seconds"] = 0.5
    path.write_text(json.dumps(row))
    assert (run._fastest(1), run._fastest(2)) == (second, first)


def test_the_best_setting_is_the_baseline(scene: tuple[Path, Path], tmp_path: Path) -> None:
    """The data are the AR model's own pictures at temperature 1, so that it is best there; a kill loses one setting."""
    changes: dict[str, Any] = {"baseline": {"temperature": [0.3, 1.0], "top_k": [2, None]}}
    chosen = tiny_sweep(*scene, points=FIELDS["points"][:1], **changes)
    run, jobs = runner(chosen, tmp_path / "out"), []
    for what, _, _ in run.jobs(["fidelity"]):
        jobs.append(what)
        if len(jobs) == 3:
            break
    assert [what.split(":")[0] for what in jobs] == ["choice"] * 3 and run.sweep.baselines == chosen.baselines
    run = runner(chosen, tmp_path / "out")
    jobs = [what for what, _, _ in run.jobs(["fidelity"])]
    assert [what.split(":")[0] for what in jobs] == ["choice"] * 2 + ["shown"] * 2 + ["fidelity"] * 2 + ["done"]
    report = publish(tmp_path / "out")
    assert report["baseline"]["settings"] == {"method": "ar", "temperature": 1.0, "top_k": None}
    choice = report["baseline"]["choice"]
    assert [one["chosen"] for one in choice].count(True) == 1 and len(choice) == 4
    assert min(choice, key=lambda one: one["frechet"])["chosen"] and {one["pictures"] for one in choice} == {80}
    assert whole(report, report["baseline"]["label"])["frechet_over_ar"] == 1.0
    assert "Choice of the AR baseline" in (tmp_path / "out" / "report.md").read_text()
    # A later runner knows the choice from the files.
    assert runner(chosen, tmp_path / "out").sweep.baselines == run.sweep.baselines
    with pytest.raises(ValueError, match="holds a sweep with another candidates; use another --out"):
        runner(tiny_sweep(*scene, baseline={"temperature": [0.3, 1.0]}), tmp_path / "out")


def test_inception_figures_of_points(scene: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FID is the Fréchet distance of the network's features of the drawn pictures; a second run sees none anew."""
    seen: list[int] = []

    class Colours(Coarse):
        name, sha256 = "mean colours", "c0105c0105"

        def __init__(self, *_: Any, **__: Any) -> None: ...

        def __call__(self, images: Any) -> Any:
            seen.append(len(images))
            return images.mean((1, 2)).astype(np.float32)

        def logits(self, features: Any) -> Any:
            return features / 50

    monkeypatch.setattr(point_judge, "InceptionNetwork", Colours)
    chosen = tiny_sweep(*scene, fid=True, points=FIELDS["points"][2:])
    out = tmp_path / "out"
    jobs = [what.split(":")[0] for what, _, _ in runner(chosen, out).jobs(["fid"])]
    assert jobs == ["shown"] * 2 + ["fid"] * 2 + ["done"]
    list(runner(chosen, out).jobs(["speed"]))
    report = publish(out)
    row = whole(report, "ar")
    pixels = np.load(next(scene[1].glob("images.npy")))[100:190, 0]
    labels = [place % 3 for place in range(100, 180)]
    drawn = np.stack(HybridPipeline.from_pretrained(scene[0])(labels, method="ar", seed=0, output_type="pil").images)
    features = [images.mean((1, 2)).astype(np.float32) for images in (drawn, pixels)]
    assert row["fid"] == pytest.approx(frechet_distance(*features), rel=1e-5) and row["clip_score"] is None
    assert row["inception_score"] == pytest.approx(inception_score(features[0] / 50)[0], rel=1e-5)
    assert whole(report, BAD_LABEL)["fid"] > 3 * row["fid"]
    assert report["header"]["fid_network"] == "mean colours"
    assert "Inception and CLIP" in (out / "report.md").read_text()
    before = len(seen)
    list(runner(chosen, out).jobs(["fid"], again=True))
    assert len(seen) == before
    with pytest.raises(ValueError, match="CLIP score: the data set fashion was drawn from classes, not captions"):
        list(runner(tiny_sweep(*scene, fid={"clip": "c.pt"}), tmp_path / "clip").jobs(["fid"]))


def test_without_inception_weights_one_line(
    scene: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import yaml

    monkeypatch.setattr(sweep, "FeatureNetwork", Coarse)
    config = tmp_path / "sweep.yaml"
    fields = {**FIELDS, "pair": str(scene[0]), "data": str(scene[1]), "fid": {"inception": str(tmp_path / "none")}}
    config.write_text(yaml.safe_dump(fields))
    assert cli.main(["run", str(config), "--out", str(tmp_path / "out"), "--only", "fid"]) == 2
    told = [line for line in capsys.readouterr().err.splitlines() if not line[0].isdigit()]
    assert len(told) == 1 and f"FID: no Inception weights at {tmp_path / 'none'}; put weights-inception-" in told[0]


def test_a_compiled_point(scene: tuple[Path, Path], tmp_path: Path) -> None:
    """It is drawn by a compiled pipeline, and said to be compiled."""
    points = [{"method": "masked", "steps": 2, "compile": True}]
    speed = {"batch_sizes": [1], "repeats": 5}
    chosen = tiny_sweep(*scene, data_set=None, prompts=[0], points=points, speed=speed)
    run = runner(chosen, tmp_path / "out")
    list(run.jobs())
    row = whole(publish(tmp_path / "out"), "masked, 2 steps, compiled")
    assert row["compile"] and row["median"] == 0.25 and row["peak_memory_bytes"] > 0
    assert run._pipeline(chosen.others[0]).compiled and not run._pipeline(chosen.baselines[0]).compiled


def test_report_files(swept: tuple[Path, dict[str, Any]]) -> None:
    out, _ = swept
    html = (out / "report.html").read_text()
    assert "http" not in html and "<script" not in html and html.count("data:image/png;base64,") == 5
    # No two points differ in the AR fraction or the passes alone, so there is no curve of quality to draw.
    assert {path.stem for path in (out / "plots").glob("*.png")} == {"pareto", "phases", "regions", "grid", "origin"}
    text = (out / "report.md").read_text()
    assert "Preliminary: 80 pictures a point" in text and BAD_LABEL in text and "coarse pixels" in text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pictures": 1}, "pictures: 1 are too few; the statistics need 80"),
        ({"pictures": 120, "reference": None}, "has 90 pictures to ask for, the sweep wants 120"),
        ({"pair": "nowhere"}, "nowhere: no such model, folder or file"),
        ({"pair": "BROKEN"}, "ar: no weights at"),
        ({"data": "EMPTY"}, "meta.json: not found"),
        ({"data_set": "fashions"}, "data_set 'fashions': use one of fashion, emoji, folder"),
        ({"data_set": None, "data": None}, "give data_set for fidelity and speed, or prompts for speed alone"),
    ],
)
def test_mistakes_are_one_line(
    changes: dict[str, Any],
    message: str,
    scene: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import yaml

    monkeypatch.setattr(sweep, "FeatureNetwork", Coarse)
    pair, data = scene
    shutil.copytree(pair, tmp_path / "broken")
    (tmp_path / "broken" / "ar" / "model.safetensors").unlink()
    names = {"BROKEN": str(tmp_path / "broken"), "EMPTY": str(tmp_path)}
    fields = {**FIELDS, "pair": str(pair), "data": str(data), **changes}
    fields = {key: names.get(value, value) if isinstance(value, str) else value for key, value in fields.items()}
    config = tmp_path / "sweep.yaml"
    config.write_text(yaml.safe_dump(fields))
    assert cli.main(["run", str(config), "--out", str(tmp_path / "out"), "--only", "fidelity"]) == 2
    told = [line for line in capsys.readouterr().err.splitlines() if not line[0].isdigit()]
    assert len(told) == 1 and message in told[0], told


def test_a_report_made_anew_throws_nothing_away(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "bench-fashion", "--out", str(tmp_path), "--only", "report", "--again"]) == 2
    told = "hybrid-bench: --again: throws rows away, and --only report measures none; leave one of them out\n"
    assert capsys.readouterr().err == told


def test_another_sweep_in_the_same_folder_is_refused(
    swept: tuple[Path, dict[str, Any]], scene: tuple[Path, Path]
) -> None:
    index = scene[0] / "model_index.json"
    before = index.read_text()
    changed = json.loads(before)
    changed["defaults"]["noise"] = 1.5  # of every point that does not say it
    index.write_text(json.dumps(changed))
    try:
        with pytest.raises(ValueError, match="holds a sweep with another pair_defaults; use another --out"):
            runner(tiny_sweep(*scene), swept[0])
    finally:
        index.write_text(before)
    with pytest.raises(ValueError, match="holds a sweep with another seeds; use another --out"):
        runner(tiny_sweep(*scene, seeds=[1]), swept[0])
