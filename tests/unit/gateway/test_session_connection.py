"""A connection that outlives its sockets: what it keeps, what it sends again, what ends it."""

import gc
import json
from typing import Any

import pytest

from gateway import connection as connection_module
from gateway.connection import Connection
from gateway.departed import Departed
from gateway.link import Link
from gateway.newcomer import Newcomer
from gateway.protocol.claims import ServerSubscription
from gateway.protocol.client_policy import close_advice
from gateway.protocol.codes import (
    BAD_PROTOCOL,
    CONNECTION_CLOSED,
    DISCONNECTS,
    FORCE_DISCONNECT,
    FORCE_RECONNECT,
    NO_PONG,
    SHUTDOWN,
    SLOW,
    STALE,
    UNSUBSCRIBED_BY_SERVER,
    Disconnect,
)
from gateway.protocol.session import TailLimits
from gateway.session_connection import ACK_EVERY, SessionConnection
from tests.support.session_bench import (
    CLOSE_TIMEOUT,
    LOG,
    PING_INTERVAL,
    PLAIN,
    RETENTION,
    SLOW_READER_TIMEOUT,
    Bench,
    Socket,
    counted,
    data_of,
    dumps,
    payload_frames,
)
from tests.support.wire import BINARY, PING, TEXT, frame

BARE = "bare:x"


def is_detached(bench: Bench, token: str) -> bool:
    return bench.found(token).detached


def pushes(messages: list[Any], kind: str) -> list[Any]:
    return [one["push"][kind] for one in messages if "push" in one and kind in one["push"]]


def cut_and_resume(bench: Bench, socket: Socket, token: str, received: int) -> Socket:
    socket.cut()
    return bench.resume(token, received)


# --- its life -----------------------------------------------------------------------------------


def test_a_session_goes_on_over_another_socket_where_it_was() -> None:
    bench = Bench()
    first, token = bench.session(LOG)
    bench.publish(LOG, 1)
    first.take()
    first.cut()
    second = bench.resume(token, first.received)
    (resumed,) = second.take()
    assert resumed == {
        "session": {
            "resumed": {
                "generation": 2,
                "received": 2,
                "replay": 0,
                "retain": 1000 * RETENTION,
                "stable": 30000,
            }
        }
    }
    bench.publish(LOG, 2)
    second.say({"id": 3, "ping": {}})
    assert data_of(heard := second.take(), LOG) == [2]
    assert heard[-1] == {"id": 3, "ping": {}}


def test_it_has_no_limit_to_how_often() -> None:
    bench = Bench()
    socket, token = bench.session(LOG)
    total = socket.received
    for number in range(20):
        bench.publish(LOG, number)
        socket.take()
        total += 1
        socket = cut_and_resume(bench, socket, token, total)
        assert socket.take()[0]["session"]["resumed"]["generation"] == number + 2
    assert bench.holds()["sessions"] == 1
    assert bench.holds()["links"] == 1


def test_nobody_in_the_room_notices() -> None:
    bench = Bench()
    witness = bench.stock(LOG)
    first, token = bench.session(LOG)
    witness.take()
    second = cut_and_resume(bench, first, token, first.received)
    bench.loop.pass_time(1.0)
    assert witness.take() == []
    second.say({"id": 9, "presence": {"channel": LOG}})
    (reply,) = payload_frames(second.take())
    assert len(reply["presence"]["presence"]) == 2


def test_the_room_is_told_when_the_session_expires() -> None:
    bench = Bench(ping_interval=0.0)
    witness = bench.stock(LOG, PLAIN)
    socket, token = bench.session(LOG, PLAIN)
    witness.take()
    expired = counted("session_ends_total", reason="expired")
    socket.cut()
    bench.loop.pass_time(RETENTION - 1)
    assert witness.take() == []
    assert is_detached(bench, token)
    bench.loop.pass_time(1.5)
    assert len(pushes(witness.take(), "leave")) == 2
    assert counted("session_ends_total", reason="expired") == expired + 1
    late = bench.resume(token, socket.received)
    assert late.take() == [{"session": {"gone": {"reason": "expired"}}}]
    late.cut()
    witness.cut()
    assert bench.holds() == {}


@pytest.mark.parametrize("how", ["leave", "1000", "1005"])
def test_who_says_goodbye_leaves_at_once(how: str) -> None:
    bench = Bench()
    witness = bench.stock(LOG)
    socket, token = bench.session(LOG)
    witness.take()
    if how == "leave":
        socket.session(leave={})
        assert socket.closed == CONNECTION_CLOSED.code
        socket.answer_close()
    else:
        socket.close(1000 if how == "1000" else None)
    assert len(pushes(witness.take(), "leave")) == 1
    gone = bench.resume(token, socket.received)
    assert gone.take() == [{"session": {"gone": {"reason": "unknown"}}}]
    gone.cut()
    witness.cut()
    assert bench.holds() == {}


@pytest.mark.parametrize(
    "code",
    [
        *(1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014),
        *(3000, 3001, 3002, 3008, 3009, 3012, 3013, 3500, 3501, 4000, 4999),
    ],
)
def test_a_clients_close_code_says_the_same_to_both_ends(code: int) -> None:
    bench = Bench()
    socket, token = bench.session()
    socket.close(code)
    assert socket.is_gone
    assert (len(bench.sessions) == 1) is close_advice(code, "").resume
    assert _is_gone(bench, token) is not close_advice(code, "").resume


