"""The class orders and colours of face masks, and how to guess them.

All formats have the 19 classes of CelebAMask-HQ, so converting one is a lookup and loses nothing. A
mask in colours shows its format. Index maps have the values 0..18 in every format, and are told
apart by anatomy: brows lie above eyes. `words_against` knows which words ask for a class.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from mmface.conditions.palette import LABEL_INDEX, LABEL_TITLES, LABELS, PALETTE

Relation = tuple[str, str, str]
"""A class, its relation, and another class: ("l_brow", "lies above", "l_eye")."""


class Part(NamedTuple):
    """Where a class lies in a mask: centre, bounds and size in pixels; y points down."""

    number: int
    y: float
    x: float
    top: int
    bottom: int
    left: int
    right: int
    area: int


def parts_of(values: np.ndarray) -> dict[int, Part]:
    """Find where each index of a map [H, W] lies."""
    values = values[:: max(1, values.shape[0] // 128), :: max(1, values.shape[1] // 128)]
    found = {}
    for index in np.unique(values).tolist():
        y, x = np.nonzero(values == index)
        bounds = (int(y.min()), int(y.max()), int(x.min()), int(x.max()))
        found[index] = Part(index, float(y.mean()), float(x.mean()), *bounds, len(y))
    return found


def _above(one: Part, other: Part) -> bool:
    return one.y < other.y


def _higher(one: Part, other: Part) -> bool:
    return one.top < other.top


def _within(one: Part, other: Part) -> bool:
    return other.top <= one.y <= other.bottom and other.left <= one.x <= other.right


def _right_of(one: Part, other: Part) -> bool:
    return one.x > other.x


def _larger(one: Part, other: Part) -> bool:
    return one.area > 1.5 * other.area


RELATIONS: tuple[tuple[str, Callable[[Part, Part], bool], str], ...] = (
    (
        "lies above",
        _above,
        "l_brow/l_eye r_brow/r_eye l_eye/nose r_eye/nose nose/u_lip nose/l_lip u_lip/l_lip "
        "u_lip/mouth mouth/l_lip skin/neck skin/cloth neck/cloth l_lip/neck l_lip/neck_l hat/skin "
        "hair/cloth eye_g/nose l_ear/neck r_ear/neck l_brow/eye_g r_brow/eye_g ear_r/cloth",
    ),
    ("reaches higher than", _higher, "hair/skin hair/l_brow hair/r_brow hat/hair"),
    (
        "lies within the bounds of",
        _within,
        "nose/skin l_eye/skin r_eye/skin l_brow/skin r_brow/skin u_lip/skin l_lip/skin mouth/skin "
        "eye_g/skin",
    ),
    (
        "lies to the right of",
        _right_of,
        "l_eye/r_eye l_brow/r_brow l_ear/r_ear l_eye/nose nose/r_eye l_brow/nose nose/r_brow "
        "l_ear/l_eye r_eye/r_ear l_ear/skin skin/r_ear",
    ),
    (
        "is larger than",
        _larger,
        "skin/nose skin/l_eye skin/r_eye skin/l_brow skin/r_brow skin/u_lip skin/l_lip skin/mouth "
        "skin/l_ear skin/r_ear skin/ear_r skin/eye_g hair/l_brow hair/r_brow hair/nose",
    ),
)
"""Relations that hold in nearly all upright faces; the subject's left is the picture's right."""

_ALWAYS_THERE = frozenset({"skin", "nose", "u_lip", "l_lip"})


def relations_of(parts: Mapping[str, Part]) -> Iterator[tuple[Relation, bool]]:
    """Yield each relation between two parts, and whether it holds.

    Every face has skin, nose and lips: if one is missing, its relations do not hold.
    """
    for says, holds, pairs in RELATIONS:
        for pair in pairs.split():
            one, other = pair.split("/")
            if one in parts and other in parts:
                yield (one, says, other), holds(parts[one], parts[other])
            elif {one, other} <= _ALWAYS_THERE:
                yield (one, says, other), False


Color = tuple[int, int, int]

COLOR_TOLERANCE = 24.0
"""Largest RGB distance to a palette colour; two palette colours are 51 apart at least."""


@dataclass(frozen=True)
class LabelFormat:
    """How a mask encodes its 19 classes.

    Attributes:
        name: For command lines and manifests.
        title: For sentences.
        classes: The name in `LABELS` of each index, in the format's own order.
        palette: RGB of each index, 0..255; None if the format has no colours.
    """

    name: str
    title: str
    classes: tuple[str, ...]
    palette: tuple[Color, ...] | None = None

    @property
    def to_labels(self) -> np.ndarray:
        """uint8 [19]: maps the format's indices to those of `LABELS`."""
        return np.array([LABEL_INDEX[name] for name in self.classes], dtype=np.uint8)

    @property
    def label_palette(self) -> tuple[Color, ...]:
        """The colours in the order of `LABELS`; empty if the format has none."""
        colors = dict(zip(self.classes, self.palette or (), strict=False))
        return tuple(colors[name] for name in LABELS) if colors else ()


