"""Pictures to tensors and back: the 19-class face palette, masks, sketches and the crop.

Label maps are uint8 arrays [H, W] of class indices in the CelebAMask-HQ order (`LABELS`), and
sketches are uint8 grey pictures [H, W] with dark lines on white. Everything a person brings is
turned into one of these two forms here, and nowhere else.
"""

import warnings
from contextlib import nullcontext
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from itertools import permutations
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from PIL import Image, ImageOps
from torch import Tensor

LABELS: tuple[str, ...] = (
    "background",
    "skin",
    "nose",
    "eye_g",
    "l_eye",
    "r_eye",
    "l_brow",
    "r_brow",
    "l_ear",
    "r_ear",
    "mouth",
    "u_lip",
    "l_lip",
    "hair",
    "hat",
    "ear_r",
    "neck_l",
    "neck",
    "cloth",
)
"""The CelebAMask-HQ classes in their index order. Left and right are the subject's own, so
`l_eye` lies on the picture's right. `eye_g` is eyeglasses, `ear_r` an earring, `neck_l` a
necklace, `mouth` the inside of the mouth between the lips."""

LABEL_INDEX: dict[str, int] = {name: index for index, name in enumerate(LABELS)}

PALETTE = np.array(
    [
        (0, 0, 0),
        (204, 0, 0),
        (76, 153, 0),
        (204, 204, 0),
        (51, 51, 255),
        (204, 0, 204),
        (0, 255, 255),
        (255, 204, 204),
        (102, 51, 0),
        (255, 0, 0),
        (102, 204, 0),
        (255, 255, 0),
        (0, 0, 153),
        (0, 0, 204),
        (255, 51, 153),
        (0, 204, 204),
        (0, 51, 0),
        (255, 153, 51),
        (0, 204, 0),
    ],
    dtype=np.uint8,
)
"""uint8 [19, 3]: the RGB colour of each class, as CelebAMask-HQ's `g_color.py` draws them."""


class Modality(IntEnum):
    """Which spatial condition a sample carries; the index into the model's modality table."""

    MASK = 0
    SKETCH = 1


def colorize(labels: np.ndarray) -> np.ndarray:
    """Draw a label map in the palette's colours: uint8 [H, W] -> uint8 [H, W, 3]."""
    return PALETTE[labels]


LEFT_RIGHT_PAIRS: tuple[tuple[int, int], ...] = ((4, 5), (6, 7), (8, 9))
"""Classes that change places in a mirror: the eyes, the brows and the ears."""

_MIRRORED = np.arange(len(LABELS), dtype=np.uint8)
for _left, _right in LEFT_RIGHT_PAIRS:
    _MIRRORED[[_left, _right]] = _right, _left


def flip_labels(labels: np.ndarray) -> np.ndarray:
    """Mirror a label map [H, W] left to right, and swap the subject's left and right parts."""
    return _MIRRORED[labels[:, ::-1]]


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


Picture = Image.Image | np.ndarray | str | Path
"""A picture as people have it: a PIL picture, an array, or the path of a file."""

MAX_PIXELS = 50_000_000
"""Larger pictures are refused before they are decompressed."""

COLOR_TOLERANCE = 24.0
"""RGB distance up to which a colour counts as a palette colour; half of the smallest is 25.5."""

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
    name = _name(source)
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
    return ImageOps.exif_transpose(picture)


