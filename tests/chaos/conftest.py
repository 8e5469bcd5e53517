"""A gateway in a process of its own, and what it takes to do it harm."""

import asyncio
import signal
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from tests.support.cluster import find_postmaster, wait_until_ended
from tests.support.server import ServerProcess

CONFIG = """
commands_per_second = 1000000
commands_burst = 1000000
publish_timeout = 1

[channel]
allow_subscribe_for_client = true
allow_publish_for_client = true

[[namespaces]]
name = "chat"
history_size = 1000000
history_ttl = "1h"
force_recovery = true
allow_subscribe_for_client = true
allow_publish_for_client = true
allow_history_for_client = true

[[namespaces]]
name = "live"
allow_subscribe_for_client = true
allow_publish_for_client = true
"""
"""History for everything that a test publishes, and no limit that a load would meet."""

PUBLISH_TIMEOUT = 1.0
"""Of `CONFIG`."""

Start = Callable[..., Awaitable[ServerProcess]]
"""`await start(database_url)`: a gateway that runs. Settings by their names, as text."""


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that an embedded database's own user can reach.

    pytest's is closed to it whenever another pytest begins as the same user.
    """
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


@pytest.fixture
async def start(folder: Path) -> AsyncIterator[Start]:
    """Starts gateways; those that still run at the end are ended, with their embedded databases."""
    servers: list[ServerProcess] = []

    async def make(database_url: str | None = None, **settings: str) -> ServerProcess:
        home = folder / f"gateway-{len(servers)}"
        home.mkdir()
        server = ServerProcess(
            home,
            database_url=database_url,
            config=CONFIG,
            environment={f"GATEWAY_{name.upper()}": value for name, value in settings.items()},
        )
        servers.append(server)
        await asyncio.to_thread(server.start)
        return server

    yield make
    for server in servers:
        await asyncio.to_thread(server.kill)
    await asyncio.to_thread(_end_embedded, folder)


def _end_embedded(folder: Path) -> None:
    for data in folder.glob("gateway-*/data/postgres/cluster"):
        postmaster = find_postmaster(data)
        if postmaster is not None:
            postmaster.send_signal(signal.SIGQUIT)
            wait_until_ended([postmaster])
