"""READMEs whose tables are written from stored results: nothing in them is typed by hand.

A room keeps what a run measured as `results/NAME.json`, and its README has sections
`<!-- results: NAME -->` ... `<!-- end -->`, which hold what the room makes of that file.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmface.core.files import write_text

Render = Callable[[Mapping[str, Any]], str]
_SECTION = re.compile(r"(<!-- results: (?P<name>\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def filled(room: Path, render: Render) -> str:
    """Give the README of a room with its sections made from the stored results.

    Args:
        room: the folder of README.md and results/.
        render: lays the content of a result out in Markdown.

    Returns:
        The whole text.

    Raises:
        ValueError: if the README has no section for a result, or no result for a section.
    """
    text = (room / "README.md").read_text(encoding="utf-8")
    stored = {path.stem: path for path in sorted((room / "results").glob("*.json"))}
    sections = {found["name"] for found in _SECTION.finditer(text)}
    if sections != stored.keys():
        unequal = ", ".join(sorted(sections ^ stored.keys()))
        raise ValueError(f"{room} has not both a section and a result of {unequal}")

    def section(found: re.Match[str]) -> str:
        content = json.loads(stored[found["name"]].read_text(encoding="utf-8"))
        return f"{found[1]}{render(content)}\n{found[3]}"

    return _SECTION.sub(section, text)


def publish(room: Path, results: Mapping[str, Mapping[str, Any]], render: Render) -> Path:
    """Store results by name, write the README's sections anew, and give the README."""
    for name, content in results.items():
        text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
        write_text(room / "results" / f"{name}.json", text)
    write_text(room / "README.md", filled(room, render))
    return room / "README.md"


def markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay cells out as a table in Markdown."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
