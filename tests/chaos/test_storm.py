"""A thousand clients lose the server, or their lines to it, at the same moment."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from scripts.storms import scrape
from scripts.storms.messages import Audit, Audited, Gather, Ground, Mark, Publish, Settle
from scripts.storms.storm import SETTINGS, CrowdProcess
from tests.support.proxy import Proxy
from tests.support.scrape import wait_for, wait_for_level
from tests.support.server import API_KEY, TOKEN_SECRET, ServerProcess

CLIENTS = 1000
ROOMS = [f"storm:room-{number}" for number in range(20)]
IN_FLIGHT = 64
PUBLISHES_PER_SECOND = 100.0
PATIENCE = 60.0
BACKOFF_MAX = 2.0


@pytest.fixture
async def server(database_url: str, folder: Path) -> AsyncIterator[ServerProcess]:
    """A gateway that runs, with rooms for storms."""
    server = ServerProcess(folder, database_url=database_url, config=SETTINGS)
    await asyncio.to_thread(server.start)
    yield server
    await asyncio.to_thread(server.kill)


async def gather(crowd: CrowdProcess, sessions: int) -> None:
    """Bring everybody, and let them publish from now on."""
    await crowd.gather(
        Gather(CLIENTS, sessions, ROOMS, IN_FLIGHT, PATIENCE, backoff_max=BACKOFF_MAX)
    )
    await crowd.do(Publish(PUBLISHES_PER_SECOND))


async def audit(crowd: CrowdProcess, server: ServerProcess) -> Audited:
    """Hold what everybody was told against the log, when all is said."""
    await crowd.do(Settle(PATIENCE))
    door = scrape.Door(server.port, API_KEY)
    return await crowd.audit(Audit([await scrape.log_of(door, room) for room in ROOMS]))


def assert_all_is_there_once(audited: Audited) -> None:
    assert not audited.faults
    assert (audited.lost, audited.doubled, audited.wrong_deliveries) == (0, 0, 0)
    assert audited.published == audited.acknowledged == audited.logged > 0
    # Everybody in a room got everything that was said in it.
    assert audited.deliveries == audited.logged * CLIENTS // len(ROOMS)


@pytest.mark.parametrize("sessions", [CLIENTS, 0], ids=["sessions", "stock"])
async def test_nothing_is_lost_or_doubled_when_the_server_is_killed(
    server: ServerProcess, sessions: int
) -> None:
    async with CrowdProcess.start(Ground(server.port, TOKEN_SECRET), core=None) as crowd:
        await gather(crowd, sessions)
        await wait_for(server, "publications_total", 50, {"kind": "durable"})
        await crowd.do(Mark())
        await asyncio.to_thread(server.kill)
        await asyncio.to_thread(server.start)
        returned = await crowd.await_return(PATIENCE)
        audited = await audit(crowd, server)

    assert not returned.stuck
    # Its sessions died with it; everybody recovered by positions.
    assert (returned.resumed, returned.recovered) == (0, CLIENTS)
    assert_all_is_there_once(audited)


async def test_sessions_go_on_when_all_lines_are_cut_at_once(server: ServerProcess) -> None:
    door = scrape.Door(server.port, API_KEY)
    async with (
        Proxy("127.0.0.1", server.port) as proxy,
        CrowdProcess.start(Ground(proxy.port, TOKEN_SECRET, addresses=False), core=None) as crowd,
    ):
        await gather(crowd, CLIENTS)
        await wait_for(server, "publications_total", 50, {"kind": "durable"})
        present = await scrape.presence_in(door, ROOMS)
        await crowd.do(Mark())
        proxy.cut()
        returned = await crowd.await_return(PATIENCE)
        audited = await audit(crowd, server)
        present_afterwards = await scrape.presence_in(door, ROOMS)
        await wait_for_level(server, "connections", CLIENTS)
        samples = await scrape.metrics(server.port)

    assert not returned.stuck
    assert (returned.resumed, returned.recovered) == (CLIENTS, 0)
    assert_all_is_there_once(audited)
    # Nobody noticed that anybody was away.
    assert (returned.joins, returned.leaves) == (0, 0)
    assert present_afterwards == present
    assert len(present) == CLIENTS
    assert samples.value("sessions", state="attached") == CLIENTS
    assert samples.value("sessions", state="detached") == 0
