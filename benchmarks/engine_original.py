"""LlamaGen's own loop, imported from a checkout that the user has fetched.

Nothing of it is in this project. This file knows the names of that repository: ``autoregressive.models.gpt`` and
``autoregressive.models.generate`` of github.com/FoundationVision/LlamaGen.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hybrid.sampler import synchronise

FILES = ("autoregressive/models/gpt.py", "autoregressive/models/generate.py")

Generate = Callable[[int], Tensor]
"""Tokens_bn of one picture of a class."""


def require_checkout(folder: Path) -> None:
    """Raise ValueError where a folder lacks the original's files."""
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise ValueError(f"--original {folder}: has no {missing[0]}; give a checkout of FoundationVision/LlamaGen")


def original(
    folder: Path,
    config: Mapping[str, Any],
    state: Mapping[str, Tensor],
    *,
    device: torch.device,
    dtype: torch.dtype,
    scale: float,
    top_k: int,
    compiled: bool = False,
) -> Generate:
    """The original's class-conditional model with the given weights, and its loop.

    Args:
        folder: the checkout.
        config: LlamaGen's fields, as in ``hybrid.adapters.llamagen.CONFIGS``.
        state: weights; every one must fit.
        scale, top_k: guidance and filter, as its script passes them.
        compiled: as with its ``--compile``: the model through torch.compile with CUDA graphs.

    Raises:
        ValueError: no such checkout.
    """
    require_checkout(folder)
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    gpt, loop = (import_module(name.removesuffix(".py").replace("/", ".")) for name in FILES)
    shape = {"dim": config["dim"], "n_layer": config["n_layer"], "n_head": config["n_head"]}
    places = config["block_size"]
    settings = gpt.ModelArgs(**shape, vocab_size=config.get("vocab_size", 16384), block_size=places, model_type="c2i")
    model = gpt.Transformer(settings)
    model.load_state_dict(state)
    model = model.to(device=device, dtype=dtype).eval()
    if compiled:
        model = torch.compile(model, mode="reduce-overhead", fullgraph=True)

    def generate(label: int) -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it asks for attention kernels by a deprecated name
            tokens: Tensor = loop.generate(
                model, torch.tensor([label], device=device), places, cfg_scale=scale, temperature=1.0, top_k=top_k
            )
        return tokens.long()

    return generate


def decoded(loop: Generate, pipeline: Any) -> Callable[[], tuple[float, float]]:
    """A lane of the loop: draws class 3 and decodes it with the pipeline's tokenizer, and tells both times."""

    def draw() -> tuple[float, float]:
        device = pipeline.device
        synchronise(device)
        start = time.perf_counter()
        tokens_bn = loop(3)
        synchronise(device)
        middle = time.perf_counter()
        with torch.inference_mode():
            pipeline.tokenizer.decode(tokens_bn, pipeline.ar.grid)
        synchronise(device)
        return middle - start, time.perf_counter() - start

    return draw
