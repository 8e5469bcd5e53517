"""SIGTERM amid everything: an orderly end, in time."""

import asyncio
import signal
import socket
import time
from collections.abc import Iterator

import pytest

from tests.chaos.conftest import Start
from tests.support.cluster import Cluster
from tests.support.load import Load, check_log
from tests.support.server import mint
from tests.support.ws import Client, CommandError, ConnectionLost, Feed

CHANNELS = [f"chat:{number}" for number in range(4)]
SHUTDOWN_TIMEOUT = 10.0  # the default of the setting
SHUTDOWN = 3001
UNFINISHED = b"POST /api/publish HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{"


async def test_it_ends_well_under_load(database_url: str, start: Start) -> None:
    server = await start(database_url)
    clients = [await Client.open(server.ws_url, mint(f"client-{n}")) for n in range(20)]
    feeds = [Feed(CHANNELS[0]) for _ in clients]
    for client, feed in zip(clients, feeds, strict=True):
        await client.follow(feed)
    async with Load(server.ws_url, CHANNELS) as load:
        await load.more(2000)
        begun = time.monotonic()
        server.send_signal(signal.SIGTERM)
        ended = await asyncio.gather(*(client.wait_ended() for client in clients))
        assert await asyncio.to_thread(server.wait) == 0
        assert time.monotonic() - begun < SHUTDOWN_TIMEOUT
        await asyncio.to_thread(server.start)
        await load.stop()
        await check_log(database_url, load)

    for end in ended:
        assert end.code == SHUTDOWN
        advice = end.advice()
        assert (advice["reason"], advice["reconnect"]) == ("shutdown", True)
        assert 0 < advice["retry"] < 5000
        assert len(end.reason) <= 123
    # Each its own moment; a few fit into a millisecond.
    assert len({end.advice()["retry"] for end in ended}) > 2
    assert not any(feed.faults for feed in feeds)
    assert "Traceback" not in server.log()


async def test_what_was_published_last_is_committed_all_the_same(
    database_url: str, start: Start
) -> None:
    """Publishes that the signal finds under way are in the log, or their clients know nothing."""
    server = await start(database_url)
    client = await Client.open(server.ws_url, mint("alice"))
    publishes = [client.publish("chat:0", number) for number in range(1000)]
    await publishes[0]
    server.send_signal(signal.SIGTERM)
    results = await asyncio.gather(*publishes, return_exceptions=True)
    assert await asyncio.to_thread(server.wait) == 0

    await asyncio.to_thread(server.start)
    client = await Client.open(server.ws_url, mint("alice"))
    feed = Feed("chat:0", from_start=True)
    await client.follow(feed)
    acknowledged = [result for result in results if isinstance(result, dict)]
    assert all(isinstance(result, dict | ConnectionLost) for result in results)
    await client.until(lambda: len(feed.received) >= len(acknowledged))
    assert feed.data == list(range(len(feed.data)))
    assert not feed.faults
    await client.close()


async def test_nobody_can_hold_it_up(
    cluster: Cluster, database_url: str, start: Start, connection: socket.socket
) -> None:
    """A client that doesn't read, a request that never ends, and a database that is gone."""
    server = await start(database_url)
    sleeper = await Client.open(server.ws_url, mint("sleeper"), receive_buffer_bytes=65_536)
    await sleeper.follow(Feed("chat:0"))
    sleeper.pause()
    publisher = await Client.open(server.ws_url, mint("publisher"))
    await asyncio.gather(*(publisher.publish("chat:0", "x" * 60_000) for _ in range(200)))
    loop = asyncio.get_running_loop()
    await loop.sock_connect(connection, ("127.0.0.1", server.port))
    await loop.sock_sendall(connection, UNFINISHED)
    await asyncio.to_thread(cluster.stop)
    never = [publisher.publish("chat:0", "never stored") for _ in range(10)]

    begun = time.monotonic()
    server.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(server.wait) == 0
    assert time.monotonic() - begun < SHUTDOWN_TIMEOUT
    outcomes = await asyncio.gather(*never, return_exceptions=True)
    assert all(isinstance(outcome, CommandError | ConnectionLost) for outcome in outcomes)
    sleeper.resume()
    await asyncio.gather(sleeper.wait_ended(), publisher.wait_ended())


@pytest.fixture
def connection() -> Iterator[socket.socket]:
    """A socket for somebody without a library."""
    with socket.socket() as made:
        made.setblocking(False)
        yield made
