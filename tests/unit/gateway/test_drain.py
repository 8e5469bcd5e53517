"""The end of a process: its order, its pace and its deadlines."""

import asyncio
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest

from gateway.drain import ANSWERED_BY, CLOSED_BY, SAVED_BY, SETTLED_BY, STEP, Drain
from gateway.protocol.codes import SHUTDOWN
from gateway.session_connection import SessionConnection
from tests.support.session_bench import LOG, Bench, Socket, counted, payload_frames

TIMEOUT = 10.0
RESTART = 3.0


class Keeper:
    """Keeps sessions in a list. `event` and `failure` make it slow, or unable."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self.kept: list[SessionConnection] = []
        self.called_at = 0.0
        self.timeout = 0.0
        self.event: asyncio.Event | None = None
        self.failure: Exception | None = None

    async def save(self, connections: Sequence[SessionConnection], timeout: float) -> int:
        """See `drain.Keeper`."""
        self.called_at = self._bench.loop.time()
        self.timeout = timeout
        if self.failure is not None:
            raise self.failure
        if self.event is not None:
            try:
                async with asyncio.timeout(timeout):
                    await self.event.wait()
            except TimeoutError:
                return 0
        assert all(connection.detached for connection in connections)
        self.kept += connections
        return len(connections)


class Stop:
    """A gateway that is about to stop. What is heard is noted with its time since the beginning."""

    def __init__(self, **options: Any) -> None:
        self.bench = Bench(ping_interval=0.0, **options)
        self.keeper = Keeper(self.bench)
        self.drain = Drain(self.bench.services, self.bench.manager, self.keeper, RESTART)
        self.begun = 0.0

    def begin(self, timeout: float = TIMEOUT) -> "asyncio.Task[None]":
        """Begin to stop, and let happen what needs no time."""
        self.begun = self.bench.loop.time()
        task = self.bench.loop.create_task(self.drain.run(timeout))
        self.bench.loop.settle()
        return task

    def finish(self, task: "asyncio.Task[None]") -> float:
        """Wait for its end; returns how long it took in all."""
        while not task.done():
            self.bench.loop.pass_time(STEP)
            assert self.elapsed < 100
        task.result()
        return self.elapsed

    @property
    def elapsed(self) -> float:
        """Seconds since the beginning."""
        return self.bench.loop.time() - self.begun


def answer_closes(*sockets: Socket) -> None:
    for socket in sockets:
        if not socket.is_gone and socket.closed is not None:
            socket.answer_close()


# --- who is sent away, and how ------------------------------------------------------------------


def test_without_anybody_it_ends_at_once() -> None:
    stop = Stop()
    assert stop.finish(stop.begin()) < 2 * STEP
    assert stop.keeper.kept == []


def test_nobody_new_is_let_in() -> None:
    stop = Stop()
    stop.finish(stop.begin())
    refused = stop.bench.manager.refusal("192.0.2.1")
    assert refused is not None
    assert (refused.status, refused.outcome) == (503, "stopping")
    assert dict(refused.headers)["Retry-After"]


def test_who_has_said_nothing_yet_is_closed_and_begins_nothing() -> None:
    stop = Stop()
    socket = stop.bench.socket()
    task = stop.begin()
    assert socket.closed == SHUTDOWN.code
    assert socket.close_reason["retry"] >= 1000 * RESTART
    socket.session(open={})
    assert socket.take() == []
    socket.answer_close()
    assert stop.finish(task) < 1.0


def test_sessions_are_told_to_move_and_served_until_their_sockets_close() -> None:
    stop = Stop()
    bench = stop.bench
    stock = bench.stock()  # to be closed after these
    sessions = [bench.session(LOG) for _ in range(3)]
    connections = [bench.found(token) for _, token in sessions]
    for connection in connections:
        connection.client._in_flight += 1  # somebody waits for an answer
    task = stop.begin()
    moves = [socket.take_session()[-1]["move"] for socket, _ in sessions]
    assert all(move["retry"] >= 1000 * RESTART for move in moves)
    assert all(move["deadline"] == 1000 * TIMEOUT * ANSWERED_BY for move in moves)
    assert [move["retry"] for move in moves] == sorted(move["retry"] for move in moves)
    assert len({connection.slot for connection in connections}) == 3, "each its own"
    answer_closes(stock)
    for socket, _ in sessions:
        assert socket.closed is None
        socket.say({"id": 9, "ping": {}})
        assert socket.take()[-1] == {"id": 9, "ping": {}}
    for connection in connections:
        connection.client._in_flight -= 1
    bench.loop.pass_time(2 * STEP)
    for socket, _ in sessions:
        assert socket.closed == SHUTDOWN.code
        assert "retry" not in socket.close_reason, "the move has said it"
        socket.answer_close()
    assert stop.finish(task) < 1.0
    assert stop.keeper.kept == connections
    for connection in connections:
        assert connection.slot is not None
        assert connection.session.expires_at >= connection.slot


@pytest.mark.parametrize("leaves", [False, True])
def test_the_loop_gets_its_turn_between_some_sessions_and_the_next(
    monkeypatch: pytest.MonkeyPatch, leaves: bool
) -> None:
    """Ten thousand in one turn would be half a second without a word for anybody."""
    monkeypatch.setattr("gateway.drain.AT_ONCE", 2)
    stop = Stop()
    bench = stop.bench
    sockets = [bench.session(LOG)[0] for _ in range(5)]
    told, closed = [], []
    task = bench.loop.create_task(stop.drain.run(TIMEOUT))
    for _ in range(12):
        bench.loop.turn()
        told.append(sum(bool(socket.take_session()) for socket in sockets))
        closed.append(sum(socket.closed is not None for socket in sockets))
        if leaves and closed[-1] == 2:
            sockets[4].cut()  # it isn't closed any more
    assert told[:3] == [2, 2, 1]
    assert [now - before for before, now in pairwise([0, *closed]) if now > before] == (
        [2, 2] if leaves else [2, 2, 1]
    )
    answer_closes(*sockets)
    stop.finish(task)
    assert len(stop.keeper.kept) == 5


def test_stock_clients_are_closed_at_the_rate_at_which_they_can_be_received() -> None:
    stop = Stop(rate_max=50.0)
    bench = stop.bench
    bench.acceptance._admissions._newcomers.owe(0.0, -1e9)
    clients = [_stock(bench, number) for number in range(100)]
    task = stop.begin()
    assert sum(client.closed is not None for client in clients) == 1
    bench.loop.pass_time(1.0)
    answer_closes(*clients)
    assert 45 <= sum(client.closed is not None for client in clients) <= 55
    bench.loop.pass_time(1.2)
    answer_closes(*clients)
    assert all(client.closed == SHUTDOWN.code for client in clients)
    retries = [client.close_reason["retry"] / 1000 for client in clients]
    assert min(retries) >= RESTART - 0.01
    assert stop.finish(task) < 3.0
    assert bench.holds() == {}


def _stock(bench: Bench, number: int) -> Socket:
    bench.loop.pass_time(0.02)
    return bench.stock(token=f"user{number}")


def test_many_of_them_are_closed_faster_than_that_but_by_their_deadline() -> None:
    stop = Stop(rate_max=50.0)
    bench = stop.bench
    clients = [_stock(bench, number) for number in range(100)]
    task = stop.begin(1.0)
    bench.loop.pass_time(CLOSED_BY + 3 * STEP)
    assert all(client.closed == SHUTDOWN.code for client in clients)
    answer_closes(*clients)
    stop.finish(task)


def test_each_has_a_moment_of_its_own() -> None:
    stop = Stop()
    clients = [stop.bench.stock(token=f"user{number}") for number in range(5)]
    handed_out = counted("reconnect_slots_total", event="handed_out")
    task = stop.begin()
    stop.bench.loop.pass_time(0.5)
    assert counted("reconnect_slots_total", event="handed_out") == handed_out + 5
    answer_closes(*clients)
    stop.finish(task)


def test_one_that_leaves_by_itself_gets_none() -> None:
    stop = Stop(rate_max=50.0)
    first, second = _stock(stop.bench, 1), _stock(stop.bench, 2)
    handed_out = counted("reconnect_slots_total", event="handed_out")
    task = stop.begin()
    second.cut()
    answer_closes(first)
    stop.finish(task)
    assert counted("reconnect_slots_total", event="handed_out") == handed_out + 1


def test_a_session_that_has_not_connected_ends() -> None:
    stop = Stop()
    socket, _ = stop.bench.opened()
    late, _ = stop.bench.opened()
    late.say({"id": 1, "connect": {"token": "alice late"}})
    task = stop.begin()
    answer_closes(socket, late)
    stop.finish(task)
    assert stop.keeper.kept == []
    assert stop.bench.holds() == {"tasks": 1}
    stop.bench.tokens.keys.set()
    stop.bench.loop.settle()
    assert stop.bench.holds() == {}


def test_one_without_a_socket_is_kept_as_it_is() -> None:
    stop = Stop()
    socket, token = stop.bench.session(LOG)
    socket.cut()
    connection = stop.bench.found(token)
    until = connection.session.expires_at
    stop.finish(stop.begin())
    assert stop.keeper.kept == [connection]
    assert (connection.session.expires_at, connection.slot) == (until, None)


def test_one_whose_moment_has_passed_is_told_another() -> None:
    stop = Stop()
    socket, token = stop.bench.session(LOG)
    connection = stop.bench.found(token)
    connection.client._in_flight += 1
    task = stop.begin()
    first = connection.slot
    assert first is not None
    stop.bench.loop.pass_time(TIMEOUT * ANSWERED_BY + STEP)
    assert connection.slot is not None
    assert connection.slot > first
    moves = [one["move"] for one in socket.take_session() if "move" in one]
    assert len(moves) == 2
    answer_closes(socket)
    connection.client._in_flight -= 1
    stop.finish(task)


# --- answers ------------------------------------------------------------------------------------


def test_what_was_asked_is_answered_before_the_sockets_close() -> None:
    stop = Stop()
    bench = stop.bench
    done = asyncio.Event()

    async def procedure(caller: object, data: bytes) -> bytes:
        await done.wait()
        return b"{}"

    bench.procedures.register("slow", procedure)
    socket, _ = bench.session()
    socket.say({"id": 5, "rpc": {"method": "slow", "data": {}}})
    task = stop.begin()
    bench.loop.pass_time(2.0)
    assert not socket.close_reason
    done.set()
    bench.loop.pass_time(2 * STEP)
    assert socket.closed == SHUTDOWN.code
    assert payload_frames(socket.take()) == [{"id": 5, "rpc": {"data": {}}}]
    answer_closes(socket)
    stop.finish(task)
    assert len(stop.keeper.kept) == 1


def test_what_is_answered_a_little_later_waits_in_the_tail() -> None:
    stop = Stop()
    bench = stop.bench
    socket, token = bench.session()
    connection = bench.found(token)
    connection.client._in_flight += 1
    task = stop.begin()
    bench.loop.pass_time(TIMEOUT * ANSWERED_BY + STEP)
    assert socket.closed == SHUTDOWN.code
    answer_closes(socket)
    assert not stop.keeper.called_at
    connection.client.answer(5, "rpc", b"{}")
    stop.finish(task)
    assert stop.keeper.kept == [connection]
    assert connection.session.unacknowledged == 2


def test_who_is_never_answered_is_not_kept_and_the_room_is_told() -> None:
    stop = Stop()
    bench = stop.bench
    waits, waits_token = bench.session(LOG)
    stays, stays_token = bench.session(LOG)
    bench.found(waits_token).client._in_flight += 1
    gone = bench.found(waits_token).client.id
    task = stop.begin()
    while not task.done():
        bench.loop.pass_time(STEP)
        answer_closes(waits, stays)
    assert stop.keeper.kept == [bench.found(stays_token)]
    assert stop.keeper.called_at - stop.begun == pytest.approx(TIMEOUT * SETTLED_BY, abs=0.2)
    (leave,) = bench.hub.take_presence_backlog(bench.found(stays_token), [LOG])
    assert gone.encode() in leave
    assert set(bench.presence.clients(LOG)) == {bench.found(stays_token).client.id}


# --- saving, and the deadline -------------------------------------------------------------------


def test_the_keeper_is_told_how_long_it_may_take() -> None:
    stop = Stop()
    socket, _ = stop.bench.session()
    task = stop.begin()
    answer_closes(socket)
    stop.finish(task)
    used = stop.keeper.called_at - stop.begun
    assert stop.keeper.timeout == pytest.approx(TIMEOUT * SAVED_BY - used)


def test_a_database_that_doesnt_answer_holds_nobody_up() -> None:
    stop = Stop()
    socket, _ = stop.bench.session()
    stop.keeper.event = asyncio.Event()
    task = stop.begin()
    answer_closes(socket)
    assert stop.finish(task) <= TIMEOUT * SAVED_BY + 2 * STEP


def test_a_failure_to_save_is_no_failure_to_stop(caplog: pytest.LogCaptureFixture) -> None:
    stop = Stop()
    socket, _ = stop.bench.session()
    stop.keeper.failure = RuntimeError("the disk is full")
    task = stop.begin()
    answer_closes(socket)
    assert stop.finish(task) < 1.0
    assert [record.levelname for record in caplog.records] == ["ERROR"]


def test_saved_sessions_are_counted() -> None:
    stop = Stop()
    sockets = [stop.bench.session()[0] for _ in range(3)]
    before = counted("sessions_saved_total")
    task = stop.begin()
    answer_closes(*sockets)
    stop.finish(task)
    assert counted("sessions_saved_total") == before + 3


@pytest.mark.parametrize("timeout", [0.0, 0.05, 1.0, TIMEOUT])
def test_it_ends_by_its_deadline_whatever_its_clients_do(timeout: float) -> None:
    stop = Stop()
    bench = stop.bench
    busy, token = bench.session(LOG)
    bench.found(token).client._in_flight += 1
    slow, _ = bench.session(LOG)
    slow.transport.fill()
    stock, silent = bench.stock(LOG), bench.socket()
    stop.keeper.event = asyncio.Event()
    task = stop.begin(timeout)
    assert stop.finish(task) <= timeout + 3 * STEP
    bench.loop.settle()
    for socket in (busy, slow, stock, silent):
        assert socket.closed == SHUTDOWN.code
        assert socket.is_gone
    assert "links" not in bench.holds()
