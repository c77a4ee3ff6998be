"""Curves and outlines as points: float64 [N, 2], x to the right and y down."""

from collections.abc import Sequence

import numpy as np

Point = tuple[float, float]


def spline(points: Sequence[Point], closed: bool = True, steps: int = 8) -> np.ndarray:
    """A Catmull-Rom curve through points, `steps` points for each piece: float64 [N, 2].

    An open one ends in the last of `points`, a closed one does not repeat its first.
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
    """Points of an ellipse's arc, counter-clockwise on the picture, float64 [count, 2].

    `rx` and `ry` are half axes; angles are in radians, 0 on the picture's right.
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
    """The curve, float64 [24, 2], that lies between two others; 0 gives the first, 1 the second."""
    t = np.linspace(0, 1, 24)

    def resample(curve: np.ndarray) -> np.ndarray:
        s = np.linspace(0, 1, len(curve))
        return np.stack([np.interp(t, s, curve[:, 0]), np.interp(t, s, curve[:, 1])], 1)

    return (1 - amount) * resample(first) + amount * resample(second)
