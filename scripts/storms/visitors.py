"""A member with its lines and its rules of coming back: with a session, or as a stock SDK does."""

import asyncio
import random
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Final

from gateway.protocol.client_policy import SessionPolicy, close_advice
from gateway.protocol.client_session import (
    NEVER,
    Began,
    ClientSession,
    Dial,
    Drop,
    Lost,
    Write,
)
from gateway.protocol.session_frames import PREFIX
from scripts.storms.lines import Line
from scripts.storms.member import Member

_MOVE: Final = f'{PREFIX}{{"move"'.encode()
_TRY_AGAIN: Final = 0.5  # seconds until what was refused for a moment is asked for once more

# What centrifuge-js does: its defaults, and how it computes a delay (`_getReconnectDelay`).
_STOCK_MIN: Final = 0.5
_STOCK_TIMEOUT: Final = 5.0
_STOCK_PATIENCE: Final = 10.0  # beyond the ping interval


class Return(Enum):
    """How somebody came back."""

    RESUMED = "resumed"
    RECOVERED = "recovered"
    UNRECOVERED = "unrecovered"


class Grounds:
    """What all visitors share: where they dial, when, and what is noted of it."""

    def __init__(self, port: int, request: bytes, seed: int) -> None:
        self.loop = asyncio.get_running_loop()
        self.random = random.Random(seed)
        self.away: set[Visitor] = set()
        self.failure: Exception | None = None
        self.latencies: list[float] = []
        self._port = port
        self._request = request
        self._on_return: Callable[[], None] | None = None
        self.begin_notes()

    def begin_notes(self) -> None:
        """Forget what was noted so far."""
        self.dials: list[float] = []  # attempts that reached a server
        self.refusals: list[float] = []
        self.returns: list[float] = []
        self.slots_told = 0
        self.slots_lateness: list[float] = []
        self.latencies.clear()

    def dial(self, visitor: "Visitor", number: int) -> Line:
        """Open a line."""
        return Line(visitor, number, self._port, visitor.address, self._request)

    def call_when_returned(self, callback: Callable[[], None] | None) -> None:
        """Have this called whenever somebody comes back."""
        self._on_return = callback

    def note_return(self, visitor: "Visitor", now: float) -> None:
        """Somebody is back."""
        self.away.discard(visitor)
        self.returns.append(now)
        if self._on_return is not None:
            self._on_return()

    def fail(self, error: Exception) -> None:
        """Something happened that no rule covers: whoever waits for the crowd is told."""
        if self.failure is None:
            self.failure = error


class Visitor(ABC):
    """What both kinds have. A line's `Caller`."""

    __slots__ = (
        "_grounds",
        "_line_at_return",
        "_slot",
        "_timer",
        "_timer_at",
        "address",
        "how",
        "member",
    )

    def __init__(self, grounds: Grounds, member: Member, address: str | None) -> None:
        self.member = member
        self.address = address
        self._grounds = grounds
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = NEVER
        self._slot: float | None = None  # when it was told to come back
        self._line_at_return = 0
        self.how: Return | None = None

    # --- the crowd's ------------------------------------------------------------------------------

    @abstractmethod
    def start(self) -> None:
        """Make the first attempt."""

    @abstractmethod
    def publish(self, payload_bytes: int) -> None:
        """Publish one message, or keep it for later."""

    @abstractmethod
    def cut(self) -> None:
        """Break its line."""

    @abstractmethod
    def leave(self) -> None:
        """End for good."""

    def await_return(self) -> None:
        """From now on only a new line counts as being here."""
        self.how = None
        self._grounds.away.add(self)

    @abstractmethod
    def describe(self) -> str:
        """Where it is, for whoever waits for it."""

    # --- time -------------------------------------------------------------------------------------

    def _wake_at(self, moment: float) -> None:
        """Have `_woken` called then; a later moment than before costs nothing yet."""
        if moment >= self._timer_at:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = moment
        delay = max(0.0, moment - time.monotonic())
        self._timer = self._grounds.loop.call_later(delay, self._ring)

    def _ring(self) -> None:
        self._timer = None
        self._timer_at = NEVER
        try:
            self._woken(time.monotonic())
        except Exception as error:
            self._grounds.fail(error)

    @abstractmethod
    def _woken(self, now: float) -> None:
        """The moment of `_wake_at` has come, or an earlier one."""

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._timer_at = NEVER

    # --- notes ------------------------------------------------------------------------------------

    def _told(self, slot: float) -> None:
        """The server gave it a moment of its own."""
        self._slot = slot
        self._grounds.slots_told += 1

    def _note_dial(self, now: float) -> None:
        if self._slot is not None:
            self._grounds.slots_lateness.append(now - self._slot)
            self._slot = None

    def _note_return(self, how: Return, line: int, now: float) -> None:
        self.how = how
        self._line_at_return = line
        self._grounds.note_return(self, now)

    def _has_gone(self) -> None:
        """It has no line that serves."""
        self.member.interrupt()
        self._grounds.away.add(self)

    # --- lines ------------------------------------------------------------------------------------

    @abstractmethod
    def line_opened(self, number: int) -> None:
        """See `lines.Caller`."""

    @abstractmethod
    def line_message(self, number: int, payload: bytes) -> None:
        """See `lines.Caller`."""

    @abstractmethod
    def line_closed(self, number: int, code: int, reason: str, retry: float | None) -> None:
        """See `lines.Caller`."""

    # --- what is refused for a moment -------------------------------------------------------------

    @abstractmethod
    def _send(self, messages: Sequence[bytes]) -> None:
        """Send messages of the member's, in order."""

    def _take(self, payload: bytes, now: float) -> None:
        member = self.member
        was_refused = member.refused
        self._send(member.take(payload, now))
        if member.refused and not was_refused:
            self._grounds.loop.call_later(_TRY_AGAIN, self._again)

    def _again(self) -> None:
        self._send(self.member.again(time.monotonic()))


