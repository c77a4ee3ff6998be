"""Label formats: every known way to write a mask is read without loss, and guessed or asked for."""

from typing import Any

import numpy as np
import pytest
from layouts import SIZE, drawn_mask, face
from PIL import Image

from mmface.conditions import LABEL_FORMATS, LABELS, guess_label_format, load_mask

NUM_FACES = 32
COLORED = [name for name, each in LABEL_FORMATS.items() if each.palette]
ORDERS = ["celebamask_hq", "bisenet", "v_xchen_v", "facer"]
BISENET_LOOKUP = [0, 1, 6, 7, 4, 5, 3, 8, 9, 15, 2, 10, 11, 12, 17, 16, 18, 13, 14]


def masks(name: str, color: bool) -> list[np.ndarray]:
    return [drawn_mask(face(seed).labels, name, color) for seed in range(NUM_FACES)]


@pytest.mark.parametrize("name", LABEL_FORMATS)
def test_formats_have_the_19_classes_once(name):
    label_format = LABEL_FORMATS[name]
    assert sorted(label_format.classes) == sorted(LABELS)
    assert label_format.classes[0] == "background"
    if label_format.palette:
        assert len(set(label_format.palette)) == len(LABELS)


def test_known_facts_of_formats():
    assert LABEL_FORMATS["bisenet"].to_labels.tolist() == BISENET_LOOKUP
    ours, theirs = (np.array(LABEL_FORMATS[n].palette) for n in COLORED[:2])
    assert np.flatnonzero((ours != theirs).any(axis=1)).tolist() == [LABELS.index("r_brow")]
    bits = LABEL_FORMATS["maskgan"].palette
    assert bits
    assert bits[:5] == ((0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128))
    assert (bits[7], bits[8], bits[18]) == ((128, 128, 128), (64, 0, 0), (0, 192, 0))


@pytest.mark.parametrize("name", LABEL_FORMATS)
def test_every_format_is_read_without_loss(name, tmp_path):
    tiles = np.resize(np.arange(len(LABELS), dtype=np.uint8), (4, 5))
    labels = tiles.repeat(12, axis=0).repeat(12, axis=1)
    indices = drawn_mask(labels, name)
    sources: list[Any] = [Image.fromarray(indices), np.repeat(indices[..., None], 3, axis=2)]
    for palette in (np.arange(768) // 3 * 13 % 256, LABEL_FORMATS["maskgan"].palette):
        indexed = Image.fromarray(indices, mode="P")
        indexed.putpalette(np.array(palette).ravel().tolist())
        sources.append(indexed)
    if LABEL_FORMATS[name].palette:
        colored = Image.fromarray(drawn_mask(labels, name, color=True))
        by_color = Image.fromarray(18 - indices, mode="P")
        by_color.putpalette(np.array(LABEL_FORMATS[name].palette)[::-1].ravel().tolist())
        sources += [colored, by_color]
    for number, source in enumerate(sources):
        path = tmp_path / f"{number}.png"
        (source if isinstance(source, Image.Image) else Image.fromarray(source)).save(path)
        loaded = load_mask(path, labels.shape, label_format=name)
        assert np.array_equal(loaded.labels, labels), number
        assert loaded.off_palette_fraction == 0


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 4, 16])
@pytest.mark.parametrize(
    ("name", "color"), [(n, True) for n in COLORED] + [(n, False) for n in ORDERS]
)
def test_formats_of_faces_are_guessed(name, color, count):
    drawn = masks(name, color)
    for first in range(0, NUM_FACES, count):
        guess = guess_label_format(drawn[first : first + count])
        assert guess.format is LABEL_FORMATS[name], guess.evidence


@pytest.mark.slow
def test_indices_with_a_palette_of_their_own_order_are_told_by_anatomy():
    drawn = []
    for indices in masks("bisenet", False)[:4]:
        picture = Image.fromarray(indices, mode="P")
        picture.putpalette(np.array(LABEL_FORMATS["maskgan"].palette).ravel().tolist())
        drawn.append(picture)
    assert guess_label_format(drawn).format is LABEL_FORMATS["bisenet"]


@pytest.mark.slow
def test_evidence_is_in_words():
    guess = guess_label_format(masks("v_xchen_v", False)[:4])
    assert "hold: v_xchen_v 9" in guess.evidence
    assert "in 0 of 4 masks" in guess.evidence
    assert "have colours of maskgan" in guess_label_format(masks("maskgan", True)[:4]).evidence


def test_mirrored_faces_are_no_order_of_classes_but_the_true_one_is_nearest():
    mirrored = [each[:, ::-1].copy() for each in masks("bisenet", False)[:4]]
    guess = guess_label_format(mirrored)
    assert guess.format is None
    assert "bisenet" in guess.evidence


@pytest.mark.parametrize("value", [0, 1, 13, (0, 0, 0), (204, 0, 0)])
def test_blank_and_single_class_masks_are_undecided(value):
    mask = np.empty((SIZE, SIZE, *np.shape(value)), dtype=np.uint8)
    mask[:] = value
    guess = guess_label_format([mask] * 4)
    assert guess.format is None
    assert len(guess.alternatives) > 1


def test_what_cannot_be_guessed_says_why():
    red = np.zeros((SIZE, SIZE, 3), dtype=np.uint8)
    red[8:] = (200, 120, 90)
    mixed = [masks("bisenet", False)[0], masks("maskgan", True)[0]]
    for given, why in [
        ([red], "no known palette"),
        (mixed, "1 masks are index maps and 1 are in colour"),
        ([np.full((SIZE, SIZE), 200, dtype=np.uint8)], "values up to 200"),
        ([np.random.default_rng(0).integers(0, 19, (SIZE, SIZE))], "no known order"),
    ]:
        guess = guess_label_format(given)
        assert guess.format is None
        assert why in guess.evidence
    with pytest.raises(ValueError, match="no masks"):
        guess_label_format([])


def test_a_wrong_format_names_the_right_one():
    colored, indices = masks("maskgan", True)[0], masks("bisenet", False)[0]
    with pytest.raises(ValueError, match="those of the label format 'maskgan'"):
        load_mask(colored, (SIZE, SIZE))
    with pytest.raises(ValueError, match=r"'bisenet' are maps of class indices.*'maskgan'"):
        load_mask(colored, (SIZE, SIZE), "bisenet")
    with pytest.raises(ValueError, match="no label format 'pascal'; known are celebamask_hq, "):
        load_mask(indices, (SIZE, SIZE), "pascal")
