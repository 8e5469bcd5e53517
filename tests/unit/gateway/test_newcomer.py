"""A socket's first message decides what it is; until then it costs next to nothing."""

import pytest

from gateway.acceptance import Arrival
from gateway.connection import Connection
from gateway.newcomer import VAIN_RESUMES_MAX, Newcomer
from gateway.protocol.codes import (
    BAD_PROTOCOL,
    CONNECTION_CLOSED,
    INAPPROPRIATE_PROTOCOL,
    STALE,
    TOO_MANY,
)
from gateway.session_connection import SessionConnection
from tests.support.session_bench import (
    ADDRESS,
    CLOSE_TIMEOUT,
    LOG,
    Bench,
    Socket,
    counted,
)
from tests.support.session_bench import STALE as STALE_AFTER
from tests.support.wire import BINARY, PING, PONG, TEXT, frame

CONNECT: dict[str, object] = {"id": 1, "connect": {"token": "bob"}}
OPEN: dict[str, object] = {"session": {"open": {}}}
FORGED: dict[str, object] = {"session": {"resume": {"token": "A" * 56, "received": 0}}}


def resume(token: str, received: int = 0, attempt: int = 0) -> object:
    return {"session": {"resume": {"token": token, "received": received, "attempt": attempt}}}


def is_read(socket: Socket) -> bool:
    return socket.transport.reading


def hold_up(bench: Bench) -> None:
    """Let this turn of the loop have had enough arrivals: what comes waits for the next."""
    bench.acceptance._used = 1e9


class HeldSocket(Socket):
    """Its messages arrive, and the loop doesn't turn."""

    def send(self, data: bytes) -> None:
        """See `Socket`."""
        self.link.data_received(data)


# --- what it becomes ----------------------------------------------------------------------------


def test_a_command_makes_it_a_stock_client() -> None:
    bench = Bench()
    socket = bench.socket()
    socket.say(CONNECT)
    (reply,) = socket.take()
    assert reply["id"] == 1
    assert type(socket.link.owner) is Connection
    assert bench.holds()["links"] == 1
    assert "strangers" not in bench.holds()
    assert "sessions" not in bench.holds()


def test_an_open_makes_it_a_session() -> None:
    bench = Bench()
    socket = bench.socket()
    socket.say(OPEN)
    (opened,) = socket.take()
    assert opened["session"]["opened"].keys() == {
        *("token", "generation", "ping", "retain", "stable")
    }
    assert type(socket.link.owner) is SessionConnection
    assert bench.holds()["strangers"] == {ADDRESS: 1}, "it hasn't shown who it is"


def test_payload_may_follow_an_open_at_once() -> None:
    bench = Bench()
    socket = bench.socket()
    socket.say(OPEN, CONNECT, {"id": 2, "subscribe": {"channel": LOG}})
    opened, *replies = socket.take()
    assert "opened" in opened["session"]
    assert [reply.get("id") for reply in replies][:2] == [1, 2]


def test_a_resume_makes_it_the_sessions_next_socket() -> None:
    bench = Bench()
    former, token = bench.session()
    former.cut()
    socket = bench.resume(token, former.received)
    (frame,) = socket.take_session()
    assert frame["resumed"]["generation"] == 2
    assert socket.link.owner is bench.found(token)


def test_white_space_around_a_session_frame_is_allowed() -> None:
    bench = Bench()
    socket = bench.socket()
    socket.say(' \t\r\n{ "session" : {"open" : {} } }\n')
    assert "opened" in socket.take()[0]["session"]


@pytest.mark.parametrize(
    "message",
    [
        '{"session":{}}',
        '{"session":{"open":null}}',
        '{"session":{"open":{}},"id":1}',
        '{"session":{"open":{},"ack":1}}',
        '{"session":{"ack":0}}',
        '{"session":{"pong":{"received":0,"sent":0}}}',
        '{"session":{"leave":{}}}',
        '{"session":{"wish":{}}}',
        '{"session":{"open":{"backoff":{"min":null}}}}',
        '{"session":{"open":{"backoff":{"min":"500"}}}}',
        '{"session":{"resume":{}}}',
        '{"session":{"resume":{"token":"x"}}}',
        '{"session":{"resume":{"token":"x","received":-1}}}',
        '{"session":{"resume":{"token":"x","received":1e400}}}',
        '{"session":{"resume":{"token":"%s","received":0}}}' % ("x" * 513),
        '{"session":{"open":{}}}\n{"id":1,"connect":{}}',
        '{"session":' + "[" * 10_000,
        "{",
        "",
        "\n\n",
        "null",
        '{"id":1,"subscribe":{"channel":"a"}}',
        "{}",
        '{"id":1,"connect":{}}{',
    ],
)
def test_anything_else_is_a_protocol_error_that_leaves_nothing(message: str) -> None:
    bench = Bench()
    socket = bench.socket()
    socket.say(message)
    assert socket.closed == BAD_PROTOCOL.code
    assert socket.take() == []
    socket.answer_close()
    assert bench.holds() == {}


