"""Speech recognisers: sound in pieces to text that grows and, at the end, stands.

``Moonshine`` is small and quick (its English model is inside the package ``moonshine-voice``); ``Whisper`` is any
speech-to-text model of transformers. Both turn a whole recording into text; ``Rehearing`` makes them hear one that is
still growing, by hearing all of it again every so often. This file knows recognisers. It does not know files,
microphones or pictures.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

INSTALL = "pip install 'hybrid-imagegen[speech]'"
SILENCE = 0.25
"""Seconds of silence that Moonshine gets before and after a recording: it loses words that begin or end with it."""

QUIET = 1e-3
"""A recording that is nowhere louder than this (-60 dB) is silence; models make up words for it."""


class Listening(Protocol):
    """One stretch of speech."""

    def feed(self, samples: NDArray[np.float32], rate: int) -> str | None:
        """Hear a further piece (mono, -1..1). Returns all text so far where it was looked at anew, else None."""
        ...

    def finish(self) -> str:
        """Hear no more. Returns the final text, empty where no words were heard."""
        ...


class Recogniser(Protocol):
    """Makes a ``Listening`` for each stretch of speech."""

    def listen(self) -> Listening: ...


class Rehearing:
    """A ``Listening`` by a recogniser of whole recordings: at each look it hears everything so far again.

    Args:
        text_of: samples and rate to text.
        interval: seconds of sound between two looks. Where a look takes longer than the sound that came meanwhile, the
            next one waits for twice as much sound as it took, so that hearing never falls far behind speaking.
        clock: seconds.
    """

    def __init__(
        self,
        text_of: Callable[[NDArray[np.float32], int], str],
        interval: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._text_of, self._interval, self._clock = text_of, interval, clock
        self._pieces: list[NDArray[np.float32]] = []
        self._rate, self._new, self._wait, self._text = 0, 0.0, interval, ""

    def feed(self, samples: NDArray[np.float32], rate: int) -> str | None:
        """Hear a further piece.

        Raises:
            ValueError: pieces of different rates.
        """
        if self._rate not in (0, rate):
            raise ValueError(f"sound of {rate} samples a second after some of {self._rate}; keep one rate")
        self._rate = rate
        self._pieces.append(samples)
        self._new += len(samples) / rate
        if self._new < self._wait:
            return None
        began = self._clock()
        text = self._look()
        self._wait = max(self._interval, 2 * (self._clock() - began))
        return text

    def finish(self) -> str:
        return self._look() if self._new else self._text

    def _look(self) -> str:
        self._new = 0.0
        heard = np.concatenate(self._pieces)
        self._pieces = [heard]
        self._text = self._text_of(heard, self._rate) if np.abs(heard).max(initial=0.0) > QUIET else ""
        return self._text


class Moonshine:
    """Moonshine's tiny English model with its voice activity detector (https://github.com/moonshine-ai/moonshine).

    Args:
        interval: seconds of sound between two partial texts.

    Raises:
        ImportError: the package is not installed; the line says how to get it.
    """

    rate = 16_000

    def __init__(self, interval: float = 0.3) -> None:
        try:
            from moonshine_voice import ModelArch, get_model_path
            from moonshine_voice.transcriber import Transcriber
        except (ImportError, OSError) as error:
            raise ImportError(f"speech recognition: moonshine-voice is not installed ({error}); {INSTALL}") from None
        self.interval = interval
        self._transcriber: Any = Transcriber(get_model_path("tiny-en"), ModelArch.TINY)

    def listen(self) -> Listening:
        return Rehearing(self.text_of, self.interval)

    def text_of(self, samples: NDArray[np.float32], rate: int) -> str:
        """All words of a recording."""
        around = np.zeros(round(SILENCE * rate), dtype=np.float32)
        heard = resample(np.concatenate((around, samples, around)), rate, self.rate)
        lines = self._transcriber.transcribe_without_streaming(heard.tolist(), self.rate).lines
        return " ".join(" ".join(line.text for line in lines).split())


class Whisper:
    """A Whisper-like model of transformers, from a folder with its processor.

    Args:
        folder: a folder that ``AutoModelForSpeechSeq2Seq`` and ``AutoProcessor`` read.
        interval: seconds of sound between two partial texts.

    Raises:
        ValueError: no such folder, or nothing that these classes read.
    """

    def __init__(self, folder: str | Path, interval: float = 1.0) -> None:
        import torch
        from safetensors import SafetensorError
        from transformers import AutoModelForSpeechSeq2Seq, AutoProcessor

        if not Path(folder).is_dir():
            raise ValueError(f"{folder}: no such folder; give moonshine, or the folder of a speech-to-text model")
        try:
            self.processor: Any = AutoProcessor.from_pretrained(folder, local_files_only=True)
            # In float32 as the features are, whatever the files hold.
            model = AutoModelForSpeechSeq2Seq.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
            self.model: Any = model.eval()
            features = self.processor.feature_extractor
            self.rate, self.most = int(features.sampling_rate), getattr(features, "n_samples", None)
        except (OSError, ValueError, AttributeError, RuntimeError, SafetensorError) as error:
            line = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise ValueError(f"{folder}: no speech-to-text model of transformers ({line})") from None
        self.interval = interval

    def listen(self) -> Listening:
        return Rehearing(self.text_of, self.interval)

    def text_of(self, samples: NDArray[np.float32], rate: int) -> str:
        """All words of a recording. One that is longer than what the model hears at once (Whisper: 30 seconds) is heard
        in such parts."""
        heard = resample(samples, rate, self.rate)
        most = self.most or max(len(heard), 1)
        parts = [self._words(heard[start : start + most]) for start in range(0, len(heard), most)]
        return " ".join(part for part in parts if part)

    def _words(self, heard: NDArray[np.float32]) -> str:
        import torch

        inputs = self.processor(heard, sampling_rate=self.rate, return_tensors="pt")
        with torch.inference_mode():
            ids = self.model.generate(**inputs)
        return str(self.processor.batch_decode(ids, skip_special_tokens=True)[0]).strip()


def resample(samples: NDArray[np.float32], rate: int, wanted: int) -> NDArray[np.float32]:
    """A whole recording at another rate: its spectrum up to half the lower rate, and nothing above."""
    if rate == wanted or not len(samples):
        return samples
    count = max(1, round(len(samples) * wanted / rate))
    spectrum = np.fft.rfft(samples)[: count // 2 + 1]
    return (np.fft.irfft(spectrum, count) * (count / len(samples))).astype(np.float32)


def load_recogniser(name: str) -> Recogniser:
    """``moonshine``, or the folder of a speech-to-text model of transformers.

    Raises:
        ImportError: the package is not installed.
        ValueError: no such model.
    """
    return Moonshine() if name == "moonshine" else Whisper(name)
