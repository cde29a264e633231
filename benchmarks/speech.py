"""Spoken prompts: how often they are understood, how soon the picture is there, and whether it shows what was said.

    python -m hybrid.benchmarks.speech [--voice NAME] [--out DIR]       speak, hear and draw, on an idle machine
    python -m hybrid.benchmarks.speech --score [--data DIR] [--out DIR]  find the pictures by what they show

Forty prompts are said by espeak-ng and by flite, which must be installed, and heard at the pace they are spoken. The
first command writes ``report.json`` and the final pictures; what other voices gave before stays. The second adds
retrieval and writes ``README.md`` (``hybrid.benchmarks.speech_report``). This file knows voices and seconds.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from hybrid.worker import Worker

from .serve_load import quantile

VOICES = {
    "espeak-ng en-us": ("espeak-ng", "-v", "en-us", "-s", "150", "-w", "{file}", "{text}"),
    "flite slt": ("flite", "-voice", "slt", "-t", "{text}", "-o", "{file}"),
}
ASKING = "draw me {}"
"""How a prompt is said."""

PROMPTS = {
    "a red apple": "red apple",
    "a brown dog": "dog",
    "a smiling cat": "cat",
    "a small house": "house",
    "a red car": "car",
    "a pink heart": "heart",
    "a golden star": "star",
    "a yellow sun": "sun",
    "a full moon": "moon",
    "a green tree": "tree",
    "a blue fish": "fish",
    "a red rose": "rose",
    "a little bird": "bird",
    "a slice of pizza": "pizza",
    "a yellow banana": "banana",
    "a ripe strawberry": "strawberry",
    "a flying rocket": "rocket",
    "a white airplane": "airplane",
    "a blue bicycle": "bicycle",
    "a white sailboat": "sailboat",
    "a purple umbrella": "umbrella",
    "a bright rainbow": "rainbow",
    "a happy snowman": "snowman",
    "a burning fire": "fire",
    "an old key": "key",
    "a golden bell": "bell",
    "an open book": "book",
    "a black camera": "camera",
    "a wooden guitar": "guitar",
    "a soccer ball": "soccer ball",
    "an orange basketball": "basketball",
    "a red balloon": "balloon",
    "a golden crown": "crown",
    "a blue diamond": "diamond",
    "a green watermelon": "watermelon",
    "a yellow lemon": "lemon",
    "a bunch of grapes": "grapes",
    "a red tomato": "tomato",
    "a brown mushroom": "mushroom",
    "a tasty hamburger": "hamburger",
}
"""The prompts, by the first forty of ``docs/words.txt`` in its order: fixed before any of them was heard."""

SEED = 0
STAGES = ("transcript", "first_preview", "final")
LIMITS = {"first_preview": 0.5, "final": 1.5}
"""Seconds that are aimed at on two cores."""


def words(text: str) -> list[str]:
    """Words without marks and case."""
    return re.sub(r"[^a-z0-9 ]", "", text.lower().replace("-", " ")).split()


def errors(asked: Sequence[str], heard: Sequence[str]) -> int:
    """Words to insert, leave out or change (Levenshtein's distance)."""
    row = list(range(len(heard) + 1))
    for i, word in enumerate(asked, 1):
        before, row[0] = row[0], i
        for j, other in enumerate(heard, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (word != other))
    return row[-1]


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Figures of spoken prompts.

    Args:
        rows: as ``say_and_draw`` gives them.

    Returns:
        ``prompts``; ``word_error_rate`` (errors over words); ``exact`` (share heard as said); ``nearest`` and
        ``refused`` (share of which ``hybrid-speak`` draws the right one where ``PROMPTS`` are its vocabulary, and how
        many it draws nothing of); ``seconds`` of each stage with ``count``, ``median``, ``p90``, ``max`` and, where
        there is a limit, the share ``within`` it.
    """
    from hybrid.speech import nearest

    told = [(words(row["prompt"]), words(row["heard"])) for row in rows]
    near = [nearest(row["heard"], list(PROMPTS)) for row in rows]
    found: dict[str, Any] = {
        "prompts": len(rows),
        "word_error_rate": round(sum(errors(a, b) for a, b in told) / sum(len(a) for a, _ in told), 3),
        "exact": round(sum(a == b for a, b in told) / len(rows), 3),
        "nearest": round(sum(one == row["prompt"] for one, row in zip(near, rows, strict=True)) / len(rows), 3),
        "refused": near.count(None),
        "seconds": {},
    }
    for stage in STAGES:
        values = [row[stage] for row in rows if row[stage] is not None]
        if values:
            spread = {
                "count": len(values),
                "median": round(median(values), 3),
                "p90": round(quantile(values, 0.9), 3),
                "max": round(max(values), 3),
            }
            if stage in LIMITS:
                spread["within"] = round(sum(value <= LIMITS[stage] for value in values) / len(values), 3)
            found["seconds"][stage] = spread
    return found


def say_and_draw(
    pipe: Any, recogniser: Any, worker: Worker, final: dict[str, Any], voice: str, prompts: Sequence[str]
) -> tuple[list[dict[str, Any]], list[Any]]:
    """Say each prompt, hear it and draw it.

    Args:
        pipe, recogniser: draw and hear.
        worker: whose thread draws.
        final: arguments of the pipeline for the final pictures.
        voice: a key of ``VOICES``.
        prompts: of ``PROMPTS``.

    Returns:
        A row for each prompt, and its final picture: None where nothing was understood, which has no times either.
    """
    from hybrid.speak import Painter, live
    from hybrid.speak_cli import PREVIEW, pieces_of
    from hybrid.speech import prompt_of, read_sound

    rows: list[dict[str, Any]] = []
    pictures: list[Any] = []
    with tempfile.TemporaryDirectory() as folder:
        for prompt in prompts:
            file = f"{folder}/said.wav"
            line = [part.format(file=file, text=ASKING.format(prompt)) for part in VOICES[voice]]
            subprocess.run(line, check=True, capture_output=True)
            sound = read_sound(file)
            row = {"voice": voice, "prompt": prompt, "heard": "", "spoken": round(sound.seconds, 3)}
            rows.append(row | dict.fromkeys(STAGES))
            pictures.append(None)
            with Painter(pipe, seed=SEED, preview=PREVIEW, final=final, show=lambda _: None, worker=worker) as painter:
                try:
                    report = live(pieces_of(sound, pace=True), recogniser.listen(), painter)
                except ValueError:
                    continue
            rows[-1] |= {stage: _rounded(getattr(report, stage)) for stage in STAGES}
            rows[-1] |= {"heard": prompt_of(report.text), "previews": report.previews, "cancelled": report.cancelled}
            pictures[-1] = painter.pictures[-1].image
    return rows, pictures


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)


def run(voices: Sequence[str], count: int, out: Path) -> None:
    """Speak by some voices, and write their rows and pictures.

    Raises:
        ValueError: a voice whose program is not installed.
        ImportError: no recogniser.
    """
    from hybrid.adapters.speech import Moonshine
    from hybrid.pipeline import HybridPipeline
    from hybrid.speak_cli import BUDGET, settle

    from .machine import describe
    from .speech_report import read_report, write_pictures, write_report

    missing = sorted({VOICES[voice][0] for voice in voices if shutil.which(VOICES[voice][0]) is None})
    if missing:
        raise ValueError(f"not installed: {', '.join(missing)}; install them first")
    recogniser, worker = Moonshine(), Worker("painter")
    pipe = worker.call(lambda: HybridPipeline.from_pretrained("emoji", device="cpu"))
    final = worker.call(lambda: settle(pipe, BUDGET))
    out.mkdir(parents=True, exist_ok=True)
    for voice in voices:
        machine = describe(pipe.device) | {"final": final}
        rows, pictures = say_and_draw(pipe, recogniser, worker, final, voice, list(PROMPTS)[:count])
        report = read_report(out)
        report.pop("retrieval", None)  # of earlier pictures
        report["recogniser"] = f"moonshine-voice {version('moonshine-voice')}, tiny-en"
        machine["load_at_end"] = describe(pipe.device)["load"]
        report.setdefault("machines", {})[voice] = machine
        report["rows"] = [row for row in report.get("rows", []) if row["voice"] != voice] + rows
        write_pictures(out, voice, pictures)
        write_report(out, report)
        print(voice, json.dumps(summary(rows)), flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point. Returns 0, or 2 after one line about what is missing."""
    parser = argparse.ArgumentParser(prog="python -m hybrid.benchmarks.speech", description=__doc__.splitlines()[0])
    parser.add_argument("--voice", action="append", choices=list(VOICES), help="may be repeated (default: every one)")
    parser.add_argument(
        "--count", type=int, default=len(PROMPTS), help=f"prompts of each voice (default: {len(PROMPTS)})"
    )
    parser.add_argument("--score", action="store_true", help="add retrieval to a report, and write its README")
    parser.add_argument("--data", type=Path, metavar="DIR", help="the emoji data, for --score")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "speech", metavar="DIR")
    options = parser.parse_args(argv)
    try:
        if not 1 <= options.count <= len(PROMPTS):
            raise ValueError(f"--count {options.count}: must be 1 to {len(PROMPTS)}")
        if options.score:
            from .speech_report import score

            score(options.out, options.data)
        else:
            run(options.voice or list(VOICES), options.count, options.out)
    except (ImportError, ValueError) as error:
        print(f"speech: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
