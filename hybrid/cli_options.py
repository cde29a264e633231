"""The options of ``hybrid-generate``. Nothing heavy is imported here, so that ``--help`` answers at once."""

from __future__ import annotations

import argparse
from difflib import get_close_matches
from typing import NoReturn

DEFAULT_CONFIG = "emoji"

EXAMPLES = """examples:
  hybrid-generate "a red apple"                          one picture, a-red-apple.png
  hybrid-generate "a red apple" -n 4 -o apples/          four of it, with seeds S, S+1, …
  hybrid-generate cat dog "hot air balloon" --compare    AR, hybrid and masked side by side, with times
  hybrid-generate sneaker --config fashion --method ar   another model, all tokens by its AR part
  hybrid-generate --from a-red-apple.png                 the same picture again
  hybrid-generate --from a-red-apple.png --seed 7        the same settings, another picture
  hybrid-generate "a red apple" --image in.png --mask mask.png   draw anew where the mask is white

A PNG keeps its settings (prompt, seed, model, everything drawn with) in its text chunk "hybrid"; JPEG and WebP do not.
Exit codes: 0 done, 2 a mistake in the request (one line says which), 130 interrupted.
"""


class UsageError(ValueError):
    """A mistake that argparse found."""


class Parser(argparse.ArgumentParser):
    """An argparse parser that raises its one line instead of printing the usage and leaving."""

    def error(self, message: str) -> NoReturn:
        """Raise ``UsageError``; an unknown option gets the nearest right name."""
        if message.startswith("unrecognized arguments: "):
            wrong = message.removeprefix("unrecognized arguments: ").split()[0].split("=")[0]
            known = [name for action in self._actions for name in action.option_strings]
            near = get_close_matches(wrong, known, n=1)
            message = f"unknown option {wrong}" + (f"; did you mean {near[0]}?" if near else "; see --help")
        raise UsageError(message)


