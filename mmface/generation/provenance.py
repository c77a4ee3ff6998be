"""What a made picture says of itself: that it is synthetic, and all that it was made from.

In a PNG this is a chunk `mmface` of JSON beside the plain texts `Software` and `Description`; in
JPEG and WebP it is the EXIF fields `UserComment`, `Software` and `ImageDescription`. A recipe that
somebody brings is data that is checked: nothing in it is run, loaded or taken for true.
"""

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo

import mmface
from mmface.conditions import open_picture
from mmface.core.command_line import check_whole
from mmface.core.files import written_aside
from mmface.generation.settings import (
    ModelChoice,
    Settings,
    check_text,
    option_values,
    read_fields,
)

PICTURE_SUFFIXES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
"""What a picture can be written as: the format by the file's suffix."""

DESCRIPTION = "synthetic face made by mmface"
VERSION = 1
MAX_RECIPE_CHARACTERS = 500_000
MAX_PICTURES = 1000
_CHUNK = "mmface"
_ASCII = b"ASCII\0\0\0"  # how EXIF marks the character set of a comment
_MAX_EXIF_BYTES = 60_000  # a JPEG has no room for more than 65,533
_KEYS = frozenset(
    {"recipe", "synthetic", "model", "weights", "rows", "seeds", "picture", "files", "versions"}
)


@dataclass(frozen=True)
class Provenance:
    """All that a picture was made from.

    Attributes:
        model: Which weights, in which arithmetic.
        weights: Digest of the weights' and their configs' files, as `model_sha256` gives it.
        rows: What was asked for: one, or several under each other in a grid.
        seeds: The seeds of each row's faces, which were one batch.
        picture: Which of the first row's faces this is; None for a labelled grid of all.
        files: SHA-256 of each file that a row or the model names, by its path as given.
        versions: Of mmface, torch and diffusers.
    """

    model: ModelChoice
    weights: str
    rows: tuple[Settings, ...]
    seeds: tuple[int, ...]
    picture: int | None
    files: Mapping[str, str]
    versions: Mapping[str, str]

    def __post_init__(self) -> None:
        """Raise ValueError unless it says which picture of how many it is."""
        check_whole("The number of faces", len(self.rows) * len(self.seeds), 1, MAX_PICTURES)
        if self.picture is not None:
            check_whole("picture", self.picture, 0, len(self.seeds) - 1)
        named = {path for row in self.rows for path in row.paths.values()}
        named |= set() if self.model.lora is None else {self.model.lora}
        if named != set(self.files):
            raise ValueError("its files are not those that its rows and its model name")

    def of_picture(self, picture: int | None) -> "Provenance":
        """Give the recipe of one of the faces, or with None of the grid of all."""
        return replace(self, picture=picture)

    @cached_property
    def json(self) -> str:
        """The recipe as ASCII in one line, its keys always in the same order."""
        values = {"recipe": VERSION, "synthetic": True, **asdict(self)}
        values["rows"] = [option_values(row) for row in self.rows]
        return json.dumps(values, sort_keys=True, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> "Provenance":
        """Read a recipe that somebody brings.

        Args:
            text: JSON.

        Returns:
            The recipe; whether its files and weights are there is not looked at.

        Raises:
            ValueError: If it is no recipe: too long, no JSON, or a key or value is not in order.
        """
        if len(text) > MAX_RECIPE_CHARACTERS:
            raise ValueError(f"the recipe is longer than {MAX_RECIPE_CHARACTERS} characters")
        values = parse_object(text)
        if values.keys() != _KEYS or values["recipe"] != VERSION or values["synthetic"] is not True:
            odd = sorted(values.keys() ^ _KEYS)
            raise ValueError(f"it is no recipe of version {VERSION} (keys at odds: {odd[:5]})")
        rows, seeds, picture = (values[key] for key in ("rows", "seeds", "picture"))
        if not (isinstance(rows, list) and isinstance(seeds, list)):
            raise ValueError("rows and seeds must be lists")
        check_whole("The number of faces", len(rows) * len(seeds), 1, MAX_PICTURES)
        for seed in seeds:
            check_whole("seed", seed, 0, 2**63 - 1)
        return cls(
            model=read_fields(ModelChoice, _mapping("model", values["model"]), "model"),
            weights=check_text("weights", values["weights"]),
            rows=tuple(read_fields(Settings, _mapping("a row", row), "a row") for row in rows),
            seeds=tuple(seeds),
            picture=picture,
            files=_texts("files", values["files"]),
            versions=_texts("versions", values["versions"]),
        )

    def other_versions(self, versions: Mapping[str, str]) -> list[str]:
        """Say in words which of these versions are other ones than those that were used."""
        names = sorted(self.versions.keys() | versions.keys())
        pairs = [(name, self.versions.get(name), versions.get(name)) for name in names]
        return [f"{name} {now} instead of {then}" for name, then, now in pairs if then != now]

    def makes_the_same_as(self, other: "Provenance") -> bool:
        """Whether two recipes are for one picture, whatever the versions are."""
        return replace(self, versions={}) == replace(other, versions={})


def parse_object(text: str) -> dict[str, Any]:
    """Parse a JSON object strictly: no NaN, no key twice, no bottomless nesting.

    Args:
        text: JSON.

    Returns:
        The object.

    Raises:
        ValueError: If it is none.
    """
    try:
        found = json.loads(text, parse_constant=_refuse, object_pairs_hook=_once)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"it is not JSON ({error})") from None
    return _mapping("it", found)


