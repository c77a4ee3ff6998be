"""A canvas in the page that is painted on with named, fixed colours."""

from collections.abc import Mapping
from html import escape
from pathlib import Path

import gradio as gr

from mmface.app.painting import CANVAS_PX

_SCRIPT = Path(__file__).with_name("canvas.js")
_TOOLS = (
    ("data-tool='brush' aria-pressed='true'", "Brush"),
    ("data-tool='eraser' aria-pressed='false'", "Eraser"),
    ("data-tool='fill' aria-pressed='false'", "Fill"),
    ("data-action='undo'", "Undo"),
    ("data-action='redo'", "Redo"),
    ("data-action='clear'", "Clear"),
)


def paint_canvas(
    name: str, title: str, colors: Mapping[str, str], base: str, brush_px: int, value: str = ""
) -> gr.HTML:
    """Make a canvas; its value is the painting as a PNG data URL, or "" while there is none.

    `name` is its id in the page and `title` its label for screen readers; `colors` are hex by the
    buttons' names, the first chosen at the start; `base` is that of the empty canvas and the
    eraser, or "" for a transparent one. Its event `input` follows each stroke.
    """
    tools = "".join(f"<button type='button' {does}>{text}</button>" for does, text in _TOOLS)
    swatches = "".join(
        f"<button type='button' role='radio' aria-checked='{str(not place).lower()}' "
        f"tabindex='{-1 if place else 0}' data-color='{color}'>"
        f"<span style='background:{color}'></span>{escape(text)}</button>"
        for place, (text, color) in enumerate(colors.items())
    )
    single = " single" if len(colors) == 1 else ""
    help_text = "Arrows move the brush, space paints, [ and ] change its size, Ctrl+Z takes back."
    return gr.HTML(
        value=value,
        label=title,
        elem_id=name,
        js_on_load=_SCRIPT.read_text(),
        html_template=(
            f"<div class='paint{single}' role='group' aria-label='{escape(title)}' "
            f"data-base='{base}'><div class='paint-tools' role='toolbar' aria-label='Tools'>{tools}"
            f"<label>Size <input type='range' min='2' max='96' value='{brush_px}' "
            "aria-label='Brush size in pixels'></label></div>"
            "<div class='paint-stage'>"
            f"<canvas width='{CANVAS_PX}' height='{CANVAS_PX}' tabindex='0' role='img' "
            f"aria-label='{escape(title)}. {help_text}'></canvas>"
            "<div class='paint-cursor' aria-hidden='true'></div></div>"
            "<div class='paint-palette' role='radiogroup' aria-label='Colour to paint with'>"
            f"{swatches}</div></div>"
        ),
    )
