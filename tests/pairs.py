"""Tiny pairs of real adapters with random weights: 4x4 tokens, 8x8 pixels, drawn in milliseconds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from hybrid.adapters import fsq, llamagen, maskgil, unified
from hybrid.config import DefaultsConfig, PhaseConfig
from hybrid.pipeline import HybridPipeline

CLASSES = ["Sneaker", "Ankle boot", "Bag"]
TOKENIZER = {"factor": 2, "width": 8, "blocks": 1, "levels": [4, 3]}
TRANSFORMER = {"dim": 16, "n_layer": 1, "n_head": 2, "multiple_of": 8, "vocab_size": 12, "block_size": 16}
PAPER = {"rope": "2d", "qk_norm": True, "post_norm": True}
TEXT = {"model_type": "t2i", "caption_dim": 384, "cls_token_num": 16, "condition_rope": "keep"}


def _made(kind: Any, config: dict[str, Any], *, spread: float) -> Any:
    """A model whose logits depend on what it is asked (``create`` starts with an output of zeros)."""
    model, model.config = kind.create(config)
    if hasattr(model, "output"):
        nn.init.normal_(model.output.weight, std=spread)
    return model.eval()


def pair(kind: dict[str, Any], *, seed: int = 0, parts: str = "ar masked", **options: Any) -> HybridPipeline:
    """A pipeline that can be saved; ``parts`` says which models it has."""
    torch.manual_seed(seed)
    models = {
        "ar": _made(llamagen, TRANSFORMER | kind, spread=0.5),
        "masked": _made(maskgil, TRANSFORMER | PAPER | kind, spread=0.5),
    }
    tokenizer = _made(fsq, TOKENIZER, spread=0)
    chosen = {name: models[name] for name in parts.split()}
    pipe = HybridPipeline(tokenizer, **chosen, defaults=DefaultsConfig(steps=4), name="tiny", **options)
    pipe.kinds = {"ar": "llamagen", "masked": "maskgil", "tokenizer": "fsq"}
    return pipe


def class_pair(**options: Any) -> HybridPipeline:
    """Class-conditional, with three named classes."""
    return pair({"num_classes": len(CLASSES)}, classes=CLASSES, **options)


def text_pair(**options: Any) -> HybridPipeline:
    """Text-conditional like the embedded emoji pair, with guidance, its captions through MiniLM."""
    from hybrid.adapters import load

    pipe = pair(TEXT, text=load("minilm", None), **options)
    pipe.kinds["text"] = "minilm"
    guided = PhaseConfig(guidance_scale=3.0)
    pipe.defaults = DefaultsConfig(steps=4, ar=guided, masked=guided)
    return pipe


def one_network() -> HybridPipeline:
    """Class-conditional, one network for both phases, with weights that are large enough for every input to matter."""
    torch.manual_seed(0)
    model, _ = unified.create(TRANSFORMER | {"n_layer": 2, "num_classes": len(CLASSES), "qk_norm": True})
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.3)
    tokenizer = _made(fsq, TOKENIZER, spread=0)
    return HybridPipeline(
        tokenizer, ar=model.eval(), masked=model, classes=CLASSES, defaults=DefaultsConfig(steps=4), name="tiny"
    )


def tokens(pipe: HybridPipeline, *prompt: Any, **arguments: Any) -> list[list[int]]:
    """What a pipeline draws for some prompts, with seed 0 unless told otherwise."""
    arguments = {"seed": 0, "output_type": "tokens"} | arguments
    return pipe(list(prompt or ["bag"]), **arguments).tokens.tolist()


def refused(call: Callable[[], Any]) -> str:
    """The one line of the ValueError that a call ends in."""
    with pytest.raises(ValueError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)
