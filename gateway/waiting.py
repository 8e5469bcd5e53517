"""Subscribers who can't be written to for a while: slow readers, and sessions without a socket.

Theory of operation
-------------------
They are taken out of everything that is looped over, so that ten thousand of them cost the others
nothing. What each of them has on coming back depends on what it missed (PROTOCOL.md B.6):

* publications of a log: its position is all that is kept, and the log is its queue;
* publications without a log: for a session without a socket they go into its tail, within the
  tail's limits. A slow reader misses them, and is told how many they were;
* ephemeral ones: nothing, they are only counted;
* joins and leaves: what they sum up to, from the channel's journal.
"""

from collections.abc import Collection, Iterable, Mapping
from functools import partial

from gateway.backlogs import Backlogs
from gateway.catchup import CatchUp
from gateway.channel import Audience, Behind, Channel, Subscriber
from gateway.fanout import FanOut
from gateway.protocol.codec import gap_push
from metrics import instruments


class Waiting:
    """Takes subscribers out of the hub's `channels` and brings them back."""

    def __init__(
        self,
        channels: Mapping[str, Channel],
        out: FanOut,
        catch_up: CatchUp,
        backlogs: Backlogs,
    ) -> None:
        self._channels = channels
        self._out = out
        self._catch_up = catch_up
        self._backlogs = backlogs

    def pause(self, subscriber: Subscriber, names: Collection[str]) -> None:
        """Write nothing more to a subscriber whose socket is over its high-water mark."""
        self._out.after_writing(partial(self._pause, subscriber, names))

    def _pause(self, subscriber: Subscriber, names: Iterable[str]) -> None:
        for name in names:
            channel = self._channels.get(name)
            if channel is None:
                continue
            self._stop_listening(channel, subscriber)
            if channel.live.remove(subscriber):
                channel.parked[subscriber] = channel.here
                if channel.logged:
                    instruments.DEMOTIONS.inc()
            elif self._stop_recording(channel, subscriber):
                channel.parked[subscriber] = channel.here
            else:
                self._park(channel, subscriber)

    def detach(self, subscriber: Subscriber, names: Collection[str]) -> None:
        """Keep a session in its channels while it has no socket."""
        self._out.after_writing(partial(self._detach, subscriber, names))

    def _detach(self, subscriber: Subscriber, names: Iterable[str]) -> None:
        for name in names:
            channel = self._channels.get(name)
            if channel is None:
                continue
            self._stop_listening(channel, subscriber)
            if channel.logged:
                if channel.live.remove(subscriber):
                    channel.parked[subscriber] = channel.here
                else:
                    self._park(channel, subscriber)
                continue
            behind = channel.parked.pop(subscriber, None)
            if behind is not None or channel.live.remove(subscriber):
                self.record(channel, subscriber)
            if behind is not None:
                # It was slow before: that goes into its tail in front of what comes now.
                self._catch_up.report_gap(channel, subscriber, behind)

    def _stop_listening(self, channel: Channel, subscriber: Subscriber) -> None:
        if channel.listeners is not None and channel.listeners.remove(subscriber):
            self._backlogs.wait(channel, subscriber)

    def _park(self, channel: Channel, subscriber: Subscriber) -> None:
        """Take a subscriber that catches up away from the pump."""
        behind = channel.catching_up.pop(subscriber, None)
        if behind is not None:
            channel.parked[subscriber] = behind

    def record(self, channel: Channel, subscriber: Subscriber) -> None:
        """Let what is published without a log go into a session's tail."""
        if channel.recording is None:
            channel.recording = Audience()
        channel.recording.add(subscriber)

    def _stop_recording(self, channel: Channel, subscriber: Subscriber) -> bool:
        recording = channel.recording
        if recording is None or not recording.remove(subscriber):
            return False
        if not len(recording):
            channel.recording = None
        return True

    def go_on(self, subscriber: Subscriber, names: Collection[str]) -> None:
        """Write to a subscriber again, beginning with what it is to know of the time between."""
        for name in names:
            if subscriber.paused:  # a new socket that is full already, or is by now
                self.pause(subscriber, names)
                return
            channel = self._channels.get(name)
            if channel is not None:
                if channel.has_pending:
                    self._out.flush()
                self._go_on_in(channel, subscriber)

    def _go_on_in(self, channel: Channel, subscriber: Subscriber) -> None:
        # Everything is in its place before something is written: a write may fill the socket, and
        # that parks the subscriber wherever it is.
        behind = channel.parked.pop(subscriber, None)
        rest = None
        if behind is None:
            if self._stop_recording(channel, subscriber):
                channel.live.add(subscriber)
        elif behind.offset == channel.top:
            channel.live.add(subscriber)
        else:
            rest = self._catch_up.rest_at_hand(channel, behind.offset)
            if rest is not None:
                channel.live.add(subscriber)
            else:
                channel.catching_up[subscriber] = behind
                self._catch_up.start(channel)
                behind = None  # its gap is reported when it arrives at the top
        presence = None
        if self._backlogs.waits(channel, subscriber):
            presence = self._backlogs.take(channel, subscriber)
            if channel.listeners is None:
                channel.listeners = Audience()
            channel.listeners.add(subscriber)
        if rest is not None:
            self._out.write(subscriber, rest)
        if behind is not None:
            self._catch_up.report_gap(channel, subscriber, behind)
        if presence is not None:
            self._out.write(subscriber, presence)

    def leave(self, channel: Channel, subscriber: Subscriber) -> bool:
        """Take a subscriber out that waits; False when it isn't among those who do."""
        self._backlogs.leave(channel, subscriber)
        return channel.parked.pop(subscriber, None) is not None or self._stop_recording(
            channel, subscriber
        )

    def take_backlog(self, subscriber: Subscriber, names: Iterable[str]) -> list[bytes]:
        """What a subscriber would be written on coming back, beside publications of a log."""
        pushes: list[bytes] = []
        for name in names:
            channel = self._channels.get(name)
            if channel is None:
                continue
            behind = channel.parked.get(subscriber)
            if behind is not None and behind.transients != channel.transients:
                dropped = channel.transients - behind.transients
                pushes.append(gap_push(channel.name_json, dropped=dropped))
                channel.parked[subscriber] = Behind(behind.offset, channel.transients)
            if self._backlogs.waits(channel, subscriber):
                presence = self._backlogs.take(channel, subscriber)
                if presence is not None:
                    pushes += presence.pushes
                self._backlogs.wait(channel, subscriber)
        return pushes
