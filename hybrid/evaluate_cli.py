"""``hybrid-train CONFIG --evaluate``: a run's evaluation of given weights, on held-out and on training pictures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from hybrid.config import LoopConfig
from hybrid.request import find_device
from hybrid.tasks import CodesTask
from hybrid.training import Task

if TYPE_CHECKING:
    from rich.console import Console


def show_evaluation(task: Task, loop: LoopConfig, console: Console, *, title: str, pictures: int) -> None:
    """Print what the task's ``evaluate`` says of its model, in fp32.

    Args:
        task: the run, with the weights to evaluate.
        loop: says whether the run keeps to the CPU.
        console: where to.
        title: of the table.
        pictures: training pictures, beside the held-out ones. A tokenizer is evaluated on held-out ones only.

    Raises:
        ValueError: fewer than 2 pictures.
    """
    if pictures < 2:
        raise ValueError(f"--evaluate {pictures}: must be at least 2, since captions are exchanged between pictures")
    model = task.model.to(find_device(loop.device)).eval()
    with torch.inference_mode():
        found = {"held-out": task.evaluate(model)}
        if isinstance(task, CodesTask):
            found["training"] = task.on_training_pictures(pictures).evaluate(model)
    _table(found, task.units, title, console)


def _table(found: Mapping[str, Mapping[str, float]], units: Mapping[str, str], title: str, console: Console) -> None:
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    table.add_column("figure", style="bold")
    for pictures in found:
        table.add_column(f"{pictures} pictures", justify="right")
    table.add_column("unit")
    for name in next(iter(found.values())):
        table.add_row(name, *(f"{figures[name]:.4g}" for figures in found.values()), units.get(name, ""))
    console.print(table)
