"""``hybrid-recode KIND:FILE --from TOKENIZER --to TOKENIZER --data FOLDER -o OUT.safetensors``: a network carried over
to another tokenizer's codes, ready to be trained on."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from hybrid.cli_options import Parser

BATCH = 64
TASKS = {"llamagen": "ar", "maskgil": "masked", "unified": "unified"}
"""The kinds of network that can be carried over, and the task that trains each."""
PICTURES = 4096


def main(argv: list[str] | None = None) -> int:
    """Entry point. Returns 0, or 2 after one line about a mistake."""
    parser = Parser(
        prog="hybrid-recode",
        description="Carry a network over to another tokenizer's codes: each new code begins as the mean of the old "
        "ones that stand in its place in training pictures.",
        epilog="Train it with hybrid-train --init OUT. Untrained, it draws badly.",
    )
    named = "KIND:FILE[:CONFIG]"
    parser.add_argument("network", metavar=named, help=f"the network: {', '.join(TASKS)}")
    parser.add_argument("--from", dest="old", required=True, metavar=named, help="the tokenizer that it knows")
    parser.add_argument("--to", dest="new", required=True, metavar=named, help="the tokenizer that it is to know")
    parser.add_argument("--data", type=Path, required=True, help="a data folder with pictures (hybrid-data)")
    parser.add_argument(
        "--pictures", type=int, default=PICTURES, metavar="N", help=f"training pictures to look at ({PICTURES})"
    )
    parser.add_argument("-o", "--out", type=Path, required=True, help="the .safetensors file to write")
    from hybrid.data.folder import DataError

    try:
        arguments = parser.parse_args(argv)
        return run(**vars(arguments))
    except (ValueError, OSError, DataError) as error:
        print(f"hybrid-recode: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


def run(network: str, old: str, new: str, data: Path, pictures: int, out: Path) -> int:
    """Read, count, carry over and write.

    Raises:
        ValueError: files that cannot be read, another kind of network, a network of other codes than ``old``'s,
            tokenizers of different grids, or an output that is no safetensors file or one of the inputs.
        DataError: an argument of another form, or a folder without training pictures.
    """
    from rich.console import Console
    from rich.progress import track

    from hybrid.checkpoint import require_output, save_weights
    from hybrid.data.codes_cli import load_named
    from hybrid.data.folder import DataError, DataFolder
    from hybrid.data.splits import pick, spread
    from hybrid.recode import recode, shared_places
    from hybrid.tasks_build import build_model

    if pictures < 1:
        raise DataError(f"--pictures {pictures}: must be at least 1")
    require_output(out, [Path(text.split(":")[1]) for text in (network, old, new) if ":" in text])
    kind = network.split(":")[0]
    if kind not in TASKS or not network.partition(":")[2]:
        raise DataError(f"{network}: expected KIND:FILE[:CONFIG] with a KIND of {', '.join(TASKS)}")
    model, _ = load_named(network, "network", "cpu")
    first, _ = load_named(old, "--from", "cpu")
    second, _ = load_named(new, "--to", "cpu")
    for option, text, tokenizer in (("--from", old, first), ("--to", new, second)):
        if not hasattr(tokenizer, "codebook_kd"):
            raise DataError(f"{option} {text}: is no tokenizer of pictures")
    known, wanted = len(first.codebook_kd), len(second.codebook_kd)
    if model.codebook_size != known:
        raise ValueError(f"{network}: knows {model.codebook_size} codes, but --from {old} has {known}")
    folder = DataFolder.open(data)
    chosen = spread(pick(folder, "train", None), pictures)
    console = Console(stderr=True)
    batches = track(
        _batches(folder, chosen.tolist()),
        "reading pictures",
        total=-(-len(chosen) // BATCH),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    counts = shared_places(first, second, batches)
    state = recode(model.state_dict(), counts)
    fields = {**model.config, "vocab_size": wanted}
    build_model(TASKS[kind], kind, fields)[0].load_state_dict(state)  # what is written is what hybrid-train will build
    save_weights(out, state, metadata={"kind": kind, "config": fields})
    unseen = int((counts.sum(1).to_dense() == 0).sum())
    print(
        f"{out}: {kind} of {wanted} codes instead of {known}, by {len(chosen)} pictures"
        + (f", in which {unseen} codes never stand" if unseen else "")
    )
    return 0


def _batches(folder: Any, places: list[int]) -> Iterator[Tensor]:
    from hybrid.data.codes import to_images

    for start in range(0, len(places), BATCH):
        yield to_images(folder.images[places[start : start + BATCH], 0])


if __name__ == "__main__":
    sys.exit(main())
