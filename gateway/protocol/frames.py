"""WebSocket frames (RFC 6455) and permessage-deflate without context takeover (RFC 7692).

Theory of operation: `FrameReader.feed` takes whatever bytes the socket gave and returns the whole
messages in them. A broken rule ends the reader: messages before it are still returned, `failure`
says with which close code to end, and everything later is ignored. Between messages a reader holds
no buffer at all, because most of ten thousand connections are idle at any moment.

aiohttp's compiled reader was measured against this one; it can't tell the caller whether a frame
was masked, which RFC 6455 (5.1) makes a server check, and keeps 1.6 KB per idle connection
(docs/decisions/0001-own-frame-reader.md). Unmasking itself is aiohttp's compiled routine.
"""

import zlib
from dataclasses import dataclass
from enum import IntEnum
from struct import Struct
from typing import Final

from aiohttp._websocket.helpers import websocket_mask


class Opcode(IntEnum):
    """RFC 6455, 5.2."""

    CONTINUATION = 0x0
    TEXT = 0x1
    BINARY = 0x2
    CLOSE = 0x8
    PING = 0x9
    PONG = 0xA


CONTINUATION: Final = Opcode.CONTINUATION
TEXT: Final = Opcode.TEXT
BINARY: Final = Opcode.BINARY
CLOSE: Final = Opcode.CLOSE
PING: Final = Opcode.PING
PONG: Final = Opcode.PONG

# RFC 6455, 7.4.1
NORMAL_CLOSURE: Final = 1000
PROTOCOL_ERROR: Final = 1002
UNSUPPORTED_DATA: Final = 1003
NO_STATUS: Final = 1005
INVALID_PAYLOAD: Final = 1007
MESSAGE_TOO_BIG: Final = 1009

_FIN: Final = 0x80
_RSV1: Final = 0x40
_RSV: Final = 0x70
_MASKED: Final = 0x80
_CONTROL: Final = 0x08
_CONTROL_PAYLOAD_MAX: Final = 125
_DEFLATE_TAIL: Final = b"\x00\x00\xff\xff"  # RFC 7692, 7.2.1: removed by the sender

_U16: Final = Struct("!H")
_U64: Final = Struct("!Q")
_OPCODES: Final = {int(opcode): opcode for opcode in Opcode}
# Codes that may be sent in a close frame (RFC 6455, 7.4.1, and the IANA registry's later ones).
_SENDABLE_CODES: Final = frozenset({1000, 1001, 1002, 1003, *range(1007, 1015)})

Message = tuple[Opcode, str | bytes]


@dataclass(frozen=True, slots=True)
class FrameFailure:
    """Why the stream of frames can't go on; `code` is the close code to send."""

    code: int
    reason: str


