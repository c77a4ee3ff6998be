r"""The Frechet distance between two sets of pictures: FID, and FDD on DINOv2's features.

    d = |mu_1 - mu_2|^2 + tr S_1 + tr S_2 - 2 tr (S_1 S_2)^(1/2)        (arXiv 1706.08500, eq. 6)

It is biased upwards by a term in 1/N: two sets from one distribution are at a distance above 0, so
distances of different N cannot be compared (arXiv 1911.07023). Sums are kept in float64.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float64, UInt8
from torch import Tensor
from torchmetrics import Metric

from mmface.evaluation.backbones import Backbone


@dataclass(frozen=True)
class FeatureStatistics:
    """What the Frechet distance needs of a set.

    Attributes:
        count: how many pictures.
        mean: mean of each feature.
        covariance: covariance of the features, divided by N - 1.
    """

    count: int
    mean: Float64[Tensor, " features"]
    covariance: Float64[Tensor, "features features"]

    @classmethod
    def of(cls, features: Float[Tensor, "n features"]) -> "FeatureStatistics":
        """Compute the statistics of features at hand.

        Args:
            features: one row a picture.

        Returns:
            Their statistics, in float64.
        """
        _require_two(len(features))
        features = features.double()
        mean = features.mean(0)
        centred = features - mean
        return cls(len(features), mean, centred.mT @ centred / (len(features) - 1))

    @classmethod
    def from_sums(
        cls,
        count: int,
        total: Float64[Tensor, " features"],
        products: Float64[Tensor, "features features"],
    ) -> "FeatureStatistics":
        """Compute the statistics of streamed sums.

        Args:
            count: how many pictures.
            total: sum of the features.
            products: sum of the features' outer products.

        Returns:
            The statistics.
        """
        _require_two(count)
        mean = total / count
        return cls(count, mean, (products - count * mean.outer(mean)) / (count - 1))

    def save(self, path: str | Path) -> None:
        """Write `mu`, `sigma` and `count` as the `.npz` that pytorch-fid reads."""
        # numpy adds a suffix to a name without one; an open file is taken as it is.
        aside = Path(path).with_name(f".{Path(path).name}.tmp")
        with aside.open("wb") as file:
            np.savez(
                file,
                mu=self.mean.cpu().numpy(),
                sigma=self.covariance.cpu().numpy(),
                count=self.count,
            )
        aside.rename(path)

    @classmethod
    def load(cls, path: str | Path) -> "FeatureStatistics":
        """Read statistics that `save` wrote.

        Args:
            path: the `.npz` file; nothing in it is unpickled.

        Returns:
            The statistics.

        Raises:
            ValueError: if an array is missing.
        """
        with np.load(path, allow_pickle=False) as arrays:
            missing = {"mu", "sigma", "count"} - set(arrays.files)
            if missing:
                raise ValueError(
                    f"{path} lacks {', '.join(sorted(missing))}; distances of different N cannot "
                    "be compared, so statistics without their N are of no use: compute them again"
                )
            mean, covariance = (torch.from_numpy(arrays[name]).double() for name in ("mu", "sigma"))
            return cls(int(arrays["count"]), mean, covariance)


def frechet_distance(one: FeatureStatistics, other: FeatureStatistics) -> float:
    """The squared Frechet distance between two normal distributions.

    Args:
        one: statistics of one set.
        other: statistics of the other.

    Returns:
        The distance, at least 0.

    Raises:
        ValueError: if their features are of different width, or not finite.
    """
    if one.mean.shape != other.mean.shape:
        raise ValueError(
            f"the features are {len(one.mean)} and {len(other.mean)} wide; read both sets with "
            "the same backbone"
        )
    if not all(torch.isfinite(part.covariance).all() for part in (one, other)):
        raise ValueError("features are not finite; look at the pictures they were read from")
    # tr (S_1 S_2)^(1/2) is the sum of the singular values of R_1 R_2 with S = R R; as eigenvalues
    # of a symmetric matrix they stay real also where a set has fewer pictures than features.
    root = _symmetric_root(one.covariance)
    eigenvalues = torch.linalg.eigvalsh(root @ other.covariance @ root)
    shared = eigenvalues.clamp(min=0).sqrt().sum()
    difference = (one.mean - other.mean).square().sum()
    distance = difference + one.covariance.trace() + other.covariance.trace() - 2 * shared
    return max(float(distance), 0.0)


def _symmetric_root(
    matrix: Float64[Tensor, "features features"],
) -> Float64[Tensor, "features features"]:
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.mT


def _require_two(count: int) -> None:
    if count < 2:
        raise ValueError(f"a covariance needs at least two pictures, not {count}")


class FrechetDistance(Metric):
    """FID with an Inception backbone, FDD with DINOv2 (arXiv 2306.04675); streamed."""

    full_state_update = False
    higher_is_better = False
    feature_network = "backbone"
    real_count: Tensor
    real_total: Tensor
    real_products: Tensor
    generated_count: Tensor
    generated_total: Tensor
    generated_products: Tensor

    def __init__(self, backbone: Backbone, reference: FeatureStatistics | None = None) -> None:
        """Begin with empty sums.

        Args:
            backbone: reads the pictures.
            reference: statistics of the real pictures, if they are known already.
        """
        super().__init__()
        self.backbone = backbone
        self.reference = reference
        width = backbone.num_features
        for kind in ("real", "generated"):
            zeros = torch.zeros(width, dtype=torch.float64)
            products = torch.zeros(width, width, dtype=torch.float64)
            self.add_state(f"{kind}_count", torch.tensor(0), dist_reduce_fx="sum")
            self.add_state(f"{kind}_total", zeros, dist_reduce_fx="sum")
            self.add_state(f"{kind}_products", products, dist_reduce_fx="sum")

    def update(self, images: UInt8[Tensor, "batch 3 height width"], real: bool) -> None:
        """Add pictures.

        Args:
            images: uint8 pictures.
            real: whether they are real or generated.

        Raises:
            ValueError: if real pictures come on top of a reference.
        """
        if real and self.reference is not None:
            raise ValueError("the reference is given; add generated pictures only")
        features = self.backbone(images).double()
        if real:
            self.real_count += len(features)
            self.real_total += features.sum(0)
            self.real_products += features.mT @ features
        else:
            self.generated_count += len(features)
            self.generated_total += features.sum(0)
            self.generated_products += features.mT @ features

    def real(self) -> FeatureStatistics:
        """Give the statistics of the real pictures."""
        if self.reference is not None:
            return self.reference
        return FeatureStatistics.from_sums(
            int(self.real_count), self.real_total, self.real_products
        )

    def generated(self) -> FeatureStatistics:
        """Give the statistics of the generated pictures."""
        return FeatureStatistics.from_sums(
            int(self.generated_count), self.generated_total, self.generated_products
        )

    def compute(self) -> Float64[Tensor, ""]:
        """Give the distance between the two sets."""
        distance = frechet_distance(self.real(), self.generated())
        return torch.tensor(distance, dtype=torch.float64)
