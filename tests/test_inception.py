"""FID, Inception Score and CLIP score: closed forms, torch-fidelity's own formulas, files, the command, mistakes.

The networks' weights cannot be shipped, so that stand-ins with the same faces take their places.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from hybrid.benchmarks import cli, clip_score, inception
from hybrid.benchmarks.inception import Moments, frechet_inception_distance, inception_score, moments
from hybrid.benchmarks.picture_sets import open_set

RNG = np.random.default_rng(0)


class Colours:
    """Mean colour of a picture as its features, and its logits."""

    name, sha256 = "mean colours", "c0105"

    def __init__(self, weights: Any = None, **_: Any) -> None:
        self.weights = weights

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        return images.mean((1, 2)).astype(np.float32)

    def logits(self, features: NDArray[np.float32]) -> NDArray[np.float64]:
        return features / 10


# Formulas


def test_fid_of_diagonal_gaussians_is_the_closed_form() -> None:
    """|μ|² and (σ − τ)² of each axis."""
    one = Moments(np.zeros(3), np.diag([1.0, 4.0, 9.0]), 10)
    other = Moments(np.array([3.0, 0, 4.0]), np.diag([4.0, 4.0, 1.0]), None)
    assert frechet_inception_distance(one, other) == pytest.approx(25 + 1 + 0 + 4)
    assert frechet_inception_distance(one, one) == pytest.approx(0, abs=1e-9)


def test_moments_are_the_unbiased_ones() -> None:
    found = moments(np.array([[0.0, 1.0], [2.0, 1.0]], dtype=np.float32))
    assert (found.mean_d.tolist(), found.cov_dd.tolist(), found.pictures) == ([1.0, 1.0], [[2.0, 0.0], [0.0, 0.0]], 2)


def test_inception_score_counts_classes() -> None:
    """Sure of k equally frequent classes: k. Unsure of everything: 1. Half sure: exp of the mutual information."""
    sure = 100 * np.eye(4)[np.arange(4000) % 4]
    mean, deviation = inception_score(sure, splits=1)
    assert mean == pytest.approx(4) and deviation == 0
    assert inception_score(np.zeros((50, 7)))[0] == pytest.approx(1)
    p = np.array([[0.9, 0.1], [0.1, 0.9]])
    expected = np.exp(np.log(2) + 0.9 * np.log(0.9) + 0.1 * np.log(0.1))
    assert inception_score(np.log(p[np.arange(100) % 2]), splits=1)[0] == pytest.approx(expected)


def test_torch_fidelity_computes_the_same() -> None:
    fid = pytest.importorskip("torch_fidelity.metric_fid", exc_type=ImportError)
    isc = pytest.importorskip("torch_fidelity.metric_isc", exc_type=ImportError)
    one, other = RNG.normal(size=(400, 8)), 1.5 * RNG.normal(size=(300, 8)) + 0.3
    theirs = [fid.fid_features_to_statistics(torch.from_numpy(x)) for x in (one, other)]
    expected = fid.fid_statistics_to_metric(*theirs, False)[fid.KEY_METRIC_FID]
    assert frechet_inception_distance(moments(one), moments(other)) == pytest.approx(expected, rel=1e-9)
    found = isc.isc_features_to_metric(torch.from_numpy(one))
    expected = (found[isc.KEY_METRIC_ISC_MEAN], found[isc.KEY_METRIC_ISC_STD])
    assert inception_score(one) == pytest.approx(expected, rel=1e-12)


def test_clip_score_is_the_clipped_cosine() -> None:
    images = torch.tensor([[2.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    captions = torch.tensor([[5.0, 0.0], [3.0, 4.0], [-1.0, 0.0]])
    assert clip_score.scores_of(images, captions).tolist() == pytest.approx([100, 80, 0])


# Networks, where torch-fidelity and open_clip are stand-ins


def stand_in(monkeypatch: pytest.MonkeyPatch, name: str, **fields: Any) -> None:
    parts = name.split(".")
    for end in range(1, len(parts) + 1):
        module = ModuleType(".".join(parts[:end]))
        monkeypatch.setitem(sys.modules, module.__name__, module)
    for field, value in fields.items():
        setattr(module, field, value)


def test_inception_sees_eight_bit_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The port gets uint8 (b, 3, h, w) as it wants it, grey pictures in three channels."""
    seen: list[torch.Tensor] = []

    class Port(torch.nn.Module):
        def __init__(self, name: str, features: list[str], feature_extractor_weights_path: str) -> None:
            super().__init__()
            assert (name, features) == ("inception-v3-compat", ["2048"]) and Path(
                feature_extractor_weights_path
            ).exists()
            self.fc = torch.nn.Linear(3, 2)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
            seen.append(x)
            return (x.float().mean((2, 3)),)

    stand_in(monkeypatch, "torch_fidelity.feature_extractor_inceptionv3", FeatureExtractorInceptionV3=Port)
    path = tmp_path / "w.pth"
    path.write_bytes(b"weights")
    monkeypatch.setattr(inception, "DIGEST", "9b1f8fdc")
    with pytest.raises(ValueError, match=r"w.pth: not weights-inception-2015-12-05-6726825d.pth: sha256 "):
        inception.InceptionNetwork(path)
    monkeypatch.setattr(inception, "DIGEST", inception.sha256(path)[:8])
    network = inception.InceptionNetwork(path, batch=2)
    features = network(np.full((3, 4, 4, 1), 200, np.uint8))
    assert features.dtype == np.float32 and features.tolist() == [[200.0] * 3] * 3
    assert [(x.dtype, tuple(x.shape)) for x in seen] == [(torch.uint8, (2, 3, 4, 4)), (torch.uint8, (1, 3, 4, 4))]
    expected = features.astype(np.float64) @ network._output_kd.T
    assert np.array_equal(network.logits(features), expected) and expected.shape == (3, 2)


