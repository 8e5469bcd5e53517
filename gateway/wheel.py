"""One timing wheel for every deadline of every connection.

Re-arming an event loop timer costs over a microsecond and a heap entry; a connection moves its
deadlines with every message. So each connection only keeps its deadline as a number, and one timer
looks, a few times a second, at those whose turn has come. A connection that postponed its deadline
meanwhile is simply put back. Deadlines are thus met late by at most one tick, never early.

When the loop itself stood still, nobody else is late because of that: before anything that is due
is run, everything held is told for how long (`excuse`) and moves those of its deadlines that wait
for a peer. What the peer sent meanwhile lies in the socket and is read in the same turn of the
loop, so the length of the stall is all the grace that is needed.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Final, Protocol

from metrics import instruments

logger = logging.getLogger(__name__)

TICK: Final = 0.25  # seconds; the shortest deadline on the wire is whole seconds
NEVER: Final = float("inf")
SLOTS: Final = 512  # two minutes ahead; later deadlines wait in the last slot and are put back
AFTER_ERROR: Final = 20  # ticks until whoever raised has another chance
# Seconds by which a turn is late before it counts as a stall. Far above what a busy loop does to
# its timers, and far below the shortest deadline, so that what isn't excused never matters.
STALL: Final = 0.25


class Timed(Protocol):
    """Something with deadlines."""

    # The tick at which the wheel holds it; written by the wheel only. 0: the wheel doesn't hold it.
    wheel_tick: int

    def next_deadline(self) -> float:
        """When it next has something to do; infinity for never."""

    def tick(self, now: float) -> None:
        """Do what is due."""

    def excuse(self, seconds: float) -> None:
        """Our own loop stood still for so long: move the deadlines that wait for somebody else."""


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
        self._turned_at = self._start
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin to turn."""
        self._turned_at = self._loop.time()
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
        if deadline != NEVER:
            tick = self._tick_of(deadline)
            if not timed.wheel_tick or tick < timed.wheel_tick:
                self._hold(timed, tick)

    def postpone(self, timed: Timed) -> None:
        """Hold something for a later deadline than before.

        Needed by nobody; it spares who has just been called a look at the former deadline.
        """
        deadline = timed.next_deadline()
        if deadline != NEVER and timed.wheel_tick:
            tick = self._tick_of(deadline)
            if tick != timed.wheel_tick:
                self._hold(timed, tick)

    def _hold(self, timed: Timed, tick: int) -> None:
        timed.wheel_tick = tick  # a former place counts no more
        self._slots[tick % SLOTS].append(timed)

    def _tick_of(self, deadline: float) -> int:
        """The first tick that is to come at which the deadline has passed, as far as there are."""
        tick = -int((self._start - deadline) // TICK)
        soonest = self._tick + 1
        if tick <= soonest:
            return soonest
        latest = self._tick + SLOTS - 1
        return min(latest, tick)

    def _arm(self) -> None:
        self._timer = self._loop.call_at(self._start + (self._tick + 1) * TICK, self._turn)

    def _turn(self) -> None:
        now = self._loop.time()
        lag = now - max(self._start + (self._tick + 1) * TICK, self._turned_at)
        if self._on_lag is not None:
            self._on_lag(lag)
        if lag > STALL:
            instruments.LOOP_STALLS.inc()
            instruments.LOOP_STALL_SECONDS.inc(lag)
            # The loop may have stopped right behind the last turn: what became due since then
            # has had no turn in which to be met.
            self._excuse(now - self._turned_at)
        self._turned_at = now
        while self._timer is not None and self._start + (self._tick + 1) * TICK <= now:
            self._run(self._tick + 1, now)
        if self._timer is not None:  # stopped by what was due
            self._arm()

    def _excuse(self, seconds: float) -> None:
        """Tell everything that is held, each once."""
        for tick in range(self._tick + 1, self._tick + SLOTS):
            # Whoever left a place and took it again stands there twice.
            held = {id(timed): timed for timed in self._slots[tick % SLOTS]}
            for timed in held.values():
                if timed.wheel_tick == tick:
                    try:
                        timed.excuse(seconds)
                    except Exception:  # must not cost all others their excuse
                        logger.exception("a deadline could not be moved")

    def _run(self, tick: int, now: float) -> None:
        slot = tick % SLOTS
        due, self._slots[slot] = self._slots[slot], []
        self._tick = tick
        for timed in due:
            if timed.wheel_tick != tick:
                continue  # moved to another slot meanwhile
            timed.wheel_tick = 0
            try:
                deadline = timed.next_deadline()
                if deadline <= now:
                    timed.tick(now)
                    self.add(timed)
                elif deadline != NEVER:
                    self._hold(timed, self._tick_of(deadline))
            except Exception:  # must not cost all others their deadlines, nor itself the next one
                logger.exception("a deadline could not be handled")
                if not timed.wheel_tick:
                    self._hold(timed, tick + AFTER_ERROR)
