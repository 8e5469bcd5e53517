"""The server's side of a session: counts, tail, fencing, retention, and the next process."""

from collections.abc import Callable
from typing import Final

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gateway.protocol.session import (
    NEVER,
    TRANSITIONS,
    Gone,
    Pressure,
    Resumed,
    Resumption,
    SavedSession,
    Session,
    SessionEvent,
    SessionState,
    SessionViolation,
    TailLimits,
)
from tests.support.fuzzing import REPEATABLE

LIMITS: Final = TailLimits(frames=8, bytes=1000)
STABLE: Final = 30.0


def send(session: Session, *frames: bytes, limits: TailLimits = LIMITS) -> Pressure:
    """Frames that are written together."""
    return session.sent_frames(b"".join(frames), len(frames), limits)


def resume(session: Session, received: int, attempt: int = 0, now: float = 100.0) -> Resumed | Gone:
    return session.resume(Resumption(received, attempt), now, STABLE)


def resumed(session: Session, received: int, attempt: int = 0, now: float = 100.0) -> Resumed:
    outcome = resume(session, received, attempt, now)
    assert isinstance(outcome, Resumed)
    return outcome


def session_in(state: SessionState) -> Session:
    session = Session()
    send(session, b"a")
    if state is SessionState.DETACHED:
        session.lose(0.0, 60.0)
    elif state is SessionState.ENDED:
        session.leave()
    assert session.state is state
    return session


def facts(session: Session) -> tuple[object, ...]:
    return (
        session.state,
        session.expires_at,
        session.tail_bytes,
        session.unacknowledged,
        session.save(),
    )


# --- the table ------------------------------------------------------------------------------------

EVENTS: Final[dict[SessionEvent, Callable[[Session], object]]] = {
    SessionEvent.RESUME: lambda session: resumed(session, 0),
    SessionEvent.LOSE: lambda session: session.lose(0.0, 60.0),
    SessionEvent.LEAVE: Session.leave,
    SessionEvent.EXPIRE: Session.expire,
    SessionEvent.BREAK: Session.break_off,
}


def test_the_table_has_every_state_and_every_event_of_the_tests() -> None:
    assert set(TRANSITIONS) == set(SessionState)
    assert set(EVENTS) == set(SessionEvent)


@pytest.mark.parametrize("state", SessionState, ids=lambda state: state.value)
@pytest.mark.parametrize("event", SessionEvent, ids=lambda event: event.value)
def test_every_event_in_every_state_does_what_the_table_says(
    state: SessionState, event: SessionEvent
) -> None:
    session = session_in(state)
    before = facts(session)

    if event in TRANSITIONS[state]:
        EVENTS[event](session)
        assert session.state is TRANSITIONS[state][event]
    else:
        with pytest.raises(AssertionError, match=event.name):
            EVENTS[event](session)
        assert facts(session) == before


@pytest.mark.parametrize("end", [Session.leave, Session.break_off])
def test_an_ended_session_holds_nothing(end: Callable[[Session], None]) -> None:
    session = Session()
    send(session, b"a", b"b")

    end(session)

    assert session.tail_bytes == 0
    assert session.save().tail == []
    assert session.expires_at == NEVER


def test_an_expired_session_holds_nothing() -> None:
    session = session_in(SessionState.DETACHED)

    session.expire()

    assert (session.tail_bytes, session.save().tail, session.expires_at) == (0, [], NEVER)


# --- counting and the tail ------------------------------------------------------------------------


def test_a_new_session_has_the_first_generation_and_nothing_else() -> None:
    session = Session()

    assert session.state is SessionState.ATTACHED
    assert (session.generation, session.sent, session.received) == (1, 0, 0)
    assert (session.unacknowledged, session.tail_bytes, session.expires_at) == (0, 0, NEVER)


def test_processed_frames_are_counted() -> None:
    session = Session()
    session.received_frame()
    session.received_frame()

    assert session.received == 2


def test_the_tail_holds_what_is_not_acknowledged() -> None:
    session = Session()
    send(session, b"aa")
    send(session, b"bbb", b"cc")
    send(session, b"d")

    session.acknowledge(1)

    assert (session.sent, session.unacknowledged, session.tail_bytes) == (4, 3, 6)
    assert session.save().tail == [(3, 2, b"bbbcc"), (4, 1, b"d")]


