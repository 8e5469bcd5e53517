"""Bringing those who are behind to the top of their channel: from memory, or page by page.

Theory of operation
-------------------
A subscriber that is behind has a position of its own, and its queue is the log. One pump per
channel reads pages, shares them among all at the same position, and lets those who have reached the
top go on with the others. What is missing is often small and in the channel's tail; it is then
written at once, and the same bytes to everybody who is missing the same.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any, Final

from gateway.channel import Behind, Channel, Piece, Subscriber
from gateway.fanout import FanOut
from gateway.protocol.codec import StreamPosition, gap_push, publication_push
from gateway.streams import LogUnavailable, Streams
from gateway.tails import Tails

logger = logging.getLogger(__name__)

# What one subscriber is written at once while it catches up; between two such pieces its write
# pressure is looked at. Also bounds the publications in a subscribe reply.
CATCH_UP_BYTES: Final = 64 * 1024
# Pieces that were written at once and may be wanted by others: 4 MiB in all. Those who come back
# together stood at the same positions, so a few for each busy channel are enough.
PIECES_MAX: Final = 64
LOG_RETRY_DELAY: Final = 1.0

Publications = Sequence[tuple[int, bytes]]


class CatchUp:
    """The reading half of the hub. `spawn` runs a pump.

    `lose_position` is called with subscribers whose position the log doesn't reach back to any
    more, `on_doubt` when a log turns out to be another one than the hub believes.
    """

    def __init__(
        self,
        out: FanOut,
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
        lose_position: Callable[[Channel, Iterable[Subscriber]], None],
        on_doubt: Callable[[], None],
    ) -> None:
        self._out = out
        self._spawn = spawn
        self._lose_position = lose_position
        self._on_doubt = on_doubt
        self._streams: Streams | None = None
        self._tails = Tails()
        # By channel, epoch, and the offsets they lie between; the last one used at the end.
        self._pieces: OrderedDict[tuple[str, str | None, int, int], Piece] = OrderedDict()

    def use(self, streams: Streams) -> None:
        """Read pages from there."""
        self._streams = streams

    # --- memory -----------------------------------------------------------------------------------

    def keep(self, channel: Channel, offset: int, pub: bytes) -> None:
        """Remember a channel's newest publication."""
        self._tails.keep(channel, offset, pub)

    def forget(self, channel: Channel) -> None:
        """Drop what memory holds of a channel: it has a hole now, or is needed no more."""
        self._tails.drop(channel)

    def forget_removed(self, channel: Channel) -> None:
        """Drop what memory holds of a channel whose history was removed."""
        self._tails.drop(channel)
        self._pieces.clear()  # some may hold publications of it

    def at_hand(self, channel: Channel, since: StreamPosition | None) -> bool:
        """Whether nothing has to be read to join from `since`."""
        if since is None or (since.epoch and since.epoch != channel.epoch):
            return True
        tail_start = channel.tail[0][0] if channel.tail else channel.top + 1
        return tail_start - 1 <= since.offset <= channel.top

    def remembered_after(self, channel: Channel, since: StreamPosition) -> Publications | None:
        """What memory holds right behind `since`; None when the log doesn't reach back to it.

        Nothing at hand is no answer yet: the pump reads on and finds out.
        """
        assert self._streams is not None
        if since.offset > channel.top or (since.epoch and since.epoch != channel.epoch):
            return None
        if since.offset == channel.top:
            return ()
        publications = self._tails.after(channel, since.offset)
        if publications is None:
            page = self._streams.cached_page(channel.name, since.offset)
            if page is None or page.epoch != channel.epoch or page.until <= since.offset:
                return ()
            publications = page.after(since.offset)
        if not publications or publications[0][0] != since.offset + 1:
            return None
        return _up_to(publications, channel.top)

    def rest_at_hand(self, channel: Channel, after: int) -> Piece | None:
        """All that is missing behind an offset, if memory holds it and it fits one piece."""
        key = (channel.name, channel.epoch, after, channel.top)
        piece = self._pieces.get(key)
        if piece is not None:
            self._pieces.move_to_end(key)
            return piece
        publications = self._tails.after(channel, after)
        if not publications or len(first_page(publications)) < len(publications):
            return None
        piece = _piece(channel.name_json, publications)
        self._pieces[key] = piece
        if len(self._pieces) > PIECES_MAX:
            self._pieces.popitem(last=False)
        return piece

    async def read_after(self, channel: Channel, after: int) -> Publications:
        """A stretch of the log right behind an offset, from memory if it is there.

        It may be empty, and may begin later where the log no longer has what came first. Raises
        `LogUnavailable`.
        """
        assert self._streams is not None
        publications = self._tails.after(channel, after)
        if publications is None:
            # What the tail holds need not be read.
            until = channel.tail[0][0] - 1 if channel.tail else channel.top
            top = StreamPosition(until, channel.epoch or "")
            page = await self._streams.page(channel.name, channel.options, after, top)
            if page is None or page.epoch != channel.epoch:
                self._on_doubt()  # the log began anew, and nobody told us
                return ()
            publications = page.after(after)
        return publications

    # --- the pump ---------------------------------------------------------------------------------

    def start(self, channel: Channel) -> None:
        """Bring those to the top who catch up."""
        if channel.pump is None or channel.pump.done():
            channel.pump = self._spawn(self._pump(channel))

    async def _pump(self, channel: Channel) -> None:
        """Bring the subscribers that catch up to the top, the hindmost first.

        One round brings everybody a page further, so that they meet at the pages' ends and the cost
        of looking for them is that of the pages, however scattered they were.
        """
        while True:
            # Let the replies out that were queued in the turn in which somebody was placed here.
            await asyncio.sleep(0)
            self._out.flush()
            followers: dict[int, list[Subscriber]] = {}
            for subscriber, behind in channel.catching_up.items():
                followers.setdefault(behind.offset, []).append(subscriber)
            if not followers:
                return
            try:
                for after in sorted(followers):
                    await self._pump_from(channel, after, followers[after])
            except Exception as error:
                if not isinstance(error, LogUnavailable):
                    logger.exception("could not read the log of a channel")
                await asyncio.sleep(LOG_RETRY_DELAY)

    async def _pump_from(
        self, channel: Channel, after: int, followers: Sequence[Subscriber]
    ) -> None:
        """Bring those who were at one position a page further, if they still are there."""
        epoch = channel.epoch
        publications: Publications = ()
        if after < channel.top:
            publications = await self.read_after(channel, after)
        if channel.epoch == epoch:
            self._advance(channel, after, publications, followers)
        await asyncio.sleep(0)  # the page may have been at hand, and others want their turn

    def _advance(
        self,
        channel: Channel,
        after: int,
        publications: Publications,
        followers: Sequence[Subscriber],
    ) -> None:
        """Write to everybody at one position, and let those go on live who reach the top."""
        catching_up = channel.catching_up
        followers = [
            subscriber
            for subscriber in followers
            if (behind := catching_up.get(subscriber)) is not None and behind.offset == after
        ]
        if not followers:
            return
        if after < channel.top and (not publications or publications[0][0] != after + 1):
            self._lose_position(channel, followers)
            return
        pieces = _pieces(channel.name_json, _up_to(publications, channel.top))
        for subscriber in followers:
            for last, piece in pieces:
                behind = catching_up.get(subscriber)
                if behind is None:
                    break  # parked or gone, by the last write to it or to another
                # Noted first: if the write fills its socket, it is parked where it will be.
                catching_up[subscriber] = Behind(last, behind.transients)
                self._out.write(subscriber, piece)
        self._out.flush()
        for subscriber in followers:
            behind = catching_up.get(subscriber)
            if behind is not None and behind.offset == channel.top:
                del catching_up[subscriber]
                channel.live.add(subscriber)
                self.report_gap(channel, subscriber, behind)

    def report_gap(self, channel: Channel, subscriber: Subscriber, behind: Behind) -> None:
        """Tell a subscriber that has been behind how many publications it missed for good."""
        dropped = channel.transients - behind.transients
        if dropped:
            self._out.write(subscriber, Piece((gap_push(channel.name_json, dropped=dropped),)))


def first_page(publications: Publications) -> Publications:
    """What of these is written at once: as much as `CATCH_UP_BYTES` holds, one at least."""
    size = 0
    for count, (_, pub) in enumerate(publications):
        size += len(pub)
        if size > CATCH_UP_BYTES and count:
            return publications[:count]
    return publications


def _up_to(publications: Publications, top: int) -> Publications:
    """Without those above `top`: the log has them, but this process hasn't been handed them yet."""
    early = publications[-1][0] - top if publications else 0
    return publications[:-early] if early > 0 else publications


def _piece(name_json: bytes, publications: Publications) -> Piece:
    return Piece([publication_push(name_json, pub) for _, pub in publications])


def _pieces(name_json: bytes, publications: Publications) -> list[tuple[int, Piece]]:
    """Publications as `(last offset, piece)` of bounded size."""
    pieces = []
    while publications:
        part = first_page(publications)
        publications = publications[len(part) :]
        pieces.append((part[-1][0], _piece(name_json, part)))
    return pieces
