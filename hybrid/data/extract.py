"""Pictures of one's own to code shards: read, crop, encode in batches of one grid, write shard by shard.

A shard depends on its own samples only, so several processes may share the work, and what a kill leaves unfinished is
done again to the same bytes.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from hybrid.data.buckets import Views, nearest_grid
from hybrid.data.codes import code_type, to_images
from hybrid.data.folder import DataError
from hybrid.data.images import BadSample, Content, Sample, Source, decode
from hybrid.data.shard_text import TextFormat, write_text
from hybrid.data.shards import begin, finish, identity, new_shard, shard_folder, write_shard
from hybrid.data.splits import is_held_out
from hybrid.types import Grid

logger = logging.getLogger(__name__)

Asked = Literal["label", "captions"]


@dataclass(frozen=True)
class Plan:
    """What decides the codes.

    Attributes:
        grids: each picture is cut to the one of nearest aspect ratio.
        views: the crops of a picture.
        asked_by: whether pictures are asked by label or by captions.
        held_out: share of the pictures that no model trains on, by a hash of their keys.
        shard_size: pictures of a shard, where the source has no shards of its own.
    """

    grids: tuple[Grid, ...]
    views: Views = field(default_factory=Views)
    asked_by: Asked = "label"
    held_out: float = 0.01
    shard_size: int = 4096


@dataclass(frozen=True)
class _Ready:
    """A sample as pixels (views, height, width, 3) and what is written about it."""

    grid: Grid
    pixels: NDArray[np.uint8]
    record: dict[str, Any]


def asked_by(source: Source) -> Asked:
    """Captions where the first readable sample has one, else labels.

    Raises:
        DataError: it has neither.
    """
    wrong = "it is empty"
    for sample in source[0]:
        try:
            content = sample.read()
        except BadSample as error:
            wrong = f"{sample.key}: {error}"
            continue
        if content.captions:
            return "captions"
        if content.label is not None:
            return "label"
        raise DataError(
            f"{source.name}: {sample.key} has neither a caption nor a class; put captions into a metadata.jsonl or "
            "NAME.txt files, or pictures into a folder for each class"
        )
    raise DataError(f"{source.name}: the first shard has no readable picture ({wrong})")


def extract(
    source: Source,
    tokenizer: Any,
    out: Path,
    plan: Plan,
    *,
    tokenizer_kind: Mapping[str, Any],
    encoder: Any = None,
    text: TextFormat | None = None,
    part: tuple[int, int] = (1, 1),
    batch: int = 32,
    workers: int = 4,
    skip_bad: bool = False,
    report: Callable[[int, int], None] = lambda shard, total: None,
) -> dict[str, Any]:
    """Write the shards of a source that are not there yet. Returns ``meta.json``'s content with the present totals.

    Args:
        source: samples in shards.
        tokenizer: an ``ImageTokenizer`` that is a module and has a ``factor`` (pixels per token and side).
        out: the folder.
        plan: what decides the codes.
        tokenizer_kind: kind, file and configuration, to load it by.
        encoder: embeds captions; None leaves that to training.
        text: the encoder's format.
        part: (i, n): of every n shards do the i-th, counted from 1.
        batch: crops per forward pass.
        workers: threads that read and crop.
        skip_bad: leave out pictures that cannot be used, instead of stopping.
        report: called with the shard's number and the pictures of all shards so far, at each picture.

    Raises:
        DataError: one line; a picture that cannot be used, a folder begun otherwise, a full disk. Finished shards stay.
    """
    settings = {
        "source": source.name,
        "shards": len(source),
        "tokenizer": {**tokenizer_kind, **identity(tokenizer)},
        "factor": tokenizer.factor,
        "grids": [str(grid) for grid in plan.grids],
        "views": asdict(plan.views),
        "asked_by": plan.asked_by,
        "held_out": plan.held_out,
        "shard_size": plan.shard_size,
        "classes": list(source.classes) if source.classes is not None and plan.asked_by == "label" else None,
        "text": asdict(text) if text is not None else None,
    }
    with _writing(out):
        begin(out, settings, tokenizer.codebook_kd)
    first, parts = part
    total = 0
    for number in range(first - 1, len(source), parts):
        if shard_folder(out, number).is_dir():
            continue
        encoded = _Encoded(tokenizer, batch, len(plan.views))
        skipped: list[str] = []
        for sample, ready in _prepared(source[number], plan, tokenizer.factor, workers, ahead=2 * encoded.group):
            if not isinstance(ready, BadSample):
                encoded.add(ready)
                total += 1
                report(number, total)
            elif skip_bad:
                skipped.append(f"{sample.key}: {ready}")
                logger.warning("left out %s: %s", sample.key, ready)
            else:
                raise DataError(
                    f"{source.name}: {sample.key}: {ready}; repair or remove it, or leave such pictures out with "
                    "--skip-bad (finished shards are kept)"
                )
        with _writing(out), new_shard(out, number) as work:
            codes, records = encoded.finish()
            write_shard(work, codes, records, skipped)
            if encoder is not None and text is not None:
                for grid in codes:
                    write_text(work, grid, encoder, text)
    with _writing(out):
        return finish(out, len(source))


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    """What the system says about a full disk, in one line."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise DataError(
            f"{out}: cannot be written ({reason}); finished shards are kept, the same command goes on"
        ) from error


