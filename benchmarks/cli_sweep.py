"""``hybrid-bench run``, ``compare``, ``recommend`` and ``sample``: parse, call, show."""

from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path
from typing import Any

from hybrid.threads import use_threads


def add_commands(commands: Any) -> None:
    """Add the four commands to ``hybrid-bench``."""
    run = commands.add_parser(
        "run",
        help="sweep settings: speed against fidelity",
        description="Measure every point of a sweep and write report.json, report.md and report.html. "
        "After an interruption the same command goes on where it was.",
    )
    run.add_argument("config", metavar="CONFIG", help="a YAML file, or a shipped one's name (bench-fashion)")
    run.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of rows and report")
    run.add_argument(
        "--only", choices=("fidelity", "fid", "speed", "report"), help="one stage; report only writes it anew"
    )
    run.add_argument("--again", action="store_true", help="throw away the old rows of these stages first")
    run.add_argument("--data", type=Path, metavar="DIR", help="data folder (default: what CONFIG says)")
    run.add_argument("--device", default="cpu", help="auto, cpu, cuda, mps (cpu)")
    run.add_argument("--threads", type=int, help="CPU threads")
    run.set_defaults(call=_run)

    compare = commands.add_parser(
        "compare",
        help="what changed between two reports, and what is noise",
        description="Differences between two reports with 95 % intervals; where one holds 0, it is noise.",
    )
    compare.add_argument("before", type=Path, metavar="A", help="report.json or its folder")
    compare.add_argument("after", type=Path, metavar="B", help="report.json or its folder")
    compare.add_argument("--all", action="store_true", help="show noise too")
    compare.set_defaults(call=_compare)

    recommend = commands.add_parser(
        "recommend",
        help="settings from a report",
        description="The fastest settings that are good enough, or the best that are fast enough.",
    )
    recommend.add_argument("report", type=Path, metavar="REPORT", help="report.json or its folder")
    recommend.add_argument("--min-fidelity", type=float, metavar="F", help="least fidelity; 1 is the AR model's")
    recommend.add_argument("--max-ms", type=float, metavar="MS", help="most milliseconds of one request (median)")
    recommend.add_argument("--batch", type=int, metavar="N", help="pictures a request (default: the report's first)")
    recommend.add_argument("--json", action="store_true", help="print JSON")
    recommend.set_defaults(call=_recommend)

    sample = commands.add_parser(
        "sample",
        help="draw many pictures for an evaluation suite (.npz, PNGs)",
        description="Draw N pictures into samples.npz in ADM's layout and PNGs. Under torchrun --nproc-per-node W the "
        "processes share the work; the pictures are the same whatever W. The same command goes on where it was.",
    )
    sample.add_argument("pair", help="an embedded pair, a folder, a YAML file or a shipped name")
    sample.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the pictures")
    sample.add_argument("-n", type=int, required=True, metavar="N", help="pictures")
    sample.add_argument("--prompts", type=Path, metavar="FILE", help="a prompt a line (default: every class in turn)")
    sample.add_argument("--settings", default="{}", metavar="JSON", help="arguments of HybridPipeline, for example "
                        '\'{"ar_fraction": 0.25, "steps": 8}\'')  # fmt: skip
    sample.add_argument("--seed", type=int, default=0, help="picture i has seed + i (0)")
    sample.add_argument("--dtype", default="auto", help="auto, fp32, bf16 or fp16 (auto)")
    sample.add_argument("--cpu", action="store_true", help="do not use CUDA")
    sample.set_defaults(call=_sample)


