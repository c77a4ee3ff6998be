"""Stores: Arrow shards of fixed-shape arrays, written by any number of processes.

A store is a folder with `store.json`, which says what made it and the shape of its arrays, and
`shard-NNNNN.arrow` files that `datasets` maps into memory. A shard is written aside and renamed,
so that it is complete or absent: a writer that was stopped goes on where it was when it is
started again, and processes never meet because each writes its own shards.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, Features, List, Value, concatenate_datasets
from datasets.arrow_writer import ArrowWriter
from tqdm import tqdm

DESCRIPTION_FILE = "store.json"


@dataclass(frozen=True)
class ArraySpec:
    """The fixed shape and numpy dtype of one array column."""

    shape: Sequence[int]
    dtype: str


@dataclass(frozen=True)
class StoreSpec:
    """What a store holds.

    Attributes:
        num_items: number of rows in the whole store.
        arrays: array columns by name, each of one shape.
        texts: columns that hold a list of strings.
        made_by: whatever decides the contents (seeds, weights' hash, resolution); a writer
            refuses to continue a store that was begun with other values.
        shard_size: rows in a shard.
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


def write_store(
    folder: str | Path,
    spec: StoreSpec,
    make_rows: Callable[[range], list[dict[str, Any]]],
    process_index: int = 0,
    num_processes: int = 1,
) -> None:
    """Write this process's share of a store, skipping the shards that are there already.

    Args:
        folder: the store's folder; made if it is missing.
        spec: what the store is to hold.
        make_rows: gives the rows of a range of item numbers, each a mapping with `id`, one numpy
            array for every name in `spec.arrays` and a list of strings for every name in
            `spec.texts`.
        process_index: this process's number.
        num_processes: how many processes write together; process i writes shards i, i + n, ...

    Raises:
        ValueError: if the folder holds a store that was made otherwise.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _agree_on_description(folder, spec)
    mine = range(process_index, spec.num_shards, num_processes)
    missing = [shard for shard in mine if not shard_path(folder, shard).exists()]
    for shard in tqdm(missing, desc=folder.name, unit="shard", disable=not missing):
        first = shard * spec.shard_size
        rows = make_rows(range(first, min(first + spec.shard_size, spec.num_items)))
        _write_shard(shard_path(folder, shard), spec, rows)


def _agree_on_description(folder: Path, spec: StoreSpec) -> None:
    path = folder / DESCRIPTION_FILE
    if path.exists():
        found, wanted = json.loads(path.read_text()), json.loads(json.dumps(spec.as_json()))
        if found != wanted:
            differing = {k: (found.get(k), v) for k, v in wanted.items() if found.get(k) != v}
            raise ValueError(
                f"{folder} holds a store that was made otherwise (found, wanted): {differing}. "
                "Give another folder, or delete this one to make it anew."
            )
        return
    partial = path.with_suffix(f".partial-{os.getpid()}")
    partial.write_text(json.dumps(spec.as_json(), indent=1))
    partial.replace(path)


def _write_shard(path: Path, spec: StoreSpec, rows: list[dict[str, Any]]) -> None:
    columns: dict[str, Any] = {"id": Value("string")}
    columns |= {name: Value("binary") for name in spec.arrays}
    columns |= {name: List(Value("string")) for name in spec.texts}
    partial = path.with_suffix(f".partial-{os.getpid()}")
    with ArrowWriter(path=str(partial), features=Features(columns)) as writer:
        for row in rows:
            record = {"id": row["id"], **{name: list(row[name]) for name in spec.texts}}
            for name, array in spec.arrays.items():
                value = np.ascontiguousarray(row[name], dtype=array.dtype)
                assert value.shape == tuple(array.shape), (name, value.shape, array.shape)
                record[name] = value.tobytes()
            writer.write(record)
        writer.finalize()
    partial.replace(path)


class Store:
    """A finished store, mapped into memory."""

    def __init__(self, folder: str | Path) -> None:
        """Open a store.

        Args:
            folder: the folder that `write_store` filled.

        Raises:
            FileNotFoundError: if there is no store in the folder.
            ValueError: if shards are still missing.
        """
        self.folder = Path(folder)
        description = self.folder / DESCRIPTION_FILE
        if not description.exists():
            raise FileNotFoundError(
                f"no store in {self.folder} ({DESCRIPTION_FILE} is missing); "
                "scripts/precompute.py makes one"
            )
        self.spec = StoreSpec.from_json(json.loads(description.read_text()))
        paths = [shard_path(self.folder, shard) for shard in range(self.spec.num_shards)]
        missing = [path.name for path in paths if not path.exists()]
        if missing:
            raise ValueError(
                f"{self.folder} is not complete: {len(missing)} of {len(paths)} shards are missing "
                f"({missing[0]}, ...); run the command that makes it again"
            )
        self.rows = concatenate_datasets([Dataset.from_file(str(path)) for path in paths])

    def __len__(self) -> int:
        """Number of rows."""
        return self.spec.num_items

    def row(self, index: int, columns: Sequence[str]) -> dict[str, Any]:
        """Read some columns of one row, arrays as writable numpy arrays of their stated shape."""
        table = self.rows.data.table
        row: dict[str, Any] = {}
        for name in columns:
            value = table.column(name)[index].as_py()
            if name in self.spec.arrays:
                array = self.spec.arrays[name]
                value = np.frombuffer(value, dtype=array.dtype).reshape(array.shape).copy()
            row[name] = value
        return row
