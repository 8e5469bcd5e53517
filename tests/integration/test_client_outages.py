"""The Python client, lines that break and servers that end: nothing is lost, nothing is doubled."""

import asyncio
import secrets
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from gateway.client import (
    DeclaredBackoff,
    Gateway,
    State,
    StreamPosition,
    Subscription,
    connect,
)
from tests.integration.conftest import StartServer
from tests.support.proxy import Proxy
from tests.support.scrape import counted, wait_for
from tests.support.server import DEFAULT_CONFIG, ServerProcess, mint
from tests.support.waiting import DEADLINE

# Quick, so that attempts that fail cost the tests little time.
BACKOFF = DeclaredBackoff(min=0.02, max=0.2, attempts=8, timeout=2.0)
CONFIG = f"""
ping_interval = 1
pong_timeout = 0.5
{DEFAULT_CONFIG}
"""


@pytest.fixture(scope="module")
def server(start_server: StartServer) -> ServerProcess:
    return start_server(CONFIG)


@pytest.fixture(scope="module")
def forgetful(start_server: StartServer) -> ServerProcess:
    """A server that keeps sessions for a moment only."""
    return start_server(
        CONFIG, GATEWAY_SESSION_RETENTION_MIN="0.1", GATEWAY_SESSION_RETENTION_MAX="0.1"
    )


@asynccontextmanager
async def through(proxy: Proxy, user: str = "alice") -> AsyncIterator[Gateway]:
    """A client whose lines can be broken."""
    url = f"ws://127.0.0.1:{proxy.port}/connection/websocket"
    async with connect(url, mint(user), backoff=BACKOFF) as gw:
        yield gw


@pytest.fixture
async def proxy(server: ServerProcess) -> AsyncIterator[Proxy]:
    async with Proxy("127.0.0.1", server.port) as proxy:
        yield proxy


async def take(messages: Subscription, count: int) -> list[Any]:
    """The data of the next publications."""
    taken: list[Any] = []
    async with asyncio.timeout(DEADLINE):
        while len(taken) < count:
            taken.append((await anext(messages)).data)
    return taken


async def publish_each(gw: Gateway, channel: str, count: int) -> None:
    """Numbers, one after the other."""
    for number in range(count):
        await gw.publish(channel, number)


def live_channel() -> str:
    """A channel without a log: only the session can keep what is published there."""
    return f"live:{secrets.token_hex(4)}"


# --- lines ----------------------------------------------------------------------------------------


async def test_cut_lines_are_not_noticed(server: ServerProcess, proxy: Proxy) -> None:
    """Neither by who publishes nor by who listens, where nothing but the session keeps anything."""
    channel = live_channel()
    async with (
        through(proxy, "alice") as alice,
        through(proxy, "bob") as bob,
        bob.subscribe(channel) as messages,
        asyncio.TaskGroup() as group,
    ):
        names = alice.client_id, bob.client_id
        publishing = group.create_task(publish_each(alice, channel, 200))
        seen: list[int] = []
        for _ in range(4):
            seen += await take(messages, 40)
            proxy.cut()
        seen += await take(messages, 40)
        await publishing

        assert seen == list(range(200))
        assert (alice.client_id, bob.client_id) == names
        assert bob.state is State.CONNECTED


@pytest.mark.parametrize("way", ["to_server", "to_client"])
async def test_a_line_may_be_cut_at_any_byte(proxy: Proxy, room: str, way: str) -> None:
    """Of the handshake, of a session frame, of a command or its reply, and between them."""
    places = [1, 2, 5, 40, 100, 150, 170, 180, 190, 200, 220, 250, 300, 400, 500]
    async with through(proxy) as gw, gw.subscribe(room) as messages:
        for number, place in enumerate(places):
            cut = proxy.cut_after(**{way: place})
            await gw.publish(room, number)
            assert await take(messages, 1) == [number]
            if not cut.is_set():
                proxy.cut()

        assert len((await gw.history(room)).publications) == len(places)


