"""``hybrid-bench ablate``: parse, call, show."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from hybrid.threads import use_threads


def add_command(commands: Any) -> None:
    """Add ``ablate`` to ``hybrid-bench``'s subparsers."""
    ablate = commands.add_parser(
        "ablate",
        help="what a choice of the paper is worth, in short runs",
        description="Sweep a choice of the paper in short runs, two seeds each. The same command goes on after a kill.",
    )
    ablate.add_argument(
        "name", metavar="NAME", help="norms, rope, schedules, codebook, guidance, handoff, or a YAML file"
    )
    ablate.add_argument("--data", type=Path, metavar="DIR", help="data folder (default: where hybrid-data writes it)")
    ablate.add_argument("--tokenizer", type=Path, metavar="FILE", help="instead of the embedded pair's, for training")
    ablate.add_argument("--out", type=Path, metavar="DIR", help="default: runs/ablate-NAME")
    ablate.add_argument("--quick", action="store_true", help="a few steps and pictures, to see that everything works")
    ablate.add_argument("--threads", type=int, metavar="N", help="CPU threads")
    ablate.set_defaults(call=_ablate)


def _ablate(arguments: argparse.Namespace) -> int:

    from .ablate import run_sweep

    use_threads(arguments.threads)
    last: tuple[str, int] | None = None

    def told(what: str, done: int, total: int) -> None:
        nonlocal last
        if (what, done) != last:
            print(f"{what}: {done} of {total}", file=sys.stderr, flush=True)
        last = what, done

    target, content = run_sweep(
        arguments.name,
        data=arguments.data,
        tokenizer=arguments.tokenizer,
        out=arguments.out,
        quick=arguments.quick,
        told=told,
    )
    print(content["text"])
    print(target)
    return 0
