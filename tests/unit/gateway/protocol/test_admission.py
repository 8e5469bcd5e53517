"""Who is received now, and who is told to come back when: with numbers for time."""

from collections import Counter, deque
from dataclasses import dataclass, replace
from heapq import heapify, heappop, heappush
from itertools import pairwise
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from gateway.protocol.admission import (
    BACKLOG_MAX,
    BURST,
    BURST_MIN,
    SLOT_EARLY,
    SLOT_FORGOTTEN,
    SLOT_LATE,
    SLOT_MIN,
    WAIT_MAX,
    Admissions,
    CapacityBucket,
    Pace,
    PromisedSlots,
    Standing,
    Verdict,
    standing,
)

NOW: Final = 1000.0
ALICE: Final = "192.0.2.1"
BOB: Final = "192.0.2.2"
PACE: Final = Pace(resumes=1000.0, connects=400.0, resume_slots=500.0, connect_slots=200.0)
BURST_CONNECTS: Final = 40  # of PACE.connects, in 0.1 s
BURST_RESUMES: Final = 100


def received(verdict: Verdict) -> bool:
    return verdict.slot is None


def refused_slot(verdict: Verdict) -> float:
    assert verdict.slot is not None
    return verdict.slot


def exhausted(now: float = NOW) -> Admissions:
    """No capacity is left for newcomers right now."""
    admissions = Admissions(PACE)
    while admissions._newcomers.take(now):
        pass
    return admissions


# --- an arrival against its slot ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        (-100.0, Standing.EARLY),
        (-SLOT_EARLY - 0.001, Standing.EARLY),
        (-SLOT_EARLY + 0.001, Standing.DUE),
        (0.0, Standing.DUE),
        (0.3, Standing.DUE),
        (SLOT_LATE, Standing.DUE),
        (SLOT_LATE + 0.001, Standing.LATE),
        (3600.0, Standing.LATE),
    ],
)
def test_a_slot_has_a_little_time_before_and_more_behind_it(
    after: float, expected: Standing
) -> None:
    assert standing(NOW, NOW + after) is expected


def test_without_a_slot_there_is_nothing_to_be_early_for() -> None:
    assert standing(None, NOW) is Standing.WITHOUT


# --- what is free now -----------------------------------------------------------------------------


def bucket(rate: float) -> CapacityBucket:
    found = CapacityBucket()
    found.set_rate(rate)
    return found


def taken(found: CapacityBucket, now: float) -> int:
    count = 0
    while found.take(now):
        count += 1
    return count


@pytest.mark.parametrize(
    ("rate", "burst"), [(1.0, BURST_MIN), (100.0, BURST_MIN), (400.0, 40), (5000.0, 5000 * BURST)]
)
def test_a_burst_is_free_and_then_the_rate(rate: float, burst: float) -> None:
    found = bucket(rate)

    assert taken(found, NOW) == burst
    assert taken(found, NOW) == 0
    assert taken(found, NOW + 0.05) == pytest.approx(rate * 0.05, abs=1)
    assert taken(found, NOW + 1000.0) == burst


def test_what_is_owed_is_paid_back_before_anybody_else_is_received() -> None:
    found = bucket(400.0)
    assert taken(found, NOW) == 40
    for _ in range(20):
        found.owe(NOW)

    assert taken(found, NOW + 0.049) == 0
    assert taken(found, NOW + 0.1) == 20


def test_no_more_is_owed_than_a_burst() -> None:
    found = bucket(400.0)
    for _ in range(1000):
        found.owe(NOW)

    assert taken(found, NOW + 0.1) == 0
    assert taken(found, NOW + 0.2) == 40


def test_a_clock_that_goes_backwards_adds_nothing() -> None:
    found = bucket(400.0)
    taken(found, NOW)

    assert taken(found, NOW - 10.0) == 0
    assert taken(found, NOW) == 0


def test_a_lower_rate_cuts_what_was_saved_up() -> None:
    found = bucket(5000.0)
    assert found.take(NOW)
    found.set_rate(200.0)

    assert taken(found, NOW + 1.0) == 20


