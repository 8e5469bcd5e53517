"""A client's connection that outlives its sockets (PROTOCOL.md part B).

It is a `Connection` whose link can be replaced. Without a link it stays in its channels and keeps
its presence; what is sent to it is noted in the session's tail, and what the log holds isn't even
that. What the session layer means is `protocol.session`'s; here its frames are told from payload,
and its decisions are brought to the socket, the hub and the wheel.

Whatever ends the client ends the session. What ends only the socket doesn't.
"""

import logging
import time
from collections.abc import Callable
from typing import Final, Protocol

from gateway.acceptance import Arrival
from gateway.connection import Connection, Registry, Services
from gateway.departed import Departed
from gateway.link import ABNORMAL_CLOSURE, NO_LINK, Link
from gateway.presence import Line
from gateway.protocol import session_frames
from gateway.protocol.backoff import DeclaredBackoff
from gateway.protocol.client_base import Phase
from gateway.protocol.codec import StreamPosition
from gateway.protocol.codes import (
    BAD_PROTOCOL,
    CONNECTION_CLOSED,
    NO_PONG,
    SHUTDOWN,
    SLOW,
    TOO_MANY,
    Disconnect,
)
from gateway.protocol.frames import skip_frames, text_frame
from gateway.protocol.health import NEVER, LineHealth, LineState, Quality
from gateway.protocol.session import (
    Gone,
    Pressure,
    Resumed,
    Resumption,
    SavedSession,
    Session,
    SessionState,
    SessionViolation,
)
from gateway.protocol.session_frames import Counts, Leave, MalformedSessionFrame
from gateway.protocol.subscription import Joined, Subscription
from gateway.resume_tokens import SessionId
from gateway.sessions import Sessions
from metrics import instruments

logger = logging.getLogger(__name__)

# The line of all who have none: nothing is asked there, so nothing about it changes.
_NO_LINE: Final = LineHealth()
_NO_PRESSURE: Final = Pressure.NONE
# A member of an enumeration is found by its name each time.
_ENDED: Final = SessionState.ENDED
# Payload frames processed since we last said how many; the client holds that many for a resumption.
ACK_EVERY: Final = 32
# Closing a socket with these leaves its session alone: the client may come back for it.
RESUMABLE: Final = frozenset({SHUTDOWN, SLOW, NO_PONG})
# What ends only the socket, whoever closes it. Browsers can't send those below 3000, so their
# clients give a socket up with NO_PONG. 3009 is other servers' write error.
_SOCKET_ONLY: Final = frozenset(
    {1001, ABNORMAL_CLOSURE, *range(1011, 1016), TOO_MANY.code, 3009}
    | {disconnect.code for disconnect in RESUMABLE}
)


class SessionRegistry(Registry, Protocol):
    """Who keeps all connections, as one with a session sees it."""

    sessions: "Sessions[SessionConnection]"


