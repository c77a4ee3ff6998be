"""Pictures beside a table: examples of every method, IoU by class, metrics against a setting."""

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from mmface.conditions import LABEL_INDEX, LABELS, PALETTE
from mmface.core.files import write_bytes
from mmface.evaluation.generation import Pictures
from mmface.evaluation.references import References
from mmface.generation.grid import GridRow, labelled_grid
from mmface.metrics.metric import columns

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LEGEND_CHARACTERS = 11
"""Characters of a legend that fit into an inch."""


def write_figure(figure: "Image.Image | Figure", path: Path) -> None:
    """Write a figure as a PNG, complete or not at all."""
    content = io.BytesIO()
    if isinstance(figure, Image.Image):
        figure.save(content, "PNG", optimize=True)
    else:
        figure.savefig(content, format="png", dpi=144, metadata={"Software": None})
    write_bytes(path, content.getvalue())


def examples_grid(
    references: References, methods: Mapping[str, Pictures], num_examples: int
) -> Image.Image:
    """Draw the first faces: condition, prompt, true picture, and every method's.

    Faces that a method lacks are left out.
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


def _figure(width: float, height: float) -> "Figure":
    """A figure that no window knows of; sizes in inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.12, wspace=0.06, hspace=0.08)
    return figure


def _calm(axes: "Axes") -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="0.9")
    axes.set_axisbelow(True)


def _heading(figure: "Figure", title: str) -> None:
    """Write title and legend above all panels."""
    handles, names = figure.axes[0].get_legend_handles_labels()
    width = max(map(len, names)) / _LEGEND_CHARACTERS + 0.6
    fitting = max(1, int(figure.get_figwidth() / width))
    figure.set_figheight(figure.get_figheight() + 0.22 * math.ceil(len(names) / fitting))
    figure.legend(
        handles,
        names,
        loc="outside upper left",
        ncols=min(len(names), fitting),
        frameon=False,
        title=title,
        title_fontsize=13,
        alignment="left",
    )


def class_iou_bars(class_ious: Mapping[str, Mapping[str, float | None]]) -> "Figure":
    """Draw each method's IoU by class, in [0, 1]; None for a class that does not occur."""
    present = [
        name for name in LABELS if any(one.get(name) is not None for one in class_ious.values())
    ]
    if not present:
        raise ValueError("there is no class to draw; score with a parser first")
    share = 0.8 / len(class_ious)
    group = max(0.55, 0.1 * len(class_ious))
    figure = _figure(max(6.0, 1.0 + group * len(present)), 4.4)
    axes = figure.add_subplot(ylabel="IoU", ylim=(0, 1))
    _calm(axes)
    for series, (method, ious) in enumerate(class_ious.items()):
        places = [place + (series + 0.5) * share - 0.4 for place in range(len(present))]
        heights = [math.nan if (value := ious.get(name)) is None else value for name in present]
        axes.bar(places, heights, 0.9 * share, color=f"C{series % 10}", label=method)
    axes.set_xlim(-0.6, len(present) - 0.4)
    axes.set_xticks(range(len(present)), present, rotation=40, ha="right", rotation_mode="anchor")
    colours = [tuple(PALETTE[LABEL_INDEX[name]] / 255) for name in present]
    axes.scatter(
        range(len(present)),
        [-0.025] * len(present),
        c=colours,
        marker="s",
        edgecolors="0.4",
        linewidths=0.5,
        clip_on=False,
        zorder=3,
    )
    axes.tick_params(axis="x", length=0, pad=9)
    _heading(figure, "Intersection over union by class")
    return figure


def sweep_plot(
    curves: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]], setting: str
) -> "Figure":
    """Draw metrics against a setting, such as the scale of guidance, a panel each.

    `curves` holds pairs of the setting's value and the metric's by column, then method.
    """
    if not curves:
        raise ValueError(f"there is no curve to draw; give two or more values of the {setting}")
    across = 2 if len(curves) == 4 else min(3, len(curves))
    down = math.ceil(len(curves) / across)
    figure = _figure(max(4.6, 3.4 * across), 1.0 + 2.7 * down)
    methods = list(dict.fromkeys(name for each in curves.values() for name in each))
    for place, (column, series) in enumerate(curves.items(), 1):
        axes: Any = figure.add_subplot(down, across, place, xlabel=setting)
        axes.set_title(columns()[column].heading, loc="left", fontsize=11)
        _calm(axes)
        for method, points in series.items():
            axes.plot(
                *zip(*sorted(points), strict=True), f"C{methods.index(method) % 10}o-", label=method
            )
        values = sorted({value for points in series.values() for value, _ in points})
        axes.set_xticks(values, [f"{value:g}" for value in values])
        axes.margins(x=0.08, y=0.12)
    _heading(figure, f"Metrics against the {setting}")
    return figure