@given(st.lists(st.tuples(st.floats(0.0, 0.5), st.integers(0, 50)), max_size=50))
def test_in_no_stretch_of_time_more_is_taken_than_rate_and_burst(
    steps: list[tuple[float, int]],
) -> None:
    found = bucket(400.0)
    now = NOW
    moments: list[float] = []
    for passed, wanted in steps:
        now += passed
        moments += [now for _ in range(wanted) if found.take(now)]

    for first, start in enumerate(moments):
        for last in range(first, len(moments)):
            assert last - first + 1 <= 400.0 * (moments[last] - start) + 40 + 1e-6


# --- slots that were told to an address -----------------------------------------------------------


def promised(*slots: float) -> PromisedSlots:
    found = PromisedSlots(100)
    for slot in slots:
        assert found.add(ALICE, slot)
    return found


def test_an_address_that_was_told_nothing_has_nothing() -> None:
    found = promised(NOW)

    assert found.take(BOB, NOW) is None
    assert not found.is_due(BOB, NOW)
    assert len(found) == 1


def test_a_slot_that_is_due_is_used_up() -> None:
    found = promised(NOW)
    assert found.is_due(ALICE, NOW)

    assert found.take(ALICE, NOW) == NOW
    assert found.take(ALICE, NOW) is None
    assert len(found) == 0


def test_of_several_the_first_that_is_due_is_taken() -> None:
    found = promised(NOW + 60.0, NOW + 2.0, NOW + 1.0, NOW - 20.0)

    assert [found.take(ALICE, NOW + 2.0) for _ in range(4)] == [
        NOW + 1.0,
        NOW + 2.0,
        NOW - 20.0,  # nothing is due any more, so somebody who is late
        NOW + 60.0,
    ]


def test_whoever_comes_early_leaves_the_slot_to_whom_it_was_told() -> None:
    found = promised(NOW + 10.0)
    assert not found.is_due(ALICE, NOW)
    assert [found.take(ALICE, NOW) for _ in range(3)] == [NOW + 10.0] * 3

    assert found.is_due(ALICE, NOW + 10.0)


def test_slots_are_forgotten_when_they_are_long_past_and_counted_as_missed() -> None:
    found = promised(NOW + 3.0, NOW + 1.0, NOW + 2.0)
    found.add(BOB, NOW + 2.0)
    assert found.take(ALICE, NOW + 1.0) == NOW + 1.0

    assert found.expire(NOW + 1.9 + SLOT_FORGOTTEN) == 0
    assert found.expire(NOW + 2.0 + SLOT_FORGOTTEN) == 2
    assert found.expire(NOW + 3.0 + SLOT_FORGOTTEN) == 1
    assert len(found) == 0
    assert found._by_address == {}
    assert found._order == []


def test_no_more_are_remembered_than_memory_is_meant_for() -> None:
    found = PromisedSlots(3)
    assert [found.add(f"198.51.100.{number}", NOW + number) for number in range(5)] == [
        True,
        True,
        True,
        False,
        False,
    ]
    assert len(found) == 3

    found.expire(NOW + SLOT_FORGOTTEN)
    assert found.add(ALICE, NOW + 100.0)


