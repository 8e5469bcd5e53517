"""The gateway's own process stands still for longer than any of its deadlines (PROTOCOL.md B.4).

Nobody is late because of that: neither who answered meanwhile nor who answers right behind it.
"""

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from gateway.protocol import codes
from tests.integration.conftest import StartServer
from tests.support.peer import Peer, connected, expect_end, open_peer
from tests.support.scrape import scrape
from tests.support.server import DEFAULT_CONFIG, ServerProcess, mint
from tests.support.waiting import until
from tests.support.wire import PATH, Wire, head, upgrade_headers, websocket, wire

# Pings come after half an interval to a whole one, so that two clients' first ones are less than a
# `pong_timeout` apart.
CONFIG = f"""
ping_interval = 2
pong_timeout = 1.9
ping_deadline_min = 1.9
ping_deadline_max = 1.9
stale_close_delay = 2
handshake_timeout = 2
{DEFAULT_CONFIG}
"""
STALL = 4.0
UPGRADE = head("GET", PATH, upgrade_headers())


@pytest.fixture(scope="module")
def server(start_server: StartServer) -> ServerProcess:
    return start_server(CONFIG)


@asynccontextmanager
async def standing_still(server: ServerProcess) -> AsyncIterator[None]:
    """The process is stopped inside, for `STALL` seconds at least."""
    server.send_signal(signal.SIGSTOP)
    try:
        await until(lambda: _state(server.pid) == "T")
        yield
        await asyncio.sleep(STALL)
    finally:
        server.send_signal(signal.SIGCONT)


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


async def pinged(peer: Peer) -> None:
    """Wait for its next ping, and leave it unanswered."""
    before = peer.pings
    while peer.pings == before:
        await peer.push_or_ping()


async def session_frame(link: Wire, kind: str) -> dict[str, Any]:
    """The next session frame of this kind."""
    while True:
        message = json.loads(await link.text())
        if kind in message.get("session", {}):
            frame = message["session"][kind]
            assert isinstance(frame, dict)
            return frame


async def open_session(link: Wire) -> None:
    link.send('{"session":{"open":{}}}')
    await session_frame(link, "opened")
    link.send(json.dumps({"id": 1, "connect": {"token": mint("alice")}}))
    assert json.loads(await link.text())["connect"]["client"]


async def test_nobody_is_late_because_the_gateway_stood_still(server: ServerProcess) -> None:
    async with AsyncExitStack() as stack:
        quick = await stack.enter_async_context(connected(server))
        slow = await stack.enter_async_context(connected(server))
        session = await stack.enter_async_context(websocket(server.port))
        await open_session(session)
        quick.answers_pings = slow.answers_pings = False
        await asyncio.gather(pinged(quick), pinged(slow), session_frame(session, "ping"))
        silent = await stack.enter_async_context(open_peer(server))
        stranger = await stack.enter_async_context(wire(server.port))
        await stranger.write_apart(UPGRADE[:-2])

        async with standing_still(server):
            quick.send({})
            await quick.wire.drain()
        slow.send({})
        session.send('{"session":{"pong":{"received":1,"sent":1}}}')
        stranger.write(UPGRADE[-2:])
        begun = silent.begin("connect", token=mint("silent"))

        assert (await stranger.response()).status == 101
        assert (await silent.reply(begun))["connect"]["client"]
        quick.answers_pings = slow.answers_pings = silent.answers_pings = True
        for peer in (quick, slow, silent):
            await peer.call("ping")
        # The next ping is a whole new one: the former was answered in time.
        await session_frame(session, "ping")
        session.send('{"session":{"pong":{"received":1,"sent":1}}}')
        samples = await scrape(server)

        for code in (codes.NO_PONG, codes.STALE):
            assert samples.value("disconnects_total", {"code": str(code.code)}) == 0
        assert samples.value("handshakes_total", {"outcome": "timeout"}) == 0
        assert samples.value("loop_stalls_total") >= 1
        assert samples.value("loop_stall_seconds_total") >= STALL - 0.5


async def test_whoever_stays_silent_after_it_is_late_as_always(server: ServerProcess) -> None:
    async with connected(server) as lost:
        lost.answers_pings = False
        await pinged(lost)
        async with standing_still(server):
            pass

        await expect_end(server, lost, codes.NO_PONG)
