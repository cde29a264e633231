"""From a training configuration to a task: the one place where configs, adapters and data meet."""

from __future__ import annotations

from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from hybrid.config import TrainConfig
from hybrid.data.codes import embed_captions, extract_codes
from hybrid.data.folder import DataError, DataFolder, default_folder
from hybrid.tasks import ARTask, MaskedTask, TokenizerTask
from hybrid.training import Task


def find_config(name: str) -> Path:
    """A YAML file, or one shipped in ``hybrid.configs`` by its name.

    Raises:
        ValueError: neither exists; the message lists the shipped ones.
    """
    if Path(name).is_file():
        return Path(name)
    folder = Path(str(files("hybrid.configs")))
    shipped = folder / (name if name.endswith(".yaml") else f"{name}.yaml")
    if shipped.is_file():
        return shipped
    known = ", ".join(sorted(path.stem for path in folder.glob("*.yaml")))
    raise ValueError(f"{name}: no such file and no shipped configuration of that name. Shipped: {known}")


def build_model(kind: str, config: Any) -> Any:
    """A fresh model of an adapter, initialised for training."""
    from hybrid.adapters import ADAPTERS

    if kind not in ADAPTERS:
        raise ValueError(f"model.kind: unknown {kind!r}; trainable are fsq, llamagen and maskgil")
    module = import_module(ADAPTERS[kind].split(":")[0])
    if not hasattr(module, "create"):
        raise ValueError(f"model.kind: {kind!r} cannot be trained; trainable are fsq, llamagen and maskgil")
    return module.create(config)


def build_task(config: TrainConfig, *, data: Path | None, tokenizer: Path | None, source: str) -> Task:
    """Open the data, build the model, extract codes and embed captions where the task needs them."""
    from hybrid.adapters import load

    try:
        folder = DataFolder.open(data or default_folder(config.data))
    except DataError as error:
        raise ValueError(str(error)) from None
    torch.manual_seed(config.loop.seed)
    model, fields = build_model(config.model.kind, config.model.config)
    metadata = {"kind": config.model.kind, "config": fields}
    if config.task == "tokenizer":
        return TokenizerTask(model, folder, seed=config.loop.seed, metadata=metadata, sets=config.sets)
    weights = tokenizer or config.tokenizer
    if weights is None:
        raise ValueError(f"{source}: tokenizer: name the tokenizer's weights here or with --tokenizer")
    image_tokenizer = load("fsq", weights)
    codes = extract_codes(folder, image_tokenizer, views=config.views)
    captions = None
    if "label" not in folder.items[0]:
        captions = embed_captions(folder, load("minilm", None, {"tokens": config.text_tokens}), name="minilm")
    with torch.no_grad():
        model.start_from_codebook(image_tokenizer.codebook_kd)
    common: dict[str, Any] = {
        "seed": config.loop.seed,
        "metadata": metadata,
        "condition_dropout": config.condition_dropout,
        "balance": config.balance,
        "sets": config.sets,
    }
    if config.task == "ar":
        return ARTask(model, folder, codes, captions, **common)
    return MaskedTask(
        model,
        folder,
        codes,
        captions,
        prefix_share=config.prefix_share,
        label_smoothing=config.label_smoothing,
        loss_on=config.loss_on,
        **common,
    )
