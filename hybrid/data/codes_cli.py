"""`hybrid-data codes`: pictures of one's own to code shards. Parses, loads, calls, shows progress."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hybrid.data.folder import DataError

if TYPE_CHECKING:
    import torch
    from rich.console import Console

    from hybrid.data.extract import Asked, Plan
    from hybrid.types import Grid

TOKENIZERS = ("llamagen-vq", "chameleon-vq", "movqgan", "maskgit-vq", "fsq")
SOURCES = """a folder of pictures (class sub-folders, NAME.txt captions, or a metadata.jsonl with file_name and text),
WebDataset .tar files or a folder of them, a folder that datasets' save_to_disk wrote, or hf://NAME of the hub"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("source", nargs="+", metavar="SOURCE", help=SOURCES)
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to write; an interrupted run goes on")
    parser.add_argument(
        "--tokenizer",
        required=True,
        metavar="KIND:FILE[:CONFIG]",
        help=f"{', '.join(TOKENIZERS)} or an installed adapter; CONFIG is a size's name, a YAML file or {{…}}",
    )
    shape = parser.add_mutually_exclusive_group()
    shape.add_argument("--size", type=int, default=256, metavar="PIXELS", help="square crops of this side (256)")
    shape.add_argument(
        "--buckets", type=int, metavar="PIXELS", help="crops of nearest aspect ratio, of about PIXELS² area"
    )
    parser.add_argument("--bucket-step", type=int, metavar="PIXELS", help="sides are multiples of it (one token)")
    parser.add_argument("--max-ratio", type=float, metavar="R", help="longer side over shorter (2)")
    parser.add_argument("--flip", action="store_true", help="encode the mirrored crop, too")
    parser.add_argument(
        "--ten-crop",
        type=float,
        nargs="+",
        default=[],
        metavar="SCALE",
        help="centre, corners and their mirrors of SCALE times the size (LlamaGen: 1.1 1.05)",
    )
    parser.add_argument(
        "--text",
        metavar="KIND[:FOLDER[:CONFIG]]",
        help="embed captions: minilm, or t5:FOLDER (default: training does, by minilm)",
    )
    parser.add_argument("--ask-by", choices=("label", "captions"), help="default: captions where there are some")
    parser.add_argument("--caption-key", metavar="NAME", help="field of captions (text, caption or captions)")
    parser.add_argument("--label-key", metavar="NAME", help="field of the class number (label)")
    parser.add_argument("--split", metavar="NAME", help="split of a Hugging Face dataset")
    parser.add_argument("--held-out", type=float, default=0.01, metavar="SHARE", help="never trained on (0.01)")
    parser.add_argument("--shard-size", type=int, default=4096, metavar="N", help="pictures of a shard (4096)")
    parser.add_argument("--part", default="1/1", metavar="I/N", help="of N processes this is the I-th, from 1")
    parser.add_argument("--batch", type=int, default=32, metavar="N", help="crops per forward pass (32)")
    parser.add_argument("--workers", type=int, default=4, metavar="N", help="threads that read pictures (4)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, …")
    parser.add_argument("--skip-bad", action="store_true", help="leave out and count what cannot be used")


