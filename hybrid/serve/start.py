"""Load an engine, and run an application until a signal ends it: finish what there is, refuse the rest."""

from __future__ import annotations

import signal
import socket
import threading
from types import FrameType

import uvicorn
from fastapi import FastAPI

from hybrid.pipeline import HybridPipeline
from hybrid.serve.engine import Capacity, Engine
from hybrid.worker import Worker


def load_engine(pair: str, capacity: Capacity, *, device: str = "auto", dtype: str = "auto") -> Engine:
    """An engine over a pairing.

    Raises:
        ValueError: see ``HybridPipeline.from_pretrained``.
    """
    worker = Worker("hybrid-engine")
    try:
        pipe = worker.call(lambda: HybridPipeline.from_pretrained(pair, device=device, dtype=dtype))
        return Engine(pipe, pair, capacity, worker=worker)
    except BaseException:
        worker.end()
        raise


def run(app: FastAPI, engine: Engine, listener: socket.socket, *, grace: float) -> None:
    """Serve until SIGINT or SIGTERM. The engine closes while connections still wait for its last answers."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)  # uvicorn raises the signal once more when it is done
    config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=int(grace) + 5)
    _Server(config, engine, grace).run(sockets=[listener])


class _Server(uvicorn.Server):
    """A server whose signal reaches the engine first."""

    def __init__(self, config: uvicorn.Config, engine: Engine, grace: float) -> None:
        super().__init__(config)
        self.closing = threading.Thread(target=engine.close, args=(grace,), daemon=True)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop taking work; a second signal stops at once."""
        if self.closing.ident is None:
            self.closing.start()  # in a thread, since a signal must not wait for a lock
        super().handle_exit(sig, frame)
