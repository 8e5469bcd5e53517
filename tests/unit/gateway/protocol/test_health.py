"""A line's health in numbers: RFC 6298, deadlines, probes, stalls of our own, one word for it."""

import random
from collections.abc import Callable
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gateway.protocol.health import (
    NEVER,
    TRANSITIONS,
    DeadlineBounds,
    LineEvent,
    LineHealth,
    LineState,
    Quality,
)
from tests.support.fuzzing import REPEATABLE

BOUNDS: Final = DeadlineBounds(floor=2.0, ceiling=10.0)
UNBOUNDED: Final = DeadlineBounds(floor=0.0, ceiling=1000.0)


def measured(*round_trips: float) -> LineHealth:
    """A line on which pings took so long."""
    line = LineHealth()
    now = 0.0
    for round_trip in round_trips:
        line.asked(now, BOUNDS)
        assert line.answered(now + round_trip)
        now += 25.0
    return line


def line_in(state: LineState) -> LineHealth:
    line = LineHealth()
    if state is not LineState.IDLE:
        line.asked(0.0, BOUNDS)
    if state in {LineState.PROBING, LineState.DEAD}:
        assert line.late(10.0, BOUNDS) is LineState.PROBING
    if state is LineState.DEAD:
        assert line.late(20.0, BOUNDS) is LineState.DEAD
    assert line.state is state
    return line


# --- the table ------------------------------------------------------------------------------------

EVENTS: Final[dict[LineEvent, Callable[[LineHealth], object]]] = {
    LineEvent.PING: lambda line: line.asked(100.0, BOUNDS),
    LineEvent.PONG: lambda line: line.answered(100.0),
    LineEvent.LATE: lambda line: line.late(NEVER, BOUNDS),
}


def test_the_table_has_every_state_and_every_event_of_the_tests() -> None:
    assert set(TRANSITIONS) == set(LineState)
    assert set(EVENTS) == set(LineEvent)


@pytest.mark.parametrize("state", LineState, ids=lambda state: state.value)
@pytest.mark.parametrize("event", LineEvent, ids=lambda event: event.value)
def test_every_event_in_every_state_does_what_the_table_says(
    state: LineState, event: LineEvent
) -> None:
    line = line_in(state)

    if event in TRANSITIONS[state]:
        EVENTS[event](line)
        assert line.state is TRANSITIONS[state][event]
    else:
        with pytest.raises(AssertionError, match=event.name):
            EVENTS[event](line)
        assert line.state is state


@pytest.mark.parametrize(
    ("state", "due"),
    [
        (LineState.IDLE, False),
        (LineState.WAITING, True),
        (LineState.PROBING, True),
        (LineState.DEAD, False),
    ],
)
def test_an_answer_is_due_while_one_is_waited_for(state: LineState, due: bool) -> None:
    line = line_in(state)

    assert (line.due != NEVER) is due
    assert line.answered(100.0) is due
    assert line.due == NEVER


# --- round trips and deadlines --------------------------------------------------------------------


def test_the_first_round_trip_is_taken_as_it_is() -> None:
    line = measured(0.4)

    assert line.rtt == pytest.approx(0.4)
    # RTTVAR = R / 2, so the deadline is R + 4 · R / 2 (RFC 6298, 2.2).
    assert line.deadline(UNBOUNDED) == pytest.approx(1.2)


def test_later_round_trips_are_smoothed() -> None:
    line = measured(0.4, 0.8)

    # RTTVAR = 3/4 · 0.2 + 1/4 · |0.4 - 0.8|, SRTT = 7/8 · 0.4 + 1/8 · 0.8 (RFC 6298, 2.3).
    assert line.rtt == pytest.approx(0.45)
    assert line.deadline(UNBOUNDED) == pytest.approx(0.45 + 4 * 0.25)


def test_an_immediate_answer_counts_as_measured() -> None:
    line = measured(0.0)

    assert 0.0 < line.rtt < 0.001


def test_before_the_first_round_trip_the_deadline_is_the_longest() -> None:
    line = LineHealth()

    assert line.rtt == 0.0
    assert line.deadline(BOUNDS) == 10.0
    line.asked(100.0, BOUNDS)
    assert line.due == 110.0


@pytest.mark.parametrize(
    ("round_trip", "deadline"), [(0.05, 2.0), (1.0, 3.0), (5.0, 10.0)], ids=["floor", "", "ceiling"]
)
def test_a_deadline_is_within_its_bounds(round_trip: float, deadline: float) -> None:
    line = measured(round_trip)
    line.asked(100.0, BOUNDS)

    assert line.due == pytest.approx(100.0 + deadline)


