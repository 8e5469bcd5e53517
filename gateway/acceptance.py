"""What this node can accept, how fast, and in which order (PROTOCOL.md B.5).

Three things, for the moment at which ten thousand clients come back at once:

**A bounded piece of each turn.** Arrivals (upgrades at the gate, first messages) run at once as
long as those of this turn of the loop took less than `TURN_BUDGET` together. What comes then waits
in line, those who resume first, and is run a slice per turn; between two slices those who are here
already have theirs.

**A measured rate.** Each arrival's cost is measured where it runs, and what an accepted client
costs later (the answers of the database) is told to `spent`. The mean cost says how many a second
there is time for. When arrivals waited during a whole interval, so that nothing but this node
limited them, what was done in it is the truth: the part of the time that measured costs explain is
what they may take of each second. While the loop is late the rate is lowered by a factor each time,
and raised again slowly.

**Slots.** Who comes beyond the rate is told a moment of its own: `protocol.admission` says which.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from math import ceil
from time import perf_counter
from typing import Final

from gateway.protocol.admission import Admissions, Pace, Standing
from metrics import instruments

logger = logging.getLogger(__name__)

# Of each turn, in seconds, for arrivals. A message of somebody who is here waits for this and for
# what the other sockets had, which keeps a herd far from the 50 ms that people notice.
TURN_BUDGET: Final = 0.008
LAG_TARGET: Final = 0.05  # seconds; the aim is a 99th percentile below 100 ms
BRAKE: Final = 0.8  # factor on the rate for each measurement above the target
BRAKE_MIN: Final = 0.1
BRAKE_INTERVAL: Final = 0.2  # seconds; a stall that is seen twice must not count twice
RELEASE: Final = 0.05  # added to the factor for each measurement below it: a few seconds to recover
# How many clients a second are believed in, at least and at most, whatever was measured.
RATE_MIN: Final = 50.0
RATE_MAX: Final = 100_000.0
SHARE: Final = 0.8  # of the capacity is promised as slots; the rest is for those who are here
QUEUE_SOFT: Final = 1.0  # seconds that arrivals may wait before only slots are honoured
# Seconds that an upgrade may wait for its turn; clients give the whole attempt five.
QUEUE_HARD: Final = 3.0

# Before anything was measured: 2,000 connects a second, a third of what one core of 2023 does.
_FIRST_COSTS: Final = {"upgrade": 0.0001, "connect": 0.00025, "resume": 0.0001}
_FIRST_EXPLAINED: Final = 0.7  # the rest: taking the socket, reading it, the loop itself
_FIRST_WEIGHT: Final = 20.0  # arrivals that outweigh the first estimate
_MEMORY: Final = 200.0  # arrivals over which the mean reaches back
# One that took so many times the mean (a collection, a first import) counts as only so much.
_OUTLIER: Final = 10.0
_INTERVAL_MIN: Final = 0.2  # seconds; shorter ones say nothing about a second
_TRUTH_WEIGHT: Final = 0.3  # of the newest interval in which arrivals waited all the time


class Arrival(Enum):
    """What arrives. Those that wait are run in this order."""

    RESUME = "resume"  # a first message that continues a session
    CONNECT = "connect"  # any other first message
    UPGRADE = "upgrade"  # an HTTP request that would become a WebSocket


@dataclass(frozen=True, slots=True)
class AcceptStatistics:
    """A look at the accept control."""

    waiting: int
    resumes_per_second: float
    connects_per_second: float
    backlog: float  # seconds of slots that are given out
    brake: float  # 1: the loop is on time
    cost_resume: float  # seconds per client, its upgrade included
    cost_connect: float


class _Mean:
    """A mean that forgets: of the seconds that something takes, told in pieces."""

    __slots__ = ("_count", "_sum")

    def __init__(self, first: float) -> None:
        self._count = _FIRST_WEIGHT
        self._sum = first * _FIRST_WEIGHT

    @property
    def value(self) -> float:
        return self._sum / self._count

    def count(self) -> None:
        """There is one more."""
        keep = 1.0 - 1.0 / _MEMORY
        self._count = self._count * keep + 1.0
        self._sum *= keep

    def add(self, seconds: float) -> None:
        """It, or one before it, took so long."""
        self._sum += min(seconds, self.value * _OUTLIER)


class AcceptControl:
    """Of one node. `observe_lag` is to be called a few times a second, by the wheel's turn."""

    def __init__(self, loop: asyncio.AbstractEventLoop, rate_max: float = 0.0) -> None:
        self._loop = loop
        self._rate_max = rate_max or RATE_MAX
        self._admissions = Admissions()
        # (a) a bounded piece of each turn
        self._lines: dict[Arrival, deque[Callable[[], None]]] = {kind: deque() for kind in Arrival}
        self._waiting = 0
        self._turn_called = False
        self._turn_began = 0.0
        self._used = 0.0  # seconds of this turn
        # (b) the measured rate
        self._measured = 0.0  # seconds of arrivals, since ever
        self._admitted: Arrival | None = None  # by the piece of work that runs
        self._costs = {kind: _Mean(_FIRST_COSTS[kind.value]) for kind in Arrival}
        self._explained = _FIRST_EXPLAINED
        self._brake = 1.0
        self._braked_at = float("-inf")
        self._interval_began = loop.time()
        self._interval_explained = 0.0  # seconds of mean cost of those admitted in it
        self._always_waiting = False
        self._pace = self._find_pace()
        instruments.ACCEPT_RATE.labels("connect").set_function(lambda: self.rate)
        instruments.ACCEPT_RATE.labels("resume").set_function(lambda: self._pace.resumes * SHARE)
        instruments.ARRIVALS_WAITING.set_function(lambda: self._waiting)
        instruments.ACCEPT_BACKLOG.set_function(lambda: self.backlog)

    # --- a bounded piece of each turn -------------------------------------------------------------

    def run(self, kind: Arrival, work: Callable[[], None]) -> None:
        """Run `work` now, or in a later turn when this one has had enough arrivals.

        What it raises comes out here when it runs now, and is logged when it runs later. By then
        who arrived may be gone: `work` must be ready for that.
        """
        if self._waiting or self._used >= TURN_BUDGET:
            self._lines[kind].append(work)
            self._waiting += 1
            return
        if not self._turn_called:
            self._turn_called = True
            self._loop.call_soon(self._turn)
        self._do(kind, work)

    def _do(self, kind: Arrival, work: Callable[[], None]) -> None:
        before = self._measured
        self._admitted = None
        began = perf_counter()
        try:
            work()
        finally:
            # An upgrade may have the first message behind it, which has measured itself.
            seconds = perf_counter() - began - (self._measured - before)
            self._measured += seconds
            self._used += seconds
            if kind is Arrival.UPGRADE:
                cost = self._costs[kind]
                cost.count()
                cost.add(seconds)
            else:
                self._cost_admitted(seconds)

    def _cost_admitted(self, seconds: float) -> None:
        """The work that just ran took so long; it counts if it admitted somebody."""
        kind, self._admitted = self._admitted, None
        if kind is not None:
            self._costs[kind].add(seconds)

    def _turn(self) -> None:
        """A new turn of the loop."""
        now = perf_counter()
        self._used = 0.0
        if not self._waiting:
            self._turn_called = False
            self._turn_began = 0.0
            self._always_waiting = False
            return
        if self._turn_began:
            self._brake_if_late(now - self._turn_began - TURN_BUDGET)
        self._turn_began = now
        self._loop.call_soon(self._turn)
        for kind, line in self._lines.items():
            while line and self._used < TURN_BUDGET:
                self._waiting -= 1
                try:
                    self._do(kind, line.popleft())
                except Exception:  # must not cost the others their turn
                    logger.exception("an arrival could not be handled")

    # --- the measured rate ------------------------------------------------------------------------

    @property
    def rate(self) -> float:
        """How many newcomers a second get slots."""
        return self._pace.connects * SHARE

    @property
    def backlog(self) -> float:
        """For how many seconds from now slots are given out."""
        return self._admissions.backlog(self._loop.time())

    def spent(self, seconds: float, kind: Arrival = Arrival.CONNECT) -> None:
        """What accepted clients of this kind cost outside of their work in `run`."""
        self._costs[kind].add(seconds)

    def observe_lag(self, lag: float) -> None:
        """By how many seconds the loop was late just now; to be called a few times a second."""
        now = self._loop.time()
        if not self._brake_if_late(lag):
            self._brake = min(1.0, self._brake + RELEASE)
        elapsed = now - self._interval_began
        if elapsed >= _INTERVAL_MIN:
            if self._always_waiting and self._interval_explained:
                truth = min(self._interval_explained / elapsed, 1.0)
                self._explained += (truth - self._explained) * _TRUTH_WEIGHT
            self._interval_began = now
            self._interval_explained = 0.0
            self._always_waiting = self._waiting > 0
        self._pace = self._find_pace()
        missed = self._admissions.promised.expire(now)
        if missed:
            self.missed(missed)

    def _brake_if_late(self, lag: float) -> bool:
        if lag <= LAG_TARGET:
            return False
        now = self._loop.time()
        if now - self._braked_at >= BRAKE_INTERVAL:
            self._braked_at = now
            self._brake = max(BRAKE_MIN, self._brake * BRAKE)
        return True

    def _cost(self, kind: Arrival) -> float:
        """Of one client, its upgrade included."""
        return self._costs[Arrival.UPGRADE].value + self._costs[kind].value

    def _find_pace(self) -> Pace:
        usable = self._explained * self._brake
        return Pace(
            resumes=self._clamp(usable / self._cost(Arrival.RESUME)),
            connects=self._clamp(usable / self._cost(Arrival.CONNECT)),
            share=SHARE,
        )

    def _clamp(self, rate: float) -> float:
        return min(max(rate, RATE_MIN), self._rate_max)

    # --- slots ------------------------------------------------------------------------------------

    def admit(self, kind: Arrival, address: str, slot: float | None, now: float) -> int | None:
        """Whether a client is received now: None, or in how many ms it is to come back.

        `slot` is the moment that this very client was told before, on the loop's clock; without it
        slots that newcomers of its address were told are looked at. Who resumes is told its slot by
        the session, so it is the caller's to keep.
        """
        resumes = kind is Arrival.RESUME
        pace = self._pace
        verdict = self._admissions.arrive(
            resumes,
            address,
            slot,
            now,
            pace,
            crowded=self._waiting > QUEUE_SOFT * pace.connects,
        )
        if verdict.standing is not Standing.WITHOUT:
            _ARRIVED[verdict.standing].inc()
        if verdict.slot is None:
            self._admitted = kind
            self._costs[kind].count()
            self._interval_explained += self._cost(kind)
            return None
        _REFUSED[kind].inc()
        _HANDED_OUT.inc()
        return ceil((verdict.slot - now) * 1000)

    def slot_for_close(
        self,
        now: float,
        address: str | None = None,
        *,
        kind: Arrival = Arrival.CONNECT,
        not_before: float = 0.0,
    ) -> float:
        """In how many seconds a client that is closed now is to come back, and as what.

        With an address the slot is remembered for it. It lies at least `not_before` ahead.
        """
        _HANDED_OUT.inc()
        resumes = kind is Arrival.RESUME
        return self._admissions.promise(resumes, address, now, self._pace, not_before) - now

    def missed(self, count: int = 1) -> None:
        """Clients that were told a slot never came; those known by address are counted here."""
        _MISSED.inc(count)

    def hard_refusal(self, now: float, address: str = "") -> int | None:
        """Whether an upgrade is to be sent away at the door: None, or `Retry-After` in seconds."""
        if self._admissions.is_hopeless(address, now, self._pace):
            return self.send_away(now)
        return None

    def send_away(self, now: float) -> int:
        """Count an upgrade that is refused; `Retry-After` in seconds for it."""
        _REFUSED[Arrival.UPGRADE].inc()
        return ceil(self._admissions.beyond(now) - now)

    def statistics(self) -> AcceptStatistics:
        """A look at it."""
        return AcceptStatistics(
            waiting=self._waiting,
            resumes_per_second=self._pace.resumes,
            connects_per_second=self._pace.connects,
            backlog=self.backlog,
            brake=self._brake,
            cost_resume=self._cost(Arrival.RESUME),
            cost_connect=self._cost(Arrival.CONNECT),
        )


_HANDED_OUT: Final = instruments.RECONNECT_SLOTS.labels("handed_out")
_MISSED: Final = instruments.RECONNECT_SLOTS.labels("missed")
_ARRIVED: Final = {
    Standing.DUE: instruments.RECONNECT_SLOTS.labels("honoured"),
    Standing.EARLY: instruments.RECONNECT_SLOTS.labels("early"),
    Standing.LATE: instruments.RECONNECT_SLOTS.labels("late"),
}
_REFUSED: Final = {kind: instruments.ACCEPT_REFUSALS.labels(kind.value) for kind in Arrival}
