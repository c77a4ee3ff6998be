"""Pictures to tensors and back: masks in any known label format, sketches and the crop.

Label maps are uint8 arrays [H, W] of class indices in the CelebAMask-HQ order (`LABELS`), and
sketches are uint8 grey pictures [H, W] with dark lines on white. Everything a person brings is
turned into one of these two forms here, and nowhere else.
"""

from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from itertools import permutations

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from PIL import Image
from torch import Tensor

from mmface.label_formats import (
    COLOR_TOLERANCE,
    Color,
    LabelFormat,
    class_indices,
    guess_label_format,
    label_format_named,
    nearest_colors,
)
from mmface.palette import (
    LABEL_INDEX,
    LABELS,
    LEFT_RIGHT_PAIRS,
    PALETTE,
    colorize,
    flip_labels,
)
from mmface.picture_files import (
    SKETCH_POLARITIES,
    Picture,
    flat_rgb,
    open_picture,
    picture_name,
)

__all__ = [
    "COLOR_TOLERANCE",
    "LABELS",
    "LABEL_INDEX",
    "LEFT_RIGHT_PAIRS",
    "PALETTE",
    "SKETCH_POLARITIES",
    "LoadedMask",
    "Modality",
    "Picture",
    "colorize",
    "flip_labels",
    "image_pixels",
    "load_mask",
    "load_sketch",
    "mask_pixels",
    "open_picture",
    "released_mask_pixels",
    "sketch_pixels",
    "to_uint8",
]


class Modality(IntEnum):
    """Which spatial condition a sample carries; the index into the model's modality table."""

    MASK = 0
    SKETCH = 1


def image_pixels(rgb: UInt8[np.ndarray, "height width 3"]) -> Float32[Tensor, "3 height width"]:
    """Turn an RGB picture into the pixels that a VAE reads, in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(rgb)).permute(2, 0, 1).float() / 127.5 - 1


def mask_pixels(labels: UInt8[np.ndarray, "height width"]) -> Float32[Tensor, "3 height width"]:
    """Draw a label map in the palette, as pixels in [-1, 1]."""
    return image_pixels(colorize(labels))


def sketch_pixels(grey: UInt8[np.ndarray, "height width"]) -> Float32[Tensor, "3 height width"]:
    """Repeat a grey sketch over three channels, as pixels in [-1, 1]."""
    return image_pixels(np.repeat(grey[..., None], 3, axis=2))


def to_uint8(
    pixels: Float[Tensor, "*batch 3 height width"],
) -> UInt8[np.ndarray, "*batch height width 3"]:
    """Turn pixels in [-1, 1] into RGB pictures, rounded; what lies outside is clamped."""
    scaled = ((pixels.detach().float() + 1) * 127.5).round().clamp(0, 255)
    return scaled.to(torch.uint8).movedim(-3, -1).cpu().numpy()


_EDGE_WIDTH_PX = 6  # off-palette colours farther than this from all others are no soft edge
_MAX_FOREIGN_FRACTION = 0.002
_MAX_OFF_PALETTE_FRACTION = 0.3
_DOUBTFUL_DISTANCE, _UNKNOWN = 8.0, 255
_AROUND = np.array([(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0)])


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
    top, left, height, width = _centre_crop(labels.shape, size)
    cropped = Image.fromarray(labels[top : top + height, left : left + width])
    resized = cropped.resize((size[1], size[0]), Image.Resampling.NEAREST)
    return LoadedMask(np.array(resized), off_palette_fraction)


def released_mask_pixels(
    source: Picture, size: tuple[int, int]
) -> Float32[Tensor, "3 height width"]:
    """Read a mask in the palette's colours as the released weights were shown it.

    Their masks were resized as colour pictures, whole and with LANCZOS, so that edges have colours
    of no class. `load_mask` keeps classes apart; this is for comparing with the release itself.

    Args:
        source: A colour picture in the palette of `celebamask_hq`, or indices 0..18, which are
            drawn in it first. Transparent pixels are background. It is not cropped.
        size: Height and width of the result in pixels.

    Returns:
        Pixels in [-1, 1].

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no picture, or a grey one with values above 18.
    """
    picture = open_picture(source)
    labels = _index_map(picture, label_format_named("celebamask_hq"), picture_name(source))
    rgb = flat_rgb(picture, "black") if labels is None else colorize(labels)
    resized = Image.fromarray(rgb).resize((size[1], size[0]), Image.Resampling.LANCZOS)
    return image_pixels(np.array(resized))


def load_sketch(
    source: Picture, size: tuple[int, int], polarity: str = "dark_on_white"
) -> UInt8[np.ndarray, "height width"]:
    """Read a sketch, crop its middle to the aspect ratio and resize.

    Args:
        source: A picture; colour becomes grey, transparent pixels become paper.
        size: Height and width of the result in pixels.
        polarity: What the source is, one of `SKETCH_POLARITIES`.

    Returns:
        The sketch, dark lines on white always.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no picture, is in colour, blank, or of the other polarity.
    """
    if polarity not in SKETCH_POLARITIES:
        known = " and ".join(SKETCH_POLARITIES)
        raise ValueError(f"There is no sketch polarity {polarity!r}; known are {known}.")
    dark_on_white = polarity == "dark_on_white"
    picture, name = open_picture(source), picture_name(source)
    rgb = flat_rgb(picture, "white" if dark_on_white else "black")
    if (np.ptp(rgb.astype(np.int16), axis=2) > 64).mean() > 0.25:
        raise ValueError(
            f"{name} is a colour picture, not a sketch; a segmentation mask goes in as the mask."
        )
    top, left, height, width = _centre_crop(rgb.shape[:2], size)
    grey = Image.fromarray(rgb).convert("L").crop((left, top, left + width, top + height))
    sketch = np.array(grey.resize((size[1], size[0]), Image.Resampling.LANCZOS))
    sketch = sketch if dark_on_white else 255 - sketch
    if np.ptp(sketch) < 32:
        raise ValueError(f"{name} is blank: no line in it; give dark lines on white.")
    # Portrait sketches may have a black background; the face in the middle is white in all.
    middle = sketch[size[0] // 4 : -(size[0] // 4) or None, size[1] // 4 : -(size[1] // 4) or None]
    if np.median(middle) < 128:
        found, remedy = (
            ("light lines on dark; sketches are dark lines on white", "white_on_dark")
            if dark_on_white
            else ("dark lines on white", "dark_on_white")
        )
        raise ValueError(
            f"{name} is {found}: invert it first (PIL.ImageOps.invert), or read it with the "
            f"polarity {remedy}."
        )
    return sketch


def _centre_crop(shape: tuple[int, ...], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Give top, left, height and width of the largest middle part with the aspect of `size`."""
    height = min(shape[0], max(1, round(shape[1] * size[0] / size[1])))
    width = min(shape[1], max(1, round(shape[0] * size[1] / size[0])))
    return (shape[0] - height) // 2, (shape[1] - width) // 2, height, width


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
