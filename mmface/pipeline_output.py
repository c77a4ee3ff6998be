"""What a call of the pipeline returns, and the types that its pictures come in."""

from dataclasses import dataclass

import numpy as np
from diffusers.utils import BaseOutput
from jaxtyping import Float32
from PIL import Image
from torch import Tensor

from mmface.conditions.pixels import to_uint8

OUTPUT_TYPES = ("pil", "np", "pt", "latent")


@dataclass
class MMFacePipelineOutput(BaseOutput):
    """What a call of the pipeline returns.

    Attributes:
        images: "pil": a list of pictures; "np": float32 [N, H, W, 3] in [0, 1]; "pt": float32
            [N, 3, H, W] in [0, 1]; "latent": normalised float32 latents [N, C, h, w].
        seeds: The seed of each picture; None where generators were given.
        evaluations: How often the network was evaluated for a picture, on average: the rows of all
            batches, over the pictures. Where a cache left blocks out, what share of them was
            computed counts.
    """

    images: list[Image.Image] | np.ndarray | Tensor
    seeds: list[int] | None
    evaluations: float


def as_output_type(
    pixels: Float32[Tensor, "batch 3 height width"], output_type: str
) -> list[Image.Image] | np.ndarray | Tensor:
    """Give decoded pictures as a call was asked for them.

    Args:
        pixels: Pictures in [-1, 1].
        output_type: "pil", "np" or "pt".

    Returns:
        The pictures; see `MMFacePipelineOutput`.
    """
    if output_type == "pil":
        return [Image.fromarray(picture) for picture in to_uint8(pixels)]
    pixels = (pixels + 1) / 2
    return pixels if output_type == "pt" else pixels.movedim(1, -1).cpu().numpy()
