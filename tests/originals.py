"""Small random weights in the files that the original authors publish: their names, wrappers, key names and folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn

from hybrid.adapters import load, maskgil
from hybrid.adapters.taming import TAMING, VQTokenizer
from hybrid.checkpoint import save_weights
from hybrid.config import ComponentConfig, PairConfig
from hybrid.pairing import COMPONENTS, find_pair, read_pair

GOLDEN = Path(__file__).parent / "golden"
SMALL = {
    "llamagen": "llamagen_c2i",
    "halton": "halton_c2i",
    "randar": "randar_c2i",
    "arpg": "arpg_c2i",
    "rar": "rar_c2i",
    "llamagen-vq": "llamagen_vq",
    "maskgit-vq": "maskgit_vq",
}
GRIDS = {"llamagen-t2i-256": (4, 4), "llamagen-t2i-512": (4, 6), "lumina-mgpt-2": (8, 4)}
"""Of the models whose grid is free; the others' small weights have their own, and Lumina-mGPT 1.0 draws 4x6 tokens."""


def write_pair(name: str, folder: Path) -> dict[str, Any]:
    """Write the files that a shipped pairing names into ``folder``; what ``from_pretrained`` must override: sizes."""
    config = read_pair(find_pair(name))
    overrides: dict[str, Any] = {"grid": GRIDS.get(name, (4, 6) if "lumina" in name else None)}
    for component in COMPONENTS:
        part = getattr(config, component)
        if part is not None:
            overrides[component] = part.model_dump() | {"config": write_part(part, config, folder)}
    return overrides


def write_part(part: ComponentConfig, pair: PairConfig, folder: Path) -> Any:
    """Write one component's file or folder; the configuration to load it with, None where the file tells it."""
    path = folder / str(part.weights)
    if part.kind == "lumina":
        (write_lumina_2 if "2.0" in path.name else write_lumina)(path)
        return None
    if part.kind == "t5":
        write_t5(path)
        return part.config
    if part.kind == "maskgil":
        write_maskgil(path)
        return None
    if part.kind in ("chameleon-vq", "movqgan"):
        return write_taming(path, spatial_norm=part.kind == "movqgan")
    text = part.kind == "llamagen" and pair.text is not None
    golden = GOLDEN / f"{'llamagen_t2i' if text else SMALL[part.kind]}.safetensors"
    write_torch(path, bare(load_file(golden)))
    return load(part.kind, golden).config


