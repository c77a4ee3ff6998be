"""Sketches of pictures, dark lines on white: a filter without weights, and the paper's U2-Net."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from mmface.annotation.u2net import U2Net
from mmface.conditions import SKETCH_POLARITIES
from mmface.core.files import file_sha256
from mmface.core.sources import read_weights

POLARITY = SKETCH_POLARITIES[0]
"""How every sketch of this module is drawn, as a manifest records it."""

_DARK = 0.1  # added before the logarithm, or the grain of shadows would be drawn


@dataclass(frozen=True)
class PencilSketch:
    """Flow-guided XDoG (Winnemoeller et al. 2012, Computers & Graphics 36/6): no weights.

    A difference of Gaussians of the logarithm, so that a shadow is drawn like a light place, is
    averaged along the lines, which joins what noise has broken; a soft threshold makes strokes of
    it. The paper's filled dark areas are left out: a pencil drawing has lines alone.

        Standard deviations: `line_width` of the inner Gaussian and `flow_width` of the structure
            tensor's smoothing, as fractions of the shorter side, so that a picture gives the same
            drawing at every resolution; `stroke_length`, of the average along a line, in inner
            deviations. Paper stays white up to `threshold`, a difference of log brightness;
            `hardness` is how fast a line turns black above it.
    """

    line_width: float = 0.003
    threshold: float = 0.01
    hardness: float = 40.0
    flow_width: float = 0.006
    stroke_length: float = 3.0
    device: str = "cpu"

    polarity = POLARITY

    @property
    def made_by(self) -> dict[str, float | str]:
        """What decides the drawing, for a record of it."""
        settings = {name: value for name, value in vars(self).items() if name != "device"}
        return {"kind": "flow-guided XDoG"} | settings

    @torch.no_grad()
    def __call__(
        self, pictures: Sequence[UInt8[np.ndarray, "_ _ 3"]]
    ) -> list[UInt8[np.ndarray, "_ _"]]:
        """Draw RGB pictures of any sizes in pencil, in grey."""
        return [self._draw(picture) for picture in pictures]

    def _draw(self, picture: np.ndarray) -> np.ndarray:
        values = torch.from_numpy(picture.astype(np.float32) / 255).to(self.device)
        pixels = values.permute(2, 0, 1)[None]
        tone = torch.log(pixels + _DARK)
        sigma = self.line_width * min(picture.shape[:2])
        tangent = _line_directions(tone, self.flow_width * min(picture.shape[:2]))
        # A line stands where any of the colours is darker than around it.
        darker = (_blurred(tone, 1.6 * sigma) - _blurred(tone, sigma)).amax(1, keepdim=True)
        darker = _averaged_along(darker, tangent, self.stroke_length * sigma)
        ink = torch.tanh(self.hardness * (darker - self.threshold).clamp(min=0))
        paper = 1 - _averaged_along(ink, tangent, sigma).clamp(0, 1)
        return (paper[0, 0] * 255).round().to(torch.uint8).cpu().numpy()


class U2NetPortrait:
    """The paper's sketches: U2-Net trained on portrait drawings (arXiv 2005.09007).

    The preprocessing is that of the published test script.
    """

    polarity = POLARITY
    input_size = 512
    _mean, _std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

    def __init__(self, model: U2Net, weights: str = "", device: str = "cpu") -> None:
        self.model = model.eval().to(device)
        self.weights, self.device = weights, device

    @classmethod
    def from_file(
        cls, path: str | Path, sha256: str | None = None, device: str = "cpu"
    ) -> "U2NetPortrait":
        """Load the published `u2net_portrait.pth`, or a safetensors copy of it.

        ValueError if its SHA-256 is not the given one, or it holds no weights of U2-Net.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} does not exist; u2net_portrait.pth is linked from the README of "
                "github.com/xuebinqin/U-2-Net, or take the pencil, which needs no weights"
            )
        digest = file_sha256(path)
        if sha256 is not None and digest != sha256.lower():
            raise ValueError(f"{path} has the SHA-256 {digest}, not {sha256.lower()}: get it again")
        with torch.device("meta"):
            model = U2Net()
        try:
            # Weights that were saved from data parallel training carry a prefix.
            found = {name.removeprefix("module."): w for name, w in read_weights(path).items()}
            model.load_state_dict(found, assign=True)
        except RuntimeError as error:
            reason = str(error).splitlines()[-1].strip()[:200]
            raise ValueError(f"{path} holds no weights of U2-Net: {reason}") from None
        return cls(model, digest, device)

    @property
    def made_by(self) -> dict[str, float | str]:
        """What decides the drawing, for a record of it."""
        return {"kind": "U2-Net portrait", "weights": self.weights}

    @torch.no_grad()
    def __call__(
        self, pictures: Sequence[UInt8[np.ndarray, "_ _ 3"]]
    ) -> list[UInt8[np.ndarray, "_ _"]]:
        """Draw RGB pictures of any sizes as grey portraits, as one batch."""
        pixels = torch.stack([self._pixels(picture) for picture in pictures])
        drawn = 1 - self.model(pixels.to(self.device)).float()
        sketches = []
        for paper, picture in zip(drawn, pictures, strict=True):
            paper = (paper - paper.min()) / (paper.max() - paper.min()).clamp(min=1e-8)
            size = picture.shape[:2]
            full = F.interpolate(paper[None], size, mode="bilinear", align_corners=False)
            sketches.append((full[0, 0] * 255).round().to(torch.uint8).cpu().numpy())
        return sketches

    def _pixels(self, picture: np.ndarray) -> Float[Tensor, "3 height width"]:
        """Resize, divide by the picture's own brightest value, and normalise."""
        square = (self.input_size, self.input_size)
        resized = Image.fromarray(picture).resize(square, Image.Resampling.BILINEAR)
        values = torch.from_numpy(np.array(resized)).float()
        values = values / values.max().clamp(min=1)
        return ((values - torch.tensor(self._mean)) / torch.tensor(self._std)).permute(2, 0, 1)


