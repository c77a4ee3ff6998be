"""Metrics of two sets of features: closed forms, independent routes, invariances."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from mmface.metrics.backbones import UNTRAINED, Backbone
from mmface.metrics.feature_sets import (
    FeatureStatistics,
    frechet_distance,
    gaussian_mmd,
    kernel_distance,
    polynomial_mmd,
    precision_recall,
    require_width,
)
from mmface.metrics.preprocessing import CleanBicubic, TorchBilinear

WIDTH = 12


class PooledConvolution(Backbone):
    """A random convolution, pooled: features that see edges and colours."""

    def __init__(self):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            network = nn.Conv2d(3, WIDTH, 5, stride=3)
        super().__init__(network, TorchBilinear(32), f"{UNTRAINED}convolution", WIDTH)

    def features(self, pixels):
        return self.network(pixels).relu().mean((2, 3))


@pytest.fixture(scope="module")
def backbone():
    return PooledConvolution()


def normal(count, width=WIDTH, seed=0, shift=0.0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(count, width, generator=generator, dtype=torch.float64)
    return features * scale + shift


def pictures(count, seed=0, brightness=1.0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(count, 3, 24, 24, generator=generator) * 255 * brightness
    return images.to(torch.uint8)


def moments(mean, covariance, count=100):
    return FeatureStatistics(count, torch.as_tensor(mean), torch.as_tensor(covariance))


def test_closed_forms_from_moments():
    zeros, identity = torch.zeros(WIDTH).double(), torch.eye(WIDTH).double()
    standard = moments(zeros, identity)
    shifted = frechet_distance(standard, moments(zeros + 0.3, identity))
    assert shifted == pytest.approx(WIDTH * 0.3**2, rel=1e-9)
    variances = torch.linspace(0.1, 4, WIDTH).double()
    diagonal = frechet_distance(standard, moments(zeros, variances.diag()))
    assert diagonal == pytest.approx(float((variances.sqrt() - 1).square().sum()), rel=1e-9)
    # Doubling the features: tr S + |mu|^2, here for a full covariance.
    features = normal(500) @ normal(WIDTH, seed=1) + 0.5
    one = FeatureStatistics.of(features)
    doubled = frechet_distance(one, FeatureStatistics.of(2 * features))
    assert doubled == pytest.approx(float(one.covariance.trace() + one.mean.square().sum()))


@pytest.mark.parametrize("count", [8, 300])
def test_three_square_roots_agree(count):
    mixing = normal(WIDTH, seed=1)
    one, other = normal(count) @ mixing, normal(count, seed=2) @ mixing.T + 0.2
    a, b = FeatureStatistics.of(one), FeatureStatistics.of(other)
    constant = float((a.mean - b.mean).square().sum() + (a.covariance + b.covariance).trace())
    product = (a.covariance @ b.covariance).numpy()
    eigenvalues = np.linalg.eigvals(product).astype(complex)
    rows = [(f - f.mean(0)) / (count - 1) ** 0.5 for f in (one, other)]
    nuclear = float(torch.linalg.svdvals(rows[0] @ rows[1].T).sum())
    routes = [float(np.sqrt(eigenvalues).real.sum()), nuclear]
    if count > WIDTH:  # scipy's root wants a matrix of full rank
        from scipy.linalg import sqrtm

        routes.append(float(sqrtm(product).trace().real))
    for trace in routes:
        assert frechet_distance(a, b) == pytest.approx(constant - 2 * trace, rel=1e-6)


def test_a_set_with_fewer_pictures_than_features_is_at_no_distance_from_itself():
    statistics = FeatureStatistics.of(normal(8, width=64))
    assert 0 <= frechet_distance(statistics, statistics) < 1e-3


def test_a_large_offset_is_no_distance():
    one, other = normal(400), normal(400, seed=1, shift=0.4)
    plain = frechet_distance(FeatureStatistics.of(one), FeatureStatistics.of(other))

    offset = [FeatureStatistics.of(features + 1e4) for features in (one, other)]
    assert frechet_distance(*offset) == pytest.approx(plain, rel=1e-5)


def distance(real, generated):
    return frechet_distance(*(FeatureStatistics.of(features) for features in (real, generated)))


def in_batches(backbone, images, size):
    return torch.cat([backbone(batch) for batch in images.split(size)])


def test_order_batches_and_direction_do_not_matter(backbone):
    real, generated = pictures(30), pictures(26, seed=1, brightness=0.7)
    at_once = distance(backbone(real), backbone(generated))
    apart = [in_batches(backbone, real.flip(0), 7), in_batches(backbone, generated.flip(0), 4)]
    assert distance(*apart) == pytest.approx(at_once, rel=1e-6)
    assert distance(backbone(generated), backbone(real)) == pytest.approx(at_once, rel=1e-8)


class ExactSums(Backbone):
    """Features that float32 holds exactly, whatever the batch: sums of parts of a picture."""

    def __init__(self, offset=0.0):
        super().__init__(nn.Conv2d(1, 1, 1), TorchBilinear(32), f"{UNTRAINED}sums", WIDTH)
        self.offset = offset

    def forward(self, images):
        return self.features(images.float())

    def features(self, pixels):
        return pixels.flatten(1).unflatten(1, (-1, WIDTH)).sum(1) + self.offset


def test_exact_features_give_one_distance_in_any_order_and_batch():
    real, generated = pictures(31), pictures(26, seed=1, brightness=0.7)
    backbone = ExactSums()
    at_once = distance(backbone(real), backbone(generated))
    shuffled = torch.randperm(31, generator=torch.Generator().manual_seed(2))
    for batch, order in ((1, shuffled), (5, shuffled), (31, torch.arange(31))):
        sets = (in_batches(backbone, real[order], batch), in_batches(backbone, generated, batch))
        assert distance(*sets) == pytest.approx(at_once, rel=1e-8)


def test_features_in_float32_are_summed_in_float64():
    def offset_distance(offset):
        backbone = ExactSums(offset)
        features = [backbone(pictures(40)), backbone(pictures(40, seed=1, brightness=0.9))]
        assert features[0].dtype == torch.float32
        return distance(*features)

    assert offset_distance(1e4) == pytest.approx(offset_distance(0.0), rel=1e-6)


class Features(nn.Module):
    """Gives torchmetrics the same features; it asks for their number."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone
        self.num_features = backbone.num_features

    def forward(self, images):
        return self.backbone(images)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Metric `Kernel Inception Distance` will save all:UserWarning")
