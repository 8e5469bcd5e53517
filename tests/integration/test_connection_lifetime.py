"""How long a connection lives: tokens that end, pings that nobody answers, sockets that are dead.

The server here is in a hurry: everything that a client has time for is over within two seconds.
"""

import time
from contextlib import AsyncExitStack

import pytest

from gateway.protocol import codes
from tests.integration.conftest import StartServer
from tests.support.peer import Peer, connected, expect_end, open_peer
from tests.support.scrape import api, counted, counting, wait_for_level
from tests.support.server import DEFAULT_CONFIG, ServerProcess, mint
from tests.support.wire import PING, PONG

CONFIG = f"""
ping_interval = 1
pong_timeout = 0.5
stale_close_delay = 1
expiry_grace = 0
close_timeout = 1
{DEFAULT_CONFIG}
"""


@pytest.fixture(scope="module")
def server(start_server: StartServer) -> ServerProcess:
    return start_server(CONFIG)


# --- refresh and expiry ---------------------------------------------------------------------------


async def test_a_connection_that_is_not_refreshed_ends_with_3005(
    server: ServerProcess,
) -> None:
    async with connected(server, claims={"exp": time.time() + 1}) as alice:
        assert alice.connected["expires"] is True
        assert alice.connected["ttl"] == 1

        await expect_end(server, alice, codes.CONNECTION_EXPIRED)


async def test_a_refreshed_connection_lives_on_with_its_subscriptions(
    server: ServerProcess,
) -> None:
    soon = time.time() + 1
    private = mint("alice", channel="$chat:secret", exp=soon)
    async with connected(server, claims={"exp": soon}) as alice:
        await alice.call("subscribe", channel="$chat:secret", token=private)
        result = await alice.call("refresh", token=mint("alice"))
        assert result["expires"] is True
        assert 3590 <= result["ttl"] <= 3600
        forever = await alice.call("refresh", token=mint("alice", expire_at=0))
        assert forever == {"client": alice.client, "version": alice.connected["version"]}
        private = mint("alice", channel="$chat:secret")
        result = await alice.call("sub_refresh", channel="$chat:secret", token=private)
        assert result["expires"] is True
        assert 3590 <= result["ttl"] <= 3600

        while time.time() < soon + 0.5:
            await alice.push_or_ping()
        assert await alice.call("ping") == {}


async def test_a_refresh_with_a_bad_token_ends_the_connection(server: ServerProcess) -> None:
    for token, disconnect in (
        (mint("alice", ttl=-1), codes.CONNECTION_EXPIRED),
        (mint("bob"), codes.INVALID_TOKEN),
        ("garbage", codes.INVALID_TOKEN),
        (mint("alice", channel="chat:x"), codes.INVALID_TOKEN),
    ):
        async with connected(server) as alice:
            alice.begin("refresh", token=token)

            await expect_end(server, alice, disconnect)


async def test_a_refresh_with_a_lifetime_that_is_over_is_error_110(server: ServerProcess) -> None:
    async with connected(server) as alice:
        token = mint("alice", expire_at=int(time.time()) - 1)

        assert await alice.error("refresh", token=token) == 110
        assert await alice.call("ping") == {}


async def test_a_subscription_that_is_not_refreshed_ends_the_connection_with_3006(
    server: ServerProcess,
) -> None:
    channel = "$chat:secret"
    async with connected(server) as alice:
        token = mint("alice", channel=channel, exp=time.time() + 1)
        result = await alice.call("subscribe", channel=channel, token=token)
        assert result["expires"] is True
        assert result["ttl"] == 1

        await expect_end(server, alice, codes.SUBSCRIPTION_EXPIRED)


async def test_a_sub_refresh_with_a_bad_token(server: ServerProcess) -> None:
    channel = "$chat:secret"

    async def subscribed(stack: AsyncExitStack) -> Peer:
        alice = await stack.enter_async_context(connected(server))
        await alice.call("subscribe", channel=channel, token=mint("alice", channel=channel))
        return alice

    async with AsyncExitStack() as stack:
        alice = await subscribed(stack)
        expired = mint("alice", channel=channel, ttl=-1)
        over = mint("alice", channel=channel, expire_at=int(time.time()) - 1)
        assert await alice.error("sub_refresh", channel=channel, token="") == 107
        assert await alice.error("sub_refresh", channel=channel, token=expired) == 109
        assert await alice.error("sub_refresh", channel=channel, token=over) == 110
        assert await alice.error("sub_refresh", channel="$chat:other", token=expired) == 103
        for token in (
            "garbage",
            mint("alice", channel="$chat:other"),
            mint("bob", channel=channel),
        ):
            alice = await subscribed(stack)
            alice.begin("sub_refresh", channel=channel, token=token)
            await expect_end(server, alice, codes.INVALID_TOKEN)


