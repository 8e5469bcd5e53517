"""Subscribers that don't read cost the others nothing, and the server next to nothing."""

import asyncio

import psutil

from tests.chaos.conftest import Start
from tests.support.scrape import counted
from tests.support.server import mint
from tests.support.ws import Client, Feed

CHANNEL = "chat:busy"
MESSAGES = 4800
PADDING = "x" * 5000  # 24 megabytes in all
SLEEPERS = 8
# The kernel mustn't take everything for them. With much less, a window is smaller than a segment of
# the loopback device, and reading on takes a retransmission timeout for each.
RECEIVE_BUFFER_BYTES = 65536


async def test_who_never_reads_gets_everything_later_and_holds_nobody_up(
    database_url: str, start: Start
) -> None:
    server = await start(database_url, slow_reader_timeout="60")
    process = psutil.Process(server.pid)
    clients = [
        await Client.open(
            server.ws_url, mint(f"sleeper-{number}"), receive_buffer_bytes=RECEIVE_BUFFER_BYTES
        )
        for number in range(SLEEPERS)
    ]
    sleepers = [Feed(CHANNEL) for _ in clients]
    for client, feed in zip(clients, sleepers, strict=True):
        await client.follow(feed)
        client.pause()
    fast = await Client.open(server.ws_url, mint("fast"))
    feed = Feed(CHANNEL)
    await fast.follow(feed)
    publisher = await Client.open(server.ws_url, mint("publisher"))

    async def publish(first: int, last: int) -> None:
        for start in range(first, last, 200):
            await asyncio.gather(
                *(
                    publisher.publish(CHANNEL, {"n": number, "padding": PADDING})
                    for number in range(start, min(start + 200, last))
                )
            )

    warm = MESSAGES // 4
    await publish(0, warm)
    await fast.until(lambda: len(feed.received) == warm)
    before = process.memory_info().rss
    await publish(warm, MESSAGES)
    # Everything has come to those who read, although nothing more went to those who don't.
    await fast.until(lambda: len(feed.received) == MESSAGES)
    grown = process.memory_info().rss - before
    assert not any(len(feed.received) > MESSAGES // 2 for feed in sleepers)
    # Queues for all of them would be 150 megabytes; the log is their queue.
    assert grown < 25_000_000
    assert await counted(server, "demotions_total") >= SLEEPERS

    for client in clients:
        client.resume()
    await asyncio.gather(
        *(
            client.until(lambda feed=feed: len(feed.received) == MESSAGES, 60)  # type: ignore[misc]
            for client, feed in zip(clients, sleepers, strict=True)
        )
    )
    for each in (feed, *sleepers):
        assert not each.faults
        assert [data["n"] for data in each.data] == list(range(MESSAGES))
        assert each.lost_positions == 0
    # They are as live as everybody else.
    await publish(MESSAGES, MESSAGES + 1)
    for client, each in zip(clients, sleepers, strict=True):
        await client.until(lambda each=each: len(each.received) == MESSAGES + 1)  # type: ignore[misc]
    for client in (*clients, fast, publisher):
        await client.close()
