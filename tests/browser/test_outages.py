"""The network goes away for a second, ten or sixty, under the chat page and under the stock SDK."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass

import pytest
from playwright.async_api import Browser, BrowserContext, expect

from tests.browser.conftest import ELSEWHERE
from tests.browser.rooms import say, stored
from tests.browser.sdk_page import SDKPage
from tests.browser.visitor import Visitor
from tests.support.proxy import Proxy
from tests.support.server import ServerProcess, mint

SHORT = (1.0, 10.0)
LONG = 60.0

BACK_TIMEOUT = 60.0
"""The longest pause between two attempts, several times, and a slow machine."""

SESSION_LIVES = frozenset({"connected", "silent", "offline", "waiting", "resuming"})
"""What the indicator may show meanwhile. Not among it: "connecting"."""

UNDISTURBED = [["subscribing", 0], ["connecting", 0], ["connected", 0], ["subscribed", 0]]
"""All that the SDK ever says."""


@dataclass(frozen=True, slots=True)
class Outage:
    """One way in which a network goes away; it is tried in a room of this name."""

    name: str
    seconds: float
    context: BrowserContext
    http_url: str
    """Where the page is, for those whose network it is."""
    begin: Callable[[], Awaitable[None]]
    end: Callable[[], Awaitable[None]]
    shown: str
    """What the page's indicator must have said of it."""


def silent(proxy: Proxy, context: BrowserContext, seconds: float) -> Outage:
    """Nothing passes, and nobody is told."""

    async def begin() -> None:
        proxy.hold()

    async def end() -> None:
        proxy.release()

    shown = {1.0: "connected", 10.0: "silent"}.get(seconds, "waiting")
    url = f"http://127.0.0.1:{proxy.port}"
    return Outage(f"silent-{seconds:.0f}", seconds, context, url, begin, end, shown)


def broken(proxy: Proxy, context: BrowserContext, seconds: float) -> Outage:
    """Connections are reset, and can't be made."""

    async def begin() -> None:
        proxy.refuse()
        proxy.cut()

    async def end() -> None:
        proxy.accept()

    url = f"http://127.0.0.1:{proxy.port}"
    return Outage(f"broken-{seconds:.0f}", seconds, context, url, begin, end, "waiting")


def offline(server: ServerProcess, context: BrowserContext, seconds: float) -> Outage:
    """The device itself knows that it has no network, and says so."""

    async def begin() -> None:
        await context.set_offline(True)

    async def end() -> None:
        await context.set_offline(False)

    url = f"http://{ELSEWHERE}:{server.port}"
    shown = "connected" if seconds < 5 else "offline"
    return Outage(f"offline-{seconds:.0f}", seconds, context, url, begin, end, shown)


@pytest.fixture
async def contexts(browser: Browser) -> AsyncIterator[Callable[[], Awaitable[BrowserContext]]]:
    """Makes devices: what happens to one's network isn't another's business."""
    async with AsyncExitStack() as stack:

        async def make() -> BrowserContext:
            context = await browser.new_context(locale="en-GB")
            stack.push_async_callback(context.close)
            return context

        yield make


async def happens(
    server: ServerProcess, outage: Outage, visitor: Visitor, sdk: SDKPage
) -> list[str]:
    """Let it happen while everybody speaks; returns what the room has then, in order."""
    await say(server, outage.name, "before")
    await visitor.sees(["before"])
    await sdk.sees(["before"], BACK_TIMEOUT)
    await outage.begin()
    await visitor.write("from the page, meanwhile")
    await sdk.write("from the SDK, meanwhile")
    for moment in range(4):
        await asyncio.sleep(outage.seconds / 4)
        await say(server, outage.name, f"from elsewhere, {moment}")
    await outage.end()
    expected = 7
    await expect(visitor.texts).to_have_count(expected, timeout=BACK_TIMEOUT * 1000)
    texts = await stored(server, outage.name)
    assert len(texts) == len(set(texts)) == expected
    return texts


@pytest.mark.patient
@pytest.mark.timeout(300)
async def test_an_outage_loses_and_doubles_nothing_and_the_sdk_does_not_notice(
    server: ServerProcess, contexts: Callable[[], Awaitable[BrowserContext]]
) -> None:
    """All of them at once, so that a minute is spent once."""
    outages = []
    async with AsyncExitStack() as stack:
        device = await contexts()
        for seconds in (*SHORT, LONG):
            for kind in (silent, broken):
                proxy = await stack.enter_async_context(Proxy("127.0.0.1", server.port))
                outages.append(kind(proxy, device, seconds))
            outages.append(offline(server, await contexts(), seconds))
        trials = []
        for outage in outages:
            url = f"{outage.http_url}/#{outage.name}"
            visitor = await Visitor.join(outage.context, url, "Ada")
            sdk = await SDKPage.subscribe(
                outage.context, outage.http_url, mint("Sue"), f"chat:{outage.name}"
            )
            trials.append((outage, visitor, sdk))
        # Somebody whose network is well, and who is in all the rooms.
        watcher = await Visitor.join(await contexts(), server.http_url, "Walt")
        for outage in outages:
            await watcher.page.goto(f"{server.http_url}/#{outage.name}")
            await watcher.is_here()
        watcher.received.clear()
        async with asyncio.TaskGroup() as group:
            for trial in trials:
                group.create_task(endures(server, *trial))
        gone = [frame for frame in watcher.received if '"leave":' in frame or '"join":' in frame]
        assert not gone


async def endures(server: ServerProcess, outage: Outage, visitor: Visitor, sdk: SDKPage) -> None:
    """One page and one SDK, in one outage."""
    await expect(visitor.people.get_by_role("listitem")).to_have_count(3)
    await visitor.watch()
    visitor.sent.clear()
    events = await sdk.events()
    texts = await happens(server, outage, visitor, sdk)
    await visitor.sees(texts)
    await sdk.sees(texts, BACK_TIMEOUT)
    await expect(visitor.page.locator(".message.sending, .message.failed")).to_have_count(0)
    await expect(visitor.connection).to_have_text("Connected", timeout=BACK_TIMEOUT * 1000)

    assert await sdk.events() == events == UNDISTURBED, outage.name
    assert visitor.commands("connect") == visitor.commands("subscribe") == 0, outage.name
    kinds = await visitor.kinds()
    assert kinds[0] == kinds[-1] == "connected", outage.name
    assert outage.shown in kinds, outage.name
    assert set(kinds) <= SESSION_LIVES, outage.name
    first, *later = [(sight.people, sight.notes) for sight in await visitor.seen()]
    assert all(now == first for now in later), (outage.name, first, later)
    assert visitor.problems == []