def load_mask(source: Picture, size: tuple[int, int]) -> LoadedMask:
    """Read a segmentation mask: a picture in the palette's colours, or a map of class indices.

    Pixels are snapped to classes at the source's own resolution, then the middle is cropped to the
    aspect ratio of `size` and resized by nearest neighbour: no class is invented by mixing two
    others. Where soft edges mixed them before, a pixel takes the class of the nearest sure one.

    Args:
        source: A colour picture, soft edges allowed; or indices 0..18 as an array [H, W] or a grey
            or palette picture. Transparent pixels are background.
        size: Height and width of the result in pixels.

    Returns:
        The label map, and how much of it had to be guessed.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no picture, or no mask in this palette.
    """
    picture = open_picture(source)
    labels = _index_map(picture, _name(source))
    off_palette_fraction = 0.0
    if labels is None:
        labels, off_palette_fraction = _decode_colors(_rgb(picture, "black"), _name(source))
    top, left, height, width = _centre_crop(labels.shape, size)
    cropped = Image.fromarray(labels[top : top + height, left : left + width])
    resized = cropped.resize((size[1], size[0]), Image.Resampling.NEAREST)
    return LoadedMask(np.array(resized), off_palette_fraction)


def load_sketch(source: Picture, size: tuple[int, int]) -> UInt8[np.ndarray, "height width"]:
    """Read a sketch, dark lines on white, crop its middle to the aspect ratio and resize.

    Args:
        source: A picture; colour becomes grey, transparent pixels become white.
        size: Height and width of the result in pixels.

    Returns:
        The sketch.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no picture, is in colour, blank, or light lines on dark.
    """
    rgb, name = _rgb(open_picture(source), "white"), _name(source)
    if (np.ptp(rgb.astype(np.int16), axis=2) > 64).mean() > 0.25:
        raise ValueError(
            f"{name} is a colour picture, not a sketch; a segmentation mask goes in as the mask."
        )
    top, left, height, width = _centre_crop(rgb.shape[:2], size)
    grey = Image.fromarray(rgb).convert("L").crop((left, top, left + width, top + height))
    sketch = np.array(grey.resize((size[1], size[0]), Image.Resampling.LANCZOS))
    if np.ptp(sketch) < 32:
        raise ValueError(f"{name} is blank: no line in it; give dark lines on white.")
    # Portrait sketches may have a black background; the face in the middle is white in all.
    middle = sketch[size[0] // 4 : -(size[0] // 4) or None, size[1] // 4 : -(size[1] // 4) or None]
    if np.median(middle) < 128:
        raise ValueError(
            f"{name} is light lines on dark; sketches are dark lines on white: invert it first "
            "(PIL.ImageOps.invert)."
        )
    return sketch


def _name(source: Picture) -> str:
    """Name a source in an error message."""
    if isinstance(source, str | Path):
        return str(source)
    return "The array" if isinstance(source, np.ndarray) else "The picture"


def _rgb(picture: Image.Image, backdrop: str) -> np.ndarray:
    """Lay a picture on a backdrop where it is transparent; uint8 [H, W, 3]."""
    if picture.has_transparency_data:
        below = Image.new("RGBA", picture.size, backdrop)
        picture = Image.alpha_composite(below, picture.convert("RGBA"))
    return np.array(picture.convert("RGB"))


def _centre_crop(shape: tuple[int, ...], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Give top, left, height and width of the largest middle part with the aspect of `size`."""
    height = min(shape[0], max(1, round(shape[1] * size[0] / size[1])))
    width = min(shape[1], max(1, round(shape[0] * size[1] / size[0])))
    return (shape[0] - height) // 2, (shape[1] - width) // 2, height, width


def _index_map(picture: Image.Image, name: str) -> np.ndarray | None:
    """Read a picture as a map of class indices; None if colours carry them."""
    values = np.array(picture if picture.mode in ("P", "L") else picture.convert("RGB"))
    if values.ndim == 3:
        if (values != values[..., :1]).any():
            return None
        values = values[..., 0]
    elif picture.mode == "P":
        _, distance, _ = _nearest_colors(_rgb(picture, "black"))
        if distance.max() < 2 or values.max() >= len(LABELS):
            return None
    if values.max() >= len(LABELS):
        raise ValueError(
            f"{name} is a grey picture with values up to {values.max()}, not a mask: give the 19 "
            "palette colours, or class indices 0..18. A sketch goes in as the sketch."
        )
    return values.astype(np.uint8)


def _nearest_colors(rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Give each pixel's nearest class, its distance to it, and its colour packed in one number."""
    packed = rgb.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], dtype=np.uint32)
    colors, inverse = np.unique(packed, return_inverse=True)
    unpacked = np.stack([colors >> 16, colors >> 8 & 255, colors & 255], axis=1)
    nearest = np.zeros(len(colors), dtype=np.uint8)
    distance = np.full(len(colors), np.inf)
    for index, color in enumerate(PALETTE):
        candidate = np.linalg.norm(unpacked - color.astype(np.float64), axis=1)
        closer = candidate < distance
        nearest[closer], distance[closer] = index, candidate[closer]
    inverse = inverse.reshape(packed.shape)
    return nearest[inverse], distance[inverse], packed


