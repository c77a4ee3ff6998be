"""Intervals that cover, biases that vanish, comparisons that are refused."""

import numpy as np
import pytest
import torch

from mmface.metrics.condition_agreement import class_ious, confusion_matrices, pooled_mean_iou
from mmface.metrics.feature_sets import (
    FeatureStatistics,
    frechet_distance,
    frechet_floor,
    frechet_infinity,
)
from mmface.metrics.statistics import (
    bootstrap,
    bootstrap_mean,
    over_seeds,
    require_equal_counts,
)


def normal(count, width, seed=0):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed)).double()


def test_bootstrap_covers_a_known_mean():
    rng = np.random.default_rng(1)
    hits = 0
    for trial in range(300):
        values = rng.normal(2.0, 1.0, 60)
        interval = bootstrap_mean(values, num_resamples=300, seed=10_000 + trial)
        hits += interval.low <= 2.0 <= interval.high
    assert 0.91 <= hits / 300 <= 0.98


def test_bootstrap_agrees_with_scipy():
    values = np.random.default_rng(0).gamma(2.0, size=80)
    ours = bootstrap_mean(values, num_resamples=4000)
    from scipy.stats import bootstrap as scipy_bootstrap

    theirs = scipy_bootstrap(
        (values,), np.mean, n_resamples=4000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    assert ours.estimate == pytest.approx(values.mean())
    assert ours.low == pytest.approx(theirs.low, abs=0.03)
    assert ours.high == pytest.approx(theirs.high, abs=0.03)


def test_samples_of_one_picture_are_not_counted_as_many():
    rng = np.random.default_rng(0)
    of_picture = rng.normal(size=40)
    values = np.repeat(of_picture, 10) + 0.01 * rng.normal(size=400)
    pictures = [f"face/{index}" for index in range(40) for _ in range(10)]
    clustered = bootstrap_mean(values, pictures)
    naive = bootstrap_mean(values)
    assert clustered.clusters == 40
    ratio = (clustered.high - clustered.low) / (naive.high - naive.low)
    assert ratio == pytest.approx(10**0.5, rel=0.15)
    with pytest.raises(ValueError, match="2 pictures"):
        bootstrap_mean(values, ["a", "b"])


def test_clusters_of_unequal_size_weigh_by_their_samples():
    interval = bootstrap_mean(np.array([0.0, 0, 0, 1]), ["a", "a", "a", "b"])
    assert interval.estimate == 0.25


def test_unequal_numbers_of_pictures_are_refused():
    require_equal_counts({"one": 200, "the other": 200})
    with pytest.raises(ValueError, match="one: 200, the other: 199"):
        require_equal_counts({"one": 200, "the other": 199})


def test_bootstrap_is_seeded_and_leaves_the_global_state_alone():
    values = np.arange(20.0)
    np.random.seed(0)  # noqa: NPY002
    before = np.random.get_state(legacy=False)["state"]["key"].copy()  # noqa: NPY002
    assert bootstrap_mean(values, seed=3) == bootstrap_mean(values, seed=3)
    assert bootstrap_mean(values, seed=3) != bootstrap_mean(values, seed=4)
    after = np.random.get_state(legacy=False)["state"]["key"]  # noqa: NPY002
    assert (before == after).all()
    with pytest.raises(ValueError, match="at least two"):
        bootstrap_mean(values[:1])


def test_bootstrap_of_a_mean_iou_resamples_pictures():
    generator = torch.Generator().manual_seed(0)
    masks = torch.randint(0, 3, (30, 8, 8), generator=generator, dtype=torch.uint8)
    parsed = torch.where(torch.rand(masks.shape, generator=generator) < 0.2, 0, masks)
    tables = confusion_matrices(masks, parsed.to(torch.uint8))
    totals = tables.double().flatten(1).numpy()
    interval = bootstrap(totals, pooled_mean_iou, num_resamples=300)
    assert interval.estimate == pytest.approx(100 * float(class_ious(tables.sum(0)).nanmean()))
    assert interval.low < interval.estimate < interval.high
    assert interval.high - interval.low < 10


def test_bias_of_the_frechet_distance_falls_as_one_over_n_and_is_extrapolated_away():
    width = 32
    distances = {}
    for count in (200, 400, 800):
        one, other = normal(count, width), normal(count, width, seed=1)
        distances[count] = frechet_distance(FeatureStatistics.of(one), FeatureStatistics.of(other))
    assert distances[200] / distances[400] == pytest.approx(2, rel=0.2)
    assert distances[400] / distances[800] == pytest.approx(2, rel=0.2)
    line = frechet_infinity(normal(800, width), normal(800, width, seed=1))
    assert abs(line.limit) < 0.25 * distances[800]
    assert line.slope > 0
    assert (line.sizes[0], line.sizes[-1]) == (400, 800)
    shifted = frechet_infinity(normal(800, width), normal(800, width, seed=1) + 0.3)
    assert shifted.limit == pytest.approx(width * 0.3**2, rel=0.15)
    with pytest.raises(ValueError, match="real: 800, generated: 700"):
        frechet_infinity(normal(800, width), normal(700, width))


def test_floor_is_the_distance_of_two_halves():
    floor, count = frechet_floor(normal(400, 16))
    assert count == 200
    independent = frechet_distance(
        FeatureStatistics.of(normal(200, 16, seed=5)), FeatureStatistics.of(normal(200, 16, seed=6))
    )
    assert floor == pytest.approx(independent, rel=0.3)


def test_spread_over_seeds():
    spread = over_seeds([1.0, 2.0, 3.0])
    assert (spread.mean, spread.std, spread.seeds) == (2.0, 1.0, 3)
    with pytest.raises(ValueError, match="two seeds"):
        over_seeds([1.0])
    require_equal_counts({"a": 3, "b": 3})
