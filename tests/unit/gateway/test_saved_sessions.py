"""Sessions from one process to the next: what is written down, and what is made of it."""

import json
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import msgspec
import pytest

from gateway import saved_sessions as module
from gateway.link import NO_LINK
from gateway.protocol.channels import ChannelOptions
from gateway.protocol.claims import ServerSubscription
from gateway.protocol.codes import FORCE_DISCONNECT
from gateway.protocol.session import TailLimits
from gateway.saved_sessions import AT_ONCE, LEFT_FOR, SavedConnection, SavedSessions
from store.pool import Database
from store.sessions import SavedRow as Row
from tests.support.logbook import Logbook
from tests.support.session_bench import (
    LOG,
    NAMESPACES,
    NODE,
    PLAIN,
    RETENTION,
    Bench,
    counted,
    data_of,
    payload_frames,
)

BARE = "bare:x"
SAVE_TIMEOUT = 5.0


class Shelf:
    """Stands for `store.sessions` and the database behind it: rows in a list."""

    SavedRow = Row

    def __init__(self) -> None:
        self.rows: dict[str, list[Row]] = {}
        self.failure: Exception | None = None
        self.forgotten: list[datetime] = []
        self.timeouts: list[float] = []

    # --- what tests do ------------------------------------------------------------------------

    def age(self, seconds: float) -> None:
        """Let so much time pass between the two processes."""
        by = timedelta(seconds=seconds)
        for node, rows in self.rows.items():
            self.rows[node] = [row._replace(saved_at=row.saved_at - by) for row in rows]

    def rewrite(self, change: Callable[[SavedConnection], SavedConnection]) -> None:
        """Change what was written."""
        for node, rows in self.rows.items():
            self.rows[node] = [
                row._replace(state=module._encode(change(module._decode(row.state))))
                for row in rows
            ]

    # --- `store.sessions` -----------------------------------------------------------------------

    async def save(self, connection: object, node: str, rows: Iterable[Row]) -> None:
        """See `store.sessions`."""
        assert connection is self
        if self.failure is not None:
            raise self.failure
        self.rows[node] = list(rows)

    async def take(self, connection: object, node: str) -> list[Row]:
        """See `store.sessions`."""
        assert connection is self
        return self.rows.pop(node, [])

    async def forget_expired(self, connection: object, now: datetime) -> int:
        """See `store.sessions`."""
        assert connection is self
        self.forgotten.append(now)
        return 0

    # --- `Database` -----------------------------------------------------------------------------

    @asynccontextmanager
    async def connection(self, timeout: float) -> AsyncIterator["Shelf"]:
        """See `Database`."""
        self.timeouts.append(timeout)
        yield self

    @property
    def pool(self) -> "Shelf":
        """See `Database`."""
        return self

    @asynccontextmanager
    async def acquire(self) -> AsyncIterator["Shelf"]:
        """See asyncpg's pool."""
        yield self


@pytest.fixture
def shelf(monkeypatch: pytest.MonkeyPatch) -> Shelf:
    shelf = Shelf()
    monkeypatch.setattr(module, "table", shelf)
    return shelf


@pytest.fixture
def log() -> Logbook:
    return Logbook()


@pytest.fixture
def old(log: Logbook) -> Bench:
    return Bench(log=log)


def keeper(bench: Bench, shelf: Shelf, node: str = NODE) -> SavedSessions:
    return SavedSessions(cast(Database, shelf), bench.services, bench.manager, node)


def save(bench: Bench, shelf: Shelf) -> int:
    """Let the former process end: nobody has a socket any more, and what is left is saved."""
    assert all(connection.detached for connection in bench.manager.with_session)
    return bench.loop.run(keeper(bench, shelf).save(bench.manager.with_session, SAVE_TIMEOUT))


def next_process(shelf: Shelf, log: Logbook, **options: Any) -> tuple[Bench, int]:
    """The next one, and how many sessions it took up."""
    bench = Bench(log=log, **options)
    return bench, bench.loop.run(keeper(bench, shelf).take_up())


def pushes(messages: list[Any], kind: str) -> list[Any]:
    return [one["push"][kind] for one in messages if "push" in one and kind in one["push"]]


