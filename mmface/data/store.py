"""Stores: Arrow shards of fixed-shape arrays, written by any number of processes.

A store is a folder with `store.json`, which says what made it and the shape of its arrays, and
`shard-NNNNN.arrow` files that `datasets` maps into memory. A shard is complete or absent: a stopped
writer resumes, and each process writes its own shards. Items that could not be read have no row;
`shard-NNNNN.skipped.jsonl` lists them. It and the shard's digest, `digest-NNNNN.sha256` in the form
of `sha256sum`, are written before the shard. Stores of earlier versions have no digests.
"""

import json
import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from tqdm import tqdm

from mmface.core.files import check_room, file_sha256, locked, sweep, write_text, written_aside
from mmface.core.journal import agree_on, as_lines, read_made_by

DESCRIPTION_FILE = "store.json"
SKIPPED_FILE = "skipped.jsonl"
BFLOAT16 = "bfloat16"
"""A dtype that numpy lacks: such an array goes in and comes out as float32, rounded once."""
REMEDY = "delete it, and run the command that makes the store again"


@dataclass(frozen=True)
class ArraySpec:
    """The fixed shape and dtype of one array column: a numpy dtype, or `BFLOAT16`."""

    shape: Sequence[int]
    dtype: str

    @property
    def num_bytes(self) -> int:
        """Size of one array."""
        width = 2 if self.dtype == BFLOAT16 else np.dtype(self.dtype).itemsize
        return math.prod(self.shape) * width

    def to_bytes(self, values: np.ndarray) -> bytes:
        """Write an array of this shape as bytes, cast to the dtype."""
        assert values.shape == tuple(self.shape), (values.shape, self.shape)
        if self.dtype == BFLOAT16:
            single = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
            return single.to(torch.bfloat16).view(torch.int16).numpy().tobytes()
        return np.ascontiguousarray(values, dtype=self.dtype).tobytes()

    def from_bytes(self, stored: bytes | pa.Buffer) -> np.ndarray:
        """Read what `to_bytes` wrote, as a writable array."""
        return self.restored(self.view(stored, 1)[0, ...])

    def view(self, stored: bytes | pa.Buffer, num: int, first: int = 0) -> np.ndarray:
        """Look at `num` arrays from byte `first` on, uncopied; bfloat16 as its bits in uint16."""
        dtype = np.uint16 if self.dtype == BFLOAT16 else self.dtype
        values = np.frombuffer(stored, dtype, num * math.prod(self.shape), first)
        return values.reshape(num, *self.shape)

    def restored(self, values: np.ndarray) -> np.ndarray:
        """Copy an array out of a `view`, bfloat16 as float32."""
        if self.dtype == BFLOAT16:
            return (values.astype(np.uint32) << 16).view(np.float32)
        return values.copy()


@dataclass(frozen=True)
class Skipped:
    """An item that has no row, and why."""

    id: str
    reason: str


Entry = dict[str, Any] | Skipped
"""An item's row, or why it has none. A row has `id`, an array for every name in
`StoreSpec.arrays` and a list of strings for every name in `StoreSpec.texts`."""


