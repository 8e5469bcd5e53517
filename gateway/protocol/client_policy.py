"""How a client of the session layer retries, and how it reads a close frame (PROTOCOL.md B.1, A.8).

The next attempt is made when the server says (`retry`): that moment is one client's own, so nothing
is added to it. Without one, the declared backoff and its jitter decide.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple

import msgspec
from msgspec import Struct

from gateway.protocol.backoff import DeclaredBackoff
from gateway.protocol.session import TailLimits
from gateway.protocol.session_frames import BackoffDeclaration, Milliseconds

ABNORMAL_CLOSURE: Final = 1006  # RFC 6455, 7.4.1: the line broke, or never was
MESSAGE_TOO_BIG: Final = 1009  # would be too big again

# Close codes that end only the line; after any other one the session is over.
_RESUMABLE: Final = frozenset({1001, 1006, *range(1011, 1016), 3001, 3008, 3009, 3012, 3013})
# A server may spread a herd over minutes; more is a mistake that would keep a client away for ever.
RETRY_MAX: Final = 3600.0

DEFAULT_BACKOFF: Final = DeclaredBackoff(min=0.5, max=20.0, attempts=8)
# The same as a server's: what one end may hold, the other may too.
DEFAULT_TAIL: Final = TailLimits()


@dataclass(frozen=True, slots=True)
class SessionPolicy:
    """How a client behaves. One of these serves any number of sessions; times are in seconds.

    `chance` gives random numbers in [0, 1) for the jitter.
    """

    chance: Callable[[], float]
    backoff: DeclaredBackoff = DEFAULT_BACKOFF
    tail: TailLimits = DEFAULT_TAIL
    # Acknowledge after so much, counted from the last word about it (B.1).
    ack_frames: int = 32
    ack_bytes: int = 32 * 1024
    # A line on which nothing came for the ping interval and this much is given up.
    patience: float = 10.0

    def delay(self, attempt: int) -> float:
        """How long to wait before an attempt, from 0, that the server gave no moment for."""
        backoff = self.backoff
        longest = backoff.longest_delay(attempt)
        if backoff.jitter == "none":
            return longest
        if backoff.jitter == "full":
            return longest * self.chance()
        shortest = longest * (1.0 - backoff.jitter) / (1.0 + backoff.jitter)
        return max(0.0, shortest + (longest - shortest) * self.chance())

    def declaration(self) -> BackoffDeclaration:
        """The backoff as `open` tells it."""
        backoff = self.backoff
        return BackoffDeclaration(
            min=backoff.min * 1000,
            max=backoff.max * 1000,
            factor=backoff.factor,
            jitter=backoff.jitter,
            attempts=backoff.attempts,
            timeout=backoff.timeout * 1000,
        )


class CloseAdvice(NamedTuple):
    """What a close frame tells a client to do; `retry` in seconds."""

    reason: str
    resume: bool
    reconnect: bool
    retry: float | None


class _CloseReason(Struct, frozen=True, gc=False):
    reason: str = ""
    reconnect: bool | None = None
    retry: Milliseconds | None = None


_decode_reason = msgspec.json.Decoder(_CloseReason).decode


def close_advice(code: int, reason: str) -> CloseAdvice:
    """Read a close frame: the code's range, unless the reason says otherwise (A.8, A.12)."""
    try:
        advice = _decode_reason(reason)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        advice = _CloseReason(reason)
    reconnect = advice.reconnect
    if reconnect is None:
        reconnect = code != MESSAGE_TOO_BIG and not (3500 <= code < 4000 or 4500 <= code < 5000)
    retry = None if advice.retry is None else min(advice.retry / 1000, RETRY_MAX)
    return CloseAdvice(advice.reason, reconnect and code in _RESUMABLE, reconnect, retry)