def test_frechet_and_kernel_distance_agree_with_torchmetrics(backbone):
    real, generated = pictures(40), pictures(40, seed=1, brightness=0.8)
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.kid import KernelInceptionDistance

    reference = FrechetInceptionDistance(Features(backbone), input_img_size=(3, 24, 24))
    kernel_reference = KernelInceptionDistance(Features(backbone), subsets=2, subset_size=40)
    for metric in (reference, kernel_reference):
        metric.update(real, real=True)
        metric.update(generated, real=False)
    features = backbone(real), backbone(generated)
    assert distance(*features) == pytest.approx(float(reference.compute()), rel=1e-4)
    kernel = kernel_distance(*features, num_subsets=2)
    assert kernel.mean == pytest.approx(float(kernel_reference.compute()[0]), rel=1e-3)


def test_frechet_refuses_what_it_cannot_compare():
    with pytest.raises(ValueError, match="wide"):
        frechet_distance(FeatureStatistics.of(normal(9)), FeatureStatistics.of(normal(9, width=3)))
    with pytest.raises(ValueError, match="two pictures"):
        FeatureStatistics.of(normal(1))
    broken = normal(9)
    broken[0, 0] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        frechet_distance(FeatureStatistics.of(broken), FeatureStatistics.of(normal(9)))


def test_kernel_distance_by_hand():
    x, y = torch.tensor([[1.0, 0], [0, 1]]).double(), torch.tensor([[1.0, 1], [2, 0]]).double()
    # (x.y / 2 + 1)^3 over pairs: within x 1, within y 2^3, across 1.5^3, 2^3, 1.5^3, 1.
    by_hand = 1 + 8 - 2 * (2 * 1.5**3 + 8 + 1) / 4
    assert polynomial_mmd(x, y) == pytest.approx(by_hand)


def test_kernel_distance_of_one_distribution_is_nothing_and_needs_no_global_state():
    one, other = normal(600), normal(600, seed=1)
    first = kernel_distance(one, other, num_subsets=20, subset_size=200)
    torch.manual_seed(123)
    before = torch.random.get_rng_state()
    again = kernel_distance(one, other, num_subsets=20, subset_size=200)
    assert first == again
    assert torch.equal(before, torch.random.get_rng_state())
    assert first != kernel_distance(one, other, num_subsets=20, subset_size=200, seed=1)
    assert abs(first.mean) < 3 * first.std
    apart = kernel_distance(one, other + 0.5, num_subsets=20, subset_size=200)
    assert apart.mean > 10 * apart.std


