"""The candid distribution: repeatable, honest in labels and words, near to masks of photographs."""

import numpy as np
import pytest

from mmface.conditions import LABEL_INDEX, LABELS
from mmface.rendered import distribution, distribution_names
from mmface.rendered.attributes import HELD_OUT_SEED
from mmface.rendered.candid.attributes import (
    HELD_OUT_PAIRS,
    SKIN_TONES,
    CandidAttributes,
    sample_attributes,
)
from mmface.rendered.candid.face import draw_scene
from mmface.rendered.candid.hands import HANDS, draw_sketch
from mmface.rendered.candid.wording import captions
from mmface.rendered.face import RenderedFace
from mmface.rendered.yardstick import MaskStatistics, table

REAL_SHARES = {"hair": 0.31, "skin": 0.23, "neck": 0.046, "nose": 0.021, "l_eye": 0.0025}
"""Of six masks of CelebAMask-HQ."""


@pytest.fixture(scope="module")
def faces() -> list[RenderedFace]:
    return [distribution("candid").render(seed, 128) for seed in range(40)]


@pytest.fixture(scope="module")
def drawn() -> list[CandidAttributes]:
    return [sample_attributes(seed) for seed in range(600)]


@pytest.mark.slow
def test_equal_seeds_are_equal_faces(faces: list[RenderedFace]) -> None:
    again = distribution("candid").render(3, 128)
    for name in ("image", "labels", "sketch", "mask", "captions"):
        np.testing.assert_array_equal(getattr(again, name), getattr(faces[3], name))
    assert not np.array_equal(faces[0].image, faces[1].image)


def test_unknown_distribution_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'posed'; choose from studio, candid"):
        distribution("posed")
    assert distribution("studio").render(0, 32).mask.shape == (32, 32)
    assert distribution_names() == ("studio", "candid")


@pytest.mark.slow
def test_all_classes_occur_and_parts_may_be_hidden(faces: list[RenderedFace]) -> None:
    assert {LABELS[i] for face in faces for i in np.unique(face.labels)} == set(LABELS)
    for label in ("l_ear", "cloth", "mouth"):
        shown = np.mean([(face.labels == LABEL_INDEX[label]).any() for face in faces])
        assert 0.2 < shown < 0.95, label


@pytest.mark.slow
def test_masks_are_nearer_to_photographs_than_the_studio_is(faces: list[RenderedFace]) -> None:
    studio = [distribution("studio").render(seed, 64).labels for seed in range(20)]
    near = MaskStatistics.of(face.labels for face in faces)
    far = MaskStatistics.of(studio)
    for label, share in REAL_SHARES.items():
        index = LABEL_INDEX[label]
        assert abs(np.log(near.shares[index] / share)) < abs(np.log(far.shares[index] / share))
        assert 0.6 < near.shares[index] / share < 1.6, label
    assert "| hair |" in table({"near": near, "far": far}, "near")
    assert near.distance(near) == {"shares": 0.0, "meetings": 0.0, "presence": 0.0}


@pytest.mark.slow
def test_rough_masks_differ_a_little(faces: list[RenderedFace]) -> None:
    changed = [(face.mask != face.labels).mean() for face in faces]
    assert np.median(changed) < 0.06
    assert np.mean(changed) > 0.004
    assert max(changed) < 0.3


@pytest.mark.slow
def test_labels_show_what_the_attributes_say(faces: list[RenderedFace]) -> None:
    for face in faces:
        a, present = face.attributes, {LABELS[i] for i in np.unique(face.labels)}
        assert ("hat" in present) == (a.hat is not None)
        assert ("mouth" in present) <= (a.expression == "open smile")
        assert a.glasses or "eye_g" not in present
        assert a.earrings or "ear_r" not in present


@pytest.mark.parametrize("hand", ["pencil", "portrait", "clumsy"])
def test_hands_tell_no_colours(hand: str) -> None:
    from dataclasses import replace

    black = replace(sample_attributes(2), hair_color="black", glasses=False, hat=None)
    blond = replace(black, hair_color="blond", clothes_color="pink", skin_tone="ebony")
    first, second = (
        draw_sketch(draw_scene(a, 64), hand, np.random.default_rng(0)) for a in (black, blond)
    )
    np.testing.assert_array_equal(first, second)


@pytest.mark.slow
def test_every_hand_draws(faces: list[RenderedFace]) -> None:
    scene = draw_scene(sample_attributes(5), 128)
    means = {}
    for hand in HANDS:
        sketch = draw_sketch(scene, hand, np.random.default_rng(1))
        assert sketch.shape == (128, 128)
        assert sketch.dtype == np.uint8
        assert sketch.max() > 180
        assert sketch.min() < 140
        means[hand] = sketch.mean()
    darkness = [face.sketch.mean() for face in faces]
    assert min(darkness) < 190 < max(darkness)


@pytest.mark.slow
def test_named_things_are_independent(drawn: list[CandidAttributes]) -> None:
    pairs = (("hair_color", "skin_tone"), ("age", "hair_color"), ("gender", "hair_color"),
             ("background_color", "skin_tone"), ("lighting", "background_color"))  # fmt: skip
    for first, second in pairs:
        rows = sorted({getattr(a, first) for a in drawn})
        columns = sorted({getattr(a, second) for a in drawn})
        counts = np.zeros((len(rows), len(columns)))
        for a in drawn:
            counts[rows.index(getattr(a, first)), columns.index(getattr(a, second))] += 1
        expected = counts.sum(1, keepdims=True) * counts.sum(0) / counts.sum()
        squared = ((counts - expected) ** 2 / expected).sum()
        freedom = (len(rows) - 1) * (len(columns) - 1)
        assert squared < freedom + 4 * np.sqrt(2 * freedom), (first, second)


@pytest.mark.slow
def test_rare_pairs_are_held_out(drawn: list[CandidAttributes]) -> None:
    assert not {(a.hair_color, a.clothes_color) for a in drawn} & HELD_OUT_PAIRS
    held_out = [sample_attributes(HELD_OUT_SEED + i) for i in range(300)]
    assert {(a.hair_color, a.clothes_color) for a in held_out} & HELD_OUT_PAIRS


@pytest.mark.slow
def test_captions_are_truthful_and_of_all_lengths(drawn: list[CandidAttributes]) -> None:
    lengths = []
    for seed, a in enumerate(drawn[:150]):
        texts = captions(a, seed)
        assert len(texts) == 6
        for caption in texts:
            assert "{" not in caption
            lengths.append(len(caption.split()))
            text = caption.lower()
            for word, shown in (
                ("earring", a.earrings),
                ("necklace", a.necklace),
                ("glasses", a.glasses),
                ("beard", a.beard),
            ):
                denied = f"no {word}" in text or f"without {word}" in text
                denied |= f"without a {word}" in text
                assert shown != denied or word not in text, caption
        for caption in texts[:2]:
            assert a.clothes_color in caption
            assert a.background_color in caption
            assert ("bald" if a.hair_style == "bald" else a.hair_color) in caption
    assert min(lengths) <= 3
    assert max(lengths) >= 30
    assert np.mean(np.array(lengths) <= 8) > 0.2


@pytest.mark.slow
def test_no_hair_is_described_in_words_of_skin(drawn: list[CandidAttributes]) -> None:
    for seed, a in enumerate(drawn[:150]):
        for caption in captions(a, seed):
            words = caption.lower().replace(",", "").split()
            for place, word in enumerate(words):
                if word in SKIN_TONES:
                    assert words[place + 1].rstrip(".") in ("skin", "complexion"), caption
