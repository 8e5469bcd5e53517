"""The key set of tokens that others issue (JWKS), and when to read it anew.

A set that can't be read leaves the last good one in force: an identity provider that is down must
not lock everybody out.
"""

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable

from gateway.keys import VerifyKey, parse_key_set

log = logging.getLogger(__name__)

COOLDOWN = 10.0
"""The least time between two reads that tokens ask for, so that invented key ids can't be used to
flood whoever publishes the set. Also how soon a failed read is tried again."""


class KeySet:
    """Keys, and the source they are read from: at `start`, then every `interval` until `close`.

    `read` gives the set as JSON, or raises OSError. `where` names the source in log lines.
    """

    def __init__(
        self,
        read: Callable[[], Awaitable[bytes]],
        *,
        where: str,
        interval: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._read = read
        self._where = where
        self._interval = interval
        self._clock = clock
        self._read_at = -math.inf
        self._is_fresh = False
        self._reading: asyncio.Task[None] | None = None
        self._keeping: asyncio.Task[None] | None = None
        self.keys: tuple[VerifyKey, ...] = ()
        self._by_id: dict[str, VerifyKey] = {}

    def get(self, kid: str) -> VerifyKey | None:
        """The key of that id, if the set holds one."""
        return self._by_id.get(kid)

    async def start(self) -> None:
        """Read the set, and keep it fresh from now on. A failure is logged and tried again."""
        await self._read_once()
        if self._keeping is None:
            self._keeping = asyncio.create_task(self._keep_fresh(), name="token key set")

    async def refresh(self) -> bool:
        """Read the set, unless that was just done. True when it is as new as can be had.

        However many ask at once, it is read once. Cancelling one of them doesn't disturb the
        others.
        """
        if self._reading is not None or self._clock() - self._read_at >= COOLDOWN:
            await self._read_once()
        return self._is_fresh

    async def close(self) -> None:
        """Stop whatever is under way."""
        tasks = [task for task in (self._keeping, self._reading) if task is not None]
        self._keeping = None
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _keep_fresh(self) -> None:
        while True:
            await asyncio.sleep(self._interval if self._is_fresh else COOLDOWN)
            await self._read_once()

    async def _read_once(self) -> None:
        """Read the set, or wait for the reading that is under way."""
        if self._reading is None:
            self._read_at = self._clock()
            self._reading = asyncio.create_task(self._replace(), name="read token key set")
            self._reading.add_done_callback(self._done)
        # Unlike awaiting the task, this neither cancels it with us nor us with it.
        await asyncio.wait((self._reading,))

    def _done(self, task: asyncio.Task[None]) -> None:
        self._reading = None
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("failed to read the token key set from %s", self._where, exc_info=error)

    async def _replace(self) -> None:
        self._is_fresh = False
        try:
            keys = parse_key_set(await self._read())
        except (OSError, ValueError) as error:
            log.warning("kept the old token keys: %s: %s", self._where, error)
            return
        if keys != self.keys:
            log.info("read %d token keys from %s", len(keys), self._where)
        self.keys = keys
        self._by_id = {key.kid: key for key in keys if key.kid is not None}
        self._is_fresh = True
