"""Says what the doctor found: in a terminal, in a JSON file and on a sheet of pictures."""

import json
import platform
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from PIL import Image, ImageDraw, ImageFont, ImageOps

import mmface
from mmface.conditions import colorize, condition_kinds, flat_rgb, open_picture
from mmface.core.files import write_text
from mmface.data.manifest import Record
from mmface.doctor.examination import Diagnosis
from mmface.doctor.face import Examination, Face
from mmface.doctor.findings import CHECKS, Finding, counts_by_kind
from mmface.generation.grid import FAINT_INK, FRAME, GAP_PX, INK, MARGIN_PX, PAPER, wrapped

SHOWN = 5
"""Findings of a kind that the terminal shows."""

_CELL_PX, _WORDS_PX, _FONT_PX = 176, 92, 13
_COLUMNS, _MAX_ON_SHEET = 2, 16


def summary(diagnosis: Diagnosis) -> str:
    """Say what was found in a few lines a kind."""
    facts = statistics(diagnosis)
    splits = ", ".join(f"{count} {split}" for split, count in facts["splits"].items())
    lines = [f"{diagnosis.reading.manifest.path}: {facts['faces']} faces ({splits or 'none'})"]
    lacking = [f"{count} {what}" for what, count in facts["lacking"].items() if count]
    if lacking:
        lines.append(f"{', '.join(lacking)} (scripts/annotate.py makes them)")
    by_kind: dict[str, list[Finding]] = {}
    for finding in diagnosis.findings:
        by_kind.setdefault(finding.kind, []).append(finding)
    for kind, count in counts_by_kind(diagnosis.findings).items():
        severity = CHECKS[kind].severity
        lines += ["", f"{severity}: {kind.replace('_', ' ')}, {count} times"]
        for each in by_kind[kind][:SHOWN]:
            lines.append(f"  {each.id or 'the set'}: {each.problem} ({each.file})")
        if count > SHOWN:
            lines.append(f"  and {count - SHOWN} more")
        lines.append(f"  -> {CHECKS[kind].remedy}")
    if not diagnosis.findings:
        lines.append("nothing is wrong")
    return "\n".join(lines)


def statistics(diagnosis: Diagnosis) -> dict[str, Any]:
    """Count faces, splits, what faces lack, soft mask edges and classes, as plain values."""
    records = diagnosis.reading.manifest.records
    patient = diagnosis.patient
    shares = [each.off_palette_fraction for each in patient.faces]
    known = [each for each in shares if each is not None]
    return {
        "lines": diagnosis.reading.num_lines,
        "faces": len(records),
        "splits": dict(Counter(each.split for each in records)),
        "lacking": {
            **{
                f"without {kind.name}": sum(kind.name not in each.conditions for each in records)
                for kind in condition_kinds()
            },
            "without captions": sum(not each.captions for each in records),
        },
        "off_palette": {
            "mean": float(np.mean(known)) if known else 0.0,
            "max": float(np.max(known)) if known else 0.0,
        },
        "typical_excess": dict(patient.typical_excess),
        "class_histogram": patient.class_histogram,
    }


def write_report(diagnosis: Diagnosis, path: str | Path) -> Path:
    """Write all findings as JSON and give the file."""
    content = {
        "manifest": str(diagnosis.reading.manifest.path),
        "counts": dict(counts_by_kind(diagnosis.findings)),
        **statistics(diagnosis),
        "findings": [asdict(each) for each in diagnosis.findings],
        "kinds": {kind: each.title for kind, each in CHECKS.items()},
        "versions": {
            "mmface": mmface.__version__,
            "python": platform.python_version(),
            "numpy": np.__version__,
            "pillow": PIL.__version__,
        },
    }
    path = Path(path)
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False))
    return path


