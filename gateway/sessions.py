"""The sessions of this process: by id, those without a socket by age, and what they may cost.

Theory of operation
-------------------
A session is kept when it has lost its socket, for as long as it was told (`retention`). What that
may cost is bounded by numbers of sessions and by the memory of their tails. Under memory pressure
less retention is promised, to those who are attached now and with each ping; and when a bound is
reached, those who wait longest without a socket end first.

Memory is counted now and then (`sweep`), not with each message: one addition to a shared number per
delivery would cost more than the whole count. Frames that many sessions share are counted in each,
so the truth is always less than the count.

Why a session ended is remembered for the most recent ones, so that a client that comes too late
learns the reason.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final, Generic, Protocol, TypeVar

from gateway.protocol.backoff import Backoff, RetentionBounds, retention
from gateway.protocol.session import Gone, Session, TailLimits
from gateway.resume_tokens import ResumeTokens, SessionId
from metrics import instruments

# What a detached session costs besides its tail, with one subscription (docs/benchmarks.md).
SESSION_BYTES: Final = 2048
# From which part of the allowed memory on less retention is promised.
PRESSURE_FROM: Final = 0.5
# Seconds between two sweeps, and when less than a part of the allowed memory is in use: to look at
# ten thousand idle sessions each second is a tenth of what they cost.
SWEEP_INTERVAL: Final = 1.0
CALM_SWEEP_INTERVAL: Final = 5.0
CALM_BELOW: Final = 0.25
# Retentions that are known for the pressure of the moment: the declarations that clients make.
BACKOFFS_REMEMBERED: Final = 256
ENDED_REMEMBERED: Final = 10_000


@dataclass(frozen=True, slots=True)
class SessionLimits:
    """What sessions may cost, and what is told about their lives. 0 sets no limit."""

    tail: TailLimits
    retention: RetentionBounds
    detection: float  # seconds until a client has noticed that its line is dead
    stable: float  # seconds of connection after which a client may reset its counter of attempts
    sessions_max: int
    detached_per_address_max: int
    memory_max_bytes: int


class Kept(Protocol):
    """A connection with a session, as this book sees it."""

    session: Session
    address: str

    @property
    def session_id(self) -> SessionId:
        """What its token names."""

    def expire(self, reason: Gone) -> None:
        """End it: nobody can come back to it any more."""


T = TypeVar("T", bound=Kept)


class Sessions(Generic[T]):
    """All sessions of this process."""

    def __init__(self, tokens: ResumeTokens, limits: SessionLimits) -> None:
        self.tokens = tokens
        self.limits = limits
        self._by_id: dict[SessionId, T] = {}
        self._detached: dict[SessionId, T] = {}  # in the order in which they lost their sockets
        self._detached_of: dict[str, dict[SessionId, T]] = {}  # the same, by address, if limited
        self._ended: OrderedDict[SessionId, Gone] = OrderedDict()
        self._pressure = 0.0
        self._granted: dict[Backoff, float] = {}  # at this pressure
        self._asked_last: Backoff | None = None
        self._answered_last = 0.0
        self.memory_bytes = 0
        """What all sessions hold, by the last `sweep`."""
        instruments.SESSIONS.labels("attached").set_function(
            lambda: len(self._by_id) - len(self._detached)
        )
        instruments.SESSIONS.labels("detached").set_function(lambda: len(self._detached))
        instruments.SESSION_MEMORY.set_function(lambda: self.memory_bytes)

    def __len__(self) -> int:
        return len(self._by_id)

    @property
    def detached(self) -> list[T]:
        """Those without a socket, the longest first."""
        return list(self._detached.values())

    @property
    def all(self) -> list[T]:
        """Every session."""
        return list(self._by_id.values())

    def find(self, token: str) -> T | Gone:
        """The session that a token names, or why there is none."""
        session_id = self.tokens.read(token)
        if session_id is None:
            return Gone.UNKNOWN
        return self._by_id.get(session_id) or self._ended.get(session_id, Gone.UNKNOWN)

    def make_room(self) -> bool:
        """Whether one more session may begin; the oldest detached one goes if it must."""
        limit = self.limits.sessions_max
        if not limit or len(self._by_id) < limit:
            return True
        return self._evict_oldest(self._detached)

    def add(self, kept: T) -> None:
        """Keep a session that has begun."""
        self._by_id[kept.session_id] = kept

    def take_up(self, kept: T) -> None:
        """Keep a session that a former process saved, without a socket as it is."""
        self.add(kept)
        self.detach(kept)

    def detach(self, kept: T) -> None:
        """It has lost its socket."""
        self._detached[kept.session_id] = kept
        limit = self.limits.detached_per_address_max
        if limit:
            neighbours = self._detached_of.setdefault(kept.address, {})
            neighbours[kept.session_id] = kept
            if len(neighbours) > limit:
                self._evict_oldest(neighbours)

    def attach(self, kept: T) -> None:
        """It has a socket again; to be called before its address changes."""
        self._drop_detached(kept)

    def remove(self, kept: T, reason: Gone) -> None:
        """It has ended."""
        if self._by_id.pop(kept.session_id, None) is None:
            return
        self._drop_detached(kept)
        self._ended[kept.session_id] = reason
        while len(self._ended) > ENDED_REMEMBERED:
            self._ended.popitem(last=False)

    def _drop_detached(self, kept: T) -> None:
        if self._detached.pop(kept.session_id, None) is None:
            return
        neighbours = self._detached_of.get(kept.address)
        if neighbours is not None:
            del neighbours[kept.session_id]
            if not neighbours:
                del self._detached_of[kept.address]

    def _evict_oldest(self, among: dict[SessionId, T]) -> bool:
        if not among:
            return False
        instruments.SESSION_EVICTIONS.inc()
        next(iter(among.values())).expire(Gone.EXPIRED)
        return True

    # --- memory -----------------------------------------------------------------------------------

    def retention(self, backoff: Backoff) -> float:
        """How long a session with this backoff is kept without a socket, as things are now."""
        if backoff is self._asked_last:  # most clients have the same one: the very same object
            return self._answered_last
        granted = self._granted.get(backoff)
        if granted is None:
            limits = self.limits
            granted = retention(backoff, limits.detection, limits.retention, self._pressure)
            if len(self._granted) >= BACKOFFS_REMEMBERED:
                self._granted.clear()
            self._granted[backoff] = granted
        self._asked_last, self._answered_last = backoff, granted
        return granted

    @property
    def sweep_interval(self) -> float:
        """In how many seconds to `sweep` again."""
        calm = self.memory_bytes < CALM_BELOW * self.limits.memory_max_bytes
        return CALM_SWEEP_INTERVAL if calm or not self.limits.memory_max_bytes else SWEEP_INTERVAL

    def sweep(self) -> None:
        """Count memory, promise less when it runs short, and end the oldest when it has run out."""
        held = sum(kept.session.tail_bytes for kept in self._by_id.values())
        self.memory_bytes = held + len(self._by_id) * SESSION_BYTES
        limit = self.limits.memory_max_bytes
        if not limit:
            return
        used = self.memory_bytes / limit
        pressure = min(max((used - PRESSURE_FROM) / (1.0 - PRESSURE_FROM), 0.0), 1.0)
        if pressure != self._pressure:
            self._pressure = pressure
            self._granted.clear()
            self._asked_last = None
        while self.memory_bytes > limit and self._detached:
            oldest = next(iter(self._detached.values()))
            self.memory_bytes -= oldest.session.tail_bytes + SESSION_BYTES
            self._evict_oldest(self._detached)
