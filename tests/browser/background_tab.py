"""A tab that can go to the background, and be frozen there, as those of people do.

Playwright keeps its own tabs in sight, whatever else is opened; this one it doesn't know of.
"""

import asyncio
import itertools
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Final, Self

from playwright.async_api import Browser, CDPSession

_TIMEOUT: Final = 15.0
_INTERVAL: Final = 0.05


class PageBusy(Exception):
    """The page can't be asked just now, because it makes way for another one."""


class BackgroundTab:
    """One tab, and another one that takes its place on the screen."""

    def __init__(self, browser: CDPSession, target: str, other: str, session: str) -> None:
        self._browser = browser
        self._target = target
        self._other = other
        self._session = session
        self._ids = itertools.count(1)
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        browser.on("Target.receivedMessageFromTarget", self._received)

    @classmethod
    @asynccontextmanager
    async def open(cls, browser: Browser, url: str) -> AsyncIterator[Self]:
        """Open it in the foreground, in a profile of its own."""
        session = await browser.new_browser_cdp_session()
        profile = await session.send("Target.createBrowserContext")
        here = {"browserContextId": profile["browserContextId"]}
        other = await session.send("Target.createTarget", {"url": "about:blank", **here})
        target = await session.send("Target.createTarget", {"url": url, **here})
        attached = await session.send(
            "Target.attachToTarget", {"targetId": target["targetId"], "flatten": False}
        )
        tab = cls(session, target["targetId"], other["targetId"], attached["sessionId"])
        await tab.until(f"location.href.startsWith({url!r}) && document.readyState === 'complete'")
        yield tab
        await session.send("Target.disposeBrowserContext", here)
        await session.detach()

    async def evaluate(self, expression: str) -> Any:
        """The value of an expression in the page. Raises PageBusy."""
        answer = await self._send("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    async def until(self, expression: str) -> None:
        """Wait until it is true in the page."""
        async with asyncio.timeout(_TIMEOUT):
            while True:
                with suppress(PageBusy):
                    if await self.evaluate(expression):
                        return
                await asyncio.sleep(_INTERVAL)

    async def hide(self) -> None:
        """Let the other tab take its place."""
        await self._browser.send("Target.activateTarget", {"targetId": self._other})
        await self.until("document.hidden")

    async def show(self) -> None:
        """Bring it back."""
        await self._browser.send("Target.activateTarget", {"targetId": self._target})
        await self.until("!document.hidden")

    async def freeze(self) -> None:
        """Stop everything in it, as browsers do to save power. It must be hidden."""
        await self._send("Page.setWebLifecycleState", state="frozen")

    async def thaw(self) -> None:
        """Let it go on."""
        await self._send("Page.setWebLifecycleState", state="active")

    async def _send(self, method: str, **params: Any) -> dict[str, Any]:
        number = next(self._ids)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        command = json.dumps({"id": number, "method": method, "params": params})
        await self._browser.send(
            "Target.sendMessageToTarget", {"sessionId": self._session, "message": command}
        )
        async with asyncio.timeout(_TIMEOUT):
            message = await answer
        if "error" in message:
            raise PageBusy(message["error"]["message"])
        result: dict[str, Any] = message["result"]
        return result

    def _received(self, event: dict[str, Any]) -> None:
        message = json.loads(event["message"])
        if answer := self._answers.pop(message.get("id"), None):
            answer.set_result(message)
