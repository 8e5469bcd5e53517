"""Who is received now, and who is told to come back at a moment of its own (PROTOCOL.md B.5).

Theory of operation
-------------------
There are two lines, each at the full rate. Whoever resumes a session is in the first, and each slot
of it pushes the slots of newcomers, that are yet to be given out, back by one. What was promised is
kept: a newcomer whose slot has come is received even if sessions resume at that moment.

                       slot has come ───────────────────────────▶ received (honoured)
    arrival ──┬─ none, early or late ──┬─ capacity is free now ──▶ received
              │                        └─ it isn't ──────────────▶ a slot of its own, come back then
              └─ the line is at its end (`is_hopeless`) ─────────▶ sent away at the door

What is free now isn't read from the lines but from the arrivals: a bucket that fills at the rate
and from which everybody who is received takes. So those without a slot get what those with one
leave, and a slot that is missed costs nothing. The two may together exceed the rate for as long as
the bucket may owe, no longer.
"""

from bisect import bisect_left, insort
from dataclasses import dataclass
from enum import Enum
from heapq import heappop, heappush
from typing import Final

from gateway.protocol.backoff import ReconnectSlots

# A client counts from when it was told, half a round trip later than we; what is left are
# timers that are a little fast, and the milliseconds that are cut off.
SLOT_EARLY: Final = 0.1
SLOT_LATE: Final = 5.0  # what a connect attempt may take
SLOT_FORGOTTEN: Final = 30.0  # after its moment; nobody comes that late because of a slot
SLOT_MIN: Final = 0.2  # from now; a client that is to come back sooner had better be received
PROMISED_MAX: Final = 50_000  # remembered by address; about 200 bytes each
BACKLOG_MAX: Final = 30.0  # seconds of slots; a person has left by then
# What may come at once though it exceeds the rate, so that ordinary traffic never meets all this.
BURST: Final = 0.1  # seconds of the rate
BURST_MIN: Final = 20.0
_GOLDEN: Final = 0.6180339887498949  # its multiples, modulo 1, are spread as evenly as can be


class Standing(Enum):
    """An arrival against the moment that it was told."""

    WITHOUT = "without"  # it was told none, or we forgot
    DUE = "due"
    EARLY = "early"
    LATE = "late"


def standing(slot: float | None, now: float) -> Standing:
    """How an arrival at `now` stands to its slot."""
    if slot is None:
        return Standing.WITHOUT
    if now < slot - SLOT_EARLY:
        return Standing.EARLY
    return Standing.DUE if now <= slot + SLOT_LATE else Standing.LATE


class CapacityBucket:
    """What is free right now of a capacity. Those with a right to come may take what isn't there.

    At most `burst` is saved up, and at most as much owed. Time is an argument.
    """

    __slots__ = ("_tokens", "_updated")

    def __init__(self) -> None:
        self._tokens = float("inf")  # cut to the burst when it is first asked
        self._updated = 0.0

    def is_free(self, now: float, rate: float, burst: float) -> bool:
        """Whether there is room for one more. A clock that went backwards adds nothing."""
        added = max(0.0, now - self._updated) * rate
        self._updated = max(now, self._updated)
        self._tokens = max(min(self._tokens + added, burst), -burst)
        return self._tokens >= 1.0

    def use(self, amount: float = 1.0) -> None:
        """Take that much, whether it is there or not. `is_free` comes first."""
        self._tokens -= amount


class PromisedSlots:
    """The slots that were told to clients of which we only know the address.

    Several clients may share an address, so it is a count of slots rather than a client's own: as
    many are let in from there as were promised, at the moments that were promised.
    """

    __slots__ = ("_by_address", "_order", "_size_max")

    def __init__(self, size_max: int) -> None:
        self._by_address: dict[str, list[float]] = {}  # in order
        self._order: list[tuple[float, str]] = []  # a heap, by when they are forgotten
        self._size_max = size_max

    def __len__(self) -> int:
        return sum(map(len, self._by_address.values()))

    def add(self, address: str, slot: float) -> bool:
        """Remember one; False when there are too many to remember already."""
        if len(self._order) >= self._size_max:
            return False
        insort(self._by_address.setdefault(address, []), slot)
        heappush(self._order, (slot, address))
        return True

    def is_due(self, address: str, now: float) -> bool:
        """Whether somebody from there may come now."""
        slots = self._by_address.get(address)
        if slots is None:
            return False
        index = bisect_left(slots, now - SLOT_LATE)
        return index < len(slots) and slots[index] <= now + SLOT_EARLY

    def take(self, address: str, now: float) -> float | None:
        """The slot of somebody who arrives from there, which is thereby used up.

        One that is due if there is any, else one that is past, else the next one.
        """
        slots = self._by_address.get(address)
        if slots is None:
            return None
        index = bisect_left(slots, now - SLOT_LATE)
        if index and (index == len(slots) or slots[index] > now + SLOT_EARLY):
            index -= 1
        slot = slots.pop(index)
        if not slots:
            del self._by_address[address]
        return slot

    def expire(self, now: float) -> int:
        """Forget those that are long past; returns how many of them nobody came for."""
        missed = 0
        while self._order and self._order[0][0] + SLOT_FORGOTTEN <= now:
            slot, address = heappop(self._order)
            slots = self._by_address.get(address)
            if slots is not None and slots[0] == slot:
                missed += 1
                del slots[0]
                if not slots:
                    del self._by_address[address]
        return missed