def _decode_colors(rgb: np.ndarray, name: str) -> tuple[np.ndarray, float]:
    """Snap a colour picture to classes; also give the share of its pixels off the palette."""
    labels, distance, packed = _nearest_colors(rgb)
    off_palette = distance > COLOR_TOLERANCE
    off_palette_fraction = float(off_palette.mean())
    foreign = ~_grown(~off_palette, _EDGE_WIDTH_PX)
    if off_palette_fraction > _MAX_OFF_PALETTE_FRACTION or foreign.mean() > _MAX_FOREIGN_FRACTION:
        colors, counts = np.unique(packed[off_palette], return_counts=True)
        most = [int(colors[index]) for index in counts.argsort()[::-1][:3]]
        listed = ", ".join(f"({c >> 16}, {c >> 8 & 255}, {c & 255})" for c in most)
        raise ValueError(
            f"{name} is not a mask in the CelebAMask-HQ palette: {off_palette_fraction:.1%} of its "
            f"pixels are far from all 19 colours, most often {listed}. Redraw it in "
            "mmface.conditions.PALETTE, or save the class indices 0..18 as a grey PNG."
        )
    known = ~(off_palette | _fringes(np.where(off_palette, _UNKNOWN, labels), distance))
    return _filled(labels, known, rgb), off_palette_fraction


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


@lru_cache(maxsize=1)
def _mixtures() -> tuple[tuple[int, int, int], ...]:
    """List (a, b, c) where a mixture of the colours of a and b looks like c."""
    colors = PALETTE.astype(np.float64)
    found = []
    for a, b, c in permutations(range(len(LABELS)), 3):
        along = colors[b] - colors[a]
        share = (colors[c] - colors[a]) @ along / (along @ along)
        off = np.linalg.norm(colors[a] + share * along - colors[c])
        if a < b and 0 < share < 1 and off <= COLOR_TOLERANCE:
            found.append((a, b, c))
    return tuple(found)


def _fringes(labels: np.ndarray, distance: np.ndarray) -> np.ndarray:
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
    for a, b, mixed in _mixtures():
        if {a, b, mixed} <= present:
            fringes |= area[mixed] & ~solid[mixed] & near[a] & near[b]
    return fringes


def _filled(labels: np.ndarray, known: np.ndarray, rgb: np.ndarray) -> np.ndarray:
    """Give unknown pixels the class of the nearest known one, of equally near ones the likest."""
    padded = np.pad(np.where(known, labels, _UNKNOWN), 1, constant_values=_UNKNOWN)
    palette = np.vstack([PALETTE, np.full((237, 3), 1e6)])  # an unknown neighbour is never nearest
    places = np.argwhere(~known)
    while len(places):
        around = padded[tuple((places[:, None] + 1 + _AROUND).transpose(2, 0, 1))]
        colors = rgb[tuple(places.T)].astype(np.float64)
        likest = np.linalg.norm(palette[around] - colors[:, None], axis=2).argmin(axis=1)
        found = around[np.arange(len(places)), likest]
        padded[tuple(places.T + 1)] = found
        places = places[found == _UNKNOWN]
    return padded[1:-1, 1:-1]
