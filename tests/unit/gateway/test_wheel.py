"""Deadlines are met by the clock: never early, at most a tick late, whatever the others do."""

import weakref
from collections.abc import Callable
from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.wheel import SLOTS, TICK, Wheel
from tests.support.fake_loop import FakeLoop
from tests.support.fuzzing import REPEATABLE

START = 1000.0
SPAN = SLOTS * TICK


class Owner:
    """Has one deadline at a time, and notes when it was told that it passed."""

    def __init__(self, deadline: float, then: Callable[[], float] = lambda: inf) -> None:
        self.wheel_tick = 0
        self.deadline = deadline
        self.then = then
        self.ran: list[float] = []
        self.looks = 0

    def next_deadline(self) -> float:
        self.looks += 1
        return self.deadline

    def tick(self, now: float) -> None:
        self.ran.append(now)
        self.deadline = inf
        self.deadline = self.then()


def fail() -> float:
    raise RuntimeError("the owner is broken")


@pytest.fixture
def loop() -> FakeLoop:
    return FakeLoop(START)


@pytest.fixture
def wheel(loop: FakeLoop) -> Wheel:
    wheel = Wheel(loop)
    wheel.start()
    return wheel


@given(
    st.floats(0, 1_000_000),
    st.lists(st.floats(0, 1.5 * SPAN), min_size=1, max_size=20),
)
@settings(REPEATABLE, max_examples=50)
def test_no_deadline_is_met_early_or_more_than_a_tick_late(
    start: float, delays: list[float]
) -> None:
    loop = FakeLoop(start)
    wheel = Wheel(loop)
    wheel.start()
    owners = [Owner(start + delay) for delay in delays]
    deadlines = [owner.deadline for owner in owners]
    for owner in owners:
        wheel.add(owner)

    loop.advance(1.5 * SPAN + 2 * TICK)

    for owner, deadline in zip(owners, deadlines, strict=True):
        (ran,) = owner.ran
        # What is above a tick is rounding: the clock has no finer steps so far from zero.
        assert deadline <= ran <= deadline + TICK + 1e-6


def test_a_deadline_on_a_tick_is_met_on_that_tick(loop: FakeLoop, wheel: Wheel) -> None:
    owner = Owner(START + 8 * TICK)
    wheel.add(owner)

    loop.advance(8 * TICK)

    assert owner.ran == [START + 8 * TICK]


def test_a_deadline_that_has_passed_already_is_met_with_the_next_tick(
    loop: FakeLoop, wheel: Wheel
) -> None:
    loop.advance(100.1)
    owner = Owner(START + 3)

    wheel.add(owner)
    assert owner.ran == []
    loop.advance(TICK)

    assert owner.ran == [START + 100.25]


def test_a_deadline_may_move_earlier(loop: FakeLoop, wheel: Wheel) -> None:
    owner = Owner(START + 60)
    wheel.add(owner)
    loop.advance(1)

    owner.deadline = START + 2
    wheel.add(owner)
    loop.advance(100)

    assert owner.ran == [START + 2]


def test_the_place_that_an_earlier_deadline_left_behind_does_nothing(
    loop: FakeLoop, wheel: Wheel
) -> None:
    """The slot of the first deadline still names the owner, whose next deadline lies beyond it."""
    owner = Owner(START + 60)
    wheel.add(owner)
    owner.deadline = START + 2
    owner.then = lambda: loop.time() + 58 if len(owner.ran) == 1 else inf
    wheel.add(owner)

    loop.advance(100)

    assert owner.ran == [START + 2, START + 60]


def test_an_owner_is_not_looked_at_before_its_tick(loop: FakeLoop, wheel: Wheel) -> None:
    """Ten thousand owners cost nothing while none of them has anything to do."""
    moved = Owner(START + 60.1)
    wheel.add(moved)
    moved.deadline = START + 2
    moved.then = lambda: START + 100.1 if len(moved.ran) == 1 else inf
    wheel.add(moved)
    loop.advance(2)
    looks = moved.looks

    loop.advance(98)
    assert moved.looks == looks
    loop.advance(TICK)

    assert moved.ran == [START + 2, START + 100.25]


def test_a_postponed_deadline_needs_no_call(loop: FakeLoop, wheel: Wheel) -> None:
    owner = Owner(START + 2)
    wheel.add(owner)
    for _ in range(20):
        loop.advance(1)
        owner.deadline = loop.time() + 2

    assert owner.ran == []
    loop.advance(2)
    assert owner.ran == [START + 22]


def test_a_call_for_a_later_deadline_does_no_harm(loop: FakeLoop, wheel: Wheel) -> None:
    owner = Owner(START + 2)
    wheel.add(owner)
    for _ in range(5):
        owner.deadline += 1
        wheel.add(owner)

    loop.advance(20)

    assert owner.ran == [START + 7]


