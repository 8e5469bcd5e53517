"""How well a line is: round trips, a ping's deadline, one word for people (PROTOCOL.md B.4).

Rules
-----
1. What a line waits for is in `TRANSITIONS`. An event without an entry is a mistake of the caller
   and raises `AssertionError`.
2. Every ping is answered, and a socket keeps order; so the first answer is that to the first ping.
3. Deadlines are moments of the caller's clock, in seconds. When the caller itself stood still, it
   says so (`excuse`), and the time counts for nobody: a stalled process must not declare its
   clients dead.

Theory of operation
-------------------
Each answered ping gives a round trip, and RFC 6298 says how to follow it: a smoothed time and a
smoothed variation. The next answer is late when it takes longer than `srtt + 4 · rttvar`, within
bounds: a floor, because phones sleep for a second or two, and a ceiling, because a person waits.
One late answer isn't a verdict: a probe goes out at once, and only when nothing is heard until that
is late as well, the line is dead. An answer that comes late, but comes, is measured like any other,
and so the deadline follows a line that became slow. (TCP must not do that with an acknowledgement,
as it may be that of either copy of a segment; by rule 2 there is no doubt here.)

One ping is timed at a time. One that is sent while another is under way, be it the probe or because
the session wants an acknowledgement, is counted but not timed; and while answers to those are still
to come, the next one isn't timed either.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Final

NEVER: Final = float("inf")

_ALPHA: Final = 1 / 8  # RFC 6298, 2.3
_BETA: Final = 1 / 4
_K: Final = 4  # RFC 6298, 2: RTO = SRTT + K · RTTVAR
_ROUND_TRIP_MIN: Final = 1e-6  # 0 stands for "not measured"

# Upper bounds of srtt and of srtt + 2 · rttvar in seconds, best first. Above the last one: poor.
_GRADES: Final = ((0.10, 0.15), (0.30, 0.50), (0.80, 1.50))
# Each unanswered ping of the last few costs a grade, however fast the others were.
_MISSES_REMEMBERED: Final = 8
_MISSES_MASK: Final = (1 << _MISSES_REMEMBERED) - 1


class Quality(Enum):
    """A line's health in a word; the values are on the wire."""

    __hash__ = object.__hash__  # see `LineState`

    EXCELLENT = "excellent"
    GOOD = "good"
    FAIR = "fair"
    POOR = "poor"


_BEST_FIRST: Final = tuple(Quality)
_UNMEASURED: Final = _BEST_FIRST.index(Quality.GOOD)
_WORST: Final = _BEST_FIRST.index(Quality.POOR)


class LineState(Enum):
    """What a line waits for."""

    # Members are their own only equals. Enum's hash is a function in Python, and five times as
    # slow; both of a line's tables are looked into with every ping and every answer.
    __hash__ = object.__hash__

    IDLE = "idle"
    WAITING = "waiting"
    PROBING = "probing"
    DEAD = "dead"


class LineEvent(Enum):
    """What happens on a line."""

    __hash__ = object.__hash__

    PING = "ping"
    PONG = "pong"
    LATE = "late"


TRANSITIONS: Final[dict[LineState, dict[LineEvent, LineState]]] = {
    LineState.IDLE: {
        LineEvent.PING: LineState.WAITING,
        LineEvent.PONG: LineState.IDLE,  # to a ping that was sent while another was under way
    },
    LineState.WAITING: {
        LineEvent.PING: LineState.WAITING,  # the session wants an acknowledgement
        LineEvent.PONG: LineState.IDLE,
        LineEvent.LATE: LineState.PROBING,
    },
    LineState.PROBING: {
        LineEvent.PING: LineState.PROBING,  # the probe
        LineEvent.PONG: LineState.IDLE,
        LineEvent.LATE: LineState.DEAD,
    },
    # Its socket is about to be closed, and what still happens there changes nothing.
    LineState.DEAD: {
        LineEvent.PING: LineState.DEAD,
        LineEvent.PONG: LineState.DEAD,
    },
}


# A member of an enumeration is found by its name each time; these are asked for with every ping.
_IDLE: Final = LineState.IDLE
_WAITING: Final = LineState.WAITING
_DEAD: Final = LineState.DEAD
_PING: Final = LineEvent.PING
_PONG: Final = LineEvent.PONG


