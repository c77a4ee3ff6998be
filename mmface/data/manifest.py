"""Manifests: a data set as one JSON-lines file that says which pictures and words belong together.

The first line is the header, every other one a face. Paths are relative to the manifest's folder,
with forward slashes, so that a manifest moves with its pictures. How the files of a kind of
condition are read (the masks' label format, the sketches' polarity) stands in the header once; a
face that differs has its own. Every record in memory is complete.
"""

import json
import os
import posixpath
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mmface.conditions import ConditionKind, condition_kinds
from mmface.core.files import written_aside

VERSION = 1
SPLITS = ("train", "val", "test")
MAX_FAULTS = 10
"""Faults of a file that are named at once."""


@dataclass(frozen=True, init=False)
class Record:
    """One face; its photo's path is relative to the manifest's folder and its size upright.

    The path of a condition is also an attribute, `record.mask`, None if it has none. So is how it
    is read, by the kind's field: `record.label_format`; `readings` has only those that are not the
    default.
    """

    id: str
    image: str
    captions: tuple[str, ...]
    split: str
    width: int
    height: int
    sha256: str | None
    conditions: Mapping[str, str]
    readings: Mapping[str, str]

    def __init__(
        self,
        id: str,
        image: str,
        captions: Sequence[str],
        split: str,
        width: int,
        height: int,
        sha256: str | None = None,
        conditions: Mapping[str, str | None] | None = None,
        readings: Mapping[str, str] | None = None,
        **named: str | None,
    ) -> None:
        """Describe a face; `named` are single conditions and readings, such as `mask="1.png"`."""
        kinds, fields = {kind.name for kind in condition_kinds()}, reading_defaults()
        if unknown := named.keys() - kinds - fields.keys():
            raise TypeError(f"A record has no {', '.join(sorted(unknown))}.")
        paths = {**(conditions or {}), **{k: v for k, v in named.items() if k in kinds}}
        said = {**(readings or {}), **{k: v for k, v in named.items() if k in fields and v}}
        values = {
            "id": id,
            "image": image,
            "captions": tuple(captions),
            "split": split,
            "width": width,
            "height": height,
            "sha256": sha256,
            "conditions": {name: path for name, path in paths.items() if path is not None},
            "readings": _unusual(said),
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def __getattr__(self, name: str) -> Any:
        """Give a condition's path, or how it is read, by the kind's name or field."""
        if not name.startswith("_"):
            defaults = reading_defaults()
            if name in defaults:
                return self.readings.get(name, defaults[name])
            if any(kind.name == name for kind in condition_kinds()):
                return self.conditions.get(name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def having(self, **changes: Any) -> "Record":
        """Give the same face with other values, conditions and readings, each by its name."""
        return replace(self, **changes)

    def reading(self, kind: ConditionKind) -> str | None:
        """Say how the face's condition of a kind is written; None if there is one way only."""
        return None if kind.reading is None else getattr(self, kind.reading.field)


def reading_defaults() -> dict[str, str]:
    """Give the fields that say how conditions are read, with the default of each."""
    readings = [kind.reading for kind in condition_kinds()]
    return {each.field: each.default for each in readings if each is not None}


def _unusual(readings: Mapping[str, str | None]) -> dict[str, str]:
    """Leave out what is the default, so that equal faces are equal records."""
    defaults = reading_defaults()
    return {k: v for k, v in readings.items() if v and v != defaults.get(k)}


_NEEDED = frozenset({"id", "image", "mask", "sketch", "captions", "split", "width", "height"})
"""Keys of every face. Version 1 writes the first two kinds even where there is none."""
_HEADER_NEEDED = frozenset({"manifest", "version", "label_format", "sketch_polarity", "made_by"})


@dataclass(frozen=True)
class Manifest:
    """A data set; its records' paths are relative to the folder of `path`.

    `readings` holds how most conditions are read. It only shortens the file: every record knows its
    own. `made_by` names what made the manifest, such as the layout and its folder.
    """

    path: Path
    records: Sequence[Record]
    readings: Mapping[str, str] = field(default_factory=dict)
    made_by: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Leave out the defaults."""
        object.__setattr__(self, "readings", _unusual(self.readings))

    def __getattr__(self, name: str) -> str:
        """Say how most conditions are read, by the kind's field, as `label_format`."""
        if name.startswith("_") or name not in reading_defaults():
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return self.all_readings[name]

    @property
    def all_readings(self) -> dict[str, str]:
        """What the header says: `readings` and the defaults of the others."""
        return reading_defaults() | dict(self.readings)

    def kinds(self) -> tuple[ConditionKind, ...]:
        """Give the kinds of condition that any face has."""
        there = {name for record in self.records for name in record.conditions}
        return tuple(kind for kind in condition_kinds() if kind.name in there)

    @classmethod
    def read(cls, path: str | Path) -> "Manifest":
        """Read a manifest and check every line of it, not whether the pictures exist.

        ValueError names the first `MAX_FAULTS` faults, each with its line.
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
        return reader.manifest()

    def write(self, path: str | Path) -> "Manifest":
        """Write the manifest and give it; in another folder, paths lead to the same pictures."""
        moved = self.at(path)
        header = {
            "manifest": "mmface",
            "version": VERSION,
            **self.all_readings,
            "made_by": dict(self.made_by),
        }
        lines = [header, *map(self._as_json, moved.records)]
        with written_aside(moved.path) as aside, aside.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        return moved

    def _as_json(self, record: Record) -> dict[str, Any]:
        paths = {k.name: record.conditions.get(k.name) for k in condition_kinds()}
        row: dict[str, Any] = {"id": record.id, "image": record.image}
        row |= {name: path for name, path in paths.items() if path or name in _NEEDED}
        for name in ("captions", "split", "width", "height"):
            row[name] = getattr(record, name)
        if record.sha256 is not None:
            row["sha256"] = record.sha256
        usual, own = self.all_readings, reading_defaults() | dict(record.readings)
        return row | {name: value for name, value in own.items() if value != usual[name]}

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
                conditions={name: led(path) for name, path in record.conditions.items()},
            )
            for record in self.records
        ]
        return replace(self, path=path, records=records)

    def subset(self, split: str) -> "Manifest":
        """Give the faces of one split, maybe none."""
        if split not in SPLITS:
            raise ValueError(f"There is no split {split!r}; known are {', '.join(SPLITS)}.")
        return replace(self, records=[each for each in self.records if each.split == split])

    def resolve(self, record: Record, name: str) -> Path | None:
        """Give the file of `image` or of a condition, None if the record lacks it."""
        relative = record.image if name == "image" else record.conditions.get(name)
        return None if relative is None else self.path.parent / relative


def relative_path(path: str | Path, folder: str | Path) -> str:
    """Write the way from a folder to a file with forward slashes; it may climb with `..`."""
    return Path(os.path.relpath(path, folder)).as_posix()


def merge(manifests: Sequence[Manifest], path: str | Path) -> Manifest:
    """Make one data set of several, to be written to `path`; ValueError if an id occurs twice.

    The header has the most frequent readings, and a face that differs keeps its own.
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
    readings = {}
    for key in reading_defaults():
        counts = Counter(getattr(record, key) for record in records)
        said = counts.most_common(1)[0][0] if counts else manifests[0].all_readings[key]
        readings[key] = said
    return Manifest(
        Path(path), records, readings, {"merged": [dict(each.made_by) for each in manifests]}
    )


class ManifestReader:
    """Takes a manifest line by line and keeps what is wrong with it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.header: dict[str, Any] | None = None
        self.records: list[Record] = []
        self.faults: list[str] = []
        self.seen: dict[str, int] = {}
        self.choices = {
            each.reading.field: each.reading.choices
            for each in condition_kinds()
            if each.reading is not None
        }
        self.kinds = [kind.name for kind in condition_kinds()]

    def manifest(self) -> Manifest:
        """Give what was read, if nothing is wrong with it."""
        assert self.header is not None
        readings = {key: self.header[key] for key in self.choices if key in self.header}
        return Manifest(self.path, self.records, readings, self.header["made_by"])

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
        elif self._has_keys(1, row, _HEADER_NEEDED.union(self.choices), _HEADER_NEEDED):
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
        for key, known in self.choices.items():
            if key in row and row[key] not in known:
                self._fault(number, f'"{key}" is {row[key]!r}, not one of {", ".join(known)}')

    def _take_record(self, number: int, row: dict[str, Any]) -> None:
        known = _NEEDED.union({"sha256"}, self.kinds, self.choices)
        if not self._has_keys(number, row, known, _NEEDED):
            return
        checks = [*_CHECKS, *((name, _is_path_or_none, _PATH_RULE_OR_NONE) for name in self.kinds)]
        wrong = [f'"{key}" {what}' for key, fits, what in checks if not fits(row.get(key))]
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
        for key in self.choices:
            row.setdefault(key, header.get(key))
        self.records.append(Record(**row))


def _is_path(value: Any) -> bool:
    if not isinstance(value, str) or not value or "\\" in value:
        return False
    return value[0] != "/" and value[1:2] != ":"


def _is_length(value: Any) -> bool:
    return type(value) is int and value > 0


def _is_hash(value: Any) -> bool:
    return isinstance(value, str) and len(value) == 64 and not set(value) - set("0123456789abcdef")


def _is_path_or_none(value: Any) -> bool:
    return value is None or _is_path(value)


_PATH_RULE = "is not a path relative to the manifest's folder with forward slashes"
_PATH_RULE_OR_NONE = f"{_PATH_RULE}, or null"
_CHECKS = (
    ("id", lambda v: isinstance(v, str) and bool(v), "is not a text"),
    ("image", _is_path, _PATH_RULE),
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
