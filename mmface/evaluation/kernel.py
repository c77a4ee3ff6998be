"""Maximum mean discrepancies between two sets of pictures: KID and CMMD.

Their estimates do not lean on N as the Frechet distance does: KID's is unbiased (arXiv 1801.01401),
and CMMD's kernel is so wide that its bias is small (arXiv 2401.09603).
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from mmface.evaluation.backbones import Backbone
from mmface.evaluation.feature_sets import FeatureSetMetric, chunks, require_width

CMMD_BANDWIDTH = 10.0
CMMD_SCALE = 1000.0


class KernelEstimate(NamedTuple):
    """A mean over subsets.

    Attributes:
        mean: mean of the subsets' estimates.
        std: their standard deviation.
    """

    mean: float
    std: float


def polynomial_mmd(
    real: Float64[Tensor, "n features"], generated: Float64[Tensor, "n features"]
) -> float:
    """The unbiased squared discrepancy with the kernel (x.y / d + 1)^3; may be below 0.

    Args:
        real: features of one set.
        generated: features of the other, as many.

    Returns:
        The estimate of arXiv 1801.01401, section 4.
    """
    count, width = real.shape

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.mT / width + 1) ** 3

    within = sum(
        (table.sum() - table.diagonal().sum()) / (count * (count - 1))
        for table in (kernel(real, real), kernel(generated, generated))
    )
    return float(within - 2 * kernel(real, generated).mean())


def kernel_distance(
    real: Float[Tensor, "n features"],
    generated: Float[Tensor, "m features"],
    num_subsets: int = 100,
    subset_size: int = 1000,
    seed: int = 0,
) -> KernelEstimate:
    """KID: the polynomial discrepancy, averaged over random subsets.

    Args:
        real: features of the real pictures.
        generated: features of the generated ones.
        num_subsets: how many subsets.
        subset_size: pictures of each kind in a subset; of smaller sets, all of the smaller one.
        seed: draws the subsets; the global random state is not touched.

    Returns:
        Mean and standard deviation over the subsets; the paper's units, without a factor of 1000.

    Raises:
        ValueError: if a set has fewer than two pictures, or the widths differ.
    """
    require_width(real, generated)
    size = min(subset_size, len(real), len(generated))
    if size < 2:
        raise ValueError(f"KID needs at least two pictures of each kind, not {size}")
    generator = torch.Generator().manual_seed(seed)
    real, generated = real.double(), generated.double()
    estimates = []
    for _ in range(num_subsets):
        chosen = [
            features[torch.randperm(len(features), generator=generator)[:size].to(features.device)]
            for features in (real, generated)
        ]
        estimates.append(polynomial_mmd(*chosen))
    values = torch.tensor(estimates, dtype=torch.float64)
    return KernelEstimate(float(values.mean()), float(values.std(correction=0)))


def gaussian_mmd(
    real: Float[Tensor, "n features"], generated: Float[Tensor, "m features"]
) -> float:
    """CMMD: the biased squared discrepancy with a Gaussian kernel of width 10, times 1000.

    Args:
        real: unit-length CLIP embeddings of the real pictures.
        generated: of the generated ones.

    Returns:
        The estimate of arXiv 2401.09603, section 4; 0 for equal sets.
    """
    require_width(real, generated)
    real, generated = real.double(), generated.double()
    pairs = ((real, real), (generated, generated), (real, generated))
    within_real, within_generated, across = (_mean_gaussian(x, y) for x, y in pairs)
    return CMMD_SCALE * max(within_real + within_generated - 2 * across, 0.0)


def _mean_gaussian(x: Float64[Tensor, "n d"], y: Float64[Tensor, "m d"]) -> float:
    total = 0.0
    for rows in chunks(x):
        squared = rows.square().sum(1, keepdim=True) + y.square().sum(1) - 2 * rows @ y.mT
        total += float(torch.exp(-squared / (2 * CMMD_BANDWIDTH**2)).sum())
    return total / math.prod((len(x), len(y)))


class KernelDistance(FeatureSetMetric):
    """KID (Binkowski et al., arXiv 1801.01401)."""

    higher_is_better = False

    def __init__(
        self, backbone: Backbone, num_subsets: int = 100, subset_size: int = 1000, seed: int = 0
    ) -> None:
        """Begin with two empty sets.

        Args:
            backbone: reads the pictures; Inception for the published metric.
            num_subsets: see `kernel_distance`.
            subset_size: see `kernel_distance`.
            seed: see `kernel_distance`.
        """
        super().__init__(backbone)
        self.num_subsets = num_subsets
        self.subset_size = subset_size
        self.seed = seed

    def compute(self) -> KernelEstimate:
        """Give mean and standard deviation over the subsets."""
        return kernel_distance(*self.feature_sets(), self.num_subsets, self.subset_size, self.seed)


class ClipDiscrepancy(FeatureSetMetric):
    """CMMD (Jayasumana et al., arXiv 2401.09603), with a `ClipBackbone`."""

    higher_is_better = False

    def compute(self) -> Float64[Tensor, ""]:
        """Give the discrepancy, times 1000."""
        return torch.tensor(gaussian_mmd(*self.feature_sets()), dtype=torch.float64)
