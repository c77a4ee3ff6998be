"""`python -m mmface.evaluation.publishing runs/evaluation/NAME ...` writes this room's README.

A NAME is the folder of a table or of a drift, or the JSON file of another evaluation. Its
numbers and notes are kept in `results/NAME.json`; the README needs a section of that name. Without
a NAME the sections are written anew from what is kept.
"""

import json
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmface.core.published import filled, markdown_table, publish
from mmface.core.sources import ASSETS
from mmface.evaluation import brought, drift
from mmface.evaluation.few_steps import as_table
from mmface.evaluation.held_out import COLUMNS
from mmface.evaluation.tables import AT_FLOOR, is_at_floor
from mmface.metrics.metric import columns

ROOM = Path(__file__).parent
FIGURES = ("guidance.png",)
"""Charts of a table's folder that READMEs show; they are kept in `mmface/assets`."""


def read_run(path: Path) -> dict[str, Any]:
    """Read what a run measured: the file of a held-out evaluation, or the tables of a folder."""
    if not path.is_dir():
        return _read(path)
    if (path / drift.RESULT_FILE).is_file():
        return _read(path / drift.RESULT_FILE)
    return {name: _read(path / f"{name}.json") for name in ("table", "controls")}


def _read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8")))


def render(content: Mapping[str, Any]) -> str:
    """Lay a run out in Markdown: its tables, then every note."""
    if "settings" in content:
        return _held_out(content)
    if "recorded" in content:
        return _recorded(content)
    if "brought" in content:
        return brought.as_markdown(content)
    if "students" in content:
        said = ", ".join(f"{name}: {value}" for name, value in content["students"].items())
        return _with_notes(as_table(content["conditions"]).rstrip(), [said])
    return drift.as_markdown(content) if "tables" in content else _table(content)


def _held_out(content: Mapping[str, Any]) -> str:
    rows = [
        [name, *(f"{row[key]:.3f}" if key in row else "" for key in COLUMNS)]
        for name, row in content["results"].items()
    ]
    settings = ", ".join(f"{name}: {value}" for name, value in content["settings"].items())
    return _with_notes(markdown_table(["pictures", *COLUMNS.values()], rows), [settings])


def _recorded(content: Mapping[str, Any]) -> str:
    """A table whose run is gone: cells as they were written down, and where they come from."""
    table = markdown_table(content["headings"], content["rows"])
    return _with_notes(table, [content["recorded"], *content["notes"]])


def _table(content: Mapping[str, Any]) -> str:
    """Measured rows, then controls."""
    known = columns()
    measured = [*_measured(content["table"]), *_measured(content["controls"])]
    shown = list(dict.fromkeys(name for _, cells in measured for name in cells))
    body = [[method, *(_cell(name, cells) for name in shown)] for method, cells in measured]
    notes = dict.fromkeys([*content["table"]["footer"], *content["controls"]["footer"]])
    table = markdown_table(["", *(known[name].heading for name in shown)], body)
    return _with_notes(table, [note for note in notes if not note.startswith("LLM: ")])


def _with_notes(table: str, notes: Iterable[str]) -> str:
    return "\n".join([table, "", *(f"- {note}" for note in notes)])


def _measured(table: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    rows = []
    for row in table["rows"]:
        cells = {name: cell["measured"] for name, cell in row["cells"].items()}
        if found := {name: one for name, one in cells.items() if one}:
            rows.append((row["method"], found))
    return rows


def _cell(name: str, cells: Mapping[str, Any]) -> str:
    if name not in cells:
        return ""
    one, digits = cells[name], columns()[name].digits
    spread = one["spread"] if one["low"] is None else (one["high"] - one["low"]) / 2
    text = f"{one['value']:.{digits}f}" + ("" if spread is None else f" ± {spread:.{digits}f}")
    return text + AT_FLOOR if is_at_floor(one["value"], one.get("floor")) else text


def readme() -> str:
    """The README as the stored results make it."""
    return filled(ROOM, render)


def main(paths: Sequence[Path]) -> Path:
    """Keep what runs measured, with their charts, and write the README."""
    written = publish(ROOM, {path.stem: read_run(path) for path in paths}, render)
    for chart in (path / name for path in paths for name in FIGURES):
        if chart.is_file():
            shutil.copyfile(chart, ASSETS / chart.name)
    return written


if __name__ == "__main__":
    print(main([Path(argument) for argument in sys.argv[1:]]))
