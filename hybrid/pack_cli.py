"""``hybrid-pack TOKENIZER AR MASKED --out DIR``: training runs as one folder that the pipeline loads."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from hybrid.cli_options import Parser


def main(argv: list[str] | None = None) -> int:
    """Entry point. Returns 0, or 2 after one line about a mistake."""
    parser = Parser(
        prog="hybrid-pack",
        description="Pack a tokenizer, an AR and a masked model into one folder, in half precision.",
        epilog="Each is a run's folder, whose final (else best, else newest averaged) weights are taken, or a file. "
        "Name one run as AR and MASKED where one network is both. "
        "Load the pair with HybridPipeline.from_pretrained(DIR).",
    )
    for name in ("tokenizer", "ar", "masked"):
        parser.add_argument(name, type=Path, metavar=name.upper())
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the pair's folder")
    settings = "a YAML with text, classes, grid and defaults, or another pair's model_index.json, which has them too"
    parser.add_argument("--defaults", type=Path, metavar="FILE", help=settings)
    parser.add_argument("--card", type=Path, metavar="FILE", help="the model card, a Markdown file")
    try:
        arguments = parser.parse_args(argv)
        return run(arguments)
    except (ValueError, OSError) as error:
        print(f"hybrid-pack: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


def run(arguments: argparse.Namespace) -> int:
    """Read, check and write; then say what the folder holds."""
    from hybrid.pack import pack, read_settings

    try:
        card = arguments.card.read_text(encoding="utf-8") if arguments.card else ""
    except UnicodeDecodeError:
        raise ValueError(f"--card {arguments.card}: is not UTF-8 text") from None
    runs = {name: getattr(arguments, name) for name in ("tokenizer", "ar", "masked")}
    pipeline = pack(runs, arguments.out, read_settings(arguments.defaults), card=card)
    for name in runs:
        kind = pipeline.kinds[name]
        if name == "masked" and pipeline.masked is pipeline.ar:
            print(f"{name}: {kind}, the same network as ar")
            continue
        count = sum(value.numel() for value in getattr(pipeline, name).parameters())
        size = (arguments.out / name / "model.safetensors").stat().st_size
        print(f"{name}: {kind}, {count / 1e6:.1f}M parameters, {size / 1e6:.1f} MB")
    print(f"done: {arguments.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
