"""Segmentation masks: reading them in any known label format, drawing and comparing them.

Label maps are uint8 arrays [H, W] of class indices in the CelebAMask-HQ order (`LABELS`).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations
from typing import ClassVar

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from mmface.conditions.kind import (
    Color,
    ConditionKind,
    LoadedCondition,
    Parser,
    Picture,
    Reading,
    centre_crop,
    flat_rgb,
    nearest_colors,
    open_picture,
    picture_name,
    register,
)
from mmface.conditions.label_formats import (
    COLOR_TOLERANCE,
    LABEL_FORMATS,
    LabelFormat,
    class_indices,
    guess_label_format,
    label_format_named,
)
from mmface.conditions.palette import LABELS, LEFT_RIGHT_PAIRS, PALETTE

_EDGE_WIDTH_PX = 6  # off-palette colours farther than this from all others are no soft edge
_MAX_FOREIGN_FRACTION = 0.002
_MAX_OFF_PALETTE_FRACTION = 0.3
_DOUBTFUL_DISTANCE, _UNKNOWN = 8.0, 255
_AROUND = np.array([(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0)])


_MIRRORED = np.arange(len(LABELS), dtype=np.uint8)
for _left, _right in LEFT_RIGHT_PAIRS:
    _MIRRORED[[_left, _right]] = _right, _left


def flip_labels(labels: np.ndarray) -> np.ndarray:
    """Mirror a label map [H, W] left to right, and swap the subject's left and right parts."""
    return _MIRRORED[labels[:, ::-1]]


def colorize(labels: np.ndarray) -> np.ndarray:
    """Draw a label map in the palette's colours: uint8 [H, W] -> uint8 [H, W, 3]."""
    return PALETTE[labels]


