"""How sure a measured number is.

Per-picture metrics get a bootstrap clustered by picture: captions and seeds of one picture are no
independent samples. The Frechet distance gets none: resampling repeats pictures, which shrinks the
covariance and moves the estimate out of its own interval. It is reported over generation seeds,
extrapolated to infinite N, and beside its floor between real pictures.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

_CHUNK = 100


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval.

    Attributes:
        estimate: the value on the sample itself.
        low: lower end.
        high: upper end.
        clusters: how many independent pictures it rests on.
    """

    estimate: float
    low: float
    high: float
    clusters: int


@dataclass(frozen=True)
class SeedSpread:
    """A set-level metric over generation seeds.

    Attributes:
        mean: mean over the seeds.
        std: standard deviation over the seeds, divided by the number of seeds less one.
        seeds: how many seeds.
    """

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

    Args:
        totals: what each cluster adds to the sums: (sum, count) for a mean, a flattened confusion
            matrix for a mIoU.
        statistic: from summed totals, float64 [B, terms], to float64 [B].
        num_resamples: how often clusters are drawn with replacement.
        confidence: share of the resamples inside the interval.
        seed: draws the resamples; the global random state is not touched.

    Returns:
        The statistic of all clusters, and its interval.

    Raises:
        ValueError: if there are fewer than two clusters.
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

    Args:
        values: one value a sample.
        pictures: the picture of each sample, where captions or seeds share one; each sample its
            own unless given.
        num_resamples: see `bootstrap`.
        confidence: see `bootstrap`.
        seed: see `bootstrap`.

    Returns:
        The mean over samples, and its interval.

    Raises:
        ValueError: if there is not one picture a sample.
    """
    names = list(range(len(values))) if pictures is None else list(pictures)
    if len(names) != len(values):
        raise ValueError(f"{len(values)} values have {len(names)} pictures; give one each")
    _, cluster = np.unique(np.asarray(names), return_inverse=True)
    totals = np.stack([np.bincount(cluster, values), np.bincount(cluster)], axis=1)
    return bootstrap(totals.astype(np.float64), _ratio, num_resamples, confidence, seed)


def _ratio(sums: np.ndarray) -> np.ndarray:
    return sums[:, 0] / sums[:, 1]


def paired_difference(
    one: Float[np.ndarray, " samples"],
    other: Float[np.ndarray, " others"],
    pictures: Sequence[str] | None = None,
    num_resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Bootstrap the mean difference of two methods on the same samples.

    Args:
        one: values of one method.
        other: values of the other, sample by sample the same pictures, captions and order.
        pictures: see `bootstrap_mean`.
        num_resamples: see `bootstrap`.
        confidence: see `bootstrap`.
        seed: see `bootstrap`.

    Returns:
        The mean of one minus other; the methods differ where the interval leaves 0 out.

    Raises:
        ValueError: if the methods were measured on different numbers of samples.
    """
    require_equal_counts({"one": len(one), "the other": len(other)})
    return bootstrap_mean(one - other, pictures, num_resamples, confidence, seed)


def require_equal_counts(counts: Mapping[str, int]) -> None:
    """Refuse to compare methods that were measured on different numbers of pictures.

    Args:
        counts: number of pictures by method.

    Raises:
        ValueError: if the numbers differ.
    """
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{name}: {count}" for name, count in counts.items())
        raise ValueError(
            f"the numbers of pictures differ ({listed}); measure every method on the same ones"
        )


def over_seeds(values: Sequence[float]) -> SeedSpread:
    """Mean and standard deviation of a set-level metric over generation seeds.

    Args:
        values: the metric of each seed's pictures, every set of the same N; three or more are
            customary.

    Returns:
        The spread.

    Raises:
        ValueError: if there are fewer than two seeds.
    """
    if len(values) < 2:
        raise ValueError(f"a spread needs at least two seeds, not {len(values)}")
    return SeedSpread(float(np.mean(values)), float(np.std(values, ddof=1)), len(values))
