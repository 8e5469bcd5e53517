"""The loop that tests turn by hand keeps asyncio's order."""

import pytest

from tests.support.fake_loop import FakeLoop


def test_timers_run_in_their_order_each_at_its_time() -> None:
    loop = FakeLoop(now=10.0)
    ran: list[tuple[str, float]] = []
    loop.call_at(12.0, lambda: ran.append(("second", loop.time())))
    loop.call_at(11.0, lambda: ran.append(("first", loop.time())))
    loop.call_at(13.5, lambda: ran.append(("later", loop.time())))

    loop.advance(3.0)

    assert ran == [("first", 11.0), ("second", 12.0)]
    assert loop.time() == 13.0
    assert not loop.idle


def test_a_stall_makes_timers_late() -> None:
    loop = FakeLoop(now=10.0)
    ran: list[float] = []
    loop.call_at(11.0, lambda: ran.append(loop.time()))

    loop.stall(5.0)
    assert ran == []
    loop.turn()

    assert ran == [15.0]
    assert loop.idle


def test_what_is_called_in_a_turn_waits_for_the_next() -> None:
    loop = FakeLoop()
    ran: list[str] = []

    def first() -> None:
        ran.append("first")
        loop.call_soon(ran.append, "second")

    loop.call_soon(first)

    loop.turn()
    assert ran == ["first"]
    loop.turn()
    assert ran == ["first", "second"]


def test_a_cancelled_callback_never_runs() -> None:
    loop = FakeLoop(now=10.0)
    ran: list[str] = []
    timer = loop.call_at(11.0, ran.append, "timer")
    soon = loop.call_soon(ran.append, "soon")

    timer.cancel()
    soon.cancel()
    loop.turn()
    loop.advance(5.0)

    assert ran == []
    assert loop.idle


def test_what_a_callback_raises_reaches_the_test() -> None:
    loop = FakeLoop()
    loop.call_soon(lambda: 1 // 0)

    with pytest.raises(ZeroDivisionError):
        loop.turn()
