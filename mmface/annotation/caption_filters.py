"""Rules that clean a captioner's answer, one artefact each, and reject what cannot be mended.

A filter takes a text and gives the text without its artefact; an empty text is a rejection.
"""

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass

Filter = Callable[[str], str]

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z(])")
_MIN_WORDS = 5


def sentences(text: str) -> list[str]:
    """Split a text into its sentences, each with its full stop."""
    return [part for part in _SENTENCE_END.split(text.strip()) if part]


def words(text: str) -> list[str]:
    """List a text's words in lower case, without punctuation."""
    return re.findall(r"[^\W_]+(?:['-][^\W_]+)*", text.lower())


def _kept(text: str, is_artefact: Callable[[str], object]) -> str:
    return " ".join(sentence for sentence in sentences(text) if not is_artefact(sentence))


def _capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]


def without_control_text(text: str) -> str:
    """Remove thoughts, special tokens and web addresses: "<think>Hm.</think>A man" -> "A man"."""
    text = re.sub(r"<think>.*?(</think>|$)", " ", text, flags=re.DOTALL)
    text = re.sub(r"<\|[^|>]*\|>|</?[a-z_]+>|<IMG_CONTEXT>", " ", text)
    return re.sub(r"https?://\S+|www\.\S+", "", text)


def without_markdown(text: str) -> str:
    """Remove list and emphasis marks, joining the lines: "- **Brown** hair." -> "Brown hair."."""
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"^\s*(?:```\w*|[-=*_]{3,})\s*$", "", text, flags=re.MULTILINE)
    text = re.sub(r"^\s*(?:#{1,6}|>|[-*+\u2022]|\d{1,2}[.)])\s+", "", text, flags=re.MULTILINE)
    return re.sub(r"[*`~#|]+|(?<!\w)_+|_+(?!\w)", "", text)


def without_odd_spacing(text: str) -> str:
    """Write typographic signs plainly, in one line: " A  man , smiling ." -> "A man, smiling."."""
    text = text.translate(_PLAIN_SIGNS)
    text = "".join(c for c in unicodedata.normalize("NFC", text) if not _is_symbol(c))
    text = re.sub(r"\s+", " ", text).strip()
    text = re.sub(r"\s+([.,;:!?])", r"\1", text)
    return re.sub(r"([.,;:!?])(?:\s*[,;:])+", r"\1", text)


_PLAIN_SIGNS = str.maketrans(
    {
        "\u2018": "'",
        "\u2019": "'",
        "\u201c": '"',
        "\u201d": '"',
        "\u2013": "-",
        "\u2014": ", ",
        "\u2026": "...",
    }
)


def _is_symbol(character: str) -> bool:
    """Tell emoji, marks of control and pictographs; signs of plain ASCII stay."""
    return ord(character) > 127 and unicodedata.category(character) in (
        "So",
        "Cf",
        "Co",
        "Cn",
        "Sk",
    )


def without_quotes(text: str) -> str:
    """Remove double quotes: '"A man in a "blue" hat."' -> 'A man in a blue hat.'."""
    text = text.replace('"', "").strip()
    enclosed = len(text) > 1 and text[0] == text[-1] == "'"
    return text[1:-1].strip() if enclosed else text


_CHAT = re.compile(
    r"^(?:(?:sure|certainly|of course|absolutely|okay)\b[^.:!,]*[.:!,]\s*)?"
    r"(?:here(?: is|'s| are)\b[^.:]*:\s*)?"
    r"(?:(?:caption|description|answer|summary|rewritten caption|output)\s*:\s*)?",
    re.IGNORECASE,
)
_PICTURE = r"(?:image|photo|photograph|picture|portrait|headshot|close-up|shot|scene)"
_SHOWS = r"(?:shows|features|depicts|displays|presents|captures|portrays|contains|is of|is)"
_OPENER = re.compile(
    rf"^(?:in (?:the|this) {_PICTURE},?\s*(?:there is|we (?:can )?see|you (?:can )?see)?\s*"
    rf"|(?:the|this)(?: \w+)? {_PICTURE} {_SHOWS}\s+(?=an?\b|the\b|two\b)"
    r"|(?:there is|we (?:can )?see|you (?:can )?see|this is)\s+(?=an?\b|the\b))",
    re.IGNORECASE,
)


def without_opener(text: str) -> str:
    """Begin with the person: "Sure! The image shows a man." -> "A man."."""
    text = text[_CHAT.match(text).end() :]  # type: ignore[union-attr]  # matches emptiness too
    return " ".join(_capitalised(_OPENER.sub("", sentence)) for sentence in sentences(text))


_REFUSAL = re.compile(
    r"\b(?:i'?m sorry|i am sorry|i (?:can'?t|cannot|can not|am unable|am not able|won'?t)|"
    r"i don'?t (?:know|have)|as an ai|language model|"
    r"(?:is|am|are) (?:not |un)able to (?:see|identify|provide|determine)|"
    r"not possible to|no image|cannot be determined|can'?t assist)\b",
    re.IGNORECASE,
)


