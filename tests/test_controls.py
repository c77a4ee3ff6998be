"""Each control of sampling has a real effect on the built-in flow, on faces that it never saw."""

from functools import cache

import numpy as np
import pytest
import torch

import mmface
from mmface.conditions import (
    LABEL_INDEX,
    confusion_matrix,
    edge_agreement,
    mean_iou,
    pixel_accuracy,
)
from mmface.encoders.face_parser import FaceParser
from mmface.encoders.vae import image_pixels
from mmface.evaluation.held_out import nearest_colour
from mmface.rendered import CLOTHES_COLORS, RenderedFace, render_face
from mmface.rendered.attributes import HELD_OUT_SEED
from mmface.sampling.guidance import ConditionControl, Guidance
from mmface.sampling.pipeline import MMFacePipeline

STEPS = 8


@cache
def faces() -> list[RenderedFace]:
    return [render_face(HELD_OUT_SEED + 700 + i, 128) for i in range(8)]


@cache
def truth() -> np.ndarray:
    return np.stack([face.image for face in faces()]).astype(np.int64)


@pytest.fixture(scope="module")
def sample():
    pipeline = MMFacePipeline.from_pretrained(mmface.builtin("tiny-flow"))
    pipeline.set_progress_bar_config(disable=True)

    def sample(mask=True, sketch=False, steps=STEPS, **controls):
        output = pipeline(
            [face.captions[0] for face in faces()],
            mask=[face.labels for face in faces()] if mask else None,
            sketch=[face.sketch for face in faces()] if sketch else None,
            num_inference_steps=steps,
            seed=0,
            **controls,
        )
        return np.stack([np.array(picture) for picture in output.images]).astype(np.int64)

    return sample


@pytest.fixture(scope="module")
def parse():
    parser = FaceParser.from_pretrained(mmface.builtin("tiny-flow").parent / "tiny-parser")

    def parse(pictures):
        pixels = [image_pixels(picture.astype(np.uint8)) for picture in pictures]
        return parser.of_pixels(torch.stack(pixels)).numpy()

    return parse


@pytest.fixture(scope="module")
def from_masks(sample):
    return sample()


def confusion(labels, columns=slice(None)):
    pairs = zip(faces(), labels, strict=True)
    return sum(confusion_matrix(face.labels[:, columns], one[:, columns]) for face, one in pairs)


def edges(pictures):
    pairs = zip(pictures.astype(np.uint8), faces(), strict=True)
    return np.mean([edge_agreement(picture, face.sketch) for picture, face in pairs])


def clothes_right(pictures):
    return sum(
        nearest_colour(picture, face.labels == LABEL_INDEX["cloth"], CLOTHES_COLORS)
        == face.attributes.clothes_color
        for picture, face in zip(pictures, faces(), strict=True)
    )


@pytest.mark.slow
def test_a_stronger_condition_is_followed_better(sample, parse, from_masks):
    pictures = [sample(mask_control=ConditionControl(strength=s)) for s in (0.0, 0.5)]
    accuracy = [pixel_accuracy(confusion(parse(p))) for p in (*pictures, from_masks)]
    assert accuracy[0] + 0.05 < accuracy[1]
    assert accuracy[1] + 0.02 < accuracy[2]


@pytest.mark.slow
def test_mask_and_sketch_are_followed_better_together(sample, parse, from_masks):
    together, from_sketches = sample(sketch=True), sample(mask=False, sketch=True)
    assert mean_iou(confusion(parse(together))) > mean_iou(confusion(parse(from_masks)))
    assert edges(together) > edges(from_sketches)


@pytest.mark.slow
def test_a_condition_binds_in_its_region_only(sample, parse, from_masks):
    left = np.zeros((128, 128), np.uint8)
    left[:, :64] = 255
    labels = parse(sample(mask_control=ConditionControl(region=left)))
    bound, free = (pixel_accuracy(confusion(labels, s)) for s in (slice(0, 64), slice(64, 128)))
    whole = pixel_accuracy(confusion(parse(from_masks), slice(64, 128)))
    assert bound > free + 0.05
    assert whole > free + 0.05


@pytest.mark.slow
def test_the_first_steps_of_a_condition_decide_the_layout(sample, parse):
    first, last = (
        pixel_accuracy(confusion(parse(sample(mask_control=control))))
        for control in (ConditionControl(end=0.5), ConditionControl(start=0.5))
    )
    assert first > last


@pytest.mark.slow
def test_guidance_brings_the_prompts_colours(sample, from_masks):
    # Scale 0 is the prediction without a prompt.
    assert clothes_right(from_masks) >= clothes_right(sample(guidance=Guidance(0.0))) + 3


@pytest.mark.slow
def test_variations_leave_their_picture_with_strength(sample):
    images = [face.image for face in faces()]
    distance = [abs(sample(image=images, strength=s) - truth()).mean() for s in (0.25, 0.6, 1.0)]
    assert distance[0] < distance[1] < distance[2]


@pytest.mark.slow
def test_an_edit_changes_its_region_and_nothing_else(sample):
    regions = [((face.labels == LABEL_INDEX["cloth"]) * 255).astype(np.uint8) for face in faces()]
    edited = sample(image=[face.image for face in faces()], region=regions)
    inside = np.stack(regions) > 0
    assert np.array_equal(edited[~inside], truth()[~inside])
    assert abs(edited[inside] - truth()[inside]).mean() > 5
