"""The image tokenizers of LlamaGen (VQ-16, VQ-8) and Lumina-mGPT (Chameleon's VQGAN, MoVQGAN).

This file knows the originals' configurations and key names; the architecture they share is in ``taming.py``. Each
loader takes the original's own configuration, and reads off the weights' shapes what that leaves out.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hybrid.checkpoint import fit, read_weights, source_name, unwrap

from .families import MARKERS
from .taming import LLAMAGEN, TAMING, VQTokenizer

LLAMAGEN_SIZES: Mapping[str, Mapping[str, Any]] = {
    name: {
        "ch": 128,
        "encoder_ch_mult": multiples,
        "decoder_ch_mult": multiples,
        "num_res_blocks": 2,
        "z_channels": 256,
        "codebook_size": 16384,
        "codebook_embed_dim": 8,
        "codebook_l2_norm": True,
    }
    for name, multiples in {"VQ-16": (1, 1, 2, 2, 4), "VQ-8": (1, 2, 2, 4)}.items()
}
CHAMELEON_SIZES: Mapping[str, Mapping[str, Any]] = {
    "chameleon-vqgan": {
        "ddconfig": {
            "z_channels": 256,
            "resolution": 512,
            "ch": 128,
            "ch_mult": (1, 1, 2, 2, 4),
            "num_res_blocks": 2,
            "attn_resolutions": (),
        },
        "n_embed": 8192,
        "embed_dim": 256,
    }
}
MOVQGAN_SIZES: Mapping[str, Mapping[str, Any]] = {
    "movqgan-270M": {
        "ddconfig": {
            "z_channels": 4,
            "resolution": 256,
            "ch": 256,
            "ch_mult": (1, 2, 2, 4),
            "num_res_blocks": 2,
            "attn_resolutions": (32,),
        },
        "n_embed": 16384,
        "embed_dim": 4,
    }
}
LLAMAGEN_TRAINING = ("codebook_show_usage", "commit_loss_beta", "entropy_loss_ratio", "dropout_p")
TAMING_SIZES = {"chameleon-vq": CHAMELEON_SIZES, "movqgan": MOVQGAN_SIZES}
TAMING_SHAPED = ("ch", "ch_mult", "num_res_blocks", "z_channels", "attention_levels")
TAMING_FIXED: Mapping[str, Any] = {"double_z": False, "in_channels": 3, "out_ch": 3}
TAMING_TRAINING = ("lossconfig", "ckpt_path", "ignore_keys", "image_key", "colorize_nlabels", "monitor", "dropout")
"""Fields that change nothing at inference."""


def load_llamagen_vq(
    weights: str | Path | Mapping[str, Any] | None,
    config: str | Mapping[str, Any] | None = None,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
) -> VQTokenizer:
    """LlamaGen's image tokenizer (https://github.com/FoundationVision/LlamaGen, ``vq_ds16_c2i.pt`` and others).

    Args:
        weights: a file, a folder, or a state-dict mapping, wrapped or not.
        config: "VQ-16", "VQ-8", or a mapping with the original's field names (``ch_mult`` sets both sides). None takes
            the file's metadata, where it has some. What is left out is read off the shapes, except for
            ``codebook_l2_norm``, which leaves no trace there: it is assumed true, as in every published file.
        device: where the parameters go.
        dtype: their type; None is float32.

    Raises:
        ValueError: unknown size or field, or weights that do not fit (file, key, expected and actual shape).
    """
    state, fields, source = _read(weights, config, LLAMAGEN_SIZES, "llamagen-vq")
    shapes = _llamagen_fields(state)
    _refuse_unknown(fields, {*shapes, "ch_mult", *LLAMAGEN_TRAINING}, source)
    both = {side: fields["ch_mult"] for side in ("encoder_ch_mult", "decoder_ch_mult") if "ch_mult" in fields}
    known = shapes | both | dict(fields)
    with torch.device("meta"):
        model = _llamagen(known)
    fit(model, state, source=source, dtype=dtype, device=device)
    model.config = {field: known[field] for field in shapes}
    return model.eval()


def create_llamagen_vq(config: str | Mapping[str, Any]) -> tuple[VQTokenizer, dict[str, Any]]:
    """A fresh tokenizer for training, and its configuration in full, with LlamaGen's first codebook.

    Args:
        config: "VQ-16", "VQ-8", or a mapping with the original's field names (``ch_mult`` sets both sides); what is
            left out is as in VQ-16.

    Raises:
        ValueError: unknown size or field.
    """
    if isinstance(config, str):
        config = _named(config, LLAMAGEN_SIZES, "llamagen-vq config")
    default = LLAMAGEN_SIZES["VQ-16"]
    _refuse_unknown(config, {*default, "ch_mult"}, "llamagen-vq config")
    both = {side: config["ch_mult"] for side in ("encoder_ch_mult", "decoder_ch_mult") if "ch_mult" in config}
    known = {**default, **both, **{field: value for field, value in config.items() if field != "ch_mult"}}
    model = _llamagen(known)
    nn.init.uniform_(model.quantize.embedding.weight, -1 / known["codebook_size"], 1 / known["codebook_size"])
    return model, known


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and value > 0


def _llamagen(fields: Mapping[str, Any]) -> VQTokenizer:
    for name in ("ch", "num_res_blocks", "z_channels", "codebook_size", "codebook_embed_dim"):
        if not _is_count(fields[name]):
            raise ValueError(f"llamagen-vq config: {name}: must be a whole number above 0, got {fields[name]!r}")
    for name in ("encoder_ch_mult", "decoder_ch_mult"):
        value = fields[name]
        if not (isinstance(value, (list, tuple)) and value and all(map(_is_count, value))):
            raise ValueError(f"llamagen-vq config: {name}: must be a list of whole numbers above 0, got {value!r}")
    return VQTokenizer(
        width=fields["ch"],
        encoder_multiples=fields["encoder_ch_mult"],
        decoder_multiples=fields["decoder_ch_mult"],
        blocks=fields["num_res_blocks"],
        latent_width=fields["z_channels"],
        codebook_size=fields["codebook_size"],
        code_width=fields["codebook_embed_dim"],
        l2_norm=fields["codebook_l2_norm"],
        attention_levels=(len(fields["encoder_ch_mult"]) - 1,),
        layout=LLAMAGEN,
    )


def load_chameleon_vq(
    weights: str | Path | Mapping[str, Any] | None,
    config: str | Mapping[str, Any] | None = None,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
) -> VQTokenizer:
    """Chameleon's VQGAN as Lumina-mGPT 1.0 ships it (``vqgan.ckpt``): 8192 codes of width 256, f16.

    Args:
        weights: a file, a folder, or a state-dict mapping, wrapped or not.
        config: "chameleon-vqgan", or the original yaml's mapping (``ddconfig``, ``n_embed``, ``embed_dim``, alone or
            under ``model.params``). None takes the file's metadata, where it has some; what is left out is read off
            the shapes.
        device: where the parameters go.
        dtype: their type; None is float32.

    Raises:
        ValueError: unknown size, or weights that do not fit (file, key, expected and actual shape).
    """
    return _load_taming("chameleon-vq", weights, config, device=device, dtype=dtype)


def load_movqgan(
    weights: str | Path | Mapping[str, Any] | None,
    config: str | Mapping[str, Any] | None = None,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
) -> VQTokenizer:
    """MoVQGAN as Lumina-mGPT 2.0 uses it: 16384 codes of width 4, f8, a decoder with spatial norms.

    Arguments and errors are those of ``load_chameleon_vq``; the named size is "movqgan-270M".
    """
    return _load_taming("movqgan", weights, config, device=device, dtype=dtype)


def _load_taming(
    kind: str,
    weights: str | Path | Mapping[str, Any] | None,
    config: str | Mapping[str, Any] | None,
    *,
    device: str | torch.device,
    dtype: torch.dtype | None,
) -> VQTokenizer:
    state, fields, source = _read(weights, config, TAMING_SIZES[kind], kind)
    fields, given = _taming_given(fields, source)
    known = _taming_fields(state) | given
    codes, code_width = state["quantize.embedding.weight"].shape
    full = {"n_embed": codes, "embed_dim": code_width, **fields, "ddconfig": known}
    with torch.device("meta"):
        model = build_taming(kind, known, codes=full["n_embed"], code_width=full["embed_dim"])
    # taming's own training files keep the discriminator and the perceptual loss beside the model.
    state = {key: tensor for key, tensor in state.items() if not key.startswith("loss.")}
    fit(model, state, source=source, dtype=dtype, device=device)
    model.config = full
    return model.eval()


def create_taming(kind: str, config: str | Mapping[str, Any]) -> VQTokenizer:
    """A fresh ``chameleon-vq`` or ``movqgan``.

    Args:
        kind: which of them.
        config: as ``load_chameleon_vq`` takes it, in full where it is a mapping: there are no weights to read it off.

    Raises:
        ValueError: an unknown size, or a field that is unknown or missing.
    """
    source = f"{kind} config"
    fields = _named(config, TAMING_SIZES[kind], source) if isinstance(config, str) else config
    fields, given = _taming_given(fields, source)
    attention = "attention_levels" if "attention_levels" in given else "attn_resolutions"
    needed = {"n_embed", "embed_dim", "ch", "ch_mult", "num_res_blocks", "z_channels", attention}
    if attention == "attn_resolutions":
        needed.add("resolution")
    missing = sorted(needed - set(fields) - set(given))
    if missing:
        raise ValueError(f"{source}: missing {', '.join(missing)}")
    return build_taming(kind, given, codes=fields["n_embed"], code_width=fields["embed_dim"])


def _taming_given(fields: Mapping[str, Any], source: str) -> tuple[Mapping[str, Any], dict[str, Any]]:
    """The fields of an original yaml's mapping, and those of their ``ddconfig``; checked."""
    fields = fields.get("model", {}).get("params", fields)
    given = dict(fields.get("ddconfig", {}))
    _refuse_unknown(fields, {"ddconfig", "n_embed", "embed_dim", *TAMING_TRAINING}, source)
    known = {*TAMING_SHAPED, *TAMING_FIXED, "resolution", "attn_resolutions", *TAMING_TRAINING}
    _refuse_unknown(given, known, source)
    for field, value in TAMING_FIXED.items():
        if given.get(field, value) != value:
            raise ValueError(f"{source}: {field} expected {value}, got {given[field]}")
    return fields, given


