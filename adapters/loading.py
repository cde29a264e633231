"""What the transformers' loaders share: a configuration found, a network built without weights, weights fitted into it.

This file knows configurations and state dicts. It knows no network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import BaseModel
from torch import Tensor, nn

from hybrid.checkpoint import fit, read_weights, source_name, unwrap
from hybrid.config import parse

from .families import MARKERS

Config = TypeVar("Config", bound=BaseModel)
Network = TypeVar("Network", bound=nn.Module)


def resolve(
    config: str | Mapping[str, Any] | None,
    known: Mapping[str, Mapping[str, Any]],
    found: Mapping[str, Any],
    kind: str,
    model: type[Config],
) -> Config:
    """A configuration from a known size's name, a mapping, or what the weights tell.

    Raises:
        ValueError: unknown name or field.
    """
    if config is None:
        return parse(model, found, kind)
    if isinstance(config, str):
        if config not in known:
            raise ValueError(f"{kind}: unknown configuration {config!r}; known: {', '.join(known)}")
        return parse(model, known[config], kind)
    return parse(model, config, f"{kind} config")


def shape_of(state: Mapping[str, Tensor], key: str, source: str) -> torch.Size:
    """Shape of a weight.

    Raises:
        ValueError: it is missing.
    """
    if key not in state:
        raise ValueError(f"{source}: has no {key}")
    return state[key].shape


def load_network(
    kind: str,
    weights: str | Path | Mapping[str, Any] | None,
    config: str | Mapping[str, Any] | None,
    *,
    sizes: Mapping[str, Mapping[str, Any]],
    fields: type[Config],
    infer: Callable[[Mapping[str, Tensor], str], Mapping[str, Any]],
    build: Callable[[Config], Network],
    device: torch.device,
    dtype: torch.dtype | None,
) -> Network:
    """A network of one family with its weights, in eval mode; ``config`` on it is its configuration in full.

    Args:
        kind: the family, as in ``families.MARKERS``.
        weights, config, device, dtype: see ``hybrid.adapters.load``.
        sizes: the family's named sizes.
        fields: the model of its configuration.
        infer: tells the configuration from a state dict, where neither the caller nor the file's metadata does.
        build: makes the network of a configuration, here on the meta device.

    Raises:
        ValueError: no weights, another family's, or ones that do not fit.
    """
    if weights is None:
        raise ValueError(f"{kind}: no weights given")
    state, metadata = read_weights(weights)
    source = source_name(weights)
    state = unwrap(state, expect=MARKERS[kind], source=source)
    if config is None:
        config = metadata.get("config")
    settings = resolve(config, sizes, {} if config is not None else infer(state, source), kind, fields)
    with torch.device("meta"):
        model: Any = build(settings)
    fit(model, state, source=source, dtype=dtype, device=device)
    model.config = settings.model_dump(by_alias=True)
    return model.eval()  # type: ignore[no-any-return]
