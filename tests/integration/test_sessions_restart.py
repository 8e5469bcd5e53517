"""SIGTERM and a new process in its place: sessions go on, or end so that everybody hears of it."""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from store.pool import Connection, connect
from tests.support.cluster import Cluster
from tests.support.peer import connected
from tests.support.proxy import Proxy
from tests.support.scrape import api, counted, wait_for_level
from tests.support.server import DEFAULT_CONFIG, ServerProcess
from tests.support.session_peer import Memory, SessionPeer, session, session_socket

# Long before the platform would kill it, and short enough for a test of what holds it up.
SHUTDOWN_TIMEOUT = 6.0
CONFIG = f"""
restart_time = 0.5
shutdown_timeout = {SHUTDOWN_TIMEOUT}
{DEFAULT_CONFIG}

[[namespaces]]
name = "hall"
presence = true
join_leave = true
force_push_join_leave = true
allow_subscribe_for_client = true
allow_publish_for_client = true
allow_presence_for_client = true
"""
ROOM = "chat:room"
HALL = "hall:x"


@pytest.fixture
async def server(database_url: str, tmp_path: Path) -> AsyncIterator[ServerProcess]:
    server = ServerProcess(tmp_path, database_url=database_url, config=CONFIG)
    await asyncio.to_thread(server.start)
    yield server
    await asyncio.to_thread(server.kill)


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Connection]:
    connection = await connect(database_url)
    yield connection
    connection.terminate()


async def stop(server: ServerProcess, *peers: SessionPeer) -> None:
    """Ask it to stop, hear everything that it says, and wait for its end."""
    server.send_signal(signal.SIGTERM)
    for peer in peers:
        ended = await peer.ended()
        assert (ended.code, ended.advice["reason"]) == (3001, "shutdown")
    assert await asyncio.to_thread(server.wait) == 0


async def restart(server: ServerProcess, *peers: SessionPeer) -> None:
    """A new process in the place of the old one."""
    await stop(server, *peers)
    await asyncio.to_thread(server.start)


async def outcome(server: ServerProcess, memory: Memory) -> str:
    """What a resumption comes to: resumed, or why it is gone."""
    async with session_socket(server, memory) as peer:
        answer = await peer.resume()
        reason = "resumed" if "resumed" in answer else answer["gone"]["reason"]
        assert isinstance(reason, str)
        return reason


# --- as if nothing had happened -------------------------------------------------------------------


async def test_sessions_go_on_where_they_were(server: ServerProcess) -> None:
    async with AsyncExitStack() as stack:
        alice = await stack.enter_async_context(session(server, "alice", ROOM, HALL))
        bob = await stack.enter_async_context(session(server, "bob", ROOM, HALL))
        away = await stack.enter_async_context(session(server, "away", ROOM, HALL))
        for peer in (alice, bob, away):
            await peer.quiet()
        away.abort()
        await wait_for_level(server, "connections", 2)
        await alice.call("publish", channel=ROOM, data=1)
        await alice.call("publish", channel=HALL, data="a")
        await bob.quiet()
        alice.begin("publish", channel=ROOM, data=2)
        before = (await bob.call("presence", channel=HALL))["presence"]
        await restart(server, alice, bob)
        assert await counted(server, "sessions_taken_up_total") == 3
        presence = (await api(server, "presence", channel=HALL))["presence"]
        assert {name: info["user"] for name, info in presence.items()} == {
            name: info["user"] for name, info in before.items()
        }
        await api(server, "publish", channel=ROOM, data=3)
        await api(server, "publish", channel=HALL, data="b")
        for peer, commands in ((alice, 7), (bob, 6), (away, 4)):
            heard = peer.take_pushes()
            again = await stack.enter_async_context(session_socket(server, peer.memory))
            answer = (await again.resume())["resumed"]
            assert answer["generation"] == 2
            assert answer["received"] == commands
            while not {3, "b"} <= {push["pub"]["data"] for push in heard if "pub" in push}:
                heard.append(await again.push())
            heard += await again.quiet()
            logged = [push["pub"]["data"] for push in heard if push.get("channel") == ROOM]
            assert [data for data in logged if data != 1] == [2, 3]
            transient = [
                push["pub"]["data"]
                for push in heard
                if push.get("channel") == HALL and "pub" in push
            ]
            assert [data for data in transient if data != "a"] == ["b"]
            assert [push for push in heard if "join" in push or "leave" in push] == []


