"""SSIM against scikit-image, MS-SSIM against its formula, the CLIP score against transformers."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from jaxtyping import UInt8
from PIL import Image, ImageFilter
from torch import Tensor

import mmface
from mmface.evaluation.references import HeldOutPictures, References
from mmface.metrics.backbones import BackboneSource, ClipBackbone
from mmface.metrics.caption_agreement import ClipScore
from mmface.metrics.picture_similarity import (
    multiscale_structural_similarity,
    structural_similarity,
)
from mmface.rendered import render_face

SIZE_PX = 192
Pictures = UInt8[Tensor, "batch 3 height width"]


def pictures(change: Callable[[Image.Image], Image.Image]) -> tuple[Pictures, Pictures]:
    """Make three faces, and what a change makes of them."""
    faces = [Image.fromarray(render_face(seed, SIZE_PX).image) for seed in range(3)]

    def batch(images: list[Image.Image]) -> Pictures:
        return torch.stack([torch.from_numpy(np.array(x)).permute(2, 0, 1) for x in images])

    return batch([change(face) for face in faces]), batch(faces)


def blur(image: Image.Image) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(2))


def noise(image: Image.Image) -> Image.Image:
    drawn = np.random.default_rng(0).normal(0, 20, (SIZE_PX, SIZE_PX, 3))
    return Image.fromarray((np.asarray(image) + drawn).clip(0, 255).astype(np.uint8))


def darken(image: Image.Image) -> Image.Image:
    return image.point(lambda value: value // 2)


CHANGES = pytest.mark.parametrize("change", [blur, noise, darken])


@pytest.mark.slow
@CHANGES
def test_ssim_agrees_with_scikit_image(change):
    from skimage import metrics as scikit_image

    images, references = pair = pictures(change)
    for value, image, reference in zip(
        structural_similarity(*pair), images, references, strict=True
    ):
        other = scikit_image.structural_similarity(
            reference.numpy(),
            image.numpy(),
            channel_axis=0,
            data_range=255,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        assert float(value) == pytest.approx(other, abs=1e-12)


def by_formula(image, reference):
    """MS-SSIM of two pictures, uint8 [3, H, W], by scipy: eq. 7 of Wang et al., 2003."""
    from scipy.ndimage import gaussian_filter

    def blurred(x):
        return gaussian_filter(x, 1.5, radius=5, axes=(1, 2))[:, 5:-5, 5:-5]

    x, y = image.double().numpy(), reference.double().numpy()
    value = np.ones(3)
    for scale, weight in enumerate((0.0448, 0.2856, 0.3001, 0.2363, 0.1333)):
        mean_x, mean_y = blurred(x), blurred(y)
        variances = blurred(x * x) - mean_x**2 + blurred(y * y) - mean_y**2
        contrast = (2 * (blurred(x * y) - mean_x * mean_y) + 58.5225) / (variances + 58.5225)
        if scale == 4:
            contrast *= (2 * mean_x * mean_y + 6.5025) / (mean_x**2 + mean_y**2 + 6.5025)
        value *= contrast.mean((1, 2)).clip(0) ** weight
        x, y = (z.reshape(3, z.shape[1] // 2, 2, -1, 2).mean((2, 4)) for z in (x, y))
    return value.mean()


@pytest.mark.slow
@pytest.mark.parametrize("change", [blur, darken, "another face"])
def test_multiscale_ssim_is_its_formula_without_a_border(change):
    images, references = pictures(blur if change == "another face" else change)
    if change == "another face":
        images = references.roll(1, 0)
    ours = multiscale_structural_similarity(images, references)
    theirs = [by_formula(*pair) for pair in zip(images, references, strict=True)]
    assert ours.tolist() == pytest.approx(theirs, abs=1e-12)


def test_clip_score_is_that_of_transformers_own_model_processor_and_tokenizer():
    from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

    folder = Path(mmface.__file__).parent / "assets/tiny-clip"
    faces = [render_face(1_000_000 + number, SIZE_PX) for number in range(3)]
    captions = [face.captions[0] for face in faces]
    processor = CLIPImageProcessorPil(size={"shortest_edge": 128}, crop_size=128)
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    model = CLIPModel.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        output = model(
            pixel_values=processor(
                [face.image for face in faces], return_tensors="pt"
            ).pixel_values,
            **tokenizer(
                captions,
                padding="max_length",
                truncation=True,
                max_length=model.config.text_config.max_position_embeddings,
                return_tensors="pt",
            ),
        )
    theirs = (100 * output.logits_per_image.diagonal() / model.logit_scale.exp()).detach()
    metric = ClipScore(BackboneSource(lambda: ClipBackbone.from_pretrained(folder), "build it"))
    metric.load(torch.device("cpu"))
    given = HeldOutPictures(3, SIZE_PX)
    orders = [References(given, "mask").order(item, seed=0) for item in range(3)]
    truth = torch.stack([torch.from_numpy(order.truth).permute(2, 0, 1) for order in orders])
    values = metric.read(truth, orders)
    assert [one["clip"] for one in values] == pytest.approx(theirs.tolist(), abs=2e-3)
    cells = metric.intervals([order.id for order in orders], values)
    assert cells["clip"].estimate == pytest.approx(float(theirs.mean()), abs=2e-3)
    assert cells["clip_distance"].estimate == pytest.approx(
        1 - float(theirs.mean()) / 100, abs=2e-5
    )
