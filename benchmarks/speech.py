"""Spoken prompts: how often they are understood, and how soon the picture is there.

    python -m hybrid.benchmarks.speech [--count 40] [--out FILE]

Voices are synthesised by espeak-ng and flite, which must be installed; each prompt is heard at the pace it is spoken.
Retrieval of the pictures is not measured here. This file knows voices and figures; it knows no recogniser's inside.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import mean, median
from typing import Any

VOICES = {
    "espeak-ng en-us": ("espeak-ng", "-v", "en-us", "-s", "150", "-w", "{file}", "{text}"),
    "flite slt": ("flite", "-voice", "slt", "-t", "{text}", "-o", "{file}"),
    "flite rms": ("flite", "-voice", "rms", "-t", "{text}", "-o", "{file}"),
}


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


def spread(seconds: Sequence[float]) -> dict[str, float] | None:
    """Median and 90th percentile (nearest rank), None of nothing."""
    from .serve_load import quantile

    return {"median": round(median(seconds), 3), "p90": round(quantile(seconds, 0.9), 3)} if seconds else None


def measure(pipe: Any, recogniser: Any, voice: Sequence[str], prompts: Sequence[str]) -> dict[str, Any]:
    """One voice's figures, seconds by stage. What was not understood counts with a cosine of 0 and has no times."""
    import torch
    from torch.nn.functional import cosine_similarity

    from hybrid.speak import Painter, live
    from hybrid.speak_cli import PREVIEW, pieces_of
    from hybrid.speech import prompt_of, read_sound

    heard: list[str] = []
    stages: dict[str, list[float]] = {"transcript": [], "first_preview": [], "final": []}
    with tempfile.TemporaryDirectory() as folder:
        for prompt in prompts:
            file = f"{folder}/said.wav"
            subprocess.run([part.format(file=file, text=prompt) for part in voice], check=True, capture_output=True)
            painter = Painter(pipe, seed=0, preview=PREVIEW, final={"method": "hybrid"}, show=lambda picture: None)
            with painter:
                try:
                    report = live(pieces_of(read_sound(file), pace=True), recogniser.listen(), painter)
                except ValueError:
                    heard.append("")
                    continue
            heard.append(prompt_of(report.text))
            for stage, values in stages.items():
                if (value := getattr(report, stage)) is not None:
                    values.append(value)
    told = [(words(a), words(b)) for a, b in zip(prompts, heard, strict=True)]
    pairs = [(a, b) for a, b in zip(prompts, heard, strict=True) if b]
    alike = 0.0
    if pairs:
        a, b = (
            torch.nn.functional.normalize(pipe.text.encode(list(t))[0].sum(1), dim=-1) for t in zip(*pairs, strict=True)
        )
        alike = float(cosine_similarity(a, b).sum()) / len(prompts)
    return {
        "word_error_rate": round(sum(errors(a, b) for a, b in told) / sum(len(a) for a, _ in told), 3),
        "exact": round(mean(a == b for a, b in told), 3),
        "embedding_cosine": round(alike, 3),
        "nothing_understood": heard.count(""),
        "seconds": {stage: spread(values) for stage, values in stages.items()},
        "heard": dict(zip(prompts, heard, strict=True)),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point. Returns 0, or 2 after one line about what is missing."""
    parser = argparse.ArgumentParser(prog="python -m hybrid.benchmarks.speech", description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=40, help="prompts of each voice (default: 40)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "speech.json", metavar="FILE")
    options = parser.parse_args(argv)
    missing = [program for program in ("espeak-ng", "flite") if shutil.which(program) is None]
    if missing or options.count < 1:
        line = f"not installed: {', '.join(missing)}; install them first" if missing else "--count: must be at least 1"
        print(f"speech: {line}", file=sys.stderr)
        return 2
    from hybrid.adapters.speech import Moonshine
    from hybrid.data.concepts import EVERYDAY
    from hybrid.pipeline import HybridPipeline
    from hybrid.speak import measure as warm_up

    from .machine import describe

    try:
        recogniser, pipe = Moonshine(), HybridPipeline.from_pretrained("emoji", device="cpu")
    except (ImportError, ValueError) as error:
        print(f"speech: {error}", file=sys.stderr)
        return 2
    warm_up(pipe)
    prompts = [f"{'an' if word[0] in 'aeiou' else 'a'} {word}" for word in EVERYDAY[: options.count]]
    result: dict[str, Any] = {
        "recogniser": f"moonshine-voice {version('moonshine-voice')} tiny-en",
        "prompts": len(prompts),
    }
    result |= {"machine": describe(pipe.device)}
    result["voices"] = {name: measure(pipe, recogniser, voice, prompts) for name, voice in VOICES.items()}
    result["load_at_end"] = describe(pipe.device)["load"]
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for name, figures in result["voices"].items():
        print(name, json.dumps({key: value for key, value in figures.items() if key != "heard"}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
