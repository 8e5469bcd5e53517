"""Who is subscribed to what in this process, and the fan-out to them.

Theory of operation
-------------------
Each channel keeps one position for all its live subscribers: they have all been sent everything up
to `top`. So a publication is checked against one number (expected: send; lower: have it; higher:
something is missing), its frame is built once, and delivering is a plain loop over the transports'
own `write`, without a look at each subscriber's state. Frames of one loop turn are joined first.

Whoever can't be part of that loop is kept out of it:

* *catching up*: a subscriber with a position of its own, because it recovers from the log, because
  it was slow or away, or because this process itself missed publications (see `catchup`).
* *parked*: one that can't be written to now. Nothing is ever queued for it: the log is its queue,
  and what isn't in the log it misses, is told so, and it is counted (see `waiting`).
* *recording*: a session without a socket, in a channel without a log.

Frames that wait for the end of the loop turn count as sent, so they are flushed before anybody
enters or leaves the loop.
"""

import asyncio
import fnmatch
import logging
from collections import OrderedDict
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from typing import Any, Final

from gateway.backlogs import Backlogs
from gateway.broker.contract import Committed, Transient
from gateway.catchup import CatchUp, first_page
from gateway.channel import Audience, Behind, Channel, Subscriber
from gateway.fanout import FanOut
from gateway.protocol.channels import ChannelOptions
from gateway.protocol.codec import StreamPosition, join_push, leave_push, publication_push
from gateway.protocol.codes import INTERNAL, ErrorCode
from gateway.protocol.subscription import Joined
from gateway.streams import LogUnavailable, Streams
from gateway.waiting import Waiting
from metrics import instruments

logger = logging.getLogger(__name__)

# Channels without subscribers whose position is still known, about 1 KB each.
IDLE_CHANNELS_MAX: Final = 20_000
POSITIONS_AT_ONCE: Final = 1000
LOG_RETRY_DELAY: Final = 1.0


