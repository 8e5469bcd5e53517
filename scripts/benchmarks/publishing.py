"""Two ways to publish: as fast as acknowledgements come, and on time whatever happens."""

import asyncio
import random
import time
from array import array
from collections.abc import Callable, Sequence

from scripts.benchmarks import payloads, wire
from scripts.benchmarks.clients import ConnectionFailed, Publisher, reply_ids
from scripts.benchmarks.dialects import Dialect
from scripts.benchmarks.messages import Pace
from scripts.benchmarks.polling import is_true_within

_ANSWER_TIMEOUT = 10.0


class FloodingPublisher:
    """Keeps a window of publishes outstanding: each acknowledgement is answered by a new publish.

    Ids are reused once acknowledged, so that all frames can be built beforehand.
    """

    def __init__(self, channel: str, window: int, payload_bytes: int) -> None:
        self.channel = channel
        self.publisher = Publisher(self._on_frame)
        self.latencies_ns = array("q")
        self.acknowledged = 0
        self._top = 0
        self._marked = 0
        self._running = True
        self._awaiting_top = False
        self._sent_ns = [0] * (window + 1)
        data = payloads.plain(payload_bytes)
        # Ids start at 1 in the protocol; the first place is never used.
        self._frames = [b""] + [
            wire.joined([wire.publish_command(number, channel, data)])
            for number in range(1, window + 1)
        ]

    @property
    def acknowledged_since_mark(self) -> int:
        """Acknowledgements after the warm-up."""
        return self.acknowledged - self._marked

    def begin(self) -> None:
        """Fills the window."""
        self._publish(range(1, len(self._frames)))

    def mark(self) -> None:
        """The warm-up is over: forget what it measured."""
        self._marked = self.acknowledged
        del self.latencies_ns[:]

    async def drain(self) -> None:
        """Publishes no more and waits for the last acknowledgement."""
        self._running = False
        await self._reach(lambda: not any(self._sent_ns))

    async def logged(self) -> int:
        """How many publications the channel's log says it has ever had."""
        self._awaiting_top = True
        self.publisher.transport.write(wire.joined([wire.position_command(1, self.channel)]))
        await self._reach(lambda: not self._awaiting_top)
        return self._top

    async def _reach(self, condition: Callable[[], bool]) -> None:
        reached = await is_true_within(
            _ANSWER_TIMEOUT, lambda: condition() or self.publisher.is_broken
        )
        self.publisher.check()
        if not reached:
            raise ConnectionFailed(f"{self.channel}: a command is not answered")

    def _publish(self, ids: Sequence[int]) -> None:
        now_ns = time.monotonic_ns()
        for number in ids:
            self._sent_ns[number] = now_ns
        self.publisher.transport.write(b"".join([self._frames[number] for number in ids]))

    def _on_frame(self, frame: bytes) -> None:
        if self._awaiting_top:
            self._top = wire.position_in(frame)
            self._awaiting_top = False
            return
        now_ns = time.monotonic_ns()
        ids = reply_ids(frame)
        for number in ids:
            self.latencies_ns.append(now_ns - self._sent_ns[number])
            self._sent_ns[number] = 0
        self.acknowledged += len(ids)
        if self._running:
            self._publish(ids)


class Schedule:
    """An open loop: moments are drawn beforehand (a Poisson process) and kept whatever happens."""

    def __init__(self, request: Pace, publishers: Sequence[Publisher], dialect: Dialect) -> None:
        self.published = 0
        self.lateness_ns = array("q")
        self._request = request
        self._publishers = publishers
        self._dialect = dialect
        self._random = random.Random(request.seed)

    async def run(self, seconds: float) -> None:
        """Publishes for some seconds, over the channels in turn."""
        mean_gap = 1 / self._request.publications_per_second
        due = time.monotonic()
        end = due + seconds
        while True:
            due += self._random.expovariate(1 / mean_gap)
            if due >= end:
                return
            wait = due - time.monotonic()
            if wait > 0:
                await asyncio.sleep(wait)
            self._publish(due)

    def _publish(self, due: float) -> None:
        turn = self.published % len(self._publishers)
        channel = self._request.channels[turn]
        now_ns = time.monotonic_ns()
        data = payloads.stamped(self._request.payload_bytes, now_ns)
        self._publishers[turn].transport.write(self._dialect.publish(channel, [data]))
        self.lateness_ns.append(max(now_ns - int(due * 1e9), 0))
        self.published += 1