class PromisesMachine(RuleBasedStateMachine):
    """Whatever happens, each promise is used, missed or still there, once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = NOW
        self.found = PromisedSlots(30)
        self.model: dict[str, list[float]] = {ALICE: [], BOB: []}
        self.missed = 0
        self.number = 0

    @rule(seconds=st.sampled_from([0.05, 1.0, 4.0, 20.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(address=st.sampled_from([ALICE, BOB]), ahead=st.sampled_from([0.2, 3.0, 15.0]))
    def promise(self, address: str, ahead: float) -> None:
        self.number += 1
        slot = self.now + ahead + self.number * 1e-6  # no two are the same
        if self.found.add(address, slot):
            self.model[address].append(slot)

    @rule(address=st.sampled_from([ALICE, BOB]))
    def arrive(self, address: str) -> None:
        slots = self.model[address]
        due = [slot for slot in slots if standing(slot, self.now) is Standing.DUE]
        late = [slot for slot in slots if standing(slot, self.now) is Standing.LATE]
        early = [slot for slot in slots if standing(slot, self.now) is Standing.EARLY]
        assert self.found.is_due(address, self.now) == bool(due)
        slot = self.found.take(address, self.now)
        if due:
            assert slot == min(due)
        elif late:
            assert slot == max(late)
        elif early:
            assert slot == min(early)
        else:
            assert slot is None
        if slot is not None and (due or late):
            slots.remove(slot)

    @rule()
    def expire(self) -> None:
        gone = 0
        for slots in self.model.values():
            past = [slot for slot in slots if slot + SLOT_FORGOTTEN <= self.now]
            gone += len(past)
            for slot in past:
                slots.remove(slot)
        assert self.found.expire(self.now) == gone

    @invariant()
    def holds_what_it_should(self) -> None:
        assert len(self.found) == sum(map(len, self.model.values()))
        assert len(self.found._order) <= 30


TestPromises = PromisesMachine.TestCase
TestPromises.settings = settings(max_examples=100, stateful_step_count=40)


# --- one arrival ----------------------------------------------------------------------------------


def test_while_there_is_capacity_everybody_is_received() -> None:
    admissions = Admissions(PACE)
    for _ in range(BURST_CONNECTS):
        assert admissions.connect(ALICE, None, NOW) == Verdict(Standing.WITHOUT)
    for _ in range(BURST_RESUMES):
        assert received(admissions.resume(None, NOW))

    assert admissions.backlog(NOW) == 0.0


def test_beyond_it_each_newcomer_gets_a_slot_of_its_own() -> None:
    admissions = exhausted()
    slots = [refused_slot(admissions.connect(ALICE, None, NOW)) for _ in range(50)]

    assert slots == pytest.approx([NOW + SLOT_MIN + number / 200.0 for number in range(50)])
    assert admissions.backlog(NOW) == pytest.approx(SLOT_MIN + 50 / 200.0)


def test_beyond_it_each_who_resumes_gets_a_slot_of_its_own() -> None:
    admissions = Admissions(PACE)
    for _ in range(BURST_RESUMES):
        admissions.resume(None, NOW)
    slots = [refused_slot(admissions.resume(None, NOW)) for _ in range(50)]

    assert slots == pytest.approx([NOW + SLOT_MIN + number / 500.0 for number in range(50)])


def test_whose_slot_has_come_is_received_without_any_capacity() -> None:
    admissions = exhausted()
    slot = refused_slot(admissions.connect(ALICE, None, NOW))
    while admissions._newcomers.take(slot):
        pass

    assert admissions.connect(ALICE, None, slot) == Verdict(Standing.DUE)
    # Once: whoever comes from there next has no slot.
    assert not received(admissions.connect(ALICE, None, slot))


def test_whose_slot_has_come_is_received_however_many_wait() -> None:
    admissions = exhausted()
    slot = refused_slot(admissions.connect(ALICE, None, NOW))

    assert received(admissions.connect(ALICE, None, slot, waited=60.0))


def test_a_slot_of_its_own_goes_before_those_of_its_address() -> None:
    admissions = exhausted()
    slot = refused_slot(admissions.connect(ALICE, None, NOW))

    assert admissions.connect(ALICE, slot, slot) == Verdict(Standing.DUE)
    assert len(admissions.promised) == 1


def test_whoever_comes_early_without_capacity_gets_a_fresh_slot() -> None:
    admissions = exhausted()
    slot = refused_slot(admissions.connect(ALICE, None, NOW))
    verdict = admissions.connect(ALICE, slot, NOW)

    assert verdict.standing is Standing.EARLY
    assert refused_slot(verdict) > slot


def test_whoever_comes_early_while_capacity_is_free_is_received() -> None:
    admissions = Admissions(PACE)

    assert admissions.connect(ALICE, NOW + 10.0, NOW) == Verdict(Standing.EARLY)
    assert admissions.resume(NOW + 10.0, NOW) == Verdict(Standing.EARLY)


def test_from_an_address_that_others_share_nobody_is_called_early_who_is_received() -> None:
    admissions = Admissions(PACE)
    admissions.promise(ALICE, NOW, resumes=False)

    assert admissions.connect(ALICE, None, NOW) == Verdict(Standing.WITHOUT)
    assert len(admissions.promised) == 1


def test_whoever_comes_late_is_as_one_without_a_slot() -> None:
    late = NOW - SLOT_LATE - 1.0

    assert Admissions(PACE).connect(ALICE, late, NOW) == Verdict(Standing.LATE)
    verdict = exhausted().connect(ALICE, late, NOW)
    assert verdict.standing is Standing.LATE
    assert refused_slot(verdict) >= NOW + SLOT_MIN


def test_when_others_wait_too_long_newcomers_come_back_behind_them() -> None:
    admissions = Admissions(PACE)
    assert received(admissions.connect(ALICE, None, NOW, waited=WAIT_MAX))

    slot = refused_slot(admissions.connect(ALICE, None, NOW, waited=WAIT_MAX + 0.5))
    assert slot == NOW + WAIT_MAX + 0.5


def test_who_resumes_does_so_before_newcomers() -> None:
    """Their capacity is that of newcomers, who wait for it; not the other way round."""
    admissions = Admissions(PACE)
    for _ in range(BURST_RESUMES):
        assert received(admissions.resume(None, NOW))
    assert not received(admissions.connect(ALICE, None, NOW))

    admissions = exhausted()
    assert received(admissions.resume(None, NOW))


def test_who_resumes_takes_as_much_from_newcomers_as_it_costs() -> None:
    admissions = Admissions(PACE)
    for _ in range(50):
        admissions.resume(None, NOW)

    # At 1,000 to 400 a second, five resumptions are two connects.
    left = BURST_CONNECTS - 20
    verdicts = [admissions.connect(ALICE, None, NOW) for _ in range(left + 1)]
    assert [received(verdict) for verdict in verdicts] == [True] * left + [False]


def test_slots_of_newcomers_are_pushed_back_by_those_who_resume() -> None:
    admissions = Admissions(PACE)
    first = admissions.promise(None, NOW, resumes=False)
    returns = [admissions.promise(None, NOW, resumes=True) for _ in range(100)]
    second = admissions.promise(None, NOW, resumes=False)

    assert returns[0] == NOW + SLOT_MIN
    assert first == NOW + SLOT_MIN
    assert second == pytest.approx(first + 1 / 200.0 + 100 / 500.0)
    assert second > returns[-1]


def test_slots_of_those_who_resume_are_not_pushed_back_by_newcomers() -> None:
    admissions = Admissions(PACE)
    for _ in range(100):
        admissions.promise(None, NOW, resumes=False)

    assert admissions.promise(None, NOW, resumes=True) == NOW + SLOT_MIN


def test_newcomers_come_behind_those_who_are_told_to_resume_much_later() -> None:
    """As at a drain: everybody's slots begin when the next process is up."""
    admissions = Admissions(PACE)
    returns = [admissions.promise(None, NOW, resumes=True, not_before=3.0) for _ in range(500)]
    newcomers = [admissions.promise(None, NOW, resumes=False, not_before=3.0) for _ in range(5)]

    assert returns[0] == NOW + 3.0
    assert newcomers[0] == pytest.approx(NOW + 4.0)
    assert newcomers[0] > returns[-1]