class FrameError(Exception):
    """Internal: carries a failure out of the parser."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(code, reason)
        self.failure = FrameFailure(code, reason)


class FrameReader:
    """The incoming half of one WebSocket, server side.

    `feed` returns messages in order: `(TEXT, str)`, `(BINARY, bytes)`, and control frames as they
    come between fragments, `(PING|PONG, payload)` and `(CLOSE, payload)`. After a close frame, or
    once `failure` is set, input is ignored. A message may have `size_max` bytes, 125 at least.
    """

    __slots__ = (
        "_compressed",
        "_deflate",
        "_done",
        "_message",
        "_message_opcode",
        "_needed",
        "_size_max",
        "_tail",
        "failure",
    )

    def __init__(self, size_max: int, deflate: bool = False) -> None:
        assert size_max >= _CONTROL_PAYLOAD_MAX, "short frames aren't looked at for their size"
        self._size_max = size_max
        self._deflate = deflate
        # Bytes of an incomplete frame, and how many make it worth looking again: without that
        # count a frame that drips in byte by byte would be parsed from its start each time.
        self._tail: bytearray | None = None
        self._needed = 0
        # Only set while a fragmented message is read.
        self._message: bytearray | None = None
        self._message_opcode = TEXT
        self._compressed = False
        self._done = False
        self.failure: FrameFailure | None = None

    def feed(self, data: bytes) -> list[Message]:
        """Take bytes from the socket and return the messages that they complete."""
        # The most common case first: exactly one short, whole, masked text frame.
        if self._tail is None and len(data) > 6 and data[0] == 0x81 and not self._done:
            length = data[1] - _MASKED
            if 0 < length < 126 and len(data) == length + 6 and self._message is None:
                payload = bytearray(data[6:])
                websocket_mask(data[2:6], payload)
                try:
                    return [(TEXT, payload.decode())]
                except UnicodeDecodeError:
                    self._fail(FrameFailure(INVALID_PAYLOAD, "text is not UTF-8"))
                    return []
        messages: list[Message] = []
        if self._done:
            return messages
        buffer: bytes | bytearray = data
        if self._tail is not None:
            self._tail += data
            if len(self._tail) < self._needed:
                return messages
            buffer = self._tail
        try:
            used = self._parse(buffer, messages)
        except FrameError as error:
            self._fail(error.failure)
            return messages
        if used == len(buffer):
            self._tail = None
        elif used or buffer is data:
            self._tail = bytearray(memoryview(buffer)[used:])
        return messages

    def _fail(self, failure: FrameFailure) -> None:
        self.failure = failure
        self._done = True
        self._tail = None
        self._message = None

    def _parse(self, buffer: bytes | bytearray, messages: list[Message]) -> int:
        """Parse whole frames from the buffer's start; return how many bytes they took."""
        start = 0
        size = len(buffer)
        while size - start >= 2:
            first, second = buffer[start], buffer[start + 1]
            opcode = self._check_header(first, second)
            length = second & 0x7F
            payload_at = start + 6
            if length >= 126:
                wide = 2 if length == 126 else 8
                payload_at += wide
                if size - start < 2 + wide:
                    self._needed = 2 + wide
                    return start
                unpack = _U16.unpack_from if wide == 2 else _U64.unpack_from
                (length,) = unpack(buffer, start + 2)
                if length < 126 or (wide == 8 and length < 65536):
                    raise FrameError(PROTOCOL_ERROR, "length is not in its shortest form")
            if not opcode & _CONTROL:
                self._check_size(length)
            end = payload_at + length
            if size < end:
                self._needed = end - start
                return start
            payload = bytearray(buffer[payload_at:end])
            websocket_mask(bytes(buffer[payload_at - 4 : payload_at]), payload)
            start = end
            if opcode & _CONTROL:
                if opcode is CLOSE:
                    self._check_close(payload)
                    self._done = True
                messages.append((opcode, bytes(payload)))
                if self._done:
                    return size
            else:
                self._take_data(opcode, first, payload, messages)
        self._needed = 2
        return start

    def _check_header(self, first: int, second: int) -> Opcode:
        """Check a frame's first two bytes (RFC 6455, 5.2 to 5.5; RFC 7692, 6)."""
        opcode = _OPCODES.get(first & 0x0F)
        if opcode is None:
            raise FrameError(PROTOCOL_ERROR, "unknown opcode")
        if not second & _MASKED:
            raise FrameError(PROTOCOL_ERROR, "client frames must be masked")
        if opcode & _CONTROL:
            if not first & _FIN:
                raise FrameError(PROTOCOL_ERROR, "a control frame must not be fragmented")
            if second & 0x7F > _CONTROL_PAYLOAD_MAX:
                raise FrameError(PROTOCOL_ERROR, "a control frame carries at most 125 bytes")
            if first & _RSV:
                raise FrameError(PROTOCOL_ERROR, "reserved bits are set")
            return opcode
        if opcode is CONTINUATION:
            if self._message is None:
                raise FrameError(PROTOCOL_ERROR, "continuation of no message")
        elif self._message is not None:
            raise FrameError(PROTOCOL_ERROR, "a new message inside a fragmented one")
        allowed = _RSV1 if self._deflate and opcode is not CONTINUATION else 0
        if first & _RSV & ~allowed:
            raise FrameError(PROTOCOL_ERROR, "reserved bits are set")
        return opcode

    def _check_size(self, length: int) -> None:
        collected = len(self._message) if self._message is not None else 0
        if collected + length > self._size_max:
            raise FrameError(MESSAGE_TOO_BIG, f"a message has at most {self._size_max} bytes")

    def _check_close(self, payload: bytearray) -> None:
        """RFC 6455, 5.5.1: two bytes of code, then UTF-8, or nothing."""
        if not payload:
            return
        if len(payload) == 1:
            raise FrameError(PROTOCOL_ERROR, "a close frame's code has two bytes")
        (code,) = _U16.unpack_from(payload)
        if code not in _SENDABLE_CODES and not 3000 <= code <= 4999:
            raise FrameError(PROTOCOL_ERROR, "a close code that must not be sent")
        try:
            payload[2:].decode()
        except UnicodeDecodeError:
            raise FrameError(INVALID_PAYLOAD, "close reason is not UTF-8") from None

    def _take_data(
        self, opcode: Opcode, first: int, payload: bytearray, messages: list[Message]
    ) -> None:
        if opcode is CONTINUATION:
            assert self._message is not None, "checked with the header"
            self._message += payload
            if not first & _FIN:
                return
            payload, self._message = self._message, None
            opcode = self._message_opcode
        else:
            self._compressed = bool(first & _RSV1)
            if not first & _FIN:
                self._message = payload
                self._message_opcode = opcode
                return
        content = self._inflate(payload) if self._compressed else payload
        if opcode is BINARY:
            messages.append((BINARY, bytes(content)))
            return
        try:
            messages.append((TEXT, content.decode()))
        except UnicodeDecodeError:
            raise FrameError(INVALID_PAYLOAD, "text is not UTF-8") from None

    def _inflate(self, payload: bytearray) -> bytes:
        inflater = zlib.decompressobj(wbits=-zlib.MAX_WBITS)
        try:
            # One byte more than allowed, so that a bomb is noticed without being unpacked.
            content = inflater.decompress(payload + _DEFLATE_TAIL, self._size_max + 1)
        except zlib.error:
            raise FrameError(INVALID_PAYLOAD, "compressed data is damaged") from None
        if len(content) > self._size_max:
            raise FrameError(MESSAGE_TOO_BIG, f"a message has at most {self._size_max} bytes")
        return content


