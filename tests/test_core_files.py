"""Files that are complete or absent, left-overs of dead writers, and one writer a folder."""

import errno
import multiprocessing
import os
import re
import shutil
import signal
import socket
from collections import namedtuple
from pathlib import Path
from unittest import mock

import pytest
from dead_writers import held_by_another, killed_while_writing

from mmface.core import files
from mmface.core.files import (
    check_free,
    check_room,
    locked,
    remove_folder,
    sweep,
    write_bytes,
    write_text,
    written_aside,
)

FORK = multiprocessing.get_context("fork")


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def make_folder(folder, text):
    folder.mkdir()
    (folder / "weights").write_text(text)


def fail_half_way(path, error):
    with written_aside(path) as aside:
        aside.write_text("half")
        raise error


def test_a_file_gets_its_name_when_it_is_complete(tmp_path):
    path = tmp_path / "new" / "a.json"
    write_text(path, "one\r\n")
    with written_aside(path) as aside:
        aside.write_text("two")
        assert path.read_bytes() == b"one\r\n"
        assert aside.parent == path.parent
        assert not list(path.parent.glob("a*"))[1:]
    assert path.read_text() == "two"
    assert names_in(path.parent) == ["a.json"]


def test_a_folder_replaces_the_one_before(tmp_path):
    for text in ("one", "two"):
        with written_aside(tmp_path / "export") as aside:
            make_folder(aside, text)
    assert (tmp_path / "export" / "weights").read_text() == "two"
    assert names_in(tmp_path) == ["export"]
    remove_folder(tmp_path / "export")
    remove_folder(tmp_path / "export")
    assert names_in(tmp_path) == []


def test_a_failure_leaves_what_was_there_and_nothing_else(tmp_path):
    write_text(tmp_path / "a", "old")
    for error in (ValueError("odd"), KeyboardInterrupt(), FileNotFoundError(2, "absent", "other")):
        with pytest.raises(type(error)) as told:
            fail_half_way(tmp_path / "a", error)
        assert told.value is error
    assert names_in(tmp_path) == ["a"]
    assert (tmp_path / "a").read_text() == "old"


@pytest.mark.parametrize("make", [lambda p: p.write_text("new"), lambda p: make_folder(p, "new")])
def test_a_kill_before_the_rename_leaves_what_was_there(tmp_path, make):
    make_folder(tmp_path / "a", "old")
    aside = killed_while_writing(tmp_path / "a", make)
    assert aside.exists()
    assert (tmp_path / "a" / "weights").read_text() == "old"


def test_contents_are_synced_before_the_rename(tmp_path, monkeypatch):
    done = []
    monkeypatch.setattr(
        os, "fsync", lambda file: done.append(str(Path(f"/proc/self/fd/{file}").readlink()))
    )
    with written_aside(tmp_path / "export") as aside:
        make_folder(aside, "new")
        assert not done
    assert done == [str(aside / "weights"), str(aside), str(tmp_path)]


def test_a_full_disk_names_the_path(tmp_path):
    path = tmp_path / "face.png"
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(OSError, match=f"^{re.escape(str(path))} cannot be written: No spa") as told:
        fail_half_way(path, full)
    assert told.value.errno == errno.ENOSPC
    assert names_in(tmp_path) == []


def test_a_full_disk_says_how_much_room_is_needed(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 0, 500_000))
    full = OSError(errno.ENOSPC, "No space left")
    monkeypatch.setattr(os, "fsync", mock.Mock(side_effect=full))
    said = (
        r"face\.png cannot be written: No space left; 2\.5 MB or more are needed, 0\.5 MB are free"
    )
    with pytest.raises(OSError, match=said):
        write_bytes(tmp_path / "deep" / "face.png", bytes(2_500_000))
    monkeypatch.undo()
    with pytest.raises(OSError, match=r"has no room: 9,000,000,000,000\.0 MB are needed"):
        check_room(tmp_path / "not" / "yet", 9 * 10**18)


