"""Segmentation masks: the kind of condition, and reading them in any known label format.

Label maps are uint8 arrays [H, W] of class indices in the CelebAMask-HQ order (`LABELS`).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations
from typing import Any, ClassVar

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageChops

from mmface.conditions.kind import (
    ConditionKind,
    LoadedCondition,
    Parser,
    Picture,
    Reading,
    centre_crop,
    flat_rgb,
    open_picture,
    picture_name,
    register,
)
from mmface.conditions.label_formats import (
    COLOR_TOLERANCE,
    LABEL_FORMATS,
    Color,
    LabelFormat,
    LabelFormatGuess,
    guess_by_anatomy,
    guess_by_color,
    known_palettes,
    label_format_named,
    nearest_colors,
    share_of_anatomy,
    words_against,
)
from mmface.conditions.palette import (
    LABELS,
    PALETTE,
    class_iou,
    confusion_matrix,
    flip_labels,
    mean_iou,
    pixel_accuracy,
)

_EDGE_WIDTH_PX = 6  # off-palette colours farther than this from all others are no soft edge
_MAX_FOREIGN_FRACTION = 0.002
_MAX_OFF_PALETTE_FRACTION = 0.3
_DOUBTFUL_DISTANCE, _UNKNOWN = 8.0, 255
_AROUND = np.array([(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0)])


def colorize(labels: np.ndarray) -> np.ndarray:
    """Draw a label map in the palette's colours: uint8 [H, W] -> uint8 [H, W, 3]."""
    return PALETTE[labels]


@dataclass(frozen=True)
class LoadedMask:
    """A mask as class indices into `LABELS`, and what looked odd.

    `off_palette_fraction` is the share of the source's pixels, in [0, 1], that were farther than
    `COLOR_TOLERANCE` from every palette colour and took the class of a neighbour. `remarks` are
    sentences without their subject.
    """

    labels: UInt8[np.ndarray, "height width"]
    off_palette_fraction: float
    remarks: tuple[str, ...] = ()

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes that occur."""
        return tuple(LABELS[index] for index in np.unique(self.labels))


class ForeignOrderError(ValueError):
    """A mask's classes lie as in another label format than the given one."""

    def __init__(self, message: str, guess: LabelFormatGuess) -> None:
        super().__init__(message)
        self.guess = guess


def load_mask(
    source: Picture, size: tuple[int, int], label_format: str = "celebamask_hq"
) -> LoadedMask:
    """Read a segmentation mask: a picture in a palette's colours, or a map of class indices.

    The middle is cropped to the aspect ratio of `size`; pixels are snapped to classes at the
    source's own resolution (above `MAX_SNAPPED_PIXELS` at a multiple of `size`), then resized by
    nearest neighbour, so that no class appears by mixing two others. A pixel on a soft edge takes
    the class of the nearest certain pixel.

    Args:
        source: A colour picture, soft edges allowed; or indices 0..18 as an array [H, W], a grey
            picture, or a palette picture whose palette is grey or in the order of the classes.
            Transparent pixels are background.
        size: Height and width of the result in pixels.
        label_format: Order and colours of the source's classes, a name in `LABEL_FORMATS`. The
            result is in the order of `LABELS` always.

    Returns:
        The label map, and what had to be guessed.

    Raises:
        ForeignOrderError: If its classes lie as in another format; a ValueError.
        ValueError: If it is no picture, or no mask in this format, or there is no such format.
    """
    format_ = label_format_named(label_format)
    picture, name = open_picture(source), picture_name(source)
    is_jpeg = picture.format == "JPEG"
    top, left, height, width = centre_crop((picture.height, picture.width), size)
    if (height, width) != (picture.height, picture.width):
        picture = picture.crop((left, top, left + width, top + height))
    values = class_indices(picture, name)
    if values is not None and is_jpeg:
        raise ValueError(
            f"{name} is a map of class indices in a JPEG file, which changes indices along edges. "
            "Make it anew from the original, and save it as PNG."
        )
    fraction = 0.0
    if values is not None:
        remarks = _oddities(values, format_, name) + _few_greys(picture, values, format_)
        labels = format_.to_labels[_nearest(Image.fromarray(values), size)]
    elif not format_.palette:
        raise ValueError(
            f"{name} is in colour, but masks of the label format {format_.name!r} are maps of "
            f"class indices.{_other_format(picture, format_)}"
        )
    else:
        remarks = _palette_oddities(picture, format_, name)
        picture = _fit_to_snap(picture, size, format_.label_palette)
        labels, fraction, said = _decode_colors(picture, format_, name)
        remarks += [*said, *_odd_anatomy(labels, label_format_named("celebamask_hq"))]
        labels = _nearest(Image.fromarray(labels), size)
    # An array of indices is what a program means; of a file or of colours it is a mistake.
    is_meant = values is not None and isinstance(source, np.ndarray)
    if not labels.any() and not is_meant:
        raise ValueError(f"{name} is all background: there is no face in the mask.")
    return LoadedMask(labels, fraction, tuple(remarks))


