"""Sessions from one process to the next: what is left at a stop, and how it is taken up.

Theory of operation
-------------------
A session that waits for its client is data: counts, the tail, who the client is, and for each
channel its options and the position up to which it has been given everything. A stopping process
writes that down when nothing can change it any more; the next process in the same place reads it
before it lets anybody in, puts each session back into its channels, and so a resumption finds it as
if nothing had happened: nobody left, nobody joined, and what was published meanwhile is in the log.

Times are written as seconds that remained at `saved_at`. A session is taken once, together with
removing it: after a crash its counts could be behind what its client has seen.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Container, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache, partial
from typing import Final

import msgspec
from msgspec import Struct

from gateway.connection import Services
from gateway.connections import ConnectionManager
from gateway.protocol.backoff import DeclaredBackoff
from gateway.protocol.channels import ChannelOptions
from gateway.protocol.codec import StreamPosition, client_info
from gateway.protocol.codes import ErrorCode
from gateway.protocol.session import NEVER, SavedSession
from gateway.protocol.subscription import Subscription, SubscriptionState
from gateway.resume_tokens import SessionId
from gateway.session_connection import SessionConnection
from gateway.sessions import BACKOFFS_REMEMBERED
from metrics import instruments
from store import sessions as table
from store.pool import Database, is_unavailable

logger = logging.getLogger(__name__)

AT_ONCE: Final = 100  # sessions put back between two looks at everything else
# Of a node that doesn't come back, seconds after they have expired: a clock may be behind.
LEFT_FOR: Final = 3600.0
FORMAT: Final = 1  # of `SavedConnection`; a process takes up its own format only


class SavedSubscription(Struct, frozen=True):
    """One channel of a saved client. `lifetime` in seconds, None for ever."""

    channel: str
    server_side: bool
    presence: bool
    join_leave: bool
    push_join_leave: bool
    recoverable: bool
    positioned: bool
    chan_info: bytes | None
    lifetime: float | None
    position: StreamPosition | None


class SavedConnection(Struct, frozen=True):
    """A session with its client. Times in seconds from the moment of saving."""

    format: int
    session: SavedSession
    backoff: DeclaredBackoff
    remaining: float
    slot: float | None
    address: str
    client: str
    user: str
    info: bytes | None
    lifetime: float | None
    subscriptions: list[SavedSubscription]


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(SavedConnection).decode


class SavedSessions:
    """What this node leaves in the database, and finds there."""

    def __init__(
        self, database: Database, services: Services, manager: ConnectionManager, node: str
    ) -> None:
        self._database = database
        self._services = services
        self._manager = manager
        self._node = node

    # --- leaving ----------------------------------------------------------------------------------

    async def save(self, connections: Iterable[SessionConnection], timeout: float) -> int:
        """Leave detached sessions for the next process in so many seconds; returns how many.

        Without a database none: their clients recover by their positions then.
        """
        deadline = self._services.loop.time() + timeout
        saved_at = datetime.now(UTC)
        now = self._services.loop.time()
        rows = []
        for connection in connections:
            for push in self._services.hub.take_presence_backlog(
                connection, connection.live_channels()
            ):
                connection.send(push)
            connection.flush()
            expires_at = saved_at + timedelta(seconds=connection.session.expires_at - now)
            state = _encode(self._saved(connection, now))
            rows.append(table.SavedRow(connection.session_id, saved_at, expires_at, state))
            if len(rows) % AT_ONCE == 0:
                await asyncio.sleep(0)
        try:
            left = deadline - self._services.loop.time()
            async with self._database.connection(left) as database:
                await table.save(database, self._node, rows)
        except Exception as error:
            if not is_unavailable(error) and not isinstance(error, TimeoutError):
                raise
            logger.error("could not save %d sessions: %s", len(rows), error)
            return 0
        return len(rows)

    def _saved(self, connection: SessionConnection, now: float) -> SavedConnection:
        client = connection.client
        return SavedConnection(
            format=FORMAT,
            session=connection.session.save(),
            backoff=connection.backoff,
            remaining=connection.session.expires_at - now,
            slot=None if connection.slot is None else connection.slot - now,
            address=connection.address,
            client=client.id,
            user=client.user,
            info=client.info,
            lifetime=_remaining(client.expires_at, now),
            subscriptions=[
                SavedSubscription(
                    channel=subscription.channel,
                    server_side=subscription.server_side,
                    presence=subscription.presence,
                    join_leave=subscription.join_leave,
                    push_join_leave=subscription.push_join_leave,
                    recoverable=subscription.recoverable,
                    positioned=subscription.positioned,
                    chan_info=subscription.chan_info,
                    lifetime=_remaining(subscription.expires_at, now),
                    position=self._services.hub.position(connection, subscription.channel),
                )
                for subscription in client.subscriptions.values()
                if subscription.state is SubscriptionState.LIVE
            ],
        )

    # --- taking up --------------------------------------------------------------------------------

    async def take_up(self) -> int:
        """Put back what the former process left; returns how many sessions can be resumed.

        Those that can't be have ended: who shares a channel with them is told that they left.
        """
        async with self._database.pool.acquire() as database:
            long_ago = datetime.now(UTC) - timedelta(seconds=LEFT_FOR)
            await table.forget_expired(database, long_ago)
            rows = await table.take(database, self._node)
        taken = 0
        endings: list[Callable[[], None]] = []
        for start in range(0, len(rows), AT_ONCE):
            saved = [
                (row, state)
                for row in rows[start : start + AT_ONCE]
                if (state := _read(row.state)) is not None
            ]
            unknown = await self._prepare(
                {sub.channel for _, state in saved for sub in state.subscriptions}
            )
            for row, state in saved:
                elapsed = max(0.0, time.time() - row.saved_at.timestamp())
                ending = self._restore(row.id, state, elapsed, unknown)
                if ending is None:
                    taken += 1
                else:
                    endings.append(ending)
        for end in endings:  # now that everybody is here who is to hear of it
            end()
        instruments.SESSIONS_TAKEN_UP.inc(taken)
        return taken

    async def _prepare(self, names: Iterable[str]) -> set[str]:
        """Have the positions of all channels at hand; returns those of which it wasn't possible."""
        loop = self._services.loop
        unknown: set[str] = set()
        waiting: list[asyncio.Future[None]] = []
        for name in names:
            options = self._services.rules.channels.resolve(name)
            if isinstance(options, ChannelOptions):
                future = loop.create_future()
                waiting.append(future)
                self._services.hub.prepare(name, options, None, _settle(future, name, unknown))
        await asyncio.gather(*waiting)
        await asyncio.sleep(0)  # everything may have been at hand, and others want their turn
        return unknown

    def _restore(
        self, session_id: bytes, saved: SavedConnection, elapsed: float, unknown: Container[str]
    ) -> Callable[[], None] | None:
        """Put one session back, `elapsed` seconds after it was saved.

        When it has expired, or one of its channels isn't what it was, returns what ends it.
        """
        services = self._services
        now = services.loop.time() - elapsed  # the moment of saving
        subscriptions = None
        if elapsed < saved.remaining:
            subscriptions = self._subscriptions(saved.subscriptions, now, unknown)
        if subscriptions is None:
            return partial(self._announce_leaves, saved)
        connection = SessionConnection.restored(
            services,
            self._manager,
            saved.client,
            saved.address,
            SessionId(session_id),
            _shared(saved.backoff),
            saved.session,
            expires_at=now + saved.remaining,
            slot=None if saved.slot is None else now + saved.slot,
        )
        connection.client.restore(
            saved.user, saved.info, _moment(saved.lifetime, now), subscriptions
        )
        for subscription, position in zip(
            subscriptions, (sub.position for sub in saved.subscriptions), strict=True
        ):
            if not connection.rejoin(subscription, position):
                return connection.abandon
        self._manager.take_up(connection)
        services.wheel.add(connection)
        return None

    def _announce_leaves(self, saved: SavedConnection) -> None:
        for item in saved.subscriptions:
            if item.join_leave:
                info = client_info(saved.user, saved.client, saved.info, item.chan_info)
                self._services.hub.announce_leave(item.channel, saved.client, info)

    def _subscriptions(
        self, saved: Sequence[SavedSubscription], now: float, unknown: Container[str]
    ) -> list[Subscription] | None:
        subscriptions = []
        for item in saved:
            options = self._services.rules.channels.resolve(item.channel)
            if isinstance(options, ErrorCode) or item.channel in unknown:
                return None  # the namespace is gone, or nobody knows where the channel is
            if options.keeps_history is (item.position is None):
                return None  # it keeps history now, or no longer
            subscription = Subscription(item.channel, options)
            subscription.state = SubscriptionState.LIVE
            subscription.server_side = item.server_side
            subscription.presence = item.presence
            subscription.join_leave = item.join_leave
            subscription.push_join_leave = item.push_join_leave
            subscription.recoverable = item.recoverable
            subscription.positioned = item.positioned
            subscription.chan_info = item.chan_info
            subscription.expires_at = _moment(item.lifetime, now)
            subscriptions.append(subscription)
        return subscriptions


@lru_cache(BACKOFFS_REMEMBERED)
def _shared(backoff: DeclaredBackoff) -> DeclaredBackoff:
    """One object for all who declare the same, as among those that were not saved."""
    return backoff


def _read(state: bytes) -> SavedConnection | None:
    try:
        saved = _decode(state)
    except msgspec.MsgspecError:
        return None  # another version's
    return saved if saved.format == FORMAT else None


def _settle(
    future: asyncio.Future[None], name: str, unknown: set[str]
) -> Callable[[ErrorCode | None], None]:
    """Note that a channel is prepared, or could not be read."""

    def answer(error: ErrorCode | None) -> None:
        if error is not None:
            unknown.add(name)
        if not future.done():
            future.set_result(None)

    return answer


def _remaining(moment: float, now: float) -> float | None:
    return None if moment == NEVER else moment - now


def _moment(lifetime: float | None, now: float) -> float:
    return NEVER if lifetime is None else now + lifetime
