"""Manifests: a data set as one JSON-lines file that says which pictures, masks and words belong.

The first line is the header, every other one a face. Paths are relative to the manifest's folder,
with forward slashes, so that a manifest moves with its pictures. The label format and the sketch
polarity stand in the header once and hold for all faces; a face that differs says so itself. So
a merged manifest needs no second form, and a reader asks the record alone.
"""

import json
import os
import posixpath
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from mmface.conditions import LABEL_FORMATS, SKETCH_POLARITIES
from mmface.core.files import written_aside

VERSION = 1
SPLITS = ("train", "val", "test")
MAX_FAULTS = 10
"""Faults of a file that are named at once."""


@dataclass(frozen=True, slots=True)
class Record:
    """One face.

    Attributes:
        id: Name that is unique in the manifest, such as `celebahq/00012`.
        image: Path of the photo, relative to the manifest's folder.
        mask: Path of the segmentation mask, or None.
        sketch: Path of the sketch, or None.
        captions: Descriptions of the face; none are allowed.
        split: One of `SPLITS`.
        width: Of the photo in pixels, upright.
        height: Of the photo in pixels, upright.
        sha256: Of the photo's file, in hexadecimal, or None.
        label_format: Of the mask, a name in `mmface.conditions.LABEL_FORMATS`.
        sketch_polarity: Of the sketch, one of `SKETCH_POLARITIES`.
    """

    id: str
    image: str
    mask: str | None
    sketch: str | None
    captions: tuple[str, ...]
    split: str
    width: int
    height: int
    sha256: str | None = None
    label_format: str = "celebamask_hq"
    sketch_polarity: str = "dark_on_white"


PATH_FIELDS = ("image", "mask", "sketch")
_KEYS = frozenset(each.name for each in fields(Record))
_NEEDED = _KEYS - {"sha256", "label_format", "sketch_polarity"}
_HEADER_KEYS = frozenset({"manifest", "version", "label_format", "sketch_polarity", "made_by"})


