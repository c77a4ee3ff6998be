"""A candid face in words: long captions as in the paper, lists, and short ones as people type."""

import numpy as np

from mmface.rendered.candid.attributes import CandidAttributes

DOING = {
    "open smile": ("smiling broadly", "smiling with an open mouth", "laughing happily"),
    "smile": ("smiling gently", "smiling softly", "smiling with closed lips"),
    "serious": ("looking serious", "with a neutral expression", "not smiling"),
}
EYE_WORDS = {
    "open": (),
    "narrow": ("narrow eyes", "narrowed eyes"),
    "closed": ("closed eyes",),
    "wide": ("wide open eyes",),
}
HAIR_WORDS: dict[str, tuple[str, ...]] = {
    "short": ("short {} hair", "{} hair cut short", "short, neatly combed {} hair"),
    "tousled": ("short, tousled {} hair", "messy {} hair", "tousled {} hair"),
    "slicked back": ("{} hair combed back", "slicked back {} hair"),
    "long straight": ("long, straight {} hair", "long {} hair"),
    "long wavy": ("long, wavy {} hair", "long {} hair styled in loose waves"),
    "shoulder-length": ("shoulder-length {} hair", "{} hair cut in a bob"),
    "bun": ("{} hair tied up in a bun", "{} hair in a bun"),
    "curly": ("curly {} hair", "short, curly {} hair"),
}
CLOTHES_WORDS: dict[str, tuple[str, ...]] = {
    "top": ("{} top", "{} t-shirt"),
    "dress": ("{} dress",),
    "sweater": ("{} sweater", "knitted {} sweater"),
    "shirt": ("{} shirt", "{} shirt with a collar"),
    "suit": ("{} suit and a white shirt", "{} suit jacket over a white shirt"),
}
BACKGROUND_WORDS = {"white": "plain white", "dark": "dark, nearly black"}
BACKGROUND_KINDS = {"plain": ("plain ", ""), "blurred": ("blurred ", ""), "panels": ("",)}
GAZE_WORDS = {
    "front": ("looking directly at the camera", "facing the camera"),
    "left": ("turned to the left", "looking to the left"),
    "right": ("turned to the right", "looking to the right"),
}
LIGHT_WORDS = {
    "front": "in soft, even light",
    "left": "in soft light from the left",
    "right": "in soft light from the right",
}
AGE_WORDS = {
    "young": ("young",),
    "middle-aged": ("middle-aged",),
    "elderly": ("elderly", "old"),
}

FULL_TEMPLATES = (
    "{Subject} with {hair}, wearing {wear}, is {doing}, {gaze}. The background is {bg}.",
    "A close-up portrait of {subject} with {hair}, wearing {wear}, {doing}, set against {a_bg}.",
    "{Subject} wearing {wear}, with {hair}, {doing}, standing against {a_bg}.",
    "A professional headshot of {subject} with {hair} and {eyes}, dressed in {wear}, {doing}, "
    "against {a_bg}.",
    "{Subject} with {hair} and {skin} is {doing}, dressed in {wear}, {light}. The background "
    "is {bg}.",
    "Set against {a_bg}, {subject} with {hair} is wearing {wear} and {doing}.",
    "{Subject} with {hair}, wearing {wear}{without}, {doing}, in front of {a_bg}.",
)
PARTIAL_TEMPLATES = (
    "A portrait of {subject} with {skin} and {eyes}, {doing}, {light}.",
    "{Subject}{accessories}, {doing} and {gaze}, {light}.",
    "A close-up photo of {subject} with {hair}{accessories}, {gaze}.",
    "{Subject} with {eyes} and {skin}{without}, {doing}, {gaze}.",
    "{Subject} in {clothes}, {doing}.",
    "{Subject} with {hair}, set against {a_bg}.",
    "{Subject} in {clothes} in front of {a_bg}{without}.",
)
SHORT_PARTS = ("{bare_hair}", "{bare_clothes}", "{skin}", "{eyes}", "{bg} background", "{doing}")


