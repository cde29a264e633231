"""``hybrid-bench sample``: many pictures for others to evaluate, by one process or by several under ``torchrun``.

    DIR/request.json       what is drawn; another request in the same folder is refused
    DIR/parts/*.npz        64 pictures each, whole or absent: a kill loses at most one part of each process, on a
                           graphics card two (one is decoded while the next is drawn)
    DIR/png/*.png          every picture by its number
    DIR/samples.npz        arr_0 uint8 (n, h, w, 3), and arr_1 int64 (n,) labels where prompts are classes: the layout
                           of ADM's evaluation suite (Dhariwal and Nichol, arXiv 2105.05233)

Picture i has seed + i and prompt i modulo their number, and is drawn in the same batch, however many processes there
are: process r of w draws parts r, r + w, r + 2w, …
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from hybrid.beside import Decoding
from hybrid.pictures import to_pil
from hybrid.whole_files import replacing

from .figures import write_json

PART = 64
Told = Callable[[str, int, int], Any]


def draw_parts(
    pipeline: Any,
    prompts: Sequence[str | int],
    count: int,
    out: Path,
    *,
    settings: Mapping[str, Any],
    seed: int = 0,
    rank: int = 0,
    world: int = 1,
    told: Told = lambda what, done, total: None,
) -> int:
    """Draw the parts of one process that are missing. Returns how many it drew.

    Args:
        pipeline: the pairing.
        prompts: asked for in turn, again and again.
        count: pictures of all processes together.
        out: the folder.
        settings: further arguments of ``HybridPipeline``.
        seed: of the first picture.
        rank, world: number of this process, and of processes.
        told: called with (what, done, total) parts of this process.
    """
    own = list(range(rank, len(range(0, count, PART)), world))
    missing = [part for part in own if not part_path(out, part).is_file()]
    decoding = Decoding(pipeline.device)
    tile = settings.get("tile", pipeline.defaults.tile)
    waiting: tuple[int, Callable[[], Tensor]] | None = None

    def write(part: int, images: Callable[[], Tensor]) -> None:
        pictures = np.stack([np.asarray(to_pil(image)) for image in images()])
        _write_part(part_path(out, part), out / "png", part * PART, pictures)
        told(f"process {rank}", len(own) - len(missing) + missing.index(part) + 1, len(own))

    for part in missing:
        places = range(part * PART, min((part + 1) * PART, count))
        asked = [prompts[place % len(prompts)] for place in places]
        made = pipeline(asked, seed=seed + part * PART, output_type="tokens", **settings)
        decoder = pipeline.sampler.decoder(only_ar=made.settings["ar_fraction"] == 1)
        images = decoding.start(decoder, made.tokens, made.grid, tile=tile)
        if waiting is not None:
            write(*waiting)
        waiting = part, images
        if decoding.stream is None:
            write(*waiting)
            waiting = None
    if waiting is not None:
        write(*waiting)
    return len(missing)


def prepare(out: Path, request: Mapping[str, Any]) -> None:
    """Remember what a folder holds.

    Raises:
        ValueError: it holds pictures of another request, or was begun for more.
    """
    path = out / "request.json"
    if path.is_file() and any((out / "parts").glob("*.npz")):  # a request that was refused drew none
        known = json.loads(path.read_text(encoding="utf-8"))
        for name, value in json.loads(json.dumps(request)).items():
            if name != "pictures" and known.get(name) != value:
                raise ValueError(f"{out}: holds pictures with another {name}; use another --out")
        if request["pictures"] < known["pictures"]:  # png/ would keep pictures that samples.npz does not have
            raise ValueError(
                f"-n {request['pictures']}: {out} was begun for {known['pictures']} pictures; "
                "ask for as many or more, or use another --out"
            )
        # A part at the end of a shorter request is not full; a longer one draws it anew.
        if known["pictures"] != request["pictures"]:
            part_path(out, known["pictures"] // PART).unlink(missing_ok=True)
    write_json(path, request)


def merge(out: Path, prompts: Sequence[str | int], count: int) -> Path:
    """Write ``samples.npz`` from the parts.

    Raises:
        ValueError: a part is missing.
    """
    parts = [part_path(out, part) for part in range(len(range(0, count, PART)))]
    missing = [path.name for path in parts if not path.is_file()]
    if missing:
        raise ValueError(f"{out}: {len(missing)} of {len(parts)} parts are missing, {missing[0]} first; run it again")
    images = []
    for path in parts:
        with np.load(path, allow_pickle=False) as loaded:
            images.append(loaded["arr_0"])
    arrays = {"arr_0": np.concatenate(images)[:count]}
    asked = [prompts[place % len(prompts)] for place in range(count)]
    if all(isinstance(prompt, int) for prompt in asked):
        arrays["arr_1"] = np.asarray(asked, dtype=np.int64)
    path = out / "samples.npz"
    _write_npz(path, arrays)
    return path


def part_path(out: Path, part: int) -> Path:
    """The file of a part."""
    return out / "parts" / f"{part:06d}.npz"


def _write_part(path: Path, pngs: Path, first: int, images: np.ndarray) -> None:
    pngs.mkdir(parents=True, exist_ok=True)
    for place, image in enumerate(images, first):
        Image.fromarray(image).save(pngs / f"{place:06d}.png")
    _write_npz(path, {"arr_0": images})


def _write_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part, part.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