def _blurred(
    values: Float[Tensor, "batch channels height width"], sigma: float
) -> Float[Tensor, "batch channels height width"]:
    """Convolve with a Gaussian of `sigma` pixels, the border repeated outside."""
    radius = math.ceil(3 * sigma)
    offsets = torch.arange(-radius, radius + 1, device=values.device)
    taps = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = (taps / taps.sum()).expand(values.shape[1], 1, 1, -1)
    groups = values.shape[1]
    wide = F.pad(values, (radius, radius, 0, 0), mode="replicate")
    high = F.pad(F.conv2d(wide, kernel, groups=groups), (0, 0, radius, radius), mode="replicate")
    return F.conv2d(high, kernel.transpose(-1, -2), groups=groups)


def _line_directions(
    tone: Float[Tensor, "1 3 height width"], sigma: float
) -> Float[Tensor, "1 2 height width"]:
    """Give the unit vector (x, y) along the nearest lines: the structure tensor's minor axis."""
    # Slopes are taken at a fixed share of the smoothing, or grain would turn the directions.
    smooth = F.pad(_blurred(tone, sigma / 4), (1, 1, 1, 1), mode="replicate")
    slope_x = (smooth[..., 1:-1, 2:] - smooth[..., 1:-1, :-2]) / 2
    slope_y = (smooth[..., 2:, 1:-1] - smooth[..., :-2, 1:-1]) / 2
    # Summed over the colours (Di Zenzo 1986), so that an edge between equal greys counts.
    products = torch.stack([slope_x**2, slope_y**2, slope_x * slope_y], dim=1).sum(2)
    xx, yy, xy = _blurred(products, sigma).unbind(1)
    angle = 0.5 * torch.atan2(2 * xy, xx - yy) + math.pi / 2
    return torch.stack([angle.cos(), angle.sin()], dim=1)


def _averaged_along(
    values: Float[Tensor, "1 1 height width"],
    direction: Float[Tensor, "1 2 height width"],
    sigma: float,
) -> Float[Tensor, "1 1 height width"]:
    """Average with Gaussian weights of `sigma` pixels along a field of directions, both ways."""
    height, width = values.shape[-2:]
    axes = [torch.arange(count, device=values.device) for count in (height, width)]
    rows, columns = torch.meshgrid(*axes, indexing="ij")
    origin = torch.stack([columns, rows], dim=-1)[None].float()
    ahead = direction.movedim(1, -1)
    total, weights = values.clone(), 1.0
    num_steps = 4
    step = 3 * sigma / num_steps
    for sign in (1, -1):
        place, heading = origin, sign * ahead
        for number in range(1, num_steps + 1):
            place = place + step * heading
            # A direction has no sign: each step goes on the way that it came.
            turned = _sampled(direction, place).movedim(1, -1)
            heading = torch.where((turned * heading).sum(-1, keepdim=True) < 0, -turned, turned)
            weight = math.exp(-0.5 * (number * step / sigma) ** 2)
            total = total + weight * _sampled(values, place)
            weights += weight
    return total / weights


def _sampled(
    values: Float[Tensor, "1 channels height width"], place: Float[Tensor, "1 height width 2"]
) -> Float[Tensor, "1 channels height width"]:
    """Read maps at places (x, y) in pixels, the border repeated outside."""
    extent = place.new_tensor([values.shape[-1], values.shape[-2]])
    grid = (2 * place + 1) / extent - 1
    return F.grid_sample(values, grid, padding_mode="border", align_corners=False)