def _run(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from hybrid.request import find_device
    from hybrid.tasks_build import find_config

    from .points import read_sweep
    from .publish import publish
    from .sweep import STAGES, Runner

    if arguments.only == "report" and arguments.again:
        raise ValueError("--again: throws rows away, and --only report measures none; leave one of them out")
    use_threads(arguments.threads)
    console = Console(stderr=True)
    if arguments.only == "report":
        _end(arguments.out, publish(arguments.out))
        return 0
    sweep = read_sweep(find_config(arguments.config, "bench"))
    stages = STAGES if arguments.only is None else (arguments.only,)
    device = find_device(arguments.device)
    with Bars(console) as bars:
        runner = Runner(sweep, arguments.out, data=arguments.data, device=device, told=bars.inside)
        for what, done, total in runner.jobs(stages, again=arguments.again):
            bars.job(what, done, total)
    _end(arguments.out, publish(arguments.out))
    return 0


class Bars:
    """Two bars: jobs with the time that remains, and what the present job does. Plain lines where output is no
    terminal."""

    def __init__(self, console: Any) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.console = console
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        # The estimate looks back over whole jobs, which take minutes.
        self._bars = Progress(*columns, console=console, disable=not console.is_terminal, speed_estimate_period=3600)
        self._jobs: Any = None
        self._inside: Any = None

    def __enter__(self) -> Bars:
        self._bars.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._bars.stop()

    def job(self, what: str, done: int, total: int) -> None:
        """The next job."""
        if not self.console.is_terminal:
            self.console.print(f"{done}/{total} {what}", highlight=False)
            return
        if self._jobs is None:
            self._jobs = self._bars.add_task("points", total=total, completed=done)
        self._bars.update(self._jobs, completed=done, description=what)

    def inside(self, what: str, done: int, total: int) -> None:
        """Progress of the present job."""
        if self._inside is None:
            self._inside = self._bars.add_task(what, total=total)
        self._bars.update(self._inside, description=f"  {what}", completed=done, total=total)


def _end(out: Path, report: Any) -> None:
    from .tables import number, seconds, warnings

    for warning in warnings(report):
        print(warning)
    if report["baseline"]["choice"]:
        print(f"baseline: {report['baseline']['label']}, the best of {len(report['baseline']['choice'])} settings")
    for row in report["rows"]:
        if row["region"] == "all":
            times = f"{seconds(row['median'])}, {number(row['speedup'])}x AR" if row["median"] else "no times"
            fidelity = (
                ""
                if row["fidelity"] is None
                else f", Fréchet {number(row['frechet'])}, fidelity {number(row['fidelity'])}"
            )
            print(f"{row['label']}: {times}{fidelity}")
    print(out / "report.html")


def _compare(arguments: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.table import Table

    from hybrid.recommend import read_report

    from .differences import compare

    found = compare(read_report(arguments.before), read_report(arguments.after))
    shown = [one for one in found.differences if arguments.all or not one.noise]
    console = Console()
    if shown:
        table = Table("point", "region", "figure", "A", "B", "B - A", "95 % interval", "")
        for one in shown:
            step = f"{one.after - one.before:+.3g}"
            cells = [one.label, one.region, one.figure, f"{one.before:.4g}", f"{one.after:.4g}", step]
            table.add_row(*cells, f"[{one.low:.3g}, {one.high:.3g}]".replace("[", "\\["), "noise" if one.noise else "")
        console.print(table)
    quiet = sum(one.noise for one in found.differences)
    print(f"{len(found.differences)} figures compared: {len(found.differences) - quiet} differ, {quiet} are noise")
    for name, labels in (("A", found.only_before), ("B", found.only_after)):
        if labels:
            print(f"only in {name}: {'; '.join(labels)}")
    for note in found.notes:
        print(note)
    return 0


def _recommend(arguments: argparse.Namespace) -> int:
    from dataclasses import asdict

    from hybrid.cli_options import DEFAULT_CONFIG
    from hybrid.recommend import recommend

    choice = recommend(arguments.report, quality=arguments.min_fidelity, max_ms=arguments.max_ms, batch=arguments.batch)
    if arguments.json:
        print(json.dumps(asdict(choice), ensure_ascii=False))
        return 0
    fidelity = "" if choice.fidelity is None else f", fidelity {choice.fidelity:.3g}"
    print(f"{choice.label}: {1000 * choice.seconds:.0f} ms at batch {choice.batch}, {choice.speedup:.2f}x AR{fidelity}")
    settings = dict(choice.settings)
    if choice.dtype != "auto":
        settings["dtype"] = choice.dtype
    print("pipeline(prompt, " + ", ".join(f"{name}={value!r}" for name, value in settings.items()) + ")")
    named = {"guidance" if name == "guidance_scale" else name.replace("_", "-"): settings[name] for name in settings}
    flags = [f"--{name} {shlex.quote(str(value))}" for name, value in named.items()]
    if choice.pair not in (None, DEFAULT_CONFIG):
        flags.insert(0, f"--config {shlex.quote(choice.pair)}")
    print(" ".join(["hybrid-generate PROMPT", *flags, *(["--compile"] if choice.compile else [])]))
    return 0


def _sample(arguments: argparse.Namespace) -> int:
    from accelerate import PartialState
    from rich.console import Console

    from hybrid.pipeline import HybridPipeline

    from .artist import pair_weights
    from .sample import draw_parts, merge, prepare

    if arguments.n < 1:
        raise ValueError(f"-n {arguments.n}: must be at least 1")
    if arguments.seed < 0:
        raise ValueError(f"--seed {arguments.seed}: must be 0 or above")
    settings = read_settings(arguments.settings)
    weights = pair_weights(arguments.pair)
    state = PartialState(cpu=arguments.cpu)
    pipeline = HybridPipeline.from_pretrained(arguments.pair, device=state.device, dtype=arguments.dtype)
    prompts = _prompts(arguments.prompts, pipeline)
    request = {
        "weights_sha256": weights,
        "defaults": pipeline.defaults.model_dump(mode="json"),
        "settings": settings,
        "seed": arguments.seed,
        "dtype": arguments.dtype,
    }
    if state.is_main_process:
        prepare(arguments.out, {"pair": str(arguments.pair), **request, "prompts": prompts, "pictures": arguments.n})
    state.wait_for_everyone()
    with Bars(Console(stderr=True, quiet=not state.is_main_process)) as bars:
        draw_parts(
            pipeline,
            prompts,
            arguments.n,
            arguments.out,
            settings=settings,
            seed=arguments.seed,
            rank=state.process_index,
            world=state.num_processes,
            told=bars.inside,
        )
    state.wait_for_everyone()
    if state.is_main_process:
        print(merge(arguments.out, prompts, arguments.n))
    state.destroy_process_group()
    return 0


def read_settings(text: str) -> dict[str, Any]:
    """Arguments of ``HybridPipeline`` as ``--settings`` gives them.

    Raises:
        ValueError: not JSON, no mapping, an unknown argument, or a value of another type.
    """
    from .artist import ARGUMENTS
    from .points import PATHS
    from .points import arguments as known

    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"--settings: not JSON ({error})") from None
    if not isinstance(found, dict):
        raise ValueError(f'--settings {text}: give arguments of HybridPipeline by name, for example {{"steps": 8}}')
    types: dict[str, tuple[type, ...]] = {"str": (str,), "int": (int,), "float": (float, int)}
    for name, value in found.items():
        if name not in known() or name in PATHS:
            raise ValueError(f"--settings: unknown {name!r}; use arguments of HybridPipeline")
        kind = str(ARGUMENTS[name].annotation).removesuffix(" | None")
        if value is not None and type(value) not in types[kind]:
            raise ValueError(f"--settings: {name} expected {kind}, got {json.dumps(value)}")
    return found


def _prompts(path: Path | None, pipeline: Any) -> list[str | int]:
    """Lines of a file, or every class."""
    if path is not None:
        return list(read_prompts(path))
    classes = getattr(pipeline.ar or pipeline.masked, "classes", None)
    if classes is None:
        raise ValueError("--prompts: this pair draws from captions; give a file with one a line")
    return list(range(int(classes)))


def read_prompts(path: Path) -> list[str]:
    """The lines of a file that hold something.

    Raises:
        ValueError: there is none.
    """
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not lines:
        raise ValueError(f"{path}: no prompt in it")
    return lines
