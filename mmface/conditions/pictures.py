"""Opening a file, an array or a PIL picture, and what is done alike with all pictures."""

import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

Picture = Image.Image | np.ndarray | str | Path
"""A picture as people have it: a PIL picture, an array, or the path of a file."""

Color = tuple[int, int, int]

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


def centre_crop(shape: tuple[int, ...], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Give top, left, height and width of the largest middle part with the aspect of `size`."""
    height = min(shape[0], max(1, round(shape[1] * size[0] / size[1])))
    width = min(shape[1], max(1, round(shape[0] * size[1] / size[0])))
    return (shape[0] - height) // 2, (shape[1] - width) // 2, height, width


def nearest_colors(
    rgb: np.ndarray, palette: Sequence[Color]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find the palette colour that is nearest to each pixel.

    Args:
        rgb: uint8 [H, W, 3].
        palette: At most 255 colours.

    Returns:
        Its index, uint8 [H, W]; its distance in RGB, float64 [H, W]; and the pixel's own colour
        packed in one number, uint32 [H, W].
    """
    packed = rgb.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], dtype=np.uint32)
    colors, inverse = np.unique(packed, return_inverse=True)
    unpacked = np.stack([colors >> 16, colors >> 8 & 255, colors & 255], axis=1)
    nearest = np.zeros(len(colors), dtype=np.uint8)
    distance = np.full(len(colors), np.inf)
    for index, color in enumerate(palette):
        candidate = np.linalg.norm(unpacked - np.array(color, dtype=np.float64), axis=1)
        closer = candidate < distance
        nearest[closer], distance[closer] = index, candidate[closer]
    inverse = inverse.reshape(packed.shape)
    return nearest[inverse], distance[inverse], packed