def _bit_palette(num_classes: int) -> tuple[Color, ...]:
    """Spread an index's bits over red, green and blue, the lowest three as their highest bits."""
    spread = [
        [
            sum((index >> (3 * bit + channel) & 1) << (7 - bit) for bit in range(3))
            for channel in range(3)
        ]
        for index in range(num_classes)
    ]
    return tuple((red, green, blue) for red, green, blue in spread)


_COLORS: tuple[Color, ...] = tuple((int(r), int(g), int(b)) for r, g, b in PALETTE)
_OTHER_BROW = dict.fromkeys([LABEL_INDEX["r_brow"]], (51, 255, 255))

_BISENET = (
    "background skin l_brow r_brow l_eye r_eye eye_g l_ear r_ear ear_r "
    "nose mouth u_lip l_lip neck neck_l cloth hair hat"
)
_V_XCHEN_V = (
    "background hair hat ear_r skin l_brow r_brow l_eye r_eye eye_g "
    "nose u_lip l_lip mouth cloth neck neck_l l_ear r_ear"
)
_FACER = (
    "background neck skin cloth l_ear r_ear l_brow r_brow l_eye r_eye "
    "nose mouth l_lip u_lip hair eye_g hat ear_r neck_l"
)

LABEL_FORMATS: Mapping[str, LabelFormat] = {
    each.name: each
    for each in (
        LabelFormat("celebamask_hq", "CelebAMask-HQ", LABELS, _COLORS),
        LabelFormat(
            "celebamask_hq_utils",
            "CelebAMask-HQ (utils.py)",
            LABELS,
            tuple(_OTHER_BROW.get(index, color) for index, color in enumerate(_COLORS)),
        ),
        LabelFormat("maskgan", "MaskGAN", LABELS, _bit_palette(len(LABELS))),
        LabelFormat("bisenet", "BiSeNet", tuple(_BISENET.split())),
        LabelFormat("v_xchen_v", "v-xchen-v", tuple(_V_XCHEN_V.split())),
        LabelFormat("facer", "facer", tuple(_FACER.split())),
    )
}
"""The known formats by name.

- `celebamask_hq`: the order and the colours of CelebAMask-HQ's `g_mask.py` and `g_color.py`.
- `celebamask_hq_utils`: the same with the right brow of its `face_parsing/utils.py`.
- `maskgan`: the same order in the bit colours of PASCAL VOC, as MaskGAN's demo draws it.
- `bisenet`: face-parsing.PyTorch and its followers.
- `v_xchen_v`: the hub's data set `v-xchen-v/celebamask_hq`.
- `facer`: FaRL's parser `celebm`. Its names `rr, lr, rb, lb, re, le` mean the picture's right and
  left: it was trained on CelebAMask-HQ's `l_ear, r_ear, l_brow, ...` in this order.
"""


def known_palettes() -> list[tuple[Color, ...]]:
    """Give the palettes of all formats that have one, each in its own order."""
    return [each.palette for each in LABEL_FORMATS.values() if each.palette]


def label_format_named(name: str) -> LabelFormat:
    """Give the format of `LABEL_FORMATS` with this name."""
    if name not in LABEL_FORMATS:
        raise ValueError(
            f"There is no label format {name!r}; known are {', '.join(LABEL_FORMATS)}."
        )
    return LABEL_FORMATS[name]