def test_a_new_pace_is_that_of_the_next_slot() -> None:
    admissions = Admissions(PACE)
    first = admissions.promise(None, NOW, resumes=False)
    admissions.set_pace(replace(PACE, connect_slots=1.0))
    assert admissions.pace.connect_slots == 1.0

    second = admissions.promise(None, NOW, resumes=False)
    third = admissions.promise(None, NOW, resumes=False)
    assert [second - first, third - second] == pytest.approx([1 / 200.0, 1.0])


# --- the end of the line --------------------------------------------------------------------------


def lined_up(seconds: float) -> Admissions:
    """Slots for so long are given out to others."""
    admissions = exhausted()
    while admissions.backlog(NOW) < seconds:
        admissions.promise("198.51.100.1", NOW, resumes=False)
    return admissions


def test_behind_the_end_of_the_line_no_slots_are_given_out() -> None:
    admissions = lined_up(BACKLOG_MAX)
    backlog = admissions.backlog(NOW)
    moments = [refused_slot(admissions.connect(ALICE, None, NOW)) - NOW for _ in range(1000)]

    assert admissions.backlog(NOW) == backlog
    assert ALICE not in admissions.promised._by_address
    # Spread evenly over as long again.
    assert backlog <= min(moments)
    assert max(moments) < 2 * backlog
    tenths = Counter(int((moment - backlog) / backlog * 10) for moment in moments)
    assert all(95 <= tenths[tenth] <= 105 for tenth in range(10))


