"""How near the engine comes to the hardware's limits, and how far ahead of LlamaGen's own loop it is.

    python -m hybrid.benchmarks.engine --original LLAMAGEN_CHECKOUT [--quick] [--json FILE]

One line for each thing that was drawn (median, p10 to p90, taken in turns within one run) and one for each figure that
the project wants to reach. ``--quick`` draws a 5×5 grid with uncompiled networks. What is not measured says why.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hybrid.threads import use_threads

from .engine_lanes import Lane, Reach, best, drawn, measure, ratio

SIDES = {"full": 16, "quick": 5}
TURNS = {"full": 3, "quick": 2}


def kinds_of(device: Any) -> dict[str, Any]:
    """The types that lanes are drawn in: no bf16 on a CPU that only imitates it, where a picture would take hours."""
    import torch

    from hybrid.optimization import find_precision

    half = {"bf16": torch.bfloat16} if find_precision("auto", device) == "bf16" else {}
    return {"fp32": torch.float32, **half}


def released(options: argparse.Namespace, size: str, side: int, device: Any) -> list[Lane]:
    """Lanes of a released size: the original's loop where there is a checkout, ours, and the hybrid."""
    from hybrid.adapters.maskgil import CONFIGS

    from . import engine_scene as scene
    from .engine_original import decoded, original

    state = scene.weights(size, side)
    kinds = kinds_of(device)
    tokens, lanes = side * side, list[Lane]()
    compiled = not options.quick
    suffix = " step compiled" if compiled else ""
    for kind, dtype in kinds.items():
        pipeline = scene.pairing(
            state, size, side, completer=CONFIGS["paper-c2i-B"], device=device, dtype=dtype, compiled=compiled
        )
        if options.original is not None:
            loop = original(
                options.original,
                scene.fields(size, side),
                state,
                device=device,
                dtype=dtype,
                scale=scene.SCALE,
                top_k=scene.TOP_K,
            )
            draw = decoded(loop, pipeline)
            lanes.append(Lane(f"original {kind}", draw, tokens, scene.token_bytes(pipeline.ar, 2, tokens)))

        lanes.append(_ar(f"ar {kind}{suffix}", pipeline))

        def hybrid(pipeline: Any = pipeline) -> tuple[float, float]:
            return drawn(pipeline, 3, ar_fraction=0.25, steps=8)

        lanes.append(Lane(f"hybrid 25 % + 8 {kind}{suffix}", hybrid, tokens))
    for kind, dtype in kinds.items():
        how: dict[str, Any] = {"device": device, "dtype": dtype, "compiled": compiled}
        try:
            int8 = scene.pairing(state, size, side, completer=None, int8=True, **how)
        except ValueError as refused:
            print(f"ar int8, activations {kind}: {refused}", file=sys.stderr)
            continue
        lanes.append(_ar(f"ar int8, activations {kind}{suffix}", int8))
    return lanes


def embedded(options: argparse.Namespace, device: Any) -> list[Lane]:
    """Lanes of the embedded class pair."""
    from hybrid import HybridPipeline

    lanes = []
    for compiled in (False, True)[: 1 if options.quick else 2]:
        for kind in kinds_of(device):
            pipeline = HybridPipeline.from_pretrained("fashion", device=device, dtype=kind, compile=compiled)
            name = f"{kind}{' compiled' if compiled else ''}"
            lanes.append(_lane(f"pair ar {name}", pipeline, method="ar"))
            lanes.append(_lane(f"pair hybrid 25 % + 8 {name}", pipeline, ar_fraction=0.25, steps=8))
    return lanes


def _ar(name: str, pipeline: Any) -> Lane:
    """A class picture that the AR model draws alone."""
    from .engine_scene import token_bytes

    places = pipeline.ar.grid.places
    return Lane(name, lambda: drawn(pipeline, 3, method="ar"), places, token_bytes(pipeline.ar, 2, places))


def _lane(name: str, pipeline: Any, **request: Any) -> Lane:
    return Lane(name, lambda: drawn(pipeline, "Bag", **request), pipeline.ar.grid.places)


def cold() -> float:
    """Seconds of the command ``hybrid-generate`` with an embedded pair, from its start to the file."""
    import subprocess

    call = [sys.executable, "-c", "import sys; from hybrid.cli import main; sys.exit(main())"]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "a.png"
        start = time.perf_counter()
        subprocess.run([*call, "Bag", "--config", "fashion", "--quiet", "--seed", "0", "-o", str(out)], check=True)
        return time.perf_counter() - start


