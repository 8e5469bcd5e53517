"""The client's side of a session: what goes out on which line, and what the layer above hears.

The server's frames are composed by the functions that the server composes them with.
"""

from dataclasses import replace
from typing import Any

import msgspec
import pytest

from gateway.protocol.backoff import DeclaredBackoff
from gateway.protocol.client_policy import RETRY_MAX, SessionPolicy, close_advice
from gateway.protocol.client_session import (
    NEVER,
    Began,
    ClientSession,
    Dial,
    Drop,
    Event,
    Lost,
    Write,
)
from gateway.protocol.client_states import TRANSITIONS, ClientEvent, ClientState
from gateway.protocol.codes import close_reason
from gateway.protocol.health import Quality
from gateway.protocol.session import Gone, TailLimits
from gateway.protocol.session_frames import (
    LEAVE,
    ack,
    decode_client_frame,
    gone,
    move,
    opened,
    ping,
    pong,
    resume_frame,
    resumed,
)

START = 1000.0
PING, RETAIN, STABLE = 25.0, 63.0, 30.0
POLICY = SessionPolicy(
    chance=lambda: 0.5,
    backoff=DeclaredBackoff(min=1.0, max=8.0, attempts=8, timeout=5.0),
    tail=TailLimits(frames=100, bytes=1000),
    ack_frames=4,
    ack_bytes=1000,
)
OPENED = opened("the token", 1, PING, RETAIN, STABLE)


class Client:
    """A client session, and all that it has wanted done since it was looked at last."""

    def __init__(self, policy: SessionPolicy = POLICY) -> None:
        self.session = ClientSession(policy)
        self.now = START

    @property
    def state(self) -> ClientState:
        return self.session.state

    def events(self) -> list[Event]:
        return list(self.session.take_events())

    def hears(self, *messages: bytes, line: int | None = None) -> list[bytes]:
        """What of some messages reaches the layer above."""
        line = self.session.line if line is None else line
        return [one for one in messages if self.session.message(line, one, self.now)]

    def sends(self, *frames: bytes) -> list[bool]:
        return [self.session.send(frame, self.now) for frame in frames]

    def closed(self, line: int | None = None, code: int = 1006, reason: str = "") -> list[Event]:
        self.session.closed(self.session.line if line is None else line, self.now, code, reason)
        return self.events()

    def wait(self, seconds: float) -> list[Event]:
        self.now += seconds
        self.session.tick(self.now)
        return self.events()

    def dial(self) -> int:
        """Wait for the next attempt; returns its line, which is open then."""
        (event,) = self.wait(self.session.retry_at - self.now)
        assert isinstance(event, Dial)
        self.session.connected(event.line, self.now)
        return event.line


def idle() -> Client:
    return Client()


def dialing(policy: SessionPolicy = POLICY) -> Client:
    client = Client(policy)
    client.session.start(client.now)
    assert client.events() == [Dial(1)]
    return client


def opening(policy: SessionPolicy = POLICY) -> Client:
    client = dialing(policy)
    client.session.connected(1, client.now)
    write, began = client.events()
    assert isinstance(write, Write)
    assert msgspec.json.decode(write.message).keys() == {"session"}
    assert began == Began()
    return client


def live(policy: SessionPolicy = POLICY) -> Client:
    client = opening(policy)
    assert client.hears(OPENED) == []
    assert client.events() == []
    return client


def waiting() -> Client:
    client = live()
    assert client.closed() == []
    return client


def resuming() -> Client:
    client = waiting()
    line = client.dial()
    assert client.events() == [Write(line, resume_frame("the token", 0, 1))]
    return client


def moving() -> Client:
    client = live()
    client.hears(move(2.0, 30.0))
    assert client.wait(2.0) == [Dial(2)]
    return client


def switching() -> Client:
    client = moving()
    client.session.connected(2, client.now)
    assert client.events() == [Write(2, resume_frame("the token", 0, 1))]
    return client


def ended() -> Client:
    client = live()
    client.session.leave()
    client.events()
    return client


IN_STATE = {
    ClientState.IDLE: idle,
    ClientState.WAITING: waiting,
    ClientState.DIALING: dialing,
    ClientState.OPENING: opening,
    ClientState.RESUMING: resuming,
    ClientState.LIVE: live,
    ClientState.MOVING: moving,
    ClientState.SWITCHING: switching,
    ClientState.ENDED: ended,
}


