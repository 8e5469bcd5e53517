"""The Python client of this gateway, for services, bots and load tests.

    async with connect("wss://chat.example/connection/websocket", token) as gw:
        async with gw.subscribe("chat:1") as messages:
            await gw.publish("chat:1", {"text": "hello"})
            async for publication in messages:
                print(publication.data)

It has a session (PROTOCOL.md part B): when the network goes away for a minute, or the server is
replaced, commands and publications wait and nothing is lost, doubled or out of order. When the
server can't resume the session any more, the client connects anew, publishes again what was not
answered (with the same idempotency keys, so nothing is doubled) and recovers its subscriptions from
where they were. What then is really lost is told: see `client_errors`.

Nothing here has a timeout of its own beyond the first connect: a command during an outage waits
for its end. `asyncio.timeout` around it says for how long that is of use.
"""

import random
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

import aiohttp

from gateway.client_calls import CALLS_MAX
from gateway.client_connection import Connection, State
from gateway.client_errors import (
    CannotConnect,
    ClientError,
    Closed,
    CommandError,
    ConnectionLost,
    Disconnected,
    MessageTooBig,
    PublicationsLost,
    Unsubscribed,
    UpgradeRefused,
)
from gateway.client_messages import (
    MESSAGE_MAX_BYTES,
    ClientInfo,
    HistoryResult,
    PresenceResult,
    PresenceStats,
    PublishResult,
    RPCResult,
    decode_value,
)
from gateway.client_subscription import Publication, QueueLimits, Subscription
from gateway.client_tokens import Tokens, TokenSource
from gateway.protocol.backoff import DeclaredBackoff
from gateway.protocol.client_policy import DEFAULT_BACKOFF, SessionPolicy
from gateway.protocol.codec import StreamPosition
from gateway.protocol.health import Quality
from gateway.protocol.session import TailLimits

__all__ = [
    "CannotConnect",
    "ClientError",
    "ClientInfo",
    "Closed",
    "CommandError",
    "ConnectionLost",
    "DeclaredBackoff",
    "Disconnected",
    "Gateway",
    "History",
    "MessageTooBig",
    "PresenceStats",
    "Publication",
    "PublicationsLost",
    "Published",
    "Quality",
    "QueueLimits",
    "State",
    "StreamPosition",
    "Subscription",
    "Unsubscribed",
    "UpgradeRefused",
    "connect",
]

# Commands under way, and those that are answered but not acknowledged yet: servers do that for
# every 32nd. So the tail never overflows, but for commands given up during an outage.
_TAIL: Final = TailLimits(frames=1024, bytes=(CALLS_MAX + 32) * MESSAGE_MAX_BYTES)
_DEFAULT_LIMITS: Final = QueueLimits()
_KEY_BYTES: Final = 16


@dataclass(frozen=True, slots=True)
class Published:
    """Where a publication is in its channel's log; None without one."""

    position: StreamPosition | None
    duplicate: bool
    """Whether it had been published before, under the same key."""


@dataclass(frozen=True, slots=True)
class History:
    """A part of a channel's log, and where its top is."""

    publications: tuple[Publication, ...]
    top: StreamPosition


