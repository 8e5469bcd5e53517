"""Clients that ask for too much, or take too little: refused or cut, and no effect on others."""

import asyncio
import json
import time
from contextlib import AsyncExitStack
from pathlib import Path

import psutil
import pytest

from gateway.protocol import codes
from tests.integration.conftest import StartServer
from tests.support.peer import connected, expect_end, open_peer
from tests.support.scrape import api, counted, counting, scrape, wait_for_level
from tests.support.server import DEFAULT_CONFIG, ServerProcess, mint

NAMESPACES = f"""
{DEFAULT_CONFIG}

[[namespaces]]
name = "brief"
history_size = 3
history_ttl = "1h"
force_recovery = true
allow_subscribe_for_client = true
"""

CONFIG = f"""
close_timeout = 2
slow_reader_timeout = 1
{NAMESPACES}
"""

# Strict about commands, and patient with slow readers.
STRICT_CONFIG = f"""
connections_per_user_max = 2
{NAMESPACES.replace("100000", "20")}
"""


@pytest.fixture(scope="module")
def server(start_server: StartServer) -> ServerProcess:
    return start_server(CONFIG)


@pytest.fixture(scope="module")
def strict_server(start_server: StartServer) -> ServerProcess:
    return start_server(STRICT_CONFIG)


# --- too much -------------------------------------------------------------------------------------


async def test_commands_over_the_rate_are_error_111(strict_server: ServerProcess) -> None:
    async with connected(strict_server, "alice") as alice:
        alice.send(*({"id": number, "ping": {}} for number in range(1, 61)))
        replies = [await alice.reply(number) for number in range(1, 61)]

    assert replies[:20] == [{"id": number, "ping": {}} for number in range(1, 21)]
    error = {"code": 111, "message": "too many requests", "temporary": True}
    assert replies[20:] == [{"id": number, "error": error} for number in range(21, 61)]


async def test_who_goes_on_at_a_refused_rate_is_closed_with_3013(
    strict_server: ServerProcess,
) -> None:
    async with connected(strict_server, "bob") as bob:
        bob.send(*({"id": number, "ping": {}} for number in range(1, 1001)))

        retry = await expect_end(strict_server, bob, codes.TOO_MANY)
        assert retry is not None


async def test_one_connection_too_many_of_a_user_is_closed_with_3504(
    strict_server: ServerProcess,
) -> None:
    async with connected(strict_server, "dave") as first, connected(strict_server, "dave"):
        async with open_peer(strict_server) as third:
            third.begin("connect", token=mint("dave"))
            await expect_end(strict_server, third, codes.CONNECTION_LIMIT)
        async with connected(strict_server, "erin"):
            await first.quiet()


async def test_too_many_commands_before_the_connect_reply_are_closed_with_3013(
    server: ServerProcess, room: str
) -> None:
    """The reply waits for the database, and they for the reply: somewhere that has to end."""
    async with open_peer(server) as peer:
        peer.send(
            {"id": 1, "connect": {"token": mint("alice", channels=[room])}},
            *({"id": number, "ping": {}} for number in range(2, 1100)),
        )

        await expect_end(server, peer, codes.TOO_MANY)


async def test_a_flood_does_not_hold_others_up(server: ServerProcess, room: str) -> None:
    """And every command of it is handled or refused, none lost."""
    flood = "\n".join(json.dumps({"id": number, "ping": {}}) for number in range(1, 2001))
    async with connected(server, "mallory") as flooder, connected(server) as alice:
        for _ in range(20):
            flooder.wire.send(flood)
        begun = time.monotonic()
        await alice.call("publish", channel=room, data="in between")
        assert time.monotonic() - begun < 5
        for _ in range(20):
            await flooder.reply(2000)


async def test_too_many_unanswered_reads_are_error_111(server: ServerProcess, room: str) -> None:
    async with connected(server) as alice:
        reads = range(1, 101)
        alice.send(*({"id": number, "history": {"channel": room}} for number in reads))
        replies = [await alice.reply(number) for number in reads]
        refused = [reply["error"]["code"] for reply in replies if "error" in reply]

        assert refused == [111] * 84
        assert await alice.call("history", channel=room)


# --- clients that read too slowly -----------------------------------------------------------------

PIECE = "x" * 50_000


def send_buffer_max_bytes() -> int:
    """How much the kernel buffers for one connection at most."""
    limits = Path("/proc/sys/net/ipv4/tcp_wmem")
    return int(limits.read_text().split()[2]) if limits.exists() else 4 * 1024 * 1024


TOO_MUCH = (send_buffer_max_bytes() + 1024 * 1024) // len(PIECE)
"""Publications of that size that are more than what waits unread for one client."""


async def publish_too_much(server: ServerProcess, room: str) -> None:
    """Publish `TOO_MUCH`; the data begin with their offsets."""
    commands = [
        {"publish": {"channel": room, "data": [offset, PIECE]}} for offset in range(1, TOO_MUCH + 1)
    ]
    for start in range(0, TOO_MUCH, 100):
        for reply in await api(server, "batch", commands=commands[start : start + 100]):
            assert "publish" in reply, reply


