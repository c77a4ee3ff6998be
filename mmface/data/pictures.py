"""Pictures of faces with their masks, sketches and captions: where latents are made from.

A `PictureSource` gives faces one by one at one size: from the files of a manifest, or from a
store of rendered faces, which `RenderedPictures` draws.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from mmface.conditions import (
    colorize,
    flat_rgb,
    load_mask,
    load_sketch,
    open_picture,
    released_mask_rgb,
)
from mmface.core.digests import file_sha256
from mmface.data.manifest import Manifest, Record
from mmface.data.rendered import render_face
from mmface.data.store import ArraySpec, Store, StoreSpec, write_store

HELD_OUT_SEED = 1_000_000
"""Faces with this seed and above are never trained on; evaluation takes them from here up."""


@dataclass(frozen=True)
class RenderedPictures:
    """Draws faces `first_seed`, `first_seed + 1`, ... into a store.

    Attributes:
        num_faces: how many faces.
        size_px: edge of the square pictures.
        first_seed: seed of the first face.
    """

    num_faces: int
    size_px: int = 128
    first_seed: int = 0

    def plan(self, folder: str | Path, num_processes: int = 1) -> str:
        """Say what `write` would take; the arguments are its own."""
        size = self._spec().array_bytes / 1e9
        return f"{folder}: {self.num_faces:,} rendered faces, {size:.2f} GB on disk"

    def write(self, folder: str | Path, process_index: int = 0, num_processes: int = 1) -> None:
        """Write this process's shards of the store.

        Args:
            folder: the store's folder.
            process_index: this process's number; see `write_store`.
            num_processes: how many processes write together.

        Raises:
            ValueError: if training faces would run into the held-out seeds.
        """
        last_seed = self.first_seed + self.num_faces - 1
        if self.first_seed < HELD_OUT_SEED <= last_seed:
            raise ValueError(
                f"seeds {self.first_seed}..{last_seed} run into the held-out faces, which start "
                f"at {HELD_OUT_SEED}; take fewer faces"
            )
        write_store(folder, self._spec(), self._rows, process_index, num_processes)

    def _spec(self) -> StoreSpec:
        square = (self.size_px, self.size_px)
        return StoreSpec(
            num_items=self.num_faces,
            arrays={
                "image": ArraySpec((*square, 3), "uint8"),
                "labels": ArraySpec(square, "uint8"),
                "sketch": ArraySpec(square, "uint8"),
            },
            texts=("captions",),
            made_by={"kind": "rendered pictures", "first_seed": self.first_seed},
        )

    def _rows(self, shards: Sequence[range]) -> Iterator[list[dict[str, Any]]]:
        for items in shards:
            yield [self._row(self.first_seed + item) for item in items]

    def _row(self, seed: int) -> dict[str, Any]:
        face = render_face(seed, self.size_px)
        return {
            "id": f"rendered/{seed}",
            "image": face.image,
            "labels": face.labels,
            "sketch": face.sketch,
            "captions": face.captions,
        }


@dataclass(frozen=True)
class FacePictures:
    """One face.

    Attributes:
        id: its name.
        image: the photo, RGB.
        mask: the segmentation mask, drawn in the palette's colours.
        sketch: dark lines on white.
        captions: at least one description.
    """

    id: str
    image: UInt8[np.ndarray, "height width 3"]
    mask: UInt8[np.ndarray, "height width 3"]
    sketch: UInt8[np.ndarray, "height width"]
    captions: Sequence[str]

    @property
    def conditions(self) -> dict[str, np.ndarray]:
        """The values of its conditions, by their kinds' names."""
        height, width = self.mask.shape[:2]
        return {"mask": load_mask(self.mask, (height, width)).labels, "sketch": self.sketch}


@runtime_checkable
class PictureSource(Protocol):
    """Faces of one size, by number. Worker processes read from copies of it."""

    def __len__(self) -> int:
        """Number of faces, those that cannot be read included."""
        ...

    def size(self) -> tuple[int, int]:
        """Height and width of all pictures in pixels."""
        ...

    def made_by(self) -> dict[str, Any]:
        """Whatever decides the pictures, in plain values."""
        ...

    def id(self, item: int) -> str:
        """Name of a face; unique in the source."""
        ...

    def face(self, item: int) -> FacePictures:
        """Read a face; ValueError or FileNotFoundError if something of it is missing or bad."""
        ...


