"""What a request costs, counted from the shapes of what runs: floating-point operations and bytes of weights.

    linear layer          2 · rows · inputs · outputs operations, reads its weights once a call
    convolution           2 · output positions · weights
    matrix product        2 · rows · inner · columns, each of the batch
    attention             4 · queries · keys · width of all heads, hidden ones too; reads keys and values once

Everything else (norms, softmax, rotary turns, sampling) is left out, as it is in the usual counts. The counts are split
by the part that runs, ``ar``, ``masked`` and ``decode``. They do not depend on the machine or its load.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

PARTS = {
    "ar": ("prefill", "decode", "advance", "decode_at", "score"),
    "masked": ("logits", "fill_logits", "remember", "recall"),
    "tokenizer": ("decode",),
}
"""Components of a pipeline, and the methods that the sampler calls, where they have them."""


@dataclass
class Cost:
    """Of one part, for a whole batch.

    Attributes:
        calls: of the part.
        flops: floating-point operations.
        weight_bytes: weights read.
        cache_bytes: keys and values read by attention.
    """

    calls: int = 0
    flops: int = 0
    weight_bytes: int = 0
    cache_bytes: int = 0


@dataclass
class Meter(TorchFunctionMode):
    """Counts while it is active; see the module's text."""

    parts: dict[str, Cost] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()
        self.now: str | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if self.now is not None and func in COUNTED:
            cost = self.parts[self.now]
            flops, weights, cache = COUNTED[func](result, *args, **(kwargs or {}))
            cost.flops += flops
            cost.weight_bytes += weights
            cost.cache_bytes += cache
        return result

    @contextmanager
    def watch(self, part: str, owner: Any, method: str) -> Iterator[None]:
        """Count what ``owner.method`` does under the part's name."""
        whole: Callable[..., Any] = getattr(owner, method)
        cost = self.parts.setdefault(part, Cost())

        def counted(*args: Any, **kwargs: Any) -> Any:
            before, self.now = self.now, part
            cost.calls += before != part  # a counted method may go through another one
            try:
                return whole(*args, **kwargs)
            finally:
                self.now = before

        setattr(owner, method, counted)
        try:
            yield
        finally:
            delattr(owner, method)


@contextmanager
def metered(pipeline: Any) -> Iterator[dict[str, Cost]]:
    """Cost by part (``ar``, ``masked``, ``decode``) of what an uncompiled pipeline draws inside the block."""
    meter = Meter()
    with ExitStack() as stack:
        for component, methods in PARTS.items():
            owner = getattr(pipeline, component, None)
            for method in (name for name in methods if hasattr(owner, name)):
                stack.enter_context(meter.watch("decode" if component == "tokenizer" else component, owner, method))
        stack.enter_context(meter)
        yield meter.parts


def _bytes(value: Tensor) -> int:
    return value.numel() * value.element_size()


def _linear(out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> tuple[int, int, int]:
    return 2 * x.shape[:-1].numel() * weight.numel(), _bytes(weight), 0


def _conv(out: Tensor, x: Tensor, weight: Tensor, *_: Any, **__: Any) -> tuple[int, int, int]:
    positions = out.shape[0] * prod(out.shape[2:])
    return 2 * positions * weight.numel(), _bytes(weight), 0


def _mm(out: Tensor, x: Tensor, y: Tensor, **_: Any) -> tuple[int, int, int]:
    return 2 * out.numel() * x.shape[-1], sum(_bytes(one) for one in (x, y) if isinstance(one, nn.Parameter)), 0


def _matmul(out: Tensor, x: Tensor, y: Tensor, **_: Any) -> tuple[int, int, int]:
    return 2 * out.numel() * x.shape[-1], 0, 0


def _attention(out: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> tuple[int, int, int]:
    scores = query.shape[:-1].numel() * key.shape[-2]
    return 2 * scores * (query.shape[-1] + value.shape[-1]), 0, _bytes(key) + _bytes(value)


COUNTED: dict[Any, Callable[..., tuple[int, int, int]]] = {
    F.linear: _linear,
    F.conv2d: _conv,
    F.scaled_dot_product_attention: _attention,
    torch.mm: _mm,
    torch.matmul: _matmul,
    torch.bmm: _matmul,
    Tensor.matmul: _matmul,
    Tensor.__matmul__: _matmul,
}
