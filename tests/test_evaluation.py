"""Measures of agreement, against values worked out by hand."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import (
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SegformerImageProcessorPil,
)

from mmface.conditions import (
    LABELS,
    class_iou,
    confusion_matrix,
    edge_agreement,
    flip_labels,
    mean_iou,
    pixel_accuracy,
)
from mmface.encoders.face_parser import FaceParser
from mmface.evaluation.held_out import Tally, as_table, nearest_colour
from mmface.rendered import CLOTHES_COLORS, render_face


@pytest.fixture(scope="module")
def face():
    return render_face(1_000_000, 128)


def test_three_classes_by_hand():
    truth = np.array([[0, 0, 1], [1, 2, 2]], np.uint8)
    predicted = np.array([[0, 1, 1], [1, 2, 0]], np.uint8)
    confusion = confusion_matrix(truth, predicted)
    assert pixel_accuracy(confusion) == pytest.approx(4 / 6)
    np.testing.assert_allclose(class_iou(confusion)[:3], [1 / 3, 2 / 3, 1 / 2])
    assert np.isnan(class_iou(confusion)[3:]).all()
    assert mean_iou(confusion) == pytest.approx((1 / 3 + 2 / 3 + 1 / 2) / 3)


def test_a_mask_agrees_with_itself_and_less_with_its_mirror(face):
    same = confusion_matrix(face.labels, face.labels)
    assert mean_iou(same) == pixel_accuracy(same) == 1
    swapped = mean_iou(confusion_matrix(face.labels, flip_labels(face.labels)))
    unswapped = mean_iou(confusion_matrix(face.labels, face.labels[:, ::-1]))
    assert unswapped < swapped < 1


def test_edges_agree_with_their_own_sketch_more_than_with_another(face):
    other = render_face(1_000_001, 128)
    own, shuffled = (edge_agreement(face.image, f.sketch) for f in (face, other))
    assert 1 >= own > shuffled + 0.1
    black_on_white = np.full((64, 64), 255, np.uint8)
    black_on_white[20:44, 20:22] = 0
    picture = np.repeat(black_on_white[..., None], 3, 2)
    assert edge_agreement(picture, black_on_white) > 0.9


def test_contrast_does_not_change_edge_agreement(face):
    faint = (face.image // 4 + 90).astype(np.uint8)
    difference = edge_agreement(faint, face.sketch) - edge_agreement(face.image, face.sketch)
    assert abs(difference) < 0.05


def test_a_blank_sketch_is_refused(face):
    with pytest.raises(ValueError, match="no line"):
        edge_agreement(face.image, np.full((128, 128), 255, np.uint8))


def test_region_median_names_the_colour(face):
    region = face.labels == LABELS.index("cloth")
    assert nearest_colour(face.image, region, CLOTHES_COLORS) == face.attributes.clothes_color


def test_tally_of_true_pictures_is_perfect(face):
    tally = Tally()
    tally.add(face.image, face.labels, face)
    summary = tally.summary()
    assert summary["mean_iou"] == summary["clothes_colour"] == summary["background_colour"] == 1
    table = as_table({"true pictures": summary})
    assert table.splitlines()[1].startswith("true pictures")
    assert "1.000" in table


def tiny_segformer(names):
    labels = dict(enumerate(names))
    config = SegformerConfig(
        depths=[1, 1, 1, 1],
        hidden_sizes=[8, 8, 8, 8],
        num_attention_heads=[1, 1, 1, 1],
        decoder_hidden_size=8,
        num_labels=len(names),
        id2label=labels,
        label2id={name: index for index, name in labels.items()},
    )
    return SegformerForSemanticSegmentation(config)


def test_parser_gives_full_size_labels_whatever_the_batch():
    torch.manual_seed(0)
    parser = FaceParser(tiny_segformer(LABELS), SegformerImageProcessorPil())
    pixels = torch.rand(3, 3, 64, 96) * 2 - 1
    labels = parser.of_pixels(pixels)
    assert labels.shape == (3, 64, 96)
    assert labels.dtype == torch.uint8
    alone = torch.cat([parser.of_pixels(one[None]) for one in pixels])
    assert (labels == alone).float().mean() > 0.999


def test_parser_upsamples_scores_and_not_classes():
    torch.manual_seed(0)
    parser = FaceParser(tiny_segformer(LABELS), SegformerImageProcessorPil())
    pixels = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        scores = parser.model(pixel_values=pixels).logits
    assert scores.shape == (1, len(LABELS), 16, 16)
    full = F.interpolate(scores, (64, 64), mode="bilinear", align_corners=False)
    assert torch.equal(parser.of_pixels(pixels)[0].long(), full[0].argmax(0))
    enlarged = scores.argmax(1).repeat_interleave(4, 1).repeat_interleave(4, 2)
    assert (parser.of_pixels(pixels).long() != enlarged).any()


OLD_NAMES = """
    background skin.png nose.png r_eye l_eye r_brow l_brow r_ear l_ear mouth u_lip l_lip neck
    hair neck_l cloth eye_g hat ear_r
"""
"""The names in the config of jonathandinu/face-parsing before its commit 373bfce."""


@pytest.mark.parametrize(
    "names", [("background", "nose"), OLD_NAMES.split(), (*LABELS[:-2], *LABELS[:-3:-1])]
)
def test_parser_with_other_class_names_is_refused(names):
    with pytest.raises(ValueError, match=r"the parser's classes.*take a revision"):
        FaceParser(tiny_segformer(names), SegformerImageProcessorPil())