@pytest.mark.parametrize("spans", [1, 1.5, 3, 10])
def test_a_deadline_beyond_the_wheels_span_is_waited_for(
    loop: FakeLoop, wheel: Wheel, spans: float
) -> None:
    owner = Owner(START + spans * SPAN)
    wheel.add(owner)

    loop.advance(spans * SPAN - TICK)
    assert owner.ran == []
    loop.advance(TICK)

    assert owner.ran == [START + spans * SPAN]


def test_whoever_names_a_new_deadline_is_called_again(loop: FakeLoop, wheel: Wheel) -> None:
    owner = Owner(START + 5, then=lambda: loop.time() + 5)
    wheel.add(owner)

    loop.advance(20)

    assert owner.ran == [START + 5, START + 10, START + 15, START + 20]


def test_a_deadline_of_infinity_is_not_held(wheel: Wheel) -> None:
    owner = Owner(inf)

    wheel.add(owner)

    assert owner.wheel_tick == 0


def test_whoever_has_no_deadline_any_more_is_dropped(loop: FakeLoop, wheel: Wheel) -> None:
    owner = Owner(START + 2)
    wheel.add(owner)
    owner.deadline = inf

    loop.advance(2)

    assert owner.ran == []
    assert owner.wheel_tick == 0
    gone = weakref.ref(owner)
    del owner
    assert gone() is None


def test_whoever_was_dropped_may_come_back(loop: FakeLoop, wheel: Wheel) -> None:
    owner = Owner(START + 2)
    wheel.add(owner)
    loop.advance(10)

    owner.deadline = START + 12
    wheel.add(owner)
    loop.advance(10)

    assert owner.ran == [START + 2, START + 12]


def test_what_a_stall_of_the_loop_held_up_is_done_in_one_turn(loop: FakeLoop, wheel: Wheel) -> None:
    order: list[str] = []

    def note(name: str) -> Callable[[], float]:
        def then() -> float:
            order.append(name)
            return inf

        return then

    for name, delay in (("third", 9), ("first", 1), ("second", 4), ("fourth", 2 * SPAN)):
        wheel.add(Owner(START + delay, note(name)))

    loop.stall(3 * SPAN)
    loop.turn()

    assert order == ["first", "second", "third", "fourth"]


def test_deadlines_after_a_stall_are_on_time(loop: FakeLoop, wheel: Wheel) -> None:
    """Nobody pays twice: whoever asks for five seconds from now gets five seconds from now."""
    owner = Owner(START + 1, then=lambda: loop.time() + 5)
    wheel.add(owner)

    loop.stall(60)
    loop.turn()
    loop.advance(5)

    assert owner.ran == [START + 60, START + 65]


def test_an_owner_that_raises_stops_neither_the_others_nor_the_wheel(
    loop: FakeLoop, wheel: Wheel, caplog: pytest.LogCaptureFixture
) -> None:
    broken = Owner(START + 2, then=fail)
    neighbour = Owner(START + 2)
    later = Owner(START + 3)
    for owner in (broken, neighbour, later):
        wheel.add(owner)

    loop.advance(10)

    assert broken.ran == [START + 2]
    assert neighbour.ran == [START + 2]
    assert later.ran == [START + 3]
    (record,) = caplog.records
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], RuntimeError)


def test_each_turn_says_how_late_the_loop_ran_it(loop: FakeLoop) -> None:
    lags: list[float] = []
    wheel = Wheel(loop, lags.append)
    wheel.start()

    loop.advance(3 * TICK)
    assert lags == [0, 0, 0]
    loop.stall(2.0)
    loop.turn()
    loop.advance(TICK)

    assert lags == [0, 0, 0, 2.0 - TICK, 0]


def test_the_loop_is_woken_once_a_tick_whatever_the_number_of_owners(loop: FakeLoop) -> None:
    lags: list[float] = []
    wheel = Wheel(loop, lags.append)
    wheel.start()
    owners = [Owner(START + 5 + number / 1000) for number in range(1000)]
    for owner in owners:
        wheel.add(owner)

    loop.advance(10)

    assert len(lags) == 10 / TICK
    assert all(len(owner.ran) == 1 for owner in owners)


def test_nothing_is_called_before_the_start(loop: FakeLoop) -> None:
    wheel = Wheel(loop)
    owner = Owner(START + 1)
    wheel.add(owner)

    assert loop.idle
    loop.stall(2)
    wheel.start()
    loop.turn()

    assert owner.ran == [START + 2]


def test_nothing_is_called_after_the_end(loop: FakeLoop, wheel: Wheel) -> None:
    owner = Owner(START + 1)
    wheel.add(owner)

    wheel.stop()
    loop.advance(10)

    assert owner.ran == []
    assert loop.idle
