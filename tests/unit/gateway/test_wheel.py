"""One timer for everybody: deadlines are met never early, and at most a tick late."""

import gc
import itertools
import logging
import random
import weakref
from collections.abc import Callable

import pytest

from gateway.wheel import AFTER_ERROR, SLOTS, STALL, TICK, Wheel
from metrics import instruments
from tests.support.clock import ManualLoop, manual_loop

NEVER = float("inf")
SPAN = SLOTS * TICK


class Timed:
    """Notes when it is called. `then` sets the next deadline; by itself there is none.

    With `patient` it waits for a peer: its deadline moves when the loop stood still.
    """

    def __init__(
        self, loop: ManualLoop, deadline: float, then: Callable[["Timed"], None] | None = None
    ) -> None:
        self.wheel_tick = 0
        self.deadline = deadline
        self.called: list[float] = []
        self.excused: list[float] = []
        self.patient = False
        self._loop = loop
        self._then = then

    def next_deadline(self) -> float:
        return self.deadline

    def tick(self, now: float) -> None:
        assert now == self._loop.time()
        assert now >= self.deadline, "early"
        self.called.append(now)
        self.deadline = NEVER
        if self._then is not None:
            self._then(self)

    def excuse(self, seconds: float) -> None:
        self.excused.append(seconds)
        if self.patient:
            self.deadline += seconds


@pytest.fixture
def loop() -> ManualLoop:
    # Neither a whole number of ticks nor of anything: as loops' clocks are.
    return manual_loop(12345.678)


@pytest.fixture
def wheel(loop: ManualLoop) -> Wheel:
    wheel = Wheel(loop)
    wheel.start()
    return wheel


def added(wheel: Wheel, loop: ManualLoop, delay: float) -> Timed:
    timed = Timed(loop, loop.time() + delay)
    wheel.add(timed)
    return timed


def count_looks(timed: Timed) -> Callable[[], int]:
    """How often the wheel asks for its deadline from now on."""
    asked: list[float] = []
    original = timed.next_deadline

    def next_deadline() -> float:
        asked.append(timed.deadline)
        return original()

    timed.next_deadline = next_deadline  # type: ignore[method-assign]
    return lambda: len(asked)


@pytest.mark.parametrize(
    "delay", [0.001, 0.1, TICK, TICK + 0.001, 1.0, 7.3, 25.0, SPAN - TICK, SPAN, SPAN * 2.5, 5000.0]
)
def test_a_deadline_is_met_never_early_and_at_most_a_tick_late(
    wheel: Wheel, loop: ManualLoop, delay: float
) -> None:
    timed = added(wheel, loop, delay)
    loop.advance(delay + 2 * TICK)

    (moment,) = timed.called
    assert 0 <= moment - timed._loop.time() + 2 * TICK <= TICK + 1e-6


def test_many_deadlines_are_each_met(wheel: Wheel, loop: ManualLoop) -> None:
    numbers = random.Random(1)
    start = loop.time()
    deadlines = [numbers.expovariate(1 / 40) for _ in range(2000)]
    everybody = [added(wheel, loop, delay) for delay in deadlines]
    loop.advance(max(deadlines) + TICK)

    for timed, delay in zip(everybody, deadlines, strict=True):
        (moment,) = timed.called
        assert 0 <= moment - (start + delay) <= TICK + 1e-6


def test_a_deadline_that_is_added_between_two_ticks_is_met_too(
    wheel: Wheel, loop: ManualLoop
) -> None:
    loop.advance(TICK * 10.5)
    due_soon, overdue = added(wheel, loop, TICK / 4), added(wheel, loop, -5.0)
    loop.advance(TICK / 2)

    assert len(due_soon.called) == 1
    assert len(overdue.called) == 1


def test_a_deadline_that_was_postponed_needs_no_call(wheel: Wheel, loop: ManualLoop) -> None:
    timed = added(wheel, loop, 5.0)
    for _ in range(10):
        loop.advance(4.0)
        timed.deadline = loop.time() + 5.0
    assert timed.called == []

    loop.advance(5.0 + TICK)
    assert len(timed.called) == 1


@pytest.mark.parametrize("later", [TICK, 10.0, SPAN * 2])
def test_whoever_says_that_it_was_postponed_is_not_looked_at_before(
    wheel: Wheel, loop: ManualLoop, later: float
) -> None:
    timed = added(wheel, loop, 5.0)
    loop.advance(1.0)
    timed.deadline = loop.time() + 5.0 + later
    wheel.postpone(timed)
    looks = count_looks(timed)
    loop.advance(4.0 + TICK)
    assert looks() == 0

    loop.advance(1.0 + later + TICK)
    assert len(timed.called) == 1


