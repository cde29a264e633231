"""The same application as a Ray Serve deployment: ``serve run configs/serve.yaml``. Needs the extra ``ray``.

Ray starts replicas, spreads requests over them and adds more under load; batching and the bounded queue stay with each
replica's engine.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from fastapi import FastAPI
from pydantic import Field
from ray import serve

from hybrid.config import Strict, parse
from hybrid.serve.app import create_app
from hybrid.serve.cli import MOST
from hybrid.serve.engine import Capacity
from hybrid.serve.start import load_engine


class RayConfig(Strict):
    """``args`` of the application in Ray's YAML. The token comes from ``HYBRID_TOKEN`` in its environment."""

    pair: str = "emoji"
    device: str = "auto"
    dtype: str = "auto"
    threads: int | None = Field(default=None, ge=1)
    queue: int = Field(default=64, ge=1)
    batch: int = Field(default=16, ge=1)
    deadline: float = Field(default=60.0, gt=0, le=MOST)
    grace: float = Field(default=20.0, ge=0, le=MOST)


def build(args: Mapping[str, Any]) -> serve.Application:
    """What Ray's YAML names as ``import_path``.

    Raises:
        ValueError: a key that there is not, or a value out of range.
    """
    config = parse(RayConfig, args, "args")

    def replica() -> FastAPI:
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        return create_app(
            lambda: load_engine(
                config.pair, Capacity(config.queue, config.batch), device=config.device, dtype=config.dtype
            ),
            token=os.environ.get("HYBRID_TOKEN") or None,
            deadline=config.deadline,
            grace=config.grace,
        )

    return serve.deployment(serve.ingress(replica)(), name="hybrid").bind()
