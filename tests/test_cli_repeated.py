"""``hybrid-generate --from``: a picture is drawn again from the settings that it holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from generating import Run, pixels
from pairs import TOKENIZER, class_pair
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from hybrid import __version__
from hybrid.adapters import fsq
from hybrid.picture_files import KEY, read_settings, write_picture
from hybrid.request import METHODS


def test_from_repeats_one_picture_of_many_exactly(run: Run) -> None:
    drawn = ["--guidance", 2, "--temperature", 0.9, "--top-k", 7, "--order", "halton", "--negative-prompt", "sneaker"]
    assert run("bag", "-n", 3, "-o", "many", "--seed", 4, "--scale", 2, *drawn)[0] == 0
    code, out, err = run("--from", "many/003-bag.png", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["repeated"] is True
    assert json.loads(out)["pictures"] == [{"file": "bag.png", "prompt": "bag", "seed": 6}]
    assert pixels("bag.png") == pixels("many/003-bag.png")
    assert Image.open("bag.png").size == (16, 16)


def test_options_beside_from_override_its_settings(run: Run) -> None:
    run("bag", "--seed", 4, "--steps", 2, "--ar-tokens", 3)
    told = json.loads(run("--from", "bag.png", "--method", "ar", "--json")[1])
    assert (told["tokens"]["ar"], told["repeated"]) == (16, None)
    told = json.loads(run("--from", "bag.png", "sneaker", "-n", 2, "--seed", 9, "--json")[1])
    assert [(one["prompt"], one["seed"]) for one in told["pictures"]] == [("sneaker", 9), ("sneaker", 10)]
    assert (told["tokens"]["ar"], told["passes"]["fill"]) == (6, 2)


def test_passes_that_were_cut_to_the_places_left_are_nobodys_choice(run: Run) -> None:
    run("bag", "--seed", 4, "--ar-tokens", 15)
    again = json.loads(run("--from", "bag.png", "-o", "again.png", "--json")[1])
    assert (again["repeated"], again["passes"]["fill"]) == (True, 1)
    assert (
        json.loads(run("--from", "bag.png", "-o", "all.png", "--method", "masked", "--json")[1])["passes"]["fill"] == 4
    )


def test_a_repetition_that_differs_says_so(run: Run, tmp_path: Path) -> None:
    class_pair().save_pretrained(tmp_path / "mine")
    run("bag", "--config", "mine", "--seed", 1)
    class_pair(seed=8).save_pretrained(tmp_path / "mine")
    code, out, err = run("--from", "bag.png", "--json")
    assert (code, json.loads(out)["repeated"]) == (0, False)
    assert "note: the tokens differ from the repeated picture's" in err


def test_a_judged_picture_is_repeated_and_methods_are_compared(run: Run) -> None:
    run("bag", "--seed", 4, "--method", "relaxed", "--relax", 0.4, "--window", 4)
    code, out, _ = run("--from", "bag.png", "--json", "-o", "again.png")
    told = json.loads(out)
    assert (code, told["repeated"], told["settings"]["drawing"]["method"]) == (0, True, "relaxed")
    assert told["passes"]["verify"] > 0 and told["tokens"]["ar"] + told["tokens"]["masked"] == 16
    asked = ("--methods", "relaxed,refined", "--relax", 0.4, "--rounds", 2, "--repeats", 1)
    told = json.loads(run("bag", "--seed", 4, "--compare", *asked, "--json", "-o", "sheet.png")[1])
    assert list(told["methods"]) == ["ar", "relaxed", "refined"]
    assert told["methods"]["relaxed"]["settings"]["relax"] == 0.4
    assert told["methods"]["refined"]["passes"]["score"] == 2


def follow(run: Run, *asked: object) -> tuple[int, int, int]:
    """AR tokens, passes of the fill and of the AR model as a judge, of one.png drawn again with other options."""
    told = json.loads(run("--from", "one.png", *asked, "--json", "-o", "other.png")[1])
    return told["tokens"]["ar"], told["passes"]["fill"], told["passes"]["score"]


@pytest.mark.parametrize("method", METHODS)
def test_another_method_takes_the_share_and_the_passes_of_the_pairing(run: Run, method: str) -> None:
    run("bag", "--seed", 4, "--method", method, "-o", "one.png")
    assert json.loads(run("--from", "one.png", "--json", "-o", "again.png")[1])["repeated"] is True
    assert pixels("again.png") == pixels("one.png")
    assert follow(run, "--method", "hybrid") == (4, 4, 0)
    assert follow(run, "--method", "refined") == (4, 4, 1)
    assert follow(run, "--method", "masked") == (0, 4, 0)


def test_what_was_asked_of_a_hybrid_goes_with_it_to_another_method(run: Run) -> None:
    run("bag", "--seed", 4, "--ar-fraction", 0.5, "--steps", 3, "-o", "one.png")
    assert follow(run, "--method", "refined") == (8, 3, 1)
    assert follow(run, "--method", "masked") == (0, 3, 0)


@pytest.mark.parametrize(
    ("method", "held"),
    [
        ("ar", {"ar_fraction": 1.0}),
        ("masked", {"ar_fraction": 0.0}),
        ("exact", {"ar_fraction": 1.0, "steps": 1}),
        ("relaxed", {"ar_fraction": 1.0, "steps": 1}),
    ],
)
def test_a_share_that_the_method_fixed_is_no_default(run: Run, method: str, held: dict[str, Any]) -> None:
    run("bag", "--seed", 4, "--method", method, "-o", "one.png")
    settings = read_settings(Path("one.png"))
    drawing = settings.drawing.model_copy(update=held)
    write_picture(Image.open("one.png"), Path("one.png"), settings.model_copy(update={"drawing": drawing}))
    assert json.loads(run("--from", "one.png", "--json", "-o", "again.png")[1])["repeated"] is True
    assert follow(run, "--method", "hybrid") == (4, 4, 0)
    told = json.loads(run("--from", "one.png", "--compare", "--repeats", 1, "--json", "-o", "sheet.png")[1])["methods"]
    assert [(lane["tokens"]["ar"], lane["passes"]["fill"]) for lane in told.values()] == [(16, 0), (4, 4), (0, 4)]


def test_a_picture_of_the_ar_models_own_tokenizer_has_its_own_size(run: Run) -> None:
    coarse, coarse.config = fsq.create(TOKENIZER | {"factor": 4})
    pipe = class_pair(ar_tokenizer=coarse.eval(), lossy="pixels")
    pipe.kinds["ar_tokenizer"] = "fsq"
    pipe.save_pretrained("mine")
    run("bag", "--config", "mine", "--seed", 4, "--method", "ar", "-o", "one.png")
    kept = read_settings(Path("one.png"))
    assert (kept.height, kept.width) == Image.open("one.png").size == (8, 8)
    told = json.loads(run("--from", "one.png", "--json", "-o", "again.png")[1])
    assert (told["repeated"], told["tokens"]["ar"]) == (True, 4)
    assert pixels("again.png") == pixels("one.png")


def test_settings_stand_in_a_text_chunk(run: Run, pair_folder: Path) -> None:
    run("bag", "--seed", 4)
    raw = Path("bag.png").read_bytes()
    assert b"tEXthybrid\x00{" in raw
    told = json.loads(Image.open("bag.png").text[KEY])
    assert (told["prompt"], told["seed"], told["config"], told["version"]) == ("bag", 4, str(pair_folder), __version__)


def test_pictures_without_settings_cannot_be_repeated(run: Run, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save("plain.png")
    Image.new("RGB", (8, 8)).save("plain.jpg")
    for name, text in (("broken.png", "{"), ("other.png", '{"seed": 1}')):
        info = PngInfo()
        info.add_text(KEY, text)
        Image.new("RGB", (8, 8)).save(name, pnginfo=info)
    run("bag", "-o", "cut.png", "--scale", 8)
    Path("cut.png").write_bytes(Path("cut.png").read_bytes()[:-200])
    for name, message in (
        ("plain.png", "holds no settings"),
        ("plain.jpg", "holds no settings; only single PNG pictures from hybrid-generate do"),
        ("broken.png", "its settings are damaged"),
        ("other.png", "settings: version: Field required"),
        ("gone.png", "no such file"),
        ("cut.png", "not a readable picture"),
    ):
        code, out, err = run("--from", name)
        assert (code, out, len(err.splitlines())) == (2, "", 1)
        assert err.startswith(f"hybrid-generate: {name}: {message}")