@dataclass(frozen=True)
class StoreSpec:
    """What a store holds.

    Arrays have one shape a column, texts are lists of strings. `made_by` is whatever decides the
    contents (seeds, weights' hash, resolution): a writer refuses to continue a store with other
    values. `num_items` counts unreadable items, which get no row.
    """

    num_items: int
    arrays: Mapping[str, ArraySpec]
    texts: Sequence[str]
    made_by: Mapping[str, Any]
    shard_size: int = 256

    @property
    def num_shards(self) -> int:
        """Number of shard files of the complete store."""
        return -(-self.num_items // self.shard_size)

    def items_of(self, shard: int) -> range:
        """Numbers of the items that belong to one shard."""
        first = shard * self.shard_size
        return range(first, min(first + self.shard_size, self.num_items))

    @property
    def item_bytes(self) -> int:
        """Size of the arrays of one item."""
        return sum(array.num_bytes for array in self.arrays.values())

    @property
    def array_bytes(self) -> int:
        """Size of all arrays of the whole store."""
        return self.num_items * self.item_bytes

    def as_json(self) -> dict[str, Any]:
        """A JSON form that `from_json` reads back."""
        arrays = {k: {"shape": list(a.shape), "dtype": a.dtype} for k, a in self.arrays.items()}
        return {
            "num_items": self.num_items,
            "arrays": arrays,
            "texts": list(self.texts),
            "made_by": dict(self.made_by),
            "shard_size": self.shard_size,
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "StoreSpec":
        """Rebuild a description from the contents of `store.json`."""
        arrays = {k: ArraySpec(**a) for k, a in record["arrays"].items()}
        return cls(**{**record, "arrays": arrays})


def shard_path(folder: Path, shard: int) -> Path:
    """The file of one shard."""
    return folder / f"shard-{shard:05d}.arrow"


def skipped_path(folder: Path, shard: int) -> Path:
    """The list of the items that one shard lacks; there is none if it lacks none."""
    return folder / f"shard-{shard:05d}.{SKIPPED_FILE}"


def digest_path(folder: Path, shard: int) -> Path:
    """The file with the SHA-256 of one shard; an older store has none."""
    return folder / f"digest-{shard:05d}.sha256"


def write_store(
    folder: str | Path,
    spec: StoreSpec,
    make_entries: Callable[[Sequence[range]], Iterable[Sequence[Entry]]],
    process_index: int = 0,
    num_processes: int = 1,
) -> None:
    """Write this process's part of a store, skipping the shards that are there already.

    Process i writes shards i, i + n, ...; `make_entries` receives the item numbers of each and
    yields the entries of each in this order. BlockingIOError if another run writes into the folder,
    ValueError if it holds a store that was made otherwise.
    """
    with held_store(folder, process_index):
        write_share(Path(folder), spec, make_entries, process_index, num_processes)


def held_store(folder: str | Path, process_index: int = 0) -> AbstractContextManager[None]:
    """Hold a store's folder for the processes of one run; see `locked`."""
    return locked(folder) if process_index == 0 else nullcontext()


def write_share(
    folder: Path,
    spec: StoreSpec,
    make_entries: Callable[[Sequence[range]], Iterable[Sequence[Entry]]],
    process_index: int = 0,
    num_processes: int = 1,
) -> None:
    """Write as `write_store` does, into a folder that is held already."""
    sweep(folder)
    agree_on(folder / DESCRIPTION_FILE, spec.as_json())
    mine = range(process_index, spec.num_shards, num_processes)
    missing = [shard for shard in mine if not shard_path(folder, shard).exists()]
    items = [spec.items_of(shard) for shard in missing]
    total = sum(map(len, items))
    check_room(folder, total * spec.item_bytes)
    with tqdm(desc=folder.name, total=total, unit="item", disable=not missing) as progress:
        for shard, wanted, entries in zip(missing, items, make_entries(items), strict=True):
            assert len(entries) == len(wanted), (shard, len(entries), wanted)
            _write_shard(folder, shard, spec, entries)
            progress.update(len(wanted))


def close_store(folder: str | Path) -> "Store":
    """Remove a complete store's leftovers, gather `skipped.jsonl`, and open it."""
    store = Store(folder)
    with locked(store.folder):
        sweep(store.folder, alone=True)
    _write_skipped(store.folder / SKIPPED_FILE, store.skipped)
    return store


def _write_skipped(path: Path, skipped: Sequence[Skipped]) -> None:
    """Write a list of skipped items; none is no file, and an older file goes."""
    if skipped:
        write_text(path, as_lines(map(asdict, skipped)))
    else:
        path.unlink(missing_ok=True)


def _read_skipped(path: Path) -> list[Skipped]:
    if not path.exists():
        return []
    try:
        return [Skipped(**json.loads(line)) for line in path.read_text("utf-8").splitlines()]
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}); delete it and its shard") from None


def _write_shard(folder: Path, shard: int, spec: StoreSpec, entries: Sequence[Entry]) -> None:
    path = shard_path(folder, shard)
    skipped = [entry for entry in entries if isinstance(entry, Skipped)]
    _write_skipped(skipped_path(folder, shard), skipped)
    from datasets import Features, List, Value  # a second, which reading a spec need not wait for
    from datasets.arrow_writer import ArrowWriter

    columns: dict[str, Any] = {"id": Value("string")}
    columns |= {name: Value("binary") for name in spec.arrays}
    columns |= {name: List(Value("string")) for name in spec.texts}
    with written_aside(path, len(entries) * spec.item_bytes) as aside:
        with ArrowWriter(path=str(aside), features=Features(columns)) as writer:
            for row in entries:
                if isinstance(row, Skipped):
                    continue
                record = {"id": row["id"], **{name: list(row[name]) for name in spec.texts}}
                record |= {name: array.to_bytes(row[name]) for name, array in spec.arrays.items()}
                writer.write(record)
            writer.finalize()
        write_text(digest_path(folder, shard), _digest_line(path, aside))


def _digest_line(path: Path, content: Path) -> str:
    return f"{file_sha256(content)}  {path.name}\n"


