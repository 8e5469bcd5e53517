"""The accept control: a bounded piece of each turn, a rate that is measured, slots and counters.

Work takes as long as the test says, on a clock of its own.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pytest

from gateway import wheel
from gateway.acceptance import (
    BRAKE,
    BRAKE_MIN,
    LAG_TARGET,
    OUTSIDE_MIN,
    QUEUE_MAX,
    RATE_MAX,
    RATE_MIN,
    RELEASE,
    SHARE,
    STALL,
    TURN_BUDGET,
    AcceptControl,
    Arrival,
)
from gateway.protocol.admission import BACKLOG_MAX, SLOT_FORGOTTEN, SLOT_LATE, SLOT_MIN, WAIT_MAX
from metrics import instruments
from tests.support.fake_loop import FakeLoop

ALICE: Final = "192.0.2.1"
MS: Final = 0.001


@dataclass
class Node:
    """An accept control with its time in the test's hands."""

    loop: FakeLoop = field(default_factory=FakeLoop)
    rate_max: float = 0.0
    clock: float = 50.0
    ran: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.control = AcceptControl(self.loop, self.rate_max, lambda: self.clock)

    @property
    def now(self) -> float:
        return self.loop.time()

    def work(self, name: str, seconds: float = MS) -> Callable[[], None]:
        def run() -> None:
            self.clock += seconds
            self.ran.append(name)

        return run

    def upgrades(self, count: int, seconds: float = MS) -> None:
        for number in range(count):
            self.control.run(Arrival.UPGRADE, self.work(f"u{number}", seconds))

    def arrival(
        self, kind: Arrival, seconds: float, *, retries: list[int | None] | None = None
    ) -> None:
        """A first message that asks to be admitted."""

        def run() -> None:
            self.clock += seconds
            retry = self.control.admit(kind, ALICE, None, self.now)
            if retries is not None:
                retries.append(retry)

        self.control.run(kind, run)

    def interval(self, seconds: float = 0.25, lag: float = 0.0) -> None:
        """Let time pass, and the wheel turn."""
        self.loop.now += seconds
        self.control.observe_lag(lag)

    def serve(self, seconds: float, *, upgrade: float, connect: float) -> None:
        """Receive one client after the other for so long, with time for nothing else."""
        end = self.now + seconds
        while self.now < end:
            before = self.clock
            self.control.run(Arrival.UPGRADE, self.work("", upgrade))
            self.arrival(Arrival.CONNECT, connect)
            while self.control.statistics().waiting:
                self.loop.turn()
            self.loop.now += self.clock - before


def node(rate_max: float = 0.0) -> Node:
    return Node(rate_max=rate_max)


def slots(event: str) -> float:
    return float(instruments.RECONNECT_SLOTS.labels(event)._value.get())


def refusals(kind: str) -> float:
    return float(instruments.ACCEPT_REFUSALS.labels(kind)._value.get())


# --- a bounded piece of each turn -----------------------------------------------------------------


def test_an_arrival_that_comes_alone_is_received_at_once() -> None:
    alone = node()
    alone.upgrades(1)

    assert alone.ran == ["u0"]
    assert alone.loop.idle


def test_what_a_turn_has_no_time_for_waits_and_is_run_a_slice_per_turn() -> None:
    busy = node()
    busy.upgrades(100, 3 * MS)
    # The one that uses the budget up still runs.
    assert len(busy.ran) == 3
    assert busy.control.statistics().waiting == 97

    busy.loop.turn()
    assert len(busy.ran) == 6
    while not busy.loop.idle:
        before = len(busy.ran)
        busy.loop.turn()
        assert len(busy.ran) - before <= 3
    assert busy.ran == [f"u{number}" for number in range(100)]
    assert busy.control.statistics().waiting == 0


def test_ten_thousand_arrivals_never_hold_a_turn_for_longer_than_its_budget() -> None:
    herd = node()
    herd.upgrades(10_000, 0.06 * MS)
    longest = 0.0
    while not herd.loop.idle:
        before = herd.clock
        herd.loop.turn()
        longest = max(longest, herd.clock - before)

    assert len(herd.ran) == 10_000
    assert longest <= TURN_BUDGET + 0.06 * MS + 1e-9


