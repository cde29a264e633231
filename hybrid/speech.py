"""From recordings to prompts: reading WAV and FLAC, what a speaker wants drawn, when a text is worth drawing.

This file knows sound as numbers and text. It does not know pictures; the recognisers are ``hybrid.adapters.speech``.
"""

from __future__ import annotations

import io
import re
import threading
import wave
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

LONGEST = 60.0
"""Seconds of a recording that are heard."""

ASKING = re.compile(
    r"^(?:(?:please|now|okay|ok|so|and|hey)[ ,]+)*"
    r"(?:(?:can|could|would) you )?(?:please )?"
    r"(?:(?:draw|show|paint|make|create|generate|give)(?: me| us)?|i(?:'d| would)? (?:want|like)(?: to see)?)\b[ ,]*"
    r"(?:(?:a|an|the) (?:picture|image|drawing|photo|emoji) of )?",
    re.IGNORECASE,
)
"""What people say before they say what to draw."""


@dataclass(frozen=True)
class Sound:
    """A recording: mono samples in -1..1 and how many there are a second."""

    samples: NDArray[np.float32]
    rate: int

    @property
    def seconds(self) -> float:
        return len(self.samples) / self.rate


def read_sound(source: str | Path | bytes | IO[bytes], name: str | None = None) -> Sound:
    """Read a WAV (PCM of 8 to 32 bits) or, where ``soundfile`` is installed, FLAC or another format that it knows.

    Args:
        source: a file, its bytes, or an open stream.
        name: what messages call it.

    Raises:
        ValueError: one line: no such file, not a recording, empty, longer than ``LONGEST``.
    """
    if isinstance(source, (str, Path)):
        name = name or str(source)
        try:
            data = Path(source).read_bytes()
        except FileNotFoundError:
            raise ValueError(f"{name}: no such file") from None
    else:
        name = name or "recording"
        data = source if isinstance(source, bytes) else source.read()
    sound = _wav(data, name) if data[:4] == b"RIFF" else _other(data, name)
    if not len(sound.samples):
        raise ValueError(f"{name}: holds no sound")
    if sound.seconds > LONGEST:
        raise ValueError(f"{name}: lasts {sound.seconds:.0f} s; give at most {LONGEST:.0f} s")
    return sound


def _wav(data: bytes, name: str) -> Sound:
    try:
        with wave.open(io.BytesIO(data)) as file:
            width, channels, rate = file.getsampwidth(), file.getnchannels(), file.getframerate()
            raw = file.readframes(file.getnframes())
    except (wave.Error, EOFError) as error:
        raise ValueError(f"{name}: not a WAV file that can be read ({str(error) or 'it ends early'})") from None
    raw = raw[: len(raw) // (width * channels) * width * channels]
    if width == 1:
        values = (np.frombuffer(raw, np.uint8).astype(np.float32) - 128) / 128
    elif width == 3:
        parts = np.frombuffer(raw, np.uint8).reshape(-1, 3).astype(np.int32)
        whole = (parts[:, 0] << 8) | (parts[:, 1] << 16) | (parts[:, 2] << 24)
        values = (whole >> 8).astype(np.float32) / 2**23
    else:
        values = np.frombuffer(raw, f"<i{width}").astype(np.float32) / 2 ** (8 * width - 1)
    return Sound(values.reshape(-1, channels).mean(1, dtype=np.float32), rate)


def _other(data: bytes, name: str) -> Sound:
    try:
        import soundfile
    except ImportError:
        kind = "FLAC needs the package soundfile" if data[:4] == b"fLaC" else "not a WAV file"
        raise ValueError(f"{name}: {kind}; give a WAV, or: pip install soundfile") from None
    try:
        values, rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    except soundfile.SoundFileError:
        raise ValueError(f"{name}: not a recording that can be read; give a WAV or FLAC file") from None
    return Sound(values.mean(1), int(rate))


def prompt_of(text: str) -> str:
    """What a speaker wants drawn: without "draw me", end marks and stray spaces, in lower case."""
    plain = " ".join(text.split()).strip(" .,!?…").lower()
    return ASKING.sub("", plain, count=1).strip(" .,!?…")


class Debounce:
    """Says when a growing text is worth acting on: once it stood still for a while.

    Args:
        wait: seconds without change.
    """

    def __init__(self, wait: float) -> None:
        self.wait = wait
        self._text, self._since, self._told = "", 0.0, ""

    def hear(self, text: str, now: float) -> None:
        """A further partial text, at a time in seconds."""
        if text != self._text:
            self._text, self._since = text, now

    def due(self, now: float) -> str | None:
        """The text, once, where it is new and has stood still for long enough."""
        if self._text and self._text != self._told and now - self._since >= self.wait:
            self._told = self._text
            return self._text
        return None


_ONE = threading.Lock()
"""One recording at a time: the recogniser's library is not made for several threads."""


@cache
def _recogniser() -> Any:
    from hybrid.adapters.speech import Moonshine

    return Moonshine()


def transcribe(recording: bytes) -> str:
    """The words of a whole recording, by the default recogniser.

    Raises:
        ImportError: no recogniser is installed.
        ValueError: no recording.
    """
    sound = read_sound(recording)
    with _ONE:
        listening = _recogniser().listen()
        listening.feed(sound.samples, sound.rate)
        return str(listening.finish())