def _refuse(constant: str) -> None:
    raise ValueError(f"it holds {constant}, which is no number")


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("it has a key twice")
    return found


def _mapping(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{name} must be a JSON object")
    return value


def _texts(name: str, value: Any) -> dict[str, str]:
    """Check an object of strings."""
    pairs = _mapping(name, value).items()
    return {check_text(name, key): check_text(name, text) for key, text in pairs}


def current_versions() -> dict[str, str]:
    """Name the versions of what computes a picture."""
    import torch  # whose own version names the build, too: 2.14.1+cu130

    return {
        "mmface": mmface.__version__,
        "torch": str(torch.__version__),
        "diffusers": version("diffusers"),
    }


def check_output(out: str | Path) -> Path:
    """Check where pictures are to go, before time is spent on making them.

    Args:
        out: A picture file, or a folder.

    Returns:
        The same as a path.

    Raises:
        ValueError: If the suffix is not one of a picture, or something is in the way.
    """
    out = Path(out)
    if out.suffix and not out.is_dir() and out.suffix.lower() not in PICTURE_SUFFIXES:
        raise ValueError(f"{out} ends in no picture suffix: {', '.join(PICTURE_SUFFIXES)}.")
    if (out.suffix and out.is_dir()) or (not out.suffix and out.is_file()):
        raise ValueError(f"{out} is in the way: a picture needs a suffix, a folder has none.")
    for parent in out.absolute().parents:
        if parent.exists():
            if not (parent.is_dir() and os.access(parent, os.W_OK)):
                raise ValueError(f"{out} cannot be written: {parent} is no writable folder.")
            break
    return out


def write_pictures(pictures: Mapping[Path, tuple[Image.Image, Provenance]]) -> None:
    """Write pictures: all of them aside first, then each to its place, so that none is half there.

    Args:
        pictures: Each picture with its recipe by its path, whose suffix tells the format.
    """
    with ExitStack() as renames:
        for path, (picture, recipe) in pictures.items():
            aside = renames.enter_context(written_aside(path))
            picture.save(aside, PICTURE_SUFFIXES[path.suffix.lower()], **_embedded(recipe, path))


def _embedded(recipe: Provenance, path: Path) -> dict[str, Any]:
    """Give what Pillow needs to write a recipe into a file of this suffix."""
    software = f"mmface {mmface.__version__}"
    if path.suffix.lower() == ".png":
        info = PngInfo()
        info.add_text("Software", software)
        info.add_text("Description", DESCRIPTION)
        info.add_itxt(_CHUNK, recipe.json)
        return {"pnginfo": info}
    comment = _ASCII + recipe.json.encode("ascii")
    if len(comment) > _MAX_EXIF_BYTES:
        raise ValueError(f"{path} has no room for its recipe; write a PNG.")
    exif = Image.Exif()
    exif[ExifTags.Base.Software] = software
    exif[ExifTags.Base.ImageDescription] = DESCRIPTION
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = comment
    return {"exif": exif}


def read_provenance(path: str | Path) -> tuple[Provenance, Image.Image]:
    """Read a picture and the recipe that it carries.

    Args:
        path: A PNG, JPEG or WebP that mmface wrote.

    Returns:
        The recipe, and the picture.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no picture, carries no recipe, or one that is not in order.
    """
    picture = open_picture(Path(path))
    text = picture.info.get(_CHUNK)
    if text is None:
        try:
            comment = picture.getexif().get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment)
        except Exception as error:  # Pillow's EXIF reader fails in many ways on broken bytes
            raise ValueError(f"{path} has broken EXIF data ({error}).") from error
        text = comment.removeprefix(_ASCII).decode("latin-1") if comment else None
    if not isinstance(text, str):
        raise ValueError(f"{path} carries no recipe: mmface did not write it, or it was cut out.")
    try:
        return Provenance.from_json(text), picture
    except ValueError as error:
        raise ValueError(f"The recipe in {path} cannot be used: {error}") from None