class SessionVisitor(Visitor):
    """With a session: nothing of the member notices that lines come and go."""

    __slots__ = ("_anew", "_lines", "_session")

    def __init__(
        self, grounds: Grounds, member: Member, address: str | None, policy: SessionPolicy
    ) -> None:
        super().__init__(grounds, member, address)
        self._session = ClientSession(policy)
        self._lines: dict[int, Line] = {}
        self._anew = False  # a session began since it was here last

    def start(self) -> None:
        """See `Visitor`."""
        self._session.start(time.monotonic())
        self._run()

    def publish(self, payload_bytes: int) -> None:
        """See `Visitor`."""
        # 0: it waits for a line, and how long that takes is no figure of the server's.
        now = time.monotonic() if self._session.is_live else 0.0
        self._send(self.member.publish(payload_bytes, now))

    def cut(self) -> None:
        """See `Visitor`."""
        for line in list(self._lines.values()):
            line.cut()

    def leave(self) -> None:
        """See `Visitor`."""
        self._session.leave()
        self._run()

    def describe(self) -> str:
        """See `Visitor`."""
        session = self._session
        due = session.next_deadline() - time.monotonic()
        return (
            f"session {self.member.number}: {session.state.value}, attempt {session.attempt}, "
            f"due in {due:.1f} s, subscribed: {self.member.subscribed}"
        )

    def _send(self, messages: Sequence[bytes]) -> None:
        session = self._session
        now = time.monotonic()
        for message in messages:
            if session.send(message, now):
                self._lines[session.line].write(message)
        self._run()

    def _run(self) -> None:
        """Do what the session says."""
        session = self._session
        while events := session.take_events():
            for event in events:
                if isinstance(event, Dial):
                    self._note_dial(time.monotonic())
                    self._lines[event.line] = self._grounds.dial(self, event.line)
                elif isinstance(event, Write):
                    self._lines[event.line].write(event.message)
                elif isinstance(event, Drop):
                    self._lines.pop(event.line).drop(leaving=event.leaving)
                elif isinstance(event, Began):
                    self._anew = True
                    self._send((self.member.begin(),))
                else:
                    self._lost(event)
        self._wake_at(session.next_deadline())

    def _lost(self, lost: Lost) -> None:
        self.member.end()
        self._has_gone()
        if lost.final:
            self._grounds.fail(ConnectionError(f"turned away: {lost.code} {lost.reason}"))

    def _woken(self, now: float) -> None:
        was_live = self._session.is_live
        self._session.tick(now)
        if was_live and not self._session.is_live:
            self._has_gone()
        self._run()

    # --- lines ------------------------------------------------------------------------------------

    def line_opened(self, number: int) -> None:
        """See `lines.Caller`."""
        now = time.monotonic()
        self._grounds.dials.append(now)
        self._session.connected(number, now)
        self._run()

    def line_message(self, number: int, payload: bytes) -> None:
        """See `lines.Caller`."""
        now = time.monotonic()
        session = self._session
        try:
            if session.message(number, payload, now):
                self._take(payload, now)
            else:
                if payload.startswith(_MOVE):
                    self._told(session.retry_at)
                self._run()
        except Exception as error:
            self._grounds.fail(error)
        if session.line != self._line_at_return and session.is_live and self.member.subscribed:
            self._returned(now)

    def line_closed(self, number: int, code: int, reason: str, retry: float | None) -> None:
        """See `lines.Caller`."""
        now = time.monotonic()
        grounds, session = self._grounds, self._session
        self._lines.pop(number, None)
        told = retry if retry is not None else close_advice(code, reason).retry
        if told is not None and not session.is_live:
            grounds.refusals.append(now)
        was_live = session.is_live
        session.closed(number, now, code, reason, retry)
        if told is not None and session.retry_at != NEVER:
            self._told(session.retry_at)
        if was_live and not session.is_live:
            self._has_gone()
        self._run()

    def _returned(self, now: float) -> None:
        if not self._anew:
            how = Return.RESUMED
        elif self.member.was_recovered:
            how = Return.RECOVERED
        else:
            how = Return.UNRECOVERED
        self._anew = False
        self._note_return(how, self._session.line, now)


