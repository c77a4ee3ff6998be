"""Starting from a given picture: variations of it, and changes in a region only."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float32
from PIL import Image, ImageOps
from torch import Tensor

from mmface.conditions import Picture, flat_rgb, open_picture, picture_name
from mmface.encoders.vae import image_pixels

VARIATION_STRENGTH = 0.6
"""Default fraction of the steps that a variation runs."""

FEATHER_PX = 4
"""Width of the soft edge, which lies inside the region."""

Map = Float32[Tensor, "height width"]


def load_image(source: Picture, size: tuple[int, int]) -> Float32[Tensor, "3 height width"]:
    """Read a picture, crop its middle and resize it to height and width; pixels in [-1, 1]."""
    picture = Image.fromarray(flat_rgb(open_picture(source), "white"))
    fitted = ImageOps.fit(picture, (size[1], size[0]), Image.Resampling.LANCZOS)
    return image_pixels(np.array(fitted))


def load_region(source: Picture, size: tuple[int, int], name: str) -> Map:
    """Read a region in [0, 1]: white (1) is inside, black and transparent (0) are outside.

    Its middle is cropped and resized to height and width `size`; messages call it `name`.
    ValueError if it is no picture, all black, or holds the integers 0 and 1.
    """
    if isinstance(source, np.ndarray) and source.dtype == bool:
        source = source.astype(np.uint8) * 255
    rgb = flat_rgb(open_picture(source), "black")
    where = f"{name} ({picture_name(source)})"
    if rgb.max() == 0:
        raise ValueError(f"{where} is all black; paint the part that may change white.")
    if rgb.max() == 1:
        raise ValueError(f"{where} has no value above 1 of 255; give bools, or 255 for inside.")
    grey = Image.fromarray(rgb).convert("L")
    fitted = ImageOps.fit(grey, (size[1], size[0]), Image.Resampling.BILINEAR)
    region = torch.from_numpy(np.array(fitted)).float() / 255
    if not region.any():
        raise ValueError(f"{where} is all black after the crop to the model's aspect ratio.")
    return region


def covered(region: Map, factor: int) -> Float32[Tensor, "latent_height latent_width"]:
    """Fraction of each latent pixel that a region covers."""
    return F.avg_pool2d(region[None], factor)[0]


def feathered(
    regions: Float32[Tensor, "batch 1 height width"], width_px: int = FEATHER_PX
) -> Float32[Tensor, "batch 1 height width"]:
    """Soften regions' edges inwards: 0 at the edge, 1 at a distance of `width_px` and more."""
    mean, eroded = torch.zeros_like(regions), (regions > 0).float()
    for _ in range(width_px):
        mean = mean + eroded / width_px
        eroded = -F.max_pool2d(-eroded, 3, stride=1, padding=1)
    return regions * mean


@dataclass(frozen=True)
class KeptPicture:
    """The given pictures of a call, in [-1, 1], and where each may change, in [0, 1] or None."""

    pixels: Float32[Tensor, "prompts 3 height width"]
    regions: Float32[Tensor, "prompts 1 height width"] | None

    @classmethod
    def load(
        cls, images: Sequence[Picture], regions: Sequence[Picture] | None, size: tuple[int, int]
    ) -> "KeptPicture":
        """Read a picture and a region for each prompt."""
        pixels = torch.stack([load_image(each, size) for each in images])
        if regions is None:
            return cls(pixels, None)
        loaded = [load_region(each, size, "The region") for each in regions]
        return cls(pixels, torch.stack(loaded).unsqueeze(1))

    def blend(
        self,
        latents: Float32[Tensor, "pictures channels latent_height latent_width"],
        kept: Float32[Tensor, "pictures channels latent_height latent_width"],
    ) -> Float32[Tensor, "pictures channels latent_height latent_width"]:
        """Restore the kept latents where no pixel may change (arXiv 2206.02779)."""
        if self.regions is None:
            return latents
        factor = self.pixels.shape[-1] // latents.shape[-1]
        is_open = F.max_pool2d(self.regions, factor) > 0
        is_open = is_open.repeat_interleave(len(latents) // len(is_open), dim=0)
        return torch.where(is_open.to(latents.device), latents, kept)

    def composite(
        self, made: Float32[Tensor, "pictures 3 height width"]
    ) -> Float32[Tensor, "pictures 3 height width"]:
        """Paste generated pictures into the given ones, which stay exact outside the regions."""
        if self.regions is None:
            return made
        each = len(made) // len(self.pixels)
        opacity = feathered(self.regions).repeat_interleave(each, dim=0).to(made.device)
        pixels = self.pixels.repeat_interleave(each, dim=0).to(made.device)
        return torch.where(opacity > 0, pixels + opacity * (made - pixels), pixels)