async def test_every_client_is_told_its_moment(server: ServerProcess) -> None:
    async with AsyncExitStack() as stack:
        peers = [
            await stack.enter_async_context(session(server, f"user{number}")) for number in range(5)
        ]
        stock = await stack.enter_async_context(connected(server, "stock"))
        server.send_signal(signal.SIGTERM)
        moves = [await peer.heard("move") for peer in peers]
        assert all(move["retry"] >= 500 for move in moves)
        assert all(move["deadline"] <= 1000 * SHUTDOWN_TIMEOUT for move in moves)
        assert (await stock.ended()).advice["retry"] >= 500
        for peer in peers:
            ended = await peer.ended()
            assert ended.code == 3001
            assert "retry" not in ended.advice, "the move's still holds"
        assert await asyncio.to_thread(server.wait) == 0


async def test_who_leaves_by_the_stop_is_told_of(server: ServerProcess) -> None:
    async with session(server, "alice", HALL) as alice, connected(server, "stock") as stock:
        await stock.call("subscribe", channel=HALL)
        await alice.quiet()
        server.send_signal(signal.SIGTERM)
        await stock.ended()
        await alice.ended()
        assert await asyncio.to_thread(server.wait) == 0
        await asyncio.to_thread(server.start)
        heard = alice.take_pushes()
        async with session_socket(server, alice.memory) as again:
            assert "resumed" in await again.resume()
            heard += await again.quiet()
        assert [push["leave"]["info"]["user"] for push in heard if "leave" in push] == ["stock"]


async def test_sessions_go_on_through_one_restart_after_the_other(server: ServerProcess) -> None:
    async with AsyncExitStack() as stack:
        peer = await stack.enter_async_context(session(server, "alice", ROOM, HALL))
        seen = []
        for number in range(2):
            await peer.call("publish", channel=ROOM, data=number)
            await restart(server, peer)
            seen += peer.take_pushes()
            peer = await stack.enter_async_context(session_socket(server, peer.memory))
            assert (await peer.resume())["resumed"]["generation"] == number + 2
        seen += await peer.quiet()
        assert [push["pub"]["data"] for push in seen if "pub" in push] == [0, 1]


# --- what can't go on -----------------------------------------------------------------------------


async def test_after_a_kill_nothing_is_left(server: ServerProcess) -> None:
    async with session(server, "alice", ROOM) as peer:
        await asyncio.to_thread(server.kill)
        await asyncio.to_thread(server.start)
        assert await outcome(server, peer.memory) == "unknown"


async def test_another_nodes_process_takes_nothing_up(
    server: ServerProcess, database_url: str, tmp_path: Path
) -> None:
    async with session(server, "alice", ROOM) as peer:
        await stop(server, peer)
        folder = tmp_path / "other"
        folder.mkdir()
        other = ServerProcess(folder, database_url=database_url, config=CONFIG)
        await asyncio.to_thread(other.start)
        try:
            assert await outcome(other, peer.memory) == "unknown"
            assert await counted(other, "sessions_taken_up_total") == 0
        finally:
            await asyncio.to_thread(other.kill)
        await asyncio.to_thread(server.start)
        assert await outcome(server, peer.memory) == "resumed"


