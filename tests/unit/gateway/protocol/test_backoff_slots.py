"""Slots of one line: in order, at the rate, never in the past, and none saved up."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.protocol.backoff import ReconnectSlots


def test_whoever_is_alone_comes_at_once() -> None:
    slots = ReconnectSlots()

    assert slots.backlog(1000.0) == 0.0
    assert slots.take(1000.0, 50.0) == 1000.0


def test_slots_follow_each_other_at_the_rate() -> None:
    slots = ReconnectSlots()
    taken = [slots.take(1000.0, 50.0) for _ in range(101)]

    assert taken == pytest.approx([1000.0 + number / 50.0 for number in range(101)])
    assert slots.backlog(1000.0) == pytest.approx(101 / 50.0)
    assert slots.backlog(1001.0) == pytest.approx(101 / 50.0 - 1.0)
    assert slots.backlog(1003.0) == 0.0


def test_slots_that_nobody_took_are_not_saved_up() -> None:
    slots = ReconnectSlots()
    slots.take(1000.0, 50.0)

    assert [slots.take(2000.0, 50.0) for _ in range(3)] == pytest.approx([2000.0, 2000.02, 2000.04])


def test_the_first_slot_may_have_to_lie_ahead() -> None:
    slots = ReconnectSlots()

    assert slots.take(1000.0, 50.0, not_before=3.0) == 1003.0
    assert slots.take(1000.0, 50.0, not_before=3.0) == pytest.approx(1003.02)
    # Behind those who were told to come then, though it might come earlier.
    assert slots.take(1000.0, 50.0) == pytest.approx(1003.04)


def test_a_new_rate_counts_from_the_next_slot_on() -> None:
    slots = ReconnectSlots()
    slots.take(1000.0, 50.0)

    assert slots.take(1000.0, 1.0) == pytest.approx(1000.02)
    assert slots.take(1000.0, 50.0) == pytest.approx(1001.02)


def test_what_is_anothers_time_moves_the_next_slot() -> None:
    slots = ReconnectSlots()
    slots.push_back(1000.0, 0.5)
    assert slots.take(1000.0, 50.0) == 1000.5

    slots.push_back(1000.0, 0.5)
    assert slots.take(1000.0, 50.0) == pytest.approx(1001.02)

    # From the moment on at which the other one comes, if that is later.
    slots.push_back(1010.0, 0.5)
    assert slots.take(1000.0, 50.0) == 1010.5


@given(
    st.lists(
        st.tuples(
            st.floats(0.0, 3.0),
            st.floats(1.0, 10_000.0),
            st.floats(0.0, 5.0),
            st.floats(0.0, 0.5),
        ),
        max_size=60,
    ),
    st.floats(0.05, 2.0),
)
def test_in_no_stretch_of_time_there_are_more_slots_than_the_rate_allows(
    steps: list[tuple[float, float, float, float]], window: float
) -> None:
    slots = ReconnectSlots()
    now = 1000.0
    taken: list[tuple[float, float]] = []
    for passed, rate, not_before, pushed in steps:
        now += passed
        if pushed > 0.4:
            slots.push_back(now, pushed)
        slot = slots.take(now, rate, not_before)
        assert slot >= now + not_before
        assert slots.backlog(now) == pytest.approx(slot + 1 / rate - now)
        taken.append((slot, rate))

    for (earlier, rate), (later, _) in pairwise(taken):
        assert later >= earlier + 1 / rate - 1e-9
    fastest = max((rate for _, rate in taken), default=0.0)
    for start, _ in taken:
        inside = sum(start <= slot < start + window for slot, _ in taken)
        assert inside <= fastest * window + 1 + 1e-6
