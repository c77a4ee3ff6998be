"""Fidelity and coverage of a set of pictures, by nearest neighbours among features."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from mmface.evaluation.backbones import Backbone
from mmface.evaluation.feature_sets import FeatureSetMetric, chunks, require_width


class PrecisionRecall(NamedTuple):
    """How two sets overlap.

    Attributes:
        precision: share of generated pictures inside the real set, in [0, 1] (arXiv 1904.06991).
        recall: share of real pictures inside the generated set, in [0, 1].
        density: in how many real neighbourhoods a generated picture lies, over k; at least 0, and
            about 1 where the sets agree (arXiv 2002.09797).
        coverage: share of real neighbourhoods that hold a generated picture, in [0, 1].
    """

    precision: float
    recall: float
    density: float
    coverage: float


def precision_recall(
    real: Float[Tensor, "n features"], generated: Float[Tensor, "m features"], neighbours: int = 3
) -> PrecisionRecall:
    """Compare two sets by their k nearest neighbours.

    Args:
        real: features of the real pictures.
        generated: features of the generated ones.
        neighbours: k; a neighbourhood reaches to the k-th nearest other picture of its own set.

    Returns:
        The four measures; precision and coverage grow with N, so compare at one N.

    Raises:
        ValueError: if a set has no more than k pictures, or the widths differ.
    """
    require_width(real, generated)
    if min(len(real), len(generated)) <= neighbours:
        raise ValueError(
            f"{neighbours} neighbours need more than {neighbours} pictures of each kind, not "
            f"{len(real)} real and {len(generated)} generated"
        )
    real, generated = real.double(), generated.double()
    real_radius, generated_radius = _radii(real, neighbours), _radii(generated, neighbours)
    in_real, in_generated, covered = [], [], []
    for rows in chunks(generated):
        in_real.append((_distances(rows, real) <= real_radius).sum(1))
    for rows, radius in zip(chunks(real), real_radius.split(1024), strict=True):
        distances = _distances(rows, generated)
        in_generated.append((distances <= generated_radius).any(1))
        covered.append((distances <= radius[:, None]).any(1))
    hits = torch.cat(in_real)
    return PrecisionRecall(
        precision=_share(hits > 0),
        recall=_share(torch.cat(in_generated)),
        density=float(hits.double().mean()) / neighbours,
        coverage=_share(torch.cat(covered)),
    )


def _distances(x: Float64[Tensor, "n d"], y: Float64[Tensor, "m d"]) -> Float64[Tensor, "n m"]:
    # The product form of a distance is not exactly 0 between equal rows; this one is.
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")


def _radii(features: Float64[Tensor, "n d"], neighbours: int) -> Float64[Tensor, " n"]:
    """Distance of each row to its k-th nearest other row."""
    nearest = [
        _distances(rows, features).kthvalue(neighbours + 1, dim=1).values
        for rows in chunks(features)
    ]
    return torch.cat(nearest)


def _share(hits: Bool[Tensor, " n"]) -> float:
    return float(hits.double().mean())


class PrecisionRecallMetric(FeatureSetMetric):
    """Improved precision and recall (arXiv 1904.06991), density and coverage (arXiv 2002.09797)."""

    higher_is_better = True

    def __init__(self, backbone: Backbone, neighbours: int = 3) -> None:
        """Begin with two empty sets.

        Args:
            backbone: reads the pictures.
            neighbours: k of the neighbourhoods.
        """
        super().__init__(backbone)
        self.neighbours = neighbours

    def compute(self) -> PrecisionRecall:
        """Give the four measures."""
        return precision_recall(*self.feature_sets(), self.neighbours)
