"""Sketches: reading and comparing them. They are uint8 [H, W], dark lines on white."""

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image, ImageFilter, ImageOps

from mmface.conditions.kind import (
    ConditionKind,
    LoadedCondition,
    Picture,
    Reading,
    centre_crop,
    flat_rgb,
    open_picture,
    picture_name,
    register,
)
from mmface.conditions.mask import MASK

SKETCH_POLARITIES = ("dark_on_white", "white_on_dark")
"""How sketches are drawn; the model uses the first."""


def load_sketch(
    source: Picture, size: tuple[int, int], polarity: str = "dark_on_white"
) -> UInt8[np.ndarray, "height width"]:
    """Read a sketch as `read_sketch` does, without the remarks."""
    return read_sketch(source, size, polarity).values


def read_sketch(source: Picture, size: tuple[int, int], polarity: str) -> LoadedCondition:
    """Read a sketch, crop its middle to the aspect ratio of height and width `size`, and resize it.

    The result is dark lines on white; `polarity`, one of `SKETCH_POLARITIES`, is the source's.
    Colour becomes grey, and transparent pixels become paper; remarks tell what else was changed.
    ValueError if it is no picture, is in colour, blank, or of the other polarity.
    """
    if polarity not in SKETCH_POLARITIES:
        known = " and ".join(SKETCH_POLARITIES)
        raise ValueError(f"There is no sketch polarity {polarity!r}; known are {known}.")
    picture, name = open_picture(source), picture_name(source)
    top, left, height, width = centre_crop((picture.height, picture.width), size)
    picture = _eight_bits(picture.crop((left, top, left + width, top + height)), name)
    dark_on_white, remarks = polarity == SKETCH_POLARITIES[0], list[str]()
    rgb = flat_rgb(picture, "white" if dark_on_white else "black")
    if picture.has_transparency_data and np.ptp(rgb) < _MIN_CONTRAST:
        rgb = 255 - np.repeat(np.array(picture.convert("RGBA"))[..., 3:], 3, axis=2)
        dark_on_white = True
        remarks.append("what is not transparent was taken for dark lines")
    if _colorful(rgb) and (paper := _paper_color(rgb)) is not None:
        lit = rgb * (255 / np.maximum(paper, 32))
        rgb = lit.clip(0, 255).round().astype(np.uint8)
        remarks.append(f"its paper of the colour {tuple(paper.tolist())} was made white")
    if _colorful(rgb):
        raise ValueError(
            f"{name} is a colour picture, not a sketch; a segmentation mask goes in as the mask."
        )
    grey = Image.fromarray(rgb).convert("L")
    sketch = np.array(grey.resize((size[1], size[0]), Image.Resampling.LANCZOS))
    sketch = sketch if dark_on_white else 255 - sketch
    if min(height / size[0], width / size[1]) > _NEAR_SIZE:
        sketch = _ink_kept(np.array(grey) if dark_on_white else 255 - np.array(grey), sketch)
    evened = _evened(sketch)
    if evened is not None:
        sketch = evened
        remarks.append("its light or paper was evened out, and its lines made darker")
    if np.ptp(sketch) < _MIN_CONTRAST:
        raise ValueError(
            f"{name} is blank: no line in it that differs from the paper; give dark lines on "
            "white, or scan faint ones with more contrast."
        )
    # Portrait sketches may have a black background; the face in the middle is white in all.
    if np.median(_middle(sketch)) < 128:
        found, remedy = (
            ("light lines on dark; sketches are dark lines on white", "white_on_dark")
            if dark_on_white
            else ("dark lines on white", "dark_on_white")
        )
        raise InvertedError(
            f"{name} is {found}: invert it first (PIL.ImageOps.invert), or read it with the "
            f"polarity {remedy}."
        )
    return LoadedCondition(sketch, "; ".join(remarks) or None)


class InvertedError(ValueError):
    """A sketch has the other polarity."""


_MIN_CONTRAST = 32
_NEAR_SIZE = 1.5  # times the wanted size, up to which no line is lost
_CELLS = 16


