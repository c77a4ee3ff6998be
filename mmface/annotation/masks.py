"""Masks of pictures: label maps by a SegFormer that was trained on CelebAMask-HQ."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import UInt8
from PIL import Image
from transformers import AutoImageProcessor, BaseImageProcessor, SegformerForSemanticSegmentation

from mmface.evaluation.parser import FaceParser

PARSER = "jonathandinu/face-parsing"
"""A SegFormer B5 on the hub. Revisions before 373bfce name its classes wrongly, with the same
weights; such a config is refused."""

TINY_PARSER = Path(__file__).parent.parent / "assets" / "tiny-parser"
"""The built-in parser of rendered faces."""


class PictureParser:
    """Parses pictures of any size at the size that its SegFormer was trained at.

    How a parser wants its pixels is read from the `preprocessor_config.json` beside its weights:
    the size, the filter, the mean and the deviation.
    """

    def __init__(
        self,
        model: SegformerForSemanticSegmentation,
        processor: BaseImageProcessor,
        device: str = "cpu",
        source: str = "",
    ) -> None:
        """Wrap a SegFormer and its preprocessor.

        Args:
            model: the parser, with its classes' names in its config.
            processor: turns pictures into the pixels that it was trained on.
            device: where to run it.
            source: the folder or hub id that it came from, for the record.

        Raises:
            ValueError: if its classes are not the CelebAMask-HQ classes in their order, or if its
                preprocessor leaves pictures of different sizes different.
        """
        if not processor.do_resize:
            raise ValueError("the parser's preprocessor must resize pictures to one size")
        self.model = FaceParser(model).model.to(device)
        self.processor = processor
        self.device, self.source = device, source

    @classmethod
    def from_pretrained(
        cls, path: str | Path = PARSER, revision: str | None = None, device: str = "cpu"
    ) -> "PictureParser":
        """Load a parser in float32 from a folder or hub id.

        Args:
            path: a folder with the SegFormer and its `preprocessor_config.json`, a hub id, or
                `tiny-parser`, the built-in one.
            revision: the commit, branch or tag of a hub id.
            device: where to run it.

        Returns:
            The parser, in eval mode.

        Raises:
            ValueError: if its classes are not the CelebAMask-HQ classes in their order.
            OSError: if the model or its preprocessor's config is not there.
        """
        folder = TINY_PARSER if str(path) == TINY_PARSER.name else path
        model = SegformerForSemanticSegmentation.from_pretrained(
            folder, revision=revision, dtype=torch.float32
        )
        processor = AutoImageProcessor.from_pretrained(folder, revision=revision, backend="pil")
        return cls(model, processor, device, str(path))

    @property
    def made_by(self) -> dict[str, float | str]:
        """What decides the masks, for a record of it; the revision is the commit that was read."""
        revision = getattr(self.model.config, "_commit_hash", None) or ""
        return {"kind": "SegFormer", "model": self.source, "revision": revision}

    @torch.no_grad()
    def __call__(
        self, pictures: Sequence[UInt8[np.ndarray, "_ _ 3"]]
    ) -> list[UInt8[np.ndarray, "_ _"]]:
        """Parse pictures; logits are brought to each picture's size before the argmax.

        Args:
            pictures: RGB pictures, of any sizes; they are one batch.

        Returns:
            Their label maps in the order of `LABELS`.
        """
        opened = [Image.fromarray(picture) for picture in pictures]
        pixels = self.processor(opened, return_tensors="pt")["pixel_values"]
        logits = self.model(pixel_values=pixels.to(self.device)).logits.float()
        maps = []
        for classes, picture in zip(logits, pictures, strict=True):
            # One at a time: 19 classes at 1024 pixels are 80 MB.
            size = picture.shape[:2]
            full = F.interpolate(classes[None], size, mode="bilinear", align_corners=False)
            maps.append(full[0].argmax(0).to(torch.uint8).cpu().numpy())
        return maps
