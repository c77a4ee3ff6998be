"""Work on numbered items that may be stopped at any time and shared between processes.

The items are divided into parts once, whatever the number of processes; a part's file is written
aside and renamed, so that it is complete or absent. Whoever comes later does what is absent.
Batches are therefore the same in one process, in two, and after an interruption, and so is every
byte. No item is done twice to fill a batch, which would bias a distance between sets. A part that
a full disk or a loss of power left broken counts as absent.
"""

import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import starmap
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mmface.core.files import locked, sweep, write_bytes
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
        """Do this process's share of what is absent; all processes call this.

        Args:
            work: from a part's items to the content of its file.
            processes: who shares the work.
            title: stands beside the progress bar.
        """
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
        path = self.folder / KEY_FILE
        if not path.is_file():
            return None
        try:
            found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            if self.replaces:
                return None
            raise ValueError(
                f"{path} cannot be read ({error}), so nobody knows what made the pictures beside "
                "it; give another output_dir, or delete that folder"
            ) from None
        return found

    def _prepare(self) -> None:
        """Leave only parts that were made by this.

        Raises:
            ValueError: if there are others, which are not to be replaced.
        """
        sweep(self.folder)
        found, key = self._found(), self._key()
        if found is not None and found != key and not self.replaces:
            old, new = _flat(found), _flat(key)
            changed = sorted(k for k in old.keys() | new.keys() if old.get(k) != new.get(k))
            told = "; ".join(f"{k}: {old.get(k)!r} -> {new.get(k)!r}" for k in changed)
            raise ValueError(
                f"{self.folder} was made otherwise ({told}); give another output_dir, or delete "
                "that folder"
            )
        if found != key:
            for path in self.folder.glob("part-*"):
                path.unlink()
            write_bytes(self.folder / KEY_FILE, (as_json(key) + "\n").encode())


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Name the settings inside settings by their path, with dots."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        inner = isinstance(value, Mapping)
        flat |= _flat(value, f"{prefix}{name}.") if inner else {prefix + name: value}
    return flat
