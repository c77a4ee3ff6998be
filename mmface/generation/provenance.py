"""What a made picture says of itself: that it is synthetic, and all that it was made from.

In a PNG this is a chunk `mmface` of JSON beside the plain texts `Software` and `Description`; in
JPEG and WebP it is the EXIF fields `UserComment`, `Software` and `ImageDescription`. A recipe that
somebody brings is data that is checked: nothing in it is run, loaded or taken for true.
"""

import errno
import io
import json
import os
import platform
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property, lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

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
VERSION = 2
MAX_RECIPE_CHARACTERS = 500_000
MAX_PICTURES = 1000
_CHUNK = "mmface"
_ASCII = b"ASCII\0\0\0"  # how EXIF marks the character set of a comment
_MAX_EXIF_BYTES = 60_000  # a JPEG has no room for more than 65,533
_KEYS = frozenset(
    {"recipe", "synthetic", "model", "weights", "rows", "seeds", "picture", "files", "versions"}
)
_MAX_THREADS = 1024


@dataclass(frozen=True)
class Computation:
    """How a call was computed, which decides how its numbers are rounded.

    Attributes:
        requests: Number of requests in the call; each had the recipe's number of seeds.
        place: Number of requests in it before those of the recipe.
        max_batch: The most predictions that were computed at once; None for no limit.
        threads: CPU threads.
        processor: Name of the GPU, or of the CPU with its vector units.
    """

    requests: int
    place: int
    max_batch: int | None
    threads: int
    processor: str

    def __post_init__(self) -> None:
        """Raise ValueError unless the numbers are ones that can be computed with again."""
        check_whole("requests", self.requests, 1, MAX_PICTURES)
        check_whole("place", self.place, 0, self.requests - 1)
        check_whole("threads", self.threads, 1, _MAX_THREADS)
        if self.max_batch is not None:
            check_whole("max_batch", self.max_batch, 1)
        check_text("processor", self.processor)

    @classmethod
    def here(
        cls, device: Any, requests: int, place: int = 0, max_batch: int | None = None
    ) -> "Computation":
        """Describe a call on this machine's `torch.device`."""
        import torch

        if device.type == "cuda":
            name = torch.cuda.get_device_name(device)
        else:
            name = f"{_cpu_name()}, {torch.backends.cpu.get_cpu_capability()}"
        return cls(requests, place, max_batch, min(torch.get_num_threads(), _MAX_THREADS), name)