def test_others_have_their_turn_between_two_slices() -> None:
    busy = node()
    busy.upgrades(20, 5 * MS)
    turns: list[int] = []

    def talk() -> None:
        turns.append(len(busy.ran))
        if len(turns) < 5:
            busy.loop.call_soon(talk)

    busy.loop.call_soon(talk)
    for _ in range(5):
        busy.loop.turn()

    assert turns == [4, 6, 8, 10, 12]


def test_of_those_who_wait_the_ones_who_resume_come_first_and_upgrades_last() -> None:
    busy = node()
    busy.upgrades(1, TURN_BUDGET)
    for number in range(3):
        busy.control.run(Arrival.UPGRADE, busy.work(f"upgrade {number}", 5 * MS))
        busy.control.run(Arrival.CONNECT, busy.work(f"connect {number}", 5 * MS))
        busy.control.run(Arrival.RESUME, busy.work(f"resume {number}", 5 * MS))
    while not busy.loop.idle:
        busy.loop.turn()

    assert busy.ran[1:] == [
        f"{kind} {number}" for kind in ("resume", "connect", "upgrade") for number in range(3)
    ]


def test_who_comes_while_others_wait_waits_behind_its_kind() -> None:
    busy = node()
    busy.upgrades(4, TURN_BUDGET)
    busy.loop.turn()
    busy.control.run(Arrival.RESUME, busy.work("resume"))
    assert "resume" not in busy.ran
    busy.loop.turn()

    assert busy.ran == ["u0", "u1", "resume", "u2"]


def test_arrivals_of_different_turns_do_not_add_up() -> None:
    """The end of a turn isn't watched for somebody who comes alone; it costs at most one turn."""
    quiet = node()
    for number in range(100):
        quiet.upgrades(1, 3 * MS)
        quiet.loop.turn()
        assert len(quiet.ran) == number + 1


def test_a_message_behind_an_upgrade_is_measured_as_what_it_is() -> None:
    both = node()

    def upgrade() -> None:
        both.clock += 0.2 * MS
        both.arrival(Arrival.CONNECT, 0.3 * MS)

    for _ in range(1000):
        both.control.run(Arrival.UPGRADE, upgrade)
        both.loop.turn()
    both.interval()

    assert both.control.statistics().cost_connect == pytest.approx(0.5 * MS, rel=0.05)


def test_an_error_comes_out_where_the_work_runs_at_once() -> None:
    def fail() -> None:
        raise ValueError("broken")

    broken = node()
    with pytest.raises(ValueError, match="broken"):
        broken.control.run(Arrival.UPGRADE, fail)
    broken.upgrades(1)

    assert broken.ran == ["u0"]


def test_an_error_in_a_later_turn_costs_the_others_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail() -> None:
        raise ValueError("broken")

    busy = node()
    busy.upgrades(1, TURN_BUDGET)
    busy.control.run(Arrival.UPGRADE, fail)
    busy.control.run(Arrival.UPGRADE, busy.work("next"))
    with caplog.at_level(logging.ERROR):
        busy.loop.turn()

    assert busy.ran == ["u0", "next"]
    assert [record.message for record in caplog.records] == ["an arrival could not be handled"]


# --- the measured rate ----------------------------------------------------------------------------


def test_before_anything_was_measured_two_thousand_newcomers_a_second_get_slots() -> None:
    assert node().control.rate == pytest.approx(2000.0)


def test_the_rate_follows_what_arrivals_cost() -> None:
    slow = node()
    slow.serve(5.0, upgrade=0.5 * MS, connect=1.5 * MS)
    slow.interval()
    statistics = slow.control.statistics()

    assert statistics.cost_connect == pytest.approx(2 * MS, rel=0.05)
    assert slow.control.rate == pytest.approx(SHARE * statistics.explained / (2 * MS), rel=0.05)


def test_it_follows_within_a_second_when_the_cost_changes() -> None:
    changing = node()
    for connect in (1.5 * MS, 0.1 * MS, 0.8 * MS):
        for _ in range(8):
            changing.serve(0.25, upgrade=0.1 * MS, connect=connect)
            changing.control.observe_lag(0.0)
        cost = changing.control.statistics().cost_connect
        assert cost == pytest.approx(0.1 * MS + connect, rel=0.3)


def test_one_slow_arrival_says_little() -> None:
    """A first import, or a collection."""
    jumpy = node()
    jumpy.serve(1.0, upgrade=0.1 * MS, connect=0.2 * MS)
    jumpy.interval()
    before = jumpy.control.rate
    jumpy.arrival(Arrival.CONNECT, 2.0)
    jumpy.interval()

    assert jumpy.control.rate > 0.9 * before