def _middle(sketch: np.ndarray) -> np.ndarray:
    height, width = (length // 4 for length in sketch.shape)
    return sketch[height : -height or None, width : -width or None]


def _eight_bits(picture: Image.Image, name: str) -> Image.Image:
    """Convert grey pictures of 16 bits or floats to 8 bits; leave others alone."""
    if picture.mode not in ("I", "F") and not picture.mode.startswith("I;16"):
        return picture
    values = np.array(picture).astype(np.float64)
    if not np.isfinite(values).all() or values.min() < 0:
        raise ValueError(f"{name} has values that are negative or not finite.")
    highest = values.max()
    ends: tuple[float, ...] = (1.0,) if picture.mode == "F" else ()
    white = next(
        (end for end in (*ends, 255.0, 1023.0, 4095.0, 65535.0) if highest <= end), highest
    )
    return Image.fromarray((values * (255 / white)).round().astype(np.uint8))


def _colorful(rgb: np.ndarray) -> bool:
    return bool((np.ptp(rgb.astype(np.int16), axis=2) > 64).mean() > 0.25)


def _paper_color(rgb: np.ndarray) -> np.ndarray | None:
    """The colour of most of a picture, uint8 [3]; None if there is none."""
    bins, counts = np.unique((rgb >> 4).reshape(-1, 3), axis=0, return_counts=True)
    first = bins[counts.argmax()].astype(np.int16) * 16 + 8
    near = np.abs(rgb.astype(np.int16) - first).max(axis=2) <= 24
    if near.mean() < 0.5 or first.max() < 96:
        return None
    return np.median(rgb[near], axis=0).astype(np.uint8)


def _ink(darkness: np.ndarray) -> float:
    """Darkness of the lines, from the darkness [0, 255] of each pixel."""
    lines = darkness[darkness > max(4.0, float(darkness.max()) / 4)]
    return float(np.percentile(lines, 90)) if lines.size else 0.0


def _ink_kept(source: np.ndarray, reduced: np.ndarray) -> np.ndarray:
    """Restore the darkness that lines lost when a sketch was shrunk."""
    paper = float(np.median(_middle(source)))
    exact = Image.fromarray(source.astype(np.float32)).resize(
        reduced.shape[::-1], Image.Resampling.BOX
    )
    darkness = (paper - np.asarray(exact)).clip(0, 255)
    wanted, found = _ink((paper - source.astype(np.float32)).clip(0, 255)), _ink(darkness)
    if paper < 128 or not found or wanted / found < _FAINTER:
        return reduced
    return (paper - darkness * (wanted / found)).clip(0, 255).round().astype(np.uint8)


_FAINTER = 1.3


def _evened(sketch: np.ndarray) -> np.ndarray | None:
    """Divide a sketch by the light on its paper, and darken faint lines.

    The light is a quadratic surface through the brightest parts of a grid of cells. White if there
    are no lines; None if the paper is white and even already, fits no such surface, is too dark, or
    has light lines.
    """
    height, width = sketch.shape
    if min(height, width) < _CELLS:
        return None
    rows, columns = np.arange(height) * _CELLS // height, np.arange(width) * _CELLS // width
    cells = np.empty((_CELLS, _CELLS))
    for row, column in np.ndindex(cells.shape):
        cells[row, column] = np.percentile(sketch[rows == row][:, columns == column], 80)

    def surface(y: np.ndarray, x: np.ndarray) -> np.ndarray:
        return np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=-1)

    y, x = (axis.ravel() for axis in np.mgrid[0:_CELLS, 0:_CELLS] / (_CELLS - 1) * 2 - 1)
    terms, levels, kept = surface(y, x), cells.ravel(), np.ones(_CELLS**2, dtype=bool)
    for _ in range(8):
        fit = terms @ np.linalg.lstsq(terms[kept], levels[kept], rcond=None)[0]
        kept = levels > fit - np.maximum(0.08 * fit, 3)
        if kept.sum() < 0.5 * kept.size:
            return None
    if (np.abs(levels - fit) > 0.08 * np.abs(fit) + 3).mean() > 0.4 or fit.min() < 24:
        return None
    weights = np.linalg.lstsq(terms[kept], levels[kept], rcond=None)[0]
    y, x = np.mgrid[0:height, 0:width] / np.array([height - 1, width - 1]).reshape(2, 1, 1) * 2 - 1
    paper = surface(y, x) @ weights
    lit = sketch * (255 / np.maximum(paper, 16))
    noise = 1.4826 * float(np.median(np.abs(lit - np.median(lit))))
    ink = 255 - float(np.percentile(lit, 0.1))
    if paper.min() >= 225 and np.ptp(sketch) >= 96:
        return None
    if (lit > 255 + 40).mean() > 2 * (lit < 255 - 40).mean():
        return None  # light lines
    if ink < max(8.0, 8 * noise):
        return np.full_like(sketch, 255)
    gain = max(1.0, 200 / ink)
    return (255 - (255 - lit) * gain).clip(0, 255).round().astype(np.uint8)


