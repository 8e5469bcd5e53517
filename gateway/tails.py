"""The last publications of each channel, in memory: short losses are recovered without a read."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

from gateway.channel import Channel
from metrics import instruments

# Publications kept in memory per channel: enough for a short loss of network without a read.
TAIL_MAX: Final = 256
TAIL_MAX_BYTES: Final = 64 * 1024
TAILS_MAX_BYTES: Final = 64 * 1024 * 1024


class Tails:
    """The tails of all channels, and a limit on what they take together."""

    def __init__(self) -> None:
        self._size = 0
        # Channels with a tail, the one that was published to longest ago first.
        self._channels: OrderedDict[Channel, None] = OrderedDict()
        self._reads = instruments.LOG_READS.labels("tail")

    def keep(self, channel: Channel, offset: int, pub: bytes) -> None:
        """Add a channel's newest publication."""
        tail = channel.tail
        tail.append((offset, pub))
        channel.tail_bytes += len(pub)
        self._size += len(pub)
        self._channels[channel] = None
        self._channels.move_to_end(channel)
        while len(tail) > TAIL_MAX or channel.tail_bytes > TAIL_MAX_BYTES:
            _, oldest = tail.popleft()
            channel.tail_bytes -= len(oldest)
            self._size -= len(oldest)
        while self._size > TAILS_MAX_BYTES:
            self.drop(next(iter(self._channels)))

    def drop(self, channel: Channel) -> None:
        """Forget a channel's tail, which has a hole now or is needed no more."""
        if channel in self._channels:
            del self._channels[channel]
            self._size -= channel.tail_bytes
            channel.tail.clear()
            channel.tail_bytes = 0

    def after(self, channel: Channel, offset: int) -> Sequence[tuple[int, bytes]] | None:
        """The tail behind an offset, None when it doesn't reach back that far."""
        tail = channel.tail
        if not tail or tail[0][0] > offset + 1:
            return None
        self._reads.inc()
        return [entry for entry in tail if entry[0] > offset]
