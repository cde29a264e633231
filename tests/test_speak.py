"""``hybrid.speak`` with a fake pipeline and recogniser, and the command line's one-line refusals."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from hybrid.phases import Cancelled
from hybrid.speak import CHOICES, Cost, Painter, asker, live
from hybrid.speak_cli import PATIENCE, Pause, main


class FakePipe:
    """Two passes a picture; before the second it waits for ``go`` where the prompt is in ``slow``."""

    def __init__(self, *slow: str) -> None:
        self.slow, self.began, self.go = slow, threading.Event(), threading.Event()
        self.calls: list[tuple[str, dict[str, Any]]] = []

    def __call__(self, prompt: str, *, callback_on_step_end: Any, **arguments: Any) -> Any:
        self.calls.append((prompt, arguments))
        if prompt == "bad":
            raise ValueError("prompt 'bad': refused")
        for step in range(2):
            if step and prompt in self.slow:
                self.began.set()
                assert self.go.wait(10)
            if callback_on_step_end(self, step, "fill", {}) is False:
                raise Cancelled("cancelled")
        return SimpleNamespace(images=[prompt])


def painter(pipe: FakePipe, shown: list[tuple[str, str]]) -> Painter:
    return Painter(
        pipe,
        seed=7,
        preview={"method": "masked"},
        final={"method": "hybrid"},
        show=lambda picture: shown.append((picture.kind, picture.image)),
    )


def test_a_newer_text_cancels_between_passes_and_keeps_the_seed() -> None:
    pipe, shown = FakePipe("a"), []
    with painter(pipe, shown) as drawing:
        drawing.ask("preview", "a")
        assert pipe.began.wait(10)
        drawing.ask("final", "a cat")
        pipe.go.set()
        drawing.finish()
    assert shown == [("final", "a cat")]
    assert drawing.cancelled == 1
    assert pipe.calls == [("a", {"seed": 7, "method": "masked"}), ("a cat", {"seed": 7, "method": "hybrid"})]


def test_leaving_cancels_what_is_in_flight() -> None:
    pipe, shown = FakePipe("a"), []
    with painter(pipe, shown) as drawing:
        drawing.ask("preview", "a")
        assert pipe.began.wait(10)
        threading.Timer(0.05, pipe.go.set).start()
    assert (shown, drawing.cancelled) == ([], 1)


def test_an_error_in_the_thread_reaches_the_caller() -> None:
    with painter(FakePipe(), []) as drawing:
        drawing.ask("final", "bad")
        with pytest.raises(ValueError, match="refused"):
            drawing.finish()
        with pytest.raises(ValueError, match="refused"):
            drawing.ask("final", "good")


class Script:
    """A recogniser that says a text at each piece."""

    def __init__(self, texts: list[str | None], final: str) -> None:
        self.texts, self.final = iter(texts), final

    def feed(self, samples: Any, rate: int) -> str | None:
        return next(self.texts)

    def finish(self) -> str:
        return self.final


def pieces(count: int) -> list[tuple[Any, int]]:
    return [(np.zeros(100, np.float32), 1000)] * count


def test_stable_partials_are_previewed_and_the_last_picture_is_the_final() -> None:
    shown: list[tuple[str, str]] = []
    with painter(FakePipe(), shown) as drawing:
        report = live(pieces(4), Script(["Draw me", "a cat", None, None], "Draw me a cat hat."), drawing)
    assert (report.partials, report.prompt, report.text) == (["a cat"], "a cat hat", "Draw me a cat hat.")
    assert shown[-1] == ("final", "a cat hat")
    assert report.previews + report.cancelled == 1
    assert report.spoken == pytest.approx(0.4)


@pytest.mark.parametrize(("count", "line"), [(0, "no sound came in"), (2, "nothing was understood")])
def test_nothing_heard_is_told(count: int, line: str) -> None:
    with painter(FakePipe(), []) as drawing, pytest.raises(ValueError, match=line):
        live(pieces(count), Script([None, None], ""), drawing)


def test_classes_and_vocabularies_find_what_is_meant() -> None:
    fashion = asker(SimpleNamespace(classes=["Sneaker", "Bag"]))
    assert (fashion("Sneakers."), fashion("a volcano")) == ("Sneaker", None)
    emoji = SimpleNamespace(classes=None)
    assert asker(emoji, ["a strawberry", "a star"])("Astroberry.") == "a strawberry"
    assert asker(emoji)("Please draw me a star.") == "a star"


def test_a_budget_takes_the_best_choice_that_fits() -> None:
    cost = Cost(fixed=0.1, per_token=0.01, per_pass=0.05, places=100)
    assert cost.seconds(0.5, 8) == pytest.approx(1.0)
    assert (cost.choose(10), cost.choose(1.01), cost.choose(0)) == (CHOICES[0], (0.5, 8), CHOICES[-1])


def test_the_microphone_ends_after_a_pause_or_when_nobody_speaks() -> None:
    def count(texts: list[str | None]) -> int:
        pause, fed = Pause(Script(texts, "")), 0
        for samples, rate in pause.until_pause(iter([(np.zeros(500), 1000)] * 100)):
            pause.feed(samples, rate)
            fed += 1
        return fed

    assert count(["a", "a cat", *[None] * 98]) == 4
    assert count([None] * 100) == PATIENCE / 0.5


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["none.wav"], "none.wav: no such file"),
        (["broken.wav"], "broken.wav: not a"),
        (["empty.wav"], "empty.wav: is empty; give a recording"),
        (["empty.wav", "-o", "x.gif"], "--out x.gif: use a name that ends in .png, .jpg or .webp"),
        (["empty.wav", "--budget-ms", "0"], "--budget-ms 0: must be above 0"),
        (["empty.wav", "--seed", "-1"], "--seed -1: must be 0 or above"),
        (["--fast"], "--fast: only a file can be heard faster than it was spoken; give one"),
        (["-", "--fast"], "--fast: only a file can be heard faster than it was spoken; give one"),
        (["--fasst"], "unknown option --fasst; did you mean --fast?"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("broken.wav").write_bytes(b"RIFFxxxx")
    Path("empty.wav").touch()
    assert main(arguments) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"hybrid-speak: {line}") and told.count("\n") == 1


def test_a_vocabulary_for_a_pairing_of_classes_is_one_line(
    pair_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("hybrid.adapters.speech.load_recogniser", lambda _: None)
    (tmp_path / "words.txt").write_text("a star\n")
    assert main(["-", "--config", str(pair_folder), "--vocabulary", str(tmp_path / "words.txt")]) == 2
    told = "hybrid-speak: vocabulary: this pairing draws its 3 classes and nothing else; leave it out\n"
    assert capsys.readouterr().err == told
