"""Code shards: a folder of tokens cut from other people's pictures, memory-mapped for training.

    DIR/meta.json                 what was asked for and, once every shard is there, what was found
    DIR/shards/00012/             one finished shard; it appears under this name only when it is complete
        16x16.codes.npy           (pictures, views, 256) uint16, or uint32 for larger codebooks
        16x16.held.npy            True where a picture is held out of training
        16x16.labels.npy          class of each picture; or
        16x16.captions.npy        where each picture's captions end, after a leading 0, and
        16x16.t5-0123abcd.npy     their embeddings (see ``shard_text``)
        16x16.jsonl               key, split and label or captions of each picture
        counts.json               pictures per grid, and what was skipped

Knows these files; knows neither what pictures are nor what trains on them.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hybrid.align import fingerprint
from hybrid.data.codes import save_array, weights_name
from hybrid.data.folder import META, DataError
from hybrid.data.shard_text import TextFormat, ends_file, padded, table_file, write_text
from hybrid.data.splits import EVAL_PICTURES, spread
from hybrid.types import Grid
from hybrid.whole_files import replacing

FORMAT = "codes"
CODEBOOK = "codebook.npy"
OPEN_FILES = 256
"""Files kept mapped at once, well below the usual limit of 1,024 open ones."""


def identity(tokenizer: Any) -> dict[str, Any]:
    """What tells a tokenizer from others: codes, sha256 of codebook and decoder, and eight digits of all weights."""
    found = fingerprint(tokenizer)
    codes = len(tokenizer.codebook_kd)
    return {
        "codes": codes,
        "codebook": found.codebook,
        "decoder": found.decoder,
        "weights": weights_name(tokenizer),
    }


def is_shards(folder: Path) -> bool:
    """Whether a folder holds code shards, finished or not."""
    try:
        return json.loads((folder / META).read_text(encoding="utf-8")).get("format") == FORMAT
    except (OSError, ValueError, AttributeError):
        return False


def parse_grid(text: str) -> Grid:
    """``16x24`` as a grid."""
    height, width = text.split("x")
    return Grid(int(height), int(width))


def begin(out: Path, settings: Mapping[str, Any], codebook_kd: Tensor) -> None:
    """Make the folder, or check that it was begun with the same settings.

    Raises:
        DataError: it holds something else, or was begun otherwise; the message names the setting.
    """
    settings = json.loads(json.dumps({"format": FORMAT, **settings}))
    meta = out / META
    if meta.is_file():
        known = _read_meta(out)
        for key, value in settings.items():
            if known.get(key) != value:
                raise DataError(
                    f"{out}: begun with {key} {known.get(key)}, asked for {value}; give another --out or move it away"
                )
    else:
        begun = (META, f".{META}")  # the second of a writing that was killed
        if out.exists() and (not out.is_dir() or any(not path.name.startswith(begun) for path in out.iterdir())):
            raise DataError(f"{out} exists and holds no code shards; give another --out or move it away")
        out.mkdir(parents=True, exist_ok=True)
        _write_json(meta, settings)
    (out / "shards").mkdir(exist_ok=True)
    if not (out / CODEBOOK).exists():
        save_array(out / CODEBOOK, codebook_kd.float().cpu().numpy())


def finish(out: Path, shards: int) -> dict[str, Any]:
    """The folder's meta with the totals, which are written once all shards are there."""
    meta = _read_meta(out)
    folders = [shard_folder(out, number) for number in range(shards)]
    counts = [_read_counts(folder) for folder in folders if folder.is_dir()]
    found = {
        "pictures": {grid: sum(each["pictures"].get(grid, 0) for each in counts) for grid in meta["grids"]},
        "held": sum(each["held"] for each in counts),
        "skipped": sum(len(each["skipped"]) for each in counts),
    }
    if len(counts) == shards:
        for left in (out / "shards").glob(".*"):
            if left.is_dir():  # a system's own files are none of ours
                shutil.rmtree(left)
        _write_json(out / META, {**meta, **found})
    return {**meta, **found, "finished": len(counts)}


def shard_folder(out: Path, number: int) -> Path:
    """Where a finished shard is."""
    return out / "shards" / f"{number:05d}"


