"""The public JavaScript client over our `ResumableWebSocket`, on Node against a real server."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.integration.conftest import StartServer
from tests.support.proxy import Proxy
from tests.support.sdk import Reason, SDKClient, SDKError
from tests.support.sdk_behaviour import (
    CONFIG,
    SDKBehaviour,
    connect,
    expect_numbers,
    publish,
    subscribe,
)
from tests.support.sdk_js import Node, node_process
from tests.support.server import ServerProcess, mint

# As quick as the SDK itself in these tests.
QUICK = {"backoff": {"min": 50, "max": 500}}


@pytest.fixture(scope="module")
def server(start_server: StartServer) -> ServerProcess:
    return start_server(CONFIG)


@pytest.fixture
def server_of_its_own(database_url: str, tmp_path: Path) -> Iterator[ServerProcess]:
    """A server that a test may stop."""
    with ServerProcess(tmp_path, database_url=database_url, config=CONFIG) as server:
        yield server


@pytest.fixture
async def sdk() -> AsyncIterator[Node]:
    async with node_process(resumable=QUICK) as node:
        yield node


class TestJavaScriptOverSessions(SDKBehaviour):
    """The SDK does all that it does over a plain socket."""

    async def wait_until_lost(self, client: SDKClient) -> None:
        """The SDK isn't told while the session may live."""
        while (await client.events.next("line"))["state"] != "waiting":
            pass


async def test_a_deploy_is_noticed_by_nobody(
    server_of_its_own: ServerProcess, sdk: Node, room: str
) -> None:
    """Neither by the client nor by those who watch who comes and goes."""
    server = server_of_its_own
    alice = await connect(sdk, server, "alice")
    bob = await connect(sdk, server, "bob")
    watch = await subscribe(bob, room, join_leave=True)
    subscription = await subscribe(alice, room, join_leave=True)
    assert (await watch.events.next("join")).user == "bob"
    assert (await watch.events.next("join")).user == "alice"
    await publish(server, room, range(1, 6))
    await expect_numbers(subscription, range(1, 6))

    assert await asyncio.to_thread(server.terminate) == 0
    await asyncio.to_thread(server.start)
    await publish(server, room, range(6, 11))
    await expect_numbers(subscription, range(6, 11))
    await subscription.publish(11)
    await expect_numbers(subscription, [11])
    await expect_numbers(watch, range(1, 12))

    assert {info.user for info in (await watch.presence()).values()} == {"alice", "bob"}
    assert watch.events.left("join") == watch.events.left("leave") == []
    for client in (alice, bob):
        assert client.events.left("connecting") == [Reason(0, "connect called")]
        assert client.events.left("error") == []


async def test_who_disconnects_is_gone_at_once(server: ServerProcess, sdk: Node, room: str) -> None:
    """Nothing is kept for a client that doesn't want to come back."""
    alice = await connect(sdk, server, "alice")
    watch = await subscribe(await connect(sdk, server, "bob"), room, join_leave=True)
    subscription = await subscribe(alice, room, join_leave=True)
    assert [info.user for info in await watch.events.take("join", 2)] == ["bob", "alice"]
    assert subscription.events.left("unsubscribed") == []
    await alice.disconnect()

    assert (await watch.events.next("leave")).user == "alice"


async def test_wherever_the_line_is_cut_nothing_is_lost_or_doubled(
    server: ServerProcess, sdk: Node
) -> None:
    """At many places of what is said about two publications, to and fro. These have no offsets."""
    channel = f"live:{secrets.token_hex(4)}"
    async with Proxy("127.0.0.1", server.port) as proxy:
        url = f"ws://127.0.0.1:{proxy.port}/connection/websocket"
        client = await sdk.client(url, token=mint("alice"))
        await client.connect()
        subscription = await subscribe(client, channel)
        number = cuts = 0
        for way in ("to_client", "to_server"):
            for count in range(1, 120, 4):
                # What isn't reached this time counts for the next.
                cut = proxy.cut_after(**{way: count})
                published = asyncio.create_task(subscription.publish(number + 1))
                await publish(server, channel, [number])
                await published
                arrived = await subscription.events.take("publication", 2)
                assert {publication.data for publication in arrived} == {number, number + 1}
                number += 2
                cuts += cut.is_set()
        assert cuts > number / 3
        assert subscription.events.left("publication") == []
        assert client.events.left("connecting") == [Reason(0, "connect called")]
        await client.disconnect()


async def test_silence_is_found_out_and_the_session_goes_on(
    start_server: StartServer, sdk: Node
) -> None:
    """The line is lost without a word, as by a firewall that forgot it."""
    server = start_server(GATEWAY_PING_INTERVAL="1s", GATEWAY_PONG_TIMEOUT="0.5s")
    channel = f"live:{secrets.token_hex(4)}"
    async with Proxy("127.0.0.1", server.port) as proxy:
        url = f"ws://127.0.0.1:{proxy.port}/connection/websocket"
        client = await sdk.client(url, token=mint("alice"))
        await client.connect()
        subscription = await subscribe(client, channel)
        await publish(server, channel, [1])
        assert (await subscription.events.next("publication")).data == 1
        proxy.lose()
        await publish(server, channel, [2])
        with pytest.raises(SDKError, match="timeout"):
            await client.publish(channel, 3)

        arrived = await subscription.events.take("publication", 2)
        assert [publication.data for publication in arrived] == [2, 3]
        assert client.events.left("connecting") == [Reason(0, "connect called")]
        await client.disconnect()
