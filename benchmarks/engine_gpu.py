"""The rows of the engine benchmark that need a graphics card; without one each says so."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from typing import Any

from .engine_lanes import Lane, Reach, best, drawn, measure, ratio

SIDE, BATCH = 16, 8
NO_GPU = "not measured (no GPU)"
SHARES = {"XL": 0.45, "3B": 0.70}
ROWS = {
    "XL": "GPU, AR share of the bandwidth limit: LlamaGen-XL",
    "3B": "the same: LlamaGen-3B",
    "original": "GPU, XL against the original with --compile",
    "hybrid": "GPU, hybrid 12.5 % + 12 of a 500M completer against our own AR",
    "masked": f"GPU, masked passes at batch {BATCH}, share of the matmul peak",
}


def rows(
    options: argparse.Namespace, device: Any, turns: int, limits: Mapping[str, Any], told: Callable[[str], Any]
) -> tuple[dict[str, Any], list[Reach]]:
    """Lanes and rows of a card; no lanes without one."""
    if device.type != "cuda":
        wanted = {"XL": "≥ 45 %", "3B": "≥ 70 %", "original": "≥ 1.5×", "hybrid": "≥ 4×", "masked": "≥ 50 %"}
        return {}, [Reach(ROWS[name], least, None, None, NO_GPU) for name, least in wanted.items()]
    lanes: dict[str, Any] = {}
    found: list[Reach] = []
    for size, least in SHARES.items():
        lanes |= measure(_size(options, size, device), turns, limits["memory_bytes_per_second"], told)
        share = lanes[f"ar {size} bf16 compiled"]["bandwidth_share"]
        found.append(Reach(ROWS[size], f"≥ {least:.0%}", share, share >= least))
    ours = best(lanes, "ar XL")
    why = "not measured (no --original)"
    found.append(ratio(ROWS["original"], 1.5, best(lanes, "original XL"), ours, why))
    found.append(ratio(ROWS["hybrid"], 4, ours, best(lanes, "hybrid XL"), why))
    share = _masked_share(device, turns, limits["flops_per_second"]["bfloat16"])
    found.append(Reach(ROWS["masked"], "≥ 50 %", share, share >= 0.5))
    return lanes, found


def _size(options: argparse.Namespace, size: str, device: Any) -> list[Lane]:
    """Our compiled AR model of a size; of XL also the hybrid and the original."""
    import torch

    from . import engine_scene as scene
    from .engine_original import decoded, original

    state = scene.weights(size, SIDE)
    completer = {**scene.COMPLETER_500M, "qk_norm": True, "post_norm": True, "rope": "2d"} if size == "XL" else None
    how: dict[str, Any] = {"device": device, "dtype": torch.bfloat16}
    pipeline = scene.pairing(state, size, SIDE, completer=completer, compiled=True, **how)
    places, cost = SIDE * SIDE, scene.token_bytes(pipeline.ar, 2, SIDE * SIDE)
    made = [Lane(f"ar {size} bf16 compiled", lambda: drawn(pipeline, 3, method="ar"), places, cost)]
    if completer is not None:
        made.append(Lane("hybrid XL bf16 compiled", lambda: drawn(pipeline, 3, ar_fraction=0.125, steps=12), places))
    if size == "XL" and options.original is not None:
        shape = scene.fields(size, SIDE)
        sampling: dict[str, Any] = {"scale": scene.SCALE, "top_k": scene.TOP_K, "compiled": True}
        loop = original(options.original, shape, state, **how, **sampling)
        made.append(Lane("original XL bf16 --compile", decoded(loop, pipeline), places, cost))
    return made


def _masked_share(device: Any, turns: int, peak: float) -> float:
    """Share of the matrix products' speed that masked passes of the 500M completer reach, with guidance."""
    import torch

    from hybrid.adapters.llama import init_weights
    from hybrid.adapters.maskgil import MaskGILConfig, build
    from hybrid.types import MASK

    from .engine_scene import COMPLETER_500M, pass_flops
    from .machine import best_of

    paper = {"block_size": SIDE * SIDE, "qk_norm": True, "post_norm": True, "rope": "2d"}
    config = MaskGILConfig.model_validate({**COMPLETER_500M, **paper})
    model = build(config).to(device=device, dtype=torch.bfloat16).eval()
    init_weights(model)
    for block in model.layers:
        block.compile()
    asked: Any = model.condition(list(range(BATCH)))
    both, rows = asked.cat(asked.null()), 2 * BATCH
    tokens_bn = torch.full((rows, SIDE * SIDE), MASK, device=device)
    with torch.inference_mode():
        seconds = best_of(lambda: model.logits(tokens_bn, both), device, max(turns, 3))
    return pass_flops(model, rows, SIDE * SIDE) / seconds / peak
