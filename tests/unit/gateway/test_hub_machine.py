"""Readers that pause, lose their sockets and come back in any order: what each of them has got in
the end is what was published, or it was told how much is missing."""

import asyncio
import json
from collections.abc import Iterable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from gateway import backlogs, catchup
from gateway.hub import Hub
from tests.support.hub import CHAT, LIVE, LOG, PLAIN, counted, joined, transient
from tests.support.logbook import Logbook, Reader, SessionReader

CHANNELS = (CHAT, LIVE)
READERS = 5
EVENTS_MAX = 6  # few, so that some are too many
# Turns after which everybody has come to the top; each page that is read takes some.
TURNS_TO_SETTLE = 400

readers = st.integers(0, READERS - 1)


class Witness:
    """One reader, and what it should have got since it entered."""

    def __init__(self, reader: Reader, top: int, present: Iterable[str]) -> None:
        self.reader = reader
        self.top = top
        """Of the log when it entered."""
        self.present = set(present)
        """Who was there when it entered."""
        self.transients: dict[str, list[int]] = {channel: [] for channel in CHANNELS}
        """Numbers of what was published without a log."""

    def check_log(self, top: int) -> None:
        """Each publication of the log once, and in order."""
        offsets = [offset for offset in self.reader.offsets(CHAT) if offset]
        assert offsets == list(range(self.top + 1, top + 1))

    def check_transients(self, channel: str) -> int:
        """Each of the others once and in order, or counted in a gap. Returns how many are."""
        got, missed = [], 0
        for push in self.reader.pushes:
            if push["channel"] == channel and "offset" not in push.get("pub", {"offset": 0}):
                got.append(push["pub"]["data"][1])
            elif push["channel"] == channel and "gap" in push:
                missed += push["gap"].get("dropped", 0)
        published = self.transients[channel]
        assert got == [number for number in published if number in set(got)]
        assert len(got) + missed == len(published)
        return missed

    def check_presence(self, present: Iterable[str]) -> None:
        """It knows who is there, unless it was told that it doesn't."""
        believed, lost = set(self.present), False
        for push in self.reader.pushes:
            if "join" in push:
                believed.add(push["join"]["info"])
            elif "leave" in push:
                believed.discard(push["leave"]["info"])
            elif "presence" in push.get("gap", {}):
                lost = True
        assert lost or believed == set(present)


