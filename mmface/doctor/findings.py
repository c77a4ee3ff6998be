"""What the doctor can find: findings, and the checks that find them, one function a kind."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

Severity = Literal["error", "warning"]
Level = Literal["line", "face", "set"]
Cure = Literal["drop", "repair", "none"]


class Repair(NamedTuple):
    """A new value of one field of a record; of `captions`, what replaces `of`, or None."""

    field: str
    value: Any
    of: str | None = None


class Problem(NamedTuple):
    """What a check says: the file, what is wrong, and the record's repair if there is one.

    `id` names the face where the check looks at the whole set; None is no single face.
    """

    file: str
    words: str
    id: str | None = None
    repair: tuple[Repair, ...] = ()


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong; `id` is None if it is the whole set.

    `kind` is a key of `CHECKS`; `severity` is `error` where training would fail or learn wrong.
    """

    id: str | None
    file: str
    kind: str
    severity: Severity
    problem: str
    remedy: str
    repair: tuple[Repair, ...] = ()


@dataclass(frozen=True)
class Check:
    """One kind of finding.

    `level` is what it looks at: a line of the manifest, a face or the whole set. `cure` is what a
    fixed manifest does: leave the face out, repair the record, or nothing. The docstring of `look`
    begins with what it finds.
    """

    kind: str
    level: Level
    severity: Severity
    remedy: str
    cure: Cure
    look: Callable[..., Iterator[Problem]]

    @property
    def title(self) -> str:
        """What it finds, in a few words."""
        return (self.look.__doc__ or "").splitlines()[0].rstrip(".")

    def findings(self, subject: Any, id_: str | None = None) -> list[Finding]:
        """Look at a line, a face or a set, and say what is wrong."""
        return [
            Finding(
                each.id or id_,
                each.file,
                self.kind,
                self.severity,
                each.words,
                self.remedy,
                each.repair,
            )
            for each in self.look(subject)
        ]


CHECKS: dict[str, Check] = {}
"""All checks by kind, in the order in which they look."""


def check(
    level: Level, severity: Severity, remedy: str, cure: Cure = "none"
) -> Callable[[Callable[..., Iterator[Problem]]], Callable[..., Iterator[Problem]]]:
    """Make a function a check; its name is the kind.

    `level` decides what it receives: a `lines.Line`, a `face.Face` or a `patient.Patient`.
    """

    def register(look: Callable[..., Iterator[Problem]]) -> Callable[..., Iterator[Problem]]:
        kind = look.__name__
        assert kind not in CHECKS, kind
        CHECKS[kind] = Check(kind, level, severity, remedy, cure, look)
        return look

    return register


def checks_of(level: Level) -> Sequence[Check]:
    """Give the checks of one level, in their order."""
    return [each for each in CHECKS.values() if each.level == level]


def counts_by_kind(findings: Sequence[Finding]) -> Mapping[str, int]:
    """Count findings by kind, errors first and then in the order of the checks."""
    counts = dict.fromkeys(sorted(CHECKS, key=lambda kind: CHECKS[kind].severity), 0)
    for each in findings:
        counts[each.kind] += 1
    return {kind: count for kind, count in counts.items() if count}
