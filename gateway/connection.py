"""One client's connection: translates between its link, its protocol state and the hub.

Nothing is decided here; what a command means is `protocol.client`'s, who gets what is the hub's.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Protocol

from gateway.acceptance import AcceptControl, Arrival
from gateway.auth import TokenVerifier
from gateway.hub import Hub
from gateway.link import Link
from gateway.presence import Line, Presence
from gateway.protocol import codec
from gateway.protocol.actions import (
    ClientRules,
    ConnectGrant,
    Publishing,
    SubscribeGrant,
)
from gateway.protocol.channels import ChannelOptions
from gateway.protocol.claims import (
    ConnectClaims,
    KeyMissing,
    SubscribeClaims,
    TokenError,
    TokenInvalid,
)
from gateway.protocol.client import Client
from gateway.protocol.codec import Method, StreamPosition
from gateway.protocol.codes import (
    INAPPROPRIATE_PROTOCOL,
    INTERNAL,
    SERVER_ERROR,
    SLOW,
    UNSUBSCRIBED_INSUFFICIENT,
    Disconnect,
    ErrorCode,
)
from gateway.protocol.health import DeadlineBounds
from gateway.protocol.subscription import NEVER, Joined, Subscription, SubscriptionState
from gateway.publisher import Publisher
from gateway.rpc import Caller, Procedures, RPCError
from gateway.streams import LogUnavailable, Streams
from gateway.wheel import Wheel
from metrics import instruments

logger = logging.getLogger(__name__)

# What may wait in memory for one client that doesn't read; over it the verdict is immediate. Twice
# what a client may ask for at once: 16 histories of 1 MiB.
WRITE_BUFFER_MAX_BYTES: Final = 32 * 1024 * 1024
# What is gathered for one frame before it is written.
OUTBOX_MAX_BYTES: Final = 1024 * 1024

_COMMANDS: Final = {method: instruments.COMMANDS.labels(method) for method in codec.METHODS}


@dataclass(slots=True)
class Services:
    """What every connection of this process shares."""

    loop: asyncio.AbstractEventLoop
    rules: ClientRules
    hub: Hub
    streams: Streams
    publisher: Publisher
    presence: Presence
    verifier: TokenVerifier
    procedures: Procedures
    wheel: Wheel
    acceptance: AcceptControl
    close_timeout: float
    slow_reader_timeout: float
    deadline_bounds: DeadlineBounds = field(default_factory=DeadlineBounds)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run something a connection waits for."""
        task = self.loop.create_task(coroutine)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def stop(self) -> None:
        """End what is still running."""
        for task in list(self.tasks):
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


class Registry(Protocol):
    """Who keeps all connections, as one of them sees it."""

    def register(self, connection: "Connection") -> Disconnect | None:
        """Its user is known now; refuses one too many."""

    def forget(self, connection: "Connection") -> None:
        """Its client is gone for good."""

    def socket_lost(self, link: Link, code: int) -> None:
        """A socket is closed; `code` is the close code that ended it."""

    def retry_ms(self, disconnect: Disconnect, kind: Arrival = Arrival.CONNECT) -> int | None:
        """When this client should come back, if it should."""


