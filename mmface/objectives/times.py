"""Which noise levels a training sees: maps of a uniform draw for each sample.

A noise level lies in [0, 1]; 0 is data, 1 is noise. The draw is keyed on (seed, step, place), so
that noise levels depend neither on a resume nor on the number of processes.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float32
from torch import Tensor

from mmface.core.command_line import check_number, check_whole


@runtime_checkable
class TimeSampling(Protocol):
    """A distribution of noise levels."""

    def __call__(self, uniform: Float32[Tensor, " batch"]) -> Float32[Tensor, " batch"]:
        """Map uniform draws in [0, 1] to noise levels in [0, 1], never falling."""
        ...


@dataclass(frozen=True)
class UniformTime:
    """All noise levels are equally likely."""

    def __call__(self, uniform: Float32[Tensor, " batch"]) -> Float32[Tensor, " batch"]:
        """Return the draws as they are."""
        return uniform


@dataclass(frozen=True)
class LogitNormalTime:
    """Mostly middle noise levels: the sigmoid of a normal draw (arXiv 2403.03206, section 3.1).

    A mean above 0 leans towards noise.
    """

    mean: float = 0.0
    std: float = 1.0

    def __call__(self, uniform: Float32[Tensor, " batch"]) -> Float32[Tensor, " batch"]:
        """Return sigmoid(mean + std x the normal quantile of the draw)."""
        return torch.sigmoid(self.mean + self.std * torch.special.ndtri(uniform))


@dataclass(frozen=True)
class FewStepsTime:
    """Mostly the noise levels that a sampler of few Euler steps asks for.

    A share `first` is at pure noise, a share `grid` is spread evenly over the levels 1, 1 - 1/n,
    ..., 1/n of n = `steps`, and the rest is uniform.
    """

    first: float = 0.4
    grid: float = 0.4
    steps: int = 4

    def __post_init__(self) -> None:
        """Raise ValueError unless the shares are in [0, 1]."""
        check_whole("steps", self.steps, 1)
        check_number("first", self.first, 0, 1)
        check_number("grid", self.grid, 0, 1 - self.first)

    def __call__(self, uniform: Float32[Tensor, " batch"]) -> Float32[Tensor, " batch"]:
        """Return the quantiles of the mixture."""
        rest, level = 1 - self.first - self.grid, torch.zeros_like(uniform)
        reached = 0.0  # share of the draws at or below the levels so far
        for number in range(1, self.steps + 1):
            top, below = number / self.steps, (number - 1) / self.steps
            between = rest / self.steps
            inside = below + (uniform - reached) / max(between, 1e-12) / self.steps
            level = torch.where(uniform >= reached, inside.clamp(below, top), level)
            reached += between
            level = torch.where(uniform >= reached, top, level)
            reached += self.grid / self.steps
        return level


@dataclass(frozen=True)
class ShiftedTime:
    """Noisier levels for larger pictures, in which the same noise hides less (2403.03206, 5.3.2).

    At `base_size` nothing is shifted.
    """

    image_size: int
    base_size: int = 256
    base: TimeSampling = UniformTime()

    def __call__(self, uniform: Float32[Tensor, " batch"]) -> Float32[Tensor, " batch"]:
        """Return s n / (1 + (s - 1) n) of each level n, where s is the ratio of the sides."""
        level, shift = self.base(uniform), self.image_size / self.base_size
        return shift * level / (1 + (shift - 1) * level)
