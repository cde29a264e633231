"""``hybrid-init-maskgil LLAMAGEN_FILE -o OUT.safetensors``: a MaskGIL, or one network for both phases, that starts from
LlamaGen's weights."""

from __future__ import annotations

import sys
from pathlib import Path

from hybrid.cli_options import Parser


def main(argv: list[str] | None = None) -> int:
    """Entry point. Returns 0, or 2 after one line about a mistake."""
    parser = Parser(
        prog="hybrid-init-maskgil",
        description="Write a MaskGIL, ready to be trained, whose blocks and embeddings are a LlamaGen's.",
        epilog="Train it with hybrid-train --init OUT. Untrained, it fills nothing sensibly.",
    )
    parser.add_argument("weights", type=Path, help="LlamaGen's weights: .pt, .safetensors or a folder")
    parser.add_argument("-o", "--out", type=Path, required=True, help="the .safetensors file to write")
    parser.add_argument(
        "--config",
        help="LlamaGen's size, such as c2i-L-384 or t2i-XL-512 (default: what the file tells, with its grid as 16x16 "
        "where it does not say)",
    )
    parser.add_argument(
        "--kind",
        choices=("maskgil", "unified"),
        default="maskgil",
        help="what to write: a MaskGIL, or the one network that is AR and masked model (default: maskgil)",
    )
    try:
        arguments = parser.parse_args(argv)
        return run(arguments.weights, arguments.out, arguments.config, arguments.kind)
    except (ValueError, OSError) as error:
        print(f"hybrid-init-maskgil: {error}", file=sys.stderr)
        return 2


def run(weights: Path, out: Path, config: str | None, kind: str = "maskgil") -> int:
    """Read, rename and write.

    Raises:
        ValueError: weights that are not LlamaGen's, or an output that is no safetensors file or the input itself.
    """
    from hybrid.adapters.maskgil_init import init_from_file
    from hybrid.checkpoint import require_output, save_weights

    require_output(out, [weights])
    state, fields = init_from_file(weights, config, kind=kind)
    save_weights(out, state, metadata={"kind": kind, "config": fields.model_dump()})
    count = sum(tensor.numel() for tensor in state.values())
    asked = "captions" if fields.model_type == "t2i" else f"{fields.num_classes} classes"
    name = "MaskGIL" if kind == "maskgil" else "one network for both phases"
    print(f"{out}: {name}, {count / 1e6:.1f}M parameters, {fields.vocab_size} codes, {fields.grid} grid, {asked}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
