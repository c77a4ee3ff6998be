"""Pictures of faces with their conditions and captions: where latents are made from.

A `PictureSource` gives faces one by one at one size: from the files of a manifest, or from a
store of rendered faces, which `RenderedPictures` draws.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from mmface.conditions import (
    MASK,
    READER,
    SKETCH,
    ConditionKind,
    condition_kind,
    condition_kinds,
    flat_rgb,
    open_picture,
    released_mask_rgb,
)
from mmface.core.files import file_sha256
from mmface.data.manifest import Manifest, Record
from mmface.data.store import ArraySpec, Store, StoreSpec, write_store
from mmface.rendered import distribution
from mmface.rendered.attributes import HELD_OUT_SEED

IDENTITY = "identity"
"""The column of a store that says who each face is: a list of one name, or of none."""
LABELS_COLUMN = "labels"
"""The column of a store of pictures that holds the true label maps."""


@dataclass(frozen=True)
class RenderedPictures:
    """Draws faces `first_seed`, `first_seed + 1`, ... of a distribution into a store."""

    num_faces: int
    size_px: int = 128
    first_seed: int = 0
    distribution: str = "studio"

    def plan(self, folder: str | Path, num_processes: int = 1) -> str:
        """Say what `write` would take; the arguments are its own."""
        size = self._spec().array_bytes / 1e9
        return f"{folder}: {self.num_faces:,} rendered faces, {size:.2f} GB on disk"

    def write(self, folder: str | Path, process_index: int = 0, num_processes: int = 1) -> None:
        """Write this process's shards; ValueError if faces would reach the held-out seeds."""
        last_seed = self.first_seed + self.num_faces - 1
        if self.first_seed < HELD_OUT_SEED <= last_seed:
            raise ValueError(
                f"seeds {self.first_seed}..{last_seed} run into the held-out faces, which start "
                f"at {HELD_OUT_SEED}; take fewer faces"
            )
        write_store(folder, self._spec(), self._rows, process_index, num_processes)

    def _spec(self) -> StoreSpec:
        square = (self.size_px, self.size_px)
        drawn = distribution(self.distribution)
        rough = {MASK.name: ArraySpec(square, "uint8")} if drawn.has_rough_masks else {}
        return StoreSpec(
            num_items=self.num_faces,
            arrays={
                "image": ArraySpec((*square, 3), "uint8"),
                LABELS_COLUMN: ArraySpec(square, "uint8"),
                SKETCH.name: ArraySpec(square, "uint8"),
                **rough,
            },
            texts=("captions",),
            made_by={
                "kind": "rendered pictures",
                "first_seed": self.first_seed,
                **({} if drawn.name == "studio" else {"distribution": drawn.name}),
            },
        )

    def _rows(self, shards: Sequence[range]) -> Iterator[list[dict[str, Any]]]:
        for items in shards:
            yield [self._row(self.first_seed + item) for item in items]

    def _row(self, seed: int) -> dict[str, Any]:
        drawn = distribution(self.distribution)
        face = drawn.render(seed, self.size_px)
        rough = {MASK.name: face.mask} if drawn.has_rough_masks else {}
        return {
            "id": f"rendered/{seed}",
            "image": face.image,
            LABELS_COLUMN: face.labels,
            SKETCH.name: face.sketch,
            **rough,
            "captions": face.captions,
        }


def picture_columns(there: Collection[str]) -> dict[ConditionKind, str]:
    """Name the columns that hold the values of each kind, of those that a store has.

    A store without masks as they may be brought is read with its true label maps instead.
    """
    found = {kind: kind.name for kind in condition_kinds() if kind.name in there}
    if MASK not in found and LABELS_COLUMN in there:
        found = {MASK: LABELS_COLUMN} | found
    return found


