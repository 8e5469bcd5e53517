"""The book of sessions: found by their tokens, and bounded in number, by address and in memory."""

from collections.abc import Callable

import pytest

from gateway import sessions as module
from gateway.protocol.backoff import DeclaredBackoff, RetentionBounds
from gateway.protocol.session import Gone, Session, SessionState, TailLimits
from gateway.resume_tokens import ResumeTokens, SessionId
from gateway.sessions import (
    CALM_BELOW,
    CALM_SWEEP_INTERVAL,
    SESSION_BYTES,
    SWEEP_INTERVAL,
    SessionLimits,
    Sessions,
)
from tests.support.session_bench import counted

TAIL = TailLimits(1024, 256 * 1024)
BOUNDS = RetentionBounds(floor=10.0, ceiling=300.0)
BACKOFF = DeclaredBackoff(0.5, 20.0)
WANTED = 148.5
"""What `BACKOFF` needs."""


class Kept:
    """A session without anything around it."""

    def __init__(self, book: "Sessions[Kept]", address: str = "a") -> None:
        self.session = Session()
        self.session_id: SessionId = book.tokens.new_id()
        self.address = address
        self.ended: Gone | None = None
        self._book = book
        book.add(self)

    @property
    def token(self) -> str:
        """What names it."""
        return self._book.tokens.sign(self.session_id)

    def hold(self, size: int) -> None:
        """Have so many bytes in its tail."""
        self.session.sent_frames(bytes(size), 1, TailLimits(1024, 1 << 30))

    def detach(self) -> "Kept":
        """Lose its socket."""
        self.session.lose(0.0, 60.0)
        self._book.detach(self)
        return self

    def attach(self, address: str | None = None) -> None:
        """Get another one."""
        self._book.attach(self)
        self.session.state = SessionState.ATTACHED
        self.address = self.address if address is None else address

    def expire(self, reason: Gone) -> None:
        """See `sessions.Kept`."""
        assert self.session.state is SessionState.DETACHED
        self.ended = reason
        self.session.expire()
        self._book.remove(self, reason)


def make_book(
    *, sessions_max: int = 0, detached_per_address_max: int = 0, memory_max_bytes: int = 0
) -> Sessions[Kept]:
    return Sessions(
        ResumeTokens(bytes(32), "node"),
        SessionLimits(
            tail=TAIL,
            retention=BOUNDS,
            detection=35.0,
            stable=30.0,
            sessions_max=sessions_max,
            detached_per_address_max=detached_per_address_max,
            memory_max_bytes=memory_max_bytes,
        ),
    )


def ends(*kept: Kept) -> list[Gone | None]:
    return [one.ended for one in kept]


@pytest.fixture
def evictions() -> Callable[[], float]:
    """How many were counted since the test began."""
    before = counted("session_evictions_total")
    return lambda: counted("session_evictions_total") - before


# --- finding ------------------------------------------------------------------------------------


def test_a_session_is_found_by_its_token_with_or_without_a_socket() -> None:
    book = make_book()
    kept = Kept(book)
    assert book.find(kept.token) is kept
    kept.detach()
    assert book.find(kept.token) is kept
    kept.attach()
    assert book.find(kept.token) is kept
    assert book.all == [kept]
    assert len(book) == 1


def test_what_was_never_here_is_unknown() -> None:
    book = make_book()
    assert book.find("") is Gone.UNKNOWN
    assert book.find("A" * 56) is Gone.UNKNOWN
    assert book.find(book.tokens.sign(book.tokens.new_id())) is Gone.UNKNOWN


@pytest.mark.parametrize("reason", Gone)
def test_why_it_ended_is_remembered(reason: Gone) -> None:
    book = make_book()
    kept = Kept(book)
    book.remove(kept, reason)
    assert book.find(kept.token) is reason
    assert len(book) == 0


def test_the_first_reason_stays() -> None:
    book = make_book()
    kept = Kept(book)
    book.remove(kept, Gone.OVERFLOW)
    book.remove(kept, Gone.UNKNOWN)
    assert book.find(kept.token) is Gone.OVERFLOW


