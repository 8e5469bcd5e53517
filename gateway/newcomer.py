"""A socket whose first message will say what it is: a session's, new or resumed, or a stock client.

Until then nobody has shown who they are, so it costs next to nothing: no client, no subscription.
First messages are received at the pace of the accept control, those who resume before others.
"""

import logging
from functools import lru_cache
from typing import Final, Protocol

from gateway.acceptance import Arrival
from gateway.connection import Services
from gateway.departed import Sockets
from gateway.link import Link
from gateway.protocol import session_frames
from gateway.protocol.backoff import DeclaredBackoff
from gateway.protocol.codes import (
    BAD_PROTOCOL,
    INAPPROPRIATE_PROTOCOL,
    STALE,
    TOO_MANY,
    Disconnect,
)
from gateway.protocol.session import Gone, Resumption, SessionViolation
from gateway.protocol.session_frames import (
    BackoffDeclaration,
    MalformedSessionFrame,
    Open,
    Resume,
)
from gateway.session_connection import SessionConnection
from gateway.sessions import BACKOFFS_REMEMBERED
from metrics import instruments

logger = logging.getLogger(__name__)

# Resumptions that one socket may try in vain before it is closed. A client has one session.
VAIN_RESUMES_MAX: Final = 4
_RESUMED: Final = instruments.SESSION_RESUMES.labels("resumed")
# All clients of one library declare the same, and so can share one object.
_in_seconds: Final = lru_cache(BACKOFFS_REMEMBERED)(BackoffDeclaration.in_seconds)
_RESUME_PREFIX: Final = '{"session":{"resume"'


class Host(Sockets, Protocol):
    """Who turns newcomers into connections."""

    def begin_stock(self, link: Link, address: str, native_ping: bool) -> None:
        """A client without a session."""

    def begin_session(
        self, link: Link, address: str, backoff: DeclaredBackoff
    ) -> SessionConnection | None:
        """A client with a session of its own; None when there is no room for one more."""

    def find_session(self, token: str) -> SessionConnection | Gone:
        """The session that a resume token names."""

    def settled(self, link: Link, address: str) -> None:
        """Who speaks over this socket is known: a session was resumed."""


