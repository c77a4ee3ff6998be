"""The first stage: for each method, one picture or answer per face, on disk.

Pictures lie in `METHOD/seed_K/images/ID.png`. `METHOD/seed_K/results.jsonl` lists them with id,
prompt, seed, modality, image and sha256, or holds the answers.
"""

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from mmface.conditions import flat_rgb, open_picture
from mmface.core.files import write_bytes
from mmface.core.journal import PartedWork, as_json, count_rows
from mmface.core.processes import Processes
from mmface.evaluation.methods import (
    RESULTS_FILE,
    FolderMethod,
    GeneratingMethod,
    Method,
    Picture,
    PipelineMethod,
)
from mmface.evaluation.references import References

IMAGES = "images"


def _relative_path(id_: str) -> str:
    parts = PurePosixPath(id_).parts
    if not parts or ".." in parts or parts[0] == "/":
        raise ValueError(f"the id {id_!r} cannot be a file's name; change it in the manifest")
    return f"{IMAGES}/{id_}.png"


@dataclass(frozen=True)
class Pictures:
    """The pictures of one method and one seed.

    Attributes:
        paths: the files by id.
        size_px: edge of the square that they are brought to.
    """

    paths: dict[str, Path]
    size_px: int

    @property
    def ids(self) -> list[str]:
        """The ids, in the order of the references."""
        return list(self.paths)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of ids, files and size: what features and scores rest on."""
        digest = hashlib.sha256(f"{self.size_px}".encode())
        for id_, path in self.paths.items():
            digest.update(id_.encode() + hashlib.sha256(path.read_bytes()).digest())
        return digest.hexdigest()

    def read(self, id_: str) -> UInt8[np.ndarray, "size size 3"]:
        """Read a picture, RGB; resized with LANCZOS if it is a square of another size."""
        picture = Image.fromarray(flat_rgb(open_picture(self.paths[id_]), "white"))
        if picture.width != picture.height:
            raise ValueError(
                f"{self.paths[id_]} is {picture.width}x{picture.height}; crop pictures to the "
                "square that the references show"
            )
        if picture.width != self.size_px:
            side = (self.size_px, self.size_px)
            picture = picture.resize(side, Image.Resampling.LANCZOS)
        return np.array(picture)

    def batch(self, ids: Sequence[str], device: torch.device) -> UInt8[Tensor, "batch 3 _ _"]:
        """Read pictures as metrics take them."""
        stacked = np.stack([self.read(id_) for id_ in ids])
        return torch.from_numpy(stacked).movedim(-1, 1).contiguous().to(device)


@dataclass(frozen=True)
class Answers:
    """The answers of one method and one seed, by id; as `Pictures` are."""

    texts: dict[str, str]

    @property
    def ids(self) -> list[str]:
        """The ids, in the order of the references."""
        return list(self.texts)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of ids and answers."""
        return hashlib.sha256(as_json(self.texts).encode()).hexdigest()

    def batch(self, ids: Sequence[str], device: torch.device) -> list[str]:
        """Give answers as metrics take them."""
        return [self.texts[id_] for id_ in ids]


class Generation:
    """Makes, or finds, the pictures of one method with one seed."""

    def __init__(
        self, method: Method, references: References, folder: Path, seed: int, batch_size: int
    ) -> None:
        self.method = method
        self.references = references
        self.folder = folder
        self.seed = seed
        self.batch_size = batch_size

    @cached_property
    def _work(self) -> PartedWork:
        made_by = {
            "stage": "generate",
            "references": self.references.made_by(),
            "seed": self.seed,
            **self.method.made_by(),
        }
        # Parts of another make are refused, as they may have taken days.
        parts = self.folder / "parts"
        count = len(self.references)
        return PartedWork(
            parts, made_by, count, self.batch_size, replaces=False, count=self._count_pictures
        )

    def run(self, processes: Processes) -> None:
        """Make what is absent; nothing to do for a method that has its pictures."""
        if isinstance(self.method, FolderMethod):
            processes.on_main(self._check)
            return
        title = f"{self.method.name}: pictures"
        device = processes.accelerator.device
        self._work.run(lambda items: self._part(items, device), processes, title)
        processes.on_main(self._close)

    def products(self) -> Pictures | Answers | None:
        """Give what is finished; None if the stage is not."""
        size = self.references.size_px
        if isinstance(self.method, FolderMethod):
            return Pictures(self.method.pictures(self.references.ids), size)
        if not self._work.is_complete():
            return None
        if "answer" in self.references.gives:
            return Answers({line["id"]: line["answer"] for line in self._work.rows()})
        ids = self.references.ids
        return Pictures({id_: self.folder / _relative_path(id_) for id_ in ids}, size)

    def evaluations(self) -> float | None:
        """Network evaluations a picture, on average; None where they were not counted."""
        rows = list(self._work.rows())
        counts = [row["evaluations"] for row in rows if row.get("evaluations") is not None]
        return sum(counts) / len(counts) if counts and len(counts) == len(rows) else None

    def _check(self) -> None:
        self.products()

    def _count_pictures(self, content: bytes) -> int:
        """Number of a part's pictures that are still as they were made; 0 if it is broken."""
        if not count_rows(content):
            return 0
        return sum(self._is_there(json.loads(line)) for line in content.splitlines())

    def _is_there(self, row: Mapping[str, Any]) -> bool:
        if "answer" in row:
            return True
        path = self.folder / row["image"]
        return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == row["sha256"]

    def _close(self) -> None:
        write_bytes(self.folder / RESULTS_FILE, b"".join(self._work.contents()))

    def _part(self, items: range, device: torch.device) -> bytes:
        assert isinstance(self.method, GeneratingMethod)
        orders = [self.method.order(self.references, item, self.seed) for item in items]
        lines = []
        made = self.method.generate(orders, device)
        for order, product in zip(orders, made, strict=True):
            line = {"id": order.id, "prompt": order.prompt, "seed": order.seed}
            if isinstance(product, str):
                line["answer"] = product
            else:
                line |= {"modality": order.kind.name, **self._write(order.id, product)}
            if isinstance(self.method, PipelineMethod):
                line["evaluations"] = self.method.evaluations
            lines.append(as_json(line) + "\n")
        return "".join(lines).encode()

    def _write(self, id_: str, picture: Picture) -> dict[str, str]:
        content = io.BytesIO()
        Image.fromarray(picture).save(content, "PNG")
        relative = _relative_path(id_)
        write_bytes(self.folder / relative, content.getvalue())
        return {"image": relative, "sha256": hashlib.sha256(content.getvalue()).hexdigest()}
