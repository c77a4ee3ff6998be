"""The ablations of Table 3 (arXiv 2603.29029), each a class.

    row      class               modality embedder   dual stream   RoPE   VAE
    Model-1  UnimodalDiT         -                   -             -      SD2
    Model-2  SingleStreamDiT     yes                 -             -      SD2
    Model-3  SinCosMMFaceDiT     yes                 yes           -      SD2
    Model-4  MMFaceDiT           yes                 yes           yes    SD2, latent_channels=4
    Model-5  MMFaceDiT           yes                 yes           yes    FLUX

All are trained, saved and sampled as MMFaceDiT is. Our choices where the paper does not say:

- Without RoPE, image tokens carry the fixed 2D sine-cosine table of DiT (arXiv 2212.09748), added
  once after the patch embedding. Text tokens get no position: CLIP's features carry it.
- Without the dual stream, the prompt enters as in a plain text-to-image DiT: pooled through the
  global condition, and token by token through a cross-attention in each block, between
  self-attention and MLP. That cross-attention is not modulated, and its output projection starts at
  zero (PixArt-alpha, arXiv 2310.00426), so that an untrained block is the identity here too.
"""

from functools import lru_cache
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.embeddings import get_2d_sincos_pos_embed_from_grid
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from mmface.model.transformer import (
    Image,
    Index,
    Linear,
    MMFaceDiT,
    Modulation,
    Pooled,
    Rotation,
    Stream,
    Text,
    Time,
    Vector,
    joint_attention,
    modulated_norm,
)


@torch.compiler.assume_constant_result  # a compiled graph holds the finished table
def sincos_table(*key: int | torch.device) -> Float[Tensor, "image_tokens dim"]:
    """Cached `make_sincos_table`."""
    return make_sincos_table(*key)


@lru_cache(maxsize=16)
def make_sincos_table(
    rows: int, columns: int, hidden_size: int, device: torch.device
) -> Float[Tensor, "image_tokens dim"]:
    """Compute the fixed 2D sine-cosine positions of a grid, row by row, float32."""
    # So that a table made under inference_mode can be used in training later.
    with torch.inference_mode(False), torch.device("cpu"):
        places = torch.meshgrid(torch.arange(columns), torch.arange(rows), indexing="xy")
        grid = torch.stack(places).reshape(2, 1, rows, columns)  # the column first, as in DiT
        table = get_2d_sincos_pos_embed_from_grid(hidden_size, grid, output_type="pt")
        return table.to(device, torch.float32)


class SinCosMMFaceDiT(MMFaceDiT):
    """Model-3: MMFaceDiT with a fixed sine-cosine table instead of rotary positions.

    It takes MMFaceDiT's arguments, by default Table 3's on SD2's latents and for DDPM, and its
    blocks, with rotation angles of zero.
    """

    __module__ = "mmface.ablations"  # the name in saved pipelines, wherever this file lies
    ignore_for_config: ClassVar = ["text_rope", "rope_theta"]

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 4,
        patch_size: int = 2,
        hidden_size: int = 1152,
        depth: int = 28,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        text_dim: int = 1024,
        num_modalities: int = 2,
        objective: str = "min_snr_diffusion",
    ) -> None:
        super().__init__(
            latent_channels=latent_channels,
            patch_size=patch_size,
            hidden_size=hidden_size,
            depth=depth,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            text_dim=text_dim,
            num_modalities=num_modalities,
            objective=objective,
        )

    def place(self, image: Image, grid: tuple[int, ...], num_text: int) -> tuple[Image, Rotation]:
        """Add the table to the image tokens; the rotation is by zero."""
        table = sincos_table(*grid, image.shape[-1], image.device).to(image.dtype)
        num_tokens, num_pairs = image.shape[1] + num_text, self.head_dim // 2
        cos = torch.ones(num_tokens, 1, num_pairs, device=image.device)
        return image + table, torch.stack((cos, torch.zeros_like(cos)))


