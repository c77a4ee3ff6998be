"""A run's losses as a picture."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mmface.conditions import condition_kinds

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def smoothed(values: Sequence[float], weight: float) -> list[float]:
    """Exponential mean of the values so far, without a pull towards the first of them."""
    total, share, result = 0.0, 0.0, []
    for value in values:
        total = weight * total + (1 - weight) * value
        share = weight * share + (1 - weight)
        result.append(total / share)
    return result


def _limits(values: Sequence[float]) -> tuple[float, float]:
    """The range of the values without the outermost outliers, so that a curve is not flattened."""
    ordered = sorted(values)
    high, low = ordered[int(0.995 * (len(ordered) - 1))], ordered[0]
    margin = 0.05 * (high - low) or max(abs(high), 1.0) * 0.05
    return low - margin, high + margin


def draw_loss_curve(lines: Sequence[Mapping[str, float]], title: str) -> "Figure | None":
    """Draw the losses of a run over its steps: as they were, faintly, and smoothed.

    Args:
        lines: the lines of `metrics.jsonl`, each with `step` and `loss`, and perhaps with the loss
            of each kind of condition.
        title: what stands above the picture.

    Returns:
        A figure, or None if fewer than two lines hold a loss.
    """
    names = ["loss", *(f"loss/{kind.name}" for kind in condition_kinds())]
    curves = {
        name: [
            (line["step"], line[name]) for line in lines if math.isfinite(line.get(name, math.nan))
        ]
        for name in names
    }
    curves = {name: points for name, points in curves.items() if len(points) > 1}
    if "loss" not in curves:
        return None
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 5.4), layout="constrained")
    axes = figure.add_subplot(xlabel="step")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="0.9")
    axes.plot(*zip(*curves["loss"], strict=True), color="0.8", linewidth=0.8)
    weight = 1 - 1 / max(1.0, len(curves["loss"]) / 40)
    for name, points in curves.items():
        steps, losses = zip(*points, strict=True)
        path = smoothed(losses, weight)
        colour = "0.15" if name == "loss" else f"C{names.index(name) - 1}"
        axes.plot(steps, path, color=colour, linewidth=2, label=f"{name} {path[-1]:.4g}")
    axes.set_xlim(curves["loss"][0][0], curves["loss"][-1][0])
    axes.set_ylim(*_limits([loss for _, loss in curves["loss"]]))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    figure.legend(
        loc="outside upper left",
        ncols=4,
        frameon=False,
        title=title,
        title_fontsize=13,
        alignment="left",
    )
    return figure


def save_loss_curve(lines: Sequence[Mapping[str, float]], path: Path) -> None:
    """Draw the losses of a run into a PNG file, if there are enough of them."""
    figure = draw_loss_curve(lines, path.resolve().parent.name)
    if figure is not None:
        figure.savefig(path, dpi=120)