def without_refusal(text: str) -> str:
    """Reject a refusal: "I'm sorry, but I can't help." -> ""."""
    return "" if _REFUSAL.search(text) else text


_LEAKED = re.compile(
    r"\b(?:as (?:requested|instructed|asked)|the user|the (?:prompt|instructions?|question)|"
    r"let me know|feel free|hope this helps|note that|word count|in one sentence|"
    r"plain sentences|between commas)\b|^(?:note|notes)\s*:",
    re.IGNORECASE,
)


def without_talk(text: str) -> str:
    """Drop sentences to the asker: "A man smiles. Feel free to ask." -> "A man smiles."."""
    return _kept(text, _LEAKED.search)


def without_prompt(text: str, prompt: str, length: int = 6) -> str:
    """Drop sentences that repeat the prompt, or `length` of its words in a row.

    With the prompt "Say only what can be seen.", "A man smiles. Say only what can be seen." -> "A
    man smiles.".
    """

    def runs(part: str) -> set[tuple[str, ...]]:
        found = words(part)
        size = min(length, max(len(found), 1))
        return {tuple(found[i : i + size]) for i in range(len(found) - size + 1)}

    asked = words(prompt)

    def repeats(sentence: str) -> bool:
        return any(
            asked[i : i + len(run)] == list(run)
            for run in runs(sentence)
            if len(run) > 3
            for i in range(len(asked) - len(run) + 1)
        )

    return _kept(text, repeats)


_IDENTITY = re.compile(
    r"\b(?:celebrit(?:y|ies)|famous|well-known|actors?|actress(?:es)?|singer|musician|rapper|"
    r"politician|president|athlete|supermodel|named|known (?:as|for)|whose name|resembl\w+|"
    r"look-?alike|recogni[sz]able as|identified as)\b"
    r"|\blooks like (?-i:[A-Z])",
    re.IGNORECASE,
)
_NO_NAMES = frozenset(
    words(
        "a an the this that these those he she they it his her their its in on at with and of i "
        "asian african american european caucasian hispanic latin latina latino latinx indian arab "
        "eastern western northern southern east west north south southeast middle native black "
        "white pacific islander chinese japanese korean mediterranean caribbean christmas afro"
    )
)


def without_identity(text: str) -> str:
    """Drop sentences that guess who it is: "A man smiles. He is Jon Doe." -> "A man smiles."."""

    def names_someone(sentence: str) -> bool:
        runs = re.findall(r"\b[A-Z][\w'-]*(?:\s+[A-Z][\w'.-]*)+", sentence)
        names = [[word for word in words(run) if word not in _NO_NAMES] for run in runs]
        return bool(_IDENTITY.search(sentence)) or any(len(name) > 1 for name in names)

    return _kept(text, names_someone)


_HEDGED_SENTENCE = re.compile(
    r"\b(?:may|might|could|would) (?:be|have|indicate|suggest)\b"
    r"|\bit is (?:unclear|difficult|hard)\b"
    r"|\b(?:unclear|not (?:clearly )?visible|impossible to tell)\b",
    re.IGNORECASE,
)
_HEDGES = (
    (re.compile(r"\b(?:appears|seems|looks) to be\b", re.IGNORECASE), "is"),
    (re.compile(r"\b(?:appear|seem|look) to be\b", re.IGNORECASE), "are"),
    (re.compile(r"\b(?:appears|seems) to have\b", re.IGNORECASE), "has"),
    (re.compile(r"\bwhat (?:appears|seems|looks) (?:to be|like)\s+", re.IGNORECASE), ""),
    (re.compile(r",?\s*\b(?:suggesting|indicating|implying|hinting at|conveying that)\b[^.!?]*",
                re.IGNORECASE), ""),
    (re.compile(r"\b(?:possibly|perhaps|probably|likely|presumably|maybe|apparently|seemingly)\b,?\s*",
                re.IGNORECASE), ""),
)  # fmt: skip


def without_hedges(text: str) -> str:
    """State or drop: "She appears to be young. It might be cold." -> "She is young."."""
    text = _kept(text, lambda s: _HEDGED_SENTENCE.search(s) and not s.startswith("What"))
    # "What appears to be" goes before "appears to be" would be made "is".
    for pattern, replacement in (_HEDGES[3], *_HEDGES[:3], *_HEDGES[4:]):
        text = pattern.sub(replacement, text)
    return " ".join(_capitalised(sentence) for sentence in sentences(text))


