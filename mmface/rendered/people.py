"""Rendered people: one identity in any pose, expression, clothes, light and background.

An identity is what a face keeps: skin, hair colour and style family, eye colour, the shape of the
face, beard, and whether it mostly wears glasses. A quarter of the combinations of skin, hair and
eye colour is held out: every single colour is seen in training, these combinations are not.

`read_traits` reads colours back from a picture in the regions of its label map.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from typing import Any, cast

import numpy as np
from jaxtyping import UInt8

from mmface.conditions import LABEL_INDEX
from mmface.rendered.attributes import EYE_COLORS, HAIR_COLORS
from mmface.rendered.candid.attributes import SKIN_TONES, CandidAttributes, sample_attributes
from mmface.rendered.candid.face import draw_scene, finished_image
from mmface.rendered.candid.hands import HANDS, draw_sketch
from mmface.rendered.candid.wording import phrases
from mmface.rendered.face import RenderedFace

HELD_OUT_IDENTITY = 1_000_000
"""Identities with this number and above have combinations that are held out."""
STYLE_FAMILIES: Mapping[str, tuple[str, ...]] = {
    "short": ("short", "tousled", "slicked back"),
    "long": ("long straight", "long wavy", "shoulder-length"),
    "bun": ("bun",),
    "curly": ("curly",),
}
FACE_SHAPES: Mapping[str, Mapping[str, tuple[float, float]]] = {
    "round": {"face_width": (0.266, 0.276), "jaw": (0.9, 0.95), "chin_y": (0.44, 0.455)},
    "long": {"face_width": (0.248, 0.256), "jaw": (0.82, 0.86), "chin_y": (0.48, 0.495)},
    "square": {"face_width": (0.258, 0.268), "jaw": (0.93, 0.97), "chin_y": (0.455, 0.47)},
}
BEARDS = ("none", "none", "full beard", "mustache", "goatee")
TRAITS: Mapping[str, Mapping[str, tuple[int, int, int]]] = {
    "skin": SKIN_TONES,
    "hair": HAIR_COLORS,
    "eyes": EYE_COLORS,
}
"""What can be read back -> its palette."""
_BUILD = ("chin", "hairline", "brow_arch", "brow_weight", "brow_y",
          "nose_width", "nose_length", "mouth_width", "lip", "ear", "neck_width")  # fmt: skip
"""What else of the geometry belongs to a person."""
_MIN_REGION_PX = 4
_REGIONS = {"skin": ("skin", "nose"), "hair": ("hair",), "eyes": ("l_eye", "r_eye")}
_DRAWN: Mapping[str, Mapping[str, tuple[float, ...]]] = {
    "skin": {
        "pale": (248.2, 219.3, 203.4),
        "fair": (235.8, 193.7, 166.9),
        "tan": (210.5, 156.4, 119.4),
        "bronze": (162.9, 111.7, 81.6),
        "ebony": (113.8, 74.0, 53.4),
    },
    "hair": {
        "black": (33.3, 29.4, 31.1),
        "dark brown": (80.9, 52.0, 36.5),
        "brown": (133.9, 91.9, 57.5),
        "red": (183.6, 77.4, 33.1),
        "blond": (212.6, 176.1, 104.5),
        "gray": (144.7, 146.5, 150.7),
        "white": (223.2, 221.1, 219.2),
    },
    "eyes": {
        "brown": (16.3, -10.7),
        "blue": (-13.3, 19.2),
        "green": (-13.7, -18.5),
        "gray": (0.8, 0.6),
    },
}
"""What `_summary` gives of each trait on average, over 220 training pictures at 128 px."""


@dataclass(frozen=True)
class Identity:
    """What a person keeps from picture to picture.

    Attributes:
        number: of the identity.
        gender: "woman" or "man".
        skin: a skin tone.
        hair: a hair colour.
        eyes: an eye colour.
        style: a style family.
        shape: a face shape.
        beard: a kind of beard, or "none".
        glasses: whether this person mostly wears them.
    """

    number: int
    gender: str
    skin: str
    hair: str
    eyes: str
    style: str
    shape: str
    beard: str
    glasses: bool

    @property
    def traits(self) -> dict[str, str]:
        """The traits of `TRAITS`."""
        return {"skin": self.skin, "hair": self.hair, "eyes": self.eyes}


def is_held_out(skin: str, hair: str, eyes: str) -> bool:
    """Whether a combination is one of the quarter that no training identity has."""
    places = [list(palette).index(name) for palette, name in zip(
        TRAITS.values(), (skin, hair, eyes), strict=True
    )]  # fmt: skip
    return sum(places) % 4 == 0


@lru_cache(maxsize=4096)
def identity(number: int) -> Identity:
    """The identity of a number; equal for equal numbers on every machine."""
    rng = np.random.default_rng((number, 5))
    held_out = number >= HELD_OUT_IDENTITY
    combinations = [each for each in product(*TRAITS.values()) if is_held_out(*each) == held_out]
    skin, hair, eyes = combinations[int(rng.integers(len(combinations)))]
    woman = bool(rng.random() < 0.5)
    styles = {"short": 0.2, "long": 0.5, "bun": 0.15, "curly": 0.15} if woman else {
        "short": 0.65, "long": 0.15, "bun": 0.0, "curly": 0.2
    }  # fmt: skip
    style = str(rng.choice(list(styles), p=list(styles.values())))
    shape = str(rng.choice(list(FACE_SHAPES)))
    beard = "none" if woman else str(rng.choice(BEARDS))
    glasses = bool(rng.random() < 0.25)
    gender = "woman" if woman else "man"
    return Identity(number, gender, skin, hair, eyes, style, shape, beard, glasses)


def person_attributes(person: Identity, picture: int) -> CandidAttributes:
    """The face of a person in one of their pictures; all that is no identity differs."""
    own = np.random.default_rng((person.number, 6))
    rng = np.random.default_rng((person.number, picture, 7))
    kept = sample_attributes(int(own.integers(1_000_000)))
    # Redrawn until the clothes fit the gender: a suit's tie, lipstick, earrings go with it.
    base = next(
        each
        for each in (sample_attributes(int(rng.integers(1_000_000))) for _ in range(1000))
        if each.gender == person.gender and each.eyes == "open" and each.hair_style != "bald"
    )
    shape = {name: float(own.uniform(*span)) for name, span in FACE_SHAPES[person.shape].items()}
    family = STYLE_FAMILIES[person.style]
    style = family[int(own.integers(len(family)))]
    habit = 0.8 if person.glasses else 0.05
    long = person.style == "long"
    built: dict[str, Any] = {name: getattr(kept, name) for name in _BUILD} | shape
    return replace(
        base,
        skin_tone=person.skin,
        hair_color=person.hair,
        eye_color=person.eyes,
        hair_style=style,
        beard_kind=None if person.beard == "none" else person.beard,
        glasses=bool(rng.random() < habit),
        hat=None,
        age=kept.age,
        covers=base.covers if long == (max(base.covers) > 1) else (0, 0),
        **built,
        eye_height=max(kept.eye_height, 0.048),
        eye_width=max(kept.eye_width, 0.056),
    )


def captions(attributes: CandidAttributes, seed: Sequence[int]) -> tuple[str, ...]:
    """Describe a picture of a person five times.

    Two captions name traits; the others say nothing that belongs to the person but man or woman.
    The last is short: the word for the person, clothes and expression.
    """
    rng = np.random.default_rng((*seed, 8))
    said = []
    for template in (
        "{Person} in {clothes}, {doing}, {gaze}. The background is {bg}.",
        "A photo of {a_person} wearing {clothes} and {doing}, against {a_bg}.",
        "{Person} with {hair} and {eyes}, wearing {clothes}, {doing}.",
        "{Person} with {skin} and {bare_hair}, {doing}, {light}.",
    ):
        words = phrases(attributes, rng)
        words |= {"a_person": f"a {attributes.gender}", "Person": f"A {attributes.gender}"}
        said.append(template.format(**words))
    return (*said, " ".join(person_phrase(attributes, seed)))


def render_person(person: Identity, picture: int, size: int = 128) -> RenderedFace:
    """Draw and describe one of a person's pictures."""
    attributes = person_attributes(person, picture)
    scene = draw_scene(attributes, size)
    rng = np.random.default_rng((person.number, picture, 9))
    names = list(HANDS)
    often = np.array([HANDS[name][1] for name in names])
    hand = names[int(rng.choice(len(names), p=often / often.sum()))]
    sketch = draw_sketch(scene, hand, rng)
    texts = captions(attributes, (person.number, picture))
    return RenderedFace(finished_image(scene), scene.labels, sketch, attributes, texts)


