"""Removes what is too old from the publication log, in small steps that never lock for long."""

import asyncio
import datetime
import logging
from dataclasses import dataclass
from typing import Final

from gateway.protocol.channels import Namespaces
from store import streams as log
from store.pool import Database, is_unavailable

logger = logging.getLogger(__name__)

STREAMS_AT_ONCE: Final = 200
ROWS_AT_ONCE: Final = 500  # of one stream in one statement: some ten milliseconds at most
FORGET_AT_ONCE: Final = 1000
PAUSE: Final = 0.01  # between two statements, so that commits go first
EMPTY_STREAM_TTL: Final = 86_400.0  # a stream nobody ever published to
PUBLISHER_TTL: Final = 7 * 86_400.0


@dataclass(frozen=True, slots=True)
class Swept:
    """What one round removed."""

    publications: int = 0
    streams: int = 0
    keys: int = 0


class Janitor:
    """Applies `history_size`, `history_ttl`, `stream_ttl` and `idempotency_window` to the log.

    Reads respect the first two by themselves, so this is about space, and may be late.
    """

    def __init__(
        self,
        database: Database,
        namespaces: Namespaces,
        node: str,
        stream_ttl: float,
        idempotency_window: float,
    ) -> None:
        self._database = database
        self._namespaces = namespaces
        self._node = node
        self._stream_ttl = stream_ttl
        self._window = idempotency_window

    async def run(self, interval: float) -> None:
        """Sweep every `interval` seconds until cancelled."""
        while True:
            await asyncio.sleep(interval)
            try:
                swept = await self.sweep()
            except Exception as error:
                if not is_unavailable(error):
                    logger.exception("could not sweep the log")
            else:
                if swept != Swept():
                    logger.debug("swept the log: %s", swept)

    async def sweep(self) -> Swept:
        """Remove everything that is too old now."""
        publications = 0
        after_id = 0
        while True:
            async with self._database.pool.acquire() as connection:
                streams = await log.trimmable(connection, after_id, STREAMS_AT_ONCE)
                if not streams:
                    break
                publications += await self._trim(connection, streams)
            after_id = streams[-1].id
        return Swept(publications, await self._forget_streams(), await self._forget_keys())

    async def _trim(self, connection: log.Connection, streams: list[log.Stream]) -> int:
        now = datetime.datetime.now(datetime.UTC)
        keep = {}
        for stream in streams:
            options = self._namespaces.options(stream.channel)
            size, ttl = (options.history_size, options.history_ttl) if options else (0, 0.0)
            keep_above = max(stream.floor, stream.top - size)
            keep[stream.id] = (stream.id, keep_above, now - datetime.timedelta(seconds=ttl))
        deleted = 0
        while keep:
            counts = await log.trim(connection, list(keep.values()), ROWS_AT_ONCE)
            deleted += sum(counts.values())
            keep = {id_: keep[id_] for id_, count in counts.items() if count >= ROWS_AT_ONCE}
            await asyncio.sleep(PAUSE)
        return deleted

    async def _forget_streams(self) -> int:
        now = datetime.datetime.now(datetime.UTC)
        idle_since = now - datetime.timedelta(seconds=self._stream_ttl)
        empty_since = now - datetime.timedelta(seconds=min(EMPTY_STREAM_TTL, self._stream_ttl))
        forgotten = 0
        while True:
            async with self._database.pool.acquire() as connection:
                count = await log.forget_streams(
                    connection, idle_since, empty_since, FORGET_AT_ONCE
                )
            forgotten += count
            if count < FORGET_AT_ONCE:
                return forgotten
            await asyncio.sleep(PAUSE)

    async def _forget_keys(self) -> int:
        now = datetime.datetime.now(datetime.UTC)
        forgotten = 0
        async with self._database.pool.acquire() as connection:
            await log.touch_publisher(connection, self._node)
            await log.forget_publishers(connection, now - datetime.timedelta(seconds=PUBLISHER_TTL))
        while True:
            async with self._database.pool.acquire() as connection:
                count = await log.forget_keys(
                    connection, now - datetime.timedelta(seconds=self._window), FORGET_AT_ONCE
                )
            forgotten += count
            if count < FORGET_AT_ONCE:
                return forgotten
            await asyncio.sleep(PAUSE)
