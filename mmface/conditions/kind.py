"""Opening pictures, the base class of spatial conditions, and their registry.

A registered kind becomes, under its name, an argument of the pipeline, an option of the command
line, a field of manifests and a column of stores. An installed package can add kinds by the entry
points `mmface.conditions`: `depth = "my_package:DepthKind"` registers `DepthKind()`.
"""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache, reduce
from importlib.metadata import entry_points
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image, ImageChops, ImageOps

Picture = Image.Image | np.ndarray | str | Path
"""A picture as this room reads it: a PIL picture, an array, or the path of a file."""


@runtime_checkable
class TensorLike(Protocol):
    """A torch tensor, which this room does not import."""

    def detach(self) -> Any:
        """Give the values without their history."""

    def cpu(self) -> Any:
        """Give the values on the CPU."""


@runtime_checkable
class Readable(Protocol):
    """An open file of bytes."""

    def read(self, size: int = -1, /) -> bytes:
        """Give the next bytes."""

    def seek(self, offset: int, /) -> int:
        """Go to a place in the file."""


AnyPicture = Picture | TensorLike | Readable | bytes | bytearray
"""A picture as programs have it: also a torch tensor, an encoded file's bytes, or an open file."""

READER = 2
"""Version of how files are read; stores record the one that they were made with."""

MAX_PIXELS = 50_000_000
"""Larger pictures are refused before they are decompressed."""


def as_picture(source: AnyPicture) -> Picture:
    """Turn what programs have into a picture that can be read twice.

    Tensors are [3, H, W] and the like, and become arrays [H, W, 3]; of one picture, both may have a
    batch axis. Values that are no whole numbers go from 0 to 1. ValueError for others.
    """
    if isinstance(source, bytes | bytearray):
        source = BytesIO(source)
    if isinstance(source, Readable) and not isinstance(source, Image.Image):
        source.seek(0)
        return open_picture(source)
    if isinstance(source, np.ndarray):
        array = source[0] if source.ndim == 4 and len(source) == 1 else source
    elif isinstance(source, TensorLike):
        values = source.detach().cpu()
        array = np.asarray(values.float() if values.is_floating_point() else values)
        array = array[0] if array.ndim == 4 and len(array) == 1 else array
        if array.ndim == 3 and len(array) in (1, 3, 4):
            array = array[0] if len(array) == 1 else np.moveaxis(array, 0, -1)
        elif array.ndim != 2:
            raise ValueError(
                f"{picture_name(source)} has the shape {list(values.shape)}; give [H, W], or one, "
                "three or four channels as [3, H, W]."
            )
    else:
        return source
    if array.dtype.kind != "f":
        return array
    if not (array.size and 0 <= array.min() <= array.max() <= 1):  # NaN is not either
        raise ValueError(
            f"{picture_name(source)} has the shape {list(array.shape)} and values that are not "
            "in 0..1; give fractions in 0..1, or integers 0..255."
        )
    return np.rint(array * 255).astype(np.uint8)


def as_pictures(source: Any) -> Any:
    """Turn a picture, or each of a list or batch of them, as `as_picture` does; None stays."""
    is_batch = isinstance(source, np.ndarray | TensorLike) and getattr(source, "ndim", 0) == 4
    if isinstance(source, list | tuple) or (is_batch and len(source) > 1):
        return [as_pictures(each) for each in source]
    return None if source is None else as_picture(source)


