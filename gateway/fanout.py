"""Writes to many sockets: frames of one loop turn are gathered, joined once, and written in a loop.

uvloop writes at once and doesn't coalesce, so a burst of ten publications would cost ten system
calls for each subscriber; gathered until the end of the loop turn it costs one.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, TypeVar

from gateway.channel import Audience, Piece, Recorder, Sink, Subscriber
from gateway.protocol.frames import deflated_text_frame, text_frame
from metrics import instruments

logger = logging.getLogger(__name__)

_DELIVERIES: Final = instruments.DELIVERIES.labels()

Writer = TypeVar("Writer", Sink, Recorder)
# Who gets something and how, the joined frames, and how many they are.
_Batch = tuple[Mapping[Subscriber, Writer], bytes, int]


class FanOut:
    """The writing half of the hub."""

    def __init__(self, loop: asyncio.AbstractEventLoop, compression_min_bytes: int) -> None:
        self._loop = loop
        self._compression_min_bytes = compression_min_bytes
        self._dirty: list[Audience] = []  # audiences with pending pushes
        self._flush_due = False
        self._committed_at = 0.0  # when the oldest commit among what is pending came
        self._flushing = False
        self._afterwards: list[Callable[[], object]] = []
        self._delivered = 0  # pushes that were written since the counter was told

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
        if self._flushing or not self._dirty:
            return
        dirty, self._dirty = self._dirty, []
        self._flushing = True
        try:
            # One encoding after the other: nobody reads more than one, so that only batches of the
            # same encoding can meet at a subscriber.
            plain: list[_Batch[Sink]] = []
            deflated: list[_Batch[Sink]] = []
            recorded: list[_Batch[Recorder]] = []
            for audience in dirty:
                pending, audience.pending = audience.pending, []
                count = len(pending)
                if audience.plain or audience.sessions:
                    frames = b"".join(map(text_frame, pending))
                    if audience.plain:
                        plain.append((audience.plain, frames, count))
                    if audience.sessions:
                        recorded.append((audience.sessions, frames, count))
                if audience.deflated:
                    deflated.append((audience.deflated, self._deflated(pending), count))
            self._write_to_sinks(plain)
            self._write_to_sinks(deflated)
            self._write_to_sessions(recorded)
        finally:
            self._flushing = False
        _DELIVERIES.inc(self._delivered)
        self._delivered = 0
        if self._committed_at:
            instruments.COMMIT_TO_WRITE.observe(self._loop.time() - self._committed_at)
            self._committed_at = 0.0
        while self._afterwards:
            afterwards, self._afterwards = self._afterwards, []
            for change in afterwards:
                change()

    def after_writing(self, change: Callable[[], object]) -> None:
        """Write what is pending, and then change who is in the audiences.

        That is at once, unless somebody who is being written to asks for it: the audiences mustn't
        change under the loop over them.
        """
        if self._flushing:
            self._afterwards.append(change)
        else:
            self.flush()
            change()

    def _write_to_sinks(self, batches: Sequence[_Batch[Sink]]) -> None:
        if len(batches) == 1:
            members, frames, count = batches[0]
            for sink in members.values():
                try:
                    sink(frames)
                except Exception:  # must not cost the others their message
                    logger.exception("could not write to a subscriber")
            self._delivered += len(members) * count
        elif batches:
            merged, _ = self._merge(batches)
            for subscriber, frames in merged.items():
                try:
                    subscriber.sink(frames)
                except Exception:  # must not cost the others their message
                    logger.exception("could not write to a subscriber")

    def _write_to_sessions(self, batches: Sequence[_Batch[Recorder]]) -> None:
        if len(batches) == 1:
            members, frames, count = batches[0]
            for record in tuple(members.values()):  # one of them may end, and leave
                try:
                    record(frames, count)
                except Exception:  # must not cost the others their message
                    logger.exception("could not write to a session")
            self._delivered += len(members) * count
        elif batches:
            merged, counts = self._merge(batches)
            for subscriber, frames in merged.items():
                own = subscriber.record
                assert own is not None, "it is among the sessions"
                try:
                    own(frames, counts[id(frames)])
                except Exception:  # must not cost the others their message
                    logger.exception("could not write to a session")

    def _merge(
        self, batches: Sequence[_Batch[Writer]]
    ) -> tuple[dict[Subscriber, bytes], dict[int, int]]:
        """What each subscriber gets of several batches, and how many frames those are by their id.

        Joined once for all subscribers who get the same frames: the joins are remembered by the
        identity of their two halves, which they keep alive.
        """
        merged: dict[Subscriber, bytes] = {}
        counts: dict[int, int] = {}
        joins: dict[tuple[int, int], bytes] = {}
        for members, frames, count in batches:
            self._delivered += len(members) * count
            counts[id(frames)] = count
            for subscriber in members:
                earlier = merged.get(subscriber)
                if earlier is None:
                    merged[subscriber] = frames
                    continue
                halves = (id(earlier), id(frames))
                joined = joins.get(halves)
                if joined is None:
                    joined = joins[halves] = earlier + frames
                    counts[id(joined)] = counts[id(earlier)] + count
                merged[subscriber] = joined
        return merged, counts

    def write(self, subscriber: Subscriber, piece: Piece) -> None:
        """Write to one subscriber now, whatever its encoding."""
        try:
            record = subscriber.record
            if record is not None:
                record(piece.plain, len(piece))
            elif subscriber.deflate:
                if piece.deflated is None:
                    piece.deflated = self._deflated(piece.pushes)
                subscriber.sink(piece.deflated)
            else:
                subscriber.sink(piece.plain)
        except Exception:  # must not cost the others their message
            logger.exception("could not write to a subscriber")
        self._delivered += len(piece)

    def _deflated(self, pushes: Iterable[bytes]) -> bytes:
        """Frames for those who negotiated compression; short ones stay plain, as they may."""
        return b"".join(
            deflated_text_frame(push)
            if len(push) >= self._compression_min_bytes
            else text_frame(push)
            for push in pushes
        )