class Gateway:
    """A client that is connected, or will be again; made by `connect`.

    Everything may be called from any task of the event loop in which it was made.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    # --- how it is --------------------------------------------------------------------------------

    @property
    def state(self) -> State:
        """How this client is connected at the moment. Nothing has to be done about it."""
        return self._connection.state

    @property
    def client_id(self) -> str:
        """The server's name for this connection; another one after each new session."""
        return self._connection.client_id

    @property
    def rtt(self) -> float | None:
        """The round trip in seconds, as the server measured it last; None before that."""
        return self._connection.lines.session.rtt or None

    @property
    def quality(self) -> Quality | None:
        """The line in a word, by the server's judgement; None without one, or without a line."""
        return self._connection.lines.session.quality

    @property
    def retry_at(self) -> float | None:
        """When the next attempt is made, on the event loop's clock; None unless WAITING."""
        if self.state is not State.WAITING:
            return None
        return self._connection.lines.session.retry_at

    async def wait_for(self, *states: State) -> State:
        """Wait until the client is in one of these states; gives that one."""
        return await self._connection.wait_for(*states)

    # --- channels ---------------------------------------------------------------------------------

    def subscribe(
        self,
        channel: str,
        *,
        recover: StreamPosition | None = None,
        token: TokenSource | None = None,
        limits: QueueLimits = _DEFAULT_LIMITS,
    ) -> Subscription:
        """A channel's publications: `async with gw.subscribe(…) as messages`, then `async for`.

        It begins with what is published from now on; with `recover`, behind that position, which
        some `Subscription.position` was (`StreamPosition()`: at the beginning of the log). `token`
        is for channels that want one. `limits` say how much may wait for the iteration, and
        `client_subscription` what happens beyond.
        """
        return Subscription(
            self._connection,
            channel,
            recover=recover,
            tokens=None if token is None else Tokens(token),
            limits=limits,
        )

    async def publish(
        self, channel: str, data: object, *, key: str | None = None, ephemeral: bool = False
    ) -> Published:
        """Publish anything that has a JSON; done when the server has stored and sent it.

        It happens once, even over lost connections, as long as the server remembers the key (five
        minutes by default). `key` may be given, of at most 64 characters, for a message that may
        have been published before, by another process perhaps. An `ephemeral` one is worth nothing
        a moment later: it is not stored, has no key, and may raise ConnectionLost.
        """
        request = {"channel": channel, "data": data}
        if ephemeral:
            request["ephemeral"] = True
        else:
            request["idempotency_key"] = secrets.token_hex(_KEY_BYTES) if key is None else key
        result: PublishResult = await self._connection.calls.call(
            "publish", request, repeatable=not ephemeral
        )
        has_place = bool(result.offset)
        position = StreamPosition(result.offset, result.epoch) if has_place else None
        return Published(position, result.duplicate)

    async def history(
        self,
        channel: str,
        *,
        limit: int = -1,
        since: StreamPosition | None = None,
        reverse: bool = False,
    ) -> History:
        """A part of the channel's log: from `since` on, newest first if `reverse`.

        `limit` 0 asks for the top only, -1 for as much as the server gives at once.
        """
        request: dict[str, object] = {"channel": channel, "limit": limit, "reverse": reverse}
        if since is not None:
            request["since"] = since

        def read(result: HistoryResult) -> History:
            return History(
                tuple(Publication.read(channel, message) for message in result.publications),
                StreamPosition(result.offset, result.epoch),
            )

        history: History = await self._connection.calls.call(
            "history", request, read, repeatable=True
        )
        return history

    async def presence(self, channel: str) -> dict[str, ClientInfo]:
        """Who is in the channel, by client id."""
        result: PresenceResult = await self._connection.calls.call(
            "presence", {"channel": channel}, repeatable=True
        )
        return result.presence

    async def presence_stats(self, channel: str) -> PresenceStats:
        """How many are in the channel."""
        result: PresenceStats = await self._connection.calls.call(
            "presence_stats", {"channel": channel}, repeatable=True
        )
        return result

    async def rpc(self, method: str, data: object = None, *, repeatable: bool = False) -> Any:
        """Call a procedure of the server; gives what it answers.

        It is called once while the session lasts. If that is lost before the answer came, a
        `repeatable` call is made again, and any other raises ConnectionLost: it may have happened.
        """
        return await self._connection.calls.call(
            "rpc", {"method": method, "data": data}, _read_answer, repeatable=repeatable
        )


def _read_answer(result: RPCResult) -> Any:
    return decode_value(result.data)


@asynccontextmanager
async def connect(
    url: str,
    token: TokenSource = "",
    *,
    timeout: float | None = 30.0,
    name: str = "python",
    backoff: DeclaredBackoff = DEFAULT_BACKOFF,
    http: aiohttp.ClientSession | None = None,
) -> AsyncIterator[Gateway]:
    """Connect to a gateway, and stay connected inside the `async with`; leave at its end.

    `token` is one, or a coroutine function that fetches one: at first, when the server says that
    the last one has expired, and before a connection with a limited lifetime ends. "" is a client
    without a name, where those are allowed.

    The first connection has to come about within `timeout` seconds, None for as long as it takes.
    `name` is for the server's logs. `backoff` is how to try again when the server gave no moment
    for it; the server keeps the session for that long. Many clients may share one `http`.

    Raises CannotConnect, CommandError or Disconnected when it can't connect.
    """
    policy = SessionPolicy(random.random, backoff, _TAIL)
    own_http = None if http is not None else aiohttp.ClientSession()
    try:
        used_http = http or own_http
        assert used_http is not None, "one of the two"
        connection = Connection(url, Tokens(token), used_http, policy, name)
        try:
            await connection.open(timeout)
            yield Gateway(connection)
        finally:
            connection.close(Closed())
            await connection.wait_closed()
    finally:
        if own_http is not None:
            await own_http.close()
