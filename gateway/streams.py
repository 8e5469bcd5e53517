"""The publication log as this process uses it: group commit on the way in, shared reads out.

Theory of operation, writing
----------------------------
`append` queues a publication. One committer takes whatever is queued and writes it in one
transaction, while the next batch gathers; so the batch grows with the load and the latency does
not. Only when the transaction has committed are the publications handed to the broker and their
publishers answered. The queue is bounded in number and bytes, and so is the time in it.

A batch whose answer was lost is tried again under the same number, which the database accepts only
once (`store.streams`). When its publishers' time is up they get an error, and the number is used
up, so that the lost attempt can't come to life later. Whether it had committed is then found out by
looking: `on_doubt` makes the hub compare positions with the log. Meanwhile the queue goes on taking
publications, and a timer fails those whose time is up.

Theory of operation, reading
----------------------------
Recovery reads aligned pages of `recovery_page` offsets. A page that is being read is shared by all
who ask, and stays for a few seconds: ten thousand clients that come back at once cost one read of
each page.
"""

import asyncio
import datetime
import logging
import secrets
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeVar

from gateway.broker.contract import Committed
from gateway.protocol.actions import Published, Publishing
from gateway.protocol.channels import ChannelOptions
from gateway.protocol.codec import StreamPosition, publication
from gateway.protocol.codes import INTERNAL, TOO_MANY_REQUESTS, UNRECOVERABLE, ErrorCode
from metrics import instruments
from store import streams as log
from store.pool import Database, is_unavailable

logger = logging.getLogger(__name__)

STREAMS_CACHED_MAX: Final = 100_000  # about 300 bytes each
PAGE_LIFETIME: Final = 10.0  # long enough for a storm of reconnects to share it
PAGES_CACHED_MAX_BYTES: Final = 64 * 1024 * 1024
# Of one history reply. Whoever asked for more pages on from the last offset.
HISTORY_MAX_BYTES: Final = 1024 * 1024
RETRY_MIN: Final = 0.05  # seconds between tries while the database is away
RETRY_MAX: Final = 1.0
START_TIMEOUT: Final = 10.0
DRAIN_TIMEOUT: Final = 5.0
# Of the publish timeout, what a batch has at least for its commit, however long it was queued. With
# less, an overloaded database would be asked for commits that are given up while it works on them.
COMMIT_SHARE: Final = 0.2
# Of one batch, beside its number: so that it takes a fraction of a second over a slow line, too.
BATCH_MAX_BYTES: Final = 4 * 1024 * 1024

Done = Callable[[Published | ErrorCode], None]
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class StreamLimits:
    """The settings of the same names."""

    publish_timeout: float = 5.0
    publish_queue_max: int = 50_000
    publish_queue_max_bytes: int = 64 * 1024 * 1024
    publish_batch_max: int = 1000
    idempotency_window: float = 300.0
    recovery_page: int = 256


class _Waiting(NamedTuple):
    """A publication in the queue."""

    publishing: Publishing
    done: Done
    queued_at: float


@dataclass(frozen=True, slots=True)
class LogPage:
    """Publications of a channel in order, as `(offset, Publication in JSON)`.

    They are all that the log holds between the offset asked for and `until`.
    """

    epoch: str
    until: int
    publications: Sequence[tuple[int, bytes]]

    def after(self, offset: int) -> Sequence[tuple[int, bytes]]:
        """The publications above an offset."""
        if not self.publications or self.publications[0][0] > offset:
            return self.publications
        # The page has no holes inside, so the index is arithmetic.
        return self.publications[offset - self.publications[0][0] + 1 :]


class LogUnavailable(Exception):
    """The database didn't answer in time."""


