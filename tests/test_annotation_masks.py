"""Masks: the picture parser on rendered faces, at the size of each picture."""

import json
import shutil

import numpy as np
import pytest
import torch
from transformers import SegformerConfig, SegformerForSemanticSegmentation
from transformers import SegformerImageProcessorPil as SegformerProcessor

from mmface.conditions import LABELS
from mmface.encoders.face_parser import TINY_PARSER, FaceParser
from mmface.rendered import render_face


@pytest.fixture(scope="module")
def parser_folder(tmp_path_factory):
    """The built-in parser with the preprocessor that it was trained with."""
    folder = tmp_path_factory.mktemp("parser") / "tiny"
    shutil.copytree(TINY_PARSER, folder)
    half = [0.5, 0.5, 0.5]
    size = {"height": 128, "width": 128}
    SegformerProcessor(size=size, image_mean=half, image_std=half).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def parser(parser_folder):
    return FaceParser.from_pretrained(parser_folder)


@pytest.mark.slow
def test_rendered_faces_are_parsed(parser):
    faces = [render_face(1_000_000 + number, 192) for number in range(8)]
    confusion = np.zeros((len(LABELS), len(LABELS)))
    for face, labels in zip(faces, parser([face.image for face in faces]), strict=True):
        assert labels.shape == face.labels.shape
        np.add.at(confusion, (face.labels, labels), 1)
    union = confusion.sum(0) + confusion.sum(1) - confusion.diagonal()
    assert (confusion.diagonal()[union > 0] / union[union > 0]).mean() > 0.8
    assert confusion.trace() / confusion.sum() > 0.95


def test_a_batch_of_several_sizes_is_parsed_like_each_alone(parser):
    pictures = [render_face(1_000_020, size).image for size in (96, 160)]
    pictures.append(np.ascontiguousarray(pictures[1][:120]))
    for picture, labels in zip(pictures, parser(pictures), strict=True):
        assert labels.shape == picture.shape[:2]
        assert (labels == parser([picture])[0]).mean() > 0.999


def test_logits_are_brought_to_full_size_before_the_argmax(parser):
    """Edges of a large picture are smooth, not blocks of the network's own resolution."""
    labels = parser([render_face(1_000_020, 512).image])[0]
    blocks = labels.reshape(128, 4, 128, 4)
    mixed = (blocks != blocks[:, :1, :, :1]).any((1, 3)).mean()
    assert mixed > 0.02


@pytest.mark.slow
def test_how_pixels_are_wanted_is_read_from_the_file(parser_folder, parser, tmp_path):
    shutil.copytree(parser_folder, tmp_path / "other")
    config = tmp_path / "other" / "preprocessor_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"image_mean": [0.9, 0.9, 0.9]}))
    picture = [render_face(1_000_021, 128).image]
    other = FaceParser.from_pretrained(tmp_path / "other")
    assert (other(picture)[0] != parser(picture)[0]).any()


def test_the_record_names_the_parser(parser, parser_folder):
    assert parser.made_by == {"kind": "SegFormer", "model": str(parser_folder), "revision": ""}


def test_wrong_classes_and_unsized_pictures_are_refused():
    sizes = {"depths": [1] * 4, "hidden_sizes": [8] * 4, "num_attention_heads": [1] * 4}
    names = dict(enumerate(reversed(LABELS)))
    with torch.device("meta"):
        wrong = SegformerForSemanticSegmentation(SegformerConfig(id2label=names, **sizes))
        right = SegformerForSemanticSegmentation(
            SegformerConfig(id2label=dict(enumerate(LABELS)), **sizes)
        )
    with pytest.raises(ValueError, match="classes"):
        FaceParser(wrong, SegformerProcessor())
    with pytest.raises(ValueError, match="one size"):
        FaceParser(right, SegformerProcessor(do_resize=False))
