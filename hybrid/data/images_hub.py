"""Hugging Face datasets as a source of pictures. Knows the package ``datasets``, and loads it only when asked."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from hybrid.data.folder import DataError
from hybrid.data.images import BadSample, Content, Keys, Sample


def disk_source(folder: Path, split: str | None, shard_size: int, keys: Keys) -> DatasetSource:
    """A dataset that ``save_to_disk`` wrote."""
    datasets = _package()
    try:
        loaded = datasets.load_from_disk(str(folder))
    except (OSError, ValueError) as error:
        raise DataError(f"{folder}: no dataset that can be loaded ({_line(error)})") from None
    return DatasetSource(_one_split(loaded, split, str(folder)), str(folder), shard_size, keys)


def hub_source(name: str, split: str | None, shard_size: int, keys: Keys) -> DatasetSource:
    """A dataset of the hub, downloaded into the package's own cache."""
    datasets = _package()
    try:
        loaded = datasets.load_dataset(name, split=split)
    except Exception as error:  # the package raises a dozen classes, of its own and of others
        raise DataError(f"hf://{name}: cannot be loaded ({_line(error)})") from None
    return DatasetSource(_one_split(loaded, None, f"hf://{name}"), f"hf://{name}", shard_size, keys)


class DatasetSource:
    """Rows of one split: the first column of pictures, with captions and class by the fields' names."""

    def __init__(self, rows: Any, name: str, shard_size: int, keys: Keys) -> None:
        datasets = _package()
        columns = [key for key, kind in rows.features.items() if isinstance(kind, datasets.Image)]
        if not columns:
            raise DataError(f"{name}: no column of pictures among {', '.join(rows.features)}")
        self.column, self.name, self.shard_size, self.keys = columns[0], name, shard_size, keys
        read = {self.column, *keys.captions, *keys.label}  # other columns of pictures would be decoded
        rows = rows.select_columns([key for key in rows.features if key in read])
        self.rows = rows.cast_column(self.column, datasets.Image(decode=False))
        kinds = [rows.features[key] for key in keys.label if key in rows.features]
        self.classes: Sequence[str] | None = getattr(kinds[0], "names", None) if kinds else None

    def __len__(self) -> int:
        return -(-len(self.rows) // self.shard_size)

    def __getitem__(self, shard: int) -> Sequence[Sample]:
        start = shard * self.shard_size
        numbers = range(start, min(start + self.shard_size, len(self.rows)))
        return [Sample(f"row {number}", partial(self._content, number)) for number in numbers]

    def _content(self, number: int) -> Content:
        row = self.rows[number]
        picture = row[self.column] or {}
        data = picture.get("bytes")
        if data is None and picture.get("path"):
            try:
                data = Path(picture["path"]).read_bytes()
            except OSError as error:
                raise BadSample(f"{picture['path']}: {error.strerror}") from None
        if data is None:
            raise BadSample("has no picture")
        return self.keys.content(data, row)


def _one_split(loaded: Any, split: str | None, name: str) -> Any:
    if not isinstance(loaded, dict):
        if split is not None:
            raise DataError(f"--split {split}: {name} has no splits")
        return loaded
    chosen = split if split is not None else next(iter(loaded)) if len(loaded) == 1 else None
    if chosen not in loaded:
        wrong = f"no split {split!r}" if split is not None else "several splits"
        raise DataError(f"{name}: {wrong}; choose with --split one of {', '.join(loaded)}")
    return loaded[chosen]


def _package() -> Any:
    try:
        import datasets
    except ImportError:
        raise DataError("Hugging Face datasets need the package: pip install 'hybrid-imagegen[datasets]'") from None
    return datasets


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