def test_a_binary_message_is_refused() -> None:
    bench = Bench()
    socket = bench.socket()
    socket.send(frame(BINARY, b"\x00"))
    assert socket.closed == INAPPROPRIATE_PROTOCOL.code
    socket.answer_close()
    assert bench.holds() == {}


def test_a_pong_of_no_ping_is_ignored() -> None:
    bench = Bench()
    socket = bench.socket()
    socket.send(frame(PONG) + frame(PING, b"x"))
    socket.say(CONNECT)
    assert socket.take()[0]["id"] == 1


# --- resumptions in vain ------------------------------------------------------------------------


def test_who_has_no_session_any_more_may_open_one_on_the_same_socket() -> None:
    bench = Bench()
    socket = bench.socket()
    socket.say(FORGED)
    assert socket.take() == [{"session": {"gone": {"reason": "unknown"}}}]
    socket.say(OPEN, CONNECT)
    opened, connected = socket.take()
    assert "opened" in opened["session"]
    assert connected["id"] == 1


def test_or_go_on_without_one() -> None:
    bench = Bench()
    socket = bench.socket()
    socket.say(FORGED)
    socket.take()
    socket.say(CONNECT)
    assert socket.take()[0]["id"] == 1
    assert type(socket.link.owner) is Connection


def test_or_resume_another_one() -> None:
    bench = Bench()
    former, token = bench.session()
    former.cut()
    socket = bench.socket()
    socket.say(FORGED)
    socket.take()
    socket.say(resume(token, former.received))
    assert "resumed" in socket.take()[0]["session"]


def test_nobody_tries_for_ever() -> None:
    bench = Bench()
    socket = bench.socket()
    for _ in range(VAIN_RESUMES_MAX):
        socket.say(FORGED)
        assert "gone" in socket.take()[0]["session"]
    socket.say(FORGED)
    assert socket.closed == BAD_PROTOCOL.code
    assert socket.take() == []


def test_another_nodes_token_is_unknown_here() -> None:
    there, here = Bench(node="node-2"), Bench()
    _, token = there.session()
    socket = here.resume(token, 0)
    assert socket.take() == [{"session": {"gone": {"reason": "unknown"}}}]


def test_each_is_counted_by_its_reason() -> None:
    bench = Bench()
    before = counted("session_resumes_total", outcome="unknown")
    bench.resume("A" * 56, 0)
    assert counted("session_resumes_total", outcome="unknown") == before + 1


# --- waiting for its turn -----------------------------------------------------------------------


def test_nothing_more_is_read_while_the_first_message_waits() -> None:
    bench = Bench()
    socket = HeldSocket(bench, ADDRESS)
    hold_up(bench)
    socket.say(CONNECT)
    assert not is_read(socket)
    assert socket.take() == []
    bench.loop.settle()
    assert is_read(socket)
    assert socket.take()[0]["id"] == 1


def test_what_came_in_the_same_segment_goes_to_what_it_became() -> None:
    bench = Bench()
    socket = HeldSocket(bench, ADDRESS)
    hold_up(bench)
    socket.say(OPEN, CONNECT, {"id": 2, "ping": {}})
    bench.loop.settle()
    opened, *replies = socket.take()
    assert "opened" in opened["session"]
    assert [reply["id"] for reply in replies] == [1, 2]


def test_also_behind_a_resumption_in_vain() -> None:
    """Not to the newcomer, for which each would be a first message and begin a client."""
    bench = Bench()
    socket = HeldSocket(bench, ADDRESS)
    hold_up(bench)
    socket.say(FORGED, OPEN, CONNECT, {"id": 2, "ping": {}})
    bench.loop.settle()
    gone, opened, *replies = socket.take()
    assert "gone" in gone["session"]
    assert "opened" in opened["session"]
    assert [reply["id"] for reply in replies] == [1, 2]
    assert len(bench.manager.all) == len(bench.manager.with_session) == 1


def test_what_comes_behind_what_ends_it_is_not_looked_at() -> None:
    bench = Bench()
    socket = HeldSocket(bench, ADDRESS)
    hold_up(bench)
    socket.say("{", OPEN, CONNECT)
    bench.loop.settle()
    assert socket.closed == BAD_PROTOCOL.code
    assert bench.manager.with_session == []
    assert socket.take() == []