# --- as if nothing had happened -----------------------------------------------------------------


def test_a_session_goes_on_in_the_next_process(shelf: Shelf, log: Logbook, old: Bench) -> None:
    socket, token = old.session(LOG, BARE, token="alice")
    old.publish(LOG, 1, 2)
    old.publish(BARE, "a")
    socket.take()
    had = socket.received
    old.publish(BARE, "b")  # on the wire when it broke
    socket.cut()
    old.publish(BARE, "c")
    old.publish(LOG, 3)
    client = old.found(token).client.id
    assert save(old, shelf) == 1

    log.write(LOG)  # by another node
    new, taken = next_process(shelf, log)
    assert taken == 1
    assert NO_LINK.owner is None, "it stands for all links that aren't there"
    assert new.holds()["clients"] == 1
    new.publish(LOG, 5)
    new.publish(BARE, "d")
    resumed = new.resume(token, had)
    new.loop.settle()
    head, *rest = resumed.take()
    assert head["session"]["resumed"]["generation"] == 2
    assert head["session"]["resumed"]["received"] == 3
    assert data_of(rest, BARE) == ["b", "c", "d"]
    assert [one if not isinstance(one, list) else one[0] for one in data_of(rest, LOG)] == [3, 4, 5]
    assert pushes(rest, "join") == pushes(rest, "leave") == []
    resumed.say({"id": 7, "publish": {"channel": LOG, "data": 6}})
    heard = resumed.take()
    assert data_of(heard, LOG) == [6]
    assert {"id": 7, "publish": {"offset": 6, "epoch": "epoch-1"}} in heard
    assert new.found(token).client.id == client


def test_its_presence_is_there_before_it_is(shelf: Shelf, log: Logbook, old: Bench) -> None:
    socket, _ = old.session(LOG)
    before = dict(old.presence.clients(LOG))
    socket.cut()
    save(old, shelf)
    new, _ = next_process(shelf, log)
    assert {client: json.loads(info)["user"] for client, info in before.items()} == {
        client: json.loads(info)["user"] for client, info in new.presence.clients(LOG).items()
    }
    assert new.holds()["detached"] == 1


def test_nobody_in_the_room_notices(shelf: Shelf, log: Logbook, old: Bench) -> None:
    first, first_token = old.session(LOG, token="alice")
    second, _ = old.session(LOG, token="bob")
    first.take()
    first.cut()
    second.cut()
    had = first.received
    assert save(old, shelf) == 2
    new, _ = next_process(shelf, log)
    resumed = new.resume(first_token, had)
    new.loop.settle()
    assert payload_frames(resumed.take()) == []


def test_who_left_before_the_save_is_told_of(shelf: Shelf, log: Logbook, old: Bench) -> None:
    socket, token = old.session(LOG, token="alice")
    stock = old.stock(LOG, token="bob")
    socket.take()
    had = socket.received
    socket.cut()
    stock.cut()
    save(old, shelf)
    new, _ = next_process(shelf, log)
    joiner = new.stock(LOG, token="carol")
    heard = new.resume(token, had).take()
    assert [leave["info"]["user"] for leave in pushes(heard, "leave")] == ["bob"]
    assert [join["info"]["user"] for join in pushes(heard, "join")] == ["carol"]
    joiner.cut()


def test_a_client_keeps_who_it_is(shelf: Shelf, log: Logbook, old: Bench) -> None:
    socket, token = old.session(LOG, token=f"alice ttl=100 subs={PLAIN}")
    connection = old.found(token)
    connection.client.info = b'{"name":"Alice"}'
    connection.client.subscriptions[LOG].chan_info = b'{"role":"owner"}'
    connection.client.subscriptions[LOG].expires_at = old.loop.time() + 50.0
    socket.cut()
    save(old, shelf)
    new, _ = next_process(shelf, log)
    (taken,) = new.manager.find("alice")
    client = taken.client
    assert client.info == b'{"name":"Alice"}'
    assert client.expires_at == pytest.approx(new.loop.time() + 100.0, abs=2.0)
    assert {name: sub.server_side for name, sub in client.subscriptions.items()} == {
        LOG: False,
        PLAIN: True,
    }
    logged = client.subscriptions[LOG]
    assert logged.chan_info == b'{"role":"owner"}'
    assert logged.expires_at == pytest.approx(new.loop.time() + 50.0, abs=2.0)
    assert (logged.recoverable, logged.positioned, logged.push_join_leave) == (True, True, True)
    new.manager.disconnect([taken], FORCE_DISCONNECT)
    assert new.resume(token, 1).take_session() == [{"gone": {"reason": "unknown"}}]


