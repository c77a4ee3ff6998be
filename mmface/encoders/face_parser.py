"""The face parser: label maps of pictures, by a SegFormer trained on CelebAMask-HQ."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor, BaseImageProcessor, SegformerForSemanticSegmentation

from mmface.conditions import LABELS
from mmface.core.files import values_sha256
from mmface.core.sources import ASSETS, load_network, opened
from mmface.encoders.encoder import Feature, count_flops

PARSER = "jonathandinu/face-parsing"
"""A SegFormer B5 on the hub. Revisions before 373bfce name its classes wrongly, with the same
weights; such a config is refused."""

TINY_PARSER = ASSETS / "tiny-parser"
"""The built-in parser of rendered faces."""


class FaceParser:
    """Reads label maps off pictures of any size, at the size that its SegFormer was trained at.

    The size, filter, mean and deviation of its pixels are read from the `preprocessor_config.json`
    beside its weights.
    """

    def __init__(
        self,
        model: SegformerForSemanticSegmentation,
        processor: BaseImageProcessor,
        source: str = "",
    ) -> None:
        """Wrap a SegFormer with the classes of CelebAMask-HQ in their order, else ValueError.

        Its preprocessor must resize all pictures to one size.
        """
        names = tuple(model.config.id2label[i] for i in range(len(model.config.id2label)))
        if names != LABELS:
            raise ValueError(
                f"the parser's classes are {names}, not {LABELS} in this order; "
                "take a revision of its config in which the names are right"
            )
        if not processor.do_resize:
            raise ValueError("the parser's preprocessor must resize pictures to one size")
        self.model = model.eval()
        self.processor = processor
        self.source = source

    @classmethod
    def from_pretrained(
        cls, path: str | Path = PARSER, revision: str | None = None, device: str = "cpu"
    ) -> "FaceParser":
        """Load a parser in float32 and eval mode: a folder, a hub id, or `tiny-parser`."""
        with opened("face parser", path, {TINY_PARSER.name: TINY_PARSER}) as source:
            model = load_network(
                SegformerForSemanticSegmentation, source, revision=revision, dtype=torch.float32
            )
            processor = AutoImageProcessor.from_pretrained(source, revision=revision, backend="pil")
            return cls(model.to(device), processor, str(path))

    @property
    def made_by(self) -> dict[str, float | str]:
        """What decides the masks, in plain values; the revision is the commit that was read."""
        revision = getattr(self.model.config, "_commit_hash", None) or ""
        return {"kind": "SegFormer", "model": self.source, "revision": revision}

    @torch.no_grad()
    def __call__(
        self, pictures: Sequence[UInt8[np.ndarray, "_ _ 3"]]
    ) -> list[UInt8[np.ndarray, "_ _"]]:
        """Parse RGB pictures of any sizes as one batch, into label maps in the order of `LABELS`.

        Logits are resized to each picture before the argmax.
        """
        opened = [Image.fromarray(picture) for picture in pictures]
        pixels = self.processor(opened, return_tensors="pt")["pixel_values"]
        logits = self.model(pixel_values=pixels.to(self.model.device)).logits.float()
        # One at a time: 19 classes at 1024 pixels are 80 MB.
        return [
            _classes(each[None], picture.shape[:2])[0].numpy()
            for each, picture in zip(logits, pictures, strict=True)
        ]

    @torch.no_grad()
    def of_pixels(
        self, pixels: Float[Tensor, "batch 3 height width"]
    ) -> UInt8[Tensor, "batch height width"]:
        """Parse pictures in [-1, 1] as they are, neither resized nor normalised."""
        logits = self.model(pixel_values=pixels.to(self.model.device)).logits
        return _classes(logits, pixels.shape[-2:])

    @property
    def module(self) -> SegformerForSemanticSegmentation:
        """The SegFormer."""
        return self.model

    def gives(self, size: tuple[int, int]) -> dict[str, Feature]:
        """`labels`, a label map of the picture's size."""
        return {"labels": Feature(size, torch.uint8)}

    def identity(self) -> dict[str, Any]:
        """The weights' hash, and how pictures are prepared."""
        names = ("size", "resample", "image_mean", "image_std", "rescale_factor")
        prepared = {name: self.processor.to_dict().get(name) for name in names}
        return {"parser_weights": values_sha256(self.model.state_dict())[:16]} | prepared

    def flops(self, size: tuple[int, int]) -> int:
        """FLOPs of parsing one picture, at the parser's own size."""
        own = self.processor.size
        pixels = torch.empty(1, 3, own["height"], own["width"], device=self.model.device)
        return count_flops(lambda: self.model(pixel_values=pixels))

    def activation_bytes(self, size: tuple[int, int], dtype: torch.dtype) -> int:
        """Bytes of all classes' scores at the picture's size."""
        return len(LABELS) * size[0] * size[1] * dtype.itemsize

    def features(
        self, inputs: Float[Tensor, "batch 3 height width"]
    ) -> dict[str, UInt8[Tensor, "batch height width"]]:
        """Parse pictures in [-1, 1] as `__call__` does."""
        pictures = ((inputs + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        maps = self(list(pictures.movedim(1, -1).cpu().numpy()))
        return {"labels": torch.from_numpy(np.stack(maps))}


def _classes(logits: Tensor, size: tuple[int, ...]) -> UInt8[Tensor, "batch height width"]:
    full = F.interpolate(logits, tuple(size), mode="bilinear", align_corners=False)
    return full.argmax(1).to(torch.uint8).cpu()
