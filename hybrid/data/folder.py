"""A data folder on disk: `images.npy`, `items.jsonl`, `meta.json` and `LICENSES.md`.

Knows the files and their agreement with each other; knows neither where pictures come from nor what reads them.
`images.npy` is uint8 of shape (pictures, views, height, width, channels) and is only ever memory-mapped.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

IMAGES, ITEMS, META, LICENSES = "images.npy", "items.jsonl", "meta.json", "LICENSES.md"

Item = dict[str, Any]
Images = NDArray[np.uint8]
MappedImages: TypeAlias = "np.memmap[Any, np.dtype[np.uint8]]"


class DataError(Exception):
    """A data set cannot be built or read; the message is one line naming the thing and the remedy."""


def cache_root() -> Path:
    """Where built data lives: the environment's `HYBRID_CACHE`, else `~/.cache/hybrid`."""
    given = os.environ.get("HYBRID_CACHE")
    return Path(given) if given else Path.home() / ".cache" / "hybrid"


def default_folder(name: str) -> Path:
    """The folder that `hybrid-data NAME` writes when no `--out` is given."""
    return cache_root() / "data" / name


@dataclass(frozen=True)
class DataFolder:
    """An opened data set.

    images: uint8 (pictures, views, height, width, channels), read-only memory map; view 0 is the plain picture.
    items: one dictionary per picture, in the order of `images`.
    meta: what `meta.json` says (name, counts, seed, versions, hashes of the inputs).
    """

    path: Path
    images: Images
    items: Sequence[Item]
    meta: Mapping[str, Any]

    @classmethod
    def open(cls, path: str | Path) -> DataFolder:
        """Opens a built folder without reading the pictures; raises DataError naming the file that is wrong."""
        path = Path(path)
        meta = _read_json(path / META, path.name)
        name = str(meta.get("name", path.name))
        images = _map_images(path / IMAGES, name)
        items = _read_items(path / ITEMS, name)
        if len(items) != len(images):
            raise _broken(path / ITEMS, name, f"expected {len(images)} lines, got {len(items)}")
        return cls(path, images, items, meta)

    def indices(self, split: str) -> NDArray[np.int64]:
        """Places in `images` and `items` of one split (`train` and `heldout`, or `train` and `test`)."""
        found = [place for place, item in enumerate(self.items) if item["split"] == split]
        if not found:
            known = ", ".join(sorted({str(item["split"]) for item in self.items}))
            raise DataError(f"{self.path}: no picture has split {split!r}; the splits are {known}")
        return np.asarray(found, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.items)


@contextmanager
def new_folder(out: str | Path) -> Iterator[Path]:
    """Gives a temporary folder beside `out` that becomes `out` only when the block ends well.

    An older `out` is replaced if it is a data folder or empty, and refused otherwise; whatever interrupts the block,
    `out` stays as it was.
    """
    out = Path(out)
    if out.exists() and not (out / META).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out} exists and is not a data folder; give another --out or move it away")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    except OSError as error:
        raise DataError(f"{out} cannot be written ({error.strerror}); give another --out") from error
    try:
        yield work
        work.chmod(0o755)
        if out.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{out.name}-old-", dir=out.parent))
            out.rename(old / out.name)
            work.rename(out)
            shutil.rmtree(old)
        else:
            work.rename(out)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def create_images(folder: Path, shape: tuple[int, int, int, int, int]) -> MappedImages:
    """Makes `images.npy` of this shape in the folder and maps it for writing; flush it when it is filled.

    The room is checked first, since a mapped file that meets a full disk kills the process without a word.
    """
    needed, free = math.prod(shape) + 4096, shutil.disk_usage(folder).free
    if free < needed:
        raise DataError(f"{folder.parent}: needs {needed / 1e6:.0f} MB, has {free / 1e6:.0f} MB; give another --out")
    return np.lib.format.open_memmap(folder / IMAGES, mode="w+", dtype=np.uint8, shape=shape)


def write_records(folder: Path, items: Sequence[Item], meta: Mapping[str, Any], licenses: str) -> None:
    """Writes everything but the pictures."""
    with (folder / ITEMS).open("w", encoding="utf-8") as file:
        for item in items:
            file.write(json.dumps(item, ensure_ascii=False) + "\n")
    (folder / LICENSES).write_text(licenses, encoding="utf-8")
    (folder / META).write_text(json.dumps(meta, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _broken(file: Path, name: str, what: str) -> DataError:
    if name not in ("emoji", "fashion"):
        return DataError(f"{file}: {what}; give a folder that hybrid-data emoji or fashion built")
    return DataError(f"{file}: {what}; build the data with: hybrid-data {name} --out {file.parent}")


def _read_json(file: Path, name: str) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        what = "not found" if isinstance(error, FileNotFoundError) else str(error.strerror)
        raise _broken(file, name, what) from error
    except ValueError as error:
        raise _broken(file, name, "is not JSON (truncated?)") from error
    if not isinstance(value, dict):
        raise _broken(file, name, f"expected a JSON object, got {type(value).__name__}")
    return value


def _map_images(file: Path, name: str) -> Images:
    try:
        images = np.load(file, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise _broken(file, name, "not found") from error
    except (OSError, ValueError, EOFError) as error:
        raise _broken(file, name, f"cannot be mapped, truncated? ({error})") from error
    if images.dtype != np.uint8 or images.ndim != 5:
        raise _broken(file, name, f"expected uint8 of 5 dimensions, got {images.dtype} of shape {images.shape}")
    if images.shape[-1] not in (1, 3):
        raise _broken(file, name, f"expected 1 or 3 channels, got {images.shape[-1]}")
    return images


def _read_items(file: Path, name: str) -> list[Item]:
    items: list[Item] = []
    try:
        with file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    items.append(json.loads(line))
                except ValueError as error:
                    raise _broken(file, name, f"line {number} is not JSON (truncated?)") from error
    except FileNotFoundError as error:
        raise _broken(file, name, "not found") from error
    return items
