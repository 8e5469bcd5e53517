"""The session layer (PROTOCOL.md part B) of one client, server side: counts, acks, replay, fencing.

Rules
-----
1. Everything that decides about a session's life is in `TRANSITIONS`. An event without an entry is
   a mistake of the caller and raises `AssertionError`; what a *client* may do wrong raises
   `SessionViolation` before any state changes.
2. Numbers are never written into payload frames (B.1). Both ends count: `sent` is the number of the
   last payload frame given to this session, `received` that of the last one processed from its
   client.
3. A frame given to `sent_frames` is delivered once and in order while the session lives, or the
   session ends with `Gone`. The tail holds what the client has not acknowledged.

Theory of operation
-------------------
A session outlives its sockets. Its socket is named by a generation; `resume` raises it, which
evicts the former socket in the same step: whatever still comes from an older generation is ignored
by whoever owns the sockets. A straggler is an attempt to resume that was overtaken by a later one
of the same client. Since a client resets its counter of attempts only after `stable` seconds of
connection, an attempt within that time that doesn't have a higher number is one (`Gone.FENCED`).
That is asked first: a straggler's count is old as well, and that says nothing against its client.

The tail is bounded in frames and bytes. More than half full, the session asks for an
acknowledgement (once, until one comes). Over its limit, the tail is dropped: live delivery goes on,
but frames up to that moment can no longer be replayed. A client that acknowledges them after all
has lost nothing; one that resumes from before them gets `Gone.OVERFLOW`, and part A's recovery
takes over. So does one that resumes from before what it acknowledged: it had those frames, and
they are no longer here. What is dropped while there is no socket was never written, so nobody can
resume from behind it, and the caller may as well end the session.

A session ends when its retention is over, but never before a moment at which the server told its
client to come back (`extend`). A draining server says that while the socket is still there; it is
kept in mind until the socket is lost.

Time is an argument, in seconds of one monotonic clock.
"""

from collections import deque
from dataclasses import dataclass
from enum import Enum
from typing import Final, NamedTuple

from msgspec import Struct

NEVER: Final = float("inf")


class SessionState(Enum):
    """Whether a session has a socket."""

    ATTACHED = "attached"
    DETACHED = "detached"
    ENDED = "ended"


class SessionEvent(Enum):
    """What happens to a session's life."""

    RESUME = "resume"
    LOSE = "lose"
    LEAVE = "leave"
    EXPIRE = "expire"
    BREAK = "break"


TRANSITIONS: Final[dict[SessionState, dict[SessionEvent, SessionState]]] = {
    SessionState.ATTACHED: {
        SessionEvent.RESUME: SessionState.ATTACHED,  # fencing: the former socket is evicted
        SessionEvent.LOSE: SessionState.DETACHED,
        SessionEvent.LEAVE: SessionState.ENDED,
        SessionEvent.BREAK: SessionState.ENDED,
    },
    SessionState.DETACHED: {
        SessionEvent.RESUME: SessionState.ATTACHED,
        SessionEvent.EXPIRE: SessionState.ENDED,
        SessionEvent.BREAK: SessionState.ENDED,
    },
    SessionState.ENDED: {},
}


class Gone(Enum):
    """Why a session can't be resumed; the values are on the wire."""

    EXPIRED = "expired"
    UNKNOWN = "unknown"
    FENCED = "fenced"
    OVERFLOW = "overflow"


class SessionViolation(Exception):
    """The client claims what can't be, such as having received frames that were never sent."""


@dataclass(frozen=True, slots=True)
class TailLimits:
    """How much unacknowledged a session may hold (B.2.5)."""

    frames: int = 1024
    bytes: int = 256 * 1024


class Pressure(Enum):
    """What a session wants after a frame was added to its tail."""

    NONE = "none"
    ASK = "ask"  # send a ping: its answer acknowledges
    DROPPED = "dropped"  # the tail overflowed just now


# A look at an enum's member costs as much as the addition beside it.
_NONE: Final = Pressure.NONE


class Entry(NamedTuple):
    """Frames in the tail that were written together: `covers` of them, the last numbered `last`."""

    last: int
    covers: int
    frames: bytes


# What a NamedTuple's own constructor does, at a third of its price: one is made for each delivery.
_new_entry: Final = tuple.__new__


class Resumption(NamedTuple):
    """A client's wish to go on: how much it has received, and its how-manieth attempt this is.

    Attempts count from 1; 0 is a client that doesn't count them.
    """

    received: int
    attempt: int = 0


@dataclass(frozen=True, slots=True)
class Resumed:
    """A resumption: the new generation, what was processed, and what to send again.

    `replay` are entries in order; of the first one, `skip` frames were received already. `count`
    frames remain to be sent: all that the entries cover, less `skip`.
    """

    generation: int
    received: int
    count: int
    replay: tuple[Entry, ...]
    skip: int


class SavedSession(Struct, frozen=True):
    """A detached session, to be taken up by the next process."""

    generation: int
    sent: int
    received: int
    acknowledged: int
    lost_up_to: int
    tail: list[tuple[int, int, bytes]]