@lru_cache(maxsize=1)
def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


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
        computed: How it was computed; None in pictures of mmface's first recipes.
    """

    model: ModelChoice
    weights: str
    rows: tuple[Settings, ...]
    seeds: tuple[int, ...]
    picture: int | None
    files: Mapping[str, str]
    versions: Mapping[str, str]
    computed: Computation | None = None

    def __post_init__(self) -> None:
        """Raise ValueError unless it says which picture of how many it is."""
        check_whole("The number of faces", len(self.rows) * len(self.seeds), 1, MAX_PICTURES)
        if self.picture is not None:
            check_whole("picture", self.picture, 0, len(self.seeds) - 1)
        if self.computed and self.computed.place + len(self.rows) > self.computed.requests:
            raise ValueError("its rows are more than the requests of its call")
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
        if self.computed is None:
            values |= {"recipe": 1}
            del values["computed"]
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
        keys = _KEYS | ({"computed"} if values.get("recipe") == VERSION else set())
        is_known = values.get("recipe") in (1, VERSION) and values.get("synthetic") is True
        if values.keys() != keys or not is_known:
            odd = sorted(values.keys() ^ keys)
            raise ValueError(f"it is no recipe of version 1 or {VERSION} (keys at odds: {odd[:5]})")
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
            computed=_computation(values["computed"]) if "computed" in values else None,
        )

    def other_versions(self, versions: Mapping[str, str]) -> list[str]:
        """Say in words which of these versions are other ones than those that were used."""
        names = sorted(self.versions.keys() | versions.keys())
        pairs = [(name, self.versions.get(name), versions.get(name)) for name in names]
        return [f"{name} {now} instead of {then}" for name, then, now in pairs if then != now]

    def makes_the_same_as(self, other: "Provenance") -> bool:
        """Whether two recipes are for one picture, up to rounding by versions and machines."""
        own, others = (replace(one, versions={}, computed=None) for one in (self, other))
        return own == others


def parse_object(text: str) -> dict[str, Any]:
    """Parse a JSON object strictly: no NaN, no key twice, no bottomless nesting."""
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


def _computation(value: Any) -> Computation:
    found = _mapping("computed", value)
    if found.keys() != {each.name for each in fields(Computation)}:
        raise ValueError("computed does not say how its call was computed")
    return Computation(**found)


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


class Output(NamedTuple):
    """Where pictures go: a file, or a folder, which may be missing still."""

    path: Path
    is_folder: bool

    def file(self, name: str) -> Path:
        """Give the file itself, or the one of this name in the folder."""
        return self.path / name if self.is_folder else self.path


def check_output(out: str | Path) -> Output:
    """Check where pictures are to go, before time is spent on making them.

    What ends in a picture's suffix is a file; an existing folder, what has no suffix and what ends
    in a slash is a folder.

    Args:
        out: A picture file, or a folder.

    Returns:
        The path, and whether it is a folder.

    Raises:
        ValueError: If the suffix is not one of a picture, or something is in the way.
    """
    path, is_picture = Path(out), Path(out).suffix.lower() in PICTURE_SUFFIXES
    ends_in_slash = str(out).endswith(("/", os.sep))
    is_folder = ends_in_slash or not path.suffix or (path.is_dir() and not is_picture)
    if not is_folder and not is_picture:
        raise ValueError(
            f"{path} ends in no picture suffix: {', '.join(PICTURE_SUFFIXES)}; a folder that is "
            "not there yet ends in a slash."
        )
    if path.exists() and path.is_dir() != is_folder:
        raise ValueError(
            f"{path} is in the way: a picture needs a suffix, a folder has none or ends in a slash."
        )
    for parent in path.absolute().parents:
        if parent.exists():
            if not (parent.is_dir() and os.access(parent, os.W_OK)):
                raise ValueError(f"{path} cannot be written: {parent} is no writable folder.")
            break
    return Output(path, is_folder)


def unused(path: Path) -> Path:
    """Give a path, or the first of it with `_2`, `_3` and so on that nothing is at."""
    found, number = path, 1
    while found.exists():
        number += 1
        found = path.with_name(f"{path.stem}_{number}{path.suffix}")
    return found


def check_unused(paths: Iterable[Path], overwrite: bool) -> None:
    """Raise ValueError if something would be replaced that nobody asked to replace."""
    there = [path for path in paths if path.exists()]
    if there and not overwrite:
        more = f" and {len(there) - 1} more" if len(there) > 1 else ""
        raise ValueError(
            f"{there[0]}{more} is there already: give another --out, or --overwrite to replace it."
        )


def write_pictures(pictures: Mapping[Path, tuple[Image.Image, Provenance]]) -> None:
    """Write pictures: all of them aside first, then each to its place, so that none is half there.

    Args:
        pictures: Each picture with its recipe by its path, whose suffix tells the format.

    Raises:
        OSError: If they cannot be written; a full disk's message says what they need.
    """
    files = {path: _encoded(picture, recipe, path) for path, (picture, recipe) in pictures.items()}
    with ExitStack() as renames:
        for path, content in files.items():
            aside = renames.enter_context(written_aside(path))
            try:
                aside.write_bytes(content)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                need, free = sum(map(len, files.values())), shutil.disk_usage(path.parent).free
                raise OSError(
                    f"{path} cannot be written: the disk is full. {need / 1e6:.2f} MB are needed "
                    f"for {len(files)} pictures, and {free / 1e6:.2f} MB are free."
                ) from error


def _encoded(picture: Image.Image, recipe: Provenance, path: Path) -> bytes:
    content = io.BytesIO()
    picture.save(content, PICTURE_SUFFIXES[path.suffix.lower()], **_embedded(recipe, path))
    return content.getvalue()


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