def test_whoever_must_be_told_a_slot_gets_it_behind_the_end_too() -> None:
    admissions = lined_up(BACKLOG_MAX)
    backlog = admissions.backlog(NOW)

    assert admissions.promise(ALICE, NOW, resumes=False) == pytest.approx(NOW + backlog)
    assert admissions.backlog(NOW) > backlog


def test_before_the_end_of_the_line_nobody_is_sent_away_at_the_door() -> None:
    admissions = lined_up(BACKLOG_MAX - 1.0)

    assert not any(admissions.is_hopeless(ALICE, NOW) for _ in range(1000))


def test_behind_it_as_many_are_let_in_as_may_have_a_right_to() -> None:
    admissions = lined_up(BACKLOG_MAX + 1.0)
    rate = max(PACE.connect_slots, PACE.resume_slots)

    assert sum(not admissions.is_hopeless(ALICE, NOW) for _ in range(1000)) == rate * BURST
    later = sum(not admissions.is_hopeless(ALICE, NOW + 0.05) for _ in range(1000))
    assert later == pytest.approx(rate * 0.05, abs=1)


def test_an_address_whose_slot_has_come_is_let_in_all_the_same() -> None:
    admissions = exhausted()
    slot = refused_slot(admissions.connect(ALICE, None, NOW))
    while admissions.backlog(slot) < BACKLOG_MAX:
        admissions.promise("198.51.100.1", NOW, resumes=False)
    while not admissions.is_hopeless(BOB, slot):
        pass

    assert not admissions.is_hopeless(ALICE, slot)


# --- herds ----------------------------------------------------------------------------------------


@dataclass(order=True)
class Comer:
    """A client of a herd, by when it comes next."""

    at: float
    number: int
    slot: float | None = None
    resumes: bool = False
    attempts: int = 0


def herd(admissions: Admissions, comers: list[Comer], *, own_slots: bool) -> list[Comer]:
    """Let obedient clients come until all are received; in the order in which they were."""
    waiting = list(comers)
    heapify(waiting)
    done = []
    while waiting:
        comer = heappop(waiting)
        comer.attempts += 1
        assert comer.attempts <= 3
        slot = comer.slot if own_slots or comer.resumes else None
        if comer.resumes:
            verdict = admissions.resume(slot, comer.at)
        else:
            verdict = admissions.connect(f"address {comer.number}", slot, comer.at)
        if verdict.slot is None:
            done.append(comer)
        else:
            # Told in whole ms, and 20 ms until it arrives.
            comer.slot = verdict.slot
            comer.at = verdict.slot + 0.02
            heappush(waiting, comer)
    return done


@pytest.mark.parametrize("own_slots", [True, False], ids=["told to sessions", "told to addresses"])
def test_a_herd_that_obeys_is_received_at_the_rate_at_its_second_attempt(own_slots: bool) -> None:
    done = herd(Admissions(PACE), [Comer(NOW, n) for n in range(4000)], own_slots=own_slots)

    assert max(comer.attempts for comer in done) == 2
    assert sum(comer.attempts == 1 for comer in done) == BURST_CONNECTS
    # No sooner than the slots' rate allows, and no later.
    assert done[-1].at - NOW == pytest.approx(SLOT_MIN + 3960 / PACE.connect_slots, abs=0.1)
    moments = [comer.at for comer in done if comer.attempts == 2]
    assert all(later - earlier >= 1 / 200.0 - 1e-9 for earlier, later in pairwise(moments))


def test_of_a_mixed_herd_those_who_resume_are_all_received_before_newcomers() -> None:
    comers = [Comer(NOW, n, resumes=n % 2 == 0) for n in range(2000)]
    done = herd(Admissions(PACE), comers, own_slots=True)
    at_once = [comer for comer in done if comer.attempts == 1]
    later = [comer for comer in done if comer.attempts > 1]

    resumers = [comer.at for comer in later if comer.resumes]
    newcomers = [comer.at for comer in later if not comer.resumes]
    assert len(at_once) <= BURST_CONNECTS + BURST_RESUMES
    assert resumers[-1] - NOW == pytest.approx(SLOT_MIN + len(resumers) / 500.0, abs=0.1)
    # A newcomer's slot lies behind all those that were given to others before it.
    assert newcomers[-1] - NOW == pytest.approx(
        SLOT_MIN + len(resumers) / 500.0 + len(newcomers) / 200.0, abs=0.1
    )


