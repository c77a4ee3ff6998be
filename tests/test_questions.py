"""Attributes, questions and descriptions: what one template writes, another one reads."""

import pytest

from mmface.data.attributes import (
    ATTRIBUTES,
    attributes_of_rendered,
    celeba_attributes,
    check_attributes,
    read_celeba_list,
    rendered_attributes,
)
from mmface.data.conversations import _chooser
from mmface.data.keyed import keyed_generator
from mmface.data.questions import (
    DESCRIBE,
    DESCRIPTION,
    Question,
    description,
    kind_of,
    questions_of,
    read_answer,
    read_words,
    wordings,
)
from mmface.rendered.candid.attributes import sample_attributes
from mmface.rendered.candid.wording import captions

SEEDS = range(60)


def test_there_are_46_of_three_families():
    assert len(ATTRIBUTES) == 46
    assert {each.family for each in ATTRIBUTES.values()} == {"appearance", "action", "emotion"}


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_every_question_is_known_by_its_words_and_every_answer_read(name):
    for asked in wordings(name):
        assert kind_of(asked) == name, asked
    for value in ATTRIBUTES[name].values:
        assert read_answer(name, f"It is {value}.") == value
    assert read_answer(name, "I cannot say.") is None
    assert kind_of(DESCRIBE[0]) == DESCRIPTION


def test_people_ask_in_their_own_spelling():
    assert kind_of("what color is her hair") == "hair_color"
    assert kind_of("Who is it?") is None


def test_descriptions_and_captions_never_contradict_the_face():
    for seed in SEEDS:
        truth = rendered_attributes(sample_attributes(seed))
        check_attributes(truth)
        read = read_words(description(truth))
        assert read.items() <= truth.items()
        named = {"skin_tone", "clothes_color", "background_color", "gender", "age", "smile"}
        assert named <= read.keys()
        for text in captions(sample_attributes(seed), seed):
            assert read_words(text).items() <= truth.items(), text


def test_what_is_absent_is_read_as_absent():
    read = read_words("a man without glasses, no beard, not smiling, in front of a red background")
    assert read == {
        **{"gender": "man", "glasses": "no", "beard": "no", "smile": "no"},
        "background_color": "red",
    }


def test_questions_are_drawn_by_a_generator_and_differ_in_kind():
    known = attributes_of_rendered("rendered/3")
    drawn = [questions_of(known, _chooser(keyed_generator(1)), 6) for _ in range(2)]
    assert drawn[0] == drawn[1]
    assert len({each.kind for each in drawn[0]}) == 6
    for each in drawn[0]:
        assert each.kind is not None
        assert known[each.kind] == each.answer
        assert Question.from_json(each.to_json()) == each
    assert [q.kind for q in questions_of(known, _chooser(keyed_generator(1)), None, ["age"])] == [
        "age"
    ]
    with pytest.raises(ValueError, match="no text"):
        Question.from_json({"q": "What?", "a": " "})
    with pytest.raises(ValueError, match="no rendered face"):
        attributes_of_rendered("celeba/3")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"hair_colour": "red"}, "no attribute 'hair_colour'"),
        ({"hair_color": "green"}, "not one of black"),
        ({"hat": "no", "hat_color": "red"}, "contradict each other"),
    ],
)
def test_what_cannot_be_is_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        check_attributes(wrong)


def test_celebas_list(tmp_path):
    row = celeba_attributes({"Male": True, "No_Beard": False, "Black_Hair": True, "Young": False})
    assert row == {"gender": "man", "beard": "yes", "hair_color": "black"}
    both = celeba_attributes({"Black_Hair": True, "Gray_Hair": True, "No_Beard": True})
    assert both == {"beard": "no"}
    contradicting = celeba_attributes({"No_Beard": True, "Goatee": True, "Smiling": True})
    assert contradicting == {"smile": "yes"}
    path = tmp_path / "list_attr_celeba.txt"
    path.write_text("1\nMale Young\n1.jpg 1 -1\n")
    with pytest.raises(ValueError, match=r"celeba.txt:2: lacks the column 5_o_Clock_Shadow"):
        read_celeba_list(path)
    path.write_text("nothing")
    with pytest.raises(ValueError, match=r"celeba.txt:1: is no number"):
        read_celeba_list(path)