@pytest.mark.parametrize("disconnect", DISCONNECTS, ids=lambda one: str(one.code))
def test_the_servers_close_code_says_the_same_to_both_ends(disconnect: Disconnect) -> None:
    bench = Bench()
    socket, token = bench.session(LOG)
    bench.found(token).disconnect(disconnect)
    bench.loop.settle()
    assert socket.closed == disconnect.code
    socket.answer_close()
    resume = close_advice(disconnect.code, json.dumps(socket.close_reason)).resume
    # What is resumed in vain costs a `gone`; what is kept in vain would be a ghost in the room.
    assert resume or not len(bench.sessions)
    if disconnect in (SHUTDOWN, SLOW, NO_PONG):
        assert is_detached(bench, token)
    else:
        assert bench.holds() == {}


def test_a_protocol_error_of_the_websocket_ends_it() -> None:
    bench = Bench()
    socket, _ = bench.session(LOG)
    socket.send(frame(TEXT, b"x", masked=False))
    assert socket.closed == 1002
    assert len(bench.sessions) == 0


def test_a_binary_message_ends_it() -> None:
    bench = Bench()
    socket, _ = bench.session(LOG)
    socket.send(frame(BINARY, b"x"))
    assert socket.closed == 3506
    assert len(bench.sessions) == 0


@pytest.mark.parametrize("frames", [[], [{"id": 1, "connect": {"token": "alice late"}}]])
def test_before_connect_succeeds_there_is_nothing_to_keep(frames: list[Any]) -> None:
    bench = Bench()
    socket, token = bench.opened()
    socket.say(*frames)
    socket.cut()
    assert bench.resume(token, 0).take() == [{"session": {"gone": {"reason": "unknown"}}}]
    bench.tokens.keys.set()
    bench.loop.settle()
    assert "clients" not in bench.holds()
    assert "sessions" not in bench.holds()


def test_neither_is_there_after_a_connect_that_failed() -> None:
    bench = Bench()
    socket, token = bench.opened()
    socket.say({"id": 1, "connect": {"token": "alice ttl=-5"}})
    assert "error" in socket.take()[0]
    socket.cut()
    assert bench.resume(token, 1).take() == [{"session": {"gone": {"reason": "unknown"}}}]


def test_a_connect_that_failed_leaves_a_socket_that_ends_by_itself() -> None:
    bench = Bench()
    socket, _ = bench.opened()
    socket.say({"id": 1, "connect": {"token": "alice ttl=-5"}})
    bench.loop.pass_time(20.0)
    assert socket.closed == STALE.code
    socket.answer_close()
    assert bench.holds() == {}


def test_an_open_that_nothing_follows_ends_by_itself() -> None:
    bench = Bench()
    socket, _ = bench.opened()
    bench.loop.pass_time(20.0)
    assert socket.closed == STALE.code
    bench.loop.pass_time(CLOSE_TIMEOUT + 1)
    assert bench.holds() == {}


def test_a_connect_that_is_under_way_goes_on_over_the_next_socket() -> None:
    bench = Bench()
    first, token = bench.opened()
    first.say({"id": 1, "connect": {"token": "alice late"}})
    second = bench.resume(token, 0)
    assert first.closed == CONNECTION_CLOSED.code
    bench.tokens.keys.set()
    bench.loop.settle()
    resumed, reply = second.take()
    assert resumed["session"]["resumed"]["received"] == 1
    assert reply["id"] == 1
    assert "connect" in reply


# --- what is counted ----------------------------------------------------------------------------


def test_processed_frames_are_acknowledged_now_and_then() -> None:
    bench = Bench()
    socket, _ = bench.opened()
    socket.say({"id": 1, "connect": {"token": "alice"}})
    socket.take()
    for number in range(2, ACK_EVERY):
        socket.say({"id": number, "ping": {}})
    assert socket.take_session() == []
    socket.say({"id": ACK_EVERY, "ping": {}})
    assert socket.take_session() == [{"ack": ACK_EVERY}]
    for number in range(ACK_EVERY + 1, 2 * ACK_EVERY + 1):
        socket.say({"id": number, "ping": {}})
    assert socket.take_session() == [{"ack": 2 * ACK_EVERY}]


def test_a_frame_of_several_commands_is_one() -> None:
    bench = Bench()
    socket, token = bench.session()
    socket.say('{"id":2,"ping":{}}\n{"id":3,"ping":{}}')
    assert [one["id"] for one in socket.take()] == [2, 3]
    resumed = cut_and_resume(bench, socket, token, socket.received).take_session()[0]
    assert resumed["resumed"]["received"] == 2


def test_session_frames_are_not_counted() -> None:
    bench = Bench()
    socket, token = bench.session()
    socket.session(ack=0)
    socket.session(pong={"received": 1, "sent": 1})
    resumed = cut_and_resume(bench, socket, token, socket.received).take_session()[0]
    assert resumed["resumed"]["received"] == 1


@pytest.mark.parametrize(
    "answer",
    [
        {"ack": 3},
        {"ack": 2**53 - 1},
        {"ack": 2**53},
        {"ack": -1},
        {"ack": 1.5},
        {"ack": "1"},
        {"pong": {"received": 3, "sent": 2}},
        {"pong": {"received": 2, "sent": 1}},
        {"pong": {"received": 2, "sent": 3}},
        {"pong": {"received": 2}},
        {"pong": {}},
        {"open": {}},
        {"resume": {"token": "x", "received": 0}},
        {"unknown": 1},
        {},
        {"ack": 1, "leave": {}},
        None,
        [],
    ],
    ids=json.dumps,
)
def test_what_cant_be_ends_it(answer: object) -> None:
    bench = Bench()
    witness = bench.stock(LOG, BARE)
    socket, token = bench.session(BARE)
    assert socket.received == 2, "the replies to connect and subscribe"
    violations = counted("session_violations_total")
    socket.say({"session": answer})
    assert socket.closed == BAD_PROTOCOL.code
    assert counted("session_violations_total") == violations + 1
    socket.answer_close()
    assert bench.resume(token, 0).take() == [{"session": {"gone": {"reason": "unknown"}}}]
    witness.say({"id": 99, "ping": {}})
    assert witness.take()[-1] == {"id": 99, "ping": {}}


