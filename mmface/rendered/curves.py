"""Curves and outlines as points: float64 [N, 2], x to the right and y down."""

from collections.abc import Sequence

import numpy as np

Point = tuple[float, float]


def spline(points: Sequence[Point], closed: bool = True, steps: int = 8) -> np.ndarray:
    """A Catmull-Rom curve through points.

    Args:
        points: at least two points that the curve passes through.
        closed: whether the curve returns to its first point.
        steps: how many points of the curve stand for each piece between two of `points`.

    Returns:
        The curve, float64 [N, 2]; an open one ends in the last of `points`, a closed one does
        not repeat its first.
    """
    p = np.asarray(points, np.float64)
    ends = (p[-1:], p[:2]) if closed else (p[:1], p[-1:])
    padded = np.concatenate([ends[0], p, ends[1]])
    a, b, c, d = (padded[i : len(padded) - 3 + i, None] for i in range(4))
    t = (np.arange(steps) / steps)[None, :, None]
    curve = 0.5 * (
        2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3
    )
    curve = curve.reshape(-1, 2)
    return curve if closed else np.concatenate([curve, p[-1:]])


def ellipse(
    x: float,
    y: float,
    rx: float,
    ry: float,
    start: float = 0.0,
    end: float = 2 * np.pi,
    count: int = 36,
) -> np.ndarray:
    """Points of an ellipse's arc, counter-clockwise on the picture.

    Args:
        x: centre.
        y: centre.
        rx: half the width.
        ry: half the height.
        start: angle of the first point in radians, 0 on the picture's right.
        end: angle of the last point in radians.
        count: number of points.

    Returns:
        The points, float64 [count, 2].
    """
    angles = np.linspace(start, end, count)
    return np.stack([x + rx * np.cos(angles), y - ry * np.sin(angles)], 1)


def mirror(half: Sequence[Point]) -> list[Point]:
    """A right half outline, listed top to bottom, followed by its mirror image."""
    left = [(-x, y) for x, y in reversed(half) if x != 0]
    return [*half, *left]


def ring(polygon: np.ndarray) -> np.ndarray:
    """A polygon's outline as a line that ends where it starts."""
    return np.concatenate([polygon, polygon[:1]])


def between(first: np.ndarray, second: np.ndarray, amount: float) -> np.ndarray:
    """The curve that lies between two others.

    Args:
        first: points [M, 2].
        second: points [N, 2]; M and N may differ.
        amount: 0 gives the first curve, 1 the second.

    Returns:
        The curve, float64 [24, 2].
    """
    t = np.linspace(0, 1, 24)

    def resample(curve: np.ndarray) -> np.ndarray:
        s = np.linspace(0, 1, len(curve))
        return np.stack([np.interp(t, s, curve[:, 0]), np.interp(t, s, curve[:, 1])], 1)

    return (1 - amount) * resample(first) + amount * resample(second)
