"""What all importers share: files found and joined by face, and the report of what is missing."""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from PIL import Image
from tqdm import tqdm

from mmface.conditions import ConditionKind, condition_kinds
from mmface.data.importers.splits import SplitRule, face_key
from mmface.data.manifest import Record, relative_path

PICTURE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"})
_ORIENTATION = 0x0112
_SHOWN = 5
_FOLDERS = {
    "mask": ("masks", "Masks_Colored_1024", "mask"),
    "sketch": ("sketches", "sketch"),
}
"""Folders that published data sets keep a kind in; other kinds are looked for by their names."""


@dataclass
class ImportReport:
    """What an import found and what it missed, by the faces' ids or the files' paths.

    In the manifest are `found` faces, also those `without_condition` (by the kind's name; kinds
    beyond the built-in ones count where at least one face has them) and `without_captions`. Left
    out are those `without_image` and those `without_split`, which no list names. `notes` says what
    was decided, and why.
    """

    found: int = 0
    without_image: list[str] = field(default_factory=list)
    without_condition: dict[str, list[str]] = field(default_factory=dict)
    without_captions: list[str] = field(default_factory=list)
    without_split: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        """Say it, one line a kind, with the first few of each."""
        lines = [f"{self.found} faces", *self.notes]
        missing = {
            "without image": self.without_image,
            **{f"without {name}": ids for name, ids in self.without_condition.items()},
            "without captions": self.without_captions,
            "without split": self.without_split,
            "unreadable": self.unreadable,
            "ignored": self.ignored,
        }
        for name, listed in missing.items():
            if listed:
                more = ", ..." if len(listed) > _SHOWN else ""
                shown = ", ".join(listed[:_SHOWN])
                lines.append(f"{name}: {len(listed)} ({shown}{more})")
        return "\n".join(lines)


@dataclass(frozen=True)
class FaceFiles:
    """The files of one face, before they become a record.

    `key` is its name within its data set, numbers with five digits; `prefix` the data set's name;
    `split` None if no list names the face.
    """

    key: str
    prefix: str
    image: Path
    conditions: Mapping[str, Path]
    captions: tuple[str, ...]
    split: str | None

    @property
    def id(self) -> str:
        """The face's name in the manifest."""
        return f"{self.prefix}/{self.key}"


