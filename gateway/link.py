"""One WebSocket: bytes of a transport to messages and back, and the pressure on its write buffer.

A link is all that an open connection costs besides its client's state: no task, no queue, no object
of aiohttp's. It knows frames and the closing handshake and nothing of what messages mean.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Final, Protocol

from gateway.protocol.codes import Disconnect, close_reason
from gateway.protocol.frames import (
    BINARY,
    CLOSE,
    MESSAGE_TOO_BIG,
    NO_STATUS,
    NORMAL_CLOSURE,
    PING,
    PING_FRAME,
    TEXT,
    FrameReader,
    close_code,
    close_frame,
    pong_frame,
    text_frame,
)

logger = logging.getLogger(__name__)

ABNORMAL_CLOSURE: Final = 1006  # RFC 6455, 7.4.1: never on the wire; the line broke


class Owner(Protocol):
    """Who speaks over a link."""

    def text_received(self, text: str) -> None:
        """A text message came."""

    def binary_received(self) -> None:
        """A binary message came, which no one here can read."""

    def native_pong(self) -> None:
        """A pong frame came."""

    def writing_paused(self) -> None:
        """The write buffer went over its high-water mark."""

    def writing_resumed(self) -> None:
        """The write buffer is low again."""

    def link_closing(self) -> None:
        """Nothing can be sent any more; `link_lost` will follow."""

    def link_lost(self, code: int) -> None:
        """The socket is gone; `code` is the close code that ended it, 1006 without one."""


class Link(asyncio.Protocol):
    """A WebSocket after its handshake. Called by its transport; calls its owner."""

    __slots__ = (
        "_owner",
        "_reader",
        "close_due",
        "closing",
        "code",
        "deflate",
        "lost",
        "paused",
        "transport",
    )

    def __init__(self, transport: asyncio.Transport, size_max: int, deflate: bool) -> None:
        self.transport = transport
        self.deflate = deflate
        self.paused = False
        self.closing = False  # a close frame was sent or the transport is being closed
        self.lost = False
        # When to stop waiting for the peer's close frame, on the event loop's clock.
        self.close_due = float("inf")
        self._reader = FrameReader(size_max, deflate)
        self._owner: Owner | None = None
        self.code = ABNORMAL_CLOSURE  # that it is closed with

    def use(self, owner: Owner) -> None:
        """Say whom to call, from the next message on. Comes before any data."""
        self._owner = owner
        if self.paused:
            owner.writing_paused()  # the former one was told, this one wasn't

    @property
    def owner(self) -> Owner | None:
        """Whom the link calls; nobody before its first one and after its end."""
        return self._owner

    def is_owned_by(self, owner: Owner) -> bool:
        """Whether this is whom the link calls."""
        return self._owner is owner

    def pass_on(self, text: str) -> None:
        """Give the owner a message that a former one was given and kept."""
        if self._owner is not None and not self.closing:
            self._owner.text_received(text)

    @property
    def sink(self) -> Callable[[bytes], None]:
        """Writes whole frames without waiting, straight into the transport."""
        return self.transport.write

    # --- called by the transport ------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Take bytes from the socket."""
        pongs: list[bytes] = []
        for opcode, payload in self._reader.feed(data):
            if self.closing and opcode is not CLOSE:
                continue  # RFC 6455, 5.5.1: what follows our close frame is not looked at
            owner = self._owner  # may change with every message
            assert owner is not None, "use() comes before any data"
            if opcode is TEXT:
                if pongs:
                    self._send_pongs(pongs)
                owner.text_received(payload)  # type: ignore[arg-type]
            elif opcode is PING:
                pongs.append(pong_frame(payload))  # type: ignore[arg-type]
            elif opcode is CLOSE:
                self._take_close(payload)  # type: ignore[arg-type]
            elif opcode is BINARY:
                owner.binary_received()
            else:
                owner.native_pong()
        if pongs and not self.closing:
            self._send_pongs(pongs)
        failure = self._reader.failure
        if failure is not None and not self.closing:
            # By the code's range (A.8) all but the last would be worth another try.
            reconnect = failure.code != MESSAGE_TOO_BIG
            self._end(failure.code, close_reason(failure.reason, reconnect=reconnect))
            # The peer's frames can't be read any more, so neither its close frame: its end of the
            # stream is its answer. Closing at once would meet bytes that are still on their way
            # with a reset, and the peer might never see why.
            self.transport.write_eof()

    def _send_pongs(self, pongs: list[bytes]) -> None:
        """Answer the pings in front of a message, or at a segment's end, in one write.

        A segment may hold ten thousand. While paused nothing is read, so pongs can't fill the
        buffer.
        """
        self.transport.write(b"".join(pongs))
        pongs.clear()

    def eof_received(self) -> None:
        """The peer will send no more; half-open WebSockets make no sense."""

    def pause_writing(self) -> None:
        """The transport's buffer is over its high-water mark."""
        if not self.paused:
            self.paused = True
            if self._owner is not None:
                self._owner.writing_paused()

    def resume_writing(self) -> None:
        """The transport's buffer is low again."""
        if self.paused:
            self.paused = False
            if self._owner is not None:
                self._owner.writing_resumed()

    def connection_lost(self, exc: Exception | None) -> None:
        """The socket is closed."""
        self.lost = True
        if not self.closing:
            self.closing = True
            if self._owner is not None:
                self._owner.link_closing()
        owner, self._owner = self._owner, None  # breaks the cycle between the two
        if owner is not None:
            owner.link_lost(self.code)

    # --- called by the owner ----------------------------------------------------------------------

    def send(self, payload: bytes) -> None:
        """Send one text message."""
        if not self.closing:
            self.transport.write(text_frame(payload))

    def ping(self) -> None:
        """Send a native ping."""
        if not self.closing:
            self.transport.write(PING_FRAME)

    def close(self, disconnect: Disconnect, retry_ms: int | None) -> None:
        """Begin the closing handshake; the owner sets `close_due` when told `link_closing`."""
        if not self.closing:
            reason = close_reason(
                disconnect.reason, reconnect=disconnect.reconnect, retry_ms=retry_ms
            )
            self._end(disconnect.code, reason)

    def abort(self) -> None:
        """Drop the socket without ceremony."""
        self.transport.abort()

    def _end(self, code: int, reason: bytes) -> None:
        """Send a close frame and be done with sending."""
        self.code = code
        self.closing = True
        self.transport.write(close_frame(code, reason))
        if self._owner is not None:
            self._owner.link_closing()

    def _take_close(self, payload: bytes) -> None:
        """The peer's close frame: an answer to ours, or a goodbye that we answer (7.1.5)."""
        if not self.closing:
            code = close_code(payload)
            self._end(NORMAL_CLOSURE if code == NO_STATUS else code, b"")
            self.code = code
        self.transport.close()


class _NoLink(Link):
    """Stands where a link was: takes nothing, and is never heard of."""

    def __init__(self) -> None:
        self._owner = None
        self.closing = True
        self.lost = True
        self.paused = True
        self.deflate = False
        self.code = ABNORMAL_CLOSURE
        self.close_due = float("inf")

    def use(self, owner: Owner) -> None:
        """Nobody is called, so nobody is kept."""

    def abort(self) -> None:
        """There is nothing to drop."""


NO_LINK: Final[Link] = _NoLink()
"""What a connection has whose socket is lost: closing, lost, paused, for nothing gets through."""
