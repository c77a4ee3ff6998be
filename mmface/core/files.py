"""Files and folders that are complete or absent, and folders that one writer works in at a time.

Whatever is written goes under another name first, an aside, and is renamed when it is complete.
Its content is synced to the disk before the rename: after a power cut a name stands for all of its
content, and no restart takes an empty file for finished work. For a folder the rename is synced
too, because older checkpoints are deleted on the strength of the new one.

An aside of `NAME` is `.NAME.aside-HOST-PID`, so that no pattern such as `*.png` finds it and
`sweep` can tell whether its writer is still alive.

The SHA-256 digests, in hexadecimal, stand in stores, in the provenance inside pictures and in
journals, so their values never change.
"""

import errno
import fcntl
import hashlib
import os
import re
import shutil
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

_ASIDE = re.compile(r"\..+\.aside-(?P<host>.+)-(?P<pid>\d+)")
_MAX_HOST = 24  # a file's name has 255 bytes for both

PICTURE_SUFFIXES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
"""What a picture can be written as: the format by the file's suffix."""

_held: set[Path] = set()  # locks of this process, which the kernel grants it again


def _host() -> str:
    name = re.sub(r"[^\w.]", "_", socket.gethostname())
    if len(name) <= _MAX_HOST:
        return name
    return f"{name[: _MAX_HOST - 9]}_{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _aside_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.aside-{_host()}-{os.getpid()}")


@contextmanager
def written_aside(path: str | Path, num_bytes: int = 0) -> Iterator[Path]:
    """Give the name to write a file or a folder under; at the end of the block it gets its own.

    The folder above is made. A folder replaces the one that is there. If the block raises, what it
    wrote is deleted and what was there stays.

    Args:
        path: the file or folder to write.
        num_bytes: its size, as far as it is known; a full disk's message says it.

    Yields:
        The path to write to; nothing is there yet.

    Raises:
        OSError: if it cannot be written; the message names `path`.
    """
    path = Path(path)
    aside = _aside_of(path)
    _make_folder(path.parent)
    try:
        _delete(aside)
        yield aside
        _sync(aside)
        if aside.is_dir():
            before = _put_away(path)
            aside.rename(path)
            _sync_one(path.parent)
            _delete(before)
        else:
            aside.replace(path)
    except OSError as error:
        foreign = error.filename is not None and not str(error.filename).startswith(str(aside))
        if error.strerror is None or foreign:
            _delete(aside)
            raise
        told = naming(path, error, max(num_bytes, _size(aside)))
        _delete(aside)
        raise told from error
    except BaseException:
        _delete(aside)
        raise


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write a file that is complete or absent."""
    with written_aside(path, len(content)) as aside:
        aside.write_bytes(content)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file in UTF-8, its line ends as they are, that is complete or absent."""
    write_bytes(path, text.encode())


def remove_folder(folder: Path) -> None:
    """Delete a folder, if it is there, so that a kill does not leave half of it in its place."""
    _delete(_put_away(folder))


def _put_away(folder: Path) -> Path:
    aside = _aside_of(folder.with_name(f"old-{folder.name}"))
    if folder.exists():
        _delete(aside)
        folder.rename(aside)
    return aside


def sweep(folder: Path, alone: bool = False) -> None:
    """Delete what dead writers left half written in a folder, not in those inside it.

    A caller that is `alone` holds the folder's lock: then what writers on other hosts left is
    deleted too, since nobody can tell whether those are alive.
    """
    for path in folder.glob(".*.aside-*"):
        found = _ASIDE.fullmatch(path.name)
        if found and (alone or (found["host"] == _host() and not _is_alive(int(found["pid"])))):
            _delete(path)


@contextmanager
def locked(folder: str | Path, work: str = "") -> Iterator[None]:
    """Hold a folder for one run; a second one fails at once instead of mixing its files in.

    Of the processes of one run, only the main one calls this. The lock ends with the process,
    however it dies, and is not inherited by its children.

    Args:
        folder: the folder; made if it is missing, and taken away again if nothing was put into it.
        work: the part of the folder that is held, where several runs may share it; a file's name.

    Yields:
        Nothing; the folder is held within the block.

    Raises:
        BlockingIOError: if another run holds it; the message names its process and host.
    """
    folder = Path(folder)
    path, was_there = _lock_of(folder, work), folder.exists()
    try:
        _make_folder(folder)
        descriptor = _acquire(path, folder)
    except (BlockingIOError, FileExistsError):
        raise
    except OSError as error:
        raise naming(folder, error) from error
    _held.add(path)
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, _this_process().encode())
        yield
    finally:
        _held.discard(path)
        path.unlink(missing_ok=True)
        os.close(descriptor)
        if not was_there:
            with suppress(OSError):  # it is not empty
                folder.rmdir()


def check_free(folder: str | Path) -> None:
    """Raise BlockingIOError if another run holds a folder now; unlike `locked`, make nothing."""
    path = _lock_of(Path(folder), "")
    if path.exists() and path not in _held:
        os.close(_acquire(path, Path(folder)))


def _lock_of(folder: Path, work: str) -> Path:
    return folder.resolve() / f".{work}{'.' if work else ''}lock"