def told(message: bytes) -> Any:
    return decode_client_frame(message.decode())


# --- states ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ClientState)
def test_every_state_can_be_reached(state: ClientState) -> None:
    assert IN_STATE[state]().session.state is state


@pytest.mark.parametrize("state", ClientState)
def test_an_event_without_an_entry_is_an_error_that_changes_nothing(state: ClientState) -> None:
    for event in set(ClientEvent) - set(TRANSITIONS[state]):
        client = IN_STATE[state]()

        with pytest.raises(AssertionError):
            client.session._move(event)

        assert client.state is state
        assert client.events() == []


def test_every_state_but_the_last_can_end() -> None:
    assert {state for state, table in TRANSITIONS.items() if ClientEvent.END in table} == set(
        ClientState
    ) - {ClientState.ENDED}


@pytest.mark.parametrize("state", ClientState)
def test_only_idle_and_ended_wait_for_nothing(state: ClientState) -> None:
    client = IN_STATE[state]()

    rests = state in (ClientState.IDLE, ClientState.ENDED)
    assert (client.session.next_deadline() == NEVER) == rests


@pytest.mark.parametrize("state", ClientState)
def test_nothing_happens_before_the_deadline(state: ClientState) -> None:
    client = IN_STATE[state]()
    deadline = client.session.next_deadline()
    client.session.tick(client.now if deadline == NEVER else deadline - 0.001)

    assert client.state is state
    assert client.events() == []


@pytest.mark.parametrize("state", ClientState)
def test_lines_that_are_not_in_use_change_nothing(state: ClientState) -> None:
    client = IN_STATE[state]()
    for line in (0, 99):
        client.session.connected(line, client.now)
        client.session.closed(line, client.now, 3500, "x")
        if line:
            assert client.hears(b"{}", ping(9, 9, 0, Quality.GOOD, 1), line=line) == []

    assert client.state is state
    assert client.events() == []


# --- opening --------------------------------------------------------------------------------------


def test_open_declares_the_backoff() -> None:
    client = dialing()
    client.session.connected(1, client.now)
    write = client.events()[0]
    assert isinstance(write, Write)

    declared = told(write.message).backoff

    assert (declared.min, declared.max, declared.attempts, declared.timeout) == (
        1000,
        8000,
        8,
        5000,
    )


def test_opened_tells_token_and_times() -> None:
    assert not opening().session.has_session
    session = live().session

    assert session.has_session
    assert session.state is ClientState.LIVE
    assert (session.generation, session.retain) == (1, RETAIN)


def test_payload_goes_out_right_behind_open() -> None:
    client = opening()

    assert client.sends(b"connect") == [True]


def test_nothing_is_sent_before_a_session_began() -> None:
    with pytest.raises(AssertionError, match="no session"):
        dialing().sends(b"x")


def test_a_line_lost_while_opening_is_a_lost_session() -> None:
    client = opening()
    client.sends(b"connect")

    assert client.closed() == [Lost(1006, "", final=False)]
    assert client.session.unacknowledged == 0


def test_a_line_that_could_not_be_opened_costs_no_session() -> None:
    client = dialing()

    assert client.closed() == []
    assert client.state is ClientState.WAITING


def test_an_attempt_may_take_its_timeout() -> None:
    for client in (dialing(), opening(), resuming()):
        line = client.session.line
        events = client.wait(5.0)

        assert events[0] == Drop(line, leaving=False)
        assert client.state is ClientState.WAITING


def test_a_timeout_while_opening_is_a_lost_session() -> None:
    assert opening().wait(5.0)[1:] == [Lost(1006, "no answer in time", final=False)]


# --- counting and acknowledging -------------------------------------------------------------------


def test_payload_reaches_the_layer_above_and_session_frames_do_not() -> None:
    client = live()

    heard = client.hears(b"a", ack(0), b"b", ping(0, 2, 0.0, Quality.GOOD, RETAIN), b"c")

    assert heard == [b"a", b"b", b"c"]
    assert client.session.received == 3


def test_frames_are_acknowledged_after_a_number_of_them() -> None:
    client = live()
    client.hears(b"1", b"2", b"3")
    assert client.events() == []

    client.hears(b"4")
    assert [told(event.message) for event in client.events() if isinstance(event, Write)] == [4]
    client.hears(b"5", b"6", b"7")
    assert client.events() == []


