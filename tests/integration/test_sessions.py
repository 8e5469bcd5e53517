"""Sessions over real sockets: what goes on over the next one, and what the others see of it."""

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import pytest

from tests.integration.conftest import StartServer
from tests.support.peer import Peer, connected
from tests.support.scrape import api, counted, counting, wait_for_level
from tests.support.server import DEFAULT_CONFIG, ServerProcess
from tests.support.session_peer import Memory, SessionPeer, session, session_socket
from tests.support.wire import BINARY, DEADLINE

CONFIG = f"""
expiry_grace = 1
session_retention_min = 1
{DEFAULT_CONFIG}
"""
SHORT = {"min": 0, "max": 0, "attempts": 0, "timeout": 0}
"""A backoff that needs no time at all."""


@pytest.fixture(scope="module")
def server(start_server: StartServer) -> ServerProcess:
    return start_server(CONFIG)


@pytest.fixture(scope="module")
def quick_server(start_server: StartServer) -> ServerProcess:
    """One that looks often, and so keeps sessions for a few seconds only."""
    return start_server(
        CONFIG,
        GATEWAY_PING_INTERVAL="1",
        GATEWAY_PONG_TIMEOUT="0.9",
        GATEWAY_PING_DEADLINE_MIN="0.5",
        GATEWAY_PING_DEADLINE_MAX="1",
    )


async def gone(server: ServerProcess, memory: Memory) -> str:
    """Why a session can't be resumed."""
    async with session_socket(server, memory) as peer:
        answer = await peer.resume()
        reason = answer["gone"]["reason"]
        assert isinstance(reason, str)
        return reason


async def leave_seen_by(witness: Peer) -> dict[str, Any]:
    """The next leave; pings may come before it, but it has to come."""
    async with asyncio.timeout(DEADLINE):
        return await witness.push(lambda push: "leave" in push)


async def wait_detached(server: ServerProcess) -> None:
    """Wait until the server has noticed that the only session has lost its socket."""
    await wait_for_level(server, "connections", 0)


# --- from socket to socket ------------------------------------------------------------------------


async def test_a_session_goes_on_over_the_next_socket(server: ServerProcess, room: str) -> None:
    async with AsyncExitStack() as stack:
        peer = await stack.enter_async_context(session(server, "alice", room, "live:a"))
        assert peer.opened.keys() == {"token", "generation", "ping", "retain", "stable"}
        assert peer.opened["ping"] == 25_000
        for generation in range(2, 7):
            await peer.call("publish", channel=room, data=generation)
            assert (await peer.publication(room))["data"] == generation
            peer.abort()
            await api(server, "publish", channel=room, data="meanwhile")
            await api(server, "publish", channel="live:a", data="meanwhile")
            peer = await stack.enter_async_context(session_socket(server, peer.memory))
            answer = await peer.resume()
            assert answer["resumed"]["generation"] == generation
            pushes = [await peer.push() for _ in range(2)]
            assert {push["channel"] for push in pushes} == {room, "live:a"}
            assert all(push["pub"]["data"] == "meanwhile" for push in pushes)
        assert await peer.quiet() == []


async def test_payload_may_follow_an_open_at_once(server: ServerProcess, room: str) -> None:
    async with session_socket(server) as peer:
        peer.say(open={})
        await peer.connect()
        assert "opened" in await peer.heard()
        await peer.call("subscribe", channel=room)


async def test_frames_of_a_session_are_not_compressed(server: ServerProcess, room: str) -> None:
    async with session_socket(server) as peer:
        await peer.open()
        await peer.connect()
        await peer.call("subscribe", channel=room)
        await peer.call("publish", channel=room, data="x" * 5000)
        assert (await peer.publication())["data"] == "x" * 5000


async def test_what_was_processed_is_acknowledged(server: ServerProcess) -> None:
    async with session(server) as peer:
        for _ in range(31):
            await peer.call("ping")
        assert await peer.heard() == {"ack": 32}


async def test_pings_come_and_measure_the_line(quick_server: ServerProcess, room: str) -> None:
    async with session(quick_server, "alice", room) as peer:
        pings = [await peer.heard("ping") for _ in range(3)]
        assert [ping["received"] for ping in pings] == [2, 2, 2]
        assert pings[0]["rtt"] == 0
        assert 0 < pings[2]["rtt"] < 1000
        assert pings[2]["quality"] in ("excellent", "good", "fair", "poor")
        info = (await peer.call("presence", channel=room))["presence"][peer.client]
        assert info["quality"] in ("excellent", "good", "fair", "poor")