def bare(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A golden file's weights without its values and its wrapper."""
    wrapper = next(w for w in ("model_state_dict.", "model.") if any(key.startswith(w) for key in tensors))
    return {key.removeprefix(wrapper): tensor for key, tensor in tensors.items() if key.startswith(wrapper)}


def write_torch(path: Path, state: dict[str, Tensor]) -> None:
    """What each project's training script saves."""
    if path.suffix == ".safetensors":
        save_file(state, path)
    elif path.suffix == ".bin":
        torch.save(state, path)
    elif path.suffix == ".pth":
        torch.save({"iter": 7, "global_epoch": 1, "model_state_dict": state, "optimizer_state_dict": {}}, path)
    elif path.suffix == ".ckpt":
        torch.save({"epoch": 1, "global_step": 7, "state_dict": state, "callbacks": {}}, path)
    else:
        torch.save({"model": state, "steps": 7, "optimizer": {"step": torch.ones(1)}}, path)


def write_taming(path: Path, *, spatial_norm: bool) -> dict[str, Any]:
    """A taming ``.ckpt`` with the discriminator that its training keeps beside the model, and the yaml's mapping."""
    multiples, codes, width = ((1,) * 4, 16384, 4) if spatial_norm else ((1,) * 5, 8192, 16)
    torch.manual_seed(0)
    net = VQTokenizer(
        width=32,
        encoder_multiples=multiples,
        decoder_multiples=multiples,
        blocks=1,
        latent_width=width,
        codebook_size=codes,
        code_width=width,
        l2_norm=False,
        attention_levels=(),
        layout=TAMING,
        spatial_norm=spatial_norm,
    )
    write_torch(path, {**net.state_dict(), "loss.discriminator.main.0.weight": torch.zeros(2)})
    details: dict[str, Any] = {
        "double_z": False,
        "z_channels": width,
        "resolution": 64,
        "in_channels": 3,
        "out_ch": 3,
        "ch": 32,
    }
    details |= {"ch_mult": multiples, "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0}
    params = {"ddconfig": details, "lossconfig": {"target": "x"}, "n_embed": codes, "embed_dim": width}
    return {"model": {"target": "taming.models.vqgan.VQModel", "params": params}}


def write_lumina(folder: Path) -> None:
    """Lumina-mGPT 1.0 as its folder on the Hub: shards, norms with one row for each shard of the training run, names of
    the codes in the vocabulary."""
    golden = GOLDEN / "lumina.safetensors"
    state = {key: tensor for key, tensor in load_file(golden).items() if key.startswith(("model.", "lm_head."))}
    norms = {key: tensor[:1] for key, tensor in state.items() if "_norm." in key}
    save_weights(folder, state | norms, shard_bytes=1 << 18)
    with safe_open(golden, "pt") as file:
        fields = json.loads(file.metadata()["config"])
    own = {"model_type": "chameleon", "architectures": ["ChameleonXLLMXForConditionalGeneration"], "dropout": 0.05}
    (folder / "config.json").write_text(json.dumps(fields | own | {"rope_scaling": None, "vq_config": {}}))
    digits = str.maketrans("0123456789", "ABCDEFGHIJ")
    words = {f"IMGIMG{str(code).translate(digits)}Z": code + 4 for code in range(8192)}
    words |= {"<s>": 0, "<unk>": 3, "a": 8198, "red": 8199, "green": 8200, "apple": 8201, "pear": 8202}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))


def write_lumina_2(folder: Path) -> None:
    """Lumina-mGPT 2.0, whose golden file holds only the rows of its tables that are not zero."""
    golden = GOLDEN / "lumina2.safetensors"
    tensors = load_file(golden)
    state = {key: tensor for key, tensor in tensors.items() if key.startswith(("model.", "lm_head."))}
    with safe_open(golden, "pt") as file:
        metadata = file.metadata()
    for key in ("model.embed_tokens.weight", "lm_head.weight"):
        whole = torch.zeros(json.loads(metadata["config"])["vocab_size"], state[key].shape[1], dtype=torch.float16)
        state[key] = whole.index_copy(0, tensors["rows"], state[key])
    save_weights(folder, state, shard_bytes=1 << 20)
    for name in ("config", "tokenizer", "tokenizer_config"):
        (folder / f"{name}.json").write_text(metadata[name])


def write_t5(folder: Path) -> None:
    """A tiny T5 encoder in shards."""
    golden = GOLDEN / "t5_encoder.safetensors"
    state = {key: tensor for key, tensor in load_file(golden).items() if not key.startswith("caption_")}
    save_weights(folder, state, shard_bytes=1 << 14)
    with safe_open(golden, "pt") as file:
        metadata = file.metadata()
    for name in ("config", "tokenizer"):
        (folder / f"{name}.json").write_text(metadata[name])


def write_maskgil(path: Path) -> None:
    """What ``hybrid-train`` keeps of a text-driven MaskGIL on Chameleon's codes."""
    torch.manual_seed(0)
    text = {"model_type": "t2i", "cls_token_num": 120, "caption_dim": 24, "condition_rope": "keep"}
    paper = {"rope": "2d", "qk_norm": True, "post_norm": True}
    size = {"dim": 32, "n_layer": 2, "n_head": 2, "multiple_of": 16, "vocab_size": 8192, "block_size": 16}
    net, config = maskgil.create({**size, **text, **paper})
    nn.init.normal_(net.output.weight, std=0.3)
    save_weights(path, net.state_dict(), metadata={"kind": "maskgil", "config": config})
