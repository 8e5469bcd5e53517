"""An event loop whose time is a number that the test sets: for parts that only use timers."""

import asyncio
from collections import deque
from collections.abc import Callable
from contextvars import Context
from typing import Any, TypeVarTuple, Unpack

_Ts = TypeVarTuple("_Ts")

# Its dozens of abstract methods would all have to be written out for the type checker.
_AbstractEventLoop: Any = asyncio.AbstractEventLoop


class FakeLoop(_AbstractEventLoop):  # type: ignore[misc]
    """Runs callbacks when told to, in asyncio's order; nothing here waits.

    An exception of a callback comes out of the call that ran it. What asyncio's loop can beyond
    time and callbacks raises NotImplementedError.
    """

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now
        self._ready: deque[asyncio.Handle] = deque()
        self._timers: list[asyncio.TimerHandle] = []

    # --- what the part under test calls -----------------------------------------------------------

    def time(self) -> float:
        """See asyncio."""
        return self.now

    def call_soon(
        self,
        callback: Callable[[Unpack[_Ts]], object],
        *args: *_Ts,
        context: Context | None = None,
    ) -> asyncio.Handle:
        """See asyncio."""
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    def call_at(
        self,
        when: float,
        callback: Callable[[Unpack[_Ts]], object],
        *args: *_Ts,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        """See asyncio."""
        timer = asyncio.TimerHandle(when, callback, args, self, context)
        self._timers.append(timer)
        self._timers.sort(key=asyncio.TimerHandle.when)
        return timer

    def get_debug(self) -> bool:
        """Handles ask."""
        return False

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Let the test see what a callback raised."""
        raise context["exception"]

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        if handle in self._timers:
            self._timers.remove(handle)

    # --- what the test calls ----------------------------------------------------------------------

    @property
    def idle(self) -> bool:
        """Whether nothing will ever run again."""
        return not self._ready and not self._timers

    def turn(self) -> None:
        """Run what is due, once; what is called meanwhile waits for the next turn."""
        while self._timers and self._timers[0].when() <= self.now:
            self._ready.append(self._timers.pop(0))
        for _ in range(len(self._ready)):
            handle = self._ready.popleft()
            if not handle.cancelled():
                handle._run()

    def advance(self, seconds: float) -> None:
        """Let time pass on a loop that is never busy: each timer runs exactly when it is due."""
        end = self.now + seconds
        while self._timers and self._timers[0].when() <= end:
            self.now = max(self.now, self._timers[0].when())
            self.turn()
        self.now = end

    def stall(self, seconds: float) -> None:
        """Let time pass while the loop is kept busy by something else: nothing runs."""
        self.now += seconds
