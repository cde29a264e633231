"""``report.html``: one file that asks for nothing else. Pictures are inside it as data."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from .tables import PLOTS, Table, facts, tables, title, warnings

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; max-width: 1080px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13px; }
th, td { padding: .25rem .6rem; text-align: left; border-bottom: 1px solid #ddd; vertical-align: top; }
td { white-space: nowrap; }
th { border-bottom: 2px solid #1a1a1a; }
figure { margin: 1.5rem 0; } img { max-width: 100%; height: auto; border: 1px solid #ddd; }
figcaption, .note { color: #555; font-size: 13px; }
.warning { border-left: 4px solid #1a1a1a; padding: .4rem .8rem; background: #f2f2f2; font-weight: 600; }
"""


def page(report: Mapping[str, Any], plots: Mapping[str, Path]) -> str:
    """The page.

    Args:
        report: what ``report.make_report`` gave.
        plots: PNG files by their names in ``tables.PLOTS``.
    """
    heading = escape(title(report))
    parts = [f"<h1>{heading}</h1>", *(f'<p class="warning">{escape(text)}</p>' for text in warnings(report))]
    parts.append(_grid(["", ""], [[name, text] for name, text in facts(report)]))
    made = tables(report)
    parts += [_table(made[0])] if made else []
    parts += [_figure(name, path) for name, path in plots.items()]
    parts += [_table(table) for table in made[1:]]
    words = "".join(
        f"<li><code>{escape(name)}</code>: {escape(text)}</li>" for name, text in report["definitions"].items()
    )
    parts.append(f"<h2>Figures</h2><ul>{words}</ul>")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{heading}</title><style>{STYLE}</style></head><body>\n" + "\n".join(parts) + "\n</body></html>\n"
    )


def _table(table: Table) -> str:
    note = f'<p class="note">{escape(table.note)}</p>' if table.note else ""
    return f"<h2>{escape(table.title)}</h2>{_grid(table.columns, table.rows)}{note}"


def _grid(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(text)}</th>" for text in columns)
    head = f"<thead><tr>{head}</tr></thead>" if any(columns) else ""
    body = "".join("<tr>" + "".join(f"<td>{escape(text.strip('*'))}</td>" for text in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table>{head}<tbody>{body}</tbody></table></div>'


def _figure(name: str, path: Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    words = escape(PLOTS[name])
    return f'<figure><img alt="{words}" src="data:image/png;base64,{data}"><figcaption>{words}</figcaption></figure>'
