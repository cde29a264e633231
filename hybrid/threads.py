"""The option ``--threads`` of the commands that compute."""

from __future__ import annotations

MOST = 1024
"""Threads; torch ends without a word where the system gives no more."""


def use_threads(count: int | None) -> None:
    """Compute with so many CPU threads; None leaves torch's own number.

    Raises:
        ValueError: fewer than 1, or more than ``MOST``.
    """
    if count is None:
        return
    if count < 1:
        raise ValueError(f"--threads {count}: must be at least 1")
    if count > MOST:
        raise ValueError(f"--threads {count}: must be at most {MOST}")
    import torch

    torch.set_num_threads(count)
