"""SSIM and MS-SSIM against libraries that share no code with torchmetrics."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from jaxtyping import UInt8
from PIL import Image, ImageFilter
from pytorch_msssim import ms_ssim, ssim
from torch import Tensor

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
def test_ssim_agrees_with_pytorch_msssim_and_scikit_image(change):
    from skimage import metrics as scikit_image

    images, references = pair = pictures(change)
    ours = structural_similarity(*pair)
    theirs = ssim(images.float(), references.float(), data_range=255, size_average=False)
    torch.testing.assert_close(ours.float(), theirs, atol=5e-5, rtol=0)  # theirs is float32
    for value, image, reference in zip(ours, images, references, strict=True):
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


@pytest.mark.slow
@CHANGES
def test_multiscale_ssim_agrees_with_pytorch_msssim(change):
    images, references = pair = pictures(change)
    ours = multiscale_structural_similarity(*pair)
    theirs = ms_ssim(images.float(), references.float(), data_range=255, size_average=False)
    assert 0.05 < float(theirs.min()) < float(theirs.max()) < 0.999
    # The windows at the border, which theirs leaves out, are a matter of the third decimal here.
    torch.testing.assert_close(ours.float(), theirs, atol=1.5e-3, rtol=0)
