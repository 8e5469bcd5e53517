"""An event loop that stands still: time passes, and callbacks run, when the test says so."""

import asyncio
import heapq
from collections.abc import Callable
from contextvars import Context
from typing import Any, TypeVarTuple

Args = TypeVarTuple("Args")


class ManualLoop(asyncio.AbstractEventLoop):
    """`time`, `call_at`, `call_later` and `call_soon` of a loop; whatever else is asked raises."""

    def __init__(self, start: float) -> None:
        self._now = start
        self._number = 0
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._ready: list[asyncio.Handle] = []

    # --- what tests do ------------------------------------------------------------------------

    @property
    def timers(self) -> int:
        """How many timers are set."""
        return sum(not handle.cancelled() for _, _, handle in self._timers)

    def advance(self, seconds: float) -> None:
        """Let time pass, and run each timer at the very moment when it is due."""
        end = self._now + seconds
        while self._timers and self._timers[0][0] <= end:
            self._now = max(self._now, self._timers[0][0])
            self._run_timers()
        self._now = end
        self.run_ready()

    def stall(self, seconds: float) -> None:
        """Let time pass in one piece, as when something blocks: timers that were due run late."""
        self._now += seconds
        self._run_timers()

    def run_ready(self) -> None:
        """Run what `call_soon` was given, and what that gives it, until nothing is left."""
        while self._ready:
            handles, self._ready = self._ready, []
            for handle in handles:
                if not handle.cancelled():
                    handle._run()

    def _run_timers(self) -> None:
        due = []
        while self._timers and self._timers[0][0] <= self._now:
            due.append(heapq.heappop(self._timers)[2])
        for handle in due:
            if not handle.cancelled():
                handle._run()
        self.run_ready()

    # --- what the code does -------------------------------------------------------------------

    def get_debug(self) -> bool:
        """See `asyncio.AbstractEventLoop`."""
        return False

    def time(self) -> float:
        """See `asyncio.AbstractEventLoop`."""
        return self._now

    def call_soon(
        self, callback: Callable[[*Args], object], *args: *Args, context: Context | None = None
    ) -> asyncio.Handle:
        """See `asyncio.AbstractEventLoop`."""
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    def call_later(
        self,
        delay: float,
        callback: Callable[[*Args], object],
        *args: *Args,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        """See `asyncio.AbstractEventLoop`."""
        return self.call_at(self._now + delay, callback, *args, context=context)

    def call_at(
        self,
        when: float,
        callback: Callable[[*Args], object],
        *args: *Args,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        """See `asyncio.AbstractEventLoop`."""
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        self._number += 1
        heapq.heappush(self._timers, (when, self._number, handle))
        return handle

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Nothing that runs here may raise."""
        raise context.get("exception") or AssertionError(context["message"])

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """See `asyncio.BaseEventLoop`."""


def manual_loop(start: float = 1000.0) -> ManualLoop:
    """A loop that stands still at `start`."""
    # To mypy whoever leaves out forty methods is abstract; at run time they raise when called.
    return ManualLoop(start)  # type: ignore[abstract]