class Session:
    """One client's session."""

    __slots__ = (
        "_acknowledged",
        "_asked",
        "_attempt",
        "_expected_at",
        "_lost_up_to",
        "_released",
        "_resumed_at",
        "_tail",
        "expires_at",
        "generation",
        "received",
        "sent",
        "state",
        "tail_bytes",
    )

    def __init__(self) -> None:
        self.state = SessionState.ATTACHED
        self.generation = 1
        self.sent = 0
        self.received = 0
        # When a detached session ends.
        self.expires_at = NEVER
        # How many bytes the tail holds. Frames shared with other sessions count in each.
        self.tail_bytes = 0
        self._acknowledged = 0
        self._released = 0  # the higher of the two: frames up to here are no longer in the tail
        self._lost_up_to = 0  # frames up to here were dropped from the tail unacknowledged
        self._tail: deque[Entry] | None = None  # an empty deque takes 600 bytes
        self._asked = False
        self._attempt = 0  # that resumed it last
        self._resumed_at = -NEVER
        self._expected_at = -NEVER  # when the client was told to come back

    # --- counting ---------------------------------------------------------------------------------

    @property
    def unacknowledged(self) -> int:
        """How many frames the tail holds."""
        return self.sent - self._released

    def sent_frames(self, frames: bytes, count: int, limits: TailLimits) -> Pressure:
        """Note `count` payload frames that were, or would have been, written to the socket."""
        tail = self._tail
        if tail is None:
            tail = self._tail = deque()
        self.sent = sent = self.sent + count
        tail.append(_new_entry(Entry, (sent, count, frames)))
        self.tail_bytes = size = self.tail_bytes + len(frames)
        held = sent - self._released
        if held * 2 <= limits.frames and size * 2 <= limits.bytes:
            return _NONE
        if held > limits.frames or size > limits.bytes:
            self._tail = None
            self.tail_bytes = 0
            self._lost_up_to = self._released = sent
            self._asked = False
            return Pressure.DROPPED
        if self._asked:
            return _NONE
        self._asked = True
        return Pressure.ASK

    def received_frame(self) -> None:
        """Note a payload frame of the client's that was processed."""
        self.received += 1

    def acknowledge(self, number: int) -> None:
        """Take a cumulative acknowledgement; an old one changes nothing (they may cross).

        Raises `SessionViolation` for frames that were never sent.
        """
        if number > self.sent:
            raise SessionViolation(f"acknowledged {number} frames of {self.sent}")
        if number <= self._acknowledged:
            return
        self._acknowledged = number
        self._released = max(number, self._lost_up_to)
        self._asked = False
        tail = self._tail
        while tail and tail[0].last <= number:
            self.tail_bytes -= len(tail.popleft().frames)
        if not tail:
            self._tail = None

    # --- life -------------------------------------------------------------------------------------

    def _after(self, event: SessionEvent) -> SessionState:
        following = TRANSITIONS[self.state].get(event)
        if following is None:
            raise AssertionError(f"{event} can't happen to a session that is {self.state}")
        return following

    def lose(self, now: float, retention: float) -> None:
        """The socket is gone: keep the session for `retention` seconds."""
        self.state = self._after(SessionEvent.LOSE)
        self.expires_at = max(now + retention, self._expected_at)

    def extend(self, until: float) -> None:
        """Don't end before a moment at which the client was told to come back (B.3).

        It holds until the session is resumed, whether its socket is lost already or will be.
        """
        self._expected_at = max(self._expected_at, until)
        if self.state is SessionState.DETACHED:
            self.expires_at = max(self.expires_at, until)

    def resume(self, wish: Resumption, now: float, stable: float) -> Resumed | Gone:
        """Continue on a new socket.

        `stable` is after how many seconds of connection the client resets its counter of attempts.
        `Gone` leaves the session as it was: a straggler (FENCED) has no effect, and after OVERFLOW
        the caller ends the session, for some of what it should replay is no longer here. Raises
        `SessionViolation` for a count from the future.
        """
        state = self._after(SessionEvent.RESUME)
        if 0 < wish.attempt <= self._attempt and now < self._resumed_at + stable:
            return Gone.FENCED
        if wish.received > self.sent:
            raise SessionViolation(f"resumed after {wish.received} of {self.sent} frames")
        if wish.received < max(self._acknowledged, self._lost_up_to):
            return Gone.OVERFLOW
        self.state = state
        self.generation += 1
        self.expires_at = NEVER
        self._expected_at = -NEVER
        self._attempt = wish.attempt
        self._resumed_at = now
        self.acknowledge(wish.received)
        self._asked = False  # a question on the former socket may never have arrived
        replay = tuple(self._tail or ())
        skip = wish.received - (replay[0].last - replay[0].covers) if replay else 0
        return Resumed(self.generation, self.received, self.sent - wish.received, replay, skip)

    def leave(self) -> None:
        """The client said goodbye."""
        self._end(SessionEvent.LEAVE)

    def expire(self) -> None:
        """Nobody came back in time."""
        self._end(SessionEvent.EXPIRE)

    def break_off(self) -> None:
        """The client broke the protocol, or can't be served any more."""
        self._end(SessionEvent.BREAK)

    def _end(self, event: SessionEvent) -> None:
        self.state = self._after(event)
        self._tail = None
        self.tail_bytes = 0
        self.expires_at = NEVER

    # --- between processes ------------------------------------------------------------------------

    def save(self) -> SavedSession:
        """What the next process needs to go on with this session."""
        return SavedSession(
            self.generation,
            self.sent,
            self.received,
            self._acknowledged,
            self._lost_up_to,
            [(last, covers, frames) for last, covers, frames in self._tail or ()],
        )

    @classmethod
    def restored(cls, saved: SavedSession, expires_at: float) -> "Session":
        """A session that a former process saved: detached, until `expires_at`."""
        session = cls()
        session.state = SessionState.DETACHED
        session.expires_at = expires_at
        session.generation = saved.generation
        session.sent = saved.sent
        session.received = saved.received
        session._acknowledged = saved.acknowledged
        session._lost_up_to = saved.lost_up_to
        session._released = max(saved.acknowledged, saved.lost_up_to)
        if saved.tail:
            session._tail = deque(Entry(*entry) for entry in saved.tail)
            session.tail_bytes = sum(len(frames) for _, _, frames in saved.tail)
        return session