def _nearest(picture: Image.Image, size: tuple[int, int]) -> np.ndarray:
    return np.array(picture.resize((size[1], size[0]), Image.Resampling.NEAREST))


def guess_label_format(masks: Sequence[Picture]) -> LabelFormatGuess:
    """Guess the common format of face masks; one mask is often enough, 16 are better.

    Undecided if no format fits, or two fit alike. ValueError if there are no masks, or one is no
    picture.
    """
    if not masks:
        raise ValueError("There are no masks to guess a label format from.")
    indices, colored = [], []
    for source in masks:
        picture = open_picture(source)
        try:
            values = class_indices(picture, picture_name(source))
        except ValueError as error:
            return LabelFormatGuess(None, str(error).rstrip("."))
        if values is None:
            colored.append(flat_rgb(picture, "black"))
        else:
            indices.append(values)
    if indices and colored:
        evidence = f"{len(indices)} masks are index maps and {len(colored)} are in colour"
        return LabelFormatGuess(None, evidence)
    return guess_by_color(colored) if colored else guess_by_anatomy(indices)


def class_indices(picture: Image.Image, name: str = "The picture") -> np.ndarray | None:
    """Read a map of class numbers in the picture's own order: uint8 [H, W], transparent pixels 0.

    Grey pictures, and those with a palette that is grey or in the order of the classes, are such
    maps; None if colours carry the classes. ValueError, which calls the picture `name`, if it is
    grey with other values than 0..18, or transparent everywhere.
    """
    values = _palette_numbers(picture) if picture.mode == "P" else _grey_numbers(picture)
    hidden = _hidden(picture, name)
    if values is None:
        return None
    if hidden is not None:
        values = np.where(hidden, 0, values)
    if values.dtype.kind == "f":
        values = np.where(np.isfinite(values), values, -1)
        if (values != np.round(values)).any():
            raise ValueError(f"{name} is a grey picture with fractions, not class indices 0..18.")
    if values.dtype != np.uint8 and values.max() > 255 and not (values % 257).any():
        values = values // 257  # eight bits, spread over sixteen
    if values.max() >= len(LABELS) or values.min() < 0:
        raise ValueError(
            f"{name} is a grey picture with values up to {values.max()}, not a mask: give the 19 "
            "palette colours, or class indices 0..18. A sketch goes in as the sketch."
        )
    return values.astype(np.uint8)


def _grey_numbers(picture: Image.Image) -> np.ndarray | None:
    """Values of a grey picture of any depth, [H, W]; None if it has colours."""
    if picture.mode in ("L", "I", "F") or picture.mode.startswith("I;16"):
        return np.array(picture)
    if picture.mode in ("1", "LA", "La"):
        return np.array(picture.convert("LA" if picture.mode == "La" else "L").getchannel(0))
    rgb = _as_rgb(picture)
    red, green, blue = rgb.split()
    same = all(ImageChops.difference(red, each).getbbox() is None for each in (green, blue))
    return np.array(red) if same else None


