"""What comes from a canvas or an upload, as label maps, sketches and regions; and the way back."""

import base64
import binascii
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image, ImageOps

from mmface.annotation.sketches import PencilSketch
from mmface.conditions import (
    LABEL_FORMATS,
    LABEL_TITLES,
    LABELS,
    PALETTE,
    colorize,
    condition_kind,
    flat_rgb,
    guess_label_format,
    load_mask,
    load_sketch,
)
from mmface.generation.adherence import Parser
from mmface.rendered.examples import Example

CANVAS_PX = 512
"""Side of every canvas, whatever the model's size: room for a steady hand."""

MAX_UPLOAD_PIXELS = 16_000_000
"""Larger uploads are refused before they are decompressed; a phone's photo has 12 million."""

MAX_CANVAS_CHARACTERS = 4_000_000
_MIN_SKIN = 0.02  # share of a photo that is skin where there is a face to speak of
_URL_START = "data:image/png;base64,"
_SIZE = (CANVAS_PX, CANVAS_PX)

Labels = UInt8[np.ndarray, "_ _"]
Sketch = UInt8[np.ndarray, "_ _"]


def class_colors() -> dict[str, str]:
    """Give the palette's hex colours by the classes' titles, skin first and background last."""
    names = sorted(LABEL_TITLES, key=lambda name: name == "background")
    return {LABEL_TITLES[name]: hex_color(LABELS.index(name)) for name in names}


def hex_color(index: int) -> str:
    """Write a class's colour as CSS does."""
    return "#" + bytes(PALETTE[index].tolist()).hex()


def to_data_url(picture: Image.Image) -> str:
    """Write a picture as a PNG data URL."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return _URL_START + base64.b64encode(buffer.getvalue()).decode("ascii")


def from_data_url(value: str | None) -> Image.Image | None:
    """Read an untrusted canvas value as RGBA; None if nothing was painted.

    ValueError if it is no PNG of at most the canvas's size.
    """
    if not value or value.startswith("backdrop:"):
        return None
    if not value.startswith(_URL_START) or len(value) > MAX_CANVAS_CHARACTERS:
        raise ValueError("The canvas sent no painting; reload the page.")
    try:
        content = base64.b64decode(value.removeprefix(_URL_START), validate=True)
        with Image.open(io.BytesIO(content), formats=("PNG",)) as picture:
            if max(picture.size) > CANVAS_PX:
                raise ValueError("it is too large")
            return picture.convert("RGBA")
    except (binascii.Error, OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"The painting cannot be read ({error}); reload the page.") from None


def painted_labels(value: str | None, size: tuple[int, int]) -> Labels:
    """Snap a painted mask to classes; ValueError if it is empty or its colours are no mask's."""
    painting = from_data_url(value)
    if painting is not None and flat_rgb(painting, "black").any():
        return load_mask(painting, size).labels
    raise ValueError("The mask is empty: paint one, or start from an example, a file or a photo.")


def painted_sketch(value: str | None, size: tuple[int, int]) -> Sketch:
    """Read a drawn sketch as dark lines on white; ValueError if nothing was drawn."""
    drawing = from_data_url(value)
    if drawing is not None:
        rgb = flat_rgb(drawing, "white")
        if np.ptp(rgb) >= 32:
            return load_sketch(rgb, size)
    raise ValueError("The sketch is empty: draw one, or start from an example, a file or a photo.")


def painted_region(value: str | None) -> Bool[np.ndarray, "_ _"] | None:
    """Read which part of a picture is to be made anew; None if nothing was painted."""
    painting = from_data_url(value)
    inside = None if painting is None else np.array(painting)[..., 3] > 127
    return inside if inside is not None and inside.any() else None


def mask_url(labels: Labels) -> str:
    """Draw a label map for the mask canvas."""
    picture = Image.fromarray(colorize(labels))
    return to_data_url(picture.resize((CANVAS_PX, CANVAS_PX), Image.Resampling.NEAREST))


def sketch_url(sketch: Sketch) -> str:
    """Draw a sketch for the sketch canvas."""
    return to_data_url(Image.fromarray(sketch).resize((CANVAS_PX, CANVAS_PX)).convert("RGB"))


