"""Pictures as starting points: strength, regions that alone change, latents in and out."""

import numpy as np
import pytest
import torch
from conftest import IMAGE_SIZE, build_pipeline
from PIL import Image

from mmface.encoders.vae import to_uint8
from mmface.objectives.solvers import TRANSLATIONS
from mmface.sampling.blending import FEATHER_PX, feathered, load_image, load_region

SIZE = (IMAGE_SIZE, IMAGE_SIZE)
FAST = {"num_inference_steps": 4, "seed": 2}


@pytest.fixture(scope="module", params=TRANSLATIONS)
def pipeline(request):
    return build_pipeline(request.param)


@pytest.fixture
def photo() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)


@pytest.fixture
def middle() -> np.ndarray:
    region = np.zeros(SIZE, bool)
    region[9:27, 6:25] = True
    return region


def difference(one, other) -> np.ndarray:
    return np.abs(np.asarray(one).astype(int) - np.asarray(other)).max(axis=-1)


@pytest.mark.slow
def test_outside_the_region_every_pixel_stays(pipeline, face_mask, photo, middle):
    for solver in pipeline.translation.solvers:
        made = pipeline(
            ["a", "b"],
            face_mask,
            image=[photo, Image.fromarray(photo)],
            region=middle,
            solver=solver,
            num_images_per_prompt=2,
            **FAST,
        ).images
        assert len(made) == 4
        for picture in made:
            assert difference(picture, photo)[~middle].max() == 0
            assert (difference(picture, photo)[middle] > 0).mean() > 0.9


def test_the_seam_is_soft_and_lies_inside(middle):
    region = torch.from_numpy(middle).float()[None, None]
    opacity = feathered(region)[0, 0].numpy()
    assert (opacity[~middle] == 0).all()
    along = opacity[18, 6 : 6 + FEATHER_PX + 1]
    np.testing.assert_allclose(along, [0.25, 0.5, 0.75, 1, 1])
    everywhere = torch.ones(1, 1, 8, 8)
    assert torch.equal(feathered(everywhere), everywhere)
    assert torch.equal(feathered(region * 0.5), feathered(region) * 0.5)


def test_kept_latents_are_the_pictures_at_every_step(pipeline, face_mask, photo):
    region = np.zeros(SIZE, bool)
    region[:, 16:] = True
    seen = []

    def callback(pipe, index, timestep, tensors):
        seen.append(tensors["latents"].clone())
        return {}

    made = pipeline(
        "a",
        face_mask,
        image=photo,
        region=region,
        output_type="latent",
        callback_on_step_end=callback,
        **FAST,
    ).images
    with torch.no_grad():
        original = pipeline.codec.encode(load_image(photo, SIZE)[None])
    torch.testing.assert_close(made[..., :2], original[..., :2])
    assert (made[..., 2:] - original[..., 2:]).abs().mean() > 0.1
    distances = [float((each - original)[..., :2].abs().mean()) for each in seen]
    assert distances == sorted(distances, reverse=True)
    assert distances[0] > distances[-1] == 0


@pytest.mark.slow
def test_strength_goes_from_the_picture_to_noise_alone(pipeline, face_mask, photo):
    def sample(**changed):
        return pipeline(
            "a",
            face_mask,
            output_type="latent",
            guidance_scale=1.0,
            **FAST | {"num_inference_steps": 8} | changed,
        ).images

    alone = sample()
    assert torch.equal(sample(image=photo, strength=1.0), alone)
    with torch.no_grad():
        original = pipeline.codec.encode(load_image(photo, SIZE)[None])
    away = [
        float((sample(image=photo, strength=s) - original).abs().mean()) for s in (0.125, 0.5, 1.0)
    ]
    assert away == sorted(away)
    assert torch.equal(sample(image=photo), sample(image=photo, strength=0.6))
    assert not torch.allclose(sample(image=photo), alone, atol=1e-2)


def test_latents_in_are_the_noise(pipeline, face_mask, photo):
    noise = torch.randn(1, 16, 4, 4, generator=torch.Generator().manual_seed(FAST["seed"]))
    given = {"num_inference_steps": 3, "output_type": "latent"}
    for start in ({}, {"image": photo, "strength": 0.5}):
        seeded = pipeline("a", face_mask, seed=FAST["seed"], **start, **given)
        drawn = pipeline("a", face_mask, latents=noise.double(), **start, **given)
        assert torch.equal(seeded.images, drawn.images)
        assert drawn.seeds is None


def test_pictures_and_regions_are_read_as_they_are(tmp_path, photo, middle):
    path = tmp_path / "photo.png"
    Image.fromarray(photo).save(path)
    assert np.array_equal(to_uint8(load_image(path, SIZE)), photo)
    wide = np.concatenate([photo * 0, photo, photo * 0], axis=1)
    assert np.array_equal(to_uint8(load_image(wide, SIZE)), photo)
    assert np.array_equal(load_region(middle, SIZE, "r").numpy() > 0, middle)
    grey = load_region(np.full(SIZE, 51, np.uint8), SIZE, "r")
    torch.testing.assert_close(grey, torch.full(SIZE, 0.2))
    brush = Image.new("RGBA", SIZE[::-1])
    brush.paste((255, 255, 255, 255), (4, 4, 12, 20))
    assert load_region(brush, SIZE, "r").sum() == 8 * 16


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"strength": 0.5}, "strength is given without an image"),
        ({"region": "r.png"}, "region is given without an image"),
        ({"image": "photo", "strength": 0.0}, "strength must be above 0"),
        ({"image": "photo", "strength": 1.5}, r"strength must be in 0\.\.1"),
        ({"image": "photo", "strength": float("nan")}, "strength must be"),
        ({"image": "photo", "region": np.zeros(SIZE, bool)}, "all black"),
        ({"image": "photo", "region": np.ones(SIZE, np.uint8)}, "255 for inside"),
        ({"image": ["photo", "photo"]}, "image is a list of 2 for 1 prompts"),
        ({"latents": torch.zeros(1, 16, 4, 4), "seed": 1}, "latents are the noise itself"),
        ({"latents": torch.zeros(1, 4, 4, 4)}, r"must be \[1, 16, 4, 4\]"),
        ({"latents": torch.full((1, 16, 4, 4), float("nan"))}, "not finite"),
        ({"solver": "magic"}, "'magic' does not fit"),
    ],
)
def test_contradictions_are_named(tiny_pipeline, face_mask, photo, changed, message):
    if "image" in changed:
        one = changed["image"] == "photo"
        changed = changed | {"image": photo if one else [photo, photo]}
    with pytest.raises(ValueError, match=message):
        tiny_pipeline("a", face_mask, num_inference_steps=2, **changed)


def test_a_picture_that_is_not_there_is_named(tiny_pipeline, face_mask):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.png"):
        tiny_pipeline("a", face_mask, image="nowhere.png", num_inference_steps=1)
