"""Public SDKs that read too slowly: a push that their protocol doesn't know costs them nothing."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.integration.conftest import StartServer
from tests.support.proxy import Proxy
from tests.support.scrape import api, counted, wait_for_level
from tests.support.sdk import SDK, SDKSubscription
from tests.support.sdk_js import node_process
from tests.support.sdk_python import python_sdk
from tests.support.server import DEFAULT_CONFIG, ServerProcess, mint

UNLOGGED = "live:ticks"
CONFIG = f"""
slow_reader_timeout = 60
{DEFAULT_CONFIG}
"""
PIECE = "x" * 50_000
PIECES = 240  # 12 megabytes: more than what the kernel takes on the way


@pytest.fixture(scope="module")
def server(start_server: StartServer) -> ServerProcess:
    return start_server(CONFIG)


@pytest.fixture(params=["javascript", "python"])
async def sdk(request: pytest.FixtureRequest) -> AsyncIterator[SDK]:
    if request.param == "javascript":
        async with node_process() as node:
            yield node
    else:
        async with python_sdk() as python:
            yield python


async def publish(server: ServerProcess, channel: str, *data: object) -> None:
    commands = [{"publish": {"channel": channel, "data": each}} for each in data]
    for start in range(0, len(commands), 50):
        for reply in await api(server, "batch", commands=commands[start : start + 50]):
            assert "publish" in reply, reply


async def until_data(subscription: SDKSubscription, last: object) -> list[object]:
    """The data of the publications up to one."""
    received: list[object] = []
    while last not in received[-1:]:
        received.append((await subscription.events.next("publication")).data)
    return received


async def test_a_gap_is_nothing_to_an_sdk(sdk: SDK, server: ServerProcess, room: str) -> None:
    async with Proxy("127.0.0.1", server.port) as proxy:
        client = await sdk.client(
            server.ws_url.replace(str(server.port), str(proxy.port)), token=mint("alice")
        )
        await client.connect()
        subscriptions = [await client.subscription(name) for name in (room, UNLOGGED)]
        for subscription in subscriptions:
            await subscription.subscribe()
        logged, unlogged = subscriptions
        proxy.hold_answers()
        await publish(server, room, *([number, PIECE] for number in range(PIECES)))
        await wait_for_level(server, "paused_connections", 1)
        dropped = {"kind": "transient"}
        before = await counted(server, "drops_total", dropped)
        await publish(server, UNLOGGED, *range(20))
        assert await counted(server, "drops_total", dropped) - before == 20
        proxy.release()
        async with asyncio.timeout(60):
            pieces = [(await logged.events.next("publication")).data[0] for _ in range(PIECES)]
        await publish(server, UNLOGGED, "after")

        assert pieces == list(range(PIECES))
        # It went on as if nothing had been, on the same connection.
        assert await until_data(unlogged, "after") == ["after"]
        for events in (client.events, *(subscription.events for subscription in subscriptions)):
            assert events.left("error") == []
            assert events.left("disconnected") == []
        for subscription in subscriptions:
            assert subscription.events.left("unsubscribed") == []
