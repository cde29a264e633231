"""``hybrid-speak``: speech in, a picture that appears while one speaks out."""

from __future__ import annotations

import json
import os
import sys
import time
from argparse import Namespace, RawDescriptionHelpFormatter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hybrid.cli_options import DEFAULT_CONFIG, Parser
from hybrid.picture_files import FORMATS, write_picture

EXAMPLES = """examples:
  hybrid-speak                            the microphone, until you pause; picture.png appears and refines
  hybrid-speak request.wav -o apple.png   a recording, heard at the pace it was spoken
  arecord -f cd -d 3 | hybrid-speak -     standard input
  hybrid-speak request.wav --budget-ms 400 --json

Exit codes: 0 done, 2 a mistake (one line says which), 130 interrupted.
"""
PIECE = 0.05
"""Seconds of sound in a piece."""

PREVIEW = {"method": "masked", "steps": 4}
BUDGET = 750.0
"""Milliseconds of the final picture, so that it and the last look at the sound stay well within 1.5 s."""

PAUSE = 1.0
"""Seconds of sound without a new word that end listening to the microphone, once there was one."""

PATIENCE = 10.0
"""Seconds of sound without any word after which listening to the microphone ends."""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point. Returns 0, 2 after one line about a mistake, or 130 after Ctrl-C."""
    parser = Parser(
        prog="hybrid-speak",
        usage="%(prog)s [FILE.wav|-] [-o FILE] [options]",
        description="Draw what is said: previews while you speak, the hybrid's picture when you have finished.",
        epilog=EXAMPLES,
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "source", nargs="?", metavar="FILE", help="WAV or FLAC; - is standard input (default: microphone)"
    )
    parser.add_argument(
        "-o", "--out", type=Path, default=Path("picture.png"), metavar="FILE", help="default: picture.png"
    )
    parser.add_argument(
        "--config", default=DEFAULT_CONFIG, metavar="NAME", help=f"the pairing (default: {DEFAULT_CONFIG})"
    )
    parser.add_argument("--device", default="auto", metavar="D", help="auto, cpu, cuda or mps")
    parser.add_argument(
        "--recogniser", default="moonshine", metavar="R", help="moonshine, or the folder of a Whisper model"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of every picture (default: 0)")
    parser.add_argument("--scale", type=int, default=8, metavar="Z", help="save each pixel as Z x Z (default: 8)")
    parser.add_argument(
        "--budget-ms",
        type=float,
        default=BUDGET,
        metavar="MS",
        help=f"time of the final picture; chooses AR fraction and passes (default: {BUDGET:g})",
    )
    parser.add_argument(
        "--vocabulary",
        type=Path,
        metavar="F",
        help="captions, one a line: draw the one that is most like what was heard",
    )
    parser.add_argument("--fast", action="store_true", help="hear a file as quickly as it goes")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    try:
        return _run(parser.parse_args(argv))
    except KeyboardInterrupt:
        print("hybrid-speak: interrupted", file=sys.stderr)
        return 130
    except (ValueError, OSError, ImportError) as error:
        print(f"hybrid-speak: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


def _run(options: Namespace) -> int:
    if options.scale < 1:
        raise ValueError(f"--scale {options.scale}: must be at least 1")
    if not options.budget_ms > 0:
        raise ValueError(f"--budget-ms {options.budget_ms:g}: must be above 0")
    if options.out.suffix.lower() not in FORMATS:
        raise ValueError(f"--out {options.out}: use a name that ends in .png, .jpg or .webp")
    if not options.out.resolve().parent.is_dir():
        raise ValueError(f"--out {options.out}: no such folder: {options.out.parent}")
    if not 0 <= options.seed < 2**63:
        raise ValueError(f"--seed {options.seed}: must be 0 or above, and below 2^63")
    if options.fast and options.source in (None, "-"):
        raise ValueError("--fast: only a file can be heard faster than it was spoken; give one")
    from hybrid.speech import read_sound, stream_sound

    sound = None if options.source in (None, "-") else read_sound(options.source)
    vocabulary = None if options.vocabulary is None else _captions(options.vocabulary)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    from hybrid.adapters.speech import load_recogniser
    from hybrid.pipeline import HybridPipeline
    from hybrid.speak import Painter, Picture, asker, live
    from hybrid.worker import Worker

    recogniser, worker = load_recogniser(options.recogniser), Worker("painter")
    pipe = worker.call(lambda: HybridPipeline.from_pretrained(options.config, device=options.device))
    ask = asker(pipe, vocabulary)
    final = worker.call(lambda: settle(pipe, options.budget_ms))
    tell = (lambda line: None) if options.json else (lambda line: print(line, flush=True))

    def show(picture: Picture) -> None:
        write_picture(picture.image, options.out, scale=options.scale)  # whole: somebody may be watching the file
        tell(f"{picture.kind}: {picture.prompt} ({1000 * (picture.done - picture.asked):.0f} ms) -> {options.out}")

    listening = recogniser.listen()
    if sound is not None:
        pieces = pieces_of(sound, pace=not options.fast)
    elif options.source == "-":
        pieces = stream_sound(sys.stdin.buffer, PIECE, "standard input")
    else:
        listening = pause = Pause(listening)
        pieces = pause.until_pause(_microphone(tell))
    with Painter(pipe, seed=options.seed, preview=PREVIEW, final=final, show=show, worker=worker) as painter:
        report = live(
            pieces,
            listening,
            painter,
            ask=ask,
            heard=lambda text, done: tell(f"{'heard' if done else '…'} {text}"),
        )
    told = asdict(report) | {"file": str(options.out), "seed": options.seed, "settings": final, "preview": PREVIEW}
    if options.json:
        print(json.dumps(told, ensure_ascii=False, indent=1))
        return 0
    first = "none was finished" if report.first_preview is None else f"{1000 * report.first_preview:.0f} ms"
    print(
        f"end of speech -> text {1000 * report.transcript:.0f} ms -> picture {1000 * report.final:.0f} ms; "
        f"first preview after its words: {first}; {report.cancelled} cancelled"
    )
    return 0


def settle(pipe: Any, budget_ms: float) -> dict[str, Any]:
    """Warm up, and choose the final picture's settings by what drawing costs here.

    Raises:
        ValueError: a pairing that lacks one of its models.
    """
    from hybrid.speak import measure

    fraction, steps = measure(pipe).choose(budget_ms / 1000)
    return {"ar_fraction": fraction, "steps": steps}


def _captions(path: Path) -> list[str]:
    """The lines of a file of captions."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--vocabulary {path}: cannot be read as text ({error})") from None
    captions = [line for line in lines if line]
    if not captions:
        raise ValueError(f"--vocabulary {path}: holds no caption; write one on each line")
    return captions


