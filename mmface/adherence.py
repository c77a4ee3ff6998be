"""How far one picture follows the mask and the sketch that it was made from."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import UInt8

from mmface.conditions import (
    LABELS,
    class_iou,
    confusion_matrix,
    edge_agreement,
    mean_iou,
    pixel_accuracy,
)

Parser = Callable[[Sequence[UInt8[np.ndarray, "_ _ 3"]]], list[UInt8[np.ndarray, "_ _"]]]
"""Label maps of RGB pictures, such as `mmface.encoders.face_parser.FaceParser`."""


@dataclass(frozen=True)
class Adherence:
    """Agreement of a picture with its conditions; all in [0, 1], higher is better.

    Attributes:
        class_iou: Intersection over union of each class that the mask has; None without a mask.
        mean_iou: Their mean.
        pixel_accuracy: Share of the pixels with the mask's class.
        edges: F-score of the picture's strongest edges against the sketch's lines, one pixel
            apart at most; None without a sketch.
    """

    class_iou: Mapping[str, float] | None
    mean_iou: float | None
    pixel_accuracy: float | None
    edges: float | None

    @property
    def score(self) -> float:
        """One number to compare seeds by: mIoU, edges, or the mean of both."""
        found = [value for value in (self.mean_iou, self.edges) if value is not None]
        return sum(found) / len(found)

    def to_json(self) -> dict[str, Any]:
        """Give all numbers by name, the score included."""
        return {**asdict(self), "score": self.score}

    def table(self) -> str:
        """Draw a small table, a number a line."""
        rows = {"mIoU": self.mean_iou, "pixel accuracy": self.pixel_accuracy, "edges": self.edges}
        rows |= {f"  {name}": value for name, value in (self.class_iou or {}).items()}
        return "\n".join(
            f"  {name:<16}{value:6.3f}" for name, value in rows.items() if value is not None
        )


def check_measurable(sketch: np.ndarray | None) -> None:
    """Raise ValueError if a sketch has no line that edges can be compared with."""
    if sketch is not None and not (sketch < 128).any():
        raise ValueError("The sketch has no line darker than mid-grey to compare edges with.")


def measure_adherence(
    picture: UInt8[np.ndarray, "height width 3"],
    labels: UInt8[np.ndarray, "height width"] | None,
    sketch: UInt8[np.ndarray, "height width"] | None,
    parser: Parser | None,
) -> Adherence:
    """Compare a picture with what it was made from.

    Args:
        picture: The face in RGB.
        labels: The mask in the order of `LABELS`, or None.
        sketch: Dark lines on white, or None.
        parser: Reads a label map off the picture; needed with a mask.

    Returns:
        The agreement.

    Raises:
        ValueError: If there is neither, a mask has no parser, or the sketch no dark line.
    """
    if labels is None and sketch is None:
        raise ValueError("There is neither a mask nor a sketch to compare the picture with.")
    ious, mean, accuracy = None, None, None
    if labels is not None:
        if parser is None:
            raise ValueError("A face parser is needed to compare a picture with a mask.")
        confusion = confusion_matrix(labels, parser([picture])[0])
        each = zip(LABELS, class_iou(confusion).tolist(), strict=True)
        ious = {name: value for name, value in each if not math.isnan(value)}
        mean, accuracy = mean_iou(confusion), pixel_accuracy(confusion)
    edges = None
    if sketch is not None:
        check_measurable(sketch)
        edges = edge_agreement(picture, sketch)
    return Adherence(ious, mean, accuracy, edges)
