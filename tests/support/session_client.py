"""The pure client core (`gateway.protocol.client_session`) on real sockets, and a layer above it.

`SessionClient` does what the core says, with as little as possible between it and the wire, so that
a test may break the line at any byte. `Reader` is the layer above: it connects, subscribes,
publishes and notes what it gets; when its connection is lost it recovers by its positions.
"""

import asyncio
import json
from collections.abc import Callable
from typing import Any, Final, Protocol, cast

from gateway.protocol.client_policy import ABNORMAL_CLOSURE, SessionPolicy
from gateway.protocol.client_session import (
    Began,
    ClientSession,
    Dial,
    Drop,
    Lost,
    Write,
)
from gateway.protocol.client_states import ClientState
from tests.support.wire import CLOSE, TEXT, frame, head, upgrade_headers

_UPGRADE: Final = head(headers=upgrade_headers())


class Above(Protocol):
    """The layer above a session."""

    def began(self, client: "SessionClient") -> None:
        """It has a connection: it begins with `connect`."""

    def lost(self, loss: Lost) -> None:
        """It has none any more."""

    def received(self, message: bytes) -> None:
        """A payload frame came."""


class SessionClient:
    """One client: its session, its sockets, one timer."""

    def __init__(self, port: int, policy: SessionPolicy, above: Above) -> None:
        self.session = ClientSession(policy)
        self._loop = asyncio.get_running_loop()
        self._port = port
        self._above = above
        self._lines: dict[int, _Line] = {}
        self._dialling: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._working = False
        self.dialled = 0
        """How many sockets it took."""

    def start(self) -> None:
        """Make the first attempt."""
        self.session.start(self._loop.time())
        self.work()

    def send(self, command: object) -> None:
        """Send a payload frame. Allowed between `began` and `lost`."""
        message = json.dumps(command, separators=(",", ":")).encode()
        if self.session.send(message, self._loop.time()):
            self._lines[self.session.line].send(message)
        self.work()

    async def leave(self) -> None:
        """Say goodbye, and wait until every socket is closed. May be called again."""
        self.session.leave()
        self.work()
        if self._timer is not None:
            self._timer.cancel()
        for task in self._dialling:
            task.cancel()
        await asyncio.gather(*self._dialling, return_exceptions=True)
        for line in list(self._lines.values()):
            await line.ended.wait()

    def work(self) -> None:
        """Do what there is to do, and set the timer for what there will be."""
        if self._working:
            return
        self._working = True
        try:
            while events := self.session.take_events():
                for event in events:
                    self._do(event)
        finally:
            self._working = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        deadline = self.session.next_deadline()
        if self.session.state is not ClientState.ENDED and deadline != float("inf"):
            self._timer = self._loop.call_at(deadline, self._tick)

    def _tick(self) -> None:
        self.session.tick(self._loop.time())
        self.work()

    def _do(self, event: object) -> None:
        if isinstance(event, Dial):
            self.dialled += 1
            task = self._loop.create_task(self._dial(event.line))
            self._dialling.add(task)
            task.add_done_callback(self._dialling.discard)
        elif isinstance(event, Write):
            line = self._lines.get(event.line)
            if line is not None:
                line.send(event.message)
        elif isinstance(event, Drop):
            line = self._lines.get(event.line)
            if line is not None:
                line.drop(leaving=event.leaving)
        elif isinstance(event, Began):
            self._above.began(self)
        else:
            assert isinstance(event, Lost)
            self._above.lost(event)

    async def _dial(self, number: int) -> None:
        try:
            await self._loop.create_connection(lambda: _Line(self, number), "127.0.0.1", self._port)
        except OSError:
            self.line_closed(number, ABNORMAL_CLOSURE, "")

    # --- what happens to lines --------------------------------------------------------------------

    def line_made(self, number: int, line: "_Line") -> None:
        """A socket is open; the handshake is under way."""
        self._lines[number] = line

    def line_connected(self, number: int) -> None:
        """A socket has become a WebSocket."""
        self.session.connected(number, self._loop.time())
        self.work()

    def line_message(self, number: int, message: bytes) -> None:
        """A text message came."""
        if self.session.message(number, message, self._loop.time()):
            self._above.received(message)
        self.work()

    def line_closed(self, number: int, code: int, reason: str) -> None:
        """A socket was closed by the server, or broke, or never opened."""
        self._lines.pop(number, None)
        self.session.closed(number, self._loop.time(), code, reason)
        self.work()


