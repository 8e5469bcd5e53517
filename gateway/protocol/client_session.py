"""The session layer (PROTOCOL.md part B) of one client, client side: attempts, counts, resends.

Rules
-----
1. Everything that decides about the session's life is in `TRANSITIONS`. An event without an entry
   is a mistake of the caller and raises `AssertionError`. What the *server* does wrong ends the
   session (`Lost`), and a new one begins.
2. Sockets are called lines here and have numbers. Whatever is reported of a line that was dropped
   changes nothing, so the caller need not be quick to close it.
3. What there is to do comes out as events, in order; `take_events` after every call.

Theory of operation
-------------------
    IDLE ──start──▶ DIALING ──open──▶ OPENING ──accept──▶ LIVE ──due──▶ MOVING ──resume──▶ SWITCHING
                     ▲   │               ▲                 ▲                                   │
                    due  └─resume─▶ RESUMING ────accept────┴──────────────accept───────────────┘
                     │                   │
                  WAITING ◀──────────── lose, from everywhere

A session begins on a line with `open` (`Began`: the layer above sends its `connect`, right behind
it) and goes on over other lines with `resume`. When it can't, the layer above is told (`Lost`) and
a new session begins, on the same line if the server said `gone`. So between `Began` and `Lost` the
layer above has a connection on which nothing is lost, doubled or out of order, however many lines
that took.

Both ends count payload frames. A frame given to `send` stays in the tail until the server has
acknowledged it; `resumed` says how many were processed, and the rest is sent again. The tail is
bounded; a full one ends the session, since a sender never waits for a receiver.

The next attempt is made when the server said (`retry`), to the millisecond: that moment is this
client's own. Otherwise full jitter spreads the clients. `attempt` counts attempts until a
connection has been stable for as long as the server asked; that tells the server which of two
`resume` was meant later, and keeps a herd from starting over with short delays.

During a move two lines are open. The old one serves until `resumed` arrives on the new one: what
comes on it after `resume` was sent is taken, but not acknowledged, because the server will send it
again on the new line, where it is skipped. If the new line is lost after `resume` was sent, nobody
knows whether the old one is still good, and both are given up.

Ten thousand of these fit into one process: one object with slots, no timers, and no objects made
for a frame that is just counted. Time is an argument, in seconds of one monotonic clock.
"""

from collections import deque
from collections.abc import Sequence
from typing import Final, NamedTuple

from gateway.protocol.client_policy import (
    ABNORMAL_CLOSURE,
    RETRY_MAX,
    SessionPolicy,
    close_advice,
)
from gateway.protocol.client_states import TRANSITIONS, ClientEvent, ClientState
from gateway.protocol.health import Quality
from gateway.protocol.session import Gone
from gateway.protocol.session_frames import (
    LEAVE,
    PREFIX,
    MalformedSessionFrame,
    Move,
    Opened,
    Ping,
    ResumedFrame,
    ServerFrame,
    ack,
    decode_server_frame,
    open_frame,
    pong,
    resume_frame,
)

NEVER: Final = float("inf")

_PREFIX: Final = PREFIX.encode()
_PREFIX_BYTES: Final = len(_PREFIX)


# --- what there is to do --------------------------------------------------------------------------


class Dial(NamedTuple):
    """Open a socket and report `connected` or `closed` of it, under this number."""

    line: int


class Write(NamedTuple):
    """Send a text message on a line."""

    line: int
    message: bytes


class Drop(NamedTuple):
    """Be done with a line; nothing that it still says matters.

    `leaving`: close it with 1000, which ends the session on the server too; otherwise without
    ceremony, because the session goes on elsewhere.
    """

    line: int
    leaving: bool


class Began(NamedTuple):
    """A new session: the layer above begins with `connect`, and may do so right now."""


class Lost(NamedTuple):
    """The session is over, and with it the connection of the layer above.

    `code` is the close code, 0 where there was none (`gone`, a full tail, a broken protocol). If
    not `final`, another session begins as soon as there is a line for it.
    """

    code: int
    reason: str
    final: bool


Event = Dial | Write | Drop | Began | Lost


