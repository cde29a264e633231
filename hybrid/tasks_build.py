"""From a training configuration to a task: the one place where configs, adapters and data meet."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hybrid.adapters import load
from hybrid.checkpoint import read_weights, sha256
from hybrid.config import TrainConfig
from hybrid.data.coded import CodedPictures, FolderPictures
from hybrid.data.codes import embed_captions, extract_codes, weights_name
from hybrid.data.folder import ITEMS, DataError, DataFolder, default_folder
from hybrid.data.shard_text import TextFormat
from hybrid.data.shards import CodeShards, identity, is_shards, parse_grid
from hybrid.tasks import ARTask, MaskedTask
from hybrid.tasks_unified import UnifiedTask
from hybrid.tokenizer_build import build_tokenizer_task
from hybrid.training import Task


def find_config(name: str, purpose: str = "train") -> Path:
    """A YAML file, or one shipped in ``hybrid.configs`` by its name.

    Args:
        name: a path, or a shipped configuration's name.
        purpose: what the names of the shipped ones begin with: ``train`` or ``bench``.

    Raises:
        ValueError: neither exists; the message lists the shipped ones for this purpose.
    """
    if Path(name).is_file():
        return Path(name)
    folder = Path(str(files("hybrid.configs")))
    shipped = folder / (name if name.endswith(".yaml") else f"{name}.yaml")
    if shipped.is_file():
        return shipped
    known = sorted(path.stem for path in folder.glob(f"{purpose}-*.yaml"))
    near = get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise ValueError(f"{name}: no such file and no shipped configuration; {hint}Shipped: {', '.join(known)}")


TRAINABLE = {
    "tokenizer": {"fsq": "fsq:create", "llamagen-vq": "vq:create_llamagen_vq"},
    "ar": {"llamagen": "llamagen:create"},
    "masked": {"maskgil": "maskgil:create"},
    "unified": {"unified": "unified:create"},
}
"""The adapters that each task trains, and what makes a fresh model of each."""


def build_model(task: str, kind: str, config: str | Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """A fresh model of an adapter, initialised for training, and its configuration in full.

    Raises:
        ValueError: a kind that the task does not train, or a field that the adapter does not know.
    """
    known = TRAINABLE[task]
    if kind not in known:
        near = get_close_matches(kind, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else f"; it trains {', '.join(map(repr, known))}"
        raise ValueError(f"model.kind: task {task!r} cannot train {kind!r}{hint}")
    module, name = known[kind].split(":")
    return getattr(import_module(f"hybrid.adapters.{module}"), name)(config)


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
        built = config.data if config.data in ("emoji", "fashion") else "codes SOURCE --tokenizer KIND:FILE"
        raise ValueError(f"{data}: no such data folder; build it with: hybrid-data {built} --out {data}")
    torch.manual_seed(config.loop.seed)
    try:
        model, fields = build_model(config.task, config.model.kind, config.model.config)
        if config.model.init is not None:
            model = load(config.model.kind, config.model.init, fields, dtype=torch.float32).requires_grad_()
            _check_start(Path(config.model.init), fields)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None
    origin: dict[str, Any] = {"sets": config.sets}
    if config.model.init is not None:
        origin["init"] = weights_name(model)
    if (records := data / ITEMS).exists():
        origin["data"] = sha256(records)[:8]
    metadata = {"kind": config.model.kind, "config": fields, "origin": origin}
    if config.task == "tokenizer":
        if is_shards(data):
            raise ValueError(f"{data}: holds codes, and a tokenizer learns from pictures; give --data a data folder")
        try:
            return build_tokenizer_task(config, model, DataFolder.open(data), metadata)
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from None
    opened = _open_shards if is_shards(data) else _open_folder
    coded = opened(config, data, tokenizer, source)
    _check(model, coded, source)
    origin |= {"tokenizer": coded.made_by, "pictures": sum(len(bucket.train) for bucket in coded.buckets)}
    origin |= {"views": config.views, "balance": config.balance, "everyday": config.everyday}
    if config.model.init is None:
        model.start_from_codebook(coded.codebook_kd)
    common: dict[str, Any] = {
        "seed": config.loop.seed,
        "metadata": metadata,
        "per_step": config.loop.batch_size * config.loop.accumulate,
        "condition_dropout": config.condition_dropout,
        "token_noise": config.token_noise,
        "null_noise": config.null_noise,
        "tokenizer": coded.tokenizer,
    }
    if config.task == "ar":
        return ARTask(model, coded.buckets, **common)
    if config.task == "unified":
        shares = {"prefix_share": config.prefix_share, "masked_weight": config.masked_weight}
        return UnifiedTask(model, coded.buckets, **shares, **common)
    return MaskedTask(
        model,
        coded.buckets,
        prefix_share=config.prefix_share,
        label_smoothing=config.label_smoothing,
        loss_on=config.loss_on,
        **common,
    )


@dataclass(frozen=True)
class _Coded:
    """The data of an AR or masked run, whatever stores it.

    Attributes:
        path: where it is.
        buckets: its pictures, by grid.
        places: tokens of the largest grid.
        codebook_kd: of the tokenizer that made the codes.
        made_by: eight digits of that tokenizer's weights.
        tokenizer: that tokenizer, or None where it is not at hand.
        text: tokens and width of embedded captions, or None where pictures have labels.
        classes: number of classes, 0 where pictures have captions.
    """

    path: Path
    buckets: Sequence[CodedPictures]
    places: int
    codebook_kd: Tensor
    made_by: str
    tokenizer: Any
    text: tuple[int, int] | None
    classes: int


def _open_folder(config: TrainConfig, data: Path, given: Path | None, source: str) -> _Coded:
    """A data folder: its codes and caption embeddings are made where they are not cached."""
    folder = DataFolder.open(data)
    remedy = f"hybrid-train train-{config.data}-tokenizer makes one"
    weights = given or (Path(config.tokenizer) if config.tokenizer else None)
    if weights is None:
        raise ValueError(f"{source}: tokenizer: name its weights here or with --tokenizer FILE; {remedy}")
    if not weights.exists():
        raise ValueError(f"{weights}: no such tokenizer; {remedy}, --tokenizer FILE names it")
    kind = read_weights(weights)[1].get("kind")
    tokenizer = load(kind if kind in TRAINABLE["tokenizer"] else "fsq", weights)
    codes = extract_codes(folder, tokenizer, views=config.views)
    captions, text, classes = None, None, 0
    if "label" in folder.items[0]:
        classes = 1 + max(int(item["label"]) for item in folder.items)
    else:
        encoder = _minilm(config, source)
        captions = embed_captions(folder, encoder, name="minilm", settings=json.dumps(config.text, sort_keys=True))
        text = (captions.embedding_csd.shape[1], captions.embedding_csd.shape[2])
    pictures = FolderPictures(
        folder, codes, captions, sets=config.sets, balance=config.balance, everyday=config.everyday
    )
    made_by = weights_name(tokenizer)
    return _Coded(data, [pictures], codes.shape[2], tokenizer.codebook_kd, made_by, tokenizer, text, classes)


def _open_shards(config: TrainConfig, data: Path, given: Path | None, source: str) -> _Coded:
    """Code shards. Their tokenizer is needed for sample sheets only; captions that came without embeddings get them."""
    for key in ("sets", "balance", "everyday"):
        if getattr(config, key):
            raise ValueError(f"{source}: {key}: goes with a data folder of pictures; {data} holds codes")
    shards = CodeShards(data)
    tokenizer = _tokenizer_of(shards, given or (Path(config.tokenizer) if config.tokenizer else None))
    if not shards.labelled:
        if shards.text is None:
            encoder = _minilm(config, source)
            shards.embed(encoder, TextFormat.of(encoder, "minilm", config.text))
        elif config.text and config.text != shards.text.config:
            raise ValueError(
                f"{source}: text: {config.text}, but the captions of {data} are embedded by {shards.text.name} with "
                f"{dict(shards.text.config)}; leave text out"
            )
    text = (shards.text.tokens, shards.text.width) if shards.text is not None else None
    buckets = shards.pictures(config.views)
    classes = max((1 + int(bucket.labels.max()) for bucket in buckets if bucket.labels is not None), default=0)
    places = max(parse_grid(name).places for name in shards.meta["grids"])
    made_by = shards.meta["tokenizer"]["weights"]
    return _Coded(data, buckets, places, shards.codebook(), made_by, tokenizer, text, classes)


def _tokenizer_of(shards: CodeShards, weights: Path | None) -> Any:
    """The tokenizer that made the codes, or None where no file is named.

    Raises:
        ValueError: no such file, or another tokenizer.
    """
    if weights is None:
        return None
    made = shards.meta["tokenizer"]
    if not weights.exists():
        raise ValueError(f"{weights}: no such tokenizer; the codes of {shards.path} were made by {made['file']}")
    tokenizer = load(made["kind"], weights, made["config"])
    found = identity(tokenizer)
    for part in ("codes", "codebook", "decoder"):
        if found[part] != made[part]:
            here, there = (str(each[part])[:8] for each in (found, made))
            raise ValueError(
                f"{weights}: is not the tokenizer that made the codes of {shards.path} ({part} {here}, expected "
                f"{there}); give {made['file']} or leave it out"
            )
    return tokenizer


def _minilm(config: TrainConfig, source: str) -> Any:
    try:
        return load("minilm", None, config.text)
    except ValueError as error:
        raise ValueError(f"{source}: text: {error}") from None


UNSEEN = ("n_head", "norm_eps", "rope_base", "rope", "condition_rope", "post_norm")
"""Fields of a configuration that leave no trace in the shapes of weights."""


def _check_start(weights: Path, fields: Mapping[str, Any]) -> None:
    """Weights to start from are of the same network, also where shapes do not tell.

    Raises:
        ValueError: the file says another configuration.
    """
    made = read_weights(weights)[1].get("config")
    for key in UNSEEN:
        if isinstance(made, Mapping) and made.get(key, fields.get(key)) != fields.get(key):
            raise ValueError(f"model.config.{key}: {fields.get(key)}, but {weights} was made with {made[key]}")


def _check(model: Any, coded: _Coded, source: str) -> None:
    """The model fits the codes and the conditions of the data."""
    size = len(coded.codebook_kd)
    if model.codebook_size != size:
        raise ValueError(
            f"{source}: model.config.vocab_size: {model.codebook_size}, but the tokenizer has {size} codes"
        )
    if model.grid is not None and model.grid.places != coded.places:
        raise ValueError(
            f"{source}: model.config.block_size: {model.grid.places}, but pictures have {coded.places} tokens"
        )
    if coded.text is None:
        if model.classes is None:
            raise ValueError(f"{source}: model.config.model_type: t2i needs captions, {coded.path} has labels; use c2i")
        if coded.classes > model.classes:
            raise ValueError(f"{source}: model.config.num_classes: {model.classes}, but the data has {coded.classes}")
        return
    if model.classes is not None:
        raise ValueError(f"{source}: model.config.model_type: c2i needs labels, {coded.path} has captions; use t2i")
    tokens, width = coded.text
    if tokens != model.text_tokens:
        raise ValueError(f"{source}: model.config.cls_token_num: {model.text_tokens}, but text gives {tokens}")
    if width != model.text_width:
        raise ValueError(
            f"{source}: model.config.caption_dim: {model.text_width}, but the embeddings' width is {width}"
        )
