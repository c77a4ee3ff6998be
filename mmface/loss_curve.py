"""A run's losses as a picture."""

import math
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from mmface.conditions import condition_kinds

SIZE_PX = (1200, 640)
LEFT, TOP, RIGHT, BOTTOM = 96, 64, 1168, 572
INK, FAINT, PAPER = (38, 38, 44), (214, 214, 220), (255, 255, 255)
KIND_COLOURS = ((31, 119, 180), (214, 96, 31), (44, 140, 70), (140, 86, 160))
"""Colours of the kinds of condition, in the order of their indices."""
SCALE = 2
"""Drawn this many times larger and then reduced, which makes smooth lines."""


def smoothed(values: Sequence[float], weight: float) -> list[float]:
    """Exponential mean of the values so far, without a pull towards the first of them."""
    total, share, result = 0.0, 0.0, []
    for value in values:
        total = weight * total + (1 - weight) * value
        share = weight * share + (1 - weight)
        result.append(total / share)
    return result


def _round_step(span: float) -> float:
    """A step of 1, 2 or 5 times a power of ten that cuts a span into four to ten parts."""
    magnitude = 10.0 ** math.floor(math.log10(span))
    return next(m * magnitude for m in (0.1, 0.2, 0.5, 1.0) if span / (m * magnitude) <= 10)


def _ticks(low: float, high: float) -> list[float]:
    step = _round_step(high - low)
    return [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _limits(values: Sequence[float]) -> tuple[float, float]:
    """The range of the values without the outermost outliers, so that a curve is not flattened."""
    ordered = sorted(values)
    high, low = ordered[int(0.995 * (len(ordered) - 1))], ordered[0]
    margin = 0.05 * (high - low) or max(abs(high), 1.0) * 0.05
    return low - margin, high + margin


class _Axes:
    """Maps steps and losses to pixels, and draws the frame."""

    def __init__(self, steps: tuple[float, float], losses: tuple[float, float]) -> None:
        self.steps, self.losses = steps, losses
        size = (SIZE_PX[0] * SCALE, SIZE_PX[1] * SCALE)
        self.canvas = Image.new("RGB", size, PAPER)
        self.draw = ImageDraw.Draw(self.canvas)
        self.font = ImageFont.load_default(size=20 * SCALE)

    def place(self, step: float, loss: float) -> tuple[float, float]:
        across = (step - self.steps[0]) / (self.steps[1] - self.steps[0])
        up = (min(max(loss, self.losses[0]), self.losses[1]) - self.losses[0]) / (
            self.losses[1] - self.losses[0]
        )
        x, y = LEFT + across * (RIGHT - LEFT), BOTTOM - up * (BOTTOM - TOP)
        return x * SCALE, y * SCALE

    def text(self, x: float, y: float, text: str, anchor: str, fill: tuple[int, ...]) -> None:
        self.draw.text((x, y), text, font=self.font, fill=fill, anchor=anchor)

    def frame(self, title: str) -> None:
        for loss in _ticks(*self.losses):
            start, end = self.place(self.steps[0], loss), self.place(self.steps[1], loss)
            self.draw.line([start, end], fill=FAINT, width=SCALE)
            self.text(start[0] - 10 * SCALE, start[1], f"{loss:.4g}", "rm", INK)
        for step in _ticks(*self.steps):
            x, y = self.place(step, self.losses[0])
            self.draw.line([(x, y), (x, y + 6 * SCALE)], fill=INK, width=SCALE)
            self.text(x, y + 12 * SCALE, f"{step:,.0f}", "mt", INK)
        self.text(LEFT * SCALE, 20 * SCALE, title, "lt", INK)

    def line(self, points: Sequence[tuple[float, float]], colour: tuple[int, ...], px: int) -> None:
        placed = [self.place(*point) for point in points]
        self.draw.line(placed, fill=colour, width=px * SCALE, joint="curve")


def draw_loss_curve(lines: Sequence[Mapping[str, float]], title: str) -> Image.Image | None:
    """Draw the losses of a run over its steps: as they were, faintly, and smoothed.

    Args:
        lines: the lines of `metrics.jsonl`, each with `step` and `loss`.
        title: what stands above the picture.

    Returns:
        An RGB picture, or None if fewer than two lines hold a loss.
    """
    colours = {"loss": INK}
    for kind, colour in zip(condition_kinds(), cycle(KIND_COLOURS), strict=False):
        colours[f"loss/{kind.name}"] = colour
    curves = {
        name: [
            (line["step"], line[name]) for line in lines if math.isfinite(line.get(name, math.nan))
        ]
        for name in colours
    }
    curves = {name: points for name, points in curves.items() if len(points) > 1}
    if "loss" not in curves:
        return None
    steps = [step for step, _ in curves["loss"]]
    axes = _Axes((min(steps), max(steps)), _limits([loss for _, loss in curves["loss"]]))
    axes.frame(title)
    faint = tuple(round(0.25 * c + 0.75 * 255) for c in INK)
    axes.line(curves["loss"], faint, 1)
    weight = 1 - 1 / max(1.0, len(steps) / 40)
    x: float = RIGHT * SCALE
    for name, points in reversed(curves.items()):
        path = smoothed([loss for _, loss in points], weight)
        axes.line([(s, y) for (s, _), y in zip(points, path, strict=True)], colours[name], 3)
        axes.text(x, 20 * SCALE, f"{name} {path[-1]:.4g}", "rt", colours[name])
        x -= axes.font.getlength(f"{name} {path[-1]:.4g}") + 32 * SCALE
    return axes.canvas.resize(SIZE_PX, Image.Resampling.LANCZOS)


def save_loss_curve(lines: Sequence[Mapping[str, float]], path: Path) -> None:
    """Draw the losses of a run into a PNG file, if there are enough of them."""
    picture = draw_loss_curve(lines, path.resolve().parent.name)
    if picture is not None:
        picture.save(path)
