"""`python -m mmface.evaluation.publishing runs/evaluation/NAME ...` writes this room's README.

A NAME is the folder of a table or the JSON file of a held-out evaluation. Its numbers and notes
are kept in `results/NAME.json`; the README needs a section of that name.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmface.core.published import filled, markdown_table, publish
from mmface.evaluation.held_out import COLUMNS
from mmface.metrics.metric import columns

ROOM = Path(__file__).parent


def read_run(path: Path) -> dict[str, Any]:
    """Read what a run measured: the file of a held-out evaluation, or a folder's two tables."""
    if not path.is_dir():
        return dict(json.loads(path.read_text(encoding="utf-8")))
    names = ("table", "controls")
    return {name: json.loads((path / f"{name}.json").read_text("utf-8")) for name in names}


def render(content: Mapping[str, Any]) -> str:
    """Lay a run out in Markdown: measured rows, then controls, then every note."""
    if "table" not in content:
        rows = [
            [name, *(f"{row[key]:.3f}" if key in row else "" for key in COLUMNS)]
            for name, row in content["results"].items()
        ]
        table = markdown_table(["pictures", *COLUMNS.values()], rows)
        return f"{table}\n\n- {', '.join(f'{k}: {v}' for k, v in content['settings'].items())}"
    known = columns()
    measured = [*_measured(content["table"]), *_measured(content["controls"])]
    shown = list(dict.fromkeys(name for _, cells in measured for name in cells))
    body = [[method, *(_cell(name, cells) for name in shown)] for method, cells in measured]
    notes = dict.fromkeys([*content["table"]["footer"], *content["controls"]["footer"]])
    listed = "\n".join(f"- {note}" for note in notes if not note.startswith("LLM: "))
    return f"{markdown_table(['', *(known[n].heading for n in shown)], body)}\n\n{listed}"


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
    return f"{one['value']:.{digits}f}" + ("" if spread is None else f" ± {spread:.{digits}f}")


def readme() -> str:
    """The README as the stored results make it."""
    return filled(ROOM, render)


if __name__ == "__main__":
    paths = [Path(argument) for argument in sys.argv[1:]]
    print(publish(ROOM, {path.stem: read_run(path) for path in paths}, render))
