"""A TCP connection that sends what it is told, right or wrong: HTTP requests and WebSocket frames.

Nothing here runs beside its caller: whoever waits for something reads until it comes, so a test
that ends leaves no task behind. Every wait ends after `DEADLINE` with TimeoutError.
"""

import asyncio
import json
import socket
import struct
import sys
import zlib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Self

DEADLINE: Final = 15.0
"""Seconds for anything that a healthy server does within a few milliseconds."""

TEXT: Final = 0x1
BINARY: Final = 0x2
CONTINUATION: Final = 0x0
CLOSE: Final = 0x8
PING: Final = 0x9
PONG: Final = 0xA

PATH: Final = "/connection/websocket"
KEY: Final = "dGhlIHNhbXBsZSBub25jZQ=="  # RFC 6455, 1.3
DEFLATE: Final = "permessage-deflate; client_max_window_bits"  # what browsers offer

_NETLINK_SOCK_DIAG: Final = 4
_SOCK_DIAG_BY_FAMILY: Final = 20
_MASK: Final = b"\x37\xfa\x21\x3d"  # RFC 6455, 5.7
_DEFLATE_TAIL: Final = b"\x00\x00\xff\xff"


@dataclass(frozen=True, slots=True)
class Response:
    """An HTTP response; header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """The body, parsed."""
        return json.loads(self.body)


class Frame(NamedTuple):
    """A frame from the server; `wire` is all of it, as it came."""

    first: int
    payload: bytes
    wire: bytes

    @property
    def opcode(self) -> int:
        """RFC 6455, 5.2."""
        return self.first & 0x0F

    @property
    def compressed(self) -> bool:
        """Whether RSV1 says that the payload is deflated (RFC 7692, 6)."""
        return bool(self.first & 0x40)

    @property
    def text(self) -> str:
        """The payload as text, inflated if need be."""
        assert self.opcode == TEXT, f"opcode {self.opcode:#x}"
        return (inflate(self.payload) if self.compressed else self.payload).decode()


class Close(NamedTuple):
    """The server's close frame."""

    code: int
    reason: str

    @classmethod
    def of(cls, frame: Frame) -> Self:
        """What a close frame says."""
        assert frame.opcode == CLOSE, frame
        (code,) = struct.unpack("!H", frame.payload[:2])
        return cls(code, frame.payload[2:].decode())

    def advice(self) -> dict[str, Any]:
        """The reason, which is JSON for whoever wants to know more (PROTOCOL.md A.12)."""
        advice = json.loads(self.reason)
        assert isinstance(advice, dict)
        return advice


def frame(
    opcode: int,
    payload: bytes = b"",
    *,
    fin: bool = True,
    rsv: int = 0,
    masked: bool = True,
    length: int | None = None,
) -> bytes:
    """A client's frame. `length` is announced instead of the real one; `rsv` is 0b100 for RSV1."""
    first = (0x80 if fin else 0) | rsv << 4 | opcode
    size = len(payload) if length is None else length
    mask_bit = 0x80 if masked else 0
    if size < 126:
        header = bytes((first, mask_bit | size))
    elif size < 65536:
        header = bytes((first, mask_bit | 126)) + struct.pack("!H", size)
    else:
        header = bytes((first, mask_bit | 127)) + struct.pack("!Q", size)
    return header + _MASK + mask(payload) if masked else header + payload


