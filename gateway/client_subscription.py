"""One channel as a client sees it: an asynchronous iterator that goes on where it was.

Theory of operation
-------------------
    IDLE ──begin──▶ JOINING ──reply──▶ LIVE ──lost, or insufficient state──▶ JOINING
                      ▲                  │
                      └── queue empty ── BEHIND ◀── queue full

What arrives waits in a queue until the iteration takes it. The queue is bounded, and its verdict
depends on the channel. Where there is a log, a full queue ends the delivery (BEHIND) and nothing is
lost: when the queue is empty, the subscription joins again and recovers from behind its last
publication. Where there is none, what doesn't fit is dropped, and the iteration raises
`PublicationsLost` in its place.

While a session lasts, and it outlives outages of a minute, nothing of this is seen. When it is
lost, the subscription joins again and recovers by its position; what the log no longer has raises
`PublicationsLost`. A channel without a log has no position, and promises nothing beyond a session.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Coroutine
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, NamedTuple, Protocol, Self

from gateway.client_calls import Calls
from gateway.client_errors import (
    ClientError,
    Closed,
    CommandError,
    ConnectionLost,
    PublicationsLost,
    Unsubscribed,
)
from gateway.client_messages import (
    ClientInfo,
    Lifetime,
    PublicationMessage,
    SubscribeResult,
    UnsubscribePush,
    decode_value,
)
from gateway.client_tokens import Tokens, keep_fresh
from gateway.protocol.codec import StreamPosition
from gateway.protocol.codes import TOKEN_EXPIRED

logger = logging.getLogger(__name__)

# Unsubscribe codes from here on ask for another subscription (A.7).
_AGAIN_FROM: Final = 2500


@dataclass(frozen=True, slots=True)
class Publication:
    """Something that was published. `offset` is its place in the channel's log, 0 without one."""

    channel: str
    data: Any
    offset: int = 0
    info: ClientInfo | None = None
    """The publisher, if a client published it."""
    tags: dict[str, str] | None = None
    time_ms: int = 0
    """When it was published, since 1970; 0 if the server doesn't say."""

    @classmethod
    def read(cls, channel: str, message: PublicationMessage) -> Self:
        """From the wire."""
        return cls(
            channel,
            decode_value(message.data),
            message.offset,
            message.info,
            message.tags or None,
            message.time,
        )


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """How much one subscription may hold that nobody has taken yet."""

    publications: int = 1000
    bytes: int = 4 * 1024 * 1024


class SubscriptionState(Enum):
    """What a subscription waits for."""

    IDLE = "idle"
    JOINING = "joining"
    LIVE = "live"
    BEHIND = "behind"
    ENDED = "ended"


class Host(Protocol):
    """The connection, as a subscription sees it."""

    calls: Calls

    @property
    def is_open(self) -> bool:
        """Whether there is a connection to join over."""

    def add(self, subscription: "Subscription") -> None:
        """Tell it what concerns its channel. Raises ValueError if that has another one."""

    def remove(self, subscription: "Subscription") -> None:
        """It has ended."""

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        """Run something that ends with the connection's owner at the latest."""

    def delay(self, attempt: int) -> float:
        """How long to wait before something is tried again, in seconds."""


