"""What Lumina-mGPT's files say: its configuration and the shape of its head norms. This file knows no network."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator
from torch import Tensor

from hybrid.config import parse

from . import lumina2
from .lumina_prompt import SIZE_PIXELS, Ids

VERSIONS: dict[int, tuple[Ids, int]] = {1: (Ids(), 8192), 2: (lumina2.IDS, lumina2.CODES)}
"""Of Lumina-mGPT 1.0 and 2.0, the ids and the number of image codes."""


class LuminaConfig(BaseModel):
    """Fields of transformers' ``ChameleonConfig`` that describe the network. Ours are ``version`` (of Lumina-mGPT),
    ``codebook_size`` and ``resolution`` (pixels of the checkpoint's own square picture)."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    version: Literal[1, 2] = 1
    vocab_size: int = 65536
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int = 32
    hidden_act: Literal["silu"] = "silu"
    max_position_embeddings: int = 4096
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    attention_bias: bool = False
    mlp_bias: bool = False
    swin_norm: bool = False
    tie_word_embeddings: Literal[False] = False
    codebook_size: int = Field(default=8192, gt=0)
    resolution: int | None = Field(default=None, gt=0, multiple_of=SIZE_PIXELS)

    @field_validator("vocab_size", "codebook_size")
    @classmethod
    def _holds_an_image(cls, value: int, info: ValidationInfo) -> int:
        ids, codes = VERSIONS[info.data.get("version", 1)]
        if info.field_name == "codebook_size" and value > codes:
            raise ValueError(f"at most {codes}")
        if info.field_name == "vocab_size" and value <= max(ids.new_line, ids.code):
            raise ValueError(f"must be above {max(ids.new_line, ids.code)}, where an image's ids stand")
        return value


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
    """Fields of ``LuminaConfig`` from some of them or from a whole ``config.json`` of transformers, of which what does
    not describe the network is left out. The version is told by the vocabulary where it is not said.

    Raises:
        ValueError: another model's file, or a rotary embedding other than the plain one.
    """
    fields = dict(config)
    rope = (fields.pop("rope_parameters", None) or {}) | (fields.pop("rope_scaling", None) or {})
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise ValueError(f"{where}: rope_scaling expected none, got {kind!r}")
    if "rope_theta" in rope:
        fields["rope_theta"] = rope["rope_theta"]
    if "model_type" in fields:
        if fields["model_type"] != "chameleon":
            raise ValueError(f"{where}: model_type expected 'chameleon', got {fields['model_type']!r}")
        fields = {key: value for key, value in fields.items() if key in LuminaConfig.model_fields}
    if fields.get("num_key_value_heads", 0) is None:
        fields["num_key_value_heads"] = fields.get("num_attention_heads", 32)
    vocabulary = fields.get("vocab_size")
    second = isinstance(vocabulary, int) and vocabulary > VERSIONS[2][0].code
    version = fields.setdefault("version", 2 if second else 1)
    if version in VERSIONS:
        fields.setdefault("codebook_size", VERSIONS[version][1])
    return fields


def infer(state: Mapping[str, Tensor], source: str) -> dict[str, Any]:
    """Configuration fields of a known size of 1.0, told by its shapes. They do not tell where the norms stand
    (``swin_norm``) or how positions turn, so no other size can be told.

    Raises:
        ValueError: another size, weights that no size has, or those of 2.0.
    """
    vocabulary, hidden = state["model.embed_tokens.weight"].shape
    layers = sum(key.endswith(".input_layernorm.weight") for key in state)
    if vocabulary > VERSIONS[2][0].code:
        raise ValueError(
            f"{source}: Lumina-mGPT 2.0 needs its config.json beside the weights; or pass its whole config"
        )
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
