"""Joins and leaves for listeners who can't be told now, told when they read again.

Theory of operation
-------------------
Each channel that somebody waits in keeps one journal of its joins and leaves for all who wait, and
of each of them only where in it they stopped listening. So a join costs the same however many wait.
When one listens again, what happened since is summed up: of each client the last event counts, and
a client that came and went, or went and came back the same, hasn't moved.

The journals are bounded. A listener for whom that wasn't enough is told how many events it missed:
what it knows of the channel's presence is out of date then, and it should ask anew.
"""

from collections import OrderedDict
from itertools import islice
from typing import Final, NamedTuple

from gateway.channel import Channel, Piece, Subscriber
from gateway.protocol.codec import gap_push, join_push, leave_push
from metrics import instruments

# Of one channel. A quarter of what a session's tail holds by default, in number and in bytes, so
# that being told of them doesn't overflow it. Whoever missed more is better off asking anew.
EVENTS_MAX: Final = 256
EVENTS_MAX_BYTES: Final = 64 * 1024
# Of all channels.
JOURNALS_MAX_BYTES: Final = 16 * 1024 * 1024


class _Event(NamedTuple):
    """A client's join or leave, with its ClientInfo in JSON."""

    client: str
    joins: bool
    info: bytes


class _Journal:
    """The last events of one channel, numbered from 1 on, and who waits to be told of them."""

    __slots__ = ("events", "last", "size", "told", "waiting")

    def __init__(self) -> None:
        self.events: list[_Event] = []
        self.size = 0
        self.last = 0  # the number of the last event
        self.waiting: dict[Subscriber, int] = {}  # and the last event that each has heard of
        # What those are told now who have heard of everything up to a number.
        self.told: tuple[int, Piece | None] | None = None

    @property
    def forgotten(self) -> int:
        """The number of the last event that the journal no longer has."""
        return self.last - len(self.events)


class Backlogs:
    """The journals of all channels in which somebody waits, and a limit on them together."""

    def __init__(self) -> None:
        self._size = 0
        # The one that something was written into longest ago first.
        self._journals: OrderedDict[Channel, _Journal] = OrderedDict()
        self._drops = instruments.DROPS.labels("presence")

    def wait(self, channel: Channel, subscriber: Subscriber) -> None:
        """Keep for a listener what happens from now on. One that waits already goes on waiting."""
        journal = self._journals.get(channel)
        if journal is None:
            journal = self._journals[channel] = _Journal()
        journal.waiting.setdefault(subscriber, journal.last)

    def waits(self, channel: Channel, subscriber: Subscriber) -> bool:
        """Whether a listener waits."""
        journal = self._journals.get(channel)
        return journal is not None and subscriber in journal.waiting

    def note(self, channel: Channel, client: str, joins: bool, info: bytes) -> None:
        """Keep a join or leave, if anybody waits."""
        journal = self._journals.get(channel)
        if journal is None:
            return
        self._journals.move_to_end(channel)
        journal.told = None
        journal.last += 1
        journal.events.append(_Event(client, joins, info))
        journal.size += len(info)
        self._size += len(info)
        while len(journal.events) > EVENTS_MAX or journal.size > EVENTS_MAX_BYTES:
            size = len(journal.events.pop(0).info)
            journal.size -= size
            self._size -= size
        while self._size > JOURNALS_MAX_BYTES:
            self._empty(next(journal for journal in self._journals.values() if journal.events))

    def _empty(self, journal: _Journal) -> None:
        self._size -= journal.size
        journal.size = 0
        journal.events.clear()
        journal.told = None

    def take(self, channel: Channel, subscriber: Subscriber) -> Piece | None:
        """End the waiting of a listener: what it is to be told, in order, if anything."""
        journal = self._journals.get(channel)
        if journal is None:
            return None
        heard = self._end(channel, journal, subscriber)
        if heard is None or heard == journal.last:
            return None
        if journal.told is None or journal.told[0] != heard:
            pushes = _summed_up(channel, journal, heard)
            journal.told = (heard, Piece(pushes) if pushes else None)
        return journal.told[1]

    def leave(self, channel: Channel, subscriber: Subscriber) -> None:
        """End the waiting of a listener that goes."""
        journal = self._journals.get(channel)
        if journal is not None:
            self._end(channel, journal, subscriber)

    def _end(self, channel: Channel, journal: _Journal, subscriber: Subscriber) -> int | None:
        """The number of the last event that a listener has heard of; None when it doesn't wait."""
        heard = journal.waiting.pop(subscriber, None)
        if heard is None:
            return None
        if heard < journal.forgotten:
            self._drops.inc(journal.forgotten - heard)
        if not journal.waiting:
            self._size -= journal.size
            del self._journals[channel]
        return heard


def _summed_up(channel: Channel, journal: _Journal, heard: int) -> list[bytes]:
    latest: dict[str, _Event] = {}
    for event in islice(journal.events, max(0, heard - journal.forgotten), None):
        earlier = latest.pop(event.client, None)
        if (
            earlier is None
            or earlier.joins == event.joins
            or (event.joins and earlier.info != event.info)
        ):
            latest[event.client] = event
    name = channel.name_json
    pushes = [
        join_push(name, event.info) if event.joins else leave_push(name, event.info)
        for event in latest.values()
    ]
    if heard < journal.forgotten:
        pushes.insert(0, gap_push(name, presence=journal.forgotten - heard))
    return pushes