def pieces_of(sound: Any, *, pace: bool) -> Iterator[tuple[Any, int]]:
    """A recording piece by piece, each not before it was spoken."""
    size, start = max(1, round(sound.rate * PIECE)), time.monotonic()
    for first in range(0, len(sound.samples), size):
        piece = sound.samples[first : first + size]
        if pace:
            time.sleep(max(0.0, start + (first + len(piece)) / sound.rate - time.monotonic()))
        yield piece, sound.rate


class Pause:
    """A ``Listening`` that ends the microphone once words were heard and none came for a while, or none ever came."""

    def __init__(self, listening: Any) -> None:
        self._listening, self._text, self._quiet, self._total = listening, "", 0.0, 0.0

    def feed(self, samples: Any, rate: int) -> str | None:
        text: str | None = self._listening.feed(samples, rate)
        self._quiet += len(samples) / rate
        self._total += len(samples) / rate
        if text and text != self._text:
            self._text, self._quiet = text, 0.0
        return text

    def finish(self) -> str:
        return str(self._listening.finish())

    def until_pause(self, pieces: Iterator[tuple[Any, int]]) -> Iterator[tuple[Any, int]]:
        """The pieces, each given before it is fed, until there is a pause or ``LONGEST`` is reached."""
        from hybrid.speech import LONGEST

        for piece in pieces:
            yield piece
            if self._quiet >= (PAUSE if self._text else PATIENCE) or self._total >= LONGEST:
                return


def _microphone(tell: Any) -> Iterator[tuple[Any, int]]:
    """Pieces from the default microphone.

    Raises:
        ValueError: no microphone, or no library to reach it.
    """
    try:
        import sounddevice
    except (ImportError, OSError) as error:
        why = "pip install 'hybrid-imagegen[speech]'" if isinstance(error, ImportError) else "install PortAudio"
        raise ValueError(f"no microphone: {error}; {why}, or give a file") from None
    try:
        stream = sounddevice.InputStream(channels=1, dtype="float32")
        stream.start()
    except sounddevice.PortAudioError as error:
        raise ValueError(f"no microphone: {error}; plug one in, or give a file") from None
    tell("listening; speak, then pause")
    with stream:
        rate = int(stream.samplerate)
        while True:
            samples, _ = stream.read(round(rate * PIECE))
            yield samples[:, 0], rate


if __name__ == "__main__":
    sys.exit(main())