async def test_who_doesnt_answer_them_is_given_up_and_may_come_back(
    quick_server: ServerProcess, room: str
) -> None:
    async with session(quick_server, "alice", room) as peer:
        peer.answers_session_pings = False
        ended = await peer.ended()
        assert (ended.code, ended.advice) == (3012, {"reason": "no pong", "reconnect": True})
        async with session_socket(quick_server, peer.memory) as again:
            assert "resumed" in await again.resume()


async def test_native_pings_are_answered_as_well(server: ServerProcess) -> None:
    async with session(server) as peer:
        peer.wire.send("hello", 0x9)
        while (frame := await peer.wire.frame()).opcode != 0xA:
            peer._take(frame)
        assert frame.payload == b"hello"


# --- exactly once ---------------------------------------------------------------------------------


async def test_what_was_on_the_wire_is_sent_again_and_nothing_else(
    server: ServerProcess, room: str
) -> None:
    async with session(server, "alice", room, "live:b") as peer:
        before = peer.memory.received
        for number in range(10):
            await api(server, "publish", channel=room, data=number)
            await api(server, "publish", channel="live:b", data=number)
        await peer.quiet()
        peer.abort()
        for missed in (20, 7, 1, 0):
            memory = Memory(peer.memory.token, before + 20 - missed)
            async with session_socket(server, memory) as again:
                answer = await again.resume()
                assert answer["resumed"]["replay"] == missed + 1, "and the answer to the ping"
                for _ in range(missed + 1):
                    await again._read()
                assert memory.received == before + 21
                again.abort()


async def test_a_command_that_was_processed_is_not_to_be_sent_again(
    server: ServerProcess, room: str
) -> None:
    async with session(server, "alice", room) as peer:
        sent = peer.memory.sent
        for number in range(5):
            peer.begin("publish", channel=room, data=number)
        await peer.publications(3, room)
        peer.abort()
        async with session_socket(server, peer.memory) as again:
            answer = await again.resume()
            processed = answer["resumed"]["received"] - sent
            assert 3 <= processed <= 5
            for number in range(processed, 5):
                again.begin("publish", channel=room, data=number)
            history = None
            while history is None or len(history) < 5:
                history = (await again.call("history", channel=room, limit=10))["publications"]
        assert [pub["data"] for pub in history] == list(range(5))


async def test_an_answer_that_comes_later_is_not_lost(server: ServerProcess, room: str) -> None:
    """A publish whose commit is under way when the socket breaks."""
    async with session(server, "alice", room) as peer:
        number = peer.begin("publish", channel=room, data="x")
        await peer.wire.drain()
        peer.abort()
        async with session_socket(server, peer.memory) as again:
            answer = await again.resume()
            if answer["resumed"]["received"] == 2:
                again.send({"id": number, "publish": {"channel": room, "data": "x"}})
            reply = await again.reply(number)
            assert reply["publish"]["offset"] == 1
            assert (await again.publication(room))["data"] == "x"


# --- what others see of it ------------------------------------------------------------------------


async def test_presence_doesnt_flicker(server: ServerProcess, room: str) -> None:
    async with connected(server, "witness") as witness, session(server, "alice", room) as peer:
        await witness.call("subscribe", channel=room, join_leave=True)
        for _ in range(3):
            peer.abort()
            async with session_socket(server, peer.memory) as again:
                await again.resume()
                presence = (await witness.call("presence", channel=room))["presence"]
                assert {info["user"] for info in presence.values()} == {"witness", "alice"}
                again.abort()
        pushes = await witness.quiet()
        assert [push for push in pushes if "leave" in push] == []
        joins = [push["join"]["info"]["user"] for push in pushes if "join" in push]
        assert joins == ["witness"], "its own"


