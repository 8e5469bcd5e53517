"""Gateways that start together on a new database, or on what a killed one has left."""

import asyncio
import contextlib
import random
from pathlib import Path
from urllib.parse import quote

import psutil
import pytest

from store.embedded import DATABASE
from store.embedded_cluster import PORT, ROLE, ClusterFolder
from tests.chaos.conftest import Start
from tests.support.cluster import find_postmaster, wait_until_ended
from tests.support.load import Audience, Load, check_log

CHANNELS = [f"chat:{number}" for number in range(4)]


async def test_gateways_that_start_together_migrate_once_and_share_the_log(
    empty_database_url: str, start: Start
) -> None:
    servers = await asyncio.gather(*(start(empty_database_url) for _ in range(3)))
    migrated = [server for server in servers if "migrated the database" in server.log()]
    assert len(migrated) == 1

    # All of them write to the same channels at once.
    async with contextlib.AsyncExitStack() as stack:
        loads = [
            await stack.enter_async_context(Load(server.ws_url, CHANNELS, name=str(number)))
            for number, server in enumerate(servers)
        ]
        await asyncio.gather(*(load.more(1500) for load in loads))
        await asyncio.gather(*(load.stop() for load in loads))
        assert not any(load.refused or load.in_doubt for load in loads)
        await check_log(empty_database_url, *loads)


def _embedded_url(data_dir: Path) -> str:
    """Where an embedded database answers while it runs."""
    found = ClusterFolder(data_dir).pid_file()
    assert found is not None, "it doesn't run"
    return f"postgresql://{ROLE}@/{DATABASE}?host={quote(str(found.socket_folder))}&port={PORT}"


@pytest.mark.parametrize("database_dies", [False, True], ids=["alone", "with its database"])
async def test_an_embedded_database_has_everything_after_its_gateway_was_killed(
    start: Start, folder: Path, database_dies: bool
) -> None:
    """It is found still running, or is started again when it was killed as well."""
    rng = random.Random(f"embedded {database_dies}")
    data_dir = folder / "gateway-0" / "data"
    server = await start()
    async with (
        Audience(server.ws_url, CHANNELS) as audience,
        Load(server.ws_url, CHANNELS) as load,
    ):
        await load.more(rng.randint(100, 1000))
        await asyncio.to_thread(server.kill)
        if database_dies:
            await asyncio.to_thread(_kill_database, data_dir)
        await asyncio.to_thread(server.start)
        await load.more(100)
        await load.stop()
        await check_log(await asyncio.to_thread(_embedded_url, data_dir), load, audience=audience)
    assert ("Found PostgreSQL still running" in server.log()) is not database_dies


def _kill_database(data_dir: Path) -> None:
    postmaster = find_postmaster(ClusterFolder(data_dir).cluster)
    assert postmaster is not None
    everything = [postmaster, *postmaster.children(recursive=True)]
    for process in everything:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    wait_until_ended(everything)