class Streams:
    """The log of this process. `on_committed` gets each batch right after its commit."""

    def __init__(
        self,
        database: Database,
        limits: StreamLimits,
        on_committed: Callable[[Sequence[Committed]], None],
        on_doubt: Callable[[], None],
        node: str,
    ) -> None:
        self._database = database
        self._limits = limits
        self._on_committed = on_committed
        self._on_doubt = on_doubt
        self._node = node
        self._batch = 0
        self._queue: deque[_Waiting] = deque()
        self._queue_bytes = 0
        self._expiry: asyncio.TimerHandle | None = None  # runs while something is queued
        self._wakeup = asyncio.Event()
        self._stopping = False
        self._committer: asyncio.Task[None] | None = None
        # Channel to (stream id, epoch), least recently used first.
        self._streams: OrderedDict[str, tuple[int, str]] = OrderedDict()
        self._pages: OrderedDict[tuple[str, int], tuple[LogPage, float, int]] = OrderedDict()
        self._pages_bytes = 0
        self._reads: dict[object, asyncio.Task[Any]] = {}
        self._commits = instruments.PUBLICATIONS.labels("durable")
        self._read_cache = instruments.LOG_READS.labels("cache")
        self._read_database = instruments.LOG_READS.labels("database")

    # --- writing ----------------------------------------------------------------------------------

    async def start(self) -> None:
        """Register this process with the log and begin to commit."""
        async with self._database.connection(START_TIMEOUT) as connection:
            await log.register_publisher(connection, self._node)
        self._committer = asyncio.create_task(self._run(), name="committer")

    async def stop(self) -> None:
        """Commit what is queued, within a few seconds, and stop."""
        self._stopping = True
        self._wakeup.set()
        if self._committer is not None:
            done, _ = await asyncio.wait([self._committer], timeout=DRAIN_TIMEOUT)
            if not done:
                self._committer.cancel()
                await asyncio.gather(self._committer, return_exceptions=True)
        if self._expiry is not None:
            self._expiry.cancel()
        while self._queue:
            self._answer(self._take(), INTERNAL)
        for task in list(self._reads.values()):
            task.cancel()
        await asyncio.gather(*self._reads.values(), return_exceptions=True)

    @property
    def queued(self) -> int:
        """Publications that wait for a commit."""
        return len(self._queue)

    @property
    def queued_bytes(self) -> int:
        """The size of their payloads."""
        return self._queue_bytes

    def append(self, publishing: Publishing, done: Done) -> None:
        """Commit a publication. `done` is called with its place, once it is durable, or an error.

        `TOO_MANY_REQUESTS` when the queue is full; `INTERNAL` (temporary) when the database didn't
        take it in time, in which case it may still have been stored: that is what idempotency keys
        are for.
        """
        size = len(publishing.data)
        limits = self._limits
        if self._stopping:
            done(INTERNAL)
            return
        if (
            len(self._queue) >= limits.publish_queue_max
            or self._queue_bytes + size > limits.publish_queue_max_bytes
        ):
            done(TOO_MANY_REQUESTS)
            return
        self._queue.append(_Waiting(publishing, done, time.monotonic()))
        self._queue_bytes += size
        if len(self._queue) == 1:
            self._wakeup.set()
            if self._expiry is None:
                self._expire_after(limits.publish_timeout)

    def _take(self) -> _Waiting:
        """Take the oldest from the queue."""
        waiting = self._queue.popleft()
        self._queue_bytes -= len(waiting.publishing.data)
        return waiting

    def _take_batch(self) -> list[_Waiting]:
        batch = [self._take()]
        size = len(batch[0].publishing.data)
        while self._queue and len(batch) < self._limits.publish_batch_max:
            size += len(self._queue[0].publishing.data)
            if size > BATCH_MAX_BYTES:
                break
            batch.append(self._take())
        return batch

    def _expire_after(self, delay: float) -> None:
        self._expiry = asyncio.get_running_loop().call_later(delay, self._expire)

    def _expire(self) -> None:
        """Fail those that waited too long; the oldest are in front."""
        self._expiry = None
        latest = time.monotonic() - self._limits.publish_timeout
        while self._queue and self._queue[0].queued_at <= latest:
            self._answer(self._take(), INTERNAL)
        if self._queue:
            self._expire_after(self._queue[0].queued_at - latest)

    async def _run(self) -> None:
        while True:
            if not self._queue:
                if self._stopping:
                    return
                self._wakeup.clear()
                await self._wakeup.wait()
                continue
            batch = self._take_batch()
            try:
                may_go_on = await self._commit(batch)
            except asyncio.CancelledError:
                self._give_up(batch)
                raise
            if not may_go_on:
                return

    async def _commit(self, batch: list[_Waiting]) -> bool:
        """Write one batch and tell everybody, trying for as long as its publishers have time.

        False when there can be no further batch, because this one is in doubt at the end.
        """
        number = self._batch + 1
        timeout = self._limits.publish_timeout
        deadline = max(batch[0].queued_at + timeout, time.monotonic() + timeout * COMMIT_SHARE)
        published_at = datetime.datetime.now(datetime.UTC)
        delay = RETRY_MIN
        doubt = False
        places: list[log.Placed | None] = []
        while True:
            try:
                async with self._database.connection(deadline - time.monotonic()) as connection:
                    places = await self._write(connection, number, batch, published_at)
                break
            except Exception as error:
                doubt = True
                if not is_unavailable(error):
                    # A mistake of ours, not the database's: the batch would fail for ever.
                    logger.exception("could not commit a batch of %d", len(batch))
                    deadline = 0.0
            instruments.COMMIT_RETRIES.inc()
            if time.monotonic() + delay >= deadline:
                self._give_up(batch)
                if not await self._use_up(number):
                    return False
                self._batch = number
                self._on_doubt()
                return True
            await asyncio.sleep(delay)
            delay = min(delay * 2, RETRY_MAX)
        self._batch = number
        self._announce(batch, places, published_at)
        if doubt:
            self._on_doubt()
        return True

    def _give_up(self, batch: list[_Waiting]) -> None:
        """Answer everybody in a batch with an error, if that hasn't been done yet."""
        for waiting in batch:
            self._answer(waiting, INTERNAL)
        batch.clear()

    def _answer(self, waiting: _Waiting, outcome: Published | ErrorCode) -> None:
        try:
            waiting.done(outcome)
        except Exception:
            logger.exception("could not answer a publisher")

    async def _use_up(self, number: int) -> bool:
        """Make sure that a batch which was given up can never be written, however long it takes.

        False when stopping: then there is no next batch, and the last one may end as it likes.
        """
        delay = RETRY_MIN
        logger.warning("gave a batch up; waiting for the database")
        while not self._stopping:
            try:
                async with self._database.connection(self._limits.publish_timeout) as connection:
                    await log.use_up(connection, self._node, number)
                logger.info("the database answers again")
                return True
            except Exception as error:
                if not is_unavailable(error):
                    logger.exception("could not fence a batch")
            await asyncio.sleep(delay)
            delay = min(delay * 2, RETRY_MAX)
        return False

    async def _write(
        self,
        connection: log.Connection,
        number: int,
        batch: Sequence[_Waiting],
        published_at: datetime.datetime,
    ) -> list[log.Placed | None]:
        keys_since = published_at - datetime.timedelta(seconds=self._limits.idempotency_window)
        await self._open_streams(connection, batch)
        entries = [
            log.Entry(
                self._streams[waiting.publishing.channel][0],
                waiting.publishing.data,
                waiting.publishing.info,
                waiting.publishing.tags,
                waiting.publishing.idempotency_key,
            )
            for waiting in batch
        ]
        try:
            return await log.commit(
                connection, self._node, number, entries, published_at, keys_since
            )
        except log.Fenced:
            return await log.outcome(connection, self._node, number, entries)

    async def _open_streams(self, connection: log.Connection, batch: Sequence[_Waiting]) -> None:
        """Know the stream of every channel in the batch."""
        streams = self._streams
        unknown = {}
        for waiting in batch:
            channel = waiting.publishing.channel
            if channel in streams:
                streams.move_to_end(channel)
            else:
                unknown[channel] = new_epoch()
        if unknown:
            for stream in (await log.open_streams(connection, unknown)).values():
                self._remember(stream)

    def _remember(self, stream: log.Stream) -> None:
        streams = self._streams
        streams[stream.channel] = (stream.id, stream.epoch)
        streams.move_to_end(stream.channel)
        # Never one of the batch in hand: there are far fewer, and they are the last ones used.
        while len(streams) > STREAMS_CACHED_MAX:
            streams.popitem(last=False)

    def _announce(
        self,
        batch: Sequence[_Waiting],
        places: Sequence[log.Placed | None],
        published_at: datetime.datetime,
    ) -> None:
        """Hand a committed batch to the subscribers and answer its publishers."""
        committed_at = time.monotonic()
        time_ms = int(published_at.timestamp() * 1000)
        fresh = []
        vanished = []
        for waiting, place in zip(batch, places, strict=True):
            publishing = waiting.publishing
            if place is None:
                # Its idle stream was forgotten meanwhile: it gets a new one, in the next batch.
                self._streams.pop(publishing.channel, None)
                vanished.append(waiting)
            elif not place.duplicate:
                pub = publication(
                    publishing.data, publishing.info, publishing.tags, place.offset, time_ms
                )
                fresh.append(Committed(publishing.channel, place.offset, place.epoch, pub))
        instruments.BATCH_SIZE.observe(len(batch))
        instruments.PUBLISH_TO_COMMIT.observe(committed_at - batch[0].queued_at)
        self._commits.inc(len(fresh))
        try:
            self._on_committed(fresh)
        except Exception:
            # The log has them: who missed them here catches up when positions are compared.
            logger.exception("could not deliver a committed batch")
            self._on_doubt()
        for waiting, place in zip(batch, places, strict=True):
            if place is not None:
                self._answer(waiting, Published(place.offset, place.epoch, place.duplicate))
        for waiting in reversed(vanished):
            self._queue.appendleft(waiting)
            self._queue_bytes += len(waiting.publishing.data)

    # --- reading ----------------------------------------------------------------------------------

    async def position(self, channel: str) -> StreamPosition:
        """The top of a channel's log, which is begun if there is none.

        Raises `LogUnavailable`.
        """

        async def read(connection: log.Connection) -> StreamPosition:
            self._read_database.inc()
            stream = (await log.open_streams(connection, {channel: new_epoch()}))[channel]
            self._remember(stream)
            return StreamPosition(stream.top, stream.epoch)

        return await self._shared(("position", channel), read)

    async def positions(self, channels: Sequence[str]) -> dict[str, StreamPosition]:
        """The tops of these channels; those without a log are missing. Raises `LogUnavailable`."""

        async def read(connection: log.Connection) -> dict[str, StreamPosition]:
            found = await log.find_streams(connection, channels)
            return {
                channel: StreamPosition(stream.top, stream.epoch)
                for channel, stream in found.items()
            }

        return await self._query(read)

    def cached_page(self, channel: str, after: int) -> LogPage | None:
        """The page behind an offset if it was read lately, as `prepare` has seen to."""
        cached = self._pages.get((channel, after // self._limits.recovery_page))
        return None if cached is None else cached[0]

    async def page(
        self, channel: str, options: ChannelOptions, after: int, top: StreamPosition
    ) -> LogPage | None:
        """A stretch of the log from `after` or before it up to `top` or to the end of a page.

        The first publication isn't `after + 1` when the log no longer has that one. None when the
        channel has no log at all; a page of another epoch when its log began anew. Raises
        `LogUnavailable`.
        """
        size = self._limits.recovery_page
        index = after // size
        needed = min((index + 1) * size, top.offset)

        async def read(connection: log.Connection) -> LogPage | None:
            self._read_database.inc()
            page = await self._read_page(connection, channel, options, index)
            if page is not None:
                self._keep_page((channel, index), page)
            return page

        # A read that was under way may have begun before the last commits: then it takes another.
        page: LogPage | None = None
        for _ in range(2):
            cached = self._pages.get((channel, index))
            if (
                cached is not None
                and cached[0].until >= needed
                and cached[0].epoch == top.epoch
                and time.monotonic() < cached[1]
            ):
                self._read_cache.inc()
                return cached[0]
            page = await self._shared(("page", channel, index), read)
            if page is None or page.until >= needed:
                return page
        return page

    async def _read_page(
        self, connection: log.Connection, channel: str, options: ChannelOptions, index: int
    ) -> LogPage | None:
        size = self._limits.recovery_page
        found = await log.read_page(
            connection, channel, index * size, (index + 1) * size, _not_before(options)
        )
        if found is None:
            return None
        above = found.top - options.history_size
        publications = [(row.offset, _encode(row)) for row in found.rows if row.offset > above]
        # Rows expire from the oldest on, so a hole can only be in front; a page must have none.
        for position in range(len(publications) - 1, 0, -1):
            if publications[position][0] != publications[position - 1][0] + 1:
                publications = publications[position:]
                break
        return LogPage(found.epoch, min((index + 1) * size, found.top), publications)

    def _keep_page(self, key: tuple[str, int], page: LogPage) -> None:
        size = 200 + sum(len(pub) for _, pub in page.publications)
        replaced = self._pages.pop(key, None)
        if replaced is not None:
            self._pages_bytes -= replaced[2]
        now = time.monotonic()
        self._pages[key] = (page, now + PAGE_LIFETIME, size)
        self._pages_bytes += size
        while self._pages and (
            self._pages_bytes > PAGES_CACHED_MAX_BYTES or next(iter(self._pages.values()))[1] < now
        ):
            _, (_, _, freed) = self._pages.popitem(last=False)
            self._pages_bytes -= freed

    async def history(
        self,
        channel: str,
        options: ChannelOptions,
        limit: int,
        since: StreamPosition | None = None,
        reverse: bool = False,
    ) -> tuple[list[bytes], StreamPosition] | ErrorCode:
        """Publications in JSON, and the top of the channel.

        `since` excludes its own offset, going up or, reversed, down. `UNRECOVERABLE` when its epoch
        is not the channel's. Raises `LogUnavailable`.
        """

        async def read(
            connection: log.Connection,
        ) -> tuple[list[bytes], StreamPosition] | ErrorCode:
            stream = (await log.open_streams(connection, {channel: new_epoch()}))[channel]
            self._remember(stream)
            if since is not None and since.epoch and since.epoch != stream.epoch:
                return UNRECOVERABLE
            top = StreamPosition(stream.top, stream.epoch)
            if limit == 0:
                return [], top
            above = max(stream.floor, stream.top - options.history_size)
            below = stream.top + 1
            if since is not None and reverse:
                below = min(below, since.offset)
            elif since is not None:
                above = max(above, since.offset)
            rows = await log.read_history(
                connection,
                stream,
                above=above,
                below=below,
                not_before=_not_before(options),
                limit=limit,
                reverse=reverse,
            )
            return _encode_up_to(rows, HISTORY_MAX_BYTES), top

        self._read_database.inc()
        return await self._query(read)

    async def clear(self, channel: str) -> None:
        """Remove the history of a channel; offsets go on. Raises `LogUnavailable`."""

        async def write(connection: log.Connection) -> None:
            await log.clear(connection, channel)

        await self._query(write)
        for key in [key for key in self._pages if key[0] == channel]:
            self._pages_bytes -= self._pages.pop(key)[2]

    async def _shared(
        self, key: object, read: Callable[[log.Connection], Awaitable[Result]]
    ) -> Result:
        """Run a read, or wait for the same one that is under way.

        Who stops waiting doesn't end it for the others.
        """
        task: asyncio.Task[Any] | None = self._reads.get(key)
        if task is None:
            task = asyncio.create_task(self._query(read))
            self._reads[key] = task
            task.add_done_callback(lambda _: self._reads.pop(key, None))
        result: Result = await asyncio.shield(task)
        return result

    async def _query(self, read: Callable[[log.Connection], Awaitable[Result]]) -> Result:
        """Run a read on a pooled connection, trying again while the publish timeout lasts."""
        deadline = time.monotonic() + self._limits.publish_timeout
        delay = RETRY_MIN
        while True:
            try:
                async with self._database.connection(deadline - time.monotonic()) as connection:
                    return await read(connection)
            except Exception as error:
                if not is_unavailable(error):
                    raise
                if time.monotonic() + delay >= deadline:
                    raise LogUnavailable from error
            await asyncio.sleep(delay)
            delay = min(delay * 2, RETRY_MAX)


def new_epoch() -> str:
    """A name for a channel's next life: short, and never the same again."""
    return secrets.token_urlsafe(6)


def _not_before(options: ChannelOptions) -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=options.history_ttl)


def _encode_up_to(rows: Sequence[log.Row], size_max: int) -> list[bytes]:
    """Publications in JSON up to a size, one at least."""
    encoded: list[bytes] = []
    size = 0
    for row in rows:
        pub = _encode(row)
        size += len(pub)
        if size > size_max and encoded:
            break
        encoded.append(pub)
    return encoded


def _encode(row: log.Row) -> bytes:
    time_ms = int(row.published_at.timestamp() * 1000)
    return publication(row.data, row.info, row.tags, row.offset, time_ms)
