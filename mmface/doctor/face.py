"""One face under examination: its files read once, and the small forms that the checks look at."""

import hashlib
import io
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from mmface.conditions import (
    MAX_PIXELS,
    ConditionKind,
    LoadedMask,
    edge_strength,
    flat_rgb,
    load_mask,
    load_sketch,
    open_picture,
)
from mmface.conditions.label_formats import Part, parts_of
from mmface.data.manifest import Record

SIDE = 128
"""Edge of the square in which pictures, masks and sketches are compared, in pixels."""

WORKING_SIDE = 256
"""Longest edge at which masks and sketches are judged, in pixels; larger ones are made smaller."""

_ORIENTATION = 0x0112
_THUMB = 16


class BadFile(NamedTuple):
    """Why a file is no picture: `missing`, `unreadable` or `truncated`, and in words."""

    kind: str
    words: str


@dataclass(frozen=True)
class Reference:
    """What masks, or sketches, of other faces of the set look like.

    `edges` and `outlines` are float32 [faces, SIDE * SIDE]; `agreement`, float32 [faces, faces], is
    of each photo with each outline; `spread` is the deviation of the excess of photos with others'
    outlines (see `alignment`), and `typical_excess` the upper quartile of the own outlines' excess
    in units of it.
    """

    ids: tuple[str, ...]
    edges: np.ndarray
    outlines: np.ndarray
    agreement: np.ndarray
    spread: float
    typical_excess: float


@dataclass(frozen=True)
class Examination:
    """What all faces are examined with.

    `folder` is the manifest's; `references` has `mask` and `sketch`, or neither where there are too
    few faces.
    """

    folder: Path
    size_px: int | None = None
    tokenizer: Any = None
    references: Mapping[str, Reference] = field(default_factory=dict)


