"""The built-in models do what they were trained for, on faces that they never saw."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import CLIPModel, CLIPTokenizer

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
from mmface.rendered import CLOTHES_COLORS, render_face
from mmface.rendered.attributes import HELD_OUT_SEED
from mmface.sampling.pipeline import MMFacePipeline

ASSETS = Path(mmface.__file__).parent / "assets"


@pytest.fixture(scope="module")
def faces():
    return [render_face(HELD_OUT_SEED + 500 + i, 128) for i in range(6)]


@pytest.fixture(scope="module")
def parser():
    return FaceParser.from_pretrained(ASSETS / "tiny-parser")


def parsed_agreement(parser, pictures, faces):
    labels = parser.of_pixels(
        torch.stack([image_pixels(np.array(picture)) for picture in pictures])
    )
    return sum(
        confusion_matrix(face.labels, one) for face, one in zip(faces, labels.numpy(), strict=True)
    )


def sample(name, faces, **conditions):
    pipeline = MMFacePipeline.from_pretrained(mmface.builtin(name))
    pipeline.set_progress_bar_config(disable=True)
    prompts = [face.captions[0] for face in faces]
    return pipeline(prompts, **conditions, num_inference_steps=12, seed=0).images


def test_the_whole_family_is_small():
    size = sum(path.stat().st_size for path in ASSETS.rglob("*") if path.is_file())
    assert size <= 25_000_000
    assert not [path for path in ASSETS.rglob("*") if path.suffix in (".bin", ".pt", ".pkl")]


def test_parser_reads_true_pictures(parser, faces):
    confusion = parsed_agreement(parser, [face.image for face in faces], faces)
    assert pixel_accuracy(confusion) > 0.96
    assert mean_iou(confusion) > 0.8


@pytest.mark.slow
def test_switches_that_save_memory_change_no_picture(faces):
    pipeline = MMFacePipeline.from_pretrained(mmface.builtin("tiny-flow"))
    pipeline.set_progress_bar_config(disable=True)
    masks, prompts = [face.labels for face in faces[:2]], [face.captions[0] for face in faces[:2]]

    def made(**options: Any) -> np.ndarray:
        given: dict[str, Any] = {"num_inference_steps": 2, "seed": 0, "output_type": "np"} | options
        return np.asarray(pipeline(prompts, masks, **given).images)

    plain, large = made(), made(height=192, width=192)
    for switch in ("enable_tiling", "enable_slicing"):
        getattr(pipeline.vae, switch)()
        assert abs(made() - plain).max() < 1e-5, switch
    assert abs(made(max_batch=1) - plain).max() < 1e-3
    # Larger ones are cut into tiles of the trained size, which overlap and differ little.
    assert abs(made(height=192, width=192) - large).mean() < 0.03


@pytest.fixture(scope="module", params=["tiny-flow", "tiny-ddpm"])
def from_masks(request, faces):
    """Pictures of a built-in pipeline from the faces' masks and first captions."""
    pictures = sample(request.param, faces, mask=[face.labels for face in faces])
    return [np.array(picture) for picture in pictures]


@pytest.mark.slow
def test_faces_follow_their_masks(parser, faces, from_masks):
    confusion = parsed_agreement(parser, from_masks, faces)
    others = parsed_agreement(parser, from_masks, [*faces[1:], faces[0]])
    assert pixel_accuracy(confusion) > 0.85
    assert mean_iou(confusion) > mean_iou(others) + 0.15


@pytest.mark.slow
def test_faces_wear_the_colours_that_prompts_name(faces, from_masks):
    right = [
        nearest_colour(picture, face.labels == LABEL_INDEX["cloth"], CLOTHES_COLORS)
        == face.attributes.clothes_color
        for picture, face in zip(from_masks, faces, strict=True)
    ]
    assert sum(right) >= 5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny-flow", "tiny-ddpm"])
def test_faces_follow_their_sketches(name, faces):
    pictures = [np.array(p) for p in sample(name, faces, sketch=[face.sketch for face in faces])]
    own = [edge_agreement(p, f.sketch) for p, f in zip(pictures, faces, strict=True)]
    others = [edge_agreement(p, f.sketch) for p, f in zip(pictures, faces[1:], strict=False)]
    assert np.mean(own) > np.mean(others) + 0.1


def test_clip_pair_prefers_a_faces_own_caption(faces):
    model = CLIPModel.from_pretrained(ASSETS / "tiny-clip", dtype=torch.float32).eval()
    tokenizer = CLIPTokenizer.from_pretrained(ASSETS / "tiny-clip")
    tokens = tokenizer(
        [face.captions[0] for face in faces], padding="max_length", return_tensors="pt"
    ).input_ids
    pixels = torch.stack([image_pixels(face.image) for face in faces])
    with torch.no_grad():
        logits = model(input_ids=tokens, pixel_values=pixels).logits_per_text
    assert (logits.argmax(1) == torch.arange(len(faces))).float().mean() >= 0.8