def test_what_the_api_did_while_it_was_away_is_told(shelf: Shelf, log: Logbook, old: Bench) -> None:
    socket, token = old.session()
    socket.cut()
    old.found(token).client.subscribe_by_server(LOG, ServerSubscription())
    old.loop.settle()
    save(old, shelf)
    new, _ = next_process(shelf, log)
    new.publish(LOG, 1)
    heard = new.resume(token, socket.received).take()
    assert len(pushes(heard, "subscribe")) == 1
    assert data_of(heard, LOG) == [1]


def test_counts_and_generations_go_on(shelf: Shelf, log: Logbook) -> None:
    token, had, sent = "", 0, 0
    bench = Bench(log=log)
    for generation in range(1, 5):
        if not token:
            socket, token = bench.session(BARE)
            sent = 2
        else:
            socket = bench.resume(token, had)
            (frame,) = socket.take_session()
            assert frame["resumed"]["generation"] == generation
            assert frame["resumed"]["received"] == sent
        socket.say({"id": 10 + generation, "ping": {}})
        sent += 1
        bench.publish(BARE, generation)
        socket.take()
        had += socket.received
        socket.cut()
        save(bench, shelf)
        bench, taken = next_process(shelf, log)
        assert taken == 1


def test_a_tail_that_overflows_by_what_is_to_be_told_ends_later(shelf: Shelf, log: Logbook) -> None:
    bench = Bench(log=log, tail=TailLimits(frames=2))
    socket, token = bench.session(PLAIN)
    socket.session(ack=socket.received)
    socket.cut()
    bench.publish(PLAIN, 1, 2)
    bench.stock(PLAIN).cut()
    bench.stock(PLAIN)
    assert save(bench, shelf) == 1
    new, _ = next_process(shelf, log)
    assert new.resume(token, socket.received).take_session() == [{"gone": {"reason": "overflow"}}]


def test_sessions_are_saved_and_taken_up_in_slices(shelf: Shelf, log: Logbook, old: Bench) -> None:
    count = 2 * AT_ONCE + 1
    tokens = []
    for number in range(count):
        socket, token = old.session(LOG, token=f"user{number}")
        tokens.append((token, socket))
        old.loop.pass_time(0.05)
    for _, socket in tokens:
        socket.cut()
    assert save(old, shelf) == count
    new, taken = next_process(shelf, log)
    assert taken == count
    assert counted("sessions", state="detached") == count
    assert log.reads <= 2, "one channel is read once by each process"
    assert new.holds()["subscriptions"] == count


def test_what_is_saved_is_taken_once(shelf: Shelf, log: Logbook, old: Bench) -> None:
    socket, token = old.session()
    socket.cut()
    save(old, shelf)
    assert next_process(shelf, log)[1] == 1
    again, taken = next_process(shelf, log)
    assert taken == 0
    assert again.resume(token, 1).take_session() == [{"gone": {"reason": "unknown"}}]


def test_another_nodes_are_left_alone(shelf: Shelf, log: Logbook, old: Bench) -> None:
    socket, _ = old.session()
    socket.cut()
    save(old, shelf)
    bench = Bench(log=log, node="node-2")
    assert bench.loop.run(keeper(bench, shelf, "node-2").take_up()) == 0
    assert len(shelf.rows[NODE]) == 1
    (moment,) = shelf.forgotten
    assert moment <= datetime.now(UTC) - timedelta(seconds=LEFT_FOR - 1)


# --- time ---------------------------------------------------------------------------------------


