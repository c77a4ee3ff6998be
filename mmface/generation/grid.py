"""Labelled picture grids: a condition, its prompt and the faces made of them, a row each."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from mmface.conditions import condition_kind, condition_kinds
from mmface.rendered.examples import Example
from mmface.sampling.pipeline import MMFacePipeline

MARGIN_PX = 28
GAP_PX = 14
TITLE_PX = 34
INK = (38, 38, 44)
FAINT_INK = (120, 120, 130)
FRAME = (216, 216, 222)
PAPER = (255, 255, 255)


@dataclass(frozen=True)
class GridRow:
    """One row of a grid.

    Attributes:
        condition: The conditions, drawn.
        prompt: The text that was given with it.
        faces: The pictures that were made, one a column.
    """

    condition: Image.Image
    prompt: str
    faces: Sequence[Image.Image]


def labelled_grid(
    rows: Sequence[GridRow], face_titles: Sequence[str], cell_px: int = 224
) -> Image.Image:
    """Draw a grid: condition, prompt, faces.

    Args:
        rows: Rows with the same number of faces.
        face_titles: What stands above each column of faces.
        cell_px: Side of the square that each picture is fitted into.

    Returns:
        An RGB picture on white.

    Raises:
        ValueError: If there are no rows, or a row's faces do not match the titles.
    """
    if not rows or any(len(row.faces) != len(face_titles) for row in rows):
        raise ValueError(f"Each row of a grid needs {len(face_titles)} faces, one a title.")
    titles = ("condition", "prompt", *face_titles)
    step = cell_px + GAP_PX
    font_px = max(11, cell_px // 14)
    font = ImageFont.load_default(size=font_px)
    headings, line_px = [wrapped(title, font, cell_px) for title in titles], round(1.3 * font_px)
    first_top = MARGIN_PX + TITLE_PX + (max(map(len, headings)) - 1) * line_px
    width = 2 * MARGIN_PX + len(titles) * step - GAP_PX
    height = first_top + len(rows) * step - GAP_PX + MARGIN_PX
    canvas = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(canvas)
    for column, lines in enumerate(headings):
        middle = MARGIN_PX + column * step + cell_px // 2
        for above, line in enumerate(reversed(lines)):
            place = (middle, first_top - TITLE_PX + 6 - above * line_px)
            draw.text(place, line, font=font, fill=FAINT_INK, anchor="mt")
    for index, row in enumerate(rows):
        top = first_top + index * step
        _paste(canvas, row.condition, (MARGIN_PX, top), cell_px)
        _write(draw, row.prompt, (MARGIN_PX + step, top), cell_px)
        for column, face in enumerate(row.faces, start=2):
            _paste(canvas, face, (MARGIN_PX + column * step, top), cell_px)
    return canvas


def _paste(
    canvas: Image.Image, picture: Image.Image, corner: tuple[int, int], cell_px: int
) -> None:
    """Fit a picture into the middle of a cell, with a thin frame."""
    scale = cell_px / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    fitted = picture.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    left, top = corner[0] + (cell_px - size[0]) // 2, corner[1] + (cell_px - size[1]) // 2
    canvas.paste(fitted, (left, top))
    box = (left - 1, top - 1, left + size[0], top + size[1])
    ImageDraw.Draw(canvas).rectangle(box, outline=FRAME)


def _write(draw: ImageDraw.ImageDraw, text: str, corner: tuple[int, int], cell_px: int) -> None:
    """Write text into a cell, wrapped, as large as fits, its middle at the cell's middle."""
    padding = cell_px // 20
    room = cell_px - 2 * padding
    for size in range(max(8, cell_px // 13), 7, -1):
        font = ImageFont.load_default(size=size)
        lines = wrapped(text, font, room)
        line_px = round(size * 1.35)
        if len(lines) * line_px <= room:
            break
    else:
        kept = room // line_px
        lines = [*lines[: kept - 1], lines[kept - 1].rstrip() + " …"]
    top = corner[1] + (cell_px - len(lines) * line_px) // 2
    for index, line in enumerate(lines):
        draw.text((corner[0] + padding, top + index * line_px), line, font=font, fill=INK)


def wrapped(
    text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width_px: float
) -> list[str]:
    """Break text into lines that fit a width; a word that is too long is broken too."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width_px:
            lines[-1] = longer
            continue
        if lines[-1]:
            lines.append("")
        for character in word:
            if lines[-1] and font.getlength(lines[-1] + character) > width_px:
                lines.append("")
            lines[-1] += character
    return lines


def sample_examples(
    pipeline: MMFacePipeline, examples: Sequence[Example], seeds: Sequence[int], steps: int
) -> list[GridRow]:
    """Sample each example with each seed, all in one batch.

    Args:
        pipeline: What samples.
        examples: Conditions with their prompts.
        seeds: The seeds of each example's pictures.
        steps: Sampling steps.

    Returns:
        A row an example, with a face a seed.

    Raises:
        ValueError: If a condition does not fit.
    """
    names = [kind.name for kind in condition_kinds() if any(e.kind == kind.name for e in examples)]
    conditions: dict[str, Any] = {
        name: [e.path if e.kind == name else None for e in examples] for name in names
    }
    output = pipeline(
        [example.prompt for example in examples],
        **conditions,
        num_inference_steps=steps,
        num_images_per_prompt=len(seeds),
        seed=list(seeds) * len(examples),
    )
    faces, each = list(output.images), len(seeds)
    size = (pipeline.config.image_size, pipeline.config.image_size)
    rows = []
    for index, example in enumerate(examples):
        kind = condition_kind(example.kind)
        drawn = kind.draw(kind.load(example.path, size).values)
        rows.append(GridRow(drawn, example.prompt, faces[index * each : (index + 1) * each]))
    return rows
