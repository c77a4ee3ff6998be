"""How far a picture agrees with its condition and its prompt."""

from collections.abc import Mapping

import numpy as np
from PIL import Image, ImageFilter

from mmface.conditions import LABELS


def confusion_matrix(truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Count pixels by (true class, predicted class).

    Args:
        truth: label map, uint8 [...].
        predicted: label map of the same shape.

    Returns:
        int64 [19, 19]; matrices of several pictures add up.
    """
    count = len(LABELS)
    joint = truth.astype(np.int64).ravel() * count + predicted.astype(np.int64).ravel()
    return np.bincount(joint, minlength=count * count).reshape(count, count)


def pixel_accuracy(confusion: np.ndarray) -> float:
    """Share of pixels with the right class, in [0, 1]."""
    return float(np.trace(confusion) / confusion.sum())


def class_iou(confusion: np.ndarray) -> np.ndarray:
    """Intersection over union of each class, float64 [19] in [0, 1]; NaN where truth has none."""
    hits = np.diag(confusion).astype(np.float64)
    union = confusion.sum(0) + confusion.sum(1) - hits
    return np.where(confusion.sum(1) > 0, hits / np.maximum(union, 1), np.nan)


def mean_iou(confusion: np.ndarray) -> float:
    """Mean over the classes that the truth has, in [0, 1]."""
    return float(np.nanmean(class_iou(confusion)))


def nearest_colour(
    image: np.ndarray, region: np.ndarray, colours: Mapping[str, tuple[int, int, int]]
) -> str:
    """Name the colour nearest (RGB L2) to the median of a region.

    Args:
        image: uint8 [H, W, 3].
        region: bool [H, W], with at least one pixel.
        colours: RGB by name.

    Returns:
        A key of `colours`.
    """
    median = np.median(image[region], axis=0)
    distances = {name: float(((median - rgb) ** 2).sum()) for name, rgb in colours.items()}
    return min(distances, key=distances.__getitem__)


def edge_agreement(image: np.ndarray, sketch: np.ndarray, tolerance_px: int = 1) -> float:
    """F-score of a picture's strongest edges against a sketch's lines, in [0, 1].

    As many edge pixels are taken as the sketch has line pixels, so that contrast does not count;
    an edge and a line meet when they are at most `tolerance_px` apart in each direction.

    Args:
        image: uint8 [H, W, 3].
        sketch: uint8 [H, W], dark lines on white.
        tolerance_px: how far apart an edge and a line may be.

    Returns:
        The harmonic mean of precision and recall.

    Raises:
        ValueError: if the sketch has no line darker than mid-grey.
    """
    lines = sketch < 128
    if not lines.any():
        raise ValueError("the sketch has no line darker than mid-grey")
    strength = edge_strength(image)
    edges = strength >= np.partition(strength.ravel(), -int(lines.sum()))[-int(lines.sum())]
    precision = (edges & _dilate(lines, tolerance_px)).sum() / edges.sum()
    recall = (lines & _dilate(edges, tolerance_px)).sum() / lines.sum()
    return float(2 * precision * recall / max(precision + recall, 1e-12))


def edge_strength(image: np.ndarray) -> np.ndarray:
    """Largest gradient over the colour channels, after a light blur: float32 [H, W]."""
    smooth = np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(0.7)), np.float32)
    down, across = np.gradient(smooth, axis=(0, 1))
    return np.hypot(down, across).max(-1)


def _dilate(region: np.ndarray, radius_px: int) -> np.ndarray:
    size = 2 * radius_px + 1
    picture = Image.fromarray(region.astype(np.uint8)).filter(ImageFilter.MaxFilter(size))
    return np.asarray(picture) > 0