_QUALITY = (
    r"(?:high|low|good|poor|excellent)[- ](?:quality|resolution|definition)|hi-?res|hd|uhd|4k|8k|"
    r"professional(?:ly)?[- ](?:taken|shot)|well-composed|(?:sharply |in )?(?:sharp )focus(?:ed)?|"
    r"photorealistic|hyper-?realistic|highly detailed|award-winning"
)
_ABOUT_PICTURE = re.compile(
    r"^(?:the|this)(?: overall| general)? (?:image|photo|photograph|picture|composition|resolution|"
    r"quality|camera|photographer|framing|focus|colou?r palette|mood|tone)\b",
    re.IGNORECASE,
)


def without_photo_quality(text: str) -> str:
    """Keep to what is shown: "An 8k photo of a man. The image is sharp." -> "A photo of a man."."""
    text = _kept(text, _ABOUT_PICTURE.search)
    text = re.sub(rf"(?:,\s*)?\b(?:{_QUALITY})\b(?=\s*[,.;]|\s*$)", "", text, flags=re.IGNORECASE)
    text = re.sub(rf"\b(?:{_QUALITY}),?\s+", "", text, flags=re.IGNORECASE)
    # "An 8k photo" has become "An photo".
    text = re.sub(r"\b([Aa])n (?=[bcdfghjklmnpqrstvwxyz])(?!hour|honest)", r"\1 ", text)
    return " ".join(_capitalised(sentence) for sentence in sentences(text))


def without_foreign_script(text: str) -> str:
    """Drop words that are not in Latin letters; reject a text of many such words."""

    def is_foreign(character: str) -> bool:
        return character.isalpha() and "LATIN" not in unicodedata.name(character, "")

    letters = [c for c in text if c.isalpha()]
    if sum(map(is_foreign, letters)) > 0.2 * len(letters):
        return ""
    cleaned = "".join(" " if is_foreign(c) else c for c in text)
    return re.sub(r"\s+([.,;:!?])", r"\1", re.sub(r"\s+", " ", cleaned)).strip()


def without_repetition(text: str) -> str:
    """Say everything once: "A man smiles. A man smiles." -> "A man smiles."."""
    seen: set[str] = set()
    kept = []
    for sentence in sentences(text):
        key = " ".join(words(sentence))
        if key not in seen:
            kept.append(sentence)
        seen.add(key)
    # A captioner caught in a loop repeats a phrase at once: "with a hat, with a hat, with a hat".
    loop = re.compile(r"\b(\w+(?:[\s,]+\w+){0,7})(?:[\s,]+(?:and\s+)?\1\b)+", re.IGNORECASE)
    return loop.sub(r"\1", " ".join(kept))


_HANGING = frozenset(
    words(
        "a an the and or with of in on at to for from by as is are was has have his her their its "
        "while wearing that which who into onto over under between against"
    )
)


def without_unfinished_end(text: str, finished: bool = True) -> str:
    """End with a full sentence: "A man smiles. He wears a" -> "A man smiles.".

    Of an only sentence the last full phrase is kept. If the answer is not finished, its last word
    may be half a word.
    """
    parts = sentences(text)
    if not parts or (parts[-1][-1] in ".!?" and not parts[-1].endswith(("..", " ."))):
        return " ".join(parts)
    if len(parts) > 1:
        return " ".join(parts[:-1])
    phrase = parts[0].rstrip(" ,;:-.")
    hanging = words(phrase)[-1:] and words(phrase)[-1] in _HANGING
    if hanging or not finished:
        phrase = phrase.rpartition(",")[0]
    return phrase + "." if phrase else ""


def without_short_text(text: str) -> str:
    """Reject what says too little: "A man." -> ""."""
    return text if len(words(text)) >= _MIN_WORDS else ""


FILTERS: tuple[Filter, ...] = (
    without_refusal,
    without_foreign_script,
    without_quotes,
    without_opener,
    without_talk,
    without_identity,
    without_photo_quality,
    without_hedges,
    without_repetition,
    without_odd_spacing,
    without_short_text,
)
"""In the order of their use, after those that need more than the text."""


@dataclass(frozen=True)
class Filtered:
    """A filtered answer, empty if rejected, and the filters that changed it."""

    text: str
    changed_by: tuple[str, ...]


def filter_caption(text: str, prompt: str = "", finished: bool = True) -> Filtered:
    """Apply every filter to a captioner's answer to the prompt."""
    chain: tuple[tuple[str, Filter], ...] = (
        ("without_control_text", without_control_text),
        ("without_markdown", without_markdown),
        ("without_odd_spacing", without_odd_spacing),
        ("without_unfinished_end", lambda found: without_unfinished_end(found, finished)),
        ("without_prompt", lambda found: without_prompt(found, prompt)),
        *((one.__name__, one) for one in FILTERS),
    )
    changed = []
    for name, one in chain:
        cleaned = one(text)
        if cleaned != text:
            changed.append(name)
        text = cleaned
        if not text:
            break
    return Filtered(text, tuple(changed))