def test_a_postponed_deadline_may_come_nearer_again(wheel: Wheel, loop: ManualLoop) -> None:
    """Also as near as the former one was, so that it stands twice where that was."""
    timed = added(wheel, loop, 5.0)
    former = timed.deadline
    for _ in range(3):
        timed.deadline = former + 10.0
        wheel.postpone(timed)
        timed.deadline = former
        wheel.add(timed)
    loop.advance(5.0 + TICK)
    assert len(timed.called) == 1
    loop.advance(SPAN)
    assert len(timed.called) == 1


def test_what_is_not_held_or_due_no_more_cannot_be_postponed(
    wheel: Wheel, loop: ManualLoop
) -> None:
    outside, done = Timed(loop, loop.time() + 1.0), added(wheel, loop, 1.0)
    wheel.postpone(outside)
    done.deadline = NEVER
    wheel.postpone(done)
    loop.advance(5.0)
    assert outside.called == done.called == []
    assert done.wheel_tick == 0


def test_a_deadline_that_came_nearer_needs_one(wheel: Wheel, loop: ManualLoop) -> None:
    start = loop.time()
    timed = added(wheel, loop, 50.0)
    timed.deadline = start + 2.0
    wheel.add(timed)
    loop.advance(60.0)

    # And the place that it had first is of no effect any more.
    (moment,) = timed.called
    assert 0 <= moment - (start + 2.0) <= TICK


def test_a_place_that_was_left_is_of_no_effect_when_it_is_taken_again(
    wheel: Wheel, loop: ManualLoop
) -> None:
    start = loop.time()
    timed = added(wheel, loop, 20.0)
    timed.deadline = start + 2.0
    timed._then = lambda timed: setattr(timed, "deadline", start + 20.0)
    wheel.add(timed)
    loop.advance(2.0 + TICK)
    timed._then = None
    loop.advance(60.0)

    assert len(timed.called) == 2


def test_places_that_were_left_do_not_add_up(wheel: Wheel, loop: ManualLoop) -> None:
    timed = Timed(loop, NEVER, lambda timed: setattr(timed, "deadline", loop.time() + 10.0))
    for _ in range(20):
        for delay in (100.0, 1.0):
            timed.deadline = loop.time() + delay
            wheel.add(timed)
        loop.advance(2.0)
    loop.advance(SPAN)

    assert sum(map(len, wheel._slots)) == 1


def test_adding_again_for_a_later_deadline_changes_nothing(wheel: Wheel, loop: ManualLoop) -> None:
    timed = added(wheel, loop, 5.0)
    tick = timed.wheel_tick
    for delay in (5.0, 6.0, 500.0):
        timed.deadline = loop.time() + delay
        wheel.add(timed)

    assert timed.wheel_tick == tick


def test_whoever_has_no_deadline_is_not_held(wheel: Wheel, loop: ManualLoop) -> None:
    timed = added(wheel, loop, NEVER)
    held = weakref.ref(timed)
    del timed
    gc.collect()

    assert held() is None


def test_whoever_has_no_deadline_any_more_is_dropped(wheel: Wheel, loop: ManualLoop) -> None:
    timed = added(wheel, loop, 5.0)
    timed.deadline = NEVER
    loop.advance(5.0 + TICK)
    assert timed.called == []
    assert timed.wheel_tick == 0

    held = weakref.ref(timed)
    del timed
    gc.collect()
    assert held() is None


def test_whoever_has_a_next_deadline_stays(wheel: Wheel, loop: ManualLoop) -> None:
    timed = Timed(
        loop, loop.time() + 10.1, lambda timed: setattr(timed, "deadline", loop.time() + 10.1)
    )
    wheel.add(timed)
    loop.advance(100.0)

    gaps = [later - earlier for earlier, later in itertools.pairwise(timed.called)]
    assert len(gaps) == 8
    assert all(10.1 <= gap <= 10.1 + TICK for gap in gaps)


def test_whoever_is_due_at_once_again_is_called_at_the_next_tick(
    wheel: Wheel, loop: ManualLoop
) -> None:
    timed = Timed(loop, loop.time(), lambda timed: setattr(timed, "deadline", loop.time()))
    wheel.add(timed)
    loop.advance(TICK * 4.5)

    assert len(timed.called) == 4


def test_what_is_due_may_add_others(wheel: Wheel, loop: ManualLoop) -> None:
    others: list[Timed] = []
    timed = Timed(
        loop, loop.time() + 1.0, lambda _: others.extend(added(wheel, loop, 0.0) for _ in range(3))
    )
    wheel.add(timed)
    loop.advance(1.0 + 2 * TICK)

    assert [len(other.called) for other in others] == [1, 1, 1]