class _Line(asyncio.Protocol):
    """A WebSocket as the client sees it."""

    def __init__(self, client: SessionClient, number: int) -> None:
        self._client = client
        self._number = number
        self._transport: asyncio.Transport | None = None
        self._buffer = b""
        self._is_websocket = False
        self._code = ABNORMAL_CLOSURE
        self._reason = ""
        self.ended = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._client.line_made(self._number, self)
        self._transport.write(_UPGRADE)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not self._is_websocket:
            response, end, rest = self._buffer.partition(b"\r\n\r\n")
            if not end:
                return
            assert response.startswith(b"HTTP/1.1 101 "), response
            self._is_websocket = True
            self._buffer = rest
            self._client.line_connected(self._number)
        while len(self._buffer) >= 2:
            opcode, length, start = self._buffer[0] & 0x0F, self._buffer[1], 2
            if length == 126:
                length, start = int.from_bytes(self._buffer[2:4]), 4
            elif length == 127:
                length, start = int.from_bytes(self._buffer[2:10]), 10
            if len(self._buffer) < start + length:
                return
            payload = self._buffer[start : start + length]
            self._buffer = self._buffer[start + length :]
            self._take(opcode, payload)

    def _take(self, opcode: int, payload: bytes) -> None:
        if opcode == TEXT:
            self._client.line_message(self._number, payload)
        elif opcode == CLOSE:
            self._code = int.from_bytes(payload[:2])
            self._reason = payload[2:].decode()
            assert self._transport is not None
            self._transport.write(frame(CLOSE, payload[:2]))
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended.set()
        self._client.line_closed(self._number, self._code, self._reason)

    def send(self, message: bytes) -> None:
        """Send a text message."""
        assert self._transport is not None
        if not self._transport.is_closing():
            self._transport.write(frame(TEXT, message))

    def drop(self, *, leaving: bool) -> None:
        """Be done with it."""
        assert self._transport is not None
        if leaving and not self._transport.is_closing():
            self._transport.write(frame(CLOSE, (1000).to_bytes(2)))
            self._transport.close()
        else:
            self._transport.abort()


class Reader:
    """Connects, subscribes to channels, publishes, and notes what it gets.

    In a channel with a log it recovers, first from the beginning and then from where it was;
    elsewhere it takes what comes. What wasn't answered when a session was lost is published again.
    """

    def __init__(self, token: str, *channels: str) -> None:
        self._token = token
        self._channels = channels
        self._client: SessionClient | None = None
        self._id = 0
        self._commands: dict[int, tuple[str, Any]] = {}
        self._unanswered: dict[str, dict[str, Any]] = {}
        """Publishes without a reply, by their keys."""
        self._positions: dict[str, tuple[str, int]] = dict.fromkeys(channels, ("", 0))
        self.data: dict[str, list[Any]] = {channel: [] for channel in channels}
        """What came, in order."""
        self.losses: list[Lost] = []
        self.subscribed: set[str] = set()
        self._conditions: list[tuple[Callable[[], bool], asyncio.Event]] = []

    def publish(self, channel: str, data: str) -> None:
        """Publish once, however often it takes; `data` is its key as well."""
        self._unanswered[data] = {"channel": channel, "data": data, "idempotency_key": data}
        if self._client is not None:
            self._command("publish", self._unanswered[data])

    def is_answered(self, data: str) -> bool:
        """Whether a publish has been answered."""
        return data not in self._unanswered

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until something is true; looked at whenever something came."""
        event = asyncio.Event()
        self._conditions.append((condition, event))
        self._look()
        await event.wait()

    def _look(self) -> None:
        for condition, event in self._conditions:
            if not event.is_set() and condition():
                event.set()

    def _command(self, method: str, request: dict[str, Any]) -> None:
        assert self._client is not None
        self._id += 1
        self._commands[self._id] = method, request
        self._client.send({"id": self._id, method: request})

    # --- the session's ----------------------------------------------------------------------------

    def began(self, client: SessionClient) -> None:
        """See `Above`."""
        self._client = client
        self._commands.clear()
        self._command("connect", {"token": self._token})
        for channel in self._channels:
            epoch, offset = self._positions[channel]
            request = {"channel": channel, "recover": True, "epoch": epoch, "offset": offset}
            self._command("subscribe", request)
        for request in list(self._unanswered.values()):
            self._command("publish", request)

    def lost(self, loss: Lost) -> None:
        """See `Above`."""
        self._client = None
        self.subscribed.clear()
        self.losses.append(loss)
        self._look()

    def received(self, message: bytes) -> None:
        """See `Above`."""
        for line in message.split(b"\n"):
            one = json.loads(line)
            if "push" in one:
                self._take(one["push"]["channel"], one["push"]["pub"])
            else:
                assert "error" not in one, one
                self._answer(*self._commands.pop(one["id"]), one)
        self._look()

    def _answer(self, method: str, request: dict[str, Any], reply: dict[str, Any]) -> None:
        if method == "publish":
            self._unanswered.pop(request["data"])
        elif method == "subscribe":
            result = reply["subscribe"]
            channel = request["channel"]
            self.subscribed.add(channel)
            if "epoch" in result:
                assert result["recovered"], result
                self._positions[channel] = result["epoch"], result.get("offset", 0)
            for publication in result.get("publications", ()):
                self._take(channel, publication)

    def _take(self, channel: str, publication: dict[str, Any]) -> None:
        if "offset" in publication:
            epoch, offset = self._positions[channel]
            assert publication["offset"] == offset + 1, "lost, doubled or out of order"
            self._positions[channel] = epoch, offset + 1
        self.data[channel].append(publication["data"])