def test_those_who_resume_go_first() -> None:
    bench = Bench()
    former, token = bench.session()
    former.cut()
    first, second = HeldSocket(bench, ADDRESS), HeldSocket(bench, ADDRESS)
    order: list[Arrival] = []
    admit = bench.acceptance.admit

    def note(kind: Arrival, address: str, slot: float | None, now: float) -> int | None:
        order.append(kind)
        return admit(kind, address, slot, now)

    bench.acceptance.admit = note  # type: ignore[method-assign]
    hold_up(bench)
    first.say(CONNECT)
    second.say(resume(token, former.received))
    bench.loop.settle()
    assert order == [Arrival.RESUME, Arrival.CONNECT]


def test_one_that_is_lost_meanwhile_becomes_nothing() -> None:
    bench = Bench()
    socket = HeldSocket(bench, ADDRESS)
    hold_up(bench)
    socket.say(OPEN)
    bench.acceptance._waiting, waiting = 0, bench.acceptance._waiting
    socket.transport.lose()
    bench.acceptance._waiting = waiting
    bench.loop.settle()
    assert bench.holds() == {}


def test_one_that_was_closed_meanwhile_becomes_nothing() -> None:
    bench = Bench()
    socket = HeldSocket(bench, ADDRESS)
    hold_up(bench)
    socket.say(OPEN)
    owner = socket.link.owner
    assert isinstance(owner, Newcomer)
    owner.close(STALE)
    assert socket.transport.reading, "or the answer to the close would never be seen"
    bench.loop.settle()
    assert socket.closed == STALE.code
    assert bench.manager.all == []
    socket.send(frame(0x8, STALE.code.to_bytes(2)))
    bench.loop.settle()
    assert bench.holds() == {}


# --- refused for capacity -----------------------------------------------------------------------


def exhaust(bench: Bench) -> None:
    """Take all there is of this moment's capacity."""
    bench.acceptance._admissions._newcomers.owe(bench.loop.time(), 1e9)
    bench.acceptance._admissions._resumers.owe(bench.loop.time(), 1e9)


@pytest.mark.parametrize("message", [CONNECT, OPEN, FORGED], ids=["stock", "open", "resume"])
def test_who_comes_beyond_capacity_is_told_when_to_come(message: object) -> None:
    bench = Bench()
    exhaust(bench)
    socket = bench.socket()
    socket.say(message)
    assert socket.closed == TOO_MANY.code
    assert socket.close_reason["retry"] >= 200
    assert socket.close_reason["reconnect"] is True
    socket.answer_close()
    assert bench.holds() == {}


def test_a_session_outlives_the_moment_that_its_client_was_told() -> None:
    bench = Bench()
    former, token = bench.session(min=0, max=0, attempts=0, timeout=2000)
    former.cut()
    kept = bench.found(token)
    bench.loop.pass_time(kept.session.expires_at - bench.loop.time() - 0.3)
    exhaust(bench)
    refused = bench.resume(token, former.received)
    retry = refused.close_reason["retry"] / 1000
    assert refused.closed == TOO_MANY.code
    bench.loop.pass_time(retry + 1.9)
    assert "resumed" in bench.resume(token, former.received).take()[0]["session"]


def test_but_not_for_as_long_as_it_declares_an_attempt_to_take() -> None:
    bench = Bench()
    former, token = bench.session(timeout=86_400_000)
    former.cut()
    exhaust(bench)
    assert bench.resume(token, former.received).closed == TOO_MANY.code
    assert bench.found(token).session.expires_at < bench.loop.time() + 302


def test_at_its_moment_it_is_received_although_there_is_no_capacity() -> None:
    bench = Bench()
    former, token = bench.session()
    former.cut()
    exhaust(bench)
    refused = bench.resume(token, former.received)
    assert refused.closed == TOO_MANY.code
    bench.loop.pass_time(refused.close_reason["retry"] / 1000)
    exhaust(bench)
    assert "resumed" in bench.resume(token, former.received).take()[0]["session"]


def test_who_finds_no_room_for_a_session_is_told_when_to_come() -> None:
    bench = Bench(sessions_max=1)
    bench.opened()
    socket = bench.socket()
    socket.say(OPEN)
    assert socket.closed == TOO_MANY.code
    assert socket.close_reason["retry"] > 0
    assert len(bench.sessions) == 1


# --- what it may cost ---------------------------------------------------------------------------


