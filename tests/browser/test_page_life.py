"""What becomes of the session when the chat page is hidden, frozen, left or closed."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.async_api import Browser, BrowserContext, expect

from tests.browser.background_tab import BackgroundTab
from tests.browser.conftest import DEVELOPMENT
from tests.browser.visitor import Visitor
from tests.support.scrape import counted, wait_for
from tests.support.server import ServerProcess

DETACHED = {"state": "detached"}


@pytest.fixture
def server(database_url: str, tmp_path: Path) -> Iterator[ServerProcess]:
    """One that asks often whether somebody is there."""
    environment = {
        **DEVELOPMENT,
        "GATEWAY_PING_INTERVAL": "2s",
        "GATEWAY_PONG_TIMEOUT": "1s",
    }
    with ServerProcess(tmp_path, database_url=database_url, environment=environment) as server:
        yield server


async def test_a_page_that_was_hidden_and_frozen_has_missed_nothing_and_never_left(
    server: ServerProcess, browser: Browser, context: BrowserContext
) -> None:
    ben = await Visitor.join(context, server.http_url, "Ben")
    async with BackgroundTab.open(browser, server.http_url) as tab:
        # The tab remembers who it is, and asks nothing.
        await tab.evaluate("sessionStorage.setItem('capegate.name', 'Ada'); location.reload()")
        # The server knows how soon this line answers.
        await tab.until("document.getElementById('connection')?.dataset.quality === 'excellent'")
        await expect(ben.people.get_by_text("Ada")).to_be_visible()
        ben.received.clear()

        await tab.hide()
        await ben.write("while it is hidden")
        await tab.until("document.title === '(1) #lobby · capegate'")
        await tab.freeze()
        await wait_for(server, "sessions", 1, DETACHED)
        await ben.write("while it is frozen")
        await expect(ben.message("while it is frozen")).to_contain_text("Sent")
        await tab.thaw()
        await tab.show()
        await tab.until("document.querySelectorAll('.message').length === 2")
        assert await tab.evaluate("document.querySelectorAll('.text')[1].textContent") == (
            "while it is frozen"
        )
        assert await counted(server, "session_resumes_total", {"outcome": "resumed"}) >= 1
        assert not [frame for frame in ben.received if '"leave":' in frame or '"join":' in frame]
    await expect(ben.page.get_by_text("1 person here")).to_be_visible()


@pytest.mark.parametrize("how", ["closed", "left for another page", "reloaded"])
async def test_who_leaves_the_page_leaves_the_room_at_once(
    server: ServerProcess, context: BrowserContext, how: str
) -> None:
    ben = await Visitor.join(context, server.http_url, "Ben")
    ada = await Visitor.join(context, server.http_url, "Ada")
    await expect(ben.page.get_by_text("2 people here")).to_be_visible()
    if how == "closed":
        await ada.page.close()
    elif how == "reloaded":
        await ada.page.reload()
        await ada.is_here()
    else:
        await ada.page.goto("about:blank")
    await wait_for(server, "session_ends_total", 1, {"reason": "left"})
    assert await counted(server, "sessions", DETACHED) == 0
    here = ["Ben", "Ada"] if how == "reloaded" else ["Ben"]
    await expect(ben.people.locator(".person-name")).to_have_text(here)
    # A session that is only lost is kept for minutes.
    assert any('"leave":' in frame for frame in ben.received)
