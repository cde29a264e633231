"""Files that are written whole or not at all. This file knows paths, nothing of what is in them, and no torch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file beside ``path`` to write to; it takes the path's place when all went well and vanishes otherwise."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.touch()
        mode = part.stat().st_mode
        yield part
        part.chmod(mode)  # safetensors' own writer leaves its files readable by their owner only
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
