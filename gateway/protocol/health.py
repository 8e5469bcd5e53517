"""How well a line is: round trips, a ping's deadline, one word for people (PROTOCOL.md B.4).

Theory of operation
-------------------
Each answered ping gives a round trip, and RFC 6298 says how to follow it: a smoothed time and a
smoothed variation. The next answer is late when it takes longer than `srtt + 4 · rttvar`, within
bounds: a floor, because phones sleep for a second or two, and a ceiling, because a person waits.
One late answer isn't a verdict: a probe goes out at once, and only when that too stays unanswered
for as long the line is dead.

        ┌────────────── pong ◀───────────────┐
        ▼                                    │
    IDLE ──ping──▶ WAITING ──late──▶ PROBING ──late──▶ DEAD
                      │  ▲
                      └──┘ pong

Deadlines are moments of the caller's clock. When the caller itself stood still, it says so
(`excuse`), and the time counts for nobody: a stalled process must not declare its clients dead.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Final

NEVER: Final = float("inf")

_ALPHA: Final = 1 / 8  # RFC 6298, 2.3
_BETA: Final = 1 / 4
_K: Final = 4  # RFC 6298, 2: RTO = SRTT + K · RTTVAR

# Upper bounds of srtt and of srtt + 2 · rttvar in seconds, best first. Above the last one: poor.
_EXCELLENT: Final = (0.10, 0.15)
_GOOD: Final = (0.30, 0.50)
_FAIR: Final = (0.80, 1.50)
# An unanswered ping in the last few costs a grade or two, however fast the others were.
_MISSES_REMEMBERED: Final = 8


class Quality(Enum):
    """A line's health in a word; the values are on the wire."""

    EXCELLENT = "excellent"
    GOOD = "good"
    FAIR = "fair"
    POOR = "poor"


class LineState(Enum):
    """What a line waits for."""

    IDLE = "idle"
    WAITING = "waiting"
    PROBING = "probing"
    DEAD = "dead"


@dataclass(frozen=True, slots=True)
class DeadlineBounds:
    """Between what the deadline of a ping lies, in seconds."""

    floor: float = 2.0
    ceiling: float = 10.0


class LineHealth:
    """The health of one line."""

    __slots__ = ("_asked_at", "_due", "_misses", "_rttvar", "_srtt", "state")

    def __init__(self) -> None:
        self.state = LineState.IDLE
        self._srtt = 0.0  # 0: not measured yet
        self._rttvar = 0.0
        self._asked_at = 0.0
        self._due = NEVER
        self._misses = 0  # a bit for each of the last pings, set when it was late

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

    def asked(self, now: float, bounds: DeadlineBounds) -> None:
        """A ping was sent."""
        if self.state is LineState.IDLE:
            self.state = LineState.WAITING
            self._asked_at = now
            self._due = now + self.deadline(bounds)

    def answered(self, now: float) -> bool:
        """A pong came; False when none was due."""
        if self.state is LineState.IDLE or self.state is LineState.DEAD:
            return False
        if self.state is LineState.WAITING:
            self._measure(max(now - self._asked_at, 1e-6))
            self._misses = (self._misses << 1) & ((1 << _MISSES_REMEMBERED) - 1)
        # A pong to a probe may belong to the ping before it: Karn's rule, no measurement.
        self.state = LineState.IDLE
        self._due = NEVER
        return True

    def _measure(self, rtt: float) -> None:
        if not self._srtt:
            self._srtt, self._rttvar = rtt, rtt / 2  # RFC 6298, 2.2
            return
        self._rttvar = (1 - _BETA) * self._rttvar + _BETA * abs(self._srtt - rtt)
        self._srtt = (1 - _ALPHA) * self._srtt + _ALPHA * rtt

    def late(self, now: float, bounds: DeadlineBounds) -> LineState:
        """Called when `due` has passed. PROBING: send a ping at once. DEAD: give the line up."""
        if now < self._due:
            return self.state
        if self.state is LineState.WAITING:
            self.state = LineState.PROBING
            self._misses = (self._misses << 1 | 1) & ((1 << _MISSES_REMEMBERED) - 1)
            self._due = now + self.deadline(bounds)
        elif self.state is LineState.PROBING:
            self.state = LineState.DEAD
            self._due = NEVER
        return self.state

    def excuse(self, seconds: float) -> None:
        """We stood still for so long ourselves: nobody is late because of that."""
        if self._due != NEVER:
            self._due += seconds
            self._asked_at += seconds

    @property
    def quality(self) -> Quality:
        """The line in a word. GOOD before anything was measured."""
        misses = self._misses.bit_count()
        if not self._srtt and not misses:
            return Quality.GOOD
        spread = self._srtt + 2 * self._rttvar
        grade = 3
        for index, (srtt, worst) in enumerate((_EXCELLENT, _GOOD, _FAIR)):
            if self._srtt <= srtt and spread <= worst:
                grade = index
                break
        grade = min(grade + misses, 3)
        return (Quality.EXCELLENT, Quality.GOOD, Quality.FAIR, Quality.POOR)[grade]
