"""The raw connection: what it sends is what it was told, in the pieces that it was told."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from gateway.protocol.frames import TEXT, FrameReader
from tests.support.sdk import Events
from tests.support.wire import deflate, frame, inflate, mask, wire


class Recorder(asyncio.Protocol):
    """A server's end that writes down what each read gave it."""

    def __init__(self, reads: list[bytes]) -> None:
        self._reads = reads

    def data_received(self, data: bytes) -> None:
        self._reads.append(data)


@asynccontextmanager
async def recording_server() -> AsyncIterator[tuple[int, list[bytes]]]:
    """Its port, and the list of its reads."""
    reads: list[bytes] = []
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Recorder(reads), "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1], reads
    finally:
        server.close()


async def test_parts_that_are_written_apart_are_read_apart() -> None:
    parts = [bytes((number,)) * (1 + number % 3) for number in range(200)]
    async with recording_server() as (port, reads), wire(port) as link:
        await link.write_apart(*parts)

    assert reads == parts


@pytest.mark.parametrize("size", [0, 1, 5, 125, 126, 65_535, 65_536])
def test_a_frame_is_one_that_a_server_reads(size: int) -> None:
    text = "x" * size

    assert FrameReader(100_000).feed(frame(TEXT, text.encode())) == [(TEXT, text)]


def test_masking_twice_and_inflating_give_back_what_was_there() -> None:
    for payload in (b"", b"\x00", b"hello", bytes(range(256)) * 3):
        assert mask(mask(payload)) == payload
        assert inflate(deflate(payload)) == payload


async def test_an_event_is_waited_for_and_taken_once() -> None:
    events = Events()
    events.add("said", 1)
    asyncio.get_running_loop().call_soon(events.add, "said", 2)
    events.add("done", None)

    assert await events.take("said", 2) == [1, 2]
    assert events.left("said") == []
    assert events.left("done") == [None]