# --- pings, silence and half-open sockets ---------------------------------------------------------


async def test_who_does_not_connect_is_closed_with_3502(server: ServerProcess) -> None:
    async with open_peer(server) as silent:
        await expect_end(server, silent, codes.STALE)


async def test_a_failed_connect_does_not_count(server: ServerProcess) -> None:
    async with open_peer(server) as peer:
        assert await peer.error("connect", token=mint("alice", ttl=-1)) == 109

        await expect_end(server, peer, codes.STALE)


async def test_control_frames_do_not_count(server: ServerProcess) -> None:
    async with open_peer(server) as peer:
        for _ in range(3):
            peer.wire.send(b"", PING)
        peer.wire.send(b"", PONG)

        assert [await peer.wire.frame() for _ in range(3)]
        await expect_end(server, peer, codes.STALE)


async def test_an_unanswered_ping_ends_the_connection_with_3012(
    server: ServerProcess,
) -> None:
    async with connected(server) as alice:
        alice.answers_pings = False

        await expect_end(server, alice, codes.NO_PONG)
        assert alice.pings == 1


async def test_who_answers_pings_stays(server: ServerProcess) -> None:
    async with connected(server) as alice:
        assert (alice.connected["ping"], alice.connected["pong"]) == (1, True)
        while alice.pings < 2:
            await alice.push_or_ping()

        assert await alice.call("ping") == {}


async def test_a_pong_too_many_is_closed_with_3501(server: ServerProcess) -> None:
    async with connected(server) as alice:
        while alice.pings < 1:
            await alice.push_or_ping()
        alice.send({})

        await expect_end(server, alice, codes.BAD_PROTOCOL)


async def test_native_pings_replace_the_protocols_own(server: ServerProcess) -> None:
    async with connected(server, query="?cf_ws_frame_ping_pong=true") as alice:
        assert "ping" not in alice.connected
        assert "pong" not in alice.connected
        for _ in range(2):
            received = await alice.wire.frame()
            assert received.opcode == PING
            alice.wire.send(received.payload, PONG)
        assert await alice.call("ping") == {}
        alice.send({})  # a pong of the other kind

        await expect_end(server, alice, codes.BAD_PROTOCOL)


async def test_an_unanswered_native_ping_ends_the_connection_too(
    server: ServerProcess,
) -> None:
    async with connected(server, query="?cf_ws_frame_ping_pong=true") as alice:
        assert (await alice.wire.frame()).opcode == PING

        await expect_end(server, alice, codes.NO_PONG)


async def test_a_client_whose_line_is_dead_is_forgotten(server: ServerProcess) -> None:
    """It neither answers nor closes: pings find out, and what it held is free again."""
    await wait_for_level(server, "connections", 0)
    channel = "chat:dead-line"
    async with connected(server, "mallory") as dead:
        await dead.call("subscribe", channel=channel)
        assert (await api(server, "presence_stats", channel=channel))["num_clients"] == 1
        await wait_for_level(server, "connections", 0)

        stats = await api(server, "presence_stats", channel=channel)
        assert stats == {"num_clients": 0, "num_users": 0}
    assert await counted(server, "subscriptions") == 0


async def test_a_client_that_never_answers_a_close_is_cut(server: ServerProcess) -> None:
    async with open_peer(server) as peer:
        peer.send({"id": 1, "ping": {}})
        assert (await peer.wire.close()).code == 3501

        assert await peer.wire.rest() == b""  # within close_timeout


async def test_a_half_open_connection_leaves_its_channels(server: ServerProcess, room: str) -> None:
    async with connected(server) as alice:
        await alice.call("subscribe", channel=room)
        async with counting(server, "disconnects_total", {"code": "lost"}):
            alice.wire.writer.write_eof()
            assert await alice.wire.rest() == b""

        assert (await api(server, "presence_stats", channel=room))["num_clients"] == 0


async def test_a_reset_connection_leaves_its_channels(server: ServerProcess, room: str) -> None:
    async with connected(server) as alice:
        await alice.call("subscribe", channel=room)
        async with counting(server, "disconnects_total", {"code": "lost"}):
            alice.wire.writer.transport.abort()

        assert (await api(server, "presence_stats", channel=room))["num_clients"] == 0
