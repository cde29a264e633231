"""Which system a weight file is of, told by one key that no other system's files have.

This file knows key names and where each adapter keeps its named sizes. It builds nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import import_module

from torch import Tensor

from hybrid.checkpoint import find_wrapper

from . import ADAPTERS, load

MARKERS: dict[str, str] = {
    "maskgit-vq": "decoder.up.1.upsample_conv.weight",
    "movqgan": "decoder.mid.block_1.norm1.norm_layer.weight",
    "chameleon-vq": "decoder.mid.block_1.norm1.weight",
    "llamagen-vq": "encoder.conv_blocks.0.res.0.conv1.weight",
    "randar": "pos_instruct_embeddings",
    "arpg": "layers.self_dec.0.attn.to_q.weight",
    "rar": "target_aware_pos_embed",
    "halton": "pos_emb.weight",
    "unified": "suffix_embedding",
    "llamagen": "tok_embeddings.weight",
    "maskgil": "tok_emb.weight",
    "lumina": "model.embed_tokens.weight",
    "t5": "encoder.block.0.layer.0.SelfAttention.q.weight",
    "fsq": "codebook_kd",
}
"""A key of each kind's files. Where a file has several, the first kind in this order is meant."""

SIZES = {"llamagen-vq": "LLAMAGEN_SIZES", "chameleon-vq": "CHAMELEON_SIZES", "movqgan": "MOVQGAN_SIZES"}
"""What an adapter calls its named sizes, where that is not ``CONFIGS``."""


def find_family(state: Mapping[str, Tensor], source: str) -> str:
    """The kind of ``hybrid.adapters.load`` that a state dict, wrapped or not, belongs to.

    Raises:
        ValueError: none of them; the message shows some of the keys.
    """
    for kind, marker in MARKERS.items():
        if find_wrapper(state, (marker,)) is not None:
            return kind
    shown = ", ".join(sorted(state)[:5])
    raise ValueError(f"{source}: of no known family; known: {', '.join(MARKERS)}; its keys are {shown}")


def find_sizes(kind: str, state: Mapping[str, Tensor]) -> tuple[str, ...]:
    """The named sizes whose every key and shape a state dict has. Rotary positions leave no trace in a file, so sizes
    that differ in the grid alone are all named."""
    module = import_module(ADAPTERS[kind].split(":")[0])
    shapes = {key: value.to("meta") for key, value in state.items()}
    found: dict[str, str] = {}
    for name in getattr(module, SIZES.get(kind, "CONFIGS"), {}):
        try:
            config = load(kind, shapes, name, device="meta").config
        except ValueError:
            continue
        found.setdefault(json.dumps(config, sort_keys=True), name)  # a short name for the same configuration is no news
    return tuple(found.values())
