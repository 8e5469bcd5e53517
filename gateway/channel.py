"""One channel of this process: who is subscribed, and how each of them gets its publications."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Protocol

from msgspec import Struct

from gateway.protocol.channels import ChannelOptions
from gateway.protocol.codec import StreamPosition, quote
from gateway.protocol.frames import text_frame

Sink = Callable[[bytes], None]
Recorder = Callable[[bytes, int], None]


class Subscriber(Protocol):
    """A connection as the hub sees it."""

    @property
    def sink(self) -> Sink:
        """Writes whole frames to the socket, without waiting; the transport's own method."""

    @property
    def record(self) -> Recorder | None:
        """For a connection with a session: takes plain frames and how many text frames they are.

        It notes them in the session's tail, and writes them if there is a socket. It is called from
        inside loops over subscribers: it may pause, detach or end its own subscriber, no other.
        None for a connection without a session.
        """

    @property
    def deflate(self) -> bool:
        """Whether it negotiated compressed frames. Those of a session never are."""

    @property
    def paused(self) -> bool:
        """Whether its write buffer is over the high-water mark, or there is no socket."""

    def position_lost(self, channel: str) -> bool:
        """What it still needs of the channel is gone. False: it doesn't mind, keep it."""


class Piece:
    """Pushes that are written together, encoded once for all who get them."""

    __slots__ = ("deflated", "plain", "pushes")

    def __init__(self, pushes: Sequence[bytes]) -> None:
        self.pushes = pushes
        self.plain = b"".join(map(text_frame, pushes))
        self.deflated: bytes | None = None  # made by the fan-out when somebody wants it

    def __len__(self) -> int:
        return len(self.pushes)


class Behind(Struct, frozen=True, gc=False):
    """How far a subscriber has come that isn't written what the others are.

    It has the channel's log up to `offset`, which is 0 without a log, and of the publications that
    are in no log the first `transients`.
    """

    offset: int
    transients: int


class Audience:
    """Subscribers who get the same frames, and the frames that wait for the end of the turn."""

    __slots__ = ("deflated", "pending", "plain", "sessions")

    def __init__(self) -> None:
        self.plain: dict[Subscriber, Sink] = {}
        self.deflated: dict[Subscriber, Sink] = {}
        self.sessions: dict[Subscriber, Recorder] = {}
        self.pending: list[bytes] = []

    def __len__(self) -> int:
        return len(self.plain) + len(self.deflated) + len(self.sessions)

    def __iter__(self) -> Iterator[Subscriber]:
        return chain(self.plain, self.deflated, self.sessions)

    def __contains__(self, subscriber: Subscriber) -> bool:
        return (
            subscriber in self.plain or subscriber in self.deflated or subscriber in self.sessions
        )

    def add(self, subscriber: Subscriber) -> None:
        """Let it have what is appended from now on."""
        record = subscriber.record
        if record is not None:
            self.sessions[subscriber] = record
        elif subscriber.deflate:
            self.deflated[subscriber] = subscriber.sink
        else:
            self.plain[subscriber] = subscriber.sink

    def remove(self, subscriber: Subscriber) -> bool:
        """Take it out; False when it wasn't in."""
        return (
            self.plain.pop(subscriber, None) is not None
            or self.sessions.pop(subscriber, None) is not None
            or self.deflated.pop(subscriber, None) is not None
        )

    def clear(self) -> list[Subscriber]:
        """Take everybody out."""
        members = list(self)
        for kind in (self.plain, self.deflated, self.sessions):
            kind.clear()
        return members


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
        "parked",
        "preparing",
        "pump",
        "recording",
        "seen",
        "tail",
        "tail_bytes",
        "top",
        "transients",
    )

    def __init__(self, name: str, options: ChannelOptions) -> None:
        self.name = name
        self.name_json = quote(name)
        self.options = options
        self.epoch: str | None = None
        self.top = 0  # stays 0 without a log
        # Publications so far that are in no log and are missed by whoever isn't live. Ephemeral
        # ones are missed by nobody.
        self.transients = 0
        self.seen: StreamPosition | None = None  # what passed while the position was being read
        self.preparing = 0  # how many are about to enter
        self.live = Audience()
        self.listeners: Audience | None = None  # of joins and leaves
        # Sessions without a socket in a channel without a log: what is published goes into their
        # tails, as long as it isn't ephemeral.
        self.recording: Audience | None = None
        # Those whom the pump brings to the top, and those who can't be written to for now.
        self.catching_up: dict[Subscriber, Behind] = {}
        self.parked: dict[Subscriber, Behind] = {}
        # The last publications without a hole up to `top`.
        self.tail: deque[tuple[int, bytes]] = deque()
        self.tail_bytes = 0
        self.pump: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        recording = 0 if self.recording is None else len(self.recording)
        return len(self.live) + len(self.catching_up) + len(self.parked) + recording

    @property
    def has_pending(self) -> bool:
        """Whether frames wait for the end of the turn: whoever enters now must not get them."""
        return bool(
            self.live.pending
            or (self.listeners is not None and self.listeners.pending)
            or (self.recording is not None and self.recording.pending)
        )

    @property
    def logged(self) -> bool:
        """Whether its publications have positions."""
        return self.options.keeps_history

    @property
    def here(self) -> Behind:
        """Where everybody is who has been sent everything so far."""
        return Behind(self.top, self.transients)