def test_what_was_written_together_is_held_until_all_of_it_is_acknowledged() -> None:
    session = Session()
    send(session, b"aa", b"bb", b"cc")

    session.acknowledge(2)

    assert (session.unacknowledged, session.tail_bytes) == (1, 6)
    session.acknowledge(3)
    assert (session.unacknowledged, session.tail_bytes) == (0, 0)


def test_a_tail_of_more_than_half_the_frames_asks_once() -> None:
    session = Session()

    pressures = [send(session, b"x") for _ in range(8)]

    assert pressures == [Pressure.NONE] * 4 + [Pressure.ASK] + [Pressure.NONE] * 3


def test_a_tail_of_more_than_half_the_bytes_asks_once() -> None:
    session = Session()

    pressures = [send(session, bytes(250)) for _ in range(4)]

    assert pressures == [Pressure.NONE, Pressure.NONE, Pressure.ASK, Pressure.NONE]


def test_an_acknowledgement_lets_it_ask_again() -> None:
    session = Session()
    for _ in range(5):
        send(session, b"x")

    session.acknowledge(1)

    assert send(session, b"x") is Pressure.ASK


def test_an_old_acknowledgement_does_not_let_it_ask_again() -> None:
    session = Session()
    send(session, b"x")
    session.acknowledge(1)
    for _ in range(5):
        send(session, b"x")

    session.acknowledge(1)

    assert send(session, b"x") is Pressure.NONE


def test_a_resumption_lets_it_ask_again() -> None:
    session = Session()
    for _ in range(6):
        send(session, b"x")
    session.lose(0.0, 60.0)
    resumed(session, 0)

    assert send(session, b"x") is Pressure.ASK


@pytest.mark.parametrize("frame", [b"x", bytes(120)], ids=["frames", "bytes"])
def test_a_tail_over_its_limit_is_dropped(frame: bytes) -> None:
    session = Session()
    for _ in range(8):
        assert send(session, frame) is not Pressure.DROPPED

    assert send(session, frame) is Pressure.DROPPED
    assert (session.sent, session.unacknowledged, session.tail_bytes) == (9, 0, 0)


def test_one_frame_may_be_more_than_a_tail_holds() -> None:
    session = Session()

    assert send(session, bytes(1001)) is Pressure.DROPPED
    assert session.tail_bytes == 0


def test_after_a_drop_the_tail_begins_anew_and_asks_anew() -> None:
    session = Session()
    for _ in range(9):
        send(session, b"x")

    pressures = [send(session, b"y") for _ in range(5)]

    assert pressures == [Pressure.NONE] * 4 + [Pressure.ASK]
    assert session.unacknowledged == 5


def test_frames_of_a_dropped_tail_may_still_be_acknowledged() -> None:
    session = Session()
    for _ in range(9):
        send(session, b"x")
    send(session, b"y")

    session.acknowledge(5)

    assert (session.unacknowledged, session.tail_bytes) == (1, 1)
    session.acknowledge(9)
    assert resumed(session, 9).count == 1


def test_nothing_is_acknowledged_that_was_not_sent() -> None:
    session = Session()
    send(session, b"x")
    before = facts(session)

    with pytest.raises(SessionViolation, match="2 frames of 1"):
        session.acknowledge(2)
    assert facts(session) == before


groups = st.lists(st.lists(st.binary(max_size=60), min_size=1, max_size=4), max_size=20)


@given(groups, st.data())
@REPEATABLE
def test_acknowledgements_in_any_order_and_number_do_what_the_highest_does(
    written: list[list[bytes]], data: st.DataObject
) -> None:
    one, other = Session(), Session()
    for frames in written:
        send(one, *frames)
        send(other, *frames)
    numbers = data.draw(st.lists(st.integers(0, one.sent), min_size=1, max_size=8))

    for number in numbers:
        one.acknowledge(number)
    other.acknowledge(max(numbers))

    assert facts(one) == facts(other)