def parser() -> Parser:
    """The parser. Defaults of what the pairing decides are None."""
    parser = Parser(
        prog="hybrid-generate",
        usage="%(prog)s PROMPT... [-n N] [-o FILE|DIR] [--method hybrid|ar|masked|…] [--seed S] [options]",
        description="Draw pictures: an AR model writes the first tokens, a masked model fills in the rest in parallel.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    what = parser.add_argument_group("what to draw")
    what.add_argument(
        "prompts",
        nargs="*",
        metavar="PROMPT",
        help="a caption or class; put several words in quotes, or they are several",
    )
    what.add_argument("--prompts-file", metavar="F", help="a prompt on each line; - reads standard input")
    what.add_argument("--negative-prompt", metavar="P", help="what guidance moves away from")
    what.add_argument("-n", type=int, metavar="N", help="pictures of each prompt (default: 1)")
    what.add_argument(
        "--seed", type=int, metavar="S", help="picture i has seed S + i (default: a random one, which is told)"
    )
    what.add_argument(
        "--from", dest="source", metavar="FILE.png", help="repeat a picture; other options override its own"
    )
    what.add_argument("--image", metavar="F", help="a picture to draw into (with --mask; the masked model draws)")
    what.add_argument("--mask", metavar="F", help="white where the picture is drawn anew, black where it stays")

    where = parser.add_argument_group("where it goes")
    where.add_argument(
        "-o",
        "--out",
        metavar="FILE|DIR",
        help=".png, .jpg or .webp, or a folder for numbered PNGs (default: PROMPT.png here, never over another file)",
    )
    where.add_argument("--scale", type=int, metavar="Z", help="save each pixel as Z x Z (default: 1)")
    where.add_argument("--json", action="store_true", help="one JSON object on standard output, and nothing else")
    where.add_argument("--quiet", action="store_true", help="no progress, no table")

    model = parser.add_argument_group("model")
    model.add_argument(
        "--config", metavar="NAME|YAML|FOLDER", help=f"emoji, fashion, or your own pairing (default: {DEFAULT_CONFIG})"
    )
    model.add_argument(
        "--device", metavar="D", default="auto", help="auto, cpu, cuda or mps (default: auto, the best there is)"
    )
    model.add_argument(
        "--dtype",
        metavar="T",
        help="auto (default: bf16 on CUDA, else fp32), fp32, bf16, fp16, ar=fp32,masked=bf16,decode=fp32, or fastest",
    )
    model.add_argument("--quantize", metavar="Q", help="int8 or int4 weights, refused where they change what is drawn")
    model.add_argument("--compile", action="store_true", help="compile the networks; pays off over many pictures only")
    model.add_argument(
        "--plan-memory",
        action="store_true",
        help="draw nothing; say what the pictures need, up to --batch at once, in bf16 unless --dtype says otherwise",
    )
    model.add_argument("--batch", type=int, default=16, metavar="B", help="pictures drawn at once (default: 16)")
    model.add_argument(
        "--max-memory",
        type=float,
        metavar="GB",
        help="draw as many at once, up to --batch, as fit; on CUDA move layers to main memory where not one does",
    )

    how = parser.add_argument_group("how to draw (defaults: the model's own)")
    how.add_argument("--auto", metavar="REPORT", help="settings that a report of hybrid-bench run recommends")
    how.add_argument("--quality", type=float, metavar="Q", help="with --auto: least share of the AR's fidelity (0.95)")
    how.add_argument("--max-ms", type=float, metavar="MS", help="with --auto: most milliseconds of a request")
    how.add_argument("--method", metavar="M", help="hybrid, ar, masked, refined, exact, relaxed, jacobi or zipar")
    how.add_argument("--ar-fraction", type=float, metavar="F", help="share of the tokens by the AR model, 0 to 1")
    how.add_argument("--ar-tokens", type=int, metavar="N", help="the same as a number of tokens")
    how.add_argument("--steps", type=int, metavar="S", help="passes of the masked model")
    how.add_argument("--schedule", metavar="NAME", help="places per pass: root, linear, square, cosine, arccos, halton")
    how.add_argument("--resume", metavar="NAME", help="schedule after the AR part: remaining, continue")
    how.add_argument("--order", metavar="NAME", help="places first: confidence, spread, halton, random, raster")
    how.add_argument("--noise", type=float, metavar="X", help="Gumbel noise of confidence, of spread a pass to come")
    how.add_argument(
        "--reuse", type=int, metavar="R", help="known places are read again every R passes only; above 1 is approximate"
    )
    how.add_argument("--rounds", type=int, metavar="R", help="refined: times the AR model says what is drawn anew")
    how.add_argument("--redraw", type=float, metavar="F", help="refined: share drawn anew each time, 0 to 1")
    how.add_argument("--window", type=int, metavar="W", help="exact, relaxed, jacobi: longest draft; zipar: columns")
    how.add_argument("--relax", type=float, metavar="X", help="relaxed: distance from the AR model's choice, 0 to 1")
    how.add_argument("--draft", metavar="WHO", help="relaxed: who drafts: masked, or jacobi (the AR model itself)")
    how.add_argument("--guidance", type=float, metavar="G", help="classifier-free guidance scale; 1 is none")
    how.add_argument("--guidance-kind", metavar="NAME", help="guidance over time: constant, linear, interval, decay")
    how.add_argument(
        "--guidance-floor",
        type=float,
        metavar="P",
        help="no code below this share of the likeliest unguided one; 0 is off",
    )
    how.add_argument("--temperature", type=float, metavar="T", help="0 is argmax")
    how.add_argument("--top-k", type=int, metavar="K", help="draw among the K likeliest codes; 0 is off")
    how.add_argument("--top-p", type=float, metavar="P", help="draw among the likeliest codes of mass P; 1 is off")
    how.add_argument(
        "--height", type=int, metavar="H", help="pixels, with --width; what the model was not trained on may fail"
    )
    how.add_argument("--width", type=int, metavar="W", help="pixels")
    how.add_argument("--tile", type=int, metavar="P", help="decode large pictures in tiles of P x P pixels; not exact")

    versus = parser.add_argument_group("comparing")
    versus.add_argument(
        "--compare", action="store_true", help="the same seeds by AR, hybrid and masked, with times and speed-ups"
    )
    versus.add_argument(
        "--methods",
        metavar="LIST",
        help="what --compare draws by (default: ar,hybrid,masked; also refined,exact,relaxed,jacobi,zipar)",
    )
    versus.add_argument("--repeats", type=int, metavar="R", help="timed runs of each method (default: 3)")
    parser.add_argument("--version", action="store_true", help="print the version")
    return parser
