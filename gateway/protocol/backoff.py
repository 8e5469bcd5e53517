"""From a client's own backoff to how long its session is kept; from capacity to reconnect slots.

Theory of operation, retention (PROTOCOL.md B.3)
------------------------------------------------
A client declares how it retries. Before its attempt number n = 0, 1, … it waits at most
`longest_delay(n)`, and an attempt may take `timeout` to fail. So the last attempt that it wants
covered has ended, one way or the other, at the latest

    detection + Σ (longest_delay(k) + timeout)  for k = 0 … attempts - 1

after its line broke, where `detection` is how long the client may take to notice. Its session must
live that long and a little more (`slack`). The result is clamped: a floor, because a session that
ends at once serves nobody, and a ceiling, because a declaration is not an order. So absurd ones are
no error; they are brought to where they mean something (`DeclaredBackoff`). Whatever the formula
says, a session never ends before the moment at which the server itself told its client to come back
(`Session.extend`).

Theory of operation, slots (B.5)
--------------------------------
A node that can accept `rate` clients a second gives each client that must come back the next free
moment of that rate; so a herd arrives as fast as it can be received and no faster, in an order, not
at random. Handing out a slot is one addition. Slots that nobody used are not saved up: what the
node could have accepted a second ago is gone.
"""

from collections.abc import Hashable
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal, Protocol

# Wanted attempts that are added up one by one; what is longer counts by its longest delay.
ATTEMPTS_SUMMED: Final = 64
# What a declaration can come to. No retention reaches any of it.
DELAY_MAX: Final = 86_400.0
FACTOR_MAX: Final = 1000.0
ATTEMPTS_MAX: Final = 10_000


class Backoff(Hashable, Protocol):
    """How a client retries, as far as retention goes: a value. Times in seconds."""

    @property
    def attempts(self) -> int:
        """How many failed attempts the client wants covered."""

    @property
    def timeout(self) -> float:
        """How long one attempt may take."""

    def longest_delay(self, attempt: int) -> float:
        """The longest wait before attempt number `attempt`, from 0."""


def _between(low: float, value: float, high: float) -> float:
    """`value`, or the bound that it is beyond; what is not a number is beyond the lower one."""
    return min(max(low, value), high)


@dataclass(frozen=True, slots=True)
class DeclaredBackoff:
    """A schedule by formula, as clients declare it (B.1): `min · factor^n`, at most `max`.

    `jitter` is "full" (anything from zero to the delay), "none", or the fraction of the delay by
    which it varies up and down. Values that mean nothing become the nearest that do, so delays
    never shrink from one attempt to the next.
    """

    min: float
    max: float
    factor: float = 2.0
    jitter: float | Literal["full", "none"] = "full"
    attempts: int = 8
    timeout: float = 5.0

    def __post_init__(self) -> None:
        def put(name: str, value: float) -> None:
            object.__setattr__(self, name, value)

        put("min", _between(0.0, self.min, DELAY_MAX))
        put("max", _between(0.0, self.max, DELAY_MAX))
        put("factor", _between(1.0, self.factor, FACTOR_MAX))
        put("attempts", min(max(0, self.attempts), ATTEMPTS_MAX))
        put("timeout", _between(0.0, self.timeout, DELAY_MAX))
        if not isinstance(self.jitter, str):
            put("jitter", _between(0.0, self.jitter, 1.0))

    def longest_delay(self, attempt: int) -> float:
        """See `Backoff`."""
        try:
            delay = min(self.min * self.factor**attempt, self.max)
        except OverflowError:
            delay = self.max if self.min else 0.0
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


# The defaults of the stock SDKs, from their sources at the version named. `timeout` is how long
# they wait for a socket to open.
#
# Most have full jitter on top of a base: min(max, min + random(0 … min(max, min · 2^n))).
_FROM_HALF_A_SECOND: Final = (1.0, 1.5, 2.5, 4.5, 8.5, 16.5, 20.0)
# 5.8.0, src/utils.ts `backoff`; minReconnectDelay 500, maxReconnectDelay 20000, timeout 5000 (ms).
CENTRIFUGE_JS: Final = TabledBackoff(_FROM_HALF_A_SECOND)
# 0.7.0, utils.py `_backoff`; min_reconnect_delay 0.1, max_reconnect_delay 20.0, timeout 5.0.
CENTRIFUGE_PYTHON: Final = TabledBackoff((0.2, 0.3, 0.5, 0.9, 1.7, 3.3, 6.5, 12.9, 20.0))
# 0.12.1, reconnect.go: anything from 0.2 s to 0.2 s · 2^n, with n = 1 after a loss, at most 20 s
# (github.com/jpillora/backoff 1.0.0); HandshakeTimeout 1 s.
CENTRIFUGE_GO: Final = TabledBackoff((0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 20.0), timeout=1.0)
# 0.16.0, client.dart `backoffDelay`; minReconnectDelay 500 ms, maxReconnectDelay 20 s. Nothing
# limits the opening of a socket but the system; timeout, 10 s, is for the reply to `connect`.
CENTRIFUGE_DART: Final = TabledBackoff(_FROM_HALF_A_SECOND, timeout=10.0)
# 0.9.0, Client.swift `getBackoffDelay`; minReconnectDelay 0.5, maxReconnectDelay 20.0; the
# `timeoutInterval` in WebSocket.swift 5.
CENTRIFUGE_SWIFT: Final = TabledBackoff(_FROM_HALF_A_SECOND)
# 0.7.0, Backoff.java; minReconnectDelay 500, maxReconnectDelay 20000 (ms); OkHttp's connect timeout
# 10 s.
CENTRIFUGE_JAVA: Final = TabledBackoff(_FROM_HALF_A_SECOND, timeout=10.0)


@dataclass(frozen=True, slots=True)
class RetentionBounds:
    """Between what a session's retention lies, in seconds."""

    floor: float = 10.0
    ceiling: float = 300.0
    slack: float = 2.0  # for scheduling and for the handshake of the attempt that succeeds


# Asked with every ping, of clients that declare the same few schedules.
@lru_cache(maxsize=256)
def _longest_wait(backoff: Backoff) -> float:
    summed = min(backoff.attempts, ATTEMPTS_SUMMED)
    wait = sum(backoff.longest_delay(k) + backoff.timeout for k in range(summed))
    further = backoff.attempts - summed
    if further:
        wait += further * (backoff.longest_delay(backoff.attempts - 1) + backoff.timeout)
    return wait


def needed_retention(backoff: Backoff, detection: float, slack: float) -> float:
    """By when, after the loss, the last wanted attempt has ended, in seconds."""
    return detection + _longest_wait(backoff) + slack


def retention(
    backoff: Backoff, detection: float, bounds: RetentionBounds, pressure: float = 0.0
) -> float:
    """How long to keep a detached session, in seconds.

    `pressure` from 0 to 1 takes away from what lies above the floor: at 1 the floor is all.
    """
    wanted = needed_retention(backoff, detection, bounds.slack)
    above = _between(bounds.floor, wanted, bounds.ceiling) - bounds.floor
    return bounds.floor + above * (1.0 - _between(0.0, pressure, 1.0))


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

    def push_back(self, now: float, seconds: float) -> None:
        """So much of the time to come is somebody else's."""
        self._next = max(self._next, now) + seconds

    def backlog(self, now: float) -> float:
        """How many seconds of slots are given out already."""
        return max(0.0, self._next - now)