def test_those_without_slots_get_what_those_with_slots_leave() -> None:
    """Half of those who were told a slot never come, and strangers take their places."""
    admissions = exhausted()
    told = [refused_slot(admissions.connect(f"address {n}", None, NOW)) for n in range(2000)]
    strangers = 0
    for number, slot in enumerate(told):
        if number % 2:
            verdict = admissions.connect(f"address {number}", None, slot)
            assert verdict == Verdict(Standing.DUE)
        strangers += sum(
            received(admissions.connect(f"stranger {number} {n}", None, slot)) for n in range(3)
        )

    seconds = told[-1] - told[0]
    left = PACE.connects - PACE.connect_slots / 2
    assert strangers == pytest.approx(left * seconds, rel=0.05)


class AdmissionMachine(RuleBasedStateMachine):
    """Any mix of arrivals, closes and waiting: what was promised holds, and rates do too."""

    def __init__(self) -> None:
        super().__init__()
        self.now = NOW
        self.admissions = Admissions(PACE)
        self.lines: dict[bool, list[float]] = {False: [], True: []}
        self.free: list[float] = []  # when newcomers were received without a right to it
        self.own: deque[tuple[bool, float]] = deque()  # slots of clients that will obey

    def _told(self, resumes: bool, slot: float) -> None:
        assert slot >= self.now + SLOT_MIN
        line = self.lines[resumes]
        if line:
            rate = PACE.resume_slots if resumes else PACE.connect_slots
            assert slot >= line[-1] + 1 / rate - 1e-9
        if not resumes:
            assert all(slot > other for other in self.lines[True])
        line.append(slot)

    @rule(seconds=st.sampled_from([0.001, 0.02, 0.3, 2.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(count=st.integers(1, 60), waited=st.sampled_from([0.0, 0.0, WAIT_MAX + 1.0]))
    def newcomers(self, count: int, waited: float) -> None:
        for number in range(count):
            verdict = self.admissions.connect(f"{self.now} {number}", None, self.now, waited)
            if verdict.slot is None:
                assert not waited
                self.free.append(self.now)
            elif self.admissions.backlog(self.now) < BACKLOG_MAX:
                self._told(False, verdict.slot)
                self.own.append((False, verdict.slot))

    @rule(count=st.integers(1, 120))
    def resumers(self, count: int) -> None:
        for _ in range(count):
            verdict = self.admissions.resume(None, self.now)
            if verdict.slot is not None and self.admissions.backlog(self.now) < BACKLOG_MAX:
                self._told(True, verdict.slot)
                self.own.append((True, verdict.slot))

    @rule(resumes=st.booleans(), not_before=st.sampled_from([0.0, 1.0]), count=st.integers(1, 50))
    def close(self, resumes: bool, not_before: float, count: int) -> None:
        for _ in range(count):
            slot = self.admissions.promise(None, self.now, resumes=resumes, not_before=not_before)
            assert slot >= self.now + not_before
            self._told(resumes, slot)
            self.own.append((resumes, slot))

    @rule(late=st.floats(-SLOT_EARLY + 1e-6, SLOT_LATE - 1e-6))
    def somebody_obeys(self, late: float) -> None:
        if not self.own:
            return
        resumes, slot = self.own.popleft()
        moment = slot + late
        if moment < self.now:
            return  # it would have come in the past
        self.now = moment
        if resumes:
            verdict = self.admissions.resume(slot, self.now)
        else:
            verdict = self.admissions.connect("obedient", slot, self.now)
        assert verdict == Verdict(Standing.DUE)

    @invariant()
    def newcomers_without_a_right_keep_to_the_rate(self) -> None:
        recent = self.free[-200:]
        for first, start in enumerate(recent):
            count = len(recent) - first
            assert count <= PACE.connects * (recent[-1] - start) + BURST_CONNECTS + 1e-6


TestAdmissions = AdmissionMachine.TestCase
TestAdmissions.settings = settings(max_examples=60, stateful_step_count=40)