def test_what_a_client_costs_later_counts_too() -> None:
    later = node()
    for _ in range(400):
        later.upgrades(1, 0.1 * MS)
        later.arrival(Arrival.CONNECT, 0.2 * MS)
        later.loop.turn()
        later.clock += 5 * MS
        later.control.spent(0.7 * MS)
        later.loop.turn()
    later.interval()

    assert later.control.statistics().cost_connect == pytest.approx(1.0 * MS, rel=0.1)


def test_what_is_told_from_inside_the_work_counts_once() -> None:
    inside = node()

    def connect() -> None:
        inside.control.admit(Arrival.CONNECT, ALICE, None, inside.now)
        inside.clock += 0.3 * MS
        inside.control.spent(0.3 * MS)

    for _ in range(1000):
        inside.control.run(Arrival.CONNECT, connect)
        inside.loop.turn()
        inside.loop.now += 0.01
    inside.interval()
    upgrade = 0.1 * MS  # nothing was measured of it

    assert inside.control.statistics().cost_connect == pytest.approx(0.3 * MS + upgrade, rel=0.05)


def test_what_comes_when_nobody_is_accepted_waits_for_the_next_one() -> None:
    late = node()
    for _ in range(50):
        late.arrival(Arrival.CONNECT, 0.1 * MS)
    late.interval()
    before = late.control.statistics().cost_connect
    for _ in range(50):
        late.control.spent(0.5 * MS)
    late.interval()
    assert late.control.statistics().cost_connect == before

    for _ in range(20):
        late.arrival(Arrival.CONNECT, 0.1 * MS)
        late.loop.turn()
    late.interval()
    assert late.control.statistics().cost_connect > 1.5 * before


def test_refusals_do_not_make_a_client_look_cheap() -> None:
    refusing = node(rate_max=60)
    retries: list[int | None] = []
    for _ in range(1000):
        refusing.arrival(Arrival.CONNECT, 0.2 * MS, retries=retries)
        refusing.loop.turn()
    before = refusing.control.statistics().cost_connect
    assert retries.count(None) == 20
    refusing.interval()

    assert refusing.control.statistics().cost_connect == pytest.approx(before, rel=0.1)


def test_who_resumes_has_a_cost_and_a_rate_of_its_own() -> None:
    mixed = node()
    for _ in range(2000):
        mixed.upgrades(1, 0.1 * MS)
        mixed.arrival(Arrival.RESUME, 0.1 * MS)
        mixed.arrival(Arrival.CONNECT, 0.7 * MS)
        mixed.loop.turn()
        mixed.loop.now += 0.01
    mixed.interval()
    statistics = mixed.control.statistics()

    assert statistics.cost_resume == pytest.approx(0.2 * MS, rel=0.05)
    assert statistics.cost_connect == pytest.approx(0.8 * MS, rel=0.05)
    ratio = statistics.pace.resume_slots / statistics.pace.connect_slots
    assert ratio == pytest.approx(4.0, rel=0.1)


def test_when_somebody_always_waited_what_was_done_is_the_capacity() -> None:
    """Two thirds of each turn go into what nobody measures: sockets, polling, other clients."""
    full = node()
    full.upgrades(20_000, 0.5 * MS)
    started = full.now
    while full.now - started < 10.0:
        before = full.clock
        full.loop.turn()
        full.loop.now += 3 * (full.clock - before)
        if full.now - full.control._interval_began >= 0.25:
            full.control.observe_lag(0.0)

    assert full.control.statistics().explained == pytest.approx(1 / 3, rel=0.05)


def serve_one_a_turn(node: Node, seconds: float, outside: int) -> None:
    """Nobody waits here; half of the time goes into what nobody measures."""
    node.control.watch(lambda: outside)
    end = node.now + seconds
    while node.now < end:
        for _ in range(100):
            before = node.clock
            node.upgrades(1, 0.5 * MS)
            node.arrival(Arrival.CONNECT, 0.5 * MS)
            node.loop.turn()
            node.loop.now += 2 * (node.clock - before)
        node.control.observe_lag(0.0)


