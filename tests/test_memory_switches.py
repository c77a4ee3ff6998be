"""Each switch that saves memory leaves the picture as it is."""

from typing import Any

import numpy as np
import pytest
import torch
from conftest import IMAGE_SIZE, build_pipeline, latents_of

from mmface.conditions import colorize
from mmface.sampling.pipeline import MMFacePipeline

MASK = colorize(np.random.default_rng(0).integers(0, 3, (64, 64)).astype(np.uint8))
LATENT: dict[str, Any] = {"seed": 0, "num_inference_steps": 2, "output_type": "latent"}


@pytest.fixture
def pipe() -> MMFacePipeline:
    return build_pipeline()


def pixels(pipe: MMFacePipeline, **options) -> np.ndarray:
    given = LATENT | {"output_type": "np", "num_images_per_prompt": 2}
    return np.asarray(pipe("a", mask=MASK, **given | options).images)


def test_slices_are_the_whole(pipe):
    plain = pixels(pipe)
    pipe.enable_vae_slicing()
    assert np.abs(pixels(pipe) - plain).max() < 1e-5
    pipe.disable_vae_slicing()
    assert np.array_equal(pixels(pipe), plain)


def test_tiles_are_the_whole_up_to_the_models_size_and_near_it_beyond(pipe):
    large = {"height": 2 * IMAGE_SIZE, "width": 2 * IMAGE_SIZE}
    plain, plain_large = pixels(pipe), pixels(pipe, **large)
    pipe.enable_vae_tiling()
    assert np.array_equal(pixels(pipe), plain)
    tiled = pixels(pipe, **large)
    assert tiled.shape == plain_large.shape
    assert np.isfinite(tiled).all()
    pipe.disable_vae_tiling()
    assert np.array_equal(pixels(pipe, **large), plain_large)


@pytest.mark.parametrize(
    "how",
    [{"offload_type": "leaf_level"}, {"offload_type": "block_level", "num_blocks_per_group": 1}],
)
def test_groups_that_lie_on_the_disk_are_brought_for_a_call(pipe, how, tmp_path):
    """What lies on the disk has no values in memory: a layer that is not brought would fail."""
    plain = latents_of(pipe("a", mask=MASK, **LATENT))
    pipe.transformer.enable_group_offload(
        onload_device=torch.device("cpu"), offload_to_disk_path=str(tmp_path), **how
    )
    for _ in range(2):
        assert torch.equal(latents_of(pipe("a", mask=MASK, **LATENT)), plain)


def test_groups_of_the_whole_pipeline(pipe):
    plain = pixels(pipe)
    pipe.enable_group_offload(onload_device=torch.device("cpu"), offload_type="leaf_level")
    assert np.array_equal(pixels(pipe), plain)


def test_layerwise_casting_is_the_pipeline_with_rounded_weights(pipe):
    storage = torch.float8_e4m3fn
    pipe.transformer.enable_layerwise_casting(storage_dtype=storage, compute_dtype=torch.float32)
    cast = latents_of(pipe("a", mask=MASK, **LATENT))
    stored = {name for name, p in pipe.transformer.named_parameters() if p.dtype == storage}
    assert len(stored) > 10
    rounded = build_pipeline()
    with torch.no_grad():
        for name, parameter in rounded.transformer.named_parameters():
            if name in stored:
                parameter.copy_(parameter.to(storage).float())
    assert torch.equal(cast, latents_of(rounded("a", mask=MASK, **LATENT)))
    assert not torch.equal(cast, latents_of(build_pipeline()("a", mask=MASK, **LATENT)))