def open_picture(source: Picture | Readable) -> Image.Image:
    """Open a picture or a file, or wrap an array [H, W] or [H, W, 3 or 4] of integers 0..255.

    The result is upright and in its own mode; `format` is the file's. ValueError if it is no
    picture, is broken, or has more than `MAX_PIXELS` pixels.
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
    if isinstance(source, str | Path) and not Path(source).exists():
        raise FileNotFoundError(f"{name} does not exist.")
    try:
        with warnings.catch_warnings():
            # Pillow warns of a decompression bomb; the limit below refuses it.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            opened = nullcontext(source) if isinstance(source, Image.Image) else _opened(source)
        with opened as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            picture.load()
    except Image.DecompressionBombError:
        raise ValueError(
            f"{name} is larger than {MAX_PIXELS // 10**6} million pixels; make it smaller first."
        ) from None
    except Exception as error:  # decoders fail in many ways, that of AVIF with a RuntimeError
        raise ValueError(f"{name} cannot be read as a picture ({error}).") from error
    try:
        upright = ImageOps.exif_transpose(picture)
    except Exception:  # broken EXIF does not say how the picture lies; Pillow fails in many ways
        upright = picture.copy()
    upright.format = picture.format
    return upright


def _opened(source: Any) -> Image.Image:
    return Image.open(source)


def picture_name(source: AnyPicture) -> str:
    """Name a source in an error message."""
    if isinstance(source, str | Path):
        return str(source)
    if isinstance(source, np.ndarray):
        return "The array"
    return "The tensor" if isinstance(source, TensorLike) else "The picture"


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


Parser = Callable[[Sequence[UInt8[np.ndarray, "_ _ 3"]]], list[UInt8[np.ndarray, "_ _"]]]
"""Gives the label maps of RGB pictures, such as `mmface.encoders.face_parser.FaceParser`."""


_STEP = 24
"""Least difference of two neighbours, in any channel (0..255), that counts as a line."""


class LoadedCondition(NamedTuple):
    """A condition's values, uint8 [H, W] or [H, W, C], whose meaning depends on the kind.

    `remark` says what had to be guessed, in a sentence without its subject; None if nothing.
    """

    values: np.ndarray
    remark: str | None = None


@dataclass(frozen=True)
class Reading:
    """The ways in which files of a kind are encoded, and the manifest's field that says which."""

    field: str
    choices: tuple[str, ...]

    @property
    def default(self) -> str:
        """The first of the choices."""
        return self.choices[0]


class ConditionKind(ABC):
    """A kind of spatial condition, such as masks.

    Attributes:
        name: A lower-case word, such as `mask`.
        index: Its row in the model's modality table; trained models depend on it.
        help: The help text of its command-line option.
        reading: How its files may be encoded; None if there is one way only.
        needs_parser: Whether `read_back` needs a face parser.
        score: The number of `agreement` that sums up the others.
        titles: Titles for numbers of `agreement` whose names are not good enough.
    """

    name: ClassVar[str]
    index: ClassVar[int]
    help: ClassVar[str]
    score: ClassVar[str]
    reading: ClassVar[Reading | None] = None
    needs_parser: ClassVar[bool] = False
    titles: ClassVar[Mapping[str, str]] = {}

    @abstractmethod
    def load(
        self, source: Picture, size: tuple[int, int], reading: str | None = None
    ) -> LoadedCondition:
        """Read a condition, crop its middle to the aspect ratio of `size` and resize it.

        Args:
            source: A picture, an array or a path.
            size: Height and width of the result in pixels.
            reading: How it is encoded, one of `reading.choices`; None for the default.

        Returns:
            The condition.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is no picture, or none of this kind.
        """

    @abstractmethod
    def rgb(self, values: np.ndarray) -> UInt8[np.ndarray, "height width 3"]:
        """Draw a condition in RGB, as the VAE encodes it and as people see it."""

    def draw(self, values: np.ndarray) -> Image.Image:
        """Draw a condition for a grid of pictures; by default as `rgb` does."""
        return Image.fromarray(self.rgb(values))

    def outlines(
        self, values: np.ndarray, size: tuple[int, int]
    ) -> Float32[np.ndarray, "height width"]:
        """Where a picture should have lines, in [0, 1]; `size` is width and height."""
        drawn = Image.fromarray(self.rgb(values)).resize(size, Image.Resampling.NEAREST)
        colors = np.array(drawn, dtype=np.int16)
        lines = np.zeros(colors.shape[:2], dtype=np.float32)
        lines[:, 1:] = abs(np.diff(colors, axis=1)).max(axis=-1) > _STEP
        lines[1:] = np.maximum(lines[1:], abs(np.diff(colors, axis=0)).max(axis=-1) > _STEP)
        return lines

    def mirror(self, values: np.ndarray) -> np.ndarray:
        """Mirror a condition left to right."""
        return values[:, ::-1]

    def read_back(
        self, pictures: Sequence[UInt8[np.ndarray, "height width 3"]], parser: Parser | None
    ) -> list[np.ndarray]:
        """Estimate the condition from generated RGB pictures; by default, the pictures."""
        return list(pictures)

    @abstractmethod
    def agreement(self, values: np.ndarray, read: np.ndarray) -> Mapping[str, float]:
        """Compare a condition with what `read_back` found in a picture that was made from it.

        Both have the same height and width. Returns numbers in [0, 1] by name, higher is better;
        `score` is one of the names. No other kind may use the same names. A name with a slash is a
        detail, such as `iou/hair`.
        """

    def doubts(
        self, values: np.ndarray, prompt: str, others: Mapping[str, np.ndarray]
    ) -> list[str]:
        """List what in the prompt or the other conditions contradicts this one; none by default."""
        return []

    def check_measurable(self, values: np.ndarray) -> None:  # noqa: B027
        """Raise ValueError if nothing can agree with these values, such as a blank sketch."""


