"""`python -m mmface.benchmarks.publishing runs/benchmark/NAME.json ...` writes this room's README.

A NAME.json is what `scripts/benchmark.py` wrote; the README needs a section of that name.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmface.core.published import filled, markdown_table, publish

ROOM = Path(__file__).parent
_NOT_SHOWN = {"family", "case", "took_s", "ratio", "ratio_low", "ratio_high"}


def render(content: Mapping[str, Any]) -> str:
    """Lay a report out in Markdown: a line a measurement, then what it was measured on."""
    rows = [
        [one["family"], one["case"], _ratio(one), one.get("failed") or _others(one)]
        for one in content["measurements"]
    ]
    table = markdown_table(["family", "case", "against the reference", "measured"], rows)
    facts = [f"{name} {value}" for name, value in content.items() if name != "measurements"]
    return f"{table}\n\n- {', '.join(facts)}"


def _ratio(one: Mapping[str, Any]) -> str:
    if "ratio" not in one:
        return ""
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