async def test_the_end_of_a_session_is_announced(quick_server: ServerProcess, room: str) -> None:
    async with (
        connected(quick_server, "witness") as witness,
        session(quick_server, "alice", room, backoff=dict(SHORT)) as peer,
    ):
        await witness.call("subscribe", channel=room, join_leave=True)
        retain = peer.opened["retain"] / 1000
        assert 1 <= retain <= 5.5
        loop = asyncio.get_running_loop()
        begun = loop.time()
        async with counting(quick_server, "session_ends_total", {"reason": "expired"}):
            peer.abort()
            push = await leave_seen_by(witness)
        assert push["leave"]["info"]["user"] == "alice"
        assert retain - 0.5 <= loop.time() - begun <= retain + 2
    assert await gone(quick_server, peer.memory) == "expired"


@pytest.mark.parametrize("how", ["leave", "close"])
async def test_a_goodbye_is_announced_at_once(server: ServerProcess, room: str, how: str) -> None:
    async with connected(server, "witness") as witness, session(server, "alice", room) as peer:
        await witness.call("subscribe", channel=room, join_leave=True)
        if how == "leave":
            peer.say(leave={})
            assert (await peer.ended()).code == 3000
        else:
            peer.wire.send_close(1000)
            await peer.wire.rest()
        push = await leave_seen_by(witness)
        assert push["leave"]["info"]["user"] == "alice"
    assert await gone(server, peer.memory) == "unknown"


async def test_joins_and_leaves_meanwhile_are_told(server: ServerProcess, room: str) -> None:
    async with session(server, "alice", room, listens=True) as peer:
        peer.abort()
        await wait_detached(server)
        async with connected(server, "stays") as stays, connected(server, "goes") as goes:
            await stays.call("subscribe", channel=room)
            await goes.call("subscribe", channel=room)
            await goes.call("unsubscribe", channel=room)
            async with session_socket(server, peer.memory) as again:
                await again.resume()
                joins = [push for push in await again.quiet() if "join" in push]
        assert [push["join"]["info"]["user"] for push in joins] == ["stays"]


# --- while it has no socket -----------------------------------------------------------------------


async def test_what_the_log_holds_is_caught_up(server: ServerProcess, room: str) -> None:
    async with session(server, "alice", room) as peer:
        peer.abort()
        await wait_detached(server)
        for start in range(0, 2000, 500):  # more than any tail of memory holds
            commands = [
                {"publish": {"channel": room, "data": start + number}} for number in range(500)
            ]
            await api(server, "batch", commands=commands)
        async with session_socket(server, peer.memory) as again:
            answer = await again.resume()
            assert answer["resumed"]["replay"] == 0
            pubs = await again.publications(2000, room)
        assert [pub["data"] for pub in pubs] == list(range(2000))
        assert [pub["offset"] for pub in pubs] == list(range(1, 2001))


async def test_what_no_log_holds_is_kept_and_what_is_ephemeral_isnt(server: ServerProcess) -> None:
    async with session(server, "alice", "live:c") as peer, connected(server, "bob") as bob:
        peer.abort()
        await wait_for_level(server, "connections", 1)
        for number in range(20):
            await bob.call("publish", channel="live:c", data=number, ephemeral=number % 2 == 1)
        async with session_socket(server, peer.memory) as again:
            await again.resume()
            pushes = await again.quiet()
        assert [push["pub"]["data"] for push in pushes] == list(range(0, 20, 2))


async def test_the_end_of_its_token_ends_it(server: ServerProcess, room: str) -> None:
    async with connected(server, "witness") as witness:
        await witness.call("subscribe", channel=room, join_leave=True)
        async with session(server, "alice", room, claims={"ttl": 2}) as peer:
            peer.abort()
            push = await leave_seen_by(witness)
            assert push["leave"]["info"]["user"] == "alice"
        assert await gone(server, peer.memory) == "unknown"


@pytest.mark.parametrize("away", [True, False])
async def test_the_server_api_disconnects_it(server: ServerProcess, room: str, away: bool) -> None:
    async with connected(server, "witness") as witness, session(server, "alice", room) as peer:
        await witness.call("subscribe", channel=room, join_leave=True)
        if away:
            peer.abort()
            await wait_for_level(server, "connections", 1)
        await api(server, "disconnect", user="alice")
        if not away:
            ended = await peer.ended()
            assert (ended.code, ended.advice["reconnect"]) == (3503, False)
        push = await leave_seen_by(witness)
        assert push["leave"]["info"]["user"] == "alice"
    assert await gone(server, peer.memory) == "unknown"


