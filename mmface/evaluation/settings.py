"""What a setting of an evaluation may be: checked at once, not after hours of work."""

from collections.abc import Sequence
from typing import Any


def require_whole(least: int = 1, **settings: Any) -> None:
    """Refuse a setting that is no whole number, or too small.

    Args:
        least: the smallest number that is allowed.
        **settings: the numbers by name.

    Raises:
        ValueError: for the first that is not.
    """
    for name, value in settings.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(f"{name} must be a whole number from {least} up, got {value!r}")


def require_different(name: str, values: Any, kind: Any, example: str) -> None:
    """Refuse a setting that is no list of different numbers from 0 up.

    Args:
        name: the setting's.
        values: what was given.
        kind: the numbers' type.
        example: what would do.

    Raises:
        ValueError: if it is anything else.
    """
    listed = isinstance(values, Sequence) and not isinstance(values, str)
    sound = listed and all(isinstance(v, kind) and not isinstance(v, bool) for v in values)
    if not sound or min(values, default=0) < 0 or len(set(values)) < len(values):
        raise ValueError(
            f"{name} must be a list of different numbers from 0 up, such as {example}, got "
            f"{values!r}"
        )
