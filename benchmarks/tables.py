"""``report.md``, and the tables that it shares with ``report.html``. Pure functions of a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

PLOTS = {
    "pareto": "Speed-up over the AR model against each fidelity figure. The line joins points that none beats in both.",
    "phases": "Seconds of one request, by phase (the turn in the middle); beside each bar the median.",
    "quality": "Fréchet distance against the AR model's share of the tokens and the number of masked passes.",
    "regions": "Fréchet distance of each region, over that of the AR model's own pictures in the same region.",
    "grid": "The same prompts and seeds by every method.",
    "origin": "Who wrote which token: white is the AR model, numbers are masked passes.",
}
"""Pictures of a report, in their order, and what they show."""


SPEED_NOTE = (
    "AR beside it: median of the AR model's turns between these. Shares: the AR phase of the triad's bandwidth, masked "
    "passes of the matrix product's speed."
)


@dataclass(frozen=True)
class Table:
    """A table of texts.

    Attributes:
        title: what it shows.
        columns: their heads.
        rows: cells.
        note: a line below.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


def tables(report: Mapping[str, Any]) -> list[Table]:
    """All tables of a report that have something in them."""
    whole = [row for row in report["rows"] if row["region"] == "all"]
    made = [
        _summary(report, whole),
        _choice(report),
        _speed(report, whole),
        _fidelity(report),
        _inception(report, whole),
    ]
    made += [_likeness(report["rows"]), _cost(whole)]
    return [table for table in made if table.rows]


