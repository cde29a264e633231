"""``hybrid-convert``: look into weight files, and write them anew as safetensors with configuration and card."""

from __future__ import annotations

import json
import sys
from argparse import Namespace, RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path

from hybrid.cli_options import Parser

EXAMPLES = """examples:
  hybrid-convert --inspect c2i_L_384.pt                         family, size, codebook, wrapper; runs no code of it
  hybrid-convert c2i_L_384.pt --config c2i-L-384 -o llamagen-l  one component as a folder of safetensors
  hybrid-convert pair.yaml -o pair/ --dtype fp16                a whole pairing, as HybridPipeline.save_pretrained does

Exit codes: 0 done, 2 a mistake or a file that does not fit (the list of keys follows the line).
"""
SHOWN = 40
"""Keys of a list that are shown."""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point. Returns 0, or 2 after one line about a mistake."""
    parser = Parser(
        prog="hybrid-convert",
        usage="%(prog)s FILE|FOLDER|YAML [--inspect | -o FOLDER] [options]",
        description="Look into weight files, and write them anew as safetensors with their configuration and a card.",
        epilog=EXAMPLES,
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "source", type=Path, metavar="FILE", help="a weight file, a folder of shards or a pairing's YAML"
    )
    parser.add_argument("--inspect", action="store_true", help="tell what it is; write nothing")
    parser.add_argument("-o", "--out", type=Path, metavar="FOLDER", help="where to write")
    parser.add_argument("--kind", metavar="K", help="the family, where it should not be guessed")
    parser.add_argument("--config", metavar="NAME", help="a named size, where the shapes do not tell everything")
    parser.add_argument(
        "--dtype", metavar="T", help="fp32, bf16 or fp16 (default: fp32; of a pairing, each file's own)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    try:
        return _run(parser.parse_args(argv))
    except (ValueError, OSError) as error:
        print(f"hybrid-convert: {' '.join(str(error).split())}", file=sys.stderr)
        for line in _lists(error):
            print(line, file=sys.stderr)
        return 2


def _run(options: Namespace) -> int:
    if options.inspect == (options.out is not None):
        raise ValueError("say --inspect to look, or -o FOLDER to write")
    if options.inspect and options.dtype is not None:
        raise ValueError("--dtype: is what -o writes; leave it out, --inspect tells the types that there are")
    from dataclasses import asdict

    from hybrid.convert import Inspection, convert, inspect
    from hybrid.request import find_dtype

    dtype = None
    if options.dtype is not None:
        import torch

        dtype = find_dtype(options.dtype, torch.device("cpu"))
    if options.source.suffix in (".yaml", ".yml"):
        return _pairing(options, dtype)
    how = {"kind": options.kind, "config": options.config}
    told: Inspection
    if options.inspect:
        told = inspect(options.source, **how)
    else:
        told = convert(options.source, options.out, **how, dtype=dtype)
    if options.json:
        print(json.dumps(asdict(told), indent=1))
        return 0
    lines = {
        "family": told.kind,
        "size": " or ".join(told.sizes) or "no published one",
        "parameters": f"{told.parameters / 1e6:.1f}M",
        "codes": told.codes,
        "grid": f"not told by the file: {' or '.join(told.grids)}" if told.grids else told.grid,
        "types": ", ".join(f"{count} x {name}" for name, count in told.dtypes.items()),
        "wrapper": told.wrapper,
        "beside": ", ".join(told.beside),
    }
    print(told.source)
    for name, value in lines.items():
        if value not in (None, ""):
            print(f"  {name:<11}{value}")
    print("  every key and shape is as that configuration has it")
    if options.out is not None:
        print(f"{options.out}: written")
    return 0


def _pairing(options: Namespace, dtype: object) -> int:
    from hybrid.pipeline import HybridPipeline

    if options.inspect:
        raise ValueError("--inspect looks into weight files; a YAML is plain text")
    if options.kind or options.config:
        raise ValueError("--kind and --config: the YAML says them")
    if options.json:
        raise ValueError("--json: tells of weight files; leave it out for a YAML")
    pipe = HybridPipeline.from_pretrained(options.source)
    pipe.save_pretrained(options.out, dtype=dtype)  # type: ignore[arg-type]
    print(f"{options.out}: written; draw with: hybrid-generate PROMPT --config {options.out}")
    return 0


def _lists(error: BaseException) -> list[str]:
    """The keys that a file lacks, has beyond the model's, or has in another shape, one a line."""
    lines = []
    for name in ("missing", "unexpected", "differing"):
        found: Sequence[str] = getattr(error, name, ())
        lines += [f"  {name}: {key}" for key in found[:SHOWN]]
        lines += [f"  {name}: and {len(found) - SHOWN} more"] if len(found) > SHOWN else []
    return lines


if __name__ == "__main__":
    sys.exit(main())
