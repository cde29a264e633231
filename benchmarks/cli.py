"""``hybrid-bench``: parse, call, show."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hybrid.cli_options import Parser
from hybrid.threads import use_threads

from . import cli_ablate, cli_fid
from .cli_sweep import add_commands


def main(argv: list[str] | None = None) -> int:
    """Entry point. Returns 0; 2 after one line about a mistake; 130 after Ctrl-C."""
    try:
        arguments = _parser().parse_args(argv)
        return int(arguments.call(arguments))
    except (ValueError, OSError) as error:
        print(f"hybrid-bench: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("hybrid-bench: stopped; run the same command to go on where it was", file=sys.stderr)
        return 130


def _parser() -> Parser:
    parser = Parser(prog="hybrid-bench", description="Measure fidelity and speed.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    figures = commands.add_parser(
        "figures", help="recompute a pair's fidelity figures", description="Recompute a pair's fidelity figures."
    )
    figures.add_argument("set", choices=("fashion", "emoji"), help="the data set, and the embedded pair of its name")
    figures.add_argument("--pair", help="another pairing: a folder, a YAML file or a shipped name")
    figures.add_argument("--pictures", type=int, metavar="N", help="pictures a method (fashion 10000, emoji 4000)")
    figures.add_argument("--seed", type=int, default=0, help="seed of pictures and resamples (0)")
    figures.add_argument("--data", type=Path, metavar="DIR", help="data folder (default: where hybrid-data writes it)")
    figures.add_argument("--out", type=Path, metavar="FILE", help="default: figures.json beside the pair's weights")
    figures.add_argument("--ar", metavar="JSON", help="the AR model's guidance_scale and temperature, for example "
                         "'{\"temperature\": 0.5}'; {} is the pair's own (default: the best of a grid)")  # fmt: skip
    figures.add_argument("--dtype", default="auto", metavar="TYPE", help="auto, fp32, bf16 or fp16 (auto)")
    figures.add_argument("--compile", action="store_true", help="compile the networks first")
    figures.add_argument("--threads", type=int, help="CPU threads")
    figures.set_defaults(call=_figures)
    add_commands(commands)
    cli_fid.add_command(commands)
    cli_ablate.add_command(commands)
    return parser


def _figures(arguments: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.progress import Progress

    from hybrid.benchmarks.figures import make_figures

    use_threads(arguments.threads)
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal) as bars:
        tasks: dict[str, Any] = {}

        def told(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, total=total)

        path, content = make_figures(
            arguments.set,
            pair=arguments.pair,
            data=arguments.data,
            pictures=arguments.pictures,
            seed=arguments.seed,
            out=arguments.out,
            told=told,
            dtype=arguments.dtype,
            compile=arguments.compile,
            options={} if arguments.ar is None else {"ar": read_ar(arguments.ar)},
        )
    _show(content)
    print(path)
    return 0


def read_ar(text: str) -> dict[str, Any]:
    """The AR model's setting as ``--ar`` gives it.

    Raises:
        ValueError: not JSON, or another setting.
    """
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"--ar: not JSON ({error})") from None
    if not isinstance(found, dict) or not set(found) <= {"guidance_scale", "temperature"}:
        raise ValueError(f"--ar {text}: give guidance_scale and temperature, or {{}}")
    return found


def _show(content: Mapping[str, Any]) -> None:
    """The named figures with their intervals, one a line."""
    if content["preliminary"]:
        print(f"preliminary: {content['pictures']} pictures a method, {content['required_pictures']} are required")
    choice = content["details"]["ar_choice"]
    of = f", the best of {len(choice['tried'])} settings" if choice["tried"] else ""
    print(f"AR model at {choice['settings'] or 'the defaults of its pair'}{of}")
    for name, value in content.items():
        if isinstance(value, float) and name != "seconds":
            low, high = content["intervals"].get(name, (None, None))
            print(f"{name} {value:.4g}" + ("" if low is None else f" [{low:.4g}, {high:.4g}]"))


if __name__ == "__main__":
    sys.exit(main())
