"""The client's half of the wire, as bytes built before the clock starts. Pure.

WebSocket framing is the little that a load generator needs: masked text frames out, unfragmented
text frames in. Anything else from the server is an error of the run.
"""

import base64
import os
import re
from collections.abc import Iterable, Sequence

from gateway.protocol.client_policy import close_advice

CONNECTION_PATH = "/connection/websocket"
HEAD_END = b"\r\n\r\n"

_OFFSET = re.compile(rb'"offset":(\d+)')

_TEXT = 0x81
_CLOSE = 0x88
_PONG = 0x8A
_MASKED = 0x80
_LENGTH_16 = 126
_LENGTH_64 = 127
# RFC 6455 5.3 wants a fresh key per frame against proxies that could be fooled; there is none here,
# and the server's work doesn't depend on it.
_MASK = b"\x6b\x1f\xc3\x94"


class UnexpectedFrame(Exception):
    """The server sent something that isn't a whole text frame: a close, a ping, a fragment."""

    def __init__(self, first_byte: int, data: bytes) -> None:
        super().__init__(f"unexpected frame 0x{first_byte:02x}: {data[:200]!r}")
        self._data = data

    @property
    def retry(self) -> float | None:
        """In how many seconds to come back, if it is a close frame that says so."""
        data = self._data
        if data[0] != _CLOSE or len(data) < 4:
            return None
        end = 2 + data[1]  # a close frame is never longer
        return close_advice(int.from_bytes(data[2:4], "big"), data[4:end].decode()).retry


def upgrade_request(port: int) -> bytes:
    """The HTTP request that opens the WebSocket."""
    key = base64.b64encode(os.urandom(16)).decode()
    return (
        f"GET {CONNECTION_PATH} HTTP/1.1\r\n"
        f"Host: 127.0.0.1:{port}\r\n"
        "Connection: Upgrade\r\n"
        "Upgrade: websocket\r\n"
        "Sec-WebSocket-Version: 13\r\n"
        f"Sec-WebSocket-Key: {key}\r\n"
        "\r\n"
    ).encode()


def client_frame(payload: bytes) -> bytes:
    """One masked text frame."""
    return _masked(_TEXT, payload)


def close_frame(payload: bytes) -> bytes:
    """One masked close frame; `payload` is the code and the reason."""
    return _masked(_CLOSE, payload)


def pong_frame(payload: bytes) -> bytes:
    """The answer to a ping frame."""
    return _masked(_PONG, payload)


def server_frame(payload: bytes) -> bytes:
    """One text frame as a server sends it."""
    return _header(_TEXT, len(payload), 0) + payload


def split_frames(data: bytes) -> tuple[list[bytes], bytes]:
    """Payloads of the whole text frames at the start of `data`, and the bytes left over."""
    payloads = []
    start, end = 0, len(data)
    while end - start >= 2:
        if data[start] != _TEXT:
            raise UnexpectedFrame(data[start], data[start:])
        size, body = data[start + 1], start + 2
        if size == _LENGTH_16:
            size, body = int.from_bytes(data[start + 2 : start + 4], "big"), start + 4
        elif size == _LENGTH_64:
            size, body = int.from_bytes(data[start + 2 : start + 10], "big"), start + 10
        # A length that is itself cut off reads wrong, but then its body starts behind the end.
        if body > end or body + size > end:
            break
        payloads.append(data[body : body + size])
        start = body + size
    return payloads, data[start:]


def connect_command(token: str) -> bytes:
    """The first command of every connection."""
    return b'{"id":1,"connect":{"token":"%b"}}' % token.encode()


def subscribe_command(channel: str) -> bytes:
    """The command that follows it in the same frame."""
    return b'{"id":2,"subscribe":{"channel":"%b"}}' % channel.encode()


def publish_command(number: int, channel: str, data: bytes) -> bytes:
    """A publish whose reply will carry `number` as its id."""
    return b'{"id":%d,"publish":{"channel":"%b","data":%b}}' % (number, channel.encode(), data)


def position_command(number: int, channel: str) -> bytes:
    """Asks for a channel's top offset without any publication."""
    return b'{"id":%d,"history":{"channel":"%b","limit":0}}' % (number, channel.encode())


def position_in(reply: bytes) -> int:
    """The top offset in the reply to a position command; 0 when nothing was ever published."""
    found = _OFFSET.search(reply)
    return int(found[1]) if found else 0


def joined(commands: Iterable[bytes]) -> bytes:
    """Several commands in one frame."""
    return client_frame(b"\n".join(commands))


def publication_push(channel: str, data: bytes) -> bytes:
    """What a subscriber receives, as near as the baseline needs to come to it."""
    return b'{"push":{"channel":"%b","pub":{"data":%b}}}' % (channel.encode(), data)


def count_publications(payloads: Sequence[bytes]) -> int:
    """Publications in some payloads. The payloads of this benchmark never hold the marker."""
    return sum(payload.count(b'"pub":') for payload in payloads)


def _masked(first_byte: int, payload: bytes) -> bytes:
    size = len(payload)
    repeated = (_MASK * (size // 4 + 1))[:size]
    masked = int.from_bytes(payload, "big") ^ int.from_bytes(repeated, "big")
    return _header(first_byte, size, _MASKED) + _MASK + masked.to_bytes(size, "big")


def _header(first_byte: int, size: int, mask_bit: int) -> bytes:
    if size < _LENGTH_16:
        return bytes((first_byte, mask_bit | size))
    if size < 1 << 16:
        return bytes((first_byte, mask_bit | _LENGTH_16)) + size.to_bytes(2, "big")
    return bytes((first_byte, mask_bit | _LENGTH_64)) + size.to_bytes(8, "big")