async def test_commands_wait_for_the_end_of_an_outage(
    server: ServerProcess, proxy: Proxy, room: str
) -> None:
    async with through(proxy) as gw:
        proxy.refuse()
        proxy.cut()
        await gw.wait_for(State.WAITING, State.RESUMING)
        publishing = [asyncio.ensure_future(gw.publish(room, number)) for number in range(300)]
        await gw.wait_for(State.RESUMING)
        await gw.wait_for(State.WAITING)
        assert gw.retry_at is not None
        assert gw.quality is None
        assert not any(task.done() for task in publishing)
        proxy.accept()
        await asyncio.gather(*publishing)

        assert gw.state is State.CONNECTED
        history = await gw.history(room, limit=300)
        assert [one.data for one in history.publications] == list(range(300))


async def test_what_was_held_up_comes_once(server: ServerProcess, proxy: Proxy, room: str) -> None:
    """Lines stall, and the packets arrive when there are others already."""
    async with through(proxy) as gw, gw.subscribe(room) as messages:
        client_id = gw.client_id
        proxy.hold_present()
        publishing = asyncio.ensure_future(gw.publish(room, 0))
        await gw.wait_for(State.WAITING, State.RESUMING)
        await publishing
        proxy.release()
        await gw.publish(room, 1)

        assert await take(messages, 2) == [0, 1]
        assert gw.client_id == client_id


# --- sessions that end ----------------------------------------------------------------------------


async def test_a_session_that_is_gone_is_recovered_by_positions(
    forgetful: ServerProcess, room: str
) -> None:
    async with (
        Proxy("127.0.0.1", forgetful.port) as proxy,
        connect(forgetful.ws_url, mint("bob")) as bob,
        through(proxy) as gw,
        gw.subscribe(room) as messages,
    ):
        client_id = gw.client_id
        await bob.publish(room, 0)
        assert await take(messages, 1) == [0]
        ended = await counted(forgetful, "session_ends_total", {"reason": "expired"})
        proxy.refuse()
        proxy.cut()
        await wait_for(forgetful, "session_ends_total", ended + 1, {"reason": "expired"})
        waiting = asyncio.ensure_future(gw.publish(room, 2))
        await bob.publish(room, 1)
        proxy.accept()
        await waiting

        assert await take(messages, 2) == [1, 2]
        assert gw.client_id != client_id


# --- servers --------------------------------------------------------------------------------------


@pytest.fixture
async def mortal(database_url: str, tmp_path: Path) -> AsyncIterator[ServerProcess]:
    """A server of the test's own."""
    server = ServerProcess(
        tmp_path, database_url=database_url, config=f"restart_time = 1\n{DEFAULT_CONFIG}"
    )
    await asyncio.to_thread(server.start)
    yield server
    await asyncio.to_thread(server.kill)


async def live_through(mortal: ServerProcess, room: str, end: signal.Signals) -> list[bool]:
    """Publish and listen while the server ends and another takes its place, twice.

    Gives whether each of the clients still has its name.
    """
    async with (
        connect(mortal.ws_url, mint("alice"), backoff=BACKOFF) as alice,
        connect(mortal.ws_url, mint("bob"), backoff=BACKOFF) as bob,
        bob.subscribe(room) as messages,
        asyncio.TaskGroup() as group,
    ):
        names = [alice.client_id, bob.client_id]
        publishing = [group.create_task(publish_each(alice, room, 250)) for _ in range(4)]
        seen = await take(messages, 100)
        for _ in range(2):
            mortal.send_signal(end)
            await asyncio.to_thread(mortal.wait)
            await asyncio.to_thread(mortal.start)
            seen += await take(messages, 100)
        async with asyncio.timeout(DEADLINE):
            await asyncio.gather(*publishing)
        seen += await take(messages, 700)

        part = await alice.history(room)
        log = list(part.publications)
        while len(log) < 1000:
            part = await alice.history(room, since=StreamPosition(log[-1].offset, part.top.epoch))
            log += part.publications
        assert [one.data for one in log] == seen
        assert sorted(seen) == sorted(list(range(250)) * 4)
        assert messages.position == part.top == StreamPosition(1000, part.top.epoch)
        return [alice.client_id == names[0], bob.client_id == names[1]]


async def test_a_killed_server_is_not_noticed(mortal: ServerProcess, room: str) -> None:
    assert await live_through(mortal, room, signal.SIGKILL) == [False, False]


async def test_a_server_that_is_replaced_is_not_noticed(mortal: ServerProcess, room: str) -> None:
    """Its sessions are taken up by the next one."""
    assert await live_through(mortal, room, signal.SIGTERM) == [True, True]
