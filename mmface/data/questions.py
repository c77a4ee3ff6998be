"""Questions about faces with their answers, descriptions, and reading attributes out of words.

All of it by templates, without a network. An answer is the value of the attribute that a question
asks for, so that one can tell what is right.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmface.data.attributes import ATTRIBUTES, NO, YES, Attributes, check_attributes
from mmface.rendered import (
    BACKGROUND_COLORS,
    CLOTHES_COLORS,
    EYE_COLORS,
    HAIR_COLORS,
    HAT_COLORS,
)
from mmface.rendered.candid.attributes import CLOTHING, SKIN_TONES

DESCRIBE = ("Describe this face.", "What does this person look like?", "Describe this person.")
"""Questions that ask for a description; the first is asked where nothing is asked."""
DESCRIPTION = "description"
"""Kind of such a question; that of any other is the name of its attribute."""

Chooser = Callable[[int], int]
"""Draws a whole number below its argument."""


def first(_: int) -> int:
    """The chooser that draws nothing."""
    return 0


@dataclass(frozen=True)
class Question:
    """A question with its answer; `kind` is the name of an attribute, `DESCRIPTION`, or None."""

    question: str
    answer: str
    kind: str | None = None

    def to_json(self) -> dict[str, str]:
        """As a manifest and UniF2aceD-1M write it."""
        kind = {} if self.kind is None else {"type": self.kind}
        return {"q": self.question, "a": self.answer, **kind}

    @classmethod
    def from_json(cls, value: Any) -> "Question":
        """Read what `to_json` wrote; ValueError if it is none."""
        if not isinstance(value, Mapping) or not {"q", "a"} <= value.keys() <= {"q", "a", "type"}:
            raise ValueError('a question has "q", "a" and maybe "type"')
        texts = [value["q"], value["a"], value.get("type", "none")]
        if not all(isinstance(each, str) and each.strip() for each in texts):
            raise ValueError("a question, its answer or its type is no text")
        return cls(value["q"], value["a"], value.get("type"))


_WHOSE = ("the", "her", "his", "their", "the person's")
_SPECIAL: Mapping[str, tuple[str, ...]] = {
    "gender": ("Is this a woman or a man?", "What is the gender of this person?"),
    "age": ("How old is this person?", "What age is this person?"),
    "smile": ("Is this person smiling?", "Does this person smile?"),
    "mouth_open": ("Is {whose} mouth open?",),
    "eyes_closed": ("Are {whose} eyes closed?",),
    "bald": ("Is this person bald?",),
    "hair_length": ("How long is {whose} hair?",),
    "hair_type": ("Is {whose} hair straight, wavy or curly?",),
    "hair_style": ("How is {whose} hair worn?",),
    "beard_kind": ("What kind of beard is it?",),
    "skin_tone": ("What tone is {whose} skin?", "What colour is {whose} skin?"),
    "face_shape": ("What shape is {whose} face?",),
    "clothing": ("What clothes are these?", "What kind of clothing is worn?"),
    "lighting": ("Where does the light come from?",),
    "gaze": ("Where does this person look?",),
    "emotion": ("What emotion does {whose} face show?", "What does this person feel?"),
}
_COLOUR = ("What colour {verb} {whose} {phrase}?", "What is the colour of {whose} {phrase}?")
_PRESENCE = (
    "Does this person have {phrase}?",
    "{is_there} {phrase}?",
    "Can you see {phrase}?",
)
_WORN = ("glasses", "hat", "earrings", "necklace", "necktie", "lipstick")
_PLURAL = ("eyes", "clothes")


def wordings(name: str) -> tuple[str, ...]:
    """All ways in which an attribute is asked for."""
    attribute = ATTRIBUTES[name]
    if name in _SPECIAL:
        found = _SPECIAL[name]
    elif attribute.is_colour:
        verb = "are" if attribute.phrase in _PLURAL else "is"
        found = tuple(each.replace("{verb}", verb) for each in _COLOUR)
    else:
        found = _PRESENCE
        if name in _WORN:
            found = ("Does this person wear {phrase}?", *found)
    phrase = attribute.phrase
    whose = ("the",) if phrase == "background" else _WHOSE
    is_there = "Are there" if phrase.split(" under")[0].endswith("s") else "Is there"
    every = [
        template.format(whose=one, phrase=phrase, is_there=is_there)
        for template in found
        for one in whose
    ]
    return tuple(dict.fromkeys(every))


def question_of(name: str, value: str, choose: Chooser = first) -> Question:
    """Ask for an attribute whose value is known."""
    asked = wordings(name)
    return Question(asked[choose(len(asked))], value, name)


def _plain(text: str) -> str:
    text = " ".join(re.sub(r"[^\w\s'-]", " ", text.lower()).split())
    return text.replace("color", "colour").replace("blonde", "blond").replace("grey", "gray")


_KIND_OF = {_plain(text): name for name in ATTRIBUTES for text in wordings(name)}
_KIND_OF |= {_plain(text): DESCRIPTION for text in DESCRIBE}


def kind_of(question: str) -> str | None:
    """The kind of a question that a template may have made; None for another."""
    return _KIND_OF.get(_plain(question))


def read_answer(kind: str, answer: str) -> str | None:
    """The value that an answer to a question of this kind says, None if it says none of them."""
    said = f" {_plain(answer)} "
    values = sorted(ATTRIBUTES[kind].values, key=len, reverse=True)
    found = [value for value in values if f" {value} " in said]
    return found[0] if found else None


def description(known: Attributes, choose: Chooser = first) -> str:
    """Say in one or two sentences what is known, in words that `read_words` reads again."""
    subject = " ".join(filter(None, (known.get("age"), known.get("gender", "person"))))
    parts = [each for each in (_hair(known), _coloured(known, "eye_color", "eyes"),
                               _coloured(known, "skin_tone", "skin")) if each]  # fmt: skip
    worn = [
        _clothes(known),
        (f"a {known['hat_color']} hat" if "hat_color" in known else "a hat")
        if known.get("hat") == YES
        else None,
        *(ATTRIBUTES[n].phrase for n in ("glasses", "earrings", "necklace") if known.get(n) == YES),
    ]
    wearing = [each for each in worn if each]
    if known.get("beard") == YES:
        parts.append("a beard")
    sentence = f"{_article(subject)} {subject}"
    if parts:
        sentence += f" with {_listed(parts)}"
    if wearing:
        sentence += f", wearing {_listed(wearing)}"
    if "smile" in known:
        sentence += ", smiling" if known["smile"] == YES else ", not smiling"
    sentence = sentence[0].upper() + sentence[1:] + "."
    if "background_color" in known:
        wordings = ("The background is {}.", "Behind is a {} background.")
        sentence += " " + wordings[choose(len(wordings))].format(known["background_color"])
    return sentence


def _hair(known: Attributes) -> str | None:
    if known.get("bald") == YES:
        return "a bald head"
    if "hair_color" not in known:
        return None
    length = known.get("hair_length")
    kind = known.get("hair_type")
    return " ".join(filter(None, (length, kind, known["hair_color"], "hair")))


def _clothes(known: Attributes) -> str | None:
    if "clothes_color" not in known:
        return None
    color = known["clothes_color"]
    return (
        f"{_article(color)} {color} {known['clothing']}"
        if "clothing" in known
        else f"{color} clothes"
    )


def _coloured(known: Attributes, name: str, noun: str) -> str | None:
    return f"{known[name]} {noun}" if name in known else None


def _article(phrase: str) -> str:
    return "an" if phrase[0] in "aeiou" else "a"


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def _one_of(names: Sequence[str] | Mapping[str, object]) -> str:
    return "|".join(sorted(names, key=len, reverse=True))


_CLOTHES = [*CLOTHING, "t-shirt", "clothes"]
_PATTERNS: Sequence[tuple[str, str]] = (
    ("hair_color", rf"\b({_one_of(HAIR_COLORS)}) hair\b"),
    ("eye_color", rf"\b({_one_of(EYE_COLORS)}) eyes\b"),
    ("skin_tone", rf"\b({_one_of(SKIN_TONES)}) (?:skin|complexion)\b"),
    ("clothes_color", rf"\b({_one_of(CLOTHES_COLORS)}) (?:{_one_of(_CLOTHES)})\b"),
    ("clothing", rf"\b(?:{_one_of(CLOTHES_COLORS)}) ({_one_of(CLOTHING)})\b"),
    ("hat_color", rf"\b({_one_of(HAT_COLORS)}) (?:beanie|brimmed hat|cap|hat)\b"),
    (
        "background_color",
        rf"\b({_one_of(BACKGROUND_COLORS)})(?: nearly black)? (?:background|backdrop)\b",
    ),
    (
        "background_color",
        rf"\bbackground is (?:plain |blurred )?({_one_of(BACKGROUND_COLORS)})\b",
    ),
    ("gender", r"\b(woman|man)\b"),
    ("age", r"\b(young|middle-aged|elderly)\b"),
    ("hair_length", r"\b(shoulder-length|long)(?: \w+){0,4} hair\b"),
)
_PRESENT: Mapping[str, str] = {
    "glasses": r"glasses",
    "hat": r"(?:hat|beanie|cap)",
    "earrings": r"earrings",
    "necklace": r"necklace",
    "beard": r"(?:beard|goatee|stubble|mustache)",
    "smile": r"(?:smiling|smile|laughing|smiles)",
    "bald": r"bald",
}


def read_words(text: str) -> dict[str, str]:
    """The attributes that a prompt or description names; what it leaves open is not in it."""
    said = _plain(text)
    found: dict[str, str] = {}
    for name, pattern in _PATTERNS:
        match = re.search(pattern, said)
        if match and name not in found:
            found[name] = match[1]
    if re.search(r"\bold (?:woman|man|person)\b", said):
        found["age"] = "elderly"
    for name, pattern in _PRESENT.items():
        if re.search(rf"\b(?:no|not|without)(?: an?)? {pattern}\b", said):
            found[name] = NO
        elif re.search(rf"\b{pattern}\b", said):
            found[name] = YES
    if re.search(r"\b(?:looking serious|neutral expression)\b", said):
        found["smile"] = NO
    try:
        check_attributes(found)
    except ValueError:  # "a bald man with long hair": nobody knows what is meant
        for name in ("hair_length", "bald", "hat_color"):
            found.pop(name, None)
    return found


def questions_of(
    known: Attributes, choose: Chooser, num: int | None = None, names: Sequence[str] = ()
) -> list[Question]:
    """Questions about what is known, in drawn order; `names` restricts them, `num` cuts them."""
    asked = [name for name in known if not names or name in names]
    order: list[str] = []
    while asked and (num is None or len(order) < num):
        order.append(asked.pop(choose(len(asked))))
    return [question_of(name, known[name], choose) for name in order]
