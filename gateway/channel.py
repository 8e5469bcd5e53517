"""One channel of this process: who is subscribed, and how each of them gets its publications."""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Protocol

from gateway.protocol.channels import ChannelOptions
from gateway.protocol.codec import StreamPosition, quote

Sink = Callable[[bytes], None]


class Subscriber(Protocol):
    """A connection as the hub sees it."""

    @property
    def sink(self) -> Sink:
        """Writes whole frames to the socket, without waiting; the transport's own method."""

    @property
    def deflate(self) -> bool:
        """Whether it negotiated compressed frames."""

    @property
    def paused(self) -> bool:
        """Whether its write buffer is over the high-water mark."""

    def position_lost(self, channel: str) -> bool:
        """What it still needs of the channel is gone. False: it doesn't mind, keep it."""


class Audience:
    """Subscribers who get the same frames, and the frames that wait for the end of the turn."""

    __slots__ = ("deflated", "pending", "plain")

    def __init__(self) -> None:
        self.plain: dict[Subscriber, Sink] = {}
        self.deflated: dict[Subscriber, Sink] = {}
        self.pending: list[bytes] = []

    def __len__(self) -> int:
        return len(self.plain) + len(self.deflated)

    def __contains__(self, subscriber: Subscriber) -> bool:
        return subscriber in self.plain or subscriber in self.deflated

    def add(self, subscriber: Subscriber) -> None:
        """Let it have what is appended from now on."""
        (self.deflated if subscriber.deflate else self.plain)[subscriber] = subscriber.sink

    def remove(self, subscriber: Subscriber) -> bool:
        """Take it out; False when it wasn't in."""
        members = self.deflated if subscriber.deflate else self.plain
        return members.pop(subscriber, None) is not None


class Channel:
    """One channel with its subscribers here. `epoch` is None until its position is known."""

    __slots__ = (
        "catching_up",
        "epoch",
        "listeners",
        "live",
        "name",
        "name_json",
        "options",
        "preparing",
        "pump",
        "seen",
        "skipped",
        "tail",
        "tail_bytes",
        "top",
    )

    def __init__(self, name: str, options: ChannelOptions) -> None:
        self.name = name
        self.name_json = quote(name)
        self.options = options
        self.epoch: str | None = None
        self.top = 0
        self.seen: StreamPosition | None = None  # what passed while the position was being read
        self.preparing = 0  # how many are about to enter
        self.live = Audience()
        self.listeners: Audience | None = None  # of joins and leaves
        self.catching_up: dict[Subscriber, int] = {}
        self.skipped: set[Subscriber] = set()
        # The last publications without a hole up to `top`.
        self.tail: deque[tuple[int, bytes]] = deque()
        self.tail_bytes = 0
        self.pump: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return len(self.live) + len(self.catching_up) + len(self.skipped)

    @property
    def has_pending(self) -> bool:
        """Whether frames wait for the end of the turn: whoever enters now must not get them."""
        return bool(self.live.pending or (self.listeners is not None and self.listeners.pending))

    @property
    def logged(self) -> bool:
        """Whether its publications have positions."""
        return self.options.keeps_history
