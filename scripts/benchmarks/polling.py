"""Waiting for what can't tell: another process, or ten thousand sockets at once."""

import asyncio
import time
from collections.abc import Callable

_INTERVAL = 0.01


async def is_true_within(seconds: float, condition: Callable[[], bool]) -> bool:
    """Looks every 10 ms until the condition holds, or the time is over; says which it was."""
    give_up_at = time.monotonic() + seconds
    while True:
        if condition():
            return True
        if time.monotonic() > give_up_at:
            return False
        await asyncio.sleep(_INTERVAL)