def test_an_old_acknowledgement_is_ignored() -> None:
    bench = Bench()
    socket, token = bench.session()
    socket.session(ack=1)
    socket.session(ack=0)
    socket.session(pong={"received": 0, "sent": 1})
    assert socket.closed is None
    assert bench.found(token).session.unacknowledged == 0


def test_a_pong_that_nobody_waits_for_is_ignored() -> None:
    bench = Bench()
    socket, _ = bench.session()
    for _ in range(3):
        socket.session(pong={"received": 1, "sent": 1})
    assert socket.closed is None


def test_an_sdks_own_pong_is_a_payload_frame_that_nobody_minds() -> None:
    bench = Bench()
    socket, token = bench.session()
    socket.say("{}")
    assert socket.closed is None
    resumed = cut_and_resume(bench, socket, token, socket.received).take_session()[0]
    assert resumed["resumed"]["received"] == 2


# --- exactly once -------------------------------------------------------------------------------


@pytest.mark.parametrize("behind", range(7))
def test_a_resumption_brings_exactly_what_is_missing(behind: int) -> None:
    """Whatever was written together: some of those frames were received, some were not."""
    bench = Bench()
    socket, token = bench.session(BARE)
    bench.publish(BARE, 0)
    for number in range(1, 4):
        bench.publish_now(BARE, number)  # one write for all three
    bench.loop.settle()
    bench.publish(BARE, 4, 5)
    socket.take()
    resumed = cut_and_resume(bench, socket, token, socket.received - behind)
    head, *replay = resumed.take()
    assert head["session"]["resumed"]["replay"] == behind
    assert data_of(replay, BARE) == [0, 1, 2, 3, 4, 5][6 - min(behind, 6) :]
    assert resumed.received == behind


def test_what_was_acknowledged_is_not_kept() -> None:
    bench = Bench()
    socket, token = bench.session(BARE)
    bench.publish(BARE, *range(10))
    socket.take()
    socket.session(ack=socket.received)
    assert bench.found(token).session.tail_bytes == 0
    socket.cut()
    resumed = bench.resume(token, socket.received)
    assert resumed.take_session()[0]["resumed"]["replay"] == 0


def test_what_is_said_in_the_turn_of_the_loss_is_in_the_replay() -> None:
    """Replies that wait for the end of the turn, and pushes that do."""
    bench = Bench()
    socket, token = bench.session(BARE, LOG)
    bench.publish_now(BARE, "transient")
    bench.publish_now(LOG, "logged")
    bench.found(token).send(b'{"id":77,"rpc":{}}')
    socket.link.connection_lost(None)
    bench.loop.settle()
    resumed = bench.resume(token, socket.received)
    head, *replay = resumed.take()
    assert "resumed" in head["session"]
    assert [one["id"] for one in replay if "id" in one] == [77]
    assert data_of(replay, BARE) == ["transient"]
    assert data_of(replay, LOG) == ["logged"]
    assert resumed.received == len(replay) == 3


def test_what_is_said_in_the_turn_of_the_resumption_comes_behind_the_replay() -> None:
    bench = Bench()
    socket, token = bench.session(BARE, LOG)
    socket.cut()
    bench.publish(BARE, "before")
    bench.publish_now(BARE, "waits")
    bench.publish_now(LOG, "waits too")
    bench.found(token).send(b'{"id":77,"rpc":{}}')
    resumed = bench.resume(token, socket.received)
    head, *rest = resumed.take()
    assert "resumed" in head["session"]
    assert data_of(rest, BARE) == ["before", "waits"]
    assert data_of(rest, LOG) == ["waits too"]
    assert [one["id"] for one in rest if "id" in one] == [77]
    assert resumed.received == len(rest)


def test_an_answer_that_comes_while_it_is_away_is_kept() -> None:
    bench = Bench()
    socket, token = bench.session()

    async def procedure(caller: object, data: bytes) -> bytes:
        await bench.tokens.keys.wait()
        return b'{"done":true}'

    bench.procedures.register("slow", procedure)
    socket.say({"id": 5, "rpc": {"method": "slow", "data": {}}})
    socket.cut()
    bench.tokens.keys.set()
    bench.loop.settle()
    resumed = bench.resume(token, socket.received)
    head, reply = resumed.take()
    assert head["session"]["resumed"]["replay"] == 1
    assert reply == {"id": 5, "rpc": {"data": {"done": True}}}


def test_what_was_lost_on_the_way_is_told_and_can_be_sent_again() -> None:
    bench = Bench()
    socket, token = bench.session(LOG)
    socket.link.data_received(frame(TEXT, dumps(_publish(3, "a")).encode()))
    socket.link.data_received(frame(TEXT, dumps(_publish(4, "b")).encode())[:10])
    socket.cut()
    resumed = bench.resume(token, socket.received)
    assert resumed.take_session()[0]["resumed"]["received"] == 3, "connect, subscribe, publish"
    resumed.say(_publish(4, "b"))
    assert data_of(resumed.take(), LOG)[-2:] == ["a", "b"]


def _publish(number: int, data: object, channel: str = LOG) -> object:
    return {"id": number, "publish": {"channel": channel, "data": data}}


# --- its channels while it has no socket --------------------------------------------------------


def test_what_the_log_holds_is_not_kept_twice() -> None:
    bench = Bench()
    socket, token = bench.session(LOG)
    socket.session(ack=socket.received)
    socket.cut()
    bench.publish(LOG, *range(100))
    assert bench.found(token).session.tail_bytes == 0
    resumed = bench.resume(token, socket.received)
    bench.loop.settle()
    assert data_of(resumed.take(), LOG) == list(range(100))


