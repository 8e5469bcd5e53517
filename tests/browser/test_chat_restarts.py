"""The chat page while its server is stopped, killed and started again."""

import asyncio
import re
from datetime import timedelta

from playwright.async_api import BrowserContext, expect

from tests.browser.rooms import say, stored
from tests.browser.visitor import RECONNECT_TIMEOUT_MS, Visitor
from tests.support.server import ServerProcess

UNDERWAY = ".message.sending, .message.failed"


async def test_a_restarted_server_has_the_same_room_and_nobody_has_left(
    server: ServerProcess, context: BrowserContext
) -> None:
    ada = await Visitor.join(context, server.http_url, "Ada")
    ben = await Visitor.join(context, server.http_url, "Ben")
    await ada.write("before")
    await ben.sees(["before"])
    for visitor in (ada, ben):
        await expect(visitor.people.get_by_role("listitem")).to_have_count(2)
        visitor.sent.clear()
        visitor.received.clear()
        await visitor.watch()

    assert await asyncio.to_thread(server.terminate) == 0
    for visitor in (ada, ben):
        await expect(visitor.connection).to_have_text("Server restarting")
        await expect(visitor.detail).to_have_text(re.compile(r"next try in \d+ s"))
        await visitor.write(f"from {visitor.name}, without a server")
        await expect(visitor.page.locator(UNDERWAY)).to_have_count(1)
    await asyncio.to_thread(server.start)
    await say(server, "lobby", "from elsewhere")
    for visitor in (ada, ben):
        await expect(visitor.texts).to_have_count(4, timeout=RECONNECT_TIMEOUT_MS)
        await expect(visitor.connection).to_have_text("Connected", timeout=RECONNECT_TIMEOUT_MS)
        await expect(visitor.page.locator(UNDERWAY)).to_have_count(0)
    await ada.write("after")

    texts = await stored(server, "lobby")
    assert texts[0] == "before"
    # Whoever is there first: it may be one of them.
    assert sorted(texts[1:4]) == [
        "from Ada, without a server",
        "from Ben, without a server",
        "from elsewhere",
    ]
    for visitor in (ada, ben):
        await visitor.sees([*texts[:4], "after"])
        assert await visitor.kinds() == ["connected", "restarting", "connected"]
        first, *later = await visitor.seen()
        for sight in later:
            assert (sight.people, sight.notes) == (first.people, first.notes)
        # It isn't only that the page is discreet about it.
        assert visitor.commands("connect") == visitor.commands("subscribe") == 0
        assert not [
            frame for frame in visitor.received if '"leave":' in frame or '"join":' in frame
        ]
        assert visitor.problems == []


async def test_after_kill_and_restart_every_message_is_there_exactly_once(
    server: ServerProcess, context: BrowserContext
) -> None:
    ada = await Visitor.join(context, server.http_url, "Ada")
    ben = await Visitor.join(context, server.http_url, "Ben")
    await ada.write("before")
    await ben.sees(["before"])
    for visitor in (ada, ben):
        await visitor.watch()
    for round_ in range(2):
        await asyncio.to_thread(server.kill)
        for visitor in (ada, ben):
            await expect(visitor.retry).to_be_visible()
        await ada.write(f"from Ada without a server, {round_}")
        await ben.write(f"from Ben without a server, {round_}")
        await expect(
            ada.message(f"from Ada without a server, {round_}").get_by_text("Sending")
        ).to_be_attached()
        await asyncio.to_thread(server.start)
        await say(server, "lobby", f"while away, {round_}")
        for visitor in (ada, ben):
            await visitor.is_here()
            await expect(visitor.texts).to_have_count(4 + 3 * round_, timeout=RECONNECT_TIMEOUT_MS)
    texts = await stored(server, "lobby")
    assert sorted(texts) == sorted(set(texts))
    assert len(texts) == 7
    for visitor in (ada, ben):
        await visitor.sees(texts)
        await expect(visitor.page.locator(UNDERWAY)).to_have_count(0)
        await expect(visitor.people.get_by_role("listitem")).to_have_count(2)
        kinds = await visitor.kinds()
        assert kinds[0] == kinds[-1] == "connected"
        # Nothing said goodbye: it was the line that was lost.
        assert "restarting" not in kinds
        assert "waiting" in kinds
        assert not any("left" in note for sight in await visitor.seen() for note in sight.notes)
        assert visitor.problems == []


async def test_the_next_attempt_is_counted_down_and_need_not_be_waited_for(
    server: ServerProcess, context: BrowserContext
) -> None:
    visitor = await Visitor.join(context, server.http_url, "Ada", clock=True)
    await visitor.page.evaluate("Math.random = () => 0.999")
    await asyncio.to_thread(server.kill)
    await expect(visitor.page.get_by_role("status")).to_contain_text(
        "What you write meanwhile", timeout=RECONNECT_TIMEOUT_MS
    )
    await visitor.pauses_grow_long()
    # From here on the page's time moves by the second, and only here. An attempt that was under way
    # gets its answer all the same.
    clock = visitor.page.clock
    await clock.pause_at(await visitor.page.evaluate("Date.now() / 1000 + 0.1"))
    await visitor.page.wait_for_timeout(500)
    await expect(visitor.detail).to_have_text(re.compile(r"next try in \d+ s"))
    counted = [int((await visitor.detail.inner_text()).split()[-2])]
    for _ in range(3):
        await clock.run_for(1000)
        counted.append(int((await visitor.detail.inner_text()).split()[-2]))
    assert counted == sorted(set(counted), reverse=True)
    assert 2 <= counted[0] - counted[-1] <= 4
    await clock.resume()

    await asyncio.to_thread(server.start)
    await visitor.retry.focus()
    await visitor.page.keyboard.press("Enter")
    await expect(visitor.connection).to_have_text("Connected")
    await expect(visitor.retry).to_be_hidden()
    await expect(visitor.box).to_be_focused()
    await expect(visitor.page.get_by_role("status")).to_have_text("Connected again.")


async def test_when_the_session_is_given_up_the_page_goes_on_trying(
    server: ServerProcess, context: BrowserContext
) -> None:
    visitor = await Visitor.join(context, server.http_url, "Ada", clock=True)
    await visitor.page.evaluate("Math.random = () => 0.999")
    assert await asyncio.to_thread(server.terminate) == 0
    # The session is given up after three minutes and a half, and the pauses begin anew.
    await visitor.pauses_grow_long(after=timedelta(minutes=5))
    await visitor.write("written without any session")
    await asyncio.to_thread(server.start)
    await visitor.retry.click()
    await expect(visitor.connection).to_have_text("Connected")
    await expect(visitor.message("written without any session")).to_contain_text("Sent")
    await visitor.sees(["written without any session"])
    assert visitor.commands("connect") == 2
    assert await stored(server, "lobby") == ["written without any session"]
