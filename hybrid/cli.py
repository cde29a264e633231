"""``hybrid-generate``: parse, call the pipeline, show what came of it.

Torch and everything that needs it is imported after the options, the prompts and the output have been checked.
"""

from __future__ import annotations

import argparse
import os
import secrets
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hybrid.cli_options import DEFAULT_CONFIG, parser

if TYPE_CHECKING:
    from hybrid.picture_files import InputFile, PictureSettings

DRAWING = {
    **{name: name for name in ("method", "ar_fraction", "ar_tokens", "steps", "schedule", "resume", "order", "noise")},
    "reuse": "reuse",
    **{name: name for name in ("rounds", "redraw", "window", "relax", "draft")},
    "guidance": "guidance_scale",
    **{name: name for name in ("guidance_kind", "guidance_floor", "temperature", "top_k", "top_p")},
    **{name: name for name in ("height", "width", "negative_prompt", "image", "mask", "tile")},
}
"""Options that are the pipeline's own arguments, and what it calls them."""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point. Returns 0, 2 after one line about a mistake, or 130 after Ctrl-C."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    options = argparse.Namespace(compile=False)
    try:
        options = _parsed(argv)
        with _quiet_libraries():
            code = _run(options)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the flush at exit complains
        return 141
    except KeyboardInterrupt:
        return _fail("interrupted; no picture was left half-written", 130)
    except OSError as error:
        return _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except (ValueError, MemoryError) as error:
        return _fail(str(error) or "out of memory; draw fewer pictures at once with --batch")
    except RuntimeError as error:
        if "out of memory" in str(error) or "can't allocate memory" in str(error):
            return _fail("out of memory; draw fewer pictures at once with --batch, or use --dtype bf16")
        if options.compile:
            return _fail(f"--compile failed ({str(error).strip().splitlines()[0]}); leave it out")
        raise


def _parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    try:
        return parser().parse_intermixed_args(argv)
    except SystemExit:  # after --help, whose reader may have left
        sys.stdout.flush()
        raise


def _fail(message: str, code: int = 2) -> int:
    print(f"hybrid-generate: {' '.join(message.split())}", file=sys.stderr)
    return code


