"""Writes to many sockets: frames of one loop turn are gathered, joined once, and written in a loop.

uvloop writes at once and doesn't coalesce, so a burst of ten publications would cost ten system
calls for each subscriber; gathered until the end of the loop turn it costs one.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping

from gateway.channel import Audience, Sink, Subscriber
from gateway.protocol.frames import deflated_text_frame, text_frame
from metrics import instruments

logger = logging.getLogger(__name__)

# Who gets something, the joined frames, and how many they are.
_Batch = tuple[Mapping[Subscriber, Sink], bytes, int]


class FanOut:
    """The writing half of the hub. `on_flushed` is called after each round of writes."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        compression_min_bytes: int,
        on_flushed: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._compression_min_bytes = compression_min_bytes
        self._on_flushed = on_flushed
        self._dirty: list[Audience] = []  # audiences with pending pushes
        self._flush_due = False
        self._committed_at = 0.0  # when the oldest commit among what is pending came
        self.flushing = False
        # Pushes that were written, for the counter; whoever writes past `flush` adds to it.
        self.delivered = 0

    @property
    def has_pending(self) -> bool:
        """Whether frames wait for the end of the loop turn."""
        return bool(self._dirty)

    def append(self, audience: Audience, push: bytes) -> None:
        """Let everybody in an audience have a push at the end of the loop turn."""
        if not audience.pending:
            self._dirty.append(audience)
        audience.pending.append(push)
        if not self._flush_due:
            self._flush_due = True
            self._loop.call_soon(self._flush_at_end)

    def note_commit(self) -> None:
        """A commit's publications are among what is pending."""
        if self._dirty and not self._committed_at:
            self._committed_at = self._loop.time()

    def _flush_at_end(self) -> None:
        self._flush_due = False
        self.flush()

    def flush(self) -> None:
        """Write what this turn of the loop has gathered so far."""
        if self.flushing or not self._dirty:
            return
        dirty, self._dirty = self._dirty, []
        self.flushing = True
        try:
            batches = [batch for audience in dirty for batch in self._take(audience)]
            if len(batches) == 1:
                members, frames, count = batches[0]
                for sink in members.values():
                    try:
                        sink(frames)
                    except Exception:  # must not cost the others their message
                        logger.exception("could not write to a subscriber")
                self.delivered += len(members) * count
            else:
                self._write_merged(batches)
        finally:
            self.flushing = False
        instruments.DELIVERIES.inc(self.delivered)
        self.delivered = 0
        if self._committed_at:
            instruments.COMMIT_TO_WRITE.observe(self._loop.time() - self._committed_at)
            self._committed_at = 0.0
        self._on_flushed()

    def _take(self, audience: Audience) -> Iterable[_Batch]:
        """An audience's pending frames, joined, once for each encoding that somebody reads."""
        pending, audience.pending = audience.pending, []
        if audience.plain:
            yield audience.plain, b"".join(map(text_frame, pending)), len(pending)
        if audience.deflated:
            yield audience.deflated, self.deflated(pending), len(pending)

    def deflated(self, pushes: Iterable[bytes]) -> bytes:
        """Frames for those who negotiated compression; short ones stay plain, as they may."""
        return b"".join(
            deflated_text_frame(push)
            if len(push) >= self._compression_min_bytes
            else text_frame(push)
            for push in pushes
        )

    def _write_merged(self, batches: list[_Batch]) -> None:
        """Write several audiences' frames, once to each subscriber.

        Joined once for all subscribers who get the same frames: the joins are remembered by the
        identity of their two halves, which they keep alive.
        """
        merged: dict[Subscriber, bytes] = {}
        joins: dict[tuple[int, int], bytes] = {}
        for members, frames, count in batches:
            self.delivered += len(members) * count
            for subscriber in members:
                earlier = merged.get(subscriber)
                if earlier is None:
                    merged[subscriber] = frames
                    continue
                halves = (id(earlier), id(frames))
                joined = joins.get(halves)
                if joined is None:
                    joined = joins[halves] = earlier + frames
                merged[subscriber] = joined
        for subscriber, frames in merged.items():
            try:
                subscriber.sink(frames)
            except Exception:  # must not cost the others their message
                logger.exception("could not write to a subscriber")