@pytest.mark.parametrize(
    "statement",
    [
        "update saved_sessions set state = '\\x00' where state like $1",
        "update saved_sessions set state = substr(state, 1, 40) where state like $1",
        "update saved_sessions set saved_at = saved_at - interval '1 hour' where state like $1",
    ],
    ids=["another version", "damaged", "expired"],
)
async def test_one_that_cant_be_read_or_has_expired_costs_no_other(
    server: ServerProcess, database: Connection, statement: str
) -> None:
    async with session(server, "alice", HALL) as alice, session(server, "bob", HALL) as bob:
        await stop(server, alice, bob)
        status = await database.execute(statement, b"%alice%")
        assert status == "UPDATE 1"
        await asyncio.to_thread(server.start)
        assert await outcome(server, alice.memory) == "unknown"
        assert await outcome(server, bob.memory) == "resumed"
        assert await database.fetchval("select count(*) from saved_sessions") == 0


async def test_a_channels_new_epoch_ends_its_sessions(
    server: ServerProcess, database: Connection
) -> None:
    async with session(server, "alice", ROOM, HALL) as alice, session(server, "bob", HALL) as bob:
        await alice.call("publish", channel=ROOM, data=1)
        await stop(server, alice, bob)
        await database.execute("delete from streams")
        await asyncio.to_thread(server.start)
        assert await outcome(server, alice.memory) == "unknown"
        bob_again = Memory(bob.memory.token, bob.memory.received)
        async with session_socket(server, bob_again) as again:
            assert "resumed" in await again.resume()
            heard = await again.quiet()
        assert [push["leave"]["info"]["user"] for push in heard if "leave" in push] == ["alice"]


async def test_a_namespace_that_vanished_ends_its_sessions(
    database_url: str, tmp_path: Path
) -> None:
    old_folder, new_folder = tmp_path / "old", tmp_path / "new"
    for folder in (old_folder, new_folder):
        folder.mkdir()
    old = ServerProcess(
        old_folder,
        database_url=database_url,
        config=CONFIG,
        environment={"GATEWAY_NODE_NAME": "it"},
    )
    await asyncio.to_thread(old.start)
    async with session(old, "alice", ROOM) as alice, session(old, "bob", HALL) as bob:
        await stop(old, alice, bob)
    new = ServerProcess(
        new_folder,
        database_url=database_url,
        config=CONFIG.replace('name = "chat"', 'name = "talk"'),
        environment={"GATEWAY_NODE_NAME": "it"},
    )
    await asyncio.to_thread(new.start)
    try:
        assert await outcome(new, alice.memory) == "unknown"
        assert await outcome(new, bob.memory) == "resumed"
    finally:
        await asyncio.to_thread(new.kill)


# --- a database that is away ----------------------------------------------------------------------


@pytest.mark.parametrize("how", ["gone", "silent"])
async def test_a_database_that_is_away_holds_no_stop_up(
    cluster: Cluster, database_url: str, tmp_path: Path, how: str
) -> None:
    """Clients recover by their positions then."""
    async with Proxy.before(database_url) as proxy:
        server = ServerProcess(tmp_path, database_url=proxy.url(database_url), config=CONFIG)
        await asyncio.to_thread(server.start)
        try:
            async with session(server, "alice", ROOM) as peer:
                await peer.call("publish", channel=ROOM, data=1)
                if how == "gone":
                    proxy.refuse()
                    proxy.cut()
                else:
                    proxy.hold()
                loop = asyncio.get_running_loop()
                begun = loop.time()
                server.send_signal(signal.SIGTERM)
                assert (await peer.ended()).code == 3001
                assert await asyncio.to_thread(server.wait) == 0
                assert loop.time() - begun < SHUTDOWN_TIMEOUT + 4
                proxy.accept()
                proxy.release()
                await asyncio.to_thread(server.start)
                assert await outcome(server, peer.memory) == "unknown"
            async with session(server, "alice") as peer:
                result = await peer.call(
                    "subscribe", channel=ROOM, recover=True, epoch="", offset=0
                )
                assert [pub["data"] for pub in result["publications"]] == [1]
        finally:
            await asyncio.to_thread(server.kill)
        assert "could not save" in server.log()
        assert "Traceback" not in server.log()
