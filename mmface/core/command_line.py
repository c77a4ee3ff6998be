"""Command lines: a quick start, checks of what a user typed, and how a command ends.

A user's mistake is a ValueError or an OSError that says what, where, and what to do. It ends the
command with one line on stderr and status 2. A `RunError`, such as a lost process, ends it with one
line and status 1; anything else is a bug and shows its stack.
"""

import math
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import typer

MISTAKE_STATUS = 2
INTERRUPTED_STATUS = 130
_FULL_ERROR = "HYDRA_FULL_ERROR"
_stacks_shown: list[bool] = []  # of each `ending` that is entered


class RunError(RuntimeError):
    """A run failed, and not because of its settings; the message is all that the user is told."""


class ElsewhereError(RuntimeError):
    """Another process of this run failed and reports the error; this one prints nothing."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


_FOUND_BY_DIFFUSERS = ("bitsandbytes", "peft", "scipy", "torchvision")
_FOUND_BY_TRANSFORMERS = ("scipy", "sklearn", "torchvision")


def hide_optional_libraries() -> None:
    """Keep diffusers and transformers from importing optional libraries that sampling does not use.

    This saves three of the seven seconds before the first picture. LoRA and quantized weights need
    those libraries. Nothing changes if diffusers or transformers is imported already.
    """
    if {"diffusers", "transformers"} & sys.modules.keys():
        return
    from diffusers.utils import import_utils

    flags = dict.fromkeys((f"_{library}_available" for library in _FOUND_BY_DIFFUSERS), False)
    if flags.keys() <= vars(import_utils).keys():  # otherwise an unknown version of diffusers
        vars(import_utils).update(flags)
        sys.modules.update(dict.fromkeys(_FOUND_BY_TRANSFORMERS))  # type: ignore[arg-type]


def check_whole(name: str, value: Any, lowest: int, highest: int | None = None) -> None:
    """Raise ValueError unless `value` is a whole number in this range; bools are refused."""
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


def check_flag(name: str, value: Any) -> None:
    """Raise ValueError unless `value` is True or False."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be true or false, got {value!r}.")


def check_names(name: str, value: Any) -> None:
    """Raise ValueError unless `value` is a list of words."""
    listed = isinstance(value, Sequence) and not isinstance(value, str)
    if not listed or not all(isinstance(each, str) for each in value):
        raise ValueError(f"{name} must be a list of names, got {value!r}.")


def check_interval(name: str, start: float, end: float) -> None:
    """Raise ValueError unless `start` and `end` are shares of the steps, in this order."""
    check_number(f"{name} start", start, 0, 1)
    check_number(f"{name} end", end, 0, 1)
    if start >= end:
        raise ValueError(f"{name} start must be below its end, got {start} and {end}.")


def check_different(name: str, values: Any, kind: Any, example: str) -> None:
    """Raise ValueError, with an example, unless `values` are different numbers from 0 up."""
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
def ending(keys: Mapping[str, str] | None = None) -> Iterator[None]:
    """End a hydra script as `run_app` ends others; goes around hydra's main and inside of it.

    HYDRA_FULL_ERROR=1 in the environment shows where a mistake came up. hydra's and omegaconf's
    errors are known by their modules, since nothing in the package imports them.

    Args:
        keys: where a part of the config is typed, by where it is built: `{"trainer.task": "task"}`.

    Yields:
        Nothing.
    """
    before = os.environ.get(_FULL_ERROR)
    shown = _stacks_shown[0] if _stacks_shown else before == "1"
    _stacks_shown.append(shown)
    os.environ[_FULL_ERROR] = "1"  # so that hydra lets its own errors through to here
    try:
        yield
    except ElsewhereError as failure:
        time.sleep(1)  # a launcher ends the others with the first; that one has yet to report
        sys.exit(failure.status)
    except KeyboardInterrupt:
        _tell("interrupted")
        sys.exit(INTERRUPTED_STATUS)
    except Exception as error:
        line = _line_of(error, keys or {})
        if line is None or shown:
            raise
        _tell(line)
        sys.exit(1 if isinstance(error, RunError) else MISTAKE_STATUS)
    finally:
        _stacks_shown.pop()
        if before is None:
            del os.environ[_FULL_ERROR]
        else:
            os.environ[_FULL_ERROR] = before


def _line_of(error: Exception, keys: Mapping[str, str]) -> str | None:
    """The line that reports a user's mistake; None if the error is a bug."""
    kind = type(error)
    if kind.__name__ == "MissingMandatoryValue":
        full = str(getattr(error, "full_key", ""))
        name = typed(full, keys) if keys else full.rpartition(".")[2]
        return f"{name} has no value; give it with {name}=VALUE"
    if kind.__name__ == "InstantiationException":
        found = re.search(r"^full_key: (\S+)$", str(error), re.MULTILINE)
        message = str(error.__cause__ or error)
        if not found:
            return message
        # "lr must be ..." names a setting of the part that was built.
        between = "." if re.match(r"\w+ (must|is) ", message) else ": "
        name = typed(found[1], keys)
        return f"{name}{between}{message}" if name else message
    theirs = {base.__module__.partition(".")[0] for base in kind.__mro__} & {"hydra", "omegaconf"}
    return str(error) if theirs or isinstance(error, ValueError | OSError | RunError) else None


def typed(key: str, keys: Mapping[str, str]) -> str:
    """A config's key as the user types it: its longest prefix in `keys` is replaced."""
    for built in sorted(keys, key=len, reverse=True):
        if key == built or key.startswith(f"{built}."):
            return (keys[built] + key.removeprefix(built)).lstrip(".")
    return key


def _tell(message: str) -> None:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
