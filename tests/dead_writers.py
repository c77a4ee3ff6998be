"""Writers that are killed at the worst moment, and writers that hold a folder."""

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from multiprocessing import get_context

from mmface.core.files import written_aside


def killed_while_writing(path, make=lambda aside: aside.write_bytes(b"torn")):
    """Kill a process that has written `path` aside and not yet renamed it; gives the aside."""

    def work():
        with written_aside(path) as aside:
            make(aside)
            os.kill(os.getpid(), signal.SIGKILL)

    process = get_context("fork").Process(target=work)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    (aside,) = path.parent.glob(f".{path.name}.aside-*-{process.pid}")
    return aside


HOLD = """
import sys, time
from mmface.core.files import locked
with locked(*sys.argv[1:]):
    print("held", flush=True)
    time.sleep(60)
"""


@contextmanager
def held_by_another(folder, work=""):
    command = [sys.executable, "-c", HOLD, folder, work]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == b"held\n"
            yield process.pid
        finally:
            process.kill()


def killed_at_random(work, duration, num_kills, seed):
    """Kill a process at its work that often, then do it all; gives how many were alive then."""
    draws, killed = random.Random(seed), 0
    for _ in range(num_kills):
        process = get_context("fork").Process(target=work)
        process.start()
        time.sleep(draws.uniform(0, duration / num_kills))
        process.kill()
        process.join(120)
        killed += process.exitcode == -signal.SIGKILL
    work()
    return killed


def killed_as_it_writes(work, folder, num_files, num_kills, seed):
    """Kill a process that often, each time a few files further, then do it all; gives the kills.

    `num_files` is how many the whole work leaves; some kills come before the first new file.
    """
    draws, killed = random.Random(seed), 0

    def written():
        return sum(path.is_file() for path in folder.rglob("*"))

    for kill in range(num_kills):
        # A share of the files stays for the later kills and for the whole run.
        left = num_files - written()
        wanted = written() + draws.randint(0, max(left, 0) // (num_kills - kill + 1))
        process = get_context("fork").Process(target=work)
        process.start()
        while process.is_alive() and written() < wanted:
            time.sleep(0.003)
        time.sleep(draws.uniform(0, 0.01))
        process.kill()
        process.join(120)
        killed += process.exitcode == -signal.SIGKILL
    work()
    return killed
