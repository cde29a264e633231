"""Writes ``report.json``, ``report.md``, ``report.html`` and ``plots/`` from the raw rows of a sweep's folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hybrid.loss_plot import can_plot

from . import sheets
from .figures import write_json
from .html import page
from .plots import draw
from .report import make_report, read_raw
from .tables import PLOTS, markdown


def publish(folder: Path) -> dict[str, Any]:
    """Write the report of a sweep's folder, of as many points as have been measured. Returns its content.

    Without matplotlib the plots are left out; the sheets of pictures need none.

    Raises:
        ValueError: no sweep there, or nothing measured yet.
    """
    raw = read_raw(folder)
    report = make_report(raw)
    write_json(folder / "report.json", report)
    where = folder / "plots"
    made = draw(report, where) if can_plot() else {}
    shown = {key: row["shown"] for key, row in raw["rows"].items() if row["shown"]}
    strips = {key: folder / "raw" / f"shown-{row['point']['method']}-{key}.png" for key, row in shown.items()}
    for name, sheet in (("grid", sheets.grid(shown, strips)), ("origin", sheets.origin(shown, strips))):
        if sheet is not None:
            where.mkdir(parents=True, exist_ok=True)
            made[name] = where / f"{name}.png"
            sheet.save(made[name], optimize=True)
    made = {name: made[name] for name in PLOTS if name in made}
    (folder / "report.md").write_text(markdown(report, list(made)), encoding="utf-8")
    (folder / "report.html").write_text(page(report, made), encoding="utf-8")
    return report
