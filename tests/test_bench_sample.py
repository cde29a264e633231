"""Pictures for evaluation suites: the same whatever the number of processes, each once, resumable."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pairs import class_pair
from PIL import Image

from hybrid.benchmarks import cli, sample
from hybrid.benchmarks.artist import ARGUMENTS
from hybrid.benchmarks.cli_sweep import read_settings
from hybrid.benchmarks.points import PATHS, arguments
from hybrid.pipeline import HybridPipeline

COUNT, SETTINGS = 10, {"ar_fraction": 0.5, "steps": 2}
KINDS = ("str | None", "int | None", "float | None")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pair") / "tiny"
    class_pair().save_pretrained(path)
    return path


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample, "PART", 3)


def test_processes_share_the_parts(pair: Path, tmp_path: Path) -> None:
    pipe, prompts = HybridPipeline.from_pretrained(pair), [0, 1, 2]
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    assert sample.draw_parts(pipe, prompts, COUNT, alone, settings=SETTINGS, seed=5) == 4
    drawn = [
        sample.draw_parts(pipe, prompts, COUNT, shared, settings=SETTINGS, seed=5, rank=rank, world=3)
        for rank in range(3)
    ]
    assert drawn == [2, 1, 1]
    arrays = [np.load(sample.merge(out, prompts, COUNT)) for out in (alone, shared)]
    assert np.array_equal(arrays[0]["arr_0"], arrays[1]["arr_0"])
    images, labels = arrays[0]["arr_0"], arrays[0]["arr_1"]
    assert images.shape == (COUNT, 8, 8, 3) and images.dtype == np.uint8
    assert labels.tolist() == [0, 1, 2] * 3 + [0] and labels.dtype == np.int64
    # Picture i is what its own seed draws, to within what a batch changes in the last bit before rounding.
    single = np.asarray(pipe(1, seed=9, **SETTINGS).images[0], dtype=int)
    assert np.abs(single - images[4]).max() <= 1
    files = sorted((shared / "png").iterdir())
    assert [path.name for path in files] == [f"{place:06d}.png" for place in range(COUNT)]
    assert all(np.array_equal(np.asarray(Image.open(path)), image) for path, image in zip(files, images, strict=True))


def test_a_kill_loses_one_part(pair: Path, tmp_path: Path) -> None:
    pipe = HybridPipeline.from_pretrained(pair)

    def kill(what: str, done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample.draw_parts(pipe, [0], COUNT, tmp_path, settings=SETTINGS, told=kill)
    with pytest.raises(ValueError, match=r"2 of 4 parts are missing, 000002\.npz first; run it again"):
        sample.merge(tmp_path, [0], COUNT)
    assert sample.draw_parts(pipe, [0], COUNT, tmp_path, settings=SETTINGS) == 2


def test_a_longer_request_goes_on(tmp_path: Path) -> None:
    request = {"seed": 0, "settings": SETTINGS, "prompts": [0], "pictures": 4}
    sample.prepare(tmp_path, request)
    for part in (0, 1):
        sample.part_path(tmp_path, part).parent.mkdir(exist_ok=True)
        sample.part_path(tmp_path, part).touch()
    sample.prepare(tmp_path, {**request, "pictures": 7})
    assert sample.part_path(tmp_path, 0).exists() and not sample.part_path(tmp_path, 1).exists()
    with pytest.raises(ValueError, match=r"-n 4: .* was begun for 7 pictures; ask for as many or more, or use another"):
        sample.prepare(tmp_path, request)
    with pytest.raises(ValueError, match="holds pictures with another seed; use another --out"):
        sample.prepare(tmp_path, {**request, "seed": 1})
    sample.part_path(tmp_path, 0).unlink()
    sample.prepare(tmp_path, {**request, "seed": 1})  # nothing was drawn


def test_two_processes_under_torchrun(pair: Path, tmp_path: Path) -> None:
    options = ["sample", str(pair), "-n", "130", "--cpu", "--settings", json.dumps(SETTINGS)]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "hybrid.benchmarks.cli", *options, "--out", str(tmp_path / "two")]
    ended = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert ended.returncode == 0, ended.stderr[-2000:]
    found = np.load(tmp_path / "two" / "samples.npz")["arr_0"]
    assert len(found) == 130 and len(list((tmp_path / "two" / "parts").iterdir())) == 3
    expected = HybridPipeline.from_pretrained(pair)([2, 0], seed=128, **SETTINGS).images
    assert np.abs(np.stack(expected).astype(int) - found[128:]).max() <= 1


def test_settings_of_every_type() -> None:
    given = {"method": "hybrid", "ar_fraction": 0.5, "steps": 8, "noise": 9, "top_k": None}
    assert read_settings(json.dumps(given)) == given
    assert all(str(ARGUMENTS[name].annotation) in KINDS for name in arguments() if name not in PATHS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-n", "0"], "-n 0: must be at least 1"),
        (["-n", "1", "--seed", "-1"], "--seed -1: must be 0 or above"),
        (["-n", "1", "--settings", "{"], "--settings: not JSON"),
        (
            ["-n", "1", "--settings", "[]"],
            '--settings []: give arguments of HybridPipeline by name, for example {"steps": 8}',
        ),
        (["-n", "1", "--settings", "5"], "--settings 5: give arguments of HybridPipeline by name"),
        (["-n", "1", "--settings", '{"steps": "8"}'], '--settings: steps expected int, got "8"'),
        (["-n", "1", "--settings", '{"steps": true}'], "--settings: steps expected int, got true"),
        (["-n", "1", "--settings", '{"noise": [1]}'], "--settings: noise expected float, got [1]"),
        (["-n", "1", "--settings", '{"method": 1}'], "--settings: method expected str, got 1"),
        (["-n", "1", "--settings", '{"dtype": "bf16"}'], "--settings: unknown 'dtype'"),
        (["-n", "1", "--settings", '{"step": 1}'], "--settings: unknown 'step'; use arguments of HybridPipeline"),
    ],
)
def test_mistakes_are_one_line(
    options: list[str], message: str, pair: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["sample", str(pair), "--out", str(tmp_path), *options]) == 2
    told = capsys.readouterr().err
    assert message in told and told.count("\n") == 1