# --- the session ----------------------------------------------------------------------------------

_QUALITIES: Final = {quality.value: quality for quality in Quality}
_NO_EVENTS: Final[Sequence[Event]] = ()


class ClientSession:
    """One client's sessions, one after the other."""

    __slots__ = (
        "_acknowledged",
        "_begun",
        "_due",
        "_events",
        "_heard_at",
        "_lines",
        "_next",
        "_ping",
        "_policy",
        "_promised",
        "_skip",
        "_stable_at",
        "_tail",
        "_token",
        "_unsaid_bytes",
        "_unsaid_frames",
        "attempt",
        "generation",
        "line",
        "quality",
        "received",
        "retain",
        "retry_at",
        "rtt",
        "sent",
        "state",
        "tail_bytes",
    )

    def __init__(self, policy: SessionPolicy) -> None:
        self._policy = policy
        self.state = ClientState.IDLE
        self.line = 0  # the number of the line that serves, or will; 0 for none
        self.attempt = 0  # since a connection was stable last
        self.retry_at = NEVER  # when the next line is due: WAITING, or asked to move
        self.rtt = 0.0  # in seconds, as the server measured it last; 0 before that
        self.quality: Quality | None = None
        self.retain = 0.0  # for how many seconds the server keeps the session without a line
        self._events: list[Event] | None = None
        self._lines = 0  # how many were opened
        self._next = 0  # the line that is to replace the one that serves
        self._due = NEVER  # when the attempt under way has failed
        self._heard_at = 0.0
        self._ping = 0.0
        self._stable_at = NEVER
        self._forget_session()

    def _forget_session(self) -> None:
        self._begun = False  # whether the layer above has a connection
        self._token = ""
        self.generation = 0
        self.sent = 0
        self.received = 0
        self.tail_bytes = 0
        self._acknowledged = 0
        self._tail: deque[bytes] | None = None  # an empty deque takes 600 bytes
        self._promised = 0  # what `resume` said was received
        self._skip = 0  # frames that come again
        self._unsaid_frames = 0  # received, and not acknowledged yet
        self._unsaid_bytes = 0

    # --- what the caller reads --------------------------------------------------------------------

    def take_events(self) -> Sequence[Event]:
        """What there is to do now, in order."""
        events = self._events
        if events is None:
            return _NO_EVENTS
        self._events = None
        return events

    @property
    def is_live(self) -> bool:
        """Whether a line serves: what is sent goes out at once."""
        state = self.state
        return (
            state is ClientState.LIVE
            or state is ClientState.MOVING
            or state is ClientState.SWITCHING
        )

    @property
    def has_session(self) -> bool:
        """Whether there is something to resume: the server has answered `open`."""
        return bool(self._token)

    @property
    def unacknowledged(self) -> int:
        """How many frames the tail holds."""
        return self.sent - self._acknowledged

    def next_deadline(self) -> float:
        """When to call `tick`, at the latest."""
        state = self.state
        if state is ClientState.LIVE:
            return min(self._silent_at(), self.retry_at)
        if state is ClientState.WAITING:
            return self.retry_at
        if state is ClientState.MOVING or state is ClientState.SWITCHING:
            return min(self._silent_at(), self._due)
        return self._due

    def _silent_at(self) -> float:
        return self._heard_at + self._ping + self._policy.patience if self._ping else NEVER

    # --- what the caller does ---------------------------------------------------------------------

    def start(self, now: float) -> None:
        """Make the first attempt."""
        self._move(ClientEvent.START)
        self.line = self._dial(now)

    def send(self, frame: bytes, now: float) -> bool:
        """Take a payload frame. True: write it to `line`, now; otherwise it goes out later.

        Allowed between `Began` and `Lost`. A tail that is over its limits ends the session.
        """
        if not self._begun:
            raise AssertionError("there is no session yet, or no more")
        tail = self._tail
        if tail is None:
            tail = self._tail = deque()
        tail.append(frame)
        self.sent += 1
        self.tail_bytes += len(frame)
        limits = self._policy.tail
        if self.sent - self._acknowledged > limits.frames or self.tail_bytes > limits.bytes:
            self._break(now, "too much is unacknowledged")
            return False
        # Behind `open` nothing has to be waited for; `resumed` says from where to send again.
        return self.is_live or self.state is ClientState.OPENING

    def break_off(self, reason: str, now: float) -> None:
        """Give the session up and begin another one, after a delay. Between `Began` and `Lost`."""
        if not self._begun:
            raise AssertionError("there is no session yet, or no more")
        self._break(now, reason)

    def leave(self) -> None:
        """Say goodbye, if there is a line for it, and end."""
        if self.state is ClientState.ENDED:
            return
        if self.is_live:
            self._emit(Write(self.line, LEAVE))
        self._end()

    # --- what happens to lines --------------------------------------------------------------------

    def connected(self, line: int, now: float) -> None:
        """A line that was dialled is open."""
        if not line or line not in (self.line, self._next):
            return
        if not self._token:
            self._open(line, ClientEvent.OPEN)
            return
        self._move(ClientEvent.RESUME)
        self._promised = self.received
        self._emit(Write(line, resume_frame(self._token, self.received, self.attempt)))

    def closed(
        self,
        line: int,
        now: float,
        code: int = ABNORMAL_CLOSURE,
        reason: str = "",
        retry: float | None = None,
    ) -> None:
        """A line was closed by the server, or broke, or could not be opened.

        `retry` in seconds is what an HTTP answer said; a close frame's own is in its `reason`.
        """
        if not line or line not in (self.line, self._next):
            return
        advice = close_advice(code, reason)
        if advice.retry is not None:
            retry = advice.retry
        elif retry is not None:
            retry = min(retry, RETRY_MAX)
        state = self.state
        is_next = line == self._next
        # Nothing was said on it yet, so its end says nothing about the session.
        was_dialled = state is ClientState.DIALING or (is_next and state is ClientState.MOVING)
        if is_next:
            self._next = 0
        else:
            self.line = 0
        if not (advice.resume or was_dialled):
            if advice.reconnect:
                self._break(now, advice.reason, code, retry)
            else:
                self._end(code, advice.reason)
        elif is_next:
            self._lose_next(now, retry)
        else:
            self._lose(now, retry, code, advice.reason)

    def message(self, line: int, message: bytes, now: float) -> bool:
        """A text message came on a line. True: it is for the layer above."""
        if line != self.line:
            if line == self._next:
                self._take(line, message, now)
            return False
        self._heard_at = now
        if message[:_PREFIX_BYTES] == _PREFIX or not self.is_live:
            self._take(line, message, now)
            return False
        if self._skip:
            self._skip -= 1
            return False
        self.received += 1
        self._unsaid_frames += 1
        self._unsaid_bytes += len(message)
        policy = self._policy
        if (
            self._unsaid_frames >= policy.ack_frames or self._unsaid_bytes >= policy.ack_bytes
        ) and self.state is not ClientState.SWITCHING:
            self._emit(Write(line, ack(self.received)))
            self._said()
        return True

    def tick(self, now: float) -> None:
        """Time has passed."""
        if now < self.next_deadline():
            return
        state = self.state
        if state is ClientState.WAITING:
            self._move(ClientEvent.DUE)
            self.line = self._dial(now)
        elif self.is_live and now >= self._silent_at():
            self._drop_line(leaving=False)
            self._lose(now, None, ABNORMAL_CLOSURE, "nothing came any more")
        elif state is ClientState.LIVE:
            self._settle_attempts(now)
            self._move(ClientEvent.DUE)
            self.retry_at = NEVER
            self._next = self._dial(now)
        elif self._next:
            self._drop_next(leaving=False)
            self._lose_next(now, None)
        else:
            self._drop_line(leaving=False)
            self._lose(now, None, ABNORMAL_CLOSURE, "no answer in time")

    # --- what the server says ---------------------------------------------------------------------

    def _take(self, line: int, message: bytes, now: float) -> None:
        """Take a session frame, or find out that it should have been one."""
        try:
            frame = decode_server_frame(message)
        except MalformedSessionFrame as error:
            self._break(now, f"the server sent what it must not: {error}")
            return
        is_answer = line == (self._next or self.line)
        is_resuming = self.state is ClientState.RESUMING or self.state is ClientState.SWITCHING
        if is_answer and is_resuming and frame.resumed is not None:
            self._resumed(line, frame.resumed, now)
        elif is_answer and is_resuming and frame.gone is not None:
            self._refused(line, frame.gone.reason, now)
        elif self.state is ClientState.OPENING and frame.opened is not None:
            self._opened(frame.opened, now)
        elif self.is_live and line == self.line:
            self._take_live(frame, now)
        else:
            self._break(now, "the server sent what it must not: no answer")

    def _take_live(self, frame: ServerFrame, now: float) -> None:
        """Take a session frame on the line that serves; what later versions say is ignored."""
        if frame.ping is not None:
            self._pinged(frame.ping, now)
        elif frame.ack is not None:
            self._acknowledge(frame.ack, now)
        elif frame.move is not None:
            self._asked_to_move(frame.move, now)
        elif frame.gone is not None:
            if self.state is ClientState.SWITCHING and frame.gone.reason == Gone.FENCED.value:
                # By our other line, whose answer is on its way.
                self._drop_line(leaving=False)
                self._lose(now, None, ABNORMAL_CLOSURE, "")
            else:
                self._break(now, f"session {frame.gone.reason}")
        elif frame.opened is not None or frame.resumed is not None:
            self._break(now, "the server sent what it must not: a second answer")

    def _opened(self, frame: Opened, now: float) -> None:
        self._token = frame.token
        self.generation = frame.generation
        self._ping = frame.ping / 1000
        self._accepted(now, frame.retain, frame.stable)

    def _resumed(self, line: int, frame: ResumedFrame, now: float) -> None:
        if frame.received < self._acknowledged:
            self._break(now, f"only {frame.received} of {self._acknowledged} frames are left")
            return
        if not self._acknowledge(frame.received, now):
            return
        if self._next:
            self._drop_line(leaving=False)
            self.line, self._next = line, 0
        self.generation = frame.generation
        self._heard_at = now
        self._skip = self.received - self._promised
        # What came on the old line meanwhile is unsaid; `resume` has said the rest.
        self._unsaid_frames = self._skip
        self._unsaid_bytes = 0
        self._accepted(now, frame.retain, frame.stable)
        for waiting in self._tail or ():
            self._emit(Write(line, waiting))

    def _accepted(self, now: float, retain_ms: float, stable_ms: float) -> None:
        self._move(ClientEvent.ACCEPT)
        self._due = NEVER
        self.retry_at = NEVER
        self.retain = retain_ms / 1000
        self._stable_at = now + stable_ms / 1000

    def _refused(self, line: int, reason: str, now: float) -> None:
        """The session can't be resumed: begin another one on the same line."""
        if self._next:
            self._drop_line(leaving=False)
            self._next = 0
        self._due = now + self._policy.backoff.timeout
        self._lost(0, f"session {reason}")
        self._open(line, ClientEvent.REFUSE)

    def _open(self, line: int, event: ClientEvent) -> None:
        self.line = line
        self._move(event)
        self._begun = True
        self._emit(Write(line, open_frame(self._policy.declaration())))
        self._emit(Began())

    def _pinged(self, frame: Ping, now: float) -> None:
        if frame.sent != self.received - self._skip:
            self._break(now, f"{self.received - self._skip} of {frame.sent} frames arrived")
            return
        if not self._acknowledge(frame.received, now):
            return
        self.rtt = frame.rtt / 1000
        self.quality = _QUALITIES.get(frame.quality, self.quality)
        if frame.retain is not None:
            self.retain = frame.retain / 1000
        if self.state is ClientState.SWITCHING:
            # Not more than `resume` says on the other line, or that would come from the past.
            self._emit(Write(self.line, pong(self._promised, self.sent)))
        else:
            self._emit(Write(self.line, pong(self.received, self.sent)))
            self._said()

    def _said(self) -> None:
        self._unsaid_frames = 0
        self._unsaid_bytes = 0

    def _acknowledge(self, number: int, now: float) -> bool:
        """Take a cumulative acknowledgement; False if it was for more than was sent."""
        if number > self.sent:
            self._break(now, f"the server acknowledged {number} frames of {self.sent}")
            return False
        tail = self._tail
        while tail and self._acknowledged < number:
            self.tail_bytes -= len(tail.popleft())
            self._acknowledged += 1
        if not tail:
            self._tail = None
        return True

    def _asked_to_move(self, frame: Move, now: float) -> None:
        """Come back at that moment; the deadline is the server's own concern."""
        if self.state is ClientState.LIVE:
            self.retry_at = now + min(frame.retry / 1000, RETRY_MAX)

    # --- life -------------------------------------------------------------------------------------

    def _emit(self, event: Event) -> None:
        if self._events is None:
            self._events = [event]
        else:
            self._events.append(event)

    def _move(self, event: ClientEvent) -> None:
        following = TRANSITIONS[self.state].get(event)
        if following is None:
            raise AssertionError(f"{event} can't happen to a session that is {self.state}")
        self.state = following

    def _dial(self, now: float) -> int:
        if self._lines:
            self.attempt += 1
        self._lines += 1
        self._due = now + self._policy.backoff.timeout
        self.retry_at = NEVER
        self._emit(Dial(self._lines))
        return self._lines

    def _settle_attempts(self, now: float) -> None:
        """Count attempts anew if the connection that ends, or is to be replaced, was stable."""
        if now >= self._stable_at:
            self.attempt = 0
        self._stable_at = NEVER

    def _wait(self, now: float, retry: float | None) -> None:
        """Find the moment for the next line: the server's, or one by chance."""
        self._settle_attempts(now)
        self._due = NEVER
        self.quality = None
        if retry is not None:
            self.retry_at = now + retry
        elif self.retry_at == NEVER:  # otherwise it was asked to move, at that moment
            self.retry_at = now + self._policy.delay(self.attempt)

    def _lose(self, now: float, retry: float | None, code: int, reason: str) -> None:
        """The line that serves, or would have, is gone; the session is not."""
        self._move(ClientEvent.LOSE)
        if self._next:
            self.line, self._next = self._next, 0
            return
        if self._begun and not self._token:
            self._lost(code, reason)  # it was never opened
        self._wait(now, retry)

    def _lose_next(self, now: float, retry: float | None) -> None:
        """The line that was to replace the other is gone."""
        self._move(ClientEvent.LOSE_NEXT)
        if self.state is ClientState.LIVE:
            self._due = NEVER
            delay = self._policy.delay(self.attempt) if retry is None else retry
            self.retry_at = now + delay
            return
        self._drop_line(leaving=False)
        self._wait(now, retry)

    def _break(self, now: float, reason: str, code: int = 0, retry: float | None = None) -> None:
        """The session is over, for a reason of either side's, and another one begins."""
        was_between = self.state in (ClientState.WAITING, ClientState.DIALING)
        self._move(ClientEvent.BREAK)
        self._lost(code, reason)
        if was_between:
            return  # the attempt that is due, or under way, is good for another session too
        self._drop_next(leaving=True)
        self._drop_line(leaving=True)
        self.retry_at = NEVER
        self._wait(now, retry)

    def _end(self, code: int = 0, reason: str = "") -> None:
        """Nothing follows; without a code because the layer above wants it so."""
        self._move(ClientEvent.END)
        self._drop_next(leaving=True)
        self._drop_line(leaving=True)
        self._due = NEVER
        self.retry_at = NEVER
        self.quality = None
        if code:
            self._emit(Lost(code, reason, final=True))
        self._forget_session()

    def _lost(self, code: int, reason: str) -> None:
        self._emit(Lost(code, reason, final=False))
        self._forget_session()

    def _drop_line(self, *, leaving: bool) -> None:
        if self.line:
            self._emit(Drop(self.line, leaving))
            self.line = 0

    def _drop_next(self, *, leaving: bool) -> None:
        if self._next:
            self._emit(Drop(self._next, leaving))
            self._next = 0
