"""``figures.json`` of tiny random pairs on tiny data: what is in it, what is not drawn twice, what is refused."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pairs import CLASSES, class_pair, text_pair
from tiny_emoji import drawings

from hybrid.benchmarks import artist as artist_module
from hybrid.benchmarks import best_ar, classifier, cli, fashion, figures
from hybrid.benchmarks.artist import Artist, Drawn, Method, pair_weights
from hybrid.benchmarks.points import Point
from hybrid.checkpoint import sha256
from hybrid.data.folder import DataFolder, create_images, write_records
from hybrid.pipeline import HybridPipeline

PICTURES = 80


class Coarse:
    """Every fourth pixel: features without a network."""

    name, sha256 = "coarse pixels", "c0a45e0123"

    def __init__(self) -> None:
        self.pictures = 0

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float16]:
        self.pictures += len(images)
        small = images[:, ::4, ::4].astype(np.float32).reshape(len(images), -1)
        return (small / 255).astype(np.float16)


def write_folder(path: Path, records: list[dict[str, Any]], name: str) -> Path:
    path.mkdir(parents=True)
    images = create_images(path, (len(records), 2, 8, 8, 3))
    images[:] = np.random.default_rng(0).integers(0, 256, images.shape, dtype=np.uint8)
    images.flush()
    write_records(path, records, {"name": name}, "none\n")
    return path


@pytest.fixture(scope="module")
def clothes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    splits = ["train"] * (PICTURES + 20) + ["test"] * PICTURES
    records = [
        {"label": place % 3, "captions": [CLASSES[place % 3]], "split": split} for place, split in enumerate(splits)
    ]
    return write_folder(tmp_path_factory.mktemp("data") / "fashion", records, "fashion")


@pytest.fixture(scope="module")
def drawn_emoji(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("data") / "emoji", drawings(), "emoji")


@pytest.fixture(scope="module")
def class_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pairs") / "tiny"
    class_pair().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def judge() -> classifier.FashionClassifier:
    model = classifier.FashionClassifier().eval()
    torch.nn.init.zeros_(model.head.weight)
    torch.nn.init.constant_(model.head.bias[1:2], 1.0)  # always class 1, which a third of the pictures are
    return model


@pytest.fixture(scope="module")
def made(clothes: Path, class_folder: Path, judge: Any) -> tuple[Path, dict[str, Any], Coarse]:
    network = Coarse()
    out, content = figures.make_figures(
        "fashion", pair=class_folder, data=clothes, pictures=PICTURES, network=network, options={"classifier": judge}
    )
    return out, content, network


def test_fashion_figures_say_what_they_are(made: tuple[Path, dict[str, Any], Coarse], class_folder: Path) -> None:
    out, content, _ = made
    assert out == class_folder / "figures.json" and json.loads(out.read_text()) == content
    assert content["preliminary"] and content["pictures"] == PICTURES and content["required_pictures"] == 10_000
    assert content["feature_network"] == "coarse pixels" and content["seed"] == 0 and content["versions"]["torch"]
    weights = {f"{part}/model.safetensors" for part in ("ar", "masked", "tokenizer")}
    assert set(content["weights_sha256"]) == weights
    assert content["weights_sha256"]["ar/model.safetensors"] == sha256(class_folder / "ar" / "model.safetensors")
    named = {"ar_frechet_over_floor", "ar_accuracy_share"}
    named |= {f"{method}_frechet_over_ar" for method in ("hybrid25", "hybrid50", "masked8", "masked16")}
    assert named <= set(content) and all(math.isfinite(content[name]) for name in named)
    for name in named:
        low, high = content["intervals"][name]
        assert low <= content["lower_95"][name] <= content["upper_95"][name] <= high
    assert set(content["methods"]) == {"real", "reconstruction", *(method.name for method in fashion.METHODS)}
    floor, ar = content["methods"]["reconstruction"], content["methods"]["ar"]
    assert content["ar_frechet_over_floor"] == pytest.approx(ar["frechet"] / floor["frechet"])
    assert content["ar_accuracy_share"] == pytest.approx(ar["accuracy"] / content["details"]["real_accuracy"])
    assert ar["pictures"] == PICTURES and ar["settings"]["ar_fraction"] == 1
    assert content["methods"]["masked16"]["settings"]["steps"] == 16


def test_the_ar_model_is_at_its_best(made: tuple[Path, dict[str, Any], Coarse], class_folder: Path) -> None:
    choice, ar = made[1]["details"]["ar_choice"], made[1]["methods"]["ar"]
    defaults = HybridPipeline.from_pretrained(class_folder).defaults
    assert [one["settings"] for one in choice["tried"]] == best_ar.grid(defaults)
    assert len({tuple(one["settings"].items()) for one in choice["tried"]}) == 9  # 3 · 3, the pair's own among them
    best = min(choice["tried"], key=lambda one: one["frechet"])
    assert choice["settings"] == best["settings"] and choice["pictures"] == PICTURES
    # As many pictures as are compared, so that the figure is the very same.
    assert ar["frechet"] == best["frechet"]
    assert ar["settings"].get("options", {}) == best["settings"]


def test_a_known_ar_setting_is_not_looked_for(
    made: tuple[Path, dict[str, Any], Coarse], clothes: Path, class_folder: Path, judge: Any, tmp_path: Path
) -> None:
    known = {"guidance_scale": 2.0, "temperature": 0.5}
    _, content = figures.make_figures(
        "fashion", pair=class_folder, data=clothes, pictures=PICTURES, network=Coarse(), out=tmp_path / "f.json",
        options={"classifier": judge, "ar": known},
    )  # fmt: skip
    assert content["details"]["ar_choice"] == {"settings": known, "pictures": PICTURES, "tried": []}
    tried = {tuple(one["settings"].items()): one["frechet"] for one in made[1]["details"]["ar_choice"]["tried"]}
    assert content["ar_frechet"] == tried[tuple(known.items())]


def test_a_second_run_draws_nothing_and_gives_the_same_digits(
    made: tuple[Path, dict[str, Any], Coarse],
    clothes: Path,
    class_folder: Path,
    judge: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("drew again")

    monkeypatch.setattr(HybridPipeline, "__call__", refuse)
    out, network = tmp_path / "again" / "figures.json", Coarse()
    options = {"classifier": judge}
    _, content = figures.make_figures(
        "fashion", pair=class_folder, data=clothes, pictures=PICTURES, network=network, out=out, options=options
    )
    changing = ("seconds", "commit", "threads")
    assert {key: value for key, value in content.items() if key not in changing} == {
        key: value for key, value in made[1].items() if key not in changing
    }
    assert network.pictures == 0
    with pytest.raises(AssertionError, match="drew again"):
        figures.make_figures(
            "fashion",
            pair=class_folder,
            data=clothes,
            pictures=PICTURES,
            seed=1,
            network=network,
            out=out,
            options=options,
        )


def test_a_longer_run_takes_over_a_killed_one(
    class_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(artist_module, "BATCH", 4)
    pipeline, weights, told = HybridPipeline.from_pretrained(class_folder), pair_weights(class_folder), []

    def kill(what: str, done: int, total: int) -> None:
        told.append((what, done, total))
        if done == 8 and total == 12:
            raise KeyboardInterrupt

    artist = Artist(pipeline, weights, Coarse(), tmp_path, told=kill)
    method, prompts = Method("hybrid25", 0.25, 2), [0, 1, 2] * 4
    with pytest.raises(KeyboardInterrupt):
        artist.draw(method, prompts, seed=5)
    assert told == [("hybrid25", 4, 12), ("hybrid25", 8, 12)]
    asked: list[int] = []
    whole = HybridPipeline.__call__

    def counted(self: HybridPipeline, prompt: Any, **options: Any) -> Any:
        asked.append(options["seed"])
        return whole(self, prompt, **options)

    monkeypatch.setattr(HybridPipeline, "__call__", counted)
    drawn = Artist(pipeline, weights, Coarse(), tmp_path).draw(method, [*prompts, 1, 2], seed=5)
    assert asked == [13, 17] and len(drawn) == 14
    expected = pipeline(prompts, ar_fraction=0.25, steps=2, seed=5, output_type="tokens").tokens
    assert np.array_equal(drawn.tokens_nk[:12], expected.numpy())
    # Other weights, steps or dtype never meet these files.
    asked.clear()
    Artist(pipeline, {**weights, "ar": "0"}, Coarse(), tmp_path).draw(method, prompts[:4], seed=5)
    Artist(pipeline, weights, Coarse(), tmp_path).draw(Method("hybrid25", 0.25, 3), prompts[:4], seed=5)
    assert asked == [5, 5]


def test_figures_and_sweeps_take_over_each_others_pictures(class_folder: Path, tmp_path: Path) -> None:
    pipeline, prompts = HybridPipeline.from_pretrained(class_folder), [0, 1, 2]

    def drawn(way: Method | Point) -> Drawn:
        return Artist(pipeline, {}, Coarse(), tmp_path).draw(way, prompts, seed=5)

    def files() -> int:
        return len(list(tmp_path.glob("drawn-*.npy")))

    pairs: list[tuple[Method, dict[str, Any]]] = [
        (Method("ar", 1.0, options=(("temperature", 1.0),)), {"method": "ar", "temperature": 1}),
        (Method("half", 0.5, 2), {"method": "hybrid", "steps": 2, "ar_fraction": 0.5}),
        (Method("masked", 0.0, 2), {"method": "masked", "steps": 2}),
    ]
    for method, settings in pairs:
        first, before = drawn(method), files()
        again = drawn(Point(tuple(settings.items())))
        assert files() == before and np.array_equal(first.tokens_nk, again.tokens_nk)
        whole = pipeline(prompts, seed=5, output_type="tokens", **settings).tokens
        assert np.array_equal(first.tokens_nk, whole.numpy())
    # Defaults of a phase that does not run change nothing: the AR model's pictures stay, a hybrid's are drawn anew.
    before, pipeline.defaults = files(), pipeline.defaults.model_copy(update={"order": "random"})
    drawn(pairs[0][0])
    assert files() == before
    drawn(pairs[1][0])
    assert files() == before + 2
    # Compiled networks round differently, so their pictures are others.
    before, pipeline.compiled = files(), True
    drawn(pairs[0][0])
    assert files() == before + 2


def test_pictures_are_what_would_be_saved(class_folder: Path, tmp_path: Path) -> None:
    pipeline = HybridPipeline.from_pretrained(class_folder)
    drawn = Artist(pipeline, {}, Coarse(), tmp_path).draw(Method("ar", 1.0), [0, 2], seed=3)
    saved = pipeline([0, 2], method="ar", seed=3).images
    pixels = Artist(pipeline, {}, Coarse(), tmp_path).pictures(drawn)
    assert all(np.array_equal(pixels[row], np.asarray(saved[row])) for row in range(2))
    assert np.array_equal(drawn.features_nd, Coarse()(pixels))


def test_an_ar_model_with_codes_of_its_own_is_refused(tmp_path: Path) -> None:
    pipe, same, other = class_pair(), class_pair(), class_pair(seed=1)

    def artist(ar_tokenizer: Any, **options: Any) -> Artist:
        made = HybridPipeline(pipe.tokenizer, ar=pipe.ar, ar_tokenizer=ar_tokenizer, name="two", **options)
        return Artist(made, {}, Coarse(), tmp_path)

    assert len(artist(same.tokenizer, masked=pipe.masked).draw(Method("ar", 1.0), [0], seed=3)) == 1
    for options in ({"masked": pipe.masked, "lossy": "pixels"}, {}):
        with pytest.raises(ValueError, match=r"^two: its AR model has codes of its own .* hybrid-bench sample"):
            artist(other.tokenizer, **options)


def test_real_pictures_of_the_floor_have_the_same_classes(clothes: Path) -> None:
    folder = DataFolder.open(clothes)
    labels = fashion.labels_of(folder.items, folder.indices("test"), "here")
    places = fashion.same_labels(folder.indices("train"), folder.items, labels)
    assert [folder.items[place]["label"] for place in places] == labels.tolist() and len(set(places)) == len(places)
    assert all(folder.items[place]["split"] == "train" for place in places)
    with pytest.raises(ValueError, match="class 0 has too few train pictures for a real floor of 200 pictures"):
        fashion.same_labels(folder.indices("train"), folder.items, np.zeros(200, dtype=np.int64))


# Emoji


def test_emoji_figures_have_every_name(drawn_emoji: Path, tmp_path: Path) -> None:
    pair, out = tmp_path / "tiny", tmp_path / "figures.json"
    pipe = text_pair()
    pipe.save_pretrained(pair)
    _, content = figures.make_figures(
        "emoji",
        pair=pair,
        data=drawn_emoji,
        pictures=PICTURES,
        out=out,
        network=Coarse(),
        options={"encoder": pipe.text, "sets": ["noto", "twemoji"], "views": 2, "ar": {}},
    )
    named = {"tokenizer_psnr_db", "tokenizer_codes_used", "ar_retrieval_share", "ar_heldout_retrieval_share"}
    for method in ("hybrid25", "hybrid50", "masked"):
        named |= {f"{method}_retrieval_of_ar", f"{method}_frechet_over_ar"}
    assert named <= set(content) and all(math.isfinite(content[name]) for name in named)
    assert content["preliminary"] and content["details"]["sets"] == ["noto", "twemoji"]
    assert content["details"]["retrieval_names"] == 40
    assert content["details"]["heldout"]["recombined"] == 1 and content["details"]["heldout"]["new_noun"] == 5
    ar = content["methods"]["ar"]
    assert content["ar_retrieval_share"] == pytest.approx(ar["retrieval"] / content["details"]["real_retrieval"])
    memory = ar["memorisation"]
    assert memory["heldout"]["pictures"] == 12 and 0 <= memory["seen"]["equal_tokens"]["below_first_percentile"] <= 1
    assert (tmp_path / memory["picture"]).is_file()
    assert set(content["intervals_200"]) >= {"ar_retrieval_share", "hybrid25_retrieval_of_ar"}


# The command


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["fashion", "--pictures", "5"], "--pictures 5: the statistics need at least 80"),
        (["fashion", "--seed", "-1"], "--seed -1: must be 0 or above"),
        (["fashion", "--pictures", "90"], "--pictures 90: CLOTHES has 80 test pictures"),
        (["fashion", "--pair", "nowhere"], "nowhere: no such model, folder or file"),
        (["fashion", "--pair", "BROKEN"], "ar: no weights at BROKEN/ar/model.safetensors"),
        (["fashion", "--data", "EMPTY"], "EMPTY/meta.json: not found"),
        (["fashion", "--data", "EMOJI"], "no picture has split 'test'"),
        (["emoji", "--pictures", "80"], "its pictures have no concept groups; --data must name an emoji folder"),
        (["emoji", "--threads", "0"], "--threads 0: must be at least 1"),
        (["fashion", "--ar", "{"], "--ar: not JSON"),
        (["fashion", "--ar", '{"top_k": 1}'], '--ar {"top_k": 1}: give guidance_scale and temperature, or {}'),
    ],
)
def test_mistakes_are_one_line(
    options: list[str],
    message: str,
    clothes: Path,
    drawn_emoji: Path,
    class_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(figures, "FeatureNetwork", Coarse)
    names = {
        "CLOTHES": str(clothes),
        "EMOJI": str(drawn_emoji),
        "EMPTY": str(tmp_path),
        "BROKEN": str(tmp_path / "broken"),
    }
    shutil.copytree(class_folder, tmp_path / "broken")
    (tmp_path / "broken" / "ar" / "model.safetensors").unlink()
    for flag, value in (("--pair", str(class_folder)), ("--data", str(clothes))):
        if flag not in options:
            options = [*options, flag, value]
    given = [names.get(option, option) for option in options]
    for name, path in names.items():
        message = message.replace(name, path)
    assert cli.main(["figures", *given, "--out", str(tmp_path / "out.json")]) == 2
    told = capsys.readouterr().err
    assert message in told and told.count("\n") == 1 and not (tmp_path / "out.json").exists()


def test_command_prints_the_figures(
    made: Any,
    clothes: Path,
    class_folder: Path,
    tmp_path: Path,
    capsys: Any,
    monkeypatch: pytest.MonkeyPatch,
    judge: Any,
) -> None:
    monkeypatch.setattr(figures, "FeatureNetwork", Coarse)
    monkeypatch.setattr(fashion, "load_classifier", lambda: judge)
    out = tmp_path / "f.json"
    given = ["--pair", str(class_folder), "--data", str(clothes), "--pictures", str(PICTURES), "--out", str(out)]
    assert cli.main(["figures", "fashion", *given]) == 0
    told = capsys.readouterr().out
    assert told.startswith("preliminary: 80 pictures a method, 10000 are required\n") and told.endswith(f"{out}\n")
    assert "ar_frechet_over_floor" in told
