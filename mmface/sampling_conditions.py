"""From the files that a request names to the pictures that the model is shown."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

import mmface
from mmface.annotation.sketches import PencilSketch
from mmface.blending import load_image, load_region
from mmface.conditions import condition_kinds, flat_rgb, load_mask, load_sketch, open_picture
from mmface.core.digests import file_sha256
from mmface.encoders.face_parser import FaceParser
from mmface.sampling_settings import Settings

BUILTIN_PREFIX = "mmface:"
"""What a path begins with that leads into the package's own assets."""

PHOTO_SIDE_PX = 512
"""Shorter side at which photos are annotated, the size that the paper's sketches are drawn at."""

Locate = Callable[[str, str], Path]
"""Gives the file of an option's name and the path as given."""


def say(note: str) -> None:
    """Tell the person at the terminal something that does not stop the work."""
    print(f"note: {note}", file=sys.stderr)


def located(path: str, folder: Path) -> Path:
    """Give the file that a path means; a relative one lies in this folder."""
    if path.startswith(BUILTIN_PREFIX):
        assets = Path(mmface.__file__).parent / "assets"
        return assets / path.removeprefix(BUILTIN_PREFIX)
    return folder / path


@dataclass(frozen=True, eq=False)
class RequestFiles:
    """What a request's files hold, at the size of the face.

    Attributes:
        conditions: Values of the conditions by their kind, as `ConditionKind.load` gives them.
        image: File of the picture to start from, or None.
        region: File of the part of it that is made anew, or None.
        condition_region: File of the part in which the conditions bind, or None.
        sha256: Of each file, by its path as given.
    """

    conditions: Mapping[str, np.ndarray]
    image: Path | None = None
    region: Path | None = None
    condition_region: Path | None = None
    sha256: Mapping[str, str] = field(default_factory=dict)


def check_asked(settings: Settings) -> None:
    """Check that a request says a face and gives a condition for it.

    Args:
        settings: What was asked for.

    Raises:
        ValueError: If the prompt is missing, there is no condition, or a photo and another one.
    """
    if settings.prompt is None or not settings.prompt.strip():
        raise ValueError("The prompt is empty; say what the face should look like (--prompt).")
    if settings.photo is not None and settings.conditions:
        given = " and ".join(settings.conditions)
        raise ValueError(
            f"A photo is given beside a {given}: the photo's own are taken from it; give either."
        )
    if not (settings.photo or settings.conditions):
        names = [kind.name for kind in condition_kinds()]
        options = ", ".join(f"--{name}" for name in names)
        raise ValueError(f"Neither {' nor '.join(names)} is given ({options}, or --photo).")


def load_files(settings: Settings, size: tuple[int, int], locate: Locate) -> RequestFiles:
    """Read all files that a request names, and say what of them had to be guessed.

    Args:
        settings: What was asked for.
        size: Height and width of the face in pixels.
        locate: Where the files lie.

    Returns:
        What they hold.

    Raises:
        FileNotFoundError: If a file is not there.
        ValueError: If a file is not what its option needs.
    """
    files = {name: locate(name, path) for name, path in settings.paths.items()}
    conditions: dict[str, np.ndarray] = {}
    for kind in condition_kinds():
        if kind.name in settings.conditions:
            loaded = kind.load(files[kind.name], size)
            conditions[kind.name] = loaded.values
            if loaded.remark is not None:
                say(f"{files[kind.name]}: {loaded.remark}")
    if "photo" in files:
        photo = files["photo"]
        conditions |= photo_conditions(photo, size, settings.parser, settings.from_photo)
    if "image" in files:
        load_image(files["image"], size)
    for name in ("region", "condition_region"):
        if name in files:
            load_region(files[name], size, name)
    used = {name: files.get(name) for name in ("image", "region", "condition_region")}
    sha256 = {path: file_sha256(files[name]) for name, path in settings.paths.items()}
    return RequestFiles(conditions, sha256=sha256, **used)


def photo_conditions(
    photo: str | Path, size: tuple[int, int], parser: str, wanted: str = "both"
) -> dict[str, UInt8[np.ndarray, "_ _"]]:
    """Take a mask and a sketch from a photo: by a face parser, and in pencil.

    Args:
        photo: The file; its middle is cropped to the aspect ratio of `size`.
        size: Height and width of the results in pixels.
        parser: As for `FaceParser.from_pretrained`.
        wanted: `both`, `mask` or `sketch`.

    Returns:
        The label map as `mask` and the sketch as `sketch`, those that are wanted.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no picture, shows nothing to draw, or there is no such parser.
    """
    picture = Image.fromarray(flat_rgb(open_picture(photo), "white"))
    enlarge = max(1, PHOTO_SIDE_PX / min(size))
    work = (round(size[1] * enlarge), round(size[0] * enlarge))
    pixels = np.array(ImageOps.fit(picture, work, Image.Resampling.LANCZOS))
    found: dict[str, np.ndarray] = {}
    if wanted != "sketch":
        found["mask"] = load_mask(open_parser(parser)([pixels])[0], size).labels
    if wanted != "mask":
        try:
            found["sketch"] = load_sketch(PencilSketch()([pixels])[0], size)
        except ValueError:
            raise ValueError(f"{photo} shows nothing that could be drawn as a sketch.") from None
    return found


@lru_cache(maxsize=1)
def open_parser(name: str) -> FaceParser:
    """Load a face parser; ValueError if there is none of this name."""
    try:
        return FaceParser.from_pretrained(name)
    except OSError as error:
        raise ValueError(str(error)) from None
    except ValueError as error:
        raise ValueError(f"The face parser {name} cannot be loaded: {error}") from None
