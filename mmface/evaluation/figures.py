"""Pictures beside a table: examples of every method, IoU by class, metrics against guidance."""

import math
from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw, ImageFont

from mmface.conditions import LABEL_INDEX, LABELS, PALETTE, Modality, colorize
from mmface.evaluation.generation import Pictures
from mmface.evaluation.references import References
from mmface.evaluation.tables import COLUMNS, Column
from mmface.grid import FAINT_INK, FRAME, INK, PAPER, GridRow, labelled_grid

SERIES = ((31, 119, 180), (214, 96, 31), (44, 140, 70), (148, 86, 176), (120, 120, 130))
"""Colours of methods, in order; they begin again after the last."""
SCALE = 2
"""Drawn this many times larger and then reduced, which makes smooth edges."""
_FONT_PX = 18


def examples_grid(
    references: References, methods: Mapping[str, Pictures], num_examples: int
) -> Image.Image:
    """Draw the first faces: condition, prompt, true picture, and every method's.

    Args:
        references: the faces.
        methods: pictures by method's name.
        num_examples: how many faces; those that a method lacks are left out.

    Returns:
        The grid.

    Raises:
        ValueError: if no face has a picture of every method.
    """
    shared = [
        item
        for item, id_ in enumerate(references.ids)
        if all(id_ in pictures.paths for pictures in methods.values())
    ][:num_examples]
    rows = []
    for item in shared:
        order = references.order(item, seed=0)
        is_mask = order.modality is Modality.MASK
        condition = colorize(order.condition) if is_mask else order.condition
        faces = [order.face.image, *(one.read(order.id) for one in methods.values())]
        pictures = [Image.fromarray(face) for face in faces]
        rows.append(GridRow(Image.fromarray(condition), order.prompt, pictures))
    return labelled_grid(rows, ["real", *methods])


class _Chart:
    """A canvas with a frame, drawn large and reduced at the end."""

    def __init__(self, size: tuple[int, int], title: str) -> None:
        self.size = size
        self.canvas = Image.new("RGB", (size[0] * SCALE, size[1] * SCALE), PAPER)
        self.draw = ImageDraw.Draw(self.canvas)
        self.font = ImageFont.load_default(size=_FONT_PX * SCALE)
        self.text((24, 20), title, "lt")

    def text(
        self, at: tuple[float, float], text: str, anchor: str, ink: tuple[int, ...] = INK
    ) -> None:
        place = (at[0] * SCALE, at[1] * SCALE)
        self.draw.text(place, text, font=self.font, fill=ink, anchor=anchor)

    def box(self, corners: tuple[float, float, float, float], fill: tuple[int, ...]) -> None:
        self.draw.rectangle([side * SCALE for side in corners], fill=fill)

    def line(
        self, points: Sequence[tuple[float, float]], fill: tuple[int, ...], px: int = 1
    ) -> None:
        placed = [(x * SCALE, y * SCALE) for x, y in points]
        self.draw.line(placed, fill=fill, width=px * SCALE, joint="curve")

    def dot(self, at: tuple[float, float], fill: tuple[int, ...]) -> None:
        x, y, radius = at[0] * SCALE, at[1] * SCALE, 5 * SCALE
        self.draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=fill)

    def legend(self, names: Sequence[str], y: float) -> None:
        x = 24.0
        for index, name in enumerate(names):
            self.box((x, y, x + 14, y + 14), SERIES[index % len(SERIES)])
            self.text((x + 22, y + 7), name, "lm")
            x += 22 + self.font.getlength(name) / SCALE + 28

    def finished(self) -> Image.Image:
        return self.canvas.resize(self.size, Image.Resampling.LANCZOS)


