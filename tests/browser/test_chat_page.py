"""The chat page in a real browser, against a real gateway over a real PostgreSQL."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Browser, BrowserContext, WebSocketRoute, expect

from tests.browser.looks import FAINT_TEXTS, SMALL_TARGETS, TARGET_MIN_PX, TEXT_CONTRAST_MIN
from tests.browser.rooms import api, fill_room, say, stored
from tests.browser.visitor import Visitor
from tests.support.server import DEFAULT_CONFIG, ServerProcess, mint

# Chatting.


async def test_two_tabs_chat(shared_server: ServerProcess, context: BrowserContext) -> None:
    ada = await Visitor.join(context, shared_server.http_url, "Ada")
    ben = await Visitor.join(context, shared_server.http_url, "Ben")
    await ada.write("Hello Ben")
    await expect(ben.message("Hello Ben").get_by_text("Ada")).to_be_visible()
    await ben.write("Hello Ada,\nhow are you?")
    await ada.write("Fine: https://example.org/x?y=1.")
    expected = ["Hello Ben", "Hello Ada,\nhow are you?", "Fine: https://example.org/x?y=1."]
    for visitor in (ada, ben):
        await visitor.sees(expected)
    await expect(ada.message("Hello Ben")).to_contain_text("Sent")
    link = ben.page.get_by_role("link", name="https://example.org/x?y=1", exact=True)
    await expect(link).to_have_attribute("rel", "noopener noreferrer nofollow")
    assert await stored(shared_server, "lobby") == expected


async def test_nothing_foreign_is_loaded_and_nothing_goes_wrong(
    shared_server: ServerProcess, context: BrowserContext
) -> None:
    """A violation of the content security policy would be an error on the console."""
    visitor = await Visitor.join(context, f"{shared_server.http_url}/#clean", "Ada")
    await visitor.write("<img src=x onerror=alert(1)><b>not bold</b>")
    await visitor.sees(["<img src=x onerror=alert(1)><b>not bold</b>"])
    assert visitor.problems == []
    own = (shared_server.http_url, shared_server.ws_url)
    assert all(url.startswith(own) for url in visitor.requested), visitor.requested


async def test_history_is_there_after_a_reload_and_for_newcomers(
    shared_server: ServerProcess, context: BrowserContext
) -> None:
    url = f"{shared_server.http_url}/#memory"
    ada = await Visitor.join(context, url, "Ada")
    for text in ("one", "two", "three"):
        await ada.write(text)
    await ada.sees(["one", "two", "three"])
    await ada.page.reload()
    await ada.is_here()  # The tab remembers who it is, and asks nothing.
    await ada.sees(["one", "two", "three"])
    await expect(ada.message("one")).to_contain_text("You")
    ben = await Visitor.arrive(context, url, "Ben")
    await expect(ben.page.get_by_label("Your name")).to_have_value("Ada")
    await ben.page.get_by_label("Your name").fill("Ben")
    await ben.page.keyboard.press("Enter")
    await ben.sees(["one", "two", "three"])


async def test_scrolling_up_loads_the_past_page_by_page(
    shared_server: ServerProcess, context: BrowserContext
) -> None:
    texts = await fill_room(shared_server, "long", 130)
    visitor = await Visitor.join(context, f"{shared_server.http_url}/#long", "Ada")
    await visitor.sees(texts[-50:])
    await expect(visitor.message(texts[-1])).to_be_in_viewport()
    top = visitor.message(texts[-50])
    await top.scroll_into_view_if_needed()
    await expect(visitor.message(texts[-51])).to_be_attached()
    # What the reader was looking at is still in sight.
    await expect(top).to_be_in_viewport()
    await visitor.message(texts[-100]).scroll_into_view_if_needed()
    await visitor.sees(texts)
    await expect(visitor.page.get_by_text("This is the beginning of #long")).to_be_attached()
    # What arrives doesn't pull the reader away, but is announced.
    await say(shared_server, "long", "news")
    await visitor.page.get_by_role("button", name="1 new message").click()
    await expect(visitor.message("news")).to_be_in_viewport()


async def test_presence_and_typing_are_seen(
    shared_server: ServerProcess, context: BrowserContext
) -> None:
    url = f"{shared_server.http_url}/#people"
    ada = await Visitor.join(context, url, "Ada", clock=True)
    await expect(ada.page.get_by_text("1 person here")).to_be_visible()
    ben = await Visitor.join(context, url, "Ben")
    await expect(ada.people.get_by_role("listitem")).to_have_text(["AAda(you)", "BBen"])
    await expect(ada.page.get_by_text("2 people here")).to_be_visible()
    await expect(ada.log.get_by_text("Ben joined")).to_be_visible()
    await ben.box.press_sequentially("I am")
    await expect(ada.typing).to_have_text("Ben is typing")
    await expect(ben.typing).to_be_empty()
    await ben.box.press("Enter")
    await ada.sees(["I am"])
    await expect(ada.typing).to_be_empty()
    assert await stored(shared_server, "people") == ["I am"]
    await ben.page.close()
    await expect(ada.page.get_by_text("1 person here")).to_be_visible()
    await expect(ada.log.get_by_text("Ben left")).to_be_hidden()
    await ada.page.clock.fast_forward(10_000)  # He may just have reloaded the page.
    await expect(ada.log.get_by_text("Ben left")).to_be_visible()


async def test_rooms_are_chosen_in_the_address_and_keep_their_own_state(
    shared_server: ServerProcess, context: BrowserContext
) -> None:
    ada = await Visitor.join(context, f"{shared_server.http_url}/#north", "Ada")
    ben = await Visitor.join(context, f"{shared_server.http_url}/#caf%C3%A9%20%231", "Ben")
    await expect(ben.page.get_by_role("heading", name="#café #1")).to_be_visible()
    await ada.box.fill("a draft")
    await ada.page.get_by_label("Name of a room to open").fill("café #1")
    await ada.page.keyboard.press("Enter")
    await expect(ada.box).to_be_focused()
    await ada.write("hello from the north")
    await ben.sees(["hello from the north"])
    await ada.page.get_by_role("link", name="north").click()
    await expect(ada.box).to_have_value("a draft")
    await ada.sees([])
    await ben.write("still there?")
    await expect(ada.page.get_by_role("link", name="café #1")).to_contain_text("1")
    await expect(ada.page).to_have_title("(1) #north · capegate")
    await ada.page.go_back()
    await ada.sees(["hello from the north", "still there?"])
    await ada.page.get_by_role("button", name="Leave #café #1").click()
    await expect(ben.page.get_by_text("1 person here")).to_be_visible()


# Keyboards, screen readers, phones, eyes.


async def test_everything_works_by_keyboard_alone(
    shared_server: ServerProcess, context: BrowserContext
) -> None:
    await fill_room(shared_server, "keys", 60)
    visitor = await Visitor.arrive(context, f"{shared_server.http_url}/#keys", "Ada")
    keyboard = visitor.page.keyboard
    await keyboard.press("Enter")
    await expect(visitor.page.get_by_role("alert")).to_have_text("Please enter a name.")
    await keyboard.type("Ada")
    await keyboard.press("Enter")
    await visitor.is_here()
    await expect(visitor.box).to_be_focused()
    await keyboard.type("first")
    await keyboard.press("Shift+Enter")
    await keyboard.type("second")
    await keyboard.press("Enter")
    await expect(visitor.texts.last).to_have_text("first\nsecond")
    # Backwards from the message box: the log, which scrolls by keys and loads what is above.
    await keyboard.press("Shift+Tab")
    await expect(visitor.log).to_be_focused()
    await expect(visitor.message("first\nsecond")).to_be_in_viewport()
    await keyboard.press("Home")
    await expect(visitor.message("message 1")).to_be_attached()
    await keyboard.press("Home")
    await expect(visitor.message("message 1")).to_be_in_viewport()
    # From the top of the page, in the order of reading, always with a visible focus.
    await visitor.page.get_by_role("button", name="Skip to the message box").focus()
    order = []
    for _ in range(7):
        order.append(await visitor.page.evaluate(_FOCUSED))
        await keyboard.press("Tab")
    assert order == [
        {"name": "Skip to the message box", "visible": True},
        {"name": "keys", "visible": True},
        {"name": "Name of a room to open", "visible": True},
        {"name": "Open the room", "visible": True},
        {"name": "Change name", "visible": True},
        {"name": "Messages", "visible": True},
        {"name": "Newest messages", "visible": True},
    ]
    await expect(visitor.box).to_be_focused()


_FOCUSED = """() => {
    const focused = document.activeElement;
    const { boxShadow, outlineStyle } = getComputedStyle(focused);
    const name = focused.getAttribute("aria-label") ?? focused.labels?.[0]?.textContent
        ?? focused.innerText;
    return { name: name.trim(), visible: boxShadow !== "none" || outlineStyle !== "none" };
}"""


async def test_the_skip_button_leads_to_the_message_box(
    shared_server: ServerProcess, context: BrowserContext
) -> None:
    visitor = await Visitor.join(context, f"{shared_server.http_url}/#skip", "Ada")
    await visitor.page.get_by_role("button", name="Skip to the message box").focus()
    await visitor.page.keyboard.press("Enter")
    await expect(visitor.box).to_be_focused()
    await expect(visitor.page).to_have_url(f"{shared_server.http_url}/#skip")


async def test_a_screen_reader_hears_what_arrives_and_not_the_past(
    shared_server: ServerProcess, context: BrowserContext
) -> None:
    await fill_room(shared_server, "spoken", 60)
    visitor = await Visitor.join(context, f"{shared_server.http_url}/#spoken", "Ada")
    await expect(visitor.message("message 60")).to_be_visible()
    await expect(visitor.log).to_have_attribute("aria-live", "off")
    await say(shared_server, "spoken", "news")
    await expect(visitor.message("news")).to_be_visible()
    await expect(visitor.log).to_have_attribute("aria-live", "polite")
    await visitor.message("message 11").scroll_into_view_if_needed()
    await expect(visitor.message("message 1")).to_be_attached()
    await expect(visitor.log).to_have_attribute("aria-live", "off")


async def test_a_phone_has_no_sideways_scroll_and_targets_for_fingers(
    shared_server: ServerProcess, browser: Browser
) -> None:
    context = await browser.new_context(
        viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True
    )
    url = f"{shared_server.http_url}/#a-room-with-quite-a-long-name-for-a-phone"
    visitor = await Visitor.arrive(context, url, "Ada")
    assert await visitor.overflow() == 0
    await visitor.page.get_by_label("Your name").fill("A person with quite a long name")
    await visitor.page.get_by_role("button", name="Join").tap()
    await expect(visitor.connection).to_have_text("Connected")
    long = "w" * 300
    await visitor.write(long)
    await visitor.write("https://example.org/" + "x" * 200)
    await expect(visitor.message(long)).to_be_attached()
    assert await visitor.overflow() == 0
    assert await visitor.page.evaluate(SMALL_TARGETS, TARGET_MIN_PX) == []
    opener = visitor.page.get_by_role("button", name="Rooms and people")
    await opener.tap()
    await expect(visitor.people.get_by_text("(you)")).to_be_visible()
    await expect(visitor.page.get_by_role("button", name="Close the list")).to_be_focused()
    assert await visitor.overflow() == 0
    assert await visitor.page.evaluate(SMALL_TARGETS, TARGET_MIN_PX) == []
    await visitor.page.keyboard.press("Escape")
    await expect(visitor.people).to_be_hidden()
    await expect(opener).to_be_focused()
    await context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_every_text_stands_out_from_its_background(
    shared_server: ServerProcess, browser: Browser, scheme: Any
) -> None:
    """WCAG AA: 4.5 to 1, for all of the text that is on the page in either scheme."""
    context = await browser.new_context(color_scheme=scheme)
    url = f"{shared_server.http_url}/#contrast-{scheme}"
    ada = await Visitor.join(context, url, "Ada")
    ben = await Visitor.join(context, url, "Ben")
    await ada.write("see https://example.org/")
    await ben.write("see https://example.org/")
    await ada.sees(["see https://example.org/"] * 2)
    await ben.box.press_sequentially("typing")
    await expect(ada.typing).to_have_text("Ben is typing")
    assert await ada.page.evaluate(FAINT_TEXTS, TEXT_CONTRAST_MIN) == []
    await ada.page.get_by_role("button", name="Change name").click()
    assert await ada.page.evaluate(FAINT_TEXTS, TEXT_CONTRAST_MIN) == []
    await context.close()


async def test_nothing_moves_for_those_who_asked_for_that(
    shared_server: ServerProcess, browser: Browser
) -> None:
    context = await browser.new_context(reduced_motion="reduce")
    url = f"{shared_server.http_url}/#calm"
    ada = await Visitor.join(context, url, "Ada")
    ben = await Visitor.join(context, url, "Ben")
    await ben.write("hello")
    await ada.sees(["hello"])  # What was written ends what was being typed.
    await ben.box.press_sequentially("typing")
    await expect(ada.typing).to_have_text("Ben is typing")
    assert await ada.page.evaluate("document.getAnimations().length") == 0
    await context.close()


# Losing the connection.


async def test_a_message_whose_reply_is_lost_is_stored_once_and_shown_once(
    shared_server: ServerProcess, context: BrowserContext
) -> None:
    """The network goes away between the commit and its reply."""
    closing: list[asyncio.Task[None]] = []

    def cut_at_the_reply(route: WebSocketRoute) -> None:
        gateway = route.connect_to_server()

        def from_gateway(frame: str | bytes) -> None:
            # The reply and the publication itself: neither gets through.
            if not closing and "only once" in str(frame):
                return
            if not closing and '"publish":{"offset"' in str(frame):
                closing.append(asyncio.create_task(route.close(code=4000, reason="cut")))
                return
            route.send(frame)

        gateway.on_message(from_gateway)

    await context.route_web_socket("**/connection/websocket", cut_at_the_reply)
    visitor = await Visitor.join(context, f"{shared_server.http_url}/#lossy", "Ada")
    await visitor.write("only once")
    await expect(visitor.message("only once").get_by_text("Sent")).to_be_attached()
    await visitor.write("and then this")
    await expect(visitor.message("and then this").get_by_text("Sent")).to_be_attached()
    await visitor.sees(["only once", "and then this"])
    await asyncio.gather(*closing)
    assert len(closing) == 1
    assert await stored(shared_server, "lossy") == ["only once", "and then this"]


async def test_being_disconnected_for_good_says_why_and_how_to_come_back(
    shared_server: ServerProcess, context: BrowserContext
) -> None:
    visitor = await Visitor.join(context, f"{shared_server.http_url}/#thrown", "Zoe")
    await api(shared_server, "disconnect", user="Zoe")
    await expect(visitor.connection).to_have_text("Disconnected")
    await expect(visitor.page.get_by_role("status")).to_contain_text("force disconnect")
    await visitor.write("kept")
    await visitor.page.get_by_role("button", name="Connect again").click()
    await visitor.is_here()
    await expect(visitor.message("kept").get_by_text("Sent")).to_be_attached()


# Other servers.


async def test_a_name_that_the_server_refuses_can_be_changed(
    shared_server: ServerProcess, context: BrowserContext
) -> None:
    visitor = await Visitor.arrive(context, shared_server.http_url, "")
    await visitor.page.get_by_label("Your name").fill("Ada\u200bLovelace")
    await visitor.page.get_by_role("button", name="Join").click()
    await expect(visitor.page.get_by_role("alert")).to_contain_text("Please choose another one")
    await expect(visitor.page.get_by_label("Your name")).to_be_focused()


async def test_without_the_token_route_a_token_is_asked_for(
    database_url: str, tmp_path: Path, context: BrowserContext
) -> None:
    server = ServerProcess(tmp_path, database_url=database_url)
    await asyncio.to_thread(server.start)
    try:
        visitor = await Visitor.arrive(context, server.http_url, "Ada")
        await visitor.page.get_by_label("Your name").fill("Ada")
        await visitor.page.keyboard.press("Enter")
        token = visitor.page.get_by_label("Connection token")
        await expect(token).to_be_focused()
        await expect(visitor.page.get_by_text("capegate token --user alice")).to_be_visible()
        await token.fill("nonsense")
        await visitor.page.get_by_role("button", name="Join").click()
        await expect(visitor.page.get_by_role("alert")).to_contain_text("two dots")
        await token.fill(mint("Ada"))
        await visitor.page.get_by_role("button", name="Join").click()
        await visitor.is_here()
        await visitor.write("with a token")
        await expect(visitor.message("with a token").get_by_text("Sent")).to_be_attached()
        await visitor.page.reload()
        await visitor.is_here()
        await expect(visitor.message("with a token")).to_contain_text("You")
        # Signed by somebody else: the server refuses it for good, and the page asks for another.
        await visitor.page.get_by_role("button", name="Change name").click()
        await token.fill(mint("Ada", secret="a secret of somebody else, also long enough"))
        await visitor.page.get_by_role("button", name="Join").click()
        await visitor.page.get_by_role("button", name="Connect again").click()
        await expect(visitor.page.get_by_role("alert")).to_contain_text("enter a new one")
    finally:
        await asyncio.to_thread(server.terminate)


async def test_a_message_that_is_refused_says_why_and_can_be_discarded(
    database_url: str, tmp_path: Path, context: BrowserContext
) -> None:
    config = "\n".join(
        line for line in DEFAULT_CONFIG.splitlines() if not line.startswith("allow_publish")
    )
    server = ServerProcess(
        tmp_path,
        database_url=database_url,
        config=config,
        environment={"GATEWAY_DEVELOPMENT": "1"},
    )
    await asyncio.to_thread(server.start)
    try:
        visitor = await Visitor.join(context, server.http_url, "Ada")
        await visitor.write("not allowed")
        refused = visitor.message("not allowed")
        await expect(refused.get_by_role("alert")).to_have_text("You may not write in this room.")
        await expect(refused).to_contain_text("Not sent")
        await refused.get_by_role("button", name="Retry").click()
        await expect(refused).to_contain_text("Not sent")
        await refused.get_by_role("button", name="Discard").click()
        await visitor.sees([])
    finally:
        await asyncio.to_thread(server.terminate)
