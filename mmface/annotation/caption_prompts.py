"""The ten prompts that each picture is asked with: five free descriptions, five for attributes.

The paper's own ten are not published; these ask for what its captions tell.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class CaptionPrompt:
    """One question to a captioner; a changed text takes a new name, which records hold."""

    name: str
    text: str


_RULES = (
    "Say only what can be seen. Write plain sentences without a list, and do not mention the "
    "picture itself or who the person may be."
)


def _prompt(name: str, request: str) -> CaptionPrompt:
    return CaptionPrompt(name, f"{request} {_RULES}")


PROMPTS: tuple[CaptionPrompt, ...] = (
    _prompt(
        "describe-short-1",
        "Describe this person in one sentence, as someone would who wants a portrait like it.",
    ),
    _prompt(
        "describe-whole-1",
        "Describe this person from hair to shoulders, and the background, in two or three "
        "sentences.",
    ),
    _prompt(
        "describe-expression-1",
        "Describe this person's expression, gaze and pose of the head, and then the face, in two "
        "sentences.",
    ),
    _prompt(
        "describe-style-1",
        "Describe how this person is dressed and groomed: hairstyle, clothes, make-up or beard. "
        "Use two sentences.",
    ),
    _prompt(
        "describe-scene-1",
        "Describe this portrait in two sentences: first the person, then the light and the "
        "background.",
    ),
    _prompt(
        "attributes-person-1",
        "In one sentence, name this person's apparent gender, age group and skin tone, and the "
        "colour and length of the hair.",
    ),
    _prompt(
        "attributes-hair-1",
        "In one sentence that begins with the person, name the colour, length, texture and "
        "parting of the hair, and any facial hair.",
    ),
    _prompt(
        "attributes-face-1",
        "In one sentence that begins with the person, name the shape of the face, the eyes and "
        "their colour, the eyebrows, the nose and the lips.",
    ),
    _prompt(
        "attributes-worn-1",
        "In one sentence that begins with the person, name everything worn: glasses, hat, "
        "earrings, necklace and clothes, each with its colour.",
    ),
    _prompt(
        "attributes-all-1",
        "In one sentence of short phrases between commas, name gender, age group, hair, eyes, "
        "expression, accessories, clothes and background.",
    ),
)
"""Asked in this order; a picture's captions stand in the same order."""
