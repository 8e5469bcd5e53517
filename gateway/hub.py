"""Who is subscribed to what in this process, and the fan-out to them.

Theory of operation
-------------------
Each channel keeps one position for all its live subscribers: they have all been sent everything up
to `top`. So a publication is checked against one number (expected: send; lower: have it; higher:
something is missing), its frame is built once, and delivering is a plain loop over the transports'
own `write`, without a look at each subscriber's state. Frames of one loop turn are joined first.

Whoever can't be part of that loop is kept out of it:

* *catching up*: a subscriber with a position of its own, because it recovers from the log, because
  its socket was over the high-water mark, or because this process itself missed publications. One
  pump per channel reads pages, shares them among all at the same position, and promotes those who
  have reached `top`. Nothing is ever queued for a slow reader: the log is its queue.
* *skipped*: a slow subscriber of a channel without a log. What it misses is dropped and counted.

Frames that wait for the end of the loop turn count as sent, so they are flushed before anybody
enters or leaves the loop.
"""

import asyncio
import fnmatch
import logging
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any, Final

from gateway.broker.contract import Committed, Transient
from gateway.channel import Audience, Channel, Subscriber
from gateway.fanout import FanOut
from gateway.protocol.channels import ChannelOptions
from gateway.protocol.codec import (
    StreamPosition,
    join_push,
    leave_push,
    publication_push,
)
from gateway.protocol.codes import INTERNAL, ErrorCode
from gateway.protocol.frames import text_frame
from gateway.protocol.subscription import Joined
from gateway.streams import LogUnavailable, Streams
from gateway.tails import Tails
from metrics import instruments

logger = logging.getLogger(__name__)

# Channels without subscribers whose position is still known, about 1 KB each.
IDLE_CHANNELS_MAX: Final = 20_000
# What one subscriber is written at once while it catches up; between two such pieces its write
# pressure is looked at. Also bounds the publications in a subscribe reply.
CATCH_UP_BYTES: Final = 64 * 1024
POSITIONS_AT_ONCE: Final = 1000
LOG_RETRY_DELAY: Final = 1.0


