"""One decoding step of an AR model as one compiled graph.

On a CPU the length of the cache is a symbol of the graph: one compilation serves every place, capacity and picture.
On CUDA the step is recorded as a graph for every ``BUCKET`` places, which reads the cache up to the bucket's end and
hides what lies past its own place. Inductor keeps what it compiled on the disk (``TORCHINDUCTOR_CACHE_DIR``).
This file knows caches and windows, and no model.
"""

from __future__ import annotations

from inspect import signature
from typing import Any, Protocol

import torch
from torch import Tensor

from .llama import Window

BUCKET = 64
"""Places that share a recorded graph."""

OWN_LIMIT = {"recompile_limit": 16, "isolate_recompiles": True}
"""Every number of rows compiles once; above the limit a step runs uncompiled."""


class Decoder(Protocol):
    """What can be compiled: a network that reads one token a row into its cache."""

    def read(self, tokens_bw: Tensor, window: Window, state: Any) -> Tensor:
        """Logits_bwk after the tokens that stand in the window."""
        ...


class CompiledStep:
    """A model's ``read`` of one token a row, all rows at the same place.

    Args:
        device: where the model computes.
        bucket: places that share a graph; None is ``BUCKET`` on CUDA, and elsewhere one graph for all lengths.
        backend: of torch.compile.
    """

    def __init__(self, device: torch.device, *, bucket: int | None = None, backend: str = "inductor") -> None:
        graphs = device.type == "cuda"
        self.bucket = BUCKET if graphs and bucket is None else bucket
        self._graphs = graphs
        self._run = torch.compile(
            _read,
            backend=backend,
            dynamic=True,
            mode="reduce-overhead" if graphs else None,
            **own_limit(),
        )

    def __call__(self, model: Decoder, tokens_b1: Tensor, start: int, state: Any) -> Tensor:
        """Logits_b1k after one token a row, which stands at index ``start`` of the cache."""
        indices_b1 = torch.full_like(tokens_b1, start)
        if self.bucket is None:
            return self._run(model, tokens_b1, Window(indices_b1, start, start + 1), state)  # type: ignore[no-any-return]
        end = min(-(-(start + 1) // self.bucket) * self.bucket, state.cache.capacity)
        if self._graphs:
            torch.compiler.cudagraph_mark_step_begin()
            for tensor in state.cache.tensors:
                torch._dynamo.mark_static_address(tensor)
        logits_b1k = self._run(model, tokens_b1, Window(indices_b1, None, end), state)
        # A graph's next replay writes over what this one returned.
        return logits_b1k.clone() if self._graphs else logits_b1k  # type: ignore[no-any-return]


def own_limit() -> dict[str, Any]:
    """Arguments of torch.compile: a count of compilations for each model, where torch has that; elsewhere all models
    share torch's own limit."""
    known = signature(torch.compile).parameters
    return {name: value for name, value in OWN_LIMIT.items() if name in known}


def _read(model: Decoder, tokens_b1: Tensor, window: Window, state: Any) -> Tensor:
    return model.read(tokens_b1, window, state)
