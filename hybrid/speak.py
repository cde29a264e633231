"""Speak, and watch it appear: partial texts start quick previews, the final text gets the hybrid.

Every picture of one stretch of speech has the same seed, so that it evolves instead of jumping. A better text cancels
the picture in flight between two rows or passes. This file knows a pipeline, a recogniser and a clock; it knows no
files, windows or microphones.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import wait
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hybrid.phases import Cancelled
from hybrid.speech import Debounce, nearest, prompt_of
from hybrid.worker import Worker

CHOICES: tuple[tuple[float, int], ...] = (
    (0.5, 12),
    (0.5, 8),
    (0.25, 8),
    (0.25, 6),
    (0.125, 8),
    (0.125, 4),
    (0.0, 8),
    (0.0, 6),
    (0.0, 4),
    (0.0, 2),
)
"""AR fraction and masked passes of the final picture, the best first; a budget takes the first that fits."""


@dataclass(frozen=True)
class Cost:
    """What one picture costs here, in seconds.

    Attributes:
        fixed: prompt and decoding.
        per_token: of the AR model.
        per_pass: of the masked model.
        places: tokens of a picture.
    """

    fixed: float
    per_token: float
    per_pass: float
    places: int

    def seconds(self, fraction: float, steps: int) -> float:
        """Of a picture with that AR fraction and that many masked passes."""
        return self.fixed + fraction * self.places * self.per_token + steps * self.per_pass

    def choose(self, budget: float) -> tuple[float, int]:
        """The best of ``CHOICES`` that fits a budget in seconds; the quickest where none does."""
        return next((choice for choice in CHOICES if self.seconds(*choice) <= budget), CHOICES[-1])


def measure(pipe: Any) -> Cost:
    """Draw twice, the first time to warm up, and divide by phases.

    Raises:
        ValueError: a pairing that lacks one of its models.
    """
    prompt = 0 if pipe.text is None and not pipe.reads_captions else "a red apple"
    for _ in range(2):
        made = pipe(prompt, method="hybrid", ar_fraction=0.25, steps=4, seed=0)
    seconds, passes = made.phases.seconds, made.phases.passes
    fixed = sum(seconds.values()) - seconds["prefix"] - seconds["fill"]
    tokens = round(0.25 * made.grid.places)
    return Cost(fixed, seconds["prefix"] / tokens, seconds["fill"] / passes["fill"], made.grid.places)


def asker(pipe: Any, vocabulary: list[str] | None = None) -> Callable[[str], str | None]:
    """A function from what was heard to what is drawn: None where that means nothing to draw, yet.

    Args:
        pipe: where its prompts are classes, the one that sounds like it is drawn.
        vocabulary: captions of which the one that is most like what was heard is drawn; None draws what was heard.

    Raises:
        ValueError: a vocabulary where prompts are classes.
    """
    if pipe.classes and vocabulary:
        raise ValueError(
            f"vocabulary: this pairing draws its {len(pipe.classes)} classes and nothing else; leave it out"
        )
    names = pipe.classes or vocabulary

    def ask(text: str) -> str | None:
        prompt = prompt_of(text)
        return (nearest(prompt, names) if names else prompt) or None

    return ask


@dataclass(frozen=True)
class Picture:
    """A finished picture.

    Attributes:
        kind: ``preview`` (masked model alone) or ``final``.
        prompt: what was asked for.
        image: as the pipeline gives it.
        asked: when its text was known, in the clock's seconds.
        done: when it was finished.
    """

    kind: Literal["preview", "final"]
    prompt: str
    image: Any
    asked: float
    done: float


@dataclass(frozen=True)
class _Job:
    kind: Literal["preview", "final"]
    prompt: str
    asked: float


class Painter:
    """Draws the newest text in another thread; a newer one cancels what is in flight.

    One thread draws one picture after another in the order they were asked for, so nothing older is shown after
    something newer. Leaving its ``with`` block cancels what is left and waits for the pass in flight.

    Args:
        pipe: the pipeline.
        seed: of every picture.
        preview, final: arguments of the pipeline for the two kinds.
        show: told of each finished picture, in the thread.
        clock: seconds.
        worker: whose thread draws; best the one that loaded the pipeline (``hybrid.worker``). None is a new one.
    """

    def __init__(
        self,
        pipe: Any,
        *,
        seed: int,
        preview: dict[str, Any],
        final: dict[str, Any],
        show: Callable[[Picture], Any],
        clock: Callable[[], float] = time.monotonic,
        worker: Worker | None = None,
    ) -> None:
        self._pipe, self._seed, self._show, self._clock = pipe, seed, show, clock
        self._arguments = {"preview": preview, "final": final}
        self._changed = threading.Condition()
        self._next: _Job | None = None
        self._busy, self._closed = False, False
        self._error: Exception | None = None
        self.pictures: list[Picture] = []
        self.cancelled = 0
        self._worker, self._mine = worker or Worker("painter"), worker is None
        self._drawing = self._worker.begin(self._run)

    def __enter__(self) -> Painter:
        return self

    def __exit__(self, *_: Any) -> None:
        with self._changed:
            self._next, self._closed = None, True
            self._changed.notify_all()
        wait([self._drawing])
        if self._mine:
            self._worker.end()

    def ask(self, kind: Literal["preview", "final"], prompt: str) -> None:
        """Draw this as soon as the pass in flight has ended.

        Raises:
            Exception: what went wrong with an earlier one.
        """
        with self._changed:
            if self._error is not None:
                raise self._error
            if self._next is not None:
                self.cancelled += 1
            self._next = _Job(kind, prompt, self._clock())
            self._changed.notify_all()

    def finish(self) -> None:
        """Wait for what was asked for last.

        Raises:
            Exception: what the pipeline refused, or ``show`` could not do.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._error is not None or (self._next is None and not self._busy))
            if self._error is not None:
                raise self._error

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._next is not None or self._closed)
                if self._next is None:
                    return
                job, self._next, self._busy = self._next, None, True
            error = None
            try:
                self._draw(job)
            except Cancelled:
                self.cancelled += 1
            except Exception as caught:  # told by ``ask`` and ``finish``, in the caller's thread
                error = caught
            with self._changed:
                self._busy, self._error = False, error
                self._changed.notify_all()
            if error is not None:
                return

    def _draw(self, job: _Job) -> None:
        def wanted(*_: Any) -> bool:
            return self._next is None and not self._closed

        made = self._pipe(job.prompt, seed=self._seed, callback_on_step_end=wanted, **self._arguments[job.kind])
        picture = Picture(job.kind, job.prompt, made.images[0], job.asked, self._clock())
        self._show(picture)
        self.pictures.append(picture)