def test_a_file_in_the_place_of_a_folder_is_named(tmp_path):
    (tmp_path / "out").write_text("a file")
    said = r"(out|inner) cannot be a folder: \S+/out is a file"
    with pytest.raises(OSError, match=said), locked(tmp_path / "out"):
        pass
    for name in ("x", "inner/x"):
        with pytest.raises(OSError, match=said):
            write_bytes(tmp_path / "out" / name, b"")


def test_a_folder_that_cannot_be_written_names_the_path(tmp_path):
    (tmp_path / "a").write_text("a file")
    with pytest.raises(OSError, match="a"):
        write_text(tmp_path / "a" / "b", "text")


def test_a_sweep_takes_a_dead_writers_asides_and_no_live_ones(tmp_path):
    dead = killed_while_writing(tmp_path / "a")
    dead_folder = killed_while_writing(tmp_path / "b", lambda aside: make_folder(aside, "torn"))
    elsewhere = tmp_path / ".c.aside-elsewhere-1"
    elsewhere.write_text("perhaps alive")
    (tmp_path / ".profile").write_text("not ours")
    with FORK.Pool(1) as pool, written_aside(tmp_path / "d") as own:
        other = tmp_path / own.name.replace(str(os.getpid()), str(pool.apply(os.getpid)))
        for live in (own, other):
            live.write_text("alive")
        sweep(tmp_path)
        assert not dead.exists()
        assert not dead_folder.exists()
        assert other.exists()
    assert names_in(tmp_path) == sorted([".profile", elsewhere.name, other.name, "d"])


def test_the_holder_of_the_folder_sweeps_other_hosts_too(tmp_path):
    elsewhere = tmp_path / ".c.aside-elsewhere-1"
    elsewhere.write_text("torn")
    (tmp_path / ".profile").write_text("not ours")
    sweep(tmp_path, alone=True)
    assert names_in(tmp_path) == [".profile"]


def test_a_long_host_name_stays_its_own(tmp_path, monkeypatch):
    found = set()
    for name in ("cluster-with-a-long-name-worker-1", "cluster-with-a-long-name-worker-2", "a"):
        monkeypatch.setattr(socket, "gethostname", lambda name=name: name)
        with written_aside(tmp_path / ("x" * 208)) as aside:
            aside.write_text("it has room in a file's name of 255 bytes")
            found.add(aside.name)
    assert len(found) == 3


def test_a_second_run_in_a_folder_is_told_who_holds_it(tmp_path):
    with held_by_another(tmp_path) as pid:
        wanted = rf"{tmp_path} is in use by process {pid} on {socket.gethostname()}; wait"
        for _ in range(2):
            with pytest.raises(BlockingIOError, match=wanted), locked(tmp_path):
                pass
        with locked(tmp_path, "part-3"):
            pass
    with locked(tmp_path):  # a killed holder holds nothing
        pass
    assert names_in(tmp_path) == []


def test_one_process_does_not_hold_a_folder_twice(tmp_path):
    with locked(tmp_path):
        for _ in range(2):
            with (
                pytest.raises(BlockingIOError, match=f"process {os.getpid()} on"),
                locked(tmp_path),
            ):
                pass
    with locked(tmp_path):
        pass


def test_a_child_that_outlives_the_holder_holds_nothing(tmp_path):
    """A loader's worker must not keep the next start out."""
    with locked(tmp_path):
        child = FORK.Process(target=signal.pause)
        child.start()
    with held_by_another(tmp_path):
        child.kill()
        child.join()


def test_a_file_system_without_locks_is_worked_on_all_the_same(tmp_path, monkeypatch):
    def refuse(descriptor, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(files.fcntl, "lockf", refuse)
    with locked(tmp_path):
        pass


def test_a_folder_that_was_held_for_nothing_is_gone_and_a_held_one_is_not_free(tmp_path):
    with locked(tmp_path / "empty"):
        assert (tmp_path / "empty").is_dir()
    assert not (tmp_path / "empty").exists()
    check_free(tmp_path / "empty")
    assert not (tmp_path / "empty").exists()
    held = held_by_another(tmp_path / "held")
    with held as holder, pytest.raises(BlockingIOError, match=f"in use by process {holder} on "):
        check_free(tmp_path / "held")
    check_free(tmp_path / "held")