class _StockState(Enum):
    WAITING = "waiting"
    DIALING = "dialing"
    GREETING = "greeting"
    HERE = "here"
    ENDED = "ended"


class StockVisitor(Visitor):
    """Without a session, as centrifuge-js: it knows neither `retry` nor `move`."""

    __slots__ = ("_attempts", "_delay_max", "_due", "_heard_at", "_line", "_number", "_state")

    def __init__(
        self, grounds: Grounds, member: Member, address: str | None, delay_max: float
    ) -> None:
        super().__init__(grounds, member, address)
        self._delay_max = delay_max
        self._state = _StockState.WAITING
        self._line: Line | None = None
        self._number = 0
        self._attempts = 0
        self._due = NEVER
        self._heard_at = 0.0

    def start(self) -> None:
        """See `Visitor`."""
        self._dial(time.monotonic())

    def publish(self, payload_bytes: int) -> None:
        """See `Visitor`."""
        self._send(self.member.publish(payload_bytes, time.monotonic()))

    def cut(self) -> None:
        """See `Visitor`."""
        if self._line is not None:
            self._line.cut()

    def leave(self) -> None:
        """See `Visitor`."""
        self._state = _StockState.ENDED
        self._stop_timer()
        if self._line is not None:
            self._line.drop(leaving=True)
            self._line = None

    def describe(self) -> str:
        """See `Visitor`."""
        due = self._due - time.monotonic()
        return (
            f"stock {self.member.number}: {self._state.value}, attempt {self._attempts}, "
            f"due in {due:.1f} s"
        )

    def _send(self, messages: Sequence[bytes]) -> None:
        if self._line is not None:
            for message in messages:
                self._line.write(message)

    def _set_due(self, moment: float) -> None:
        self._due = moment
        self._wake_at(moment)

    def _dial(self, now: float) -> None:
        self._note_dial(now)
        self._state = _StockState.DIALING
        self._number += 1
        self._line = self._grounds.dial(self, self._number)
        self._set_due(now + _STOCK_TIMEOUT)

    def _woken(self, now: float) -> None:
        if self._state is _StockState.HERE:
            self._due = self._heard_at + self.member.ping + _STOCK_PATIENCE
        if now < self._due:
            self._wake_at(self._due)
        elif self._state is _StockState.WAITING:
            self._dial(now)
        elif self._state is not _StockState.ENDED:
            assert self._line is not None, "it has one in every other state"
            self._line.drop()
            self._lose(now)

    def _lose(self, now: float) -> None:
        self._line = None
        self.member.end()
        self._has_gone()
        longest = min(self._delay_max, _STOCK_MIN * 2 ** min(self._attempts, 31))
        delay = min(self._delay_max, _STOCK_MIN + self._grounds.random.random() * longest)
        self._attempts += 1
        self._state = _StockState.WAITING
        self._set_due(now + delay)

    # --- lines ------------------------------------------------------------------------------------

    def line_opened(self, number: int) -> None:
        """See `lines.Caller`."""
        self._grounds.dials.append(time.monotonic())
        self._state = _StockState.GREETING
        self._send((self.member.begin(),))

    def line_message(self, number: int, payload: bytes) -> None:
        """See `lines.Caller`."""
        now = self._heard_at = time.monotonic()
        member = self.member
        try:
            self._take(payload, now)
        except Exception as error:
            self._grounds.fail(error)
        if self._state is _StockState.GREETING and member.subscribed:
            self._state = _StockState.HERE
            self._attempts = 0
            how = Return.RECOVERED if member.was_recovered else Return.UNRECOVERED
            self._note_return(how, number, now)
            self._set_due(now + member.ping + _STOCK_PATIENCE)

    def line_closed(self, number: int, code: int, reason: str, retry: float | None) -> None:
        """See `lines.Caller`."""
        now = time.monotonic()
        advice = close_advice(code, reason)
        if self._state is not _StockState.HERE and (retry is not None or advice.retry is not None):
            self._grounds.refusals.append(now)
        if not advice.reconnect:
            self._state = _StockState.ENDED
            self._grounds.fail(ConnectionError(f"turned away: {code} {reason}"))
            return
        self._lose(now)