def test_what_no_log_holds_is_kept() -> None:
    bench = Bench()
    socket, token = bench.session(BARE)
    socket.cut()
    bench.publish(BARE, *range(10))
    resumed = bench.resume(token, socket.received)
    assert resumed.take_session()[0]["resumed"]["replay"] == 10
    assert data_of(resumed.take(), BARE) == list(range(10))


def test_what_is_ephemeral_is_not() -> None:
    bench = Bench()
    socket, token = bench.session(BARE, LOG)
    socket.cut()
    bench.publish(BARE, "x", ephemeral=True)
    bench.publish(LOG, "y", ephemeral=True)
    resumed = bench.resume(token, socket.received)
    assert payload_frames(resumed.take()) == []


def test_joins_and_leaves_are_summed_up() -> None:
    bench = Bench()
    socket, token = bench.session(LOG)
    socket.cut()
    stays = bench.stock(LOG, token="stays")
    bench.stock(LOG, token="goes").cut()
    resumed = bench.resume(token, socket.received)
    joins = pushes(resumed.take(), "join")
    assert [join["info"]["user"] for join in joins] == ["stays"]
    stays.cut()
    assert len(pushes(resumed.take(), "leave")) == 1


def test_a_tail_that_overflows_without_a_socket_ends_it() -> None:
    bench = Bench(tail=TailLimits(frames=8))
    witness = bench.stock(BARE)
    socket, token = bench.session(BARE)
    socket.session(ack=socket.received)
    overflows = counted("session_overflows_total")
    socket.cut()
    bench.publish(BARE, *range(8))
    assert is_detached(bench, token)
    bench.publish(BARE, 8)
    assert bench.resume(token, 2).take() == [{"session": {"gone": {"reason": "overflow"}}}]
    assert counted("session_overflows_total") == overflows + 1
    assert data_of(witness.take(), BARE) == list(range(9))
    assert bench.holds()["connections"] == 1


def test_who_acknowledges_nothing_is_served_and_not_resumed() -> None:
    bench = Bench(tail=TailLimits(frames=16))
    socket, token = bench.session(BARE)
    bench.publish(BARE, *range(100))
    assert data_of(socket.take(), BARE) == list(range(100)), "a sender never waits"
    assert bench.found(token).session.unacknowledged <= 16
    socket.cut()
    assert bench.resume(token, 20).take() == [{"session": {"gone": {"reason": "overflow"}}}]
    assert len(bench.sessions) == 0


def test_who_did_get_it_all_has_lost_nothing_by_an_overflow() -> None:
    bench = Bench(tail=TailLimits(frames=16))
    socket, token = bench.session(BARE)
    bench.publish(BARE, *range(100))
    socket.take()
    socket.cut()
    resumed = bench.resume(token, socket.received)
    assert resumed.take_session()[0]["resumed"]["replay"] == 0


def test_an_acknowledgement_is_asked_for_when_the_tail_is_half_full() -> None:
    bench = Bench(tail=TailLimits(frames=16))
    socket, _ = bench.session(BARE)
    bench.publish(BARE, *range(6))
    assert socket.take_session() == []
    bench.publish(BARE, 6)
    (ping,) = socket.take_session()
    assert ping["ping"]["sent"] == socket.received == 9
    bench.publish(BARE, 7)
    assert socket.take_session() == [], "asked once"
    socket.session(pong={"received": 10, "sent": 2})
    bench.publish(BARE, *range(8, 17))
    assert len(socket.take_session()) == 1


def test_a_client_joins_a_channel_while_it_has_no_socket() -> None:
    """Its subscription's key came late. What is published from then on isn't missed."""
    bench = Bench()
    socket, token = bench.session()
    socket.say({"id": 2, "subscribe": {"channel": "$bare", "token": "alice $bare late"}})
    socket.cut()
    bench.tokens.keys.set()
    bench.loop.settle()
    bench.publish("$bare", 1, 2)
    resumed = bench.resume(token, socket.received)
    head, reply, *rest = resumed.take()
    assert head["session"]["resumed"]["replay"] == 3
    assert reply == {"id": 2, "subscribe": {}}
    assert data_of(rest, "$bare") == [1, 2]
    bench.publish("$bare", 3)
    assert data_of(resumed.take(), "$bare") == [3]


# --- what the server does while it has no socket ------------------------------------------------


def test_the_server_may_subscribe_and_unsubscribe_it() -> None:
    bench = Bench()
    socket, token = bench.session(LOG)
    socket.cut()
    client = bench.found(token).client
    assert client.subscribe_by_server(BARE, ServerSubscription()) is None
    bench.loop.settle()
    bench.publish(BARE, 1)
    assert client.unsubscribe_by_server(LOG, UNSUBSCRIBED_BY_SERVER)
    bench.publish(LOG, "unheard")
    resumed = bench.resume(token, socket.received)
    heard = payload_frames(resumed.take())
    assert [next(iter(one["push"].keys() - {"channel"})) for one in heard] == [
        "subscribe",
        "pub",
        "unsubscribe",
    ]
    assert data_of(heard, LOG) == []


def test_the_server_may_change_when_it_expires() -> None:
    bench = Bench()
    socket, token = bench.session()
    socket.cut()
    bench.found(token).refresh(100.0)
    bench.loop.settle()
    resumed = bench.resume(token, socket.received)
    assert pushes(resumed.take(), "refresh") == [{"expires": True, "ttl": 100}]


