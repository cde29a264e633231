"""Approximate reuse of keys and values between masked passes: known places are read again every few passes only.

A bidirectional model's keys and values of a known place change whenever any other place does, so that keeping them is
an approximation (it would be exact in a model whose prefix is causal). It is off unless ``hybrid.phases.Fill`` asks for
it. Between two refreshes a pass reads the places that were unknown before the pass ahead of it: those still unknown,
and those just written, whose codes the others have to see. The idea is that of Fast-dLLM (arXiv 2505.22618) and
dKV-Cache (arXiv 2505.15781) for diffusion language models. This file knows a protocol and no model.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from hybrid.types import MaskedModel


@runtime_checkable
class RecallingModel(Protocol):
    """What a ``MaskedModel`` has beside ``logits`` where its keys and values can be kept."""

    def remember(self, tokens_bn: Tensor, condition: Any, places_bm: Tensor) -> tuple[Tensor, Any]:
        """``logits`` at the places, (b, m, k), and the keys and values of every place."""
        ...

    def recall(self, tokens_bn: Tensor, rows_br: Tensor, places_bm: Tensor, memory: Any) -> Tensor:
        """The same from the tokens at ``rows_br`` alone, which the memory takes in; all others stay as it has them.

        ``places_bm`` are among the rows; no place is there twice.
        """
        ...


class Recall:
    """Passes of one fill. ``logits`` has the signature of the model's own.

    Args:
        model: the masked model.
        every: passes from one refresh to the next; 2 refreshes every second pass.

    Raises:
        ValueError: the model cannot keep keys and values.
    """

    def __init__(self, model: MaskedModel, every: int) -> None:
        require_recall(model)
        self.model: Any = model
        self.every, self.age, self.batch = every, every, 0
        self.rows_bm: Tensor | None = None
        self.memory: Any = None

    def logits(self, tokens_bn: Tensor, condition: Any, places_bm: Tensor) -> Tensor:
        """Logits (b, m, k) at ``places_bm``, which hold every unknown place.

        A pass with other streams than the one before (guidance that begins or ends) is a refresh.
        """
        if self.age == self.every or len(tokens_bn) != self.batch:
            logits_bmk, self.memory = self.model.remember(tokens_bn, condition, places_bm)
            self.age, self.batch = 1, len(tokens_bn)
        else:
            logits_bmk = self.model.recall(tokens_bn, self.rows_bm, places_bm, self.memory)
            self.age += 1
        self.rows_bm = places_bm
        return logits_bmk


def require_recall(model: object) -> None:
    """Raise ValueError where a model cannot keep keys and values."""
    if not isinstance(model, RecallingModel):
        name = type(model).__name__
        raise ValueError(f"reuse: a {name} cannot keep keys and values between passes; use reuse 1, or a MaskGIL")