@dataclass(frozen=True)
class FacePictures:
    """One face: RGB photo, values of the conditions that it has by kind, at least one caption.

    `drawings` are conditions that are shown to the VAE otherwise than their kind draws them.
    `identity` is who it shows, if that is known.
    """

    id: str
    image: UInt8[np.ndarray, "height width 3"]
    conditions: Mapping[str, np.ndarray]
    captions: Sequence[str]
    drawings: Mapping[str, UInt8[np.ndarray, "height width 3"]] = field(default_factory=dict)
    identity: str | None = None

    def rgb(self, kind: ConditionKind) -> UInt8[np.ndarray, "height width 3"]:
        """Draw a condition as the VAE is shown it."""
        drawn = self.drawings.get(kind.name)
        return kind.rgb(self.conditions[kind.name]) if drawn is None else drawn


@runtime_checkable
class PictureSource(Protocol):
    """Faces of one size, by number. Worker processes read from copies of it."""

    def __len__(self) -> int:
        """Number of faces, those that cannot be read included."""
        ...

    def size(self) -> tuple[int, int]:
        """Height and width of all pictures in pixels."""
        ...

    def kinds(self) -> tuple[ConditionKind, ...]:
        """Which conditions there are; a face has at least one of them."""
        ...

    def is_even(self) -> bool:
        """Whether every face has all of `kinds`."""
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
    """The faces of a store that `RenderedPictures` wrote."""

    store: str | Path

    @cached_property
    def _rows(self) -> Store:
        return Store(self.store)

    def __len__(self) -> int:
        """Number of faces."""
        return len(self._rows)

    def size(self) -> tuple[int, int]:
        """Height and width of all pictures in pixels."""
        height, width, _ = self._rows.spec.arrays["image"].shape
        return height, width

    def kinds(self) -> tuple[ConditionKind, ...]:
        """Which conditions every face has."""
        return tuple(picture_columns(self._rows.spec.arrays))

    def is_even(self) -> bool:
        """Whether every face has all of `kinds`."""
        return True

    def made_by(self) -> dict[str, Any]:
        """What made the store."""
        return dict(self._rows.spec.made_by)

    def id(self, item: int) -> str:
        """Name of a face."""
        return self._rows.row(item, ("id",))["id"]

    def face(self, item: int) -> FacePictures:
        """Read a face."""
        named = picture_columns(self._rows.spec.arrays)
        columns = {kind.name: column for kind, column in named.items()}
        named_people = (IDENTITY,) if self.has_identities() else ()
        wanted = ("id", "image", *columns.values(), "captions", *named_people)
        row = self._rows.row(item, wanted)
        values = {name: row[column] for name, column in columns.items()}
        own = row[IDENTITY][0] if row.get(IDENTITY) else None
        return FacePictures(row["id"], row["image"], values, row["captions"], identity=own)

    def has_identities(self) -> bool:
        """Whether it is known who the faces are."""
        return IDENTITY in self._rows.spec.texts


def has_identities(pictures: PictureSource) -> bool:
    """Whether a source says who its faces are; one that has no such method does not."""
    said = getattr(pictures, "has_identities", None)
    return bool(said is not None and said())


def lacking(record: Record, wanted: Sequence[str] | None = None) -> list[str]:
    """Name what a face lacks to be trained on: captions, and conditions.

    Args:
        record: the face.
        wanted: the kinds of condition that it must have; None asks for one of any kind.

    Returns:
        The names, such as `["sketch", "captions"]`; none if the face is complete.
    """
    if wanted is None:
        wanted = () if record.conditions else [kind.name for kind in condition_kinds()]
    lacks = [name for name in wanted if name not in record.conditions]
    return [*lacks, *(() if record.captions else ("captions",))]