_kinds: dict[str, ConditionKind] = {}
_TAKEN = frozenset(
    [
        "captions",
        "height",
        "id",
        "image",
        "labels",
        "photo",
        "prompt",
        "region",
        "seed",
        "split",
        "width",
    ]
)


def register(kind: ConditionKind) -> ConditionKind:
    """Register a kind under its name, and return it.

    ValueError if its name is no lower-case word, or its name or index is taken.
    """
    if not (kind.name.isidentifier() and kind.name.islower()) or kind.name in _TAKEN:
        raise ValueError(f"{kind.name!r} cannot name a condition; take another lower-case word.")
    for other in _kinds.values():
        if kind.name == other.name or kind.index == other.index:
            raise ValueError(
                f"The condition {kind.name!r} (index {kind.index}) cannot be registered: there is "
                f"{other.name!r} (index {other.index}) already."
            )
    _kinds[kind.name] = kind
    return kind


@contextmanager
def registered(kind: ConditionKind) -> Iterator[ConditionKind]:
    """Register a kind within a `with` block."""
    register(kind)
    try:
        yield kind
    finally:
        del _kinds[kind.name]


@cache
def _load_plugins() -> None:
    for entry in entry_points(group="mmface.conditions"):
        if entry.name not in _kinds:
            register(entry.load()())


def condition_kinds() -> tuple[ConditionKind, ...]:
    """Return all registered kinds, by index."""
    _load_plugins()
    return tuple(sorted(_kinds.values(), key=lambda kind: kind.index))


def condition_kind(name: str) -> ConditionKind:
    """Return the kind of this name; ValueError lists the known ones."""
    _load_plugins()
    if name not in _kinds:
        known = ", ".join(kind.name for kind in condition_kinds())
        raise ValueError(f"There is no condition {name!r}; known are {known}.")
    return _kinds[name]


def doubts_of(conditions: Mapping[str, np.ndarray], prompt: str) -> list[tuple[str, str]]:
    """List contradictions between prompt and conditions, each with the name of its kind."""
    given = [kind for kind in condition_kinds() if kind.name in conditions]
    return [
        (kind.name, doubt)
        for kind in given
        for doubt in kind.doubts(conditions[kind.name], prompt, conditions)
    ]


def kinds_in_words(between: str) -> str:
    """Join the names of all kinds with articles, such as "a mask or a sketch"."""
    return between.join(f"a {kind.name}" for kind in condition_kinds())


def draw_conditions(conditions: Mapping[str, np.ndarray]) -> Image.Image:
    """Draw a face's conditions on top of each other in RGB; white is transparent."""
    given = [kind for kind in condition_kinds() if kind.name in conditions]
    return reduce(ImageChops.multiply, [kind.draw(conditions[kind.name]) for kind in given])


CONTROL_SUFFIX = "_control"
"""What follows a kind's name in the keyword that says how its conditions bind."""


def split_keywords(keywords: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Sort keywords into conditions and their controls, both by kind, without those of None.

    A control's keyword is the kind's name and `CONTROL_SUFFIX`; TypeError if it is neither.
    """
    names = [kind.name for kind in condition_kinds()]
    given = {key: value for key, value in keywords.items() if value is not None}
    for key in keywords:
        if key.removesuffix(CONTROL_SUFFIX) not in names:
            raise TypeError(
                f"The pipeline has no argument {key!r}; the conditions are {', '.join(names)}, and "
                f"what says how one binds is called as in {names[0]}{CONTROL_SUFFIX}."
            )
    controls = {name: given.pop(key) for name in names if (key := name + CONTROL_SUFFIX) in given}
    return given, controls


def one_each(name: str, value: Any, count: int) -> list[Any]:
    """Give each of `count` prompts its own of a list, or all of them the same value."""
    if not isinstance(value, list | tuple):
        return [value] * count
    if len(value) != count:
        raise ValueError(
            f"{name} is a list of {len(value)} for {count} prompts; give one for all, or one each."
        )
    return list(value)
