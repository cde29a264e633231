"""What spoken prompts gave, in files: rows and pictures, retrieval of the pictures, and a page that shows both.

Retrieval asks which of the prompts a picture shows most: a regression from its features to sentence embeddings
(``hybrid.benchmarks.retrieval``) is compared with the embeddings of all prompts. The same prompts drawn as if they had
been typed, and real pictures of their words, say how much of a miss is the hearing's, and the drawing's. This file
knows no voice, clock or recogniser.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from .features import FeatureNetwork, embed_sentences, real_features
from .retrieval import CrossFitted, cross_fit, ranks
from .speech import ASKING, LIMITS, PROMPTS, SEED, STAGES, summary

COLUMNS = 10
NEAR = 5
STAGE_NAMES = {
    "transcript": "end of speech to final text",
    "first_preview": "stable partial text to first preview",
    "final": "end of speech to final picture",
}


def read_report(folder: Path) -> dict[str, Any]:
    """What is in a folder's ``report.json``; nothing where there is none.

    Raises:
        ValueError: it is no JSON.
    """
    path = folder / "report.json"
    if not path.is_file():
        return {}
    try:
        report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error})") from None
    return report


def write_report(folder: Path, report: Mapping[str, Any]) -> None:
    """Write ``report.json``, with the summary of each voice and of all."""
    rows = report["rows"]
    voices = {voice: summary([row for row in rows if row["voice"] == voice]) for voice in report["machines"]}
    head = {key: value for key, value in report.items() if key not in ("rows", "summary")}
    lines = ",\n  ".join(json.dumps(row) for row in rows)
    whole = json.dumps(head | {"summary": voices | {"all": summary(rows)}}, indent=1).removesuffix("\n}")
    (folder / "report.json").write_text(f'{whole},\n "rows": [\n  {lines}\n ]\n}}\n', encoding="utf-8")


def sheet_of(folder: Path, voice: str) -> Path:
    """The file of a voice's pictures."""
    return folder / f"{voice.split()[0]}.png"


