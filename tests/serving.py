"""What the tests of ``hybrid-serve`` share: a pipeline that waits for permission, engines and applications."""

from __future__ import annotations

import base64
import io
import json
import socket
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import uvicorn
from fastapi.testclient import TestClient
from pairs import class_pair
from PIL import Image

from hybrid.pipeline import HybridPipeline
from hybrid.serve.app import create_app
from hybrid.serve.engine import Capacity, Engine

PATIENCE = 60.0
"""Seconds after which a test gives up waiting; none waits that long unless something is broken."""


class Held:
    """A pipeline whose requests wait, each by itself, until the test lets them begin. Notes what it was asked."""

    def __init__(self, pipe: HybridPipeline) -> None:
        self.pipe = pipe
        self.asked: list[list[Any]] = []
        self.steps: list[tuple[str, int]] = []
        self.begun, self.go = threading.Semaphore(0), threading.Semaphore(0)
        self.on_step: Callable[[], Any] = lambda: None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.pipe, name)

    def __call__(self, prompt: Any, **arguments: Any) -> Any:
        return self.pipe(prompt, **arguments)

    def ask(self, prompt: Any, **arguments: Any) -> Any:
        self.asked.append(list(prompt))
        told = arguments.pop("callback_on_step_end")
        self.begun.release()
        assert self.go.acquire(timeout=PATIENCE)

        def noting(pipe: Any, index: int, phase: str, state: Any) -> Any:
            self.steps.append((phase, index))
            self.on_step()
            return told(pipe, index, phase, state)

        return self.pipe.ask(prompt, callback_on_step_end=noting, **arguments)

    def wait_until_begun(self) -> None:
        assert self.begun.acquire(timeout=PATIENCE)

    def let_go(self, count: int = 1) -> None:
        self.go.release(count)


class Paced:
    """A pipeline that rests ``pace`` seconds after each row and pass."""

    def __init__(self, pipe: HybridPipeline, pace: float = 0.0) -> None:
        self.pipe, self.pace = pipe, pace
        self.steps = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.pipe, name)

    def __call__(self, prompt: Any, **arguments: Any) -> Any:
        return self.pipe(prompt, **arguments)

    def ask(self, prompt: Any, **arguments: Any) -> Any:
        told = arguments.pop("callback_on_step_end")

        def resting(pipe: Any, index: int, phase: str, state: Any) -> Any:
            self.steps += 1
            time.sleep(self.pace)
            return told(pipe, index, phase, state)

        return self.pipe.ask(prompt, callback_on_step_end=resting, **arguments)


class HeldSpeech:
    """In place of ``hybrid.speech``: each recording waits until the test lets it be understood. Notes what it heard."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, text: str = "bag") -> None:
        self.text, self.heard = text, list[bytes]()
        self.begun, self.go = threading.Semaphore(0), threading.Semaphore(0)
        module = types.ModuleType("hybrid.speech")
        module.transcribe = self.transcribe  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "hybrid.speech", module)

    def transcribe(self, recording: bytes) -> str:
        self.heard.append(recording)
        self.begun.release()
        assert self.go.acquire(timeout=PATIENCE)
        return self.text


@contextmanager
def running(pipe: Any, **capacity: int) -> Iterator[Engine]:
    """An engine that is started and, at the end, closed."""
    engine = Engine(pipe, "tiny", Capacity(**capacity))
    engine.start()
    try:
        yield engine
    finally:
        if isinstance(pipe, Held):
            pipe.let_go(1000)
        engine.close()


@contextmanager
def serving(pipe: Any = None, *, queue: int = 64, batch: int = 16, **options: Any) -> Iterator[TestClient]:
    """A client of an application; its engine is ``client.app.state.engine``."""
    engine = Engine(pipe or class_pair(), "tiny", Capacity(queue, batch))
    with TestClient(create_app(lambda: engine, **options), raise_server_exceptions=False) as client:
        try:
            yield client
        finally:
            if isinstance(pipe, Held):
                pipe.let_go(1000)


@contextmanager
def listening(pipe: Any, **options: Any) -> Iterator[str]:
    """The address of a real server on a free port of this machine."""
    engine = Engine(pipe, "tiny")
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(create_app(lambda: engine, **options), log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(PATIENCE)


def until(told: Callable[[], Any], what: str) -> Any:
    """Wait for something to be true."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if found := told():
            return found
        time.sleep(0.01)
    raise AssertionError(f"never came: {what}")


def png(*pixels: Any, mode: str = "RGB", size: tuple[int, int] = (8, 8)) -> bytes:
    """A file of one colour."""
    file = io.BytesIO()
    Image.new(mode, size, *pixels).save(file, "PNG")
    return file.getvalue()


def picture(entry: dict[str, Any]) -> Image.Image:
    """The picture of an answer or event."""
    return Image.open(io.BytesIO(base64.b64decode(entry["b64_json"])))


def events(text: str) -> list[dict[str, Any]]:
    """Server-sent events; each says its type twice."""
    found = []
    for block in text.strip().split("\n\n"):
        name, data = block.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    return found
