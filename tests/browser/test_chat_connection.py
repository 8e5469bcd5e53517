"""What the chat page shows of its connection: to eyes, to ears, and without fidgeting."""

import re
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Browser, BrowserContext, expect

from tests.browser.conftest import DEVELOPMENT
from tests.browser.looks import FAINT_TEXTS, SMALL_TARGETS, TARGET_MIN_PX, TEXT_CONTRAST_MIN
from tests.browser.rooms import fill_room
from tests.browser.visitor import RECONNECT_TIMEOUT_MS, Visitor
from tests.support.proxy import Proxy
from tests.support.scrape import wait_for
from tests.support.server import ServerProcess

# Collects by how much what was on the screen has moved, other than by scrolling.
_OBSERVE_SHIFTS = """() => {
    window.shifts = [];
    new PerformanceObserver((list) => {
        for (const { value, sources } of list.getEntries()) {
            window.shifts.push([value, ...sources.map(({ node }) => node?.id || node?.className)]);
        }
    }).observe({ type: "layout-shift", buffered: false });
}"""


@pytest.fixture
def server(database_url: str, tmp_path: Path) -> Iterator[ServerProcess]:
    """One that measures its lines often."""
    environment = {**DEVELOPMENT, "GATEWAY_PING_INTERVAL": "2s", "GATEWAY_PONG_TIMEOUT": "1s"}
    with ServerProcess(tmp_path, database_url=database_url, environment=environment) as server:
        yield server


@pytest.fixture
async def proxy(server: ServerProcess) -> AsyncIterator[Proxy]:
    async with Proxy("127.0.0.1", server.port) as proxy:
        yield proxy


async def test_the_quality_of_the_line_is_a_word_to_see_and_to_hear(
    server: ServerProcess, context: BrowserContext
) -> None:
    visitor = await Visitor.join(context, server.http_url, "Ada")
    await expect(visitor.detail).to_have_text(re.compile(r"^(Excellent|Good) · \d+ ms$"))
    await expect(visitor.page.get_by_role("group", name="Connection")).to_match_aria_snapshot(
        """
        - paragraph: Connected
        - paragraph: "/^quality of the line: (excellent|good), round trip \\\\d+ milliseconds?$/"
        """
    )


async def test_a_line_that_is_back_at_once_is_nothing_to_speak_of(
    server: ServerProcess, context: BrowserContext, proxy: Proxy
) -> None:
    visitor = await Visitor.join(context, f"http://127.0.0.1:{proxy.port}", "Ada")
    await visitor.page.evaluate("Math.random = () => 0")
    # However slow this machine is, it takes no time on the page's clock.
    await visitor.page.clock.set_fixed_time(datetime.now(UTC))
    await visitor.watch()
    visitor.sent.clear()
    for times in (1, 2, 3):
        proxy.cut()
        await wait_for(server, "session_resumes_total", times, {"outcome": "resumed"})
        await expect(visitor.connection).to_have_text("Connected")
    await visitor.write("still here")
    await expect(visitor.message("still here")).to_contain_text("Sent")
    assert {sight.announced for sight in await visitor.seen()} == {""}
    assert await visitor.page.locator("#advice").is_hidden()
    assert visitor.commands("connect") == visitor.commands("subscribe") == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(1280, 800), (360, 740)])
async def test_an_outage_is_readable_and_moves_nothing(
    server: ServerProcess, browser: Browser, proxy: Proxy, scheme: Any, width: int, height: int
) -> None:
    context = await browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme, reduced_motion="reduce"
    )
    await fill_room(server, "lobby", 30)
    visitor = await Visitor.arrive(context, f"http://127.0.0.1:{proxy.port}", "Ada")
    await visitor.page.get_by_label("Your name").fill("Ada")
    await visitor.page.keyboard.press("Enter")
    await expect(visitor.connection).to_have_text("Connected")
    await expect(visitor.message("message 30")).to_be_in_viewport()
    await visitor.page.evaluate(_OBSERVE_SHIFTS)
    page = visitor.page

    async def is_fine() -> None:
        assert await page.evaluate(FAINT_TEXTS, TEXT_CONTRAST_MIN) == []
        assert await page.evaluate(SMALL_TARGETS, TARGET_MIN_PX) == []
        assert await page.evaluate("document.getAnimations().length") == 0
        assert await visitor.overflow() == 0

    await is_fine()
    proxy.refuse()
    proxy.cut()
    await expect(visitor.retry).to_be_visible()
    await is_fine()
    await expect(page.get_by_role("status")).to_contain_text("The connection was lost.")
    proxy.accept()
    await expect(visitor.connection).to_have_text("Connected", timeout=RECONNECT_TIMEOUT_MS)
    await expect(visitor.retry).to_be_hidden()
    await expect(page.get_by_role("status")).to_have_text("Connected again.")
    await is_fine()
    assert await page.evaluate("window.shifts") == []
    await context.close()


async def test_retrying_by_keyboard_keeps_the_focus_until_it_is_done(
    server: ServerProcess, context: BrowserContext, proxy: Proxy
) -> None:
    visitor = await Visitor.join(context, f"http://127.0.0.1:{proxy.port}", "Ada")
    proxy.refuse()
    proxy.cut()
    await expect(visitor.retry).to_be_visible()
    button = visitor.page.locator("#advice-button")
    # Backwards from the message box, past the messages.
    await visitor.box.focus()
    await visitor.page.keyboard.press("Shift+Tab")
    await visitor.page.keyboard.press("Shift+Tab")
    await expect(button).to_be_focused()
    # An attempt that gets no answer: there is nothing to press meanwhile, and nothing jumps away.
    proxy.accept()
    proxy.hold()
    await visitor.page.keyboard.press("Enter")
    await expect(button).to_have_text("Trying…")
    await expect(button).to_have_attribute("aria-disabled", "true")
    await expect(button).to_be_focused()
    proxy.release()
    await expect(visitor.connection).to_have_text("Connected", timeout=RECONNECT_TIMEOUT_MS)
    await expect(button).to_be_hidden()
    await expect(visitor.box).to_be_focused()