def test_who_waits_in_the_kernel_waits_too() -> None:
    """A turn takes some of them, and under load more have come when it ends."""
    full, busy = node(), node()
    before = full.control.statistics().explained
    serve_one_a_turn(full, 5.0, outside=OUTSIDE_MIN)
    serve_one_a_turn(busy, 5.0, outside=OUTSIDE_MIN - 1)

    assert full.control.statistics().explained == pytest.approx(0.5, rel=0.05)
    assert busy.control.statistics().explained == before


def test_one_look_at_a_line_is_not_enough() -> None:
    full = node()
    before = full.control.statistics().explained
    lengths = iter([100, 0] * 50)
    full.control.watch(lambda: next(lengths))
    for _ in range(50):
        full.upgrades(1)
        full.loop.turn()
        full.interval()

    assert full.control.statistics().explained == before


def test_refusals_are_part_of_what_can_be_done() -> None:
    """Or a node that refuses would believe itself slow, and refuse the more."""
    full = node(rate_max=20)
    for _ in range(2000):
        full.arrival(Arrival.CONNECT, 1 * MS)
    while full.control.statistics().waiting > 200:
        before = full.clock
        full.loop.turn()
        full.loop.now += full.clock - before
        if full.now - full.control._interval_began >= 0.25:
            full.control.observe_lag(0.0)

    assert full.control.statistics().explained > 0.9


def test_when_nobody_had_to_wait_nothing_is_learned_about_the_capacity() -> None:
    idle = node()
    before = idle.control.statistics().explained
    for _ in range(100):
        idle.upgrades(2, 0.1 * MS)
        idle.loop.turn()
        idle.interval()

    assert idle.control.statistics().explained == before


def test_a_stall_is_not_taken_for_the_capacity() -> None:
    stalled = node()
    stalled.upgrades(1000, 1 * MS)
    stalled.interval()
    before = stalled.control.statistics().explained
    stalled.interval(seconds=20.0, lag=20.0)

    assert stalled.control.statistics().explained == before


def test_the_rate_has_bounds() -> None:
    cheap, dear, limited = node(), node(), node(rate_max=300)
    for _ in range(2000):
        for each, cost in ((cheap, 1e-9), (dear, 0.5), (limited, 0.1 * MS)):
            each.upgrades(1, cost)
            each.arrival(Arrival.CONNECT, cost)
            each.loop.turn()
            each.loop.turn()
            each.interval()

    assert cheap.control.statistics().pace.connects == RATE_MAX
    assert dear.control.rate == RATE_MIN
    pace = limited.control.statistics().pace
    assert {pace.connects, pace.resumes, pace.connect_slots, pace.resume_slots} == {300.0}


def test_a_limit_below_the_least_rate_is_kept() -> None:
    assert node(rate_max=5).control.rate == 5.0


# --- the brake ------------------------------------------------------------------------------------


def test_while_the_loop_is_late_the_rate_falls_and_slices_become_smaller() -> None:
    late = node()
    rate = late.control.rate
    for step in range(1, 4):
        late.interval(lag=LAG_TARGET + 0.001)
        assert late.control.rate == pytest.approx(rate * BRAKE**step)

    late.upgrades(100, 1 * MS)
    assert len(late.ran) == 5  # 8 ms · 0.8³ = 4.1 ms
    for _ in range(40):
        late.interval(lag=1.0)
    assert late.control.statistics().brake == BRAKE_MIN


def test_who_is_at_the_door_is_received_all_the_same() -> None:
    """To refuse somebody would cost half as much as to receive it."""
    late = node()
    before = late.control.statistics().pace.connects
    late.interval(lag=1.0)

    assert late.control.statistics().pace.connects == before


def test_the_brake_is_released_slowly() -> None:
    late = node()
    late.interval(lag=1.0)
    late.interval(lag=1.0)
    braked = late.control.statistics().brake
    late.interval(lag=LAG_TARGET)
    assert late.control.statistics().brake == pytest.approx(braked + RELEASE)

    for _ in range(20):
        late.interval()
    assert late.control.statistics().brake == 1.0


def test_one_stall_brakes_once_whoever_reports_it() -> None:
    late = node()
    late.loop.now += 10.0
    late.control.observe_lag(10.0)
    late.control.observe_lag(9.9)
    late.control.observe_lag(9.8)

    assert late.control.statistics().brake == pytest.approx(BRAKE)


