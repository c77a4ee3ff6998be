"""A face in words, in the manner of the paper's captions: only what the picture shows."""

import numpy as np

from mmface.rendered.attributes import FaceAttributes

EXPRESSION_WORDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "open smile": (
        ("smiling broadly", "smiling warmly with an open mouth", "laughing happily"),
        ("a bright smile", "a wide, open smile"),
    ),
    "smile": (
        ("smiling gently", "smiling softly", "smiling with closed lips"),
        ("a gentle smile", "a subtle smile"),
    ),
    "serious": (
        ("looking serious", "gazing with a neutral expression"),
        ("a serious, neutral expression", "a calm expression"),
    ),
}
"""Expression -> what the person is doing, and the same as a noun phrase."""

HAIR_WORDS: dict[str, tuple[str, ...]] = {
    "short": ("short {} hair", "short, neatly combed {} hair", "short, side-parted {} hair"),
    "long straight": ("long, straight {} hair", "long {} hair"),
    "long wavy": ("long, wavy {} hair", "long {} hair styled in loose waves"),
    "shoulder-length": ("shoulder-length {} hair", "{} hair cut in a bob"),
    "bangs": ("long {} hair styled with bangs", "long, straight {} hair with bangs"),
    "bun": ("{} hair tied up in a bun", "{} hair styled in an elegant bun"),
    "curly": ("short, curly {} hair", "curly {} hair"),
}
CLOTHES_WORDS: dict[str, tuple[str, ...]] = {
    "top": ("{} top", "{} t-shirt"),
    "dress": ("{} dress",),
    "sweater": ("{} sweater", "knitted {} sweater"),
    "shirt": ("{} shirt", "{} shirt with a collar"),
    "suit": ("{} suit and a white shirt", "{} suit jacket over a white shirt"),
}
"""Style of the hair and kind of the clothes -> descriptions with room for the colour."""

BACKGROUND_WORDS: dict[str, str] = {"white": "plain white", "dark": "dark, nearly black"}
GAZE_WORDS = {
    "front": "looking directly at the camera",
    "left": "turned slightly to the left",
    "right": "turned slightly to the right",
}
LIGHT_WORDS = {
    "front": "in soft, even studio lighting",
    "left": "in soft light from the left",
    "right": "in soft light from the right",
}

FULL_TEMPLATES = (
    "{Subject} with {hair}, wearing {wear}, is {doing}, {gaze}. The background is {bg}.",
    "A close-up portrait of {subject} with {hair}, wearing {wear}, {doing}, set against {a_bg}.",
    "{Subject} wearing {wear}, with {hair} and {look}, standing against {a_bg}.",
    "A professional headshot of {subject} with {hair} and {eyes}, dressed in {wear}, {doing}, "
    "against {a_bg}.",
    "{Subject} with {hair} is {doing}, dressed in {wear}, {light}. The background is {bg}.",
    "Set against {a_bg}, {subject} with {hair} is wearing {wear} and {doing}.",
    "{bare_subject} with {hair}, wearing {wear}, {doing}, in front of {a_bg}.",
    "A portrait of {subject} in {wear}. {Pronoun} has {hair} and {look}, "
    "and the background is {bg}.",
)
PARTIAL_TEMPLATES = (
    "A portrait of {subject} with {skin} and {eyes}, {doing}, {light}.",
    "{Subject}{accessories}, {doing} and {gaze}, {light}.",
    "A close-up photo of {subject} with {look}{accessories}, {gaze}, {light}.",
    "{Subject} with {eyes} and {skin}{accessories}, {doing}, {gaze}.",
)


def _article(phrase: str) -> str:
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def _join(parts: list[str]) -> str:
    """Join words in prose, with commas and one "and"."""
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def _pick(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[int(rng.integers(len(options)))]


def _hair_phrase(a: FaceAttributes, rng: np.random.Generator) -> str:
    if a.hair_style == "bald":
        return _pick(rng, ("a bald head", "a smooth, bald head"))
    color = a.hair_color
    if color == "blond":
        color = _pick(rng, ("blond", "blonde"))
    elif color == "brown":
        color = _pick(rng, ("brown", "light brown"))
    if a.hair_style == "short" and a.hat:
        return f"short {color} hair"
    return _pick(rng, HAIR_WORDS[a.hair_style]).format(color)


def _clothes_phrase(a: FaceAttributes, rng: np.random.Generator) -> str:
    return _article(_pick(rng, CLOTHES_WORDS[a.clothing]).format(a.clothes_color))


def _worn_phrases(a: FaceAttributes, rng: np.random.Generator) -> list[str]:
    worn = []
    if a.hat:
        worn.append(_article(f"{a.hat} {a.hat_kind}"))
    if a.glasses:
        worn.append(_pick(rng, ("glasses", "dark-rimmed glasses")))
    if a.earrings:
        worn.append(_pick(rng, ("earrings", "gold earrings", "elegant drop earrings")))
    if a.necklace:
        worn.append(_pick(rng, ("a necklace", "a gold necklace")))
    return worn


def _phrases(a: FaceAttributes, rng: np.random.Generator) -> dict[str, str]:
    subject = _article(_pick(rng, (f"{a.age} {a.gender}", a.gender)))
    hair = _hair_phrase(a, rng)
    if a.beard:
        beard = _pick(rng, ("a full beard", "a beard"))
        hair = _pick(rng, (f"{hair} and {beard}", f"{beard} and {hair}"))
    worn = _worn_phrases(a, rng)
    doing, look = EXPRESSION_WORDS[a.expression]
    background = BACKGROUND_WORDS.get(a.background_color, a.background_color)
    a_background = f"{background} {_pick(rng, ('background', 'backdrop'))}"
    beard_too = " with a beard" if a.beard else ""
    wearing = f", wearing {_join(worn)}" if worn else ""
    return {
        "subject": subject,
        "Subject": subject.capitalize(),
        "bare_subject": subject.split(" ", 1)[1],
        "Pronoun": "She" if a.gender == "woman" else "He",
        "hair": hair,
        "wear": _join([_clothes_phrase(a, rng), *worn]),
        "accessories": beard_too + wearing,
        "doing": _pick(rng, doing),
        "look": _pick(rng, look),
        "gaze": GAZE_WORDS[a.pose],
        "light": LIGHT_WORDS[a.lighting],
        "eyes": f"{a.eye_color} eyes",
        "skin": f"{a.skin_tone} skin",
        "bg": background if " " in background else _pick(rng, ("soft ", "plain ", "")) + background,
        "a_bg": _article(a_background),
    }


def captions(attributes: FaceAttributes, seed: int) -> tuple[str, ...]:
    """Describe a face six times in different words, 12 to 45 each.

    The first four name hair (or baldness), clothes and background with their colours; the last two
    leave some of these out.
    """
    rng = np.random.default_rng((seed, 1))
    full = rng.permutation(len(FULL_TEMPLATES))[:4]
    partial = rng.permutation(len(PARTIAL_TEMPLATES))[:2]
    templates = [FULL_TEMPLATES[i] for i in full] + [PARTIAL_TEMPLATES[i] for i in partial]
    return tuple(template.format(**_phrases(attributes, rng)) for template in templates)
