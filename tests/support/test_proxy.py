"""The proxy breaks lines exactly as it says."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import pytest

from tests.support.proxy import COMMITTED, STATEMENT_COMMITTED, Proxy
from tests.support.waiting import until

DEADLINE = 10.0


class Echo:
    """A server that sends back what it gets, and keeps it."""

    def __init__(self) -> None:
        self.received = b""
        self.lines = 0
        self._changed = asyncio.Condition()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.lines += 1
        try:
            while data := await reader.read(65536):
                writer.write(data)
                async with self._changed:
                    self.received += data
                    self._changed.notify_all()
        except ConnectionError:
            pass
        finally:
            writer.close()
            async with self._changed:
                self.lines -= 1
                self._changed.notify_all()

    async def has(self, *expected: bytes) -> None:
        """Wait until one of these has come, and nothing else."""
        async with self._changed:
            await self._changed.wait_for(lambda: len(self.received) >= len(expected[0]))
        assert self.received in expected

    async def is_alone(self) -> None:
        """Wait until no line is open."""
        async with self._changed:
            await self._changed.wait_for(lambda: not self.lines)


@pytest.fixture
async def echo() -> Echo:
    return Echo()


@pytest.fixture
async def proxy(echo: Echo) -> AsyncIterator[Proxy]:
    server = await asyncio.start_server(echo.serve, "127.0.0.1", 0)
    async with asyncio.timeout(DEADLINE), Proxy(*server.sockets[0].getsockname()) as proxy:
        yield proxy
    server.close()
    async with asyncio.timeout(DEADLINE):
        await echo.is_alone()


@asynccontextmanager
async def _line(
    proxy: Proxy,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def _reads_reset(reader: asyncio.StreamReader) -> bytes:
    """What comes before the reset that must come."""
    received = b""
    try:
        while data := await reader.read(65536):
            received += data
    except ConnectionResetError:
        return received
    raise AssertionError("an orderly end")


async def test_what_goes_in_comes_out(proxy: Proxy, echo: Echo) -> None:
    message = bytes(range(256)) * 4096
    async with _line(proxy) as (reader, writer):
        writer.write(message)
        assert await reader.readexactly(len(message)) == message
        assert proxy.lines == 1
        writer.write_eof()
        assert await reader.read() == b""
    assert (proxy.to_server_bytes, proxy.to_client_bytes) == (len(message), len(message))


async def test_cut_resets_both_ends_and_the_next_line_works(proxy: Proxy, echo: Echo) -> None:
    async with _line(proxy) as (reader, writer):
        writer.write(b"one")
        assert await reader.readexactly(3) == b"one"
        proxy.cut()
        assert await _reads_reset(reader) == b""
        await echo.is_alone()
    async with _line(proxy) as (reader, writer):
        writer.write(b"two")
        assert await reader.readexactly(3) == b"two"


@pytest.mark.parametrize("count", [1, 2, 5, 9])
async def test_cut_at_a_byte_on_the_way_to_the_server(proxy: Proxy, echo: Echo, count: int) -> None:
    async with _line(proxy) as (reader, writer):
        cut = proxy.cut_after(to_server=count)
        writer.write(b"123456789")
        await cut.wait()
        await _reads_reset(reader)
        await echo.has(b"123456789"[:count])


@pytest.mark.parametrize("count", [1, 2, 5, 9])
async def test_cut_at_a_byte_on_the_way_to_the_client(proxy: Proxy, echo: Echo, count: int) -> None:
    async with _line(proxy) as (reader, writer):
        cut = proxy.cut_after(to_client=count)
        writer.write(b"123456789")
        await cut.wait()
        assert await _reads_reset(reader) == b"123456789"[:count]
        await echo.has(b"123456789")


async def test_the_bytes_before_a_cut_are_counted_over_all_lines(proxy: Proxy, echo: Echo) -> None:
    async with _line(proxy) as (reader, writer), _line(proxy) as (other_reader, other_writer):
        cut = proxy.cut_after(to_server=4)
        writer.write(b"123")
        assert await reader.readexactly(3) == b"123"
        other_writer.write(b"456")
        await cut.wait()
        await echo.has(b"1234")
        await _reads_reset(reader)
        await _reads_reset(other_reader)


async def test_an_answer_is_swallowed_whole_once(proxy: Proxy, echo: Echo) -> None:
    async with _line(proxy) as (reader, writer):
        cut = proxy.cut_before_answer(b"COMMIT\0")
        writer.write(b"begin")
        assert await reader.readexactly(5) == b"begin"
        writer.write(b"...COMMIT\0...")
        await cut.wait()
        assert await _reads_reset(reader) == b""
        await echo.has(b"begin...COMMIT\0...")
    async with _line(proxy) as (reader, writer):
        writer.write(b"COMMIT\0")
        assert await reader.readexactly(7) == b"COMMIT\0"


async def test_refused_lines_never_reach_the_server(proxy: Proxy, echo: Echo) -> None:
    proxy.refuse()
    async with _line(proxy) as (reader, writer):
        writer.write(b"out")
        assert await _reads_reset(reader) == b""
    proxy.accept()
    async with _line(proxy) as (reader, writer):
        writer.write(b"in")
        assert await reader.readexactly(2) == b"in"
    await echo.has(b"in")


async def test_held_bytes_arrive_after_their_sender_has_gone(proxy: Proxy, echo: Echo) -> None:
    async with _line(proxy) as (reader, writer):
        writer.write(b"one")
        assert await reader.readexactly(3) == b"one"
        proxy.hold()
        writer.write(b"two")
        async with _line(proxy) as (_, new_writer):
            new_writer.write(b"three")
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await reader.read(1)
    assert echo.received == b"one"
    proxy.release()
    await echo.has(b"onetwothree", b"onethreetwo")


async def test_present_lines_are_held_while_new_ones_work(proxy: Proxy, echo: Echo) -> None:
    async with _line(proxy) as (reader, writer):
        writer.write(b"one")
        assert await reader.readexactly(3) == b"one"
        proxy.hold_present()
        writer.write(b"two")
        async with _line(proxy) as (new_reader, new_writer):
            new_writer.write(b"three")
            assert await new_reader.readexactly(5) == b"three"
        await echo.has(b"onethree")
        proxy.release()
        assert await reader.readexactly(3) == b"two"


async def test_answers_alone_are_held(proxy: Proxy, echo: Echo) -> None:
    async with _line(proxy) as (reader, writer):
        writer.write(b"one")
        assert await reader.readexactly(3) == b"one"
        proxy.hold_answers()
        writer.write(b"two")
        await echo.has(b"onetwo")
        await until(lambda: proxy.answers_held == 1)
        proxy.release()
        assert await reader.readexactly(3) == b"two"
    assert proxy.answers_held == 0


async def test_lost_lines_stay_silent_and_new_ones_work(proxy: Proxy, echo: Echo) -> None:
    async with _line(proxy) as (reader, writer):
        writer.write(b"one")
        assert await reader.readexactly(3) == b"one"
        proxy.lose()
        writer.write(b"two")
        async with _line(proxy) as (new_reader, new_writer):
            new_writer.write(b"three")
            assert await new_reader.readexactly(5) == b"three"
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await reader.read(1)
    assert echo.received == b"onethree"


async def test_a_client_learns_that_the_server_has_gone(echo: Echo) -> None:
    server = await asyncio.start_server(echo.serve, "127.0.0.1", 0)
    address = server.sockets[0].getsockname()
    server.close()
    async with asyncio.timeout(DEADLINE), Proxy(*address) as proxy, _line(proxy) as (reader, _):
        assert await _reads_reset(reader) == b""


async def test_postgresql_behind_it_and_a_commit_whose_answer_is_lost(database_url: str) -> None:
    proxy = Proxy.before(database_url)
    async with asyncio.timeout(DEADLINE), proxy:
        connection = await asyncpg.connect(proxy.url(database_url))
        await connection.execute("create table t (n int)")
        async with connection.transaction():
            await connection.execute("insert into t values (1)")
        cut = proxy.cut_before_answer(COMMITTED)
        with pytest.raises((asyncpg.PostgresConnectionError, OSError)):
            async with connection.transaction():
                await connection.execute("insert into t values (2)")
        assert cut.is_set()
        connection = await asyncpg.connect(proxy.url(database_url))
        cut = proxy.cut_before_answer(STATEMENT_COMMITTED)
        with pytest.raises((asyncpg.PostgresConnectionError, OSError)):
            await connection.fetchval("insert into t values (3) returning n")
        assert cut.is_set()
        connection = await asyncpg.connect(proxy.url(database_url))
        assert await connection.fetchval("select array_agg(n order by n) from t") == [1, 2, 3]
        await connection.close()