@given(st.lists(st.integers(1, 40), max_size=60), st.integers(1, 30), st.integers(1, 300))
@REPEATABLE
def test_a_client_that_acknowledges_nothing_costs_no_more_than_the_limits(
    sizes: list[int], frames_max: int, bytes_max: int
) -> None:
    session = Session()
    limits = TailLimits(frames_max, bytes_max)

    for size in sizes:
        send(session, bytes(size), limits=limits)
        tail = session.save().tail
        assert session.unacknowledged == sum(covers for _, covers, _ in tail) <= frames_max
        assert session.tail_bytes == sum(len(frames) for _, _, frames in tail) <= bytes_max


# --- resuming -------------------------------------------------------------------------------------


def test_resuming_raises_the_generation_and_says_what_was_processed() -> None:
    session = Session()
    session.received_frame()
    session.lose(0.0, 60.0)

    assert resumed(session, 0) == Resumed(2, 1, 0, (), 0)
    assert session.state is SessionState.ATTACHED
    assert session.expires_at == NEVER


def test_a_session_is_resumed_while_it_still_has_a_socket() -> None:
    session = Session()

    assert resumed(session, 0).generation == 2
    assert resumed(session, 0).generation == 3


def test_what_is_missing_is_replayed() -> None:
    session = Session()
    for frame in (b"a", b"b", b"c"):
        send(session, frame)
    session.lose(0.0, 60.0)
    send(session, b"d")

    outcome = resumed(session, 2)

    assert [entry.frames for entry in outcome.replay] == [b"c", b"d"]
    assert (outcome.count, outcome.skip) == (2, 0)


def test_of_frames_that_were_written_together_some_may_be_skipped() -> None:
    session = Session()
    send(session, b"a")
    send(session, b"b", b"c", b"d")

    outcome = resumed(session, 3)

    assert [entry.frames for entry in outcome.replay] == [b"bcd"]
    assert (outcome.count, outcome.skip) == (1, 2)


def test_a_resumption_acknowledges() -> None:
    session = Session()
    send(session, b"a")
    send(session, b"b")

    resumed(session, 1)

    assert (session.unacknowledged, session.tail_bytes) == (1, 1)


@given(groups, st.data())
@REPEATABLE
def test_whatever_a_client_has_it_gets_the_rest(
    written: list[list[bytes]], data: st.DataObject
) -> None:
    session = Session()
    limits = TailLimits(frames=1000, bytes=100_000)
    frames = [frame for together in written for frame in together]
    for together in written:
        send(session, *together, limits=limits)
    acknowledged = data.draw(st.integers(0, len(frames)))
    received = data.draw(st.integers(acknowledged, len(frames)))
    session.acknowledge(acknowledged)
    session.lose(0.0, 60.0)

    outcome = resumed(session, received)

    held = frames[len(frames) - outcome.count - outcome.skip :]
    assert b"".join(entry.frames for entry in outcome.replay) == b"".join(held)
    assert held[outcome.skip :] == frames[received:]
    assert not outcome.replay or outcome.skip < outcome.replay[0].covers


def test_a_count_from_the_future_is_a_violation() -> None:
    session = session_in(SessionState.DETACHED)
    before = facts(session)

    with pytest.raises(SessionViolation, match="2 of 1"):
        resume(session, 2)
    assert facts(session) == before


def test_a_count_below_what_was_acknowledged_can_not_be_served() -> None:
    session = Session()
    send(session, b"a")
    send(session, b"b")
    session.acknowledge(2)
    session.lose(0.0, 60.0)
    before = facts(session)

    assert resume(session, 1) is Gone.OVERFLOW
    assert facts(session) == before


def test_a_client_that_has_what_was_dropped_goes_on() -> None:
    session = Session()
    for _ in range(9):
        send(session, b"x")
    send(session, b"y")

    outcome = resumed(session, 9)

    assert [entry.frames for entry in outcome.replay] == [b"y"]


def test_a_client_that_lacks_what_was_dropped_is_told() -> None:
    session = Session()
    for _ in range(9):
        send(session, b"x")
    before = facts(session)

    assert resume(session, 8) is Gone.OVERFLOW
    assert facts(session) == before


# --- fencing --------------------------------------------------------------------------------------


