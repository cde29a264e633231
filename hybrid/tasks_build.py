"""From a training configuration to a task: the one place where configs, adapters and data meet."""

from __future__ import annotations

import json
from collections.abc import Mapping
from difflib import get_close_matches
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from hybrid.adapters import load
from hybrid.config import TrainConfig
from hybrid.data.codes import CaptionTable, embed_captions, extract_codes
from hybrid.data.folder import DataError, DataFolder, default_folder
from hybrid.tasks import ARTask, MaskedTask
from hybrid.tokenizer_task import TokenizerTask
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


TRAINABLE = {"tokenizer": "fsq", "ar": "llamagen", "masked": "maskgil"}
"""The adapter that each task trains; its module has a ``create``."""


def build_model(task: str, kind: str, config: str | Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """A fresh model of an adapter, initialised for training, and its configuration in full.

    Raises:
        ValueError: a kind that the task does not train, or a field that the adapter does not know.
    """
    if kind != TRAINABLE[task]:
        near = get_close_matches(kind, [TRAINABLE[task]], n=1)
        hint = f"; did you mean {near[0]!r}?" if near else f"; it trains {TRAINABLE[task]!r}"
        raise ValueError(f"model.kind: task {task!r} cannot train {kind!r}{hint}")
    return import_module(f"hybrid.adapters.{kind}").create(config)


def build_task(config: TrainConfig, *, data: Path | None, tokenizer: Path | None, source: str) -> Task:
    """Open the data, build the model, extract codes and embed captions where the task needs them.

    Args:
        config: the training run.
        data: the data folder; None is where ``hybrid-data`` writes it.
        tokenizer: the tokenizer's weights, instead of the configuration's.
        source: what messages call the configuration.

    Raises:
        ValueError: one line: data or weights that are missing, or that contradict the configuration.
    """
    try:
        return _build(config, data or default_folder(config.data), tokenizer, source)
    except DataError as error:
        raise ValueError(str(error)) from None


def _build(config: TrainConfig, data: Path, tokenizer: Path | None, source: str) -> Task:
    if not data.is_dir():
        raise ValueError(f"{data}: no such data folder; build it with: hybrid-data {config.data} --out {data}")
    torch.manual_seed(config.loop.seed)
    try:
        model, fields = build_model(config.task, config.model.kind, config.model.config)
        if config.model.init is not None:
            model = load(config.model.kind, config.model.init, fields, dtype=torch.float32).requires_grad_()
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None
    metadata = {"kind": config.model.kind, "config": fields}
    folder = DataFolder.open(data)
    if config.task == "tokenizer":
        return TokenizerTask(model, folder, seed=config.loop.seed, metadata=metadata, sets=config.sets)
    image_tokenizer = _load_tokenizer(config, tokenizer, source)
    codes = extract_codes(folder, image_tokenizer, views=config.views)
    captions = None
    if "label" not in folder.items[0]:
        try:
            encoder = load("minilm", None, config.text)
        except ValueError as error:
            raise ValueError(f"{source}: text: {error}") from None
        captions = embed_captions(folder, encoder, name="minilm", settings=json.dumps(config.text, sort_keys=True))
    _check(model, image_tokenizer, codes.shape[2], captions, folder, source)
    if config.model.init is None:
        model.start_from_codebook(image_tokenizer.codebook_kd)
    common: dict[str, Any] = {
        "seed": config.loop.seed,
        "metadata": metadata,
        "condition_dropout": config.condition_dropout,
        "balance": config.balance,
        "everyday": config.everyday,
        "sets": config.sets,
        "tokenizer": image_tokenizer,
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


def _load_tokenizer(config: TrainConfig, given: Path | None, source: str) -> Any:
    weights = given or (Path(config.tokenizer) if config.tokenizer else None)
    remedy = f"hybrid-train train-{config.data}-tokenizer makes one"
    if weights is None:
        raise ValueError(f"{source}: tokenizer: name its weights here or with --tokenizer FILE; {remedy}")
    if not weights.exists():
        raise ValueError(f"{weights}: no such tokenizer; {remedy}, --tokenizer FILE names it")
    return load("fsq", weights)


def _check(
    model: Any, tokenizer: Any, places: int, captions: CaptionTable | None, folder: DataFolder, source: str
) -> None:
    """The model fits the codes and the conditions of the data."""
    size = len(tokenizer.codebook_kd)
    if model.codebook_size != size:
        raise ValueError(
            f"{source}: model.config.vocab_size: {model.codebook_size}, but the tokenizer has {size} codes"
        )
    if model.grid is not None and model.grid.places != places:
        raise ValueError(f"{source}: model.config.block_size: {model.grid.places}, but pictures have {places} tokens")
    if captions is None:
        if model.classes is None:
            raise ValueError(
                f"{source}: model.config.model_type: t2i needs captions, {folder.path} has labels; use c2i"
            )
        classes = 1 + max(int(item["label"]) for item in folder.items)
        if classes > model.classes:
            raise ValueError(f"{source}: model.config.num_classes: {model.classes}, but the data has {classes}")
        return
    if model.classes is not None:
        raise ValueError(f"{source}: model.config.model_type: c2i needs labels, {folder.path} has captions; use t2i")
    if (tokens := captions.embedding_csd.shape[1]) != model.text_tokens:
        raise ValueError(f"{source}: model.config.cls_token_num: {model.text_tokens}, but text gives {tokens}")
    if (width := captions.embedding_csd.shape[2]) != model.text_width:
        raise ValueError(
            f"{source}: model.config.caption_dim: {model.text_width}, but the embeddings' width is {width}"
        )