# --- a loop that is late ----------------------------------------------------------------------


def test_after_a_stall_everybody_is_called_who_was_due_and_nobody_else(
    wheel: Wheel, loop: ManualLoop
) -> None:
    due = [added(wheel, loop, delay) for delay in (0.5, 3.0, 9.9)]
    not_due = added(wheel, loop, 10.6)
    loop.stall(10.0)
    assert [len(timed.called) for timed in (*due, not_due)] == [1, 1, 1, 0]

    loop.advance(1.0)
    assert len(not_due.called) == 1


def test_a_stall_of_several_turns_of_the_wheel_calls_everybody_once(
    wheel: Wheel, loop: ManualLoop
) -> None:
    numbers = random.Random(2)
    everybody = [added(wheel, loop, numbers.uniform(0, 3 * SPAN)) for _ in range(200)]
    loop.stall(3 * SPAN)

    assert [len(timed.called) for timed in everybody] == [1] * 200


def test_the_loops_lag_is_told_at_each_turn(loop: ManualLoop) -> None:
    lags: list[float] = []
    wheel = Wheel(loop, lags.append)
    wheel.start()
    loop.advance(TICK * 3)
    assert lags == pytest.approx([0.0, 0.0, 0.0], abs=1e-6)
    loop.stall(10.0)

    assert lags[3:] == pytest.approx([10.0 - TICK], abs=1e-6)


def test_one_timer_serves_everybody(wheel: Wheel, loop: ManualLoop) -> None:
    for delay in (1.0, 2.0, 300.0):
        added(wheel, loop, delay)
    loop.advance(100.0)

    assert loop.timers == 1


# --- a loop that stood still ------------------------------------------------------------------


def patient(wheel: Wheel, loop: ManualLoop, delay: float) -> Timed:
    timed = added(wheel, loop, delay)
    timed.patient = True
    return timed


@pytest.mark.parametrize("stall", [1.0, 8.0, 10.0, 60.0, SPAN + 7.0, 3 * SPAN])
@pytest.mark.parametrize("phase", [0.0, 0.01, TICK / 2, TICK - 0.01])
def test_no_deadline_that_waits_for_a_peer_is_over_because_of_a_stall(
    wheel: Wheel, loop: ManualLoop, stall: float, phase: float
) -> None:
    """Wherever between two ticks the loop stopped, and wherever in the stall the deadline was."""
    loop.advance(5 * TICK + phase)
    start = loop.time()
    delays = [0.01, TICK - 0.01, TICK, 1.0, stall - 0.01, stall, stall + 0.01, stall + 5.0]
    everybody = [patient(wheel, loop, delay) for delay in delays]
    loop.stall(stall)
    assert [timed.called for timed in everybody] == [[]] * len(delays)

    # Everybody has as much time left as before, and at most a tick more.
    loop.advance(max(delays) + 3 * TICK)
    for timed, delay in zip(everybody, delays, strict=True):
        (moment,) = timed.called
        assert stall + delay <= moment - start + 1e-6
        assert moment - start <= stall + delay + 2 * TICK + 1e-6


def test_deadlines_of_our_own_go_on_through_a_stall(wheel: Wheel, loop: ManualLoop) -> None:
    ours = added(wheel, loop, 3.0)
    peers = patient(wheel, loop, 3.0)
    loop.stall(10.0)

    assert len(ours.called) == 1
    assert peers.called == []


def test_everybody_is_excused_once_for_a_stall_and_before_anything_is_run(
    wheel: Wheel, loop: ManualLoop
) -> None:
    start = loop.time()
    seen: list[int] = []
    everybody: list[Timed] = []
    due = Timed(
        loop,
        start + 1.0,
        lambda _: seen.extend(len(timed.excused) for timed in everybody),
    )
    wheel.add(due)
    everybody += [due, *(added(wheel, loop, delay) for delay in (0.9, 30.0, SPAN, 2 * SPAN))]
    # One that stands at two places, one of which it has left, and one that stands twice at one.
    nearer = added(wheel, loop, 50.0)
    nearer.deadline = start + 20.0
    wheel.add(nearer)
    again = added(wheel, loop, 40.0)
    again.deadline = start + 1.0
    again._then = lambda timed: setattr(timed, "deadline", start + 40.0)
    wheel.add(again)
    everybody.append(nearer)
    loop.advance(0.5)
    assert [timed.excused for timed in everybody] == [[]] * len(everybody)

    loop.stall(7.0)
    assert seen == [1] * len(everybody)
    assert [len(timed.excused) for timed in (*everybody, again)] == [1] * (len(everybody) + 1)

    again._then = None
    loop.stall(7.0)
    assert len(again.excused) == 2


