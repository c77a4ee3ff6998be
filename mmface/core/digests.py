"""SHA-256 digests, in hexadecimal, of files, of folders and of a network's weights.

Their values stand in stores, in the recipes inside pictures and in the journals of evaluations, so
they never change.
"""

import hashlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any


def file_sha256(path: str | Path) -> str:
    """Digest a file; a file that did not change is read once."""
    stat = Path(path).stat()
    return _sha256_of(str(path), stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=4096)
def _sha256_of(path: str, mtime_ns: int, size: int) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def model_sha256(folder: Path, parts: Sequence[str] = ("",)) -> str:
    """Digest a saved model's weights and configs, wherever its folder lies.

    Args:
        folder: the model's folder.
        parts: the folders or files in it that belong to the model.

    Returns:
        SHA-256 over the names and digests of the `.safetensors` and `.json` files.
    """
    digest, found = hashlib.sha256(), set[Path]()
    for part in parts:
        found |= {folder / part} if (folder / part).is_file() else set((folder / part).rglob("*"))
    for path in sorted(found):
        if path.suffix in (".safetensors", ".json") and path.is_file():
            digest.update(f"{path.relative_to(folder).as_posix()} {file_sha256(path)}\n".encode())
    return digest.hexdigest()


def folder_sha256(folder: str | Path) -> str:
    """Digest the names and contents of all files of a folder, except hidden ones."""
    digest = hashlib.sha256()
    for path in sorted(Path(folder).rglob("*")):
        if path.is_file() and not path.name.startswith("."):
            digest.update(path.relative_to(folder).as_posix().encode())
            digest.update(bytes.fromhex(file_sha256(path)))
    return digest.hexdigest()


def weights_sha256(state: Mapping[str, Any]) -> str:
    """Digest a network's `state_dict` as it is kept: names, dtypes, shapes and bytes."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def values_sha256(state: Mapping[str, Any]) -> str:
    """Digest a network's `state_dict` whatever its dtype: names, shapes and values in float32.

    The network must not have been cast to fewer bits than its file has.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()
