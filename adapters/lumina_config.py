"""What Lumina-mGPT's files say: its configuration and the shape of its head norms. This file knows no network."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from hybrid.config import parse

from .lumina_prompt import SIZE_PIXELS, Ids


class LuminaConfig(BaseModel):
    """Fields of transformers' ``ChameleonConfig`` that shape the network; ``codebook_size`` and ``resolution`` (pixels
    of the checkpoint's own square picture) are ours."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    vocab_size: int = Field(default=65536, gt=Ids.size)
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int = 32
    hidden_act: str = "silu"
    max_position_embeddings: int = 4096
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    attention_bias: bool = False
    mlp_bias: bool = False
    swin_norm: bool = False
    tie_word_embeddings: Literal[False] = False
    codebook_size: int = Field(default=8192, gt=0, le=8192)
    resolution: int | None = Field(default=None, gt=0, multiple_of=SIZE_PIXELS)


_34B = {
    "hidden_size": 8192,
    "intermediate_size": 22016,
    "num_hidden_layers": 48,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "swin_norm": True,
}
CONFIGS: dict[str, dict[str, Any]] = {
    **{f"7B-{side}": {"resolution": side} for side in (512, 768, 1024)},
    "34B-512": {**_34B, "resolution": 512},
    "7B": {},
    "34B": _34B,
}

ELSEWHERE = {
    "dropout",
    "mask_image_logits",
    "z_loss_weight",
    "torch_dtype",
    "auto_map",
    "_name_or_path",
    "vocabulary_map",
}
"""Fields of Lumina's own configuration files, beside transformers', that change nothing here."""


def find_config(
    config: str | Mapping[str, Any] | None,
    metadata: Mapping[str, Any],
    folder: Path | None,
    state: Mapping[str, Tensor],
    source: str,
) -> LuminaConfig:
    """A configuration from what the caller says, else the file's metadata, ``config.json``, the shapes.

    Raises:
        ValueError: an unknown name or field, a rotary scaling, a broken file, or nothing that tells the configuration.
    """
    where = "lumina config"
    if config is None and "config" in metadata:
        config = metadata["config"]
    if config is None and folder is not None and (folder / "config.json").is_file():
        where = str(folder / "config.json")
        try:
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{where}: not JSON ({error})") from None
    if config is None:
        return parse(LuminaConfig, infer(state, source), source)
    if isinstance(config, str):
        if config not in CONFIGS:
            raise ValueError(f"lumina: unknown configuration {config!r}; known: {', '.join(CONFIGS)}")
        return parse(LuminaConfig, CONFIGS[config], where)
    return parse(LuminaConfig, own_fields(config, where), where)


def own_fields(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A whole ``config.json`` of transformers without what does not shape the network.

    Raises:
        ValueError: a rotary embedding other than the plain one.
    """
    from transformers.models.chameleon.configuration_chameleon import ChameleonConfig

    known = ChameleonConfig().to_dict().keys() | ELSEWHERE
    fields = {key: value for key, value in config.items() if key in LuminaConfig.model_fields or key not in known}
    rope = dict(fields.pop("rope_parameters", None) or config.get("rope_parameters") or {})
    rope |= fields.pop("rope_scaling", None) or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise ValueError(f"{where}: rope_scaling expected none, got {kind!r}")
    if "rope_theta" in rope:
        fields["rope_theta"] = rope["rope_theta"]
    if fields.get("num_key_value_heads", 0) is None:
        fields["num_key_value_heads"] = fields.get("num_attention_heads", 32)
    return fields


def infer(state: Mapping[str, Tensor], source: str) -> dict[str, Any]:
    """Configuration fields of a known size, told by its shapes. They do not tell where the norms stand (``swin_norm``),
    so no other size can be told.

    Raises:
        ValueError: another size, or weights that no size has.
    """
    vocabulary, hidden = state["model.embed_tokens.weight"].shape
    layers = sum(key.endswith(".input_layernorm.weight") for key in state)
    for name in ("7B", "34B"):
        fields = LuminaConfig(**CONFIGS[name])
        if (fields.hidden_size, fields.num_hidden_layers) == (hidden, layers):
            return {**CONFIGS[name], "vocab_size": vocabulary}
    raise ValueError(f"{source}: {layers} layers of width {hidden} are neither 7B nor 34B; pass its whole config")


def plain_norms(state: Mapping[str, Tensor], heads: int, key_heads: int) -> dict[str, Tensor]:
    """Give each head its own q and k norm. Lumina's files hold one row for each shard of the training run
    (``model_parallel_size``), which its heads share; transformers holds one row for each head."""
    count = {"q_norm": heads, "k_norm": key_heads}
    plain = dict(state)
    for key, tensor in state.items():
        wanted = count.get(key.rsplit(".", 2)[-2]) if key.count(".") > 1 else None
        if wanted is not None and tensor.ndim == 2 and 0 < len(tensor) < wanted and wanted % len(tensor) == 0:
            plain[key] = tensor.repeat_interleave(wanted // len(tensor), dim=0)
    return plain