class Hub:
    """The channels of this process."""

    def __init__(self, loop: asyncio.AbstractEventLoop, compression_min_bytes: int = 256) -> None:
        self._loop = loop
        self._streams: Streams | None = None
        self._channels: dict[str, Channel] = {}
        self._idle: OrderedDict[str, None] = OrderedDict()
        self._tails = Tails()
        self._out = FanOut(loop, compression_min_bytes, self._demote_paused)
        # Who was paused while the fan-out looped over its audience, and its channels.
        self._paused: list[tuple[Subscriber, list[str]]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._checking: asyncio.Task[None] | None = None
        self._check_again = False
        self._subscriptions = 0
        self._active = 0  # channels with subscribers
        # Read when somebody scrapes: a count that is kept anyway costs nothing that way.
        instruments.SUBSCRIPTIONS.set_function(lambda: self._subscriptions)
        instruments.CHANNELS.set_function(lambda: self._active)

    def use(self, streams: Streams) -> None:
        """Read positions and pages from there. Streams hand their commits to the hub, so one of the
        two has to come first."""
        self._streams = streams

    async def stop(self) -> None:
        """End the pumps."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def has_pending(self) -> bool:
        """Whether frames wait for the end of the loop turn."""
        return self._out.has_pending

    # --- what others ask --------------------------------------------------------------------------

    def subscribers(self, name: str) -> int:
        """How many are subscribed to a channel here."""
        channel = self._channels.get(name)
        return 0 if channel is None else len(channel)

    def channels(self, pattern: str = "") -> dict[str, int]:
        """Channels with subscribers here, and how many; `pattern` is a glob."""
        return {
            name: len(channel)
            for name, channel in self._channels.items()
            if len(channel) and (not pattern or fnmatch.fnmatchcase(name, pattern))
        }

    # --- entering and leaving ---------------------------------------------------------------------

    def prepare(
        self,
        name: str,
        options: ChannelOptions,
        since: StreamPosition | None,
        answer: Callable[[ErrorCode | None], None],
    ) -> None:
        """Get at hand what `join` needs: the channel's position, and the page behind `since`.

        Answers at once when it is; with `INTERNAL` (temporary) when the database doesn't.
        """
        if not options.keeps_history:
            answer(None)
            return
        channel = self._open(name, options)
        if channel.epoch is not None and self._at_hand(channel, since):
            answer(None)
            return
        channel.preparing += 1
        self._spawn(self._prepare(channel, since, answer))

    def _open(self, name: str, options: ChannelOptions) -> Channel:
        channel = self._channels.get(name)
        if channel is None:
            channel = self._channels[name] = Channel(name, options)
            if channel.logged:
                self._rest(channel)  # until somebody enters; the others are opened by who enters
        return channel

    def _at_hand(self, channel: Channel, since: StreamPosition | None) -> bool:
        """Whether nothing has to be read to join from `since`."""
        if since is None or (since.epoch and since.epoch != channel.epoch):
            return True
        tail_start = channel.tail[0][0] if channel.tail else channel.top + 1
        return tail_start - 1 <= since.offset <= channel.top

    async def _prepare(
        self,
        channel: Channel,
        since: StreamPosition | None,
        answer: Callable[[ErrorCode | None], None],
    ) -> None:
        assert self._streams is not None, "use() comes before the first client"
        try:
            await self._load(channel, since)
            if since and since.offset < channel.top and not self._at_hand(channel, since):
                await self._read_after(channel, since.offset)
        except LogUnavailable:
            answer(INTERNAL)
        except Exception:
            logger.exception("could not read the log of a channel")
            answer(INTERNAL)
        else:
            answer(None)
        finally:
            channel.preparing -= 1
            if not len(channel):
                self._rest(channel)

    async def _load(self, channel: Channel, since: StreamPosition | None) -> None:
        """Know the channel's position; again, when a client knows a higher one."""
        assert self._streams is not None
        ahead = (
            since is not None and since.epoch in ("", channel.epoch) and since.offset > channel.top
        )
        if channel.epoch is not None and not ahead:
            return
        position = await self._streams.position(channel.name)
        if channel.epoch is None:
            channel.epoch = position.epoch
            channel.top = position.offset
            # Publications that passed while the answer was under way are in the log as well.
            if channel.seen is not None and channel.seen.epoch == position.epoch:
                channel.top = max(position.offset, channel.seen.offset)
        elif channel.epoch == position.epoch and position.offset > channel.top:
            self._fall_behind(channel, position.offset)

    def join(
        self,
        subscriber: Subscriber,
        name: str,
        options: ChannelOptions,
        since: StreamPosition | None,
        listens: bool,
        only_recovered: bool = False,
    ) -> Joined | None:
        """Enter a prepared channel. Publications reach the subscriber from the next turn on.

        `listens`: to joins and leaves. `only_recovered`: don't enter, and answer None, when the log
        doesn't reach back to `since`.
        """
        channel = self._open(name, options)
        if channel.has_pending:
            self._out.flush()
        if not options.keeps_history:
            self._enter(channel, subscriber, listens)
            if subscriber.paused:
                channel.skipped.add(subscriber)
            else:
                channel.live.add(subscriber)
            return Joined()
        if channel.epoch is None:
            raise AssertionError(f"joined {name!r} before it was prepared")
        top = StreamPosition(channel.top, channel.epoch)
        if since is None:
            self._enter(channel, subscriber, listens)
            self._place(channel, subscriber, channel.top)
            return Joined(top)
        publications = self._publications_after(channel, since)
        instruments.RECOVERIES.labels("false" if publications is None else "true").inc()
        if publications is None and only_recovered:
            return None
        self._enter(channel, subscriber, listens)
        if publications is None:
            self._place(channel, subscriber, channel.top)
            first = since.offset + 1 if since.epoch in ("", channel.epoch) else 1
            gap = (first, channel.top) if first <= channel.top else None
            return Joined(top, recovered=False, gap=gap)
        first_page = _up_to_bytes(publications, CATCH_UP_BYTES)
        self._place(channel, subscriber, first_page[-1][0] if first_page else since.offset)
        return Joined(top, recovered=True, publications=tuple(pub for _, pub in first_page))

    def _enter(self, channel: Channel, subscriber: Subscriber, listens: bool) -> None:
        if not len(channel):
            self._active += 1
            self._idle.pop(channel.name, None)
        self._subscriptions += 1
        if listens:
            if channel.listeners is None:
                channel.listeners = Audience()
            channel.listeners.add(subscriber)

    def _place(self, channel: Channel, subscriber: Subscriber, position: int) -> None:
        """Let a subscriber go on from a position: live, or catching up."""
        if position == channel.top and not subscriber.paused:
            channel.live.add(subscriber)
        else:
            channel.catching_up[subscriber] = position
            self._start_pump(channel)

    def _publications_after(
        self, channel: Channel, since: StreamPosition
    ) -> Sequence[tuple[int, bytes]] | None:
        """What memory holds right behind `since`; None when the log doesn't reach back to it.

        Nothing at hand is no answer yet: the pump reads on and finds out.
        """
        assert self._streams is not None
        if since.offset > channel.top or (since.epoch and since.epoch != channel.epoch):
            return None
        if since.offset == channel.top:
            return ()
        publications = self._tails.after(channel, since.offset)
        if publications is None:
            page = self._streams.cached_page(channel.name, since.offset)
            if page is None or page.epoch != channel.epoch or page.until <= since.offset:
                return ()
            publications = page.after(since.offset)
        if not publications or publications[0][0] != since.offset + 1:
            return None
        return _up_to(publications, channel.top)

    def leave(self, subscriber: Subscriber, name: str) -> None:
        """Take a subscriber out of a channel."""
        channel = self._channels.get(name)
        if channel is None:
            return
        listeners = channel.listeners
        if listeners is not None and listeners.remove(subscriber) and not len(listeners):
            channel.listeners = None
        if not (
            channel.live.remove(subscriber) or channel.catching_up.pop(subscriber, None) is not None
        ):
            if subscriber not in channel.skipped:
                return
            channel.skipped.discard(subscriber)
        self._subscriptions -= 1
        if not len(channel):
            self._active -= 1
            self._rest(channel)

    def _rest(self, channel: Channel) -> None:
        """Keep a channel without subscribers for a while, if its position is worth it."""
        if not channel.logged:
            self._forget(channel.name)
            return
        self._idle[channel.name] = None
        self._idle.move_to_end(channel.name)
        while len(self._idle) > IDLE_CHANNELS_MAX:
            name, _ = self._idle.popitem(last=False)
            self._forget(name)

    def _forget(self, name: str) -> None:
        channel = self._channels.get(name)
        if channel is not None and not len(channel) and not channel.preparing:
            del self._channels[name]
            self._tails.drop(channel)

    def forget_tail(self, name: str) -> None:
        """Drop what memory holds of a channel whose history was removed."""
        channel = self._channels.get(name)
        if channel is not None:
            self._tails.drop(channel)

    # --- publications in --------------------------------------------------------------------------

    def deliver_committed(self, publications: Sequence[Committed]) -> None:
        """Take publications that are in the log, in commit order; some perhaps again."""
        channels = self._channels
        for publication in publications:
            channel = channels.get(publication.channel)
            if channel is None:
                continue
            offset = publication.offset
            if channel.epoch is None:
                channel.seen = StreamPosition(offset, publication.epoch)
            elif channel.epoch != publication.epoch:
                self._begin_epoch(channel, publication)
            elif offset == channel.top + 1:
                channel.top = offset
                self._tails.keep(channel, offset, publication.pub)
                if channel.live.plain or channel.live.deflated:
                    push = publication_push(channel.name_json, publication.pub)
                    self._out.append(channel.live, push)
            elif offset > channel.top:
                self._fall_behind(channel, offset)
        self._out.note_commit()

    def deliver_transient(self, publication: Transient) -> None:
        """Take a publication that isn't logged."""
        channel = self._channels.get(publication.channel)
        if channel is None:
            return
        missed = len(channel.skipped) + len(channel.catching_up)
        if missed:
            kind = "ephemeral" if publication.ephemeral else "transient"
            instruments.DROPS.labels(kind).inc(missed)
        if len(channel.live):
            self._out.append(channel.live, publication_push(channel.name_json, publication.pub))

    def announce_join(self, name: str, info: bytes) -> None:
        """Tell a channel's listeners that somebody came; `info` is ClientInfo in JSON."""
        self._announce(name, info, join_push)

    def announce_leave(self, name: str, info: bytes) -> None:
        """Tell a channel's listeners that somebody left."""
        self._announce(name, info, leave_push)

    def _announce(self, name: str, info: bytes, push: Callable[[bytes, bytes], bytes]) -> None:
        channel = self._channels.get(name)
        if channel is not None and channel.listeners is not None:
            self._out.append(channel.listeners, push(channel.name_json, info))

    def _fall_behind(self, channel: Channel, top: int) -> None:
        """This process missed publications: everybody catches up from the log."""
        self._out.flush()
        for members in (channel.live.plain, channel.live.deflated):
            for subscriber in members:
                channel.catching_up[subscriber] = channel.top
            members.clear()
        channel.top = top
        self._tails.drop(channel)
        self._start_pump(channel)

    def _begin_epoch(self, channel: Channel, first: Committed) -> None:
        """The channel's log began anew: positions in the old one mean nothing."""
        self._move_to(channel, StreamPosition(first.offset - 1, first.epoch))
        self.deliver_committed((first,))

    def _move_to(self, channel: Channel, position: StreamPosition) -> None:
        """Go on in another epoch; who follows positions learns that its own is lost."""
        self._out.flush()
        channel.epoch = position.epoch
        channel.top = position.offset
        self._tails.drop(channel)
        members = [*channel.catching_up, *channel.live.plain, *channel.live.deflated]
        self._lose_position(channel, members)

    def _lose_position(self, channel: Channel, subscribers: Iterable[Subscriber]) -> None:
        for subscriber in subscribers:
            if subscriber.position_lost(channel.name):
                self.leave(subscriber, channel.name)  # in case it didn't do so itself
            elif subscriber in channel.catching_up:
                # It doesn't follow positions: let it go on with what comes.
                channel.catching_up[subscriber] = channel.top

    # --- slow readers -----------------------------------------------------------------------------

    def writing_paused(self, subscriber: Subscriber, names: Iterable[str]) -> None:
        """A subscriber's socket is over its high-water mark: nothing more is written to it."""
        if self._out.flushing:
            # Called from inside the loop over the sinks; it must not change under the loop.
            self._paused.append((subscriber, list(names)))
            return
        self._out.flush()
        self._demote(subscriber, names)

    def _demote_paused(self) -> None:
        if self._paused:
            paused, self._paused = self._paused, []
            for subscriber, names in paused:
                self._demote(subscriber, names)

    def _demote(self, subscriber: Subscriber, names: Iterable[str]) -> None:
        for name in names:
            channel = self._channels.get(name)
            if channel is None:
                continue
            if channel.listeners is not None and subscriber in channel.listeners:
                channel.listeners.remove(subscriber)
                instruments.DROPS.labels("presence").inc()
            if channel.live.remove(subscriber):
                if channel.logged:
                    channel.catching_up[subscriber] = channel.top
                    instruments.DEMOTIONS.inc()
                else:
                    channel.skipped.add(subscriber)

    def writing_resumed(self, subscriber: Subscriber, names: Mapping[str, bool]) -> None:
        """The socket took what was buffered; `names` says whether it listens to joins there."""
        for name, listens in names.items():
            channel = self._channels.get(name)
            if channel is None:
                continue
            if listens and channel.listeners is None:
                channel.listeners = Audience()
            if listens and channel.listeners is not None:
                channel.listeners.add(subscriber)
            if subscriber in channel.skipped:
                channel.skipped.discard(subscriber)
                channel.live.add(subscriber)
            elif subscriber in channel.catching_up:
                self._start_pump(channel)

    # --- catching up ------------------------------------------------------------------------------

    def _start_pump(self, channel: Channel) -> None:
        if channel.pump is None or channel.pump.done():
            channel.pump = self._spawn(self._pump(channel))

    async def _pump(self, channel: Channel) -> None:
        """Bring the subscribers that catch up to the top, the hindmost first.

        One round brings everybody a page further, so that they meet at the pages' ends and the cost
        of looking for them is that of the pages, however scattered they were.
        """
        while True:
            # Let the replies out that were queued in the turn in which somebody was placed here.
            await asyncio.sleep(0)
            self._out.flush()
            followers: dict[int, list[Subscriber]] = {}
            for subscriber, at in channel.catching_up.items():
                if not subscriber.paused:
                    followers.setdefault(at, []).append(subscriber)
            if not followers:
                return
            try:
                for after in sorted(followers):
                    await self._pump_from(channel, after, followers[after])
            except Exception as error:
                if not isinstance(error, LogUnavailable):
                    logger.exception("could not read the log of a channel")
                await asyncio.sleep(LOG_RETRY_DELAY)

    async def _pump_from(
        self, channel: Channel, after: int, followers: Sequence[Subscriber]
    ) -> None:
        """Bring those who were at one position a page further, if they still are there."""
        epoch = channel.epoch
        publications: Sequence[tuple[int, bytes]] = ()
        if after < channel.top:
            publications = await self._read_after(channel, after)
        if channel.epoch == epoch:
            self._advance(channel, after, publications, followers)
        await asyncio.sleep(0)  # the page may have been at hand, and others want their turn

    async def _read_after(self, channel: Channel, after: int) -> Sequence[tuple[int, bytes]]:
        assert self._streams is not None
        publications = self._tails.after(channel, after)
        if publications is None:
            # What the tail holds need not be read.
            until = channel.tail[0][0] - 1 if channel.tail else channel.top
            top = StreamPosition(until, channel.epoch or "")
            page = await self._streams.page(channel.name, channel.options, after, top)
            if page is None or page.epoch != channel.epoch:
                self.check_positions()  # the log began anew, and nobody told us
                return ()
            publications = page.after(after)
        return publications

    def _advance(
        self,
        channel: Channel,
        after: int,
        publications: Sequence[tuple[int, bytes]],
        followers: Sequence[Subscriber],
    ) -> None:
        """Write to everybody at one position, and promote those who reach the top."""
        followers = [
            sub for sub in followers if channel.catching_up.get(sub) == after and not sub.paused
        ]
        if not followers:
            return
        if after < channel.top and (not publications or publications[0][0] != after + 1):
            self._lose_position(channel, followers)
            return
        pieces = _pieces(channel.name_json, _up_to(publications, channel.top))
        deflated: dict[int, bytes] = {}  # made once, for those who want it
        for subscriber in followers:
            position = after
            for last, frames, pushes in pieces:
                if subscriber.paused:
                    break
                if subscriber.deflate:
                    if last not in deflated:
                        deflated[last] = self._out.deflated(pushes)
                    frames = deflated[last]
                try:
                    subscriber.sink(frames)
                except Exception:  # must not cost the others their message
                    logger.exception("could not write to a subscriber")
                self._out.delivered += len(pushes)
                position = last
            channel.catching_up[subscriber] = position
        self._out.flush()
        for subscriber in followers:
            if channel.catching_up.get(subscriber) == channel.top and not subscriber.paused:
                del channel.catching_up[subscriber]
                channel.live.add(subscriber)

    # --- checking ---------------------------------------------------------------------------------

    def check_positions(self) -> None:
        """Compare with the log, in the background, and make up for what was missed in silence.

        Asked for during a check it is made once more: that one may have looked already.
        """
        if self._checking is None or self._checking.done():
            self._checking = self._spawn(self._check_positions())
        else:
            self._check_again = True

    async def _check_positions(self) -> None:
        while True:
            self._check_again = False
            channels = [
                channel
                for channel in self._channels.values()
                if channel.logged and channel.epoch is not None
            ]
            for start in range(0, len(channels), POSITIONS_AT_ONCE):
                await self._check(channels[start : start + POSITIONS_AT_ONCE])
            if not self._check_again:
                return

    async def _check(self, channels: Sequence[Channel]) -> None:
        assert self._streams is not None
        known = [StreamPosition(channel.top, channel.epoch or "") for channel in channels]
        positions: Mapping[str, StreamPosition] | None = None
        while positions is None:
            try:
                positions = await self._streams.positions([channel.name for channel in channels])
            except LogUnavailable:
                await asyncio.sleep(LOG_RETRY_DELAY)
        for channel, before in zip(channels, known, strict=True):
            if self._channels.get(channel.name) is channel and channel.epoch == before.epoch:
                self._compare(channel, before, positions.get(channel.name))

    def _compare(
        self, channel: Channel, before: StreamPosition, position: StreamPosition | None
    ) -> None:
        """Act on what the log says, and on what it should say at least."""
        if position is not None and position.epoch == channel.epoch:
            if position.offset > channel.top:
                self._fall_behind(channel, position.offset)
            elif position.offset < before.offset:
                # The database was restored, or a standby took over that had missed commits.
                logger.warning("the log of a channel went back in time")
                self._move_to(channel, position)
            return
        if not len(channel) and not channel.preparing:
            self._idle.pop(channel.name, None)
            self._forget(channel.name)
        elif position is not None:
            self._move_to(channel, position)
        # Without a stream nothing has been published in the new epoch yet, so nothing is missing.

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.error("a hub task failed", exc_info=task.exception())


def _up_to(publications: Sequence[tuple[int, bytes]], top: int) -> Sequence[tuple[int, bytes]]:
    """Without those above `top`: the log has them, but this process hasn't been handed them yet."""
    early = publications[-1][0] - top if publications else 0
    return publications[:-early] if early > 0 else publications


def _up_to_bytes(
    publications: Sequence[tuple[int, bytes]], size_max: int
) -> Sequence[tuple[int, bytes]]:
    """The first publications up to a size, one at least."""
    size = 0
    for count, (_, pub) in enumerate(publications):
        size += len(pub)
        if size > size_max and count:
            return publications[:count]
    return publications


def _pieces(
    name_json: bytes, publications: Sequence[tuple[int, bytes]]
) -> list[tuple[int, bytes, list[bytes]]]:
    """Publications as `(last offset, joined plain frames, pushes)` of bounded size."""
    pieces = []
    while publications:
        part = _up_to_bytes(publications, CATCH_UP_BYTES)
        publications = publications[len(part) :]
        pushes = [publication_push(name_json, pub) for _, pub in part]
        pieces.append((part[-1][0], b"".join(map(text_frame, pushes)), pushes))
    return pieces
