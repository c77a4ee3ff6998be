"""A store of latents: every photo and condition through the frozen VAE, once."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float32, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mmface.conditions import LABELS, MASK, ConditionKind
from mmface.core.processes import joined_processes
from mmface.core.sources import dtype_name, dtype_named
from mmface.data.keyed import keyed_generator
from mmface.data.pictures import IDENTITY, FacePictures, PictureSource, has_identities
from mmface.data.store import ArraySpec, Entry, Skipped, Store, StoreSpec, held_store, write_share
from mmface.encoders import Encoder, Feature, LatentCodec, Vae

IMAGE = "image"
"""Column of the photo; a condition's column has its kind's name."""
CONDITIONS = "conditions"
"""Column of the names of the conditions that a face has, where not every face has all. The latents
of the others are zeros."""
POSTERIOR_STD = "image_std"
"""Column of the posterior's standard deviation, where a store holds moments."""
LATENTS, PAIRS = "latents", "pairs"
"""What a store says that it holds: pictures, or noise with what a teacher makes of it."""
NOISE, CONDITION, MODALITY = "noise", "condition", "modality"
"""Columns of pairs beside `IMAGE`, the teacher's; `modality` is the condition's index."""
COVER = "cover"
"""Column of the masks' classes in the cells of a grid, see `class_cover`."""
POSTERIORS = ("sample", "mean", "moments")
LATENT_DTYPES = ("float16", "bfloat16", "float32")


def check_store(store: Store, vae: Vae, image_size: int) -> None:
    """Raise ValueError unless a store's latents are of this VAE, normalisation and size."""
    resolution, made_by = [image_size, image_size], store.spec.made_by
    kind = PAIRS if made_by.get("kind") == PAIRS else LATENTS
    wanted = LatentCodec(vae).identity() | {"kind": kind, "resolution": resolution}
    # A store says what it says: one of an older recipe may lack some of these.
    differing = [k for k in wanted if k in made_by and made_by[k] != wanted[k]]
    if "kind" not in made_by or differing:
        facts = "; ".join(
            f"{k}: {made_by.get(k)} in the store, {wanted[k]} here" for k in differing
        )
        raise ValueError(
            f"{store.folder} holds other latents than this run is for ({facts}). It was made with "
            f"the VAE {made_by.get('vae')!r}. Give its VAE and image_size, or encode the pictures "
            "anew: scripts/precompute.py."
        )


class _Words(NamedTuple):
    id: str
    captions: Sequence[str]
    conditions: Sequence[str]
    identity: Sequence[str] = ()
    cover: UInt8[np.ndarray, "classes side side"] | None = None


class _Batch(NamedTuple):
    entries: list[_Words | Skipped]
    pixels: Tensor  # uint8 [pictures of all faces that could be read, 3, H, W]


class _Faces(Dataset[tuple[_Words | Skipped, Tensor | None]]):
    """Reads faces in worker processes; a bad one is a `Skipped`."""

    def __init__(self, pictures: PictureSource, cover_side: int = 0) -> None:
        self.pictures, self.kinds, self.cover_side = pictures, pictures.kinds(), cover_side

    def __getitem__(self, item: int) -> tuple[_Words | Skipped, Tensor | None]:
        try:
            face = self.pictures.face(item)
        except (ValueError, FileNotFoundError) as error:
            return Skipped(self.pictures.id(item), " ".join(str(error).split())), None
        kinds = [kind for kind in self.kinds if kind.name in face.conditions]
        identity = () if face.identity is None else (face.identity,)
        cover = None
        if self.cover_side:
            cover = class_cover(face.conditions.get(MASK.name), self.cover_side)
        words = _Words(face.id, face.captions, [kind.name for kind in kinds], identity, cover)
        return words, torch.from_numpy(_stacked(face, kinds))


def _stacked(
    face: FacePictures, kinds: Sequence[ConditionKind]
) -> UInt8[np.ndarray, "pictures 3 height width"]:
    drawn = [face.image, *(face.rgb(kind) for kind in kinds)]
    return np.stack(drawn).transpose(0, 3, 1, 2).copy()


def _collate(faces: Sequence[tuple[_Words | Skipped, Tensor | None]]) -> _Batch:
    readable = [pixels for _, pixels in faces if pixels is not None]
    pixels = torch.cat(readable) if readable else torch.empty(0, dtype=torch.uint8)
    return _Batch([entry for entry, _ in faces], pixels)


