"""Doubles around the hub: a publication log in memory, and a subscriber that keeps what it gets."""

import asyncio
import json
import zlib
from collections.abc import Callable, Sequence
from typing import Any, cast

from gateway.broker.contract import Broker, Committed
from gateway.channel import Recorder, Sink
from gateway.hub import Hub
from gateway.protocol.actions import Published, Publishing
from gateway.protocol.channels import ChannelOptions
from gateway.protocol.codec import StreamPosition, publication
from gateway.protocol.codes import INTERNAL, UNRECOVERABLE, ErrorCode
from gateway.protocol.frames import Opcode, text_frame
from gateway.streams import LogPage, LogUnavailable, Streams


class Logbook:
    """What the hub reads of `gateway.streams.Streams`, over lists.

    What the test writes is in the log; the hub learns of it when the test delivers it. What is
    published by `append` is committed and delivered at once. `reads` counts what would have gone to
    the database.
    """

    def __init__(self, page_size: int = 4) -> None:
        self.page_size = page_size
        self.reads = 0
        self.unavailable = False
        self.failure: Exception | None = None
        self.held: asyncio.Event | None = None
        """When set to an event, reads wait for it after they have looked."""
        self._epochs: dict[str, str] = {}
        self._publications: dict[str, list[bytes]] = {}
        self._floors: dict[str, int] = {}
        self._cached: dict[tuple[str, int], LogPage] = {}
        self._broker: Broker | None = None

    @property
    def streams(self) -> Streams:
        """This double, for `Hub.use`."""
        return cast(Streams, self)

    # --- what tests do ------------------------------------------------------------------------

    def write(self, channel: str, count: int = 1, data: str = "") -> list[Committed]:
        """Put publications into a channel's log; their data begin with their offsets."""
        epoch = self._epochs.setdefault(channel, "epoch-1")
        log = self._publications.setdefault(channel, [])
        committed = []
        for _ in range(count):
            offset = len(log) + 1
            pub = publication(json.dumps([offset, data]).encode(), offset=offset)
            log.append(pub)
            committed.append(Committed(channel, offset, epoch, pub))
        return committed

    def publish_to(self, broker: Broker) -> None:
        """Hand what `append` takes to a broker, as after a commit."""
        self._broker = broker

    def trim(self, channel: str, floor: int) -> None:
        """Forget publications up to an offset."""
        self._floors[channel] = floor
        self._cached.clear()

    def begin_anew(self, channel: str) -> None:
        """Forget a channel's log, as after it was idle for very long."""
        number = int(self._epochs[channel].partition("-")[2])
        self._epochs[channel] = f"epoch-{number + 1}"
        self._publications[channel] = []
        self._floors.pop(channel, None)

    def top(self, channel: str) -> StreamPosition:
        """Where a channel's log ends."""
        return StreamPosition(len(self._publications[channel]), self._epochs[channel])

    # --- what the hub does --------------------------------------------------------------------

    async def _read(self, found: Any) -> Any:
        self.reads += 1
        if self.held is not None:
            await self.held.wait()
        await asyncio.sleep(0)
        if self.unavailable:
            raise LogUnavailable
        if self.failure is not None:
            failure, self.failure = self.failure, None
            raise failure
        return found

    async def position(self, channel: str) -> StreamPosition:
        """See `Streams`."""
        self._epochs.setdefault(channel, "epoch-1")
        self._publications.setdefault(channel, [])
        position: StreamPosition = await self._read(self.top(channel))
        return position

    async def positions(self, channels: Sequence[str]) -> dict[str, StreamPosition]:
        """See `Streams`."""
        tops = {channel: self.top(channel) for channel in channels if channel in self._epochs}
        found: dict[str, StreamPosition] = await self._read(tops)
        return found

    def append(self, publishing: Publishing, done: Callable[[Published | ErrorCode], None]) -> None:
        """See `Streams`."""
        assert self._broker is not None, "publish_to() comes first"
        if self.unavailable:
            done(INTERNAL)
            return
        (committed,) = self.write(publishing.channel)
        pub = publication(
            publishing.data, publishing.info, publishing.tags, offset=committed.offset
        )
        self._publications[publishing.channel][-1] = pub
        self._broker.publish_committed(
            (Committed(publishing.channel, committed.offset, committed.epoch, pub),)
        )
        done(Published(committed.offset, committed.epoch))

    async def history(
        self,
        channel: str,
        options: ChannelOptions,
        limit: int,
        since: StreamPosition | None = None,
        reverse: bool = False,
    ) -> tuple[list[bytes], StreamPosition] | ErrorCode:
        """See `Streams`; `since` counts only upwards."""
        top = await self.position(channel)
        if since is not None and since.epoch not in ("", top.epoch):
            return UNRECOVERABLE
        log = self._publications[channel][since.offset if since else 0 :]
        return (log[::-1] if reverse else log)[:limit], top

    def cached_page(self, channel: str, after: int) -> LogPage | None:
        """See `Streams`."""
        return self._cached.get((channel, after // self.page_size))

    async def page(
        self, channel: str, options: ChannelOptions, after: int, top: StreamPosition
    ) -> LogPage | None:
        """See `Streams`."""
        index = after // self.page_size
        end = (index + 1) * self.page_size
        cached = self._cached.get((channel, index))
        if (
            cached is not None
            and cached.epoch == top.epoch
            and cached.until >= min(end, top.offset)
        ):
            return cached
        if channel not in self._epochs:
            await self._read(None)
            return None
        log = self._publications[channel]
        start = max(index * self.page_size, self._floors.get(channel, 0))
        publications = [(offset + 1, log[offset]) for offset in range(start, min(end, len(log)))]
        page = LogPage(self._epochs[channel], min(end, len(log)), publications)
        await self._read(page)
        self._cached[(channel, index)] = page
        return page


class Reader:
    """A subscriber with a socket that takes everything, until the test says that it is full."""

    def __init__(self, name: str = "", *, deflate: bool = False, minds: bool = True) -> None:
        self._name = name
        self.deflate = deflate
        self.paused = False
        self.minds = minds
        """Whether it follows positions, and so leaves when one is lost."""
        self.lost: list[str] = []
        self.writes: list[bytes] = []
        self.failing = False
        self.room: int | None = None
        """Writes that still fit before its socket is full."""
        self.hub: Hub | None = None
        self.channels: dict[str, bool] = {}
        """Where it is, and whether it listens to joins there: kept by the test."""

    def __repr__(self) -> str:
        return f"Reader({self._name!r})"

    @property
    def sink(self) -> Sink:
        """See `channel.Subscriber`."""
        return self._write

    @property
    def record(self) -> Recorder | None:
        """See `channel.Subscriber`."""
        return None

    def position_lost(self, channel: str) -> bool:
        """See `channel.Subscriber`."""
        self.lost.append(channel)
        return self.minds

    def _write(self, data: bytes) -> None:
        if self.failing:
            raise OSError("the socket is gone")
        self.writes.append(data)
        if self.room is not None and not self.paused:
            self.room -= 1
            if self.room <= 0:
                self.pause()

    def pause(self) -> None:
        """Let its socket be full: as `Connection.writing_paused` does."""
        assert self.hub is not None
        self.paused = True
        self.hub.writing_paused(self, self.channels)

    def resume(self) -> None:
        """Let its socket be empty again."""
        assert self.hub is not None
        self.paused = False
        self.room = None
        self.hub.writing_resumed(self, self.channels)

    @property
    def pushes(self) -> list[Any]:
        """Everything it got, parsed."""
        return [json.loads(text)["push"] for data in self.writes for text in texts(data)]

    def offsets(self, channel: str) -> list[int]:
        """The offsets of the publications of a channel that it got."""
        return [
            push["pub"].get("offset", 0)
            for push in self.pushes
            if push["channel"] == channel and "pub" in push
        ]


class SessionReader(Reader):
    """A subscriber with a session: whatever is written to it is in its tail, socket or not.

    `pushes` is what its client gets in the end, by the socket or by a replay; `writes` is what was
    written to a socket at once.
    """

    def __init__(self, name: str = "", *, deflate: bool = False) -> None:
        super().__init__(name, deflate=deflate)
        self.tail: list[tuple[bytes, int]] = []
        """Joined frames, and how many frames they are said to be."""
        self.attached = True
        self.leaves_all = False
        """Whether a lost position ends it."""

    @property
    def record(self) -> Recorder:
        """See `channel.Subscriber`."""
        return self._record

    def _record(self, frames: bytes, count: int) -> None:
        self.tail.append((frames, count))
        if self.attached:
            self._write(frames)

    def note(self, push: bytes) -> None:
        """Put a push of its own into the tail."""
        self._record(text_frame(push), 1)

    def position_lost(self, channel: str) -> bool:
        """See `channel.Subscriber`."""
        if self.leaves_all:
            self.end()
        return super().position_lost(channel)

    def detach(self) -> None:
        """Lose its socket: as a connection with a session does."""
        assert self.hub is not None
        self.attached = False
        self.paused = True
        self.room = None
        self.hub.detach(self, self.channels)

    def attach(self, *, full: bool = False) -> None:
        """Get another socket, which may be full by the replay alone."""
        assert self.hub is not None
        self.attached = True
        self.paused = full
        self.hub.attach(self, self.channels)

    def end(self) -> None:
        """Leave everything."""
        assert self.hub is not None
        for channel in list(self.channels):
            del self.channels[channel]
            self.hub.leave(self, channel)

    @property
    def pushes(self) -> list[Any]:
        """Everything that it got or can replay, parsed."""
        found = []
        for frames, count in self.tail:
            messages = texts(frames)
            assert len(messages) == count
            found += [json.loads(message)["push"] for message in messages]
        return found


def texts(data: bytes) -> list[str]:
    """The contents of whole text frames of a server."""
    found = []
    while data:
        assert data[0] & 0x8F == 0x80 | Opcode.TEXT
        length, start = data[1], 2
        if length == 126:
            length, start = int.from_bytes(data[2:4]), 4
        elif length == 127:
            length, start = int.from_bytes(data[2:10]), 10
        payload = data[start : start + length]
        assert len(payload) == length
        if data[0] & 0x40:
            payload = zlib.decompressobj(-15).decompress(payload + b"\x00\x00\xff\xff")
        found.append(payload.decode())
        data = data[start + length :]
    return found