@given(st.lists(st.floats(0.0, 100.0), min_size=1, max_size=30))
@REPEATABLE
def test_what_was_measured_bounds_what_is_told(round_trips: list[float]) -> None:
    line = measured(*round_trips)

    assert min(round_trips) - 1e-6 <= line.rtt <= max(round_trips) + 1e-5
    assert BOUNDS.floor <= line.deadline(BOUNDS) <= BOUNDS.ceiling


def test_a_steady_line_is_expected_to_stay_as_it_is() -> None:
    chance = random.Random(1)
    line = measured(*(0.2 + chance.uniform(-0.01, 0.01) for _ in range(60)))

    assert line.rtt == pytest.approx(0.2, abs=0.01)
    assert line.deadline(UNBOUNDED) < 0.25


# --- late answers ---------------------------------------------------------------------------------


def test_nothing_happens_before_the_deadline() -> None:
    line = line_in(LineState.WAITING)

    assert line.late(9.999, BOUNDS) is None
    assert line.state is LineState.WAITING


def test_one_late_answer_is_probed_and_a_second_one_ends_the_line() -> None:
    line = measured(0.1)
    line.asked(100.0, BOUNDS)

    assert line.late(102.0, BOUNDS) is LineState.PROBING
    line.asked(102.0, BOUNDS)
    assert line.due == 104.0
    assert line.late(103.9, BOUNDS) is None
    assert line.late(104.0, BOUNDS) is LineState.DEAD
    assert line.due == NEVER


def test_a_probe_is_called_for_once() -> None:
    line = line_in(LineState.PROBING)

    assert line.late(11.0, BOUNDS) is None


def test_a_late_answer_saves_the_line_and_is_measured() -> None:
    line = measured(0.1)
    line.asked(100.0, BOUNDS)
    line.late(102.0, BOUNDS)
    line.asked(102.0, BOUNDS)

    assert line.answered(103.5)

    assert line.state is LineState.IDLE
    assert line.rtt == pytest.approx(7 / 8 * 0.1 + 1 / 8 * 3.5)
    # The line became slow, and the next ping is given the time.
    assert line.deadline(BOUNDS) > 3.5


def test_the_answer_to_the_probe_comes_when_none_is_due_and_is_not_measured() -> None:
    line = line_in(LineState.PROBING)
    line.asked(10.0, BOUNDS)
    line.answered(12.0)
    rtt = line.rtt

    assert not line.answered(12.1)
    assert line.rtt == rtt == pytest.approx(12.0)


def test_of_two_pings_under_way_the_first_is_timed() -> None:
    line = LineHealth()
    line.asked(100.0, BOUNDS)
    line.asked(100.3, BOUNDS)

    assert line.answered(100.4)
    assert not line.answered(100.7)
    assert line.rtt == pytest.approx(0.4)


def test_a_ping_is_not_timed_while_an_older_answer_is_still_to_come() -> None:
    line = measured(0.4)
    line.asked(100.0, BOUNDS)
    line.asked(100.3, BOUNDS)
    line.answered(100.4)
    rtt = line.rtt
    line.asked(100.6, BOUNDS)

    assert line.answered(100.7)  # to that of 100.3
    assert line.rtt == rtt
    assert not line.answered(101.0)
    line.asked(125.0, BOUNDS)
    line.answered(125.8)
    assert line.rtt == pytest.approx(7 / 8 * rtt + 1 / 8 * 0.8)


# --- stalls of our own ----------------------------------------------------------------------------


@pytest.mark.parametrize("state", [LineState.WAITING, LineState.PROBING])
def test_nobody_is_late_because_we_stood_still(state: LineState) -> None:
    line = line_in(state)
    due = line.due

    line.excuse(7.0)

    assert line.due == due + 7.0
    assert line.late(due + 6.9, BOUNDS) is None
    assert line.state is state


@pytest.mark.parametrize("state", [LineState.IDLE, LineState.DEAD])
def test_a_line_that_waits_for_nothing_needs_no_excuse(state: LineState) -> None:
    line = line_in(state)

    line.excuse(7.0)

    assert line.due == NEVER


def test_what_was_measured_across_a_stall_is_not_believed() -> None:
    line = measured(0.1)
    line.asked(100.0, BOUNDS)
    line.excuse(7.0)

    assert line.answered(107.2)
    assert line.rtt == pytest.approx(0.1)
    assert line.quality is Quality.GOOD


# --- quality --------------------------------------------------------------------------------------


def missed(line: LineHealth, times: int, now: float = 1000.0) -> None:
    for _ in range(times):
        line.asked(now, BOUNDS)
        assert line.late(now + 10.0, BOUNDS) is LineState.PROBING
        line.excuse(0.0)  # keeps the round trip out of it
        line.answered(now + 10.1)
        now += 25.0


