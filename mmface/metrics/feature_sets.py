"""Numbers of two sets of pictures by their features: FID, KID, CMMD, precision and recall.

The Frechet distance (FID on Inception's features, FDD on DINOv2's) is

    d = |mu_1 - mu_2|^2 + tr S_1 + tr S_2 - 2 tr (S_1 S_2)^(1/2)        (arXiv 1706.08500, eq. 6)

It is biased upwards by about 1/N, even for two sets of one distribution: compare distances only at
equal N (arXiv 1911.07023). KID is unbiased (arXiv 1801.01401),
and CMMD's kernel is so wide that its bias is small (arXiv 2401.09603). Sums are in float64.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from mmface.metrics.metric import Column, Features, Floor, SetMetric, register
from mmface.metrics.statistics import require_equal_counts

CMMD_BANDWIDTH = 10.0
CMMD_SCALE = 1000.0
_SIZES = 8
"""Numbers of pictures through which the line to infinite N is drawn."""
_BLOCK = 1024
"""Pictures a side of the tables of distances that are held at once."""
_TIE = 1e-12
"""Squared distances this near, as a share of the largest square, are equal but for rounding."""


@dataclass(frozen=True)
class FeatureStatistics:
    """Number, mean and covariance (divided by N - 1) of a set's features."""

    count: int
    mean: Float64[Tensor, " features"]
    covariance: Float64[Tensor, "features features"]

    @classmethod
    def of(cls, features: Float[Tensor, "n features"]) -> "FeatureStatistics":
        """Compute the statistics in float64; one row a picture."""
        _require_two(len(features))
        features = features.double()
        mean = features.mean(0)
        centred = features - mean
        return cls(len(features), mean, centred.mT @ centred / (len(features) - 1))


def frechet_distance(one: FeatureStatistics, other: FeatureStatistics) -> float:
    """The squared Frechet distance between two normal distributions, at least 0."""
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


@dataclass(frozen=True)
class Extrapolation:
    """A straight line through distances against 1/N; `limit` is its value at 1/N = 0."""

    limit: float
    slope: float
    sizes: tuple[int, ...]
    distances: tuple[float, ...]


def frechet_infinity(
    real: Float[Tensor, "n features"],
    generated: Float[Tensor, "m features"],
    num_sizes: int = 8,
    seed: int = 0,
) -> Extrapolation:
    """Extrapolate the Frechet distance to infinite N (Chong and Forsyth, arXiv 1911.07023).

    Subsets of both sets, of equal N, are drawn without replacement at sizes evenly spaced in 1/N
    from N/2 to N, and a line is fitted by least squares. The limit may lie a little below 0.
    """
    require_equal_counts({"real": len(real), "generated": len(generated)})
    if len(real) < 2 * num_sizes or num_sizes < 2:
        raise ValueError(f"{num_sizes} sizes need {max(2 * num_sizes, 4)} pictures of each kind")
    generator = torch.Generator().manual_seed(seed)
    count = len(real)
    sizes = [round(1 / inverse) for inverse in np.linspace(2 / count, 1 / count, num_sizes)]
    distances = []
    for size in sizes:
        chosen = [
            FeatureStatistics.of(features[torch.randperm(count, generator=generator)[:size]])
            for features in (real.cpu(), generated.cpu())
        ]
        distances.append(frechet_distance(*chosen))
    slope, limit = np.polyfit(1 / np.asarray(sizes), distances, 1)
    return Extrapolation(float(limit), float(slope), tuple(sizes), tuple(distances))


def frechet_floor(real: Float[Tensor, "n features"], seed: int = 0) -> tuple[float, int]:
    """The distance between two disjoint halves of the real pictures, and the size of a half."""
    half = len(real) // 2
    order = torch.randperm(len(real), generator=torch.Generator().manual_seed(seed))
    halves = (real.cpu()[order[:half]], real.cpu()[order[half : 2 * half]])
    return frechet_distance(*(FeatureStatistics.of(features) for features in halves)), half


class KernelEstimate(NamedTuple):
    """Mean and standard deviation of the subsets' estimates."""

    mean: float
    std: float


