"""Annotations on disk: made once, complete or absent, by any number of processes."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from tqdm import tqdm

from mmface.annotation.captions import PictureCaptioner
from mmface.conditions import open_picture
from mmface.core.files import sweep, written_aside
from mmface.core.journal import KEY_FILE, Lines, agree_on, complete_lines


class Item(NamedTuple):
    """A picture to annotate; its unique id names the output files."""

    id: str
    path: Path


@runtime_checkable
class PictureAnnotator(Protocol):
    """Makes a picture of one channel of each picture: a label map or a sketch."""

    @property
    def made_by(self) -> dict[str, float | str]:
        """What decides the result."""
        ...

    def __call__(
        self, pictures: Sequence[UInt8[np.ndarray, "_ _ 3"]]
    ) -> list[UInt8[np.ndarray, "_ _"]]:
        """Annotate a batch of pictures of any sizes."""
        ...


@dataclass
class Outcome:
    """What a run wrote, found done before, and could not read (id: why)."""

    num_made: int = 0
    num_skipped: int = 0
    unreadable: dict[str, str] = field(default_factory=dict)


def picture_output(folder: Path, item_id: str) -> Path:
    """The file of one mask or sketch."""
    return folder / f"{item_id}.png"


def write_pictures(
    items: Sequence[Item], annotator: PictureAnnotator, folder: Path, batch_size: int = 8
) -> Outcome:
    """Write missing outputs as one-channel PNGs, `<id>.png` in the folder.

    ValueError if the folder holds the work of another annotator.
    """
    agree_on(folder / KEY_FILE, annotator.made_by)
    for each in {folder, *(picture_output(folder, item.id).parent for item in items)}:
        sweep(each)
    missing = [item for item in items if not picture_output(folder, item.id).exists()]
    outcome = Outcome(num_skipped=len(items) - len(missing))
    for batch, pictures in _read_batches(missing, batch_size, folder.name, outcome):
        for item, annotation in zip(batch, annotator(pictures), strict=True):
            path = picture_output(folder, item.id)
            with written_aside(path) as aside:
                Image.fromarray(annotation).save(aside, "PNG")
            outcome.num_made += 1
    return outcome


def write_captions(
    items: Sequence[Item],
    captioner: PictureCaptioner,
    folder: Path,
    shard: tuple[int, int] = (0, 1),
    num_pictures: int = 1,
) -> Outcome:
    """Caption the pictures that no file of the folder has captions of.

    Writes `captions-<i>-of-<n>.jsonl`, a line for each picture; a stopped run loses at most
    `num_pictures`. ValueError if the folder holds another captioner's work.
    """
    agree_on(folder / KEY_FILE, captioner.made_by)
    sweep(folder)
    lines = Lines(folder / f"captions-{shard[0]:05d}-of-{shard[1]:05d}.jsonl")
    done = read_captions(folder)
    missing = [item for item in items if item.id not in done]
    outcome = Outcome(num_skipped=len(items) - len(missing))
    for batch, pictures in _read_batches(missing, num_pictures, folder.name, outcome):
        records = list(captioner.caption([item.id for item in batch], pictures))
        lines.append(records)
        outcome.num_made += len(records)
    return outcome


def read_captions(folder: Path) -> dict[str, list[str]]:
    """Read the captions that all processes have written so far, by picture id.

    The line that another process is writing is left out; ValueError for any other broken one.
    """
    captions: dict[str, list[str]] = {}
    for path in sorted(folder.glob("captions-*-of-*.jsonl")):
        for number, line in complete_lines(path):
            try:
                record = json.loads(line)
                captions[record["id"]] = record["captions"]
            except (json.JSONDecodeError, KeyError, TypeError):
                raise ValueError(
                    f"{path}, line {number}, is no record of captions; delete this line to have "
                    "it made again"
                ) from None
    return captions


def _read_batches(
    items: Sequence[Item], batch_size: int, name: str, outcome: Outcome
) -> Iterator[tuple[list[Item], list[np.ndarray]]]:
    """Read pictures in batches of those that can be read; note the others."""
    batch: list[Item] = []
    pictures: list[np.ndarray] = []
    for item in tqdm(items, desc=name, unit="picture", disable=not items):
        try:
            pictures.append(np.array(open_picture(item.path).convert("RGB")))
            batch.append(item)
        except (ValueError, OSError) as error:
            outcome.unreadable[item.id] = str(error)
        if len(batch) == batch_size:
            yield batch, pictures
            batch, pictures = [], []
    if batch:
        yield batch, pictures