async def test_the_server_api_reaches_it(server: ServerProcess, room: str) -> None:
    async with session(server, "alice", room) as peer:
        peer.abort()
        await wait_detached(server)
        await api(server, "subscribe", user="alice", channel="live:d")
        await api(server, "publish", channel="live:d", data=1)
        await api(server, "unsubscribe", user="alice", channel=room)
        await api(server, "refresh", user="alice", expire_at=0)
        presence = (await api(server, "presence_stats", channel=room))["num_clients"]
        assert presence == 0
        async with session_socket(server, peer.memory) as again:
            await again.resume()
            pushes = await again.quiet()
        kinds = [next(iter(push.keys() - {"channel"})) for push in pushes]
        assert kinds == ["subscribe", "pub", "unsubscribe", "refresh"]


# --- one socket at a time -------------------------------------------------------------------------


async def test_only_one_of_many_sockets_that_race_has_the_session(
    server: ServerProcess, room: str
) -> None:
    """All ask at once; the highest attempt has it in the end, and whoever had it is told."""
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(session(server, "alice", room))
        before = await counted(server, "session_opens_total")
        memory = first.memory
        for _ in range(10):
            racers = [
                await stack.enter_async_context(
                    session_socket(server, Memory(memory.token, memory.received))
                )
                for _ in range(8)
            ]
            order = [*racers[::2], *racers[1::2]]
            for peer in order:
                peer.say(
                    resume={
                        "token": memory.token,
                        "received": memory.received,
                        "attempt": racers.index(peer) + 1,
                    }
                )
            answers = [await peer.heard() for peer in order]
            won = [peer for peer, answer in zip(order, answers, strict=True) if "resumed" in answer]
            assert racers[-1] in won
            losers = [answer for answer in answers if "gone" in answer]
            assert all(answer == {"gone": {"reason": "fenced"}} for answer in losers)
            for peer in won:
                if peer is not racers[-1]:
                    assert await peer.heard() == {"gone": {"reason": "fenced"}}
                    assert (await peer.ended()).code == 3000
            winner = racers[-1]
            await winner.call("publish", channel=room, data="x")
            await winner.publication(room)
            winner.say(ack=winner.memory.received)
            winner.abort()
            memory = Memory(memory.token, winner.memory.received)
            # So that the next round's attempts count from one again.
            winner = await stack.enter_async_context(session_socket(server, memory))
            assert "resumed" in await winner.resume()
            winner.abort()
        assert await counted(server, "session_opens_total") == before


async def test_what_comes_on_a_former_socket_has_no_effect(
    server: ServerProcess, room: str
) -> None:
    async with (
        session(server, "alice", room) as former,
        session_socket(server, Memory(former.memory.token, 2)) as peer,
    ):
        assert "resumed" in await peer.resume()
        former.begin("publish", channel=room, data="unheard")
        former.say(leave={})
        await former.drained()
        await peer.call("publish", channel=room, data="heard")
        assert (await peer.publication(room))["data"] == "heard"


async def test_a_binary_message_ends_it(server: ServerProcess) -> None:
    async with session(server) as peer:
        peer.wire.send(b"x", BINARY)
        assert (await peer.ended()).code == 3506
    assert await gone(server, peer.memory) == "unknown"


# --- nothing is left ------------------------------------------------------------------------------


async def test_nothing_is_left_when_everybody_has_gone(
    start_server: StartServer, room: str
) -> None:
    server = start_server(CONFIG)
    async with AsyncExitStack() as stack:
        peers: list[SessionPeer] = [
            await stack.enter_async_context(session(server, f"user{number}", room))
            for number in range(10)
        ]
        for peer in peers[::2]:
            peer.say(leave={})
            assert (await peer.ended()).code == 3000
        for peer in peers[1::2]:
            peer.abort()
    await wait_for_level(server, "connections", 0)
    assert await counted(server, "clients") == 5
    for number in range(1, 10, 2):
        await api(server, "disconnect", user=f"user{number}")
    for name in ("clients", "subscriptions", "channels", "paused_connections"):
        assert await counted(server, name) == 0
    for state in ("attached", "detached"):
        assert await counted(server, "sessions", {"state": state}) == 0
