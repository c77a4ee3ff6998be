"""How far one picture follows the conditions that it was made from."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

from mmface.conditions import Parser, condition_kind, kinds_in_words


@dataclass(frozen=True)
class Adherence:
    """Agreement of a picture with its conditions; all in [0, 1], higher is better.

    Attributes:
        by_kind: For each kind of condition what `ConditionKind.agreement` gives.
    """

    by_kind: Mapping[str, Mapping[str, float]]

    @property
    def score(self) -> float:
        """One number to compare seeds by: the mean of the kinds' scores."""
        scores = [found[condition_kind(name).score] for name, found in self.by_kind.items()]
        return sum(scores) / len(scores)

    @property
    def numbers(self) -> dict[str, float]:
        """All numbers by name, details last."""
        found = [pair for each in self.by_kind.values() for pair in each.items()]
        return dict(sorted(found, key=lambda pair: "/" in pair[0]))

    @property
    def titles(self) -> dict[str, str]:
        """What a table calls each of the numbers."""
        known: dict[str, str] = {}
        for name in self.by_kind:
            known |= condition_kind(name).titles
        return {name: known.get(name, name.replace("_", " ")) for name in self.numbers}

    def to_json(self) -> dict[str, float]:
        """Give all numbers by name, the score included."""
        return {**self.numbers, "score": self.score}

    def table(self) -> str:
        """Draw a small table, a number a line, details indented."""
        titles = self.titles
        lines = []
        for name, value in self.numbers.items():
            title = f"  {titles[name]}" if "/" in name else titles[name]
            lines.append(f"  {title:<16}{value:6.3f}")
        return "\n".join(lines)


def check_measurable(conditions: Mapping[str, np.ndarray]) -> None:
    """Raise ValueError if nothing can agree with one of the conditions."""
    for name, values in conditions.items():
        condition_kind(name).check_measurable(values)


def measure_adherence(
    picture: UInt8[np.ndarray, "height width 3"],
    conditions: Mapping[str, np.ndarray],
    parser: Parser | None,
) -> Adherence:
    """Compare an RGB picture with the conditions, of its size, that it was made from.

    ValueError if one cannot be measured, or needs the parser and there is none.
    """
    if not conditions:
        words = kinds_in_words(" nor ")
        raise ValueError(f"There is neither {words} to compare the picture with.")
    check_measurable(conditions)
    by_kind = {}
    for name, values in conditions.items():
        kind = condition_kind(name)
        if kind.needs_parser and parser is None:
            raise ValueError(f"A face parser is needed to compare a picture with a {name}.")
        by_kind[name] = kind.agreement(values, kind.read_back([picture], parser)[0])
    return Adherence(by_kind)
