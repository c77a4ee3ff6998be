"""Resumable work: what made a folder's files, lines that outlive a kill, and numbered parts.

`agree_on` keeps the work of two makers apart. `Lines` appends to a file of JSON lines. `PartedWork`
divides numbered items into parts, whatever the number of processes; a part's file is complete or
absent, and whoever comes later does what is absent. Batches, and so all bytes, are therefore the
same in one process, in two, and after an interruption. No item is done twice to fill a batch, which
would bias a distance between sets. A part that a loss of power left broken counts as absent.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import starmap
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mmface.core.files import locked, naming, sweep, write_bytes, write_text
from mmface.core.processes import Processes

KEY_FILE = "made_by.json"


def as_json(value: Any) -> str:
    """Write plain values as one line of JSON, keys in order."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def count_rows(content: bytes) -> int:
    """Number of lines of JSON in a part; 0 if one is broken or has no end."""
    try:
        rows = [json.loads(line) for line in content.splitlines()]
    except ValueError:
        return 0
    return len(rows) if content.endswith(b"\n") else 0


def as_lines(rows: Iterable[Mapping[str, Any]]) -> str:
    """Write rows as JSON lines, keys as they come."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def agree_on(path: Path, made_by: Mapping[str, Any]) -> None:
    """Write down what makes the files of a folder, or check that it is the same as before.

    Args:
        path: the file that says it, in that folder.
        made_by: whatever decides the files, in plain values.

    Raises:
        ValueError: if the folder holds what was made otherwise; names each setting that differs.
    """
    found, wanted = read_made_by(path), json.loads(json.dumps(made_by))
    if found is None:
        write_text(path, json.dumps(wanted, indent=1))
    elif found != wanted:
        old, new = _flat(found), _flat(wanted)
        changed = sorted(k for k in old.keys() | new.keys() if old.get(k) != new.get(k))
        told = "; ".join(f"{k}: {old.get(k)!r} -> {new.get(k)!r}" for k in changed)
        raise ValueError(
            f"{path.parent} was made otherwise ({told}); give another folder, or delete that one"
        )


def read_made_by(path: Path) -> dict[str, Any] | None:
    """Read what `agree_on` wrote; None if there is no such file.

    Args:
        path: the file.

    Returns:
        What made the folder.

    Raises:
        ValueError: if it is broken.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return found
        raise ValueError("it is no JSON object")
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(
            f"{path} cannot be read ({error}), so nobody knows what made the files beside it; give "
            "another folder, or delete that one"
        ) from None


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Name the settings inside settings by their path, with dots."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        inner = isinstance(value, Mapping)
        flat |= _flat(value, f"{prefix}{name}.") if inner else {prefix + name: value}
    return flat


class Lines:
    """A file of JSON lines that one process appends to; a line that a kill tore off is dropped."""

    def __init__(self, path: Path) -> None:
        """Take the file, which need not be there, for appending."""
        self.path = path
        if path.exists():
            content = path.read_bytes()
            complete = content.rfind(b"\n") + 1
            if complete < len(content):
                os.truncate(path, complete)

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add rows, all of which then are in the file; an OSError names it."""
        content = as_lines(rows).encode()
        try:
            with self.path.open("ab") as file:
                file.write(content)
        except OSError as error:
            raise naming(self.path, error, len(content)) from error


def complete_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number the lines of a file from 1, without one that is being written or was torn off."""
    complete = path.read_text(encoding="utf-8").rpartition("\n")[0]
    yield from enumerate(complete.split("\n") if complete else (), start=1)


@dataclass(frozen=True)
class PartedWork:
    """A stage's division into parts.

    Attributes:
        folder: where the parts are kept.
        made_by: what decides the result, in plain values.
        num_items: how many items.
        part_size: items in a part, the last one aside.
        suffix: of the parts' files.
        replaces: whether parts of another make are thrown away; if not, they are refused.
        count: number of sound items in a part's content.
    """

    folder: Path
    made_by: Mapping[str, Any]
    num_items: int
    part_size: int
    suffix: str = ".jsonl"
    replaces: bool = True
    count: Callable[[bytes], int] = count_rows

    def parts(self) -> list[tuple[Path, range]]:
        """Each part's file and items."""
        starts = range(0, self.num_items, self.part_size)
        return [
            (
                self.folder / f"part-{index:06d}{self.suffix}",
                range(start, min(start + self.part_size, self.num_items)),
            )
            for index, start in enumerate(starts)
        ]

    def is_complete(self) -> bool:
        """Whether all parts are there, whole, and made by this."""
        return self._found() == self._key() and all(starmap(self._is_whole, self.parts()))

    def run(self, work: Callable[[range], bytes], processes: Processes, title: str) -> None:
        """Do this process's part of what is absent; all processes call this."""
        with ExitStack() as held:
            processes.on_main(lambda: self._take_folder(held))
            self._do_share(work, processes, title)

    def _take_folder(self, held: ExitStack) -> None:
        held.enter_context(locked(self.folder))
        self._prepare()

    def _do_share(self, work: Callable[[range], bytes], processes: Processes, title: str) -> None:
        accelerator = processes.accelerator
        share = self.parts()[accelerator.process_index :: accelerator.num_processes]
        absent = [(path, items) for path, items in share if not self._is_whole(path, items)]
        for path, items in tqdm(absent, desc=title, unit="part", disable=not absent):
            write_bytes(path, work(items))
        accelerator.wait_for_everyone()

    def contents(self) -> list[bytes]:
        """The files of all parts, in order."""
        return [path.read_bytes() for path, _ in self.parts()]

    def rows(self) -> list[dict[str, Any]]:
        """The lines of all parts, where they are JSON lines, in the order of the items."""
        return [json.loads(line) for part in self.contents() for line in part.splitlines()]

    def _key(self) -> dict[str, Any]:
        size = {"num_items": self.num_items, "part_size": self.part_size}
        key: dict[str, Any] = json.loads(as_json({**self.made_by, **size}))
        return key

    def _is_whole(self, path: Path, items: range) -> bool:
        return path.is_file() and self.count(path.read_bytes()) == len(items)

    def _found(self) -> dict[str, Any] | None:
        try:
            return read_made_by(self.folder / KEY_FILE)
        except ValueError:
            if self.replaces:
                return None
            raise

    def _prepare(self) -> None:
        """Leave only parts that were made by this; a ValueError if others are to stay."""
        sweep(self.folder)
        path, found, key = self.folder / KEY_FILE, self._found(), self._key()
        if found != key and (self.replaces or found is None):
            for part in self.folder.glob("part-*"):
                part.unlink()
            path.unlink(missing_ok=True)
        agree_on(path, key)
