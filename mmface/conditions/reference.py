"""Reference faces as people bring them: pictures of a person, and the word that names the person.

A subject is written as "WORD=FILE": the word stands in the prompt, the file shows the person.
"""

import re
from dataclasses import dataclass

PERSON_WORDS = (
    *("woman", "man", "girl", "boy", "lady", "gentleman", "person", "child", "baby"),
    *("female", "male", "face", "portrait"),
)
"""Words that name a person, the first of which in a prompt is taken where none is given."""
NO_SPAN = (-1, -1)
"""The span of a word that is not there."""


@dataclass(frozen=True)
class Subject:
    """One person of a picture: the word for them in the prompt, and files that show them.

    Attributes:
        word: as the prompt has it; None takes the prompt's first word for a person.
        files: pictures of this person.
    """

    word: str | None
    files: tuple[str, ...]


def word_span(prompt: str, word: str, place: int = 0) -> tuple[int, int] | None:
    """Find a word, or several in a row, in a prompt: its first character and the one after it.

    Case does not matter, nor how many spaces there are. `place` counts earlier ones that are passed
    over; None if there are not so many.
    """
    parts = [re.escape(part) for part in word.split()]
    if not parts:
        return None
    pattern = r"(?<!\w)" + r"\s+".join(parts) + r"(?!\w)"
    for number, match in enumerate(re.finditer(pattern, prompt, re.IGNORECASE)):
        if number == place:
            return match.span()
    return None


def person_span(prompt: str) -> tuple[int, int] | None:
    """Find the first word for a person in a prompt; None if there is none."""
    pattern = rf"(?<!\w)(?:{'|'.join(PERSON_WORDS)})(?!\w)"
    found = re.search(pattern, prompt, re.IGNORECASE)
    return None if found is None else found.span()


def read_subjects(references: tuple[str, ...], subjects: tuple[str, ...]) -> tuple[Subject, ...]:
    """Sort what a command line gives into people, in the order in which they came.

    `references` are files of one person without a word, `subjects` are texts "WORD=FILE"; equal
    words are one person. ValueError if both are given, or a subject is not written so.
    """
    if references and subjects:
        raise ValueError(
            "--reference is for one person and --subject for named ones; give the first person a "
            "word, too."
        )
    if references:
        return (Subject(None, references),)
    people: dict[str, list[str]] = {}
    for text in subjects:
        word, mark, file = text.partition("=")
        word, file = " ".join(word.split()), file.strip()
        if not (word and mark and file):
            raise ValueError(f'--subject {text!r:.80} is not written as "WORD=FILE".')
        people.setdefault(word, []).append(file)
    return tuple(Subject(word, tuple(files)) for word, files in people.items())


def subject_spans(prompt: str, subjects: tuple[Subject, ...]) -> list[tuple[int, int]]:
    """Find each person's word in a prompt; `NO_SPAN` for a person without a word.

    ValueError if a word that was given is not in the prompt.
    """
    spans = []
    for subject in subjects:
        if subject.word is None:
            spans.append(person_span(prompt) or NO_SPAN)
            continue
        found = word_span(prompt, subject.word)
        if found is None:
            raise ValueError(
                f"The prompt {prompt!r:.100} has no {subject.word!r}, which a reference is given "
                "for; say it in the prompt, or name the person by a word of it."
            )
        spans.append(found)
    return spans
