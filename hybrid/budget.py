"""How many pictures are drawn at once, and where the weights lie, within a given amount of memory.

This file knows numbers: ``hybrid.memory`` works out what a batch needs, ``hybrid.dispatch`` puts layers elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hybrid.memory import Memory


@dataclass(frozen=True)
class Budget:
    """What fits.

    Attributes:
        batch: pictures at once.
        need: of that batch, in bytes.
        layers: bytes that the AR model's weights may take on the device, where they must lie elsewhere in part.
    """

    batch: int
    need: Memory
    layers: int | None = None

    def __str__(self) -> str:
        """In words."""
        if self.layers is not None:
            held = f"{self.layers / 1e9:.2f} GB of the AR model's weights"
            return f"1 picture at once; at most {held} on the device, the rest of them elsewhere"
        pictures = "1 picture at once needs" if self.batch == 1 else f"{self.batch} pictures at once need"
        return f"{pictures} {self.need.peak / 1e9:.2f} GB"


def fit(plan: Callable[[int], Memory], limit: float, most: int, *, offload: bool = False) -> Budget:
    """The largest batch, up to ``most`` pictures, that needs no more than ``limit`` bytes.

    Args:
        plan: what a batch of so many pictures needs; rises with it.
        limit: bytes.
        most: pictures.
        offload: where one picture does not fit, keep as much of the AR model on the device as leaves room to draw it.

    Raises:
        ValueError: one picture needs more; the message tells how much.
    """
    need = plan(1)
    if need.peak > limit:
        weights = sum(need.weights.values())
        room = int(limit) - (need.peak - need.weights.get("ar", 0))
        if offload and room > 0:
            return Budget(1, need, room)
        raise ValueError(
            f"max_memory {limit / 1e9:g} GB: one picture needs {need.peak / 1e9:.2f} GB "
            f"({weights / 1e9:.2f} GB of weights); allow as much, or use a smaller type such as bf16"
        )
    low, high = 1, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if plan(middle).peak <= limit else (low, middle - 1)
    return Budget(low, need if low == 1 else plan(low))
