"""Faces in words: what a rendered face can be, how one is drawn by lot, how it is described.

A `FaceAttributes` holds everything `mmface.data.rendered` needs to draw a face. `captions`
describes the same attributes in the manner of the paper's captions and never mentions anything
that the picture does not show.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

Color = tuple[int, int, int]

HAIR_COLORS: dict[str, Color] = {
    "black": (34, 30, 32),
    "dark brown": (84, 54, 38),
    "brown": (140, 96, 60),
    "red": (190, 80, 34),
    "blond": (226, 188, 112),
    "gray": (150, 152, 156),
    "white": (232, 230, 228),
}
CLOTHES_COLORS: dict[str, Color] = {
    "black": (36, 36, 42),
    "white": (238, 238, 240),
    "gray": (140, 143, 150),
    "red": (192, 44, 48),
    "blue": (46, 86, 178),
    "green": (48, 130, 74),
    "yellow": (232, 192, 62),
    "pink": (238, 150, 180),
    "purple": (122, 66, 154),
    "orange": (232, 124, 44),
}
BACKGROUND_COLORS: dict[str, Color] = {
    "white": (238, 238, 238),
    "gray": (148, 150, 154),
    "dark": (40, 40, 46),
    "beige": (222, 198, 158),
    "blue": (92, 146, 212),
    "green": (98, 160, 104),
    "pink": (240, 172, 192),
    "purple": (144, 108, 184),
    "yellow": (240, 208, 92),
    "red": (168, 48, 52),
    "brown": (128, 88, 58),
}
EYE_COLORS: dict[str, Color] = {
    "brown": (104, 62, 32),
    "blue": (62, 126, 204),
    "green": (72, 142, 84),
    "gray": (132, 144, 154),
}
SKIN_TONES: dict[str, Color] = {
    "pale": (248, 222, 204),
    "fair": (238, 198, 168),
    "tan": (214, 162, 122),
    "brown": (166, 112, 78),
    "dark": (112, 72, 52),
}
HAT_COLORS: dict[str, Color] = {
    "black": (40, 40, 46),
    "white": (236, 236, 234),
    "red": (186, 46, 50),
    "blue": (52, 92, 172),
    "green": (60, 124, 78),
    "beige": (220, 192, 138),
}

HAIR_STYLES: dict[str, tuple[float, float]] = {
    "short": (0.07, 0.53),
    "long straight": (0.20, 0.04),
    "long wavy": (0.22, 0.06),
    "shoulder-length": (0.15, 0.06),
    "bangs": (0.13, 0.0),
    "bun": (0.13, 0.0),
    "curly": (0.10, 0.15),
    "bald": (0.0, 0.16),
}
"""Hair style -> how often a woman and how often a man wears it."""

LONG_STYLES = ("long straight", "long wavy", "bangs")
OPEN_NECKLINES = ("top", "dress")
"""Clothes that leave the neck free, so that a necklace can be seen."""


@dataclass(frozen=True)
class FaceAttributes:
    """One face: the words that describe it and the geometry that shapes it.

    Lengths are fractions of the picture's side; `roll` is in radians, positive turns the head
    clockwise; `yaw` is in [-1, 1], positive turns the face to the picture's right. `jaw` and
    `chin` are half widths relative to the face's own.
    """

    gender: str
    age: str
    hair_color: str
    hair_style: str
    skin_tone: str
    eye_color: str
    expression: str
    glasses: bool
    hat: str | None
    hat_kind: str
    earrings: bool
    beard: bool
    necklace: bool
    clothes_color: str
    clothing: str
    background_color: str
    lighting: str
    warmth: float
    ears_visible: bool
    shift_x: float
    shift_y: float
    scale: float
    roll: float
    yaw: float
    face_width: float
    jaw: float
    chin: float
    brow_arch: float
    brow_weight: float
    eye_height: float
    nose_width: float
    mouth_width: float
    mouth_open: float
    hair_volume: float
    parting: float
    texture_seed: int

    @property
    def pose(self) -> str:
        """Where the face looks, seen from the viewer: "front", "left" or "right"."""
        if abs(self.yaw) < 0.45:
            return "front"
        return "right" if self.yaw > 0 else "left"


def _choose(rng: np.random.Generator, weights: dict[str, float]) -> str:
    """One key of `weights`, with probability proportional to its value."""
    values = np.array(list(weights.values()))
    return list(weights)[int(rng.choice(len(values), p=values / values.sum()))]


def _uniform_choice(rng: np.random.Generator, names: Iterable[str]) -> str:
    """One of `names`, all equally likely."""
    return _choose(rng, dict.fromkeys(names, 1.0))


def _sample_words(rng: np.random.Generator) -> dict[str, Any]:
    """The attributes that are words; each draw honours the ones before it."""
    woman = bool(rng.random() < 0.52)
    age = _choose(rng, {"young": 0.5, "middle-aged": 0.32, "elderly": 0.18})
    aged = 3.0 if age == "elderly" else 0.12
    hair_weights = dict.fromkeys(HAIR_COLORS, 1.0) | {"gray": aged, "white": aged}
    style = _choose(rng, {k: pair[0 if woman else 1] for k, pair in HAIR_STYLES.items()})
    hat = None
    if style not in ("bald", "bun", "bangs") and rng.random() < 0.25:
        hat = _uniform_choice(rng, HAT_COLORS)
    if woman:
        kinds = {"top": 0.35, "dress": 0.25, "sweater": 0.2, "shirt": 0.2}
    else:
        kinds = {"suit": 0.3, "shirt": 0.3, "sweater": 0.2, "top": 0.2}
    clothing = _choose(rng, kinds)
    colors = ("black", "gray", "blue") if clothing == "suit" else tuple(CLOTHES_COLORS)
    covering = style in (*LONG_STYLES, "shoulder-length")
    ears_visible = not covering or bool(rng.random() < 0.45)
    open_neck = clothing in OPEN_NECKLINES
    return {
        "gender": "woman" if woman else "man",
        "age": age,
        "hair_color": _choose(rng, hair_weights),
        "hair_style": style,
        "skin_tone": _uniform_choice(rng, SKIN_TONES),
        "eye_color": _uniform_choice(rng, EYE_COLORS),
        "expression": _choose(rng, {"open smile": 0.36, "smile": 0.34, "serious": 0.3}),
        "glasses": bool(rng.random() < 0.2),
        "hat": hat,
        "hat_kind": _choose(rng, {"beanie": 0.5, "brimmed hat": 0.5}),
        "earrings": ears_visible and bool(rng.random() < (0.58 if woman else 0.06)),
        "beard": not woman and bool(rng.random() < 0.4),
        "necklace": open_neck and bool(rng.random() < (0.55 if woman else 0.25)),
        "clothes_color": _uniform_choice(rng, colors),
        "clothing": clothing,
        "background_color": _uniform_choice(rng, BACKGROUND_COLORS),
        "lighting": _choose(rng, {"left": 0.35, "right": 0.35, "front": 0.3}),
        "ears_visible": ears_visible,
    }


def sample_attributes(seed: int) -> FaceAttributes:
    """The face of a seed.

    Args:
        seed: any non-negative integer; the only source of randomness.

    Returns:
        The face's attributes, equal for equal seeds on every machine.
    """
    rng = np.random.default_rng(seed)
    words = _sample_words(rng)
    woman = words["gender"] == "woman"
    return FaceAttributes(
        **words,
        warmth=float(rng.uniform(-1, 1)),
        shift_x=float(rng.uniform(-0.025, 0.025)),
        shift_y=float(rng.uniform(-0.012, 0.012)),
        scale=float(rng.uniform(1.02, 1.09)),
        roll=float(np.clip(rng.normal(0, 0.04), -0.09, 0.09)),
        yaw=float(rng.uniform(-1, 1)),
        face_width=float(rng.uniform(0.23, 0.254) + (0.0 if woman else 0.01)),
        jaw=float(rng.uniform(0.70, 0.80) + (0.0 if woman else 0.06)),
        chin=float(rng.uniform(0.30, 0.40) + (0.0 if woman else 0.08)),
        brow_arch=float(rng.uniform(0.008, 0.03) - (0.0 if woman else 0.008)),
        brow_weight=float(rng.uniform(0.034, 0.038) + (0.0 if woman else 0.006)),
        eye_height=float(rng.uniform(0.064, 0.074)),
        nose_width=float(rng.uniform(0.058, 0.074)),
        mouth_width=float(rng.uniform(0.108, 0.122)),
        mouth_open=float(rng.uniform(0.044, 0.058)),
        hair_volume=float(rng.uniform(0.06, 0.095)),
        parting=float(rng.choice([-0.09, -0.05, 0.05, 0.09])),
        texture_seed=int(rng.integers(2**31)),
    )


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
    """The phrase behind its indefinite article."""
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def _join(parts: list[str]) -> str:
    """Join words in prose, with commas and one "and"."""
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def _pick(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    """One of `options`, all equally likely."""
    return options[int(rng.integers(len(options)))]


def _hair_phrase(a: FaceAttributes, rng: np.random.Generator) -> str:
    """The hair's style and colour as far as they can be seen."""
    if a.hair_style == "bald":
        return _pick(rng, ("a bald head", "a smooth, bald head"))
    color = a.hair_color
    if color == "blond":
        color = _pick(rng, ("blond", "blonde"))
    elif color == "brown":
        color = _pick(rng, ("brown", "light brown"))
    if a.hair_style == "short" and a.hat:
        return f"short {color} hair"
    options = {
        "short": ("short {} hair", "short, neatly combed {} hair", "short, side-parted {} hair"),
        "long straight": ("long, straight {} hair", "long {} hair"),
        "long wavy": ("long, wavy {} hair", "long {} hair styled in loose waves"),
        "shoulder-length": ("shoulder-length {} hair", "{} hair cut in a bob"),
        "bangs": ("long {} hair styled with bangs", "long, straight {} hair with bangs"),
        "bun": ("{} hair tied up in a bun", "{} hair styled in an elegant bun"),
        "curly": ("short, curly {} hair", "curly {} hair"),
    }[a.hair_style]
    return _pick(rng, options).format(color)


