"""Sketches: reading and comparing them. They are uint8 [H, W], dark lines on white."""

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image, ImageFilter

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

SKETCH_POLARITIES = ("dark_on_white", "white_on_dark")
"""The two ways in which sketches are found; the first is the model's."""


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
    top, left, height, width = centre_crop(rgb.shape[:2], size)
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


def edge_agreement(image: np.ndarray, sketch: np.ndarray, tolerance_px: int = 1) -> float:
    """F-score of a picture's strongest edges against a sketch's lines, in [0, 1].

    As many edge pixels are taken as the sketch has line pixels, so that contrast does not count; an
    edge and a line meet when they are at most `tolerance_px` apart in each direction. ValueError
    for a sketch without a line darker than mid-grey.
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
        """Read a sketch by `load_sketch`."""
        polarity = self.reading.default if reading is None else reading
        return LoadedCondition(load_sketch(source, size, polarity))

    def rgb(self, values: np.ndarray) -> UInt8[np.ndarray, "height width 3"]:
        """Repeat a sketch over three channels."""
        return np.repeat(values[..., None], 3, axis=2)

    def outlines(
        self, values: np.ndarray, size: tuple[int, int]
    ) -> Float32[np.ndarray, "height width"]:
        """Its dark lines."""
        drawn = Image.fromarray(values).resize(size, Image.Resampling.BICUBIC)
        return (255 - np.array(drawn, dtype=np.float32)) / 255

    def agreement(self, values: np.ndarray, read: np.ndarray) -> Mapping[str, float]:
        """Give `edge_agreement`."""
        return {"edges": edge_agreement(read, values)}

    def check_measurable(self, values: np.ndarray) -> None:
        """Refuse a sketch without dark lines."""
        if not (values < 128).any():
            raise ValueError("The sketch has no line darker than mid-grey to compare edges with.")


SKETCH = register(SketchKind())
