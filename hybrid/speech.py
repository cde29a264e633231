"""From recordings to prompts: reading WAV and FLAC, what a speaker wants drawn, when a text is worth drawing.

This file knows sound as numbers and text. It does not know pictures; the recognisers are ``hybrid.adapters.speech``.
"""

from __future__ import annotations

import io
import re
import threading
import wave
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

LONGEST = 60.0
"""Seconds of a recording that are heard."""

LARGEST = 2**27
"""Bytes of a recording, and of its samples as they are read: above a minute of the best quality there is."""

FASTEST = 768_000
"""Samples a second that no recording has more of."""

ASKING = re.compile(
    r"^(?:"
    r"(?:\w+[ ,]+){0,3}(?:draw|show|paint|make|give) me\b"
    r"|(?:(?:please|now|okay|ok|so|and|hey)[ ,]+)*"
    r"(?:(?:can|could|would) you )?(?:please )?"
    r"(?:(?:draw|show|generate|create|i(?:'d| would)? (?:want|like)(?: to see)?)(?: me| us)?\b"
    r"|(?<=please )\w+ me\b"
    r"|(?:paint|make|give)(?: us|(?= (?:a|an|the|some) )))"
    r")[ ,]*",
    re.IGNORECASE,
)
"""What people say before they say what to draw. Recognisers mistake it often, and make up words for a breath or a
silence in front of it: up to three words before "draw me" go with it, and after "please" any verb does."""

PICTURE_OF = re.compile(r"^(?:(?:a|an|the) )?(?:picture|image|drawing|photo|emoji) of ", re.IGNORECASE)


@dataclass(frozen=True)
class Sound:
    """A recording: mono samples in -1..1 and how many there are a second."""

    samples: NDArray[np.float32]
    rate: int

    @property
    def seconds(self) -> float:
        return len(self.samples) / self.rate


def read_sound(source: str | Path | bytes, name: str | None = None) -> Sound:
    """Read a WAV (PCM of 8 to 32 bits) or, where ``soundfile`` is installed, FLAC or another format that it knows.

    Args:
        source: a file or its bytes.
        name: what messages call it.

    Raises:
        ValueError: one line: no such file, not a recording, empty, longer than ``LONGEST``, or of too many
            channels or samples a second.
    """
    name = name or ("recording" if isinstance(source, bytes) else str(source))
    data = source if isinstance(source, bytes) else _bytes(Path(source), name)
    if not data:
        raise ValueError(f"{name}: is empty; give a recording")
    sound = _wav(data, name) if data[:4] == b"RIFF" else _other(data, name)
    if not len(sound.samples):
        raise ValueError(f"{name}: holds no sound")
    if sound.seconds > LONGEST:
        raise ValueError(f"{name}: lasts {sound.seconds:.0f} s; give at most {LONGEST:.0f} s")
    if not np.isfinite(sound.samples).all():
        raise ValueError(f"{name}: holds samples that are no numbers")
    return sound


def stream_sound(stream: IO[bytes], seconds: float, name: str) -> Iterator[tuple[NDArray[np.float32], int]]:
    """A WAV as it comes in, in pieces of at most that many seconds; another format when it has come in whole.

    Args:
        stream: what has ``peek``, such as standard input's buffer.
        seconds: of a piece.
        name: what messages call it.

    Yields:
        Mono samples and their rate.

    Raises:
        ValueError: as ``read_sound``, once the trouble is reached.
    """
    if stream.peek(4)[:4] != b"RIFF":  # type: ignore[attr-defined]
        sound = read_sound(stream.read(LARGEST), name)
        yield sound.samples, sound.rate
        return
    with _open(stream, name) as file:
        width, channels, rate = file.getsampwidth(), file.getnchannels(), file.getframerate()
        size, left = max(1, round(rate * seconds)), round(LONGEST * rate)
        while raw := file.readframes(size):
            samples = decode_pcm(raw, width, channels)
            left -= len(samples)
            if left < 0:
                raise ValueError(f"{name}: lasts longer than {LONGEST:.0f} s; give less")
            yield samples, rate