@pytest.mark.parametrize("disconnect", [FORCE_DISCONNECT, FORCE_RECONNECT])
@pytest.mark.parametrize("away", [True, False])
def test_the_server_may_disconnect_it(disconnect: Disconnect, away: bool) -> None:
    bench = Bench()
    witness = bench.stock(LOG)
    socket, token = bench.session(LOG)
    witness.take()
    if away:
        socket.cut()
    bench.manager.disconnect(bench.manager.find("alice"), disconnect)
    bench.loop.settle()
    if not away:
        assert socket.closed == disconnect.code
        socket.answer_close()
    assert len(pushes(witness.take(), "leave")) == 1
    assert bench.resume(token, socket.received).take_session() == [{"gone": {"reason": "unknown"}}]
    assert bench.manager.find("alice") == []


def test_a_shutdown_of_who_has_no_socket_changes_nothing() -> None:
    bench = Bench()
    socket, token = bench.session()
    socket.cut()
    bench.found(token).disconnect(SHUTDOWN)
    assert is_detached(bench, token)


def test_the_end_of_its_token_ends_it() -> None:
    bench = Bench(expiry_grace=5.0, ping_interval=100.0)  # the witness answers no ping
    witness = bench.stock(LOG)
    socket, token = bench.session(LOG, token="alice ttl=20")
    witness.take()
    socket.cut()
    bench.loop.pass_time(24.0)
    assert is_detached(bench, token)
    bench.loop.pass_time(2.0)
    assert len(pushes(witness.take(), "leave")) == 1
    assert bench.resume(token, socket.received).take_session() == [{"gone": {"reason": "unknown"}}]


def test_so_does_the_end_of_a_subscriptions_token() -> None:
    bench = Bench(expiry_grace=5.0)
    socket, _ = bench.session()
    socket.say({"id": 2, "subscribe": {"channel": "$bare", "token": "alice $bare ttl=20"}})
    socket.take()
    socket.cut()
    bench.loop.pass_time(26.0)
    assert len(bench.sessions) == 0
    assert bench.holds() == {}


def test_a_server_side_subscription_whose_log_began_anew_ends_it() -> None:
    bench = Bench()
    socket, token = bench.session(token=f"alice subs={LOG}")
    bench.publish(LOG, 1)
    socket.take()
    socket.cut()
    bench.log.begin_anew(LOG)
    bench.publish(LOG, 2)
    assert len(bench.sessions) == 0
    assert bench.resume(token, socket.received).take_session() == [{"gone": {"reason": "unknown"}}]
    bench.loop.pass_time(1.0)
    assert "subscriptions" not in bench.holds()


def test_a_client_side_one_is_told_when_it_is_back() -> None:
    bench = Bench()
    socket, token = bench.session(LOG, BARE)
    bench.publish(LOG, 1)
    socket.take()
    socket.cut()
    bench.log.begin_anew(LOG)
    bench.publish(LOG, 2)
    bench.publish(BARE, 3)
    resumed = bench.resume(token, socket.received)
    heard = resumed.take()
    assert pushes(heard, "unsubscribe")[0]["code"] == 2500
    assert data_of(heard, BARE) == [3]


# --- one socket at a time -----------------------------------------------------------------------


def test_a_resumption_evicts_the_former_socket_in_the_same_step() -> None:
    bench = Bench()
    first, token = bench.session(BARE, LOG)
    second = bench.resume(token, first.received)
    assert first.take() == [{"session": {"gone": {"reason": "fenced"}}}]
    assert first.closed == CONNECTION_CLOSED.code
    assert "resumed" in second.take()[0]["session"]
    bench.publish(BARE, 1)
    bench.publish(LOG, 2)
    heard = second.take()
    assert (data_of(heard, BARE), data_of(heard, LOG)) == ([1], [2])
    first.answer_close()
    assert bench.holds()["links"] == 1


def test_what_still_comes_on_the_former_socket_has_no_effect() -> None:
    bench = Bench()
    first, token = bench.session(BARE)
    second = bench.resume(token, first.received)
    first.say(_publish(9, "unheard", BARE))
    first.session(leave={})
    first.session(ack=10_000)
    first.send(frame(PING, b"x"))
    assert payload_frames(second.take()) == []
    first.answer_close()
    second.say(_publish(9, "heard", BARE))
    assert data_of(second.take(), BARE) == ["heard"]


def test_a_former_socket_that_doesnt_answer_its_close_is_cut() -> None:
    bench = Bench()
    first, token = bench.session()
    bench.resume(token, first.received)
    bench.loop.pass_time(CLOSE_TIMEOUT + 1)
    assert first.is_gone
    assert bench.holds()["links"] == 1


def test_a_straggler_changes_nothing() -> None:
    bench = Bench()
    first, token = bench.session(BARE)
    second = bench.resume(token, first.received, attempt=2)
    straggler = bench.resume(token, 10_000, attempt=1)
    assert straggler.take() == [{"session": {"gone": {"reason": "fenced"}}}]
    assert straggler.closed is None
    assert second.closed is None
    bench.publish(BARE, 1)
    assert data_of(second.take(), BARE) == [1]


def test_after_a_stable_connection_attempts_count_anew() -> None:
    bench = Bench()
    first, token = bench.session(BARE)
    second = bench.resume(token, first.received, attempt=5)
    total = first.received
    second.take()
    second.session(pong={"received": total, "sent": 2})
    bench.loop.pass_time(31.0)
    third = bench.resume(token, total, attempt=1)
    assert "resumed" in third.take()[0]["session"]


