"""The storm's lines against a server that says what the test wants, in whatever pieces."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from scripts.benchmarks import wire
from scripts.storms.lines import Line
from tests.support.waiting import until

REQUEST = b"GET / HTTP/1.1\r\n\r\n"
GRANTED = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n"
BUSY = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 7\r\nConnection: close\r\n\r\n{}"
CLOSED = b"\x88\x0f" + (3001).to_bytes(2, "big") + b"see you later"
ABNORMAL = 1006


@dataclass
class RecordingCaller:
    """Keeps what a line reports."""

    opened: int = 0
    messages: list[bytes] = field(default_factory=list)
    closed: list[tuple[int, str, float | None]] = field(default_factory=list)

    def line_opened(self, number: int) -> None:
        self.opened += 1

    def line_message(self, number: int, payload: bytes) -> None:
        self.messages.append(payload)

    def line_closed(self, number: int, code: int, reason: str, retry: float | None) -> None:
        self.closed.append((code, reason, retry))


@dataclass
class Peer:
    """The other end of one line."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def say(self, data: bytes, *, bytewise: bool = False) -> None:
        pieces = [data[i : i + 1] for i in range(len(data))] if bytewise else [data]
        for piece in pieces:
            self.writer.write(piece)
            await self.writer.drain()
            await asyncio.sleep(0)


@asynccontextmanager
async def line_to_peer(caller: RecordingCaller) -> AsyncIterator[tuple[Line, Peer]]:
    """A line, and the server's end of it, which has read the request."""
    came: asyncio.Queue[Peer] = asyncio.Queue()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        came.put_nowait(Peer(reader, writer))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    line = Line(caller, 1, server.sockets[0].getsockname()[1], "127.0.0.9", REQUEST)
    peer = await came.get()
    assert await peer.reader.readexactly(len(REQUEST)) == REQUEST
    try:
        yield line, peer
    finally:
        line.drop()
        peer.writer.close()
        await peer.writer.wait_closed()
        server.close()
        await server.wait_closed()


@pytest.mark.parametrize("bytewise", [False, True], ids=["at once", "byte by byte"])
async def test_messages_arrive_whole_and_in_order(bytewise: bool) -> None:
    caller = RecordingCaller()
    payloads = [b"one", b"x" * 125, b"y" * 126, b"z" * 70_000 if not bytewise else b"z" * 300]
    async with line_to_peer(caller) as (_, peer):
        await peer.say(GRANTED + b"".join(map(wire.server_frame, payloads)), bytewise=bytewise)
        await until(lambda: len(caller.messages) == len(payloads))

    assert caller.opened == 1
    assert caller.messages == payloads
    assert not caller.closed  # it was dropped by this end


async def test_a_close_frame_is_answered_and_reported_with_its_reason() -> None:
    caller = RecordingCaller()
    async with line_to_peer(caller) as (_, peer):
        await peer.say(GRANTED + CLOSED)
        answer = await peer.reader.read()
        await until(lambda: bool(caller.closed))

    assert caller.closed == [(3001, "see you later", None)]
    assert answer == wire.close_frame((3001).to_bytes(2, "big"))


async def test_a_refused_upgrade_is_reported_with_the_moment_to_come_back() -> None:
    caller = RecordingCaller()
    async with line_to_peer(caller) as (_, peer):
        await peer.say(BUSY)
        await until(lambda: bool(caller.closed))

    assert caller.closed == [(ABNORMAL, "HTTP/1.1 503 Service Unavailable", 7.0)]
    assert caller.opened == 0


async def test_a_line_that_breaks_is_reported_once() -> None:
    caller = RecordingCaller()
    async with line_to_peer(caller) as (_, peer):
        await peer.say(GRANTED)
        peer.writer.transport.abort()
        await until(lambda: bool(caller.closed))

    assert caller.closed == [(ABNORMAL, "", None)]


async def test_a_server_that_is_not_there_is_reported() -> None:
    caller = RecordingCaller()
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    Line(caller, 1, port, None, REQUEST)
    await until(lambda: bool(caller.closed))

    assert caller.closed == [(ABNORMAL, "", None)]


@pytest.mark.parametrize(
    ("leave", "expected"),
    [
        (lambda line: line.drop(leaving=True), wire.close_frame((1000).to_bytes(2, "big"))),
        (lambda line: line.drop(), b""),
    ],
    ids=["with a word", "without one"],
)
async def test_a_dropped_line_reports_nothing(
    leave: Callable[[Line], None], expected: bytes
) -> None:
    caller = RecordingCaller()
    async with line_to_peer(caller) as (line, peer):
        await peer.say(GRANTED)
        await until(lambda: caller.opened == 1)
        leave(line)
        line.write(b"too late")
        assert await peer.reader.read() == expected

    assert not caller.closed