def reaches(lanes: Mapping[str, Any], pair: Mapping[str, Any], cold_seconds: list[float]) -> list[Reach]:
    """The CPU rows of the table."""
    from statistics import median

    why = "not measured (no --original)" if lanes else "not measured (--pair-only)"
    loops = {kind: best(lanes, f"original {kind}") for kind in ("fp32", "bf16")}
    fastest, half = best(lanes, "original"), best(lanes, "ar bf16")
    imitated = "not measured (this CPU has no bf16 arithmetic)"
    rows = [
        ratio("AR only against the original: fp32", 1.25, loops["fp32"], best(lanes, "ar fp32"), why),
        ratio("the same: bf16", 1.5, loops["bf16"], half, why if half or not lanes else imitated),
        ratio(
            "the same: checked int8, against its better type",
            2.5,
            fastest,
            best(lanes, "ar int8"),
            why if fastest is None else "not measured (int8 was refused)",
        ),
        ratio(
            "hybrid 25 % + 8 of MaskGIL-B against the original: its fp32", 4, loops["fp32"], best(lanes, "hybrid"), why
        ),
        ratio("the same, against its better type", 4, fastest, best(lanes, "hybrid"), why),
    ]
    warm = best(pair, "pair hybrid")
    assert warm is not None
    whole = min(lane["whole_seconds"]["median"] for name, lane in pair.items() if name.startswith("pair hybrid"))
    rows += [
        Reach("embedded pair, hybrid 25 % + 8: warm seconds, end to end", "≤ 0.4 s", whole, whole <= 0.4),
        ratio("the same, against our fastest AR path", 2, best(pair, "pair ar"), warm, ""),
    ]
    seconds = median(cold_seconds)
    rows.append(Reach("cold hybrid-generate, embedded pair: seconds", "≤ 6 s", seconds, seconds <= 6))
    return rows


def main(argv: list[str] | None = None) -> int:
    """Entry point. Returns 0; 2 after one line about a mistake."""
    parser = argparse.ArgumentParser(
        prog="python -m hybrid.benchmarks.engine", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--original", type=Path, metavar="DIR", help="a checkout of FoundationVision/LlamaGen")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (cpu)")
    parser.add_argument("--quick", action="store_true", help="a 5×5 grid, uncompiled, 2 turns: within 45 s")
    parser.add_argument("--pair-only", action="store_true", help="on a CPU the embedded pair alone")
    parser.add_argument(
        "--turns", type=int, metavar="N", help=f"draws of each ({TURNS['full']}; quick {TURNS['quick']})"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every time and figure there")
    parser.add_argument("--threads", type=int, help="CPU threads")
    options = parser.parse_args(argv)
    try:
        report = run(options)
    except (ValueError, OSError) as error:
        print(f"engine: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    from .engine_table import show

    show(report)
    if options.json is not None:
        options.json.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return 0


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure everything that this machine can.

    Raises:
        ValueError: no checkout at ``--original``, an unknown device, a number below 1, or refused int8 weights.
    """
    from dataclasses import asdict

    import torch
    from rich.console import Console

    from hybrid.request import find_device

    from . import engine_gpu, machine
    from .engine_original import require_checkout

    use_threads(options.threads)
    if options.turns is not None and options.turns < 1:
        raise ValueError(f"--turns {options.turns}: must be at least 1")
    device = find_device(options.device)
    if options.original is not None:
        require_checkout(options.original)
    which = "quick" if options.quick else "full"
    side, turns = SIDES[which], options.turns or TURNS[which]
    console = Console(stderr=True)
    with console.status("limits") as status:
        types = list(kinds_of(device).values()) if device.type == "cpu" else [torch.bfloat16]
        limits = machine.limits(device, types, machine.MEMORY_BYTES * 3)
        memory, before = limits["memory_bytes_per_second"], machine.describe(device)
        told = status.update
        lanes, rows = dict[str, Any](), list[Reach]()
        if device.type == "cpu":
            if not options.pair_only:
                lanes = measure(released(options, "B", side, device), turns, memory, told)
            pair = measure(embedded(options, device), turns + 1, memory, told)
            status.update("cold hybrid-generate")
            rows += reaches(lanes, pair, [cold() for _ in range(1 if options.quick else turns)])
            lanes |= pair
        gpu_lanes, gpu_rows = engine_gpu.rows(options, device, turns, limits, told)
    return {
        "grid": [side, side],
        "quick": options.quick,
        "header": before,
        "load_after": machine.load(),
        "limits": limits,
        "lanes": lanes | gpu_lanes,
        "reach": [asdict(row) for row in (*rows, *gpu_rows)],
    }


if __name__ == "__main__":
    sys.exit(main())