class Importer(ABC):
    """Reads one layout of folders; `report` is complete when `records` returns."""

    default_prefix: ClassVar[str]
    label_format: ClassVar[str | None] = None
    """The masks' label format where the layout fixes it."""

    def __init__(
        self, folder: str | Path, split: SplitRule | None = None, prefix: str | None = None
    ) -> None:
        """Choose a folder; None takes the data set's own split, or its name as the ids' prefix."""
        self.folder = Path(folder)
        self.check_folder()
        self.split = split
        self.prefix = self.default_prefix if prefix is None else prefix.strip("/")
        self.report = ImportReport()

    def check_folder(self) -> None:
        """Raise FileNotFoundError unless the folder is there."""
        if not self.folder.is_dir():
            raise FileNotFoundError(f"{self.folder} is no folder.")

    @abstractmethod
    def faces(self, beside: Path) -> list[FaceFiles]:
        """Find the faces' files, in order; pictures that the import makes go into `beside`."""

    def records(self, manifest: Path) -> list[Record]:
        """Give a record for each face with a photo and a split; ValueError if there are none.

        Their paths are relative to the manifest's folder.
        """
        found = self.faces(manifest.parent / f"{manifest.stem}_pictures")
        chosen = [each for each in found if each.split is not None]
        self.report.without_split += [each.id for each in found if each.split is None]
        images = [each.image for each in chosen]
        with ThreadPoolExecutor() as threads:
            sizes = threads.map(_upright_size, images)
            bar = tqdm(sizes, desc="photos", total=len(images), unit="photo")
            measured = list(zip(chosen, bar, strict=True))
        start = manifest.parent.resolve()
        records = []
        for face, size in measured:
            if isinstance(size, str):
                self.report.unreadable.append(f"{face.image} ({size})")
                continue
            assert face.split is not None
            image = relative_path(face.image.resolve(), start)
            paths = {k: relative_path(v.resolve(), start) for k, v in face.conditions.items()}
            records.append(
                Record(face.id, image, face.captions, face.split, *size, conditions=paths)
            )
        if not records:
            raise ValueError(f"{self.folder} holds no face in this layout.\n{self.report}")
        self._count(records)
        return records

    def _count(self, records: Sequence[Record]) -> None:
        self.report.found = len(records)
        for kind in condition_kinds():
            lacking = [each.id for each in records if kind.name not in each.conditions]
            if len(lacking) < len(records) or kind.name in _FOLDERS:
                self.report.without_condition[kind.name] = lacking
        self.report.without_captions += [each.id for each in records if not each.captions]

    def ignore(self, path: Path) -> None:
        """Report a file that belongs to no face."""
        self.report.ignored.append(path.relative_to(self.folder).as_posix())

    def pictures_in(self, folder: Path | None) -> dict[str, Path]:
        """Find the pictures in a folder and below it, by face; None has none."""
        return self._by_key(folder, PICTURE_SUFFIXES)

    def conditions_in(
        self, folder: Path | None, but: Sequence[ConditionKind] = ()
    ) -> dict[str, dict[str, Path]]:
        """Find the pictures of each kind, `but` some, in a folder's folders; None has none."""
        return {
            kind.name: self.pictures_in(folder and first_there(folder, folders_of(kind)))
            for kind in condition_kinds()
            if kind not in but
        }

    def captions_in(self, path: Path | None) -> dict[str, tuple[str, ...]]:
        """Read the captions in a folder of files by face, or in one JSON file; None has none."""
        if path is None:
            return {}
        found: dict[str, tuple[str, ...]] = {}
        files = {"": path} if path.is_file() else self._by_key(path, frozenset({".txt", ".json"}))
        for key, file in files.items():
            try:
                found |= read_captions(file, key)
            except ValueError as error:
                self.report.unreadable.append(str(error))
        return found

    def _by_key(self, folder: Path | None, suffixes: frozenset[str]) -> dict[str, Path]:
        found: dict[str, Path] = {}
        for path in files_below(folder) if folder else ():
            key = face_key(path.stem)
            if path.suffix.lower() not in suffixes or key in found:
                self.ignore(path)
            else:
                found[key] = path
        return found

    def joined(
        self,
        images: Mapping[str, Path],
        conditions: Mapping[str, Mapping[str, Path]],
        captions: Mapping[str, tuple[str, ...]],
        prefix: str,
        rule: SplitRule,
    ) -> Iterator[FaceFiles]:
        """Join the files of faces, in order, and report those that have no photo."""
        others = captions.keys() | {key for each in conditions.values() for key in each}
        self.report.without_image += [f"{prefix}/{key}" for key in sorted(others - images.keys())]
        for key in sorted(images):
            yield FaceFiles(
                key,
                prefix,
                images[key],
                {name: each[key] for name, each in conditions.items() if key in each},
                captions.get(key, ()),
                rule.of(key),
            )


def folders_of(kind: ConditionKind) -> tuple[str, ...]:
    """Name the folders in which a kind's pictures may lie."""
    return _FOLDERS.get(kind.name, (f"{kind.name}s", kind.name))


def files_below(folder: Path) -> list[Path]:
    """Find all files in a folder and below it, in order, without hidden ones."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return [path for path in paths if not path.name.startswith(".")]


def first_there(folder: Path, names: Sequence[str]) -> Path | None:
    """Give the first of some files or folders that is there."""
    return next((folder / name for name in names if (folder / name).exists()), None)


def read_captions(path: Path, key: str) -> dict[str, tuple[str, ...]]:
    """Read captions by face from `.txt`, one a line, or `.json`, a list or lists by face.

    They are `key`'s unless the file names faces; ValueError if it is of another form or not UTF-8.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 (byte {error.start + 1})") from None
    if path.suffix.lower() != ".json":
        return {key: tuple(line.strip() for line in text.splitlines() if line.strip())}
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}:{error.lineno} is not JSON ({error.msg})") from None
    by_key = content if isinstance(content, dict) else {key: content}
    found = {}
    for name, captions in by_key.items():
        captions = [captions] if isinstance(captions, str) else captions
        if not isinstance(captions, list) or not all(isinstance(each, str) for each in captions):
            raise ValueError(f"{path}: the captions of {name!r} are no list of texts")
        is_file = Path(name).suffix.lower() in PICTURE_SUFFIXES
        stem = Path(name).stem if is_file else name
        found[face_key(stem)] = tuple(each.strip() for each in captions if each.strip())
    return found


def _upright_size(path: Path) -> tuple[int, int] | str:
    """Width and height, upright, from a picture's head, or why it has none."""
    try:
        with Image.open(path) as picture:
            # Asked for EXIF that a PNG's head lacks, Pillow would decode all of it.
            known = picture.format != "PNG" or "exif" in picture.info
            turned = known and picture.getexif().get(_ORIENTATION, 1) >= 5
            return picture.size[::-1] if turned else picture.size
    except (OSError, SyntaxError, ValueError) as error:
        return str(error)
