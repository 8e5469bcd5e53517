"""A person at the chat page, in a browser tab: what they do and what they see."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any

from playwright.async_api import BrowserContext, ConsoleMessage, Locator, Page, WebSocket, expect

from tests.support.waiting import until

RECONNECT_TIMEOUT_MS = 45_000
"""The page's longest pause between two attempts, the server's answer, and a slow machine."""

_JUMP = timedelta(seconds=20)
"""The page's longest pause."""

# What the browser itself reports about a server that is away, or has no token route.
_EXPECTED_ERRORS = (
    "WebSocket connection to",
    "Failed to load resource",
    # The page came from another machine, without TLS.
    "The Cross-Origin-Opener-Policy header has been ignored",
)

_WATCH = """() => {
    const texts = (selector) =>
        [...document.querySelectorAll(selector)].map((at) => at.textContent);
    const text = (selector) => texts(selector).join("");
    const seen = [];
    const look = () => {
        const now = {
            kind: document.getElementById("connection").dataset.kind,
            label: text("#connection-label"),
            detail: text("#connection-detail"),
            people: texts("#people .person-name"),
            notes: texts(".note"),
            announced: text("#announcer"),
        };
        if (JSON.stringify(now) !== JSON.stringify(seen.at(-1))) seen.push(now);
    };
    const options = { subtree: true, childList: true, characterData: true, attributes: true };
    new MutationObserver(look).observe(document.body, options);
    look();
    window.seenByTest = seen;
}"""


@dataclass(frozen=True, slots=True)
class Sight:
    """What the page showed of the connection and the people for some time."""

    kind: str
    label: str
    detail: str
    people: Sequence[str]
    notes: Sequence[str]
    announced: str


class Visitor:
    """One tab. `problems` collects what the page complained about: it should stay empty.

    `sent` and `received` have the messages of all its sockets, and `sockets` is how many it opened.
    """

    def __init__(self, page: Page, name: str) -> None:
        self.page = page
        self.name = name
        self.problems: list[str] = []
        self.requested: set[str] = set()
        self.sent: list[str] = []
        self.received: list[str] = []
        self.sockets = 0
        self.people = page.get_by_role("list", name="People here")
        self.log = page.get_by_role("log", name="Messages")
        self.texts = page.locator(".message .text")
        self.typing = page.locator("#typing-text")
        self.connection = page.locator("#connection-label")
        self.detail = page.locator("#connection-detail")
        self.retry = page.get_by_role("button", name="Retry now")
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("request", lambda request: self.requested.add(request.url))
        page.on("websocket", self._socket)

    @classmethod
    async def arrive(
        cls, context: BrowserContext, url: str, name: str, *, clock: bool = False
    ) -> "Visitor":
        """Open the page in a tab of its own and stand before the dialog.

        With `clock`, `page.clock` can make the page's time jump.
        """
        visitor = cls(await context.new_page(), name)
        if clock:
            await visitor.page.clock.install()
        await visitor.page.goto(url)
        await expect(visitor.page.get_by_role("dialog")).to_be_visible()
        return visitor

    @classmethod
    async def join(
        cls, context: BrowserContext, url: str, name: str, *, clock: bool = False
    ) -> "Visitor":
        """Open the page, give the name and be in the room."""
        visitor = await cls.arrive(context, url, name, clock=clock)
        await visitor.page.get_by_label("Your name").fill(name)
        await visitor.page.get_by_role("button", name="Join").click()
        await visitor.is_here()
        return visitor

    async def is_here(self) -> None:
        """Connected, in the room, and listed among the people."""
        await expect(self.connection).to_have_text("Connected", timeout=RECONNECT_TIMEOUT_MS)
        await expect(self.people.get_by_text("you", exact=False)).to_be_visible()

    @property
    def box(self) -> Locator:
        """Where messages are written."""
        return self.page.locator("#text")

    async def write(self, text: str) -> None:
        await self.box.fill(text)
        await self.box.press("Enter")

    async def pauses_grow_long(self, after: timedelta = timedelta()) -> None:
        """Let the page's time jump from attempt to attempt, until a pause has 13 s or more to go.

        No server may be there, and the page needs its `clock`. Looks only when `after` has passed.
        """
        passed = timedelta()
        for _ in range(60):
            await expect(self.detail).to_have_text(re.compile(r"next try in \d+ s"))
            if passed >= after and re.search(r" (1[3-9]|20) s", await self.detail.inner_text()):
                return
            attempt = self.sockets + 1
            await self.page.clock.fast_forward(_JUMP // timedelta(milliseconds=1))
            await until(partial(self._has_opened, attempt))
            passed += _JUMP
        raise AssertionError("the pauses did not grow long")

    def message(self, text: str) -> Locator:
        """The rows that show exactly this text."""
        return self.page.locator(".message").filter(
            has=self.page.locator(".text").get_by_text(text, exact=True)
        )

    async def sees(self, texts: Sequence[str]) -> None:
        """Wait until the messages are these, in this order, each once."""
        await expect(self.texts).to_have_text(list(texts), timeout=RECONNECT_TIMEOUT_MS)

    async def watch(self) -> None:
        """From now on, write down what the page shows; see `seen`."""
        await self.page.evaluate(_WATCH)

    async def seen(self) -> list[Sight]:
        """What the page has shown since `watch`, in order, without repetitions."""
        seen: list[dict[str, Any]] = await self.page.evaluate("window.seenByTest")
        return [Sight(**sight) for sight in seen]

    async def kinds(self) -> list[str]:
        """What the indicator has shown since `watch`, in order, without repetitions."""
        kinds = [sight.kind for sight in await self.seen()]
        return [kind for at, kind in enumerate(kinds) if at == 0 or kind != kinds[at - 1]]

    def commands(self, method: str) -> int:
        """How many commands of this method have been sent."""
        return sum(frame.count(f'"{method}":{{') for frame in self.sent)

    async def overflow(self) -> int:
        """By how many pixels the page is wider than its window."""
        return int(
            await self.page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
        )

    def _socket(self, socket: WebSocket) -> None:
        self.sockets += 1
        socket.on("framesent", lambda frame: self.sent.append(str(frame)))
        socket.on("framereceived", lambda frame: self.received.append(str(frame)))

    def _has_opened(self, sockets: int) -> bool:
        return self.sockets >= sockets

    def _console(self, message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"} and not message.text.startswith(_EXPECTED_ERRORS):
            self.problems.append(message.text)
