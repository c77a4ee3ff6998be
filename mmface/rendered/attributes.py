"""What a face can be: the named colours and styles, the attributes, and their random choice."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

Color = tuple[int, int, int]

HELD_OUT_SEED = 1_000_000
"""Faces with this seed and above are never trained on; evaluation takes them from here up."""

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

COVERING_STYLES = ("long straight", "long wavy", "bangs", "shoulder-length")
"""Styles that fall behind the neck and can hide the ears."""
HATLESS_STYLES = ("bald", "bun", "bangs")
"""Styles that no hat is worn with: it would hide what names them."""

CLOTHING: dict[str, dict[str, float]] = {
    "woman": {"top": 0.35, "dress": 0.25, "sweater": 0.2, "shirt": 0.2},
    "man": {"suit": 0.3, "shirt": 0.3, "sweater": 0.2, "top": 0.2},
}
"""Who -> how often they wear what."""
SUIT_COLORS = ("black", "gray", "blue")
OPEN_NECKLINES = ("top", "dress")
"""Clothes that leave the neck free, so that a necklace can be seen."""


@dataclass(frozen=True)
class FaceAttributes:
    """One face: the words that describe it and the geometry that shapes it.

    Colours are keys of the tables above. Lengths are fractions of the picture's side; `roll` is
    in radians, positive turns the head clockwise; `yaw` is in [-1, 1], positive turns the face to
    the picture's right; `warmth` is in [-1, 1], from cool to warm light. `jaw` and `chin` are
    half widths relative to the face's own.
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
    return _choose(rng, dict.fromkeys(names, 1.0))


def _sample_words(rng: np.random.Generator) -> dict[str, Any]:
    woman = rng.random() < 0.52
    gender = "woman" if woman else "man"
    age = _choose(rng, {"young": 0.5, "middle-aged": 0.32, "elderly": 0.18})
    aged = 3.0 if age == "elderly" else 0.12
    hair_weights = dict.fromkeys(HAIR_COLORS, 1.0) | {"gray": aged, "white": aged}
    style = _choose(rng, {k: pair[0 if woman else 1] for k, pair in HAIR_STYLES.items()})
    wears_hat = style not in HATLESS_STYLES and rng.random() < 0.25
    hat = _uniform_choice(rng, HAT_COLORS) if wears_hat else None
    clothing = _choose(rng, CLOTHING[gender])
    colors: Iterable[str] = SUIT_COLORS if clothing == "suit" else CLOTHES_COLORS
    ears_visible = style not in COVERING_STYLES or rng.random() < 0.45
    return {
        "gender": gender,
        "age": age,
        "hair_color": _choose(rng, hair_weights),
        "hair_style": style,
        "skin_tone": _uniform_choice(rng, SKIN_TONES),
        "eye_color": _uniform_choice(rng, EYE_COLORS),
        "expression": _choose(rng, {"open smile": 0.36, "smile": 0.34, "serious": 0.3}),
        "glasses": rng.random() < 0.2,
        "hat": hat,
        "hat_kind": _choose(rng, {"beanie": 0.5, "brimmed hat": 0.5}),
        "earrings": ears_visible and rng.random() < (0.58 if woman else 0.06),
        "beard": not woman and rng.random() < 0.4,
        "necklace": clothing in OPEN_NECKLINES and rng.random() < (0.55 if woman else 0.25),
        "clothes_color": _uniform_choice(rng, colors),
        "clothing": clothing,
        "background_color": _uniform_choice(rng, BACKGROUND_COLORS),
        "lighting": _choose(rng, {"left": 0.35, "right": 0.35, "front": 0.3}),
        "ears_visible": ears_visible,
    }


def sample_attributes(seed: int) -> FaceAttributes:
    """The face of a seed; equal for equal seeds on every machine."""
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