def _prepared(
    samples: Iterable[Sample], plan: Plan, factor: int, workers: int, ahead: int
) -> Iterator[tuple[Sample, _Ready | BadSample]]:
    """Samples in their order, each read and cut by a thread; the threads are a bounded number of samples ahead."""
    waiting: deque[tuple[Sample, Future[_Ready | BadSample]]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        for sample in samples:
            waiting.append((sample, pool.submit(_prepare, sample, plan, factor)))
            if len(waiting) > workers + ahead:
                done, result = waiting.popleft()
                yield done, result.result()
        for done, result in waiting:
            yield done, result.result()


def _prepare(sample: Sample, plan: Plan, factor: int) -> _Ready | BadSample:
    """Read and cut a sample; what is wrong with it is returned, not raised, so that the order is kept."""
    try:
        content = sample.read()
        record = {"key": sample.key, "split": "heldout" if is_held_out(sample.key, plan.held_out) else "train"}
        record |= _asked(content, plan.asked_by)
        picture = decode(content.picture)
    except BadSample as error:
        return error
    grid = nearest_grid(picture.width, picture.height, plan.grids)
    crops = plan.views.crops(picture, grid.height * factor, grid.width * factor)
    return _Ready(grid, np.stack([np.asarray(crop) for crop in crops]), record)


def _asked(content: Content, by: Asked) -> dict[str, Any]:
    if by == "label":
        if content.label is None:
            raise BadSample("has no class")
        return {"label": content.label}
    if not content.captions:
        raise BadSample("has no caption")
    if not all(content.captions):
        raise BadSample("has an empty caption")
    return {"captions": list(content.captions)}


class _Encoded:
    """Codes and records by grid; pictures wait until their grid has a batch."""

    def __init__(self, tokenizer: Any, batch: int, views: int) -> None:
        self.tokenizer, self.views, self.group = tokenizer, views, max(1, batch // views)
        self.dtype = code_type(tokenizer)
        self.waiting: dict[Grid, list[_Ready]] = {}
        self.codes: dict[Grid, list[NDArray[Any]]] = {}
        self.records: dict[Grid, list[dict[str, Any]]] = {}

    def add(self, ready: _Ready) -> None:
        waiting = self.waiting.setdefault(ready.grid, [])
        waiting.append(ready)
        if len(waiting) == self.group:
            self._encode(ready.grid)

    def finish(self) -> tuple[dict[Grid, list[NDArray[Any]]], dict[Grid, list[dict[str, Any]]]]:
        """Codes (pictures, views, n) in parts and the pictures' records, by grid."""
        for grid in self.waiting:
            if self.waiting[grid]:
                self._encode(grid)
        return self.codes, self.records

    @torch.inference_mode()
    def _encode(self, grid: Grid) -> None:
        group = self.waiting[grid]
        images = to_images(np.concatenate([ready.pixels for ready in group]))
        tokens_bn = self.tokenizer.encode(images.to(self.tokenizer.codebook_kd.device))
        if tokens_bn.shape[1] != grid.places:
            raise DataError(f"the tokenizer gives {tokens_bn.shape[1]} tokens where a {grid} grid has {grid.places}")
        codes = tokens_bn.cpu().numpy().astype(self.dtype).reshape(len(group), self.views, grid.places)
        self.codes.setdefault(grid, []).append(codes)
        self.records.setdefault(grid, []).extend(ready.record for ready in group)
        self.waiting[grid] = []
