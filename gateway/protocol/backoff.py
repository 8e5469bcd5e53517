"""From a client's own backoff to how long its session is kept; from capacity to reconnect slots.

Theory of operation, retention (PROTOCOL.md B.3)
------------------------------------------------
A client declares how it retries. Before its attempt number n = 0, 1, … it waits at most
`longest_delay(n)`, and an attempt may take `timeout` to fail. So the last attempt that it wants
covered has ended, one way or the other, at the latest

    detection + Σ (longest_delay(k) + timeout)  for k = 0 … attempts - 1

after its line broke, where `detection` is how long the client may take to notice. Its session must
live that long and a little more (`slack`). The result is clamped: a floor, because a session that
ends at once serves nobody, and a ceiling, because a declaration is not an order. Whatever the
formula says, a session never ends before the moment at which the server itself told its client to
come back (`extend`).

Theory of operation, slots (B.5)
--------------------------------
A node that can accept `rate` clients a second gives each client that must come back the next free
moment of that rate; so a herd arrives as fast as it can be received and no faster, in an order, not
at random. Handing out a slot is one addition. Slots that nobody used are not saved up: what the
node could have accepted a second ago is gone.
"""

from dataclasses import dataclass
from typing import Final, Literal, Protocol

ATTEMPTS_MAX: Final = 64  # declared ones that are looked at; the ceiling is reached long before


class Backoff(Protocol):
    """How a client retries, as far as retention goes. Times in seconds."""

    @property
    def attempts(self) -> int:
        """How many failed attempts the client wants covered."""

    @property
    def timeout(self) -> float:
        """How long one attempt may take."""

    def longest_delay(self, attempt: int) -> float:
        """The longest wait before attempt number `attempt`, from 0."""


@dataclass(frozen=True, slots=True)
class DeclaredBackoff:
    """A schedule by formula, as clients declare it (B.1): `min · factor^n`, at most `max`.

    `jitter` is "full" (anything from zero to the delay), "none", or the fraction of the delay by
    which it varies up and down.
    """

    min: float
    max: float
    factor: float = 2.0
    jitter: float | Literal["full", "none"] = "full"
    attempts: int = 5
    timeout: float = 5.0

    def longest_delay(self, attempt: int) -> float:
        """See `Backoff`."""
        try:
            delay = min(self.min * self.factor**attempt, self.max)
        except OverflowError:
            delay = self.max
        # Full jitter only ever shortens the delay.
        return delay if isinstance(self.jitter, str) else delay * (1.0 + self.jitter)


@dataclass(frozen=True, slots=True)
class TabledBackoff:
    """A schedule known by its longest delays, as stock SDKs have them; the last one repeats."""

    delays: tuple[float, ...]
    attempts: int = 5
    timeout: float = 5.0

    def longest_delay(self, attempt: int) -> float:
        """See `Backoff`."""
        return self.delays[min(attempt, len(self.delays) - 1)]


# centrifuge-js 5: full jitter over 0.5 s · 2^n plus a base of 0.5 s, at most 20 s (B.3).
CENTRIFUGE_JS: Final = TabledBackoff((1.0, 1.5, 2.5, 4.5, 8.5, 16.5, 20.0))


@dataclass(frozen=True, slots=True)
class RetentionBounds:
    """Between what a session's retention lies, in seconds."""

    floor: float = 10.0
    ceiling: float = 300.0
    slack: float = 2.0  # for scheduling and for the handshake of the attempt that succeeds


def needed_retention(backoff: Backoff, detection: float, slack: float) -> float:
    """By when, after the loss, the last wanted attempt has ended, in seconds."""
    attempts = min(max(backoff.attempts, 0), ATTEMPTS_MAX)
    waits = sum(backoff.longest_delay(k) + backoff.timeout for k in range(attempts))
    return detection + waits + slack


def retention(
    backoff: Backoff, detection: float, bounds: RetentionBounds, pressure: float = 0.0
) -> float:
    """How long to keep a detached session, in seconds.

    `pressure` from 0 to 1 takes away from what lies above the floor: at 1 the floor is all.
    """
    wanted = needed_retention(backoff, detection, bounds.slack)
    clamped = min(max(wanted, bounds.floor), bounds.ceiling)
    return bounds.floor + (clamped - bounds.floor) * (1.0 - min(max(pressure, 0.0), 1.0))


class ReconnectSlots:
    """Hands out the moments at which clients may come back. Times in seconds of one clock."""

    __slots__ = ("_next",)

    def __init__(self) -> None:
        self._next = 0.0

    def take(self, now: float, rate: float, not_before: float = 0.0) -> float:
        """The next free moment at `rate` clients a second, at least `not_before` from now."""
        slot = max(self._next, now + not_before)
        self._next = slot + 1.0 / rate
        return slot

    def backlog(self, now: float) -> float:
        """How many seconds of slots are given out already."""
        return max(0.0, self._next - now)
