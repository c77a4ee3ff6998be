"""One line is said of a mask, a sketch and a prompt that cannot be of one face."""

import os

import numpy as np
import pytest
from PIL import Image

from mmface.conditions import LABEL_INDEX, MASK, SKETCH
from mmface.generation.requests import load_files
from mmface.generation.settings import Settings
from mmface.rendered import render_face

SIZE = 128
FACES = int(os.environ.get("MMFACE_MUTATIONS", "16"))
WORN = {
    "eye_g": ["glasses", "Sunglasses", "round spectacles"],
    "hat": ["a straw hat", "a beanie"],
    "ear_r": ["earrings", "one earring"],
    "neck_l": ["a gold necklace"],
}
DENIED = [
    "a man with no {}, smiling",
    "a man without {}",
    "he is not wearing {}",
    "a man who isn't wearing {} or a scarf",
    "no scarf, {} or tie",
]


@pytest.fixture(scope="module")
def faces():
    return [render_face(7_000_000 + number, SIZE) for number in range(FACES)]


@pytest.fixture(scope="module")
def bare(faces):
    """A mask with long hair, and with nothing that is worn."""
    labels = next(f for f in faces if f.attributes.hair_style == "long straight").labels
    worn = [LABEL_INDEX[name] for name in WORN]
    return np.where(np.isin(labels, worn), LABEL_INDEX["skin"], labels)


def said(mask, prompt):
    return MASK.doubts(mask, prompt, {"mask": mask})


@pytest.mark.slow
def test_true_pairs_are_not_doubted_and_most_of_two_faces_are(faces):
    doubted = 0
    for number, face in enumerate(faces):
        others = {"mask": face.labels, "sketch": face.sketch}
        assert not SKETCH.doubts(face.sketch, "", others), number
        for caption in face.captions:
            assert not said(face.labels, caption), caption
        stranger = faces[number - 1].sketch
        doubted += len(SKETCH.doubts(stranger, "", {"mask": face.labels, "sketch": stranger}))
    assert doubted > 0.55 * len(faces)


@pytest.mark.slow
def test_a_sketch_that_lacks_half_of_its_lines_is_not_doubted(faces):
    for number, face in enumerate(faces[:20]):
        kept = np.random.default_rng([1, number]).random((8, 8)) < 0.5
        sketch = np.where(kept.repeat(16, 0).repeat(16, 1), face.sketch, 255).astype(np.uint8)
        assert not SKETCH.doubts(sketch, "", {"mask": face.labels, "sketch": sketch}), number


@pytest.mark.parametrize("name", WORN)
def test_what_the_prompt_asks_to_wear_must_be_in_the_mask(bare, name):
    worn = bare.copy()
    worn[60:64, 60:64] = LABEL_INDEX[name]
    for words in WORN[name]:
        (line,) = said(bare, f"A woman with long hair, wearing {words}.")
        assert words.split()[-1] in line
        assert "the mask has no " in line
        assert not said(worn, f"A woman wearing {words}.")
        assert said(bare, f"A man, not smiling, wearing {words}.")
        assert said(bare, f"A man without a tie. He wears {words}.")
        for denied in DENIED:
            assert not said(bare, denied.format(words)), denied


@pytest.mark.parametrize(
    "words", ["glassesfull hatred", "a chatty man", "a hatless man", "a glasses-free face"]
)
def test_parts_of_words_ask_for_nothing(bare, words):
    assert not said(bare, words)


def test_hair_that_the_prompt_asks_for_must_be_in_the_mask(bare):
    hair, skin = LABEL_INDEX["hair"], LABEL_INDEX["skin"]
    none, short = np.where(bare == hair, 0, bare), bare.copy()
    short[SIZE // 3 :][short[SIZE // 3 :] == hair] = skin
    for prompt in ("a long-haired man", "a man with long, dark brown hair", "LONG wavy hair"):
        assert not said(bare, prompt)
        assert "the mask has no hair" in said(none, prompt)[0]
        assert "hair that ends above the mouth" in said(short, prompt)[0]
    assert not said(short, "long hair tied up in a bun")
    assert not said(none, "a long dress and brown hair, a long face, shoulder-long hair")
    assert said(bare, "a bald man") == ['the prompt says "bald", but the mask has hair: ' + CHANGE]
    assert not said(bare, "a balding man who is not bald")
    assert not said(none, "a bald man")


CHANGE = "change one of the two"


def test_the_line_names_the_file_and_goes_to_stderr(tmp_path, faces, capsys):
    Image.fromarray(faces[0].labels).save(tmp_path / "mask.png")
    Image.fromarray(render_face(3, SIZE).sketch).save(tmp_path / "sketch.png")
    settings = Settings(
        prompt="a tiara, a turban", conditions={"mask": "mask.png", "sketch": "sketch.png"}
    )
    load_files(settings, (SIZE, SIZE), lambda _, path: tmp_path / path)
    out, err = capsys.readouterr()
    assert not out
    mask, sketch = sorted(err.splitlines())
    assert mask.startswith(f'note: {tmp_path / "mask.png"}: the prompt says "turban", but the mask')
    assert sketch.startswith(f"note: {tmp_path / 'sketch.png'}: its lines do not lie on the mask's")
