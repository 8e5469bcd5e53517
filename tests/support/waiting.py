"""Waiting for what nobody tells."""

import asyncio
from collections.abc import Callable
from typing import Final

DEADLINE: Final = 20.0
"""Seconds for anything that a healthy program does at once."""

_INTERVAL: Final = 0.002


async def until(condition: Callable[[], bool], deadline: float = DEADLINE) -> None:
    """Wait until something is true; raises TimeoutError."""
    async with asyncio.timeout(deadline):
        while not condition():  # noqa: ASYNC110  there is no event to wait for
            await asyncio.sleep(_INTERVAL)