class Connection:
    """The owner of a link, the world of a client, a subscriber of the hub. One object for all
    three, because there are ten thousand of it."""

    __slots__ = (
        "_choked",
        "_flush_due",
        "_link",
        "_outbox",
        "_outbox_bytes",
        "_registry",
        "_services",
        "_slow_at",
        "address",
        "client",
        "registered",
        "wheel_tick",
    )

    def __init__(
        self,
        services: Services,
        registry: Registry,
        link: Link,
        client_id: str,
        address: str,
        native_ping: bool,
        session: bool = False,
    ) -> None:
        self._services = services
        self._registry = registry
        self._link = link
        self.address = address
        self.registered = False  # whether its user is known; written by the registry
        self.wheel_tick = 0
        self._outbox: list[bytes] | None = None
        self._outbox_bytes = 0
        self._choked = False  # over WRITE_BUFFER_MAX_BYTES: nothing more is sent
        self._flush_due = False
        self._slow_at = NEVER
        now = services.loop.time()
        self.client = Client(client_id, services.rules, self, now, native_ping, session)
        link.use(self)
        services.wheel.add(self)

    @property
    def link(self) -> Link:
        """The socket, `NO_LINK` when a session waits for its client."""
        return self._link

    @property
    def line(self) -> Line | None:
        """What is known of its line's health: nothing without a session."""
        return None

    # --- the link's owner -------------------------------------------------------------------------

    def text_received(self, text: str) -> None:
        """See `link.Owner`."""
        self._flush_due = True  # by the end of this call
        try:
            self.client.receive(text, self._services.loop.time())
        except Exception:
            logger.exception("a command failed", extra={"client": self.client.id})
            self.disconnect(SERVER_ERROR)
        finally:
            self._flush_due = False
        self._settle()

    def _settle(self) -> None:
        """After the client has had a call: send what it says, hold its deadline."""
        self.flush()
        if self.client.deadline_moved:
            self.client.deadline_moved = False
            self._services.wheel.add(self)

    def binary_received(self) -> None:
        """See `link.Owner`."""
        self.disconnect(INAPPROPRIATE_PROTOCOL)

    def native_pong(self) -> None:
        """See `link.Owner`."""
        self.client.native_pong()

    def writing_paused(self) -> None:
        """Read nothing either from who doesn't read: what it asks for would only pile up."""
        instruments.WRITE_PAUSES.inc()
        instruments.PAUSED_CONNECTIONS.inc()
        self._slow_at = self._services.loop.time() + self._services.slow_reader_timeout
        self._services.wheel.add(self)
        if not self._link.closing:
            self._link.transport.pause_reading()
        self._services.hub.writing_paused(self, self.live_channels())

    def writing_resumed(self) -> None:
        """See `link.Owner`."""
        instruments.PAUSED_CONNECTIONS.dec()
        self._slow_at = NEVER
        if self._link.closing:
            return
        self._link.transport.resume_reading()
        self.client.excuse_pong(self._services.loop.time())
        self._services.wheel.add(self)
        self._services.hub.writing_resumed(self, self.live_channels())

    def link_closing(self) -> None:
        """Leave everything as soon as nothing can be sent any more."""
        self._outbox = None
        self.client.closed()
        if not self._link.lost:
            if self._link.paused:
                self._link.transport.resume_reading()  # or its answer would never be seen
            self._link.close_due = self._services.loop.time() + self._services.close_timeout
            self._services.wheel.add(self)

    def link_lost(self, code: int) -> None:
        """See `link.Owner`."""
        self._no_longer_slow()
        self._registry.socket_lost(self._link, code)
        self._registry.forget(self)

    def _no_longer_slow(self) -> None:
        if self._slow_at != NEVER:
            self._slow_at = NEVER
            instruments.PAUSED_CONNECTIONS.dec()

    def live_channels(self) -> dict[str, bool]:
        """The channels it is in, and whether it listens to joins and leaves there."""
        return {
            channel: subscription.push_join_leave
            for channel, subscription in self.client.subscriptions.items()
            if subscription.state is SubscriptionState.LIVE
        }

    # --- the hub's subscriber ---------------------------------------------------------------------

    @property
    def sink(self) -> Callable[[bytes], None]:
        """See `hub.Subscriber`."""
        return self._link.sink

    @property
    def record(self) -> Callable[[bytes, int], None] | None:
        """See `hub.Subscriber`."""
        return None

    @property
    def deflate(self) -> bool:
        """See `hub.Subscriber`."""
        return self._link.deflate

    @property
    def paused(self) -> bool:
        """See `hub.Subscriber`."""
        return self._link.paused

    def position_lost(self, channel: str) -> bool:
        """See `hub.Subscriber`."""
        return self.client.lose_position(channel, UNSUBSCRIBED_INSUFFICIENT)

    # --- the wheel's ------------------------------------------------------------------------------

    def next_deadline(self) -> float:
        """See `wheel.Timed`."""
        link = self._link
        if link.lost:
            return NEVER
        if link.closing:
            return link.close_due
        # What isn't read can't be answered: while paused, only the verdict on slowness counts.
        return min(self._slow_at, self.client.next_deadline()) if not link.paused else self._slow_at

    def tick(self, now: float) -> None:
        """See `wheel.Timed`."""
        link = self._link
        if link.closing:
            if now >= link.close_due:
                link.abort()
        elif link.paused:
            if now >= self._slow_at:
                self.disconnect(SLOW)
        else:
            self.client.tick(now)
            self.flush()

    def excuse(self, seconds: float) -> None:
        """See `wheel.Timed`."""
        self.client.excuse(seconds)
        self._slow_at += seconds
        self._link.close_due += seconds

    # --- the client's world -----------------------------------------------------------------------

    def send(self, payload: bytes) -> None:
        """See `actions.Actions`. Payloads of one loop turn share a frame (A.1.2)."""
        if self._outbox is None:
            if not self._takes_output():
                return
            self._outbox = [payload]
        else:
            self._outbox.append(payload)
        self._outbox_bytes += len(payload)
        if self._outbox_bytes > OUTBOX_MAX_BYTES:
            self.flush()
        elif not self._flush_due:
            self._flush_due = True
            self._services.loop.call_soon(self._flush_later)

    def _flush_later(self) -> None:
        self._flush_due = False
        self.flush()

    def flush(self) -> None:
        """Write what is queued for this client."""
        outbox = self._outbox
        if outbox is not None:
            self._outbox = None
            self._outbox_bytes = 0
            self._write(outbox[0] if len(outbox) == 1 else b"\n".join(outbox))
            link = self._link
            if (
                link.paused
                and not link.closing
                and link.transport.get_write_buffer_size() > WRITE_BUFFER_MAX_BYTES
            ):
                # Not from inside whatever the client is doing; until then it gets nothing more.
                self._choked = True
                self._services.loop.call_soon(self._end_choked, link)

    def _end_choked(self, link: Link) -> None:
        if self._link is link:  # or else the session has another one by now
            self.disconnect(SLOW)

    def _takes_output(self) -> bool:
        return not self._choked and not self._link.closing

    def _write(self, payload: bytes) -> None:
        """Send one text message."""
        self._link.send(payload)

    def ping(self) -> None:
        """See `actions.Actions`."""
        if self.client.native_ping:
            self._link.ping()
        else:
            self._link.send(codec.PING)

    def close(self, disconnect: Disconnect, detail: str) -> None:
        """See `actions.Actions`."""
        logger.debug(
            "closing",
            extra={"client": self.client.id, "code": disconnect.code, "detail": detail},
        )
        self.flush()
        self._link.close(disconnect, self._registry.retry_ms(disconnect))

    def disconnect(self, disconnect: Disconnect) -> None:
        """End the connection from the server's side."""
        if not self._link.closing:
            self.client.closed()
            self.close(disconnect, "")

    def disconnect_with(self, disconnect: Disconnect, retry_ms: int) -> None:
        """End the connection, and tell the client in how many milliseconds to come back."""
        if not self._link.closing:
            self.client.closed()
            self.flush()
            self._link.close(disconnect, retry_ms)

    def refresh(self, lifetime: float | None) -> None:
        """Let the connection last so many seconds more (None: for ever), and tell the client."""
        self.client.refresh_by_server(lifetime, self._services.loop.time())
        self._services.wheel.add(self)

    def abort(self) -> None:
        """Drop the socket without ceremony."""
        self._link.abort()

    def register(self) -> Disconnect | None:
        """See `actions.Actions`."""
        return self._registry.register(self)

    def command_seen(self, method: Method) -> None:
        """See `actions.Actions`."""
        _COMMANDS[method].inc()

    def error_seen(self, method: Method, error: ErrorCode) -> None:
        """See `actions.Actions`."""
        instruments.COMMAND_ERRORS.labels(method, str(error.code)).inc()

    def verify_connect(
        self, token: str, answer: Callable[[ConnectGrant | TokenError, float], None]
    ) -> None:
        """See `actions.Actions`."""

        def verify() -> ConnectGrant:
            now = time.time()
            claims: ConnectClaims = self._services.verifier.verify_connect(token, now)
            return ConnectGrant(claims, _lifetime(claims.expire_at, now))

        self._verify(verify, answer)

    def verify_subscribe(
        self, token: str, answer: Callable[[SubscribeGrant | TokenError, float], None]
    ) -> None:
        """See `actions.Actions`."""

        def verify() -> SubscribeGrant:
            now = time.time()
            claims: SubscribeClaims = self._services.verifier.verify_subscribe(token, now)
            return SubscribeGrant(claims, _lifetime(claims.expire_at, now))

        self._verify(verify, answer)

    def _verify(self, verify: Callable[[], Any], answer: Callable[[Any, float], None]) -> None:
        try:
            grant = verify()
        except KeyMissing:
            self._services.spawn(self._verify_with_new_keys(verify, answer))
        except TokenError as error:
            answer(error, self._services.loop.time())
        else:
            answer(grant, self._services.loop.time())

    async def _verify_with_new_keys(
        self, verify: Callable[[], Any], answer: Callable[[Any, float], None]
    ) -> None:
        refreshed = await self._services.verifier.refresh_keys()
        grant: object
        try:
            grant = verify()
        except KeyMissing as error:
            # Unless the keys were really read again, nobody knows whether the token is good.
            grant = TokenInvalid(str(error)) if refreshed else error
        except TokenError as error:
            grant = error
        self._answer(answer, grant)

    def _answer(self, answer: Callable[[Any, float], None], value: object) -> None:
        """Bring the client an answer, and its reactions to the socket in the same step.

        In the same step, because what the hub sends a new subscriber must come behind the reply.
        """
        try:
            answer(value, self._services.loop.time())
        except Exception:
            logger.exception("a command failed", extra={"client": self.client.id})
            self.disconnect(SERVER_ERROR)
        self._settle()

    def prepare(
        self, subscription: Subscription, answer: Callable[[ErrorCode | None, float], None]
    ) -> None:
        """See `actions.Actions`."""
        self._services.hub.prepare(
            subscription.channel,
            subscription.options,
            subscription.since,
            partial(self._answer if subscription.since is None else self._recovered, answer),
        )

    def _recovered(self, answer: Callable[[Any, float], None], value: object) -> None:
        """As `_answer`. Who recovers has just come back, and this is the costly part of it."""
        began = time.perf_counter()
        self._answer(answer, value)
        self._services.acceptance.spent(time.perf_counter() - began)

    def join(self, subscription: Subscription) -> Joined | None:
        """See `actions.Actions`."""
        services = self._services
        if services.hub.has_pending:
            self.flush()  # the hub may flush, and what it has may be about an earlier reply
        channel = subscription.channel
        joined = services.hub.join(
            self,
            channel,
            subscription.options,
            subscription.since,
            listens=subscription.push_join_leave,
            only_recovered=subscription.reject_unrecovered,
        )
        if joined is not None and (subscription.presence or subscription.join_leave):
            info = self.client.client_info(channel)
            if subscription.presence:
                services.presence.add(channel, self.client.id, self.client.user, info, self.line)
            if subscription.join_leave:
                services.hub.announce_join(channel, self.client.id, info)
        return joined

    def leave(self, subscription: Subscription) -> None:
        """See `actions.Actions`."""
        services = self._services
        channel = subscription.channel
        services.hub.leave(self, channel)
        if subscription.presence:
            services.presence.remove(channel, self.client.id)
        if subscription.join_leave:
            info = codec.client_info(
                self.client.user, self.client.id, self.client.info, subscription.chan_info
            )
            services.hub.announce_leave(channel, self.client.id, info)

    def publish(self, command_id: int, publishing: Publishing) -> None:
        """See `actions.Actions`."""
        self._services.publisher.publish(publishing, partial(self.client.published, command_id))

    def presence(self, command_id: int, channel: str, stats_only: bool) -> None:
        """See `actions.Actions`."""
        presence = self._services.presence
        if stats_only:
            stats = presence.stats(channel)
            result = codec.presence_stats_result(stats.num_clients, stats.num_users)
            self.client.answer(command_id, "presence_stats", result)
        else:
            result = codec.presence_result(presence.clients(channel))
            self.client.answer(command_id, "presence", result)

    def history(
        self,
        command_id: int,
        channel: str,
        options: ChannelOptions,
        limit: int,
        since: StreamPosition | None,
        reverse: bool,
    ) -> None:
        """See `actions.Actions`."""
        self._services.spawn(
            self._read_history(command_id, channel, options, limit, since, reverse)
        )

    async def _read_history(
        self,
        command_id: int,
        channel: str,
        options: ChannelOptions,
        limit: int,
        since: StreamPosition | None,
        reverse: bool,
    ) -> None:
        outcome: bytes | ErrorCode
        try:
            found = await self._services.streams.history(channel, options, limit, since, reverse)
            outcome = found if isinstance(found, ErrorCode) else codec.history_result(*found)
        except LogUnavailable:
            outcome = INTERNAL
        except Exception:
            logger.exception("could not read history")
            outcome = INTERNAL
        self.client.answer(command_id, "history", outcome)

    def call(self, command_id: int, method: str, data: bytes) -> None:
        """See `actions.Actions`."""
        procedure = self._services.procedures.find(method)
        if isinstance(procedure, ErrorCode):
            self.client.answer(command_id, "rpc", procedure)
            return
        caller = Caller(self.client.id, self.client.user)

        async def run() -> None:
            outcome: bytes | ErrorCode
            try:
                outcome = codec.rpc_result(await procedure(caller, data))
            except RPCError as error:
                outcome = error.error
            except Exception:
                logger.exception("the procedure %r failed", method)
                outcome = INTERNAL
            self.client.answer(command_id, "rpc", outcome)

        self._services.spawn(run())


def _lifetime(expire_at: float, now: float) -> float | None:
    return expire_at - now if expire_at else None
