"""``hybrid-generate --from``: a picture is drawn again from the settings that it holds."""

from __future__ import annotations

import json
from pathlib import Path

from generating import Run, pixels
from pairs import class_pair
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from hybrid import __version__
from hybrid.picture_files import KEY


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
