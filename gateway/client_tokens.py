"""Tokens of a client: one that was given, or as many as a getter gives."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from gateway.client_errors import CommandError, ConnectionLost
from gateway.client_messages import Lifetime

logger = logging.getLogger(__name__)

TokenSource = str | Callable[[], Awaitable[str]]
"""A token, or a function that fetches one whenever another is needed."""

# What part of a lifetime has passed when it is prolonged; servers wait another 25 s at its end.
_RENEW_AT: Final = 0.9
_RETRY_DELAY: Final = 1.0


class Tokens:
    """Where the tokens for one purpose come from."""

    def __init__(self, source: TokenSource) -> None:
        self._get = None if isinstance(source, str) else source
        self._token = source if isinstance(source, str) else None

    @property
    def can_renew(self) -> bool:
        """Whether there can be another token than the present one."""
        return self._get is not None

    async def get(self) -> str:
        """The present token. Raises whatever the getter raises."""
        if self._token is None:
            assert self._get is not None, "without a getter the token stays"
            self._token = await self._get()
        return self._token

    async def renew(self) -> str:
        """Another token. Raises whatever the getter raises."""
        assert self._get is not None, "can_renew"
        self._token = await self._get()
        return self._token

    def expire(self) -> bool:
        """The present token is no good any more; whether there can be another."""
        if self._get is None:
            return False
        self._token = None
        return True


async def keep_fresh(
    tokens: Tokens, lifetime: Lifetime, refresh: Callable[[str], Awaitable[Lifetime]]
) -> None:
    """Prolong something that expires again and again, for as long as the server wants that.

    When it can't be, the server will say so when the time is over.
    """
    while lifetime.expires and tokens.can_renew:
        await asyncio.sleep(lifetime.ttl * _RENEW_AT)
        while True:
            try:
                lifetime = await refresh(await tokens.renew())
                break
            except ConnectionLost:
                return
            except CommandError as error:
                if not error.temporary:
                    logger.warning("a token was not accepted: %s", error)
                    return
            except Exception:  # the getter is somebody else's code
                logger.exception("there is no new token")
            await asyncio.sleep(_RETRY_DELAY)