def edge_agreement(image: np.ndarray, sketch: np.ndarray, tolerance_px: int = 1) -> float:
    """F-score of a picture's strongest edges against a sketch's lines, in [0, 1].

    As many edge pixels count as the sketch has line pixels, so contrast does not matter. An edge
    and a line match if at most `tolerance_px` apart in each direction. ValueError if no line of the
    sketch is darker than mid-grey.
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


_ONE_FACE = 6.0  # `outline_fit` from which a mask and a sketch may be of one face
_FIT_SIDE, _NEAR_MOVE, _FAR_MOVE, _FIT_MARGIN = 128, 12, 24, 3


def outline_fit(outlines: np.ndarray, sketch: np.ndarray) -> float:
    """How well a sketch [H, W] follows a mask's outlines [128, 128]; 0 is chance.

    In standard deviations of the fit to outlines that are shifted by 9% to 19% of the side.
    """
    size = (_FIT_SIDE, _FIT_SIDE)
    ink = ImageOps.invert(Image.fromarray(sketch)).resize(size, Image.Resampling.BOX)
    near, around = (ink.filter(ImageFilter.GaussianBlur(radius)) for radius in (1, 6))
    # Against what is around, since dark hair is no line.
    lines = np.asarray(near, dtype=np.float32) - np.asarray(around, dtype=np.float32)
    inner = np.zeros(lines.shape, dtype=bool)
    inner[_FIT_MARGIN:-_FIT_MARGIN, _FIT_MARGIN:-_FIT_MARGIN] = True
    lines, outlines = lines * inner, outlines * inner
    steps = range(-_FAR_MOVE, _FAR_MOVE + 1, _NEAR_MOVE // 2)
    moves = [(y, x) for y in steps for x in steps if max(abs(y), abs(x)) >= _NEAR_MOVE]
    moved = [float((np.roll(outlines, move, (0, 1)) * lines).sum()) for move in moves]
    return float(((outlines * lines).sum() - np.mean(moved)) / max(np.std(moved), 1e-6))


def _dilate(region: np.ndarray, radius_px: int) -> np.ndarray:
    size = 2 * radius_px + 1
    picture = Image.fromarray(region.astype(np.uint8)).filter(ImageFilter.MaxFilter(size))
    return np.asarray(picture) > 0


class SketchKind(ConditionKind):
    """Sketches; the values are grey pictures, dark lines on white."""

    name: ClassVar = "sketch"
    index: ClassVar = 1
    help: ClassVar = "Sketch, dark lines on white."
    score: ClassVar = "edges"
    reading: ClassVar = Reading("sketch_polarity", SKETCH_POLARITIES)
    titles: ClassVar = {"edges": "edges (F-score)"}

    def load(
        self, source: Picture, size: tuple[int, int], reading: str | None = None
    ) -> LoadedCondition:
        """Read a sketch; if no polarity is given, light lines on dark are inverted."""
        if reading is not None:
            return read_sketch(source, size, reading)
        dark, light = SKETCH_POLARITIES
        try:
            return read_sketch(source, size, dark)
        except InvertedError:
            values, remark = read_sketch(source, size, light)
        said = "its light lines on dark were inverted"
        return LoadedCondition(values, f"{said}; {remark}" if remark else said)

    def rgb(self, values: np.ndarray) -> UInt8[np.ndarray, "height width 3"]:
        """Repeat a sketch over three channels."""
        return np.repeat(values[..., None], 3, axis=2)

    def outlines(
        self, values: np.ndarray, size: tuple[int, int]
    ) -> Float32[np.ndarray, "height width"]:
        """Return the sketch's dark lines."""
        drawn = Image.fromarray(values).resize(size, Image.Resampling.BICUBIC)
        return (255 - np.array(drawn, dtype=np.float32)) / 255

    def agreement(self, values: np.ndarray, read: np.ndarray) -> Mapping[str, float]:
        """Return the `edge_agreement`."""
        return {"edges": edge_agreement(read, values)}

    def doubts(
        self, values: np.ndarray, prompt: str, others: Mapping[str, np.ndarray]
    ) -> list[str]:
        """Doubt that a mask given beside the sketch is of the same face."""
        if MASK.name not in others:
            return []
        outlines = MASK.outlines(others[MASK.name], (_FIT_SIDE, _FIT_SIDE))
        if not outlines.any() or outline_fit(outlines, values) >= _ONE_FACE:
            return []
        return [
            "its lines do not lie on the mask's outlines, as if the two were of different faces or "
            "cropped differently: give two of one face, in the same place, or one of them"
        ]

    def check_measurable(self, values: np.ndarray) -> None:
        """Refuse a sketch without dark lines."""
        if not (values < 128).any():
            raise ValueError("The sketch has no line darker than mid-grey to compare edges with.")


SKETCH = register(SketchKind())