class Subscription:
    """One channel. `async with` subscribes; iterating gives what is published.

    There is one iteration at a time. It may be left and begun again, and goes on where it was.
    """

    def __init__(
        self,
        host: Host,
        channel: str,
        *,
        recover: StreamPosition | None,
        tokens: Tokens | None,
        limits: QueueLimits,
    ) -> None:
        self.channel = channel
        self.position = recover
        """Behind the last publication that the iteration has given; None without a log."""
        self.state = SubscriptionState.IDLE
        self._host = host
        self._tokens = tokens
        self._limits = limits
        self._reached = recover  # behind the last publication that was queued
        self._queue: deque[_Entry] = deque()
        self._queue_bytes = 0
        self._error: ClientError | None = None  # what the iteration ends with
        self._taker: asyncio.Future[None] | None = None
        self._joined: asyncio.Future[None] | None = None
        self._joining: asyncio.Task[None] | None = None
        self._refreshing: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Subscribe. Raises CommandError if the server refuses, and Closed."""
        if self.state is not SubscriptionState.IDLE:
            raise RuntimeError("a subscription is used once")
        self._joined = asyncio.get_running_loop().create_future()
        self._host.add(self)
        self.state = SubscriptionState.JOINING
        try:
            if self._host.is_open:
                self._join()
            await self._joined
        except BaseException:
            self.leave()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self.leave()

    def leave(self) -> None:
        """Unsubscribe; an iteration ends."""
        if self.state in (SubscriptionState.LIVE, SubscriptionState.JOINING) and self._host.is_open:
            self._host.calls.tell("unsubscribe", {"channel": self.channel})
        self.end(None)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Publication:
        """The next publication. Raises PublicationsLost, and what ended the subscription."""
        while not self._queue:
            if self.state is SubscriptionState.ENDED:
                if self._error is not None:
                    raise self._error
                raise StopAsyncIteration
            if self._taker is not None:
                raise RuntimeError("somebody iterates over this subscription already")
            self._taker = asyncio.get_running_loop().create_future()
            if self.state is SubscriptionState.BEHIND and self._host.is_open:
                self._join()
            try:
                await self._taker
            finally:
                self._taker = None
        entry = self._queue.popleft()
        self._queue_bytes -= entry.size_bytes
        self.position = entry.position
        if isinstance(entry.item, PublicationsLost):
            raise entry.item
        return entry.item

    # --- what the connection tells ----------------------------------------------------------------

    def opened(self) -> None:
        """There is a connection to join over."""
        is_awaited = self.state is SubscriptionState.BEHIND and self._taker is not None
        if self.state is SubscriptionState.JOINING or is_awaited:
            self._join()

    def lost(self) -> None:
        """The connection is over, and the subscription with it, on the server's side."""
        if self.state is SubscriptionState.LIVE:
            self.state = SubscriptionState.JOINING
        self._stop_tasks()

    def published(self, message: PublicationMessage) -> None:
        """Take a publication."""
        if self.state is not SubscriptionState.LIVE:
            return  # on its way when this client left, and it comes again if it has an offset
        reached = self._reached
        position = reached
        if message.offset and reached is not None:
            if message.offset <= reached.offset:
                return
            position = StreamPosition(message.offset, reached.epoch)
        size_bytes = memoryview(message.data).nbytes
        if self._is_full(size_bytes):
            if reached is None:
                self._note_loss()
            elif message.offset:
                self.state = SubscriptionState.BEHIND
                self._host.calls.tell("unsubscribe", {"channel": self.channel})
            return
        if message.offset and reached is not None and message.offset > reached.offset + 1:
            self._note_loss(reached.offset + 1, message.offset - 1)
        self._reached = position
        self._put(_Entry(Publication.read(self.channel, message), position, size_bytes))

    def unsubscribed(self, push: UnsubscribePush) -> None:
        """The server has ended it."""
        if push.code < _AGAIN_FROM:
            self.end(Unsubscribed(self.channel, push.code, push.reason))
        elif self.state is SubscriptionState.LIVE:
            self.state = SubscriptionState.JOINING
            self._stop_tasks()
            self._join()

    def end(self, error: ClientError | None) -> None:
        """It is over; the iteration ends behind what is queued, with `error` if there is one."""
        if self.state is SubscriptionState.ENDED:
            return
        self.state = SubscriptionState.ENDED
        self._error = error
        self._host.remove(self)
        self._stop_tasks()
        if self._joined is not None and not self._joined.done():
            self._joined.set_exception(error or Closed("the subscription was left"))
        self._wake()

    # --- how --------------------------------------------------------------------------------------

    def _is_full(self, size_bytes: int) -> bool:
        limits = self._limits
        return len(self._queue) >= limits.publications or (
            bool(self._queue) and self._queue_bytes + size_bytes > limits.bytes
        )

    def _note_loss(self, first: int | None = None, last: int | None = None) -> None:
        """Have the iteration raise, once for all that is missing at this point."""
        if first is None and self._queue and isinstance(self._queue[-1].item, PublicationsLost):
            self._queue[-1] = self._queue[-1]._replace(position=self._reached)
        else:
            self._put(_Entry(PublicationsLost(self.channel, first, last), self._reached, 0))

    def _put(self, entry: "_Entry") -> None:
        self._queue.append(entry)
        self._queue_bytes += entry.size_bytes
        self._wake()

    def _wake(self) -> None:
        if self._taker is not None and not self._taker.done():
            self._taker.set_result(None)

    def _stop_tasks(self) -> None:
        for task in (self._joining, self._refreshing):
            if task is not None:
                task.cancel()
        self._joining = self._refreshing = None

    def _join(self) -> None:
        self.state = SubscriptionState.JOINING
        self._stop_tasks()
        self._joining = self._host.spawn(self._keep_joining())

    async def _keep_joining(self) -> None:
        """Subscribe, and again for as long as the server says that it may work later."""
        attempt = 0
        while True:
            request: dict[str, object] = {"channel": self.channel}
            if self._reached is not None:
                request |= {
                    "recover": True,
                    "epoch": self._reached.epoch,
                    "offset": self._reached.offset,
                }
            try:
                if self._tokens is not None:
                    request["token"] = await self._tokens.get()
                await self._host.calls.call_now("subscribe", request, self._take)
                return
            except ConnectionLost:
                return  # the next connection begins with this
            except CommandError as error:
                has_other = (
                    error.code == TOKEN_EXPIRED.code
                    and self._tokens is not None
                    and self._tokens.expire()
                )
                if not (error.temporary or has_other):
                    self.end(error)
                    return
            except Exception:  # the getter is somebody else's code
                logger.exception("there is no token for %s", self.channel)
            await asyncio.sleep(self._host.delay(attempt))
            attempt += 1

    def _take(self, result: SubscribeResult) -> None:
        """Take the reply, before what comes behind it."""
        wanted = self._reached
        has_log = result.recoverable or result.positioned
        self._reached = StreamPosition(result.offset, result.epoch) if has_log else None
        if wanted is None:
            self.position = self._reached
        elif result.recovered:
            self._reached = StreamPosition(wanted.offset, result.epoch)
        elif result.gap is not None:
            self._note_loss(result.gap.first, result.gap.last)
        else:
            self._note_loss()
        self.state = SubscriptionState.LIVE
        for publication in result.publications:
            self.published(publication)
        if result.expires and self._tokens is not None:
            lifetime = Lifetime(expires=True, ttl=result.ttl)
            self._refreshing = self._host.spawn(keep_fresh(self._tokens, lifetime, self._refresh))
        if self._joined is not None and not self._joined.done():
            self._joined.set_result(None)

    async def _refresh(self, token: str) -> Lifetime:
        request = {"channel": self.channel, "token": token}
        result: Lifetime = await self._host.calls.call_now("sub_refresh", request)
        return result


class _Entry(NamedTuple):
    """Something that waits for the iteration, and the position behind it."""

    item: Publication | PublicationsLost
    position: StreamPosition | None
    size_bytes: int