def decode_pcm(raw: bytes, width: int, channels: int) -> NDArray[np.float32]:
    """PCM frames as mono samples in -1..1. An incomplete frame at the end is left out.

    Args:
        raw: little-endian frames; one byte a sample is unsigned, more are signed.
        width: bytes of a sample, 1 to 4.
        channels: samples of a frame; their mean is taken.
    """
    raw = raw[: len(raw) // (width * channels) * width * channels]
    if width == 1:
        values = (np.frombuffer(raw, np.uint8).astype(np.float32) - 128) / 128
    elif width == 3:
        parts = np.zeros((len(raw) // 3, 4), np.uint8)
        parts[:, 1:] = np.frombuffer(raw, np.uint8).reshape(-1, 3)
        values = parts.view("<i4")[:, 0].astype(np.float32) / 2**31
    else:
        values = np.frombuffer(raw, f"<i{width}").astype(np.float32) / 2 ** (8 * width - 1)
    return values.reshape(-1, channels).mean(1, dtype=np.float32)


def _bytes(path: Path, name: str) -> bytes:
    try:
        if path.stat().st_size > LARGEST:
            raise ValueError(f"{name}: too large; give a recording of at most {LONGEST:.0f} s")
        return path.read_bytes()
    except FileNotFoundError:
        raise ValueError(f"{name}: no such file") from None
    except OSError as error:
        raise ValueError(f"{name}: cannot be read ({error.strerror})") from None


def _open(stream: IO[bytes], name: str) -> wave.Wave_read:
    try:
        file = wave.open(stream)  # noqa: SIM115 - the caller closes it
    except (wave.Error, EOFError, RuntimeError) as error:
        raise ValueError(f"{name}: not a WAV file that can be read ({str(error) or 'it ends early'})") from None
    if not (1 <= file.getsampwidth() <= 4 and 0 < file.getframerate() <= FASTEST):
        bits, rate = 8 * file.getsampwidth(), file.getframerate()
        raise ValueError(f"{name}: a WAV of {bits} bits at {rate} Hz; give 8 to 32 bits at 16000 to 192000 Hz")
    return file


def _wav(data: bytes, name: str) -> Sound:
    try:
        with _open(io.BytesIO(data), name) as file:
            raw = file.readframes(file.getnframes())
            return Sound(decode_pcm(raw, file.getsampwidth(), file.getnchannels()), file.getframerate())
    except ValueError:
        # What Python's reader refuses, as floating point, soundfile may know.
        if _soundfile() is None:
            raise
        return _other(data, name)


def _other(data: bytes, name: str) -> Sound:
    soundfile = _soundfile()
    if soundfile is None:
        kind = "FLAC needs the package soundfile" if data[:4] == b"fLaC" else "not a WAV file"
        raise ValueError(f"{name}: {kind}; give a WAV, or: pip install soundfile")
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            _check_size(file, name)
            return Sound(file.read(dtype="float32", always_2d=True).mean(1), file.samplerate)
    except soundfile.SoundFileError:
        raise ValueError(f"{name}: not a recording that can be read; give a WAV or FLAC file") from None


def _check_size(file: Any, name: str) -> None:
    """Refuse by the header what would be large, since a few bytes can hold hours of silence; no more is read of it."""
    frames, channels, rate = file.frames, file.channels, file.samplerate
    if rate > FASTEST or 4 * channels * min(frames, LONGEST * rate) > LARGEST:
        raise ValueError(f"{name}: {rate} Hz, channels: {channels}; give one or two at 16000 to 192000 Hz")
    if frames > LONGEST * rate:
        raise ValueError(f"{name}: lasts longer than {LONGEST:.0f} s, says its header; give less")


def _soundfile() -> Any:
    try:
        import soundfile
    except (ImportError, OSError):
        return None
    return soundfile


def prompt_of(text: str) -> str:
    """What a speaker wants drawn: without "draw me a picture of", end marks and stray spaces, in lower case."""
    plain = " ".join(text.split()).strip(" .,!?…").lower()
    return PICTURE_OF.sub("", ASKING.sub("", plain, count=1), count=1).strip(" .,!?…")


def nearest(prompt: str, names: Sequence[str], least: float = 0.6) -> str | None:
    """The name whose letters are most like those that were heard; a name's parts around "/" count alone as well.

    Args:
        prompt: what was heard.
        names: classes or captions.
        least: likeness (``difflib``'s ratio) below which none is meant.
    """
    spoken = {_letters(part): name for name in reversed(names) for part in (name, *name.split("/")) if _letters(part)}
    near = get_close_matches(_letters(prompt), spoken, n=1, cutoff=least)
    return spoken[near[0]] if near else None


def _letters(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "", re.sub(r"^(?:a|an|the) ", "", text.strip().lower()))


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
    """The words of a whole recording, by the default recogniser; empty where it holds none.

    Raises:
        ImportError: no recogniser is installed.
        ValueError: no recording.
    """
    sound = read_sound(recording)
    with _ONE:
        listening = _recogniser().listen()
        listening.feed(sound.samples, sound.rate)
        return str(listening.finish())
