"""What a writer leaves that is killed at the worst moment."""

import os
import signal
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