async def test_a_client_that_never_reads_is_closed_with_3008_and_others_get_everything(
    server: ServerProcess, room: str
) -> None:
    async with (
        connected(server, "slow", receive_buffer_bytes=4096) as slow,
        connected(server, "fast") as fast,
    ):
        for peer in (slow, fast):
            await peer.call("subscribe", channel=room)
        subscriptions = await counted(server, "subscriptions")
        publishing = asyncio.ensure_future(publish_too_much(server, room))
        received = await fast.publications(TOO_MUCH, room)
        await publishing
        assert [publication["data"][0] for publication in received] == list(range(1, TOO_MUCH + 1))
        # Everybody else learns at once that it is gone; its socket gets the time to be told.
        await wait_for_level(server, "subscriptions", subscriptions - 1)

        retry = await expect_end(server, slow, codes.SLOW)
        assert retry is not None
        assert await fast.quiet() == []


async def test_a_client_that_never_reads_is_cut_in_the_end(
    server: ServerProcess, room: str
) -> None:
    async with connected(server, "slow", receive_buffer_bytes=4096) as slow:
        await slow.call("subscribe", channel=room)
        async with counting(server, "disconnects_total", {"code": "3008"}):
            await publish_too_much(server, room)
        assert await counted(server, "paused_connections") == 0


async def test_a_slow_reader_catches_up_from_the_log(
    strict_server: ServerProcess, room: str
) -> None:
    """In order and without a hole; what has no log is dropped, and counted."""
    async with connected(strict_server, "slow", receive_buffer_bytes=4096) as slow:
        await slow.call("subscribe", channel=room)
        await slow.call("subscribe", channel="live:ticks")
        before = await scrape(strict_server)
        await publish_too_much(strict_server, room)
        for number in range(20):
            await api(strict_server, "publish", channel="live:ticks", data=number)
        publications = await slow.publications(TOO_MUCH, room)
        after = await scrape(strict_server)

        assert [pub["offset"] for pub in publications] == list(range(1, TOO_MUCH + 1))
        assert [pub["data"][0] for pub in publications] == list(range(1, TOO_MUCH + 1))
        assert after.value("demotions_total") > before.value("demotions_total")
        dropped = {"kind": "transient"}
        assert after.value("drops_total", dropped) - before.value("drops_total", dropped) == 20
        # And it is as live as the others again.
        await api(strict_server, "publish", channel="live:ticks", data="after")
        assert (await slow.publication())["data"] == "after"


async def test_a_slow_reader_whose_history_is_gone_is_told_with_2500(
    strict_server: ServerProcess,
) -> None:
    """It subscribes again and learns what it missed."""
    channel = "brief:slow"
    async with connected(strict_server, "slow", receive_buffer_bytes=4096) as slow:
        await slow.call("subscribe", channel=channel)
        await publish_too_much(strict_server, channel)
        seen = 0
        while "unsubscribe" not in (push := await slow.push()):
            seen += 1
            assert push["pub"]["offset"] == seen
        assert push["unsubscribe"] == {"code": 2500, "reason": "insufficient state"}
        again = await slow.call("subscribe", channel=channel, recover=True, offset=seen)

        assert again["was_recovering"] is True
        assert "recovered" not in again
        assert again["gap"] == {"from": seen + 1, "to": TOO_MUCH}


async def test_a_server_side_subscription_in_that_place_is_closed_with_3010(
    strict_server: ServerProcess,
) -> None:
    channel = "brief:granted"
    claims = {"channels": [channel]}
    async with connected(strict_server, "slow", claims=claims, receive_buffer_bytes=4096) as slow:
        await publish_too_much(strict_server, channel)

        await expect_end(strict_server, slow, codes.INSUFFICIENT_STATE)


def peak_bytes(process: psutil.Process) -> int:
    """The most memory that a process has had, as Linux tells; elsewhere what it has."""
    status = Path(f"/proc/{process.pid}/status")
    if status.exists():
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    return int(process.memory_info().rss)


async def test_answers_that_nobody_reads_do_not_pile_up(server: ServerProcess, room: str) -> None:
    """A few bytes of commands can ask for megabytes; a client that doesn't take them is cut."""
    info = {"info": "x" * 30_000}
    process = psutil.Process(server.pid)
    async with AsyncExitStack() as stack:
        for number in range(20):
            peer = await stack.enter_async_context(connected(server, f"user{number}", claims=info))
            await peer.call("subscribe", channel=room)
        greedy = await stack.enter_async_context(
            connected(server, "greedy", receive_buffer_bytes=4096)
        )
        answer = await greedy.call("presence", channel=room)
        before = process.memory_info().rss
        async with counting(server, "disconnects_total", {"code": "3008"}):
            greedy.send(*({"id": 9, "presence": {"channel": room}} for _ in range(400)))

        assert 400 * len(json.dumps(answer)) > 240_000_000
        assert peak_bytes(process) - before < 100_000_000
