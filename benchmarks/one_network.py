"""One network for both phases against a pair of two: losses, speed, memory and operations, side by side.

``python -m hybrid.benchmarks.one_network losses|speed|cost --pair DIR --shared DIR --out DIR`` writes one JSON each;
fidelity is ``hybrid-bench run``'s. This file knows two pipelines and their training tasks.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hybrid.config import TrainConfig, parse, read_yaml
from hybrid.loss_plot import DASHES, MARKERS, running_mean
from hybrid.memory import Alive, module_bytes
from hybrid.pipeline import HybridPipeline
from hybrid.run_folder import read_log
from hybrid.tasks_build import build_task, find_config
from hybrid.threads import use_threads

from . import speed
from .cost import metered
from .figures import commit, versions, write_json
from .machine import load
from .points import Point, SpeedConfig
from .times import median_of, speedup_of

POINTS = tuple(
    Point(tuple(sorted(settings.items())), "fp32")
    for settings in (
        {"method": "ar"},
        {"method": "hybrid", "ar_fraction": 0.25, "steps": 8},
        {"method": "hybrid", "ar_fraction": 0.5, "steps": 8},
        {"method": "masked", "steps": 8},
    )
)
TASKS = {"ar": "train-fashion-ar", "masked": "train-fashion-masked", "shared": "train-fashion-unified"}
"""The recipes whose held-out figures are computed."""


def losses(weights: Mapping[str, Path], data: Path | None, tokenizer: Path) -> dict[str, dict[str, float]]:
    """Held-out figures of each recipe's task for given weights, in float32.

    Args:
        weights: files by the names in ``TASKS``.
        data: the data folder; None is where ``hybrid-data`` writes it.
        tokenizer: the tokenizer's weights.
    """
    found = {}
    for name, file in weights.items():
        path = find_config(TASKS[name])
        config = parse(TrainConfig, read_yaml(path), str(path))
        config = config.model_copy(update={"model": config.model.model_copy(update={"init": str(file)})})
        task: Any = build_task(config, data=data, tokenizer=tokenizer, source=str(path))
        with torch.no_grad():
            found[name] = task.evaluate(task.model.eval())
    return found


def plot(log: Sequence[Mapping[str, float]], pair: Mapping[str, Mapping[str, float]], path: Path) -> None:
    """Training and held-out losses of the one network over steps, and the pair's held-out figures as level lines."""
    from matplotlib.figure import Figure

    panels = {
        "next token": ("ar", "nats_next", ("nats",)),
        "masked place": ("masked", "nats_masked", ("nats_half", "nats_quarter_prefix", "nats_half_prefix")),
    }
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    for axes, (what, (own, training, held)) in zip(figure.subplots(1, 2), panels.items(), strict=True):
        steps = [line["step"] for line in log if training in line]
        axes.plot(steps, running_mean([line[training] for line in log if training in line]), color="0.6",
                  linewidth=1, label="training")  # fmt: skip
        for name, marker, dash in zip(held, MARKERS, DASHES, strict=False):
            found = [(line["step"], line[f"eval_{name}"]) for line in log if f"eval_{name}" in line]
            label = name.removeprefix("nats").replace("_", " ").strip() or "held out"
            axes.plot(*zip(*found, strict=True), color="black", marker=marker, linestyle="none", label=label)
            axes.axhline(pair[own][name], color="black", linestyle=dash, linewidth=0.8, label=f"the pair's: {label}")
        axes.set_xlabel("optimiser step")
        axes.set_ylabel(f"nats per {what}")
        axes.grid(color="0.9")
        axes.legend(fontsize="x-small", ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    figure.savefig(path, dpi=110)


def speeds(two: HybridPipeline, one: HybridPipeline, batches: Sequence[int], config: SpeedConfig) -> list[Any]:
    """Seconds of each point, turn by turn of both, as medians with 95 % intervals; by phase medians only."""
    rows = []
    for batch in batches:
        for point in POINTS:
            prompts: list[str | int] = [*(two.classes or range(10))]
            turns = speed.measure((two, point), (one, point), prompts, batch, config)
            seconds = {lane: np.array([turn["seconds"] for turn in turns[lane]]) for lane in ("ar", "own")}
            rows.append(
                {
                    "point": point.label,
                    "batch": batch,
                    "two_networks": _timed(turns["ar"]),
                    "one_network": _timed(turns["own"]),
                    "times_faster": speedup_of(seconds["own"], seconds["ar"]).told(),
                    "passes": turns["passes"],
                    "load": turns["load"],
                }
            )
    return rows


def _timed(turns: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    phases = turns[0]["phases"]
    median, interval = median_of(np.array([turn["seconds"] for turn in turns]))
    return {
        "seconds": {"value": median, "interval": list(interval)},
        "phases": {phase: float(np.median([turn["phases"][phase] for turn in turns])) for phase in phases},
    }


def costs(pipe: HybridPipeline) -> dict[str, Any]:
    """Parameters' bytes, and for each point with one picture: operations by part, and the most bytes alive at once
    beside the parameters."""
    networks = {id(network): network for network in (pipe.ar, pipe.masked)}.values()
    found: dict[str, Any] = {"parameter_bytes": sum(module_bytes(network) for network in networks)}
    for point in POINTS:
        request = {**point.request(), "seed": 0, "output_type": "tokens"}
        with metered(pipe) as parts:
            pipe([0], **request)
        with Alive() as alive:
            pipe([0], **request)
        found[point.label] = {
            "operations": {part: asdict(cost) for part, cost in parts.items() if cost.calls},
            "peak_bytes": alive.peak,
        }
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point. Returns 0, or 2 after one line about a mistake."""
    parser = argparse.ArgumentParser(prog="python -m hybrid.benchmarks.one_network", description=__doc__)
    parser.add_argument("what", choices=("losses", "speed", "cost"))
    parser.add_argument("--pair", required=True, help="folder of the pair of two networks")
    parser.add_argument("--shared", required=True, help="folder of the pair that is one network")
    parser.add_argument("--data", type=Path, help="of losses (default: where hybrid-data writes it)")
    parser.add_argument("--log", type=Path, help="of losses: the one network's log.jsonl, to draw losses.png from")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8], help="of speed (1 8)")
    parser.add_argument("--repeats", type=int, default=7, help="of speed (7)")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    arguments = parser.parse_args(argv)
    try:
        use_threads(arguments.threads)
        head = {"load": load(), "threads": torch.get_num_threads(), "commit": commit(), "versions": versions()}
        two, one = (HybridPipeline.from_pretrained(each) for each in (arguments.pair, arguments.shared))
        if one.ar is None or one.ar is not one.masked:
            raise ValueError(f"{arguments.shared}: its two models are not one network")
        if arguments.what == "losses":
            folders = {
                "ar": f"{arguments.pair}/ar",
                "masked": f"{arguments.pair}/masked",
                "shared": f"{arguments.shared}/ar",
            }
            weights = {name: Path(folder, "model.safetensors") for name, folder in folders.items()}
            tokenizer = Path(arguments.pair, "tokenizer", "model.safetensors")
            found: Any = losses(weights, arguments.data, tokenizer)
        elif arguments.what == "speed":
            found = speeds(two, one, arguments.batches, SpeedConfig(repeats=arguments.repeats))
        else:
            found = {"two_networks": costs(two), "one_network": costs(one)}
    except (ValueError, OSError) as error:
        print(f"one_network: {error}", file=sys.stderr)
        return 2
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_json(arguments.out / f"{arguments.what}.json", head | {arguments.what: found})
    if arguments.what == "losses" and arguments.log is not None:
        plot(read_log(arguments.log), found, arguments.out / "losses.png")
    print(arguments.out / f"{arguments.what}.json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