@dataclass
class Face:
    """One face, its record, and what is wrong with its files.

    `bad` and `sizes` (width and height, upright) are by field of the record; `sha256` is of the
    photo's file.
    """

    record: Record
    examination: Examination
    bad: dict[str, BadFile] = field(default_factory=dict)
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)
    sha256: str | None = None
    _pictures: dict[str, Image.Image] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Read the files."""
        for name in ("image", *self.record.conditions):
            self._read(name)

    def path(self, name: str) -> Path:
        """The file of one of the face's pictures."""
        return self.examination.folder / getattr(self.record, name)

    def _read(self, name: str) -> None:
        try:
            content = self.path(name).read_bytes()
        except FileNotFoundError:
            self.bad[name] = BadFile("missing", "there is no such file")
            return
        except OSError as error:
            self.bad[name] = BadFile("unreadable", f"it cannot be read ({error.strerror})")
            return
        if name == "image":
            self.sha256 = hashlib.sha256(content).hexdigest()
        opened = _opened(content, smaller=name == "image")
        if isinstance(opened, BadFile):
            self.bad[name] = opened
        else:
            self._pictures[name], self.sizes[name] = opened

    @cached_property
    def photo(self) -> np.ndarray | None:
        """uint8 [SIDE, SIDE, 3]: the photo, not cropped, or None."""
        if "image" not in self._pictures:
            return None
        picture = self._pictures["image"]
        if picture.has_transparency_data:
            picture = Image.fromarray(flat_rgb(picture, "white"))
        small = picture.convert("RGB").resize(
            (SIDE, SIDE), Image.Resampling.BILINEAR, reducing_gap=2
        )
        return np.asarray(small)

    @cached_property
    def thumb(self) -> np.ndarray | None:
        """uint8 [16, 16, 3]: the photo as duplicates are compared, or None."""
        if self.photo is None:
            return None
        whole = Image.fromarray(self.photo)
        return np.asarray(whole.resize((_THUMB, _THUMB), Image.Resampling.BOX))

    @cached_property
    def edges(self) -> np.ndarray | None:
        """float32 [SIDE * SIDE]: third power of the rank of each pixel's gradient, or None.

        Ranks, in [0, 1), do not depend on contrast; the power favours the strongest.
        """
        if self.photo is None:
            return None
        strength = edge_strength(self.photo).ravel()
        ranks = np.empty(strength.size, dtype=np.float32)
        ranks[strength.argsort()] = np.arange(strength.size, dtype=np.float32) / strength.size
        return ranks**3

    @cached_property
    def mask(self) -> LoadedMask | ValueError | None:
        """The mask at `WORKING_SIDE` at most, why it is none in its format, or None."""
        if "mask" not in self._pictures:
            return None
        picture = self._pictures["mask"]
        try:
            return load_mask(picture, working_size(picture)[::-1], self.record.label_format)
        except ValueError as error:
            return error

    @property
    def labels(self) -> np.ndarray | None:
        """uint8 [H, W] of class indices in the order of `LABELS`, or None."""
        return self.mask.labels if isinstance(self.mask, LoadedMask) else None

    @cached_property
    def parts(self) -> Mapping[int, Part]:
        """Where the classes lie in the mask; none if it has no mask."""
        return {} if self.labels is None else parts_of(self.labels)

    def sketch(self, polarity: str) -> np.ndarray | ValueError | None:
        """Read the sketch as one of a polarity: uint8 [H, W], why it is none, or None."""
        if "sketch" not in self._pictures:
            return None
        picture = self._pictures["sketch"]
        try:
            return load_sketch(picture, working_size(picture)[::-1], polarity)
        except ValueError as error:
            return error

    @cached_property
    def own_sketch(self) -> np.ndarray | ValueError | None:
        """The sketch in the polarity that the manifest says."""
        return self.sketch(self.record.sketch_polarity)

    def fault_of(self, kind: ConditionKind) -> str | None:
        """Say why training would not read a condition; None if it does, or if there is none."""
        if kind.name not in self._pictures:
            return None
        side = self.examination.size_px or WORKING_SIDE
        try:
            kind.load(self._pictures[kind.name], (side, side), self.record.reading(kind))
        except ValueError as error:
            return str(error).replace("The picture", f"the {kind.name}")
        return None

    def outline(self, name: str) -> np.ndarray | None:
        """Give a mask's class borders, or a sketch's lines: float32 [SIDE * SIDE] of sum 1.

        None if the face has no usable one.
        """
        whole = self.labels if name == "mask" else self.own_sketch
        if not isinstance(whole, np.ndarray):
            return None
        resampling = Image.Resampling.NEAREST if name == "mask" else Image.Resampling.BILINEAR
        small = np.asarray(Image.fromarray(whole).resize((SIDE, SIDE), resampling))
        if name == "mask":
            strength = np.zeros(small.shape, dtype=np.float32)
            strength[:-1] = small[1:] != small[:-1]
            strength[:, :-1] = np.maximum(strength[:, :-1], small[:, 1:] != small[:, :-1])
        else:
            strength = edge_strength(np.repeat(small[..., None], 3, axis=2))
        total = float(strength.sum())
        return strength.ravel() / total if total else None


def working_size(picture: Image.Image) -> tuple[int, int]:
    """Width and height of a picture at `WORKING_SIDE`."""
    scale = min(1.0, WORKING_SIDE / max(picture.size))
    return max(1, round(picture.width * scale)), max(1, round(picture.height * scale))


def _opened(content: bytes, smaller: bool) -> tuple[Image.Image, tuple[int, int]] | BadFile:
    """Decode a file: the picture upright, which may be `smaller`, and its full size upright."""
    if not content:
        return BadFile("unreadable", "it is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            picture = Image.open(io.BytesIO(content))
    except Exception as error:  # decoders fail in many ways
        words = "it is no picture" if "identify" in str(error) else f"it is no picture ({error})"
        return BadFile("unreadable", words)
    size = picture.size
    if picture.width * picture.height > MAX_PIXELS:
        return BadFile("unreadable", f"it has more than {MAX_PIXELS // 10**6} million pixels")
    if smaller:
        picture.draft("RGB", (2 * SIDE, 2 * SIDE))  # a large JPEG is decoded small, all of it
    try:
        upright = open_picture(picture)
    except ValueError as error:
        cause = error.__cause__ or error
        return BadFile("truncated", f"it breaks off or is damaged ({cause})")
    turned = picture.getexif().get(_ORIENTATION, 1) >= 5
    return upright, size[::-1] if turned else size