@dataclass(frozen=True, slots=True)
class Pace:
    """What a node can accept, in clients a second."""

    resumes: float
    connects: float
    share: float = 1.0
    """How much of that is promised as slots; the rest is for those who are here."""

    def of(self, resumes: bool) -> float:
        """One of the two."""
        return self.resumes if resumes else self.connects


def _burst(rate: float) -> float:
    return max(BURST_MIN, rate * BURST)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether an arrival is received. `slot` is the moment to tell it when it isn't."""

    standing: Standing
    slot: float | None = None


_RECEIVED: Final = {standing: Verdict(standing) for standing in Standing}


class Admissions:
    """Who is received now, and who is told to come back when. See the module."""

    __slots__ = ("_beyond", "_buckets", "_gate", "_lines", "promised")

    def __init__(self) -> None:
        # Of newcomers, of those who resume: indexed by `resumes`.
        self._lines = (ReconnectSlots(), ReconnectSlots())
        self._buckets = (CapacityBucket(), CapacityBucket())
        self._gate = CapacityBucket()
        self._beyond = 0.0
        self.promised = PromisedSlots(PROMISED_MAX)

    def arrive(
        self,
        resumes: bool,
        address: str,
        slot: float | None,
        now: float,
        pace: Pace,
        *,
        crowded: bool = False,
    ) -> Verdict:
        """Judge an arrival. `slot` is what it was told, None: look by its address.

        `crowded`: more wait already than should, so only those whose slot has come are received.
        """
        if slot is None and not resumes:
            slot = self.promised.take(address, now)
        came = standing(slot, now)
        rate = pace.of(resumes)
        bucket = self._buckets[resumes]
        is_free = bucket.is_free(now, rate, _burst(rate))
        if came is Standing.DUE or (is_free and not crowded):
            bucket.use()
            if resumes:
                # It goes before newcomers, and they wait for it.
                newcomers = self._buckets[False]
                newcomers.is_free(now, pace.connects, _burst(pace.connects))
                newcomers.use(pace.connects / pace.resumes)
            return _RECEIVED[came]
        return Verdict(came, self.refuse(resumes, None if resumes else address, now, pace))

    def refuse(self, resumes: bool, address: str | None, now: float, pace: Pace) -> float:
        """When somebody who isn't received is to come back."""
        if self._lines[resumes].backlog(now) < BACKLOG_MAX:
            return self.promise(resumes, address, now, pace)
        return self.beyond(now)

    def promise(
        self,
        resumes: bool,
        address: str | None,
        now: float,
        pace: Pace,
        not_before: float = 0.0,
    ) -> float:
        """Give out the next free slot, however late; remember it for `address`, if any."""
        rate = pace.of(resumes) * pace.share
        slot = self._lines[resumes].take(now, rate, max(not_before, SLOT_MIN))
        if resumes:
            self._lines[False].push_back(now, 1.0 / rate)
        if address is not None:
            self.promised.add(address, slot)
        return slot

    def beyond(self, now: float) -> float:
        """A moment behind all slots, nobody's own: reserving it would make the line endless.

        They are spread evenly over as long again as the line is.
        """
        self._beyond = (self._beyond + _GOLDEN) % 1.0
        return now + max(self.backlog(now), 1.0) * (1.0 + self._beyond)

    def is_hopeless(self, address: str, now: float, pace: Pace) -> bool:
        """Whether someone of whom only the address is known should be sent away at the door.

        The line is at its end, and this is neither an address with a slot now nor is there room for
        somebody who may have a right to come: as many as can be received are let in to say so.
        """
        if self.backlog(now) < BACKLOG_MAX or self.promised.is_due(address, now):
            return False
        rate = max(pace.connects, pace.resumes)
        if not self._gate.is_free(now, rate, _burst(rate)):
            return True
        self._gate.use()
        return False

    def backlog(self, now: float) -> float:
        """For how many seconds slots are given out."""
        return max(line.backlog(now) for line in self._lines)