def test_cmmd_against_its_sum_and_across_chunks():
    one, other = normal(5), normal(4, seed=1, shift=1.0)
    pairs = [(x, y) for x, y in ((one, one), (other, other), (one, other))]
    means = [
        np.mean([[np.exp(-float((a - b).square().sum()) / 200) for b in y] for a in x])
        for x, y in pairs
    ]
    by_hand = 1000 * (means[0] + means[1] - 2 * means[2])
    assert gaussian_mmd(one, other) == pytest.approx(by_hand, rel=1e-9)
    assert gaussian_mmd(one, one) == pytest.approx(0, abs=1e-9)
    twice = normal(1500)
    assert gaussian_mmd(twice, twice.flip(0)) == pytest.approx(0, abs=1e-9)


def test_precision_recall_of_equal_apart_and_collapsed_sets():
    real = normal(80, width=4)
    same = precision_recall(real, real)
    assert (same.precision, same.recall, same.coverage) == (1, 1, 1)
    assert same.density == 1  # a picture's own neighbourhood and two others; the third is its edge
    assert precision_recall(real, real + 100) == (0, 0, 0, 0)
    collapsed = precision_recall(real, real[:8].repeat(10, 1))
    assert collapsed.precision == 1
    assert collapsed.recall < 0.5
    assert collapsed.coverage < 0.8
    with pytest.raises(ValueError, match="more than 3"):
        precision_recall(real[:3], real)


def test_precision_recall_by_hand_on_a_line():
    real = torch.tensor([[0.0], [1], [2], [10]])
    generated = torch.tensor([[0.5], [3.5], [20], [21]])
    # k = 1: real radii 1, 1, 1, 8; generated radii 3, 3, 1, 1.
    result = precision_recall(real, generated, neighbours=1)
    assert result.precision == 2 / 4  # 0.5 and 3.5; 3.5 lies 6.5 from 10
    assert result.recall == 3 / 4  # 10 lies 6.5 from 3.5
    assert result.density == pytest.approx((2 + 1) / 4)  # 0.5 in two, 3.5 in one neighbourhood
    assert result.coverage == 3 / 4  # 2 lies 1.5 from both


def published_neighbourhoods(real, generated, k):
    """Naeem et al.'s code (`<` throughout) but for precision and recall, where Kynkaanniemi's
    has `<=`: all pairs at once, by differences."""

    def radii(x):
        return np.sort(np.linalg.norm(x[:, None] - x, axis=-1), axis=1)[:, k]

    real, generated = real.numpy(), generated.numpy()
    pairs = np.linalg.norm(real[:, None] - generated, axis=-1)
    edges = radii(real)[:, None]
    return (
        (pairs <= edges).any(0).mean(),
        (pairs <= radii(generated)).any(1).mean(),
        (pairs < edges).sum(0).mean() / k,
        (pairs.min(1) < edges[:, 0]).mean(),
    )


@pytest.mark.parametrize("offset", [0.0, 1e4])
@pytest.mark.parametrize("are_tied", [False, True])
def test_precision_recall_agrees_with_the_published_code_across_blocks(
    monkeypatch, offset, are_tied
):
    monkeypatch.setattr("mmface.metrics.feature_sets._BLOCK", 32)
    real, generated = normal(90, width=5), normal(70, width=5, seed=1, scale=0.8, shift=0.3)
    if are_tied:  # on a grid many pictures lie at the very edge of a neighbourhood
        real, generated = real.round(), generated.round()
        generated[:9] = real[:9]
    theirs = published_neighbourhoods(real, generated, 3)
    ours = precision_recall(real + offset, generated + offset)
    assert tuple(ours) == pytest.approx(theirs, abs=1e-12)


def test_clean_fids_resize_is_the_published_one_with_its_clipping():
    images = torch.zeros(2, 3, 40, 50, dtype=torch.uint8)
    images[..., 10:30, 20:40] = 255  # bicubic overshoots at these edges
    images[1] = pictures(1)[0].repeat(1, 2, 3)[:, :40, :50]
    resized = (CleanBicubic()(images) * 128 + 128).numpy()
    for image, ours in zip(images.numpy(), resized, strict=True):
        for channel, plane in zip(image, ours, strict=True):
            picture = Image.fromarray(channel.astype(np.float32), mode="F")
            theirs = np.asarray(picture.resize((299, 299), Image.Resampling.BICUBIC))
            np.testing.assert_allclose(plane, theirs.clip(0, 255), atol=1e-4)
    assert theirs.min() < -1 or theirs.max() > 256


def test_features_of_two_networks_are_not_compared():
    with pytest.raises(ValueError, match="12 and 3 wide; read both sets with the same"):
        require_width(normal(9), normal(9, width=3))