@dataclass(frozen=True)
class ManifestPictures:
    """The faces of a manifest, cropped to the middle square.

    Photos are resized with LANCZOS. Masks are resized as classes, so that no class is invented
    between two others (see `mmface.conditions.load_mask`). Split None takes all faces. Every face
    must have all `conditions`; None takes what there is, of which a face must have one.
    """

    manifest: str | Path
    size_px: int
    split: str | None = None
    conditions: Sequence[str] | None = None
    mask_resizing: ClassVar[str] = "classes, nearest, centre crop"

    @cached_property
    def _whole(self) -> Manifest:
        return Manifest.read(self.manifest)

    @cached_property
    def _faces(self) -> Manifest:
        manifest = self._whole
        if self.split is not None:
            manifest = manifest.subset(self.split)
        if not manifest.records:
            raise ValueError(f"{self.manifest} has no faces in the split {self.split!r}.")
        return manifest

    @cached_property
    def _kinds(self) -> tuple[ConditionKind, ...]:
        if self.conditions is not None:
            return tuple(condition_kind(name) for name in self.conditions)
        if not Path(self.manifest).is_file():  # a plan may be asked for before it is there
            return condition_kinds()
        # Without any, a face is told to lack all of them.
        return self._whole.kinds() or condition_kinds()

    def __len__(self) -> int:
        """Number of faces."""
        return len(self._faces.records)

    def kinds(self) -> tuple[ConditionKind, ...]:
        """Which conditions there are; a face has at least one of them."""
        return self._kinds

    @cached_property
    def _is_even(self) -> bool:
        if self.conditions is not None or not Path(self.manifest).is_file():
            return True
        usable = [each for each in self._faces.records if not lacking(each)]
        return all(len(each.conditions) == len(self._kinds) for each in usable)

    def is_even(self) -> bool:
        """Whether every face that can be used has all of `kinds`."""
        return self._is_even

    def size(self) -> tuple[int, int]:
        """Height and width of all pictures in pixels."""
        return self.size_px, self.size_px

    def made_by(self) -> dict[str, Any]:
        """The manifest by its content, and how its pictures are brought to size."""
        chosen = {} if self.conditions is None else {"conditions": list(self.conditions)}
        return {
            "kind": "manifest",
            "manifest": Path(self.manifest).name,
            "sha256": file_sha256(self.manifest),
            "split": self.split,
            "size_px": self.size_px,
            "mask_resizing": self.mask_resizing,
            "reader": READER,
            **chosen,
        }

    def id(self, item: int) -> str:
        """Name of a face."""
        return self._faces.records[item].id

    def face(self, item: int) -> FacePictures:
        """Read a face; ValueError if a picture is bad, or a condition or captions are lacking."""
        record = self._faces.records[item]
        if lacks := lacking(record, self.conditions):
            raise ValueError(
                f"{record.id} has no {' and no '.join(lacks)} in {self.manifest}; "
                "scripts/annotate.py makes them"
            )
        image = self._photo(self._path(record, "image"))
        values = {
            kind.name: kind.load(
                self._path(record, kind.name), self.size(), record.reading(kind)
            ).values
            for kind in self.kinds()
            if kind.name in record.conditions
        }
        return FacePictures(record.id, image, values, record.captions, self._drawings(record))

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

    def _drawings(self, record: Record) -> dict[str, UInt8[np.ndarray, "height width 3"]]:
        return {}


@dataclass(frozen=True)
class ReleasedManifestPictures(ManifestPictures):
    """The same with masks resized as colours, as the released weights saw them.

    Edges in a mask then have colours of no class; see `mmface.conditions.released_mask_rgb`.
    """

    mask_resizing: ClassVar[str] = "colours, LANCZOS, square pictures"

    def _drawings(self, record: Record) -> dict[str, UInt8[np.ndarray, "height width 3"]]:
        if MASK not in self.kinds() or record.mask is None:
            return {}
        if record.label_format != "celebamask_hq":
            raise ValueError(
                f"{record.id} has a mask in the label format {record.label_format!r}; the "
                "released weights know 'celebamask_hq' alone. Take ManifestPictures."
            )
        path = self._path(record, MASK.name)
        picture = open_picture(path)
        if picture.width != picture.height:
            raise ValueError(
                f"{path} is {picture.width}x{picture.height} pixels; the released weights' masks "
                "are square and not cropped. Take ManifestPictures."
            )
        return {MASK.name: released_mask_rgb(picture, self.size())}