@contextmanager
def _quiet_libraries() -> Iterator[None]:
    """No warnings and loading bars of other packages among the command's own lines."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@dataclass(frozen=True)
class Request:
    """What the options ask for.

    Attributes:
        prompts: one for each picture.
        seed: of the first picture.
        arguments: the pipeline's, beside prompts and seed.
        config: what to load.
        dtype: type to load it in.
        quantize: integer type of the blocks' weights, or None.
        scale: pixels of a saved pixel, along each side.
        inputs: files of in-painting, by argument (``arguments`` has them by the names that were given).
        source: settings of the picture that is repeated.
        same: whether nothing overrides them.
    """

    prompts: list[str]
    seed: int
    arguments: dict[str, Any]
    config: str
    dtype: str
    quantize: str | None
    scale: int
    inputs: dict[str, InputFile]
    source: PictureSettings | None
    same: bool


def _run(options: argparse.Namespace) -> int:
    if options.version:
        from hybrid import __version__

        print(f"hybrid-generate {__version__}")
        return 0
    request = _request(options)
    if options.plan_memory:
        from hybrid.cli_memory import plan_memory

        return plan_memory(options, request)
    from hybrid.pairing import find_pair
    from hybrid.picture_files import plan_files

    files = plan_files(options.out, request.prompts, one=options.compare)
    find_pair(request.config)
    from hybrid.cli_draw import compare, draw

    return compare(options, request, files[0]) if options.compare else draw(options, request, files)


def _request(options: argparse.Namespace) -> Request:
    """The options, the prompts and what a repeated picture says, as one request.

    Raises:
        ValueError: what contradicts itself, is out of range or cannot be read.
    """
    for name, value in vars(options).items():
        if value == "":
            raise ValueError(f"--{'from' if name == 'source' else name.replace('_', '-')}: is empty; leave it out")
    for name, most in (("n", 100_000), ("batch", 100_000), ("scale", 64), ("repeats", 10_000)):
        value, option = getattr(options, name), f"{'-' * (1 + (len(name) > 1))}{name}"
        if value is not None and value < 1:
            raise ValueError(f"{option} {value}: must be at least 1")
        if value is not None and value > most:
            raise ValueError(f"{option} {value}: must be at most {most}")
    if options.repeats is not None and not options.compare:
        raise ValueError("--repeats: counts the runs of --compare; add it or leave --repeats out")
    if options.auto is not None and options.source is not None:
        raise ValueError("--auto chooses settings, --from repeats those of a picture; leave one out")
    if options.methods is not None and not options.compare:
        raise ValueError("--methods: names what --compare draws by; add it, or use --method")
    for name in ("method", "image", "mask"):
        if options.compare and getattr(options, name) is not None:
            raise ValueError(f"--compare draws by every method; leave --{name} out")
    from hybrid.picture_files import describe_input, read_settings, unchanged

    source = None if options.source is None else read_settings(Path(options.source))
    arguments = {}
    for option, name in DRAWING.items():
        if getattr(options, option) is not None:
            arguments[name] = getattr(options, option)
    prompts, seed = _prompts(options), options.seed
    inputs = {
        name: describe_input(Path(getattr(options, name)))
        for name in ("image", "mask")
        if getattr(options, name) is not None
    }
    same = not (
        arguments
        or prompts
        or inputs
        or options.config
        or options.dtype
        or options.quantize
        or options.n
        or options.compare
    )
    if source is not None:
        same = same and seed in (None, source.seed)
        prompts = prompts or [source.prompt]
        seed = source.seed if seed is None else seed
        kept = {"negative_prompt": source.negative_prompt, "height": source.height, "width": source.width}
        arguments = {key: value for key, value in kept.items() if value is not None} | arguments
        for name in ("image", "mask"):
            given = getattr(source, name)
            if given is not None and name not in inputs and not options.compare:
                arguments[name] = str(unchanged(given, f"--{name}"))
                inputs[name] = given
    if not prompts and options.plan_memory:
        prompts = ["any"]  # only how many there are counts
    if not prompts:
        raise ValueError('no prompt; say what to draw, as in: hybrid-generate "a red apple"')
    if any(not prompt.strip() for prompt in prompts):
        raise ValueError("prompt: is empty; say what to draw")
    if len(inputs) == 1:
        raise ValueError(f"--{next(iter(inputs))}: in-painting takes --image and --mask together")
    config = options.config or (source.config if source else DEFAULT_CONFIG)
    return Request(
        prompts=[prompt for prompt in prompts for _ in range(options.n or 1)],
        seed=secrets.randbelow(2**31) if seed is None else seed,
        arguments=arguments,
        config=config,
        dtype=options.dtype or (source.dtype if source else "auto"),
        quantize=options.quantize or (source.quantize if source else None),
        scale=options.scale or (source.scale if source else 1),
        inputs=inputs,
        source=source,
        same=same,
    )


def _prompts(options: argparse.Namespace) -> list[str]:
    """Prompts of the command line and, after them, of the file."""
    prompts: list[str] = list(options.prompts)
    if options.prompts_file is not None:
        name = options.prompts_file
        try:
            text = sys.stdin.read() if name == "-" else Path(name).read_text(encoding="utf-8-sig")
        except FileNotFoundError:
            raise ValueError(f"--prompts-file {name}: no such file") from None
        except UnicodeDecodeError:
            raise ValueError(f"--prompts-file {name}: is not UTF-8 text") from None
        found = [line.strip() for line in text.splitlines() if line.strip()]
        if not found:
            raise ValueError(f"--prompts-file {name}: holds no prompt; put one on each line")
        prompts += found
    return prompts


if __name__ == "__main__":
    sys.exit(main())