def test_reasons_are_forgotten_the_oldest_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ENDED_REMEMBERED", 3)
    book = make_book()
    kept = [Kept(book) for _ in range(5)]
    for one in kept:
        book.remove(one, Gone.EXPIRED)
    assert [book.find(one.token) for one in kept] == [Gone.UNKNOWN] * 2 + [Gone.EXPIRED] * 3


def test_they_are_counted_by_state() -> None:
    book = make_book()
    first, second, third = (Kept(book) for _ in range(3))
    first.detach()
    second.detach()
    second.attach()
    book.remove(third, Gone.UNKNOWN)
    assert counted("sessions", state="attached") == 1
    assert counted("sessions", state="detached") == 1
    first.expire(Gone.EXPIRED)
    assert counted("sessions", state="detached") == 0


def test_one_that_is_taken_up_has_no_socket() -> None:
    book = make_book()
    kept = Kept.__new__(Kept)
    kept.session = Session.restored(Session().save(), 60.0)
    kept.session_id = book.tokens.new_id()
    kept.address = "a"
    book.take_up(kept)
    assert book.detached == [kept]
    assert book.find(book.tokens.sign(kept.session_id)) is kept


# --- their number -------------------------------------------------------------------------------


def test_without_a_limit_there_is_always_room(evictions: Callable[[], float]) -> None:
    book = make_book()
    for _ in range(100):
        assert book.make_room()
        Kept(book).detach()
    assert len(book) == 100
    assert evictions() == 0


def test_the_one_that_has_waited_longest_makes_room(evictions: Callable[[], float]) -> None:
    book = make_book(sessions_max=3)
    first, second, third = (Kept(book) for _ in range(3))
    third.detach()
    first.detach()
    second.detach()
    assert book.make_room()
    assert ends(first, second, third) == [None, None, Gone.EXPIRED]
    assert book.make_room()
    assert ends(first, second) == [None, None], "there was room by then"
    Kept(book)
    assert book.make_room()
    assert ends(first, second) == [Gone.EXPIRED, None]
    assert evictions() == 2


def test_who_came_back_waits_anew() -> None:
    book = make_book(sessions_max=2)
    first, second = Kept(book), Kept(book)
    first.detach()
    second.detach()
    first.attach()
    first.session.state = SessionState.ATTACHED
    first.detach()
    assert book.detached == [second, first]
    book.make_room()
    assert second.ended is Gone.EXPIRED


def test_there_is_no_room_when_everybody_has_a_socket(evictions: Callable[[], float]) -> None:
    book = make_book(sessions_max=2)
    kept = [Kept(book), Kept(book)]
    assert not book.make_room()
    assert ends(*kept) == [None, None]
    assert evictions() == 0


# --- by address ---------------------------------------------------------------------------------


def test_of_one_address_so_many_wait_at_most(evictions: Callable[[], float]) -> None:
    book = make_book(detached_per_address_max=2)
    others = [Kept(book, "b").detach() for _ in range(2)]
    kept = [Kept(book, "a").detach() for _ in range(5)]
    assert ends(*kept) == [Gone.EXPIRED] * 3 + [None] * 2
    assert ends(*others) == [None, None]
    assert evictions() == 3


def test_it_counts_where_it_lost_its_socket_whatever_address_it_has_next() -> None:
    book = make_book(detached_per_address_max=1)
    first = Kept(book, "a").detach()
    first.attach("b")
    second = Kept(book, "a").detach()
    assert ends(first, second) == [None, None]
    first.detach()
    third = Kept(book, "b").detach()
    assert ends(first, second, third) == [Gone.EXPIRED, None, None]


def test_nothing_is_held_of_addresses_where_nobody_waits() -> None:
    book = make_book(detached_per_address_max=10)
    first, second = Kept(book, "a").detach(), Kept(book, "b").detach()
    first.attach("c")
    second.expire(Gone.EXPIRED)
    book.remove(first, Gone.UNKNOWN)
    assert book._detached_of == {}
    assert book._detached == {}
    assert book._by_id == {}


