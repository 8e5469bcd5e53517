"""A real gateway and a real Chromium for the tests of the page."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from playwright.async_api import Browser, BrowserContext, async_playwright, expect

from tests.support.cluster import Cluster
from tests.support.server import ServerProcess
from tests.support.tools import chromium

# How long a condition may take to become true: generous, for a machine that does other things too.
expect.set_options(timeout=15_000)

DEVELOPMENT = {"GATEWAY_DEVELOPMENT": "1"}

ELSEWHERE = "192.0.2.1"
"""An address of this machine that the browser takes for one beyond its network (RFC 5737)."""


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
            args=[
                "--no-sandbox",
                "--disable-gpu",
                f"--host-resolver-rules=MAP {ELSEWHERE} 127.0.0.1",
            ],
        )
        yield browser
        await browser.close()


@pytest.fixture
async def context(browser: Browser) -> AsyncIterator[BrowserContext]:
    """Where a test's tabs are, unless it makes contexts of its own."""
    context = await browser.new_context(viewport={"width": 1280, "height": 800}, locale="en-GB")
    yield context
    await context.close()