def nearest_colors(
    rgb: np.ndarray, palette: Sequence[Color]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find the palette colour (of at most 255) nearest to each pixel of uint8 [..., 3].

    Returns its index, uint8 [...]; its distance in RGB, float64 [...]; and the pixel's own colour
    packed into one number, uint32 [...].
    """
    packed = rgb.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], dtype=np.uint32)
    colors, inverse = np.unique(packed, return_inverse=True)
    unpacked = np.stack([colors >> 16, colors >> 8 & 255, colors & 255], axis=1)
    nearest = np.zeros(len(colors), dtype=np.uint8)
    distance = np.full(len(colors), np.inf)
    for index, color in enumerate(palette):
        candidate = np.linalg.norm(unpacked - np.array(color, dtype=np.float64), axis=1)
        closer = candidate < distance
        nearest[closer], distance[closer] = index, candidate[closer]
    inverse = inverse.reshape(packed.shape)
    return nearest[inverse], distance[inverse], packed


@dataclass(frozen=True)
class LabelFormatGuess:
    """The format that masks seem to have.

    Attributes:
        format: The format, or None if undecided.
        evidence: Why, in a sentence.
        alternatives: Names of other formats that fit as well, or nearly so.
    """

    format: LabelFormat | None
    evidence: str
    alternatives: tuple[str, ...] = ()


_MIN_ON_PALETTE = 0.7
_MIN_OWN_COLOR = 0.0005  # share of pixels; a brow has about 0.003


def guess_by_color(pictures: Sequence[np.ndarray]) -> LabelFormatGuess:
    """Guess the format of colour masks, uint8 [H, W, 3]."""
    candidates = [each for each in LABEL_FORMATS.values() if each.palette]
    fits = {
        each.name: [
            nearest_colors(rgb, each.palette or ())[1] <= COLOR_TOLERANCE for rgb in pictures
        ]
        for each in candidates
    }
    share = {name: float(np.mean([fit.mean() for fit in all_])) for name, all_ in fits.items()}
    first = max(share, key=lambda name: share[name])
    if share[first] < _MIN_ON_PALETTE:
        return LabelFormatGuess(
            None,
            f"no known palette has the masks' colours: {first} comes nearest with "
            f"{share[first]:.1%} of the pixels",
        )

    def own(one: str, other: str) -> float:
        pairs = zip(fits[one], fits[other], strict=True)
        return float(np.mean([(mine & ~theirs).mean() for mine, theirs in pairs]))

    rivals = []
    for name in share:
        mine, theirs = own(first, name), own(name, first)
        if name != first and (mine < _MIN_OWN_COLOR or theirs > mine / 4):
            rivals.append(name)
    if rivals:
        names = " and ".join([first, *rivals])
        return LabelFormatGuess(
            None,
            f"none of the {len(pictures)} masks has a colour in which {names} differ",
            (first, *rivals),
        )
    second = max((name for name in share if name != first), key=lambda name: share[name])
    return LabelFormatGuess(
        LABEL_FORMATS[first],
        f"{share[first]:.1%} of the pixels of {len(pictures)} masks have colours of {first}; "
        f"{own(first, second):.2%} have one that {second}, the next, lacks",
    )


_MIN_RELATIONS = 15  # a mask; whole faces have 39 and more
_MIN_HELD, _MIN_MARGIN = 0.85, 0.08  # shares of the relations; masks of faces have 0.95 and 0.1


class _Order:
    """Counts in how many relations masks agree with anatomy, if read in one class order."""

    def __init__(self, format_: LabelFormat) -> None:
        self.format = format_
        self.held: dict[Relation, list[bool]] = {}

    def add(self, parts: Mapping[int, Part]) -> None:
        """Test the relations in one mask."""
        named = {self.format.classes[index]: part for index, part in parts.items()}
        for relation, held in relations_of(named):
            self.held.setdefault(relation, []).append(held)

    @property
    def count(self) -> int:
        """Number of tests."""
        return sum(map(len, self.held.values()))

    @property
    def share(self) -> float:
        """Share of the tests that held."""
        return sum(map(sum, self.held.values())) / max(self.count, 1)

    def against(self, rival: "_Order") -> str:
        """Describe the strongest evidence against a rival order."""
        worst = min(rival.held, key=lambda key: sum(rival.held[key]) / len(rival.held[key]) ** 1.1)
        held, (one, says, other) = rival.held[worst], worst
        first, second = map(rival.format.classes.index, (one, other))
        mine, theirs = self.format.classes, rival.format.name
        return (
            f"in {theirs} class {first} were {one} and class {second} {other}, but the one {says} "
            f"the other in {sum(held)} of {len(held)} masks; in {self.format.name} they are "
            f"{mine[first]} and {mine[second]}"
        )


def _orders_of(maps: Sequence[np.ndarray]) -> list[_Order]:
    """Test index maps in all known class orders, in the order of `LABEL_FORMATS`."""
    orders = {each.classes: each for each in reversed(list(LABEL_FORMATS.values()))}
    found = [_Order(each) for each in reversed(list(orders.values()))]
    for values in maps:
        parts = parts_of(values)
        for order in found:
            order.add(parts)
    return found


def guess_by_anatomy(maps: Sequence[np.ndarray]) -> LabelFormatGuess:
    """Guess the format of index maps, uint8 [H, W]; of formats with one order, the first."""
    orders = _orders_of(maps)
    first, second = sorted(orders, key=lambda order: -order.share)[:2]
    shares = ", ".join(f"{each.format.name} {each.share:.0%}" for each in (first, second))
    told = f"of the relations between parts of a face, such as brows above eyes, hold: {shares}"
    if first.count < _MIN_RELATIONS * len(maps):
        return LabelFormatGuess(
            None,
            f"the {len(maps)} masks have too few parts of a face to compare",
            tuple(LABEL_FORMATS),
        )
    if first.share < _MIN_HELD:
        return LabelFormatGuess(None, f"no known order of classes makes faces of them; {told}")
    close = [each.format.name for each in orders if first.share - each.share < _MIN_MARGIN]
    if len(close) > 1:
        return LabelFormatGuess(None, f"{' and '.join(close)} are too close; {told}", tuple(close))
    return LabelFormatGuess(first.format, f"{told}; {first.against(second)}")


def share_of_anatomy(values: np.ndarray, label_format: LabelFormat) -> float | None:
    """Fraction of anatomical relations that an index map [H, W] fulfils; None if it has too few."""
    order = _Order(label_format)
    order.add(parts_of(values))
    return order.share if order.count >= _MIN_RELATIONS else None


_WORN = {
    "eye_g": "glasses|eyeglasses|sunglasses|spectacles",
    "hat": "hat|cap|beanie|beret|fedora|bonnet|turban|helmet",
    "ear_r": "earrings?",
    "neck_l": "necklaces?",
}
"""Words of a prompt that ask for a class."""

_HAIR_LOOKS = (
    "very|dark|light|bright|deep|jet|ash|dirty|strawberry|black|brown|blond|blonde|red|reddish|grey|"
    "gray|white|silver|golden|auburn|chestnut|ginger|copper|straight|wavy|curly|loose|flowing|sleek|"
    "silky|shiny|thick|smooth|messy|tousled|natural|beautiful|and"
)
_LONG_HAIR = rf"(?<!shoulder-)(?:long-haired|long,?\s+(?:(?:{_HAIR_LOOKS}),?\s+)*hair)"
_TIED = r"bun|buns|ponytail|updo|braids?|braided|tied|pinned|pulled|hat|cap|beanie|turban|bonnet"
_NOT = r"no|not|without|never|lacks|lacking|minus|\w+n't|cannot|instead of|rather than"
_NOT_ENDS = (
    r"[.;:!?]|\bbut\b|(?:,|\band)\s+(?:(?:is|she|he)\s+)?(?:wearing|wears|with|has|having|in)\b"
)
_BALD_HAIR = 0.3  # areas of hair to skin from which a head is not bald


def _says(words: str, prompt: str) -> str | None:
    """Find the first of these words in a prompt that is not negated."""
    for found in re.finditer(rf"(?<![\w-])(?:{words})(?![\w-])", prompt, re.IGNORECASE):
        before = re.split(_NOT_ENDS, prompt[: found.start()], flags=re.IGNORECASE)[-1]
        if not re.search(rf"(?<![\w-])(?:{_NOT})\b", before, re.IGNORECASE):
            return found[0]
    return None


def words_against(labels: np.ndarray, prompt: str) -> list[tuple[str, str]]:
    """List words of a prompt that a label map contradicts, with what it has instead."""
    parts = {LABELS[index]: part for index, part in parts_of(labels).items()}
    present = {LABELS[index] for index in np.unique(labels)}  # small ones are no parts
    prompt, found = prompt.replace("’", "'"), list[tuple[str, str]]()
    for name, words in _WORN.items():
        if name not in present and (said := _says(words, prompt)):
            found.append((said, f"no {LABEL_TITLES[name]}"))
    hair, skin, mouth = parts.get("hair"), parts.get("skin"), parts.get("u_lip")
    if said := _says(_LONG_HAIR, prompt):
        if hair is None:
            found.append((said, "no hair"))
        elif mouth and hair.bottom < mouth.top and not re.search(rf"\b(?:{_TIED})\b", prompt):
            found.append((said, "hair that ends above the mouth"))
    if hair and skin and hair.area > _BALD_HAIR * skin.area and (said := _says("bald", prompt)):
        found.append((said, "hair"))
    return found