def build_taming(kind: str, ddconfig: Mapping[str, Any], *, codes: int, code_width: int) -> VQTokenizer:
    """A ``chameleon-vq`` or ``movqgan`` of the original's ``ddconfig``, with fresh weights.

    Attention stands at the levels whose side is in ``attn_resolutions``; where that or ``resolution`` is missing, at
    ``attention_levels`` (see ``_taming_fields``).
    """
    if {"attn_resolutions", "resolution"} <= set(ddconfig):
        sides = [ddconfig["resolution"] // 2**level for level in range(len(ddconfig["ch_mult"]))]
        levels = [level for level, side in enumerate(sides) if side in ddconfig["attn_resolutions"]]
    else:
        levels = ddconfig["attention_levels"]
    return VQTokenizer(
        width=ddconfig["ch"],
        encoder_multiples=ddconfig["ch_mult"],
        decoder_multiples=ddconfig["ch_mult"],
        blocks=ddconfig["num_res_blocks"],
        latent_width=ddconfig["z_channels"],
        codebook_size=codes,
        code_width=code_width,
        l2_norm=False,
        attention_levels=levels,
        layout=TAMING,
        spatial_norm=kind == "movqgan",
    )


def _read(
    weights: str | Path | Mapping[str, Any] | None,
    config: str | Mapping[str, Any] | None,
    sizes: Mapping[str, Mapping[str, Any]],
    kind: str,
) -> tuple[dict[str, Tensor], Mapping[str, Any], str]:
    """State dict of that kind, the fields that are given, and the display name."""
    if weights is None:
        raise ValueError("an image tokenizer needs weights: a file, a folder or a state dict")
    source = source_name(weights)
    state, metadata = read_weights(weights)
    state = unwrap(state, MARKERS[kind], source=source)
    for key in ("encoder.conv_in.weight", "encoder.conv_out.weight", "quantize.embedding.weight"):
        if key not in state:
            raise ValueError(f"{source}: missing {key}")
    if config is None:
        config = metadata.get("config", {})
    if isinstance(config, str):
        config = _named(config, sizes, source)
    return state, config, source


def _named(name: str, sizes: Mapping[str, Mapping[str, Any]], source: str) -> Mapping[str, Any]:
    if name not in sizes:
        raise ValueError(f"{source}: unknown size {name!r}; known: {', '.join(sizes)}")
    return sizes[name]


def _refuse_unknown(fields: Mapping[str, Any], known: Collection[str], source: str) -> None:
    unknown = sorted(set(fields) - set(known))
    if unknown:
        near = get_close_matches(unknown[0], known, n=1)
        raise ValueError(f"{source}: unknown field {unknown[0]!r}{f'; did you mean {near[0]!r}?' if near else ''}")


def _numbered(state: Mapping[str, Tensor], prefix: str) -> range:
    """The numbers of the submodules ``prefix.0``, ``prefix.1``, … of a state dict."""
    return range(len({key[len(prefix) + 1 :].split(".")[0] for key in state if key.startswith(f"{prefix}.")}))


def _multiples(state: Mapping[str, Tensor], levels: str, block: str) -> tuple[int, ...]:
    """Width of each level as a multiple of the first convolution's; 0 where a weight is missing (``fit`` tells)."""
    ch = len(state["encoder.conv_in.weight"])
    keys = [f"{levels}.{level}.{block}.0.conv1.weight" for level in _numbered(state, levels)]
    return tuple(len(state[key]) // ch if key in state else 0 for key in keys)


def _llamagen_fields(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The original's configuration as the shapes tell it."""
    encoder = _multiples(state, "encoder.conv_blocks", "res")
    codes, code_width = state["quantize.embedding.weight"].shape
    return {
        "ch": len(state["encoder.conv_in.weight"]),
        "encoder_ch_mult": encoder,
        "decoder_ch_mult": _multiples(state, "decoder.conv_blocks", "res")[::-1] or encoder,
        "num_res_blocks": len(_numbered(state, "encoder.conv_blocks.0.res")),
        "z_channels": len(state["encoder.conv_out.weight"]),
        "codebook_size": codes,
        "codebook_embed_dim": code_width,
        "codebook_l2_norm": True,
    }


def _taming_fields(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The original's ``ddconfig`` as the shapes tell it, with the attention levels in place of resolutions."""
    levels = _numbered(state, "encoder.down")
    return {
        "ch": len(state["encoder.conv_in.weight"]),
        "ch_mult": _multiples(state, "encoder.down", "block"),
        "num_res_blocks": len(_numbered(state, "encoder.down.0.block")),
        "z_channels": len(state["encoder.conv_out.weight"]),
        "attention_levels": [level for level in levels if f"encoder.down.{level}.attn.0.norm.weight" in state],
    }