@dataclass(frozen=True)
class LoadedMask:
    """A mask as the model wants it.

    Attributes:
        labels: Class indices into `LABELS`.
        off_palette_fraction: Share of the source's pixels, in [0, 1], that were farther than
            `COLOR_TOLERANCE` from every palette colour and took the class of a neighbour.
    """

    labels: UInt8[np.ndarray, "height width"]
    off_palette_fraction: float

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes that occur."""
        return tuple(LABELS[index] for index in np.unique(self.labels))


def load_mask(
    source: Picture, size: tuple[int, int], label_format: str = "celebamask_hq"
) -> LoadedMask:
    """Read a segmentation mask: a picture in a palette's colours, or a map of class indices.

    Pixels are snapped to classes at the source's own resolution, then the middle is cropped to the
    aspect ratio of `size` and resized by nearest neighbour: no class is invented by mixing two
    others. Where soft edges mixed them before, a pixel takes the class of the nearest sure one.

    Args:
        source: A colour picture, soft edges allowed; or indices 0..18 as an array [H, W] or a grey
            or palette picture. Transparent pixels are background.
        size: Height and width of the result in pixels.
        label_format: Order and colours of the source's classes, a name in `LABEL_FORMATS`. The
            result is in the order of `LABELS` always.

    Returns:
        The label map, and how much of it had to be guessed.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no picture, or no mask in this format, or there is no such format.
    """
    format_ = label_format_named(label_format)
    picture, name = open_picture(source), picture_name(source)
    labels = _index_map(picture, format_, name)
    off_palette_fraction = 0.0
    if labels is None:
        labels, off_palette_fraction = _decode_colors(picture, format_, name)
    top, left, height, width = centre_crop(labels.shape, size)
    cropped = Image.fromarray(labels[top : top + height, left : left + width])
    resized = cropped.resize((size[1], size[0]), Image.Resampling.NEAREST)
    return LoadedMask(np.array(resized), off_palette_fraction)


def released_mask_rgb(
    source: Picture, size: tuple[int, int]
) -> UInt8[np.ndarray, "height width 3"]:
    """Read a mask in the palette's colours as the released weights were shown it.

    Their masks were resized as colour pictures, whole and with LANCZOS, so that edges have colours
    of no class. `load_mask` keeps classes apart; this is for comparing with the release itself.

    Args:
        source: A colour picture in the palette of `celebamask_hq`, or indices 0..18, which are
            drawn in it first. Transparent pixels are background. It is not cropped.
        size: Height and width of the result in pixels.

    Returns:
        The picture.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no picture, or a grey one with values above 18.
    """
    picture = open_picture(source)
    labels = _index_map(picture, label_format_named("celebamask_hq"), picture_name(source))
    rgb = flat_rgb(picture, "black") if labels is None else colorize(labels)
    resized = Image.fromarray(rgb).resize((size[1], size[0]), Image.Resampling.LANCZOS)
    return np.array(resized)


def _index_map(picture: Image.Image, format_: LabelFormat, name: str) -> np.ndarray | None:
    """Read a picture as a map of class indices; None if colours carry them."""
    values = class_indices(picture, [format_.palette] if format_.palette else [])
    if values is None:
        return None
    if values.max() >= len(LABELS):
        raise ValueError(
            f"{name} is a grey picture with values up to {values.max()}, not a mask: give the 19 "
            "palette colours, or class indices 0..18. A sketch goes in as the sketch."
        )
    return format_.to_labels[values]


def _decode_colors(
    picture: Image.Image, format_: LabelFormat, name: str
) -> tuple[np.ndarray, float]:
    """Snap a colour picture to classes; also give the share of its pixels off the palette."""
    if not format_.palette:
        raise ValueError(
            f"{name} is in colour, but masks of the label format {format_.name!r} are maps of "
            f"class indices.{_other_format(picture)}"
        )
    rgb = flat_rgb(picture, "black")
    labels, distance, packed = nearest_colors(rgb, format_.label_palette)
    if not distance.any():  # exact colours have no soft edges: each pixel is what it says
        return labels, 0.0
    off_palette = distance > COLOR_TOLERANCE
    off_palette_fraction = float(off_palette.mean())
    foreign = ~_grown(~off_palette, _EDGE_WIDTH_PX)
    if off_palette_fraction > _MAX_OFF_PALETTE_FRACTION or foreign.mean() > _MAX_FOREIGN_FRACTION:
        colors, counts = np.unique(packed[off_palette], return_counts=True)
        most = [int(colors[index]) for index in counts.argsort()[::-1][:3]]
        listed = ", ".join(f"({c >> 16}, {c >> 8 & 255}, {c & 255})" for c in most)
        raise ValueError(
            f"{name} is not a mask in the {format_.title} palette: {off_palette_fraction:.1%} of "
            f"its pixels are far from all 19 colours, most often {listed}."
            f"{_other_format(picture)} Redraw it in mmface.conditions.PALETTE, or save the class "
            "indices 0..18 as a grey PNG."
        )
    fringes = _fringes(np.where(off_palette, _UNKNOWN, labels), distance, format_.label_palette)
    known = ~(off_palette | fringes)
    return _filled(labels, known, rgb, format_.label_palette), off_palette_fraction


def _other_format(picture: Image.Image) -> str:
    """Say which other format has a picture's colours, if one has."""
    found = guess_label_format([picture]).format
    return f" Its colours are those of the label format {found.name!r}." if found else ""


def _grown(area: np.ndarray, radius: int) -> np.ndarray:
    """Grow a bool area by `radius` pixels in each direction, diagonals included."""
    for axis in (0, 1):
        count = area.shape[axis]
        grown = area.copy()
        for shift in range(1, min(radius, count - 1) + 1):
            ahead, behind = [slice(None)] * 2, [slice(None)] * 2
            ahead[axis], behind[axis] = slice(shift, None), slice(None, -shift)
            grown[tuple(ahead)] |= area[tuple(behind)]
            grown[tuple(behind)] |= area[tuple(ahead)]
        area = grown
    return area


@lru_cache(maxsize=4)
def _mixtures(palette: tuple[Color, ...]) -> tuple[tuple[int, int, int], ...]:
    """List (a, b, c) where a mixture of the colours of a and b looks like c."""
    colors = np.array(palette, dtype=np.float64)
    found = []
    for a, b, c in permutations(range(len(LABELS)), 3):
        along = colors[b] - colors[a]
        share = (colors[c] - colors[a]) @ along / (along @ along)
        off = np.linalg.norm(colors[a] + share * along - colors[c])
        if a < b and 0 < share < 1 and off <= COLOR_TOLERANCE:
            found.append((a, b, c))
    return tuple(found)


