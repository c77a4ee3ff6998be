"""Annotations on disk: made once, complete or absent, by any number of processes."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from tqdm import tqdm

from mmface.annotation.captions import PictureCaptioner
from mmface.conditions import open_picture
from mmface.core.files import sweep, write_text, written_aside

DESCRIPTION_FILE = "made_by.json"


class Item(NamedTuple):
    """A picture to annotate.

    Attributes:
        id: What it is called; unique, and the stem of its outputs' file names.
        path: Where it lies.
    """

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
    """What a run did.

    Attributes:
        num_made: Outputs that this run wrote.
        num_skipped: Outputs that were there before.
        unreadable: Ids of pictures that could not be read, and why.
    """

    num_made: int = 0
    num_skipped: int = 0
    unreadable: dict[str, str] = field(default_factory=dict)


def picture_output(folder: Path, item_id: str) -> Path:
    """The file of one mask or sketch."""
    return folder / f"{item_id}.png"


def write_pictures(
    items: Sequence[Item], annotator: PictureAnnotator, folder: Path, batch_size: int = 8
) -> Outcome:
    """Annotate the pictures whose output is missing, each as a PNG of one channel.

    Args:
        items: the pictures.
        annotator: makes their masks or sketches.
        folder: where `<id>.png` goes.
        batch_size: pictures at a time.

    Returns:
        What was made, and what could not be read.

    Raises:
        ValueError: if the folder holds the work of another annotator.
    """
    _agree_on_description(folder, annotator.made_by)
    for each in {picture_output(folder, item.id).parent for item in items}:
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

    Args:
        items: this process's pictures.
        captioner: makes their captions.
        folder: where `captions-<i>-of-<n>.jsonl` goes, a line for each picture.
        shard: this process's number and how many there are.
        num_pictures: pictures at a time; a stopped run loses no more than these.

    Returns:
        What was made, and what could not be read.

    Raises:
        ValueError: if the folder holds the work of another captioner, or a broken line.
    """
    _agree_on_description(folder, captioner.made_by)
    path = folder / f"captions-{shard[0]:05d}-of-{shard[1]:05d}.jsonl"
    _drop_torn_line(path)
    done = read_captions(folder)
    missing = [item for item in items if item.id not in done]
    outcome = Outcome(num_skipped=len(items) - len(missing))
    with path.open("a", encoding="utf-8") as lines:
        for batch, pictures in _read_batches(missing, num_pictures, folder.name, outcome):
            for record in captioner.caption([item.id for item in batch], pictures):
                lines.write(json.dumps(record, ensure_ascii=False) + "\n")
                outcome.num_made += 1
            lines.flush()
    return outcome


def read_captions(folder: Path) -> dict[str, list[str]]:
    """Read the captions that all processes have written so far.

    Args:
        folder: what `write_captions` wrote into.

    Returns:
        Captions by the pictures' ids. The line that another process is writing is left out.

    Raises:
        ValueError: if a complete line is no record.
    """
    captions: dict[str, list[str]] = {}
    for path in sorted(folder.glob("captions-*-of-*.jsonl")):
        complete = path.read_text(encoding="utf-8").rpartition("\n")[0]
        for number, line in enumerate(complete.split("\n") if complete else [], start=1):
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


def _agree_on_description(folder: Path, made_by: Mapping[str, Any]) -> None:
    """Write what makes the folder's files, or check that it is the same as before."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / DESCRIPTION_FILE
    wanted = json.loads(json.dumps(made_by))
    if not path.exists():
        write_text(path, json.dumps(wanted, indent=1))
        return
    found = json.loads(path.read_text())
    if found != wanted:
        names = sorted(found.keys() | wanted.keys())
        differing = {
            n: (found.get(n), wanted.get(n)) for n in names if found.get(n) != wanted.get(n)
        }
        raise ValueError(
            f"{folder} holds what was made otherwise (found, wanted): {differing}. Give another "
            "folder, or delete this one to make it anew."
        )


def _drop_torn_line(path: Path) -> None:
    """Cut off the line that a stopped run left unfinished."""
    if path.exists():
        content = path.read_bytes()
        complete = content.rfind(b"\n") + 1
        if complete < len(content):
            with path.open("r+b") as lines:
                lines.truncate(complete)