@dataclass(frozen=True)
class RenderedPair:
    """Two people side by side on one wide canvas.

    Attributes:
        image: uint8 [S, 2 S, 3].
        labels: uint8 [S, 2 S]; both people have the same classes.
        sketch: uint8 [S, 2 S].
        caption: names both, in the order of `people`.
        spans: first character of each one's word in the caption, and the one after its last.
        sides: which side each of them is on, 0 left and 1 right.
    """

    image: UInt8[np.ndarray, "height width 3"]
    labels: UInt8[np.ndarray, "height width"]
    sketch: UInt8[np.ndarray, "height width"]
    caption: str
    spans: tuple[tuple[int, int], ...]
    sides: tuple[int, int]


SIDES = ("on the left", "on the right")


def person_phrase(attributes: CandidAttributes, seed: Sequence[int]) -> tuple[str, str]:
    """The word for a person, and clothes and expression as a caption of two would say them."""
    words = phrases(attributes, np.random.default_rng((*seed, 10)))
    return attributes.gender, "in {clothes}, {doing}".format(**words)


def pair_caption(
    genders: Sequence[str], details: Sequence[str], order: Sequence[int] = (0, 1)
) -> tuple[str, tuple[tuple[int, int], ...]]:
    """One caption for the people on the left and on the right, and where their words stand.

    `genders` and `details` are by side; `order` says which side is named first. Spans are in this
    order, too.
    """
    text, spans = "", []
    for place, side in enumerate(order):
        article = "A" if place == 0 else "a"
        start = len(text) + 2
        text += f"{article} {genders[side]} {SIDES[side]} {details[side]}"
        spans.append((start, start + len(genders[side])))
        text += ", and " if place == 0 else ""
    return text, tuple(spans)


