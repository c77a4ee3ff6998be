"""Controls: rows that show the best and the worst value that a metric can have.

Best: real pictures (limited by the parser and CLIP alone) and VAE reconstructions (the most that a
latent model can reach). Worst: real pictures of other faces, and pictures sampled with another
face's prompt or condition, which ignore what was asked for.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mmface.core.files import folder_sha256
from mmface.data.pictures import PictureSource
from mmface.encoders import VAES, LatentCodec
from mmface.encoders.vae import image_pixels, to_uint8
from mmface.evaluation.methods import (
    GeneratingMethod,
    Picture,
    PipelineMethod,
)
from mmface.evaluation.references import References
from mmface.metrics.metric import PictureOrder, Skipped, or_skipped


class RealPictures(GeneratingMethod):
    """The true pictures or answers; ACC and mIoU of pictures are the parser's ceiling."""

    def __init__(self, name: str = "Real pictures") -> None:
        super().__init__(name)

    def unavailable(self) -> Skipped | None:
        """They are always there."""
        return None

    def made_by(self) -> dict[str, Any]:
        """Nothing but the references."""
        return {"method": type(self).__name__}

    def generate(self, orders: Sequence[Any], device: torch.device) -> list[Picture | str]:
        """Give the truth."""
        return [order.truth for order in orders]


class OtherFaces(RealPictures):
    """Real pictures against the prompt, condition and picture of another face.

    Without a source of other faces each takes the next one's picture. As a set these are the true
    pictures in another order, so that they are not compared as a set.
    """

    def __init__(
        self, name: str = "Real pictures of other faces", source: PictureSource | None = None
    ) -> None:
        """Take the first faces of a source, of which none is evaluated or compared with."""
        super().__init__(name)
        self.source = source
        self.is_a_set = source is not None

    def made_by(self) -> dict[str, Any]:
        """The other faces, if they have a source of their own."""
        if self.source is None:
            return super().made_by()
        return super().made_by() | {"source": self.source.made_by()}

    def order(self, references: References, item: int, seed: int) -> PictureOrder:
        """Take another face's picture under this face's name."""
        if self.source is None:
            other = references.order((item + 1) % len(references), seed).face
        else:
            other = self.source.face(item)
        return replace(references.order(item, seed), face=other)


class VaeReconstruction(GeneratingMethod):
    """The true pictures through a VAE and back."""

    def __init__(
        self,
        vae: str | Path,
        subfolder: str | None = None,
        name: str = "VAE reconstruction",
        how: str | None = None,
    ) -> None:
        """Name a VAE, loaded when first needed: of `VAES`, a folder or a hub id.

        `how` is the command that makes the folder; None takes the one that downloads it.
        """
        super().__init__(name)
        self.vae = str(vae)
        self.subfolder = subfolder
        self.how = how
        self._codec: LatentCodec | None = None

    def _load(self) -> LatentCodec:
        if self._codec is None:
            self._codec = LatentCodec.from_pretrained(self.vae, self.subfolder)
        return self._codec

    def unavailable(self) -> Skipped | None:
        """Whether the VAE cannot be loaded."""
        source = VAES[self.vae].hub_id if self.vae in VAES else self.vae
        how = self.how or f"hf download {source}, or give its folder"
        codec = or_skipped(self._load, how)
        return codec if isinstance(codec, Skipped) else None

    def made_by(self) -> dict[str, Any]:
        """The VAE: a folder by its content, others by name."""
        folder = Path(self.vae) / (self.subfolder or "")
        weights = folder_sha256(folder) if folder.is_dir() else str(folder)
        return {"method": type(self).__name__, "weights": weights}

    @torch.no_grad()
    def generate(self, orders: Sequence[PictureOrder], device: torch.device) -> list[Picture]:
        """Encode by the posterior's mean, and decode."""
        codec = self._load()
        codec.vae.to(device)
        pixels = torch.stack([image_pixels(order.face.image) for order in orders])
        return list(to_uint8(codec.decode(codec.encode(pixels.to(device)))))


class ShuffledPrompts(PipelineMethod):
    """A pipeline that is given the next face's prompt, and measured against the face's own."""

    def order(self, references: References, item: int, seed: int) -> PictureOrder:
        """Ask with the next face's prompt."""
        other = references.order((item + 1) % len(references), seed)
        return replace(references.order(item, seed), prompt=other.prompt)


class ShuffledConditions(PipelineMethod):
    """A pipeline that is given the next face's condition, and measured against the face's own."""

    def order(self, references: References, item: int, seed: int) -> PictureOrder:
        """Ask with the next face's mask or sketch."""
        other = references.order((item + 1) % len(references), seed)
        return replace(references.order(item, seed), face=other.face)
