"""One thread for everything that computes.

On a CPU torch gives each thread that computes a team of threads of its own (libgomp). As soon as all teams together
have more threads than the machine has cores, they sleep between two pieces of work instead of watching for the next
one. So a model that one thread loads and another one runs is slow: 128 tokens of the ``emoji`` pair on two cores took
0.85 s instead of 0.33 s. Where pictures are drawn in a thread, that thread loads the model as well.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")


class Worker:
    """A thread that runs what it is given, one after the other. It does not keep the process alive.

    Args:
        name: of the thread.
    """

    def __init__(self, name: str) -> None:
        self._calls: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def begin(self, call: Callable[[], T]) -> Future[T]:
        """Run this when all that was begun before is done."""
        future: Future[T] = Future()
        self._calls.put((future, call))
        return future

    def call(self, call: Callable[[], T]) -> T:
        """Run this and wait for it; what it raises is raised here."""
        return self.begin(call).result()

    def end(self) -> None:
        """End the thread when all that was begun is done."""
        self._calls.put(None)

    def _run(self) -> None:
        while (one := self._calls.get()) is not None:
            future, call = one
            try:
                future.set_result(call())
            except BaseException as error:
                future.set_exception(error)
