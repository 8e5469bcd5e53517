"""A gateway that says what the test tells it to, and lets the test see what it hears.

async with ScriptedGateway() as server, ...:
    line = await server.accept()
    await line.open_session()
    await line.answer(await line.hear("connect"), client="c1")
"""

import asyncio
import json
from typing import Any, Self

from aiohttp import WSMsgType, web
from aiohttp.test_utils import TestServer

from gateway.protocol.session_frames import opened, resumed
from tests.support.waiting import DEADLINE


class ScriptedLine:
    """One WebSocket of a client."""

    def __init__(self, websocket: web.WebSocketResponse) -> None:
        self.websocket = websocket
        self.done = asyncio.Event()

    async def hear(self, what: str | None = None) -> Any:
        """The next message; `what` has to be in it: a command's method, or a session frame's name.

        A command is returned whole, of a session frame what is said.
        """
        async with asyncio.timeout(DEADLINE):
            message = await self.websocket.receive()
        assert message.type is WSMsgType.TEXT, message
        heard = json.loads(message.data)
        heard = heard.get("session", heard)
        assert what is None or what in heard, heard
        return heard if what is None or "id" in heard else heard[what]

    async def hear_end(self) -> int | None:
        """Wait for the end; gives the code of the client's close frame, None without one."""
        async with asyncio.timeout(DEADLINE):
            message = await self.websocket.receive()
        assert message.type in (WSMsgType.CLOSE, WSMsgType.CLOSED, WSMsgType.ERROR), message
        return message.data if message.type is WSMsgType.CLOSE else None

    async def say(self, *messages: bytes | dict[str, Any]) -> None:
        """Send one frame: a session frame as it is, or what belongs to part A, line by line."""
        lines = [one.decode() if isinstance(one, bytes) else json.dumps(one) for one in messages]
        await self.websocket.send_str("\n".join(lines))

    async def answer(self, command: Any, **result: Any) -> None:
        """A good reply to a command."""
        (method,) = set(command) - {"id"}
        await self.say({"id": command["id"], method: result})

    async def refuse(self, command: Any, code: int, *, temporary: bool = False) -> None:
        """An error reply to a command."""
        error = {"code": code, "message": "no", "temporary": temporary}
        await self.say({"id": command["id"], "error": error})

    async def push(self, channel: str, **what: Any) -> None:
        """Something about a channel."""
        await self.say({"push": {"channel": channel, **what}})

    async def open_session(self, token: str = "token") -> None:
        """Take `open`."""
        await self.hear("open")
        await self.say(opened(token, 1, 25.0, 60.0, 30.0))

    async def resume_session(self, received: int, generation: int = 2) -> Any:
        """Take `resume`; so many frames of the client were processed. Gives what it said."""
        wish = await self.hear("resume")
        await self.say(resumed(generation, received, 0, 60.0, 30.0))
        return wish

    async def greet(self, client: str = "c1", **result: Any) -> None:
        """Take `open` and `connect`."""
        await self.open_session()
        await self.answer(await self.hear("connect"), client=client, **result)

    async def close(self, code: int, reason: str = "") -> None:
        """Close it."""
        await self.websocket.close(code=code, message=reason.encode())
        self.done.set()

    def abort(self) -> None:
        """Break it."""
        transport = self.websocket._req.transport if self.websocket._req else None
        assert transport is not None, "open"
        transport.abort()
        self.done.set()


class ScriptedGateway:
    """A server of scripted lines: `async with ScriptedGateway() as server:`."""

    def __init__(self) -> None:
        self._lines: asyncio.Queue[ScriptedLine] = asyncio.Queue()
        self._all: list[ScriptedLine] = []
        self._refusals: list[web.Response] = []
        app = web.Application()
        app.router.add_get("/connection/websocket", self._handle)
        self._server = TestServer(app)
        self.attempts = 0
        """How many upgrades were asked for."""

    async def __aenter__(self) -> Self:
        await self._server.start_server()
        return self

    async def __aexit__(self, *_: object) -> None:
        for line in self._all:
            line.done.set()
        await self._server.close()

    @property
    def url(self) -> str:
        """Where clients connect."""
        return f"ws://127.0.0.1:{self._server.port}/connection/websocket"

    def refuse_next(self, status: int, **headers: str) -> None:
        """Answer the next upgrade by an HTTP status."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self._refusals.append(web.Response(status=status, headers=named))

    async def accept(self) -> ScriptedLine:
        """The next line that a client opens."""
        async with asyncio.timeout(DEADLINE):
            return await self._lines.get()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        self.attempts += 1
        if self._refusals:
            return self._refusals.pop(0)
        websocket = web.WebSocketResponse()
        await websocket.prepare(request)
        line = ScriptedLine(websocket)
        self._all.append(line)
        self._lines.put_nowait(line)
        await line.done.wait()
        return websocket