class Newcomer:
    """The owner of a link until its first message; see the module."""

    __slots__ = (
        "_address",
        "_admitted",
        "_held",
        "_host",
        "_link",
        "_native_ping",
        "_services",
        "_stale_at",
        "_vain",
        "_waiting",
        "wheel_tick",
    )

    def __init__(
        self, host: Host, services: Services, link: Link, address: str, native_ping: bool
    ) -> None:
        self._host = host
        self._services = services
        self._link = link
        self._address = address
        self._native_ping = native_ping
        self._admitted = False
        self._held = False  # nothing is read while the first message waits
        self._vain = 0
        self._waiting: list[str] | None = None  # what came while the first message waits its turn
        self._stale_at = services.loop.time() + services.rules.stale_close_delay
        self.wheel_tick = 0
        link.use(self)
        services.wheel.add(self)

    # --- the link's owner -------------------------------------------------------------------------

    def text_received(self, text: str) -> None:
        """See `link.Owner`."""
        if self._waiting is not None:
            self._waiting.append(text)  # of the same segment: nothing more is read meanwhile
            return
        self._waiting = [text]
        resumes = text.startswith(_RESUME_PREFIX)
        self._services.acceptance.run(
            Arrival.RESUME if resumes else Arrival.CONNECT, self._receive_first
        )
        if self._has_waiting and not self._link.closing:
            self._held = True
            self._link.transport.pause_reading()

    @property
    def _has_waiting(self) -> bool:
        return self._waiting is not None

    def _receive_first(self) -> None:
        """The first message's turn has come."""
        waiting, self._waiting = self._waiting, None
        if waiting is None or self._link.closing:
            return
        self._read_on()
        self._settle(waiting[0])
        for text in waiting[1:]:
            self._link.pass_on(text)  # to whoever speaks now

    def _read_on(self) -> None:
        if self._held:
            self._held = False
            if not self._link.paused:
                self._link.transport.resume_reading()

    def _settle(self, text: str) -> None:
        """Become what the message says, and let that have the message."""
        if not session_frames.is_session_frame(text):
            if self._admit(Arrival.CONNECT, None):
                self._host.begin_stock(self._link, self._address, self._native_ping)
                self._link.pass_on(text)
            return
        try:
            frame = session_frames.decode_client_frame(text)
        except MalformedSessionFrame as error:
            self._refuse(str(error))
            return
        if isinstance(frame, Open):
            self._open(frame)
        elif isinstance(frame, Resume):
            self._resume(frame)
        else:
            self._refuse("the first session frame must be open or resume")

    def _open(self, frame: Open) -> None:
        if not self._admit(Arrival.CONNECT, None):
            return
        backoff = _in_seconds(frame.backoff)
        connection = self._host.begin_session(self._link, self._address, backoff)
        if connection is None:
            self._close_with_slot()
        else:
            connection.open()

    def _resume(self, frame: Resume) -> None:
        found = self._host.find_session(frame.token)
        if isinstance(found, Gone):
            # Whoever has no session any more is about to open one, which is a whole connect.
            if self._admit(Arrival.CONNECT, None):
                self._say_gone(found)
            return
        if not self._admit(Arrival.RESUME, found):
            return
        link = self._link
        try:
            gone = found.resume(link, self._address, Resumption(frame.received, frame.attempt))
        except SessionViolation as error:
            instruments.SESSION_VIOLATIONS.inc()
            self._refuse(str(error))
            return
        if gone is not None:
            self._say_gone(gone)
            return
        _RESUMED.inc()
        if found.registered:  # or else this is a socket of somebody unknown, like any other
            self._host.settled(link, self._address)

    def _say_gone(self, reason: Gone) -> None:
        instruments.SESSION_RESUMES.labels(reason.value).inc()
        self._vain += 1
        if self._vain > VAIN_RESUMES_MAX:
            self._refuse("one vain resume after the other")
        else:
            self._link.send(session_frames.gone(reason))

    def _admit(self, kind: Arrival, session: SessionConnection | None) -> bool:
        """Whether there is capacity now; if not, close with the moment at which there will be."""
        if self._admitted:
            return True
        services = self._services
        slot = None if session is None else session.slot
        retry_ms = services.acceptance.admit(kind, self._address, slot, services.loop.time())
        if retry_ms is None:
            self._admitted = True
            return True
        if session is not None:
            session.promise(retry_ms / 1000)
        self._link.close(TOO_MANY, retry_ms)
        return False

    def _close_with_slot(self) -> None:
        services = self._services
        retry = services.acceptance.slot_for_close(services.loop.time())
        self._link.close(TOO_MANY, int(retry * 1000))

    def _refuse(self, detail: str) -> None:
        logger.debug("closing a newcomer", extra={"detail": detail})
        self.close(BAD_PROTOCOL)

    def close(self, disconnect: Disconnect, retry_ms: int | None = None) -> None:
        """End it."""
        self._link.close(disconnect, retry_ms)

    def binary_received(self) -> None:
        """See `link.Owner`."""
        self.close(INAPPROPRIATE_PROTOCOL)

    def native_pong(self) -> None:
        """See `link.Owner`."""

    def writing_paused(self) -> None:
        """Read nothing either: answers to native pings pile up for who doesn't read them."""
        if not self._link.closing:
            self._link.transport.pause_reading()

    def writing_resumed(self) -> None:
        """See `link.Owner`."""
        if not self._held:
            self._link.transport.resume_reading()

    def link_closing(self) -> None:
        """See `link.Owner`."""
        services = self._services
        if not self._link.lost:
            self._held = False
            self._link.transport.resume_reading()  # or its answer would never be seen
            self._link.close_due = services.loop.time() + services.close_timeout
            services.wheel.add(self)

    def link_lost(self, code: int) -> None:
        """See `link.Owner`."""
        self._host.socket_lost(self._link, code)

    # --- the wheel's ------------------------------------------------------------------------------

    def next_deadline(self) -> float:
        """See `wheel.Timed`."""
        link = self._link
        if link.lost or not link.is_owned_by(self):
            return float("inf")
        return link.close_due if link.closing else self._stale_at

    def tick(self, now: float) -> None:
        """See `wheel.Timed`."""
        if self._link.closing:
            self._link.abort()
        else:
            self.close(STALE)

    def excuse(self, seconds: float) -> None:
        """See `wheel.Timed`."""
        self._stale_at += seconds
        if self._link.closing and self._link.is_owned_by(self):
            self._link.close_due += seconds
