"""Every metric moves the right way, step by step, as pictures get worse."""

import io
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import agreement_of
from PIL import Image, ImageFilter
from transformers import CLIPModel, CLIPTokenizer

import mmface
from mmface.metrics.backbones import ClipBackbone
from mmface.metrics.caption_agreement import clip_scores
from mmface.metrics.condition_agreement import edge_agreements
from mmface.metrics.feature_sets import (
    FeatureStatistics,
    frechet_distance,
    gaussian_mmd,
    polynomial_mmd,
)
from mmface.metrics.picture_similarity import PerceptualNetwork, structural_similarity
from mmface.metrics.preprocessing import PillowBicubic
from mmface.rendered import render_face

COUNT = 32
TINY_CLIP = Path(mmface.__file__).parent / "assets" / "tiny-clip"


@pytest.fixture(scope="module")
def faces():
    return [render_face(1_000_000 + index, 96) for index in range(COUNT)]


@pytest.fixture(scope="module")
def clip():
    network = CLIPModel.from_pretrained(TINY_CLIP, dtype=torch.float32)
    preprocessing = PillowBicubic(128, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    tokenizer = CLIPTokenizer.from_pretrained(TINY_CLIP)
    return ClipBackbone(network, tokenizer, "tiny-clip", preprocessing)


@pytest.fixture(scope="module")
def perceptual():
    torch.manual_seed(0)
    return PerceptualNetwork("alex")


def as_batch(images):
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()


def blurred(image, level):
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(level)))


def noisy(image, level):
    noise = np.random.default_rng(0).normal(0, 12 * level, image.shape)
    return (image + noise).clip(0, 255).astype(np.uint8)


def compressed(image, level):
    buffer = io.BytesIO()
    quality = {0: 95, 1: 40, 2: 20, 3: 10, 4: 4}[level]
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


def falls(values):
    return all(earlier > later for earlier, later in pairwise(values))


@pytest.mark.slow
@pytest.mark.parametrize("degrade", [blurred, noisy, compressed])
def test_blur_noise_and_jpeg_worsen_every_metric_of_pictures(degrade, faces, clip, perceptual):
    true = as_batch([face.image for face in faces])
    sketches = torch.from_numpy(np.stack([face.sketch for face in faces]))
    real = clip(true)
    names = ("lpips", "ssim", "frechet", "kernel", "cmmd", "edges")
    measured: dict[str, list[float]] = {name: [] for name in names}
    for level in range(5):
        worse = as_batch([degrade(face.image, level) for face in faces])
        generated = clip(worse)
        measured["lpips"].append(-float(perceptual(worse[:8], true[:8]).double().mean()))
        measured["ssim"].append(float(structural_similarity(worse[:8], true[:8]).mean()))
        measured["edges"].append(float(edge_agreements(worse, sketches).mean()))
        statistics = [FeatureStatistics.of(features) for features in (real, generated)]
        measured["frechet"].append(-frechet_distance(*statistics))
        measured["kernel"].append(-polynomial_mmd(real.double(), generated.double()))
        measured["cmmd"].append(-gaussian_mmd(real, generated))
    if degrade is not blurred:
        # Edge agreement blurs lightly itself: what noise and blocks do to it is tested at the ends.
        edges_fall = measured.pop("edges")
        assert edges_fall[0] > edges_fall[-1]
    for name, values in measured.items():
        assert falls(values), f"{name} under {degrade.__name__}: {values}"


@pytest.mark.slow
def test_exchanged_masks_lower_the_agreement(faces):
    masks = np.stack([face.labels for face in faces])
    accuracy, mean_iou = [], []
    for exchanged in (0, 8, 16, 24, 32):
        parsed = masks.copy()
        parsed[:exchanged] = np.roll(masks, 1, axis=0)[:exchanged]
        result = agreement_of(torch.from_numpy(parsed), torch.from_numpy(masks))
        accuracy.append(result.accuracy)
        mean_iou.append(result.mean_iou)
    assert falls(accuracy), accuracy
    assert falls(mean_iou), mean_iou


@pytest.mark.slow
def test_exchanged_captions_lower_the_clip_score(faces, clip):
    images = as_batch([face.image for face in faces])
    captions = [face.captions[0] for face in faces]
    scores = []
    for exchanged in (0, 8, 16, 24, 32):
        mixed = [*np.roll(captions, 1)[:exchanged].tolist(), *captions[exchanged:]]
        scores.append(float(clip_scores(clip, images, mixed).mean()))
    assert falls(scores), scores
