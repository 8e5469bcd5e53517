"""A client with a session (PROTOCOL.md part B) over real sockets, spoken by hand.

A `SessionPeer` is one socket of it. What a client remembers from socket to socket, its token and
its counts, is in `Memory`, which the next socket takes over.
"""

import json
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from tests.support.peer import Peer
from tests.support.server import ServerProcess, mint
from tests.support.wire import CLOSE, TEXT, Frame, Wire, wire

PREFIX = '{"session":'


@dataclass
class Memory:
    """What a client knows of its session."""

    token: str = ""
    received: int = 0
    sent: int = 0


class SessionPeer(Peer):
    """One socket of a client with a session. Answers pings by itself, if told so."""

    def __init__(self, connection: Wire, memory: Memory | None = None) -> None:
        super().__init__(connection)
        self.memory = Memory() if memory is None else memory
        self.answers_session_pings = True
        self.opened: dict[str, Any] = {}
        """What the session was told when it began, or was resumed last."""
        self._session: deque[dict[str, Any]] = deque()

    # --- out --------------------------------------------------------------------------------------

    def send(self, *commands: object) -> None:
        """Send commands as one payload frame."""
        self.memory.sent += 1
        super().send(*commands)

    def say(self, **frame: object) -> None:
        """Send a session frame."""
        self.wire.send(json.dumps({"session": frame}, separators=(",", ":")))

    def abort(self) -> None:
        """Let the connection break."""
        self.wire.writer.transport.abort()

    # --- in ---------------------------------------------------------------------------------------

    def _take(self, frame: Frame) -> None:
        if frame.opcode != TEXT:
            super()._take(frame)
        elif not frame.text.startswith(PREFIX):
            self.memory.received += 1
            super()._take(frame)
        else:
            said = json.loads(frame.text)["session"]
            if "ping" in said and self.answers_session_pings:
                self.pong()
            self._session.append(said)

    def pong(self) -> None:
        """Say what was received and sent."""
        self.say(pong={"received": self.memory.received, "sent": self.memory.sent})

    async def heard(self, name: str = "") -> dict[str, Any]:
        """The next session frame; with a name, the contents of the next of that name."""
        while True:
            while not self._session:
                await self._read()
            frame = self._session.popleft()
            if not name:
                return frame
            if name in frame:
                contents = frame[name]
                assert isinstance(contents, dict)
                return contents

    def take_pushes(self) -> list[dict[str, Any]]:
        """Those that have been read already."""
        pushes = list(self._pushes)
        self._pushes.clear()
        return pushes

    async def drained(self) -> None:
        """Read everything up to the end of the connection, however it ends."""
        try:
            while (frame := await self.wire.frame()).opcode != CLOSE:
                self._take(frame)
        except (ConnectionError, EOFError):
            pass

    # --- the session ------------------------------------------------------------------------------

    async def open(self, **backoff: object) -> dict[str, Any]:
        """Begin a session; returns what it is told."""
        self.say(open={"backoff": backoff})
        self.opened = await self.heard("opened")
        self.memory.token = self.opened["token"]
        return self.opened

    async def connect(self, user: str = "alice", **claims: Any) -> dict[str, Any]:
        """Connect as a user."""
        self.connected = await self.call("connect", token=mint(user, **claims))
        self.client = self.connected["client"]
        return self.connected

    async def resume(self, attempt: int = 0) -> dict[str, Any]:
        """Ask to go on with the session; returns the answer, `resumed` or `gone`."""
        self.say(
            resume={
                "token": self.memory.token,
                "received": self.memory.received,
                "attempt": attempt,
            }
        )
        answer = await self.heard()
        if "resumed" in answer:
            self.opened = answer["resumed"]
            self.memory.sent = self.opened["received"]
        return answer


@asynccontextmanager
async def session_socket(
    server: ServerProcess, memory: Memory | None = None, *, port: int = 0, **options: Any
) -> AsyncIterator[SessionPeer]:
    """A socket that has said nothing yet. `options`: those of `wire`."""
    async with wire(port or server.port, **options) as connection:
        response = await connection.upgrade()
        assert response.status == 101, response
        yield SessionPeer(connection, memory)


@asynccontextmanager
async def session(
    server: ServerProcess,
    user: str = "alice",
    *channels: str,
    backoff: dict[str, object] | None = None,
    claims: dict[str, Any] | None = None,
    listens: bool = False,
    **options: Any,
) -> AsyncIterator[SessionPeer]:
    """A socket with a session that is connected, and in some channels.

    `listens`: to joins and leaves, of which its own are heard already.
    """
    async with session_socket(server, **options) as peer:
        await peer.open(**(backoff or {}))
        await peer.connect(user, **(claims or {}))
        for channel in channels:
            await peer.call("subscribe", channel=channel, join_leave=listens)
        if listens:
            for _ in channels:
                await peer.push(lambda push: "join" in push)
        yield peer
