"""The end of a process: everybody is sent away with a moment to come back, and nothing is lost.

Theory of operation
-------------------
From the moment on at which nobody new is let in, the clients get slots at the rate at which the
next process will receive them, the first when that can be up (`restart_time`):

1. Who has not said a word yet is closed. From here on nobody begins or resumes a session.
2. Clients with a session are told to move. Their sockets serve on meanwhile.
3. Stock clients are closed, at the measured rate, with `retry` in the close reason.
4. What clients have asked for is answered, then the sockets of the sessions are closed too. From
   here on nothing comes in, and what still goes out waits in the sessions' tails and in the log.
5. The sessions are saved for the next process. Those that can't be end now, so that the others are
   told by it who has left.

All of it ends by the deadline, whatever state it is in: a platform that waits no longer kills.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from gateway.acceptance import Arrival
from gateway.connection import Services
from gateway.connections import ConnectionManager
from gateway.protocol.codes import SHUTDOWN
from gateway.session_connection import SessionConnection
from metrics import instruments

logger = logging.getLogger(__name__)

AT_ONCE: Final = 100  # sessions told, or closed, in one turn of the loop: 5 ms
STEP: Final = 0.02  # seconds between two batches of closes, and between two looks at what is open
# Parts of the time that there is, by when each thing has to be done.
CLOSED_BY: Final = 0.4  # stock clients are sent away
ANSWERED_BY: Final = 0.6  # commands are answered, and sockets of sessions closed
SETTLED_BY: Final = 0.7  # what the closing found under way has ended
SAVED_BY: Final = 0.9  # sessions are saved; the rest is for closing handshakes


class Keeper(Protocol):
    """Who keeps sessions from one process to the next."""

    async def save(self, connections: Sequence[SessionConnection], timeout: float) -> int:
        """Leave these for the next process, in so many seconds; returns how many could be."""


class Drain:
    """Ends all connections of a process. `restart_time` is how long it will be away, in seconds."""

    def __init__(
        self, services: Services, manager: ConnectionManager, keeper: Keeper, restart_time: float
    ) -> None:
        self._services = services
        self._manager = manager
        self._keeper = keeper
        self._restart_time = restart_time

    async def run(self, timeout: float) -> None:
        """Send everybody away within `timeout` seconds."""
        begin = self._services.loop.time()
        manager = self._manager
        manager.stopping = True
        for newcomer in manager.newcomers:
            newcomer.close(SHUTDOWN, self._retry_ms())
        with_session = [conn for conn in manager.with_session if not conn.detached]
        await self._announce_move(with_session, timeout * ANSWERED_BY)
        await self._close_stock(begin + timeout * CLOSED_BY)
        await self._wait_until(self._is_quiet, begin + timeout * ANSWERED_BY)
        with_session = [conn for conn in manager.with_session if not conn.detached]
        # The moments of some have passed, and they are still here.
        await self._announce_move([conn for conn in with_session if not conn.is_expected], 0.0)
        for done, connection in enumerate(with_session, start=1):
            if not connection.link.closing:  # it may have gone while others had their turn
                connection.close_socket(SHUTDOWN)
            if done % AT_ONCE == 0:
                await asyncio.sleep(0)
        # What was under way when the sockets closed ends here, into the tails.
        await self._wait_until(self._is_quiet, begin + timeout * SETTLED_BY)
        await self._save(begin + timeout * SAVED_BY)
        await manager.wait_closed(begin + timeout - self._services.loop.time())

    def _retry(self, kind: Arrival) -> float:
        """The next slot, in seconds from now."""
        services = self._services
        return services.acceptance.slot_for_close(
            services.loop.time(), kind=kind, not_before=self._restart_time
        )

    def _retry_ms(self) -> int:
        return int(self._retry(Arrival.CONNECT) * 1000)

    async def _announce_move(
        self, connections: Sequence[SessionConnection], deadline: float
    ) -> None:
        for done, connection in enumerate(connections, start=1):
            connection.move(self._retry(Arrival.RESUME), deadline)
            if done % AT_ONCE == 0:
                await asyncio.sleep(0)

    async def _close_stock(self, deadline: float) -> None:
        """Close those without a session, as fast as they can be received elsewhere."""
        stock = [conn for conn in self._manager.all if not isinstance(conn, SessionConnection)]
        loop = self._services.loop
        left = max(deadline - loop.time(), STEP)
        rate = max(self._services.acceptance.rate, len(stock) / left)
        started = loop.time()
        for done, connection in enumerate(stock):
            early = done / rate - (loop.time() - started)
            if early > 0:
                await asyncio.sleep(max(early, STEP))
            if not connection.link.closing:
                connection.disconnect_with(SHUTDOWN, self._retry_ms())

    def _is_quiet(self) -> bool:
        """Whether nobody waits for an answer any more."""
        return not any(conn.client.is_waited_for for conn in self._manager.with_session)

    async def _wait_until(self, condition: Callable[[], bool], deadline: float) -> None:
        for _ in range(int((deadline - self._services.loop.time()) / STEP)):
            if condition():
                return
            await asyncio.sleep(STEP)

    async def _save(self, deadline: float) -> None:
        """Leave the sessions to the next process, without a word to those who share channels."""
        kept = []
        for connection in self._manager.with_session:
            if connection.client.is_waited_for:
                connection.abandon()  # its answer would be lost: it connects anew and asks again
            else:
                kept.append(connection)
        if not kept:
            return
        try:
            saved = await self._keeper.save(kept, deadline - self._services.loop.time())
        except Exception:  # must not keep the rest from its end
            logger.exception("could not save %d sessions", len(kept))
            return
        instruments.SESSIONS_SAVED.inc(saved)
        logger.info("saved %d of %d sessions for the next process", saved, len(kept))
