"""The face parser: a picture's 19-class label map, by a SegFormer."""

from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor
from transformers import SegformerForSemanticSegmentation

from mmface.conditions import LABELS


class FaceParser:
    """Reads label maps off pictures."""

    def __init__(self, model: SegformerForSemanticSegmentation) -> None:
        """Wrap a SegFormer.

        Args:
            model: the parser, with its classes' names in its config.

        Raises:
            ValueError: if its classes are not the CelebAMask-HQ classes in their order.
        """
        names = tuple(model.config.id2label[i] for i in range(len(model.config.id2label)))
        if names != LABELS:
            raise ValueError(
                f"the parser's classes are {names}, not {LABELS} in this order; "
                "take a revision of its config in which the names are right"
            )
        self.model = model.eval()

    @classmethod
    def from_pretrained(cls, path: str | Path) -> "FaceParser":
        """Load a parser in float32 from a folder or hub id.

        Args:
            path: what `save_pretrained` wrote, or a hub id.

        Returns:
            The parser, in eval mode.

        Raises:
            ValueError: if its classes are not the CelebAMask-HQ classes in their order.
        """
        model = SegformerForSemanticSegmentation.from_pretrained(path, dtype=torch.float32)
        return cls(model)

    @torch.no_grad()
    def __call__(
        self, pixels: Float[Tensor, "batch 3 height width"]
    ) -> UInt8[Tensor, "batch height width"]:
        """Parse pictures in [-1, 1]; logits are brought to full size before the argmax."""
        pixels = pixels.to(self.model.device)
        logits = self.model(pixel_values=pixels).logits
        logits = F.interpolate(logits, pixels.shape[-2:], mode="bilinear", align_corners=False)
        return logits.argmax(1).to(torch.uint8).cpu()
