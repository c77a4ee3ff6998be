"""Several processes acting as one run: sums, votes, work on the main one, and a common stop."""

import contextlib
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor

from mmface.core.command_line import MISTAKE_STATUS, ElsewhereError, RunError

STOPPED_STATUS = 75
"""Exit status of a run that a signal stopped (EX_TEMPFAIL): the same command resumes it."""

_REPORT_S = 5.0
_BROKEN = re.compile(r"gloo|nccl|TCPStore|timed? ?out|clos(ed|ure)|reset by peer", re.IGNORECASE)

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


def computes_on_cpu() -> bool:
    """Whether there is no GPU; accelerate must be told to join processes on CPUs."""
    return not torch.accelerator.is_available()


def joined_processes() -> PartialState:
    """Join the processes that a launcher started, if any; wait for them up to a week."""
    return PartialState(cpu=computes_on_cpu(), timeout=timedelta(days=7))


class Processes:
    """The processes of a run that accelerate joined, seen from one of them."""

    def __init__(self, accelerator: Accelerator) -> None:
        """Take the accelerator that joined them."""
        self.accelerator = accelerator
        self._stop_requested = False

    def summed(self, tensor: Tensor) -> Tensor:
        """Sum a tensor over the processes; all of them call this."""
        return self.accelerator.reduce(tensor, "sum")

    def gathered(self, thing: Any) -> list[Any]:
        """Return every process's picklable object, by rank; all of them call this."""
        return gather_object([thing])

    def vote(self, finite: Tensor) -> tuple[bool, bool]:
        """Return whether all processes have finite numbers, and whether any was asked to stop."""
        stop = torch.full_like(finite, self._stop_requested)
        votes = self.summed(torch.stack((~finite, stop)).float())
        any_bad, any_stop = (votes > 0).tolist()
        return not any_bad, any_stop

    def on_main(self, work: Callable[[], Any]) -> Any:
        """Do something on the main process, and return its picklable result on all.

        If it fails, the main process raises the failure, the others ElsewhereError.
        """
        outcome: list[Any] = [None, "", 1]
        failure: Exception | None = None
        if self.accelerator.is_main_process:
            try:
                outcome[0] = work()
            except Exception as error:  # raised below, once the others know
                failure = error
                outcome[1] = str(error) or type(error).__name__
                outcome[2] = MISTAKE_STATUS if isinstance(error, ValueError | OSError) else 1
        if self.accelerator.num_processes > 1:
            broadcast_object_list(outcome)
        if failure is not None:
            raise failure
        if outcome[1]:
            raise ElsewhereError(f"the main process failed: {outcome[1]}", outcome[2])
        return outcome[0]

    @contextlib.contextmanager
    def naming_lost_processes(self, timeout_s: float) -> Iterator[None]:
        """Turn a broken connection into a `RunError` that names the lost processes.

        Lost is who does not report within some seconds in a store beside the connections.
        `timeout_s`, for the message, is how long the connections waited.
        """
        try:
            yield
        except (RuntimeError, torch.distributed.DistError) as error:
            broken = isinstance(error, torch.distributed.DistError) or _BROKEN.search(str(error))
            if isinstance(error, RunError | ElsewhereError) or not broken:
                raise
            if self.accelerator.num_processes == 1:
                raise
            lost = self._lost_processes()
            waited = "timed out" in str(error).lower()
            how = (
                f"did not answer for {timeout_s:g} s" if waited else "ended or lost its connection"
            )
            who = f"process {', '.join(map(str, lost))}" if lost else "a process"
            raise RunError(
                f"{who} of {self.accelerator.num_processes} {how}, so process "
                f"{self.accelerator.process_index} ends too; the same command goes on from the "
                "newest checkpoint"
            ) from error

    def _lost_processes(self) -> list[int]:
        """Report, and list the processes that do not."""
        numbers = range(self.accelerator.num_processes)
        wait = timedelta(seconds=_REPORT_S)
        try:
            store = torch.distributed.TCPStore(
                os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), None, False, wait, False
            )
            store.set(f"mmface/{self.accelerator.process_index}", "runs")
            end = time.monotonic() + _REPORT_S
            lost = set(numbers)
            while lost and time.monotonic() < end:
                lost = {n for n in lost if not store.check([f"mmface/{n}"])}
                time.sleep(0.1)
            # The process that holds the store leaves last, so that the others can ask it.
            time.sleep(0.5)
            return sorted(lost)
        except (RuntimeError, OSError):  # the store is process 0's
            return [0]

    def end(self) -> None:
        """Close the trackers and leave the group of processes; all of them call this."""
        # Destroying a gloo group joins its threads while Python's lock is held: a thread that waits
        # for that lock would never end. A moment without the lock lets it through.
        time.sleep(0.1)
        self.accelerator.end_training()

    @contextlib.contextmanager
    def catching_signals(self) -> Iterator[None]:
        """Remember a stop signal instead of dying from it; a second SIGINT interrupts at once."""
        if threading.current_thread() is not threading.main_thread():
            yield  # Python leaves signals to the main thread
            return
        previous = {s: signal.signal(s, self._request_stop) for s in STOP_SIGNALS}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _request_stop(self, number: int, frame: Any) -> None:
        if self._stop_requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._stop_requested = True