def _article(phrase: str) -> str:
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def _join(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def _pick(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[int(rng.integers(len(options)))]


def _hair_phrase(a: CandidAttributes, rng: np.random.Generator) -> str:
    if a.hair_style == "bald":
        return _pick(rng, ("a bald head", "a smooth, bald head"))
    color = _pick(rng, ("blond", "blonde")) if a.hair_color == "blond" else a.hair_color
    phrase = _pick(rng, HAIR_WORDS[a.hair_style]).format(color)
    if a.hat and a.hair_style in ("short", "tousled", "slicked back", "curly"):
        phrase = f"{color} hair"
    if a.fringe > 0.6 and rng.random() < 0.7:
        phrase += _pick(rng, (" with bangs", " falling over the forehead"))
    return phrase


def _worn_phrases(a: CandidAttributes, rng: np.random.Generator) -> list[str]:
    worn = []
    if a.hat:
        worn.append(_article(f"{a.hat} {a.hat_kind}"))
    if a.glasses:
        worn.append("glasses")
    if a.earrings:
        worn.append("earrings")
    if a.necklace:
        worn.append("a necklace")
    return worn


def _absent(a: CandidAttributes, rng: np.random.Generator) -> str:
    """One thing that the face does not have, after "without"."""
    options = [
        word
        for word, shown in (
            ("glasses", a.glasses),
            ("a hat", a.hat is not None),
            ("earrings", a.earrings),
            ("a necklace", a.necklace),
            ("a beard", a.beard),
            ("a smile", a.expression != "serious"),
        )
        if not shown
    ]
    return _pick(rng, tuple(options))


def phrases(a: CandidAttributes, rng: np.random.Generator) -> dict[str, str]:
    """Put each side of a face into words, for templates."""
    age = _pick(rng, AGE_WORDS[a.age])
    person = _pick(rng, (f"{age} {a.gender}", a.gender))
    bare_hair = hair = _hair_phrase(a, rng)
    if a.beard:
        beard = {"full beard": "a full beard", "stubble": "stubble", "goatee": "a goatee"}.get(
            a.beard_kind or "", "a mustache"
        )
        hair = _pick(rng, (f"{hair} and {beard}", f"{beard} and {hair}"))
    worn = _worn_phrases(a, rng)
    clothes = _pick(rng, CLOTHES_WORDS[a.clothing]).format(a.clothes_color)
    kind = _pick(rng, BACKGROUND_KINDS[a.background_kind])
    background = BACKGROUND_WORDS.get(a.background_color, a.background_color)
    if " " not in background:
        background = kind + background
    eyes = f"{a.eye_color} eyes"
    if EYE_WORDS[a.eyes]:
        eyes = (
            _pick(rng, EYE_WORDS[a.eyes])
            if a.eyes == "closed"
            else _pick(rng, (eyes, *EYE_WORDS[a.eyes]))
        )
    without = f" without {_absent(a, rng)}" if rng.random() < 0.6 else ""
    return {
        "person": person,
        "subject": _article(person),
        "Subject": _article(person).capitalize(),
        "hair": hair,
        "bare_hair": bare_hair,
        "bare_clothes": clothes,
        "clothes": _article(clothes),
        "wear": _join([_article(clothes), *worn]),
        "accessories": f", wearing {_join(worn)}" if worn else "",
        "doing": _pick(rng, DOING[a.expression]),
        "gaze": _pick(rng, GAZE_WORDS[a.pose]),
        "light": LIGHT_WORDS[a.lighting],
        "eyes": eyes,
        "skin": f"{a.skin_tone} {_pick(rng, ('skin', 'skin', 'complexion'))}",
        "bg": background,
        "a_bg": _article(f"{background} {_pick(rng, ('background', 'backdrop'))}"),
        "without": without,
    }


def _short(a: CandidAttributes, rng: np.random.Generator) -> str:
    """A few words, as they are typed: "woman with red hair", "old man, glasses, no beard"."""
    words = phrases(a, rng)
    if rng.random() < 0.4:
        wanted = ("{subject} with {bare_hair}", "{person} in {clothes}", "{person} with {skin}",
                  "{bare_hair}", "{person}", "{bare_clothes}", "{person}, {doing}",
                  "{person} with {eyes}", "{person}{without}")  # fmt: skip
        return _pick(rng, wanted).format(**words)
    parts = [_pick(rng, (words["person"], a.gender))]
    count = int(rng.integers(1, 4))
    parts += [SHORT_PARTS[i].format(**words) for i in rng.permutation(len(SHORT_PARTS))[:count]]
    worn = [
        part.split(" ", 1)[-1] if part.startswith("a ") else part for part in _worn_phrases(a, rng)
    ]
    if worn and rng.random() < 0.7:
        parts.append(_pick(rng, tuple(worn)))
    if a.beard and rng.random() < 0.6:
        parts.append(a.beard_kind or "")
    if rng.random() < 0.3:
        parts.append("no " + _absent(a, rng).removeprefix("a "))
    return ", ".join(parts)


def captions(attributes: CandidAttributes, seed: int) -> tuple[str, ...]:
    """Describe a face six times in different words.

    Two captions name hair, clothes and background, two some of them, and two are short.
    """
    rng = np.random.default_rng((seed, 3))
    full = rng.permutation(len(FULL_TEMPLATES))[:2]
    partial = rng.permutation(len(PARTIAL_TEMPLATES))[:2]
    templates = [FULL_TEMPLATES[i] for i in full] + [PARTIAL_TEMPLATES[i] for i in partial]
    long = [template.format(**phrases(attributes, rng)) for template in templates]
    return (*long, _short(attributes, rng), _short(attributes, rng))