def test_the_time_between_the_processes_counts(shelf: Shelf, log: Logbook, old: Bench) -> None:
    witness, witness_token = old.session(LOG, token="bob", attempts=100)
    socket, token = old.session(LOG, token="alice")
    witness.take()
    socket.cut()
    witness.cut()
    save(old, shelf)
    shelf.age(100.0)
    new, _ = next_process(shelf, log)
    new.loop.pass_time(RETENTION - 102.0)
    assert new.holds()["detached"] == 2
    new.loop.pass_time(3.0)
    assert new.resume(token, socket.received).take_session() == [{"gone": {"reason": "expired"}}]
    heard = new.resume(witness_token, witness.received).take()
    assert [leave["info"]["user"] for leave in pushes(heard, "leave")] == ["alice"]


def test_a_moment_that_was_told_still_holds(shelf: Shelf, log: Logbook, old: Bench) -> None:
    socket, token = old.session(min=0, max=0, attempts=0, timeout=1000)
    old.found(token).move(100.0, 5.0)
    socket.cut()
    save(old, shelf)
    shelf.age(3.0)
    new, _ = next_process(shelf, log)
    connection = new.found(token)
    assert connection.slot == pytest.approx(new.loop.time() + 97.0, abs=2.0)
    new.loop.pass_time(97.5)
    assert "resumed" in new.resume(token, socket.received).take()[0]["session"]


def test_a_clock_that_went_back_costs_nobody(shelf: Shelf, log: Logbook, old: Bench) -> None:
    socket, _ = old.session()
    socket.cut()
    save(old, shelf)
    shelf.age(-3600.0)
    assert next_process(shelf, log)[1] == 1


def test_the_backoff_goes_on_to_count(shelf: Shelf, log: Logbook, old: Bench) -> None:
    socket, token = old.session(min=100, max=7000, factor=3, jitter=0.5, attempts=5, timeout=2500)
    socket.cut()
    granted = old.found(token).session.expires_at - old.loop.time()
    save(old, shelf)
    new, _ = next_process(shelf, log)
    resumed = new.resume(token, socket.received)
    (frame,) = resumed.take_session()
    assert frame["resumed"]["retain"] == pytest.approx(1000 * granted)


# --- what can't go on ---------------------------------------------------------------------------


HALL = "hall:x"  # in a namespace that stays what it is
ALL = {**NAMESPACES, "hall": NAMESPACES["live"]}


def without(name: str) -> Mapping[str, ChannelOptions]:
    return {known: options for known, options in ALL.items() if known != name}


def otherwise(name: str, **changes: Any) -> Mapping[str, ChannelOptions]:
    return {**ALL, name: replace(ALL[name], **changes)}


def nothing(log: Logbook) -> None:
    """The log is what it was."""


def begin_anew(log: Logbook) -> None:
    log.begin_anew(LOG)


def go_back(log: Logbook) -> None:
    log._publications[LOG].pop()


@pytest.mark.parametrize(
    ("namespaces", "happens"),
    [
        (without("chat"), nothing),
        (otherwise("chat", history_size=0, history_ttl=0.0), nothing),
        (otherwise("live", history_size=5, history_ttl=60.0), nothing),
        (ALL, begin_anew),
        (ALL, go_back),
    ],
    ids=["no namespace", "no history", "history", "another epoch", "a log that went back"],
)
def test_a_session_whose_channel_isnt_what_it_was_ends(
    namespaces: Mapping[str, ChannelOptions],
    happens: Callable[[Logbook], None],
    shelf: Shelf,
    log: Logbook,
) -> None:
    """And the others go on and hear of it."""
    old = Bench(log=log, namespaces=ALL)
    kept, kept_token = old.session(HALL, token="bob")
    lost, lost_token = old.session(HALL, LOG, PLAIN, token="alice")
    old.publish(LOG, 1)
    kept.take()
    for socket in (kept, lost):
        socket.cut()
    assert save(old, shelf) == 2
    happens(log)
    new, taken = next_process(shelf, log, namespaces=namespaces)
    assert taken == 1
    assert new.resume(lost_token, lost.received).take_session() == [{"gone": {"reason": "unknown"}}]
    head, *heard = new.resume(kept_token, kept.received).take()
    assert "resumed" in head["session"]
    assert [leave["info"]["user"] for leave in pushes(heard, "leave")] == ["alice"]
    assert new.holds()["connections"] == 1
    assert new.holds()["presence"] == {HALL: 1}


