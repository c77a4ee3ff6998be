"""The last stage: the tables of methods and of controls, as text, Markdown, LaTeX, CSV and JSON.

The files are `table.txt`, `.md`, `.tex`, `.csv`, `.json`, and `controls` likewise. A cell reads
"published / measured". An em dash was not measured; "skipped" could not be, and has a footnote.
"""

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mmface.core.files import write_text
from mmface.evaluation.scoring import Scores
from mmface.evaluation.tables import (
    AT_FLOOR,
    TABLES,
    Cell,
    Measured,
    PublishedTable,
    Table,
    TableRow,
)
from mmface.metrics.metric import Column, Skipped, columns

MISSING = "\u2014"
BARE_TITLES = {
    "vae": "Reconstruction by the VAE alone (the paper prints no numbers of its table of VAEs)",
    "answers": "Answers to questions about faces",
}
"""Tables of our own: none of their numbers are published."""
PUBLISHED: dict[str, PublishedTable] = {str(table.number): table for table in TABLES}
NO_JUDGE = (
    "LLM: the paper's score rests on closed models and is not re-measured; "
    "protocol=paper_judged adds two ratings by a local model, P(yes) and Rating"
)


def check_table(name: str) -> None:
    """Refuse a table that is neither the paper's nor one of `BARE_TITLES`."""
    if name not in (names := [*PUBLISHED, *BARE_TITLES]):
        known = f"{', '.join(names[:-1])} or {names[-1]}"
        raise ValueError(f"there is no table {name!r}; take {known}")


def results_table(name: str, scores: Mapping[str, Scores | Skipped], notes: Sequence[str]) -> Table:
    """Set methods beside the published numbers.

    The first note is a watermark, if there is one.
    """
    remarks = [r for one in scores.values() if isinstance(one, Scores) for r in one.remarks]
    lines = list(dict.fromkeys([*notes, *remarks]))
    if name in BARE_TITLES:
        return _bare(BARE_TITLES[name], scores, lines)
    published = PUBLISHED[name]
    measured = {
        method: one.cells if isinstance(one, Scores) else dict.fromkeys(published.metrics, one)
        for method, one in scores.items()
    }
    if "llm" in published.metrics:
        lines.append(NO_JUDGE)
    return Table.beside(published, measured, lines)


def controls_table(scores: Mapping[str, Scores | Skipped], notes: Sequence[str]) -> Table:
    """Lay out the controls; the arguments are those of `results_table`."""
    return _bare("Controls: what the numbers can be at best and at worst", scores, notes)


def _bare(title: str, scores: Mapping[str, Scores | Skipped], notes: Sequence[str]) -> Table:
    found = [one.cells for one in scores.values() if isinstance(one, Scores)]
    metrics = list(dict.fromkeys(column for cells in found for column in cells))
    rows = []
    for name, one in scores.items():
        cells = one.cells if isinstance(one, Scores) else dict.fromkeys(metrics, one)
        rows.append(TableRow(name, {metric: Cell(None, cells.get(metric)) for metric in metrics}))
    return Table(title, metrics, rows, notes)


def write_all(table: Table, stem: Path) -> list[Path]:
    """Write a table in every format; `stem` is the files' path without a suffix."""
    paths = [stem.with_name(stem.name + suffix) for suffix in FORMATS]
    for path in paths:
        write_table(table, path)
    return paths


def _number(column: Column, one: Measured) -> str:
    text = f"{one.value:.{column.digits}f}"
    if one.spread is not None:
        text += f" ± {one.spread:.{column.digits}f}"
    if one.low is not None and one.high is not None:
        text += f" [{one.low:.{column.digits}f}, {one.high:.{column.digits}f}]"
    return text + AT_FLOOR if one.is_at_floor else text


def _grid(
    table: Table, bold: Callable[[str], str], escape: Callable[[str], str] = str
) -> list[list[str]]:
    """Lay the table out as text: a line of headings, and a line a method."""
    skips = table.skips()
    headings = []
    for metric in table.metrics:
        both = " (published / measured)" if table.has_published(metric) else ""
        headings.append(escape(columns()[metric].heading + both))
    lines = [[escape("method"), *headings]]
    for row in table.rows:
        line = [escape(row.name)]
        for metric in table.metrics:
            cell = row.cell(metric)
            if isinstance(cell.measured, Skipped):
                text = escape(f"skipped [{skips.index(str(cell.measured)) + 1}]")
            elif cell.measured is None:
                text = escape(MISSING)
            else:
                text = escape(_number(columns()[metric], cell.measured))
                text = bold(text) if row.name in table.best(metric) else text
            if table.has_published(metric):
                printed = MISSING if cell.published is None else str(cell.published)
                text = f"{escape(printed)} / {text}"
            line.append(text)
        lines.append(line)
    return lines