def _as_rgb(picture: Image.Image) -> Image.Image:
    """Drop a picture's alpha channel."""
    if picture.mode in ("RGBA", "RGBX"):  # without a copy of all of it for each step
        return Image.merge("RGB", picture.split()[:3])
    try:
        return picture.convert("RGB")
    except ValueError:
        raise ValueError(f"Pictures of the mode {picture.mode} cannot be read.") from None


def _palette_numbers(picture: Image.Image) -> np.ndarray | None:
    """Indices of a palette picture, or its grey values; None if it has colours."""
    table = np.array(picture.getpalette("RGB") or [], dtype=np.int64).reshape(-1, 3)
    used = np.array([index for _, index in picture.getcolors() or []])
    table = np.pad(table, ((0, max(0, used.max() + 1 - len(table))), (0, 0)))
    shown = used
    if picture.has_transparency_data:
        alpha = np.array(picture.getpalette("RGBA")).reshape(-1, 4)[:, 3]
        shown = used[np.pad(alpha, (0, len(table)), constant_values=255)[used] >= _OPAQUE]
    colors = table[shown]
    is_grey = not np.ptp(colors, axis=1).any()
    if shown.size and shown.max() < len(LABELS):
        # A palette in the order of the classes, a known one or a grey ramp, says what they say.
        if any(np.abs(np.array(p)[shown] - colors).max() <= 2 for p in known_palettes()):
            return np.array(picture)
        first = np.arange(len(LABELS)) if len(table) >= len(LABELS) else shown
        step = table[first[-1]].mean() / max(first[-1], 1)
        on_ramp = np.abs(table[first].mean(axis=1) - step * first).max() <= step / 2
        is_ramp = on_ramp and np.ptp(table[first], axis=1).max() <= 2
        if is_ramp and 1 <= step <= 255 / (len(LABELS) - 1):
            return np.array(picture)
    return table[:, 0][np.array(picture)] if is_grey else None


def _few_greys(picture: Image.Image, values: np.ndarray, format_: LabelFormat) -> list[str]:
    """Remark on a palette of 2, 4, 8 or 16 greys: it may have merged classes."""
    if picture.mode != "P" or (values == np.array(picture)).all():
        return []
    used = np.unique(values)
    if len(used) not in (2, 4, 8, 16):
        return []
    classes = [LABELS[index] for index in np.unique(format_.to_labels[used])]
    return [
        f"its palette has {len(used)} greys only, which may have merged classes; it has "
        f"{', '.join(classes)}"
    ]


_OPAQUE = 128  # alpha from which a pixel is seen


def _hidden(picture: Image.Image, name: str) -> np.ndarray | None:
    """Transparent pixels, bool [H, W]; None if the picture has no alpha."""
    if not picture.has_transparency_data:
        return None
    alpha = picture if "A" in picture.getbands() else picture.convert("RGBA")
    hidden = np.array(alpha.getchannel("A")) < _OPAQUE
    if hidden.all():
        raise ValueError(f"{name} is transparent everywhere: save it without transparency.")
    return hidden


_STRAY = 0.2  # share of stray runs: maps of faces have 0.1 and less, interpolated ones 0.28 or more
_MIN_RUNS = 40
_SPECKS = (
    0.6  # pixels that stand alone, per line of a map: of faces 0.3 and less, of JPEG 1.2 or more
)
_SPECKS_SIDE = 1024  # enough of a large map to tell
_ODD_ANATOMY, _CLEAR_MARGIN = 0.9, 0.2  # upright faces have 0.96 or more, mirrored ones 0.85