def mask(payload: bytes) -> bytes:
    """The payload as a client's frame carries it."""
    size = len(payload)
    key = (_MASK * (size // 4 + 1))[:size]
    return (int.from_bytes(payload) ^ int.from_bytes(key)).to_bytes(size)


def deflate(payload: bytes) -> bytes:
    """Compressed as permessage-deflate has it, without a context taken over."""
    deflater = zlib.compressobj(wbits=-15)
    compressed = deflater.compress(payload) + deflater.flush(zlib.Z_SYNC_FLUSH)
    return compressed.removesuffix(_DEFLATE_TAIL)


def inflate(payload: bytes) -> bytes:
    """The inverse of `deflate`."""
    return zlib.decompressobj(wbits=-15).decompress(payload + _DEFLATE_TAIL)


def head(method: str = "GET", target: str = PATH, headers: Mapping[str, str] = {}) -> bytes:
    """An HTTP request's head."""
    lines = [f"{method} {target} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode()


def upgrade_headers(**changes: str | None) -> dict[str, str]:
    """The headers of a good handshake. `Origin="…"` adds or replaces one, None leaves it out.

    An underscore in a name stands for a hyphen.
    """
    headers: dict[str, str | None] = {
        "Host": "127.0.0.1",
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Key": KEY,
        "Sec-WebSocket-Version": "13",
    }
    headers |= {name.replace("_", "-"): value for name, value in changes.items()}
    return {name: value for name, value in headers.items() if value is not None}


class Wire:
    """The client's end of one TCP connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @property
    def local_port(self) -> int:
        """This end's port."""
        port: int = self.writer.get_extra_info("sockname")[1]
        return port

    # --- out --------------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Send bytes as they are."""
        self.writer.write(data)

    async def drain(self) -> None:
        """Wait until the kernel has taken what was written."""
        async with asyncio.timeout(DEADLINE):
            await self.writer.drain()

    def send(self, payload: bytes | str, opcode: int = TEXT, **options: Any) -> None:
        """Send a frame; see `frame`."""
        data = payload.encode() if isinstance(payload, str) else payload
        self.write(frame(opcode, data, **options))

    def send_close(self, code: int = 1000, reason: bytes = b"") -> None:
        """Send a close frame."""
        self.write(frame(CLOSE, struct.pack("!H", code) + reason))

    async def write_apart(self, *parts: bytes) -> None:
        """Send bytes so that the server reads each part by itself."""
        for part in parts:
            self.write(part)
            await self.drain()
            await self._wait_until_read()

    async def _wait_until_read(self) -> None:
        """Wait until the server has taken everything from its receive queue, as Linux tells.

        Elsewhere the parts may come together.
        """
        server_port: int = self.writer.get_extra_info("peername")[1]
        async with asyncio.timeout(DEADLINE):
            while _unread(server_port, self.local_port):  # noqa: ASYNC110
                await asyncio.sleep(0)

    # --- in ---------------------------------------------------------------------------------------

    async def response(self) -> Response:
        """The next HTTP response."""
        async with asyncio.timeout(DEADLINE):
            raw = await self.reader.readuntil(b"\r\n\r\n")
            status, *lines = raw.decode("latin-1").strip().split("\r\n")
            headers = {}
            for line in lines:
                name, _, value = line.partition(":")
                headers[name.lower()] = value.strip()
            body = await self.reader.readexactly(int(headers.get("content-length", "0")))
        return Response(int(status.split()[1]), headers, body)

    async def request(
        self,
        method: str,
        target: str,
        *,
        headers: Mapping[str, str] = {},
        body: bytes = b"",
    ) -> Response:
        """Send a request on this connection and read its response."""
        length = {"Content-Length": str(len(body))} if body or method == "POST" else {}
        self.write(head(method, target, {"Host": "127.0.0.1", **length, **headers}) + body)
        return await self.response()

    async def upgrade(self, query: str = "", /, **changes: str | None) -> Response:
        """Ask for a WebSocket; the answer may be a refusal. `changes`: see `upgrade_headers`."""
        self.write(head("GET", PATH + query, upgrade_headers(**changes)))
        return await self.response()

    async def frame(self) -> Frame:
        """The next frame."""
        async with asyncio.timeout(DEADLINE):
            wire = await self.reader.readexactly(2)
            first, length = wire
            assert not length & 0x80, "a server must not mask (RFC 6455, 5.1)"
            if length == 126:
                wire += await self.reader.readexactly(2)
                (length,) = struct.unpack("!H", wire[2:])
            elif length == 127:
                wire += await self.reader.readexactly(8)
                (length,) = struct.unpack("!Q", wire[2:])
            payload = await self.reader.readexactly(length)
        return Frame(first, payload, wire + payload)

    async def text(self) -> str:
        """The next frame, which must be text."""
        return (await self.frame()).text

    async def close(self) -> Close:
        """Read up to the server's close frame, and leave it unanswered."""
        while (received := await self.frame()).opcode != CLOSE:
            pass
        return Close.of(received)

    async def closed(self) -> Close:
        """Read up to the server's close frame, answer it, and wait for the end of the connection.

        Nothing may come behind a close frame (RFC 6455, 5.5.1).
        """
        received = await self.close()
        self.send_close(received.code)
        assert await self.rest() == b""
        return received

    async def rest(self) -> bytes:
        """Everything up to the end of the connection, however it ends."""
        collected = b""
        async with asyncio.timeout(DEADLINE):
            with suppress(ConnectionError):
                while chunk := await self.reader.read(65536):
                    collected += chunk
        return collected


@asynccontextmanager
async def wire(
    port: int,
    *,
    source: str | None = None,
    receive_buffer_bytes: int | None = None,
) -> AsyncIterator[Wire]:
    """A connection to a port of 127.0.0.1, as it is before anything is sent.

    `source` is the address to come from, such as 127.0.0.2; a small receive buffer makes a client
    that doesn't read felt early.
    """
    endpoint = socket.socket()
    endpoint.setblocking(False)
    endpoint.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if source is not None:
        endpoint.bind((source, 0))
    limit = 2**16
    if receive_buffer_bytes is not None:
        endpoint.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        limit = 1024  # what the stream reads ahead of its reader
    try:
        async with asyncio.timeout(DEADLINE):
            await asyncio.get_running_loop().sock_connect(endpoint, ("127.0.0.1", port))
            reader, writer = await asyncio.open_connection(sock=endpoint, limit=limit)
    except BaseException:
        endpoint.close()
        raise
    try:
        yield Wire(reader, writer)
    finally:
        writer.close()
        with suppress(ConnectionError):
            async with asyncio.timeout(DEADLINE):
                await writer.wait_closed()


@asynccontextmanager
async def websocket(port: int, query: str = "", /, **changes: str | None) -> AsyncIterator[Wire]:
    """A connection that has become a WebSocket."""
    async with wire(port) as connection:
        response = await connection.upgrade(query, **changes)
        assert response.status == 101, response
        yield connection


async def fetch(
    port: int,
    target: str,
    *,
    method: str = "GET",
    headers: Mapping[str, str] = {},
    body: bytes = b"",
) -> Response:
    """One HTTP request on a connection of its own."""
    async with wire(port) as connection:
        headers = {"Connection": "close", **headers}
        return await connection.request(method, target, headers=headers, body=body)


def _unread(local_port: int, remote_port: int) -> bool:
    """Whether bytes wait in the receive queue of a connection's end, as Linux tells (sock_diag(7)).

    False when that end is closed, and on other systems.
    """
    if sys.platform != "linux":
        return False
    loopback = socket.inet_aton("127.0.0.1").ljust(16, b"\0")
    connection = struct.pack("!HH", local_port, remote_port) + loopback * 2
    request = struct.pack("=BBBBI", socket.AF_INET, socket.IPPROTO_TCP, 0, 0, 2**32 - 1)
    request += connection + struct.pack("=III", 0, 2**32 - 1, 2**32 - 1)  # any interface, no cookie
    header = struct.pack("=IHHII", 16 + len(request), _SOCK_DIAG_BY_FAMILY, 1, 0, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as kernel:
        kernel.send(header + request)
        answer = kernel.recv(8192)
    if struct.unpack_from("=IH", answer)[1] != _SOCK_DIAG_BY_FAMILY:
        return False
    (queued,) = struct.unpack_from("=I", answer, 16 + 56)
    return bool(queued)
