"""One timing wheel for every deadline of every connection.

Re-arming an event loop timer costs over a microsecond and a heap entry; a connection moves its
deadlines with every message. So each connection only keeps its deadline as a number, and one timer
looks, a few times a second, at those whose turn has come. A connection that postponed its deadline
meanwhile is simply put back. Deadlines are thus met late by at most one tick, never early.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Final, Protocol

logger = logging.getLogger(__name__)

TICK: Final = 0.25  # seconds; the shortest deadline on the wire is whole seconds
SLOTS: Final = 512  # two minutes ahead; later deadlines wait in the last slot and are put back


class Timed(Protocol):
    """Something with deadlines."""

    # The tick at which the wheel holds it; written by the wheel only. 0: the wheel doesn't hold it.
    wheel_tick: int

    def next_deadline(self) -> float:
        """When it next has something to do; infinity for never."""

    def tick(self, now: float) -> None:
        """Do what is due."""


class Wheel:
    """Calls `tick` of what was added, at or shortly after `next_deadline`.

    `on_lag` gets, for each turn of the wheel, by how many seconds the loop ran it late.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, on_lag: Callable[[float], None] | None = None
    ) -> None:
        self._loop = loop
        self._on_lag = on_lag
        self._slots: list[list[Timed]] = [[] for _ in range(SLOTS)]
        self._start = loop.time()
        self._tick = 0  # the last tick that was run
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin to turn."""
        self._arm()

    def stop(self) -> None:
        """Stop turning; nothing is called any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def add(self, timed: Timed) -> None:
        """Hold something, or hold it for an earlier deadline than before.

        A later deadline needs no call, and neither does the end: a deadline of infinity drops it.
        """
        deadline = timed.next_deadline()
        if deadline == float("inf"):
            return
        tick = min(max(self._tick_of(deadline), self._tick + 1), self._tick + SLOTS - 1)
        if timed.wheel_tick and timed.wheel_tick <= tick:
            return
        timed.wheel_tick = tick
        self._slots[tick % SLOTS].append(timed)

    def _tick_of(self, deadline: float) -> int:
        """The first tick at which the deadline has passed."""
        return -int((self._start - deadline) // TICK)

    def _arm(self) -> None:
        self._timer = self._loop.call_at(self._start + (self._tick + 1) * TICK, self._turn)

    def _turn(self) -> None:
        now = self._loop.time()
        if self._on_lag is not None:
            self._on_lag(now - (self._start + (self._tick + 1) * TICK))
        while self._timer is not None and self._start + (self._tick + 1) * TICK <= now:
            self._run(self._tick + 1, now)
        if self._timer is not None:  # stopped by what was due
            self._arm()

    def _run(self, tick: int, now: float) -> None:
        slot = tick % SLOTS
        due, self._slots[slot] = self._slots[slot], []
        self._tick = tick
        for timed in due:
            if timed.wheel_tick != tick:
                continue  # moved to an earlier slot meanwhile and already run there
            timed.wheel_tick = 0
            try:
                if timed.next_deadline() <= now:
                    timed.tick(now)
            except Exception:  # must not cost all others their deadlines
                logger.exception("a deadline could not be handled")
            else:
                self.add(timed)