def test_turns_that_take_long_while_arrivals_wait_brake_too() -> None:
    late = node()
    late.upgrades(100, 3 * MS)
    late.loop.turn()
    late.clock += LAG_TARGET  # by others, in the same turn
    late.loop.now += LAG_TARGET
    late.loop.turn()

    assert late.control.statistics().brake == pytest.approx(BRAKE)
    # That turn's slice is smaller already.
    assert late.control._budget == pytest.approx(TURN_BUDGET * BRAKE)


def test_a_pause_between_two_bursts_is_no_long_turn() -> None:
    calm = node()
    for _ in range(5):
        calm.upgrades(10, 3 * MS)
        while not calm.loop.idle:
            calm.loop.turn()
        calm.clock += 60.0
        calm.loop.now += 60.0

    assert calm.control.statistics().brake == 1.0


# --- slots ----------------------------------------------------------------------------------------


def refused(kind: Arrival = Arrival.CONNECT, rate_max: float = 100) -> tuple[Node, int]:
    """A node without free capacity, and what it tells the next one."""
    full = node(rate_max)
    while (retry := full.control.admit(kind, ALICE, None, full.now)) is None:
        pass
    return full, retry


def test_a_client_beyond_the_rate_is_told_when_to_come_back() -> None:
    handed_out, sent_away = slots("handed_out"), refusals("connect")
    full, retry = refused()
    assert retry == SLOT_MIN * 1000

    further = [full.control.admit(Arrival.CONNECT, ALICE, None, full.now) for _ in range(3)]
    assert further == [210, 220, 230]
    assert full.control.backlog == pytest.approx(0.24)
    assert slots("handed_out") == handed_out + 4
    assert refusals("connect") == sent_away + 4


def test_a_client_that_comes_in_its_slot_is_received_and_counted() -> None:
    full, retry = refused()
    honoured = slots("honoured")
    full.loop.now += retry / 1000

    assert full.control.admit(Arrival.CONNECT, ALICE, None, full.now) is None
    assert slots("honoured") == honoured + 1


def test_a_session_that_comes_in_its_slot_is_received_and_counted() -> None:
    full, retry = refused(Arrival.RESUME)
    honoured = slots("honoured")
    slot = full.now + retry / 1000
    full.loop.now = slot

    assert full.control.admit(Arrival.RESUME, ALICE, slot, full.now) is None
    assert slots("honoured") == honoured + 1
    assert len(full.control._admissions.promised) == 0


def test_a_session_that_comes_early_gets_a_fresh_slot() -> None:
    full, retry = refused(Arrival.RESUME)
    early, sent_away = slots("early"), refusals("resume")
    again = full.control.admit(Arrival.RESUME, ALICE, full.now + retry / 1000, full.now)

    assert again is not None
    assert again > retry
    assert slots("early") == early + 1
    assert refusals("resume") == sent_away + 1


def test_a_client_that_comes_late_is_counted_and_received_if_there_is_capacity() -> None:
    full, retry = refused()
    late = slots("late")
    full.loop.now += retry / 1000 + SLOT_LATE + 1.0

    assert full.control.admit(Arrival.CONNECT, ALICE, None, full.now) is None
    assert slots("late") == late + 1


def test_slots_that_nobody_came_for_are_counted() -> None:
    full, retry = refused()
    full.control.admit(Arrival.CONNECT, ALICE, None, full.now)
    missed = slots("missed")
    full.interval(retry / 1000 + SLOT_FORGOTTEN - 0.1)
    assert slots("missed") == missed

    full.interval(1.0)
    assert slots("missed") == missed + 2
    full.control.missed()  # a session that has ended without having come back
    assert slots("missed") == missed + 3


def test_closes_get_the_slots_of_the_same_lines() -> None:
    closing = node(rate_max=100)
    handed_out = slots("handed_out")
    taken = [closing.control.slot_for_close(closing.now) for _ in range(3)]
    assert taken == pytest.approx([0.2, 0.21, 0.22])
    assert closing.control.slot_for_close(closing.now, kind=Arrival.RESUME) == pytest.approx(0.2)
    assert closing.control.slot_for_close(closing.now) == pytest.approx(0.24)

    ahead = closing.control.slot_for_close(closing.now, kind=Arrival.RESUME, not_before=3.0)
    assert ahead == pytest.approx(3.0)
    assert slots("handed_out") == handed_out + 6
    assert len(closing.control._admissions.promised) == 0