def test_frames_are_acknowledged_after_a_number_of_bytes() -> None:
    client = live()
    client.hears(bytes(999))
    assert client.events() == []

    client.hears(b"x")

    (event,) = client.events()
    assert isinstance(event, Write)
    assert told(event.message) == 2


def test_a_ping_is_answered_with_both_counts() -> None:
    client = live()
    client.hears(b"1", b"2", b"3")
    client.sends(b"x")
    client.hears(ping(1, 3, 0.043, Quality.FAIR, 40.0))

    assert client.events() == [Write(1, pong(3, 1))]
    assert client.session.rtt == 0.043
    assert client.session.quality is Quality.FAIR
    assert client.session.retain == 40.0
    assert client.session.unacknowledged == 0


def test_a_pong_is_an_acknowledgement() -> None:
    client = live()
    client.hears(b"1", b"2", b"3", ping(0, 3, 0.0, Quality.GOOD, RETAIN))
    client.events()
    client.hears(b"4", b"5", b"6")

    assert client.events() == []


def test_a_quality_of_a_later_version_changes_nothing() -> None:
    client = live()
    client.hears(ping(0, 0, 0.01, Quality.FAIR, RETAIN))
    client.hears(b'{"session":{"ping":{"received":0,"sent":0,"quality":"splendid"}}}')

    assert client.session.quality is Quality.FAIR
    assert client.session.retain == RETAIN


def test_session_frames_of_a_later_version_are_ignored() -> None:
    client = live()

    assert client.hears(b'{"session":{"greet":{}}}') == []
    assert client.events() == []
    assert client.state is ClientState.LIVE


def test_acknowledged_frames_are_forgotten() -> None:
    client = live()
    client.sends(b"one", b"two", b"three")
    client.hears(ack(2))
    assert (client.session.unacknowledged, client.session.tail_bytes) == (1, 5)

    client.hears(ack(1))
    assert client.session.unacknowledged == 1
    client.hears(ack(3))

    assert (client.session.unacknowledged, client.session.tail_bytes) == (0, 0)


@pytest.mark.parametrize(
    ("frames", "overflows"),
    [([b"x"] * 100, False), ([b"x"] * 101, True), ([bytes(1000)], False), ([bytes(1001)], True)],
)
def test_a_tail_over_its_limits_ends_the_session(frames: list[bytes], overflows: bool) -> None:
    client = live()

    assert client.sends(*frames)[-1] is not overflows

    lost: list[Event] = [
        Lost(0, "too much is unacknowledged", final=False),
        Drop(1, leaving=True),
    ]
    assert client.events() == (lost if overflows else [])
    assert client.session.tail_bytes == (0 if overflows else sum(map(len, frames)))


def test_a_tail_may_overflow_between_lines() -> None:
    client = waiting()
    retry_at = client.session.retry_at
    client.sends(bytes(1001))

    assert client.events() == [Lost(0, "too much is unacknowledged", final=False)]
    assert client.session.retry_at == retry_at

    line = client.dial()
    write, began = client.events()
    assert isinstance(write, Write)
    assert (write.line, began) == (line, Began())
    assert b"open" in write.message


def test_a_tail_may_overflow_while_a_line_is_opened() -> None:
    client = waiting()
    (dial,) = client.wait(client.session.retry_at - client.now)
    assert isinstance(dial, Dial)
    client.sends(bytes(1001))
    assert client.events() == [Lost(0, "too much is unacknowledged", final=False)]

    client.session.connected(dial.line, client.now)

    assert client.events()[1] == Began()


# --- what a server must not do --------------------------------------------------------------------