def test_who_says_nothing_is_closed() -> None:
    bench = Bench()
    socket = bench.socket()
    bench.loop.pass_time(STALE_AFTER - 0.1)
    assert not socket.close_reason
    bench.loop.pass_time(0.5)
    assert socket.closed == STALE.code
    bench.loop.pass_time(CLOSE_TIMEOUT + 0.5)
    assert socket.is_gone, "it never answered the close"
    assert bench.holds() == {}


def test_who_says_only_what_leads_nowhere_is_closed_as_well() -> None:
    bench = Bench()
    socket = bench.socket()
    bench.loop.pass_time(STALE_AFTER - 1.0)
    socket.say(FORGED)
    bench.loop.pass_time(1.5)
    assert socket.closed == STALE.code


def test_a_stall_of_ours_makes_nobody_stale() -> None:
    bench = Bench()
    socket = bench.socket()
    bench.loop.pass_time(1.0)
    bench.loop.stall(60.0)
    bench.loop.pass_time(1.0)
    assert socket.closed is None


def test_who_pings_and_reads_no_answers_is_read_no_more() -> None:
    bench = Bench()
    socket = bench.socket()
    socket.transport.room = 1
    socket.send(frame(PING, b"x" * 100))
    assert not is_read(socket)
    socket.transport.drain()
    assert is_read(socket)
    socket.say(CONNECT)
    assert socket.take()[0]["id"] == 1


def test_a_socket_that_is_full_when_it_becomes_a_client_is_a_slow_one() -> None:
    bench = Bench()
    socket = bench.socket()
    socket.send(frame(PING, b"x"))
    socket.transport.take()
    socket.transport.fill()
    # It was read before it was full.
    socket.link.data_received(frame(TEXT, b'{"session":{"open":{}}}'))
    bench.loop.settle()
    assert bench.holds()["paused"] == 1
    socket.transport.drain()
    assert "paused" not in bench.holds()
    assert socket.transport.reading


def test_strangers_are_counted_by_address_until_they_show_who_they_are() -> None:
    bench = Bench(strangers_per_address_max=2)
    first, second = bench.socket(), bench.socket()
    refused = bench.manager.refusal(ADDRESS)
    assert refused is not None
    assert refused.status == 429
    assert bench.manager.refusal("192.0.2.2") is None
    first.say(CONNECT)
    assert bench.manager.refusal(ADDRESS) is None
    second.cut()
    assert "strangers" not in bench.holds()


def test_a_session_that_nobody_has_connected_hides_no_stranger() -> None:
    """Or else who resumes it again and again has as many sockets as he likes."""
    bench = Bench()
    first, token = bench.opened()
    second = bench.resume(token, 0)
    assert "resumed" in second.take()[0]["session"]
    assert first.closed == CONNECTION_CLOSED.code
    first.answer_close()
    assert bench.holds()["strangers"] == {ADDRESS: 1}
    second.say(CONNECT)
    assert second.take()[0]["id"] == 1
    assert "strangers" not in bench.holds()


def test_who_resumes_is_no_stranger_wherever_he_comes_from() -> None:
    bench = Bench()
    former, token = bench.session()
    former.cut()
    bench.resume(token, former.received, address="198.51.100.7")
    assert "strangers" not in bench.holds()
    assert bench.holds()["addresses"] == {"198.51.100.7": 1}


@pytest.mark.parametrize("first", [None, CONNECT, OPEN, FORGED])
@pytest.mark.parametrize("code", [None, 1000, 1001, 3000, 4000])
def test_nothing_is_left_of_one_that_goes(first: object, code: int | None) -> None:
    bench = Bench()
    socket = bench.socket()
    if first is not None:
        socket.say(first)
    if code is None:
        socket.cut()
    else:
        socket.close(code)
    assert socket.is_gone
    assert bench.holds() == {}


def test_a_flood_of_opens_leaves_nothing_behind() -> None:
    bench = Bench(sessions_max=50, strangers_per_address_max=20)
    answers: dict[int | None, int] = {}
    for number in range(1000):
        address = f"192.0.2.{number % 10}"
        if bench.manager.refusal(address) is None:
            socket = bench.socket(address)
            socket.say(OPEN)
            answers[socket.closed] = answers.get(socket.closed, 0) + 1
            if socket.closed is not None:
                socket.answer_close()
    assert len(bench.sessions) <= 50
    assert bench.holds()["links"] == 50
    assert answers[None] == 50
    assert set(answers) == {None, TOO_MANY.code}
    bench.loop.pass_time(STALE_AFTER + CLOSE_TIMEOUT + 1)
    assert bench.holds() == {}
