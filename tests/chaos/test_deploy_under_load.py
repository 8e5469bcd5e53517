"""SIGTERM under load and a new process in its place: whoever has a session notices nothing."""

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from scripts.storms import scrape
from scripts.storms.messages import Audit, Gather, Ground, Mark, Publish, Settle
from scripts.storms.storm import SETTINGS, CrowdProcess
from tests.support.scrape import wait_for
from tests.support.server import API_KEY, TOKEN_SECRET, ServerProcess

CLIENTS = 600
ROOMS = [f"storm:room-{number}" for number in range(20)]
IN_FLIGHT = 64
PUBLISHES_PER_SECOND = 100.0
PATIENCE = 60.0
# How long this machine takes to start a gateway, so that nobody is told to come while it is away.
RESTART_TIME = 4.0


@pytest.fixture
async def server(database_url: str, folder: Path) -> AsyncIterator[ServerProcess]:
    """A gateway that runs, with rooms for storms."""
    config = f"restart_time = {RESTART_TIME}\n{SETTINGS}"
    server = ServerProcess(folder, database_url=database_url, config=config)
    await asyncio.to_thread(server.start)
    yield server
    await asyncio.to_thread(server.kill)


@pytest.mark.parametrize("stock", [0, CLIENTS // 5], ids=["sessions alone", "with stock clients"])
async def test_sessions_are_taken_up_by_the_next_process(server: ServerProcess, stock: int) -> None:
    sessions = CLIENTS - stock
    door = scrape.Door(server.port, API_KEY)
    async with CrowdProcess.start(Ground(server.port, TOKEN_SECRET), core=None) as crowd:
        await crowd.gather(
            Gather(CLIENTS, sessions, ROOMS, IN_FLIGHT, PATIENCE, backoff_max=RESTART_TIME)
        )
        await crowd.do(Publish(PUBLISHES_PER_SECOND))
        await wait_for(server, "publications_total", 100, {"kind": "durable"})
        present = with_session(await scrape.presence_in(door, ROOMS))
        await crowd.do(Mark())
        server.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(server.wait) == 0
        await asyncio.to_thread(server.start)
        returned = await crowd.await_return(PATIENCE)
        samples = await scrape.metrics(server.port)
        present_afterwards = with_session(await scrape.presence_in(door, ROOMS))
        await crowd.do(Settle(PATIENCE))
        audited = await crowd.audit(Audit([await scrape.log_of(door, room) for room in ROOMS]))

    assert not returned.stuck
    assert (returned.resumed, returned.recovered) == (sessions, stock)
    assert samples.value("sessions_taken_up_total") == sessions
    assert samples.value("session_resumes_total", outcome="resumed") >= sessions
    assert samples.value("session_resumes_total", outcome="unknown") == 0
    assert samples.value("session_opens_total") == 0
    # Each was told its own moment before the old process ended.
    assert returned.slots_told >= sessions

    assert not audited.faults
    assert (audited.lost, audited.doubled, audited.wrong_deliveries) == (0, 0, 0)
    assert audited.published == audited.acknowledged == audited.logged > 0
    assert audited.deliveries == audited.logged * CLIENTS // len(ROOMS)

    # Nobody saw anybody with a session leave or join, and all are who they were.
    assert (returned.joins, returned.leaves) == (0, 0)
    assert present_afterwards == present
    assert len(present) == sessions
    assert "Traceback" not in server.log()


def with_session(present: dict[str, str]) -> dict[str, str]:
    """Those of the users who have sessions."""
    return {client: user for client, user in present.items() if user.startswith("session-")}
