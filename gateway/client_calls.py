"""Commands that wait for their replies, over as many connections as that takes.

Under a session a command is sent once, and its reply comes, however many sockets that takes. When a
session is lost, a command that may be repeated is sent again on the next connection; one that may
not, and was sent, fails with `ConnectionLost`. What was never sent simply waits.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Final

from gateway.client_errors import ClientError, CommandError, ConnectionLost, MessageTooBig
from gateway.client_messages import (
    MESSAGE_MAX_BYTES,
    MalformedMessage,
    ServerMessage,
    encode_command,
)

# More wait for their turn. A server answers a batch about as fast as one, so some should be under
# way; with 64 KiB each, and up to 32 that are answered and not acknowledged, that is 10 MiB.
CALLS_MAX: Final = 128
_ID_MAX: Final = 2**32 - 1


class _Call:
    __slots__ = ("frame", "future", "method", "repeatable", "sent", "take")

    def __init__(
        self,
        method: str,
        frame: bytes,
        future: "asyncio.Future[Any]",
        repeatable: bool,
        take: Callable[[Any], Any] | None,
    ) -> None:
        self.method = method
        self.frame = frame
        self.future = future
        self.repeatable = repeatable
        self.take = take
        self.sent = False  # on the present connection


class Calls:
    """The commands of one client. `send` is to write a frame, now or when there is a line again."""

    def __init__(self, send: Callable[[bytes], None]) -> None:
        self._send = send
        self._calls: dict[int, _Call] = {}
        self._id = 0
        self._turns = asyncio.Semaphore(CALLS_MAX)
        self._is_open = False
        self._error: ClientError | None = None

    def __len__(self) -> int:
        return len(self._calls)

    async def call(
        self,
        method: str,
        request: Mapping[str, object],
        take: Callable[[Any], Any] | None = None,
        *,
        repeatable: bool = False,
    ) -> Any:
        """Send a command as soon as there is a connection and its turn has come; gives the result.

        `take` gets the result before anything that comes behind it is looked at, and may make
        another one of it. Raises what `client_errors` says. Cancelled before the command was sent,
        it never will be.
        """
        async with self._turns:
            return await self._call(method, request, take, repeatable=repeatable)

    async def call_now(
        self,
        method: str,
        request: Mapping[str, object],
        take: Callable[[Any], Any] | None = None,
    ) -> Any:
        """The same, ahead of those that wait; only while there is a connection."""
        return await self._call(method, request, take, now=True)

    def tell(self, method: str, request: Mapping[str, object]) -> None:
        """Send a command whose reply nobody waits for; only while there is a connection."""
        self._send(encode_command(self._next_id(), method, request))

    async def _call(
        self,
        method: str,
        request: Mapping[str, object],
        take: Callable[[Any], Any] | None,
        *,
        repeatable: bool = False,
        now: bool = False,
    ) -> Any:
        if self._error is not None:
            raise self._error
        call_id = self._next_id()
        frame = encode_command(call_id, method, request)
        if len(frame) > MESSAGE_MAX_BYTES:
            raise MessageTooBig(len(frame), MESSAGE_MAX_BYTES)
        call = _Call(method, frame, asyncio.get_running_loop().create_future(), repeatable, take)
        self._calls[call_id] = call
        if self._is_open or now:
            call.sent = True
            self._send(frame)
        try:
            return await call.future
        finally:
            self._calls.pop(call_id, None)

    def _next_id(self) -> int:
        while True:
            self._id = self._id % _ID_MAX + 1
            if self._id not in self._calls:
                return self._id

    # --- what happens -----------------------------------------------------------------------------

    def opened(self) -> None:
        """There is a connection now: send what has waited."""
        self._is_open = True
        for call in list(self._calls.values()):
            if not call.sent and self._is_open:  # sending may be what ends it
                call.sent = True
                self._send(call.frame)

    def lost(self) -> None:
        """The connection is over; another one will come."""
        self._is_open = False
        for call in self._calls.values():
            if call.sent and not call.repeatable:
                _fail(call, ConnectionLost(call.method))
            call.sent = False

    def close(self, error: ClientError) -> None:
        """There will be no connection any more."""
        self._is_open = False
        self._error = error
        for call in self._calls.values():
            _fail(call, error)

    def answer(self, message: ServerMessage) -> None:
        """Take a reply. Raises `MalformedMessage` when it isn't one to its command."""
        call = self._calls.get(message.id)
        if call is None or call.future.done():
            return  # nobody waits for it any more
        if message.error is not None:
            error = message.error
            _fail(
                call,
                CommandError(call.method, error.code, error.message, temporary=error.temporary),
            )
            return
        result = getattr(message, call.method)
        if result is None:
            raise MalformedMessage(f"the reply to {call.method} is another one's")
        call.future.set_result(result if call.take is None else call.take(result))


def _fail(call: _Call, error: ClientError) -> None:
    if not call.future.done():
        call.future.set_exception(error)
