"""``--compare``: the race of the three methods, its picture and its table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pairs import class_pair, refused
from PIL import Image

from hybrid import HybridPipeline, cli
from hybrid.compare import CELL, Lane, _wrapped, compare_picture, load_note, race
from hybrid.types import PHASES, Generation, Grid, Phases


def test_methods_take_turns_after_one_warm_up_each(pipe: HybridPipeline) -> None:
    told: list[tuple[str, int, int]] = []
    arguments = {"seed": 3, "steps": 2, "ar_tokens": 8}
    lanes = race(pipe, ["bag", "0"], arguments, repeats=2, tell=lambda *entry: told.append(entry))
    assert [entry[0] for entry in told] == ["ar", "hybrid", "masked"] * 3
    assert told[-1][1:] == (8, 9)
    assert [lane.method for lane in lanes] == ["ar", "hybrid", "masked"]
    assert all(len(lane.seconds) == 2 and min(lane.seconds) > 0 for lane in lanes)
    assert [lane.passes for lane in lanes] == ["16 passes", "8 + 2 passes", "2 passes"]
    for lane in lanes:
        given = {"seed": 3} if lane.method == "ar" else {"seed": 3, "steps": 2}
        given = arguments if lane.method == "hybrid" else given
        expected = pipe(["bag", "0"], method=lane.method, **given)
        assert lane.result.tokens.tolist() == expected.tokens.tolist()


@pytest.mark.parametrize(("parts", "lacking"), [("ar", "masked"), ("masked", "AR")])
def test_a_missing_model_is_named(parts: str, lacking: str) -> None:
    with pytest.raises(ValueError, match=f"--compare needs an AR and a masked model; tiny has no {lacking} model"):
        race(class_pair(parts=parts), ["bag"], {})


@pytest.mark.parametrize(
    ("methods", "arguments", "owners"),
    [
        (["hybrid"], {"window": 4}, "exact or relaxed or jacobi or zipar"),
        (["jacobi"], {"steps": 2}, "hybrid or refined or masked"),
        (["hybrid"], {"rounds": 2}, "refined"),
        (["masked"], {"ar_fraction": 0.5}, "hybrid or refined"),
        (["jacobi"], {"reuse": 2}, "hybrid or refined or masked"),
    ],
)
def test_an_argument_that_no_method_takes_is_refused(
    pipe: HybridPipeline, methods: list[str], arguments: dict[str, object], owners: str
) -> None:
    (name,) = arguments
    told = refused(lambda: race(pipe, ["bag"], {"seed": 3, **arguments}, methods=methods))
    assert told == f"{name}: belongs to method {owners}; name it in --methods, or leave {name} out"


def lanes_of(size: tuple[int, int], rows: int) -> list[Lane]:
    lanes = []
    for method, seconds, colour in (("ar", 8.0, "red"), ("hybrid", 2.0, "lime"), ("masked", 0.5, "blue")):
        images = [Image.new("RGB", size, colour) for _ in range(rows)]
        phases = Phases({"fill": seconds}, dict.fromkeys(PHASES, 0) | {"prefix": 4, "fill": 2})
        result = Generation(images, None, None, Grid(1, 1), phases)  # type: ignore[arg-type]
        lanes.append(Lane(method, (seconds, seconds * 9, seconds / 2), result))
    return lanes


@pytest.mark.parametrize(("size", "zoom"), [((32, 32), 4), ((64, 64), 2), ((50, 100), 3), ((256, 256), 1)])
def test_pictures_are_enlarged_by_a_whole_number_to_at_least_128_pixels(size: tuple[int, int], zoom: int) -> None:
    page = compare_picture(lanes_of(size, 2), [("a prompt", "seed 0"), ("another", "seed 1")], "title")
    for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255)):
        count = sum(number for number, found in page.getcolors(page.width * page.height) if found == colour)
        assert count == 2 * size[0] * size[1] * zoom**2
    assert min(size) * zoom >= CELL


def test_columns_are_ar_hybrid_masked_and_the_header_is_ink_on_paper() -> None:
    page = compare_picture(lanes_of((64, 64), 1), [("x", "seed 0")], "title")
    row = page.height - 40
    colours = [page.getpixel((x, row)) for x in range(170, page.width)]
    order = [colour for place, colour in enumerate(colours) if place == 0 or colours[place - 1] != colour]
    assert [colour for colour in order if colour != (255, 255, 255)] == [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    header = page.crop((170, 40, page.width, 108))
    assert header.convert("L").getextrema() == (26, 255)


def test_long_titles_and_prompts_stay_inside(pipe: HybridPipeline) -> None:
    from PIL import ImageFont

    font = ImageFont.load_default(15)
    lines = _wrapped("an extraordinarily-long-word-that-fits-nowhere and then some more", font, 150, 3)
    assert len(lines) == 3
    assert lines[-1].endswith(" ...")
    assert all(font.getlength(line.removesuffix(" ...")) <= 150 for line in lines)
    assert _wrapped("a red apple", font, 150, 3) == ["a red apple"]
    page = compare_picture(lanes_of((64, 64), 1), [("p", "s")], "a long title " * 12)
    assert page.width > font.getlength("a long title " * 12)


def test_load_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0, 1})
    monkeypatch.setattr("os.getloadavg", lambda: (0.3, 0.0, 0.0))
    assert load_note() == "load 0.3 on 2 cores"
    monkeypatch.setattr("os.getloadavg", lambda: (2.0, 0.0, 0.0))
    assert load_note() == "load 2.0 on 2 cores; other programs are running, so times are too long and uneven"


def test_the_command_draws_one_picture_and_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    class_pair().save_pretrained("mine")
    line = ["bag", "ankle boot", "--config", "mine", "--seed", "3", "--compare", "--repeats", "1"]
    assert cli.main(line) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("mine: 2 pictures at once, 16 tokens each, cpu float32, ")
    assert [row.split()[0] for row in lines[1:5]] == ["method", "AR", "hybrid", "masked"]
    assert "1.00×" in lines[2]
    assert lines[-2].startswith("1 timed run of each after one to warm up; load ")
    assert lines[-1] == "compare-bag.png"
    assert Image.open("compare-bag.png").height > 2 * CELL
    assert cli.main([*line, "-o", "out.jpg", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert list(told["methods"]) == ["ar", "hybrid", "masked"]
    assert told["methods"]["ar"]["speedup"] == 1
    assert told["methods"]["hybrid"]["tokens"] == {"given": 0, "ar": 8, "masked": 24}
    assert told["files"] == ["out.jpg"]
    assert cli.main(["--from", "compare-bag.png"]) == 2
    assert "compare-bag.png: holds no settings" in capsys.readouterr().err


def test_comparing_a_repeated_picture_gives_hybrid_its_usual_fraction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    class_pair().save_pretrained("mine")
    assert cli.main(["bag", "--config", "mine", "--method", "ar", "--temperature", "0.5", "--quiet"]) == 0
    assert cli.main(["--from", "bag.png", "--compare", "--repeats", "1", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["methods"]
    assert [told[method]["tokens"]["ar"] for method in ("ar", "hybrid", "masked")] == [16, 4, 0]
    assert told["ar"]["settings"]["ar"]["temperature"] == 0.5
