"""How the processes of a run act as one: sums, votes, one doer, and a common stop."""

import contextlib
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

STOPPED_STATUS = 75
"""Exit status of a run that a signal stopped (EX_TEMPFAIL): start it again and it goes on."""

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


def computes_on_cpu() -> bool:
    """Whether there is no accelerator; accelerate joins processes on CPUs only if it is told so."""
    return not torch.accelerator.is_available()


def joined_processes() -> PartialState:
    """Join the processes that a launcher started, or stand alone.

    Returns:
        accelerate's state, with the device, this process's number and how many there are. One that
        is ready waits for the others up to a week, where torch's own limit is ten minutes.
    """
    return PartialState(cpu=computes_on_cpu(), timeout=timedelta(days=7))


class Processes:
    """The processes that accelerate started, seen from one of them."""

    def __init__(self, accelerator: Accelerator) -> None:
        """Stand among the accelerator's processes."""
        self.accelerator = accelerator
        self._stop_requested = False

    def summed(self, tensor: Tensor) -> Tensor:
        """Add up a tensor over the processes; all of them call this."""
        return self.accelerator.reduce(tensor, "sum")

    def gathered(self, thing: Any) -> list[Any]:
        """Give each process's picklable object, in their order; all of them call this."""
        return gather_object([thing])

    def vote(self, finite: Tensor) -> tuple[bool, bool]:
        """Whether every process has finite numbers, and whether any was asked to stop."""
        stop = torch.full_like(finite, self._stop_requested)
        votes = self.summed(torch.stack((~finite, stop)).float())
        any_bad, any_stop = (votes > 0).tolist()
        return not any_bad, any_stop

    def on_main(self, work: Callable[[], Any]) -> Any:
        """Do something on the main process, and have all return its result or fail with it.

        Args:
            work: what to do; its result must be picklable.

        Returns:
            The main process's result.

        Raises:
            RuntimeError: on the other processes, if it failed; the main one raises the failure.
        """
        outcome: list[Any] = [None, ""]
        failure: Exception | None = None
        if self.accelerator.is_main_process:
            try:
                outcome[0] = work()
            except Exception as error:  # raised below, once the others know
                failure = error
                outcome[1] = str(error) or type(error).__name__
        if self.accelerator.num_processes > 1:
            broadcast_object_list(outcome)
        if failure is not None:
            raise failure
        if outcome[1]:
            raise RuntimeError(f"the main process failed: {outcome[1]}")
        return outcome[0]

    def part(self) -> None:
        """Close the trackers and the group of processes; all of them call this.

        torch's gloo group joins its threads when it is destroyed, which Python does while it holds
        its lock; a thread that still waits for that lock, to let go of the last message, would
        never end. A moment without the lock lets it through.
        """
        time.sleep(0.1)
        self.accelerator.end_training()

    @contextlib.contextmanager
    def catching_signals(self) -> Iterator[None]:
        """Note a stop signal instead of dying of it; a second SIGINT interrupts at once."""
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
