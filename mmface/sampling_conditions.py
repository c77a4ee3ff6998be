"""From the files that a request names to the pictures that the model is shown."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageChops, ImageOps

import mmface
from mmface.annotation.sketches import PencilSketch
from mmface.blending import load_image, load_region
from mmface.conditions import (
    COLOR_TOLERANCE,
    colorize,
    flat_rgb,
    load_mask,
    load_sketch,
    open_picture,
)
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
class Conditions:
    """What a request's files hold, at the size of the face.

    Attributes:
        labels: The mask, class indices into `LABELS`, or None.
        sketch: Dark lines on white, or None.
        image: File of the picture to start from, or None.
        region: File of the part of it that is made anew, or None.
        condition_region: File of the part in which the conditions bind, or None.
        sha256: Of each file, by its path as given.
    """

    labels: UInt8[np.ndarray, "height width"] | None
    sketch: UInt8[np.ndarray, "height width"] | None
    image: Path | None = None
    region: Path | None = None
    condition_region: Path | None = None
    sha256: Mapping[str, str] = field(default_factory=dict)

    def drawn(self) -> Image.Image:
        """Draw the mask, the sketch, or the sketch's lines over the mask."""
        given = []
        if self.labels is not None:
            given.append(Image.fromarray(colorize(self.labels)))
        if self.sketch is not None:
            given.append(Image.fromarray(self.sketch).convert("RGB"))
        return ImageChops.multiply(*given) if len(given) == 2 else given[0]


def check_asked(settings: Settings) -> None:
    """Check that a request says a face and gives a condition for it.

    Args:
        settings: What was asked for.

    Raises:
        ValueError: If the prompt is missing, there is no condition, or a photo and another one.
    """
    if settings.prompt is None or not settings.prompt.strip():
        raise ValueError("The prompt is empty; say what the face should look like (--prompt).")
    if settings.photo is not None and (settings.mask or settings.sketch):
        raise ValueError(
            "A photo is given beside a mask or sketch: they are taken from the photo; give either."
        )
    if not (settings.photo or settings.mask or settings.sketch):
        raise ValueError("Neither mask nor sketch is given (--mask, --sketch, or --photo).")


def load_conditions(settings: Settings, size: tuple[int, int], locate: Locate) -> Conditions:
    """Read all files that a request names, and say what of them had to be guessed.

    Args:
        settings: What was asked for.
        size: Height and width of the face in pixels.
        locate: Where the files lie.

    Returns:
        The conditions.

    Raises:
        FileNotFoundError: If a file is not there.
        ValueError: If a file is not what its option needs.
    """
    files = {name: locate(name, path) for name, path in settings.paths.items()}
    labels, sketch = None, None
    if "mask" in files:
        mask = load_mask(files["mask"], size)
        labels = mask.labels
        if mask.off_palette_fraction:
            say(
                f"{files['mask']}: {mask.off_palette_fraction:.1%} of the pixels were farther than "
                f"{COLOR_TOLERANCE:g} from every palette colour and took a neighbour's class; "
                f"the mask has {', '.join(mask.classes)}"
            )
    if "sketch" in files:
        sketch = load_sketch(files["sketch"], size)
    if "photo" in files:
        labels, sketch = photo_conditions(
            files["photo"], size, settings.parser, settings.from_photo
        )
    if "image" in files:
        load_image(files["image"], size)
    for name in ("region", "condition_region"):
        if name in files:
            load_region(files[name], size, name)
    used = {name: files.get(name) for name in ("image", "region", "condition_region")}
    sha256 = {path: file_sha256(files[name]) for name, path in settings.paths.items()}
    return Conditions(labels, sketch, sha256=sha256, **used)


def photo_conditions(
    photo: str | Path, size: tuple[int, int], parser: str, wanted: str = "both"
) -> tuple[UInt8[np.ndarray, "_ _"] | None, UInt8[np.ndarray, "_ _"] | None]:
    """Take a mask and a sketch from a photo: by a face parser, and in pencil.

    Args:
        photo: The file; its middle is cropped to the aspect ratio of `size`.
        size: Height and width of the results in pixels.
        parser: As for `FaceParser.from_pretrained`.
        wanted: `both`, `mask` or `sketch`.

    Returns:
        The label map and the sketch; None for the one that is not wanted.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no picture, shows nothing to draw, or there is no such parser.
    """
    picture = Image.fromarray(flat_rgb(open_picture(photo), "white"))
    enlarge = max(1, PHOTO_SIDE_PX / min(size))
    work = (round(size[1] * enlarge), round(size[0] * enlarge))
    pixels = np.array(ImageOps.fit(picture, work, Image.Resampling.LANCZOS))
    labels, sketch = None, None
    if wanted != "sketch":
        labels = load_mask(open_parser(parser)([pixels])[0], size).labels
    if wanted != "mask":
        try:
            sketch = load_sketch(PencilSketch()([pixels])[0], size)
        except ValueError:
            raise ValueError(f"{photo} shows nothing that could be drawn as a sketch.") from None
    return labels, sketch


@lru_cache(maxsize=1)
def open_parser(name: str) -> FaceParser:
    """Load a face parser; ValueError if there is none of this name."""
    try:
        return FaceParser.from_pretrained(name)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"The face parser {name} cannot be loaded: {reason}") from None
