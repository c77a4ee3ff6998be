"""How close a picture is to the true one: SSIM, MS-SSIM and LPIPS.

None is a measure of quality: they punish every other face that fits the prompt and condition. They
depend on resolution, so compare at one size.
"""

import warnings
from abc import abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float32, Float64, UInt8
from torch import Tensor, nn

from mmface.core.files import weights_sha256
from mmface.core.sources import read_weights
from mmface.metrics.backbones import UNTRAINED
from mmface.metrics.metric import Column, PictureOrder, SampleMetric, Skipped, Values, register
from mmface.metrics.preprocessing import check_pictures, unit_interval

MIN_MULTISCALE_PX = 161
"""Shortest side that five scales of an 11-pixel window need."""
TRUNKS = {
    "alex": "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
    "vgg": "https://download.pytorch.org/models/vgg16-397923af.pth",
}
"""torchvision's weights by LPIPS's names. AlexNet is the default, VGG16 was meant for training."""

Images = UInt8[Tensor, "batch 3 height width"]


def structural_similarity(images: Images, references: Images) -> Float64[Tensor, " batch"]:
    """SSIM (Wang et al., 2004) with a Gaussian window of width 1.5, by `pytorch_msssim`.

    1 for equal pictures. Windows that hang over the border are left out, as in the paper's code.
    """
    pytorch_msssim = _pytorch_msssim()
    return _compared(pytorch_msssim.ssim, images, references)


def multiscale_structural_similarity(
    images: Images, references: Images
) -> Float64[Tensor, " batch"]:
    """MS-SSIM (Wang et al., 2003), five scales, by `pytorch_msssim`; 1 for equal pictures.

    ValueError if a side is shorter than `MIN_MULTISCALE_PX`.
    """
    height, width = images.shape[-2:]
    if min(height, width) < MIN_MULTISCALE_PX:
        raise ValueError(
            f"MS-SSIM needs sides of {MIN_MULTISCALE_PX} pixels for its five scales, not "
            f"{width}x{height}; report SSIM at this size"
        )
    return _compared(_pytorch_msssim().ms_ssim, images, references)


def _pytorch_msssim() -> Any:
    try:
        import pytorch_msssim
    except ImportError as error:
        raise ImportError(f"SSIM needs pip install 'mmface[eval]' ({error})") from None
    return pytorch_msssim


def _compared(
    measure: Callable[..., Tensor], images: Images, references: Images
) -> Float64[Tensor, " batch"]:
    check_pictures(images)
    check_pictures(references)
    # In float64, as variances are small differences of large sums; with a fixed range of values,
    # as one taken from the pictures would make a value depend on its batch.
    pair = images.double(), references.double()
    # Its own window holds float32, which moves a value by 1e-6.
    window = torch.exp(-(torch.arange(-5, 6, dtype=torch.float64) ** 2) / (2 * 1.5**2))
    window = (window / window.sum()).repeat(3, 1, 1, 1)
    values = measure(*pair, data_range=255, size_average=False, win=window)
    return values.cpu()


class PerceptualNetwork(nn.Module):
    """LPIPS 0.1 (arXiv 1801.03924): a distance in the layers of a classifier, by `lpips`."""

    def __init__(self, trunk: str = "alex") -> None:
        """Build the trunk with random weights; `lpips` brings the learnt weights of its layers."""
        super().__init__()
        if trunk not in TRUNKS:
            raise ValueError(f"LPIPS has no trunk {trunk!r}; take one of {', '.join(TRUNKS)}")
        try:
            import lpips
        except ImportError as error:
            raise ImportError(f"LPIPS needs pip install 'mmface[eval]' ({error})") from None
        self.name = f"{UNTRAINED}lpips-0.1-{trunk}"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # lpips calls torchvision by an old argument
            self.network = lpips.LPIPS(net=trunk, pnet_rand=True, verbose=False)
        self.eval().requires_grad_(False)

    @classmethod
    def from_weights(
        cls, trunk: str = "alex", path: str | Path | None = None
    ) -> "PerceptualNetwork":
        """Build the distance with torchvision's trained trunk.

        Without `path`, its file is taken from torch's hub cache, or downloaded.
        """
        network = cls(trunk)
        if path is None:
            weights = torch.hub.load_state_dict_from_url(
                TRUNKS[trunk], map_location="cpu", check_hash=True, weights_only=True
            )
        else:
            weights = read_weights(path)
        # lpips groups torchvision's `features` into slices, whose layers keep their numbers.
        layers = network.network.net
        own = {name: f"features.{name.split('.', 1)[1]}" for name in layers.state_dict()}
        try:
            layers.load_state_dict({name: weights[theirs] for name, theirs in own.items()})
        except (KeyError, RuntimeError) as error:
            raise ValueError(
                f"{path} does not hold the {trunk} trunk; take {TRUNKS[trunk]}"
            ) from error
        network.name = f"lpips-0.1-{trunk}"
        return network

    @property
    def protocol(self) -> str:
        """Version, trunk and weights."""
        return f"{self.name}/sha256:{weights_sha256(self.state_dict())[:12]}"

    @torch.no_grad()
    def forward(self, images: Images, references: Images) -> Float32[Tensor, " batch"]:
        """Compare pictures; 0 for equal ones."""
        pair = (unit_interval(images) * 2 - 1, unit_interval(references) * 2 - 1)
        distances: Tensor = self.network(*pair)
        return distances.flatten()