def test_two_sockets_race_and_the_later_attempt_wins_in_either_order() -> None:
    in_order, overtaken = Session(), Session()

    assert resumed(in_order, 0, attempt=1, now=100.0).generation == 2
    assert resumed(in_order, 0, attempt=2, now=100.0).generation == 3
    assert resumed(overtaken, 0, attempt=2, now=100.0).generation == 2
    assert resume(overtaken, 0, attempt=1, now=100.0) is Gone.FENCED
    assert overtaken.generation == 2


def test_the_same_attempt_twice_is_a_straggler() -> None:
    session = Session()
    resumed(session, 0, attempt=3)

    assert resume(session, 0, attempt=3) is Gone.FENCED


def test_a_straggler_changes_nothing_whatever_its_count() -> None:
    session = Session()
    send(session, b"a")
    send(session, b"b")
    resumed(session, 1, attempt=2)
    session.acknowledge(2)
    before = facts(session)

    assert [resume(session, count, attempt=1) for count in (0, 1, 2, 3)] == [Gone.FENCED] * 4
    assert facts(session) == before


def test_once_a_connection_was_stable_attempts_count_from_one_again() -> None:
    session = Session()
    resumed(session, 0, attempt=5, now=100.0)

    assert resume(session, 0, attempt=1, now=100.0 + STABLE - 0.001) is Gone.FENCED
    assert resumed(session, 0, attempt=1, now=100.0 + STABLE).generation == 3


@pytest.mark.parametrize("state", [SessionState.ATTACHED, SessionState.DETACHED])
def test_attempts_that_are_not_counted_are_not_compared(state: SessionState) -> None:
    session = session_in(state)
    resumed(session, 0, attempt=7)

    assert resumed(session, 0, attempt=0).generation == 3
    assert resumed(session, 0, attempt=1).generation == 4


def test_the_first_resumption_is_never_a_straggler() -> None:
    session = session_in(SessionState.DETACHED)

    assert resumed(session, 0, attempt=1, now=0.0).generation == 2


# --- retention ------------------------------------------------------------------------------------


def test_a_session_is_kept_for_its_retention() -> None:
    session = Session()

    session.lose(100.0, 60.0)

    assert session.expires_at == 160.0


def test_it_does_not_end_before_its_client_was_told_to_come_back() -> None:
    session = Session()
    session.lose(100.0, 60.0)

    session.extend(200.0)
    session.extend(180.0)

    assert session.expires_at == 200.0


def test_what_a_client_was_told_on_the_socket_that_it_lost_holds() -> None:
    session = Session()

    session.extend(200.0)

    assert session.expires_at == NEVER
    session.lose(100.0, 60.0)
    assert session.expires_at == 200.0


def test_a_short_promise_does_not_shorten_the_retention() -> None:
    session = Session()
    session.extend(120.0)
    session.lose(100.0, 60.0)
    session.extend(130.0)

    assert session.expires_at == 160.0


def test_a_promise_ends_with_the_resumption() -> None:
    session = Session()
    session.extend(200.0)
    session.lose(100.0, 60.0)
    resumed(session, 0, now=110.0)

    session.lose(111.0, 10.0)

    assert session.expires_at == 121.0


# --- between processes ----------------------------------------------------------------------------


@given(groups, st.data())
@REPEATABLE
def test_what_is_saved_and_restored_is_equal(
    written: list[list[bytes]], data: st.DataObject
) -> None:
    session = Session()
    for frames in written:
        send(session, *frames)
        session.received_frame()
        if data.draw(st.booleans()):
            session.acknowledge(data.draw(st.integers(0, session.sent)))
    session.lose(50.0, 60.0)
    stored = msgspec.msgpack.encode(session.save())

    restored = Session.restored(msgspec.msgpack.decode(stored, type=SavedSession), 110.0)

    assert facts(restored) == facts(session)
    received = data.draw(st.integers(0, session.sent))
    assert resume(restored, received, 1) == resume(session, received, 1)
    assert facts(restored) == facts(session)


