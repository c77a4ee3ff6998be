"""LPIPS: how far two pictures are apart in the layers of a classifier (arXiv 1801.03924).

Version 0.1 with its learnt layer weights, which torchmetrics brings. The trunk is torchvision's
AlexNet or VGG16, built here so that torchvision need not be installed; its weights are a download.
Against a real photograph the distance punishes every face but that one: it is no measure of
quality. It depends on resolution, so compare at one size.
"""

import importlib.resources
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float32, UInt8
from torch import Tensor, nn

from mmface.evaluation.backbones import UNTRAINED, hash_weights
from mmface.evaluation.per_picture import PerPictureMetric
from mmface.evaluation.preprocessing import unit_interval

_EPSILON = 1e-10
_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)


@dataclass(frozen=True)
class TrunkSpec:
    """A classifier's layers up to the last one that LPIPS reads.

    Attributes:
        convolutions: channels, kernel, stride and padding of each; None is a pool of 2.
        pool: kernel of the pools.
        url: torchvision's weights.
    """

    convolutions: tuple[tuple[int, int, int, int] | None, ...]
    pool: int
    url: str


def _vgg16() -> tuple[tuple[int, int, int, int] | None, ...]:
    layers: list[tuple[int, int, int, int] | None] = []
    for width, depth in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        layers += [(width, 3, 1, 1)] * depth + [None]
    return tuple(layers[:-1])


TRUNKS: dict[str, TrunkSpec] = {
    "alex": TrunkSpec(
        convolutions=(
            (64, 11, 4, 2),
            None,
            (192, 5, 1, 2),
            None,
            (384, 3, 1, 1),
            (256, 3, 1, 1),
            (256, 3, 1, 1),
        ),
        pool=3,
        url="https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
    ),
    "vgg": TrunkSpec(
        convolutions=_vgg16(),
        pool=2,
        url="https://download.pytorch.org/models/vgg16-397923af.pth",
    ),
}
"""The trunks by LPIPS's names. AlexNet is the metric's default, VGG16 was meant for training."""

_TAPS = {"alex": (1, 4, 7, 9, 11), "vgg": (3, 8, 15, 22, 29)}


class PerceptualNetwork(nn.Module):
    """The distance itself, on pictures in [-1, 1]."""

    shift: Tensor
    scale: Tensor

    def __init__(self, trunk: str = "alex") -> None:
        """Build the trunk with random weights, and read the learnt weights of its layers.

        Args:
            trunk: a name in `TRUNKS`.

        Raises:
            ValueError: if there is no such trunk.
        """
        super().__init__()
        if trunk not in TRUNKS:
            raise ValueError(f"LPIPS has no trunk {trunk!r}; take one of {', '.join(TRUNKS)}")
        self.name = f"{UNTRAINED}lpips-0.1-{trunk}"
        self.trunk = trunk
        self.features = _build(TRUNKS[trunk])
        self.layer_weights = nn.ParameterList(_layer_weights(trunk))
        self.register_buffer("shift", torch.tensor(_SHIFT).view(3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor(_SCALE).view(3, 1, 1), persistent=False)
        self.eval().requires_grad_(False)

    @classmethod
    def from_weights(
        cls, trunk: str = "alex", path: str | Path | None = None
    ) -> "PerceptualNetwork":
        """Build the distance with torchvision's trained trunk.

        Args:
            trunk: a name in `TRUNKS`.
            path: torchvision's file; None takes it from torch's hub cache, or downloads it.

        Returns:
            The distance.

        Raises:
            ValueError: if the file holds another network's weights.
            OSError: if there is no such file, or the download fails.
        """
        network = cls(trunk)
        if path is None:
            weights = torch.hub.load_state_dict_from_url(
                TRUNKS[trunk].url, map_location="cpu", check_hash=True, weights_only=True
            )
        else:
            weights = torch.load(path, map_location="cpu", weights_only=True)
        prefix = "features."
        kept = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
        try:
            network.features.load_state_dict(kept)
        except RuntimeError as error:
            raise ValueError(
                f"{path} does not hold the {trunk} trunk; take {TRUNKS[trunk].url}"
            ) from error
        network.name = f"lpips-0.1-{trunk}"
        return network

    @property
    def protocol(self) -> str:
        """Version, trunk and weights."""
        return f"{self.name}/sha256:{hash_weights(self)[:12]}"

    def forward(
        self,
        images: Float32[Tensor, "batch 3 height width"],
        references: Float32[Tensor, "batch 3 height width"],
    ) -> Float32[Tensor, " batch"]:
        """Sum, over the layers, of weighted squared differences of unit-length features."""
        distance = torch.zeros(len(images), device=images.device)
        pairs = zip(self._layers(images), self._layers(references), strict=True)
        for weight, (one, other) in zip(self.layer_weights, pairs, strict=True):
            difference = (_unit(one) - _unit(other)).square()
            distance = distance + F.conv2d(difference, weight).mean((1, 2, 3))
        return distance

    def _layers(self, pixels: Tensor) -> list[Tensor]:
        x = (pixels - self.shift) / self.scale
        kept = []
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in _TAPS[self.trunk]:
                kept.append(x)
        return kept


def _build(spec: TrunkSpec) -> nn.Sequential:
    layers: list[nn.Module] = []
    channels = 3
    for convolution in spec.convolutions:
        if convolution is None:
            layers.append(nn.MaxPool2d(spec.pool, 2))
        else:
            width, kernel, stride, padding = convolution
            layers += [nn.Conv2d(channels, width, kernel, stride, padding), nn.ReLU()]
            channels = width
    return nn.Sequential(*layers)


def _layer_weights(trunk: str) -> Sequence[Tensor]:
    folder = importlib.resources.files("torchmetrics.functional.image") / "lpips_models"
    with importlib.resources.as_file(folder / f"{trunk}.pth") as path:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    return [weights[f"lin{index}.model.1.weight"].float() for index in range(len(_TAPS[trunk]))]


def _unit(x: Tensor) -> Tensor:
    return x / (x.square().sum(1, keepdim=True).sqrt() + _EPSILON)


class PerceptualDistance(PerPictureMetric):
    """LPIPS between pictures and their references; 0 for equal ones."""

    higher_is_better = False

    def __init__(self, network: nn.Module) -> None:
        """Begin without pictures.

        Args:
            network: distance of two batches of pictures in [-1, 1], one value a picture;
                `PerceptualNetwork`, or `lpips.LPIPS` itself.
        """
        super().__init__()
        self.network = network

    @torch.no_grad()
    def update(
        self,
        images: UInt8[Tensor, "batch 3 height width"],
        references: UInt8[Tensor, "batch 3 height width"],
    ) -> None:
        """Compare pictures with their references, both uint8 and of one size."""
        distances = self.network(unit_interval(images) * 2 - 1, unit_interval(references) * 2 - 1)
        self.add_values(distances.flatten())