def facts(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The header as names and texts."""
    header, baseline, limits = report["header"], report["baseline"], report["header"]["limits"]
    shown = [
        ("pair", f"{header['pair']}"),
        (
            "baseline",
            f"{baseline['label']}"
            + (f", {seconds(baseline['median'])}" if baseline["median"] else "")
            + (f"; the best of {len(baseline['choice'])} settings" if baseline["choice"] else "")
            + (f"; the fastest of {len(baseline['paths'])} paths" if len(baseline["paths"]) > 1 else ""),
        ),
        ("device", f"{header['device']}, {header['threads']} of {header['cores']} cores used"),
        ("load while timing", _load(header)),
        ("commit", f"{header['commit']}"),
        (
            "versions",
            ", ".join(
                f"{k} {v}"
                for k, v in (
                    (header["speed_machine"] or header["fidelity_machine"] or {}).get("versions") or {}
                ).items()
            ),
        ),
    ]
    if header["turns"]:
        turns = " to ".join(str(count) for count in sorted({header["turns"][0], header["turns"][-1]}))
        shown.append(("turns", f"{turns} of each point, interleaved with the AR model"))
    if header["feature_network"]:
        pictures = f"{header['pictures']} of each point against {header['reference_pictures']} real ones"
        shown += [("pictures", pictures), ("feature network", header["feature_network"])]
    if limits:
        flops = ", ".join(f"{k} {v / 1e9:.0f} GFLOP/s" for k, v in limits["flops_per_second"].items())
        bandwidth = f"memory {limits['memory_bytes_per_second'] / 1e9:.1f} GB/s"
        small = f"a working set as large as the AR weights {limits['weights_bytes_per_second'] / 1e9:.1f} GB/s"
        shown.append(("limits measured", f"{bandwidth}, {small}, {flops}"))
    return shown


def warnings(report: Mapping[str, Any]) -> list[str]:
    """What a reader must know before any figure."""
    header, found = report["header"], []
    if header["pictures"] and header["preliminary"]:
        found.append(f"Preliminary: {header['pictures']} pictures a point, {header['required_pictures']} are required.")
    if header["busy"]:
        found.append(f"Other programs ran while times were taken ({_load(header)}): times are too long and uneven.")
    if report["baseline"]["lower_frechet"]:
        names = "; ".join(report["baseline"]["lower_frechet"])
        found.append(f"The baseline is not the AR model's best: lower Fréchet distance with {names}.")
    return found


def markdown(report: Mapping[str, Any], plots: Sequence[str]) -> str:
    """``report.md``.

    Args:
        report: what ``report.make_report`` gave.
        plots: names of ``PLOTS`` whose pictures lie in ``plots/``.
    """
    lines = [f"# {title(report)}", ""]
    lines += [f"**{warning}**\n" for warning in warnings(report)]
    lines += ["| | |", "|---|---|", *(f"| {name} | {text} |" for name, text in facts(report)), ""]
    for table in tables(report):
        lines += [f"## {table.title}", "", _row(table.columns), _row(["---"] * len(table.columns))]
        lines += [*map(_row, table.rows), ""]
        lines += [table.note, ""] if table.note else []
    for name in plots:
        lines += [f"![{PLOTS[name]}](plots/{name}.png)", "", PLOTS[name], ""]
    lines += ["## Figures", "", *(f"- `{name}`: {text}" for name, text in report["definitions"].items()), ""]
    return "\n".join(lines)


def title(report: Mapping[str, Any]) -> str:
    """The report's name."""
    return f"Speed against fidelity: {report['header']['pair']}"


def seconds(value: float) -> str:
    """A time in words."""
    return f"{1000 * value:.0f} ms" if value < 1 else f"{value:.2f} s" if value < 10 else f"{value:.1f} s"


def number(value: float | None, interval: Sequence[float] | None = None, digits: int = 3) -> str:
    """A figure with its interval; a dash where there is none."""
    if value is None:
        return "–"
    text = f"{value:.{digits}g}"
    return text if interval is None else f"{text} [{interval[0]:.{digits}g}, {interval[1]:.{digits}g}]"


def _summary(report: Mapping[str, Any], whole: Sequence[Mapping[str, Any]]) -> Table:
    score = report["header"]["score"]
    columns = ["point", "speed-up", "median", "Fréchet", "KID · 1000", *([score] if score else []), "fidelity"]
    rows = []
    for row in sorted(whole, key=lambda row: -(row["speedup"] or 0)):
        cells = [row["label"], number(row["speedup"], row["speedup_interval"])]
        cells += [seconds(row["median"]) if row["median"] else "–", number(row["frechet"], row.get("frechet_interval"))]
        cells.append(number(None if row["kid"] is None else 1000 * row["kid"]))
        cells += [number(row[score])] if score else []
        rows.append([*cells, number(row["fidelity"], row.get("fidelity_interval"))])
    for name, floor in report["floors"].items():
        cells = [f"*{name} (floor)*", "–", "–", number(floor["frechet"], floor["frechet_interval"])]
        cells += [
            number(1000 * floor["kid"]),
            *([number(report["header"]["real_score"] if name == "real" else None)] if score else []),
        ]
        rows.append([*cells, "–"])
    batch = next((row["batch"] for row in whole if row["batch"]), None)
    note = f"Times at batch {batch}. " if batch else ""
    return Table("Summary", columns, rows, note + "Brackets: 95 % intervals. Fidelity: see below; 1 is the AR model.")


def _choice(report: Mapping[str, Any]) -> Table:
    tried = report["baseline"]["choice"]
    score = report["header"]["score"]
    rows = []
    for one in sorted(tried, key=lambda one: float(one["frechet"])):
        cells = [
            one["label"],
            number(one["frechet"], one["frechet_interval"]),
            *([number(one["score"])] if score else []),
        ]
        rows.append([*cells, "chosen" if one["chosen"] else ""])
    note = f"By the Fréchet distance of {tried[0]['pictures']} pictures of each." if tried else ""
    return Table("Choice of the AR baseline", ["setting", "Fréchet", *([score] if score else []), ""], rows, note)


def _speed(report: Mapping[str, Any], whole: Sequence[Mapping[str, Any]]) -> Table:
    columns = ["point", "batch", "median", "p10", "p90", "images/s", "AR beside it", "speed-up", "over exact"]
    columns += ["passes", "peak memory", "of bandwidth", "of compute"]
    rows = []
    for row in whole:
        for times in row["speed"] or ():
            passes = " + ".join(f"{count} {phase}" for phase, count in times["passes"].items() if phase != "condition")
            cells = [row["label"], str(times["batch"]), *(seconds(times[name]) for name in ("median", "p10", "p90"))]
            cells += [number(times["images_per_second"]), seconds(times["ar_median"])]
            cells += [number(times["speedup"], times["speedup_interval"]), number(times["speedup_over_exact"]), passes]
            cells.append(f"{times['peak_memory_bytes'] / 1e6:.0f} MB")
            rows.append([*cells, *(_percent(times[name]) for name in ("bandwidth_share", "compute_share"))])
    fastest = ", ".join(
        f"{way['label']} at batch {batch} ({way['speedup']:.3g}x AR)"
        for batch, way in report["baseline"]["fastest_exact"].items()
    )
    note = f" Over exact: over the fastest way that keeps the AR model's distribution: {fastest}." if fastest else ""
    return Table("Speed", columns, rows, SPEED_NOTE + note)


def _fidelity(report: Mapping[str, Any]) -> Table:
    columns = ["point", "region", "Fréchet", "over AR's", "KID · 1000", "precision", "recall", "nats/token (AR's own)"]
    columns.append("over AR's")
    rows = []
    for row in report["rows"]:
        if row["frechet"] is None:
            continue
        cells = [row["label"], row["region"], number(row["frechet"], row["frechet_interval"])]
        cells.append(number(row["frechet_over_ar"], row["frechet_over_ar_interval"]))
        cells.append(number(1000 * row["kid"], [1000 * end for end in row["kid_interval"]]))
        cells += [number(row["precision"]), number(row["recall"])]
        cells.append(f"{number(row['log_likelihood'])} ({number(row.get('ar_log_likelihood'))})")
        rows.append([*cells, number(row.get("log_likelihood_over_ar"), row.get("log_likelihood_over_ar_interval"))])
    network = report["header"]["feature_network"]
    note = f"Features: {network}. Nats a token: too high is as wrong as too low."
    return Table("Fidelity by region", columns, rows, note)


def _inception(report: Mapping[str, Any], whole: Sequence[Mapping[str, Any]]) -> Table:
    columns = ["point", "pictures", "FID", "IS", "CLIP score"]
    rows = [
        [
            row["label"],
            str(row["pictures"] or "–"),
            number(row["fid"]),
            number(row["inception_score"]),
            number(row["clip_score"]),
        ]
        for row in whole
        if row["fid"] is not None or row["clip_score"] is not None
    ]
    networks = ", ".join(name for name in (report["header"]["fid_network"], report["header"]["clip_network"]) if name)
    return Table("Inception and CLIP", columns, rows, f"{networks}. Published figures are of 50,000 pictures.")


def _likeness(every: Sequence[Mapping[str, Any]]) -> Table:
    columns = ["point", "region", "equal tokens", "PSNR (dB)", "feature distance"]
    rows = []
    for row in every:
        if row["agreement"] is not None:
            own, two = row["agreement"], row["ar_seeds_agreement"]
            names = ("tokens", "psnr_db", "feature_distance")
            cells = [f"{number(own[name])} ({number(two[name])})" for name in names]
            rows.append([row["label"], row["region"], *cells])
    note = (
        "With the AR model's picture of the same prompt and seed; in brackets, two seeds of the AR model. Equal "
        "tokens do not make equal pixels where the decoder sees other rows too."
    )
    return Table("Agreement with the AR model", columns, rows, note)


def _cost(whole: Sequence[Mapping[str, Any]]) -> Table:
    columns = ["point", "GFLOP a picture", "AR", "masked", "decoder", "MB of weights read", "AR", "masked"]
    rows = []
    for row in whole:
        if row["flops"] is not None:
            flops = [row["flops"].get(part) for part in ("total", "ar", "masked", "decode")]
            read = [row["weight_bytes"].get(part) for part in ("total", "ar", "masked")]
            cells = [number(None if value is None else value / 1e9) for value in flops]
            rows.append([row["label"], *cells, *(number(None if v is None else v / 1e6, digits=4) for v in read)])
    note = (
        "Counted from the shapes of what runs: 2 · rows · weights for layers, 4 · queries · keys · width for attention."
    )
    return Table("Cost", columns, rows, note)


def _load(header: Mapping[str, Any]) -> str:
    loads = header["speed_load"]
    return "not known" if not loads else f"load {loads[0]:.1f} to {loads[1]:.1f} on {header['cores']} cores"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.0f} %"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
