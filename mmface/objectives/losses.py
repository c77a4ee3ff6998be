"""A loss as a sum of named, weighted terms, each of them one value a sample.

A new term is a subclass of `LossTerm` with an `error`; a new weighting is a class with a
`__call__`. A config names either by its `_target_` in `configs/objective/`.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Float, Float32
from torch import Tensor

from mmface.core.command_line import check_number

LOSS = "loss"
"""Name of the total among a task's losses; a term's is `loss/` and the term's name."""


@dataclass(frozen=True)
class Corrupted:
    """Noisy latents, the target, and the time in [0, 1000) that the model receives; all float32.

    `signal_to_noise` is the ratio of their variances.
    """

    noisy_latents: Float32[Tensor, " batch *shape"]
    target: Float32[Tensor, " batch *shape"]
    timestep: Float32[Tensor, " batch"]
    signal_to_noise: Float32[Tensor, " batch"]


@runtime_checkable
class Weighting(Protocol):
    """How much each sample counts in a term."""

    def __call__(self, corrupted: Corrupted) -> Float32[Tensor, " batch"]:
        """Return the factor of each sample's error."""
        ...


@dataclass(frozen=True)
class MinSnr:
    """min(SNR, gamma) / SNR, for a model that predicts the noise (arXiv 2303.09556)."""

    gamma: float = 5.0

    def __post_init__(self) -> None:
        """Raise ValueError if gamma is not above 0."""
        if not self.gamma > 0:
            raise ValueError(f"gamma must be above 0, got {self.gamma}; the paper uses 5.0.")

    def __call__(self, corrupted: Corrupted) -> Float32[Tensor, " batch"]:
        """Return min(SNR, gamma) / SNR."""
        ratio = corrupted.signal_to_noise
        return ratio.clamp(max=self.gamma) / ratio


@dataclass(frozen=True)
class LossTerm(ABC):
    """One term of an objective's loss, with a factor and the `weighting` of each sample."""

    weight: float = 1.0
    weighting: Weighting | None = None

    def __post_init__(self) -> None:
        """Raise ValueError unless the weight is a number."""
        check_number("weight", self.weight, 0)
        if self.weighting is not None and not isinstance(self.weighting, Weighting):
            raise ValueError(
                f"weighting must be null or a class's instance, got {self.weighting!r}."
            )

    @abstractmethod
    def error(
        self, prediction: Float[Tensor, " batch *shape"], corrupted: Corrupted
    ) -> Float32[Tensor, " batch"]:
        """Return the error of each sample, before any weight."""

    def __call__(
        self, prediction: Float[Tensor, " batch *shape"], corrupted: Corrupted
    ) -> Float32[Tensor, " batch"]:
        """Return the weighted error of each sample."""
        error = self.error(prediction, corrupted)
        if self.weighting is not None:
            error = self.weighting(corrupted) * error
        return self.weight * error


@dataclass(frozen=True)
class SquaredError(LossTerm):
    """Mean squared error of the prediction."""

    def error(
        self, prediction: Float[Tensor, " batch *shape"], corrupted: Corrupted
    ) -> Float32[Tensor, " batch"]:
        """Return the mean of its squares, in float32."""
        return (prediction.float() - corrupted.target).square().flatten(1).mean(1)


def summed(terms: Mapping[str, Float[Tensor, " batch"]]) -> dict[str, Float[Tensor, " batch"]]:
    """Add up weighted per-sample terms as `loss`, and each as `loss/<name>`, detached for logs."""
    first, *others = terms.values()
    total = first
    for term in others:
        total = total + term
    return {LOSS: total} | {f"{LOSS}/{name}": term.detach() for name, term in terms.items()}