def polynomial_mmd(
    real: Float64[Tensor, "n features"], generated: Float64[Tensor, "n features"]
) -> float:
    """The unbiased squared discrepancy, kernel (x.y / d + 1)^3 (arXiv 1801.01401, section 4).

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

    Without a factor of 1000, as in the paper. Sets smaller than `subset_size` are used whole.
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

    Of unit-length CLIP embeddings (arXiv 2401.09603, section 4); 0 for equal sets.
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


class PrecisionRecall(NamedTuple):
    """How two sets overlap, as fractions in [0, 1]; density alone may exceed 1.

    Precision and recall: generated pictures inside the real set and real ones inside the generated
    set (arXiv 1904.06991). Density: the number of real neighbourhoods that a generated picture lies
    in, over k. Coverage: real neighbourhoods that hold a generated picture (arXiv 2002.09797).
    """

    precision: float
    recall: float
    density: float
    coverage: float


def precision_recall(
    real: Float[Tensor, "n features"], generated: Float[Tensor, "m features"], neighbours: int = 3
) -> PrecisionRecall:
    """Compare two sets by their k nearest neighbours.

    A neighbourhood reaches to the k-th nearest other picture of its own set. A picture at its very
    edge is inside for precision and recall, outside for density and coverage: each as its authors'
    code has it. Precision and coverage grow with N: compare at one N. 1,024 x 1,024 distances are
    held at once.
    """
    require_width(real, generated)
    if min(len(real), len(generated)) <= neighbours:
        raise ValueError(
            f"{neighbours} neighbours need more than {neighbours} pictures of each kind, not "
            f"{len(real)} real and {len(generated)} generated"
        )
    # Distances do not change with the origin, and near it they lose the fewest digits.
    origin = real.double().mean(0)
    real_radius = _squared_radii(real, origin, neighbours)
    generated_radius = _squared_radii(generated, origin, neighbours)
    slack = _TIE * max(float(one.amax()) for one in (real_radius, generated_radius))
    slack = max(
        slack, _TIE * _largest_square(real, origin), _TIE * _largest_square(generated, origin)
    )
    places = len(real), len(generated)
    covered, recalled = (real.new_zeros(places[0], dtype=torch.bool) for _ in range(2))
    precise, hits = (real.new_zeros(places[1], dtype=kind) for kind in (torch.bool, torch.long))
    for rows in _slices(places[0]):
        for columns in _slices(places[1]):
            squared = _squared_distances(real[rows], generated[columns], origin)
            precise[columns] |= (squared <= real_radius[rows, None] + slack).any(0)
            recalled[rows] |= (squared <= generated_radius[columns] + slack).any(1)
            inside = squared < real_radius[rows, None] - slack
            covered[rows] |= inside.any(1)
            hits[columns] += inside.sum(0)
    return PrecisionRecall(
        precision=_share(precise),
        recall=_share(recalled),
        density=float(hits.double().mean()) / neighbours,
        coverage=_share(covered),
    )


def _slices(count: int) -> list[slice]:
    return [slice(first, first + _BLOCK) for first in range(0, count, _BLOCK)]


def _largest_square(features: Float[Tensor, "n d"], origin: Float64[Tensor, " d"]) -> float:
    return max(
        float((rows.double() - origin).square().sum(1).amax()) for rows in chunks(features, _BLOCK)
    )


def _squared_distances(
    x: Float[Tensor, "n d"], y: Float[Tensor, "m d"], origin: Float64[Tensor, " d"]
) -> Float64[Tensor, "n m"]:
    """By one matrix product, in float64."""
    x, y = x.double() - origin, y.double() - origin
    squares = x.square().sum(1, keepdim=True) + y.square().sum(1)
    return torch.addmm(squares, x, y.mT, alpha=-2)


def _squared_radii(
    features: Float[Tensor, "n d"], origin: Float64[Tensor, " d"], neighbours: int
) -> Float64[Tensor, " n"]:
    """Squared distance of each row to its k-th nearest other row."""
    count = neighbours + 1  # a row is its own nearest
    nearest = torch.full((len(features), count), torch.inf, dtype=torch.float64)
    nearest = nearest.to(features.device)

    def take(rows: slice, squared: Float64[Tensor, "n m"]) -> None:
        found = torch.cat([nearest[rows], squared], 1)
        nearest[rows] = found.topk(count, largest=False).values

    blocks = _slices(len(features))
    for index, rows in enumerate(blocks):
        for others in blocks[index:]:
            squared = _squared_distances(features[rows], features[others], origin)
            take(rows, squared)
            if others != rows:
                take(others, squared.mT)
    return nearest.amax(1).clamp(min=0)


def _share(hits: Bool[Tensor, " n"]) -> float:
    return float(hits.double().mean())


def require_width(real: Float[Tensor, "n features"], generated: Float[Tensor, "m other"]) -> None:
    """Refuse features of two different networks."""
    if real.shape[1] != generated.shape[1]:
        raise ValueError(
            f"the features are {real.shape[1]} and {generated.shape[1]} wide; read both sets "
            "with the same backbone"
        )


def chunks(features: Float[Tensor, "n features"], rows: int = 1024) -> tuple[Tensor, ...]:
    """Split features, so that a table of all pairs need not be held at once."""
    return torch.split(features, rows)


class Frechet(SetMetric):
    """The Frechet distance of the backbone's features."""

    @property
    def _column(self) -> str:
        (column,) = self.columns
        return column

    def compare(self, real: Features, generated: Features) -> dict[str, float]:
        """Compare mean and covariance."""
        statistics = [FeatureStatistics.of(features) for features in (real, generated)]
        return {self._column: frechet_distance(*statistics)}

    def remarks(self, real: Features, generated: Features, method: str) -> list[str]:
        """The distance at infinite N, where there are enough pictures for a line."""
        if len(real) != len(generated) or len(real) < 4 * _SIZES:
            return []
        limit = frechet_infinity(real, generated, _SIZES).limit
        title = self.columns[self._column].title
        return [f"{title} extrapolated to infinite N: {method} {limit:.2f}"]

    def floor(self, real: Features, others: Features | None = None) -> Mapping[str, Floor]:
        """The distance between two disjoint sets, or halves, of real pictures."""
        if others is not None:
            distance = self.compare(real, others)[self._column]
            return {self._column: Floor(distance, len(others), "two disjoint sets")}
        if len(real) < 4:
            return {}
        return {self._column: Floor(*frechet_floor(real), "two halves")}

    def shortage(self, real: Features) -> list[str]:
        """Of fewer pictures than features, the covariance has directions without a spread."""
        count, width = real.shape
        if count > width:
            return []
        title = self.columns[self._column].title
        return [
            f"{title} of {count} pictures says little, as its features are {width} wide: measure "
            f"more than {width}, and compare at one N only"
        ]


