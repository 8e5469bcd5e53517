"""PostgreSQL stops, or is killed, and comes back, while everybody goes on publishing."""

import asyncio
from collections.abc import Callable
from typing import Any

import aiohttp
import psutil
import pytest

from tests.chaos.conftest import PUBLISH_TIMEOUT, Start
from tests.support.cluster import Cluster
from tests.support.load import Audience, Load, check_log
from tests.support.server import ServerProcess, mint
from tests.support.waiting import until
from tests.support.ws import Client, CommandError, Feed

CHANNELS = [f"chat:{number}" for number in range(4)]
# What is queued last may need a fifth of the timeout for its commit; the rest is the machine's.
WAIT_MAX = PUBLISH_TIMEOUT * 1.2 + 1.0
INTERNAL = 100
TOO_MANY_REQUESTS = 111


async def _get(url: str) -> tuple[int, Any]:
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        return response.status, await response.json()


async def _until_ready(server: ServerProcess) -> None:
    async with asyncio.timeout(20):
        while (await _get(f"{server.http_url}/api/ready"))[0] != 200:
            pass


@pytest.mark.parametrize("how", [Cluster.stop, Cluster.kill], ids=["stopped", "killed"])
async def test_a_restart_of_the_database_loses_and_doubles_nothing(
    cluster: Cluster, database_url: str, start: Start, how: Callable[[Cluster], None]
) -> None:
    server = await start(database_url)
    bystander = await Client.open(server.ws_url, mint("bystander"))
    feed = Feed("chat:quiet")
    await bystander.follow(feed)
    await bystander.send("subscribe", channel="live:1")
    async with (
        Audience(server.ws_url, CHANNELS) as audience,
        Load(server.ws_url, CHANNELS) as load,
    ):
        for round_ in range(2):
            await load.more(500)
            await asyncio.to_thread(how, cluster)
            load.slowest = 0.0

            # What needs no database goes on, in both senses of what is live.
            ready = await _get(f"{server.http_url}/api/ready")
            assert (ready[0], ready[1]["checks"]["database"]) == (503, "unreachable")
            assert (await _get(f"{server.http_url}/api/health"))[0] == 200
            await bystander.publish("live:1", round_)
            await bystander.publish("chat:quiet", "typing", ephemeral=True)
            await bystander.until(
                lambda round_=round_: (  # type: ignore[misc]
                    len(bystander.transient.get("live:1", ())) == round_ + 1
                    and len(bystander.transient.get("chat:quiet", ())) == round_ + 1
                )
            )
            # What needs it is refused after a bounded wait.
            await load.more_refused(60)
            assert load.slowest < WAIT_MAX
            assert set(load.refused.values()) == {INTERNAL}
            with pytest.raises(CommandError) as refused:
                await bystander.send("history", channel="chat:0", limit=1)
            assert (refused.value.code, refused.value.temporary) == (INTERNAL, True)

            await asyncio.to_thread(cluster.start)
            await _until_ready(server)
        await load.more(500)
        await load.stop()
        await check_log(database_url, load, audience=audience)

    # Nobody was disconnected.
    assert not load.in_doubt
    assert bystander.ended is None
    await bystander.publish("chat:quiet", "back")
    await bystander.until(lambda: feed.data == ["back"])
    assert not feed.faults
    await bystander.close()


async def test_what_waits_for_the_database_is_bounded(
    cluster: Cluster, database_url: str, start: Start
) -> None:
    """A flood during an outage fills the queue and no more; the rest is refused at once."""
    server = await start(database_url, publish_queue_max="500")
    process = psutil.Process(server.pid)
    async with Load(
        server.ws_url, CHANNELS, publishers=3, outstanding=600, padding_bytes=2000
    ) as load:
        await load.more(2000)
        before = process.memory_info().rss
        await asyncio.to_thread(cluster.stop)
        await load.more_refused(5000)
        await until(lambda: set(load.refused.values()) == {INTERNAL, TOO_MANY_REQUESTS})
        assert process.memory_info().rss - before < 30_000_000

        await asyncio.to_thread(cluster.start)
        await load.more(500)
        await load.stop()
        await check_log(database_url, load)


async def test_clients_that_come_during_an_outage_are_served_after_it(
    cluster: Cluster, database_url: str, start: Start
) -> None:
    server = await start(database_url)
    async with Load(server.ws_url, CHANNELS) as load:
        await load.more(1000)
        await load.stop()
        await asyncio.to_thread(cluster.stop)
        async with Audience(server.ws_url, [*CHANNELS, "chat:new"], count=5) as audience:
            # They have connected and asked, and get error 100 each time.
            await until(lambda: audience.refusals >= 20)
            assert not any(feed.began for feeds in audience.feeds for feed in feeds)
            await asyncio.to_thread(cluster.start)
            await check_log(database_url, load, audience=audience)