_SHORT_TEXT: Final = tuple(bytes((_FIN | TEXT, length)) for length in range(126))


def _header(first: int, length: int) -> bytes:
    if length < 126:
        return bytes((first, length))
    if length < 65536:
        return bytes((first, 126)) + _U16.pack(length)
    return bytes((first, 127)) + _U64.pack(length)


def text_frame(payload: bytes) -> bytes:
    """A whole text message in one unmasked frame; `payload` is UTF-8."""
    length = len(payload)
    if length < 126:
        return _SHORT_TEXT[length] + payload
    return _header(_FIN | TEXT, length) + payload


def deflated_text_frame(payload: bytes) -> bytes:
    """A whole text message, compressed by itself, for those who negotiated permessage-deflate.

    No context is taken over, so one such frame serves every subscriber.
    """
    deflater = zlib.compressobj(level=1, wbits=-zlib.MAX_WBITS)
    compressed = deflater.compress(payload) + deflater.flush(zlib.Z_SYNC_FLUSH)
    compressed = compressed.removesuffix(_DEFLATE_TAIL)
    return _header(_FIN | _RSV1 | TEXT, len(compressed)) + compressed


def skip_frames(frames: bytes, count: int) -> bytes:
    """What is left of joined frames of ours behind the first `count` of them."""
    start = 0
    for _ in range(count):
        length = frames[start + 1]
        start += 2
        if length == 126:
            length = _U16.unpack_from(frames, start)[0]
            start += 2
        elif length == 127:
            length = _U64.unpack_from(frames, start)[0]
            start += 8
        start += length
    return frames[start:]


def close_frame(code: int, reason: bytes = b"") -> bytes:
    """A close frame; `reason` is UTF-8 of at most 123 bytes."""
    assert len(reason) <= _CONTROL_PAYLOAD_MAX - 2, "RFC 6455, 5.5"
    return _header(_FIN | CLOSE, 2 + len(reason)) + _U16.pack(code) + reason


def pong_frame(payload: bytes) -> bytes:
    """The answer to a ping, with the same payload (RFC 6455, 5.5.3)."""
    return _header(_FIN | PONG, len(payload)) + payload


PING_FRAME: Final = _header(_FIN | PING, 0)


def close_code(payload: bytes) -> int:
    """The code of a received close frame, `NO_STATUS` when it has none."""
    return int(_U16.unpack_from(payload)[0]) if len(payload) >= 2 else NO_STATUS