def worst_faces(diagnosis: Diagnosis, count: int = _MAX_ON_SHEET) -> list[tuple[Record, str]]:
    """Choose faces to look at, with what is wrong: errors first, and every kind early."""
    records = {each.id: each for each in diagnosis.reading.manifest.records}
    words: dict[str, list[str]] = {}
    turns: dict[str, tuple[int, str]] = {}
    seen: Counter[str] = Counter()
    for each in diagnosis.findings:
        if each.id not in records or CHECKS[each.kind].level == "line":
            continue
        words.setdefault(each.id, []).append(f"{each.kind.replace('_', ' ')}: {each.problem}")
        turn = (seen[each.kind], each.severity)
        turns[each.id] = min(turn, turns.get(each.id, turn))
        seen[each.kind] += 1
    chosen = sorted(words, key=lambda face: turns[face])[:count]
    return [(records[face], "; ".join(words[face])) for face in chosen]


def sheet(diagnosis: Diagnosis) -> Image.Image | None:
    """Draw the worst faces with what is wrong under them, RGB on white; None if there are none."""
    faces = worst_faces(diagnosis)
    if not faces:
        return None
    columns = min(_COLUMNS, len(faces))
    step_x = len(_pictures()) * (_CELL_PX + 4) + 2 * GAP_PX
    step_y = _CELL_PX + _WORDS_PX + GAP_PX
    rows = -(-len(faces) // columns)
    size = (
        2 * MARGIN_PX + columns * step_x - 2 * GAP_PX,
        2 * MARGIN_PX + rows * step_y - GAP_PX,
    )
    canvas = Image.new("RGB", size, PAPER)
    folder = diagnosis.reading.manifest.path.parent
    for place, (record, words) in enumerate(faces):
        corner = (
            MARGIN_PX + place % columns * step_x,
            MARGIN_PX + place // columns * step_y,
        )
        _draw_face(canvas, Face(record, Examination(folder)), words, corner)
    return canvas


def _draw_face(canvas: Image.Image, face: Face, words: str, corner: tuple[int, int]) -> None:
    draw, (left, top) = ImageDraw.Draw(canvas), corner
    font = ImageFont.load_default(size=_FONT_PX)
    for place, name in enumerate(_pictures()):
        box_left = left + place * (_CELL_PX + 4)
        box = (box_left, top, box_left + _CELL_PX - 1, top + _CELL_PX - 1)
        picture = _picture(face, name)
        if picture is None:
            said = f"{name}: {face.bad[name].kind}" if name in face.bad else f"no {name}"
            middle = (box_left + _CELL_PX // 2, top + _CELL_PX // 2)
            draw.text(middle, said, font=font, fill=FAINT_INK, anchor="mm")
        else:
            fitted = ImageOps.contain(picture, (_CELL_PX, _CELL_PX))
            offset = ((_CELL_PX - fitted.width) // 2, (_CELL_PX - fitted.height) // 2)
            canvas.paste(fitted, (box_left + offset[0], top + offset[1]))
        draw.rectangle(box, outline=FRAME)
    below, line_px = top + _CELL_PX + 6, round(_FONT_PX * 1.3)
    draw.text((left, below), face.record.id, font=font, fill=FAINT_INK)
    lines = wrapped(words, font, len(_pictures()) * (_CELL_PX + 4) - 4)
    room = (_WORDS_PX - 6) // line_px - 1
    if len(lines) > room:
        lines = [*lines[: room - 1], lines[room - 1][:-2].rstrip() + " ..."]
    for number, line in enumerate(lines, 1):
        draw.text((left, below + number * line_px), line, font=font, fill=INK)


def _pictures() -> tuple[str, ...]:
    return ("image", *(kind.name for kind in condition_kinds()))


def _picture(face: Face, name: str) -> Image.Image | None:
    """Give a picture as a person wants to see it; a mask in the palette's colours."""
    if name in face.bad or getattr(face.record, name) is None:
        return None
    if name == "mask" and face.labels is not None:
        return Image.fromarray(colorize(face.labels))
    picture = open_picture(face.path(name))
    return Image.fromarray(flat_rgb(picture, "black" if name == "mask" else "white"))


def kinds_table() -> str:
    """List what the doctor can find, a line a kind."""
    rows: Sequence[tuple[str, str, str]] = [
        (each.kind, each.severity, each.title) for each in CHECKS.values()
    ]
    return "\n".join(f"{kind:24}{severity:10}{title}" for kind, severity, title in rows)