@dataclass(frozen=True)
class Manifest:
    """A data set.

    Attributes:
        path: The file; paths in the records are relative to its folder.
        records: The faces.
        label_format: Of the masks, unless a record says another; what the header says.
        sketch_polarity: Of the sketches, unless a record says another; what the header says.
        made_by: What made the manifest, such as the layout and the folder it was imported from.
    """

    path: Path
    records: Sequence[Record]
    label_format: str = "celebamask_hq"
    sketch_polarity: str = "dark_on_white"
    made_by: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, path: str | Path) -> "Manifest":
        """Read a manifest and check every line of it.

        Args:
            path: The file.

        Returns:
            The manifest.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is no manifest; names the first `MAX_FAULTS` faults, each with its
                line. Whether the pictures exist is not looked at.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"{path} does not exist; scripts/dataset.py makes a manifest.")
        reader = ManifestReader(path)
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                reader.line(number, line)
                if len(reader.faults) >= MAX_FAULTS:
                    break
        if reader.header is None and not reader.faults:
            reader.faults.append(f"{path}:1: the file is empty, a manifest begins with its header")
        if reader.faults:
            raise ValueError("\n".join(reader.faults))
        assert reader.header is not None
        kept = {key: reader.header[key] for key in _HEADER_KEYS - {"manifest", "version"}}
        return cls(path, reader.records, **kept)

    def write(self, path: str | Path) -> "Manifest":
        """Write the manifest, aside first and then under its name.

        Args:
            path: The file. In another folder than `self.path`, paths are rewritten to lead from
                there to the same pictures.

        Returns:
            The manifest as it was written.
        """
        moved = self.at(path)
        header = {
            "manifest": "mmface",
            "version": VERSION,
            "label_format": self.label_format,
            "sketch_polarity": self.sketch_polarity,
            "made_by": dict(self.made_by),
        }
        lines = [header, *map(self._as_json, moved.records)]
        with written_aside(moved.path) as aside, aside.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        return moved

    def _as_json(self, record: Record) -> dict[str, Any]:
        row = {key: getattr(record, key) for key in Record.__slots__}
        defaults = {
            "sha256": None,
            "label_format": self.label_format,
            "sketch_polarity": self.sketch_polarity,
        }
        return {k: v for k, v in row.items() if k not in defaults or v != defaults[k]}

    def at(self, path: str | Path) -> "Manifest":
        """Give the same data set as a manifest of another path, to the same pictures."""
        path = Path(path)
        old, new = self.path.parent.resolve(), path.parent.resolve()
        if old == new:
            return replace(self, path=path)
        folders: dict[str, str] = {}  # one look a folder, as there are far fewer than files

        def led(relative: str) -> str:
            folder, name = posixpath.split(relative)
            if folder not in folders:
                folders[folder] = relative_path(old / folder, new)
            return posixpath.normpath(posixpath.join(folders[folder], name))

        records = [
            replace(
                record,
                image=led(record.image),
                mask=record.mask and led(record.mask),
                sketch=record.sketch and led(record.sketch),
            )
            for record in self.records
        ]
        return replace(self, path=path, records=records)

    def subset(self, split: str) -> "Manifest":
        """Give the faces of one split.

        Args:
            split: One of `SPLITS`.

        Returns:
            The manifest of these alone; it may have none.

        Raises:
            ValueError: If there is no such split.
        """
        if split not in SPLITS:
            raise ValueError(f"There is no split {split!r}; known are {', '.join(SPLITS)}.")
        return replace(self, records=[each for each in self.records if each.split == split])

    def resolve(self, record: Record, name: str) -> Path | None:
        """Give the file of a record.

        Args:
            record: The record.
            name: One of `PATH_FIELDS`.

        Returns:
            The path, or None if the record has no such picture.
        """
        relative = getattr(record, name)
        return None if relative is None else self.path.parent / relative


def relative_path(path: str | Path, folder: str | Path) -> str:
    """Write the way from a folder to a file with forward slashes; it may climb with `..`."""
    return Path(os.path.relpath(path, folder)).as_posix()


def merge(manifests: Sequence[Manifest], path: str | Path) -> Manifest:
    """Make one data set of several.

    Args:
        manifests: At least one.
        path: Where the merged manifest is to be; it is not written yet.

    Returns:
        All their faces in order. The header has the most frequent label format and polarity, and
        a face that differs keeps its own.

    Raises:
        ValueError: If there are none, or an id occurs twice.
    """
    if not manifests:
        raise ValueError("There are no manifests to merge.")
    moved = [each.at(path) for each in manifests]
    origin: dict[str, Path] = {}
    twice = []
    for before, after in zip(manifests, moved, strict=True):
        for record in after.records:
            if record.id in origin:
                twice.append(f"{record.id!r} is in {origin[record.id]} and in {before.path}")
            origin[record.id] = before.path
    if twice:
        more = f" and {len(twice) - MAX_FAULTS} more" if len(twice) > MAX_FAULTS else ""
        raise ValueError(
            f"{'; '.join(twice[:MAX_FAULTS])}{more}. Import one of them with another --prefix."
        )
    records = [record for each in moved for record in each.records]
    formats = Counter(record.label_format for record in records)
    polarities = Counter(record.sketch_polarity for record in records)
    return Manifest(
        Path(path),
        records,
        formats.most_common(1)[0][0] if formats else manifests[0].label_format,
        polarities.most_common(1)[0][0] if polarities else manifests[0].sketch_polarity,
        {"merged": [dict(each.made_by) for each in manifests]},
    )


class ManifestReader:
    """Takes a manifest line by line and keeps what is wrong with it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.header: dict[str, Any] | None = None
        self.records: list[Record] = []
        self.faults: list[str] = []
        self.seen: dict[str, int] = {}

    def line(self, number: int, line: bytes) -> None:
        """Take one line."""
        try:
            row = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            return self._fault(number, f"is not UTF-8 (byte {error.start + 1} of the line)")
        except json.JSONDecodeError as error:
            return self._fault(number, f"is not JSON ({error.msg}, column {error.colno})")
        if not isinstance(row, dict):
            return self._fault(number, "is not a JSON object")
        if number == 1:
            return self._take_header(row)
        return self._take_record(number, row)

    def _fault(self, number: int, what: str) -> None:
        self.faults.append(f"{self.path}:{number}: {what}")

    def _take_header(self, row: dict[str, Any]) -> None:
        if row.get("manifest") != "mmface":
            self._fault(1, 'is no header of a manifest: it lacks "manifest": "mmface"')
        elif row.get("version") != VERSION:
            self._fault(1, f"has version {row.get('version')!r}; this mmface reads {VERSION}")
        elif self._has_keys(1, row, _HEADER_KEYS, _HEADER_KEYS):
            self._check_style(1, row)
            if not isinstance(row["made_by"], dict):
                self._fault(1, '"made_by" is not an object')
        self.header = row

    def _has_keys(
        self, number: int, row: dict[str, Any], known: frozenset[str], needed: frozenset[str]
    ) -> bool:
        unknown, missing = row.keys() - known, needed - row.keys()
        if unknown:
            self._fault(number, f"has unknown keys: {', '.join(sorted(unknown))}")
        if missing:
            self._fault(number, f"lacks the keys: {', '.join(sorted(missing))}")
        return not (unknown or missing)

    def _check_style(self, number: int, row: dict[str, Any]) -> None:
        styles = {"label_format": tuple(LABEL_FORMATS), "sketch_polarity": SKETCH_POLARITIES}
        for key, known in styles.items():
            if key in row and row[key] not in known:
                self._fault(number, f'"{key}" is {row[key]!r}, not one of {", ".join(known)}')

    def _take_record(self, number: int, row: dict[str, Any]) -> None:
        if not self._has_keys(number, row, _KEYS, _NEEDED):
            return
        wrong = [f'"{key}" {what}' for key, fits, what in _CHECKS if not fits(row.get(key))]
        if wrong:
            self._fault(number, "; ".join(wrong))
            return
        self._check_style(number, row)
        identity = row["id"]
        if identity in self.seen:
            self._fault(number, f"has the id {identity!r} of line {self.seen[identity]}")
        self.seen[identity] = number
        if self.faults:  # nothing will be read, and a faulty header has no defaults
            return
        header = self.header or {}
        for key in ("label_format", "sketch_polarity"):
            row.setdefault(key, header.get(key))
        row["captions"] = tuple(row["captions"])
        self.records.append(Record(**row))