@dataclass(frozen=True)
class StoredPictures:
    """The faces of a store that `RenderedPictures` wrote.

    Attributes:
        store: its folder.
    """

    store: str | Path

    @cached_property
    def _rows(self) -> Store:
        return Store(self.store)

    def __len__(self) -> int:
        """Number of faces."""
        return len(self._rows)

    def size(self) -> tuple[int, int]:
        """Height and width of all pictures in pixels."""
        height, width = self._rows.spec.arrays["labels"].shape
        return height, width

    def made_by(self) -> dict[str, Any]:
        """What made the store."""
        return dict(self._rows.spec.made_by)

    def id(self, item: int) -> str:
        """Name of a face."""
        return self._rows.row(item, ("id",))["id"]

    def face(self, item: int) -> FacePictures:
        """Read a face."""
        row = self._rows.row(item, ("id", "image", "labels", "sketch", "captions"))
        mask = colorize(row["labels"])
        return FacePictures(row["id"], row["image"], mask, row["sketch"], row["captions"])


@dataclass(frozen=True)
class ManifestPictures:
    """The faces of a manifest, cropped to the middle square.

    Photos are resized with LANCZOS. Masks are resized as classes, so that no class is invented
    between two others (see `mmface.conditions.load_mask`).

    Attributes:
        manifest: the manifest's file.
        size_px: edge of the square pictures.
        split: the faces to take, `train`, `val` or `test`; None takes all.
    """

    manifest: str | Path
    size_px: int
    split: str | None = None
    mask_resizing: ClassVar[str] = "classes, nearest, centre crop"

    @cached_property
    def _faces(self) -> Manifest:
        manifest = Manifest.read(self.manifest)
        if self.split is not None:
            manifest = manifest.subset(self.split)
        if not manifest.records:
            raise ValueError(f"{self.manifest} has no faces in the split {self.split!r}.")
        return manifest

    def __len__(self) -> int:
        """Number of faces."""
        return len(self._faces.records)

    def size(self) -> tuple[int, int]:
        """Height and width of all pictures in pixels."""
        return self.size_px, self.size_px

    def made_by(self) -> dict[str, Any]:
        """The manifest by its content, and how its pictures are brought to size."""
        return {
            "kind": "manifest",
            "manifest": Path(self.manifest).name,
            "sha256": file_sha256(self.manifest),
            "split": self.split,
            "size_px": self.size_px,
            "mask_resizing": self.mask_resizing,
        }

    def id(self, item: int) -> str:
        """Name of a face."""
        return self._faces.records[item].id

    def face(self, item: int) -> FacePictures:
        """Read a face.

        Args:
            item: its number among the faces of the split.

        Returns:
            The face.

        Raises:
            FileNotFoundError: if a file is missing.
            ValueError: if a picture is bad, or the record lacks the mask, sketch or captions.
        """
        record = self._faces.records[item]
        lacking = [n for n in ("mask", "sketch", "captions") if not getattr(record, n)]
        if lacking:
            raise ValueError(
                f"{record.id} has no {' and no '.join(lacking)} in {self.manifest}; "
                "scripts/annotate.py makes them"
            )
        image = self._photo(self._path(record, "image"))
        mask = self._mask(record)
        sketch = load_sketch(self._path(record, "sketch"), self.size(), record.sketch_polarity)
        return FacePictures(record.id, image, mask, sketch, record.captions)

    def _path(self, record: Record, name: str) -> Path:
        path = self._faces.resolve(record, name)
        assert path is not None, (record.id, name)
        return path

    def _photo(self, path: Path) -> UInt8[np.ndarray, "height width 3"]:
        photo = Image.fromarray(flat_rgb(open_picture(path), "white"))
        side = min(photo.size)
        left, top = (photo.width - side) // 2, (photo.height - side) // 2
        # Cut out first, as masks and sketches are: LANCZOS would look beyond a box's edge.
        middle = photo.crop((left, top, left + side, top + side))
        return np.array(middle.resize(self.size(), Image.Resampling.LANCZOS))

    def _mask(self, record: Record) -> UInt8[np.ndarray, "height width 3"]:
        path = self._path(record, "mask")
        return colorize(load_mask(path, self.size(), record.label_format).labels)


@dataclass(frozen=True)
class ReleasedManifestPictures(ManifestPictures):
    """The same with masks as the released weights were shown them: resized as colours.

    Edges in a mask then have colours of no class; see `mmface.conditions.released_mask_rgb`.
    """

    mask_resizing: ClassVar[str] = "colours, LANCZOS, square pictures"

    def _mask(self, record: Record) -> UInt8[np.ndarray, "height width 3"]:
        if record.label_format != "celebamask_hq":
            raise ValueError(
                f"{record.id} has a mask in the label format {record.label_format!r}; the "
                "released weights know 'celebamask_hq' alone. Take ManifestPictures."
            )
        path = self._path(record, "mask")
        picture = open_picture(path)
        if picture.width != picture.height:
            raise ValueError(
                f"{path} is {picture.width}x{picture.height} pixels; the released weights' masks "
                "are square and not cropped. Take ManifestPictures."
            )
        return released_mask_rgb(picture, self.size())