class CrossAttention(nn.Module):
    """Attention from image to text tokens; the output projection starts at zero."""

    def __init__(self, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = Linear(hidden_size, hidden_size, bias=False)
        self.key_value = Linear(hidden_size, 2 * hidden_size, bias=False)
        self.out = Linear(hidden_size, hidden_size, bias=False)

    def forward(self, image: Image, text: Text) -> Image:
        """Return the update of each image token, [B, N, D]."""
        query = self.query(F.layer_norm(image, image.shape[-1:], eps=1e-6))
        query = rearrange(query, "b n (heads d) -> b n heads d", heads=self.num_heads)
        layout = "b l (two heads d) -> b l two heads d"
        key_value = rearrange(self.key_value(text), layout, two=2, heads=self.num_heads)
        key, value = key_value.unbind(2)
        attended = dispatch_attention_fn(query, key, value)
        return self.out(rearrange(attended, "b n heads d -> b n (heads d)"))


class CrossAttentionBlock(nn.Module):
    """A block of one stream: self-attention, cross-attention to the text, MLP."""

    def __init__(self, hidden_size: int, num_heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.image = Stream(hidden_size, num_heads, mlp_ratio)
        self.cross = CrossAttention(hidden_size, num_heads)

    def forward(
        self, image: Image, text: Text, modulation: Tensor, rotation: Rotation
    ) -> tuple[Image, Text]:
        """Update the image; `modulation` is [B, 6 D], and the text is returned unchanged."""
        attention, mlp = Modulation.split(modulation, sites=2)
        query, key, value = self.image.project(image, attention)
        own_rotation = rotation[:, : image.shape[1]]  # image tokens lead the table
        (attended,) = joint_attention((query,), (key,), (value,), own_rotation)
        image = image + attention.gate * self.image.out(attended)
        image = image + self.cross(image, text)
        normed = modulated_norm(image, mlp.shift, mlp.scale)
        return image + mlp.gate * self.image.mlp(normed), text


class SingleStreamDiT(SinCosMMFaceDiT):
    """Model-2: one stream of image tokens; the text enters by cross-attention.

    It is built with the arguments of `SinCosMMFaceDiT`.
    """

    __module__ = "mmface.ablations"
    _no_split_modules: ClassVar = ["CrossAttentionBlock"]
    _repeated_blocks: ClassVar = ["CrossAttentionBlock"]
    block_classes: ClassVar[tuple[Any, Any]] = (CrossAttentionBlock, CrossAttentionBlock)
    sites: ClassVar = 2  # of modulation, in a block

    def initialize_weights(self) -> None:
        """Initialize as MMFaceDiT; cross-attention's output starts at zero."""
        super().initialize_weights()
        for cross in (module for module in self.modules() if isinstance(module, CrossAttention)):
            for part in cross.key_value.weight.chunk(2):
                nn.init.xavier_uniform_(part)
            nn.init.zeros_(cross.out.weight)


class UnimodalDiT(SingleStreamDiT):
    """Model-1: `SingleStreamDiT` without a modality embedder, trained on one modality.

    Its arguments are those of `SinCosMMFaceDiT` without `num_modalities`. `forward` ignores the
    modality.
    """

    __module__ = "mmface.ablations"
    ignore_for_config: ClassVar = [*SinCosMMFaceDiT.ignore_for_config, "num_modalities"]

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 4,
        patch_size: int = 2,
        hidden_size: int = 1152,
        depth: int = 28,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        text_dim: int = 1024,
        objective: str = "min_snr_diffusion",
    ) -> None:
        super().__init__(
            latent_channels=latent_channels,
            patch_size=patch_size,
            hidden_size=hidden_size,
            depth=depth,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            text_dim=text_dim,
            objective=objective,
        )
        del self.modality_embedder

    def global_condition(self, timestep: Time, pooled_text: Pooled, modality: Index) -> Vector:
        """C_global = E_time(t) + E_caption(c_pooled), whatever the modality."""
        time = self.time_mlp(self.frequencies(timestep.float()).to(self.null_pooled.dtype))
        return time + self.pooled_embedder(pooled_text)


NETWORKS: dict[str, type[MMFaceDiT]] = {
    each.__name__: each for each in (MMFaceDiT, SinCosMMFaceDiT, SingleStreamDiT, UnimodalDiT)
}
"""The networks that a saved pipeline may hold, by the name of their class."""
