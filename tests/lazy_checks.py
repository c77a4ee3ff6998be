"""Checks of annotated types and shapes that are made when a function is first called.

To make them for all functions of the package takes seconds, which a single test need not wait for.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jaxtyping
from beartype import BeartypeConf, beartype
from jaxtyping import _decorator

# The tower: as everywhere in Python's typing, a whole number is welcome where a float is.
checked = beartype(conf=BeartypeConf(is_pep484_tower=True))

_jaxtyped = jaxtyping.jaxtyped


def _jaxtyped_when_called(function: Any = None, *, typechecker: Any) -> Any:
    if function is None:
        return functools.partial(_jaxtyped_when_called, typechecker=typechecker)
    if inspect.isclass(function) and getattr(function.__init__, "__globals__", 0) is globals():
        return function  # a dataclass with the constructor of a dataclass
    if not inspect.isfunction(function):
        return _jaxtyped(function, typechecker=typechecker)
    made: Callable[..., Any] | None = None

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        nonlocal made
        if made is None:
            made = _jaxtyped(function, typechecker=typechecker)
        return made(*args, **kwargs)

    return wrapper


# The hook takes the decorator by its first name, and the decorator itself by its second: for a
# property's functions, say.
jaxtyping.jaxtyped = _decorator.jaxtyped = _jaxtyped_when_called  # type: ignore[assignment]
