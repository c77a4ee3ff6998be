"""U2-Net (arXiv 2005.09007), the network of the paper's sketches.

A U of U's: six encoder stages and five decoder stages, each a small U itself. Modules have the
names of the published weights, so that their state dict loads as it is.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


def _resized(values: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(values, like.shape[-2:], mode="bilinear", align_corners=False)


class ConvBlock(nn.Module):
    """3x3 convolution, batch norm, ReLU."""

    def __init__(self, in_channels: int, out_channels: int, dilation: int = 1) -> None:
        super().__init__()
        self.conv_s1 = nn.Conv2d(in_channels, out_channels, 3, padding=dilation, dilation=dilation)
        self.bn_s1 = nn.BatchNorm2d(out_channels)

    def forward(
        self, values: Float[Tensor, "batch in_channels height width"]
    ) -> Float[Tensor, "batch out_channels height width"]:
        """Apply the block."""
        return F.relu(self.bn_s1(self.conv_s1(values)))


class ResidualU(nn.Module):
    """A residual U-block: RSU-`depth` where maps are pooled between levels."""

    def __init__(self, depth: int, in_channels: int, mid_channels: int, out_channels: int) -> None:
        """Build a U of `depth` levels, the dilated bottom one included."""
        super().__init__()
        self.depth = depth
        self.rebnconvin = ConvBlock(in_channels, out_channels)
        for level in range(1, depth + 1):
            channels = out_channels if level == 1 else mid_channels
            block = ConvBlock(channels, mid_channels, self._dilation(level))
            self.add_module(f"rebnconv{level}", block)
        for level in range(depth - 1, 0, -1):
            channels = out_channels if level == 1 else mid_channels
            block = ConvBlock(2 * mid_channels, channels, self._decoder_dilation(level))
            self.add_module(f"rebnconv{level}d", block)

    def _dilation(self, level: int) -> int:
        return 2 if level == self.depth else 1

    def _decoder_dilation(self, level: int) -> int:
        return 1

    def _down(self, values: Tensor, level: int) -> Tensor:
        """Bring maps from one level to the next; the bottom level stays at its neighbour's size."""
        if level >= self.depth - 1:
            return values
        return F.max_pool2d(values, 2, ceil_mode=True)

    def forward(
        self, values: Float[Tensor, "batch in_channels height width"]
    ) -> Float[Tensor, "batch out_channels height width"]:
        """Apply the U and add it to its input's projection."""
        start = self.rebnconvin(values)
        encoded, current = [], start
        for level in range(1, self.depth):
            encoded.append(self.get_submodule(f"rebnconv{level}")(current))
            current = self._down(encoded[-1], level)
        decoded = self.get_submodule(f"rebnconv{self.depth}")(current)
        for level in range(self.depth - 1, 0, -1):
            skip = encoded[level - 1]
            joined = torch.cat([_resized(decoded, skip), skip], dim=1)
            decoded = self.get_submodule(f"rebnconv{level}d")(joined)
        return decoded + start


class DilatedResidualU(ResidualU):
    """RSU-4F: four levels at one size, which widen their view by dilation instead of pooling."""

    def __init__(self, in_channels: int, mid_channels: int, out_channels: int) -> None:
        super().__init__(4, in_channels, mid_channels, out_channels)

    def _dilation(self, level: int) -> int:
        return 2 ** (level - 1)

    def _decoder_dilation(self, level: int) -> int:
        return 2 ** (level - 1)

    def _down(self, values: Tensor, level: int) -> Tensor:
        return values


class U2Net(nn.Module):
    """U2-Net for three channels in and one out; 44,009,869 parameters at the published width."""

    def __init__(self, width: int = 64) -> None:
        """Build the network; the published weights have a width of 64."""
        super().__init__()
        w, half, quarter = width, width // 2, width // 4
        self.stage1 = ResidualU(7, 3, half, w)
        self.stage2 = ResidualU(6, w, half, 2 * w)
        self.stage3 = ResidualU(5, 2 * w, w, 4 * w)
        self.stage4 = ResidualU(4, 4 * w, 2 * w, 8 * w)
        self.stage5 = DilatedResidualU(8 * w, 4 * w, 8 * w)
        self.stage6 = DilatedResidualU(8 * w, 4 * w, 8 * w)
        self.stage5d = DilatedResidualU(16 * w, 4 * w, 8 * w)
        self.stage4d = ResidualU(4, 16 * w, 2 * w, 4 * w)
        self.stage3d = ResidualU(5, 8 * w, w, 2 * w)
        self.stage2d = ResidualU(6, 4 * w, half, w)
        self.stage1d = ResidualU(7, 2 * w, quarter, w)
        for number, channels in enumerate((w, w, 2 * w, 4 * w, 8 * w, 8 * w), start=1):
            self.add_module(f"side{number}", nn.Conv2d(channels, 1, 3, padding=1))
        self.outconv = nn.Conv2d(6, 1, 1)

    def forward(
        self, pixels: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch 1 height width"]:
        """Fuse the six side outputs of normalised pictures into a map in [0, 1]."""
        encoded, current = [], pixels
        for number in range(1, 7):
            encoded.append(self.get_submodule(f"stage{number}")(current))
            current = F.max_pool2d(encoded[-1], 2, ceil_mode=True)
        decoded = [encoded[-1]]
        for number in range(5, 0, -1):
            skip = encoded[number - 1]
            joined = torch.cat([_resized(decoded[-1], skip), skip], dim=1)
            decoded.append(self.get_submodule(f"stage{number}d")(joined))
        sides = [
            self.get_submodule(f"side{number}")(maps)
            for number, maps in enumerate(reversed(decoded), start=1)
        ]
        fused = self.outconv(torch.cat([_resized(side, pixels) for side in sides], dim=1))
        return fused.sigmoid()