class HubMachine(RuleBasedStateMachine):
    """A hub with five readers in one channel with a log and one without."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(backlogs, "EVENTS_MAX", EVENTS_MAX)
        self.patch.setattr(catchup, "LOG_RETRY_DELAY", 0.0)
        self.patch.setattr(catchup, "CATCH_UP_BYTES", 150)  # three or four publications
        self.loop = asyncio.new_event_loop()
        self.log = Logbook()
        self.hub = Hub(self.loop)
        self.hub.use(self.log.streams)
        self.present: set[str] = set()
        self.number = 0
        self.left = False
        self.dropped = counted("drops_total", kind="transient")
        self.witnesses: list[Witness] = []

    @initialize()
    def enter(self) -> None:
        """Everybody enters."""
        self.witnesses = [self.witness(number) for number in range(READERS)]

    def witness(self, number: int) -> Witness:
        """A new reader of the kind that this number has."""
        reader = Reader(deflate=number == 1) if number < 2 else SessionReader()
        self.loop.run_until_complete(self.enter_all(reader))
        return Witness(reader, self.log.top(CHAT).offset, self.present)

    async def enter_all(self, reader: Reader) -> None:
        """Enter both channels."""
        self.hub.deliver_committed(self.log.write(CHAT, 0))
        await joined(self.hub, reader, CHAT, LOG)
        await joined(self.hub, reader, LIVE, PLAIN, listens=True)

    def teardown(self) -> None:
        try:
            if self.witnesses:
                self.come_to_rest()
            self.loop.run_until_complete(self.hub.stop())
        finally:
            self.loop.close()
            self.patch.undo()

    # --- what is published ------------------------------------------------------------------------

    @rule(count=st.integers(1, 6))
    def publish(self, count: int) -> None:
        self.hub.deliver_committed(self.log.write(CHAT, count))

    @rule(count=st.integers(1, 3))
    def publish_while_this_process_misses_some(self, count: int) -> None:
        self.log.write(CHAT, count)
        self.hub.deliver_committed(self.log.write(CHAT))

    @rule(channel=st.sampled_from(CHANNELS))
    def publish_without_a_log(self, channel: str) -> None:
        self.number += 1
        for witness in self.witnesses:
            witness.transients[channel].append(self.number)
        self.hub.deliver_transient(transient([0, self.number], channel))

    @rule(client=st.sampled_from("abcdef"))
    def come_or_go(self, client: str) -> None:
        info = json.dumps(client).encode()
        if client in self.present:
            self.present.remove(client)
            self.hub.announce_leave(LIVE, client, info)
        else:
            self.present.add(client)
            self.hub.announce_join(LIVE, client, info)

    @rule()
    def forget_the_tail(self) -> None:
        self.hub.forget_tail(CHAT)

    @rule(count=st.integers(1, 8))
    def turn(self, count: int) -> None:
        for _ in range(count):
            self.loop.run_until_complete(asyncio.sleep(0))

    # --- what happens to readers ------------------------------------------------------------------

    @rule(number=readers, loses=st.booleans(), room=st.integers(0, 3))
    def obstruct(self, number: int, loses: bool, room: int) -> None:
        """Its socket fills up, or nearly; or it is lost."""
        reader = self.witnesses[number].reader
        if loses and isinstance(reader, SessionReader) and reader.attached:
            reader.detach()
        elif not reader.paused and room:
            reader.room = room
        elif not reader.paused:
            reader.pause()

    @rule(number=readers, full=st.booleans(), room=st.none() | st.integers(1, 3))
    def relieve(self, number: int, full: bool, room: int | None) -> None:
        """Its socket drains, or it gets another one, which may soon be full itself."""
        reader = self.witnesses[number].reader
        if isinstance(reader, SessionReader) and not reader.attached:
            reader.room = room
            reader.attach(full=full)
        elif reader.paused:
            reader.resume()

    @rule(number=readers)
    def take_along_what_waits(self, number: int) -> None:
        """As when a session is saved; here it goes into its tail."""
        reader = self.witnesses[number].reader
        if isinstance(reader, SessionReader) and not reader.attached:
            for push in self.hub.take_presence_backlog(reader, reader.channels):
                reader.note(push)

    @rule(number=readers)
    def leave_and_let_another_enter(self, number: int) -> None:
        reader = self.witnesses[number].reader
        for channel in list(reader.channels):
            self.hub.leave(reader, channel)
        before = len(reader.pushes)
        self.left = True
        self.witnesses[number] = self.witness(number)
        assert len(reader.pushes) == before

    # --- what holds -------------------------------------------------------------------------------

    @invariant()
    @precondition(lambda self: bool(self.witnesses))
    def everybody_is_counted(self) -> None:
        assert self.hub.channels() == {CHAT: READERS, LIVE: READERS}
        assert self.hub._subscriptions == 2 * READERS

    @rule()
    @precondition(lambda self: bool(self.witnesses))
    def come_to_rest(self) -> None:
        """Everybody reads again, and has everything or knows what it hasn't."""
        for witness in self.witnesses:
            reader = witness.reader
            reader.room = None
            if isinstance(reader, SessionReader) and not reader.attached:
                reader.attach()
            elif reader.paused:
                reader.resume()
        for _ in range(TURNS_TO_SETTLE):
            self.turn(1)
            if len(self.hub._channels[CHAT].live) == READERS and not self.hub.has_pending:
                break
        missed = 0
        for witness in self.witnesses:
            witness.check_log(self.log.top(CHAT).offset)
            missed += sum(witness.check_transients(channel) for channel in CHANNELS)
            witness.check_presence(self.present)
        counted_drops = counted("drops_total", kind="transient") - self.dropped
        assert counted_drops == missed or (self.left and counted_drops > missed)
        # Nothing is left of the waiting.
        for name in CHANNELS:
            channel = self.hub._channels[name]
            assert len(channel.live) == READERS
            assert not channel.parked
            assert not channel.catching_up
            assert channel.recording is None
        assert not self.hub._backlogs._journals


TestHubMachine = HubMachine.TestCase
TestHubMachine.settings = settings(max_examples=150, stateful_step_count=40)
