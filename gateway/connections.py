"""The connection manager: makes connections, finds them, limits them, closes them."""

import asyncio
import logging
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from gateway.acceptance import Arrival
from gateway.connection import Connection, Services
from gateway.groups import Groups
from gateway.link import ABNORMAL_CLOSURE, Link
from gateway.newcomer import Newcomer
from gateway.protocol.backoff import DeclaredBackoff
from gateway.protocol.codes import (
    CONNECTION_LIMIT,
    DISCONNECTS,
    INAPPROPRIATE_PROTOCOL,
    SHUTDOWN,
    SLOW,
    TOO_MANY,
    Disconnect,
)
from gateway.protocol.handshake import Accepted, Refused
from gateway.protocol.session import Gone
from gateway.session_connection import SessionConnection
from gateway.sessions import Sessions
from metrics import instruments

logger = logging.getLogger(__name__)

RETRY_AFTER_FULL: Final = 5  # seconds

_COUNTED_CODES: Final = frozenset(
    {*(disconnect.code for disconnect in DISCONNECTS), 1000, 1001, 1002, 1003, 1007, 1009}
)


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """The settings of the same names; 0 sets no limit."""

    connections_max: int
    connections_per_address_max: int
    connections_per_user_max: int
    strangers_per_address_max: int
    message_size_max_bytes: int
    write_buffer_high_bytes: int


