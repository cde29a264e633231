"""Hybrid autoregressive and masked image generation.

``HybridPipeline`` and ``HybridSampler`` are loaded on first use, so that importing the package stays instant.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hybrid.pipeline import HybridPipeline
    from hybrid.sampler import HybridSampler

__version__ = "0.1.0"
__all__ = ["HybridPipeline", "HybridSampler", "__version__"]

_LAZY = {"HybridPipeline": "hybrid.pipeline", "HybridSampler": "hybrid.sampler"}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'hybrid' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_LAZY[name]), name)
