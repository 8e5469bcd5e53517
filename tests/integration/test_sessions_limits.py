"""What sessions may cost: by user, address, node, in memory, and by those who take too little."""

import asyncio
from contextlib import AsyncExitStack

import psutil
import pytest

from tests.integration.conftest import StartServer
from tests.support.peer import connected
from tests.support.scrape import api, counted, counting, wait_for_level
from tests.support.server import DEFAULT_CONFIG, ServerProcess
from tests.support.session_peer import Memory, SessionPeer, session, session_socket
from tests.support.wire import wire

RECEIVE_BUFFER_BYTES = 65536


async def outcome(server: ServerProcess, memory: Memory, source: str | None = None) -> str:
    """What a resumption comes to: resumed, or why it is gone."""
    async with session_socket(server, memory, source=source) as peer:
        answer = await peer.resume()
        reason = "resumed" if "resumed" in answer else answer["gone"]["reason"]
        peer.abort()
    assert isinstance(reason, str)
    return reason


async def gather(
    server: ServerProcess, stack: AsyncExitStack, count: int, *channels: str, user: str = ""
) -> list[SessionPeer]:
    """So many sessions."""
    return [
        await stack.enter_async_context(session(server, user or f"user{number}", *channels))
        for number in range(count)
    ]


async def lose(server: ServerProcess, *peers: SessionPeer) -> None:
    """Break their sockets one after the other, so that the server sees it in this order."""
    for peer in peers:
        left = await counted(server, "connections") - 1
        peer.abort()
        await wait_for_level(server, "connections", left)


# --- how many -------------------------------------------------------------------------------------


async def test_a_users_session_that_waits_makes_room_for_his_next(
    start_server: StartServer, room: str
) -> None:
    server = start_server(f"connections_per_user_max = 2\n{DEFAULT_CONFIG}")
    async with AsyncExitStack() as stack:
        witness = await stack.enter_async_context(connected(server, "witness"))
        await witness.call("subscribe", channel=room, join_leave=True)
        first, second = await gather(server, stack, 2, room, user="alice")
        other = await stack.enter_async_context(session(server, "bob", room))
        await lose(server, other, second)
        async with session(server, "alice") as third:
            push = await witness.push(lambda push: "leave" in push)
            assert push["leave"]["info"]["client"] == second.client
            await first.call("ping")
            await third.call("ping")
        assert await outcome(server, second.memory) == "expired"
        assert await outcome(server, other.memory) == "resumed"


async def test_of_one_address_so_many_wait_at_most(start_server: StartServer) -> None:
    server = start_server(f"detached_sessions_per_address_max = 2\n{DEFAULT_CONFIG}")
    async with AsyncExitStack() as stack:
        peers = await gather(server, stack, 4)
        elsewhere = await stack.enter_async_context(session(server, "far", source="127.0.0.2"))
        await lose(server, elsewhere, *peers)
    assert await counted(server, "session_evictions_total") == 2
    outcomes = [await outcome(server, peer.memory) for peer in (*peers, elsewhere)]
    assert outcomes == ["expired", "expired", "resumed", "resumed", "resumed"]


async def test_at_the_nodes_limit_the_oldest_goes_or_the_new_one_waits(
    start_server: StartServer,
) -> None:
    server = start_server(f"sessions_max = 3\n{DEFAULT_CONFIG}")
    async with AsyncExitStack() as stack:
        peers = await gather(server, stack, 3)
        async with session_socket(server) as refused:
            refused.say(open={})
            ended = await refused.ended()
            assert ended.code == 3013
            assert ended.advice["retry"] > 0
        await lose(server, peers[1], peers[0])
        await stack.enter_async_context(session(server, "new"))
        assert [await outcome(server, peer.memory) for peer in peers[:2]] == ["resumed", "expired"]
        await peers[2].call("ping")


async def test_strangers_are_limited_by_address_and_sessions_dont_hide_them(
    start_server: StartServer,
) -> None:
    server = start_server(
        f"unauthenticated_per_address_max = 4\nstale_close_delay = 30\n{DEFAULT_CONFIG}"
    )
    async with AsyncExitStack() as stack:
        strangers = [await stack.enter_async_context(session_socket(server)) for _ in range(4)]
        for stranger in strangers:
            await stranger.open()
        memory = strangers[0].memory
        for source, status in ((None, 429), ("127.0.0.2", 101)):
            async with wire(server.port, source=source) as connection:
                assert (await connection.upgrade()).status == status
        # Whoever resumes a session that hasn't connected is as much of a stranger.
        async with session_socket(server, memory, source="127.0.0.2") as resumed:
            assert "resumed" in await resumed.resume()
            assert (await strangers[0].ended()).code == 3000
            async with wire(server.port) as connection:
                assert (await connection.upgrade()).status == 101
            await resumed.connect()
        await strangers[1].connect()


