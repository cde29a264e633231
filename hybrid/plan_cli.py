"""``hybrid-train CONFIG --plan``: a plan as a table, and beside it what a few steps on this machine take."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hybrid.config import TrainConfig
from hybrid.plan import H100_FLOPS, Plan, devices, duration, headline, quantity, significant, work_out

if TYPE_CHECKING:
    from rich.console import Console

    from hybrid.plan_measure import Measured

FORMULA = "6 · weights · places + 12 · layers · width · length²"


def show_plan(
    config: TrainConfig,
    console: Console,
    *,
    name: str,
    data: Path | None = None,
    mfu: float | None = None,
    gpus: int | None = None,
    measure: int | None = None,
) -> None:
    """Print the plan of a run.

    Args:
        config: the run.
        console: where to.
        name: the run's name.
        data, mfu, gpus: see ``plan.work_out``.
        measure: time steps of this many samples here; 0 is a GPU's share of the batch, None measures nothing.

    Raises:
        ValueError: what ``plan.work_out`` and ``plan_measure.measure`` say.
    """
    plan = work_out(config, data=data, mfu=mfu, gpus=gpus)
    _table(plan, name, console)
    console.print(headline(plan))
    if measure is None:
        return
    from torch import OutOfMemoryError

    from hybrid.plan_measure import measure as time_steps

    batch = measure or config.loop.batch_size // plan.gpus
    try:
        _show_measured(time_steps(config, batch=batch), plan, console)
    except OutOfMemoryError:
        raise ValueError(f"--measure {batch}: the device's memory is too small; give fewer samples") from None


def _table(plan: Plan, name: str, console: Console) -> None:
    from rich.table import Table

    table = Table(title=f"plan of {name}", show_header=False, title_justify="left")
    table.add_column(style="bold")
    table.add_column()
    count = quantity(plan.parameters).strip()
    epochs = "unknown: say plan.pictures" if plan.epochs is None else f"{plan.epochs:.3g} of {plan.pictures:,} pictures"
    table.add_row("parameters", count)
    table.add_row("steps", f"{plan.steps:,} of {plan.batch:,} samples, {plan.tokens:,.0f} tokens")
    table.add_row("samples seen", f"{plan.samples:,}")
    table.add_row("epochs", epochs)
    table.add_row("FLOPs a step", f"{quantity(plan.flops)}FLOP = {FORMULA}, summed over samples")
    table.add_row("  in weights", f"{quantity(plan.matrix_flops)}FLOP")
    table.add_row("  in attention", f"{quantity(plan.attention_flops)}FLOP")
    table.add_row("FLOPs in all", f"{quantity(plan.flops * plan.steps)}FLOP")
    table.add_row("memory of a GPU", f"{sum(plan.memory.values()) / 1e9:.3g} GB, estimated for eager bf16")
    for what, size in plan.memory.items():
        table.add_row(f"  {what}", f"{size / 1e9:.3g} GB")
    speed = f"{100 * plan.mfu:g} % of {H100_FLOPS / 1e12:.0f} TFLOP/s (assumed; --mfu)"
    table.add_row("H100 time", f"{duration(plan.gpu_hours)} at {speed}")
    table.add_row(f"  on {devices(plan.gpus)}", duration(plan.hours))
    console.print(table)


def _show_measured(found: Measured, plan: Plan, console: Console) -> None:
    from rich.table import Table

    table = Table(title=f"measured here: {found.device}", show_header=False, title_justify="left")
    table.add_column(style="bold")
    table.add_column()
    table.add_row("step", f"{found.batch} samples of {found.grid} tokens, median {found.seconds:.3g} s")
    table.add_row("speed", f"{significant(found.samples_per_s)} samples/s, {significant(found.tokens_per_s)} tokens/s")
    share = found.flops_per_s / found.product_flops_per_s
    reached = f"{quantity(found.flops_per_s)}FLOP/s = {100 * share:.3g} %"
    table.add_row("compute", f"{reached} of a matrix product's {quantity(found.product_flops_per_s)}FLOP/s")
    table.add_row("the whole run", f"{duration(plan.flops * plan.steps / found.flops_per_s / 3600)} on one such device")
    console.print(table)