@dataclass(frozen=True, slots=True)
class DeadlineBounds:
    """Between what the deadline of a ping lies, in seconds."""

    floor: float = 2.0
    ceiling: float = 10.0


class LineHealth:
    """The health of one line."""

    __slots__ = (
        "_asked_at",
        "_due",
        "_is_timed",
        "_misses",
        "_rttvar",
        "_srtt",
        "_under_way",
        "state",
    )

    def __init__(self) -> None:
        self.state = LineState.IDLE
        self._srtt = 0.0  # 0: not measured yet
        self._rttvar = 0.0
        self._asked_at = 0.0
        self._is_timed = False  # whether the next answer is to the ping of `_asked_at`
        self._under_way = 0  # pings without an answer yet
        self._due = NEVER
        self._misses = 0  # a bit for each of the last pings, set when its answer was late

    @property
    def rtt(self) -> float:
        """The smoothed round trip in seconds, 0 before the first."""
        return self._srtt

    @property
    def due(self) -> float:
        """When the answer that is waited for is late; infinity when none is."""
        return self._due

    def deadline(self, bounds: DeadlineBounds) -> float:
        """How long an answer may take now, in seconds."""
        if not self._srtt:
            return bounds.ceiling
        return min(max(self._srtt + _K * self._rttvar, bounds.floor), bounds.ceiling)

    def _after(self, event: LineEvent) -> LineState:
        following = TRANSITIONS[self.state].get(event)
        if following is None:
            raise AssertionError(f"{event} can't happen on a line that is {self.state}")
        return following

    def asked(self, now: float, bounds: DeadlineBounds) -> None:
        """A ping was sent: a regular one, one for an acknowledgement, or the probe."""
        before, self.state = self.state, self._after(_PING)
        if before is _IDLE:
            self._asked_at = now
            self._is_timed = self._under_way == 0
            self._due = now + self.deadline(bounds)
        self._under_way += 1

    def answered(self, now: float) -> bool:
        """A pong came; False when none was due."""
        before, self.state = self.state, self._after(_PONG)
        if self._under_way:
            self._under_way -= 1
        if before is _IDLE or before is _DEAD:
            return False
        if self._is_timed:
            self._is_timed = False
            self._measure(max(now - self._asked_at, _ROUND_TRIP_MIN))
        if before is _WAITING:
            self._misses = self._misses << 1 & _MISSES_MASK
        self._due = NEVER
        return True

    def _measure(self, rtt: float) -> None:
        if not self._srtt:
            self._srtt, self._rttvar = rtt, rtt / 2  # RFC 6298, 2.2
            return
        self._rttvar = (1 - _BETA) * self._rttvar + _BETA * abs(self._srtt - rtt)
        self._srtt = (1 - _ALPHA) * self._srtt + _ALPHA * rtt

    def late(self, now: float, bounds: DeadlineBounds) -> LineState | None:
        """Called when `due` has passed. PROBING: send a ping at once. DEAD: give the line up.

        None when it hasn't passed, after all: nothing is to be done.
        """
        if now < self._due:
            return None
        self.state = self._after(LineEvent.LATE)
        if self.state is LineState.PROBING:
            self._misses = (self._misses << 1 | 1) & _MISSES_MASK
            self._due = now + self.deadline(bounds)
        else:
            self._due = NEVER
        return self.state

    def excuse(self, seconds: float) -> None:
        """We stood still for so long ourselves: nobody is late because of that."""
        if self._due != NEVER:
            self._due += seconds
            self._is_timed = False  # the answer may have lain here unread

    @property
    def quality(self) -> Quality:
        """The line in a word. GOOD before anything was measured."""
        grade = self._grade() if self._srtt else _UNMEASURED
        return _BEST_FIRST[min(grade + self._misses.bit_count(), _WORST)]

    def _grade(self) -> int:
        spread = self._srtt + 2 * self._rttvar
        for grade, (srtt, worst) in enumerate(_GRADES):
            if self._srtt <= srtt and spread <= worst:
                return grade
        return _WORST
