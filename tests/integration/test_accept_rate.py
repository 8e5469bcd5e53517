"""More clients than may be accepted: each is told a moment of its own, and received then.

The gateway here accepts twenty a second, so that every client of a test is too many. Clients come
from addresses of their own, by which those without a session are known.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import count, pairwise

import pytest

from gateway.listener import ACCEPTS_PER_TURN
from gateway.protocol import codes
from tests.integration.conftest import StartServer
from tests.support.peer import Ended, Peer, open_peer
from tests.support.scrape import Samples, counted, scrape, wait_for
from tests.support.server import DEFAULT_CONFIG, ServerProcess, mint
from tests.support.wire import TEXT, Close, Wire

RATE = 20
BURST = 20
CONFIG = f"""
accept_rate_max = {RATE}
{DEFAULT_CONFIG}
"""
_addresses = (f"127.0.{number // 250}.{number % 250 + 2}" for number in count())


@pytest.fixture(scope="module")
def server(start_server: StartServer) -> ServerProcess:
    return start_server(CONFIG)


@asynccontextmanager
async def newcomers(
    server: ServerProcess, addresses: Sequence[str], first: str = "connect"
) -> AsyncIterator[list[Peer]]:
    """Clients whose sockets are open and whose first messages have come at once."""
    async with AsyncExitStack() as stack:
        peers = [
            await stack.enter_async_context(open_peer(server, source=address))
            for address in addresses
        ]
        for peer in peers:
            if first == "connect":
                peer.begin("connect", token=mint("newcomer"))
            else:
                peer.wire.send(json.dumps({"session": {"open": {}}}))
        yield peers


async def outcome(peer: Peer) -> Ended | None:
    """How a newcomer was sent away; None when it was received."""
    frame = await peer.wire.frame()
    if frame.opcode == TEXT:
        assert b'"connect"' in frame.payload or b'"opened"' in frame.payload
        return None
    close = Close.of(frame)
    peer.wire.send_close(close.code)
    assert await peer.wire.rest() == b""
    return Ended(close.code, close.advice())


async def herd(
    server: ServerProcess, size: int, first: str = "connect"
) -> tuple[int, dict[str, float]]:
    """Let that many come at once: how many were received, and what the others were told.

    Gives the moments, on this loop's clock, by address.
    """
    addresses = [next(_addresses) for _ in range(size)]
    loop = asyncio.get_running_loop()
    async with newcomers(server, addresses, first) as peers:
        slots = {}
        for address, peer in zip(addresses, peers, strict=True):
            ended = await outcome(peer)
            if ended is None:
                continue
            retry = ended.advice["retry"]
            assert ended.code == codes.TOO_MANY.code
            assert ended.advice == {
                "reason": codes.TOO_MANY.reason,
                "reconnect": True,
                "retry": retry,
            }
            slots[address] = loop.time() + retry / 1000
        return size - len(slots), slots


def events(samples: Samples) -> dict[str, float]:
    return {
        event: samples.value("reconnect_slots_total", {"event": event})
        for event in ("handed_out", "honoured", "early", "late", "missed")
    }


async def calm(server: ServerProcess) -> None:
    """Wait until nobody has a slot any more and the burst is free again."""
    while await counted(server, "accept_backlog_seconds"):  # noqa: ASYNC110
        await asyncio.sleep(0.05)
    await asyncio.sleep(BURST / RATE * 2)  # what is owed, and then the burst


@pytest.mark.parametrize("first", ["connect", "open"])
async def test_those_beyond_the_rate_are_received_in_their_slots(
    server: ServerProcess, first: str
) -> None:
    await calm(server)
    before = events(await scrape(server))
    received, slots = await herd(server, BURST + 30, first)
    # A slow machine gives the burst time to grow meanwhile.
    assert BURST <= received < BURST + 20
    moments = sorted(slots.values())
    gaps = [later - earlier for earlier, later in pairwise(moments)]
    assert sum(gaps) / len(gaps) == pytest.approx(1 / RATE, rel=0.2)

    loop = asyncio.get_running_loop()
    for address, slot in sorted(slots.items(), key=lambda told: told[1]):
        await asyncio.sleep(slot - loop.time())
        async with newcomers(server, [address], first) as (peer,):
            assert await outcome(peer) is None
    after = events(await scrape(server))

    assert after["handed_out"] - before["handed_out"] == len(slots)
    assert after["honoured"] - before["honoured"] == len(slots)


async def test_whoever_comes_early_gets_a_fresh_slot(server: ServerProcess) -> None:
    await calm(server)
    _, slots = await herd(server, BURST + 60)
    address, slot = max(slots.items(), key=lambda told: told[1])
    before = events(await scrape(server))
    # What has become free meanwhile is taken by those who come right before it. Of those who are
    # accepted in one turn anybody may be the first.
    others = [next(_addresses) for _ in range(BURST + 10 + ACCEPTS_PER_TURN)]
    loop = asyncio.get_running_loop()
    async with newcomers(server, [*others, address]) as peers:
        early = await outcome(peers[-1])
        at = loop.time()
        told = [ended for peer in peers[:-1] if (ended := await outcome(peer)) is not None]

    assert early is not None
    assert at < slot < at + early.advice["retry"] / 1000
    after = events(await scrape(server))
    assert after["early"] == before["early"] + 1
    assert after["handed_out"] == before["handed_out"] + 1 + len(told)


async def test_a_session_is_resumed_while_newcomers_are_sent_away(server: ServerProcess) -> None:
    await calm(server)
    async with open_peer(server, source=next(_addresses)) as owner:
        token = await _open_session(owner.wire)
    await wait_for(server, "disconnects_total", 1, {"code": "lost"})
    _, slots = await herd(server, BURST + 40)
    assert slots
    refused = await counted(server, "accept_refusals_total", {"kind": "resume"})

    async with open_peer(server, source=next(_addresses)) as owner:
        resume = {"token": token, "received": 1, "attempt": 1}
        owner.wire.send(json.dumps({"session": {"resume": resume}}))
        answer = json.loads(await owner.wire.text())
    assert answer["session"]["resumed"]["generation"] == 2
    assert await counted(server, "accept_refusals_total", {"kind": "resume"}) == refused


async def _open_session(link: Wire) -> str:
    """Open a session, connect, and cut the line; returns the resume token."""
    link.send(json.dumps({"session": {"open": {}}}))
    opened = json.loads(await link.text())["session"]["opened"]
    link.send(json.dumps({"id": 1, "connect": {"token": mint("owner")}}))
    assert json.loads(await link.text())["connect"]["client"]
    link.writer.transport.abort()
    token = opened["token"]
    assert isinstance(token, str)
    return token


async def test_the_gauges_say_what_is_accepted(server: ServerProcess) -> None:
    samples = await scrape(server)

    assert samples.value("accept_rate", {"kind": "connect"}) == RATE
    assert samples.value("accept_rate", {"kind": "resume"}) == RATE
    assert samples.value("arrivals_waiting") == 0
