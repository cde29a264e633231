"""``hybrid-train CONFIG``: parse, call the loop, show its progress."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any


def main(argv: list[str] | None = None) -> int:
    """Entry point. Returns 0, or 2 after one line about a mistake."""
    parser = argparse.ArgumentParser(prog="hybrid-train", description="Train a tokenizer, an AR or a masked model.")
    parser.add_argument("config", help="a YAML file, or the name of one shipped in hybrid.configs (train-fashion-ar)")
    parser.add_argument("--out", type=Path, help="where checkpoints and the log go (default: runs/NAME)")
    parser.add_argument("--data", type=Path, help="data folder (default: where hybrid-data writes it)")
    parser.add_argument("--tokenizer", type=Path, help="tokenizer weights for AR and masked training")
    parser.add_argument("--steps", type=int, help="instead of the configuration's number of steps")
    parser.add_argument("--threads", type=int, help="CPU threads")
    arguments = parser.parse_args(argv)
    try:
        return run(arguments)
    except (ValueError, OSError) as error:
        print(f"hybrid-train: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("hybrid-train: stopped; run the same command to go on from the last checkpoint", file=sys.stderr)
        return 130


def run(arguments: argparse.Namespace) -> int:
    """Build the task and drive the loop."""
    import torch
    from rich.console import Console

    from hybrid.config import LoopConfig, TrainConfig, parse, read_yaml
    from hybrid.tasks_build import build_task, find_config
    from hybrid.training import train

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    path = find_config(arguments.config)
    config = parse(TrainConfig, read_yaml(path), str(path))
    loop = config.loop if arguments.steps is None else LoopConfig(**{**config.loop.model_dump(), "steps": arguments.steps})
    console = Console()
    task = build_task(config, data=arguments.data, tokenizer=arguments.tokenizer, source=str(path))
    out = arguments.out or Path("runs") / path.stem
    parameters = sum(value.numel() for value in task.model.parameters())
    console.print(f"{path.stem}: {parameters / 1e6:.1f}M parameters, {loop.steps} steps of {loop.batch_size} → {out}")
    for progress in train(task, loop, out):
        left = (loop.steps - progress.step) * loop.batch_size * loop.accumulate / progress.figures["samples_per_s"]
        console.print(line(progress.step, loop.steps, progress.figures, left), soft_wrap=True)
    return 0


def line(step: int, steps: int, figures: Any, seconds_left: float) -> str:
    """One line of progress."""
    shown = " ".join(f"{name} {value:.4g}" for name, value in figures.items())
    return f"step {step}/{steps} {shown} left {seconds_left / 60:.0f} min"


if __name__ == "__main__":
    sys.exit(main())
