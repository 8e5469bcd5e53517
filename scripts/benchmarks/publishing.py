"""Two ways to publish: as fast as acknowledgements come, and on time whatever happens."""

import asyncio
import random
import time
from array import array
from collections.abc import Sequence

from scripts.benchmarks import payloads, wire
from scripts.benchmarks.clients import Publisher, reply_ids
from scripts.benchmarks.dialects import Dialect
from scripts.benchmarks.messages import Pace


class FloodingPublisher:
    """Keeps a window of publishes outstanding: each acknowledgement is answered by a new publish.

    Ids are reused once acknowledged, so that all frames can be built beforehand.
    """

    def __init__(self, channel: str, window: int, payload_bytes: int) -> None:
        self.channel = channel
        self.publisher = Publisher(self._on_frame)
        self.latencies_ns = array("q")
        self.acknowledged = 0
        self.top: int | None = None
        """How many publications the channel's log has ever had, once asked for."""
        self._marked = 0
        self._running = True
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

    def stop(self) -> None:
        """Publish no more."""
        self._running = False

    @property
    def is_drained(self) -> bool:
        """Whether every publish is acknowledged. Raises what broke the connection."""
        self.publisher.check()
        return not any(self._sent_ns)

    def ask_top(self) -> None:
        """Ask for the channel's top offset. Only when drained."""
        self.top = None
        self.publisher.transport.write(wire.joined([wire.position_command(1, self.channel)]))

    @property
    def knows_top(self) -> bool:
        """Whether the answer is there. Raises what broke the connection."""
        self.publisher.check()
        return self.top is not None

    def _publish(self, ids: Sequence[int]) -> None:
        now_ns = time.monotonic_ns()
        for number in ids:
            self._sent_ns[number] = now_ns
        self.publisher.transport.write(b"".join([self._frames[number] for number in ids]))

    def _on_frame(self, frame: bytes) -> None:
        if not self._running and self.is_drained:
            self.top = wire.position_in(frame)
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
