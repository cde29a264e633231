"""The hand-off where AR model and masked model are one network: the fill goes on in the AR phase's cache.

This file knows the protocols. What a state holds and how a fill reads it is the model's own.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from hybrid.types import ARModel, MaskedModel


@runtime_checkable
class SharedModel(Protocol):
    """An ``ARModel`` and ``MaskedModel`` in one."""

    def after_prefix(self, state: Any, length: int) -> MaskedModel:
        """The masked model of the places from ``length`` on, given the state that the AR phase left after a prefix of
        that length, its last token fed or not, in a cache for the whole grid. The state may hold the condition's rows
        followed by the null's."""
        ...


class Handoff:
    """A ``SharedModel`` as the AR model of one request: the model in all else, it keeps the state for the fill.

    Args:
        model: the network that is both.
    """

    def __init__(self, model: Any) -> None:
        self.model, self.state = model, None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def prefill(self, condition: Any, capacity: int) -> tuple[Tensor, Any]:
        """See ``hybrid.types.ARModel``. The cache gets room for the whole grid, where the fill goes on in it."""
        logits_bk, self.state = self.model.prefill(condition, condition.grid.places)
        return logits_bk, self.state

    def masked(self, length: int) -> MaskedModel:
        """The masked model after the prefix that was written last."""
        return self.model.after_prefix(self.state, length)  # type: ignore[no-any-return]


def is_shared(ar: ARModel | None, masked: MaskedModel | None) -> bool:
    """Whether both are one network that can hand its cache over."""
    return ar is not None and ar is masked and isinstance(ar, SharedModel)  # type: ignore[comparison-overlap]
