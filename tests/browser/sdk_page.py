"""The stock SDK, `centrifuge` from npm, over the JavaScript client's socket in a browser tab."""

from pathlib import Path
from typing import Any, Self

from playwright.async_api import BrowserContext, Page

from tests.support.tools import SDK_FOLDER

_SDK = SDK_FOLDER / "node_modules" / "centrifuge" / "dist" / "centrifuge.js"
_USE = Path(__file__).with_name("sdk_page.js")


class SDKPage:
    """A tab in which one SDK client has subscribed to one channel."""

    def __init__(self, page: Page) -> None:
        self._page = page

    @classmethod
    async def subscribe(cls, context: BrowserContext, url: str, token: str, channel: str) -> Self:
        """Open a tab, connect to the server at this address, and subscribe."""
        page = await context.new_page()
        # The chat page, where nobody has come in yet, has the client's modules and its own policy.
        await page.goto(url)
        await page.evaluate(_SDK.read_text())
        start = _USE.read_text()
        ws_url = f"{url.replace('http', 'ws', 1)}/connection/websocket"
        await page.evaluate(f"(given) => ({start})(...given)", [ws_url, token, channel])
        return cls(page)

    async def write(self, text: str) -> None:
        """Publish, without waiting for the answer."""
        await self._page.evaluate("(text) => sdk.publish(text)", text)

    async def events(self) -> list[Any]:
        """What has become of connection and subscription: names and codes, in order."""
        events: list[Any] = await self._page.evaluate("sdk.events")
        return events

    async def sees(self, texts: list[str], timeout: float) -> None:
        """Wait until it has received as many publications; they are these, in this order."""
        await self._page.wait_for_function(
            "(count) => sdk.texts.length >= count", arg=len(texts), timeout=timeout * 1000
        )
        seen = await self._page.evaluate("sdk.texts")
        assert seen == texts, seen
