"""Speech for the page's microphone, where ``hybrid.speech`` is there and its extra installed."""

from __future__ import annotations

from importlib import import_module

from hybrid.serve.errors import ApiError

MISSING = "no speech recognition here; install it with: pip install 'hybrid-imagegen[speech]'"


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
