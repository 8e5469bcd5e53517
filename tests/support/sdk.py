"""Public SDKs as tests use them: one vocabulary for all, whoever wrote them.

`SDK` makes clients; `SDKClient` and `SDKSubscription` are what both drivers offer. What happens to
them is in `events`, in the order in which the SDK told it.
"""

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

DEADLINE: Final = 15.0
"""Seconds for anything that an SDK and a healthy server do within some hundred milliseconds."""


@dataclass(frozen=True, slots=True)
class Position:
    """A place in a channel's log."""

    offset: int
    epoch: str


@dataclass(frozen=True, slots=True)
class Info:
    """Who somebody is in a channel."""

    client: str
    user: str
    conn_info: Any = None
    chan_info: Any = None


@dataclass(frozen=True, slots=True)
class Publication:
    """A publication as the SDK hands it over."""

    data: Any
    offset: int = 0
    info: Info | None = None
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Subscribed:
    """How a subscription became one."""

    channel: str
    recoverable: bool
    positioned: bool
    was_recovering: bool
    recovered: bool
    position: Position | None
    data: Any


@dataclass(frozen=True, slots=True)
class Reason:
    """Why something changed its state, with the protocol's code."""

    code: int
    reason: str


@dataclass(frozen=True, slots=True)
class In:
    """Something that happened in a server-side subscription to `channel`."""

    channel: str
    what: Any = None


@dataclass(frozen=True, slots=True)
class History:
    """A stretch of a channel's history, and its top."""

    publications: Sequence[Publication]
    position: Position


class SDKError(Exception):
    """An operation failed; the code is the server's."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(code, message)
        self.code = code


class Events:
    """What an SDK reported, by the name of the event."""

    def __init__(self) -> None:
        self._waiting: dict[str, list[Any]] = defaultdict(list)
        self._all: dict[str, list[Any]] = defaultdict(list)
        self._changed = asyncio.Event()

    def add(self, name: str, event: Any) -> None:
        """Note an event."""
        self._waiting[name].append(event)
        self._all[name].append(event)
        self._changed.set()

    async def next(self, name: str) -> Any:
        """The next event of that name that nobody has taken; waits for it."""
        try:
            async with asyncio.timeout(DEADLINE):
                while not self._waiting[name]:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise AssertionError(f"no {name!r} came; what did: {dict(self._all)}") from None
        return self._waiting[name].pop(0)

    async def take(self, name: str, count: int) -> list[Any]:
        """The next so many."""
        return [await self.next(name) for _ in range(count)]

    def left(self, name: str) -> list[Any]:
        """Those that nobody has taken."""
        return list(self._waiting[name])


class SDKSubscription(Protocol):
    """A client-side subscription.

    Events: subscribing and unsubscribed (`Reason`), subscribed (`Subscribed`), publication
    (`Publication`), join and leave (`Info`), token (None: it asked for one), error (an error code).
    """

    events: Events

    async def subscribe(self) -> Subscribed:
        """Subscribe and wait until it is."""

    async def begin(self) -> None:
        """Subscribe and don't wait."""

    async def unsubscribe(self) -> None:
        """Leave."""

    async def publish(self, data: Any) -> None:
        """Publish into its channel. Raises `SDKError`."""

    async def presence(self) -> Mapping[str, Info]:
        """Who is there, by client id. Raises `SDKError`."""

    async def presence_stats(self) -> tuple[int, int]:
        """How many clients and users. Raises `SDKError`."""

    async def history(
        self, limit: int = 0, since: Position | None = None, reverse: bool = False
    ) -> History:
        """Read the channel's history. Raises `SDKError`."""


class SDKClient(Protocol):
    """A client.

    Events: connecting and disconnected (`Reason`), connected (the client id), token (None), error;
    and of server-side subscriptions subscribed (`Subscribed`), unsubscribed, publication, join and
    leave (`In`).
    """

    events: Events

    async def connect(self) -> str:
        """Connect and wait until it is; returns the client id."""

    async def begin(self) -> None:
        """Connect and don't wait."""

    async def disconnect(self) -> None:
        """Leave, for good."""

    async def publish(self, channel: str, data: Any) -> None:
        """Publish. Raises `SDKError`."""

    async def rpc(self, method: str, data: Any) -> Any:
        """Call a remote procedure. Raises `SDKError`."""

    async def subscription(
        self,
        channel: str,
        *,
        tokens: Sequence[str] = (),
        recoverable: bool = False,
        join_leave: bool = False,
    ) -> SDKSubscription:
        """Make a subscription, which doesn't subscribe yet. `tokens` are given as it asks."""


class SDK(Protocol):
    """Makes clients; they end with it."""

    async def client(
        self, url: str, *, token: str | None = None, tokens: Sequence[str] = ()
    ) -> SDKClient:
        """A client with a token, or with `tokens` that it gets one by one as it asks."""
