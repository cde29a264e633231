"""The option ``--threads`` of the commands that compute."""

from __future__ import annotations


def use_threads(count: int | None) -> None:
    """Compute with so many CPU threads; None leaves torch's own number.

    Raises:
        ValueError: fewer than 1.
    """
    if count is None:
        return
    if count < 1:
        raise ValueError(f"--threads {count}: must be at least 1")
    import torch

    torch.set_num_threads(count)
