"""A command: how it starts light, how what a person typed is checked, and how it ends.

A mistake of the user's is a ValueError or an OSError that says what, where, and what to do. A
command ends with it as one line on stderr and status 2; anything else is a fault of the program and
shows its stack.
"""

import math
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import typer

MISTAKE_STATUS = 2

_FOUND_BY_DIFFUSERS = ("bitsandbytes", "peft", "scipy", "torchvision")
_FOUND_BY_TRANSFORMERS = ("scipy", "sklearn", "torchvision")


def hide_optional_libraries() -> None:
    """Hide the optional libraries that diffusers and transformers load unasked.

    They take three of the seven seconds before a picture that needs none of them. For a process
    that has imported neither yet, and will ask for no LoRA and no quantized weights; elsewhere it
    changes nothing.
    """
    if {"diffusers", "transformers"} & sys.modules.keys():
        return
    from diffusers.utils import import_utils

    flags = dict.fromkeys((f"_{library}_available" for library in _FOUND_BY_DIFFUSERS), False)
    if flags.keys() <= vars(import_utils).keys():  # otherwise an unknown version of diffusers
        vars(import_utils).update(flags)
        sys.modules.update(dict.fromkeys(_FOUND_BY_TRANSFORMERS))  # type: ignore[arg-type]


def check_whole(name: str, value: Any, lowest: int, highest: int | None = None) -> None:
    """Raise ValueError unless `value` is a whole number in this range; True and False are none."""
    is_whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not is_whole or int(value) < lowest or (highest is not None and int(value) > highest):
        wanted = f"from {lowest} up" if highest is None else f"in {lowest}..{highest}"
        raise ValueError(f"{name} must be a whole number {wanted}, got {value!r:.60}.")


def check_number(name: str, value: Any, lowest: float, highest: float = math.inf) -> None:
    """Raise ValueError unless `value` is a finite number in this range."""
    try:
        number = float(value) if isinstance(value, Real) else math.nan
    except OverflowError:  # a whole number beyond any float
        number = math.inf
    if isinstance(value, bool) or not (math.isfinite(number) and lowest <= number <= highest):
        wanted = f"in {lowest}..{highest}" if highest < math.inf else f"{lowest} or more"
        raise ValueError(f"{name} must be {wanted}, got {value!r:.60}.")


def check_interval(name: str, start: float, end: float) -> None:
    """Raise ValueError unless `start` and `end` are shares of the steps, in this order."""
    check_number(f"{name} start", start, 0, 1)
    check_number(f"{name} end", end, 0, 1)
    if start >= end:
        raise ValueError(f"{name} start must be below its end, got {start} and {end}.")


def check_different(name: str, values: Any, kind: Any, example: str) -> None:
    """Raise ValueError unless `values` is a list of different numbers from 0 up.

    Args:
        name: the setting's.
        values: what was given.
        kind: the numbers' type.
        example: what would do, for the message.

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


def run_app(app: "typer.Typer", arguments: Sequence[str] | None = None) -> int:
    """Run a typer command line; a mistake of the user's is one line on stderr.

    Args:
        app: The commands.
        arguments: What was typed after the script's name; None reads it from the process.

    Returns:
        The exit status: what the command returned, 0 if nothing, or 2 for a mistake.
    """
    import typer

    # The last: typer's own UsageError, which newer versions no longer share with click.
    mistakes: tuple[type[Exception], ...] = (ValueError, OSError, *typer.BadParameter.__bases__)
    try:
        given = None if arguments is None else list(arguments)
        return app(given, standalone_mode=False) or 0
    except mistakes as error:
        _tell(getattr(error, "format_message", error.__str__)())
        return MISTAKE_STATUS


@contextmanager
def ending() -> Iterator[None]:
    """Run the body of a hydra script; a mistake of the user's ends it with one line and status 2.

    HYDRA_FULL_ERROR=1 in the environment shows where the mistake came up. hydra's and omegaconf's
    errors are known by their names, since nothing in the package imports them.
    """
    try:
        yield
    except Exception as error:
        kind = type(error).__name__
        if kind == "InstantiationException":
            line = str(error.__cause__ or error)
        elif kind == "MissingMandatoryValue":
            name = str(getattr(error, "full_key", "")).rpartition(".")[2]
            line = f"{name} has no value; give it with {name}=VALUE"
        elif isinstance(error, ValueError | OSError):
            line = str(error)
        else:
            raise
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        _tell(line)
        sys.exit(MISTAKE_STATUS)


def _tell(message: str) -> None:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
