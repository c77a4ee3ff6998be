"""The 46 attributes of a face, as UniF2ace asks them: appearance, action, emotion.

An attribute has one of its values, or is not known. They come from the lists of CelebA and
CelebAMask-HQ, from rendered faces exactly, or from a model that answers questions
(`mmface.annotation.attributes`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmface.rendered import BACKGROUND_COLORS, CLOTHES_COLORS, EYE_COLORS, HAIR_COLORS, HAT_COLORS
from mmface.rendered.candid.attributes import (
    LONG_STYLES,
    SKIN_TONES,
    CandidAttributes,
)
from mmface.rendered.candid.attributes import (
    sample_attributes as sample_candid,
)

YES, NO = "yes", "no"
Attributes = Mapping[str, str]
"""What is known of a face: names of attributes to one of their values."""


@dataclass(frozen=True)
class Attribute:
    """Something that a face can be, have or do.

    Attributes:
        name: Its name in files.
        family: "appearance", "action" or "emotion".
        phrase: What it is called in a question.
        values: What it can be; `YES` and `NO` where it is there or not.
        is_colour: Whether its values are colours.
    """

    name: str
    family: str
    phrase: str
    values: tuple[str, ...] = (YES, NO)
    is_colour: bool = False

    @property
    def is_presence(self) -> bool:
        """Whether it is there or not, and nothing else."""
        return self.values == (YES, NO)


def _colours(name: str, phrase: str, *tables: Mapping[str, object]) -> Attribute:
    names = dict.fromkeys(key for table in tables for key in table)
    return Attribute(name, "appearance", phrase, tuple(names), is_colour=True)


def _there(name: str, phrase: str, family: str = "appearance") -> Attribute:
    return Attribute(name, family, phrase)


def _choice(name: str, phrase: str, *values: str, family: str = "appearance") -> Attribute:
    return Attribute(name, family, phrase, values)


ATTRIBUTES: Mapping[str, Attribute] = {
    each.name: each
    for each in (
        _choice("gender", "gender", "woman", "man"),
        _choice("age", "age", "young", "middle-aged", "elderly"),
        _colours("hair_color", "hair", HAIR_COLORS),
        _choice("hair_length", "length of hair", "short", "shoulder-length", "long", "none"),
        _choice("hair_type", "type of hair", "straight", "wavy", "curly"),
        _choice("hair_style", "hairstyle", "loose", "tied up", "combed back", "tousled"),
        _there("bangs", "bangs"),
        _there("bald", "a bald head"),
        _there("receding_hairline", "a receding hairline"),
        _there("beard", "a beard"),
        _choice("beard_kind", "kind of beard", "full beard", "stubble", "goatee", "mustache"),
        _there("mustache", "a mustache"),
        _there("goatee", "a goatee"),
        _there("sideburns", "sideburns"),
        _there("stubble", "stubble"),
        Attribute("skin_tone", "appearance", "skin", tuple(SKIN_TONES), is_colour=True),
        _there("rosy_cheeks", "rosy cheeks"),
        _choice("face_shape", "shape of the face", "oval", "round", "square"),
        _there("double_chin", "a double chin"),
        _there("high_cheekbones", "high cheekbones"),
        _there("chubby", "a chubby face"),
        _colours("eye_color", "eyes", EYE_COLORS),
        _there("narrow_eyes", "narrow eyes"),
        _there("bags_under_eyes", "bags under the eyes"),
        _there("bushy_eyebrows", "bushy eyebrows"),
        _there("arched_eyebrows", "arched eyebrows"),
        _there("big_nose", "a big nose"),
        _there("pointy_nose", "a pointy nose"),
        _there("big_lips", "big lips"),
        _there("lipstick", "lipstick"),
        _there("heavy_makeup", "heavy make-up"),
        _there("glasses", "glasses"),
        _there("hat", "a hat"),
        _colours("hat_color", "hat", HAT_COLORS),
        _there("earrings", "earrings"),
        _there("necklace", "a necklace"),
        _there("necktie", "a necktie"),
        _colours("clothes_color", "clothes", CLOTHES_COLORS),
        _choice("clothing", "clothing", "top", "dress", "sweater", "shirt", "suit"),
        _colours("background_color", "background", BACKGROUND_COLORS),
        _choice("lighting", "light", "left", "right", "front"),
        _there("smile", "a smile", "action"),
        _there("mouth_open", "an open mouth", "action"),
        _there("eyes_closed", "closed eyes", "action"),
        _choice("gaze", "direction", "front", "left", "right", family="action"),
        _choice(
            *("emotion", "emotion", "neutral", "happy", "surprised", "sad", "angry"),
            family="emotion",
        ),
    )
}
"""All 46 by name, in the order in which they are asked."""

EXCLUDED: tuple[frozenset[tuple[str, str]], ...] = tuple(
    frozenset(pair)
    for pair in (
        (("bald", YES), ("hair_length", "long")),
        (("bald", YES), ("hair_length", "shoulder-length")),
        (("bald", YES), ("bangs", YES)),
        (("beard", NO), ("goatee", YES)),
        (("beard", NO), ("stubble", YES)),
        (("beard", NO), ("sideburns", YES)),
        (("emotion", "happy"), ("smile", NO)),
        *((("beard", NO), ("beard_kind", kind)) for kind in ("full beard", "stubble", "goatee")),
        *((("hat", NO), ("hat_color", colour)) for colour in HAT_COLORS),
        *((("bald", YES), ("hair_type", kind)) for kind in ("straight", "wavy", "curly")),
    )
)
"""Pairs of values that no face has together."""


def check_attributes(attributes: Attributes) -> None:
    """Raise ValueError for unknown attributes or values, and for values that exclude each other."""
    for name, value in attributes.items():
        if name not in ATTRIBUTES:
            raise ValueError(f"there is no attribute {name!r}; known are {', '.join(ATTRIBUTES)}")
        if value not in ATTRIBUTES[name].values:
            known = ", ".join(ATTRIBUTES[name].values)
            raise ValueError(f"the attribute {name} is {value!r}, not one of {known}")
    for pair in EXCLUDED:
        if pair <= set(attributes.items()):
            both = " and ".join(f"{name} is {value}" for name, value in sorted(pair))
            raise ValueError(f"attributes contradict each other: {both}")


def _yes(is_so: bool) -> str:
    return YES if is_so else NO


_RENDERED_HAIR: Mapping[str, tuple[str, str]] = {
    "short": ("short", "straight"),
    "tousled": ("short", "wavy"),
    "slicked back": ("short", "straight"),
    "long straight": ("long", "straight"),
    "long wavy": ("long", "wavy"),
    "shoulder-length": ("shoulder-length", "straight"),
    "curly": ("short", "curly"),
}
"""Rendered style -> length and type of hair; of a bun neither is known."""
_RENDERED_STYLES = {"tousled": "tousled", "slicked back": "combed back", "bun": "tied up"}


def rendered_attributes(face: CandidAttributes) -> dict[str, str]:
    """What is true of a rendered face; what its picture does not show is left out."""
    known = {
        "gender": face.gender,
        "age": face.age,
        "skin_tone": face.skin_tone,
        "clothes_color": face.clothes_color,
        "clothing": face.clothing,
        "background_color": face.background_color,
        "lighting": face.lighting,
        "bald": _yes(face.hair_style == "bald"),
        "beard": _yes(face.beard),
        "glasses": _yes(face.glasses),
        "hat": _yes(face.hat is not None),
        "earrings": _yes(face.earrings),
        "necklace": _yes(face.necklace),
        "lipstick": _yes(face.lipstick),
        "smile": _yes(face.expression != "serious"),
        "mouth_open": _yes(face.expression == "open smile"),
        "eyes_closed": _yes(face.eyes == "closed"),
        "narrow_eyes": _yes(face.eyes == "narrow"),
        "gaze": face.pose,
        "emotion": "neutral" if face.expression == "serious" else "happy",
    }
    if face.eyes != "closed":
        known["eye_color"] = face.eye_color
    if face.hat is not None:
        known["hat_color"] = face.hat
    if face.beard_kind is not None:
        known["beard_kind"] = face.beard_kind
        known |= {kind: _yes(face.beard_kind == kind) for kind in ("mustache", "goatee", "stubble")}
    if face.hair_style == "bald":
        return known | {"hair_length": "none"}
    known["hair_color"] = face.hair_color
    if face.hat is None:
        known["bangs"] = _yes(face.fringe > 0.6)
        known["hair_style"] = _RENDERED_STYLES.get(face.hair_style, "loose")
    if face.hair_style in _RENDERED_HAIR and (face.hat is None or face.hair_style in LONG_STYLES):
        known["hair_length"], known["hair_type"] = _RENDERED_HAIR[face.hair_style]
    return known


def rendered_seed(face_id: str) -> int:
    """The seed of a rendered face by its id, such as `rendered/17`; ValueError for another face."""
    kind, _, seed = face_id.rpartition("/")
    if not kind.endswith("rendered") or not seed.isdigit():
        raise ValueError(
            f"{face_id} is no rendered face, whose attributes are known exactly; make attributes: "
            "scripts/annotate.py attributes"
        )
    return int(seed)


def attributes_of_rendered(face_id: str) -> dict[str, str]:
    """What is true of the candid rendered face of an id."""
    return rendered_attributes(sample_candid(rendered_seed(face_id)))


_CELEBA_YES = {
    "5_o_Clock_Shadow": "stubble", "Arched_Eyebrows": "arched_eyebrows",
    "Bags_Under_Eyes": "bags_under_eyes", "Bald": "bald", "Bangs": "bangs", "Big_Lips": "big_lips",
    "Big_Nose": "big_nose", "Bushy_Eyebrows": "bushy_eyebrows", "Chubby": "chubby",
    "Double_Chin": "double_chin", "Eyeglasses": "glasses", "Goatee": "goatee",
    "Heavy_Makeup": "heavy_makeup", "High_Cheekbones": "high_cheekbones",
    "Mouth_Slightly_Open": "mouth_open", "Mustache": "mustache", "Narrow_Eyes": "narrow_eyes",
    "Pointy_Nose": "pointy_nose", "Receding_Hairline": "receding_hairline",
    "Rosy_Cheeks": "rosy_cheeks", "Sideburns": "sideburns", "Smiling": "smile",
    "Wearing_Earrings": "earrings", "Wearing_Hat": "hat", "Wearing_Lipstick": "lipstick",
    "Wearing_Necklace": "necklace", "Wearing_Necktie": "necktie",
}  # fmt: skip
"""Columns that are there or not. Attractive and Blurry say nothing of a face and are not read."""
_CELEBA_CHOICES = {
    "Black_Hair": ("hair_color", "black"), "Blond_Hair": ("hair_color", "blond"),
    "Brown_Hair": ("hair_color", "brown"), "Gray_Hair": ("hair_color", "gray"),
    "Straight_Hair": ("hair_type", "straight"), "Wavy_Hair": ("hair_type", "wavy"),
    "Oval_Face": ("face_shape", "oval"), "Pale_Skin": ("skin_tone", "pale"),
}  # fmt: skip
"""Columns of which one decides a value; where none or two are set, the value is not known."""


def celeba_attributes(row: Mapping[str, bool]) -> dict[str, str]:
    """Read a row of CelebA's forty columns; unlikely combinations are left out."""
    known = {ours: _yes(row[name]) for name, ours in _CELEBA_YES.items() if name in row}
    if "Male" in row:
        known["gender"] = "man" if row["Male"] else "woman"
    if row.get("Young"):
        known["age"] = "young"
    if "No_Beard" in row:
        known["beard"] = _yes(not row["No_Beard"])
    for name in dict.fromkeys(name for name, _ in _CELEBA_CHOICES.values()):
        set_ones = [v for k, (n, v) in _CELEBA_CHOICES.items() if n == name and row.get(k)]
        if len(set_ones) == 1:
            known[name] = set_ones[0]
    for pair in EXCLUDED:
        if pair <= known.items():
            for name, _ in pair:
                known.pop(name, None)
    return known


def read_celeba_list(path: str | Path) -> dict[str, dict[str, str]]:
    """Read `list_attr_celeba.txt` or CelebAMask-HQ's list: a picture's name to its attributes.

    ValueError, with the line, for a file that is no such list.
    """
    path = Path(path)
    lines = path.read_text().splitlines()
    if len(lines) < 2 or not lines[0].strip().isdigit():
        raise ValueError(f"{path}:1: is no number of pictures; give CelebA's list of attributes")
    names = lines[1].split()
    if unknown := [n for n in (*_CELEBA_YES, "Male") if n not in names]:
        raise ValueError(f"{path}:2: lacks the column {unknown[0]}; give CelebA's list")
    found = {}
    for number, line in enumerate(lines[2:], 3):
        if not line.strip():
            continue
        picture, *values = line.split()
        if len(values) != len(names) or set(values) - {"1", "-1", "0"}:
            raise ValueError(f"{path}:{number}: has not {len(names)} values of 1 or -1")
        signs = np.array([value == "1" for value in values]).tolist()
        found[picture] = celeba_attributes(dict(zip(names, signs, strict=True)))
    return found