class Hub:
    """The channels of this process."""

    def __init__(self, loop: asyncio.AbstractEventLoop, compression_min_bytes: int = 256) -> None:
        self._loop = loop
        self._streams: Streams | None = None
        self._channels: dict[str, Channel] = {}
        self._idle: OrderedDict[str, None] = OrderedDict()
        self._out = FanOut(loop, compression_min_bytes)
        self._catch_up = CatchUp(self._out, self._spawn, self._lose_position, self.check_positions)
        self._backlogs = Backlogs()
        self._waiting = Waiting(self._channels, self._out, self._catch_up, self._backlogs)
        self._transient_drops = instruments.DROPS.labels("transient").inc
        self._ephemeral_drops = instruments.DROPS.labels("ephemeral").inc
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
        self._catch_up.use(streams)

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
        if channel.epoch is not None and self._catch_up.at_hand(channel, since):
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

    async def _prepare(
        self,
        channel: Channel,
        since: StreamPosition | None,
        answer: Callable[[ErrorCode | None], None],
    ) -> None:
        assert self._streams is not None, "use() comes before the first client"
        try:
            await self._load(channel, since)
            if since and since.offset < channel.top and not self._catch_up.at_hand(channel, since):
                await self._catch_up.read_after(channel, since.offset)
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
            self._place(channel, subscriber, channel.top)
            return Joined()
        if channel.epoch is None:
            raise AssertionError(f"joined {name!r} before it was prepared")
        top = StreamPosition(channel.top, channel.epoch)
        if since is None:
            self._enter(channel, subscriber, listens)
            self._place(channel, subscriber, channel.top)
            return Joined(top)
        publications = self._catch_up.remembered_after(channel, since)
        instruments.RECOVERIES.labels("false" if publications is None else "true").inc()
        if publications is None and only_recovered:
            return None
        self._enter(channel, subscriber, listens)
        if publications is None:
            self._place(channel, subscriber, channel.top)
            first = since.offset + 1 if since.epoch in ("", channel.epoch) else 1
            gap = (first, channel.top) if first <= channel.top else None
            return Joined(top, recovered=False, gap=gap)
        page = first_page(publications)
        self._place(channel, subscriber, page[-1][0] if page else since.offset)
        return Joined(top, recovered=True, publications=tuple(pub for _, pub in page))

    def restore(
        self,
        subscriber: Subscriber,
        name: str,
        options: ChannelOptions,
        position: StreamPosition | None,
        listens: bool,
    ) -> bool:
        """Place a session without a socket in a prepared channel, where it was (see `position`).

        False when the log is another one than it was in: then it isn't placed.
        """
        channel = self._open(name, options)
        if channel.has_pending:
            self._out.flush()
        if not channel.logged:
            self._enter(channel, subscriber, listens)
            self._waiting.record(channel, subscriber)
            return True
        if channel.epoch is None:
            raise AssertionError(f"restored into {name!r} before it was prepared")
        if position is None or position.epoch != channel.epoch or position.offset > channel.top:
            return False
        self._enter(channel, subscriber, listens)
        channel.parked[subscriber] = Behind(position.offset, channel.transients)
        return True

    def _enter(self, channel: Channel, subscriber: Subscriber, listens: bool) -> None:
        if not len(channel):
            self._active += 1
            self._idle.pop(channel.name, None)
        self._subscriptions += 1
        if listens and subscriber.paused:
            self._backlogs.wait(channel, subscriber)
        elif listens:
            if channel.listeners is None:
                channel.listeners = Audience()
            channel.listeners.add(subscriber)

    def _place(self, channel: Channel, subscriber: Subscriber, offset: int) -> None:
        """Let a subscriber go on from an offset: live, or catching up."""
        if subscriber.paused:
            channel.parked[subscriber] = Behind(offset, channel.transients)
        elif offset == channel.top:
            channel.live.add(subscriber)
        else:
            channel.catching_up[subscriber] = Behind(offset, channel.transients)
            self._catch_up.start(channel)

    def leave(self, subscriber: Subscriber, name: str) -> None:
        """Take a subscriber out of a channel, whether it is being written to or not."""
        channel = self._channels.get(name)
        if channel is None:
            return
        listeners = channel.listeners
        if listeners is not None and listeners.remove(subscriber) and not len(listeners):
            channel.listeners = None
        if not (
            channel.live.remove(subscriber)
            or channel.catching_up.pop(subscriber, None) is not None
            or self._waiting.leave(channel, subscriber)
        ):
            return
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
            self._catch_up.forget(channel)

    def forget_tail(self, name: str) -> None:
        """Drop what memory holds of a channel whose history was removed."""
        channel = self._channels.get(name)
        if channel is not None:
            self._catch_up.forget_removed(channel)

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
                self._catch_up.keep(channel, offset, publication.pub)
                if len(channel.live):
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
        missed = len(channel.parked) + len(channel.catching_up)
        recording = channel.recording
        if publication.ephemeral:
            missed += 0 if recording is None else len(recording)
            if missed:
                self._ephemeral_drops(missed)
            recording = None
        else:
            channel.transients += 1
            if missed:
                self._transient_drops(missed)
        if len(channel.live) or recording is not None:
            push = publication_push(channel.name_json, publication.pub)
            if len(channel.live):
                self._out.append(channel.live, push)
            if recording is not None:
                self._out.append(recording, push)

    def announce_join(self, name: str, client: str, info: bytes) -> None:
        """Tell a channel's listeners that a client came; `info` is its ClientInfo in JSON."""
        self._announce(name, client, info, joins=True)

    def announce_leave(self, name: str, client: str, info: bytes) -> None:
        """Tell a channel's listeners that a client left."""
        self._announce(name, client, info, joins=False)

    def _announce(self, name: str, client: str, info: bytes, joins: bool) -> None:
        channel = self._channels.get(name)
        if channel is None:
            return
        self._backlogs.note(channel, client, joins, info)
        if channel.listeners is not None and len(channel.listeners):
            push = join_push if joins else leave_push
            self._out.append(channel.listeners, push(channel.name_json, info))

    def _fall_behind(self, channel: Channel, top: int) -> None:
        """This process missed publications: everybody catches up from the log."""
        self._out.flush()
        here = channel.here
        for subscriber in channel.live.clear():
            channel.catching_up[subscriber] = here
        channel.top = top
        self._catch_up.forget(channel)
        self._catch_up.start(channel)

    def _begin_epoch(self, channel: Channel, first: Committed) -> None:
        """The channel's log began anew: positions in the old one mean nothing."""
        self._move_to(channel, StreamPosition(first.offset - 1, first.epoch))
        self.deliver_committed((first,))

    def _move_to(self, channel: Channel, position: StreamPosition) -> None:
        """Go on in another epoch; who follows positions learns that its own is lost."""
        self._out.flush()
        channel.epoch = position.epoch
        channel.top = position.offset
        self._catch_up.forget(channel)
        self._lose_position(channel, [*channel.catching_up, *channel.parked, *channel.live])

    def _lose_position(self, channel: Channel, subscribers: Iterable[Subscriber]) -> None:
        """Tell these subscribers, a list of their own: each may leave this channel and others."""
        for subscriber in subscribers:
            if subscriber.position_lost(channel.name):
                self.leave(subscriber, channel.name)  # in case it didn't do so itself
                continue
            # It doesn't follow positions: let it go on with what comes.
            for members in (channel.catching_up, channel.parked):
                if subscriber in members:
                    behind = members[subscriber]
                    members[subscriber] = Behind(channel.top, behind.transients)

    # --- slow readers, and sessions without a socket ----------------------------------------------

    def writing_paused(self, subscriber: Subscriber, names: Collection[str]) -> None:
        """A subscriber's socket is over its high-water mark: nothing more is written to it.

        `names` are the channels that it is in; so below.
        """
        self._waiting.pause(subscriber, names)

    def writing_resumed(self, subscriber: Subscriber, names: Collection[str]) -> None:
        """The socket took what was buffered."""
        self._waiting.go_on(subscriber, names)

    def detach(self, subscriber: Subscriber, names: Collection[str]) -> None:
        """A session's socket is gone, and the session stays where it is.

        Publications without a log are recorded, those of a log are left there. Whoever joins a
        channel without a socket says this right after it.
        """
        self._waiting.detach(subscriber, names)

    def attach(self, subscriber: Subscriber, names: Collection[str]) -> None:
        """It has a socket again, on which its replay was written in this same step."""
        self._waiting.go_on(subscriber, names)

    def position(self, subscriber: Subscriber, name: str) -> StreamPosition | None:
        """Up to where a subscriber has a channel's log; None without a log, or when it isn't in."""
        channel = self._channels.get(name)
        if channel is None or channel.epoch is None:
            return None
        behind = channel.parked.get(subscriber) or channel.catching_up.get(subscriber)
        if behind is not None:
            return StreamPosition(behind.offset, channel.epoch)
        return StreamPosition(channel.top, channel.epoch) if subscriber in channel.live else None

    def take_presence_backlog(self, subscriber: Subscriber, names: Iterable[str]) -> list[bytes]:
        """What a session without a socket would be told by `attach` beside publications of a log.

        Joins and leaves summed up, and gaps. `attach` will begin behind them.
        """
        return self._waiting.take_backlog(subscriber, names)

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
