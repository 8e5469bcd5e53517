"""What this node can accept, how fast, and in which order (PROTOCOL.md B.5).

Three things, for the moment at which ten thousand clients come back at once:

**A bounded piece of each turn.** Arrivals (upgrades at the gate, first messages) run at once as
long as those of this turn of the loop took less than `TURN_BUDGET` together. What comes then waits
in line, those who resume first, and is run a slice per turn; between two slices those who are here
already have theirs. While the loop is late all the same, the slices become smaller.

**A measured rate.** Each arrival's cost is measured where it runs, and what an accepted client
costs later (the answers of the database) is told to `spent`. The mean cost says how many a second
there is time for. When arrivals waited during a whole interval, so that nothing but this node
limited them, what was done in it is the truth: the part of the time that measured costs explain is
what they may take of each second. While the loop is late the rate is lowered by a factor each time,
and raised again slowly.

**Slots.** Who has to come back is told a moment of its own, one after the other at that rate;
`protocol.admission` says who has to. Those at the door are rather let wait for a second or two: to
refuse somebody costs half as much as to receive it, and has to be done again.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from math import ceil
from time import perf_counter
from typing import Final

from gateway.protocol.admission import Admissions, Pace, Standing
from metrics import instruments

logger = logging.getLogger(__name__)

# Of each turn, in seconds, for arrivals. A message of somebody who is here waits for this and for
# what the other sockets had, which keeps a herd far from the 50 ms that people notice.
TURN_BUDGET: Final = 0.008
STALL: Final = 0.25  # seconds by which the loop is late before it has stood still; as the wheel's
LAG_TARGET: Final = 0.05  # seconds; the aim is a 99th percentile below 100 ms
BRAKE: Final = 0.8  # factor on the rate for each measurement above the target
BRAKE_MIN: Final = 0.1
BRAKE_INTERVAL: Final = 0.2  # seconds; a stall that is seen twice must not count twice
RELEASE: Final = 0.05  # added to the factor for each measurement below it: a few seconds to recover
# How many clients a second are believed in, at least and at most, whatever was measured.
RATE_MIN: Final = 50.0
RATE_MAX: Final = 100_000.0
SHARE: Final = 0.8  # of the capacity is promised as slots; the rest is for those who are here
# By how much first messages may exceed what their cost says before they are refused for it. Those
# that this process alone limits never do: it takes costs that come later, or `rate_max`.
HEADROOM: Final = 1.5
# Seconds that an upgrade may wait for its turn; clients give the whole attempt five.
QUEUE_MAX: Final = 4.0

# Before anything was measured: slots for 2,000 connects a second, half of what a core of 2023 does.
_FIRST_COST_UPGRADE: Final = 0.0001
_FIRST_COST_CONNECT: Final = 0.00018
_FIRST_COST_RESUME: Final = 0.00006
_FIRST_EXPLAINED: Final = 0.7  # the rest: taking the socket, reading it, the loop itself
_FIRST_WEIGHT: Final = 20.0  # arrivals that outweigh the first estimate
_KEEP: Final = 1.0 - 1.0 / 1000  # of a mean's memory, with each arrival
_OUTLIER: Final = 10.0  # times the mean is the most that is believed of one interval's arrivals
# Seconds of waiting after which it is worth 8 µs to look whether who arrives is still there.
LEAVE_AFTER: Final = 0.5
# Seconds of an interval: shorter ones say nothing about a second, and longer ones hold a stall.
_INTERVAL_MIN: Final = 0.2
_INTERVAL_MAX: Final = 1.0
_TRUTH_WEIGHT: Final = 0.3  # of the newest interval in which arrivals waited all the time
# So many in the kernel's line are more than the next turn takes: the loop is behind.
OUTSIDE_MIN: Final = 32
EXPLAINED_MIN: Final = 0.1  # whatever else the loop was busy with


class Arrival(IntEnum):
    """What arrives. Those that wait are run in this order."""

    RESUME = 0  # a first message that continues a session
    CONNECT = 1  # any other first message
    UPGRADE = 2  # an HTTP request that would become a WebSocket


_UPGRADE: Final = Arrival.UPGRADE  # looking it up in its class takes longer than an addition


@dataclass(frozen=True, slots=True)
class AcceptStatistics:
    """A look at the accept control."""

    waiting: int
    pace: Pace
    backlog: float  # seconds of slots that are given out
    brake: float  # 1: the loop is on time
    explained: float  # of each second, when arrivals take all of it
    cost_resume: float  # seconds per client, its upgrade included
    cost_connect: float


class _Mean:
    """The mean of what something takes, in seconds, as `learn` was told it. It forgets.

    `seconds` and `count` are of now: cheap to add to, and looked at a few times a second.
    """

    __slots__ = ("_total", "_weight", "count", "seconds", "value")

    def __init__(self, first: float) -> None:
        self.value = first
        self.seconds = 0.0
        self.count = 0
        self._weight = _FIRST_WEIGHT
        self._total = first * _FIRST_WEIGHT

    def learn(self) -> None:
        """Take in what was measured since the last time; seconds without a count wait for one."""
        if not self.count:
            return
        keep = _KEEP**self.count
        most = self.value * _OUTLIER * self.count
        self._total = self._total * keep + min(self.seconds, most)
        self._weight = self._weight * keep + self.count
        self.value = self._total / self._weight
        self.seconds = 0.0
        self.count = 0


class AcceptControl:
    """Of one node. `observe_lag` is to be called a few times a second, by the wheel's turn.

    `rate_max` clients a second are the most that is believed in; 0 for what is measured. `clock`
    measures work; the loop's own stands still during a turn.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        rate_max: float = 0.0,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        self._loop = loop
        self._clock = clock
        self._rate_max = rate_max or RATE_MAX
        # (a) A bounded piece of each turn: what waits, and since when.
        self._lines: list[deque[tuple[float, Callable[[], None]]]] = [deque() for _ in Arrival]
        self._waiting = 0
        self._stood_still = 0.0  # seconds in all, which nobody is to wait longer for
        self._budget = TURN_BUDGET
        self._used = 0.0  # seconds of it, since the last turn that we know of
        self._turn_called = False
        self._turn_began = 0.0
        # (b) The measured rate.
        self._admitted = False  # whether the work that runs has admitted somebody
        first = (_FIRST_COST_RESUME, _FIRST_COST_CONNECT, _FIRST_COST_UPGRADE)
        self._means = [_Mean(seconds) for seconds in first]
        self._explained = _FIRST_EXPLAINED
        self._brake = 1.0
        self._braked_at = float("-inf")
        self._vain = 0.0  # seconds of this interval that went into refusals
        self._interval_began = loop.time()
        self._always_waiting = False
        self._outside: Callable[[], int] = int
        self._waited_outside = 0
        # (c) Slots.
        self._admissions = Admissions(self._find_pace())
        instruments.ACCEPT_RATE.labels("connect").set_function(lambda: self.rate)
        instruments.ACCEPT_RATE.labels("resume").set_function(
            lambda: self._admissions.pace.resume_slots
        )
        instruments.ARRIVALS_WAITING.set_function(lambda: self._waiting + self._outside())
        instruments.ACCEPT_BACKLOG.set_function(lambda: self.backlog)

    def watch(self, outside: Callable[[], int]) -> None:
        """Say how to learn how many wait who haven't come as far as `run`."""
        self._outside = outside

    # --- a bounded piece of each turn -------------------------------------------------------------

    def run(self, kind: Arrival, work: Callable[[], None]) -> None:
        """Run `work` now, or in a later turn when this one has had enough arrivals.

        What it raises comes out here when it runs now, and is logged when it runs later. By then
        who arrived may be gone: `work` must be ready for that.
        """
        if self._waiting or self._used >= self._budget:
            self._lines[kind].append((self._loop.time() - self._stood_still, work))
            self._waiting += 1
            if not self._turn_called:
                # Only now: the end of a turn is of no interest to somebody who comes alone. Before
                # this one there may have been several, so it waits in vain once in a while.
                self._turn_called = True
                self._loop.call_soon(self._turn)
        else:
            self._do(kind, work)

    def _do(self, kind: Arrival, work: Callable[[], None]) -> None:
        before = self._used
        self._admitted = False
        began = self._clock()
        try:
            work()
        finally:
            # Without what was measured inside: an upgrade may have the first message behind it.
            seconds = self._clock() - began - (self._used - before)
            self._used += seconds
            if kind is _UPGRADE:
                mean = self._means[_UPGRADE]
                mean.seconds += seconds
                mean.count += 1
            elif self._admitted:
                self._means[kind].seconds += seconds
            else:
                self._vain += seconds

    def _turn(self) -> None:
        """A new turn of the loop."""
        self._used = 0.0
        if not self._waiting:
            self._turn_called = False
            self._turn_began = 0.0
            self._always_waiting = False
            return
        now = self._clock()
        if self._turn_began:
            self._brake_if_late(now - self._turn_began)
        self._turn_began = now
        self._loop.call_soon(self._turn)
        for kind in Arrival:
            line = self._lines[kind]
            while line and self._used < self._budget:
                self._waiting -= 1
                try:
                    self._do(kind, line.popleft()[1])
                except Exception:  # must not cost the others their turn
                    logger.exception("an arrival could not be handled")

    def _waited(self, now: float) -> float:
        """For how many seconds whoever has waited longest has; not while we stood still."""
        return now - self._stood_still - min(line[0][0] for line in self._lines if line)

    # --- the measured rate ------------------------------------------------------------------------

    @property
    def rate(self) -> float:
        """How many newcomers a second get slots."""
        return self._admissions.pace.connect_slots

    @property
    def is_behind(self) -> bool:
        """Whether arrivals have waited so long, here or in the kernel, that some may have left."""
        return self._waiting + self._waited_outside > LEAVE_AFTER * self.rate

    @property
    def backlog(self) -> float:
        """For how many seconds from now slots are given out."""
        return self._admissions.backlog(self._loop.time())

    def spent(self, seconds: float, kind: Arrival = Arrival.CONNECT) -> None:
        """What an accepted client of this kind has cost beside its work in `run`.

        What it costs within that may be told too; it isn't counted twice.
        """
        self._means[kind].seconds += seconds
        self._used += seconds

    def observe_lag(self, lag: float) -> None:
        """By how many seconds the loop was late just now; to be called a few times a second."""
        now = self._loop.time()
        if lag > STALL:
            self._stood_still += lag
        if not self._brake_if_late(lag):
            self._brake = min(1.0, self._brake + RELEASE)
        self._budget = TURN_BUDGET * self._brake
        elapsed = now - self._interval_began
        if elapsed >= _INTERVAL_MIN:
            self._interval_began = now
            self._learn(elapsed)
        self._admissions.set_pace(self._find_pace())
        missed = self._admissions.promised.expire(now)
        if missed:
            self.missed(missed)

    def _learn(self, elapsed: float) -> None:
        """Take in what an interval has shown."""
        outside = self._outside()
        # A line at both ends of a quarter of a second was there in between.
        always = self._always_waiting or min(outside, self._waited_outside) >= OUTSIDE_MIN
        self._waited_outside = outside
        if always and elapsed <= _INTERVAL_MAX:
            measured = self._vain + sum(mean.seconds for mean in self._means)
            explained = min(max(measured / elapsed, EXPLAINED_MIN), 1.0)
            self._explained += (explained - self._explained) * _TRUTH_WEIGHT
        self._vain = 0.0
        self._always_waiting = self._waiting > 0
        for mean in self._means:
            mean.learn()

    def _brake_if_late(self, lag: float) -> bool:
        if lag <= LAG_TARGET:
            return False
        now = self._loop.time()
        if now - self._braked_at >= BRAKE_INTERVAL:
            self._braked_at = now
            self._brake = max(BRAKE_MIN, self._brake * BRAKE)
            self._budget = TURN_BUDGET * self._brake
        return True

    def _cost(self, kind: Arrival) -> float:
        """Of one client, its upgrade included, in seconds."""
        return self._means[_UPGRADE].value + self._means[kind].value

    def _find_pace(self) -> Pace:
        def clamped(rate: float) -> float:
            return min(max(rate, RATE_MIN), self._rate_max)

        resume, connect = self._cost(Arrival.RESUME), self._cost(Arrival.CONNECT)
        share = SHARE * self._explained * self._brake
        return Pace(
            resumes=clamped(HEADROOM / self._means[Arrival.RESUME].value),
            connects=clamped(HEADROOM / self._means[Arrival.CONNECT].value),
            resume_slots=clamped(share / resume),
            connect_slots=clamped(share / connect),
        )

    # --- slots ------------------------------------------------------------------------------------

    def admit(self, kind: Arrival, address: str, slot: float | None, now: float) -> int | None:
        """Whether a client is received now: None, or in how many ms it is to come back.

        `slot` is the moment that this very client was told before, on the loop's clock; without it
        slots that newcomers of its address were told are looked at. Who resumes is told its slot by
        the session, so it is the caller's to keep.
        """
        if kind is Arrival.RESUME:
            verdict = self._admissions.resume(slot, now)
        else:
            waited = self._waited(now) if self._waiting else 0.0
            verdict = self._admissions.connect(address, slot, now, waited)
        came = verdict.standing
        if came is not Standing.WITHOUT:
            _ARRIVED[came].inc()
        if verdict.slot is None:
            self._admitted = True
            self._means[kind].count += 1
            return None
        _REFUSED[kind].inc()
        _HANDED_OUT.inc()
        return round((verdict.slot - now) * 1000)

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
        slot = self._admissions.promise(address, now, resumes=resumes, not_before=not_before)
        return slot - now

    def missed(self, count: int = 1) -> None:
        """Clients that were told a slot never came; those known by address are counted here."""
        _MISSED.inc(count)

    def hard_refusal(self, now: float, address: str = "") -> int | None:
        """Whether an upgrade is to be sent away at the door: None, or `Retry-After` in seconds."""
        if self._admissions.is_hopeless(address, now):
            return self.send_away(now)
        return None

    def send_away(self, now: float) -> int:
        """Count an upgrade that is refused; `Retry-After` in seconds for it."""
        _REFUSED[Arrival.UPGRADE].inc()
        return ceil(self._admissions.beyond(now) - now)

    def statistics(self) -> AcceptStatistics:
        """A look at it."""
        pace = self._admissions.pace
        return AcceptStatistics(
            waiting=self._waiting,
            pace=pace,
            backlog=self.backlog,
            brake=self._brake,
            explained=self._explained,
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
_REFUSED: Final = {kind: instruments.ACCEPT_REFUSALS.labels(kind.name.lower()) for kind in Arrival}