def render_pair(
    people: Sequence[tuple[Identity, int]], order: Sequence[int] = (0, 1), size: int = 128
) -> RenderedPair:
    """Draw two pictures of people side by side, the first on the left; `order` as in the caption.

    `order` is (0, 1) where the left one is named first, (1, 0) where the right one is.
    """
    faces = [render_person(person, picture, size) for person, picture in people]
    said = [
        person_phrase(cast("CandidAttributes", face.attributes), (person.number, picture))
        for face, (person, picture) in zip(faces, people, strict=True)
    ]
    caption, spans = pair_caption([each[0] for each in said], [each[1] for each in said], order)
    image, labels, sketch = (
        np.concatenate([getattr(face, name) for face in faces], axis=1)
        for name in ("image", "labels", "sketch")
    )
    return RenderedPair(image, labels, sketch, caption, spans, (order[0], order[1]))


def read_traits(
    image: UInt8[np.ndarray, "height width 3"], labels: UInt8[np.ndarray, "height width"]
) -> dict[str, str | None]:
    """Read skin, hair and eye colour in the regions of a label map; None where one is too small.

    Each is the name whose colour, as the renderer draws it on average, is the nearest.
    """
    found: dict[str, str | None] = {}
    for name, classes in _REGIONS.items():
        region = np.isin(labels, [LABEL_INDEX[each] for each in classes])
        found[name] = None
        if region.sum() >= _MIN_REGION_PX:
            seen = _summary(name, image[region].astype(np.float64))
            distances = {
                word: float(np.linalg.norm(seen - np.array(drawn)))
                for word, drawn in _DRAWN[name].items()
            }
            found[name] = min(distances, key=distances.__getitem__)
    return found


def _summary(name: str, colors: np.ndarray) -> np.ndarray:
    """A region's lit skin, median hair, or the tint of white, iris and pupil of eyes together."""
    if name == "skin":
        return np.percentile(colors, 75, axis=0)
    if name == "hair":
        return np.median(colors, axis=0)
    red, green, blue = colors.mean(0)
    return np.array((red - green, blue - green))