@pytest.mark.parametrize(("received", "reason"), [(0, "overflow"), (10_000, None)])
@pytest.mark.parametrize("away", [True, False])
def test_a_count_that_cant_be_served_ends_it_and_its_socket(
    received: int, reason: str | None, away: bool
) -> None:
    bench = Bench()
    witness = bench.stock(LOG)
    first, token = bench.session(LOG)
    first.session(ack=first.received)
    witness.take()
    if away:
        first.cut()
    second = bench.resume(token, received)
    if reason is None:
        assert second.closed == BAD_PROTOCOL.code
        second.answer_close()
    else:
        assert second.take() == [{"session": {"gone": {"reason": reason}}}]
        second.cut()
    assert len(pushes(witness.take(), "leave")) == 1
    if not away:
        assert first.closed == CONNECTION_CLOSED.code
        first.answer_close()
    witness.cut()
    assert bench.holds() == {}


# --- slow readers -------------------------------------------------------------------------------


def test_a_slow_one_is_closed_and_can_be_resumed() -> None:
    bench = Bench()
    socket, token = bench.session(LOG, BARE)
    socket.transport.fill()
    bench.publish(LOG, 1)
    bench.publish(BARE, 2)
    bench.loop.pass_time(SLOW_READER_TIMEOUT + 1)
    assert socket.closed == SLOW.code
    assert socket.close_reason["retry"] > 0
    assert is_detached(bench, token)
    assert "paused" not in bench.holds()
    bench.publish(BARE, 3)
    resumed = bench.resume(token, socket.received)
    heard = resumed.take()
    assert data_of(heard, LOG) == [1]
    assert pushes(heard, "gap") == [{"dropped": 1}], "what is in no log, while it was slow"
    assert data_of(heard, BARE) == [3]


def test_one_that_reads_again_goes_on_and_is_asked_what_it_has() -> None:
    bench = Bench()
    socket, _ = bench.session(LOG)
    socket.transport.fill()
    bench.publish(LOG, 1, 2)
    assert payload_frames(socket.take()) == []
    socket.transport.drain()
    bench.loop.settle()
    heard = socket.take()
    assert data_of(heard, LOG) == [1, 2]
    pings = [one for one in heard if "session" in one]
    assert len(pings) == 1
    assert socket.closed is None


def test_the_time_it_was_full_doesnt_count_against_it() -> None:
    bench = Bench()
    socket, _ = bench.session()
    bench.loop.pass_time(PING_INTERVAL)
    assert len(socket.take_session()) >= 1
    socket.transport.fill()
    bench.loop.pass_time(SLOW_READER_TIMEOUT - 1)
    socket.transport.drain()
    bench.loop.pass_time(0.5)
    assert socket.closed is None


def test_a_replay_that_fills_the_socket_makes_a_slow_reader_that_goes_on() -> None:
    bench = Bench()
    socket, token = bench.session(LOG, BARE)
    socket.cut()
    bench.publish(BARE, 1)
    bench.publish(LOG, 2)
    second = bench.socket()
    second.transport.room = 1
    second.session(resume={"token": token, "received": socket.received})
    assert bench.holds()["paused"] == 1
    bench.publish(LOG, 3)
    assert data_of(second.take(), BARE) == [1]
    second.transport.drain()
    bench.loop.settle()
    assert data_of(second.take(), LOG) == [2, 3]
    assert "paused" not in bench.holds()
    assert second.transport.reading


def test_a_full_socket_that_is_replaced_is_slow_no_more() -> None:
    bench = Bench()
    first, token = bench.session(LOG, BARE)
    first.transport.fill()
    bench.publish(LOG, 1)
    second = bench.resume(token, first.received)
    assert "paused" not in bench.holds()
    assert data_of(second.take(), LOG) == [1]
    first.transport.drain()
    bench.publish(LOG, 2)
    assert data_of(second.take(), LOG) == [2]
    bench.loop.pass_time(SLOW_READER_TIMEOUT + 1)
    assert second.closed is None
    assert first.is_gone


def test_a_socket_that_its_own_eviction_fills_is_no_reason_to_be_slow() -> None:
    bench = Bench()
    first, token = bench.session(LOG)
    first.transport.room = 1
    second = bench.resume(token, first.received)
    bench.publish(LOG, 1)
    assert data_of(second.take(), LOG) == [1]
    assert "paused" not in bench.holds()


def choke(socket: Socket) -> None:
    """Let so much be in its buffer that nothing more may be written."""
    socket.transport.fill()
    socket.transport.buffered = connection_module.WRITE_BUFFER_MAX_BYTES + 1


def test_who_lets_too_much_pile_up_is_closed_and_loses_nothing() -> None:
    bench = Bench()
    socket, token = bench.session()
    choke(socket)
    connection = bench.found(token)
    for number in range(3):  # all in the turn in which the limit is met
        connection.send(b'{"id":%d,"rpc":{}}' % number)
        connection.flush()
    bench.loop.settle()
    assert socket.closed == SLOW.code
    on_the_wire = [one["id"] for one in socket.take()]
    assert on_the_wire == [0]
    resumed = bench.resume(token, socket.received)
    assert [one["id"] for one in payload_frames(resumed.take())] == [1, 2]
    connection.send(b'{"id":3,"rpc":{}}')
    bench.loop.settle()
    assert [one["id"] for one in resumed.take()] == [3], "the next socket isn't over its limit"


def test_a_resumption_in_that_turn_keeps_its_new_socket() -> None:
    bench = Bench()
    socket, token = bench.session()
    choke(socket)
    connection = bench.found(token)
    connection.send(b'{"id":0,"rpc":{}}')
    connection.flush()
    resumed = bench.socket()
    resumed.session(resume={"token": token, "received": 1})
    assert resumed.closed is None
    assert [one["id"] for one in payload_frames(resumed.take())] == [0]


# --- health -------------------------------------------------------------------------------------


def answer_pings(socket: Socket, total: int, sent: int) -> int:
    """Answer each ping; returns how many there were."""
    pings = [one["ping"] for one in socket.take_session() if "ping" in one]
    for ping in pings:
        assert ping["sent"] == total
        socket.session(pong={"received": total, "sent": sent})
    return len(pings)


