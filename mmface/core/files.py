"""Files and folders that are complete or absent, locks on folders, and SHA-256 digests.

Everything is written under a temporary name first, the aside, synced to the disk, and then renamed:
after a power cut a file has all of its content or does not exist. For a folder the rename is synced
too, because older checkpoints are deleted once the new one is there.

The aside of `NAME` is `.NAME.aside-HOST-PID`. No pattern such as `*.png` finds it, and `sweep` can
tell whether its writer is still alive.

Digests, in hexadecimal, are stored in data sets, in pictures and in journals, so how they are
computed must never change.
"""

import errno
import fcntl
import hashlib
import json
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
    """Yield a temporary path to write a file or a folder to; it is renamed to `path` afterwards.

    Parent folders are made; an existing file or folder is replaced. If the block raises, what it
    wrote is deleted and what was there stays. An OSError names `path` and, if the disk is full, the
    size `num_bytes` as far as it is known.
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
    """Write a UTF-8 text file that is complete or absent; line ends are kept."""
    write_bytes(path, text.encode())


def remove_folder(folder: Path) -> None:
    """Delete a folder, if it exists, by renaming it first: a kill leaves no half of it."""
    _delete(_put_away(folder))


def _put_away(folder: Path) -> Path:
    aside = _aside_of(folder.with_name(f"old-{folder.name}"))
    if folder.exists():
        _delete(aside)
        folder.rename(aside)
    return aside


def sweep(folder: Path, alone: bool = False) -> None:
    """Delete unfinished files of dead processes in a folder, not in its subfolders.

    Pass `alone` only while holding the folder's lock: unfinished files of other hosts go too.
    """
    for path in folder.glob(".*.aside-*"):
        found = _ASIDE.fullmatch(path.name)
        if found and (alone or (found["host"] == _host() and not _is_alive(int(found["pid"])))):
            _delete(path)


@contextmanager
def locked(folder: str | Path, work: str = "") -> Iterator[None]:
    """Lock a folder for one run: a second run gets a BlockingIOError that names process and host.

    Only the main process of a run calls this. The lock ends with the process, however it dies;
    child processes do not inherit it. A missing folder is made, and removed again if it stays
    empty. `work`, a file's name, locks that part of the folder only.
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
    """Raise BlockingIOError if another run has locked a folder; makes no folder and no lock."""
    path = _lock_of(Path(folder), "")
    if path.exists() and path not in _held:
        os.close(_acquire(path, Path(folder)))


def _lock_of(folder: Path, work: str) -> Path:
    return folder.resolve() / f".{work}{'.' if work else ''}lock"


def _acquire(path: Path, folder: Path) -> int:
    """Lock a file by a record lock, which the workers of a killed run do not keep alive."""
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
    """Make an OSError that names the path and, if the disk is full, the space that is needed."""
    words = f"{path} cannot be written: {error.strerror}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        words += f"; {_megabytes(num_bytes)} or more are needed, {_megabytes(_free(path))} are free"
    told = type(error)(words)
    told.errno = error.errno
    return told


def check_room(folder: str | Path, num_bytes: int) -> None:
    """Raise OSError unless the disk has room; the folder itself need not exist."""
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
    """Sync a file, or all files of a folder, to the disk."""
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
    """Digest a file; cached by path, size and time of change."""
    stat = Path(path).stat()
    return _sha256_of(str(path), stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=4096)
def _sha256_of(path: str, mtime_ns: int, size: int) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


SHARED = "shared.json"
"""Names a saved model's components that lie in another one: `{"vae": "tiny-flow"}`."""


def shared_parts(folder: str | Path) -> dict[str, Path]:
    """Give the folders of the components that a saved model shares with one beside it, by name.

    ValueError if one is not there, or is not beside it.
    """
    path = Path(folder) / SHARED
    if not path.is_file():
        return {}
    found = {}
    for part, other in json.loads(path.read_text(encoding="utf-8")).items():
        place = Path(folder).absolute().parent / str(other) / part
        if Path(str(other)).name != other or Path(part).name != part or not place.is_dir():
            raise ValueError(
                f"{path} says that {part} lies in {str(other)!r:.60}, a folder beside "
                f"{Path(folder).name}, and it does not; copy both folders to one place"
            )
        found[part] = place
    return found


def model_sha256(folder: Path, parts: Sequence[str] = ("",)) -> str:
    """Digest the names and digests of a saved model's `.safetensors` and `.json` files.

    Components that it shares with another one count as its own.
    """
    digest, found = hashlib.sha256(), set[Path]()
    for part in parts:
        found |= {folder / part} if (folder / part).is_file() else set((folder / part).rglob("*"))
    for path in sorted(found):
        if path.suffix in (".safetensors", ".json") and path.is_file():
            digest.update(f"{path.relative_to(folder).as_posix()} {file_sha256(path)}\n".encode())
    for name, place in shared_parts(folder).items():
        digest.update(f"{name} {model_sha256(place)}\n".encode())
    return digest.hexdigest()


def folder_sha256(folder: str | Path) -> str:
    """Digest the names and contents of all files of a folder, except hidden ones.

    Components that a saved model shares with another one count as its own.
    """
    digest = hashlib.sha256()
    for path in sorted(Path(folder).rglob("*")):
        if path.is_file() and not path.name.startswith("."):
            digest.update(path.relative_to(folder).as_posix().encode())
            digest.update(bytes.fromhex(file_sha256(path)))
    for name, place in shared_parts(folder).items():
        digest.update(f"{name} {folder_sha256(place)}".encode())
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
    """Digest a network's `state_dict`: names, shapes and values in float32.

    The dtype does not count, as long as the network was not cast to fewer bits than its file has.
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
