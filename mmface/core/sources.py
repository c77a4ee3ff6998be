"""What the name of a model means: a folder, a built-in name or a hub id."""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

ASSETS = Path(__file__).parent.parent / "assets"
"""Holds the built-in models, each a folder."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_NONE: Mapping[str, Path] = {}


class UnusableModelError(OSError, ValueError):
    """A model that is there cannot be loaded; the message names it, the cause and the remedy."""


def builtin_pipelines() -> dict[str, Path]:
    """The folders of the built-in pipelines by name."""
    return {path.parent.name: path.parent for path in sorted(ASSETS.glob("*/model_index.json"))}


def unknown_builtin(kind: str, name: str, builtin: Mapping[str, Path]) -> str:
    """Say that there is no built-in model of this name, and which there are."""
    return f"No built-in {kind} is named {name!r}; there are: {', '.join(builtin) or 'none'}."


@contextmanager
def opened(
    kind: str, name: str | Path, builtin: Mapping[str, Path] = _NONE, parts: str = ""
) -> Iterator[str]:
    """Find a model by folder, built-in name or hub id, and explain a failed load in one line.

    A folder goes before a built-in name. `kind`, such as "face parser", and `parts`, what `hf
    download` needs beside the hub id, are for messages. UnusableModelError if the block cannot load
    it.
    """
    name = str(name)
    folder = Path(name) if Path(name).exists() else builtin.get(name)
    if folder is None:
        _check_hub_id(kind, name, builtin, parts)
    try:
        yield name if folder is None else str(folder)
    except UnusableModelError:
        raise  # a part's own block has named it
    except OSError as error:
        if folder is None and not _is_cached(name):
            raise FileNotFoundError(_absent(kind, name, parts, error)) from error
        raise UnusableModelError(_broken(kind, name, error)) from error
    except Exception as error:
        # Loaders and the constructors behind them raise whatever an odd config makes them raise.
        raise UnusableModelError(_broken(kind, name, error)) from error


def _broken(kind: str, name: str, error: Exception) -> str:
    reason = " ".join(str(error).split()).partition(" If you want to instead")[0]
    if not isinstance(error, ValueError | OSError):
        reason = f"its config may be damaged, get it again ({type(error).__name__}: {reason})"
    return f"The {kind} {name} cannot be loaded: {reason:.400}"


def _check_hub_id(kind: str, name: str, builtin: Mapping[str, Path], parts: str) -> None:
    """Raise FileNotFoundError if a name that is no folder cannot be loaded from the hub either."""
    if builtin and "/" not in name and os.sep not in name:
        raise FileNotFoundError(unknown_builtin(kind, name, builtin))
    if not _HUB_ID.fullmatch(name):
        raise FileNotFoundError(f"The {kind} {name} does not exist; give a folder or a hub id")
    # Asked here, since transformers makes an empty tokenizer of a name that nobody has.
    if _is_offline() and not _is_cached(name):
        raise FileNotFoundError(_absent(kind, name, parts))


def _absent(kind: str, name: str, parts: str, error: Exception | None = None) -> str:
    said = type(error.__cause__ or error.__context__ or error).__name__ if error else ""
    if "RepositoryNotFound" in said or "GatedRepo" in said:
        why = "the hub has none of this name either, or wants a login (hf auth login)"
    elif _is_offline():
        why = "as a hub id it is not in the cache and offline (HF_HUB_OFFLINE)"
    else:
        why = "as a hub id it is not in the cache, and the hub cannot be reached"
    how = f"hf download {name} {parts}".strip()
    return f"The {kind} {name} does not exist as a folder; {why}: {how}, or give a folder"


def _is_offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _is_cached(name: str) -> bool:
    """Whether something of a repository was downloaded before."""
    from huggingface_hub import constants

    snapshots = Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}" / "snapshots"
    return any(snapshots.glob("*/*"))
