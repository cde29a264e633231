"""What ``hybrid-generate`` does once its request is checked: load, draw or compare with progress, save, show."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from hybrid import __version__
from hybrid.budget import Budget
from hybrid.cli_memory import find_budget
from hybrid.compare import DEFAULT_METHODS, METHODS, compare_picture, load_note, race
from hybrid.dtypes import find_types
from hybrid.pairing import INDEX
from hybrid.picture_files import PictureSettings, write_picture
from hybrid.pipeline import HybridPipeline
from hybrid.request import as_defaults, carried_over, find_device
from hybrid.types import FROM_AR, FROM_INPUT, PHASES, Generation

if TYPE_CHECKING:
    from hybrid.cli import Request

PHASE_NAMES = {
    "prefix": "AR prefix",
    "fill": "masked fill",
    "draft": "masked drafts",
    "verify": "AR verification",
    "score": "AR scoring",
    "refill": "masked refill",
}
STEP_NAMES = {"prefix": "AR rows", "fill": "masked passes", "verify": "tokens", "refill": "refinement passes"}


class _Steps:
    """Bars of one run, made when a phase first tells of itself."""

    def __init__(self, progress: Progress, loading: TaskID) -> None:
        self.progress, self.loading = progress, loading
        self.bars: dict[str, TaskID] = {}

    def loaded(self) -> None:
        self.progress.update(self.loading, visible=False)

    def restart(self, note: str) -> None:
        """Begin the next batch."""
        for bar in self.bars.values():
            self.progress.remove_task(bar)
        self.bars.clear()
        if note:
            self.bar(note, 0, None)

    def bar(self, name: str, done: int, total: int | None) -> None:
        if name not in self.bars:
            self.bars[name] = self.progress.add_task(name, total=total)
        self.progress.update(self.bars[name], completed=done)

    def __call__(self, pipe: HybridPipeline, index: int, phase: str, told: dict[str, Any]) -> None:
        self.bar(STEP_NAMES[phase], index, told["step"].total)


@contextmanager
def _progress(options: argparse.Namespace, config: str) -> Iterator[_Steps]:
    """Progress on standard error, where that is a terminal."""
    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(30), MofNCompleteColumn())
    shown = console.is_terminal and not options.quiet
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=True, disable=not shown) as progress:
        yield _Steps(progress, progress.add_task(f"loading {Path(config).name}", total=None))


def _load(options: argparse.Namespace, request: Request, budget: Budget | None = None) -> HybridPipeline:
    places: dict[str, Any] = {}
    if budget is not None and budget.layers is not None:
        from accelerate.utils import get_max_memory

        main = find_device(options.device).index or 0
        places = {"device_map": "auto", "max_memory": {**get_max_memory(), main: budget.layers}}
    pipe = HybridPipeline.from_pretrained(
        request.config,
        device=options.device,
        dtype=request.dtype,
        compile=options.compile,
        quantize=request.quantize,
        auto=options.auto,
        quality=options.quality,
        max_ms=options.max_ms,
        **places,
    )
    if request.source is not None:
        pipe.defaults = carried_over(request.source.drawing, pipe.defaults)
    return pipe


def draw(options: argparse.Namespace, request: Request, files: Sequence[Path]) -> int:
    """Draw and save each picture, batch by batch, then show the sums."""
    seconds: Counter[str] = Counter()
    passes: Counter[str] = Counter()
    tokens: Counter[str] = Counter()
    saved: list[PictureSettings] = []
    lossy = None
    budget = find_budget(options, request)
    batch = options.batch if budget is None else budget.batch
    with _progress(options, request.config) as steps:
        pipe = _load(options, request, budget)
        steps.loaded()
        for start in range(0, len(files), batch):
            prompts = request.prompts[start : start + batch]
            last = start + len(prompts)
            steps.restart(f"pictures {start + 1} to {last} of {len(files)}" if len(files) > batch else "")
            result = pipe(prompts, seed=request.seed + start, callback_on_step_end=steps, **request.arguments)
            for place, path in enumerate(files[start:last]):
                settings = _settings(pipe, request, result, place, prompts[place])
                write_picture(result.images[place], path, settings, scale=request.scale)
                saved.append(settings)
            seconds.update(result.phases.seconds)
            passes.update(result.phases.passes)
            tokens.update(_origins(result))
            lossy = result.lossy
    repeated = None
    if request.source is not None and request.same:
        repeated = saved[0].tokens_sha256 == request.source.tokens_sha256
    report = {
        "version": __version__,
        "model": pipe.name,
        "pictures": [
            {"file": str(path), "prompt": one.prompt, "seed": one.seed} for path, one in zip(files, saved, strict=True)
        ],
        "files": [str(path) for path in files],
        "settings": _shared(saved[0]),
        "seconds": {phase: round(seconds[phase], 4) for phase in PHASES} | {"total": round(sum(seconds.values()), 4)},
        "passes": {phase: passes[phase] for phase in PHASES},
        "tokens": {origin: tokens[origin] for origin in ("given", "ar", "masked")},
        "lossy": lossy,
        "repeated": repeated,
    }
    if options.json:
        print(json.dumps(report, ensure_ascii=False, indent=1))
    elif not options.quiet:
        _show(report, saved[0], files)
    if repeated is False:
        note = "the tokens differ from the repeated picture's (other weights, version, device or batch size)"
        Console(stderr=True).print(Text(f"hybrid-generate: note: {note}"), soft_wrap=True)
    return 0


def _origins(result: Generation) -> dict[str, int]:
    origin = result.origin
    counts = {"given": origin == FROM_INPUT, "ar": origin == FROM_AR, "masked": origin > FROM_AR}
    return {name: int(where.sum()) for name, where in counts.items()}


def _settings(pipe: HybridPipeline, request: Request, result: Generation, place: int, prompt: str) -> PictureSettings:
    """What repeats one picture of a result."""
    picture, told = result.images[place], result.settings
    tokens = result.tokens[place].to("cpu", torch.int32).numpy().astype("<i4")
    local = Path(request.config).expanduser()
    is_local = local.is_file() or (local / INDEX).is_file()
    return PictureSettings(
        version=__version__,
        config=str(local.resolve()) if is_local else request.config,
        prompt=prompt,
        negative_prompt=told["negative_prompt"],
        seed=told["seeds"][place],
        height=picture.height,
        width=picture.width,
        drawing=as_defaults(told, pipe.defaults),
        dtype=str(find_types(told["dtype"], pipe.device)),
        quantize=pipe.quantized,
        device=pipe.device.type,
        scale=request.scale,
        tokens_sha256=hashlib.sha256(tokens.tobytes()).hexdigest(),
        **request.inputs,
    )


def _shared(settings: PictureSettings) -> dict[str, Any]:
    """Settings that all pictures of a request share."""
    return settings.model_dump(exclude={"prompt", "seed", "tokens_sha256"})


def _show(report: dict[str, Any], settings: PictureSettings, files: Sequence[Path]) -> None:
    """The small table, then the files."""
    out = Console(highlight=False)
    seeds = [picture["seed"] for picture in report["pictures"]]
    count = "1 picture" if len(files) == 1 else f"{len(files)} pictures"
    seed = f"seed {seeds[0]}" if len(files) == 1 else f"seeds {seeds[0]} to {seeds[-1]}"
    drawing = settings.drawing
    method = f"hybrid, {drawing.ar_fraction:.0%} AR" if drawing.method == "hybrid" else drawing.method
    where = f"{settings.device} {settings.dtype}"
    line = f"{report['model']}: {count} of {settings.width}x{settings.height}, {method}, {seed}, {where}"
    out.print(Text(line), soft_wrap=True)
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for name, side in (("phase", "left"), ("seconds", "right"), ("share", "right"), ("forward passes", "right")):
        table.add_column(name, justify=side, no_wrap=True)  # type: ignore[arg-type]
    total = report["seconds"]["total"]
    for phase in PHASES:
        spent, passes = report["seconds"][phase], report["passes"][phase]
        if passes or spent >= 5e-4:
            share = f"{spent / total:.0%}" if total else ""
            table.add_row(PHASE_NAMES.get(phase, phase), f"{spent:.3f}", share, str(passes or ""))
    table.add_row("total", f"{total:.3f}", "", str(sum(report["passes"].values())))
    out.print(table)
    tokens = report["tokens"]
    names = {"given": "given", "ar": "by the AR model", "masked": "by the masked model"}
    parts = [f"{tokens[origin]} {name}" for origin, name in names.items() if tokens[origin]]
    out.print(Text("tokens: " + ", ".join(parts)), soft_wrap=True)
    if report["lossy"]:
        out.print(Text(f"lossy: {report['lossy']}"), soft_wrap=True)
    for path in files:
        out.print(Text(str(path)), soft_wrap=True)


def compare(options: argparse.Namespace, request: Request, path: Path) -> int:
    """Race the methods, save the labelled picture, print times and speed-ups."""
    if len(request.prompts) > options.batch:
        count = len(request.prompts)
        raise ValueError(f"--compare draws all {count} pictures at once; give fewer, or --batch {count}")
    if options.max_memory is not None:
        raise ValueError("--max-memory: draws in turns, which --compare does not; leave one out")
    load = load_note()
    with _progress(options, request.config) as steps:
        pipe = _load(options, request)
        steps.loaded()
        lanes = race(
            pipe,
            request.prompts,
            {**request.arguments, "seed": request.seed},
            methods=options.methods.split(",") if options.methods else DEFAULT_METHODS,
            repeats=options.repeats or 3,
            tell=lambda method, done, total: steps.bar("runs", done, total),
        )
    places = lanes[0].result.grid.places
    pictures = "1 picture" if len(request.prompts) == 1 else f"{len(request.prompts)} pictures at once"
    where = f"{pipe.device.type} {lanes[0].result.settings['dtype']}"
    threads = torch.get_num_threads()
    if pipe.device.type == "cpu":
        where += f", {threads} thread{'s' if threads > 1 else ''}"
    title = f"{pipe.name}: {pictures}, {places} tokens each, {where}"
    labels = [(prompt, f"seed {request.seed + place}") for place, prompt in enumerate(request.prompts)]
    write_picture(compare_picture(lanes, labels, title), path, scale=options.scale or 1)
    baseline = lanes[0].median
    methods = {
        lane.method: {
            "seconds": round(lane.median, 4),
            "runs": [round(value, 4) for value in lane.seconds],
            "speedup": round(baseline / lane.median, 3),
            "passes": dict(lane.result.phases.passes),
            "tokens": _origins(lane.result),
            "settings": as_defaults(lane.result.settings, pipe.defaults).model_dump(),
        }
        for lane in lanes
    }
    if options.json:
        shared = {"model": pipe.name, "prompts": request.prompts, "seed": request.seed, "device": where}
        report = {"version": __version__, "files": [str(path)], **shared, "load": load, "methods": methods}
        print(json.dumps(report, ensure_ascii=False, indent=1))
        return 0
    if options.quiet:
        return 0
    out = Console(highlight=False)
    out.print(Text(title), soft_wrap=True)
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for number, name in enumerate(("method", "seconds (median)", "slowest", "speed-up over AR", "forward passes")):
        table.add_column(name, justify="right" if number else "left", no_wrap=True)
    for lane in lanes:
        speedup = f"{baseline / lane.median:.2f}×"
        passes = lane.passes.removesuffix(" passes")
        table.add_row(METHODS[lane.method], f"{lane.median:.3f}", f"{max(lane.seconds):.3f}", speedup, passes)
    out.print(table)
    runs = len(lanes[0].seconds)
    out.print(Text(f"{runs} timed run{'s' if runs > 1 else ''} of each after one to warm up; {load}"), soft_wrap=True)
    out.print(Text(str(path)), soft_wrap=True)
    return 0