def class_cover(
    labels: UInt8[np.ndarray, "size size"] | None, side: int
) -> UInt8[np.ndarray, "classes side side"]:
    """How much of each cell of a grid a class covers, 255 for all of it; zeros without a mask.

    The mask's side must be a multiple of the grid's (ValueError).
    """
    if labels is None:
        return np.zeros((len(LABELS), side, side), np.uint8)
    if labels.shape[0] % side:
        raise ValueError(
            f"cover_side is {side}, which does not divide the pictures' {labels.shape[0]} pixels; "
            "give the side of the grid of tokens."
        )
    cell = labels.shape[0] // side
    cells = labels.reshape(side, cell, side, cell)
    shares = [(cells == index).mean((1, 3)) for index in range(len(LABELS))]
    return np.rint(255 * np.stack(shares)).astype(np.uint8)


def posterior_noise(seed: int, face_id: str, shape: Sequence[int]) -> Float32[Tensor, "..."]:
    """Standard normal noise of a photo's posterior sample, from the store's seed and id alone."""
    name = int.from_bytes(hashlib.sha256(face_id.encode()).digest()[:8], "big")
    return torch.randn(tuple(shape), generator=keyed_generator(seed, name))


@dataclass(frozen=True)
class LatentEncoding:
    """Encodes faces: the photos and all conditions of a batch in one pass of the VAE.

    Conditions take the posterior's mean, as they do at sampling time. `posterior` is what is stored
    of a photo: `sample`, drawn by `seed`, `mean`, or `moments`, mean and standard deviation, of
    which training draws a new sample each time. `batch_size` counts faces, each a photo and its
    conditions. Latents are computed in `vae_dtype` and stored in `dtype`. A stopped run loses at
    most `shard_size` faces. A face that cannot be read is listed and left out, or ends a `strict`
    run. Further `encoders` of the photo add a column for each feature, named after the encoder, and
    the feature if there are several. A `cover_side` above 0 adds how much of each cell of a grid of
    that side each class of the mask covers, which `objectives.attention_map` asks for.
    """

    pictures: PictureSource
    vae: str | Path
    batch_size: int = 16
    seed: int = 0
    posterior: str = "sample"
    dtype: str = "float16"
    vae_dtype: str = "float32"
    num_workers: int = 0
    shard_size: int = 256
    strict: bool = False
    encoders: Mapping[str, Encoder] = field(default_factory=dict)
    cover_side: int = 0

    def __post_init__(self) -> None:
        """Refuse unknown names before the work begins."""
        for value, known in ((self.posterior, POSTERIORS), (self.dtype, LATENT_DTYPES)):
            if value not in known:
                raise ValueError(f"{value!r} is not one of {', '.join(known)}")
        dtype_name(self.vae_dtype)

    def write(self, folder: str | Path, process_index: int = 0, num_processes: int = 1) -> None:
        """Write this process's shards of the latent store (see `write_store`).

        ValueError if the folder holds a store that was made otherwise, a face is bad and `strict`,
        or a latent is too large for `dtype`.
        """
        with held_store(folder, process_index):  # before the VAE is loaded
            spec = self._spec(LatentCodec.from_pretrained(str(self.vae)))
            dtype = dtype_named(self.vae_dtype)
            codec = LatentCodec.from_pretrained(str(self.vae), dtype=dtype)
            for encoder in (codec, *self.encoders.values()):
                encoder.module.to(joined_processes().device)

            def entries(shards: Sequence[range]) -> Iterator[list[Entry]]:
                return self._entries(codec, spec, shards)

            write_share(Path(folder), spec, entries, process_index, num_processes)

    @property
    def _columns(self) -> tuple[str, ...]:
        return (IMAGE, *(kind.name for kind in self.pictures.kinds()))

    def arrays(self, codec: LatentCodec) -> dict[str, ArraySpec]:
        """Give the store's columns with the shape and dtype of one face."""
        size = self.pictures.size()
        latents = codec.gives(size)["mean"].shape
        names = (*self._columns, *((POSTERIOR_STD,) if self.posterior == "moments" else ()))
        arrays = {name: ArraySpec(latents, self.dtype) for name in names}
        for name, encoder in self.encoders.items():
            for feature, given in encoder.gives(size).items():
                column = _column(name, feature, encoder.gives(size))
                if column in arrays:
                    raise ValueError(f"two things would be the column {column!r}; rename {name!r}")
                dtype = str(given.dtype).removeprefix("torch.")
                arrays[column] = ArraySpec(given.shape, dtype)
        if self.cover_side:
            arrays[COVER] = ArraySpec((len(LABELS), self.cover_side, self.cover_side), "uint8")
        return arrays

    def _spec(self, codec: LatentCodec) -> StoreSpec:
        num_items = len(self.pictures)  # first: it says best what is missing
        made_by = {
            "kind": LATENTS,
            "vae": str(self.vae),
            **codec.identity(),
            "vae_dtype": dtype_name(self.vae_dtype),
            "resolution": list(self.pictures.size()),
            "posterior": self.posterior,
            "seed": self.seed,
            "pictures": self.pictures.made_by(),
        }
        if self.encoders:
            made_by["encoders"] = {
                name: {"source": each.source} | each.identity()
                for name, each in self.encoders.items()
            }
        texts = ["captions"]
        if not self.pictures.is_even():
            texts.append(CONDITIONS)
        if has_identities(self.pictures):
            texts.append(IDENTITY)
        return StoreSpec(
            num_items=num_items,
            arrays=self.arrays(codec),
            texts=tuple(texts),
            made_by=made_by,
            shard_size=self.shard_size,
        )

    def _entries(
        self, codec: LatentCodec, spec: StoreSpec, shards: Sequence[range]
    ) -> Iterator[list[Entry]]:
        """Yield the entries of each shard; no batch reaches over a shard's end."""
        batches = [
            list(items[first : first + self.batch_size])
            for items in shards
            for first in range(0, len(items), self.batch_size)
        ]
        loader = DataLoader(
            _Faces(self.pictures, self.cover_side),
            batch_sampler=batches,
            num_workers=self.num_workers,
            collate_fn=_collate,
            pin_memory=torch.cuda.is_available(),
        )
        stream = iter(loader)
        for items in shards:
            made: list[Entry] = []
            while len(made) < len(items):
                made += self._encoded(codec, spec, next(stream))
            yield made

    def _encoded(self, codec: LatentCodec, spec: StoreSpec, batch: _Batch) -> list[Entry]:
        skipped = [entry for entry in batch.entries if isinstance(entry, Skipped)]
        if skipped and self.strict:
            raise ValueError(f"{skipped[0].id}: {skipped[0].reason}")
        words = [entry for entry in batch.entries if isinstance(entry, _Words)]
        arrays = self._latents(codec, spec, words, batch.pixels) if words else {}
        rows: Iterator[Entry] = (
            {"id": each.id, "captions": each.captions, CONDITIONS: each.conditions}
            | {IDENTITY: each.identity, COVER: each.cover}
            | {name: values[place] for name, values in arrays.items()}
            for place, each in enumerate(words)
        )
        return [each if isinstance(each, Skipped) else next(rows) for each in batch.entries]

    @torch.no_grad()
    def _latents(
        self, codec: LatentCodec, spec: StoreSpec, words: Sequence[_Words], pixels: Tensor
    ) -> Mapping[str, np.ndarray]:
        """Encode faces: a column's name to float32 [face, C, h, w] that `dtype` can hold."""
        pixels = pixels.to(codec.vae.device, non_blocking=True)
        pixels = pixels.float() / 127.5 - 1  # as conditions.image_pixels does
        moments = codec.features(pixels)
        there = torch.tensor(
            [[n in (IMAGE, *each.conditions) for n in self._columns] for each in words]
        )
        mean, std = (_spread(moments[n].cpu(), there) for n in ("mean", "std"))
        columns = {name: mean[:, place] for place, name in enumerate(self._columns)}
        if self.posterior == "moments":
            columns[POSTERIOR_STD] = std[:, 0]
        elif self.posterior == "sample":
            shape = mean.shape[2:]
            noise = torch.stack([posterior_noise(self.seed, each.id, shape) for each in words])
            columns[IMAGE] = mean[:, 0] + std[:, 0] * noise
        stored = getattr(torch, self.dtype)
        for name, values in columns.items():
            bad = ~values.to(stored).isfinite().flatten(1).all(1)
            if bad.any():
                raise ValueError(
                    f"the latents of {words[int(bad.nonzero()[0])].id} ({name}) are not finite in "
                    f"{self.dtype}; the VAE {self.vae} computes in {dtype_name(self.vae_dtype)}. "
                    "Set job.vae_dtype=float32, or job.dtype=bfloat16."
                )
        photos = there.sum(1).cumsum(0) - there.sum(1)  # each face's pictures begin with its photo
        for name, encoder in self.encoders.items():
            for feature, values in encoder.features(pixels[photos]).items():
                columns[_column(name, feature, encoder.gives(self.pictures.size()))] = values.cpu()
        return {
            name: (values.float() if values.dtype == torch.bfloat16 else values).numpy()
            for name, values in columns.items()
        }


def _spread(
    values: Float32[Tensor, "pictures channels height width"], there: Bool[Tensor, "faces columns"]
) -> Float32[Tensor, "faces columns channels height width"]:
    """Put what there is in its place, and zeros in the others."""
    spread = values.new_zeros(*there.shape, *values.shape[1:])
    spread[there] = values
    return spread


def _column(encoder: str, feature: str, given: Mapping[str, Feature]) -> str:
    return encoder if len(given) == 1 else f"{encoder}_{feature}"
