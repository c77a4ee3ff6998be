"""Opens what a person brings as a picture: a file, an array or a PIL picture, and nothing else."""

import warnings
from contextlib import nullcontext
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

Picture = Image.Image | np.ndarray | str | Path
"""A picture as people have it: a PIL picture, an array, or the path of a file."""

SKETCH_POLARITIES = ("dark_on_white", "white_on_dark")
"""The two ways in which sketches are found; the first is the model's."""

MAX_PIXELS = 50_000_000
"""Larger pictures are refused before they are decompressed."""


def open_picture(source: Picture) -> Image.Image:
    """Open a picture, or wrap an array, and load all of it.

    Args:
        source: A PIL picture, a path, or an array [H, W] or [H, W, 3 or 4] of integers 0..255.

    Returns:
        The picture in its own mode, upright.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no picture, is broken, or has more than `MAX_PIXELS` pixels.
    """
    name = picture_name(source)
    if isinstance(source, np.ndarray):
        fits = source.size and source.ndim in (2, 3) and source.shape[2:] in ((), (3,), (4,))
        if not (fits and source.dtype.kind in "iu" and 0 <= source.min() <= source.max() <= 255):
            raise ValueError(
                f"{name} has dtype {source.dtype} and shape {source.shape}; give integers 0..255 "
                "as [H, W], [H, W, 3] or [H, W, 4]."
            )
        return Image.fromarray(np.ascontiguousarray(source.astype(np.uint8)))
    if not isinstance(source, Image.Image) and not Path(source).exists():
        raise FileNotFoundError(f"{name} does not exist.")
    try:
        with warnings.catch_warnings():
            # Pillow warns of a decompression bomb; the limit below refuses it.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            opened = nullcontext(source) if isinstance(source, Image.Image) else Image.open(source)
        with opened as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            picture.load()
    except Image.DecompressionBombError:
        raise ValueError(
            f"{name} is larger than {MAX_PIXELS // 10**6} million pixels; make it smaller first."
        ) from None
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{name} cannot be read as a picture ({error}).") from error
    try:
        return ImageOps.exif_transpose(picture)
    except Exception:  # broken EXIF does not say how the picture lies; Pillow fails in many ways
        return picture.copy()


def picture_name(source: Picture) -> str:
    """Name a source in an error message."""
    if isinstance(source, str | Path):
        return str(source)
    return "The array" if isinstance(source, np.ndarray) else "The picture"


def flat_rgb(picture: Image.Image, backdrop: str) -> np.ndarray:
    """Lay a picture on a backdrop where it is transparent; uint8 [H, W, 3]."""
    if picture.has_transparency_data:
        below = Image.new("RGBA", picture.size, backdrop)
        picture = Image.alpha_composite(below, picture.convert("RGBA"))
    return np.array(picture.convert("RGB"))
