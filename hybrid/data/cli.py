"""`hybrid-data emoji|fashion` builds a data folder, `hybrid-data codes` code shards; both say what is in it."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from hybrid.cli_options import Parser, UsageError
from hybrid.data import codes_cli
from hybrid.data.folder import DataError, DataFolder, default_folder


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; 0 when built, 2 with one line on stderr when it cannot be."""
    try:
        options = _parser().parse_args(argv)
    except UsageError as error:
        print(f"hybrid-data: {error}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if options.set == "codes":
            print(codes_cli.run(options))
            return 0
        source = Path(options.source) if options.source else None
        if source is not None and not source.is_dir():
            raise DataError(f"--from {source}: no such folder")
        out = Path(options.out) if options.out else default_folder(options.set)
        data = _build(options, out, source)
    except (DataError, OSError, MemoryError) as error:
        print(f"hybrid-data: {' '.join(str(error).split()) or 'out of memory'}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        kept = "finished shards are kept, the same command goes on" if options.set == "codes" else "nothing was written"
        print(f"hybrid-data: interrupted, {kept}", file=sys.stderr)
        return 130
    splits = ", ".join(f"{count} {split}" for split, count in data.meta["splits"].items())
    print(f"{data.path}: {len(data)} pictures ({splits}), {data.images.shape[1]} views each")
    return 0


def _build(options: argparse.Namespace, out: Path, source: Path | None) -> DataFolder:
    if options.set == "fashion":
        from hybrid.data.fashion import build_fashion

        return build_fashion(out, source=source)
    from rich.console import Console
    from rich.progress import Progress

    from hybrid.data.emoji import build_emoji

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("drawing emoji", total=None)
        return build_emoji(
            out,
            sources=source,
            views=options.views,
            seed=options.seed,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )


def _parser() -> Parser:
    parser = Parser(prog="hybrid-data", description="Build data for training.")
    sets = parser.add_subparsers(dest="set", required=True, metavar="emoji|fashion|codes")
    for name, what in (("emoji", "captioned 64×64 emoji of eight icon sets"), ("fashion", "Fashion-MNIST at 32×32")):
        one = sets.add_parser(name, help=what, description=f"Build {what}.")
        one.add_argument("--out", metavar="DIR", help="folder to write (default: the cache, data/" + name + ")")
        one.add_argument("--from", dest="source", metavar="DIR", help="folder that holds the downloaded packages")
        if name == "emoji":
            one.add_argument("--views", type=int, default=8, help="pictures of each drawing, the first plain (8)")
            one.add_argument("--seed", type=int, default=0, help="seed of the shifted, scaled, mirrored views (0)")
    what = "tokens of pictures of one's own"
    codes_cli.add_arguments(sets.add_parser("codes", help=what, description=f"Extract {what} into code shards."))
    return parser


if __name__ == "__main__":
    sys.exit(main())
