"""`python -m mmface.benchmarks.publishing runs/benchmark/NAME.json ...` writes this room's README.

A NAME.json is what `scripts/benchmark.py` wrote; the README needs a section of that name.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmface.core.published import filled, markdown_table, publish

ROOM = Path(__file__).parent
_NOT_SHOWN = {"family", "case", "took_s", "ratio", "ratio_low", "ratio_high"}
_COLUMNS = {
    "of_float32_peak": "share of float32 products",
    "of_bfloat16_peak": "of bfloat16 products",
    "reference_of_float32_peak": "the reference's, of float32",
    "relative_error": "largest relative error",
    "gradient_error": "error of the gradients",
}
"""Values that have a column of their own where a report has them; the rest stand in one."""


def render(content: Mapping[str, Any]) -> str:
    """Lay a report out in Markdown: a line a measurement, notes, what it was measured on."""
    records = content["measurements"]
    timed = [one for one in records if "ratio" in one]
    others = [one for one in records if "ratio" not in one]
    parts = [each for each in (_timed_table(timed), _other_table(others)) if each]
    facts = [f"{name} {value}" for name, value in content.items() if name not in _APART]
    notes = [*(content.get("notes", ()) if timed else ()), ", ".join(facts)]
    return "\n\n".join([*parts, "\n".join(f"- {note}" for note in notes)])


_APART = {"measurements", "notes"}


def _timed_table(records: Sequence[Mapping[str, Any]]) -> str:
    columns = {k: title for k, title in _COLUMNS.items() if any(k in one for one in records)}
    rows = [
        [
            f"{one['family']}, {one['case']}",
            _ratio(one),
            f"{one['reference_ms']:.4g} to {one['own_ms']:.4g}, {one['pairs']} pairs",
            *(_value(key, one[key]) if key in one else "" for key in columns),
        ]
        for one in records
    ]
    headings = ["case", "against the reference", "ms", *columns.values()]
    return markdown_table(headings, rows) if rows else ""


def _value(key: str, value: float) -> str:
    return f"{value:.0e}" if "error" in key else f"{100 * value:.0f} %"


def _other_table(records: Sequence[Mapping[str, Any]]) -> str:
    rows = [[one["family"], one["case"], one.get("failed") or _others(one)] for one in records]
    return markdown_table(["family", "case", "measured"], rows) if rows else ""


def _ratio(one: Mapping[str, Any]) -> str:
    return f"{one['ratio']:.2f}× ({one['ratio_low']:.2f} to {one['ratio_high']:.2f})"


def _others(one: Mapping[str, Any]) -> str:
    values = {name: value for name, value in one.items() if name not in _NOT_SHOWN}
    shown = {n: f"{v:.4g}" if isinstance(v, float) else str(v) for n, v in values.items()}
    return ", ".join(f"{name} {value}" for name, value in shown.items())


def readme() -> str:
    """The README as the stored results make it."""
    return filled(ROOM, render)


if __name__ == "__main__":
    paths = [Path(argument) for argument in sys.argv[1:]]
    reports = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in paths}
    print(publish(ROOM, reports, render))
