"""Files that are written whole or not at all, and over nothing of others. This file knows paths, nothing of what is in
them, and no torch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def holds_others(folder: Path, *, own: bool) -> bool:
    """Whether something is at a path that a folder would be written over: a file, or a folder that is neither empty nor
    ``own``, which is for the caller to know."""
    return folder.exists() and not own and (not folder.is_dir() or any(folder.iterdir()))


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
