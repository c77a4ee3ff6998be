"""Pictures to tensors and back."""

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor


def image_pixels(rgb: UInt8[np.ndarray, "height width 3"]) -> Float32[Tensor, "3 height width"]:
    """Turn an RGB picture into the pixels that a VAE reads, in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(rgb)).permute(2, 0, 1).float() / 127.5 - 1


def to_uint8(
    pixels: Float[Tensor, "*batch 3 height width"],
) -> UInt8[np.ndarray, "*batch height width 3"]:
    """Turn pixels in [-1, 1] into RGB pictures, rounded; what lies outside is clamped."""
    scaled = ((pixels.detach().float() + 1) * 127.5).round().clamp(0, 255)
    return scaled.to(torch.uint8).movedim(-3, -1).cpu().numpy()