async def test_a_flood_of_opens_costs_no_memory(start_server: StartServer) -> None:
    server = start_server(
        "unauthenticated_per_address_max = 200\nsessions_max = 100\n"
        f"stale_close_delay = 1\n{DEFAULT_CONFIG}"
    )
    process = psutil.Process(server.pid)

    async def flood(count: int) -> None:
        for _ in range(count):
            async with wire(server.port) as connection:
                response = await connection.upgrade()
                assert response.status in (101, 429, 503)
                if response.status == 101:
                    peer = SessionPeer(connection)
                    peer.say(open={"backoff": {"max": 1e300, "attempts": 2**40}})
                    peer.say(resume={"token": "A" * 56, "received": 0})
                    await peer.wire.drain()
                    peer.abort()

    async with session(server, "alice") as alice:
        await asyncio.gather(*(flood(25) for _ in range(16)))
        before = process.memory_info().rss
        await asyncio.gather(*(flood(100) for _ in range(16)))
        await alice.call("ping")
        await wait_for_level(server, "connections", 1)
        assert await counted(server, "sessions", {"state": "attached"}) == 1
        assert await counted(server, "sessions", {"state": "detached"}) == 0
        assert process.memory_info().rss - before < 8 * 1024 * 1024


# --- memory ---------------------------------------------------------------------------------------


async def test_memory_that_runs_short_shortens_retention_and_ends_the_oldest(
    start_server: StartServer,
) -> None:
    server = start_server(
        f"session_memory_max_bytes = 1000000\n{DEFAULT_CONFIG}",
        GATEWAY_PING_INTERVAL="1",
        GATEWAY_PONG_TIMEOUT="0.9",
    )
    async with AsyncExitStack() as stack:
        peers = await gather(server, stack, 4, "live:memory")
        talker = peers[-1]
        promised = talker.opened["retain"]
        assert promised > 60_000
        await lose(server, *peers[:3])
        for _ in range(4):  # 50 KB in each of three tails, acknowledged by the fourth
            await api(server, "publish", channel="live:memory", data="x" * 50_000)
        talker.pong()
        while (await talker.heard("ping"))["retain"] >= promised:
            pass
        assert await counted(server, "sessions", {"state": "detached"}) == 3
        for _ in range(2):
            await api(server, "publish", channel="live:memory", data="x" * 50_000)
        await api(server, "publish", channel="live:memory", data="x" * 60_000)
        async with asyncio.timeout(10):
            while await counted(server, "sessions", {"state": "detached"}) == 3:
                await talker.push_or_ping()
    assert await outcome(server, peers[0].memory) in ("expired", "overflow")


async def test_a_client_that_acknowledges_nothing_costs_no_more_than_its_tail(
    start_server: StartServer,
) -> None:
    server = start_server(f"session_tail_max_bytes = 100000\n{DEFAULT_CONFIG}")
    async with session(server, "alice", "live:deaf") as peer, connected(server, "bob") as bob:
        peer.answers_session_pings = False
        for _ in range(100):
            await bob.call("publish", channel="live:deaf", data="x" * 10_000)
        for _ in range(100):
            await peer.publication("live:deaf")
        assert await counted(server, "session_overflows_total") >= 5
        async with asyncio.timeout(10):
            while not 0 < await counted(server, "session_memory_bytes") < 110_000:
                await peer.call("ping")
        peer.memory.received = 2
        peer.abort()
        assert await outcome(server, peer.memory) == "overflow"


# --- those who take too little --------------------------------------------------------------------


async def test_a_slow_session_is_closed_with_3008_and_comes_back(
    start_server: StartServer, room: str
) -> None:
    server = start_server(f"slow_reader_timeout = 1\nclose_timeout = 30\n{DEFAULT_CONFIG}")
    async with AsyncExitStack() as stack:
        bob = await stack.enter_async_context(connected(server, "bob"))
        peer = await stack.enter_async_context(
            session(server, "alice", room, receive_buffer_bytes=RECEIVE_BUFFER_BYTES)
        )
        count = 0
        async with counting(server, "write_pauses_total", {}):
            while not await counted(server, "paused_connections"):
                for _ in range(20):
                    count += 1
                    await bob.call("publish", channel=room, data=[count, "x" * 50_000])
        for _ in range(10):
            count += 1
            await bob.call("publish", channel=room, data=[count, "behind"])
        # The verdict: the socket is given up, and the session waits.
        async with asyncio.timeout(10):
            while not await counted(server, "sessions", {"state": "detached"}):
                await bob.call("ping")
        assert await counted(server, "paused_connections") == 0
        await peer.drained()
        got = [push["pub"]["data"][0] for push in peer.take_pushes()]
        again = await stack.enter_async_context(session_socket(server, peer.memory))
        answer = await again.resume()
        assert "resumed" in answer
        while len(got) < count:
            got.append((await again.publication(room))["data"][0])
        assert got == list(range(1, count + 1))


# --- nodes and time -------------------------------------------------------------------------------


async def test_a_token_of_another_node_is_unknown(start_server: StartServer) -> None:
    first = start_server(DEFAULT_CONFIG, GATEWAY_NODE_NAME="one")
    second = start_server(DEFAULT_CONFIG, GATEWAY_NODE_NAME="two")
    async with session(first) as peer:
        assert await outcome(second, peer.memory) == "unknown"
        await peer.call("ping")


@pytest.mark.parametrize("behind", ["", "=", "AAAA"])
async def test_a_token_has_one_form(start_server: StartServer, behind: str) -> None:
    server = start_server()
    async with session(server) as peer:
        wrong = Memory(peer.memory.token + behind, peer.memory.received)
        assert await outcome(server, wrong) == ("unknown" if behind else "resumed")