def _fringes(labels: np.ndarray, distance: np.ndarray, palette: tuple[Color, ...]) -> np.ndarray:
    """Find pixels that look like a class but are the mixture of two others; bool [H, W].

    The lower lip (0, 0, 153), for example, lies between hair (0, 0, 204) and background. Fringes
    are thin and between their two classes, or are specks on a soft edge.
    """
    present = set(np.unique(labels).tolist()) - {_UNKNOWN}
    area = {index: labels == index for index in present}
    solid = {index: _grown(~_grown(~area[index], 1), 1) for index in present}
    near = {index: _grown(area[index], 4) for index in present}
    doubtful = (distance > _DOUBTFUL_DISTANCE) | _grown(labels == _UNKNOWN, 1)
    fringes = np.zeros(labels.shape, dtype=bool)
    for index in present:
        fringes |= area[index] & ~_grown(solid[index], 4) & doubtful
    for a, b, mixed in _mixtures(palette):
        if {a, b, mixed} <= present:
            fringes |= area[mixed] & ~solid[mixed] & near[a] & near[b]
    return fringes


def _filled(
    labels: np.ndarray, known: np.ndarray, rgb: np.ndarray, palette: tuple[Color, ...]
) -> np.ndarray:
    """Give unknown pixels the class of the nearest known one, of equally near ones the likest."""
    padded = np.pad(np.where(known, labels, _UNKNOWN), 1, constant_values=_UNKNOWN)
    colors_of = np.vstack([palette, np.full((237, 3), 1e6)])  # an unknown one is never nearest
    places = np.argwhere(~known)
    while len(places):
        around = padded[tuple((places[:, None] + 1 + _AROUND).transpose(2, 0, 1))]
        colors = rgb[tuple(places.T)].astype(np.float64)
        likest = np.linalg.norm(colors_of[around] - colors[:, None], axis=2).argmin(axis=1)
        found = around[np.arange(len(places)), likest]
        padded[tuple(places.T + 1)] = found
        places = places[found == _UNKNOWN]
    return padded[1:-1, 1:-1]


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


class MaskKind(ConditionKind):
    """Segmentation masks; the values are label maps."""

    name: ClassVar = "mask"
    index: ClassVar = 0
    help: ClassVar = "Segmentation mask."
    score: ClassVar = "mean_iou"
    reading: ClassVar = Reading("label_format", tuple(LABEL_FORMATS))
    needs_parser: ClassVar = True
    titles: ClassVar = {"mean_iou": "mean IoU", **{f"iou/{name}": name for name in LABELS}}

    def load(
        self, source: Picture, size: tuple[int, int], reading: str | None = None
    ) -> LoadedCondition:
        """Read a mask by `load_mask`."""
        mask = load_mask(source, size, self.reading.default if reading is None else reading)
        if not mask.off_palette_fraction:
            return LoadedCondition(mask.labels)
        return LoadedCondition(
            mask.labels,
            f"{mask.off_palette_fraction:.1%} of the pixels were farther than "
            f"{COLOR_TOLERANCE:g} from every palette colour and took a neighbour's class; "
            f"the mask has {', '.join(mask.classes)}",
        )

    def rgb(self, values: np.ndarray) -> UInt8[np.ndarray, "height width 3"]:
        """Draw a label map in the palette's colours."""
        return colorize(values)

    def mirror(self, values: np.ndarray) -> np.ndarray:
        """Mirror a label map by `flip_labels`."""
        return flip_labels(values)

    def read_back(
        self, pictures: Sequence[UInt8[np.ndarray, "height width 3"]], parser: Parser | None
    ) -> list[np.ndarray]:
        """Read label maps by the face parser."""
        assert parser is not None
        return parser(pictures)

    def agreement(self, values: np.ndarray, read: np.ndarray) -> Mapping[str, float]:
        """Give the mean IoU, the share of right pixels and the IoU of each class of the mask."""
        confusion = confusion_matrix(values, read)
        ious = zip(LABELS, class_iou(confusion).tolist(), strict=True)
        return {
            "mean_iou": mean_iou(confusion),
            "pixel_accuracy": pixel_accuracy(confusion),
            **{f"iou/{name}": value for name, value in ious if not math.isnan(value)},
        }


MASK = register(MaskKind())