def write_pictures(folder: Path, voice: str, pictures: Sequence[Any]) -> None:
    """One file of all pictures, ``COLUMNS`` in a row, transparent where there is none."""
    size = next((picture.size for picture in pictures if picture is not None), (1, 1))
    rows = -(-len(pictures) // COLUMNS)
    sheet = Image.new("RGBA", (COLUMNS * size[0], rows * size[1]))
    for place, picture in enumerate(pictures):
        if picture is not None:
            sheet.paste(picture.convert("RGBA"), (place % COLUMNS * size[0], place // COLUMNS * size[1]))
    sheet.save(sheet_of(folder, voice))


def read_pictures(folder: Path, voice: str, count: int) -> list[NDArray[np.uint8] | None]:
    """The pictures of ``write_pictures``, RGB, None where there is none.

    Raises:
        ValueError: no such file.
    """
    path = sheet_of(folder, voice)
    if not path.is_file():
        raise ValueError(f"{path}: no such file; speak first, without --score")
    with Image.open(path) as sheet:
        pixels = np.asarray(sheet.convert("RGBA"))
    side, high = pixels.shape[1] // COLUMNS, pixels.shape[0] // -(-count // COLUMNS)
    tiles = [pixels[place // COLUMNS * high :, place % COLUMNS * side :][:high, :side] for place in range(count)]
    return [tile[..., :3] if tile[..., 3].all() else None for tile in tiles]


def group_of(word: str, items: Sequence[Mapping[str, Any]]) -> str:
    """The concept group that most pictures with this caption belong to.

    Raises:
        ValueError: no picture has it.
    """
    groups = Counter(item["group"] for item in items if word in item["captions"])
    if not groups:
        raise ValueError(f"no picture of the data is captioned {word!r}; --data must name the emoji data")
    return min(groups, key=lambda group: (-groups[group], group))


def retrieval(rank_n: Sequence[int], candidates: int) -> dict[str, Any]:
    """Figures of ranks (0 is best; at least ``candidates`` where there is no picture)."""
    return {
        "pictures": len(rank_n),
        "first": round(sum(rank == 0 for rank in rank_n) / len(rank_n), 3),
        f"among_{NEAR}": round(sum(rank < NEAR for rank in rank_n) / len(rank_n), 3),
        "reciprocal_rank": round(sum(1 / (rank + 1) for rank in rank_n if rank < candidates) / len(rank_n), 3),
    }


class Finder:
    """Ranks the prompts for a picture.

    Args:
        folder: real pictures with concept groups.
        encoder: embeds sentences.
        network: makes features.
        prompts: from prompt to the word of ``folder``'s captions that it is about.
    """

    def __init__(self, folder: Any, encoder: Any, network: Any, prompts: Mapping[str, str]) -> None:
        items = folder.items
        self.network, self.groups = network, {prompt: group_of(word, items) for prompt, word in prompts.items()}
        self.features = real_features(folder, range(len(folder)), network)
        names = sorted({item["name"] for item in items})
        place = {name: index for index, name in enumerate(names)}
        targets = embed_sentences(encoder, names)[[place[item["name"]] for item in items]]
        self.fitted: CrossFitted = cross_fit(self.features, targets, [item["group"] for item in items])
        self.candidates = {
            prompt: embedding[None]
            for prompt, embedding in zip(prompts, embed_sentences(encoder, list(prompts)), strict=True)
        }
        self.members = {
            prompt: [index for index, item in enumerate(items) if item["group"] == group]
            for prompt, group in self.groups.items()
        }

    def of_features(self, features_nd: NDArray[Any], prompts: Sequence[str]) -> list[int]:
        """The rank of each picture's prompt among all, from its features."""
        read = self.fitted(features_nd, [self.groups[prompt] for prompt in prompts])
        return [int(rank) for rank in ranks(read, prompts, self.candidates)]

    def of_pictures(self, pictures: Sequence[NDArray[np.uint8] | None], prompts: Sequence[str]) -> list[int]:
        """The rank of each picture's prompt among all; one beyond the last where there is no picture."""
        there = {place: picture for place, picture in enumerate(pictures) if picture is not None}
        found = [len(self.candidates)] * len(pictures)
        if there:
            features = self.network(np.stack(list(there.values())))
            for place, rank in zip(there, self.of_features(features, [prompts[i] for i in there]), strict=True):
                found[place] = rank
        return found

    def real(self) -> list[int]:
        """Of the real pictures of every prompt's word."""
        prompts = [prompt for prompt, members in self.members.items() for _ in members]
        places = [place for members in self.members.values() for place in members]
        return self.of_features(self.features[places], prompts)


def score(out: Path, data: Path | None) -> None:
    """Add retrieval to a folder's report, and write its README.

    Raises:
        ValueError: no report, no pictures, or no data.
    """
    from hybrid.data.folder import DataError, DataFolder, default_folder
    from hybrid.pipeline import HybridPipeline

    report = read_report(out)
    if not report:
        raise ValueError(f"{out / 'report.json'}: no such file; speak first, without --score")
    try:
        folder = DataFolder.open(data or default_folder("emoji"))
    except DataError as error:
        raise ValueError(str(error)) from None
    pipe = HybridPipeline.from_pretrained("emoji", device="cpu")
    finder = Finder(folder, pipe.text, FeatureNetwork(), PROMPTS)
    found, every = {}, []
    for voice in report["machines"]:
        rows = [row for row in report["rows"] if row["voice"] == voice]
        rank_n = finder.of_pictures(read_pictures(out, voice, len(rows)), [row["prompt"] for row in rows])
        for row, rank in zip(rows, rank_n, strict=True):
            row["rank"] = rank
        found[voice] = rank_n
        every += rank_n
    final = next(iter(report["machines"].values()))["final"]
    generators = [torch.Generator().manual_seed(SEED) for _ in PROMPTS]
    typed = [np.asarray(image.convert("RGB")) for image in pipe(list(PROMPTS), generator=generators, **final).images]
    found |= {"all": every, "typed": finder.of_pictures(typed, list(PROMPTS)), "real pictures": finder.real()}
    report["retrieval"] = {name: retrieval(rank_n, len(PROMPTS)) for name, rank_n in found.items()}
    report["retrieval_by"] = finder.network.name
    write_report(out, report)
    (out / "README.md").write_text(page(read_report(out)), encoding="utf-8")


def page(report: Mapping[str, Any]) -> str:
    """A scored report in Markdown."""
    voices, sums = list(report["machines"]), report["summary"]
    machine = report["machines"][voices[0]]
    loads = ", ".join(
        f"{entry['load']} before and {entry['load_at_end']} after" for entry in report["machines"].values()
    )
    recognition = _table(
        ("voice", "prompts", "word error rate", "heard as said", "nearest prompt is the right one", "refused"),
        [
            (
                name,
                f["prompts"],
                f"{f['word_error_rate']:.2f}",
                *(_share(f[key]) for key in ("exact", "nearest")),
                f["refused"],
            )
            for name, f in sums.items()
        ],
    )
    seconds = _table(
        ("stage", "voice", "measured", "median", "90th percentile", "longest", "aim", "within"),
        [
            (
                STAGE_NAMES[stage],
                name,
                f["count"],
                *(f"{f[key]:.2f} s" for key in ("median", "p90", "max")),
                f"{LIMITS[stage]} s" if stage in LIMITS else "",
                _share(f["within"]) if stage in LIMITS else "",
            )
            for stage in STAGES
            for name in sums
            if (f := sums[name]["seconds"].get(stage))
        ],
    )
    found = _table(
        ("pictures", "number", "first", f"among the first {NEAR}", "mean reciprocal rank"),
        [
            (name, f["pictures"], _share(f["first"]), _share(f[f"among_{NEAR}"]), f"{f['reciprocal_rank']:.2f}")
            for name, f in report["retrieval"].items()
        ],
    )
    count = len(PROMPTS)
    pictures = "\n\n".join(f"![{voice}]({sheet_of(Path(), voice).name})" for voice in voices)
    final = machine["final"]
    return f"""# Spoken prompts

Made by `python -m hybrid.benchmarks.speech` and `python -m hybrid.benchmarks.speech --score`; every utterance is a row
of [report.json](report.json). Each of {count} prompts is said as "{ASKING.format("…")}" by a synthetic voice, fed in at
the pace it is spoken, recognised by {report["recogniser"]}, and drawn by the embedded emoji pair:
masked previews while it is spoken, at the end the hybrid with an AR fraction of {final["ar_fraction"]:g} and
{final["steps"]} masked passes, which is what `hybrid-speak` chooses here. The asking words are neither drawn nor
counted. Human speech was not measured.

{machine["device"]}, {machine["cores"]} cores, {machine["threads"]} of them for drawing; load {loads};
commit {machine["commit"]}, {machine["time"]}.

## Hearing

{recognition}

"Nearest prompt" is what `hybrid-speak --vocabulary` would have drawn, given the {count} prompts as its captions.
"Refused" counts what is so unlike all of them that it draws nothing.

## Seconds

{seconds}

A first preview is counted where one was finished: a text that changes sooner cancels it.

## Do the pictures show what was said?

Which of the {count} prompts a picture shows most, by a regression from image features to sentence embeddings that never
saw the prompt's own concept ({report["retrieval_by"]}).
"typed": the same prompts without speech. "real pictures": of the words that the prompts are about, without their
colours and manners. Guessing finds {100 / count:.1f} % and {100 * NEAR / count:.1f} %.

{found}

{pictures}
"""


def _share(value: float) -> str:
    return f"{100 * value:.0f} %"


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)