@contextmanager
def new_shard(out: Path, number: int) -> Iterator[Path]:
    """Gives a temporary folder that becomes the shard when the block ends well, and is gone otherwise."""
    work = Path(tempfile.mkdtemp(prefix=f".{number:05d}-", dir=out / "shards"))
    try:
        yield work
        work.chmod(0o755)
        if not shard_folder(out, number).exists():  # another process may have made the same one
            os.rename(work, shard_folder(out, number))
    finally:
        shutil.rmtree(work, ignore_errors=True)


def write_shard(
    work: Path,
    codes: Mapping[Grid, Sequence[NDArray[Any]]],
    records: Mapping[Grid, Sequence[Mapping[str, Any]]],
    skipped: Sequence[str],
) -> None:
    """Write everything but the text.

    Args:
        work: the shard's folder.
        codes: of each grid, arrays (some pictures, views, n).
        records: of each grid, key, split and label or captions of each picture.
        skipped: what was left out and why.
    """
    for grid, parts in codes.items():
        _save(work / f"{grid}.codes.npy", np.concatenate(parts))
        found = records[grid]
        _save(work / f"{grid}.held.npy", np.array([record["split"] == "heldout" for record in found]))
        if "label" in found[0]:
            _save(work / f"{grid}.labels.npy", np.array([record["label"] for record in found], dtype=np.int32))
        else:
            ends = np.cumsum([0, *(len(record["captions"]) for record in found)], dtype=np.int64)
            _save(work / f"{grid}.captions.npy", ends)
        with (work / f"{grid}.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in found)
    counts = {
        "pictures": {str(grid): len(records[grid]) for grid in codes},
        "held": sum(record["split"] == "heldout" for each in records.values() for record in each),
        "skipped": list(skipped),
    }
    _write_json(work / "counts.json", counts)


class CodeShards:
    """An opened folder of finished shards.

    Attributes:
        path: the folder.
        meta: what ``meta.json`` says.
        grids: the grids that have pictures, the one with most first.
        text: the format of the captions' embeddings, or None where there are none.
        shards: folder of each shard, and its pictures by grid.
        mapped: opens a file's array without reading it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.meta = _read_meta(path)
        if "pictures" not in self.meta:
            done = sum(1 for number in range(self.meta["shards"]) if shard_folder(path, number).is_dir())
            raise DataError(
                f"{path}: {done} of {self.meta['shards']} shards are finished; "
                "run the hybrid-data codes that began it once more"
            )
        counts = self.meta["pictures"]
        self.grids = [parse_grid(name) for name in sorted(counts, key=lambda name: -counts[name]) if counts[name]]
        self.text = TextFormat(**self.meta["text"]) if self.meta["text"] else None
        folders = [shard_folder(path, number) for number in range(self.meta["shards"])]
        self.shards = [(folder, _read_counts(folder)["pictures"]) for folder in folders]
        self.mapped = lru_cache(maxsize=OPEN_FILES)(_map)

    @property
    def labelled(self) -> bool:
        """Whether pictures are asked by label, not by caption."""
        return self.meta["asked_by"] == "label"

    def codebook(self) -> Tensor:
        """codebook_kd of the tokenizer that made the codes."""
        return torch.from_numpy(np.load(self.path / CODEBOOK))

    def embed(self, encoder: Any, text: TextFormat) -> None:
        """Embed captions that came without embeddings, beside the codes; nothing to do where that was done."""
        for folder, counts in self.shards:
            for name in counts:
                write_text(folder, parse_grid(name), encoder, text)
        self.text = text

    def pictures(self, views: int | None = None) -> list[ShardedPictures]:
        """The pictures of each grid.

        Args:
            views: take only the first ones; None means all.

        Raises:
            DataError: captions without embeddings, or files that are missing or broken.
        """
        if not self.labelled and self.text is None:
            raise DataError(f"{self.path}: captions are not embedded")
        found = [ShardedPictures(self, grid, views) for grid in self.grids]
        total = sum(len(each.held) for each in found)
        for each in found:
            each.held = spread(each.held, max(2, round(EVAL_PICTURES * len(each.held) / max(total, 1))))
        return found


class ShardedPictures:
    """The pictures of one grid in all shards: ``CodedPictures``."""

    weights: Tensor | None = None

    def __init__(self, shards: CodeShards, grid: Grid, views: int | None) -> None:
        self.grid, self.text, self._map = grid, shards.text, shards.mapped
        self.folders = [folder for folder, counts in shards.shards if str(grid) in counts]
        held = self._column("held")
        self.starts = np.cumsum([0, *(len(each) for each in held)])
        self.train = np.flatnonzero(~np.concatenate(held))
        self.held = np.flatnonzero(np.concatenate(held))
        # Every file is looked at here, so that a broken one stops no run at its thousandth step.
        codes = [self._map(folder / f"{grid}.codes.npy") for folder in self.folders]
        have = codes[0].shape[1]
        for folder, each, rows in zip(self.folders, codes, held, strict=True):
            if each.shape != (len(rows), have, grid.places):
                raise _broken(folder / f"{grid}.codes.npy", f"its shape is {each.shape}")
        self.views = min(views or have, have)
        self.labels: NDArray[np.int32] | None = None
        self.captions: list[NDArray[np.int64]] = []
        self.ends: list[NDArray[np.int64]] = []
        if shards.labelled:
            self.labels = np.concatenate(self._column("labels"))
        else:
            assert self.text is not None
            self.captions = self._column("captions")
            self.ends = [_load(ends_file(folder, grid, self.text)) for folder in self.folders]
            for folder, ends in zip(self.folders, self.ends, strict=True):
                table = table_file(folder, grid, self.text)
                if len(self._map(table)) != ends[-1]:
                    raise _broken(table, f"it has {len(self._map(table))} rows")

    def _column(self, name: str) -> list[NDArray[Any]]:
        """A small array of each shard."""
        return [_load(folder / f"{self.grid}.{name}.npy") for folder in self.folders]

    def _places(self, pictures: Sequence[int]) -> list[tuple[int, int]]:
        """Shard and row of each picture."""
        shards = np.searchsorted(self.starts, pictures, side="right") - 1
        return list(zip(shards.tolist(), (np.asarray(pictures) - self.starts[shards]).tolist(), strict=True))

    def tokens(self, pictures: Sequence[int], views: Sequence[int]) -> Tensor:
        """See ``CodedPictures``."""
        found = []
        for (shard, row), view in zip(self._places(pictures), views, strict=True):
            found.append(self._map(self.folders[shard] / f"{self.grid}.codes.npy")[row, view])
        return torch.from_numpy(np.stack(found).astype(np.int64))

    def prompts(self, pictures: Sequence[int], choices: Sequence[float]) -> list[int] | tuple[Tensor, Tensor]:
        """See ``CodedPictures``."""
        if self.labels is not None:
            return [int(self.labels[picture]) for picture in pictures]
        assert self.text is not None
        tables = []
        for (shard, row), choice in zip(self._places(pictures), choices, strict=True):
            first, end = self.captions[shard][row : row + 2]
            caption = int(first) + int(choice * (end - first))
            start, stop = self.ends[shard][caption : caption + 2]
            tables.append(self._map(table_file(self.folders[shard], self.grid, self.text))[start:stop])
        return padded(tables, self.text)


def _broken(file: Path, why: str) -> DataError:
    return DataError(f"{file}: cannot be read ({why}); remove {file.parent} and run hybrid-data codes again")


def _load(file: Path, mode: Literal["r"] | None = None) -> NDArray[Any]:
    try:
        return np.load(file, mmap_mode=mode, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise _broken(file, str(error)) from None


def _map(file: Path) -> NDArray[Any]:
    return _load(file, "r")


def _save(file: Path, values: NDArray[Any]) -> None:
    with file.open("wb") as opened:
        np.save(opened, values)


def _write_json(file: Path, value: Mapping[str, Any]) -> None:
    with replacing(file) as part:
        part.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _read_counts(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / "counts.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _broken(folder / "counts.json", str(error)) from None


def _read_meta(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / META).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{folder / META}: cannot be read ({error}); extract the codes anew") from None
