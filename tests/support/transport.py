"""A transport without a socket: it keeps what is written, and is full when the test says so."""

import asyncio
import socket
from collections.abc import Iterator
from typing import Any

from gateway.protocol.frames import CLOSE, PING, PONG, TEXT
from tests.support.logbook import texts


class RecordingTransport(asyncio.Transport):
    """What an `asyncio.Transport` does, as far as gate, link and connection use it.

    Nothing is called back by itself: `lose` tells the protocol that the socket is gone.
    """

    def __init__(
        self,
        peer: tuple[str, int] | None = ("192.0.2.1", 4711),
        end: socket.socket | None = None,
    ) -> None:
        super().__init__({"peername": peer, "socket": end})
        self.written: list[bytes] = []
        self.reading = True
        self.closing = False
        self.aborted = False
        self.eof = False
        self.high = 0
        self.buffered = 0
        """What `get_write_buffer_size` says."""
        self.room: int | None = None
        """Writes that still fit before it is full."""
        self._protocol: Any = None

    # --- what tests do ------------------------------------------------------------------------

    def take(self) -> bytes:
        """What was written since this was called last."""
        data = b"".join(self.written)
        self.written.clear()
        return data

    def take_texts(self) -> list[str]:
        """The contents of the text frames among that, which must be all there is."""
        return texts(self.take())

    def take_frames(self) -> list[tuple[int, bytes]]:
        """The unfragmented frames among that, as opcode and payload."""
        return list(_frames(self.take()))

    def lose(self, error: Exception | None = None) -> None:
        """Let the socket be gone."""
        self._protocol.connection_lost(error)

    def fill(self) -> None:
        """Let the write buffer be over its high-water mark."""
        self._protocol.pause_writing()

    def drain(self) -> None:
        """Let the write buffer be low again."""
        self.room = None
        self._protocol.resume_writing()

    # --- what the code does -------------------------------------------------------------------

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """See `asyncio.WriteTransport`."""
        assert not self.eof, "written after write_eof()"
        self.written.append(bytes(data))
        if self.room is not None:
            self.room -= 1
            if self.room == 0:
                self.fill()

    def write_eof(self) -> None:
        """See `asyncio.WriteTransport`."""
        self.eof = True

    def can_write_eof(self) -> bool:
        """See `asyncio.WriteTransport`."""
        return True

    def close(self) -> None:
        """See `asyncio.BaseTransport`."""
        self.closing = True

    def abort(self) -> None:
        """See `asyncio.WriteTransport`."""
        self.closing = self.aborted = True

    def is_closing(self) -> bool:
        """See `asyncio.BaseTransport`."""
        return self.closing

    def pause_reading(self) -> None:
        """See `asyncio.ReadTransport`."""
        self.reading = False

    def resume_reading(self) -> None:
        """See `asyncio.ReadTransport`."""
        self.reading = True

    def is_reading(self) -> bool:
        """See `asyncio.ReadTransport`."""
        return self.reading and not self.closing

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """See `asyncio.WriteTransport`."""
        self.high = high or 0

    def get_write_buffer_size(self) -> int:
        """See `asyncio.WriteTransport`."""
        return self.buffered

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """See `asyncio.BaseTransport`."""
        self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        """See `asyncio.BaseTransport`."""
        protocol: asyncio.BaseProtocol = self._protocol
        return protocol


def _frames(data: bytes) -> Iterator[tuple[int, bytes]]:
    while data:
        opcode = data[0] & 0x0F
        assert data[0] & 0x80
        assert opcode in (TEXT, CLOSE, PING, PONG)
        length, start = data[1], 2
        if length == 126:
            length, start = int.from_bytes(data[2:4]), 4
        elif length == 127:
            length, start = int.from_bytes(data[2:10]), 10
        yield opcode, data[start : start + length]
        data = data[start + length :]