WRONG = {
    "not JSON": b'{"session":',
    "more acknowledged than sent": ack(1),
    "more acknowledged than sent, in a ping": ping(1, 0, 0.0, Quality.GOOD, RETAIN),
    "a frame got lost": ping(0, 1, 0.0, Quality.GOOD, RETAIN),
    "a second opened": OPENED,
    "resumed without resume": resumed(2, 0, 0, RETAIN, STABLE),
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("state", [ClientState.LIVE, ClientState.MOVING])
def test_a_server_that_breaks_the_protocol_loses_the_session(
    state: ClientState, wrong: str
) -> None:
    client = IN_STATE[state]()
    client.hears(WRONG[wrong])

    lost, *drops = client.events()
    assert isinstance(lost, Lost)
    assert not lost.final
    assert drops[-1] == Drop(1, leaving=True)
    assert len(drops) == (2 if state is ClientState.MOVING else 1)
    assert client.state is ClientState.WAITING


@pytest.mark.parametrize("state", [ClientState.OPENING, ClientState.RESUMING])
@pytest.mark.parametrize("message", [b"{}", ack(0), move(1, 1), b'{"session":{"greet":{}}}'])
def test_nothing_comes_before_the_answer(state: ClientState, message: bytes) -> None:
    client = IN_STATE[state]()

    assert client.hears(message) == []
    assert any(isinstance(event, Lost) for event in client.events())
    assert client.state is ClientState.WAITING


def test_an_open_cannot_be_answered_with_gone() -> None:
    client = opening()
    client.hears(gone(Gone.UNKNOWN))

    assert client.state is ClientState.WAITING


def test_a_server_cannot_take_back_what_it_acknowledged() -> None:
    client = live()
    client.sends(b"one", b"two")
    client.hears(ack(2))
    client.closed()
    client.dial()
    client.events()
    client.hears(resumed(2, 1, 0, RETAIN, STABLE))

    lost = client.events()[0]
    assert lost == Lost(0, "only 1 of 2 frames are left", final=False)


# --- resuming -------------------------------------------------------------------------------------


def test_what_was_not_processed_is_sent_again() -> None:
    client = live()
    client.sends(b"one", b"two", b"three")
    client.hears(b"a", b"b")
    assert client.closed() == []
    assert client.sends(b"four") == [False]

    line = client.dial()
    assert client.events() == [Write(line, resume_frame("the token", 2, 1))]
    assert client.sends(b"five") == [False]
    client.hears(resumed(2, 2, 0, RETAIN, STABLE))

    assert client.events() == [Write(line, frame) for frame in (b"three", b"four", b"five")]
    assert client.state is ClientState.LIVE
    assert client.session.generation == 2
    assert client.sends(b"six") == [True]


def test_a_session_that_is_gone_is_replaced_on_the_same_line() -> None:
    client = live()
    client.sends(b"one")
    client.hears(b"a")
    client.closed()
    line = client.dial()
    client.events()
    client.now += 4.9
    client.hears(gone(Gone.EXPIRED))

    lost, write, began = client.events()
    assert lost == Lost(0, "session expired", final=False)
    assert isinstance(write, Write)
    assert (write.line, began) == (line, Began())
    # For which there is as much time as for any attempt.
    assert client.session.next_deadline() == client.now + 5.0

    client.hears(OPENED)
    assert client.state is ClientState.LIVE
    assert (client.session.sent, client.session.received) == (0, 0)


def test_a_live_session_can_be_taken_over_by_another() -> None:
    client = live()
    client.hears(gone(Gone.FENCED))

    assert client.events() == [
        Lost(0, "session fenced", final=False),
        Drop(1, leaving=True),
    ]


def test_silence_loses_the_line_and_not_the_session() -> None:
    client = live()
    client.now += 30.0
    client.hears(b"x")
    assert client.wait(PING + 9.9) == []

    assert client.wait(0.1) == [Drop(1, leaving=False)]
    assert client.state is ClientState.WAITING


def test_a_server_without_pings_may_be_silent() -> None:
    client = opening()
    client.hears(opened("the token", 1, 0.0, RETAIN, STABLE))

    assert client.session.next_deadline() == NEVER


RESUMABLE = [1001, 1006, 1011, 1012, 1013, 1014, 1015, 3001, 3008, 3009, 3012, 3013]
OVER = [1000, 1002, 1003, 1005, 1007, 3000, 3004, 3005, 3006, 3010, 3011, 3014, 4000]
FINAL = [1009, 3500, 3501, 3503, 3999, 4500, 4999]


@pytest.mark.parametrize("code", RESUMABLE)
def test_codes_that_end_only_the_line(code: int) -> None:
    client = live()

    assert client.closed(code=code, reason="x") == []
    assert client.state is ClientState.WAITING


@pytest.mark.parametrize("code", OVER)
@pytest.mark.parametrize("state", [ClientState.LIVE, ClientState.OPENING, ClientState.RESUMING])
def test_codes_that_end_the_session(code: int, state: ClientState) -> None:
    client = IN_STATE[state]()

    assert client.closed(code=code, reason="x") == [Lost(code, "x", final=False)]
    assert client.state is ClientState.WAITING


@pytest.mark.parametrize("code", FINAL)
@pytest.mark.parametrize("state", [ClientState.LIVE, ClientState.OPENING, ClientState.RESUMING])
def test_codes_that_end_everything(code: int, state: ClientState) -> None:
    client = IN_STATE[state]()

    assert client.closed(code=code, reason="x") == [Lost(code, "x", final=True)]
    assert client.state is ClientState.ENDED


def test_a_reason_may_overrule_the_code() -> None:
    client = live()

    reason = close_reason("no more", reconnect=False).decode()
    assert client.closed(code=3001, reason=reason) == [Lost(3001, "no more", final=True)]

    client = live()
    reason = close_reason("again", reconnect=True).decode()
    assert client.closed(code=3501, reason=reason) == [Lost(3501, "again", final=False)]


# --- when the next attempt is made ----------------------------------------------------------------


def test_attempts_wait_longer_each_time() -> None:
    client = waiting()
    delays = []
    for _ in range(6):
        delays.append(client.session.retry_at - client.now)
        client.wait(delays[-1])
        client.closed()

    assert delays == [0.5, 1.0, 2.0, 4.0, 4.0, 4.0]
    assert client.session.attempt == 6


def test_attempts_are_told() -> None:
    client = waiting()
    told_attempts = []
    for _ in range(3):
        client.dial()
        (event,) = client.events()
        assert isinstance(event, Write)
        told_attempts.append(told(event.message).attempt)
        client.closed()

    assert told_attempts == [1, 2, 3]


def test_attempts_are_counted_anew_after_a_stable_connection() -> None:
    client = resuming()
    client.hears(resumed(2, 0, 0, RETAIN, STABLE))
    client.now += STABLE - 0.001
    client.closed()
    assert client.session.attempt == 1
    assert client.session.retry_at - client.now == 1.0

    client.dial()
    client.events()
    assert client.session.attempt == 2
    client.hears(resumed(3, 0, 0, RETAIN, STABLE))
    client.now += STABLE
    client.closed()

    assert client.session.attempt == 0
    assert client.session.retry_at - client.now == 0.5


def test_a_wait_is_no_stable_connection() -> None:
    client = resuming()
    client.hears(resumed(2, 0, 0, RETAIN, 1.0))
    client.now += 0.5
    client.closed()
    client.dial()

    assert client.session.attempt == 2


def test_the_server_says_when_to_come_back() -> None:
    client = live()
    reason = close_reason("shutdown", reconnect=True, retry_ms=4180).decode()
    client.closed(code=3001, reason=reason)

    assert client.session.retry_at == client.now + 4.18
    assert client.wait(4.18) == [Dial(2)]


def test_a_refusal_says_when_to_come_back() -> None:
    """Of a session as of a newcomer, and in a close frame as in an HTTP answer."""
    reason = close_reason("too many requests", reconnect=True, retry_ms=900).decode()
    for client in (opening(), resuming()):
        client.closed(code=3013, reason=reason)
        assert client.session.retry_at == client.now + 0.9

    client = dialing()
    client.session.closed(1, client.now, retry=7.0)
    assert client.session.retry_at == client.now + 7.0


def test_nobody_is_sent_away_for_ever() -> None:
    client = live()
    reason = close_reason("shutdown", reconnect=True, retry_ms=2**50).decode()
    client.closed(code=3001, reason=reason)
    assert client.session.retry_at == client.now + RETRY_MAX

    client = dialing()
    client.session.closed(1, client.now, retry=1e9)
    assert client.session.retry_at == client.now + RETRY_MAX


@pytest.mark.parametrize(
    ("jitter", "chance", "delay"),
    [
        ("full", 0.0, 0.0),
        ("full", 0.75, 3.0),
        ("none", 0.0, 4.0),
        (0.5, 0.0, 2.0),
        (0.5, 0.5, 4.0),
        (0.5, 1.0, 6.0),
    ],
)
def test_delays_vary_as_declared(jitter: Any, chance: float, delay: float) -> None:
    backoff = DeclaredBackoff(min=1.0, max=8.0, jitter=jitter)

    assert SessionPolicy(lambda: chance, backoff).delay(2) == pytest.approx(delay)


@pytest.mark.parametrize("reason", ["", "{", "[]", '{"retry":"soon"}', '{"retry":-1}', "☃" * 41])
def test_a_reason_that_is_no_advice_is_taken_as_text(reason: str) -> None:
    advice = close_advice(3001, reason)

    assert advice == (reason, True, True, None)


# --- moving ---------------------------------------------------------------------------------------


def test_the_old_line_serves_until_the_new_one_has_resumed() -> None:
    client = live()
    client.sends(b"one")
    client.hears(b"a", move(2.0, 30.0))
    assert client.session.retry_at == client.now + 2.0
    assert client.wait(2.0) == [Dial(2)]
    assert client.hears(b"b", line=1) == [b"b"]
    client.session.connected(2, client.now)
    assert client.events() == [Write(2, resume_frame("the token", 2, 1))]

    assert client.hears(b"c", b"d", line=1) == [b"c", b"d"]
    assert client.sends(b"two") == [True]
    assert client.session.line == 1

    client.hears(resumed(2, 1, 3, RETAIN, STABLE), line=2)
    assert client.events() == [Drop(1, leaving=False), Write(2, b"two")]
    # What came on the old line meanwhile comes again, and e is new.
    assert client.hears(b"c", b"d", b"e", line=2) == [b"e"]
    client.hears(ping(2, 5, 0.0, Quality.GOOD, RETAIN))
    assert client.events() == [Write(2, pong(5, 2))]


def test_nothing_more_is_acknowledged_on_the_old_line_once_resume_was_sent() -> None:
    client = live()
    client.hears(b"a", move(2.0, 30.0))
    client.wait(2.0)
    client.session.connected(2, client.now)
    client.events()

    client.hears(*[b"x"] * 9, ping(0, 10, 0.0, Quality.GOOD, RETAIN))
    assert client.events() == [Write(1, pong(1, 0))]

    client.hears(resumed(2, 0, 9, RETAIN, STABLE), line=2)
    client.events()
    client.hears(*[b"x"] * 9)
    assert client.events() == []
    client.hears(b"y")
    assert client.events() == [Write(2, ack(11))]


def test_a_ping_may_come_between_frames_that_come_again() -> None:
    client = switching()
    client.hears(b"a", b"b", line=1)
    client.hears(resumed(2, 0, 2, RETAIN, STABLE), line=2)
    client.events()
    client.hears(b"a", ping(0, 1, 0.0, Quality.GOOD, RETAIN))

    assert client.events() == [Write(2, pong(2, 0))]


def test_the_slot_holds_when_the_old_line_ends_early() -> None:
    client = live()
    client.hears(move(2.0, 30.0))
    client.now += 0.5

    assert client.closed(code=3001, reason="shutdown") == []
    assert client.session.retry_at == client.now + 1.5


def test_a_close_may_give_a_newer_slot() -> None:
    client = live()
    client.hears(move(2.0, 30.0))
    reason = close_reason("shutdown", reconnect=True, retry_ms=300).decode()
    client.closed(code=3001, reason=reason)

    assert client.session.retry_at == client.now + 0.3


def test_an_old_line_may_end_while_the_new_one_is_opened() -> None:
    client = moving()
    assert client.closed(1) == []
    assert client.state is ClientState.DIALING

    client.session.connected(2, client.now)

    assert client.events() == [Write(2, resume_frame("the token", 0, 1))]


def test_an_old_line_may_end_while_the_new_one_resumes() -> None:
    client = switching()
    assert client.closed(1) == []
    assert client.sends(b"x") == [False]

    client.hears(resumed(2, 0, 0, RETAIN, STABLE), line=2)

    assert client.state is ClientState.LIVE


def test_an_old_line_may_fall_silent() -> None:
    client = live()
    client.hears(move(PING + 8.0, 60.0))
    client.wait(PING + 8.0)

    assert client.wait(2.0) == [Drop(1, leaving=False)]
    assert client.state is ClientState.DIALING


def test_being_fenced_by_ones_own_next_line_is_no_loss() -> None:
    client = switching()
    client.hears(gone(Gone.FENCED), line=1)

    assert client.events() == [Drop(1, leaving=False)]
    assert client.state is ClientState.RESUMING


def test_a_next_line_that_fails_early_is_tried_again_while_the_old_one_serves() -> None:
    client = moving()

    assert client.closed(2) == []
    assert client.state is ClientState.LIVE
    assert client.session.retry_at == client.now + 1.0
    assert client.hears(b"x", line=1) == [b"x"]
    assert client.wait(1.0) == [Dial(3)]
    assert client.session.attempt == 2


def test_a_next_line_may_be_told_to_come_back() -> None:
    client = moving()
    reason = close_reason("too many requests", reconnect=True, retry_ms=700).decode()
    client.closed(2, code=3013, reason=reason)

    assert client.session.retry_at == client.now + 0.7


@pytest.mark.parametrize("timed_out", [True, False])
def test_a_next_line_that_fails_late_takes_the_old_one_with_it(timed_out: bool) -> None:
    """Nobody knows whether the server has seen `resume`."""
    client = switching()
    events = client.wait(5.0) if timed_out else client.closed(2)

    assert events == [Drop(2, leaving=False)] * timed_out + [Drop(1, leaving=False)]
    assert client.state is ClientState.WAITING


def test_a_connection_counts_as_stable_once() -> None:
    """Or the next `resume` could have the number of one that is still on its way."""
    client = live()
    client.now += STABLE
    client.hears(move(0.0, 30.0))
    client.wait(0.0)
    client.session.connected(2, client.now)
    client.now += 4.0
    client.closed(2)
    client.now += STABLE
    client.dial()

    assert client.session.attempt == 2


@pytest.mark.parametrize("code", [3000, 3501])
def test_a_next_line_that_is_refused_is_the_end_of_the_session(code: int) -> None:
    client = switching()

    *drops, lost = sorted(client.closed(2, code=code, reason="x"), key=lambda e: type(e).__name__)
    assert drops == [Drop(1, leaving=True)]
    assert lost == Lost(code, "x", final=code == 3501)


def test_a_session_may_be_gone_when_it_moves() -> None:
    client = switching()
    client.hears(gone(Gone.UNKNOWN), line=2)

    drop, lost, _, began = client.events()
    assert (drop, lost, began) == (
        Drop(1, leaving=False),
        Lost(0, "session unknown", final=False),
        Began(),
    )
    assert client.session.line == 2


def test_a_move_is_asked_for_once() -> None:
    client = moving()
    client.hears(move(9.0, 30.0), line=1)

    assert client.state is ClientState.MOVING
    assert client.session.next_deadline() == client.now + 5.0


def test_payload_on_a_line_that_has_not_resumed_breaks_the_protocol() -> None:
    client = switching()

    assert client.hears(b"{}", line=2) == []
    assert client.state is ClientState.WAITING


# --- leaving, and beginning anew ------------------------------------------------------------------


@pytest.mark.parametrize("state", ClientState)
def test_leaving_drops_every_line(state: ClientState) -> None:
    client = IN_STATE[state]()
    lines = {1: 1, 2: 2}
    expected = {
        ClientState.DIALING: [1],
        ClientState.OPENING: [1],
        ClientState.RESUMING: [2],
        ClientState.LIVE: [1],
        ClientState.MOVING: [2, 1],
        ClientState.SWITCHING: [2, 1],
    }.get(state, [])
    said = client.session.is_live
    client.session.leave()

    events = client.events()
    assert events == [Write(1, LEAVE)] * said + [
        Drop(lines[line], leaving=True) for line in expected
    ]
    assert client.state is ClientState.ENDED
    assert client.session.next_deadline() == NEVER


@pytest.mark.parametrize("state", [ClientState.OPENING, ClientState.LIVE, ClientState.MOVING])
def test_the_layer_above_may_begin_anew(state: ClientState) -> None:
    client = IN_STATE[state]()
    client.session.break_off("token expired", client.now)

    lost, *drops = client.events()
    assert lost == Lost(0, "token expired", final=False)
    assert drops[-1] == Drop(1, leaving=True)
    assert client.state is ClientState.WAITING
    assert not client.session.has_session


def test_what_has_not_begun_is_not_broken_off() -> None:
    with pytest.raises(AssertionError):
        dialing().session.break_off("x", START)


def test_after_the_end_nothing_is_sent() -> None:
    with pytest.raises(AssertionError):
        ended().sends(b"x")


# --- cost -----------------------------------------------------------------------------------------


def test_a_client_has_no_dictionary_and_no_empty_queue() -> None:
    client = live()
    client.sends(b"x")
    client.hears(ack(1))

    assert not hasattr(client.session, "__dict__")
    assert client.session._tail is None
    assert client.session._events is None


def test_policies_are_shared() -> None:
    """And can be had with other limits."""
    lavish = replace(POLICY, ack_frames=1000)
    first, second = live(lavish), live(lavish)
    first.hears(*[b"x"] * 99)

    assert first.events() == second.events() == []