@register
class Fid(Frechet):
    """FID: Inception's features, resized as pytorch-fid does."""

    name = "fid"
    columns: ClassVar = {"fid": Column("FID", "lower", 2, of_sets=True, charted=True)}


@register
class CleanFid(Frechet):
    """FID with clean-fid's resizing."""

    name = "clean_fid"
    columns: ClassVar = {"clean_fid": Column("FID (clean)", "lower", 2, of_sets=True)}
    default_backbone = "clean-inception"


@register
class Fdd(Frechet):
    """FDD: DINOv2's features (arXiv 2306.04675)."""

    name = "fdd"
    columns: ClassVar = {"fdd": Column("FDD", "lower", 1, of_sets=True)}
    default_backbone = "dinov2"


@register
class FrechetOfStates(Frechet):
    """The Frechet distance of a CLIP tower's pooled states; not FID, and of another scale."""

    name = "frechet_states"
    columns: ClassVar = {
        "frechet_states": Column("FD of CLIP states", "lower", 2, of_sets=True, charted=True)
    }
    default_backbone = "clip-states"


@register
class KernelOfStates(SetMetric):
    """KID's estimate on a CLIP tower's pooled states; not KID."""

    name = "kernel_states"
    columns: ClassVar = {"kernel_states": Column("KD of CLIP states", "lower", 5, of_sets=True)}
    default_backbone = "clip-states"

    def compare(self, real: Features, generated: Features) -> dict[str, float]:
        """Average over subsets."""
        return {"kernel_states": kernel_distance(real, generated).mean}


@register
class Kid(SetMetric):
    """KID."""

    name = "kid"
    columns: ClassVar = {"kid": Column("KID", "lower", 5, of_sets=True)}

    def compare(self, real: Features, generated: Features) -> dict[str, float]:
        """Average over subsets."""
        return {"kid": kernel_distance(real, generated).mean}


@register
class Cmmd(SetMetric):
    """CMMD, with a CLIP backbone."""

    name = "cmmd"
    columns: ClassVar = {"cmmd": Column("CMMD", "lower", 3, of_sets=True)}
    default_backbone = "clip-336"

    def compare(self, real: Features, generated: Features) -> dict[str, float]:
        """Compare embeddings."""
        return {"cmmd": gaussian_mmd(real, generated)}


@register
class Neighbourhoods(SetMetric):
    """Precision, recall, density and coverage."""

    name = "neighbourhoods"
    columns: ClassVar = {
        name: Column(name.capitalize(), "higher", 3, of_sets=True)
        for name in PrecisionRecall._fields
    }

    def compare(self, real: Features, generated: Features) -> dict[str, float]:
        """Compare neighbourhoods."""
        return precision_recall(real, generated)._asdict()