def test_a_restored_session_knows_no_stragglers_of_the_former_process() -> None:
    session = Session()
    resumed(session, 0, attempt=3, now=100.0)
    session.lose(101.0, 60.0)

    restored = Session.restored(session.save(), 161.0)

    assert resumed(restored, 0, attempt=1, now=102.0).generation == 3


# --- any order of everything ----------------------------------------------------------------------


class AnyOrder(RuleBasedStateMachine):
    """A session beside a list of all frames that were ever sent."""

    def __init__(self) -> None:
        super().__init__()
        self.begin()

    def begin(self) -> None:
        self.session = Session()
        self.frames: list[bytes] = []
        self.acknowledged = 0
        self.lost_up_to = 0
        self.generation = 1
        self.asked = False

    @property
    def first_held(self) -> int:
        return max(self.acknowledged, self.lost_up_to)

    @rule(sizes=st.lists(st.integers(0, 200), min_size=1, max_size=4))
    def send(self, sizes: list[int]) -> None:
        together = [
            b"%d:%s\n" % (len(self.frames) + n, bytes(size)) for n, size in enumerate(sizes)
        ]
        self.frames += together

        pressure = send(self.session, *together)

        if pressure is Pressure.DROPPED:
            self.lost_up_to = len(self.frames)
            self.asked = False
        elif pressure is Pressure.ASK:
            assert not self.asked
            self.asked = True

    @rule(data=st.data())
    @precondition(lambda self: self.session.state is SessionState.ATTACHED)
    def acknowledge(self, data: st.DataObject) -> None:
        number = data.draw(st.integers(0, len(self.frames) + 1))
        if number > len(self.frames):
            with pytest.raises(SessionViolation):
                self.session.acknowledge(number)
            return
        self.session.acknowledge(number)
        if number > self.acknowledged:
            self.acknowledged = number
            self.asked = False

    @rule()
    @precondition(lambda self: self.session.state is SessionState.ATTACHED)
    def lose(self) -> None:
        self.session.lose(0.0, 60.0)

    @rule()
    @precondition(lambda self: self.session.state is SessionState.DETACHED)
    def restart(self) -> None:
        self.session = Session.restored(self.session.save(), self.session.expires_at)
        self.asked = False

    @rule(data=st.data())
    def resume(self, data: st.DataObject) -> None:
        received = data.draw(st.integers(0, len(self.frames) + 1))
        if received > len(self.frames):
            with pytest.raises(SessionViolation):
                resume(self.session, received)
            return
        outcome = resume(self.session, received)
        if received < self.first_held:
            assert outcome is Gone.OVERFLOW
            return
        assert isinstance(outcome, Resumed)
        self.generation += 1
        self.acknowledged = max(self.acknowledged, received)
        self.asked = False
        replayed = b"".join(entry.frames for entry in outcome.replay).splitlines(keepends=True)
        assert replayed[outcome.skip :] == self.frames[received:]
        assert outcome.count == len(self.frames) - received
        assert outcome.generation == self.generation

    @rule(end=st.sampled_from([Session.leave, Session.break_off]))
    @precondition(
        lambda self: self.session.state is SessionState.ATTACHED and len(self.frames) > 20
    )
    def end(self, end: Callable[[Session], None]) -> None:
        end(self.session)
        assert (self.session.tail_bytes, self.session.save().tail) == (0, [])
        self.begin()

    @invariant()
    def the_tail_is_within_its_limits(self) -> None:
        session = self.session
        tail = session.save().tail
        assert session.tail_bytes == sum(len(frames) for _, _, frames in tail) <= LIMITS.bytes
        assert session.unacknowledged == len(self.frames) - self.first_held <= LIMITS.frames

    @invariant()
    def the_tail_is_without_holes(self) -> None:
        tail = self.session.save().tail
        behind = [last for last, _, _ in tail]
        before = [last - covers for last, covers, _ in tail]
        if tail:
            assert before[0] <= self.first_held < behind[0]
            assert before[1:] == behind[:-1]
            assert behind[-1] == len(self.frames)

    @invariant()
    def only_a_session_without_a_socket_expires(self) -> None:
        session = self.session
        assert (session.expires_at == NEVER) is (session.state is not SessionState.DETACHED)


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(REPEATABLE, max_examples=60, stateful_step_count=30)
