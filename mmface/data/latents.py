"""A store of latents: every picture, mask and sketch through the frozen VAE, once."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from mmface.conditions import image_pixels, mask_pixels, sketch_pixels
from mmface.data.keyed import keyed_generator
from mmface.data.store import ArraySpec, Store, StoreSpec, write_store
from mmface.encoders import LatentCodec

LATENT_DTYPE = "float16"


def weights_hash(folder: str | Path) -> str:
    """Hash every safetensors tensor in a folder: names, dtypes, shapes and bytes.

    Args:
        folder: the folder of a saved model.

    Returns:
        The first 16 hexadecimal digits of a SHA-256.
    """
    digest = hashlib.sha256()
    for path in sorted(Path(folder).glob("*.safetensors")):
        for name, tensor in sorted(load_file(path).items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


@dataclass(frozen=True)
class LatentEncoding:
    """Encodes a store of pictures.

    Attributes:
        pictures: folder of the store of pictures.
        vae: folder of the frozen VAE, in diffusers' layout.
        batch_size: pictures in one pass of the VAE.
        seed: seed of the posterior samples of the photographs; a face's sample depends on it and
            on the face's number alone. Masks and sketches take the posterior's mean, as they do
            at sampling time.
    """

    pictures: str | Path
    vae: str | Path
    batch_size: int = 16
    seed: int = 0

    def write(self, folder: str | Path, process_index: int = 0, num_processes: int = 1) -> None:
        """Write this process's shards of the latent store (see `write_store`)."""
        source = Store(self.pictures)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        codec = LatentCodec.from_pretrained(str(self.vae))
        codec.vae.to(device)
        height, width = source.spec.arrays["labels"].shape
        shape = (codec.channels, height // codec.downscale_factor, width // codec.downscale_factor)
        spec = StoreSpec(
            num_items=len(source),
            arrays={name: ArraySpec(shape, LATENT_DTYPE) for name in ("image", "mask", "sketch")},
            texts=("captions",),
            made_by={
                "kind": "latents",
                "vae": weights_hash(self.vae),
                "scaling_factor": codec.vae.config.scaling_factor,
                "shift_factor": codec.vae.config.shift_factor,
                "resolution": [height, width],
                "seed": self.seed,
                "pictures": dict(source.spec.made_by),
            },
        )

        def rows(items: range) -> list[dict[str, Any]]:
            made = []
            for first in range(items.start, items.stop, self.batch_size):
                batch = range(first, min(first + self.batch_size, items.stop))
                made += self._encode(codec, source, batch, device)
            return made

        write_store(folder, spec, rows, process_index, num_processes)

    @torch.no_grad()
    def _encode(
        self, codec: LatentCodec, source: Store, items: range, device: str
    ) -> list[dict[str, Any]]:
        faces = [source.row(i, ("id", "image", "labels", "sketch", "captions")) for i in items]
        images = torch.stack([image_pixels(face["image"]) for face in faces])
        masks = torch.stack([mask_pixels(face["labels"]) for face in faces])
        sketches = torch.stack([sketch_pixels(face["sketch"]) for face in faces])
        generators = [keyed_generator(self.seed, item) for item in items]
        latents = {
            "image": codec.encode(images.to(device), generator=generators),
            "mask": codec.encode(masks.to(device)),
            "sketch": codec.encode(sketches.to(device)),
        }
        arrays = {name: _as_stored(values) for name, values in latents.items()}
        return [
            {
                "id": face["id"],
                "captions": face["captions"],
                **{k: v[i] for k, v in arrays.items()},
            }
            for i, face in enumerate(faces)
        ]


def _as_stored(latents: Tensor) -> Any:
    return latents.cpu().numpy().astype(LATENT_DTYPE)
