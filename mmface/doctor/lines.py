"""Reads a manifest leniently: what a strict reader refuses becomes findings, the rest records."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmface.data.manifest import SPLITS, Manifest, ManifestReader
from mmface.doctor.findings import Finding, Problem, check, checks_of


@dataclass(frozen=True)
class Line:
    """A line of a manifest: its JSON object (empty if it is none) and what is wrong with its form.

    `taken` maps the ids of the lines before it to their places.
    """

    place: str
    row: dict[str, Any]
    taken: dict[str, str]
    fault: str | None


@check("line", "error", "Import the data set again, or mend the line by hand.", "drop")
def bad_line(line: Line) -> Iterator[Problem]:
    """Line of the manifest that is no record."""
    if line.fault is not None:
        yield Problem(line.place, f"the line {line.fault}")


@check("line", "error", "Give one of the faces another id, or leave it out.", "drop")
def clashing_id(line: Line) -> Iterator[Problem]:
    """Id that an earlier face has."""
    identity = line.row.get("id")
    if isinstance(identity, str) and identity in line.taken:
        yield Problem(line.place, f"the id is that of {line.taken[identity]} too")


@check("line", "error", f"Say one of {', '.join(SPLITS)}.", "drop")
def unknown_split(line: Line) -> Iterator[Problem]:
    """Split that does not exist."""
    split = line.row.get("split")
    if isinstance(split, str) and split not in SPLITS:
        yield Problem(line.place, f"the split {split!r} is not one of {', '.join(SPLITS)}")


@check("line", "error", "Take it out; a face may have no captions.", "repair")
def empty_caption(line: Line) -> Iterator[Problem]:
    """Caption of nothing but blanks."""
    captions = line.row.get("captions")
    for each in captions if isinstance(captions, list) else ():
        if isinstance(each, str) and not each.strip():
            yield Problem(line.place, "a caption is empty")


@dataclass(frozen=True)
class LenientReading:
    """The faces that could be read, without their empty captions, and what was wrong.

    `num_lines` counts the lines below the header.
    """

    manifest: Manifest
    findings: list[Finding]
    num_lines: int


def read_leniently(path: str | Path) -> LenientReading:
    """Read a manifest, going on after wrong lines; ValueError if the header is none."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; scripts/dataset.py makes a manifest.")
    reader, findings, taken = ManifestReader(path), [], {}  # type: ignore[var-annotated]
    number = 0
    with path.open("rb") as file:
        for number, content in enumerate(file, 1):
            if number == 1:
                reader.line(1, content)
                if reader.faults:
                    raise ValueError("\n".join(reader.faults))
                continue
            row, num_before = _row(content), len(reader.records)
            reader.seen.clear()  # ids have a check of their own
            reader.line(number, content if row is None else _tidied(row, number))
            fault = reader.faults.pop().split(": ", 1)[1] if reader.faults else None
            line = Line(f"{path}:{number}", row or {}, taken, fault)
            found = [
                finding
                for each in checks_of("line")
                for finding in each.findings(line, str(line.row.get("id", "")) or None)
            ]
            if any(each.kind != empty_caption.__name__ for each in found):
                del reader.records[num_before:]
            elif fault is None:
                taken[line.row["id"]] = line.place
            findings += found
    if reader.header is None:
        raise ValueError(f"{path}:1: the file is empty, a manifest begins with its header")
    return LenientReading(reader.manifest(), findings, number - 1)


def _row(content: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(content)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def _tidied(row: dict[str, Any], number: int) -> bytes:
    """Take out what has a check of its own, so that the reader judges the rest."""
    captions = row.get("captions")
    if isinstance(captions, list):
        kept = [each for each in captions if not isinstance(each, str) or each.strip()]
        row = {**row, "captions": kept}
    if isinstance(row.get("split"), str):
        row = {**row, "split": row["split"] if row["split"] in SPLITS else SPLITS[0]}
    return json.dumps(row).encode()
