"""``hybrid-generate`` in this process, with a tiny pair as the default one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from PIL import Image

Run = Callable[..., "tuple[int, str, str]"]
"""The command (fixture ``run``): its arguments to exit code, output, errors."""


def files(folder: Path | str = ".") -> list[str]:
    """The names in a folder."""
    return sorted(path.name for path in Path(folder).iterdir())


def pixels(path: Path | str) -> bytes:
    """A picture file's pixels."""
    return Image.open(path).convert("RGB").tobytes()