class MappedRows:
    """Rows of a table in mapped files; each column of a batch of rows is looked up once.

    Arrow's own access costs more than the value's copy. For one process: it has addresses.
    """

    def __init__(self, table: pa.Table, arrays: Mapping[str, ArraySpec]) -> None:
        self.batches = table.to_batches()
        self.ends = list(accumulate(batch.num_rows for batch in self.batches))
        self.arrays = arrays
        self.looked_up: list[dict[str, np.ndarray | pa.Array]] = [{} for _ in self.batches]

    def __len__(self) -> int:
        """Number of rows."""
        return self.ends[-1] if self.ends else 0

    def row(self, index: int, columns: Sequence[str]) -> dict[str, Any]:
        """Read some columns of one row; a misfit of bytes and stated shape is a ValueError."""
        place = index + len(self) if index < 0 else index
        if not 0 <= place < len(self):
            raise IndexError(f"there is no row {index} among {len(self)}")
        number = bisect_right(self.ends, place)
        looked_up, row = self.looked_up[number], dict[str, Any]()
        place -= self.ends[number] - self.batches[number].num_rows
        for name in columns:
            if name not in looked_up:
                looked_up[name] = self._look_up(number, name)
            values = looked_up[name]
            if isinstance(values, np.ndarray):
                row[name] = self.arrays[name].restored(values[place, ...])
            else:
                row[name] = values[place].as_py()
        return row

    def _look_up(self, number: int, name: str) -> np.ndarray | pa.Array:
        """Give a batch's column: a view [rows, *shape] of the file's bytes, or Arrow's texts."""
        column = self.batches[number].column(name)
        if name not in self.arrays:
            return column
        array, (_, offsets, stored) = self.arrays[name], column.buffers()
        ends = np.frombuffer(offsets, np.int32, len(column) + 1, 4 * column.offset)
        if column.null_count or np.any(np.diff(ends) != array.num_bytes):
            raise ValueError(f"a value of column {name} has not {array.num_bytes} bytes")
        return array.view(stored, len(column), int(ends[0]))


class Store:
    """A finished store, mapped into memory."""

    def __init__(self, folder: str | Path) -> None:
        """Open a store; ValueError if shards are missing or damaged."""
        self.folder = Path(folder)
        description = read_made_by(self.folder / DESCRIPTION_FILE)
        if description is None:
            raise FileNotFoundError(
                f"no store in {self.folder} ({DESCRIPTION_FILE} is missing); "
                "scripts/precompute.py makes one"
            )
        try:
            self.spec = StoreSpec.from_json(description)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{self.folder / DESCRIPTION_FILE} describes no store ({error!r}); give another "
                "folder, or delete that one and make it anew"
            ) from None
        shards = range(self.spec.num_shards)
        paths = [shard_path(self.folder, shard) for shard in shards]
        missing = [path.name for path in paths if not path.exists()]
        if missing:
            raise ValueError(
                f"{self.folder} is not complete: {len(missing)} of {len(paths)} shards are missing "
                f"({missing[0]}, ...); run the command that makes it again"
            )
        with ThreadPoolExecutor() as threads:
            list(threads.map(self._check_digest, shards))
        from datasets import concatenate_datasets

        self.rows = concatenate_datasets([self._open(shard) for shard in shards])

    def _check_digest(self, shard: int) -> None:
        """Read a shard through, at the speed of the disk; an older one has no digest."""
        path, digest = shard_path(self.folder, shard), digest_path(self.folder, shard)
        if digest.exists() and digest.read_bytes() != _digest_line(path, path).encode():
            raise ValueError(
                f"{path} is damaged: its SHA-256 is not the one in {digest.name}; {REMEDY}"
            )

    def _open(self, shard: int) -> Any:
        from datasets import Dataset

        path = shard_path(self.folder, shard)
        try:
            rows = Dataset.from_file(str(path))
        except (ValueError, OSError) as error:
            raise ValueError(f"{path} is damaged ({error}); {REMEDY}") from None
        num_items = len(self.spec.items_of(shard))
        num_skipped = len(_read_skipped(skipped_path(self.folder, shard)))
        if len(rows) + num_skipped != num_items:
            raise ValueError(
                f"{path} is damaged: it holds {len(rows)} rows and {num_skipped} are listed as "
                f"skipped, of {num_items} items; {REMEDY}"
            )
        return rows

    def __len__(self) -> int:
        """Number of rows: the items that could be read."""
        return len(self.rows)

    @property
    def skipped(self) -> list[Skipped]:
        """The items that have no row, in order."""
        shards = range(self.spec.num_shards)
        return [each for s in shards for each in _read_skipped(skipped_path(self.folder, s))]

    def row(self, index: int, columns: Sequence[str]) -> dict[str, Any]:
        """Read some columns of one row, arrays as writable numpy arrays of their stated shape."""
        try:
            return self._mapped.row(index, columns)
        except ValueError as error:
            raise ValueError(f"{self._path_of(index)} is damaged ({error}); {REMEDY}") from None

    @cached_property
    def _mapped(self) -> MappedRows:
        return MappedRows(self.rows.data.table, self.spec.arrays)

    def _path_of(self, index: int) -> Path:
        before, shard = index % len(self), -1
        while before >= 0:
            shard += 1
            skipped = _read_skipped(skipped_path(self.folder, shard))
            before -= len(self.spec.items_of(shard)) - len(skipped)
        return shard_path(self.folder, shard)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the addresses: another process maps the files for itself."""
        return {name: value for name, value in vars(self).items() if name != "_mapped"}
