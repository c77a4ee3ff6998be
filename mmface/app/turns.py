"""Turns of threads that compute with the same networks: one at a time, in the order they came."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Turns:
    """Gives the networks to one thread at a time, in order of arrival.

    A thread with a long calculation calls `give_way` between its parts, so that a short one need
    not wait for its end.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._arrived = self._served = 0

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Wait for a turn, and have it while the context lasts."""
        self._begin()
        try:
            yield
        finally:
            self._end()

    def give_way(self) -> None:
        """Let those go first who wait by now; for the thread whose turn it is."""
        if self._arrived - self._served > 1:
            self._end()
            self._begin()

    def _begin(self) -> None:
        with self._changed:
            own, self._arrived = self._arrived, self._arrived + 1
            self._changed.wait_for(lambda: self._served == own)

    def _end(self) -> None:
        with self._changed:
            self._served += 1
            self._changed.notify_all()
