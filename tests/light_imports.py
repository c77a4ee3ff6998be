"""Imports of libraries that take seconds and that few tests need: a single test starts soon."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec, module_from_spec
from types import ModuleType
from typing import Any

import transformers
from diffusers.utils import import_utils

# Where they are installed, the first model class of diffusers or transformers takes parts of them
# for what no test uses: beta sigmas, losses of detectors, LoRA of a pipeline, storage in 8 bits.
_OF_DIFFUSERS = (
    "_bitsandbytes_available",
    "_peft_available",
    "_scipy_available",
    "_torchvision_available",
)
_OF_TRANSFORMERS = ("scipy", "sklearn", "torchvision")


class _Unread(ModuleType):
    """A module that runs when something of it is first asked for.

    That is not importlib's `LazyLoader`, which runs a module for its `__file__` as well: torch asks
    all modules for theirs.
    """

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # pytest asks all that a module holds for `_mock_name`
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        self.__class__ = ModuleType  # type: ignore[assignment]
        spec = self.__spec__
        assert spec is not None
        assert spec.loader is not None
        spec.loader.exec_module(self)
        return getattr(self, name)


def import_lazily(*names: str) -> None:
    """Have modules run when something of them is first asked for, not when they are imported."""
    for name in names:
        if name not in sys.modules:
            spec = find_spec(name)
            if spec is None:
                raise ModuleNotFoundError(f"No module named {name!r}; pip install -e '.[dev]'")
            module = module_from_spec(spec)
            # A package keeps its `__path__`: running it when a module of it is looked for would
            # load that module twice, and its classes would not equal themselves.
            module.__class__ = _Unread
            sys.modules[name] = module


@contextmanager
def optional_libraries_left_out() -> Iterator[None]:
    """Leave optional libraries out of modules imported in here; later they are there again."""
    flags = {name: vars(import_utils)[name] for name in _OF_DIFFUSERS}
    absent = [name for name in _OF_TRANSFORMERS if name not in sys.modules]
    vars(import_utils).update(dict.fromkeys(flags, False))
    sys.modules.update(dict.fromkeys(absent))  # type: ignore[arg-type]
    _look_for_libraries_again()
    try:
        yield
    finally:
        vars(import_utils).update(flags)
        for name in absent:
            del sys.modules[name]
        _look_for_libraries_again()


def _look_for_libraries_again() -> None:
    for found in vars(transformers.utils.import_utils).values():
        if hasattr(found, "cache_clear"):
            found.cache_clear()
