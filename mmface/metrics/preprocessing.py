"""The preprocessing of each network: resizing filters, each with a name.

Pictures are uint8 [B, 3, H, W], RGB, as a lossless file holds them. FIDs with different filters
cannot be compared (Parmar et al., arXiv 2104.11222).
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float32, UInt8
from PIL import Image
from torch import Tensor


def check_pictures(images: Tensor) -> None:
    """Refuse what is no batch of uint8 pictures [B, 3, H, W]."""
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(
            f"pictures have dtype {images.dtype} and shape {tuple(images.shape)}; metrics read "
            "uint8 [B, 3, H, W]: round what is in [-1, 1] by mmface.conditions.to_uint8 first"
        )


def unit_interval(
    images: UInt8[Tensor, "batch 3 height width"],
) -> Float32[Tensor, "batch 3 height width"]:
    """Scale pictures to [0, 1]."""
    check_pictures(images)
    return images.float() / 255


@runtime_checkable
class Preprocessing(Protocol):
    """Turns uint8 pictures into what a network reads."""

    @property
    def name(self) -> str:
        """The resizing filter, its library, and the size."""

    def __call__(
        self, images: UInt8[Tensor, "batch 3 height width"]
    ) -> Float32[Tensor, "batch 3 size size"]:
        """Resize and normalise."""


@dataclass(frozen=True)
class TorchBilinear:
    """pytorch-fid's resize: bilinear without antialiasing, in float, then to [-1, 1]."""

    size_px: int = 299

    @property
    def name(self) -> str:
        """`torch-bilinear-299`."""
        return f"torch-bilinear-{self.size_px}"

    def __call__(
        self, images: UInt8[Tensor, "batch 3 height width"]
    ) -> Float32[Tensor, "batch 3 size size"]:
        """Resize to the square, aspect ratio aside."""
        size = (self.size_px, self.size_px)
        return (
            F.interpolate(unit_interval(images), size, mode="bilinear", align_corners=False) * 2 - 1
        )


@dataclass(frozen=True)
class CleanBicubic:
    """clean-fid's resize: Pillow's bicubic on float channels, clipped and not rounded.

    See arXiv 2104.11222. Bicubic overshoots at edges; clean-fid cuts that off, and so does this.
    """

    size_px: int = 299

    @property
    def name(self) -> str:
        """`clean-bicubic-clipped-299`."""
        return f"clean-bicubic-clipped-{self.size_px}"

    def __call__(
        self, images: UInt8[Tensor, "batch 3 height width"]
    ) -> Float32[Tensor, "batch 3 size size"]:
        """Resize each channel, then to (x - 128) / 128 as the 2015-12-05 graph does."""
        check_pictures(images)
        size = (self.size_px, self.size_px)
        planes = images.flatten(0, 1).cpu().numpy().astype(np.float32)
        resized = [
            np.asarray(Image.fromarray(plane).resize(size, Image.Resampling.BICUBIC))
            for plane in planes
        ]
        pixels = torch.from_numpy(np.stack(resized)).unflatten(0, (len(images), 3)).clamp(0, 255)
        return ((pixels - 128) / 128).to(images.device)


@dataclass(frozen=True)
class PillowBicubic:
    """Pillow's bicubic on uint8, the shorter side to the size, the middle cropped, normalised."""

    size_px: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @property
    def name(self) -> str:
        """`pillow-bicubic-224`."""
        return f"pillow-bicubic-{self.size_px}"

    def __call__(
        self, images: UInt8[Tensor, "batch 3 height width"]
    ) -> Float32[Tensor, "batch 3 size size"]:
        """Resize, crop the middle, normalise."""
        check_pictures(images)
        height, width = images.shape[-2:]
        scale = self.size_px / min(height, width)
        size = (max(int(width * scale), self.size_px), max(int(height * scale), self.size_px))
        left, top = (size[0] - self.size_px) // 2, (size[1] - self.size_px) // 2
        box = (left, top, left + self.size_px, top + self.size_px)
        resized = [
            np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC).crop(box))
            for image in images.permute(0, 2, 3, 1).contiguous().cpu().numpy()
        ]
        pixels = torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2).float() / 255
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (self.mean, self.std))
        return ((pixels - mean) / std).to(images.device)
