"""A client of the channel protocol (PROTOCOL.md part A) over a real socket, spoken by hand.

Unlike an SDK it shows the replies and pushes as they came, and does wrong what it is told to.
"""

import json
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from gateway.protocol.codes import Disconnect
from tests.support.scrape import counting
from tests.support.server import ServerProcess, mint
from tests.support.wire import CLOSE, PING, PONG, TEXT, Close, Frame, Wire, wire


class CommandError(Exception):
    """An error reply."""

    def __init__(self, error: dict[str, Any]) -> None:
        super().__init__(error)
        self.code: int = error["code"]
        self.message: str = error["message"]
        self.temporary: bool = error.get("temporary", False)


class Ended(NamedTuple):
    """How the server closed the connection; `advice` is the close reason's JSON."""

    code: int
    advice: dict[str, Any]


class Peer:
    """One client. Replies are matched by id; what comes meanwhile waits in line for `push`."""

    def __init__(self, connection: Wire) -> None:
        self.wire = connection
        self.answers_pings = True
        self.pings = 0
        self.client = ""
        self.connected: dict[str, Any] = {}
        """The connect result."""
        self._id = 0
        self._pushes: deque[dict[str, Any]] = deque()
        self._replies: dict[int, dict[str, Any]] = {}

    # --- out --------------------------------------------------------------------------------------

    def send(self, *commands: object) -> None:
        """Send commands as one message, as they are."""
        self.wire.send("\n".join(json.dumps(command) for command in commands))

    def begin(self, method: str, /, **request: object) -> int:
        """Send a command and don't wait; returns its id for `reply`."""
        self._id += 1
        self.send({"id": self._id, method: request})
        return self._id

    # --- in ---------------------------------------------------------------------------------------

    async def _read(self) -> None:
        """Take one frame and sort what is in it."""
        self._take(await self.wire.frame())

    def _take(self, frame: Frame) -> None:
        if frame.opcode == PING:
            if self.answers_pings:
                self.wire.send(frame.payload, PONG)
            return
        assert frame.opcode == TEXT, f"the server sent {frame!r}"
        for line in frame.text.split("\n"):
            message = json.loads(line)
            if "id" in message:
                self._replies[message["id"]] = message
            elif "push" in message:
                self._pushes.append(message["push"])
            else:
                assert message == {}, message
                self.pings += 1
                if self.answers_pings:
                    self.send({})

    async def reply(self, command_id: int) -> dict[str, Any]:
        """The reply to a command, whole."""
        while command_id not in self._replies:
            await self._read()
        return self._replies.pop(command_id)

    async def call(self, method: str, /, **request: object) -> dict[str, Any]:
        """Send a command and return its result. Raises `CommandError`."""
        reply = await self.reply(self.begin(method, **request))
        if "error" in reply:
            raise CommandError(reply["error"])
        result = reply[method]
        assert isinstance(result, dict)
        return result

    async def error(self, method: str, /, **request: object) -> int:
        """Send a command that must fail; returns the error's code."""
        try:
            result = await self.call(method, **request)
        except CommandError as error:
            return error.code
        raise AssertionError(f"{method} succeeded: {result}")

    async def push(self, wanted: Callable[[dict[str, Any]], bool] | None = None) -> dict[str, Any]:
        """The next push; with `wanted`, the next of that kind, the others before it being lost."""
        while True:
            while not self._pushes:
                await self._read()
            push = self._pushes.popleft()
            if wanted is None or wanted(push):
                return push

    async def publication(self, channel: str | None = None) -> dict[str, Any]:
        """The next publication, of one channel or of any."""
        push = await self.push(
            lambda push: "pub" in push and channel in (None, push.get("channel"))
        )
        pub = push["pub"]
        assert isinstance(pub, dict)
        return pub

    async def publications(self, count: int, channel: str | None = None) -> list[dict[str, Any]]:
        """The next so many publications."""
        return [await self.publication(channel) for _ in range(count)]

    async def push_or_ping(self) -> None:
        """Read one more message, whatever it is, and keep it."""
        await self._read()

    async def quiet(self) -> list[dict[str, Any]]:
        """All pushes up to now: what came before the answer to a ping sent now."""
        await self.call("ping")
        pushes = list(self._pushes)
        self._pushes.clear()
        return pushes

    async def ended(self) -> Ended:
        """Read up to the server's close frame, answer it, and see the connection end."""
        while (frame := await self.wire.frame()).opcode != CLOSE:
            self._take(frame)
        close = Close.of(frame)
        self.wire.send_close(close.code)
        assert await self.wire.rest() == b""
        return Ended(close.code, close.advice())


@asynccontextmanager
async def open_peer(server: ServerProcess, query: str = "", **options: Any) -> AsyncIterator[Peer]:
    """A client whose socket is open and that has said nothing yet.

    `options`: those of `wire`, and headers as `Wire.upgrade` takes them.
    """
    of_wire = {name: options.pop(name) for name in _WIRE_OPTIONS & options.keys()}
    async with wire(server.port, **of_wire) as connection:
        response = await connection.upgrade(query, **options)
        assert response.status == 101, response
        yield Peer(connection)


_WIRE_OPTIONS = {"source", "receive_buffer_bytes"}


@asynccontextmanager
async def connected(
    server: ServerProcess,
    user: str = "alice",
    *,
    claims: dict[str, Any] | None = None,
    token: str | None = None,
    query: str = "",
    connect: dict[str, Any] | None = None,
    **options: Any,
) -> AsyncIterator[Peer]:
    """A client that has connected as `user`.

    `claims` go into its token, or `token` is used; `connect` adds to the command's fields.
    """
    async with open_peer(server, query, **options) as peer:
        token = mint(user, **(claims or {})) if token is None else token
        peer.connected = await peer.call(
            "connect", **({"token": token} if token else {}), **(connect or {})
        )
        peer.client = peer.connected["client"]
        yield peer


async def expect_end(server: ServerProcess, peer: Peer, disconnect: Disconnect) -> int | None:
    """The server ends the connection for this reason, says so, and counts it.

    Returns after how many milliseconds the client should come back, if it was told.
    """
    async with counting(server, "disconnects_total", {"code": str(disconnect.code)}):
        ended = await peer.ended()
    retry: int | None = ended.advice.pop("retry", None)

    assert (ended.code, ended.advice) == (
        disconnect.code,
        {"reason": disconnect.reason, "reconnect": disconnect.reconnect},
    )
    assert retry is None or (disconnect.reconnect and retry > 0)
    return retry