def as_plain(table: Table) -> str:
    """Lay a table out for a terminal."""
    grid = _grid(table, bold=lambda text: f"{text}*")
    widths = [max(len(line[i]) for line in grid) for i in range(len(grid[0]))]
    body = [
        "  ".join(
            text.ljust(width) if i == 0 else text.rjust(width)
            for i, (text, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in grid
    ]
    rule = "-" * max(map(len, body))
    return "\n".join([table.title, rule, body[0], rule, *body[1:], rule, *table.footer()]) + "\n"


def as_markdown(table: Table) -> str:
    """Lay a table out in Markdown; the best measured number of a column is bold."""
    grid = _grid(table, bold=lambda text: f"**{text}**", escape=_escape_markdown)
    lines = [f"| {' | '.join(line)} |" for line in grid]
    lines.insert(1, "|" + "---|" * len(grid[0]))
    footer = [f"- {_escape_markdown(line)}" for line in table.footer()]
    return "\n".join([f"**{_escape_markdown(table.title)}**", "", *lines, "", *footer]) + "\n"


def _escape_markdown(text: str) -> str:
    for mark in ("\\", "|", "*", "_", "<"):
        text = text.replace(mark, f"\\{mark}")
    return text


def as_latex(table: Table) -> str:
    """Lay a table out in LaTeX, for the `booktabs` package."""
    grid = _grid(table, bold=lambda text: rf"\textbf{{{text}}}", escape=_escape_latex)
    rows = [" & ".join(line) + r" \\" for line in grid]
    footer = r" \\ ".join(_escape_latex(line) for line in table.footer())
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{_escape_latex(table.title)}}}",
            rf"\begin{{tabular}}{{l{'r' * len(table.metrics)}}}",
            r"\toprule",
            rows[0],
            r"\midrule",
            *rows[1:],
            r"\bottomrule",
            r"\end{tabular}",
            rf"\par\footnotesize {footer}",
            r"\end{table}",
            "",
        ]
    )


_LATEX = {
    "\\": r"\textbackslash{}",
    **{mark: rf"\{mark}" for mark in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    MISSING: "---",
}


def _escape_latex(text: str) -> str:
    # A bracket at the start of a row would be read as the option of the line break before it.
    escaped = "".join(_LATEX.get(mark, mark) for mark in text)
    return f"{{}}{escaped}" if escaped.startswith("[") else escaped


def as_csv(table: Table) -> str:
    """List a table as comma-separated values, one line a method and metric."""
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    numbers = ("value", "low", "high", "spread", "pictures", "seeds", "protocol")
    writer.writerow(["method", "metric", "published", *numbers, "skipped"])
    for row in table.rows:
        for metric in table.metrics:
            cell = row.cell(metric)
            ours = asdict(cell.measured) if isinstance(cell.measured, Measured) else {}
            skipped = str(cell.measured) if isinstance(cell.measured, Skipped) else ""
            values = [ours.get(name) for name in numbers]
            writer.writerow([row.name, metric, cell.published, *values, skipped])
    return written.getvalue()


def as_json(table: Table) -> str:
    """Write a table as JSON, numbers unrounded; what is missing is null."""

    def cell(one: Cell) -> dict[str, Any]:
        printed = None if one.published is None else float(one.published)
        if isinstance(one.measured, Skipped):
            return {"published": printed, "measured": None, "skipped": asdict(one.measured)}
        return {"published": printed, "measured": one.measured and asdict(one.measured)}

    rows = [
        {"method": row.name, "cells": {m: cell(row.cell(m)) for m in table.metrics}}
        for row in table.rows
    ]
    parts = {"title": table.title, "rows": rows, "footer": table.footer()}
    return json.dumps({**parts, "versions": dict(table.versions)}, indent=1, allow_nan=False) + "\n"


FORMATS: dict[str, Callable[[Table], str]] = {
    ".txt": as_plain,
    ".md": as_markdown,
    ".tex": as_latex,
    ".csv": as_csv,
    ".json": as_json,
}
"""What writes a table, by the file's suffix."""


def write_table(table: Table, path: str | Path) -> None:
    """Write a table in the format of the file's suffix."""
    path = Path(path)
    if path.suffix not in FORMATS:
        raise ValueError(f"{path} has no suffix of a table; take one of {', '.join(FORMATS)}")
    write_text(path, FORMATS[path.suffix](table))