def _clothes_phrase(a: FaceAttributes, rng: np.random.Generator) -> str:
    """The clothes with their colour."""
    color = a.clothes_color
    options = {
        "top": (f"{color} top", f"{color} t-shirt"),
        "dress": (f"{color} dress",),
        "sweater": (f"{color} sweater", f"knitted {color} sweater"),
        "shirt": (f"{color} shirt", f"{color} shirt with a collar"),
        "suit": (f"{color} suit and a white shirt", f"{color} suit jacket over a white shirt"),
    }[a.clothing]
    return _article(_pick(rng, options))


def _worn_phrases(a: FaceAttributes, rng: np.random.Generator) -> list[str]:
    """Accessories that the picture shows, without the clothes."""
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
    """One choice of words for every slot of the templates."""
    subject = _article(_pick(rng, (f"{a.age} {a.gender}", a.gender)))
    hair = _hair_phrase(a, rng)
    if a.beard:
        beard = _pick(rng, ("a full beard", "a beard"))
        hair = _pick(rng, (f"{hair} and {beard}", f"{beard} and {hair}"))
    worn = _worn_phrases(a, rng)
    doing, look = EXPRESSION_WORDS[a.expression]
    background = BACKGROUND_WORDS.get(a.background_color, a.background_color)
    a_background = f"{background} {_pick(rng, ('background', 'backdrop'))}"
    features = ["a beard"] if a.beard else []
    accessories = (" with " + _join(features) if features else "") + (
        f", wearing {_join(worn)}" if worn else ""
    )
    return {
        "subject": subject,
        "Subject": subject.capitalize(),
        "bare_subject": subject.split(" ", 1)[1],
        "Pronoun": "She" if a.gender == "woman" else "He",
        "hair": hair,
        "wear": _join([_clothes_phrase(a, rng), *worn]),
        "accessories": accessories,
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
    """Describe a face six times in different words.

    Args:
        attributes: the face.
        seed: chooses templates and synonyms.

    Returns:
        Six captions of 12 to 45 words. The first four name hair (or baldness), clothes and
        background with their colours; the last two leave some of these out.
    """
    rng = np.random.default_rng((seed, 1))
    full = rng.permutation(len(FULL_TEMPLATES))[:4]
    partial = rng.permutation(len(PARTIAL_TEMPLATES))[:2]
    templates = [FULL_TEMPLATES[i] for i in full] + [PARTIAL_TEMPLATES[i] for i in partial]
    return tuple(template.format(**_phrases(attributes, rng)) for template in templates)