def test_it_is_asked_once_in_each_interval() -> None:
    bench = Bench()
    socket, _ = bench.session()
    asked = 0
    for _ in range(40):
        bench.loop.pass_time(PING_INTERVAL / 4)
        asked += answer_pings(socket, 1, 1)
    assert 9 <= asked <= 10
    assert socket.closed is None


def test_the_first_time_is_in_the_second_half_of_the_interval() -> None:
    moments = set()
    for _ in range(30):
        bench = Bench()
        socket, _ = bench.session()
        bench.loop.pass_time(PING_INTERVAL / 2 - 0.5)
        assert socket.take_session() == []
        waited = 0
        while not socket.take_session():
            bench.loop.pass_time(1.0)
            waited += 1
        assert waited <= PING_INTERVAL / 2 + 1
        moments.add(waited)
    assert len(moments) > 3


def next_ping(bench: Bench, socket: Socket) -> dict[str, Any]:
    """Wait for it, as precisely as the wheel turns."""
    for _ in range(200):
        frames = socket.take_session()
        if frames:
            assert list(frames[0]) == ["ping"]
            ping = frames[0]["ping"]
            assert isinstance(ping, dict)
            return ping
        bench.loop.pass_time(0.25)
    raise AssertionError("no ping comes")


def test_round_trips_are_told_and_graded() -> None:
    bench = Bench()
    socket, token = bench.session(LOG)
    ping = next_ping(bench, socket)
    assert (ping["rtt"], ping["quality"]) == (0, "good")
    bench.loop.pass_time(0.5)
    socket.session(pong={"received": socket.received, "sent": 2})
    ping = next_ping(bench, socket)
    assert ping["quality"] == "fair"
    assert 500 <= ping["rtt"] <= 750
    socket.say({"id": 9, "presence": {"channel": LOG}})
    (info,) = payload_frames(socket.take())[-1]["presence"]["presence"].values()
    assert info["quality"] == "fair"
    assert bench.found(token).quality.value == "fair"


def test_who_doesnt_answer_is_asked_again_and_then_given_up_and_can_be_resumed() -> None:
    bench = Bench()
    socket, token = bench.session(BARE)
    next_ping(bench, socket)
    asked_at = bench.loop.time()
    next_ping(bench, socket)  # the probe
    assert 9.5 <= bench.loop.time() - asked_at <= 10.5
    bench.loop.pass_time(9.0)
    assert not socket.close_reason
    bench.loop.pass_time(1.5)
    assert socket.closed == NO_PONG.code
    assert is_detached(bench, token)
    bench.publish(BARE, 1)
    resumed = bench.resume(token, socket.received)
    assert data_of(resumed.take(), BARE) == [1]


def test_a_new_socket_is_a_new_line() -> None:
    bench = Bench()
    socket, token = bench.session()
    next_ping(bench, socket)
    bench.loop.pass_time(9.0)  # an answer is overdue in a moment
    resumed = bench.resume(token, socket.received)
    bench.loop.pass_time(11.0)
    assert resumed.closed is None
    assert bench.found(token).quality.value == "good"


def test_a_stall_of_ours_ends_no_line_and_no_session() -> None:
    bench = Bench()
    waiting, token = bench.session()
    waiting.cut()
    socket, _ = bench.session()
    bench.loop.pass_time(PING_INTERVAL)
    bench.loop.stall(RETENTION)
    bench.loop.pass_time(1.0)
    assert socket.closed is None
    assert is_detached(bench, token)


def test_without_an_interval_nobody_is_asked() -> None:
    bench = Bench(ping_interval=0.0)
    socket, _ = bench.session()
    bench.loop.pass_time(1000.0)
    assert socket.take_session() == []
    assert socket.closed is None


def test_native_pings_are_no_matter_of_a_session() -> None:
    bench = Bench()
    socket, token = bench.session()
    socket.send(frame(PING, b"are you there"))
    assert bench.found(token).client.native_ping is False
    assert bench.found(token).session.received == 1


# --- moments to come back -----------------------------------------------------------------------


def test_a_move_serves_on_and_keeps_the_session_until_its_moment() -> None:
    bench = Bench()
    socket, token = bench.session(BARE, min=0, max=0, attempts=0, timeout=0)
    connection = bench.found(token)
    connection.move(200.0, 30.0)
    assert socket.take_session() == [{"move": {"retry": 200000, "deadline": 30000}}]
    bench.publish(BARE, 1)
    assert data_of(socket.take(), BARE) == [1]
    socket.cut()
    bench.loop.pass_time(199.0)
    assert is_detached(bench, token)
    resumed = bench.resume(token, socket.received)
    assert "resumed" in resumed.take()[0]["session"]
    assert not connection.is_expected
    resumed.cut()
    missed = counted("reconnect_slots_total", event="missed")
    bench.loop.pass_time(100.0)
    assert len(bench.sessions) == 0, "the moment was that socket's"
    assert counted("reconnect_slots_total", event="missed") == missed


def test_whoever_misses_its_moment_is_counted() -> None:
    bench = Bench()
    socket, token = bench.session(min=0, max=0, attempts=0, timeout=0)
    bench.found(token).move(60.0, 0.0)
    socket.cut()
    missed = counted("reconnect_slots_total", event="missed")
    bench.loop.pass_time(70.0)
    assert len(bench.sessions) == 0
    assert counted("reconnect_slots_total", event="missed") == missed + 1


def test_a_close_tells_no_other_moment_than_the_move_did() -> None:
    bench = Bench()
    socket, token = bench.session()
    connection = bench.found(token)
    connection.move(20.0, 0.0)
    slot = connection.slot
    connection.close_socket(SHUTDOWN)
    assert socket.closed == SHUTDOWN.code
    assert "retry" not in socket.close_reason
    assert connection.slot == slot


