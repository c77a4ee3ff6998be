"""What the page tells of a run, as HTML: progress, adherence, contours, legends and differences."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from mmface.app.painting import hex_color, to_data_url
from mmface.app.running import FaceRequest, FaceRun, StepReport
from mmface.conditions import LABEL_TITLES, LABELS, colorize, condition_kind, condition_kinds

OVERLAY_PX = 512
"""Shortest side to which a picture is enlarged before contours are drawn on it."""

_CLASS_BARS = {f"iou/{name}": (LABEL_TITLES[name], hex_color(k)) for k, name in enumerate(LABELS)}
"""Titles and colours of the bars of classes, by the name of the number."""

_INK = np.array([255, 0, 170], dtype=np.uint8)


def progress_html(report: StepReport, preview_url: str, seconds_left: float | None = None) -> str:
    """Show how far a run is, as HTML; `preview_url` is a data URL or ""."""
    left = "" if seconds_left is None else f", about {math.ceil(seconds_left)} s left"
    rough = f"<img src='{preview_url}' alt='Rough preview of the first face'>"
    return (
        f"<div class='run-progress'><label>Step {report.done} of {report.total}{left}"
        f"<progress value='{report.done}' max='{report.total}'></progress></label>"
        f"{rough if preview_url else ''}</div>"
    )


def note_html(text: str) -> str:
    """Show a sentence."""
    return f"<p class='run-note'>{escape(text)}</p>" if text else ""


def live_html(compute_ms: float, unseen: Sequence[str]) -> str:
    """Say how long a live face took, and which words the model has not seen."""
    if not unseen:
        return note_html(f"Live, {compute_ms:.0f} ms")
    listed = ", ".join(unseen[:6]) + (" ..." if len(unseen) > 6 else "")
    return (
        f"<p class='run-note unseen'>Live, {compute_ms:.0f} ms. The model never saw: "
        f"<strong>{escape(listed)}</strong></p>"
    )


def legend_html(labels: UInt8[np.ndarray, "_ _"]) -> str:
    """Show a class map as the model sees it, with the classes that occur and their shares."""
    picture = Image.fromarray(colorize(labels))
    counts = np.bincount(labels.ravel(), minlength=len(LABELS)) / labels.size
    items = "".join(
        f"<li><span style='background:{hex_color(index)}'></span>{LABEL_TITLES[LABELS[index]]} "
        f"<small>{counts[index]:.1%}</small></li>"
        for index in np.argsort(-counts).tolist()
        if counts[index]
    )
    size = f"{labels.shape[1]} x {labels.shape[0]}"
    return (
        f"<figure class='class-map'><img src='{to_data_url(picture)}' "
        f"alt='The mask as the model sees it'><figcaption><strong>As the model sees it</strong> "
        f"<small>({size})</small><ul>{items}</ul></figcaption></figure>"
    )


def adherence_html(run: FaceRun, place: int, parser_name: str) -> str:
    """Show how one face follows its conditions: bars, and the wanted contours on the face."""
    found = run.adherence[place]
    if found is None:
        return note_html("This face has no condition that it can be compared with.")
    overlay = to_data_url(contours_on(run, place))
    titles = found.titles | {name: title for name, (title, _) in _CLASS_BARS.items()}
    colors = dict(_CLASS_BARS.values())
    bars = _bars({titles[name]: value for name, value in found.numbers.items()}, colors)
    parsed = [name for name in found.by_kind if condition_kind(name).needs_parser]
    note = f" Classes are read off the face by {escape(parser_name)}." if parsed else ""
    return (
        "<div class='adherence'><figure><img "
        f"src='{overlay}' alt='The face with the wanted contours on it'>"
        f"<figcaption>Seed {run.seeds[place]}, with the wanted contours</figcaption></figure>"
        f"<div class='bars'>{bars}<p class='run-note'>1 is full agreement.{note}</p></div></div>"
    )


def _bars(values: Mapping[str, float], colors: Mapping[str, str]) -> str:
    rows = []
    for name, value in values.items():
        color = colors.get(name)
        swatch = f"<span class='swatch' style='background:{color}'></span>" if color else ""
        rows.append(
            f"<div class='bar'><span>{swatch}{name}</span>"
            f"<meter min='0' max='1' value='{value:.4f}' aria-label='{name}'></meter>"
            f"<output>{value:.2f}</output></div>"
        )
    return "".join(rows)


def contours_on(run: FaceRun, place: int) -> Image.Image:
    """Draw the wanted classes' borders or lines on a face, RGB of at least `OVERLAY_PX`."""
    face = Image.open(run.pictures[place]).convert("RGB")
    scale = -(-OVERLAY_PX // min(face.size))
    size = (face.width * scale, face.height * scale)
    pixels = np.array(face.resize(size, Image.Resampling.BICUBIC))
    for name, values in run.request.conditions.items():
        ink = condition_kind(name).outlines(values, size)[..., None]
        pixels = (pixels * (1 - ink) + _INK * ink).round().astype(np.uint8)
    return Image.fromarray(pixels)


def run_title(number: int, run: FaceRun) -> str:
    """Name a run in a list of them."""
    words = " ".join(run.request.prompt.split())
    short = words if len(words) <= 48 else words[:45].rstrip() + "..."
    return f"{number}: {run.request.kinds}, seed {run.seeds[0]}, {short}"


def differences(one: FaceRequest, other: FaceRequest) -> list[tuple[str, str, str]]:
    """List what two runs were asked for differently: the name, and both values in words."""
    names = {
        "kinds": "condition",
        "prompt": "prompt",
        "negative": "negative prompt",
        "steps": "steps",
        "guidance": "guidance",
        "condition_strength": "condition strength",
        "seed": "seed",
        "num": "pictures",
        "strength": "distance from the start",
    }
    found = [
        (title, str(getattr(one, name)), str(getattr(other, name)))
        for name, title in names.items()
        if getattr(one, name) != getattr(other, name)
    ]
    kinds = [kind.name for kind in condition_kinds()]
    drawn = [(name, one.conditions.get(name), other.conditions.get(name)) for name in kinds]
    pairs: list[tuple[str, Any, Any]] = [*drawn, ("region", one.region, other.region)]
    for title, mine, theirs in pairs:
        if not np.array_equal(mine, theirs):
            found.append((title, _presence(mine), _presence(theirs)))
    return found


def _presence(array: np.ndarray | None) -> str:
    return "none" if array is None else "another"


def differences_html(one: FaceRequest, other: FaceRequest) -> str:
    """Show what two runs were asked for differently."""
    rows = differences(one, other)
    if not rows:
        return note_html("Both runs were asked for the same.")
    cells = "".join(
        f"<tr><th scope='row'>{name}</th><td>{escape(mine)}</td><td>{escape(theirs)}</td></tr>"
        for name, mine, theirs in rows
    )
    return (
        "<table class='differences'><thead><tr><th></th><th>Left</th><th>Right</th></tr></thead>"
        f"<tbody>{cells}</tbody></table>"
    )