def run(options: argparse.Namespace) -> str:
    """Extract, and say in a line what there is now.

    Raises:
        DataError: one line about what is wrong.
    """
    part = parse_part(options.part)
    for name in ("size", "buckets", "bucket_step", "shard_size", "batch", "workers"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            raise DataError(f"--{name.replace('_', '-')} {getattr(options, name)}: must be at least 1")
    for name in ("bucket_step", "max_ratio"):
        if options.buckets is None and getattr(options, name) is not None:
            raise DataError(f"--{name.replace('_', '-')}: belongs to --buckets; add it or leave this out")
    if not 0 <= options.held_out < 1:
        raise DataError(f"--held-out {options.held_out:g}: must be a share, at least 0 and below 1")
    import torch
    from rich.console import Console
    from rich.logging import RichHandler

    from hybrid.data.extract import extract
    from hybrid.data.images import open_source
    from hybrid.data.shard_text import TextFormat
    from hybrid.request import find_device

    console = Console(stderr=True, soft_wrap=True)
    handler = RichHandler(console=console, show_time=False, show_path=False)
    logging.getLogger("hybrid").addHandler(handler)
    try:
        source = open_source(options.source, shard_size=options.shard_size, split=options.split, keys=_keys(options))
        device = find_device(options.device)
        tokenizer, named = load_named(options.tokenizer, "--tokenizer", device)
        plan = make_plan(options, source, tokenizer)
        encoder, text = None, None
        if options.text is not None and plan.asked_by == "captions":
            encoder, read = load_named(options.text, "--text", device)
            if not hasattr(encoder, "encode") or hasattr(encoder, "codebook_kd"):
                raise DataError(f"--text {options.text}: embeds no captions; use minilm or t5:FOLDER")
            text = TextFormat.of(encoder, read["kind"], read["config"] or {})
        elif options.text is not None:
            raise DataError(
                f"--text {options.text}: pictures of {source.name} are asked by label, they have no captions"
            )
        with _progress(console, len(source)) as report:
            found = extract(
                source,
                tokenizer,
                Path(options.out),
                plan,
                tokenizer_kind=named,
                encoder=encoder,
                text=text,
                part=part,
                batch=options.batch,
                workers=options.workers,
                skip_bad=options.skip_bad,
                report=report,
            )
    except torch.OutOfMemoryError:
        raise DataError(f"--batch {options.batch}: the device's memory is too small; give a smaller one") from None
    except ValueError as error:
        raise DataError(str(error)) from None
    finally:
        logging.getLogger("hybrid").removeHandler(handler)
    grids = ", ".join(f"{count} of {grid}" for grid, count in found["pictures"].items() if count)
    shards = f"{found['finished']} of {len(source)} shards"
    held = f"{found['held']} held out, {found['skipped']} left out"
    return f"{options.out}: {shards}, {sum(found['pictures'].values())} pictures ({grids}; {held})"


def parse_part(text: str) -> tuple[int, int]:
    """``2/8`` as (2, 8).

    Raises:
        DataError: anything else.
    """
    first, _, parts = text.partition("/")
    if not (first.isdecimal() and parts.isdecimal() and 1 <= int(first) <= int(parts)):
        raise DataError(f"--part {text}: expected I/N with I from 1 to N, such as 2/8")
    return int(first), int(parts)


def load_named(text: str, option: str, device: str | torch.device) -> tuple[Any, dict[str, Any]]:
    """The module that KIND[:FILE[:CONFIG]] names, and its kind, file and configuration.

    Raises:
        ValueError: what cannot be loaded; the message is one line.
    """
    import yaml

    from hybrid.adapters import load
    from hybrid.config import read_yaml

    kind, weights, config = (*text.split(":", 2), "", "")[:3]
    if option != "--text" and not weights:
        raise DataError(f"{option} {text}: expected KIND:FILE[:CONFIG], such as llamagen-vq:vq_ds16_c2i.pt:VQ-16")
    settings: str | Mapping[str, Any] | None = config or None
    if config.startswith("{"):
        try:
            settings = yaml.safe_load(config)
        except yaml.YAMLError:
            raise DataError(f"{option} {text}: {config} is no YAML mapping") from None
    elif config.endswith((".yaml", ".yml")):
        settings = read_yaml(Path(config))
    try:
        module = load(kind, weights or None, settings, device=device)
    except OSError as error:
        told = f"{weights}: {error.strerror}" if error.strerror else str(error)  # one without strerror names the file
        raise DataError(f"{option}: {told}") from None
    return module, {"kind": kind, "file": Path(weights).name, "config": settings}


def make_plan(options: argparse.Namespace, source: Any, tokenizer: Any) -> Plan:
    """Grids, views and how pictures are asked, from the options.

    Raises:
        ValueError: sizes that the tokenizer cannot cut into tokens, or views that contradict each other.
    """
    from hybrid.data.buckets import Views, bucket_grids
    from hybrid.data.extract import Plan
    from hybrid.request import MOST_PIXELS
    from hybrid.types import Grid

    factor = getattr(tokenizer, "factor", None)
    if factor is None:
        raise DataError(f"--tokenizer {options.tokenizer}: has no factor (pixels per token and side)")
    pixels, name = (options.size, "--size") if options.buckets is None else (options.buckets, "--buckets")
    step = options.bucket_step or factor
    for option, value in ((name, pixels), ("--bucket-step", step)):
        if not factor <= value <= MOST_PIXELS:
            raise DataError(f"{option} {value}: must be {factor} to {MOST_PIXELS} pixels")
        if value % factor:
            raise DataError(f"{option} {value}: must be a multiple of the tokenizer's {factor} pixels per token")
    if options.buckets is not None:
        grids: list[Grid] = bucket_grids(
            pixels // factor, step=step // factor, ratio=2.0 if options.max_ratio is None else options.max_ratio
        )
    else:
        grids = [Grid(pixels // factor, pixels // factor)]
    return Plan(
        grids=tuple(grids),
        views=Views(flip=options.flip, ten_crop=tuple(options.ten_crop)),
        asked_by=_asked_by(options, source),
        held_out=options.held_out,
        shard_size=options.shard_size,
    )


def _asked_by(options: argparse.Namespace, source: Any) -> Asked:
    """Label or captions, as said or as the first picture has it.

    Raises:
        DataError: pictures without either, or a field is named that nothing would be read from.
    """
    from hybrid.data.extract import asked_by

    asked: Asked = options.ask_by or asked_by(source)
    if options.caption_key is not None and asked == "label":
        why = "--ask-by label reads none" if options.ask_by else f"the first picture of {source.name} has a class only"
        raise DataError(f"--caption-key {options.caption_key}: {why}; mend the name or leave it out")
    if options.label_key is not None and asked == "captions":
        raise DataError(
            f"--label-key {options.label_key}: pictures of {source.name} are asked by captions; add --ask-by label or "
            "leave it out"
        )
    return asked


def _keys(options: argparse.Namespace) -> Any:
    from hybrid.data.images import CAPTION_KEYS, LABEL_KEYS, Keys

    captions = (options.caption_key,) if options.caption_key else CAPTION_KEYS
    return Keys(captions, (options.label_key,) if options.label_key else LABEL_KEYS)


@contextmanager
def _progress(console: Console, shards: int) -> Iterator[Callable[[int, int], None]]:
    """A bar over shards on a terminal, else a line for each shard that begins."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    seen: set[int] = set()
    columns = (TextColumn("shard {task.fields[shard]}"), BarColumn(), TextColumn("{task.fields[pictures]:,} pictures"))
    with Progress(
        *columns, TimeElapsedColumn(), console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("", total=shards, shard="–", pictures=0)

        def report(shard: int, pictures: int) -> None:
            if shard not in seen and not console.is_terminal:
                console.print(f"shard {shard + 1} of {shards}, {pictures - 1:,} pictures so far")
            seen.add(shard)
            bar.update(task, completed=shard, shard=f"{shard + 1}/{shards}", pictures=pictures)

        yield report