class ConnectionManager:
    """All WebSocket connections of this process, and the sessions that wait for their clients."""

    def __init__(
        self, services: Services, limits: ConnectionLimits, sessions: Sessions[SessionConnection]
    ) -> None:
        self._services = services
        self._limits = limits
        self.sessions = sessions
        self._connections: dict[str, Connection] = {}  # by client id, with or without a socket
        self._links: dict[Link, str] = {}  # the open sockets, and on whose behalf they came
        self._clients = 0  # those whose user is known
        instruments.CONNECTIONS.set_function(lambda: len(self._links))
        instruments.CLIENTS.set_function(lambda: self._clients)
        self._users: Groups[Connection] = Groups()
        self._addresses: dict[str, int] = {}
        self._strangers: dict[str, set[Link]] = {}  # those who haven't shown who they are
        self.stopping = False
        """Whether no new connection is taken any more."""
        self._all_gone = asyncio.Event()
        self._disconnects: dict[int, Callable[[], None]] = {}

    def __len__(self) -> int:
        return len(self._links)

    # --- coming and going -------------------------------------------------------------------------

    def refusal(self, address: str) -> Refused | None:
        """Why there is no room for one more from this address, before any work on it."""
        limits = self._limits
        after = (("Retry-After", str(RETRY_AFTER_FULL)),)
        if self.stopping:
            return Refused(503, "the server is stopping; come back in a moment", "stopping", after)
        if len(self._links) >= limits.connections_max:
            return Refused(503, "the server is full; come back in a moment", "full", after)
        per_address = limits.connections_per_address_max
        if per_address and self._addresses.get(address, 0) >= per_address:
            return Refused(429, "too many connections from this address", "address_limit", after)
        strangers = limits.strangers_per_address_max
        if strangers and len(self._strangers.get(address, ())) >= strangers:
            reason = "too many connections from this address that have not shown a token yet"
            return Refused(429, reason, "unauthenticated_limit", after)
        wait = self._services.acceptance.hard_refusal(self._services.loop.time(), address)
        if wait is not None:
            busy = (("Retry-After", str(wait)),)
            return Refused(503, "more clients come than can be received", "busy", busy)
        return None

    def accept(self, transport: asyncio.Transport, accepted: Accepted, address: str) -> Link:
        """Answer a granted upgrade and give the transport a link."""
        transport.write(accepted.response)
        transport.set_write_buffer_limits(high=self._limits.write_buffer_high_bytes)
        link = Link(transport, self._limits.message_size_max_bytes, accepted.deflate)
        self._links[link] = address
        self._addresses[address] = self._addresses.get(address, 0) + 1
        strangers = self._strangers.get(address)
        if strangers is None:
            strangers = self._strangers[address] = set()
        strangers.add(link)
        transport.set_protocol(link)
        newcomer = Newcomer(self, self._services, link, address, accepted.native_ping)
        if accepted.protobuf:
            newcomer.close(INAPPROPRIATE_PROTOCOL)
        return link

    def begin_stock(self, link: Link, address: str, native_ping: bool) -> None:
        """See `newcomer.Host`."""
        connection = Connection(self._services, self, link, _client_id(), address, native_ping)
        self._connections[connection.client.id] = connection

    def begin_session(
        self, link: Link, address: str, backoff: DeclaredBackoff
    ) -> SessionConnection | None:
        """See `newcomer.Host`."""
        if not self.sessions.make_room():
            return None
        session_id = self.sessions.tokens.new_id()
        connection = SessionConnection(
            self._services, self, link, _client_id(), address, session_id, backoff
        )
        self._connections[connection.client.id] = connection
        return connection

    def find_session(self, token: str) -> SessionConnection | Gone:
        """See `newcomer.Host`."""
        return self.sessions.find(token)

    def take_up(self, connection: SessionConnection) -> None:
        """Keep a connection that a former process saved; its client is known already."""
        self._connections[connection.client.id] = connection
        self.sessions.take_up(connection)
        if connection.client.user:
            self._users.add(connection.client.user, connection)
        self._clients += 1
        connection.registered = True

    def register(self, connection: Connection) -> Disconnect | None:
        """See `connection.Registry`."""
        user = connection.client.user
        if user:
            limit = self._limits.connections_per_user_max
            if limit and len(self._users.of(user)) >= limit and not self._end_oldest(user):
                return CONNECTION_LIMIT
            self._users.add(user, connection)
        self._clients += 1
        connection.registered = True
        self.settled(connection.link, connection.address)
        return None

    def _end_oldest(self, user: str) -> bool:
        """Make room for a user's new connection: one that waits for its client goes first."""
        for connection in self._users.of(user):
            if isinstance(connection, SessionConnection) and connection.detached:
                connection.expire(Gone.EXPIRED)
                return True
        return False

    def settled(self, link: Link, address: str) -> None:
        """See `newcomer.Host`."""
        strangers = self._strangers.get(address)
        if strangers is not None:
            strangers.discard(link)
            if not strangers:
                del self._strangers[address]

    def forget(self, connection: Connection) -> None:
        """See `connection.Registry`."""
        client = connection.client
        if self._connections.pop(client.id, None) is None or not connection.registered:
            return
        self._clients -= 1
        self._users.discard(client.user, connection)

    def socket_lost(self, link: Link, code: int) -> None:
        """See `connection.Registry`."""
        address = self._links.pop(link, None)
        if address is None:
            return
        self._addresses[address] -= 1
        if not self._addresses[address]:
            del self._addresses[address]
        self.settled(link, address)
        self._count_end(code)
        if self.stopping and not self._links:
            self._all_gone.set()

    def _count_end(self, code: int) -> None:
        if code not in self._disconnects:
            if code == ABNORMAL_CLOSURE:
                label = "lost"
            else:
                label = str(code) if code in _COUNTED_CODES else "other"
            self._disconnects[code] = instruments.DISCONNECTS.labels(label).inc
        self._disconnects[code]()

    def retry_ms(self, disconnect: Disconnect, kind: Arrival = Arrival.CONNECT) -> int | None:
        """See `connection.Registry`: the next free slot for those who are sent away."""
        if disconnect not in (SHUTDOWN, TOO_MANY, SLOW):
            return None
        services = self._services
        return int(services.acceptance.slot_for_close(services.loop.time(), kind=kind) * 1000)

    # --- finding ----------------------------------------------------------------------------------

    def find(self, user: str, client: str = "") -> list[Connection]:
        """A user's identified connections, or the one of that client id if it is the user's."""
        if client:
            connection = self._connections.get(client)
            if connection is None or not connection.registered:
                return []
            return [connection] if not user or connection.client.user == user else []
        return list(self._users.of(user))

    @property
    def num_clients(self) -> int:
        """How many have connected with success."""
        return self._clients

    @property
    def num_users(self) -> int:
        """How many distinct users they are, anonymous ones not among them."""
        return len(self._users)

    # --- ending -----------------------------------------------------------------------------------

    @property
    def all(self) -> list[Connection]:
        """Every connection, with or without a socket."""
        return list(self._connections.values())

    @property
    def with_session(self) -> list[SessionConnection]:
        """Those that have a session."""
        return self.sessions.all

    @property
    def newcomers(self) -> list[Newcomer]:
        """Those who haven't said yet what they are."""
        return [
            owner
            for link in self._links
            if isinstance(owner := link.owner, Newcomer) and not link.closing
        ]

    async def wait_closed(self, timeout: float) -> None:
        """Wait until all sockets are closed, or cut what is left when the time is up."""
        if self._links:
            try:
                async with asyncio.timeout(max(timeout, 0.0)):
                    await self._all_gone.wait()
            except TimeoutError:
                logger.warning("cutting %d connections that stayed", len(self._links))
        for link in list(self._links):
            link.abort()

    async def run(self) -> None:
        """Keep an eye on what sessions cost, until cancelled."""
        while True:
            self.sessions.sweep()
            await asyncio.sleep(self.sessions.sweep_interval)

    def disconnect(
        self, connections: Iterable[Connection], disconnect: Disconnect, spared: Iterable[str] = ()
    ) -> None:
        """Close these connections, but not those of the spared client ids."""
        keep = set(spared)
        for connection in connections:
            if connection.client.id not in keep:
                connection.disconnect(disconnect)


def _client_id() -> str:
    return os.urandom(16).hex()
