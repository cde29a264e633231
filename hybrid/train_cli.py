"""``hybrid-train CONFIG``: parse, call the loop, show its progress; or plan the run, or export its weights."""

from __future__ import annotations

import argparse
import math
import os
import signal
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from hybrid.cli_options import Parser

if TYPE_CHECKING:
    from rich.console import Console

    from hybrid.config import LoopConfig
    from hybrid.training import Progress


def main(argv: list[str] | None = None) -> int:
    """Entry point. Returns 0; 2 after one line about a mistake; 128 + signal when stopped (130 after Ctrl-C)."""
    try:
        return run(options().parse_args(argv))
    except (ValueError, OSError) as error:
        print(f"hybrid-train: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("hybrid-train: stopped; run the same command to go on from the last checkpoint", file=sys.stderr)
        return 130


def options() -> Parser:
    """What the command takes."""
    parser = Parser(prog="hybrid-train", description="Train a tokenizer, an AR or a masked model.")
    add = parser.add_argument
    add("config", help="a YAML file, or the name of one shipped in hybrid.configs (train-fashion-ar)")
    add("--out", type=Path, help="where checkpoints and the log go (default: runs/NAME)")
    add("--data", type=Path, help="data folder (default: where hybrid-data writes it)")
    add("--tokenizer", type=Path, help="tokenizer weights for AR and masked training")
    add("--init", type=Path, metavar="FILE", help="weights to start from, instead of the configuration's model.init")
    add("--steps", type=int, help="instead of the configuration's number of steps")
    add("--threads", type=int, help="CPU threads")
    shards = "at the end, also write the weights to OUT/export: float16, an index and shards below MB megabytes"
    add("--shard-mb", type=float, metavar="MB", help=shards)
    add("--export-only", action="store_true", help="with --shard-mb: write the weights that OUT has, without training")
    weights = (
        "instead of training, evaluate OUT's weights, or --init's, on held-out pictures and on N training ones (256)"
    )
    add("--evaluate", type=int, nargs="?", const=256, metavar="N", help=weights)
    add = parser.add_argument_group("planning", "what the run costs, instead of training").add_argument
    add("--plan", action="store_true", help="parameters, FLOPs, memory, epochs and hours on H100s")
    steps = "--plan, and time steps of made-up data on this machine (default: one GPU's share of the batch)"
    add("--measure", type=int, nargs="?", const=0, metavar="SAMPLES", help=steps)
    add("--mfu", type=float, metavar="SHARE", help="share of an H100's peak to reckon with")
    add("--gpus", type=int, help="GPUs to reckon with")
    return parser


class Stop:
    """Ctrl-C or a SIGTERM once: end after the present step, with a checkpoint. Twice: end at once."""

    def __init__(self, console: Console) -> None:
        self.console, self.number = console, 0

    def __call__(self) -> bool:
        return self.number != 0

    def __enter__(self) -> Stop:
        caught = [each for each in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(each) is not signal.SIG_IGN]
        self.before = {each: signal.signal(each, self._caught) for each in caught}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _caught(self, number: int, _: FrameType | None) -> None:
        if self.number:
            raise KeyboardInterrupt
        self.number = number
        self.console.print("stopping after this step, to save it; once more stops at once", style="bold")


def run(arguments: argparse.Namespace) -> int:
    """Build the task and drive the loop."""
    import torch
    from rich.console import Console

    from hybrid.config import LoopConfig, TrainConfig, parse, read_yaml
    from hybrid.export import run_weights
    from hybrid.run_folder import finished, latest_checkpoint, run_kind
    from hybrid.tasks_build import build_task, find_config
    from hybrid.threads import use_threads
    from hybrid.training import train

    planning = arguments.plan or arguments.measure is not None
    evaluating = arguments.evaluate is not None
    instead = {"--plan": planning, "--export-only": arguments.export_only, "--evaluate": evaluating}
    if len(ways := [name for name, given in instead.items() if given]) > 1:
        raise ValueError(f"{' and '.join(ways)}: are each done instead of training; give one")
    for name in ("mfu", "gpus"):
        if getattr(arguments, name) is not None and not planning:
            raise ValueError(f"--{name}: is what --plan reckons with; add it or leave --{name} out")
    path = find_config(arguments.config)
    config = parse(TrainConfig, read_yaml(path), str(path))
    if config.task == "tokenizer" and arguments.tokenizer is not None:
        raise ValueError(f"--tokenizer: {path.stem} trains one; leave it out, or start from it by --init")
    loop = config.loop
    if arguments.steps is not None:
        loop = parse(LoopConfig, {**loop.model_dump(), "steps": arguments.steps}, "--steps")
    config = config.model_copy(update={"loop": loop})
    out = arguments.out or Path("runs") / path.stem
    init = arguments.init
    if evaluating and init is None:
        init = run_weights(out)
    if init is not None:
        config = config.model_copy(update={"model": config.model.model_copy(update={"init": str(init)})})
    console = Console(quiet=os.environ.get("RANK", "0") != "0", highlight=False, soft_wrap=True)

    if arguments.shard_mb is not None and not 0 < arguments.shard_mb < math.inf:
        raise ValueError(f"--shard-mb {arguments.shard_mb:g}: must be a number of megabytes above 0")
    use_threads(arguments.threads)
    if planning:
        from hybrid.plan_cli import show_plan

        asked = {key: getattr(arguments, key) for key in ("data", "mfu", "gpus", "measure")}
        show_plan(config, console, name=path.stem, **asked)
        return 0
    if arguments.export_only:
        if arguments.shard_mb is None:
            raise ValueError("--export-only: say how large a shard may be, such as --shard-mb 15")
        export(out, arguments.shard_mb, console)
        return 0
    if evaluating:
        from hybrid.evaluate_cli import show_evaluation

        task = build_task(config, data=arguments.data, tokenizer=arguments.tokenizer, source=str(path))
        show_evaluation(task, loop, console, title=f"{path.stem}: {init}", pictures=arguments.evaluate)
        return 0
    if (done := finished(out, loop.steps)) is not None:
        kind = run_kind(out)
        if kind not in (None, config.model.kind):
            raise ValueError(
                f"{out}: is a finished run of {kind}, {path.stem} trains {config.model.kind}; give another --out"
            )
        console.print(f"{out}: trained to step {done} already; --steps above {done} goes on, another --out starts anew")
        export(out, arguments.shard_mb, console)
        return 0
    if config.task != "tokenizer":
        console.print("codes and captions: the first run makes them (minutes), later ones read them beside the data")
    task = build_task(config, data=arguments.data, tokenizer=arguments.tokenizer, source=str(path))
    parameters = sum(value.numel() for value in task.model.parameters())
    console.print(f"{path.stem}: {parameters / 1e6:.1f}M parameters, {loop.steps} steps of {loop.batch_size} → {out}")
    if found := latest_checkpoint(out):
        console.print(f"{out}: goes on from step {found[0]}")
    if loop.sample_every and getattr(task, "tokenizer", task) is None:
        console.print("no sample pictures (sample_every): --tokenizer FILE names what draws them")
    try:
        with Stop(console) as stop:
            last = show(train(task, loop, out, stop=stop), loop, console)
    except torch.OutOfMemoryError:
        raise ValueError(
            f"{path}: the device's memory is too small; divide loop.batch_size ({loop.batch_size}) and multiply "
            f"loop.accumulate ({loop.accumulate}) by the same number"
        ) from None
    except RuntimeError as error:
        if not (loop.compile and type(error).__module__.startswith(("torch._dynamo", "torch._inductor"))):
            raise
        said = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ValueError(f"{path}: torch.compile failed ({said}); set loop.compile: false, or mend it") from None
    if stop() and 0 < last < loop.steps:
        console.print(f"stopped at step {last}, which is saved in {out}; the same command goes on")
        return 128 + stop.number
    console.print(f"done: {out / 'model.safetensors'}")
    export(out, arguments.shard_mb, console)
    return 0


def export(run: Path, shard_mb: float | None, console: Console) -> None:
    """Write a run's weights in shards, where that is asked for; with several processes the first one does."""
    if shard_mb is None or console.quiet:
        return
    from hybrid.export import FOLDER, export_weights, run_weights

    source = run_weights(run)
    shards = export_weights(source, run / FOLDER, shard_mb=shard_mb)
    largest = max(shard.stat().st_size for shard in shards) / 1e6
    console.print(f"{run / FOLDER}: {source.name} as float16, shards: {len(shards)}, the largest of {largest:.1f} MB")


def show(progress: Iterable[Progress], loop: LoopConfig, console: Console) -> int:
    """A live bar on a terminal, else a line for each logged step. Returns the last step, 0 where there was none."""
    last = 0
    if not console.is_terminal:
        for entry in progress:
            last = entry.step
            figures = entry.figures.items()
            shown = " ".join(f"{name} {value if isinstance(value, int) else f'{value:.4g}'}" for name, value in figures)
            console.print(f"step {last}/{loop.steps} {shown} left {clock(seconds_left(entry, loop))}")
        return last
    from rich.progress import BarColumn, SpinnerColumn, TextColumn
    from rich.progress import Progress as Bars

    names = ("{task.completed:.0f}/{task.total:.0f}", "loss {task.fields[loss]}", "{task.fields[speed]}")
    columns = [TextColumn(name) for name in (*names, "{task.fields[left]} left", "{task.fields[held]}")]
    with Bars(SpinnerColumn(), BarColumn(bar_width=20), *columns, console=console) as bars:
        bar = bars.add_task("", total=loop.steps, loss="–", speed="–", left="–", held="")
        held = ""
        for entry in progress:
            last = entry.step
            held = held_out(entry.figures) or held
            bars.update(
                bar,
                completed=last,
                loss=f"{entry.figures['loss']:.4g}",
                speed=speed(entry.figures),
                left=clock(seconds_left(entry, loop)),
                held=held,
            )
    return last


def seconds_left(entry: Progress, loop: LoopConfig) -> float:
    """Time to the last step at the present speed."""
    return (loop.steps - entry.step) * loop.batch_size * loop.accumulate / entry.figures["samples_per_s"]


def clock(seconds: float) -> str:
    """Seconds as 1:02:03 or 2:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def speed(figures: Mapping[str, float]) -> str:
    """Tokens per second, or samples per second where samples are pictures."""
    what = "tokens" if "tokens_per_s" in figures else "samples"
    return f"{figures[f'{what}_per_s']:,.0f} {what}/s"


def held_out(figures: Mapping[str, float]) -> str:
    """The figures of an evaluation, or "" where this step has none."""
    found = {name.removeprefix("eval_"): value for name, value in figures.items() if name.startswith("eval_")}
    best = f", best at step {figures['best_step']}" if "best_step" in figures else ""
    return "held-out " + ", ".join(f"{name} {value:.3g}" for name, value in found.items()) + best if found else ""


if __name__ == "__main__":
    sys.exit(main())
