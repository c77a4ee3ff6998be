"""Pictures beside a table: examples of every method, IoU by class, metrics against guidance."""

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from mmface.conditions import LABEL_INDEX, LABELS, PALETTE
from mmface.core.files import write_bytes
from mmface.evaluation.generation import Pictures
from mmface.evaluation.references import References
from mmface.grid import FAINT_INK, FRAME, INK, PAPER, GridRow, labelled_grid
from mmface.metrics.metric import Column, columns

SERIES = (
    (31, 119, 180),
    (214, 96, 31),
    (44, 140, 70),
    (148, 86, 176),
    (120, 120, 130),
    (196, 160, 0),
    (200, 60, 110),
    (60, 180, 190),
    (120, 80, 50),
    (30, 30, 90),
)
"""Colours of methods, in order; they begin again after the last."""
SCALE = 2
"""Drawn this many times larger and then reduced, which makes smooth edges."""
_FONT_PX = 18
_LEGEND_PX = 28


def write_figure(figure: Image.Image, path: Path) -> None:
    """Write a figure as a PNG, aside first."""
    content = io.BytesIO()
    figure.save(content, "PNG", optimize=True)
    write_bytes(path, content.getvalue())


def round_ticks(low: float, high: float) -> list[float]:
    """Round numbers within a range, two to seven of them, a step of 1, 2 or 5 apart.

    Args:
        low: the range's lower end.
        high: its upper end, above the lower.

    Returns:
        The numbers, in order.
    """
    magnitude = 10.0 ** math.floor(math.log10(high - low))
    step = next(m * magnitude for m in (0.1, 0.2, 0.5, 1, 2) if (high - low) / m / magnitude <= 6)
    return [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


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
        condition = order.kind.draw(order.condition)
        faces = [order.face.image, *(one.read(order.id) for one in methods.values())]
        pictures = [Image.fromarray(face) for face in faces]
        rows.append(GridRow(condition, order.prompt, pictures))
    return labelled_grid(rows, ["real", *methods])


class _Chart:
    """A canvas of some width with a title and a legend, drawn large and reduced at the end."""

    def __init__(self, width: int, height: int, title: str, names: Sequence[str]) -> None:
        """Begin; the drawing may take `height` pixels from `top` down."""
        self.font = ImageFont.load_default(size=_FONT_PX * SCALE)
        places = self._legend_places(names, width)
        self.top = 56 + _LEGEND_PX * (1 + max(line for _, line in places)) + 26
        self.size = (width, self.top + height)
        self.canvas = Image.new("RGB", (width * SCALE, self.size[1] * SCALE), PAPER)
        self.draw = ImageDraw.Draw(self.canvas)
        self.text((24, 20), title, "lt")
        for index, (name, (x, line)) in enumerate(zip(names, places, strict=True)):
            y = 56 + line * _LEGEND_PX
            self.box((x, y, x + 14, y + 14), SERIES[index % len(SERIES)])
            self.text((x + 22, y + 7), name, "lm")

    def _legend_places(self, names: Sequence[str], width: int) -> list[tuple[float, int]]:
        """Where each name begins: pixels from the left, and the line."""
        places: list[tuple[float, int]] = []
        x, line = 24.0, 0
        for name in names:
            taken = 22 + self.font.getlength(name) / SCALE
            if places and x + taken > width - 24:
                x, line = 24.0, line + 1
            places.append((x, line))
            x += taken + 28
        return places

    def text(
        self, at: tuple[float, float], text: str, anchor: str, ink: tuple[int, ...] = INK
    ) -> float:
        """Write text, and give its length in pixels."""
        place = (at[0] * SCALE, at[1] * SCALE)
        self.draw.text(place, text, font=self.font, fill=ink, anchor=anchor)
        return self.font.getlength(text) / SCALE

    def upright_text(self, at: tuple[float, float], text: str) -> None:
        """Write text from below to above, its middle at a place."""
        length = math.ceil(self.font.getlength(text))
        strip = Image.new("RGB", (length, 2 * _FONT_PX * SCALE), PAPER)
        middle = (length / 2, _FONT_PX * SCALE)
        ImageDraw.Draw(strip).text(middle, text, font=self.font, fill=INK, anchor="mm")
        turned = strip.rotate(90, expand=True)
        corner = (at[0] * SCALE - turned.width / 2, at[1] * SCALE - turned.height / 2)
        self.canvas.paste(turned, (round(corner[0]), round(corner[1])))

    def arrow(self, at: tuple[float, float], up: bool) -> None:
        """Draw an arrow over a base line; the font has none."""
        x, foot, sign = at[0], at[1], 1 if up else -1
        head, tail = foot - 7 - 7 * sign, foot - 7 + 7 * sign
        self.line([(x, tail), (x, head)], INK, 2)
        self.line([(x - 5, head + 5 * sign), (x, head), (x + 5, head + 5 * sign)], INK, 2)

    def box(self, corners: tuple[float, float, float, float], fill: tuple[int, ...]) -> None:
        """Fill a rectangle from its left and upper to its right and lower edge."""
        left, top, right, bottom = (round(side * SCALE) for side in corners)
        self.draw.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), fill=fill)

    def line(
        self, points: Sequence[tuple[float, float]], fill: tuple[int, ...], px: int = 1
    ) -> None:
        """Draw a line through points."""
        placed = [(x * SCALE, y * SCALE) for x, y in points]
        self.draw.line(placed, fill=fill, width=px * SCALE, joint="curve")

    def dot(self, at: tuple[float, float], fill: tuple[int, ...]) -> None:
        """Draw a disc."""
        x, y, radius = at[0] * SCALE, at[1] * SCALE, 5 * SCALE
        self.draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=fill)

    def finished(self) -> Image.Image:
        """Give the picture."""
        return self.canvas.reduce(SCALE)


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
    bar = max(5, 55 // len(class_ious))
    group = max(74, bar * len(class_ious) + 19)
    left, height = 92, 320
    width = max(left + group * len(present) + 24, 480)
    chart = _Chart(width, height + 92, "Intersection over union by class", list(class_ious))
    top = chart.top
    chart.upright_text((28, top + height / 2), "IoU")
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
    panel, left, height, gap, between = 340, 84, 240, 96, 104
    across = 2 if len(curves) == 4 else min(3, len(curves))
    lines = math.ceil(len(curves) / across)
    width = left + across * (panel + gap) - gap + 32
    methods = list(dict.fromkeys(name for each in curves.values() for name in each))
    title = "Metrics against the scale of guidance"
    chart = _Chart(width, 22 + lines * (height + between) - 24, title, methods)
    for index, (metric, series) in enumerate(curves.items()):
        x = left + (index % across) * (panel + gap)
        y = chart.top + 22 + (index // across) * (height + between)
        _panel(chart, (x, y, panel, height), columns()[metric], series, methods)
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

    heading = chart.text((x, y - 12), column.title, "ls")
    chart.arrow((x + heading + 14, y - 12), up=column.better == "higher")
    ticks = round_ticks(low, high)
    digits = max(0, -math.floor(math.log10(ticks[1] - ticks[0]) + 1e-9))
    for value in ticks:
        chart.line([(x, place(first, value)[1]), (x + width, place(first, value)[1])], FRAME)
        chart.text((x - 8, place(first, value)[1]), f"{value:.{digits}f}", "rm", FAINT_INK)
    chart.line([(x, y), (x, y + height), (x + width, y + height)], FAINT_INK)
    for scale in sorted(set(scales)):
        across = place(scale, low)[0]
        chart.line([(across, y + height), (across, y + height + 5)], FAINT_INK)
        chart.text((across, y + height + 11), f"{scale:g}", "mt", FAINT_INK)
    chart.text((x + width / 2, y + height + 36), "guidance scale", "mt", FAINT_INK)
    for name, points in series.items():
        colour = SERIES[methods.index(name) % len(SERIES)]
        placed = [place(*point) for point in sorted(points)]
        chart.line(placed, colour, 3)
        for point in placed:
            chart.dot(point, colour)
