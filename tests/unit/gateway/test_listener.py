"""A socket that listens, and the line of those who wait at it."""

import asyncio
import socket
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from gateway.acceptance import OUTSIDE_MIN
from gateway.listener import ACCEPTS_PER_TURN, BACKLOG, accept_queue, accepting
from tests.support.ports import free_port
from tests.support.waiting import until


def test_the_kernels_line_is_counted_where_the_kernel_tells() -> None:
    tells = sys.platform == "linux"
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(64)
        assert accept_queue(listener) == 0
        for _ in range(5):
            client = stack.enter_context(socket.socket())
            client.connect(listener.getsockname())
        assert accept_queue(listener) == (5 if tells else 0)
        stack.enter_context(listener.accept()[0])
        assert accept_queue(listener) == (4 if tells else 0)


def test_a_socket_that_does_not_listen_has_no_line() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        assert accept_queue(other) == 0
    assert accept_queue(other) == 0  # closed


class Noting(asyncio.Protocol):
    """Notes who came, and leaves at once."""

    def __init__(self, came: list[asyncio.BaseTransport]) -> None:
        self._came = came

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._came.append(transport)
        transport.close()


def bound() -> socket.socket:
    listener = socket.socket()
    listener.setblocking(False)
    listener.bind(("127.0.0.1", free_port()))  # one that stays free afterwards
    return listener


async def test_a_turn_takes_several_from_the_line() -> None:
    came: list[asyncio.BaseTransport] = []
    listener = bound()
    with ExitStack() as stack:
        async with accepting(listener, lambda: Noting(came)):
            for _ in range(4 * ACCEPTS_PER_TURN):
                client = stack.enter_context(socket.socket())
                client.connect(listener.getsockname())
            assert came == []
            turns = 0
            while len(came) < 4 * ACCEPTS_PER_TURN:
                await asyncio.sleep(0)
                turns += 1
            # asyncio's own loop takes as many as the line may hold.
            assert turns <= 4 + 4


async def test_nobody_is_taken_afterwards() -> None:
    came: list[asyncio.BaseTransport] = []
    listener = bound()
    address = listener.getsockname()
    async with accepting(listener, lambda: Noting(came)):
        _, writer = await asyncio.open_connection(*address)
        await until(lambda: len(came) == 1)
        writer.close()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(*address)
    assert len(came) == 1


def test_a_line_counts_as_one_when_a_turn_does_not_empty_it() -> None:
    assert OUTSIDE_MIN >= 2 * ACCEPTS_PER_TURN


def test_the_operators_page_has_these_numbers() -> None:
    page = Path(__file__).resolve().parents[3] / "docs" / "operations.md"
    text = page.read_text(encoding="utf-8")

    assert f"Up to {ACCEPTS_PER_TURN} are taken from the kernel's line in a turn" in text
    assert f"the gateway asks for {BACKLOG:,}" in text
