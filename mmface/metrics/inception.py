"""The Inception network of FID, as plain layers: no torchvision is needed.

Inception v3 (Szegedy et al., arXiv 1512.00567) as TensorFlow's 2015-12-05 graph computes it: unlike
torchvision's, average pools leave the padding out of their count, and the last block pools by
maximum. Parameter names are those of pytorch-fid's `pt_inception-2015-12-05-6726825d.pth`.

    [B, 3, 299, 299] -> stem [B, 192, 35, 35] -> 5b..5d [B, 288, 35, 35]
        -> 6a..6e [B, 768, 17, 17] -> 7a..7c [B, 2048, 8, 8] -> mean [B, 2048]
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

NUM_FEATURES = 2048
"""Width of the pooled features."""


class ConvNorm(nn.Module):
    """A convolution without bias, batch normalisation and ReLU."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int | tuple[int, int] = 1,
        stride: int = 1,
        pad: bool = True,
    ) -> None:
        """A stride of 2 goes without padding."""
        super().__init__()
        sides = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (sides[0] // 2, sides[1] // 2) if pad and stride == 1 else (0, 0)
        self.conv = nn.Conv2d(in_channels, out_channels, sides, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out_channels, eps=0.001)

    def forward(self, x: Float[Tensor, "b c_in h w"]) -> Float[Tensor, "b c_out h2 w2"]:
        """Convolve, normalise, rectify."""
        return F.relu(self.bn(self.conv(x)))


def _mean_pool(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


class MixedA(nn.Module):
    """Branches of 1x1, 5x5 and two 3x3 convolutions, and a mean pool, at 35x35."""

    def __init__(self, in_channels: int, pool_channels: int) -> None:
        super().__init__()
        self.branch1x1 = ConvNorm(in_channels, 64)
        self.branch5x5_1 = ConvNorm(in_channels, 48)
        self.branch5x5_2 = ConvNorm(48, 64, 5)
        self.branch3x3dbl_1 = ConvNorm(in_channels, 64)
        self.branch3x3dbl_2 = ConvNorm(64, 96, 3)
        self.branch3x3dbl_3 = ConvNorm(96, 96, 3)
        self.branch_pool = ConvNorm(in_channels, pool_channels)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h w"]:
        """Join the branches on channels."""
        five = self.branch5x5_2(self.branch5x5_1(x))
        three = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch1x1(x), five, three, self.branch_pool(_mean_pool(x))], 1)


class MixedB(nn.Module):
    """From 35x35 to 17x17."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.branch3x3 = ConvNorm(in_channels, 384, 3, stride=2)
        self.branch3x3dbl_1 = ConvNorm(in_channels, 64)
        self.branch3x3dbl_2 = ConvNorm(64, 96, 3)
        self.branch3x3dbl_3 = ConvNorm(96, 96, 3, stride=2)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h2 w2"]:
        """Join the branches on channels."""
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, F.max_pool2d(x, 3, stride=2)], 1)


class MixedC(nn.Module):
    """Branches of 1x7 and 7x1 convolutions, and a mean pool, at 17x17."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch1x1 = ConvNorm(768, 192)
        self.branch7x7_1 = ConvNorm(768, width)
        self.branch7x7_2 = ConvNorm(width, width, (1, 7))
        self.branch7x7_3 = ConvNorm(width, 192, (7, 1))
        self.branch7x7dbl_1 = ConvNorm(768, width)
        self.branch7x7dbl_2 = ConvNorm(width, width, (7, 1))
        self.branch7x7dbl_3 = ConvNorm(width, width, (1, 7))
        self.branch7x7dbl_4 = ConvNorm(width, width, (7, 1))
        self.branch7x7dbl_5 = ConvNorm(width, 192, (1, 7))
        self.branch_pool = ConvNorm(768, 192)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Join the branches on channels."""
        seven = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return torch.cat([self.branch1x1(x), seven, double, self.branch_pool(_mean_pool(x))], 1)


class MixedD(nn.Module):
    """From 17x17 to 8x8."""

    def __init__(self) -> None:
        super().__init__()
        self.branch3x3_1 = ConvNorm(768, 192)
        self.branch3x3_2 = ConvNorm(192, 320, 3, stride=2)
        self.branch7x7x3_1 = ConvNorm(768, 192)
        self.branch7x7x3_2 = ConvNorm(192, 192, (1, 7))
        self.branch7x7x3_3 = ConvNorm(192, 192, (7, 1))
        self.branch7x7x3_4 = ConvNorm(192, 192, 3, stride=2)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h2 w2"]:
        """Join the branches on channels."""
        seven = self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x)))
        three = self.branch3x3_2(self.branch3x3_1(x))
        return torch.cat([three, self.branch7x7x3_4(seven), F.max_pool2d(x, 3, stride=2)], 1)


class MixedE(nn.Module):
    """Branches that fork into 1x3 and 3x1 convolutions, and a mean pool, at 8x8."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.branch1x1 = ConvNorm(in_channels, 320)
        self.branch3x3_1 = ConvNorm(in_channels, 384)
        self.branch3x3_2a = ConvNorm(384, 384, (1, 3))
        self.branch3x3_2b = ConvNorm(384, 384, (3, 1))
        self.branch3x3dbl_1 = ConvNorm(in_channels, 448)
        self.branch3x3dbl_2 = ConvNorm(448, 384, 3)
        self.branch3x3dbl_3a = ConvNorm(384, 384, (1, 3))
        self.branch3x3dbl_3b = ConvNorm(384, 384, (3, 1))
        self.branch_pool = ConvNorm(in_channels, 192)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h w"]:
        """Join the branches on channels."""
        three = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        forks = [
            self.branch3x3_2a(three),
            self.branch3x3_2b(three),
            self.branch3x3dbl_3a(double),
            self.branch3x3dbl_3b(double),
        ]
        return torch.cat([self.branch1x1(x), *forks, self.branch_pool(self._pool(x))], 1)

    def _pool(self, x: Tensor) -> Tensor:
        return _mean_pool(x)


class LastMixedE(MixedE):
    """The last block, which pools by maximum."""

    def _pool(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x, 3, stride=1, padding=1)


class FidInception(nn.Module):
    """Inception v3 up to its pooled features, with the 2015-12-05 graph's pools."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = ConvNorm(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = ConvNorm(32, 32, 3, pad=False)
        self.Conv2d_2b_3x3 = ConvNorm(32, 64, 3)
        self.Conv2d_3b_1x1 = ConvNorm(64, 80)
        self.Conv2d_4a_3x3 = ConvNorm(80, 192, 3, pad=False)
        self.Mixed_5b = MixedA(192, pool_channels=32)
        self.Mixed_5c = MixedA(256, pool_channels=64)
        self.Mixed_5d = MixedA(288, pool_channels=64)
        self.Mixed_6a = MixedB(288)
        self.Mixed_6b = MixedC(128)
        self.Mixed_6c = MixedC(160)
        self.Mixed_6d = MixedC(160)
        self.Mixed_6e = MixedC(192)
        self.Mixed_7a = MixedD()
        self.Mixed_7b = MixedE(1280)
        self.Mixed_7c = LastMixedE(2048)

    def forward(self, pixels: Float[Tensor, "b 3 299 299"]) -> Float[Tensor, "b 2048"]:
        """Pool the features of pictures in [-1, 1]."""
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(pixels)))
        x = F.max_pool2d(x, 3, stride=2)
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x))
        x = F.max_pool2d(x, 3, stride=2)
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x)))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))
        return x.mean((2, 3))