def open_upload(path: str | Path) -> Image.Image:
    """Open an uploaded picture, upright and whole, in its own mode.

    ValueError if it is no picture, is broken, or has more than `MAX_UPLOAD_PIXELS`.
    """
    # The file's path is the server's own: messages do not show it.
    try:
        with Image.open(path, formats=("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")) as picture:
            if picture.width * picture.height > MAX_UPLOAD_PIXELS:
                raise Image.DecompressionBombError
            picture.load()
            return ImageOps.exif_transpose(picture)
    except Image.DecompressionBombError:
        limit = MAX_UPLOAD_PIXELS // 10**6
        raise ValueError(
            f"The file has more than {limit} million pixels; make it smaller first."
        ) from None
    except (OSError, SyntaxError, ValueError):
        raise ValueError("The file cannot be read as a picture; give a PNG or a JPEG.") from None


@dataclass(frozen=True, eq=False)
class ReadMask:
    """An uploaded mask, and a sentence on the kind of mask that it was taken for."""

    labels: Labels
    note: str


def read_mask(path: str | Path, size: tuple[int, int] = _SIZE) -> ReadMask:
    """Read an uploaded mask in any known label format; ValueError for others."""
    picture = open_upload(path)
    guess = guess_label_format([picture])
    names = [guess.format.name] if guess.format else [*guess.alternatives, "celebamask_hq"]
    title = LABEL_FORMATS[names[0]].title
    if guess.format is not None:
        note = f"Read as a mask of the {title} kind."
    else:
        note = (
            f"The file does not tell which kind of mask it is; read as one of the {title} kind. "
            "If the classes below are wrong, paint over them or give a mask of another kind."
        )
    try:
        return ReadMask(load_mask(picture, size, names[0]).labels, note)
    except ValueError as error:
        raise ValueError(str(error).replace("The picture", "The file")) from None


def read_sketch(path: str | Path, size: tuple[int, int] = _SIZE) -> Sketch:
    """Read an uploaded sketch as dark lines on white; light lines on dark are inverted."""
    picture = open_upload(path)
    try:
        return condition_kind("sketch").load(picture, size).values
    except ValueError as error:
        raise ValueError(str(error).replace("The picture", "The file")) from None


def from_photo(
    path: str | Path, parser: Parser, wanted: str
) -> tuple[Labels | None, Sketch | None]:
    """Extract `mask`, `sketch` or `both` from an uploaded photo, at the canvas's size.

    ValueError if it is no picture, or the parser finds no face in it.
    """
    photo = Image.fromarray(flat_rgb(open_upload(path), "white"))
    rgb = np.array(ImageOps.fit(photo, (CANVAS_PX, CANVAS_PX), Image.Resampling.LANCZOS))
    labels = parser([rgb])[0] if wanted != "sketch" else None
    if labels is not None and (labels == LABELS.index("skin")).mean() < _MIN_SKIN:
        raise ValueError("No face was found in the photo; take one in which a face fills most.")
    return labels, PencilSketch()([rgb])[0] if wanted != "mask" else None


PAINTED = {"mask": painted_labels, "sketch": painted_sketch}
"""What reads the canvas of a kind of condition; the other kinds have uploads only."""


def uploaded_condition(name: str, path: str | Path, size: tuple[int, int] = _SIZE) -> np.ndarray:
    """Read an uploaded condition of a kind; ValueError if it is none."""
    if name == "mask":
        return read_mask(path, size).labels
    if name == "sketch":
        return read_sketch(path, size)
    return condition_kind(name).load(open_upload(path), size).values


def given_condition(name: str, value: str | None, size: tuple[int, int]) -> np.ndarray:
    """Read what the page holds of a condition: a canvas's value, or an uploaded file's path."""
    if name in PAINTED:
        return PAINTED[name](value, size)
    if value is None:
        raise ValueError(f"The {name} is missing: upload one.")
    return uploaded_condition(name, value, size)


def kinds_of(mode: str) -> tuple[str, ...]:
    """Give the kinds of condition of a mode of the page: both painted ones, or one."""
    return tuple(PAINTED) if mode == "both" else (mode,)


def example_value(example: Example) -> str:
    """Give the canvas value of an example."""
    kind = condition_kind(example.kind)
    return to_data_url(kind.draw(kind.load(example.path, _SIZE).values))
