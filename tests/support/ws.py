"""A client of the channel protocol that reads by itself, for tests under load.

`Client` is one connection: commands as futures, pushes into the feeds that it follows. `Feed` is
what a subscriber of one channel has got, over all its connections: it goes on where it was, and
writes down every publication that it should not have seen, or missed.
"""

import asyncio
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Self, cast
from urllib.parse import urlsplit

import orjson
from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.protocol import State
from websockets.uri import parse_uri

DEADLINE: Final = 20.0
"""Seconds for anything that a healthy server does at once."""


class CommandError(Exception):
    """An error reply."""

    def __init__(self, error: dict[str, Any]) -> None:
        super().__init__(error)
        self.code: int = error["code"]
        self.temporary: bool = error.get("temporary", False)


class ConnectionLost(Exception):
    """The connection ended before the reply. `code` is 1006 when it just broke."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason

    def advice(self) -> dict[str, Any]:
        """The close reason, which is JSON (PROTOCOL.md A.12)."""
        advice = orjson.loads(self.reason)
        assert isinstance(advice, dict)
        return advice


@dataclass
class Feed:
    """One channel as one subscriber saw it. Empty at first: it then begins wherever the top is.

    `from_start` makes it recover from offset 0 instead.
    """

    channel: str
    from_start: bool = False
    epoch: str = ""
    offset: int = 0
    received: list[tuple[int, Any]] = field(default_factory=list)
    """Offsets and data of all publications, in the order in which they came."""
    faults: list[str] = field(default_factory=list)
    """What broke the promise of exactly once and in order."""
    gaps: list[dict[str, int]] = field(default_factory=list)
    """What the server said that it couldn't recover."""
    lost_positions: int = 0
    """How often the server sent it back to recover (unsubscribe codes from 2500 on)."""
    began: bool = False

    @property
    def data(self) -> list[Any]:
        """The data alone."""
        return [data for _, data in self.received]

    def request(self) -> dict[str, Any]:
        """The fields of its next subscribe command."""
        if not self.began and not self.from_start:
            return {"channel": self.channel}
        return {
            "channel": self.channel,
            "recover": True,
            "epoch": self.epoch,
            "offset": self.offset,
        }

    def begin(self, result: dict[str, Any]) -> None:
        """Take the reply to it."""
        offset = result.get("offset", 0)
        asked = self.began or self.from_start
        if asked and not result.get("recovered"):
            self.faults.append(f"not recovered from {self.offset}: {result}")
        elif asked and offset != self.offset:
            self.faults.append(f"asked to recover from {self.offset}, was told {offset}")
        if "gap" in result:
            self.gaps.append(result["gap"])
        if not asked or not result.get("recovered"):
            self.offset = offset
        if self.began and self.epoch and result["epoch"] != self.epoch:
            self.faults.append(f"another epoch: {result['epoch']}")
        self.epoch = result["epoch"]
        self.began = True
        for publication in result.get("publications", ()):
            self.take(publication)

    def take(self, publication: dict[str, Any]) -> None:
        """Take a publication."""
        offset = publication["offset"]
        if offset != self.offset + 1:
            self.faults.append(f"{offset} came after {self.offset}")
        self.offset = offset
        self.received.append((offset, publication["data"]))


