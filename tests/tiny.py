"""A tiny data folder and tiny models, small enough to train some steps in a test, and the runs that do.

Run as a script it trains, for the tests that need other processes: ``python tiny.py FOLDER OUT {KIND: CHANGES}``, the
last as JSON.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hybrid.checkpoint import read_weights, save_weights
from hybrid.config import LoopConfig, TrainConfig
from hybrid.data.folder import create_images, write_records
from hybrid.run_folder import read_log
from hybrid.tasks_build import build_task
from hybrid.training import Task, train

PICTURES, VIEWS, SIDE, CODES, PLACES = 12, 2, 8, 12, 16
SETS = ("plain", "fancy")


def items(*, captions: bool = False) -> list[dict[str, Any]]:
    """Twelve pictures, the last four held out, of two sets and six groups."""
    records: list[dict[str, Any]] = []
    for place in range(PICTURES):
        split = "train" if place < 8 else "heldout"
        record: dict[str, Any] = {"name": f"thing {place}", "group": str(place // 2), "split": split}
        record |= {"set": SETS[place % 2], "flip": True}
        asked = {"captions": [f"thing {place}", f"a thing, number {place}"]} if captions else {"label": place % 3}
        records.append(record | asked)
    return records


def data_folder(path: Path, records: list[dict[str, Any]] | None = None) -> Path:
    """Random pictures 8×8 in two views."""
    path.mkdir(parents=True)
    images = create_images(path, (PICTURES, VIEWS, SIDE, SIDE, 3))
    images[:] = np.random.default_rng(0).integers(0, 256, images.shape, dtype=np.uint8)
    images.flush()
    records = items() if records is None else records
    write_records(path, records, {"name": "tiny", "splits": {"train": 8, "heldout": 4}}, "none\n")
    return path


TOKENIZER = {"factor": 2, "width": 8, "blocks": 1, "levels": [4, 3], "channels": 3}
TRANSFORMER = {"dim": 16, "n_layer": 1, "n_head": 2, "multiple_of": 8, "vocab_size": CODES, "block_size": PLACES}
MODELS = {
    "tokenizer": {"kind": "fsq", "config": TOKENIZER},
    "ar": {"kind": "llamagen", "config": {**TRANSFORMER, "num_classes": 3}},
    "masked": {
        "kind": "maskgil",
        "config": {**TRANSFORMER, "num_classes": 3, "rope": "2d", "qk_norm": True, "post_norm": True},
    },
}
ADVERSARIAL = {"start": 2, "width": 8, "layers": 1, "lr": 1e-3}
LOOP = {"steps": 6, "batch_size": 4, "lr": 1e-2, "warmup": 2, "precision": "no", "device": "cpu", "log_every": 1}


def config(kind: str, **changes: Any) -> TrainConfig:
    """A training run; ``loop`` among the changes is merged into the usual one."""
    loop = {**LOOP, "eval_every": 1000, **changes.pop("loop", {})}
    fields = {"task": kind, "data": "tiny", "model": MODELS[kind], "loop": loop}
    return TrainConfig.model_validate(fields | changes)


def tokenizer_file(folder: Path) -> Path:
    """Weights of an untrained tokenizer beside the data, written once."""
    from hybrid.adapters.fsq import create

    path = folder.parent / "tokenizer.safetensors"
    if not path.exists():
        torch.manual_seed(7)
        model, fields = create(TOKENIZER)
        save_weights(path, model.state_dict(), metadata={"kind": "fsq", "config": fields})
    return path


def task(kind: str, folder: Path, **changes: Any) -> tuple[Any, LoopConfig]:
    """A task with a fresh model, and its loop's settings."""
    settings = config(kind, **changes)
    codes = None if kind == "tokenizer" else tokenizer_file(folder)
    built: Task = build_task(settings, data=folder, tokenizer=codes, source="tiny.yaml")
    return built, settings.loop


def trained(
    kind: str, folder: Path, out: Path, *, stop: Callable[[], bool] = lambda: False, **changes: Any
) -> list[dict[str, float]]:
    """Train and return the log."""
    settings, loop = task(kind, folder, **changes)
    for _ in train(settings, loop, out, stop=stop):
        pass
    return read_log(out / "log.jsonl")


def untimed(log: list[dict[str, float]]) -> list[dict[str, float]]:
    """A log without what depends on the machine's speed."""
    return [{key: value for key, value in line.items() if not key.endswith("_per_s")} for line in log]


def weights(out: Path) -> dict[str, torch.Tensor]:
    return read_weights(out / "model.safetensors")[0]


def distance(one: Path, other: Path) -> float:
    """Largest difference between two runs' final weights."""
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).abs().max()) for name in first)


def after(steps: int) -> Callable[[], bool]:
    """True from the given call on. The loop asks twice in a step at which it halts, once otherwise or when logging."""
    seen = iter(range(1000))
    return lambda: next(seen) >= steps


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name, changed in json.loads(sys.argv[3]).items():
        chosen, loop_config = task(name, Path(sys.argv[1]), **changed)
        for _ in train(chosen, loop_config, Path(sys.argv[2]) / name):
            pass