# --- memory -------------------------------------------------------------------------------------


def test_memory_is_what_tails_hold_and_a_little_for_each() -> None:
    book = make_book()
    first, second = Kept(book), Kept(book).detach()
    first.hold(1000)
    second.hold(500)
    assert book.memory_bytes == 0
    book.sweep()
    assert book.memory_bytes == 1500 + 2 * SESSION_BYTES
    assert counted("session_memory_bytes") == book.memory_bytes


@pytest.mark.parametrize(
    ("used", "granted"),
    [
        (0.0, WANTED),
        (0.5, WANTED),
        (0.75, 10.0 + (WANTED - 10.0) / 2),
        (0.9, 10.0 + (WANTED - 10.0) * 0.2),
        (1.0, 10.0),
        (3.0, 10.0),
    ],
)
def test_from_half_of_the_memory_on_less_retention_is_promised(used: float, granted: float) -> None:
    book = make_book(memory_max_bytes=1_000_000)
    kept = Kept(book)  # with a socket: nobody ends for it
    kept.hold(max(0, round(used * 1_000_000) - SESSION_BYTES))
    assert book.retention(BACKOFF) == pytest.approx(WANTED)
    book.sweep()
    assert book.retention(BACKOFF) == pytest.approx(granted, rel=1e-3)


def test_what_is_promised_grows_again_with_what_is_free() -> None:
    book = make_book(memory_max_bytes=1_000_000)
    kept = Kept(book)
    kept.hold(1_000_000)
    book.sweep()
    assert book.retention(BACKOFF) == pytest.approx(10.0)
    kept.session.acknowledge(1)
    book.sweep()
    assert book.retention(BACKOFF) == pytest.approx(WANTED)


def test_over_the_limit_those_end_that_have_waited_longest_and_no_more_than_needed(
    evictions: Callable[[], float],
) -> None:
    book = make_book(memory_max_bytes=100_000)
    attached = Kept(book)
    attached.hold(50_000)
    waiting = [Kept(book) for _ in range(4)]
    for one in waiting:
        one.hold(20_000)
        one.detach()
    book.sweep()
    assert ends(*waiting) == [Gone.EXPIRED] * 2 + [None] * 2
    assert attached.ended is None
    assert book.memory_bytes == 90_000 + 3 * SESSION_BYTES
    assert evictions() == 2
    book.sweep()
    assert evictions() == 2


def test_those_with_a_socket_never_end_for_memory() -> None:
    book = make_book(memory_max_bytes=1000)
    kept = [Kept(book) for _ in range(3)]
    waiting = Kept(book).detach()
    book.sweep()
    assert ends(*kept) == [None] * 3
    assert waiting.ended is Gone.EXPIRED


def test_it_is_counted_more_often_when_it_is_used() -> None:
    book = make_book(memory_max_bytes=1_000_000)
    kept = Kept(book)
    assert book.sweep_interval == CALM_SWEEP_INTERVAL
    kept.hold(round(CALM_BELOW * 1_000_000) - SESSION_BYTES)
    book.sweep()
    assert book.sweep_interval == SWEEP_INTERVAL
    kept.session.acknowledge(1)
    book.sweep()
    assert book.sweep_interval == CALM_SWEEP_INTERVAL


def test_without_a_limit_it_is_counted_now_and_then() -> None:
    book = make_book()
    kept = Kept(book)
    kept.hold(1 << 28)
    book.sweep()
    assert book.sweep_interval == CALM_SWEEP_INTERVAL


def test_without_a_limit_memory_is_only_counted() -> None:
    book = make_book()
    kept = Kept(book)
    kept.hold(1 << 28)
    kept.detach()
    book.sweep()
    assert kept.ended is None
    assert book.retention(BACKOFF) == pytest.approx(WANTED)
    assert book.memory_bytes > 1 << 28
