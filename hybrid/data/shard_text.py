"""Captions of a shard, and their embeddings as one memory-mapped table without padding.

T5 pads captions to 120 vectors of 2,048 numbers, half a megabyte each; only the vectors of real tokens are written, one
caption after the other, and padding comes back on reading. Knows the files of one grid in one shard.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hybrid.data.codes import save_array, weights_name
from hybrid.data.folder import DataError
from hybrid.types import Grid
from hybrid.whole_files import replacing


@dataclass(frozen=True)
class TextFormat:
    """Embeddings of one encoder under one configuration.

    Attributes:
        name: what its files are called, from the encoder's kind, configuration and weights.
        tokens: places of a caption, the padded ones included.
        width: numbers of a place.
        config: the encoder's configuration.
    """

    name: str
    tokens: int
    width: int
    config: Mapping[str, Any]

    @classmethod
    def of(cls, encoder: Any, kind: str, config: Mapping[str, Any]) -> TextFormat:
        """The format of an encoder (a module that is a ``TextEncoder``), found by embedding one word."""
        _, tokens, width = encoder.encode(["picture"])[0].shape
        settings = f"{kind} {json.dumps(config, sort_keys=True)} {weights_name(encoder)}"
        return cls(f"{kind}-{hashlib.sha256(settings.encode()).hexdigest()[:8]}", tokens, width, dict(config))


def table_file(folder: Path, grid: Grid, text: TextFormat) -> Path:
    """Embeddings (real tokens of all captions, width), float16."""
    return folder / f"{grid}.{text.name}.npy"


def ends_file(folder: Path, grid: Grid, text: TextFormat) -> Path:
    """Where each caption's vectors end in the table, after a leading 0."""
    return folder / f"{grid}.{text.name}-ends.npy"


def read_records(folder: Path, grid: Grid) -> list[dict[str, Any]]:
    """What is known of each picture of a grid."""
    with (folder / f"{grid}.jsonl").open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


@torch.inference_mode()
def write_text(folder: Path, grid: Grid, encoder: Any, text: TextFormat, batch: int = 64) -> None:
    """Embed all captions of a grid, unless that was done; an interruption leaves nothing that counts."""
    ends_path, table_path = ends_file(folder, grid, text), table_file(folder, grid, text)
    if ends_path.exists():
        return
    captions = [caption for record in read_records(folder, grid) for caption in record["captions"]]
    lengths = [0]

    def rows() -> Iterable[NDArray[np.float16]]:
        for start in range(0, len(captions), batch):
            embedding_bsd, mask_bs = encoder.encode(captions[start : start + batch])
            lengths.extend(mask_bs.sum(1).tolist())
            yield embedding_bsd[mask_bs.bool()].half().cpu().numpy()

    with replacing(table_path) as part:
        write_rows(part, rows(), text.width)
    save_array(ends_path, np.cumsum(lengths, dtype=np.int64))


def write_rows(path: Path, parts: Iterable[NDArray[np.float16]], width: int) -> None:
    """A float16 .npy of shape (rows, width) from parts, without holding all of them."""

    def header(rows: int) -> None:
        fields = {"descr": "<f2", "fortran_order": False, "shape": (rows, width)}
        np.lib.format.write_array_header_1_0(file, fields)

    with path.open("wb") as file:
        header(0)
        start, rows = file.tell(), 0
        for part in parts:
            file.write(np.ascontiguousarray(part, dtype="<f2").tobytes())
            rows += len(part)
        file.seek(0)
        header(rows)
        # numpy pads headers so that the first axis may grow in place.
        if file.tell() != start:
            raise DataError(f"{path}: numpy's header changed its length; use another version of numpy")


def padded(tables: Sequence[NDArray[np.float16]], text: TextFormat) -> tuple[Tensor, Tensor]:
    """Captions' vectors (real tokens, width) as (embedding_bsd float32, mask_bs), padded on the left."""
    embedding = torch.zeros(len(tables), text.tokens, text.width)
    mask = torch.zeros(len(tables), text.tokens, dtype=torch.bool)
    for row, table in enumerate(tables):
        start = text.tokens - len(table)
        embedding[row, start:] = torch.from_numpy(table.astype(np.float32))
        mask[row, start:] = True
    return embedding, mask
