"""What a candid face can be: named colours and styles, the attributes, and their random choice.

Colours, age, light and pose are drawn without regard to each other and to gender, so that what a
prompt leaves open is not decided by what it names.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmface.rendered.attributes import (
    BACKGROUND_COLORS,
    CLOTHES_COLORS,
    EYE_COLORS,
    HAIR_COLORS,
    HAT_COLORS,
    HELD_OUT_SEED,
    SUIT_COLORS,
    Color,
)

SKIN_TONES: dict[str, Color] = {
    "pale": (246, 220, 204),
    "fair": (236, 196, 168),
    "tan": (210, 158, 120),
    "bronze": (162, 110, 78),
    "ebony": (108, 70, 52),
}
"""In words that no hair is described with."""

HELD_OUT_PAIRS = frozenset(
    {("red", "purple"), ("blond", "green"), ("gray", "yellow"), ("black", "orange")}
)
"""Colours of hair and clothes that no face below the held-out seeds has together."""

HAIR_STYLES: dict[str, tuple[float, float]] = {
    "short": (0.10, 0.42),
    "tousled": (0.06, 0.16),
    "slicked back": (0.08, 0.12),
    "long straight": (0.24, 0.05),
    "long wavy": (0.22, 0.04),
    "shoulder-length": (0.12, 0.04),
    "bun": (0.10, 0.01),
    "curly": (0.08, 0.09),
    "bald": (0.0, 0.07),
}
"""Hair style -> how often a woman and how often a man wears it."""
LONG_STYLES = ("long straight", "long wavy", "shoulder-length")
"""Styles that fall beside or behind the neck."""

CLOTHING = {"top": 0.26, "dress": 0.12, "sweater": 0.2, "shirt": 0.22, "suit": 0.2}
BEARDS = {"full beard": 0.4, "stubble": 0.25, "goatee": 0.2, "mustache": 0.15}
EYES = {"open": 0.62, "narrow": 0.27, "closed": 0.04, "wide": 0.07}


@dataclass(frozen=True)
class CandidAttributes:
    """One face: the words that describe it and the geometry that shapes it.

    Colours are keys of the tables above. Lengths are fractions of the picture's side, angles are in
    radians: `yaw` is positive where the face turns to the picture's right, `pitch` where it looks
    up, `roll` clockwise. `covers` says how far hair falls over the picture's left and right side
    of the face: 0 behind the ear, 1 over the ear, 2 over the cheek, 3 over the eye. `fringe` is how
    far hair falls over the forehead: 0 to 1 at the brows, above over the eyes. `hand` is who drew
    the sketch.
    """

    gender: str
    age: str
    hair_color: str
    hair_style: str
    skin_tone: str
    eye_color: str
    expression: str
    eyes: str
    glasses: bool
    hat: str | None
    hat_kind: str
    earrings: bool
    beard_kind: str | None
    necklace: bool
    lipstick: bool
    clothes_color: str
    clothing: str
    background_color: str
    background_kind: str
    lighting: str
    warmth: float
    covers: tuple[int, int]
    fringe: float
    hair_reach: tuple[float, float]
    shift_x: float
    shift_y: float
    scale: float
    roll: float
    yaw: float
    pitch: float
    body_yaw: float
    face_width: float
    jaw: float
    chin: float
    chin_y: float
    hairline: float
    brow_arch: float
    brow_weight: float
    brow_y: float
    eye_height: float
    eye_width: float
    nose_width: float
    nose_length: float
    mouth_width: float
    mouth_open: float
    lip: float
    ear: float
    neck_width: float
    neckline: float
    hair_volume: float
    parting: float
    texture_seed: int

    @property
    def beard(self) -> bool:
        """Whether hair grows on the lower face."""
        return self.beard_kind is not None

    @property
    def pose(self) -> str:
        """Where the face looks, seen from the viewer: "front", "left" or "right"."""
        if abs(self.yaw) < 0.26:
            return "front"
        return "right" if self.yaw > 0 else "left"


def choose(rng: np.random.Generator, weights: dict[str, float]) -> str:
    """One key of `weights`, with probability proportional to its value."""
    values = np.array(list(weights.values()))
    return list(weights)[int(rng.choice(len(values), p=values / values.sum()))]


def _uniform_choice(rng: np.random.Generator, names: Iterable[str]) -> str:
    return choose(rng, dict.fromkeys(names, 1.0))


def _sample_words(rng: np.random.Generator, held_out: bool) -> dict[str, Any]:
    woman = rng.random() < 0.52
    style = choose(rng, {k: pair[0 if woman else 1] for k, pair in HAIR_STYLES.items()})
    hat = _uniform_choice(rng, HAT_COLORS) if style != "bun" and rng.random() < 0.09 else None
    clothing = choose(rng, CLOTHING)
    hair_color = _uniform_choice(rng, HAIR_COLORS)
    colors = SUIT_COLORS if clothing == "suit" else tuple(CLOTHES_COLORS)
    if not held_out:
        colors = tuple(c for c in colors if (hair_color, c) not in HELD_OUT_PAIRS)
    bearded = not woman and rng.random() < 0.38
    return {
        "gender": "woman" if woman else "man",
        "age": choose(rng, {"young": 0.46, "middle-aged": 0.34, "elderly": 0.2}),
        "hair_color": hair_color,
        "hair_style": style,
        "skin_tone": _uniform_choice(rng, SKIN_TONES),
        "eye_color": _uniform_choice(rng, EYE_COLORS),
        "expression": choose(rng, {"open smile": 0.42, "smile": 0.26, "serious": 0.32}),
        "eyes": choose(rng, EYES),
        "glasses": rng.random() < 0.11,
        "hat": hat,
        "hat_kind": choose(rng, {"beanie": 0.4, "brimmed hat": 0.4, "cap": 0.2}),
        "earrings": rng.random() < (0.48 if woman else 0.1),
        "beard_kind": choose(rng, BEARDS) if bearded else None,
        "necklace": rng.random() < (0.22 if woman else 0.06),
        "lipstick": woman and rng.random() < 0.55,
        "clothes_color": _uniform_choice(rng, colors),
        "clothing": clothing,
        "background_color": _uniform_choice(rng, BACKGROUND_COLORS),
        "background_kind": choose(rng, {"plain": 0.55, "blurred": 0.3, "panels": 0.15}),
        "lighting": choose(rng, {"left": 0.33, "right": 0.33, "front": 0.34}),
    }


def _sample_hair(rng: np.random.Generator, style: str) -> dict[str, Any]:
    long = style in LONG_STYLES
    covers = rng.choice(4, 2, p=(0.3, 0.36, 0.26, 0.08) if long else (0.86, 0.14, 0.0, 0.0))
    fringed = style not in ("bald", "slicked back", "bun") and rng.random() < 0.34
    return {
        "covers": (int(covers[0]), int(covers[1])),
        "fringe": float(rng.uniform(0.45, 1.3)) if fringed else 0.0,
        "hair_reach": tuple(float(v) for v in rng.gamma(2.2, 0.115, 2)),
        "hair_volume": float(rng.uniform(0.05, 0.16) * (0.7 if style == "bun" else 1)),
        "parting": float(rng.choice([-0.09, -0.05, 0.0, 0.05, 0.09])),
        "hairline": float(rng.uniform(-0.31, -0.23)),
    }


def sample_attributes(seed: int) -> CandidAttributes:
    """The face of a seed; equal for equal seeds on every machine."""
    rng = np.random.default_rng((seed, 2))
    words = _sample_words(rng, held_out=seed >= HELD_OUT_SEED)
    hair = _sample_hair(rng, words["hair_style"])
    man = 0.0 if words["gender"] == "woman" else 1.0
    turned = rng.random() < 0.45
    yaw = (
        min(rng.uniform(0.2, 0.8), rng.uniform(0.2, 1.0)) * rng.choice((-1, 1))
        if turned
        else rng.normal(0, 0.1)
    )
    loose = rng.random() < 0.14
    spread = 3.5 if loose else 1.0

    def between(low: float, high: float) -> float:
        return float(rng.uniform(low, high))

    return CandidAttributes(
        **words,
        **hair,
        warmth=between(-1, 1),
        shift_x=float(np.clip(rng.normal(0, 0.013 * spread), -0.12, 0.12)),
        shift_y=float(np.clip(rng.normal(0, 0.012 * spread), -0.1, 0.1)),
        scale=float(np.clip(rng.normal(1.03 - 0.09 * loose, 0.03 * spread), 0.7, 1.25)),
        roll=float(np.clip(rng.normal(0, 0.045 * (2 if loose else 1)), -0.25, 0.25)),
        yaw=float(np.clip(yaw, -0.88, 0.88)),
        pitch=float(np.clip(rng.normal(0.0, 0.11), -0.3, 0.3)),
        body_yaw=float(np.clip(rng.normal(0.3 * yaw, 0.25), -0.6, 0.6)),
        face_width=between(0.248, 0.272) + 0.006 * man,
        jaw=between(0.82, 0.91) + 0.04 * man,
        chin=between(0.42, 0.54) + 0.05 * man,
        chin_y=between(0.44, 0.495),
        brow_arch=between(0.004, 0.03) - 0.006 * man,
        brow_weight=between(0.028, 0.05) + 0.008 * man,
        brow_y=between(-0.09, -0.06),
        eye_height=between(0.036, 0.056),
        eye_width=between(0.05, 0.064),
        nose_width=between(0.072, 0.108),
        nose_length=between(0.155, 0.19),
        mouth_width=between(0.09, 0.115),
        mouth_open=between(0.012, 0.06),
        lip=between(0.018, 0.042),
        ear=between(0.055, 0.11),
        neck_width=between(0.15, 0.205) + 0.03 * man,
        neckline=between(-0.02, 0.2),
        texture_seed=int(rng.integers(2**31)),
    )
