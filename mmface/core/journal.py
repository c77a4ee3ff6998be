"""Resumable work: numbered parts, files of JSON lines, and a record of the settings behind them.

`PartedWork` divides numbered items into parts of fixed size, each with a file that is complete or
absent; a later run computes what is absent. So all bytes are the same in one process, in two, and
after an interruption, and no item is done twice, which would bias a distance between sets.
`agree_on` refuses to mix files that were made with different settings.
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
    """Write plain values as one line of JSON, keys sorted."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def count_rows(content: bytes) -> int:
    """Number of lines of JSON in a part; 0 if one of them is broken or cut off."""
    try:
        rows = [json.loads(line) for line in content.splitlines()]
    except ValueError:
        return 0
    return len(rows) if content.endswith(b"\n") else 0


def as_lines(rows: Iterable[Mapping[str, Any]]) -> str:
    """Write rows as JSON lines, keys in their own order."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def agree_on(path: Path, made_by: Mapping[str, Any]) -> None:
    """Record the settings behind a folder's files at `path`, or check that they are the same.

    `made_by` holds plain values. ValueError names each setting that differs.
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
    """Read what `agree_on` wrote; None if there is no such file, ValueError if it is broken."""
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
    """Flatten nested settings; keys are joined by dots."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        inner = isinstance(value, Mapping)
        flat |= _flat(value, f"{prefix}{name}.") if inner else {prefix + name: value}
    return flat


class Lines:
    """A file of JSON lines that one process appends to; a line that a kill cut off is dropped."""

    def __init__(self, path: Path) -> None:
        """Drop a cut-off last line of the file, if it exists."""
        self.path = path
        if path.exists():
            content = path.read_bytes()
            complete = content.rfind(b"\n") + 1
            if complete < len(content):
                os.truncate(path, complete)

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append rows; an OSError names the file."""
        content = as_lines(rows).encode()
        try:
            with self.path.open("ab") as file:
                file.write(content)
        except OSError as error:
            raise naming(self.path, error, len(content)) from error


def complete_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number the complete lines of a file from 1; one still being written is left out."""
    complete = path.read_text(encoding="utf-8").rpartition("\n")[0]
    yield from enumerate(complete.split("\n") if complete else (), start=1)


@dataclass(frozen=True)
class PartedWork:
    """Work on numbered items, divided into parts.

    Attributes:
        folder: Where the parts are kept.
        made_by: The settings that decide the result, in plain values.
        num_items: How many items.
        part_size: Items in each part but the last.
        suffix: Of the parts' files.
        replaces: Whether parts made with other settings are deleted; if not, they are refused.
        count: Gives the number of sound items in a part's content.
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
        """Whether all parts exist, are whole, and were made with these settings."""
        return self._found() == self._key() and all(starmap(self._is_whole, self.parts()))

    def run(self, work: Callable[[range], bytes], processes: Processes, title: str) -> None:
        """Do this process's share of the absent parts; all processes call this."""
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
        """The JSON lines of all parts, in the order of the items."""
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
        """Delete parts made with other settings, or raise ValueError if they are to stay."""
        sweep(self.folder)
        path, found, key = self.folder / KEY_FILE, self._found(), self._key()
        if found != key and (self.replaces or found is None):
            for part in self.folder.glob("part-*"):
                part.unlink()
            path.unlink(missing_ok=True)
        agree_on(path, key)
