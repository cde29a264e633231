"""``benchmarks.speech`` and ``benchmarks.speech_report``: their arithmetic, files and page; nothing is spoken."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any
from zlib import crc32

import numpy as np
import pytest
import torch
from PIL import Image

from hybrid.benchmarks.speech import PROMPTS, errors, main, summary, words
from hybrid.benchmarks.speech_report import (
    Finder,
    group_of,
    page,
    read_pictures,
    read_report,
    retrieval,
    write_pictures,
    write_report,
)
from hybrid.speak import asker


def test_the_prompts_are_about_the_first_forty_everyday_words() -> None:
    listed = (Path(__file__).parent.parent / "docs" / "words.txt").read_text(encoding="utf-8").splitlines()
    assert list(PROMPTS.values()) == listed[:40]


@pytest.mark.parametrize(
    ("asked", "heard", "count"),
    [
        ("a red apple", "A red apple.", 0),
        ("a red apple", "", 3),
        ("a red apple", "the red maple tree", 3),
        ("a red apple", "red apple", 1),
        ("T-shirt", "tea shirt", 1),
    ],
)
def test_errors_are_words_to_change(asked: str, heard: str, count: int) -> None:
    assert errors(words(asked), words(heard)) == count


def row(voice: str, prompt: str, heard: str, first: float | None, final: float | None) -> dict[str, Any]:
    times = {"transcript": final and final / 2, "first_preview": first, "final": final}
    return {"voice": voice, "prompt": prompt, "heard": heard, "spoken": 1.0, **times}


ROWS = [
    row("flite slt", "a red apple", "a red apple", 0.4, 1.0),
    row("flite slt", "a brown dog", "a crown fog", 0.6, 1.2),
    row("flite slt", "a smiling cat", "smiling cat", None, 1.6),
    row("flite slt", "a small house", "", None, None),
]


def test_a_summary_counts_what_was_not_understood_as_wrong_and_gives_it_no_times() -> None:
    assert summary(ROWS) == {
        "prompts": 4,
        "word_error_rate": 0.5,  # 0 + 2 + 1 + 3 of 12
        "exact": 0.25,
        "nearest": 0.75,
        "refused": 1,
        "seconds": {
            "transcript": {"count": 3, "median": 0.6, "p90": 0.8, "max": 0.8},
            "first_preview": {"count": 2, "median": 0.5, "p90": 0.6, "max": 0.6, "within": 0.5},
            "final": {"count": 3, "median": 1.2, "p90": 1.6, "max": 1.6, "within": 0.667},
        },
    }


def test_the_vocabulary_refuses_what_hybrid_speak_refuses() -> None:
    """The letters of the second are nearest to the right prompt, but not near enough to be drawn."""
    heard = {"a red rose": "red nose", "a purple umbrella": "a purple and rather", "a yellow banana": "a yellow man"}
    ask = asker(SimpleNamespace(classes=None), list(PROMPTS))
    assert [ask(f"Draw me {text}.") for text in heard.values()] == ["a red rose", None, "a yellow lemon"]
    found = summary([row("flite slt", prompt, text, 0.4, 1.0) for prompt, text in heard.items()])
    assert (found["nearest"], found["refused"]) == (0.333, 1)


MACHINE = {"device": "a processor", "cores": 2, "threads": 1, "load": 0.1, "load_at_end": 0.9, "commit": "abc"}
REPORT: dict[str, Any] = {
    "recogniser": "a recogniser",
    "machines": {"flite slt": MACHINE | {"time": "now", "final": {"ar_fraction": 0.25, "steps": 8}}},
    "rows": ROWS,
    "retrieval": {"flite slt": retrieval([0, 1, 4, 40], 40)},
    "retrieval_by": "pixels",
}


def test_pictures_are_read_as_they_were_written(tmp_path: Path) -> None:
    pictures = [None if place == 3 else Image.new("RGB", (4, 2), (place, 0, 9)) for place in range(12)]
    write_pictures(tmp_path, "flite slt", pictures)
    found = read_pictures(tmp_path, "flite slt", 12)
    assert [None if tile is None else (tile.shape, set(map(tuple, tile.reshape(-1, 3)))) for tile in found] == [
        None if place == 3 else ((2, 4, 3), {(place, 0, 9)}) for place in range(12)
    ]
    with pytest.raises(ValueError, match=r"espeak-ng\.png: no such file; speak first"):
        read_pictures(tmp_path, "espeak-ng en-us", 1)


def test_ranks_become_shares() -> None:
    assert retrieval([0, 1, 4, 40], 40) == {
        "pictures": 4,
        "first": 0.25,
        "among_5": 0.75,
        "reciprocal_rank": round((1 + 1 / 2 + 1 / 5) / 4, 3),
    }


def test_a_words_group_is_the_one_with_most_pictures() -> None:
    items = [{"group": group, "captions": ["dog", group]} for group in ("b", "c", "c", "a")]
    assert (group_of("dog", items), group_of("a", items)) == ("c", "a")
    with pytest.raises(ValueError, match="captioned 'wug'; --data must name the emoji data"):
        group_of("wug", items)


WIDTH = 24


class Encoder:
    """A direction for each last word."""

    def encode(self, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        rows = [self.of(text) for text in texts]
        return torch.stack(rows)[:, None], torch.ones(len(texts), 1, dtype=torch.bool)

    def of(self, text: str) -> torch.Tensor:
        word = text.split()[-1]
        direction = torch.randn(WIDTH, generator=torch.Generator().manual_seed(crc32(word.encode())))
        return direction / direction.norm()


class Network:
    """Features that are the pixels."""

    name, sha256 = "pixels", "0" * 64

    def __call__(self, images: Any) -> Any:
        return np.asarray(images, np.float16).reshape(len(images), -1) / 128 - 1


class Folder:
    """Real pictures, one of each name."""

    def __init__(self, path: Path, names: list[str], images: Any) -> None:
        self.path, self.images = path, images
        self.items = [{"name": name, "group": name, "captions": [name]} for name in names]

    def __len__(self) -> int:
        return len(self.items)


ENCODER = Encoder()


def drawn(name: str) -> Any:
    """A picture that shows a name."""
    return (128 + 127 * ENCODER.of(name)).round().to(torch.uint8).numpy().reshape(1, WIDTH // 3, 3)


def folder_of(path: Path, names: list[str]) -> Folder:
    return Folder(path, names, np.stack([drawn(name)[None] for name in names]))


def test_a_picture_that_shows_its_prompt_is_found_first(tmp_path: Path) -> None:
    names = [f"thing {number}" for number in range(60)]
    finder = Finder(folder_of(tmp_path, names), ENCODER, Network(), {f"a nice {name}": name for name in names[:8]})
    prompts = list(finder.groups)
    assert finder.real() == [0] * 8
    ranks = finder.of_pictures([drawn("thing 0"), None, drawn("thing 3")], prompts[:3])
    assert ranks[:2] == [0, 8] and ranks[2] > 0


def test_a_report_is_scored_beside_typed_prompts_and_real_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hybrid.benchmarks import speech_report
    from hybrid.data.folder import DataFolder
    from hybrid.pipeline import HybridPipeline

    asked: list[Any] = []

    class Pipe:
        text = ENCODER

        def __call__(self, prompts: list[str], generator: list[torch.Generator], **final: Any) -> Any:
            asked.append(([each.initial_seed() for each in generator], final))
            return SimpleNamespace(images=[Image.fromarray(drawn(prompt)) for prompt in prompts])

    names = [*PROMPTS.values(), *(f"thing {number}" for number in range(100))]
    monkeypatch.setattr(HybridPipeline, "from_pretrained", lambda *names, **options: Pipe())
    monkeypatch.setattr(DataFolder, "open", lambda path: folder_of(tmp_path, names))
    monkeypatch.setattr(speech_report, "FeatureNetwork", Network)
    assert main(["--score", "--out", str(tmp_path)]) == 2
    write_report(tmp_path, REPORT | {"rows": ROWS[:2]})
    write_pictures(tmp_path, "flite slt", [Image.fromarray(drawn("a red apple")), None])
    assert main(["--score", "--out", str(tmp_path)]) == 0
    found = read_report(tmp_path)
    assert [entry["rank"] for entry in found["rows"]] == [0, 40]
    assert found["retrieval"]["flite slt"]["first"] == 0.5 and found["retrieval"]["typed"]["first"] == 1.0
    assert found["retrieval"]["real pictures"]["pictures"] == 40
    assert asked == [([0] * 40, {"ar_fraction": 0.25, "steps": 8})]
    assert (tmp_path / "README.md").read_text() == page(found)


def test_a_report_is_kept_whole_and_its_page_shows_its_figures(tmp_path: Path) -> None:
    assert read_report(tmp_path) == {}
    write_report(tmp_path, REPORT)
    found = read_report(tmp_path)
    assert found["rows"] == ROWS and found["summary"]["all"] == summary(ROWS)
    told = page(found)
    for line in (
        "| flite slt | 4 | 0.50 | 25 % | 75 % | 1 |",
        "| end of speech to final picture | flite slt | 3 | 1.20 s | 1.60 s | 1.60 s | 1.5 s | 67 % |",
        "| flite slt | 4 | 25 % | 75 % | 0.42 |",
        "![flite slt](flite.png)",
        "load 0.1 before and 0.9 after",
    ):
        assert line in told
    (tmp_path / "report.json").write_text("{")
    with pytest.raises(ValueError, match=r"report\.json: not JSON"):
        read_report(tmp_path)


@pytest.mark.parametrize(
    ("line", "message"),
    [("--count 0", "--count 0: must be 1 to 40"), ("--score", "report.json: no such file; speak first")],
)
def test_a_mistake_is_one_line(line: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*line.split(), "--out", str(tmp_path)]) == 2
    told = capsys.readouterr().err
    assert told.startswith("speech: ") and message in told and told.count("\n") == 1
