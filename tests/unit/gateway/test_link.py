"""One WebSocket without a socket: bytes to messages and back, and both ways of closing."""

import gc
import json
import struct
import weakref

import pytest

from gateway.link import ABNORMAL_CLOSURE, Link
from gateway.protocol.codes import INVALID_TOKEN, SHUTDOWN
from gateway.protocol.frames import (
    BINARY,
    CLOSE,
    CONTINUATION,
    MESSAGE_TOO_BIG,
    NO_STATUS,
    PING,
    PONG,
    PROTOCOL_ERROR,
    TEXT,
)
from tests.support.transport import RecordingTransport
from tests.support.wire import deflate, frame

SIZE_MAX = 1000


class RecordingOwner:
    """Notes each call; `on_text` may act back."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.calls: list[object] = []

    def text_received(self, text: str) -> None:
        self.calls.append(text)
        if text == "close":
            self.link.close(SHUTDOWN, None)

    def binary_received(self) -> None:
        self.calls.append("binary")

    def native_pong(self) -> None:
        self.calls.append("pong")

    def writing_paused(self) -> None:
        self.calls.append("paused")

    def writing_resumed(self) -> None:
        self.calls.append("resumed")

    def link_closing(self) -> None:
        self.calls.append(f"closing{' lost' if self.link.lost else ''}")

    def link_lost(self, code: int) -> None:
        self.calls.append(("lost", code))


class Socket:
    """A link between a transport and an owner that note everything."""

    def __init__(self, deflate: bool = False) -> None:
        self.transport = RecordingTransport()
        self.link = Link(self.transport, SIZE_MAX, deflate)
        self.owner = RecordingOwner(self.link)
        self.link.use(self.owner)
        self.transport.set_protocol(self.link)

    def receive(self, *frames: bytes) -> None:
        self.link.data_received(b"".join(frames))

    def take_calls(self) -> list[object]:
        calls, self.owner.calls = self.owner.calls, []
        return calls

    def take_close(self) -> tuple[int, bytes]:
        ((opcode, payload),) = self.transport.take_frames()
        assert opcode == CLOSE
        return struct.unpack("!H", payload[:2])[0], payload[2:]


@pytest.fixture
def socket() -> Socket:
    return Socket()


def goodbye(code: int, reason: bytes = b"") -> bytes:
    return frame(CLOSE, struct.pack("!H", code) + reason)


# --- messages ---------------------------------------------------------------------------------


def test_each_kind_of_message_has_its_call(socket: Socket) -> None:
    socket.receive(frame(TEXT, b"hello"), frame(BINARY, b"\0"), frame(PONG, b"x"))
    socket.receive(frame(TEXT, b"in ", fin=False))
    socket.receive(frame(CONTINUATION, b"parts"))

    assert socket.take_calls() == ["hello", "binary", "pong", "in parts"]
    assert socket.transport.written == []


def test_a_ping_is_answered_with_its_payload(socket: Socket) -> None:
    socket.receive(frame(PING, b"are you there?"))

    assert socket.transport.take_frames() == [(PONG, b"are you there?")]
    assert socket.take_calls() == []


def test_many_pings_of_a_segment_are_answered_in_one_write(socket: Socket) -> None:
    socket.receive(*(frame(PING, b"%d" % number) for number in range(1000)))

    assert len(socket.transport.written) == 1
    assert socket.transport.take_frames() == [(PONG, b"%d" % number) for number in range(1000)]


def test_a_ping_before_a_message_is_answered_before_it() -> None:
    socket = Socket()
    answered: list[int] = []
    real = socket.owner.text_received

    def text_received(text: str) -> None:
        answered.append(len(socket.transport.written))
        real(text)

    socket.owner.text_received = text_received  # type: ignore[method-assign]
    socket.receive(frame(PING), frame(PING), frame(TEXT, b"a"), frame(TEXT, b"b"), frame(PING))

    assert answered == [1, 1]
    assert len(socket.transport.written) == 2


def test_pings_before_a_goodbye_are_not_answered_behind_ours(socket: Socket) -> None:
    socket.receive(frame(PING, b"x"), goodbye(1000))

    assert socket.take_close() == (1000, b"")


def test_a_message_is_sent_in_one_frame(socket: Socket) -> None:
    socket.link.send(b'{"id":1}')
    socket.link.ping()

    assert socket.transport.take_frames() == [(TEXT, b'{"id":1}'), (PING, b"")]


def test_compressed_messages_are_read_where_that_was_negotiated() -> None:
    data = frame(TEXT, deflate(b"hello"), rsv=0b100)
    with_it, without = Socket(deflate=True), Socket()
    for socket in (with_it, without):
        socket.receive(data)

    assert with_it.take_calls() == ["hello"]
    assert without.take_close()[0] == PROTOCOL_ERROR


def test_the_sink_is_the_transports_own_write(socket: Socket) -> None:
    socket.link.sink(b"as it is")

    assert socket.transport.take() == b"as it is"


# --- the peer says goodbye --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "answer", "ended_by"),
    [
        (goodbye(1000, b"bye"), 1000, 1000),
        (goodbye(1001), 1001, 1001),
        (goodbye(4321), 4321, 4321),
        (frame(CLOSE), 1000, NO_STATUS),
    ],
)
def test_a_goodbye_is_answered_with_its_code(
    socket: Socket, data: bytes, answer: int, ended_by: int
) -> None:
    socket.receive(data)
    assert socket.take_close() == (answer, b"")
    assert socket.transport.is_closing()
    assert socket.take_calls() == ["closing"]

    socket.transport.lose()
    assert socket.take_calls() == [("lost", ended_by)]


def test_nothing_is_taken_or_sent_after_a_goodbye(socket: Socket) -> None:
    socket.receive(frame(TEXT, b"before"), goodbye(1000), frame(TEXT, b"after"))
    socket.transport.take()
    socket.receive(frame(TEXT, b"later"), frame(PING), goodbye(1000))
    socket.link.send(b"{}")
    socket.link.ping()
    socket.link.close(SHUTDOWN, None)

    assert socket.take_calls() == ["before", "closing"]
    assert socket.transport.written == []


# --- we say goodbye ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("disconnect", "retry_ms", "reason"),
    [
        (SHUTDOWN, 4180, {"reason": "shutdown", "reconnect": True, "retry": 4180}),
        (INVALID_TOKEN, None, {"reason": "invalid token", "reconnect": False}),
    ],
)
def test_a_close_says_why_and_waits_for_the_answer(
    socket: Socket, disconnect: object, retry_ms: int | None, reason: object
) -> None:
    socket.link.close(disconnect, retry_ms)  # type: ignore[arg-type]
    code, payload = socket.take_close()
    assert code == disconnect.code  # type: ignore[attr-defined]
    assert json.loads(payload) == reason
    assert socket.take_calls() == ["closing"]
    assert not socket.transport.is_closing()

    socket.receive(frame(TEXT, b"still talking"), frame(PING, b"?"), frame(BINARY), goodbye(code))
    assert socket.take_calls() == []
    assert socket.transport.written == []
    assert socket.transport.is_closing()

    socket.transport.lose()
    assert socket.take_calls() == [("lost", code)]


def test_a_close_amid_a_segment_ends_the_handling_of_it(socket: Socket) -> None:
    socket.receive(
        frame(PING, b"?"), frame(TEXT, b"close"), frame(TEXT, b"after"), frame(PING), frame(BINARY)
    )

    assert [opcode for opcode, _ in socket.transport.take_frames()] == [PONG, CLOSE]
    assert socket.take_calls() == ["close", "closing"]


def test_a_second_close_changes_nothing(socket: Socket) -> None:
    socket.link.close(SHUTDOWN, None)
    socket.link.close(INVALID_TOKEN, None)

    assert socket.take_close()[0] == SHUTDOWN.code
    assert socket.take_calls() == ["closing"]


def test_a_broken_answer_to_a_close_is_no_reason_for_another(socket: Socket) -> None:
    socket.link.close(SHUTDOWN, None)
    socket.transport.take()
    socket.receive(b"\xff" * 20)

    assert socket.transport.written == []
    assert not socket.transport.eof
    socket.transport.lose()
    assert socket.take_calls() == ["closing", ("lost", SHUTDOWN.code)]


# --- broken frames ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "code", "reconnect"),
    [
        (frame(TEXT, b"x", masked=False), PROTOCOL_ERROR, True),
        (frame(TEXT, b"\xff"), 1007, True),
        (goodbye(1005), PROTOCOL_ERROR, True),
        (frame(TEXT, b"x" * (SIZE_MAX + 1)), MESSAGE_TOO_BIG, False),
    ],
)
def test_a_broken_frame_is_refused_with_a_reason_that_can_be_read(
    socket: Socket, data: bytes, code: int, reconnect: bool
) -> None:
    socket.receive(frame(TEXT, b"before"), data)

    sent, reason = socket.take_close()
    assert sent == code
    assert json.loads(reason)["reconnect"] is reconnect
    assert json.loads(reason)["reason"]
    assert socket.take_calls() == ["before", "closing"]
    # Our end is closed; the socket stays until the peer has had the time to read why.
    assert socket.transport.eof
    assert not socket.transport.is_closing()

    socket.receive(frame(TEXT, b"more"), goodbye(1000))
    assert socket.take_calls() == []
    socket.transport.lose()
    assert socket.take_calls() == [("lost", code)]


# --- a line that breaks -----------------------------------------------------------------------


@pytest.mark.parametrize("error", [None, ConnectionResetError()])
def test_a_line_that_breaks_is_an_end_without_a_code(
    socket: Socket, error: Exception | None
) -> None:
    socket.transport.lose(error)

    assert socket.take_calls() == ["closing lost", ("lost", ABNORMAL_CLOSURE)]
    assert socket.link.lost


def test_an_owner_is_told_once(socket: Socket) -> None:
    for _ in range(2):
        socket.transport.lose()
    socket.transport.fill()
    socket.transport.drain()

    assert socket.take_calls() == ["closing lost", ("lost", ABNORMAL_CLOSURE)]


def test_the_end_of_the_peers_stream_is_the_end(socket: Socket) -> None:
    # None: the transport closes itself.
    assert socket.link.eof_received() is None  # type: ignore[func-returns-value]


def test_a_link_can_be_dropped_without_ceremony(socket: Socket) -> None:
    socket.link.abort()

    assert socket.transport.aborted
    assert socket.transport.written == []


def test_a_lost_link_and_its_owner_are_freed_at_once() -> None:
    """Ten thousand of them at a time must not wait for the collector of cycles."""

    class Owner(RecordingOwner):
        """One that can be referred to weakly."""

    transport = RecordingTransport()
    link = Link(transport, SIZE_MAX, False)
    owner = Owner(link)
    link.use(owner)
    gone = weakref.ref(owner)
    gc.disable()
    try:
        link.connection_lost(None)
        del owner, link
        assert gone() is None
    finally:
        gc.enable()


# --- pressure ---------------------------------------------------------------------------------


def test_pressure_is_told_when_it_changes(socket: Socket) -> None:
    for _ in range(2):
        socket.transport.fill()
    pressure = [socket.link.paused]
    for _ in range(2):
        socket.transport.drain()
    pressure.append(socket.link.paused)

    assert pressure == [True, False]
    assert socket.take_calls() == ["paused", "resumed"]
