"""What the engine benchmark draws with: pairings with random weights of the released sizes, and what a token costs.

The weights' values do not matter to the time; the same ones are given to the original loop. This file knows models and
no clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from hybrid.config import DefaultsConfig
from hybrid.pipeline import HybridPipeline
from hybrid.quantize import quantize_blocks

SCALE, TOP_K = 4.0, 2000
"""LlamaGen's own defaults."""

EMBEDDED = 25.0
"""Embeddings' deviation over the other weights': as large as what twelve blocks add to them."""

COMPLETER_500M = {"dim": 1024, "n_layer": 36, "n_head": 16}


def fields(size: str, side: int) -> dict[str, Any]:
    """LlamaGen's configuration of a size on a square grid."""
    from hybrid.adapters.transformer_config import WIDTHS

    return {**WIDTHS[size], "block_size": side * side}


def weights(size: str, side: int) -> dict[str, torch.Tensor]:
    """Random weights of an AR model. Its head is tied to large embeddings, so that one code stands out at each place as
    a trained model's does; among flat logits any rounding changes the likeliest, and int8 would rightly be refused.
    """
    from hybrid.adapters.llama import init_weights
    from hybrid.adapters.llamagen import build
    from hybrid.adapters.transformer_config import TransformerConfig

    torch.manual_seed(0)
    model = build(TransformerConfig(**fields(size, side)))
    init_weights(model)
    with torch.no_grad():
        model.output.weight.copy_(model.tok_embeddings.weight)
        model.tok_embeddings.weight.mul_(EMBEDDED)
    return model.state_dict()


def pairing(
    state: Mapping[str, torch.Tensor],
    size: str,
    side: int,
    *,
    completer: Mapping[str, Any] | None,
    device: torch.device,
    dtype: torch.dtype,
    int8: bool = False,
    compiled: bool = False,
) -> HybridPipeline:
    """An AR model with a VQ-16 and, where one is given, a MaskGIL.

    Args:
        state: the AR model's weights.
        completer: MaskGIL's configuration; the grid is added.
        int8: quantize the blocks, checked against the outputs before.
        compiled: compile the AR model's step, and on a graphics card the masked model and the decoder as well.

    Raises:
        ValueError: int8 weights whose outputs differ too much.
    """
    from hybrid.adapters import load
    from hybrid.adapters.llama import init_weights
    from hybrid.adapters.maskgil import MaskGILConfig, build
    from hybrid.adapters.vq import create_llamagen_vq

    ar = load("llamagen", state, fields(size, side), device=device, dtype=dtype)
    torch.manual_seed(1)
    masked = None
    if completer is not None:
        masked = build(MaskGILConfig(**completer, block_size=side * side)).to(device=device, dtype=dtype).eval()
        init_weights(masked)
    tokenizer = create_llamagen_vq("VQ-16")[0].to(device=device, dtype=dtype).eval()
    drawing = {"guidance_scale": SCALE, "top_k": TOP_K}
    defaults = DefaultsConfig.model_validate({"ar": drawing, "masked": drawing})
    pipeline = HybridPipeline(tokenizer, ar=ar, masked=masked, defaults=defaults, name=f"LlamaGen-{size}")
    for part in (ar, masked, tokenizer):
        if part is not None:
            part.prepare()
    if int8:
        quantize_blocks(pipeline, "int8")
    if compiled and device.type == "cuda":
        pipeline.compile()
    elif compiled:
        ar.compile_step()
    return pipeline


def token_bytes(model: Any, rows: int, places: int) -> int:
    """Bytes that one decoding step reads: every weight of the blocks and the head, and half of the full cache.

    Args:
        model: a LlamaGen.
        rows: of the batch, with guidance.
        places: tokens of the whole picture.
    """
    parts: list[nn.Module] = [model.layers, model.norm, model.output]
    held = sum(value.nbytes for part in parts for value in (*part.parameters(), *part.buffers()))
    width = model.heads * model.head_dim * model.tok_embeddings.weight.element_size()
    return held + 2 * len(model.layers) * rows * width * places // 2


def pass_flops(model: Any, rows: int, places: int) -> int:
    """Operations of one masked pass with the head at every place: products of the blocks and the head, attention."""
    held = sum(part.weight.numel() for part in model.modules() if isinstance(part, nn.Linear))
    width = model.heads * model.head_dim
    return rows * places * (2 * held + 4 * len(model.layers) * places * width)
