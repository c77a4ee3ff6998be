"""Guidance: the sums are those of the formulas, the model computes no more than they need."""

from typing import Any

import numpy as np
import pytest
import torch
from conftest import IMAGE_SIZE

from mmface.conditions import MASK, SKETCH, colorize, load_mask, load_sketch
from mmface.encoders.vae import image_pixels
from mmface.model.transformer import MMFaceDiT
from mmface.sampling.guidance import ConditionControl, Guidance

STEPS = 4
FAST: dict[str, Any] = {"num_inference_steps": STEPS, "output_type": "latent", "seed": 3}
SIZE = (IMAGE_SIZE, IMAGE_SIZE)


class Reference:
    """Predicts e(x, c) by the model's `forward`, and follows the paper's Euler steps."""

    def __init__(self, pipe, mask, sketch):
        self.pipe = pipe
        with torch.no_grad():
            pixels = (
                image_pixels(colorize(load_mask(mask, SIZE).labels)),
                image_pixels(SKETCH.rgb(load_sketch(sketch, SIZE))),
            )
            self.latents = dict(
                zip((MASK, SKETCH), pipe.codec.encode(torch.stack(pixels)), strict=True)
            )

    def predict(self, latents, time, prompt, condition=None, modality=MASK):
        modality = modality if condition is None else condition
        given = torch.zeros_like(latents) if condition is None else self.latents[condition][None]
        text = self.pipe.text([prompt])
        return self.pipe.transformer(
            latents,
            given,
            torch.full((1,), 999 * time),
            text.tokens,
            text.pooled,
            torch.tensor([modality.index]),
        )

    @torch.no_grad()
    def follow(self, velocity):
        shape = (1, *self.latents[MASK].shape)
        latents = torch.randn(shape, generator=torch.Generator().manual_seed(FAST["seed"]))
        for step in range(STEPS):
            latents = latents + velocity(latents, step / STEPS) / STEPS
        return latents


@pytest.fixture(scope="module")
def pictures():
    rows, columns = np.mgrid[:64, :64]
    labels = np.where((rows - 32) ** 2 + (columns - 32) ** 2 < 500, 1, 0).astype(np.uint8)
    sketch = np.where(abs(np.hypot(rows - 32, columns - 32) - 22) < 1.5, 0, 255).astype(np.uint8)
    return {"mask": labels, "sketch": sketch}


@pytest.fixture(scope="module")
def reference(tiny_pipeline, pictures):
    return Reference(tiny_pipeline, **pictures)


def close(actual, expected):
    torch.testing.assert_close(actual, expected, atol=2e-4, rtol=2e-4)


@pytest.fixture
def rows_per_call(monkeypatch):
    counted = []

    def denoise(model, noisy, *rest, original=MMFaceDiT.denoise):
        counted.append(len(noisy))
        return original(model, noisy, *rest)

    monkeypatch.setattr(MMFaceDiT, "denoise", denoise)
    return counted


@pytest.mark.parametrize(("scale", "condition_scale"), [(3.0, 2.0), (1.0, 1.5), (2.0, 2.0)])
def test_guidance_on_text_and_condition(tiny_pipeline, reference, pictures, scale, condition_scale):
    """e(n,0) + s_c (e(n,c) - e(n,0)) + s_t (e(t,c) - e(n,c))."""

    def velocity(latents, time):
        none = reference.predict(latents, time, "no")
        condition = reference.predict(latents, time, "no", MASK)
        both = reference.predict(latents, time, "a", MASK)
        return none + condition_scale * (condition - none) + scale * (both - condition)

    made = tiny_pipeline(
        "a",
        pictures["mask"],
        negative_prompt="no",
        guidance=Guidance(scale, condition_scale),
        **FAST,
    )
    close(made.images, reference.follow(velocity))


def test_no_more_is_computed_than_needed(tiny_pipeline, pictures, rows_per_call):
    def rows(**changed):
        rows_per_call.clear()
        tiny_pipeline("a", pictures["mask"], **FAST | changed)
        return rows_per_call.copy()

    assert rows(guidance=Guidance(1.0)) == [1] * 4
    assert rows(guidance=Guidance(3.0)) == [2] * 4
    assert rows(guidance=Guidance(3.0, 2.0)) == [3] * 4
    assert rows(guidance=Guidance(3.0, 3.0)) == [2] * 4
    assert rows(guidance=Guidance(3.0, rescale=0.5)) == [2] * 4
    assert rows(guidance=Guidance(3.0, start=0.25, end=0.75)) == [1, 2, 2, 1]
    assert rows(guidance=Guidance(1.0), mask_control=ConditionControl(2.0)) == [2] * 4
    assert rows(guidance=Guidance(1.0), mask_control=ConditionControl(0.0)) == [1] * 4
    assert rows(guidance=Guidance(3.0), sketch=pictures["sketch"]) == [6] * 4
    assert rows(guidance=Guidance(1.0), num_images_per_prompt=5, max_batch=2) == [2, 2, 1] * 4


def test_interval_and_window(tiny_pipeline, reference, pictures):
    def velocity(latents, time):
        condition = MASK if 0.25 <= time < 0.75 else None
        wanted = reference.predict(latents, time, "a", condition)
        if time >= 0.5:
            return wanted
        unwanted = reference.predict(latents, time, "", condition)
        return unwanted + 4 * (wanted - unwanted)

    made = tiny_pipeline(
        "a",
        pictures["mask"],
        guidance=Guidance(4.0, end=0.5),
        mask_control=ConditionControl(start=0.25, end=0.75),
        **FAST,
    )
    close(made.images, reference.follow(velocity))