def test_what_is_excused_is_all_the_time_since_the_last_turn(
    wheel: Wheel, loop: ManualLoop
) -> None:
    timed = patient(wheel, loop, 100.0)
    loop.advance(TICK)
    loop.stall(6.0)

    assert timed.excused == pytest.approx([6.0])


def test_stalls_add_up(wheel: Wheel, loop: ManualLoop) -> None:
    timed = patient(wheel, loop, 8.0)
    for _ in range(20):
        loop.advance(0.3)
        loop.stall(5.0)
    assert timed.called == []

    loop.advance(8.0)
    assert len(timed.called) == 1


def test_a_turn_that_is_a_little_late_excuses_nobody(wheel: Wheel, loop: ManualLoop) -> None:
    timed = patient(wheel, loop, 0.2)
    loop.stall(TICK + STALL - 0.001)

    assert timed.excused == []
    assert len(timed.called) == 1


def test_stalls_are_counted_with_their_length(wheel: Wheel, loop: ManualLoop) -> None:
    def counted() -> tuple[float, float]:
        return (
            instruments.LOOP_STALLS._value.get(),
            instruments.LOOP_STALL_SECONDS._value.get(),
        )

    stalls, seconds = counted()
    added(wheel, loop, 1.0)
    loop.stall(TICK + STALL)
    loop.advance(10 * TICK)
    assert counted() == (stalls, seconds)

    loop.stall(TICK + 4.0)
    assert counted() == pytest.approx((stalls + 1, seconds + 4.0))


def test_one_that_cannot_be_excused_costs_the_others_nothing(
    wheel: Wheel, loop: ManualLoop, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(Timed):
        def excuse(self, seconds: float) -> None:
            raise ValueError("broken")

    wheel.add(Broken(loop, loop.time() + 2.0))
    others = [patient(wheel, loop, 2.0) for _ in range(3)]
    with caplog.at_level(logging.ERROR):
        loop.stall(5.0)

    assert [timed.called for timed in others] == [[], [], []]
    assert [record.message for record in caplog.records] == ["a deadline could not be moved"]


def test_time_before_the_start_is_no_stall(loop: ManualLoop) -> None:
    wheel = Wheel(loop)
    timed = patient(wheel, loop, 50.0)
    loop.advance(20.0)
    wheel.start()
    loop.advance(TICK)

    assert timed.excused == []


# --- failures and the end ---------------------------------------------------------------------


def test_one_that_raises_costs_the_others_nothing(
    wheel: Wheel, loop: ManualLoop, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: Timed) -> None:
        raise ValueError("broken")

    broken = Timed(loop, loop.time() + 1.0, fail)
    wheel.add(broken)
    others = [added(wheel, loop, delay) for delay in (1.0, 1.0, 2.0)]
    with caplog.at_level(logging.ERROR):
        loop.advance(5.0)

    assert [len(timed.called) for timed in others] == [1, 1, 1]
    assert len(broken.called) == 1
    assert [record.message for record in caplog.records] == ["a deadline could not be handled"]


def test_one_that_raised_is_asked_again_before_long(wheel: Wheel, loop: ManualLoop) -> None:
    """Or a mistake somewhere would leave a connection that is never pinged again."""

    def fail_once(timed: Timed) -> None:
        timed.deadline = loop.time() + 1.0
        if len(timed.called) == 1:
            raise ValueError("broken")

    broken = Timed(loop, loop.time() + 1.0, fail_once)
    wheel.add(broken)
    loop.advance(1.0 + (AFTER_ERROR + 1) * TICK)
    assert len(broken.called) == 2
    loop.advance(3.0)
    assert len(broken.called) >= 4


def test_a_wheel_that_was_stopped_calls_nobody(wheel: Wheel, loop: ManualLoop) -> None:
    timed = added(wheel, loop, 1.0)
    wheel.stop()
    wheel.stop()
    loop.advance(10.0)

    assert timed.called == []
    assert loop.timers == 0


def test_a_wheel_may_be_stopped_by_what_is_due(wheel: Wheel, loop: ManualLoop) -> None:
    wheel.add(Timed(loop, loop.time() + 1.0, lambda _: wheel.stop()))
    later = added(wheel, loop, 2.0)
    loop.stall(5.0)
    loop.advance(5.0)

    assert later.called == []
    assert loop.timers == 0


def test_a_wheel_that_was_not_started_keeps_what_is_added(loop: ManualLoop) -> None:
    wheel = Wheel(loop)
    timed = added(wheel, loop, 1.0)
    loop.advance(10.0)
    assert timed.called == []
    wheel.start()
    loop.advance(TICK)

    assert len(timed.called) == 1