def true_pictures(orders: Sequence[PictureOrder], device: torch.device) -> Images:
    """Stack the pictures that orders should give."""
    stacked = np.stack([order.truth for order in orders])
    return torch.from_numpy(stacked).movedim(-1, 1).contiguous().to(device)


class _Similarity(SampleMetric):
    needs = frozenset({"picture", "truth"})

    @abstractmethod
    def compare(self, images: Images, references: Images) -> Tensor:
        """Return one value a picture."""

    def read(self, products: Images, orders: Sequence[PictureOrder]) -> list[Values]:
        (column,) = self.columns
        values = self.compare(products, true_pictures(orders, products.device))
        return [{column: value} for value in values.double().tolist()]


@register
class Ssim(_Similarity):
    """SSIM. The paper's column is headed SSIM and its text says multi-scale: see both."""

    name = "ssim"
    columns: ClassVar = {"ssim": Column("SSIM", "higher", 3)}
    protocol = "ssim/gaussian-11-1.5/range-1/windows-inside"

    def compare(self, images: Images, references: Images) -> Tensor:
        """Compare by structure."""
        return structural_similarity(images, references)


@register
class MultiScaleSsim(_Similarity):
    """MS-SSIM."""

    name = "ms_ssim"
    columns: ClassVar = {"ms_ssim": Column("MS-SSIM", "higher", 3)}
    protocol = "ms-ssim/5-scales/range-1/windows-inside"

    def check(self, order: PictureOrder) -> Skipped | None:
        """Five scales need large pictures."""
        size_px = min(order.truth.shape[:2])
        if size_px >= MIN_MULTISCALE_PX:
            return None
        reason = f"MS-SSIM needs {MIN_MULTISCALE_PX} px, pictures have {size_px} px"
        return Skipped(reason, "see SSIM")

    def compare(self, images: Images, references: Images) -> Tensor:
        """Compare by structure at five scales."""
        return multiscale_structural_similarity(images, references)


@register
class Lpips(_Similarity):
    """LPIPS with AlexNet."""

    name = "lpips"
    columns: ClassVar = {"lpips": Column("LPIPS", "lower", 3, charted=True)}
    trunk: ClassVar[str] = "alex"

    def __init__(self, weights: str | Path | None = None) -> None:
        """Name torchvision's file; None takes it from torch's hub cache, or downloads it."""
        self.weights = weights
        self.remedy = f"download {TRUNKS[self.trunk]} and give it with lpips_weights.{self.trunk}"
        self._network: PerceptualNetwork | None = None

    def load(self, device: torch.device) -> Skipped | None:
        """Load the trunk."""
        self._network = PerceptualNetwork.from_weights(self.trunk, self.weights).to(device)
        return None

    @property
    def protocol(self) -> str:
        """Version, trunk and weights."""
        return "" if self._network is None else self._network.protocol

    def compare(self, images: Images, references: Images) -> Any:
        """Compare in the layers of the trunk."""
        assert self._network is not None
        return self._network(images, references)


@register
class LpipsVgg(Lpips):
    """LPIPS with VGG16."""

    name = "lpips_vgg"
    columns: ClassVar = {"lpips_vgg": Column("LPIPS (VGG)", "lower", 3)}
    trunk = "vgg"