def _stray_runs(values: np.ndarray) -> float:
    """Fraction of runs, along rows and columns, that look like a product of interpolation.

    Such runs are short, with a value between those of their neighbours: a softened edge from hair
    (13) to background (0) passes through 9 and 4.
    """
    stray, count = 0, 0
    for lines in (values, values.T):
        lines = lines[:: max(1, len(lines) // 256)].astype(np.int16)
        flat = np.pad(lines, ((0, 0), (0, 1)), constant_values=-1).ravel()
        starts = np.flatnonzero(np.diff(flat, prepend=-2))
        number, length = flat[starts], np.diff(starts, append=len(flat))
        before, run, after = number[:-2], number[1:-1], number[2:]
        inner = np.minimum(np.minimum(before, run), after) >= 0
        between = (run - before) * (after - run) > 0
        short = length[1:-1] <= max(2, lines.shape[1] // 128)
        stray += int((inner & between & short).sum())
        count += int(inner.sum())
    return stray / count if count >= _MIN_RUNS else 0.0


def _oddities(values: np.ndarray, format_: LabelFormat, name: str) -> list[str]:
    """Refuse an index map in another format or interpolated; else remark on what is odd."""
    stray = _stray_runs(values)
    if stray > _STRAY:
        raise ValueError(
            f"{name} is a map of class indices that was resized with interpolation or saved as "
            f"JPEG: {stray:.0%} of its runs are thin rims of classes between two others. Make it "
            "anew from the original, resized with nearest neighbour and saved as PNG."
        )
    share = share_of_anatomy(values, format_)
    guess = guess_by_anatomy([values])
    if share is not None and guess.format and guess.format.classes != format_.classes:
        theirs = share_of_anatomy(values, guess.format) or 0
        if theirs >= _ODD_ANATOMY and theirs - share >= _CLEAR_MARGIN:
            raise ForeignOrderError(
                f"{name} has its classes in the order of the label format {guess.format.name!r}, "
                f"not of {format_.name!r}: {guess.evidence}.",
                guess,
            )
    return [*_specks(values), *_odd_anatomy(values, format_)]


def _specks(values: np.ndarray) -> list[str]:
    """Say that many pixels differ from all four neighbours, as JPEG leaves them."""
    values = values[-_SPECKS_SIDE:, :_SPECKS_SIDE]
    inner = values[1:-1, 1:-1]
    around = (values[:-2, 1:-1], values[2:, 1:-1], values[1:-1, :-2], values[1:-1, 2:])
    alone = np.logical_and.reduce([inner != each for each in around]).sum()
    if alone <= _SPECKS * math.sqrt(values.size):
        return []
    return [f"{alone} of its pixels differ from all around them, as if it had been a JPEG file"]


def _odd_anatomy(values: np.ndarray, format_: LabelFormat) -> list[str]:
    """Say that the parts do not lie as in a face: turned, mirrored, or other classes."""
    share = share_of_anatomy(values, format_)
    if share is None or share >= _ODD_ANATOMY:
        return []
    return [
        f"only {share:.0%} of its parts lie to each other as in an upright face: look whether it "
        "is turned or mirrored, or has other classes"
    ]


def released_mask_rgb(
    source: Picture, size: tuple[int, int]
) -> UInt8[np.ndarray, "height width 3"]:
    """Read a mask in `celebamask_hq` format the way the released weights were trained on it.

    It is resized as a colour picture, uncropped, by LANCZOS to height and width `size`: edges get
    colours of no class, which `load_mask` avoids.
    """
    picture = open_picture(source)
    labels = class_indices(picture, picture_name(source))
    rgb = flat_rgb(picture, "black") if labels is None else colorize(labels)
    resized = Image.fromarray(rgb).resize((size[1], size[0]), Image.Resampling.LANCZOS)
    return np.array(resized)


MAX_SNAPPED_PIXELS = 1_500_000
"""Soft masks with more pixels are reduced, by nearest neighbour, before they are snapped."""


def _fit_to_snap(
    picture: Image.Image, size: tuple[int, int], palette: tuple[Color, ...]
) -> Image.Image:
    """Shrink a colour picture if its colours are exact, or if it is too large."""
    if picture.mode == "P":
        picture = picture.convert("RGBA" if picture.has_transparency_data else "RGB")
    colors = picture.getcolors(256) if picture.mode in ("RGB", "RGBA") else None
    if colors is not None:
        seen = np.array([color for _, color in colors], dtype=np.uint8)[None]
        if not nearest_colors(flat_rgb(Image.fromarray(seen), "black"), palette)[1].any():
            return picture.resize((size[1], size[0]), Image.Resampling.NEAREST)
    if picture.width * picture.height > MAX_SNAPPED_PIXELS:
        times = max(1, math.isqrt(MAX_SNAPPED_PIXELS // (size[0] * size[1])))
        if times * size[0] < picture.height:
            wanted = (times * size[1], times * size[0])
            return picture.resize(wanted, Image.Resampling.NEAREST)
    return picture


_ENOUGH_COLORS = 64  # a palette of fewer merges classes of a picture with soft edges


def _palette_oddities(picture: Image.Image, format_: LabelFormat, name: str) -> list[str]:
    """Refuse a palette too small for its picture; remark on one that may be too small."""
    if picture.mode != "P":
        return []
    table = np.array(picture.getpalette("RGB") or [], dtype=np.uint8).reshape(1, -1, 3)
    counts: Any = picture.getcolors() or []  # of a palette's picture: (count, index)
    used = [index for _, index in counts if index < table.shape[1]]
    if not 0.8 * table.shape[1] <= len(used) < _ENOUGH_COLORS or not used:
        return []
    if any(nearest_colors(table[:, used], each)[1].max() <= 2 for each in known_palettes()):
        if len(used) >= len(LABELS):
            return []
        return [f"its palette of {len(used)} colours is full and may have merged other classes"]
    raise ValueError(
        f"{name} has a palette of {len(used)} colours, too few for its classes: some were merged. "
        "Save the original mask in full colour (RGB), or as class indices 0..18."
    )


def _decode_colors(
    picture: Image.Image, format_: LabelFormat, name: str
) -> tuple[np.ndarray, float, list[str]]:
    """Snap a colour picture to classes; also return the fraction of pixels off the palette."""
    rgb, palette, said = flat_rgb(picture, "black"), format_.label_palette, list[str]()
    labels, distance, packed = nearest_colors(rgb, palette)
    if not distance.any():  # exact colours have no soft edges: each pixel is what it says
        return labels, 0.0, said
    is_foreign = _is_foreign(distance)
    if is_foreign or not (rgb % 51).any():  # 51 is the step of the web's palette
        other = _other_format(picture, format_)
        moved = {} if other else _moved_colors(distance, packed, palette)
        for color, index in moved.items():
            rgb[packed == color] = palette[index]
        labels, distance, packed = nearest_colors(rgb, palette)
        if is_foreign and (not moved or _is_foreign(distance)):
            raise ValueError(_foreign_words(name, format_, distance, packed) + other + _REDRAW)
        if moved:
            listed = (f"{_written(color)} as {LABELS[index]}" for color, index in moved.items())
            said.append(f"colours that a palette had moved were read: {', '.join(listed)}")
    off_palette = distance > COLOR_TOLERANCE
    fringes = _fringes(np.where(off_palette, _UNKNOWN, labels), distance, palette)
    known = ~(off_palette | fringes)
    return _filled(labels, known, rgb, palette), float(off_palette.mean()), said


_REDRAW = " Redraw it in mmface.conditions.PALETTE, or save the class indices 0..18 as a grey PNG."


def _is_foreign(distance: np.ndarray) -> bool:
    """Whether colours of no class fill areas, not only soft edges."""
    off_palette = distance > COLOR_TOLERANCE
    foreign = ~_grown(~off_palette, _EDGE_WIDTH_PX)
    too_many = off_palette.mean() > _MAX_OFF_PALETTE_FRACTION
    return bool(too_many or foreign.mean() > _MAX_FOREIGN_FRACTION)


def _foreign_words(
    name: str, format_: LabelFormat, distance: np.ndarray, packed: np.ndarray
) -> str:
    off_palette = distance > COLOR_TOLERANCE
    colors, counts = np.unique(packed[off_palette], return_counts=True)
    listed = ", ".join(_written(int(colors[index])) for index in counts.argsort()[::-1][:3])
    return (
        f"{name} is not a mask in the {format_.title} palette: {off_palette.mean():.1%} of "
        f"its pixels are far from all 19 colours, most often {listed}."
    )


def _written(packed: int) -> str:
    return f"({packed >> 16}, {packed >> 8 & 255}, {packed & 255})"


def _moved_colors(
    distance: np.ndarray, packed: np.ndarray, palette: tuple[Color, ...]
) -> dict[int, int]:
    """Map colours that a coarse palette, such as the web's, has moved back to their classes.

    Keys are packed colours. Empty unless the picture has few colours and each class keeps one.
    """
    colors, counts = np.unique(packed, return_counts=True)
    if len(colors) > 256:
        return {}
    unpacked = np.stack([colors >> 16, colors >> 8 & 255, colors & 255], axis=1).astype(float)
    far = np.linalg.norm(unpacked[:, None] - np.array(palette, dtype=float), axis=2)
    nearest, (first, second) = far.argmin(axis=1), np.sort(far, axis=1)[:, :2].T
    large = counts > _MAX_FOREIGN_FRACTION * packed.size / 4
    off = large & (first > COLOR_TOLERANCE)
    taken = nearest[large].tolist()
    if (first[off] > _MAX_MOVED).any() or (2 * first[off] > second[off]).any():
        return {}
    if any(taken.count(index) > 1 for index in nearest[off]):
        return {}
    return dict(zip(colors[off].tolist(), nearest[off].tolist(), strict=True))


_MAX_MOVED = 45.0  # in RGB; the web's palette moves each channel by 25 at most


def _other_format(picture: Image.Image, own: LabelFormat) -> str:
    """Name another format that has a picture's colours, if there is one."""
    found = guess_by_color([flat_rgb(picture, "black")]).format
    if found is None or found is own:
        return ""
    return f" Its colours are those of the label format {found.name!r}."


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
    """List triples (a, b, c) of classes where mixing the colours of a and b looks like c."""
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
    """Find pixels that look like a class but are a mixture of two others; bool [H, W].

    The lower lip's colour (0, 0, 153), for example, lies between hair (0, 0, 204) and background.
    Fringes are thin and lie between their two classes, or are specks on a soft edge.
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
    """Give unknown pixels the class of the nearest known one, at ties the closest colour."""
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
        remarks = list(mask.remarks)
        if mask.off_palette_fraction:
            remarks.append(
                f"{mask.off_palette_fraction:.1%} of the pixels were farther than "
                f"{COLOR_TOLERANCE:g} from every palette colour and took a neighbour's class; "
                f"the mask has {', '.join(mask.classes)}"
            )
        return LoadedCondition(mask.labels, "; ".join(remarks) or None)

    def rgb(self, values: np.ndarray) -> UInt8[np.ndarray, "height width 3"]:
        """Draw a label map in the palette's colours."""
        return colorize(values)

    def mirror(self, values: np.ndarray) -> np.ndarray:
        """Mirror a label map by `flip_labels`."""
        return flip_labels(values)

    def doubts(
        self, values: np.ndarray, prompt: str, others: Mapping[str, np.ndarray]
    ) -> list[str]:
        """Name words of the prompt that the mask contradicts."""
        return [
            f'the prompt says "{said}", but the mask has {has}: change one of the two'
            for said, has in words_against(values, prompt)
        ]

    def read_back(
        self, pictures: Sequence[UInt8[np.ndarray, "height width 3"]], parser: Parser | None
    ) -> list[np.ndarray]:
        """Read label maps with the face parser."""
        assert parser is not None
        return parser(pictures)

    def agreement(self, values: np.ndarray, read: np.ndarray) -> Mapping[str, float]:
        """Return mean IoU, pixel accuracy and the IoU of each class in the mask."""
        confusion = confusion_matrix(values, read)
        ious = zip(LABELS, class_iou(confusion).tolist(), strict=True)
        return {
            "mean_iou": mean_iou(confusion),
            "pixel_accuracy": pixel_accuracy(confusion),
            **{f"iou/{name}": value for name, value in ious if not math.isnan(value)},
        }


MASK = register(MaskKind())