def class_iou_bars(class_ious: Mapping[str, Mapping[str, float | None]]) -> Image.Image:
    """Draw each method's intersection over union by class, over the whole set.

    Args:
        class_ious: by method and class, in [0, 1]; None for a class that does not occur.

    Returns:
        An RGB picture.

    Raises:
        ValueError: if there is no method, or no class that occurs.
    """
    present = [
        name for name in LABELS if any(one.get(name) is not None for one in class_ious.values())
    ]
    if not present:
        raise ValueError("there is no class to draw; score with a parser first")
    bar = max(5, 24 // len(class_ious))
    group = max(74, bar * len(class_ious) + 30)
    left, top, height = 64, 96, 320
    width = left + group * len(present) + 24
    chart = _Chart((width, top + height + 92), "Intersection over union by class")
    chart.legend(list(class_ious), 56)
    for tick in range(6):
        y = top + height * (1 - tick / 5)
        chart.line([(left, y), (width - 24, y)], FRAME)
        chart.text((left - 10, y), f"{tick / 5:.1f}", "rm", FAINT_INK)
    for index, name in enumerate(present):
        start = left + index * group + (group - bar * len(class_ious)) / 2
        for series, one in enumerate(class_ious.values()):
            value = one.get(name)
            if value is not None:
                x = start + series * bar
                corners = (x, top + height * (1 - value), x + bar - 1, top + height)
                chart.box(corners, SERIES[series % len(SERIES)])
        middle = left + (index + 0.5) * group
        swatch = (middle - 8, top + height + 10, middle + 8, top + height + 26)
        chart.box(swatch, tuple(int(c) for c in PALETTE[LABEL_INDEX[name]]))
        # Neighbouring names would touch on one line.
        chart.text((middle, top + height + (50 if index % 2 == 0 else 72)), name, "ms")
    return chart.finished()


def guidance_plot(
    curves: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]],
) -> Image.Image:
    """Draw metrics against the scale of guidance, a panel each.

    Args:
        curves: by metric, then method: pairs of scale and value, two or more.

    Returns:
        An RGB picture.

    Raises:
        ValueError: if there is no metric.
    """
    if not curves:
        raise ValueError("there is no curve to draw; give two or more guidance_scales")
    panel, left, top, height, gap = 340, 84, 132, 240, 110
    columns = min(3, len(curves))
    lines = math.ceil(len(curves) / columns)
    size = (left + columns * (panel + gap) - gap + 40, top + lines * (height + 100) - 20)
    chart = _Chart(size, "Metrics against the scale of guidance")
    methods = list(dict.fromkeys(name for each in curves.values() for name in each))
    chart.legend(methods, 56)
    for index, (metric, series) in enumerate(curves.items()):
        x = left + (index % columns) * (panel + gap)
        y = top + (index // columns) * (height + 100)
        _panel(chart, (x, y, panel, height), COLUMNS[metric], series, methods)
    return chart.finished()


def _panel(
    chart: _Chart,
    box: tuple[float, float, float, float],
    column: Column,
    series: Mapping[str, Sequence[tuple[float, float]]],
    methods: Sequence[str],
) -> None:
    x, y, width, height = box
    scales = [scale for points in series.values() for scale, _ in points]
    values = [value for points in series.values() for _, value in points]
    low, high = min(values), max(values)
    margin = 0.1 * (high - low) or max(abs(high), 1.0) * 0.05
    low, high = low - margin, high + margin
    first, span = min(scales), max(scales) - min(scales) or 1.0

    def place(scale: float, value: float) -> tuple[float, float]:
        across, up = (scale - first) / span, (value - low) / (high - low)
        return x + 14 + across * (width - 28), y + (1 - up) * height

    chart.text((x, y - 12), f"{column.title} ({column.better} is better)", "ls")
    for tick in range(5):
        value = low + (high - low) * tick / 4
        chart.line([(x, place(first, value)[1]), (x + width, place(first, value)[1])], FRAME)
        chart.text((x - 8, place(first, value)[1]), f"{value:.3g}", "rm", FAINT_INK)
    for scale in sorted(set(scales)):
        chart.text((place(scale, low)[0], y + height + 10), f"{scale:g}", "mt", FAINT_INK)
    for name, points in series.items():
        colour = SERIES[methods.index(name) % len(SERIES)]
        placed = [place(*point) for point in sorted(points)]
        chart.line(placed, colour, 3)
        for point in placed:
            chart.dot(point, colour)
