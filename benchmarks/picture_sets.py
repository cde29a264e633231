"""Pictures to be scored: an ``.npz`` in ADM's layout, a folder of picture files, what ``hybrid-bench sample`` wrote, or
a data folder. They are read batch by batch, since 50,000 of them need not fit into memory.

This file knows files. It knows no network and no statistics.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from hybrid.data.folder import META, DataError, DataFolder
from hybrid.pictures import require_eight_bits

ENDINGS = (".png", ".jpg", ".jpeg", ".webp")
BATCH = 64
Batches = Iterator[NDArray[np.uint8]]


@dataclass(frozen=True)
class PictureSet:
    """Pictures that are read when asked for.

    Attributes:
        source: where they are.
        count: how many.
        batches: gives them in order, uint8 (b, h, w, 3), the pictures of a batch of one size.
        prompts: what they were asked by in turn, again and again; None where that is not known.
    """

    source: Path
    count: int
    batches: Callable[[], Batches]
    prompts: tuple[str | int, ...] | None = None


def open_set(path: str | Path, split: str | None = None) -> PictureSet:
    """Pictures at a path.

    Args:
        path: a ``.npz`` file, or a folder.
        split: of a data folder; None is all of it.

    Raises:
        ValueError: nothing there that can be read as pictures.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise ValueError(f"{path}: no such file or folder")
    if split is not None and not (path / META).is_file():
        raise ValueError(f"--split {split}: {path} is no data folder, so it has no splits")
    if path.is_file():
        return _of_npz(path)
    if (path / "samples.npz").is_file():
        return _of_npz(path / "samples.npz", _asked(path / "request.json"))
    if (path / META).is_file():
        return _of_data(path, split)
    return _of_files(path)


def _of_npz(path: Path, prompts: tuple[str | int, ...] | None = None) -> PictureSet:
    try:
        with zipfile.ZipFile(path) as held:
            if "arr_0.npy" not in held.namelist():
                raise ValueError(f"{path}: holds no arr_0, the pictures of ADM's layout")
            with held.open("arr_0.npy") as file:
                shape, _, kind = _header(file)
    except zipfile.BadZipFile:
        raise ValueError(f"{path}: truncated or not .npz") from None
    if kind != np.uint8 or len(shape) != 4 or shape[-1] not in (1, 3):
        raise ValueError(f"{path}: arr_0 is {kind} {shape}, expected uint8 (n, h, w, 3)")

    def batches() -> Batches:
        size = int(np.prod(shape[1:]))
        with zipfile.ZipFile(path) as held, held.open("arr_0.npy") as file:
            _header(file)
            for start in range(0, shape[0], BATCH):
                many = min(BATCH, shape[0] - start)
                block = np.frombuffer(file.read(many * size), dtype=np.uint8).reshape(many, *shape[1:])
                yield np.broadcast_to(block, (*block.shape[:3], 3))

    return PictureSet(path, int(shape[0]), batches, prompts)


def _header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, order and type of an array file that is read up to its data."""
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    found: tuple[tuple[int, ...], bool, np.dtype[Any]] = readers[np.lib.format.read_magic(file)](file)
    return found


def _of_data(path: Path, split: str | None) -> PictureSet:
    try:
        folder = DataFolder.open(path)
        places = np.arange(len(folder)) if split is None else folder.indices(split)
    except DataError as error:
        raise ValueError(str(error)) from None

    def batches() -> Batches:
        for start in range(0, len(places), BATCH):
            block = np.asarray(folder.images[places[start : start + BATCH], 0])
            yield np.broadcast_to(block, (*block.shape[:3], 3))

    return PictureSet(path, len(places), batches)


def _of_files(path: Path) -> PictureSet:
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in ENDINGS)
    if not files:
        raise ValueError(f"{path}: no pictures in it ({', '.join(ENDINGS)}), no samples.npz and no {META}")

    def batches() -> Batches:
        waiting: list[NDArray[np.uint8]] = []
        for file in files:
            picture = _read(file)
            if waiting and (waiting[0].shape != picture.shape or len(waiting) == BATCH):
                yield np.stack(waiting)
                waiting = []
            waiting.append(picture)
        yield np.stack(waiting)

    return PictureSet(path, len(files), batches, _asked(path / "request.json"))


def _read(path: Path) -> NDArray[np.uint8]:
    try:
        with Image.open(path) as picture:
            require_eight_bits(picture, str(path))
            return np.asarray(picture.convert("RGB"))
    except (UnidentifiedImageError, OSError):
        raise ValueError(f"{path}: not a picture, or truncated") from None


def _asked(path: Path) -> tuple[str | int, ...] | None:
    """The prompts of ``hybrid-bench sample``."""
    if not path.is_file():
        return None
    return tuple(json.loads(path.read_text(encoding="utf-8"))["prompts"])
