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
from enum import IntEnum
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
# Seconds that arrivals may have to wait for their turn. To let them is cheaper than to refuse them,
# which costs half as much as receiving them and has to be done again; but clients wait for five.
WAIT_MAX: Final = 3.0
BACKLOG_MAX: Final = 30.0  # seconds of slots; a person has left by then
# What may come at once though it exceeds the rate, so that ordinary traffic never meets all this.
BURST: Final = 0.1  # seconds of the rate
BURST_MIN: Final = 20.0
_GOLDEN: Final = 0.6180339887498949  # its multiples, modulo 1, are spread as evenly as can be


class Standing(IntEnum):
    """An arrival against the moment that it was told."""

    WITHOUT = 0  # it was told none, or we forgot
    EARLY = 1
    DUE = 2
    LATE = 3


def standing(slot: float | None, now: float) -> Standing:
    """How an arrival at `now` stands to its slot."""
    if slot is None:
        return Standing.WITHOUT
    if now < slot - SLOT_EARLY:
        return Standing.EARLY
    return Standing.DUE if now <= slot + SLOT_LATE else Standing.LATE


class CapacityBucket:
    """What is free right now of a capacity. Those with a right to come may take what isn't there.

    At most `burst` is saved up, and at most as much owed. Time is an argument; one that goes
    backwards adds nothing.
    """

    __slots__ = ("_burst", "_rate", "_tokens", "_updated")

    def __init__(self) -> None:
        self._rate = 0.0
        self._burst = 0.0
        self._tokens = float("inf")  # cut to the burst at first use
        self._updated = float("-inf")

    def set_rate(self, rate: float) -> None:
        """From now on so much comes in per second."""
        self._rate = rate
        self._burst = max(BURST_MIN, rate * BURST)

    def take(self, now: float) -> bool:
        """Take one if there is one."""
        tokens = self._filled(now)
        if tokens < 1.0:
            return False
        self._tokens = tokens - 1.0
        return True

    def owe(self, now: float, amount: float = 1.0) -> None:
        """Take so much, whether it is there or not."""
        self._tokens = max(self._filled(now) - amount, -self._burst)

    def _filled(self, now: float) -> float:
        tokens = self._tokens
        if now > self._updated:
            tokens = min(tokens + (now - self._updated) * self._rate, self._burst)
            self._tokens = tokens
            self._updated = now
        return tokens


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
        """The slot by which to judge somebody who arrives from there.

        One that is due, else one that is past, and that is thereby used up; else the next one,
        which stays: this may be another client than the one to which it was told.
        """
        slots = self._by_address.get(address)
        if slots is None:
            return None
        index = bisect_left(slots, now - SLOT_LATE)
        if index == len(slots) or slots[index] > now + SLOT_EARLY:
            if not index:
                return slots[0]
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
    """What a node can accept, and what it promises, in clients a second."""

    resumes: float
    connects: float
    resume_slots: float
    connect_slots: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether an arrival is received. `slot` is the moment to tell it when it isn't."""

    standing: Standing
    slot: float | None = None


_RECEIVED: Final = {standing: Verdict(standing) for standing in Standing}
_ORDINARY: Final = _RECEIVED[Standing.WITHOUT]


class Admissions:
    """Who is received now, and who is told to come back when. See the module."""

    __slots__ = ("_beyond", "_gate", "_lines", "_newcomers", "_pace", "_resumers", "promised")

    def __init__(self, pace: Pace) -> None:
        self._lines = (ReconnectSlots(), ReconnectSlots())  # of newcomers, of those who resume
        self._newcomers = CapacityBucket()
        self._resumers = CapacityBucket()
        self._gate = CapacityBucket()
        self._beyond = 0.0
        self._pace = pace
        self.promised = PromisedSlots(PROMISED_MAX)
        self.set_pace(pace)

    def set_pace(self, pace: Pace) -> None:
        """From now on so many can be accepted. Slots that were given out stay."""
        self._pace = pace
        self._newcomers.set_rate(pace.connects)
        self._resumers.set_rate(pace.resumes)
        self._gate.set_rate(max(pace.connect_slots, pace.resume_slots))

    @property
    def pace(self) -> Pace:
        """The one in force."""
        return self._pace

    def connect(self, address: str, slot: float | None, now: float, waited: float = 0.0) -> Verdict:
        """Judge a newcomer. `slot` is what it was told; None: look by its address.

        `waited`: for how long others wait for their turn, in seconds. Beyond `WAIT_MAX` only those
        whose slot has come are received.
        """
        is_its_own = slot is not None
        if slot is None:
            slot = self.promised.take(address, now)
            if slot is None and waited <= WAIT_MAX and self._newcomers.take(now):
                return _ORDINARY
        came = standing(slot, now)
        if came is Standing.DUE:
            self._newcomers.owe(now)
        elif waited > WAIT_MAX or not self._newcomers.take(now):
            # Not before those have had their turn who wait now.
            return Verdict(came, self._refuse(address, now, waited, resumes=False))
        elif came is Standing.EARLY and not is_its_own:
            return _ORDINARY  # who knows whether that slot was told to this one
        return _RECEIVED[came]

    def resume(self, slot: float | None, now: float) -> Verdict:
        """Judge somebody who resumes a session. `slot` is what it was told.

        However many wait: by now it costs less to receive this one than to refuse it.
        """
        came = standing(slot, now)
        if came is Standing.DUE:
            self._resumers.owe(now)
        elif not self._resumers.take(now):
            return Verdict(came, self._refuse(None, now, 0.0, resumes=True))
        # It goes before newcomers, and they wait for it.
        self._newcomers.owe(now, self._pace.connects / self._pace.resumes)
        return _RECEIVED[came]

    def _refuse(
        self, address: str | None, now: float, not_before: float, *, resumes: bool
    ) -> float:
        """When somebody who isn't received is to come back."""
        if self._lines[resumes].backlog(now) < BACKLOG_MAX:
            return self.promise(address, now, resumes=resumes, not_before=not_before)
        return self.beyond(now)

    def promise(
        self, address: str | None, now: float, *, resumes: bool, not_before: float = 0.0
    ) -> float:
        """Give out the next free slot, however late; remember it for `address`, if any."""
        rate = self._pace.resume_slots if resumes else self._pace.connect_slots
        slot = self._lines[resumes].take(now, rate, max(not_before, SLOT_MIN))
        if resumes:
            self._lines[False].push_back(slot, 1.0 / rate)
        if address is not None:
            self.promised.add(address, slot)
        return slot

    def beyond(self, now: float) -> float:
        """A moment behind all slots, nobody's own: reserving it would make the line endless.

        They are spread evenly over as long again as the line is.
        """
        self._beyond = (self._beyond + _GOLDEN) % 1.0
        return now + max(self.backlog(now), 1.0) * (1.0 + self._beyond)

    def is_hopeless(self, address: str, now: float) -> bool:
        """Whether someone of whom only the address is known should be sent away at the door.

        The line is at its end, and this is neither an address with a slot now nor is there room for
        somebody who may have a right to come: as many as can be received are let in to say so.
        """
        if self.backlog(now) < BACKLOG_MAX or self.promised.is_due(address, now):
            return False
        return not self._gate.take(now)

    def backlog(self, now: float) -> float:
        """For how many seconds slots are given out."""
        newcomers, resumers = self._lines
        return max(newcomers.backlog(now), resumers.backlog(now))