class SessionConnection(Connection):
    """A connection with a session; see the module."""

    __slots__ = (
        "_health",
        "_ping_at",
        "_retain",
        "_tail_limits",
        "_unsaid",
        "backoff",
        "session",
        "session_id",
        "slot",
    )

    _registry: SessionRegistry

    def __init__(
        self,
        services: Services,
        registry: SessionRegistry,
        link: Link,
        client_id: str,
        address: str,
        session_id: SessionId,
        backoff: DeclaredBackoff,
    ) -> None:
        self.session = Session()
        self.session_id = session_id
        self.backoff = backoff
        # When this client was told to come back, on the event loop's clock.
        self.slot: float | None = None
        self._health = LineHealth()
        self._ping_at = NEVER
        self._retain = registry.sessions.retention(backoff)
        self._tail_limits = registry.sessions.limits.tail
        self._unsaid = 0  # payload frames processed since we last said how many
        super().__init__(services, registry, link, client_id, address, False, session=True)

    @classmethod
    def restored(
        cls,
        services: Services,
        registry: SessionRegistry,
        client_id: str,
        address: str,
        session_id: SessionId,
        backoff: DeclaredBackoff,
        saved: SavedSession,
        expires_at: float,
        slot: float | None,
    ) -> "SessionConnection":
        """One that a former process saved, without a socket."""
        self = cls(services, registry, NO_LINK, client_id, address, session_id, backoff)
        self.session = Session.restored(saved, expires_at)
        self._health = _NO_LINE
        self.slot = slot
        return self

    def rejoin(self, subscription: Subscription, position: StreamPosition | None) -> bool:
        """Enter a channel that it never left, as far as anybody else knows.

        False when the log isn't the one that it was reading.
        """
        services = self._services
        channel = subscription.channel
        if not services.hub.restore(
            self, channel, subscription.options, position, subscription.push_join_leave
        ):
            return False
        if subscription.presence:
            info = self.client.client_info(channel)
            services.presence.add(channel, self.client.id, self.client.user, info, self.line)
        return True

    def abandon(self) -> None:
        """Take back what `rejoin` did: the session can't go on."""
        self._end(Gone.UNKNOWN)

    # --- the session's life -----------------------------------------------------------------------

    def open(self) -> None:
        """Begin; tell the client what it needs to come back."""
        sessions = self._registry.sessions
        sessions.add(self)
        instruments.SESSION_OPENS.inc()
        self._schedule_first_ping()
        self._link.send(
            session_frames.opened(
                sessions.tokens.sign(self.session_id),
                self.session.generation,
                self._services.rules.ping_interval,
                self._retain,
                sessions.limits.stable,
            )
        )

    @property
    def detached(self) -> bool:
        """Whether it waits for its client to come back."""
        return self.session.state is SessionState.DETACHED

    @property
    def line(self) -> Line:
        """See `connection.Connection`."""
        return self

    @property
    def quality(self) -> Quality:
        """How well its line is."""
        return self._health.quality

    def resume(self, link: Link, address: str, wish: Resumption) -> Gone | None:
        """Go on over another socket. The former one, if there is any, is evicted in the same step.

        Says why not, when it can't be: the session has ended then, except for a straggler
        (`FENCED`). Raises `SessionViolation` after ending it when the client's count can't be.
        """
        services = self._services
        now = services.loop.time()
        try:
            outcome = self.session.resume(wish, now, self._registry.sessions.limits.stable)
        except SessionViolation:
            self._give_up(Gone.UNKNOWN)
            raise
        if outcome is Gone.FENCED:
            return outcome
        if isinstance(outcome, Gone):
            self._give_up(outcome)
            return outcome
        former = self._link
        if former is not NO_LINK:
            self._evict(Gone.FENCED)
        self._registry.sessions.attach(self)
        self.address = address
        self.slot = None
        self._link = link
        self._health = LineHealth()
        self._unsaid = 0
        link.use(self)
        link.transport.write(self._replay(outcome))
        if former.paused:  # as one that isn't there always is
            services.hub.attach(self, self.live_channels())
        self._schedule_first_ping()
        services.wheel.add(self)
        return None

    def _replay(self, resumed: Resumed) -> bytes:
        """What a resumed socket is written first."""
        if resumed.count:
            instruments.SESSION_REPLAYED.inc(resumed.count)
        head = text_frame(
            session_frames.resumed(
                resumed.generation,
                resumed.received,
                resumed.count,
                self._retention(),
                self._registry.sessions.limits.stable,
            )
        )
        if not resumed.replay:
            return head
        first, *others = (entry.frames for entry in resumed.replay)
        return b"".join((head, skip_frames(first, resumed.skip), *others))

    def _evict(self, reason: Gone) -> None:
        """Take the socket away: the session goes on over another one, or not at all."""
        link = self._link
        self._let_go()
        link.send(session_frames.gone(reason))
        link.close(CONNECTION_CLOSED, None)

    def _give_up(self, reason: Gone) -> None:
        """End a session that can't be resumed, whether it has a socket or not."""
        if self._link is not NO_LINK:
            self._evict(reason)
        self._end(reason)

    def _let_go(self) -> None:
        """Give the socket to somebody who only waits for its end."""
        link, self._link = self._link, NO_LINK
        self._health = _NO_LINE
        services = self._services
        self._no_longer_slow()
        self._choked = False
        self._ping_at = NEVER
        if not link.lost:
            Departed(
                self._registry,
                services.wheel,
                link,
                services.loop.time() + services.close_timeout,
            )
        else:
            self._registry.socket_lost(link, link.code)

    def detach(self) -> None:
        """The socket is lost or closing: wait for the client to come back."""
        self.flush()  # into the tail
        self._let_go()
        if self.client.phase is not Phase.CONNECTED:
            self._end(Gone.UNKNOWN)  # nobody has shown who they are: nothing to keep
            return
        services = self._services
        self.session.lose(services.loop.time(), self._retain)
        services.hub.detach(self, self.live_channels())
        self._registry.sessions.detach(self)
        services.wheel.add(self)

    def expire(self, reason: Gone) -> None:
        """See `sessions.Kept`."""
        if self.session.state is SessionState.DETACHED:
            instruments.SESSION_ENDS.labels(reason.value).inc()
            if self.slot is not None:
                self._services.acceptance.missed()
            self._end(reason)

    def _end(self, reason: Gone) -> None:
        """The session is over, and with it the client: it leaves its channels now."""
        if self.session.state is not SessionState.ENDED:
            if self.detached and reason is Gone.EXPIRED:
                self.session.expire()
            else:
                self.session.break_off()
        self._registry.sessions.remove(self, reason)
        self._outbox = None
        self.client.closed()
        if self._link is NO_LINK:
            self._registry.forget(self)

    # --- the link's owner -------------------------------------------------------------------------

    def text_received(self, text: str) -> None:
        """See `link.Owner`."""
        if session_frames.is_session_frame(text):
            self._take_session_frame(text)
            return
        self.session.received += 1
        if self.client.phase is Phase.NEW:
            # Its connect command, the costly part of somebody who was admitted with `open`.
            began = time.perf_counter()
            super().text_received(text)
            self._services.acceptance.spent(time.perf_counter() - began)
        else:
            super().text_received(text)
        self._unsaid += 1
        if self._unsaid >= ACK_EVERY and not self._link.closing:
            self._unsaid = 0
            self._link.send(session_frames.ack(self.session.received))

    def _take_session_frame(self, text: str) -> None:
        try:
            frame = session_frames.decode_client_frame(text)
            if isinstance(frame, Counts):
                self._take_pong(frame)
            elif isinstance(frame, int):
                self.session.acknowledge(frame)
            elif isinstance(frame, Leave):
                self._take_leave()
            else:
                raise SessionViolation("this socket has a session already")
        except (MalformedSessionFrame, SessionViolation) as error:
            instruments.SESSION_VIOLATIONS.inc()
            self.client.closed()
            self.close(BAD_PROTOCOL, str(error))

    def _take_pong(self, pong: Counts) -> None:
        if pong.sent != self.session.received:
            raise SessionViolation(f"{pong.sent} frames sent, {self.session.received} arrived")
        self.session.acknowledge(pong.received)
        if self._health.answered(self._services.loop.time()):
            instruments.ROUND_TRIP.observe(self._health.rtt)
            self._services.wheel.postpone(self)

    def _take_leave(self) -> None:
        instruments.SESSION_ENDS.labels("left").inc()
        self.client.closed()
        self.close(CONNECTION_CLOSED, "the client left")

    def link_closing(self) -> None:
        """See `link.Owner`: the end of a socket, and only sometimes of its client."""
        if self.client.phase is Phase.CLOSED or self._link.code not in _SOCKET_ONLY:
            if self.session.state is not SessionState.ENDED:
                self._end(Gone.UNKNOWN)
            super().link_closing()
        else:
            self.detach()

    def link_lost(self, code: int) -> None:
        """See `link.Owner`."""
        if self._link is not NO_LINK:
            super().link_lost(code)

    def writing_resumed(self) -> None:
        """See `link.Owner`."""
        if self._slow_at != NEVER:
            paused_at = self._slow_at - self._services.slow_reader_timeout
            self._health.excuse(self._services.loop.time() - paused_at)
        super().writing_resumed()
        if not self._link.closing:
            self._ask()  # while paused the tail could not

    def close(self, disconnect: Disconnect, detail: str) -> None:
        """See `actions.Actions`: the client has ended, so the session does."""
        self.flush()
        self._end(Gone.UNKNOWN)
        if self._link is not NO_LINK:
            super().close(disconnect, detail)

    def disconnect(self, disconnect: Disconnect) -> None:
        """End the connection from the server's side; its session only if the code says so."""
        if disconnect in RESUMABLE:
            if not self._link.closing:
                self.close_socket(disconnect)
        elif self.session.state is not SessionState.ENDED:
            self.client.closed()
            self.close(disconnect, "")

    def close_socket(self, disconnect: Disconnect) -> None:
        """Close the socket and keep the session: the client is told when to come back."""
        self.flush()
        retry_ms = None
        if not self.is_expected:  # one that was told to move has its slot
            retry_ms = self._registry.retry_ms(disconnect, Arrival.RESUME)
            if retry_ms is not None:
                self.promise(retry_ms / 1000)
        self._link.close(disconnect, retry_ms)

    def move(self, retry: float, deadline: float) -> None:
        """Tell the client to go on over another socket in `retry` seconds (B.1)."""
        if not self._link.closing:
            self.promise(retry)
            self._link.send(session_frames.move(retry, deadline))

    @property
    def is_expected(self) -> bool:
        """Whether its client was told to come back at a moment that is yet to come."""
        return self.slot is not None and self.slot > self._services.loop.time()

    def promise(self, retry: float) -> None:
        """The client was told to come back in so many seconds: it will find its session then."""
        self.slot = self._services.loop.time() + retry
        longest = self._registry.sessions.limits.retention.ceiling  # whatever the client declares
        self.session.extend(self.slot + min(self.backoff.timeout, longest))

    # --- the client's world, the hub's subscriber, and everything that is sent --------------------

    def join(self, subscription: Subscription) -> Joined | None:
        """See `actions.Actions`."""
        joined = super().join(subscription)
        if joined is not None and self._link is NO_LINK:  # a late answer, or the server API
            self._services.hub.detach(self, (subscription.channel,))
        return joined

    @property
    def deflate(self) -> bool:
        """See `hub.Subscriber`: frames are kept for replay in one form for all."""
        return False

    @property
    def record(self) -> Callable[[bytes, int], None]:
        """See `hub.Subscriber`."""
        return self._record

    def _record(self, frames: bytes, count: int) -> None:
        """Note payload frames in the tail, and write them if there is a socket."""
        pressure = self.session.sent_frames(frames, count, self._tail_limits)
        link = self._link
        if not link.closing and not self._choked:
            link.transport.write(frames)
        if pressure is not _NO_PRESSURE:
            self._relieve(pressure)

    def _relieve(self, pressure: Pressure) -> None:
        """The tail is half full, or overflowed."""
        if pressure is Pressure.DROPPED:
            instruments.SESSION_OVERFLOWS.inc()
            if self.detached:
                # Not from inside the hub's loops. What was never on a socket can't be resumed.
                self._services.loop.call_soon(self.expire, Gone.OVERFLOW)
        elif not self._link.closing and not self._link.paused:
            self._ask()

    def _takes_output(self) -> bool:
        return self.session.state is not SessionState.ENDED

    def _write(self, payload: bytes) -> None:
        if self.session.state is not SessionState.ENDED:
            self._record(text_frame(payload), 1)

    # --- health, and the wheel's ------------------------------------------------------------------

    def _schedule_first_ping(self) -> None:
        interval = self._services.rules.ping_interval
        if interval:
            # At a random point between half an interval and a whole one (A.3).
            part = 0.5 + self.session_id[0] / 512
            self._ping_at = self._services.loop.time() + interval * part

    def _retention(self) -> float:
        """For how long it will be kept, as things are now: what the client is told next."""
        self._retain = retain = self._registry.sessions.retention(self.backoff)
        return retain

    def _ask(self) -> None:
        """Ping out of turn: the answer acknowledges."""
        self._ping(self._services.loop.time())
        self._services.wheel.add(self)

    def _ping(self, now: float) -> None:
        if self._choked:
            return  # not all that is counted was written
        self._unsaid = 0
        session, health = self.session, self._health
        self._link.send(
            session_frames.ping(
                session.received, session.sent, health.rtt, health.quality, self._retention()
            )
        )
        services = self._services
        health.asked(now, services.deadline_bounds)
        interval = services.rules.ping_interval
        if interval:
            self._ping_at = now + interval

    def next_deadline(self) -> float:
        """See `wheel.Timed`."""
        link = self._link
        if self.session.state is _ENDED:
            return NEVER if link.lost else link.close_due
        if link is NO_LINK:
            return min(self.session.expires_at, self.client.next_deadline())
        if link.paused:
            return self._slow_at
        return min(self._ping_at, self._health.due, self.client.next_deadline())

    def tick(self, now: float) -> None:
        """See `wheel.Timed`."""
        link = self._link
        if self.session.state is _ENDED:
            if now >= link.close_due:
                link.abort()
        elif link is NO_LINK:
            if now >= self.session.expires_at:
                self.expire(Gone.EXPIRED)
            else:
                self.client.tick(now)
        elif link.paused:
            if now >= self._slow_at:
                self.disconnect(SLOW)
        else:
            self._check_line(now)
            self.client.tick(now)
            self.flush()

    def _check_line(self, now: float) -> None:
        """Ask how the line is when it is time, once more without an answer, and then end it."""
        if now >= self._health.due:
            if self._health.late(now, self._services.deadline_bounds) is LineState.DEAD:
                self.disconnect(NO_PONG)
            else:
                self._ping(now)
        elif now >= self._ping_at:
            self._ping(now)

    def excuse(self, seconds: float) -> None:
        """See `wheel.Timed`."""
        super().excuse(seconds)
        self._health.excuse(seconds)
        if self.session.expires_at != NEVER:
            self.session.expires_at += seconds