def _acquire(path: Path, folder: Path) -> int:
    """Open and lock a file.

    It is a record lock, which children do not inherit: a loader's worker that outlives a killed
    run for a moment does not keep the next start out.
    """
    while path not in _held:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):  # a file system without locks
                return descriptor
            holder = os.read(descriptor, 200).decode(errors="replace")
            os.close(descriptor)
            break
        # The holder before may have deleted the file between the opening and the lock.
        if path.exists() and os.fstat(descriptor).st_ino == path.stat().st_ino:
            return descriptor
        os.close(descriptor)
    else:
        holder = _this_process()
    raise BlockingIOError(
        f"{folder} is in use by {holder or 'another process'}; wait until it ends, stop it, or "
        "give another folder"
    )


def _this_process() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"


def naming(path: Path, error: OSError, num_bytes: int = 0) -> OSError:
    """Say of an error in writing where it was and, of a full disk, how much room is needed."""
    words = f"{path} cannot be written: {error.strerror}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        words += f"; {_megabytes(num_bytes)} or more are needed, {_megabytes(_free(path))} are free"
    told = type(error)(words)
    told.errno = error.errno
    return told


def check_room(folder: str | Path, num_bytes: int) -> None:
    """Raise OSError unless the disk of a folder, which need not be there, has room for so much."""
    free = _free(Path(folder))
    if free < num_bytes:
        full = OSError(
            f"{folder} has no room: {_megabytes(num_bytes)} are needed, {_megabytes(free)} are "
            "free; make room, or give a folder on another disk"
        )
        full.errno = errno.ENOSPC
        raise full


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        file = next(each for each in (folder, *folder.parents) if each.is_file())
        raise FileExistsError(
            f"{folder} cannot be a folder: {file} is a file; give another folder"
        ) from None


def _free(path: Path) -> int:
    there = next(each for each in (path.absolute(), *path.absolute().parents) if each.exists())
    return shutil.disk_usage(there).free


def _megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.1f} MB"


def _size(path: Path) -> int:
    inner = path.rglob("*") if path.is_dir() else (path,)
    return sum(each.stat().st_size for each in inner if each.is_file())


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Have the operating system put a file, or all that is in a folder, on the disk."""
    for inner in path.rglob("*") if path.is_dir() else ():
        _sync_one(inner)
    _sync_one(path)


def _sync_one(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        if not path.is_dir():  # which some file systems cannot sync
            raise
    finally:
        os.close(descriptor)


def file_sha256(path: str | Path) -> str:
    """Digest a file; a file that did not change is read once."""
    stat = Path(path).stat()
    return _sha256_of(str(path), stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=4096)
def _sha256_of(path: str, mtime_ns: int, size: int) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def model_sha256(folder: Path, parts: Sequence[str] = ("",)) -> str:
    """Digest the names and digests of a saved model's `.safetensors` and `.json` files."""
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


class Output(NamedTuple):
    """Where pictures go: a file, or a folder, which may be missing still."""

    path: Path
    is_folder: bool

    def file(self, name: str) -> Path:
        """Give the file itself, or the one of this name in the folder."""
        return self.path / name if self.is_folder else self.path


def check_output(out: str | Path) -> Output:
    """Check where pictures are to go, before time is spent on making them.

    What ends in a picture's suffix is a file; an existing folder, what has no suffix and what ends
    in a slash is a folder.

    Args:
        out: A picture file, or a folder.

    Returns:
        The path, and whether it is a folder.

    Raises:
        ValueError: If the suffix is not one of a picture, or something is in the way.
    """
    path, is_picture = Path(out), Path(out).suffix.lower() in PICTURE_SUFFIXES
    ends_in_slash = str(out).endswith(("/", os.sep))
    is_folder = ends_in_slash or not path.suffix or (path.is_dir() and not is_picture)
    if not is_folder and not is_picture:
        raise ValueError(
            f"{path} ends in no picture suffix: {', '.join(PICTURE_SUFFIXES)}; a folder that is "
            "not there yet ends in a slash."
        )
    if path.exists() and path.is_dir() != is_folder:
        raise ValueError(
            f"{path} is in the way: a picture needs a suffix, a folder has none or ends in a slash."
        )
    for parent in path.absolute().parents:
        if parent.exists():
            if not (parent.is_dir() and os.access(parent, os.W_OK)):
                raise ValueError(f"{path} cannot be written: {parent} is no writable folder.")
            break
    return Output(path, is_folder)


def unused(path: Path) -> Path:
    """Give a path, or the first of it with `_2`, `_3` and so on that nothing is at."""
    found, number = path, 1
    while found.exists():
        number += 1
        found = path.with_name(f"{path.stem}_{number}{path.suffix}")
    return found


def check_unused(paths: Iterable[Path], overwrite: bool) -> None:
    """Raise ValueError if something would be replaced that nobody asked to replace."""
    there = [path for path in paths if path.exists()]
    if there and not overwrite:
        more = f" and {len(there) - 1} more" if len(there) > 1 else ""
        raise ValueError(
            f"{there[0]}{more} is there already: give another --out, or --overwrite to replace it."
        )