@dataclass
class Report:
    """What one stretch of speech gave, and how long each stage took, in seconds.

    Attributes:
        text: the final text as it was recognised.
        prompt: what was drawn.
        partials: prompts that started a preview.
        spoken: length of the sound.
        transcript: from the end of speech to the final text.
        first_preview: from a stable partial text to its finished preview, of the first one that finished.
        final: from the end of speech to the final picture.
        previews: how many were finished.
        cancelled: pictures that a better text ended.
    """

    text: str = ""
    prompt: str = ""
    partials: list[str] = field(default_factory=list)
    spoken: float = 0.0
    transcript: float = 0.0
    first_preview: float | None = None
    final: float = 0.0
    previews: int = 0
    cancelled: int = 0


def live(
    pieces: Iterable[tuple[NDArray[np.float32], int]],
    listening: Any,
    painter: Painter,
    *,
    ask: Callable[[str], str | None] = prompt_of,
    wait: float = 0.15,
    clock: Callable[[], float] = time.monotonic,
    heard: Callable[[str, bool], Any] = lambda text, final: None,
) -> Report:
    """Hear pieces of sound as they come and have them drawn.

    Args:
        pieces: samples and rate, when they are there; the end of speech is when they end.
        listening: a ``Listening`` of ``hybrid.adapters.speech``.
        painter: draws.
        ask: what is drawn for a text, see ``asker``.
        wait: seconds of sound over which a partial prompt must stand still before it is drawn.
        clock: the painter's, in seconds.
        heard: told of each new text, and whether it is final.

    Raises:
        ValueError: nothing was understood, or what the pipeline refused.
    """
    report, debounce, known = Report(), Debounce(wait), ""
    for samples, rate in pieces:
        report.spoken += len(samples) / rate
        text = listening.feed(samples, rate)
        if text and text != known:
            known = text
            heard(text, False)
            debounce.hear(ask(text) or "", report.spoken)
        if (due := debounce.due(report.spoken)) is not None:
            report.partials.append(due)
            painter.ask("preview", due)
    ended = clock()
    if not report.spoken:
        raise ValueError("no sound came in; speak, or give a recording")
    report.text = listening.finish()
    report.transcript = clock() - ended
    if not prompt_of(report.text):
        raise ValueError("nothing was understood: silence, noise or not English; speak closer to the microphone")
    prompt = ask(report.text)
    if not prompt:
        raise ValueError(f"heard {report.text!r}, which is like nothing this pairing draws; say it again")
    report.prompt = prompt
    heard(report.text, True)
    painter.ask("final", prompt)
    painter.finish()
    report.final = painter.pictures[-1].done - ended
    previews = [picture for picture in painter.pictures if picture.kind == "preview"]
    report.previews, report.cancelled = len(previews), painter.cancelled
    report.first_preview = previews[0].done - previews[0].asked if previews else None
    return report