@pytest.mark.parametrize("rescale", [0.7, 1.0])
def test_rescale_is_the_papers(tiny_pipeline, reference, pictures, rescale):
    def velocity(latents, time):
        wanted = reference.predict(latents, time, "a", MASK)
        unwanted = reference.predict(latents, time, "", MASK)
        guided = unwanted + 6 * (wanted - unwanted)
        rescaled = guided * wanted.std() / guided.std()
        return rescale * rescaled + (1 - rescale) * guided

    made = tiny_pipeline("a", pictures["mask"], guidance=Guidance(6.0, rescale=rescale), **FAST)
    close(made.images, reference.follow(velocity))


@pytest.mark.parametrize("strength", [0.0, 0.5, 2.0])
def test_strength_is_guidance_on_the_condition(tiny_pipeline, reference, pictures, strength):
    def velocity(latents, time):
        none, bound = (reference.predict(latents, time, "a", c, SKETCH) for c in (None, SKETCH))
        return none + strength * (bound - none)

    made = tiny_pipeline(
        "a",
        sketch=pictures["sketch"],
        guidance_scale=1.0,
        sketch_control=ConditionControl(strength),
        **FAST,
    )
    close(made.images, reference.follow(velocity))


def test_mask_and_sketch_are_composed(tiny_pipeline, reference, pictures):
    def velocity(latents, time):
        none = reference.predict(latents, time, "a")
        mask = reference.predict(latents, time, "a", MASK)
        sketch = reference.predict(latents, time, "a", SKETCH)
        return none + 0.8 * (mask - none) + 1.0 * (sketch - none)

    made = tiny_pipeline(
        "a", **pictures, guidance_scale=1.0, mask_control=ConditionControl(0.8), **FAST
    )
    close(made.images, reference.follow(velocity))


def test_a_batch_may_mix_all_kinds_of_requests(tiny_pipeline, pictures):
    mask, sketch = pictures["mask"], pictures["sketch"]
    arguments = {"num_inference_steps": 3, "output_type": "latent", "guidance": Guidance(2.0, 1.5)}
    batch = tiny_pipeline(
        ["a", "b", "c"], [mask, None, mask], [None, sketch, sketch], seed=1, **arguments
    ).images
    for place, conditions in enumerate(((mask, None), (None, sketch), (mask, sketch))):
        alone = tiny_pipeline("abc"[place], *conditions, seed=1 + place, **arguments).images
        close(alone[0], batch[place])


def test_region_binds_inside_and_asks_nothing_outside(tiny_pipeline, reference, pictures):
    inside = np.zeros(SIZE, bool)
    inside[:, :16] = True
    share = torch.zeros(1, 1, 4, 4)
    share[..., :2] = 1

    def velocity(latents, time):
        none = reference.predict(latents, time, "a")
        return none + share * (reference.predict(latents, time, "a", MASK) - none)

    def sample(region):
        control = ConditionControl(region=region)
        return tiny_pipeline(
            "a", pictures["mask"], guidance_scale=1.0, mask_control=control, **FAST
        ).images

    close(sample(inside), reference.follow(velocity))
    close(sample(np.ones(SIZE, bool)), sample(None))


def test_max_batch_changes_nothing(tiny_pipeline, pictures):
    arguments = {"num_images_per_prompt": 3, "num_inference_steps": 2, "seed": 0}
    whole = tiny_pipeline("a", **pictures, **arguments).images
    parts = tiny_pipeline("a", **pictures, max_batch=2, **arguments).images
    for one, other in zip(whole, parts, strict=True):
        assert np.abs(np.array(one).astype(int) - np.array(other)).max() <= 1


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Guidance(-1.0), "guidance_scale must be 0 or more"),
        (lambda: Guidance(float("inf")), "guidance_scale must be"),
        (lambda: Guidance(1.0, float("nan")), "condition_scale must be"),
        (lambda: Guidance(rescale=1.5), r"rescale must be in 0\.\.1"),
        (lambda: Guidance(start=0.6, end=0.4), "guidance start must be below its end"),
        (lambda: Guidance(end=1.2), r"guidance end must be in 0\.\.1"),
        (lambda: ConditionControl(-0.1), "condition strength must be"),
        (lambda: ConditionControl(start=0.5, end=0.5), "condition start must be below"),
    ],
)
def test_wrong_numbers_are_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"guidance_scale": 2.0, "guidance": Guidance(3.0)}, "give one of them"),
        ({"sketch_control": ConditionControl()}, "sketch_control is given, but no sketch"),
        ({"mask_control": ConditionControl(region=np.zeros(SIZE, bool))}, "mask_control.*black"),
        ({"mask_control": ConditionControl(region=np.ones(SIZE, np.uint8))}, "255 for inside"),
        ({"max_batch": 0}, "max_batch must be"),
    ],
)
def test_contradictions_are_named(tiny_pipeline, pictures, changed, message):
    with pytest.raises(ValueError, match=message):
        tiny_pipeline("a", pictures["mask"], num_inference_steps=1, **changed)
