"""A real gateway and a real Chromium for the tests of the page."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from playwright.async_api import Browser, async_playwright, expect

from tests.support.cluster import Cluster
from tests.support.server import ServerProcess
from tests.support.tools import chromium

# How long a condition may take to become true: generous, for a machine that does other things too.
expect.set_options(timeout=15_000)

DEVELOPMENT = {"GATEWAY_DEVELOPMENT": "1"}


@pytest.fixture(scope="module")
def shared_server(
    cluster: Cluster, template_database: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    """A gateway in development mode for a whole module; tests that share it use their own rooms."""
    cluster.start()
    database = cluster.create_database(template=template_database)
    folder = tmp_path_factory.mktemp("gateway")
    with ServerProcess(
        folder, database_url=cluster.url(database), environment=DEVELOPMENT
    ) as server:
        yield server
    cluster.drop_database(database)


@pytest.fixture
def server(database_url: str, tmp_path: Path) -> Iterator[ServerProcess]:
    """A gateway of the test's own, which it may kill and start again."""
    with ServerProcess(tmp_path, database_url=database_url, environment=DEVELOPMENT) as server:
        yield server


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=chromium(),
            # The sandbox needs privileges that a container lacks, and root may not have it at all.
            args=["--no-sandbox", "--disable-gpu"],
        )
        yield browser
        await browser.close()
