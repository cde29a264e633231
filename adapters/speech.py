"""Speech recognisers: sound in pieces to text that grows and, at the end, stands.

``Moonshine`` recognises while one speaks (its small English model is inside the package ``moonshine-voice``);
``Whisper`` wraps any speech-to-text model of transformers by hearing everything again at every update. This file knows
recognisers. It does not know files, microphones or pictures.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

INSTALL = "pip install 'hybrid-imagegen[speech]'"


class Listening(Protocol):
    """One stretch of speech."""

    def feed(self, samples: NDArray[np.float32], rate: int) -> str | None:
        """Hear a further piece (mono, -1..1). Returns all text so far where it was looked at anew, else None."""
        ...

    def finish(self) -> str:
        """Hear no more. Returns the final text."""
        ...


class Recogniser(Protocol):
    """Makes a ``Listening`` for each stretch of speech."""

    def listen(self) -> Listening: ...


class Moonshine:
    """Moonshine's streaming recogniser (https://github.com/moonshine-ai/moonshine).

    Args:
        interval: seconds of sound between two partial texts.

    Raises:
        ImportError: the package is not installed; the line says how to get it.
    """

    def __init__(self, interval: float = 0.3) -> None:
        try:
            from moonshine_voice import ModelArch, get_model_path
            from moonshine_voice.transcriber import Transcriber
        except ImportError as error:
            raise ImportError(f"speech recognition: moonshine-voice is not installed ({error}); {INSTALL}") from None
        self._transcriber = Transcriber(get_model_path("tiny-en"), ModelArch.TINY, update_interval=interval)

    def listen(self) -> Listening:
        return _MoonshineListening(self._transcriber.create_stream())


class _MoonshineListening:
    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._text: str | None = None
        stream.add_listener(self._heard)
        self._lines: dict[int, str] = {}
        stream.start()

    def _heard(self, event: Any) -> None:
        self._lines[event.line.line_id] = event.line.text
        self._text = " ".join(text.strip() for text in self._lines.values()).strip()

    def feed(self, samples: NDArray[np.float32], rate: int) -> str | None:
        self._text = None
        self._stream.add_audio(samples.tolist(), rate)
        return self._text

    def finish(self) -> str:
        transcript = self._stream.stop()
        self._stream.close()
        lines = [] if transcript is None else transcript.lines
        return " ".join(line.text.strip() for line in lines).strip()


class Whisper:
    """A Whisper-like model of transformers, from a folder with its processor.

    Args:
        folder: a folder that ``AutoModelForSpeechSeq2Seq`` and ``AutoProcessor`` read.
        interval: seconds of sound between two partial texts.

    Raises:
        ValueError: no such folder, or nothing that these classes read.
    """

    def __init__(self, folder: str | Path, interval: float = 1.0) -> None:
        from transformers import AutoModelForSpeechSeq2Seq, AutoProcessor

        if not Path(folder).is_dir():
            raise ValueError(f"{folder}: no such folder; expected a speech-to-text model of transformers")
        try:
            self.processor: Any = AutoProcessor.from_pretrained(folder, local_files_only=True)
            self.model: Any = AutoModelForSpeechSeq2Seq.from_pretrained(folder, local_files_only=True).eval()
        except (OSError, ValueError) as error:
            line = str(error).strip().splitlines()[0]
            raise ValueError(f"{folder}: no speech-to-text model of transformers ({line})") from None
        self.interval = interval
        self.rate = int(self.processor.feature_extractor.sampling_rate)

    def listen(self) -> Listening:
        return _WhisperListening(self)

    def text_of(self, samples: NDArray[np.float32]) -> str:
        """All text of a recording at the model's own rate."""
        import torch

        inputs = self.processor(samples, sampling_rate=self.rate, return_tensors="pt")
        with torch.inference_mode():
            ids = self.model.generate(**inputs)
        return str(self.processor.batch_decode(ids, skip_special_tokens=True)[0]).strip()


class _WhisperListening:
    def __init__(self, whisper: Whisper) -> None:
        self._whisper = whisper
        self._heard = np.zeros(0, dtype=np.float32)
        self._looked = 0

    def feed(self, samples: NDArray[np.float32], rate: int) -> str | None:
        self._heard = np.concatenate((self._heard, resample(samples, rate, self._whisper.rate)))
        if len(self._heard) - self._looked < self._whisper.interval * self._whisper.rate:
            return None
        self._looked = len(self._heard)
        return self._whisper.text_of(self._heard)

    def finish(self) -> str:
        return self._whisper.text_of(self._heard) if len(self._heard) else ""


def resample(samples: NDArray[np.float32], rate: int, wanted: int) -> NDArray[np.float32]:
    """Sound at another rate, by linear interpolation (speech models look below 8 kHz only)."""
    if rate == wanted or not len(samples):
        return samples
    at = np.arange(round(len(samples) * wanted / rate)) * (rate / wanted)
    return np.interp(at, np.arange(len(samples)), samples).astype(np.float32)


def load_recogniser(name: str) -> Recogniser:
    """``moonshine``, or the folder of a speech-to-text model of transformers.

    Raises:
        ImportError: the package is not installed.
        ValueError: no such model.
    """
    return Moonshine() if name == "moonshine" else Whisper(name)
