import threading
from functools import partial

import pytest

from hybrid.worker import Worker


def test_everything_runs_in_one_thread_in_its_order() -> None:
    worker, seen = Worker("one"), []

    def note(number: int) -> None:
        seen.append((number, threading.current_thread()))

    futures = [worker.begin(partial(note, number)) for number in range(4)]
    assert [future.result(5) for future in futures] == [None] * 4
    assert [number for number, _ in seen] == [0, 1, 2, 3]
    threads = {thread for _, thread in seen}
    assert threads == {worker.call(threading.current_thread)} and threads != {threading.current_thread()}
    assert threads.pop().name == "one"


def test_an_error_is_the_callers_and_the_thread_goes_on() -> None:
    worker = Worker("one")
    with pytest.raises(ZeroDivisionError):
        worker.call(lambda: 1 // 0)
    assert worker.call(lambda: 3) == 3


def test_it_ends_after_what_was_begun() -> None:
    worker = Worker("one")
    thread = worker.call(threading.current_thread)
    last = worker.begin(lambda: 7)
    worker.end()
    assert last.result(5) == 7
    thread.join(5)
    assert not thread.is_alive()
