"""``hybrid-average RUN RUN ... -o OUT.safetensors``: the mean of several runs' weights.

Runs that began from the same weights, or one from where the other ended, mostly lie in one valley of the loss, and
their mean predicts as well as the best of them or better (model soups, Wortsman et al., arXiv 2203.05482).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from hybrid.cli_options import Parser


def main(argv: list[str] | None = None) -> int:
    """Entry point. Returns 0, or 2 after one line about a mistake."""
    parser = Parser(
        prog="hybrid-average",
        description="Write the mean of the weights of several runs of one network.",
        epilog="Each is a run's folder, whose final (else best, else newest averaged) weights are taken, or a file. "
        "Runs should share their beginning; judge the mean with hybrid-train CONFIG --evaluate --init OUT.",
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    parser.add_argument("-o", "--out", type=Path, required=True, help="the .safetensors file to write")
    parser.add_argument(
        "--parts",
        type=float,
        nargs="+",
        metavar="X",
        help="how much of each, such as 2 3 for 0.4 and 0.6 (default: alike)",
    )
    try:
        arguments = parser.parse_args(argv)
        return run(arguments.runs, arguments.out, arguments.parts)
    except (ValueError, OSError) as error:
        print(f"hybrid-average: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


def run(runs: Sequence[Path], out: Path, parts: Sequence[float] | None = None) -> int:
    """Read, check, average and write.

    Raises:
        ValueError: fewer than two runs, one given twice, parts that are not as many positive numbers, an output that is
            no safetensors file or one of the inputs, or weights of different networks.
    """
    from hybrid.checkpoint import read_weights, require_output, save_weights, sha256
    from hybrid.export import run_weights

    if len(runs) < 2:
        raise ValueError("give two runs or more; the mean of one is itself")
    parts = [1.0] * len(runs) if parts is None else list(parts)
    if len(parts) != len(runs) or not all(part > 0 for part in parts) or not math.isfinite(sum(parts)):
        raise ValueError(f"--parts: give {len(runs)} numbers above 0, one for each run")
    files = [run_weights(each) for each in runs]
    require_output(out, files)
    for place, file in enumerate(files):
        if any(file.resolve() == other.resolve() for other in files[:place]):
            raise ValueError(f"{file}: is given twice; say with --parts how much of each")
    loaded = [read_weights(file) for file in files]
    shares = [part / sum(parts) for part in parts]
    state = mean([tensors for tensors, _ in loaded], shares, names=[str(each) for each in runs])
    metadata = agreed([told for _, told in loaded], names=[str(each) for each in runs])
    metadata["mean_of"] = {sha256(file)[:8]: share for file, share in zip(files, shares, strict=True)}
    save_weights(out, state, metadata=metadata)
    print(f"{out}: mean of {len(runs)} runs, " + ", ".join(f"{share:.3g}" for share in shares))
    return 0


def mean(states: Sequence[dict[str, Tensor]], shares: Sequence[float], *, names: Sequence[str]) -> dict[str, Tensor]:
    """The weighted sum of state dicts, computed in float32 and kept in the first one's types. What is no floating-point
    number must be equal in all.

    Args:
        states: of one network.
        shares: a weight for each, which sum to 1.
        names: what messages call them.

    Raises:
        ValueError: other tensors, or some of another shape, than the first one's; a mean that is no number.
    """
    first = states[0]
    for state, name in zip(states[1:], names[1:], strict=True):
        if odd := sorted(first.keys() ^ state.keys()):
            raise ValueError(f"{name}: is another network than {names[0]}; only one of them has {odd[0]}")
        for key, tensor in first.items():
            if tensor.shape != state[key].shape:
                shapes = f"{tuple(tensor.shape)} and {tuple(state[key].shape)}"
                raise ValueError(f"{name}: is another network than {names[0]}; {key} is {shapes}")
            if not tensor.is_floating_point() and not tensor.equal(state[key]):
                raise ValueError(f"{name}: {key} is no weight and differs from that of {names[0]}")
    found = {}
    for key, tensor in first.items():
        if not tensor.is_floating_point():
            found[key] = tensor
            continue
        total = shares[0] * tensor.float()
        for share, state in zip(shares[1:], states[1:], strict=True):
            total += share * state[key].float()
        found[key] = total.to(tensor.dtype)
        if not bool(found[key].isfinite().all()):
            raise ValueError(f"{' and '.join(names)}: the mean of {key} is not finite; one of the runs diverged")
    return found


def agreed(told: Sequence[dict[str, Any]], *, names: Sequence[str]) -> dict[str, Any]:
    """What the files' metadata say alike, for the mean of their weights.

    Raises:
        ValueError: networks of another kind or configuration, or trained on another tokenizer's codes.
    """
    first = told[0]
    for other, name in zip(told[1:], names[1:], strict=True):
        for field in ("kind", "config"):
            if other.get(field) != first.get(field):
                raise ValueError(f"{name}: is another network than {names[0]}; its {field} differs")
        codes = [each.get("origin", {}).get("tokenizer") for each in (first, other)]
        if None not in codes and codes[0] != codes[1]:
            raise ValueError(f"{name}: was trained on another tokenizer's codes than {names[0]}")
    return {field: first[field] for field in ("kind", "config") if field in first}


if __name__ == "__main__":
    sys.exit(main())
