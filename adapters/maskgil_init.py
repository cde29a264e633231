"""A MaskGIL, or one network for both phases, that starts from LlamaGen's weights instead of from noise.

With 2-D positions, pre-norm and both of the paper's norms as in the AR model, MaskGIL's blocks are LlamaGen's, and so
are their shapes: what an AR model knows about codes, classes and captions carries over, and training has to teach it to
look both ways and to predict a place itself rather than the next one. Two rows are new:

* the mask token is the mean of all code embeddings, which says "some code" and nothing about which;
* the output's mask column is zero. The adapter drops it, so that it is never trained and never drawn.

The one network (``unified``) keeps every weight; its masked head starts as the AR head, its mask as that mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hybrid.checkpoint import fit, read_weights, source_name, unwrap

from .llamagen import build as build_llamagen
from .loading import resolve
from .maskgil import MaskGILConfig
from .transformer_config import CONFIGS, TransformerConfig, infer

_CODES, _CLASSES = "tok_embeddings.weight", "cls_embedding.embedding_table.weight"


def masked_config(config: TransformerConfig) -> MaskGILConfig:
    """The MaskGIL whose blocks are those of a LlamaGen: the same fields and ``rope: 2d``."""
    return MaskGILConfig(**config.model_dump(), rope="2d")


def from_llamagen(
    state: Mapping[str, Tensor], config: TransformerConfig, *, source: str = "weights in memory"
) -> dict[str, Tensor]:
    """LlamaGen's weights under MaskGIL's names, in their own type; load them as ``masked_config(config)``.

    The table holds [codes, mask] and, class-conditional, [classes, null class] after them; caption layers keep their
    names. Tensors that need no change are shared with ``state``.

    Args:
        state: LlamaGen's bare state dict (see ``hybrid.checkpoint.unwrap``).
        config: LlamaGen's configuration.
        source: what messages call the weights.

    Raises:
        ValueError: one line: the weights do not fit the configuration.
    """
    own = _fitting(state, config, source)
    codes, output = own[_CODES], own["output.weight"]
    table = [codes, _some_code(codes)[None]] + ([own[_CLASSES]] if config.model_type == "c2i" else [])
    moved = {_CODES, _CLASSES, "output.weight"}
    kept = {key: value for key, value in own.items() if key not in moved}
    return {
        "tok_emb.weight": torch.cat(table),
        **kept,
        "output.weight": torch.cat((output, torch.zeros_like(output[:1]))),
    }


def both_from_llamagen(
    state: Mapping[str, Tensor], config: TransformerConfig, *, source: str = "weights in memory"
) -> dict[str, Tensor]:
    """LlamaGen's weights as the first ones of ``unified``, with the same configuration; see ``from_llamagen``."""
    own = _fitting(state, config, source)
    mask = _some_code(own[_CODES])
    new = {"mask_embedding": mask, "suffix_embedding": torch.zeros_like(mask)}
    return {**own, **new, "output_masked.weight": own["output.weight"].clone()}


def init_from_file(
    weights: str | Path | Mapping[str, Any], config: str | Mapping[str, Any] | None = None, *, kind: str = "maskgil"
) -> tuple[dict[str, Tensor], TransformerConfig]:
    """A network's first weights and configuration from a LlamaGen file, folder or mapping.

    Args:
        weights: see ``hybrid.adapters.load``.
        kind: ``maskgil`` or ``unified``.
        config: a LlamaGen size's name or its fields; None is what the file's metadata or shapes tell. The shapes do not
            tell the grid, so that a 384² model needs its name, such as ``c2i-L-384``, to keep 24x24 as its own.

    Raises:
        ValueError: one line with the file: not LlamaGen's, or of another size than the configuration.
    """
    state, metadata = read_weights(weights)
    source = source_name(weights)
    state = unwrap(state, expect=_CODES, source=source)
    if config is None:
        config = metadata.get("config")
    found = {} if config is not None else infer(state, source)
    fields = resolve(config, CONFIGS, found, "llamagen", TransformerConfig)
    if kind == "unified":
        return both_from_llamagen(state, fields, source=source), fields
    return from_llamagen(state, fields, source=source), masked_config(fields)


def _fitting(state: Mapping[str, Tensor], config: TransformerConfig, source: str) -> dict[str, Tensor]:
    """The tensors that LlamaGen has, checked against its configuration."""
    with torch.device("meta"):
        expected = build_llamagen(config)
    fit(expected, state, source=source, device="meta")
    return {key: state[key] for key in expected.state_dict()}


def _some_code(codes_kd: Tensor) -> Tensor:
    """The mean of all code embeddings (d)."""
    return codes_kd.float().mean(dim=0).to(codes_kd)