def test_but_a_new_one_when_that_has_passed() -> None:
    bench = Bench()
    socket, token = bench.session()
    connection = bench.found(token)
    connection.move(2.0, 0.0)
    bench.loop.pass_time(3.0)
    connection.close_socket(SHUTDOWN)
    assert socket.close_reason["retry"] > 0
    assert connection.slot is not None
    assert connection.slot > bench.loop.time()


def test_a_closing_socket_is_not_told_to_move() -> None:
    bench = Bench()
    socket, token = bench.session()
    connection = bench.found(token)
    socket.cut()
    connection.move(20.0, 0.0)
    assert connection.slot is None


# --- limits -------------------------------------------------------------------------------------


def test_a_users_connection_that_waits_makes_room_for_his_next() -> None:
    bench = Bench(connections_per_user_max=2)
    first, first_token = bench.session()
    second, _ = bench.session()
    second.cut()
    third, _ = bench.session()
    assert third.closed is None
    assert len(bench.manager.find("alice")) == 2
    assert first.closed is None
    fourth, _ = bench.opened()
    fourth.say({"id": 1, "connect": {"token": "alice"}})
    assert fourth.closed == 3504
    fourth.answer_close()
    assert bench.holds()["clients"] == 2
    first.cut()
    fifth, _ = bench.session()
    assert fifth.closed is None
    assert bench.resume(first_token, first.received).take_session() == [
        {"gone": {"reason": "expired"}}
    ]


def test_another_users_doesnt() -> None:
    bench = Bench(connections_per_user_max=1)
    socket, token = bench.session(token="bob")
    socket.cut()
    bench.session(token="alice")
    assert is_detached(bench, token)


def test_of_one_address_the_oldest_go() -> None:
    bench = Bench(detached_per_address_max=2)
    kept = [bench.session(token=f"user{number}") for number in range(3)]
    for socket, _ in kept:
        socket.cut()
    answers = [bench.resume(token, 1, address="192.0.2.9").take_session()[0] for _, token in kept]
    assert [next(iter(answer)) for answer in answers] == ["gone", "resumed", "resumed"]


def test_memory_that_runs_short_is_told_with_the_next_ping() -> None:
    bench = Bench(memory_max_bytes=100_000)
    socket, token = bench.session(BARE)
    bench.publish(BARE, "x" * 60_000)
    socket.take()
    bench.sessions.sweep()
    ping = next_ping(bench, socket)
    assert 10_000 <= ping["retain"] < 1000 * RETENTION
    socket.cut()
    bench.loop.pass_time(ping["retain"] / 1000 - 1)
    assert is_detached(bench, token)
    bench.loop.pass_time(2.0)
    assert _is_gone(bench, token)


def test_memory_that_has_run_out_ends_those_who_wait_longest() -> None:
    bench = Bench(memory_max_bytes=60_000)
    kept = [bench.session(BARE, token=f"user{number}") for number in range(3)]
    for socket, _ in kept:
        socket.cut()
    bench.publish(BARE, "x" * 25_000)
    bench.sessions.sweep()
    alive = [token for _, token in kept if not _is_gone(bench, token)]
    assert alive == [token for _, token in kept[1:]], "no more than need be"


def _is_gone(bench: Bench, token: str) -> bool:
    return not hasattr(bench.sessions.find(token), "session")


def test_sessions_are_counted_where_they_are() -> None:
    bench = Bench()
    first, _ = bench.session(LOG, address="192.0.2.1")
    second, _ = bench.session(LOG, address="192.0.2.2")
    first.cut()
    held = bench.holds()
    assert (held["clients"], held["users"], held["links"]) == (2, 1, 1)
    assert held["addresses"] == {"192.0.2.2": 1}
    assert counted("sessions", state="attached") == 1
    assert counted("sessions", state="detached") == 1
    second.close()
    bench.loop.pass_time(RETENTION + 1)
    assert bench.holds() == {}


def held_objects(bench: Bench) -> list[object]:
    """What Python still holds of sockets and connections of this bench."""
    gc.collect()
    found: list[object] = []
    for one in gc.get_objects():
        if type(one) in (SessionConnection, Connection, Newcomer):
            if one._services is bench.services:
                found.append(one)
        elif type(one) is Departed:
            if one._sockets is bench.manager:
                found.append(one)
        elif type(one) is Link and getattr(one.transport, "loop", None) is bench.loop:
            found.append(one)
    return found


def use_in_every_way(bench: Bench, number: int) -> None:
    """Sockets that are evicted, refused, too slow, lost; sessions that expire or are left."""
    socket, token = bench.session(LOG, BARE, token=f"user{number}")
    socket.transport.fill()
    bench.publish(LOG, number)
    bench.resume(token, socket.received).cut()
    bench.resume(token, 0)
    bench.resume(token, 10_000)
    bench.resume("A" * 56, 0)
    bench.socket().say("{")
    bench.session(LOG, token=f"user{number}")[0].session(leave={})
    bench.stock(LOG).cut()
    bench.opened()
    choked, token = bench.session(token="choked")
    choke(choked)
    bench.found(token).send(b"{}")
    bench.loop.settle()
    bench.session(LOG, token="slow")[0].transport.fill()


def test_no_object_stays_behind() -> None:
    bench = Bench(sessions_max=6)
    for number in range(3):
        use_in_every_way(bench, number)
    assert held_objects(bench)
    # Stale, slow, unanswered; expired; and the wheel has come by wherever they were held.
    bench.loop.pass_time(60.0 + RETENTION + 130.0)
    assert bench.holds() == {}
    assert held_objects(bench) == []
