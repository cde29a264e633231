"""``hybrid-bench ablate``: what is measured twice, what the words say of planted numbers, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from numpy.typing import NDArray
from pairs import CLASSES, TRANSFORMER, class_pair
from pairs import TOKENIZER as PAIR_TOKENIZER
from tiny import LOOP, MODELS, data_folder, tokenizer_file
from torch import nn

from hybrid.benchmarks import ablate_points, classifier, cli
from hybrid.benchmarks.ablate import DrawConfig, find_sweep, read_sweep, run_sweep, shipped, with_growth
from hybrid.config import DefaultsConfig, PhaseConfig
from hybrid.data.folder import create_images, write_records

NAMES = ["codebook", "guidance", "handoff", "norms", "rope", "schedules"]
ORDER = [("without post_norm", 0), ("with post_norm", 0), ("without post_norm", 1), ("with post_norm", 1)]
MEASURE = {"says": "held-out loss", "unit": "nats", "better": "lower", "curve": False, "judged": True}


def sweep_file(path: Path, **changes: Any) -> Path:
    """A tiny sweep of masked training: with and without post-norm, seeds 0 and 1."""
    fields = {
        "title": "Tiny",
        "question": "Does it run?",
        "limits": "Tiny.",
        "seeds": [0, 1],
        "vary": {"train.model.config.post_norm": [False, True]},
        "measures": {
            "nats": {"says": "training", "unit": "nats", "curve": True, "judged": False},
            "eval_nats_half": {"says": "held out", "unit": "nats"},
            "eval_output_norm": {"says": "norm", "unit": "norm", "curve": True},
        },
        "train": {
            "task": "masked",
            "data": "tiny",
            "model": MODELS["masked"],
            "loop": {**LOOP, "steps": 3, "eval_every": 1},
        },
    }
    path.write_text(yaml.safe_dump({**fields, **changes}, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return data_folder(tmp_path_factory.mktemp("data") / "tiny")


@pytest.fixture(scope="module")
def swept(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, Any]]:
    """A sweep killed in its third point and then finished: its file, its folder and its result."""
    out = tmp_path_factory.mktemp("out")
    file = sweep_file(out / "ablate-tiny.yaml")
    asked: list[tuple[str, int]] = []
    whole = ablate_points.Workbench.measure

    def counted(self: Any, point: Any, told: Any) -> Any:
        asked.append((point.variant, point.seed))
        if len(asked) == 3:
            raise KeyboardInterrupt
        return whole(self, point, told)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ablate_points.Workbench, "measure", counted)
        with pytest.raises(KeyboardInterrupt):
            run_sweep(str(file), data=folder, tokenizer=tokenizer_file(folder), out=out)
        target, content = run_sweep(str(file), data=folder, tokenizer=tokenizer_file(folder), out=out)
    assert asked == [*ORDER[:3], *ORDER[2:]]
    return file, target, content


def test_a_killed_sweep_redoes_at_most_one_point(swept: tuple[Path, Path, dict[str, Any]]) -> None:
    _, target, content = swept
    assert json.loads(target.read_text()) == content
    assert [(point["variant"], point["seed"]) for point in content["points"]] == ORDER
    assert len(list((target.parent / "points").iterdir())) == 4


def test_a_finished_sweep_measures_nothing_again(
    swept: tuple[Path, Path, dict[str, Any]], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, target, content = swept

    def refuse(*_: Any) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(ablate_points.Workbench, "measure", refuse)
    _, again = run_sweep(str(file), data=folder, tokenizer=tokenizer_file(folder), out=target.parent)
    assert again["points"] == content["points"]
    other = sweep_file(target.parent / "ablate-other.yaml", seeds=[2, 3])
    with pytest.raises(AssertionError, match="measured again"):
        run_sweep(str(other), data=folder, tokenizer=tokenizer_file(folder), out=target.parent)


def test_the_result_says_what_it_is(swept: tuple[Path, Path, dict[str, Any]]) -> None:
    _, target, content = swept
    assert content["seeds"] == [0, 1] and content["threads"] == torch.get_num_threads() and not content["quick"]
    assert content["versions"]["torch"] == torch.__version__ and "commit" in content
    assert content["settings"]["train"]["loop"]["steps"] == 3 and len(content["inputs"]["tokenizer"]) == 64
    for point in content["points"]:
        assert [line["step"] for line in point["curve"]] == [1, 2, 3]
        assert point["curve"][-1]["eval_nats_half"] == point["figures"]["eval_nats_half"]
        assert all(line["eval_output_norm"] > 0 for line in point["curve"])
    first, second = content["points"][0], content["points"][2]
    assert first["figures"]["eval_nats_half"] != second["figures"]["eval_nats_half"]
    assert target.with_suffix(".md").read_text() == content["text"]
    assert target.with_suffix(".png").stat().st_size > 10_000


def test_the_norm_is_that_of_the_last_blocks_output_at_image_places() -> None:
    class Add(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + torch.tensor([3.0, 4.0])

    class Fake(nn.Module):
        """Two blocks that add (3, 4) each, a condition of (1000, 0) in front, and a final norm."""

        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([Add(), Add()])
            self.norm = nn.LayerNorm(2)

        def forward(self, tokens_bn: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
            x = torch.cat((condition, torch.zeros(*tokens_bn.shape, 2)), dim=1)
            for layer in self.layers:
                x = layer(x)
            return self.norm(x[:, 1:])

    model, condition = Fake(), torch.tensor([[[1000.0, 0.0]]])
    with ablate_points.OutputNorm(model) as norm:
        model(torch.zeros(1, 5, dtype=torch.long), condition)  # 5 places of |(6, 8)|
        model(torch.zeros(1, 3, dtype=torch.long), condition + 1)
    assert norm.places == 8 and norm.mean == pytest.approx(10.0)
    assert not model.norm._forward_pre_hooks


def test_a_real_models_norm_is_what_its_last_block_gives() -> None:
    model = class_pair().masked
    seen: list[torch.Tensor] = []
    model.layers[-1].register_forward_hook(lambda *args: seen.append(args[2]))
    with torch.no_grad(), ablate_points.OutputNorm(model) as norm:
        model(torch.zeros(2, 16, dtype=torch.long), model.condition([0, 2]))
    expected = seen[0][:, 1:].square().sum(-1).sqrt().mean()  # the class comes first
    assert norm.places == 32 and norm.mean == pytest.approx(float(expected), rel=1e-6)


def test_growth_is_the_norm_over_its_first_value() -> None:
    curve = [{"step": 1, "loss": 5.0}, {"step": 2, "eval_output_norm": 4.0}, {"step": 3, "eval_output_norm": 6.0}]
    found = with_growth({"figures": {"eval_output_norm": 6.0}, "curve": curve})
    assert found["figures"]["eval_output_norm_growth"] == 1.5
    assert [line.get("eval_output_norm_growth") for line in found["curve"]] == [None, 1.0, 1.5]
    assert with_growth({"figures": {"psnr": 1.0}, "curve": [{"step": 1}]})["figures"] == {"psnr": 1.0}


# Sweeps that draw


class Coarse:
    """Every fourth pixel: features without a network."""

    name, sha256 = "coarse pixels", "c0a45e0123"

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float16]:
        small = images[:, ::4, ::4].astype(np.float32).reshape(len(images), -1)
        return (small / 255).astype(np.float16)


@pytest.fixture(scope="module")
def clothes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "fashion"
    path.mkdir()
    splits = ["train"] * 84 + ["test"] * 80
    records = [{"label": place % 3, "split": split} for place, split in enumerate(splits)]
    images = create_images(path, (len(records), 1, 8, 8, 3))
    images[:] = np.random.default_rng(0).integers(0, 256, images.shape, dtype=np.uint8)
    images.flush()
    write_records(path, records, {"name": "fashion"}, "none\n")
    return path


@pytest.fixture(scope="module")
def pair_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pairs") / "tiny"
    class_pair().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def judge_of_class_1() -> classifier.FashionClassifier:
    model = classifier.FashionClassifier().eval()
    nn.init.zeros_(model.head.weight)
    nn.init.constant_(model.head.bias[1:2], 1.0)
    return model


def drawing(pair: Path, **changes: Any) -> dict[str, Any]:
    fields = {"pair": str(pair), "pictures": 80, "real": 80, "ar_fraction": 0.25, "steps": 4}
    measures = {
        "frechet": {"says": "distance", "unit": "features"},
        "accuracy_share": {"says": "accuracy", "unit": "1"},
    }
    return {"draw": {**fields, **changes}, "measures": measures}


def test_a_drawing_sweep_changes_what_it_says_and_nothing_else(
    clothes: Path, pair_folder: Path, judge_of_class_1: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vary = {"draw.defaults.masked.guidance_scale": [1.0, 3.0], "draw.defaults.schedule": ["root", "arccos"]}
    file = sweep_file(tmp_path / "ablate-drawn.yaml", train=None, vary=vary, **drawing(pair_folder))
    seen: list[tuple[Any, ...]] = []
    whole = ablate_points.Artist.draw

    def noted(self: Any, method: Any, prompts: Any, seed: int) -> Any:
        defaults = self.pipeline.defaults
        seen.append((defaults.masked.guidance_scale, defaults.schedule, defaults.ar.guidance_scale, seed))
        return whole(self, method, prompts, seed)

    monkeypatch.setattr(ablate_points.Artist, "draw", noted)
    options = {"network": Coarse(), "classifier": judge_of_class_1}
    _, content = run_sweep(str(file), data=clothes, out=tmp_path, **options)
    stride = ablate_points.SEED_STRIDE
    assert seen == [
        (scale, schedule, 1.0, seed * stride)
        for seed in (0, 1)
        for scale in (1.0, 3.0)
        for schedule in ("root", "arccos")
    ]
    assert content["references"]["frechet"] > 0
    assert content["references"]["real_accuracy"] == pytest.approx(27 / 80)  # the judge says class 1 of everything
    assert all(point["figures"]["accuracy_share"] == pytest.approx(1.0) for point in content["points"])
    assert len({point["figures"]["frechet"] for point in content["points"]}) == 8
    with pytest.raises(ValueError, match="trains no model on codes, so --tokenizer would do nothing"):
        run_sweep(str(file), data=clothes, out=tmp_path, tokenizer=file, **options)


def test_a_trained_model_takes_the_pairs_place(
    clothes: Path, pair_folder: Path, judge_of_class_1: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = {"kind": "maskgil", "config": {**TRANSFORMER, "num_classes": len(CLASSES), "rope": "2d"}}
    train = {"task": "masked", "data": "fashion", "model": model, "loop": {**LOOP, "steps": 2}}
    file = sweep_file(
        tmp_path / "ablate-both.yaml", train=train, vary={"train.prefix_share": [0.0, 1.0]}, **drawing(pair_folder)
    )
    masked: list[Any] = []
    whole = ablate_points.Artist.draw

    def noted(self: Any, *args: Any) -> Any:
        masked.append(self.pipeline.masked.output.weight.detach().clone())
        return whole(self, *args)

    monkeypatch.setattr(ablate_points.Artist, "draw", noted)
    tokenizer = pair_folder / "tokenizer" / "model.safetensors"
    _, content = run_sweep(
        str(file), data=clothes, tokenizer=tokenizer, out=tmp_path, network=Coarse(), classifier=judge_of_class_1
    )
    assert len({weight.sum().item() for weight in masked}) == 4
    assert all({"frechet", "eval_nats_half"} <= set(point["figures"]) for point in content["points"])


def test_a_wrong_default_is_named() -> None:
    fields = {"pair": "fashion", "pictures": 80, "real": 80, "ar_fraction": 0, "defaults": {"maskd": {"top_k": 1}}}
    with pytest.raises(ValueError, match=r"here: draw\.defaults: unknown key 'maskd'; did you mean 'masked'"):
        ablate_points.merged(DefaultsConfig(), DrawConfig(**fields), "here")
    fields["defaults"] = {"steps": {"top_k": 1}}
    with pytest.raises(ValueError, match=r"draw\.defaults: steps: "):
        ablate_points.merged(DefaultsConfig(), DrawConfig(**fields), "here")
    fields["defaults"] = {"masked": {"top_k": 1}}
    merged = ablate_points.merged(DefaultsConfig(masked=PhaseConfig(top_p=0.5)), DrawConfig(**fields), "here")
    assert merged.masked == PhaseConfig(top_p=0.5, top_k=1) and merged.ar == PhaseConfig()


def test_codebooks_are_counted_in_bits(clothes: Path, tmp_path: Path) -> None:
    train = {"task": "tokenizer", "data": "fashion", "model": {"kind": "fsq", "config": PAIR_TOKENIZER}, "loop": LOOP}
    measures = {"eval_psnr": {"says": "PSNR", "unit": "dB"}, "bits_per_picture": {"says": "size", "unit": "bits"}}
    vary = {"train.model.config.levels": [[2, 2], [4, 4]]}
    file = sweep_file(tmp_path / "ablate-codes.yaml", train=train, measures=measures, vary=vary)
    _, content = run_sweep(str(file), data=clothes, out=tmp_path, quick=True)
    assert content["quick"] and "its figures mean nothing" in content["text"]
    assert content["settings"]["train"]["loop"]["steps"] == 4
    found = {point["variant"]: point["figures"]["bits_per_picture"] for point in content["points"]}
    assert found == {"levels 2·2": 16 * 2, "levels 4·4": 16 * 4}


# Names and mistakes


def test_every_shipped_sweep_reads_and_has_two_seeds() -> None:
    assert shipped() == NAMES
    for name in NAMES:
        sweep, points = read_sweep(find_sweep(name))
        assert len(sweep.seeds) >= 2 and len({point.variant for point in points}) * len(sweep.seeds) == len(points)
        assert read_sweep(find_sweep(name), quick=True)[0] != sweep
    half = [point.config.train for point in read_sweep(find_sweep("handoff"))[1] if point.values["train.prefix_share"]]
    assert {config.prefix_share for config in half if config} == {0.5, 1.0}
    assert {config.loop.seed for config in half if config} == {0, 1}


def test_an_unknown_name_is_one_line_and_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["ablate", "norm"]) == 2
    out, err = capsys.readouterr()
    names = ", ".join(NAMES)
    assert out == ""
    assert (
        err == f"hybrid-bench: ablate norm: unknown; did you mean 'norms'? choose one of {names}, or give a YAML file\n"
    )


def test_mistakes_in_a_sweep_name_the_key(tmp_path: Path, folder: Path) -> None:
    file = tmp_path / "ablate-wrong.yaml"
    with pytest.raises(ValueError, match="no such file"):
        read_sweep(file)
    sweep_file(file, vary={"train.prefix_shore": [0, 1]})
    with pytest.raises(ValueError, match=r"unknown key 'train\.prefix_shore'; did you mean 'prefix_share'"):
        read_sweep(file)
    sweep_file(file, vary={"title.x": [0, 1]})
    with pytest.raises(ValueError, match=r"vary: title\.x: 'title' holds no settings"):
        read_sweep(file)
    sweep_file(file, across="train.loop.lr")
    with pytest.raises(ValueError, match=r"'train\.loop\.lr' is not among the keys of vary"):
        read_sweep(file)
    sweep_file(file, seeds=[0])
    with pytest.raises(ValueError, match="seeds"):
        read_sweep(file)
    sweep_file(file, train=None)
    with pytest.raises(ValueError, match=r"ablate-wrong\.yaml: .*train"):
        read_sweep(file)
    sweep_file(file, measures={"eval_nothing": MEASURE})
    with pytest.raises(ValueError, match="measures: no point has 'eval_nothing'"):
        run_sweep(str(file), data=folder, tokenizer=tokenizer_file(folder), out=tmp_path, quick=True)
    with pytest.raises(ValueError, match=r"gone\.safetensors: no such file"):
        run_sweep(str(file), data=folder, tokenizer=tmp_path / "gone.safetensors", out=tmp_path)
    with pytest.raises(ValueError, match="hybrid-data"):
        run_sweep(str(file), data=tmp_path / "gone", out=tmp_path)
