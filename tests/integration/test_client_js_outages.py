"""The network is taken away from the public JavaScript client over `ResumableWebSocket`, on Node.

The channels keep no history: what the session layer lost would be lost, and what it doubled would
be seen twice, since these publications have no offsets.
"""

import asyncio
import faulthandler
import secrets
from collections.abc import Sequence
from enum import Enum

import pytest

from tests.integration.conftest import StartServer
from tests.support.proxy import Proxy
from tests.support.sdk import Reason, SDKClient, SDKError, SDKSubscription
from tests.support.sdk_behaviour import connect, publish, subscribe
from tests.support.sdk_js import Node, node_process
from tests.support.server import ServerProcess, mint

# Within the deadline of waiting for one event (tests.support.sdk) an attempt starts and ends.
BACKOFF = {"max": 5000}
STARTED = [Reason(0, "connect called")]


class Outage(Enum):
    """How a network goes away."""

    REFUSED = "every line is reset, and so are new ones"
    SILENT = "nothing passes on any line, and nobody is told"


@pytest.fixture(scope="module")
def server(start_server: StartServer) -> ServerProcess:
    return start_server()


async def numbers(subscription: SDKSubscription, count: int) -> list[int]:
    """The data of the next publications."""
    return [
        publication.data for publication in await subscription.events.take("publication", count)
    ]


async def wait_for_line(client: SDKClient, state: str) -> None:
    """The line has got into a state since this was called last."""
    while (await client.events.next("line"))["state"] != state:
        pass


async def try_to_publish(client: SDKClient, channel: str, data: Sequence[int]) -> None:
    """Publish; the SDK gives up soon, but what it has sent is sent."""
    outcomes = await asyncio.gather(
        *(client.publish(channel, number) for number in data), return_exceptions=True
    )
    for outcome in outcomes:
        assert outcome is None or (isinstance(outcome, SDKError) and outcome.code == 1), outcome


async def live_through(
    remote: Node, witness: SDKClient, server: ServerProcess, outage: Outage, duration: float
) -> None:
    """One client loses its network for so many seconds and goes on as if nothing had been."""
    down, up = (f"live:{secrets.token_hex(4)}" for _ in range(2))
    told = await subscribe(witness, up)
    async with Proxy("127.0.0.1", server.port) as proxy:
        url = f"ws://127.0.0.1:{proxy.port}/connection/websocket"
        client = await remote.client(url, token=mint("alice"))
        await client.connect()
        subscription = await subscribe(client, down)
        await publish(server, down, range(5))
        await client.publish(up, 0)
        assert await numbers(subscription, 5) == list(range(5))

        if outage is Outage.REFUSED:
            proxy.refuse()
            proxy.cut()
            await wait_for_line(client, "waiting")
        else:
            proxy.hold()
        await publish(server, down, range(5, 10))
        async with asyncio.TaskGroup() as meanwhile:
            meanwhile.create_task(try_to_publish(client, up, range(1, 6)))
            await asyncio.sleep(duration)
            await publish(server, down, range(10, 15))
            proxy.accept()
            proxy.release()
        await publish(server, down, range(15, 20))

        assert await numbers(subscription, 15) == list(range(5, 20))
        await client.publish(up, 6)
        assert await numbers(told, 7) == list(range(7))
        assert subscription.events.left("publication") == []
        assert told.events.left("publication") == []
        assert client.events.left("connecting") == STARTED
        assert client.events.left("disconnected") == []
        assert client.events.left("error") == []
        assert len(subscription.events.left("subscribing")) == 1
        await client.disconnect()


@pytest.mark.patient
@pytest.mark.timeout(240)
async def test_the_sdk_does_not_notice_that_the_network_was_away(server: ServerProcess) -> None:
    """For 1, 10 and 60 s, all at the same time."""
    faulthandler.cancel_dump_traceback_later()  # that this takes longer than others is no riddle
    async with node_process(resumable={"backoff": BACKOFF}) as remote, node_process() as other:
        witness = await connect(other, server, "witness")
        async with asyncio.TaskGroup() as clients:
            for outage in Outage:
                for duration in (1, 10, 60):
                    clients.create_task(live_through(remote, witness, server, outage, duration))
