"""Speech for the page's microphone, where ``hybrid.speech`` is there and its extra installed."""

from __future__ import annotations

import asyncio
import math
import time
from importlib import import_module
from typing import Any

from fastapi import Request

from hybrid.serve.answers import unless_gone
from hybrid.serve.errors import ApiError
from hybrid.worker import Worker

MISSING = "no speech recognition here; install it with: pip install 'hybrid-imagegen[speech]'"
WAITING = 8
"""Recordings that may wait while one is heard."""


class Ears:
    """Hears recordings one after the other, in a thread of its own, for one event loop.

    Attributes:
        inside: how many recordings are heard or wait.
    """

    def __init__(self) -> None:
        self.inside, self._seconds = 0, 1.0
        self._turn, self._worker = asyncio.Lock(), Worker("hybrid-hearing")

    async def hear_for(self, request: Request, recording: bytes) -> str | None:
        """The words of a recording, or None if the client leaves before: its place is free then.

        Raises:
            ApiError: 429 where too many wait, and see ``hear``.
        """
        if self.inside > WAITING:
            seconds = max(1, math.ceil(self.inside * self._seconds))
            message = f"too many recordings are waiting; try again in {seconds} s"
            raise ApiError(429, message, "queue_full", headers={"Retry-After": str(seconds)})
        self.inside += 1
        try:
            return await unless_gone(request, self._in_turn(recording))
        finally:
            self.inside -= 1

    async def _in_turn(self, recording: bytes) -> str:
        await self._turn.acquire()
        heard, began = asyncio.wrap_future(self._worker.begin(lambda: hear(recording))), time.monotonic()

        def over(_: Any) -> None:
            self._seconds = time.monotonic() - began
            self._turn.release()

        heard.add_done_callback(over)
        return await asyncio.shield(heard)  # the next one waits for the thread, also where this one's client is gone

    def close(self) -> None:
        """End the thread when it has heard what it is hearing."""
        self._worker.end()


def hear(recording: bytes) -> str:
    """The words of a recording (WAV or FLAC), by ``hybrid.speech.transcribe``.

    Raises:
        ApiError: 501 where speech recognition is not installed, 400 for what is no recording.
    """
    try:
        transcribe = import_module("hybrid.speech").transcribe
        return str(transcribe(recording))
    except ImportError:
        raise ApiError(501, MISSING, "no_speech") from None
    except ValueError as error:
        raise ApiError(400, str(error), "invalid_audio") from None
