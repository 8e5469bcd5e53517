"""WebSocket lines that cost little: ten thousand of them fit into one process.

They understand what a gateway sends: whole, unmasked frames without extensions.
"""

import asyncio
import socket
from typing import Final, Protocol, cast

from scripts.benchmarks import wire

# Everything is read into this one buffer: a loop runs one callback at a time, and each line has
# copied what it needs before it returns.
_SCRATCH: Final = memoryview(bytearray(256 * 1024))

_TEXT: Final = 0x81
_CLOSE: Final = 0x88
_PING: Final = 0x89
_NORMAL: Final = (1000).to_bytes(2, "big")
_NO_STATUS: Final = 1005
_ABNORMAL: Final = 1006
_BIND_ADDRESS_NO_PORT: Final = 24  # <linux/in.h>; the socket module names it from Python 3.12 on
_UPGRADED: Final = b"HTTP/1.1 101 "
_HEAD_MAX_BYTES: Final = 16 * 1024


class Caller(Protocol):
    """Who uses a line. Nothing more is reported of a line that was dropped, or is closed."""

    def line_opened(self, number: int) -> None:
        """The upgrade was granted."""

    def line_message(self, number: int, payload: bytes) -> None:
        """A text message came."""

    def line_closed(self, number: int, code: int, reason: str, retry: float | None) -> None:
        """It was closed by the server, or broke, or could not be opened (1006 for both).

        `retry` in seconds is what an HTTP answer said.
        """


class Line(asyncio.BufferedProtocol):
    """One line; it dials as soon as it is made."""

    __slots__ = (
        "_caller",
        "_dialing",
        "_open",
        "_over",
        "_request",
        "_rest",
        "_transport",
        "number",
    )

    def __init__(
        self, caller: Caller, number: int, port: int, address: str | None, request: bytes
    ) -> None:
        self.number = number
        self._caller = caller
        self._request = request
        self._rest = b""
        self._open = False
        self._over = False
        self._transport: asyncio.Transport | None = None
        loop = asyncio.get_running_loop()
        self._dialing: asyncio.Task[None] | None = loop.create_task(self._dial(port, address))

    async def _dial(self, port: int, address: str | None) -> None:
        loop = asyncio.get_running_loop()
        connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            connection.setblocking(False)
            if address is not None:
                connection.setsockopt(socket.IPPROTO_IP, _BIND_ADDRESS_NO_PORT, 1)
                connection.bind((address, 0))
            await loop.sock_connect(connection, ("127.0.0.1", port))
            await loop.create_connection(lambda: self, sock=connection)
        except OSError:
            connection.close()
            self._finish(_ABNORMAL, "")
        except asyncio.CancelledError:
            connection.close()
            raise
        finally:
            self._dialing = None

    # --- the caller's -----------------------------------------------------------------------------

    def write(self, message: bytes) -> None:
        """Send a text message."""
        if self._transport is not None and not self._over:
            self._transport.write(wire.client_frame(message))

    def drop(self, *, leaving: bool = False) -> None:
        """Be done with it: with a word of farewell, or as if the network were gone."""
        self._over = True
        if self._dialing is not None:
            self._dialing.cancel()
        if self._transport is None:
            return
        if leaving and self._open:
            self._transport.write(wire.close_frame(_NORMAL))
            self._transport.close()
        else:
            self._transport.abort()

    def cut(self) -> None:
        """Break it; its caller learns of it as of any line that breaks."""
        if self._transport is not None:
            self._transport.abort()

    # --- the transport's --------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.BaseProtocol`."""
        self._transport = cast(asyncio.Transport, transport)
        if self._over:
            self._transport.abort()
        else:
            self._transport.write(self._request)

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.BaseProtocol`."""
        self._finish(_ABNORMAL, "")

    def get_buffer(self, sizehint: int) -> memoryview:
        """The buffer that all share."""
        return _SCRATCH

    def buffer_updated(self, nbytes: int) -> None:
        """See `asyncio.BufferedProtocol`."""
        if self._over:
            return
        data = self._rest + _SCRATCH[:nbytes] if self._rest else bytes(_SCRATCH[:nbytes])
        if not self._open:
            head, end, data = data.partition(wire.HEAD_END)
            if not end and len(head) < _HEAD_MAX_BYTES:
                self._rest = head
                return
            if not head.startswith(_UPGRADED):
                self._refused(head)
                return
            self._open = True
            self._caller.line_opened(self.number)
        self._rest = self._take_frames(data)

    def _take_frames(self, data: bytes) -> bytes:
        """Report every whole frame; returns what is left."""
        start, end = 0, len(data)
        take = self._caller.line_message
        while end - start >= 2:
            size, body = data[start + 1], start + 2
            if size == 126:
                size, body = int.from_bytes(data[start + 2 : start + 4], "big"), start + 4
            elif size == 127:
                size, body = int.from_bytes(data[start + 2 : start + 10], "big"), start + 10
            # A length that is itself cut off reads wrong, but then its body starts behind the end.
            if body > end or body + size > end:
                break
            kind, start = data[start], body + size
            if kind == _TEXT:
                take(self.number, data[body:start])
            else:
                self._take_control(kind, data[body:start])
            if self._over:
                return b""
        return data[start:]

    def _take_control(self, kind: int, payload: bytes) -> None:
        assert self._transport is not None, "it gave us data"
        if kind == _CLOSE:
            self._transport.write(wire.close_frame(payload[:2]))
            self._transport.close()
            code = int.from_bytes(payload[:2], "big") if payload else _NO_STATUS
            self._finish(code, payload[2:].decode())
        elif kind == _PING:
            self._transport.write(wire.pong_frame(payload))
        else:
            raise wire.UnexpectedFrame(kind, payload)

    def _refused(self, head: bytes) -> None:
        """The upgrade was answered by something else than 101."""
        retry = None
        for line in head.split(b"\r\n")[1:]:
            name, _, value = line.partition(b":")
            if name.lower() == b"retry-after":
                retry = float(value)
        self.cut()
        self._finish(_ABNORMAL, head.partition(b"\r\n")[0].decode(errors="replace"), retry)

    def _finish(self, code: int, reason: str, retry: float | None = None) -> None:
        if not self._over:
            self._over = True
            self._caller.line_closed(self.number, code, reason, retry)
