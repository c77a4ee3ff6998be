"""Confidence intervals of measured numbers.

Per-picture metrics get a bootstrap clustered by picture: captions and seeds of one picture are not
independent. The Frechet distance gets none: repeated pictures shrink the covariance and move the
estimate out of its own interval. It is reported over generation seeds, extrapolated to infinite N,
and beside its floor between real pictures.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

_CHUNK = 100


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval, from `clusters` independent pictures."""

    estimate: float
    low: float
    high: float
    clusters: int


@dataclass(frozen=True)
class SeedSpread:
    """Mean and standard deviation (of n - 1) of a set-level metric over generation seeds."""

    mean: float
    std: float
    seeds: int


def bootstrap(
    totals: Float[np.ndarray, "clusters terms"],
    statistic: Callable[[np.ndarray], np.ndarray],
    num_resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap of a statistic of sums over independent clusters.

    `totals` is what each cluster adds to the sums: (sum, count) for a mean, a flattened confusion
    matrix for a mIoU. `statistic` maps summed totals, float64 [B, terms], to float64 [B].
    """
    totals = np.asarray(totals, np.float64)
    clusters = len(totals)
    if clusters < 2:
        raise ValueError(f"an interval needs at least two pictures, not {clusters}")
    rng = np.random.default_rng(seed)
    resampled = []
    for first in range(0, num_resamples, _CHUNK):
        size = min(_CHUNK, num_resamples - first)
        weights = rng.multinomial(clusters, np.full(clusters, 1 / clusters), size=size)
        resampled.append(statistic(weights @ totals))
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.concatenate(resampled), [tail, 1 - tail])
    return Interval(
        float(statistic(totals.sum(0, keepdims=True))[0]), float(low), float(high), clusters
    )


def bootstrap_mean(
    values: Float[np.ndarray, " samples"],
    pictures: Sequence[str] | None = None,
    num_resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Bootstrap the mean of a per-picture metric.

    `pictures` names the picture of each sample, where captions or seeds share one.
    """
    names = list(range(len(values))) if pictures is None else list(pictures)
    if len(names) != len(values):
        raise ValueError(f"{len(values)} values have {len(names)} pictures; give one each")
    _, cluster = np.unique(np.asarray(names), return_inverse=True)
    totals = np.stack([np.bincount(cluster, values), np.bincount(cluster)], axis=1)
    return bootstrap(totals.astype(np.float64), _ratio, num_resamples, confidence, seed)


def _ratio(sums: np.ndarray) -> np.ndarray:
    return sums[:, 0] / sums[:, 1]


def require_equal_counts(counts: Mapping[str, int]) -> None:
    """Refuse to compare methods that were measured on different numbers of pictures."""
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{name}: {count}" for name, count in counts.items())
        raise ValueError(
            f"the numbers of pictures differ ({listed}); measure every method on the same ones"
        )


def over_seeds(values: Sequence[float]) -> SeedSpread:
    """Mean and standard deviation of a set-level metric over seeds, every set of the same N."""
    if len(values) < 2:
        raise ValueError(f"a spread needs at least two seeds, not {len(values)}")
    return SeedSpread(float(np.mean(values)), float(np.std(values, ddof=1)), len(values))
