"""A type checker for jaxtyping's hook that makes a function's checks when it is first called.

To make them for all functions of the package takes seconds, which a single test need not wait for.
"""

import functools
from collections.abc import Callable
from typing import Any

from beartype import BeartypeConf, beartype

# The tower: as everywhere in Python's typing, a whole number is welcome where a float is.
CONF = BeartypeConf(is_pep484_tower=True)


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give the function with its arguments and its result checked by beartype."""
    made = None

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        nonlocal made
        if made is None:
            made = beartype(conf=CONF)(function)
        return made(*args, **kwargs)

    return wrapper