def test_one_that_expired_meanwhile_is_seen_to_leave(
    shelf: Shelf, log: Logbook, old: Bench
) -> None:
    stays, stays_token = old.session(LOG, token="bob", attempts=100)
    goes, goes_token = old.session(LOG, token="alice", min=0, max=0, attempts=0, timeout=0)
    stays.take()
    for socket in (stays, goes):
        socket.cut()
    save(old, shelf)
    shelf.age(60.0)
    new, taken = next_process(shelf, log)
    assert taken == 1
    assert new.resume(goes_token, goes.received).take_session() == [{"gone": {"reason": "unknown"}}]
    heard = new.resume(stays_token, stays.received).take()
    assert [leave["info"]["user"] for leave in pushes(heard, "leave")] == ["alice"]
    assert len(new.presence.clients(LOG)) == 1


def test_a_log_that_cant_be_read_costs_its_sessions_and_nothing_else(
    shelf: Shelf, log: Logbook, old: Bench
) -> None:
    first, first_token = old.session(LOG, token="alice")
    second, second_token = old.session(BARE, token="bob")
    first.cut()
    second.cut()
    save(old, shelf)
    log.unavailable = True
    new, taken = next_process(shelf, log)
    assert taken == 1
    assert new.resume(first_token, 0).take_session() == [{"gone": {"reason": "unknown"}}]
    assert "resumed" in new.resume(second_token, second.received).take()[0]["session"]


@pytest.mark.parametrize(
    "state", [b"", b"\x00", b"\xff" * 100, b'{"format":1}', msgspec.msgpack.encode({"format": 1})]
)
def test_what_another_version_wrote_is_not_taken_up(
    state: bytes, shelf: Shelf, log: Logbook, old: Bench
) -> None:
    for _ in range(2):
        old.session()[0].cut()
    save(old, shelf)
    shelf.rows[NODE][0] = shelf.rows[NODE][0]._replace(state=state)
    assert next_process(shelf, log)[1] == 1


def test_neither_is_another_format(shelf: Shelf, log: Logbook, old: Bench) -> None:
    old.session()[0].cut()
    save(old, shelf)
    shelf.rewrite(lambda saved: msgspec.structs.replace(saved, format=saved.format + 1))
    new, taken = next_process(shelf, log)
    assert taken == 0
    assert new.holds() == {}


def test_limits_hold_for_those_who_are_taken_up(shelf: Shelf, log: Logbook, old: Bench) -> None:
    sockets = [old.session(token=f"user{number}") for number in range(3)]
    for socket, _ in sockets:
        socket.cut()
    save(old, shelf)
    new, _ = next_process(shelf, log, detached_per_address_max=2)
    assert new.holds()["detached"] == 2
    assert new.holds()["clients"] == 2
    new.loop.pass_time(RETENTION + 1.0)
    assert new.holds() == {}


# --- a database that doesn't take them ----------------------------------------------------------


@pytest.mark.parametrize("failure", [TimeoutError(), OSError("the line is cut")])
def test_without_a_database_none_are_saved(
    failure: Exception,
    shelf: Shelf,
    old: Bench,
    caplog: pytest.LogCaptureFixture,
) -> None:
    old.session()[0].cut()
    shelf.failure = failure
    assert save(old, shelf) == 0
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert shelf.timeouts == [pytest.approx(SAVE_TIMEOUT)]


def test_a_mistake_of_ours_is_no_absence_of_the_database(shelf: Shelf, old: Bench) -> None:
    old.session()[0].cut()
    shelf.failure = ValueError("no such column")
    with pytest.raises(ValueError, match="no such column"):
        save(old, shelf)


def test_nothing_to_save_removes_what_was_left_before(shelf: Shelf, old: Bench) -> None:
    assert save(old, shelf) == 0
    assert shelf.rows == {NODE: []}