def test_clip_takes_pictures_and_captions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Model(torch.nn.Module):
        def encode_image(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean((2, 3))

        def encode_text(self, x: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.one_hot(x, 3).float()

    def create(model: str, pretrained: str, device: str) -> Any:
        return Model(), None, lambda picture: torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1).float()

    words = {"red": 0, "green": 1, "blue": 2}
    stand_in(
        monkeypatch, "open_clip", create_model_and_transforms=create, list_models=lambda: ["ViT-B-32-quickgelu"],
        get_tokenizer=lambda _: lambda captions: torch.tensor([words[caption] for caption in captions]),
    )  # fmt: skip
    path = tmp_path / "clip.pt"
    path.write_bytes(b"clip")
    images = np.zeros((3, 2, 2, 3), np.uint8)
    images[..., 0] = 255
    assert clip_score.ClipNetwork(path, batch=2)(images, ["red", "green", "red"]).tolist() == [100, 0, 100]
    with pytest.raises(ValueError, match="open_clip knows no model 'ViT'"):
        clip_score.ClipNetwork(path, "ViT")


@pytest.mark.parametrize("module", ["torch_fidelity", "open_clip"])
def test_a_missing_package_is_named(module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    path = tmp_path / "weights"
    path.touch()
    with pytest.raises(ValueError, match=r'not installed; pip install "hybrid-imagegen\[fid\]"'):
        (inception.InceptionNetwork if module == "torch_fidelity" else clip_score.ClipNetwork)(path)


def test_missing_weights_say_where_to_put_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(ValueError) as caught:
        inception.InceptionNetwork()
    assert str(tmp_path / "checkpoints" / inception.WEIGHTS) in str(caught.value) and "\n" not in str(caught.value)


# Files


def write_samples(path: Path, images: NDArray[np.uint8], prompts: list[Any]) -> Path:
    path.mkdir()
    np.savez(path / "samples.npz", arr_0=images)
    (path / "request.json").write_text(json.dumps({"prompts": prompts}))
    return path


@pytest.fixture
def images() -> NDArray[np.uint8]:
    return np.random.default_rng(1).integers(0, 256, (70, 4, 4, 3), dtype=np.uint8)


def test_the_same_pictures_from_every_kind_of_file(images: NDArray[np.uint8], tmp_path: Path) -> None:
    drawn = write_samples(tmp_path / "drawn", images, ["a", "b"])
    pngs = tmp_path / "pngs"
    pngs.mkdir()
    for place, image in enumerate(images):
        Image.fromarray(image).save(pngs / f"{place:03d}.png")
    for path in (drawn, drawn / "samples.npz", pngs):
        found = open_set(path)
        blocks = list(found.batches())
        assert found.count == 70 and [len(block) for block in blocks] == [64, 6]
        assert np.array_equal(np.concatenate(blocks), images)
    assert open_set(drawn).prompts == ("a", "b") and open_set(pngs).prompts is None


def test_files_of_different_sizes_come_apart(tmp_path: Path) -> None:
    for place, side in enumerate((4, 4, 6, 4)):
        Image.new("L", (side, side), 7).save(tmp_path / f"{place}.png")
    assert [block.shape for block in open_set(tmp_path).batches()] == [(2, 4, 4, 3), (1, 6, 6, 3), (1, 4, 4, 3)]


# The command

CUT = ("CUT", "NOTHING", "ARRAY")


def run(options: list[Any], capsys: Any) -> tuple[int, str, str]:
    code = cli.main(["fid", *map(str, options)])
    told = capsys.readouterr()
    return code, told.out, told.err


def test_command(images: NDArray[np.uint8], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    class Clip:
        name = "a clip"

        def __init__(self, *_: Any, **__: Any) -> None: ...

        def __call__(self, images: NDArray[np.uint8], captions: list[str]) -> NDArray[np.float64]:
            return np.array([{"a": 10.0, "b": 20.0}[caption] for caption in captions])

    monkeypatch.setattr(inception, "InceptionNetwork", Colours)
    monkeypatch.setattr(clip_score, "ClipNetwork", Clip)
    drawn = write_samples(tmp_path / "drawn", images, ["a", "b"])
    real = moments(images[:40].mean((1, 2)))
    np.savez(tmp_path / "moments.npz", mu=real.mean_d, sigma=real.cov_dd)
    np.savez(tmp_path / "real.npz", arr_0=images[:40])
    found = []
    for reference in ("moments.npz", "real.npz"):
        out = tmp_path / "out.json"
        options = [drawn, "--reference", tmp_path / reference, "--clip", "x", "--out", out]
        code, told, _ = run(options, capsys)
        assert code == 0 and "70 pictures; published figures are of 50,000" in told and "CLIP score 15 (a clip)" in told
        found.append(json.loads(out.read_text()))
    assert found[0]["fid"] == pytest.approx(found[1]["fid"], rel=1e-4) and found[1]["reference_pictures"] == 40
    expected = frechet_inception_distance(moments(images.mean((1, 2))), real)
    assert found[0]["fid"] == pytest.approx(expected, rel=1e-4)
    assert found[0]["inception_score"] == pytest.approx(inception_score(images.mean((1, 2)) / 10)[0], rel=1e-4)
    assert found[0]["network"] == "mean colours"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["NOWHERE"], "NOWHERE: no such file or folder"),
        (["EMPTY"], "EMPTY: no pictures in it"),
        (["ONE"], "ONE: 1 picture; give at least 2"),
        (["BAD"], "bad.npz: truncated or not .npz"),
        (["FLOATS"], "floats.npz: arr_0 is float64 (3, 4, 4, 3), expected uint8 (n, h, w, 3)"),
        (["DRAWN", "--reference", "NOWHERE"], "NOWHERE: no such file or folder"),
        (["DRAWN", "--reference", "ONE"], "FID: 1 picture has no covariance"),
        (["DRAWN", "--reference", "WRONG"], "wrong.npz: mu (3,) and sigma (2, 2) do not fit together"),
        (["DRAWN", "--reference", "BAD"], "bad.npz: truncated or not .npz"),
        (["DRAWN", "--reference", "CUT"], "cut.npz: truncated or not .npz"),
        (["DRAWN", "--reference", "NOTHING"], "nothing.npz: truncated or not .npz"),
        (["DRAWN", "--reference", "ARRAY"], "array.npz: truncated or not .npz"),
        (["DRAWN", "--reference", "OTHER"], "FID: features of 3 and 2 numbers"),
        (["DRAWN", "--split", "test", "--reference", "DRAWN"], "--split test: DRAWN is no data folder"),
        (["DRAWN", "--split", "test", "--reference", "OTHER"], "--split test: OTHER is no data folder"),
        (["DRAWN", "--split", "test"], "--split: does nothing without --reference; add it, or leave --split out"),
        (["DRAWN", "--prompts", "x"], "--prompts: does nothing without --clip; add it, or leave --prompts out"),
        (
            ["DRAWN", "--clip-model", "x"],
            "--clip-model: does nothing without --clip; add it, or leave --clip-model out",
        ),
        (
            ["DRAWN", "--no-inception", "--clip", "x", "--reference", "x"],
            "--reference: does nothing with --no-inception",
        ),
        (
            ["DRAWN", "--no-inception", "--clip", "x", "--inception", "x"],
            "--inception: does nothing with --no-inception",
        ),
        (["DRAWN", "--no-inception"], "--no-inception: leaves nothing to do without --clip FILE"),
        (["DRAWN", "--no-inception", "--clip", "NOWHERE"], "CLIP score: no weights at NOWHERE"),
    ],
)
def test_mistakes_are_one_line(
    options: list[str],
    message: str,
    images: NDArray[np.uint8],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
) -> None:
    monkeypatch.setattr(inception, "InceptionNetwork", Colours)
    write_samples(tmp_path / "drawn", images, [0, 1])
    write_samples(tmp_path / "one", images[:1], [0])
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.npz").write_bytes(b"PK")
    np.savez(tmp_path / "floats.npz", arr_0=np.zeros((3, 4, 4, 3)))
    np.savez(tmp_path / "wrong.npz", mu=np.zeros(3), sigma=np.eye(2))
    np.savez(tmp_path / "other.npz", mu=np.zeros(2), sigma=np.eye(2))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "other.npz").read_bytes()[:-40])
    (tmp_path / "nothing.npz").touch()
    with (tmp_path / "array.npz").open("wb") as file:
        np.save(file, np.zeros(2))
    names = {name: tmp_path / name.lower() for name in ("NOWHERE", "EMPTY", "ONE", "DRAWN")}
    names |= {name: tmp_path / f"{name.lower()}.npz" for name in ("BAD", "FLOATS", "WRONG", "OTHER", *CUT)}
    code, _, told = run([names.get(option, option) for option in options], capsys)
    for name, path in names.items():
        message = message.replace(name, str(path))
    assert code == 2 and message in told and told.count("\n") == 1


def test_pictures_of_classes_have_no_clip_score() -> None:
    assert clip_score.captions_of(["a"], "x") == ["a"]
    for prompts in (None, [], [1, 2]):
        with pytest.raises(ValueError, match="CLIP score: x was drawn from classes, not captions; give --prompts FILE"):
            clip_score.captions_of(prompts, "x")