def test_a_line_is_good_until_something_is_known() -> None:
    assert LineHealth().quality is Quality.GOOD


@pytest.mark.parametrize(
    ("round_trip", "quality"),
    [
        (0.02, Quality.EXCELLENT),
        (0.07, Quality.EXCELLENT),
        (0.09, Quality.GOOD),
        (0.20, Quality.GOOD),
        (0.26, Quality.FAIR),
        (0.70, Quality.FAIR),
        (0.76, Quality.POOR),
        (9.00, Quality.POOR),
    ],
)
def test_the_first_round_trip_makes_the_quality(round_trip: float, quality: Quality) -> None:
    # With its variation of half of it, srtt + 2 · rttvar is twice the round trip.
    assert measured(round_trip).quality is quality


@pytest.mark.parametrize(
    ("round_trip", "quality"),
    [
        (0.099, Quality.EXCELLENT),
        (0.101, Quality.GOOD),
        (0.299, Quality.GOOD),
        (0.301, Quality.FAIR),
        (0.799, Quality.FAIR),
        (0.801, Quality.POOR),
    ],
)
def test_a_steady_line_is_judged_by_its_round_trip(round_trip: float, quality: Quality) -> None:
    assert measured(*[round_trip] * 40).quality is quality


def test_a_jittery_line_is_worse_than_a_steady_one() -> None:
    assert measured(*[0.08] * 40).quality is Quality.EXCELLENT
    assert measured(*[0.02, 0.14] * 20).quality is Quality.GOOD


@pytest.mark.parametrize(
    ("misses", "quality"),
    [
        (0, Quality.EXCELLENT),
        (1, Quality.GOOD),
        (2, Quality.FAIR),
        (3, Quality.POOR),
        (8, Quality.POOR),
    ],
)
def test_each_unanswered_ping_costs_a_grade(misses: int, quality: Quality) -> None:
    line = measured(0.02)

    missed(line, misses)

    assert line.quality is quality


def test_a_line_of_which_nothing_but_a_miss_is_known_is_fair() -> None:
    line = line_in(LineState.PROBING)

    assert line.quality is Quality.FAIR


def test_a_miss_is_forgotten_after_eight_answers() -> None:
    line = measured(0.02)
    missed(line, 1)
    qualities = []
    for number in range(8):
        line.asked(2000.0 + number, BOUNDS)
        line.answered(2000.02 + number)
        qualities.append(line.quality)

    assert qualities == [Quality.GOOD] * 7 + [Quality.EXCELLENT]


# --- any order of everything ----------------------------------------------------------------------


class AnyOrder(RuleBasedStateMachine):
    """A line whose answers come in order, after any time or never."""

    def __init__(self) -> None:
        super().__init__()
        self.line = LineHealth()
        self.now = 0.0
        self.under_way: list[float] = []
        self.round_trips: list[float] = []

    def ping(self) -> None:
        self.line.asked(self.now, BOUNDS)
        self.under_way.append(self.now)

    @rule()
    def asked(self) -> None:
        self.ping()

    @rule()
    @precondition(lambda self: self.under_way)
    def answered(self) -> None:
        was = self.line.state
        self.round_trips.append(self.now - self.under_way.pop(0))
        due = self.line.answered(self.now)
        assert due is (was in {LineState.WAITING, LineState.PROBING})

    @rule(seconds=st.floats(0.0, 12.0))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        if self.now >= self.line.due and self.line.late(self.now, BOUNDS) is LineState.PROBING:
            self.ping()

    @rule(seconds=st.floats(0.0, 12.0))
    def we_stood_still(self, seconds: float) -> None:
        self.now += seconds
        due = self.line.due
        self.line.excuse(seconds)
        assert self.line.due >= due

    @rule()
    @precondition(lambda self: self.line.state is LineState.DEAD)
    def another_socket(self) -> None:
        self.line = LineHealth()
        self.under_way = []
        self.round_trips = []

    @invariant()
    def a_deadline_is_set_while_an_answer_is_waited_for(self) -> None:
        waits = self.line.state in {LineState.WAITING, LineState.PROBING}
        assert (self.line.due != NEVER) is waits

    @invariant()
    def no_round_trip_is_made_up(self) -> None:
        # What is smoothed lies between what was there to be measured.
        if self.line.rtt:
            shortest, longest = min(self.round_trips), max(self.round_trips)
            assert shortest - 1e-6 <= self.line.rtt <= longest + 1e-6


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(REPEATABLE, max_examples=80, stateful_step_count=30)
