"""Image tokenizers: pictures to whole numbers and back, without a table of codes or with one.

`LookupFreeTokenizer` is the network that is trained here; `ImageTokenizer` is how everybody uses
it, or a `VQModel` of diffusers that somebody brings.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin, VQModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import Decoder, Encoder
from jaxtyping import Float, Int64
from torch import Tensor

from mmface.core.files import values_sha256
from mmface.core.sources import BrokenModelError, load_network, opened, read_object
from mmface.encoders.encoder import Feature, count_flops
from mmface.encoders.vae import execution_device

Pixels = Float[Tensor, "batch 3 height width"]
Codes = Int64[Tensor, "batch rows columns"]


class Quantised(NamedTuple):
    """Signs of the channels, -1 or 1, with the gradient of the values; and terms of the loss.

    Attributes:
        signs: [batch, bits, rows, columns].
        commitment: Squared distance of the values from their signs, a number a picture.
        token_entropy: Mean entropy of a token's code, in nats, a number a picture.
        codebook_entropy: Entropy of the batch's mean distribution over all codes, in nats.
    """

    signs: Tensor
    commitment: Tensor
    token_entropy: Tensor
    codebook_entropy: Tensor


def code_bits(codes: Int64[Tensor, "*shape"], num_bits: int) -> Float[Tensor, "*shape bits"]:
    """The signs of codes, -1 or 1; the first is the lowest bit."""
    places = torch.arange(num_bits, device=codes.device)
    return ((codes[..., None] >> places) & 1).float() * 2 - 1


def quantise(values: Float[Tensor, "batch bits rows columns"]) -> Quantised:
    """Look-up-free quantisation (MAGVIT-v2, arXiv 2310.05737): a code is the signs of its channels.

    A bit is 1 with probability sigmoid(4 v), the softmax over squared distances to -1 and 1. So the
    entropy of a token is the sum of its bits' entropies, and no table of codes is searched.
    """
    signs = torch.where(values > 0, 1.0, -1.0).to(values)
    commitment = (values - signs).square().mean((1, 2, 3))
    tokens = values.float().movedim(1, -1)
    logits = 4 * tokens
    bit_entropy = F.softplus(logits) - logits * torch.sigmoid(logits)
    num_bits = values.shape[1]
    signs_of_all = code_bits(torch.arange(2**num_bits, device=values.device), num_bits)
    likelihood = F.logsigmoid(logits).sum(-1, keepdim=True)  # of the code of ones
    flips = (1 - signs_of_all) / 2  # each 0 bit exchanges log p for log (1 - p) = log p - logit
    chances = (likelihood - logits @ flips.T).exp().flatten(0, -2).mean(0)
    codebook = -(chances * chances.clamp(min=1e-12).log()).sum()
    through = values + (signs - values).detach()
    return Quantised(through, commitment, bit_entropy.sum(-1).mean((1, 2)), codebook)


class LookupFreeTokenizer(ModelMixin, ConfigMixin):
    """Convolutions, signs, convolutions; the defaults are about MAGVIT-v2's, 13 bits, 16 times.

    A picture is first folded into patches of `patch_px`, which small networks save their time by.
    """

    @register_to_config
    def __init__(
        self,
        num_bits: int = 13,
        block_out_channels: Sequence[int] = (128, 256, 256, 512, 512),
        layers_per_block: int = 4,
        patch_px: int = 1,
        norm_num_groups: int = 32,
    ) -> None:
        """Build it; ValueError for a number of bits that nobody can count codes of."""
        super().__init__()
        if not 1 <= num_bits <= 18:
            raise ValueError(f"num_bits must be in 1..18, got {num_bits}.")
        levels, channels = len(block_out_channels), 3 * patch_px**2
        shared: dict[str, Any] = {
            "block_out_channels": tuple(block_out_channels),
            "layers_per_block": layers_per_block,
            "norm_num_groups": norm_num_groups,
        }
        self.encoder = Encoder(
            channels, num_bits, ("DownEncoderBlock2D",) * levels, double_z=False, **shared
        )
        self.decoder = Decoder(num_bits, channels, ("UpDecoderBlock2D",) * levels, **shared)

    def values(self, pixels: Pixels) -> Float[Tensor, "batch bits rows columns"]:
        """What the signs are taken of."""
        found: Tensor = self.encoder(F.pixel_unshuffle(pixels, self.config["patch_px"]))
        return found

    def pictures(self, signs: Float[Tensor, "batch bits rows columns"]) -> Pixels:
        """Decode signs into pixels, about in [-1, 1]."""
        return F.pixel_shuffle(self.decoder(signs), self.config["patch_px"])

    def forward(self, pixels: Pixels) -> tuple[Pixels, Quantised]:
        """Reconstruct pictures, with the terms that training needs."""
        quantised = quantise(self.values(pixels))
        return self.pictures(quantised.signs), quantised


class ImageTokenizer:
    """A frozen image tokenizer as the rest of the house uses it; an `Encoder`."""

    def __init__(self, network: LookupFreeTokenizer | VQModel, source: str = "") -> None:
        """Wrap a network; `source` is the folder or hub id that it was loaded from."""
        self.network: Any = network
        self.source = source
        config = network.config
        self.is_lookup_free = isinstance(network, LookupFreeTokenizer)
        halvings = len(config["block_out_channels"]) - 1
        self.downscale_factor: int = config.get("patch_px", 1) * 2**halvings
        self.num_codes: int = (
            2 ** config["num_bits"] if self.is_lookup_free else config["num_vq_embeddings"]
        )

    @classmethod
    def from_pretrained(cls, source: str | Path, subfolder: str = "") -> "ImageTokenizer":
        """Load a folder or hub id of either class; UnusableModelError for anything else."""
        with opened("image tokenizer", source) as found:
            classes = {each.__name__: each for each in (LookupFreeTokenizer, VQModel)}
            if Path(found).is_dir():
                name = read_object(Path(found, subfolder, "config.json")).get("_class_name")
            else:
                name = VQModel.load_config(found, subfolder=subfolder or None).get("_class_name")
            if name not in classes:
                raise BrokenModelError(
                    f"it holds a {name}, not a {' or '.join(classes)}, whose pictures are codes"
                )
            network: Any = load_network(classes[name], found, subfolder)
            return cls(network.float().requires_grad_(False), str(source))

    @property
    def module(self) -> Any:
        """The frozen network."""
        return self.network

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of codes of a picture of `size`; ValueError if it has no whole ones."""
        if any(side % self.downscale_factor for side in size):
            raise ValueError(
                f"A picture of {size[1]}x{size[0]} pixels has no whole tokens: make both sides "
                f"multiples of {self.downscale_factor}."
            )
        return size[0] // self.downscale_factor, size[1] // self.downscale_factor

    def gives(self, size: tuple[int, int]) -> dict[str, Feature]:
        """`codes`, whole numbers in rows and columns."""
        return {"codes": Feature(self.grid(size), torch.int64)}

    def identity(self) -> dict[str, Any]:
        """The weights' hash."""
        return {"image_tokenizer": values_sha256(self.network.state_dict())[:16]}

    def flops(self, size: tuple[int, int]) -> int:
        """FLOPs of encoding one picture."""
        pixels = torch.empty(1, 3, *size, device=execution_device(self.network))
        if self.is_lookup_free:
            return count_flops(lambda: self.network.values(pixels))
        return count_flops(lambda: self.network.encode(pixels))

    def activation_bytes(self, size: tuple[int, int], dtype: torch.dtype) -> int:
        """Bytes of the first level's activations, where the peak is."""
        config = self.network.config
        area = size[0] * size[1] // config.get("patch_px", 1) ** 2
        return int(5 * config["block_out_channels"][0] * area * dtype.itemsize)

    def features(self, inputs: Pixels) -> dict[str, Codes]:
        """Encode pictures."""
        return {"codes": self.encode(inputs)}

    @torch.no_grad()
    def encode(self, pixels: Pixels) -> Codes:
        """Codes of pictures in [-1, 1]; ValueError for a size that has no whole tokens."""
        grid = self.grid((pixels.shape[-2], pixels.shape[-1]))
        pixels = pixels.to(device=execution_device(self.network), dtype=self.network.dtype)
        if self.is_lookup_free:
            bits = (self.network.values(pixels) > 0).long()
            places = torch.arange(bits.shape[1], device=bits.device)[:, None, None]
            return (bits << places).sum(1)
        latents = self.network.encode(pixels).latents
        codes: Tensor = self.network.quantize(latents)[2][2]
        return codes.reshape(len(pixels), *grid)

    @torch.no_grad()
    def decode(self, codes: Codes) -> Pixels:
        """Pictures of codes, float32 in [-1, 1]."""
        network = self.network
        codes = codes.to(execution_device(network))
        if self.is_lookup_free:
            signs = code_bits(codes, network.config["num_bits"]).movedim(-1, 1)
            pixels = network.pictures(signs.to(network.dtype))
        else:
            width = network.config["vq_embed_dim"] or network.config["latent_channels"]
            found = network.quantize.get_codebook_entry(codes.flatten(), (*codes.shape, width))
            pixels = network.decode(found, force_not_quantize=True).sample
        return pixels.float().clamp(-1, 1)

    def bits(self) -> Float[Tensor, "codes bits"] | None:
        """The signs of every code, if codes have any."""
        if not self.is_lookup_free:
            return None
        num_bits: int = self.network.config["num_bits"]
        return code_bits(torch.arange(self.num_codes), num_bits)
