"""The sockets of one client: translates between aiohttp's WebSockets and the client's session.

Nothing is decided here; what is due, said, given up or tried again is `protocol.client_session`'s.
Each line has a task that reads and one that writes; there is one timer, for the session's deadline.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Coroutine
from typing import Any, Final, Protocol

import aiohttp
from aiohttp import ClientWSTimeout, WSMsgType

from gateway.protocol.client_policy import ABNORMAL_CLOSURE, SessionPolicy
from gateway.protocol.client_session import (
    NEVER,
    Began,
    ClientSession,
    Dial,
    Drop,
    Lost,
    Write,
)
from gateway.protocol.codes import NO_PONG

logger = logging.getLogger(__name__)

# A server joins what it sends in one turn up to a megabyte, and one answer may add as much.
RECEIVED_MAX_BYTES: Final = 4 * 1024 * 1024
# For a goodbye: what is written to go out, and the server's close frame to come back.
CLOSE_TIMEOUT: Final = 2.0
_GOODBYE: Final = 1000

WebSocket = aiohttp.ClientWebSocketResponse[bool]


class Layer(Protocol):
    """Who speaks over the session."""

    def began(self) -> None:
        """A new session: `connect` comes first."""

    def lost(self, loss: Lost) -> None:
        """The session is over."""

    def received(self, frame: bytes) -> None:
        """A payload frame came."""

    def failed(self, error: Exception) -> None:
        """A line could not be opened; another attempt follows."""

    def line_changed(self) -> None:
        """Something about the line may be different now."""


class _Line:
    """One socket, dialled or open, and what is yet to be written on it."""

    __slots__ = ("close_code", "drained", "is_open", "number", "outgoing", "task", "wake")

    def __init__(self, number: int) -> None:
        self.number = number
        self.outgoing: deque[bytes] = deque()  # bounded by the session's tail
        self.wake = asyncio.Event()
        self.drained = asyncio.Event()
        self.is_open = False
        self.close_code = NO_PONG.code  # leaves the session alone
        self.task: asyncio.Task[None] | None = None

    def write(self, message: bytes) -> None:
        """Have something written, in order."""
        self.outgoing.append(message)
        self.drained.clear()
        self.wake.set()


class Lines:
    """A session's sockets, over `http`. Calls its layer from the event loop, never from within."""

    def __init__(
        self, url: str, http: aiohttp.ClientSession, policy: SessionPolicy, layer: Layer
    ) -> None:
        self._url = url
        self._http = http
        self._layer = layer
        self._loop = asyncio.get_running_loop()
        self._lines: dict[int, _Line] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = NEVER
        self.session = ClientSession(policy)

    def start(self) -> None:
        """Make the first attempt."""
        self.session.start(self._loop.time())
        self._work()

    def send(self, frame: bytes) -> None:
        """Send a payload frame: now, or when there is a line again. Between `began` and `lost`."""
        if self.session.send(frame, self._loop.time()):
            self._lines[self.session.line].write(frame)
        self._work()

    def break_off(self, reason: str) -> None:
        """Give the session up and begin another one, after a delay."""
        self.session.break_off(reason, self._loop.time())
        self._work()

    def leave(self) -> None:
        """Say goodbye, and make no further attempt."""
        self.session.leave()
        self._work()
        if self._timer is not None:
            self._timer.cancel()

    async def wait_closed(self) -> None:
        """Wait until the sockets are closed, after `leave`. It takes `CLOSE_TIMEOUT` at most."""
        if self._tasks:
            await asyncio.wait(self._tasks)

    # --- what the session wants -------------------------------------------------------------------

    def _work(self) -> None:
        """After the session has had a call: do what it wants, hold its deadline."""
        for event in self.session.take_events():
            if isinstance(event, Write):
                self._lines[event.line].write(event.message)
            elif isinstance(event, Dial):
                line = self._lines[event.line] = _Line(event.line)
                line.task = self._spawn(self._run(line))
            elif isinstance(event, Drop):
                self._drop(self._lines[event.line], leaving=event.leaving)
            elif isinstance(event, Began):
                self._layer.began()
            else:
                self._layer.lost(event)
        self._set_timer()
        self._layer.line_changed()

    def _set_timer(self) -> None:
        """Have `_tick` called in time; one that is set for too early sets the next itself."""
        deadline = self.session.next_deadline()
        if deadline < self._timer_at:
            if self._timer is not None:
                self._timer.cancel()
            self._timer_at = deadline
            self._timer = self._loop.call_at(deadline, self._tick)

    def _tick(self) -> None:
        self._timer_at = NEVER
        self.session.tick(self._loop.time())
        self._work()

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # --- sockets ----------------------------------------------------------------------------------

    async def _run(self, line: _Line) -> None:
        """One line, from dialling to its end."""
        code, reason, retry = ABNORMAL_CLOSURE, "", None
        try:
            websocket = await self._http.ws_connect(
                self._url,
                timeout=ClientWSTimeout(ws_close=CLOSE_TIMEOUT),
                max_msg_size=RECEIVED_MAX_BYTES,
                decode_text=False,
            )
            try:
                code, reason = await self._carry(line, websocket)
            finally:
                # By the task that reads: if another one did, this one would close it as well, and
                # which code went out would be a matter of chance.
                await _close(websocket, line.close_code)
        except aiohttp.WSServerHandshakeError as error:
            reason = f"HTTP {error.status}"
            retry = _retry_after(error)
            self._layer.failed(error)
        except (aiohttp.ClientError, OSError) as error:
            reason = str(error)
            self._layer.failed(error)
        finally:
            del self._lines[line.number]
            self.session.closed(line.number, self._loop.time(), code, reason, retry)
            self._work()

    async def _carry(self, line: _Line, websocket: WebSocket) -> tuple[int, str]:
        """Carry messages both ways until the socket ends; returns its close code and reason."""
        line.is_open = True
        self.session.connected(line.number, self._loop.time())
        self._work()
        writer = self._spawn(self._write(line, websocket))
        try:
            while True:
                message = await websocket.receive()
                if message.type is WSMsgType.TEXT:
                    self._take(line, message.data)
                elif message.type is WSMsgType.CLOSE:
                    return message.data, message.extra or ""
                else:
                    return ABNORMAL_CLOSURE, ""
        finally:
            writer.cancel()

    def _take(self, line: _Line, message: bytes) -> None:
        is_payload = self.session.message(line.number, message, self._loop.time())
        self._work()
        if is_payload:
            self._layer.received(message)

    async def _write(self, line: _Line, websocket: WebSocket) -> None:
        try:
            while True:
                while line.outgoing:
                    await websocket.send_frame(line.outgoing.popleft(), WSMsgType.TEXT)
                line.drained.set()
                line.wake.clear()
                await line.wake.wait()
        except (aiohttp.ClientError, OSError):
            pass  # the reader sees it as well, and knows more
        finally:
            line.drained.set()

    def _drop(self, line: _Line, *, leaving: bool) -> None:
        """End a line that the session has done with."""
        assert line.task is not None, "dialled"
        if leaving and line.is_open:
            self._spawn(self._say_goodbye(line, line.task))
        else:
            line.task.cancel()

    async def _say_goodbye(self, line: _Line, task: "asyncio.Task[None]") -> None:
        """Close a line behind what is written on it."""
        line.close_code = _GOODBYE
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT):
                await line.drained.wait()
        except TimeoutError:
            pass
        task.cancel()


async def _close(websocket: WebSocket, code: int) -> None:
    """Close a socket, unless it is closed, and wait neither for a peer nor for a full buffer."""
    try:
        async with asyncio.timeout(CLOSE_TIMEOUT):
            await websocket.close(code=code)
    except (TimeoutError, aiohttp.ClientError, OSError):
        pass


def _retry_after(error: aiohttp.WSServerHandshakeError) -> float | None:
    """Seconds to wait, as an HTTP answer says; None when it doesn't, or gives a date."""
    value = error.headers.get("Retry-After", "") if error.headers else ""
    return float(value) if value.isdecimal() else None
