"""Where the parts of a face lie in a label map, and what holds between them in upright faces."""

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

Relation = tuple[str, str, str]
"""A class, what is said of it, and another class: ("l_brow", "lies above", "l_eye")."""


class Part(NamedTuple):
    """Where a class lies in a mask: middle, bounds and size, in pixels; y points down."""

    number: int
    y: float
    x: float
    top: int
    bottom: int
    left: int
    right: int
    area: int


def parts_of(values: np.ndarray) -> dict[int, Part]:
    """Find where each index of a map [H, W] lies."""
    values = values[:: max(1, values.shape[0] // 128), :: max(1, values.shape[1] // 128)]
    found = {}
    for index in np.unique(values).tolist():
        y, x = np.nonzero(values == index)
        bounds = (int(y.min()), int(y.max()), int(x.min()), int(x.max()))
        found[index] = Part(index, float(y.mean()), float(x.mean()), *bounds, len(y))
    return found


def _above(one: Part, other: Part) -> bool:
    return one.y < other.y


def _higher(one: Part, other: Part) -> bool:
    return one.top < other.top


def _within(one: Part, other: Part) -> bool:
    return other.top <= one.y <= other.bottom and other.left <= one.x <= other.right


def _right_of(one: Part, other: Part) -> bool:
    return one.x > other.x


def _larger(one: Part, other: Part) -> bool:
    return one.area > 1.5 * other.area


RELATIONS: tuple[tuple[str, Callable[[Part, Part], bool], str], ...] = (
    (
        "lies above",
        _above,
        "l_brow/l_eye r_brow/r_eye l_eye/nose r_eye/nose nose/u_lip nose/l_lip u_lip/l_lip "
        "u_lip/mouth mouth/l_lip skin/neck skin/cloth neck/cloth l_lip/neck l_lip/neck_l hat/skin "
        "hair/cloth eye_g/nose l_ear/neck r_ear/neck l_brow/eye_g r_brow/eye_g ear_r/cloth",
    ),
    ("reaches higher than", _higher, "hair/skin hair/l_brow hair/r_brow hat/hair"),
    (
        "lies within the bounds of",
        _within,
        "nose/skin l_eye/skin r_eye/skin l_brow/skin r_brow/skin u_lip/skin l_lip/skin mouth/skin "
        "eye_g/skin",
    ),
    (
        "lies to the right of",
        _right_of,
        "l_eye/r_eye l_brow/r_brow l_ear/r_ear l_eye/nose nose/r_eye l_brow/nose nose/r_brow "
        "l_ear/l_eye r_eye/r_ear l_ear/skin skin/r_ear",
    ),
    (
        "is larger than",
        _larger,
        "skin/nose skin/l_eye skin/r_eye skin/l_brow skin/r_brow skin/u_lip skin/l_lip skin/mouth "
        "skin/l_ear skin/r_ear skin/ear_r skin/eye_g hair/l_brow hair/r_brow hair/nose",
    ),
)
"""What holds in nearly all upright faces; the subject's left is the picture's right."""

_ALWAYS_THERE = frozenset({"skin", "nose", "u_lip", "l_lip"})


def relations_of(parts: Mapping[str, Part]) -> Iterator[tuple[Relation, bool]]:
    """Yield each relation of two parts, by class name, and whether it holds.

    Skin, nose and lips are in any face: where one is missing, its relations do not hold.
    """
    for says, holds, pairs in RELATIONS:
        for pair in pairs.split():
            one, other = pair.split("/")
            if one in parts and other in parts:
                yield (one, says, other), holds(parts[one], parts[other])
            elif {one, other} <= _ALWAYS_THERE:
                yield (one, says, other), False
