"""The finish of an autoencoder: a discriminator that asks for the texture of true pictures."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from mmface.core.command_line import check_number, check_whole
from mmface.objectives.losses import LOSS, summed
from mmface.objectives.pictures import PictureTerm
from mmface.training.components import Autoencoding


class PatchDiscriminator(nn.Sequential):
    """Three strided convolutions that judge patches of 22 pixels: [B, 3, H, W] -> [B, 1, h, w]."""

    def __init__(self, channels: int = 24) -> None:
        """Build it; `channels` are those of the first convolution."""
        check_whole("channels", channels, 1)
        super().__init__(
            nn.Conv2d(3, channels, 4, 2, 1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(channels, 2 * channels, 4, 2, 1),
            nn.GroupNorm(1, 2 * channels),
            nn.LeakyReLU(0.2),
            nn.Conv2d(2 * channels, 1, 4, 1, 1),
        )


class AdversarialAutoencoding(Autoencoding):
    """Autoencoding with a hinge loss of a discriminator that learns beside the autoencoder.

    One optimizer trains both: the autoencoder's term sees the discriminator's weights detached,
    the discriminator's sees the decoded pictures detached.
    """

    def __init__(
        self,
        vae: AutoencoderKL,
        pictures: str | Path,
        kl_weight: float = 1e-4,
        edge_weight: float = 1.0,
        export_dtype: str = "float32",
        terms: Mapping[str, PictureTerm] | None = None,
        adversarial_weight: float = 0.05,
    ) -> None:
        """Set up as `Autoencoding`; `adversarial_weight` is that of the discriminator's verdict."""
        super().__init__(vae, pictures, kl_weight, edge_weight, export_dtype, terms)
        check_number("adversarial_weight", adversarial_weight, 0)
        self.adversarial_weight = adversarial_weight
        self.trained = nn.ModuleDict({"vae": vae, "discriminator": PatchDiscriminator()})

    @property
    def product(self) -> AutoencoderKL:
        """The autoencoder without the discriminator."""
        vae: AutoencoderKL = self.trained["vae"]
        return vae

    def losses(
        self, batch: Mapping[str, Any], decoded: Tensor, terms: dict[str, Tensor]
    ) -> dict[str, Float[Tensor, " batch"]]:
        """Add the verdict, and what the discriminator learns from."""
        judge = self.trained["discriminator"]
        frozen = {name: weight.detach() for name, weight in judge.named_parameters()}
        verdict = functional_call(judge, frozen, (decoded,))
        terms["adversarial"] = -self.adversarial_weight * verdict.mean((1, 2, 3))
        found = summed(terms)
        true, false = judge(batch["pixels"]), judge(decoded.detach())
        lesson = (F.relu(1 - true) + F.relu(1 + false)).mean((1, 2, 3))
        found[LOSS] = found[LOSS] + lesson
        return found | {f"{LOSS}/discriminator": torch.Tensor.detach(lesson)}