class Client(asyncio.Protocol):
    """One connection. Made by `open`; ends with `close`."""

    def __init__(self, url: str) -> None:
        self._websocket = ClientProtocol(parse_uri(url), max_size=None)
        self._transport: asyncio.Transport | None = None
        self._commands: dict[int, tuple[asyncio.Future[dict[str, Any]], str]] = {}
        self._id = 0
        self._feeds: dict[str, Feed] = {}
        self._opening: dict[int, Feed] = {}
        self._conditions: list[tuple[Callable[[], bool], asyncio.Future[None]]] = []
        self._opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.ended: ConnectionLost | None = None
        """How it ended, once it has."""
        self.connected: dict[str, Any] = {}
        """The connect result."""
        self.transient: dict[str, list[Any]] = {}
        """Data of publications without an offset, by channel."""
        self.pushes: list[dict[str, Any]] = []
        """All other pushes."""

    @classmethod
    async def open(cls, url: str, token: str, *, receive_buffer_bytes: int = 0) -> Self:
        """Connect to a gateway and identify. Raises ConnectionLost, CommandError or OSError.

        A small `receive_buffer_bytes` makes the server notice soon when this client doesn't read.
        """
        parts = urlsplit(url)
        assert parts.hostname is not None, url
        assert parts.port is not None, url
        self = cls(url)
        async with asyncio.timeout(DEADLINE):
            transport, _ = await asyncio.get_running_loop().create_connection(
                lambda: self, parts.hostname, parts.port
            )
            if receive_buffer_bytes:
                sock = transport.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
            try:
                await self._opened
                self.connected = await self.send("connect", token=token)
            except BaseException:
                self.abort()
                raise
        return self

    # --- commands ---------------------------------------------------------------------------------

    def send(self, method: str, **request: object) -> asyncio.Future[dict[str, Any]]:
        """Send a command. The future has the result, or raises CommandError or ConnectionLost."""
        self._id += 1
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        if self.ended is not None:
            future.set_exception(self.ended)
            return future
        self._commands[self._id] = future, method
        self._send({"id": self._id, method: request})  # if the end is near, it answers
        return future

    def publish(
        self, channel: str, data: object, *, key: str = "", ephemeral: bool = False
    ) -> asyncio.Future[dict[str, Any]]:
        """Publish; see `send`."""
        extra: dict[str, object] = {"idempotency_key": key} if key else {}
        if ephemeral:
            extra["ephemeral"] = True
        return self.send("publish", channel=channel, data=data, **extra)

    def follow(self, feed: Feed) -> asyncio.Future[dict[str, Any]]:
        """Subscribe, going on where the feed is. Its publications are in it before the future is
        done."""
        future = self.send("subscribe", **feed.request())
        self._opening[self._id] = self._feeds[feed.channel] = feed
        return future

    async def until(self, condition: Callable[[], bool], deadline: float = DEADLINE) -> None:
        """Wait until something is true; looked at whenever this client has read."""
        if condition():
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (condition, future)
        self._conditions.append(entry)
        try:
            async with asyncio.timeout(deadline):
                await future
        finally:
            self._conditions.remove(entry)

    def pause(self) -> None:
        """Stop reading."""
        assert self._transport is not None, "opened"
        self._transport.pause_reading()

    def resume(self) -> None:
        """Read again."""
        assert self._transport is not None, "opened"
        self._transport.resume_reading()

    async def wait_ended(self, deadline: float = DEADLINE) -> ConnectionLost:
        """Wait until the server has closed the connection, or it broke."""
        await self.until(lambda: self.ended is not None, deadline)
        assert self.ended is not None
        return self.ended

    async def close(self) -> None:
        """Say goodbye and wait for the answer."""
        if self._websocket.state is State.OPEN:
            self._websocket.send_close(1000, "done")
            self._flush()
        await self.wait_ended()

    def abort(self) -> None:
        """Break the connection."""
        if self._transport is not None:
            self._transport.abort()

    # --- the socket -------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._websocket.send_request(self._websocket.connect())
        self._flush()

    def data_received(self, data: bytes) -> None:
        self._websocket.receive_data(data)
        for event in self._websocket.events_received():
            if not isinstance(event, Frame):
                if self._websocket.handshake_exc is None:
                    self._opened.set_result(None)
            elif event.opcode is Opcode.TEXT:
                for line in bytes(event.data).split(b"\n"):
                    self._take(orjson.loads(line))
        self._flush()
        self._look()

    def connection_lost(self, exc: Exception | None) -> None:
        self._websocket.receive_eof()
        received = self._websocket.close_rcvd
        if received is not None:
            self.ended = ConnectionLost(received.code, received.reason)
        else:
            self.ended = ConnectionLost(1006, str(self._websocket.handshake_exc or exc or ""))
        futures: list[asyncio.Future[Any]] = [future for future, _ in self._commands.values()]
        for future in (self._opened, *futures):
            if not future.done():
                future.set_exception(self.ended)
                future.exception()  # whoever doesn't wait for it doesn't care
        self._commands.clear()
        self._look()

    def _flush(self) -> None:
        assert self._transport is not None, "connected"
        for data in self._websocket.data_to_send():
            if data:
                self._transport.write(data)
            else:
                self._transport.close()
        if self._websocket.close_expected():
            self._transport.close()

    def _send(self, message: object) -> None:
        if self._websocket.state is State.OPEN:
            self._websocket.send_text(orjson.dumps(message))
            self._flush()

    def _look(self) -> None:
        for condition, future in self._conditions:
            if not future.done() and condition():
                future.set_result(None)

    # --- messages ---------------------------------------------------------------------------------

    def _take(self, message: dict[str, Any]) -> None:
        if "push" in message:
            self._take_push(message["push"])
        elif "id" in message:
            self._take_reply(message)
        else:
            assert message == {}, message
            self._send({})

    def _take_reply(self, reply: dict[str, Any]) -> None:
        future, method = self._commands.pop(reply["id"])
        feed = self._opening.pop(reply["id"], None)
        if "error" in reply:
            error = CommandError(reply["error"])
            if not future.done():
                future.set_exception(error)
                future.exception()
            return
        if feed is not None:
            feed.begin(reply[method])
        if not future.done():
            future.set_result(reply[method])

    def _take_push(self, push: dict[str, Any]) -> None:
        channel = push.get("channel", "")
        publication = push.get("pub")
        if publication is None:
            self.pushes.append(push)
            if push.get("unsubscribe", {}).get("code", 0) >= 2500:
                feed = self._feeds[channel]
                feed.lost_positions += 1
                self.follow(feed)
        elif "offset" in publication:
            self._feeds[channel].take(publication)
        else:
            self.transient.setdefault(channel, []).append(publication["data"])
