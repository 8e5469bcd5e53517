"""The connection manager: makes connections, finds them, limits them, closes them."""

import asyncio
import logging
import os
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from gateway.connection import Connection, Services
from gateway.link import ABNORMAL_CLOSURE, Link
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
from metrics import instruments

logger = logging.getLogger(__name__)

CLOSES_PER_TURN: Final = 128  # so that closing everybody doesn't stall those who still talk
# How many clients a second are told to come back after a close of many. A first estimate, with a
# wide margin, of what one core accepts with tokens and subscriptions.
RETURNS_PER_SECOND: Final = 2000.0
RETRY_MIN_MS: Final = 200
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
    message_size_max_bytes: int
    write_buffer_high_bytes: int


class ConnectionManager:
    """All WebSocket connections of this process."""

    def __init__(self, services: Services, limits: ConnectionLimits) -> None:
        self._services = services
        self._limits = limits
        self._connections: dict[str, Connection] = {}
        self._clients = 0  # those whose user is known
        instruments.CONNECTIONS.set_function(lambda: len(self._connections))
        instruments.CLIENTS.set_function(lambda: self._clients)
        self._users: dict[str, dict[Connection, None]] = {}
        self._addresses: dict[str, int] = {}
        self.stopping = False
        """Whether no new connection is taken any more."""
        self._all_gone = asyncio.Event()
        self._disconnects: dict[int, Callable[[], None]] = {}

    def __len__(self) -> int:
        return len(self._connections)

    # --- coming and going -------------------------------------------------------------------------

    def refusal(self, address: str) -> Refused | None:
        """Why there is no room for one more from this address, before any work on it."""
        limits = self._limits
        after = (("Retry-After", str(RETRY_AFTER_FULL)),)
        if self.stopping:
            return Refused(503, "the server is stopping; come back in a moment", "stopping", after)
        if len(self._connections) >= limits.connections_max:
            return Refused(503, "the server is full; come back in a moment", "full", after)
        per_address = limits.connections_per_address_max
        if per_address and self._addresses.get(address, 0) >= per_address:
            return Refused(429, "too many connections from this address", "address_limit", after)
        return None

    def accept(self, transport: asyncio.Transport, accepted: Accepted, address: str) -> Link:
        """Answer a granted upgrade and make the transport a connection."""
        transport.write(accepted.response)
        transport.set_write_buffer_limits(high=self._limits.write_buffer_high_bytes)
        link = Link(transport, self._limits.message_size_max_bytes, accepted.deflate)
        connection = Connection(
            self._services, self, link, os.urandom(16).hex(), address, accepted.native_ping
        )
        self._connections[connection.client.id] = connection
        self._addresses[address] = self._addresses.get(address, 0) + 1
        transport.set_protocol(link)
        if accepted.protobuf:
            connection.disconnect(INAPPROPRIATE_PROTOCOL)
        return link

    def register(self, connection: Connection) -> Disconnect | None:
        """See `connection.Registry`."""
        user = connection.client.user
        if user:
            others = self._users.setdefault(user, {})
            limit = self._limits.connections_per_user_max
            if limit and len(others) >= limit:
                return CONNECTION_LIMIT
            others[connection] = None
        self._clients += 1
        connection.registered = True
        return None

    def forget(self, connection: Connection, code: int) -> None:
        """See `connection.Registry`."""
        client = connection.client
        if self._connections.pop(client.id, None) is None:
            return
        address = connection.address
        self._addresses[address] -= 1
        if not self._addresses[address]:
            del self._addresses[address]
        if connection.registered:
            self._clients -= 1
            others = self._users.get(client.user)
            if others is not None:
                others.pop(connection, None)
                if not others:
                    del self._users[client.user]
        self._count_end(code)
        if self.stopping and not self._connections:
            self._all_gone.set()

    def _count_end(self, code: int) -> None:
        if code not in self._disconnects:
            if code == ABNORMAL_CLOSURE:
                label = "lost"
            else:
                label = str(code) if code in _COUNTED_CODES else "other"
            self._disconnects[code] = instruments.DISCONNECTS.labels(label).inc
        self._disconnects[code]()

    def retry_ms(self, disconnect: Disconnect) -> int | None:
        """See `connection.Registry`: spread those who come back at once over time."""
        if disconnect not in (SHUTDOWN, TOO_MANY, SLOW):
            return None
        spread = 1000.0 + len(self._connections) / RETURNS_PER_SECOND * 1000.0
        return RETRY_MIN_MS + int(random.random() * spread)  # noqa: S311  not a secret

    # --- finding ----------------------------------------------------------------------------------

    def find(self, user: str, client: str = "") -> list[Connection]:
        """A user's identified connections, or the one of that client id if it is the user's."""
        if client:
            connection = self._connections.get(client)
            if connection is None or not connection.registered:
                return []
            return [connection] if not user or connection.client.user == user else []
        return list(self._users.get(user, ()))

    @property
    def num_clients(self) -> int:
        """How many have connected with success."""
        return self._clients

    @property
    def num_users(self) -> int:
        """How many distinct users they are, anonymous ones not among them."""
        return len(self._users)

    # --- ending -----------------------------------------------------------------------------------

    async def shutdown(self, timeout: float) -> None:
        """Close everybody with `shutdown`, and wait until they are gone or the time is up."""
        self.stopping = True
        for start, connection in enumerate(list(self._connections.values())):
            connection.disconnect(SHUTDOWN)
            if start % CLOSES_PER_TURN == CLOSES_PER_TURN - 1:
                await asyncio.sleep(0)
        if self._connections:
            try:
                async with asyncio.timeout(timeout):
                    await self._all_gone.wait()
            except TimeoutError:
                logger.warning("cutting %d connections that stayed", len(self._connections))
        for connection in list(self._connections.values()):
            connection.abort()

    def disconnect(
        self, connections: Iterable[Connection], disconnect: Disconnect, spared: Iterable[str] = ()
    ) -> None:
        """Close these connections, but not those of the spared client ids."""
        keep = set(spared)
        for connection in connections:
            if connection.client.id not in keep:
                connection.disconnect(disconnect)