def test_a_slot_for_a_close_is_remembered_for_its_address() -> None:
    closing, _ = refused()
    slot = closing.control.slot_for_close(closing.now, "192.0.2.9")
    honoured = slots("honoured")
    closing.loop.now += slot

    assert closing.control.admit(Arrival.CONNECT, "192.0.2.9", None, closing.now) is None
    assert slots("honoured") == honoured + 1


def test_while_others_have_waited_for_too_long_newcomers_are_told_to_come_back() -> None:
    crowded = node()
    retries: list[int | None] = []
    crowded.upgrades(6, TURN_BUDGET)
    crowded.loop.turn()
    crowded.loop.now += WAIT_MAX + 0.5
    crowded.arrival(Arrival.RESUME, MS, retries=retries)
    crowded.arrival(Arrival.CONNECT, MS, retries=retries)
    crowded.loop.turn()

    assert retries == [None, (WAIT_MAX + 0.5) * 1000]


def test_it_counts_how_long_the_one_has_waited_that_has_waited_longest() -> None:
    crowded = node()
    retries: list[int | None] = []
    crowded.upgrades(6, TURN_BUDGET)
    crowded.loop.now += WAIT_MAX + 0.5
    crowded.control.run(Arrival.RESUME, crowded.work("resume"))
    for _ in range(2):
        crowded.arrival(Arrival.CONNECT, MS, retries=retries)
    crowded.loop.turn()

    assert retries[0] == (WAIT_MAX + 0.5) * 1000


def test_time_in_which_we_stood_still_is_nobodys_wait() -> None:
    stalled = node()
    retries: list[int | None] = []
    stalled.interval(seconds=10.0, lag=10.0)
    stalled.upgrades(20, TURN_BUDGET)
    stalled.interval(seconds=10.0, lag=10.0)
    for _ in range(2):
        stalled.arrival(Arrival.CONNECT, 0.1 * MS, retries=retries)
        stalled.loop.turn()
        stalled.loop.now += WAIT_MAX + 0.1

    assert retries[0] is None
    assert retries[1] is not None


def test_behind_the_end_of_the_line_the_gate_sends_people_away() -> None:
    full, _ = refused()
    assert full.control.hard_refusal(full.now, ALICE) is None
    while full.control.backlog < BACKLOG_MAX:
        full.control.slot_for_close(full.now)
    sent_away = refusals("upgrade")
    answers = [full.control.hard_refusal(full.now, "192.0.2.7") for _ in range(200)]

    waits = [answer for answer in answers if answer is not None]
    assert len(answers) - len(waits) == 20  # the burst
    assert refusals("upgrade") == sent_away + 180
    assert min(waits) >= BACKLOG_MAX
    assert max(waits) <= 2 * BACKLOG_MAX + 1
    assert len(set(waits)) > 25  # whole seconds


def test_an_upgrade_that_waited_for_too_long_is_told_when_to_come_back() -> None:
    full = node()
    sent_away = refusals("upgrade")

    assert 1 <= full.control.send_away(full.now) <= 2
    assert refusals("upgrade") == sent_away + 1
    # There is time for the answer before a client gives the attempt up.
    assert WAIT_MAX < QUEUE_MAX < 5.0


def test_gauges_show_what_is_so_now() -> None:
    shown = node(rate_max=100)
    shown.upgrades(10, TURN_BUDGET)
    shown.control.slot_for_close(shown.now)

    def value(name: str, **labels: str) -> float | None:
        return instruments.REGISTRY.get_sample_value(f"capegate_{name}", labels)

    assert value("accept_rate", kind="connect") == 100.0
    assert value("accept_rate", kind="resume") == 100.0
    shown.control.watch(lambda: 5)
    assert value("arrivals_waiting") == 9 + 5
    assert value("accept_backlog_seconds") == pytest.approx(0.21)


def test_the_operators_page_has_these_numbers() -> None:
    page = Path(__file__).resolve().parents[3] / "docs" / "operations.md"
    text = page.read_text(encoding="utf-8").partition("## When everybody comes back at once")[2]
    section = text.partition("\n## ")[0]

    assert f"at most {TURN_BUDGET / MS:.0f} ms of each turn" in section
    assert f"has waited for {WAIT_MAX:.0f} s are further newcomers" in section
    assert f"has waited for {QUEUE_MAX:.0f} s gets HTTP 503" in section
    assert f"places for {BACKLOG_MAX:.0f} s are given out" in section
    assert STALL == wheel.STALL == 0.25
    assert "from a quarter of a second on" in section