def _is_path(value: Any) -> bool:
    if not isinstance(value, str) or not value or "\\" in value:
        return False
    return value[0] != "/" and value[1:2] != ":"


def _is_length(value: Any) -> bool:
    return type(value) is int and value > 0


def _is_hash(value: Any) -> bool:
    return isinstance(value, str) and len(value) == 64 and not set(value) - set("0123456789abcdef")


_PATH_RULE = "is not a path relative to the manifest's folder with forward slashes"
_CHECKS = (
    ("id", lambda v: isinstance(v, str) and bool(v), "is not a text"),
    ("image", _is_path, _PATH_RULE),
    ("mask", lambda v: v is None or _is_path(v), f"{_PATH_RULE}, or null"),
    ("sketch", lambda v: v is None or _is_path(v), f"{_PATH_RULE}, or null"),
    (
        "captions",
        lambda v: isinstance(v, list) and all(isinstance(each, str) and each for each in v),
        "is not a list of texts",
    ),
    ("split", lambda v: v in SPLITS, f"is not one of {', '.join(SPLITS)}"),
    ("width", _is_length, "is not a number of pixels"),
    ("height", _is_length, "is not a number of pixels"),
    ("sha256", lambda v: v is None or _is_hash(v), "is not 64 hexadecimal digits, or null"),
)
