"""Upgrades that have to wait for their turn, without a socket."""

import asyncio
import json
import logging
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import pytest

from gateway.acceptance import QUEUE_MAX, TURN_BUDGET, AcceptControl, Arrival
from gateway.gate import HEAD_MAX_BYTES, HELD_MAX_BYTES, Gate, Reception
from gateway.link import Link
from gateway.protocol.frames import TEXT
from gateway.protocol.handshake import Accepted, OriginPolicy, Refused
from gateway.wheel import TICK, Wheel
from tests.support.fake_loop import FakeLoop
from tests.support.transport import RecordingTransport
from tests.support.wire import frame, head, upgrade_headers

HANDSHAKE_TIMEOUT: Final = 10.0
UPGRADE: Final = head(headers=upgrade_headers())


class RecordingOwner:
    """Notes the messages of one link."""

    def __init__(self, link: Link) -> None:
        self.texts: list[str] = []
        link.use(self)

    def text_received(self, text: str) -> None:
        self.texts.append(text)

    def binary_received(self) -> None: ...

    def native_pong(self) -> None: ...

    def writing_paused(self) -> None: ...

    def writing_resumed(self) -> None: ...

    def link_closing(self) -> None: ...

    def link_lost(self, code: int) -> None: ...


@dataclass
class RecordingHost:
    """Takes everybody in, unless told otherwise. Each costs `seconds` of the test's clock."""

    spend: Callable[[], None]
    owners: list[RecordingOwner] = field(default_factory=list)
    transports: list[asyncio.Transport] = field(default_factory=list)
    refused: Refused | None = None
    error: Exception | None = None

    def refusal(self, address: str) -> Refused | None:
        return self.refused

    def accept(self, transport: asyncio.Transport, accepted: Accepted, address: str) -> Link:
        self.spend()
        if self.error is not None:
            raise self.error
        transport.write(accepted.response)
        link = Link(transport, 65536, accepted.deflate)
        self.owners.append(RecordingOwner(link))
        self.transports.append(transport)
        transport.set_protocol(link)
        return link


class Entrance:
    """Gates to one host, with time in the test's hands."""

    def __init__(self, cost: float = 0.0) -> None:
        self.loop = FakeLoop()
        self.clock = 50.0
        self.cost = cost
        self.host = RecordingHost(self._spend)
        self.acceptance = AcceptControl(self.loop, clock=lambda: self.clock)
        self.wheel = Wheel(self.loop)
        self.wheel.start()
        self.given_away: list[asyncio.Protocol] = []
        self.reception = Reception(
            loop=self.loop,
            manager=self.host,
            acceptance=self.acceptance,
            wheel=self.wheel,
            http=self._http,
            origins=OriginPolicy(),
            deflate=False,
            handshake_timeout=HANDSHAKE_TIMEOUT,
        )

    def _spend(self) -> None:
        self.clock += self.cost

    def _http(self) -> asyncio.Protocol:
        self.given_away.append(asyncio.Protocol())
        return self.given_away[-1]

    def connect(self, end: socket.socket | None = None) -> tuple[Gate, RecordingTransport]:
        gate = Gate(self.reception)
        transport = RecordingTransport(end=end)
        transport.set_protocol(gate)
        gate.connection_made(transport)
        return gate, transport

    def fill(self) -> None:
        """Use this turn up, so that whoever comes now waits."""

        def work() -> None:
            self.clock += TURN_BUDGET

        self.acceptance.run(Arrival.UPGRADE, work)

    def see_a_line(self) -> None:
        """Let the accept control learn that many wait in the kernel."""
        self.acceptance.watch(lambda: 100_000)
        self.loop.advance(1.0)
        self.acceptance.observe_lag(0.0)

    @property
    def received(self) -> int:
        return len(self.host.owners)

    @property
    def waiting(self) -> int:
        return self.acceptance.statistics().waiting


@pytest.fixture
def entrance() -> Entrance:
    return Entrance()


def waiting(entrance: Entrance) -> tuple[Gate, RecordingTransport]:
    """A gate whose head is complete and whose turn hasn't come."""
    entrance.fill()
    gate, transport = entrance.connect()
    gate.data_received(UPGRADE)
    assert entrance.waiting == 1
    assert entrance.received == 0
    assert transport.take() == b""
    return gate, transport


def refusal(transport: RecordingTransport) -> tuple[bytes, dict[str, str], dict[str, object]]:
    top, _, body = transport.take().partition(b"\r\n\r\n")
    status, *lines = top.split(b"\r\n")
    headers = dict(line.decode().split(": ", 1) for line in lines)
    assert transport.eof
    return status, headers, json.loads(body)


# --- waiting --------------------------------------------------------------------------------------


def test_an_upgrade_that_comes_alone_is_answered_at_once(entrance: Entrance) -> None:
    gate, transport = entrance.connect()
    gate.data_received(UPGRADE)

    assert transport.take().startswith(b"HTTP/1.1 101 ")
    assert entrance.received == 1


def test_an_upgrade_whose_client_has_left_already_is_not_granted(entrance: Entrance) -> None:
    """As those do that waited in the kernel for longer than they wanted to wait."""
    entrance.see_a_line()
    for has_left in (False, True):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            theirs.sendall(b"nobody reads this before the gate does")
            if has_left:
                theirs.close()
            gate, transport = entrance.connect(ours)
            gate.data_received(UPGRADE)

            assert transport.aborted is has_left
            assert bool(transport.take()) is not has_left
            assert entrance.received == 1


def test_nobody_is_looked_at_while_there_is_no_line(entrance: Entrance) -> None:
    ours, theirs = socket.socketpair()
    with ours:
        theirs.close()
        gate, transport = entrance.connect(ours)
        gate.data_received(UPGRADE)

        assert not transport.aborted


def test_an_upgrade_waits_for_its_turn(entrance: Entrance) -> None:
    _, transport = waiting(entrance)
    entrance.loop.turn()

    assert transport.take().startswith(b"HTTP/1.1 101 ")
    assert entrance.received == 1
    assert transport.is_reading()


def test_what_comes_behind_the_head_meanwhile_reaches_the_link_in_order(
    entrance: Entrance,
) -> None:
    entrance.fill()
    gate, _ = entrance.connect()
    first, second, third = (frame(TEXT, text) for text in (b"one", b"two", b"three"))
    gate.data_received(UPGRADE + first + second[:3])
    gate.data_received(second[3:])
    gate.data_received(third)
    assert entrance.received == 0
    entrance.loop.turn()

    assert entrance.host.owners[0].texts == ["one", "two", "three"]


def test_a_head_in_pieces_waits_like_a_whole_one(entrance: Entrance) -> None:
    entrance.fill()
    gate, transport = entrance.connect()
    for position in range(len(UPGRADE)):
        gate.data_received(UPGRADE[position : position + 1])
    assert entrance.waiting == 1
    entrance.loop.turn()

    assert transport.take().startswith(b"HTTP/1.1 101 ")


def test_other_requests_do_not_wait(entrance: Entrance) -> None:
    entrance.fill()
    gate, transport = entrance.connect()
    gate.data_received(head("GET", "/api/health"))

    assert transport.get_protocol() is entrance.given_away[0]
    assert entrance.waiting == 0


def test_a_herd_is_received_in_order_a_slice_per_turn() -> None:
    entrance = Entrance(cost=0.002)
    transports = []
    for _ in range(1000):
        gate, transport = entrance.connect()
        gate.data_received(UPGRADE)
        transports.append(transport)
    most = entrance.received
    while entrance.waiting:
        before = entrance.received
        entrance.loop.turn()
        most = max(most, entrance.received - before)

    assert most <= TURN_BUDGET / 0.002 + 1
    assert entrance.host.transports == transports


# --- who doesn't stay -----------------------------------------------------------------------------


def test_who_is_lost_while_it_waits_costs_nothing(entrance: Entrance) -> None:
    gate, transport = waiting(entrance)
    transport.lose()
    entrance.loop.turn()

    assert entrance.received == 0
    assert transport.take() == b""
    assert gate.next_deadline() == float("inf")


def test_who_is_going_while_its_turn_comes_is_left_alone(entrance: Entrance) -> None:
    _, transport = waiting(entrance)
    transport.close()
    entrance.loop.turn()

    assert entrance.received == 0
    assert transport.take() == b""


def test_who_has_waited_for_too_long_is_sent_away_with_a_time_to_come_back(
    entrance: Entrance,
) -> None:
    _, transport = waiting(entrance)
    entrance.loop.now += QUEUE_MAX + 0.1
    entrance.loop.turn()

    status, headers, problem = refusal(transport)
    assert status == b"HTTP/1.1 503 Service Unavailable"
    assert int(headers["Retry-After"]) >= 1
    assert problem["status"] == 503
    assert entrance.received == 0


def test_who_has_waited_almost_too_long_is_received(entrance: Entrance) -> None:
    _, transport = waiting(entrance)
    entrance.loop.now += QUEUE_MAX - 0.1
    entrance.loop.turn()

    assert transport.take().startswith(b"HTTP/1.1 101 ")


def test_the_heads_deadline_holds_while_it_waits(entrance: Entrance) -> None:
    """However it comes that its turn doesn't."""
    gate, transport = waiting(entrance)
    deadline = gate.next_deadline()
    assert deadline == entrance.loop.now + HANDSHAKE_TIMEOUT
    gate.tick(deadline)
    status, _, _ = refusal(transport)
    assert status == b"HTTP/1.1 503 Service Unavailable"

    # Its turn comes after all.
    entrance.loop.turn()
    assert entrance.received == 0
    assert transport.take() == b""
    # And then the client doesn't close its end.
    gate.tick(gate.next_deadline())
    assert transport.aborted


def test_a_client_that_sends_and_sends_is_not_read_any_more_until_its_turn(
    entrance: Entrance,
) -> None:
    gate, transport = waiting(entrance)
    messages = [frame(TEXT, b"x" * 30_000) for _ in range(3)]
    gate.data_received(messages[0])
    assert transport.is_reading()
    for message in messages[1:]:
        gate.data_received(message)
    assert len(gate._head) > HELD_MAX_BYTES
    assert not transport.is_reading()
    entrance.loop.turn()

    assert transport.is_reading()
    assert [len(text) for text in entrance.host.owners[0].texts] == [30_000] * 3


def test_who_is_sent_away_is_read_again_so_that_its_end_is_seen(entrance: Entrance) -> None:
    gate, transport = waiting(entrance)
    gate.data_received(bytes(HELD_MAX_BYTES))
    assert not transport.is_reading()
    gate.tick(gate.next_deadline())

    assert transport.is_reading()
    assert transport.eof


def test_who_is_refused_for_another_reason_is_told_at_its_turn(entrance: Entrance) -> None:
    entrance.host.refused = Refused(503, "the server is full", "full", (("Retry-After", "5"),))
    _, transport = waiting(entrance)
    entrance.loop.turn()

    status, headers, _ = refusal(transport)
    assert status == b"HTTP/1.1 503 Service Unavailable"
    assert headers["Retry-After"] == "5"


def test_a_request_that_cannot_be_read_is_refused_at_its_turn(entrance: Entrance) -> None:
    entrance.fill()
    gate, transport = entrance.connect()
    gate.data_received(b"GET /connection/websocket HTTP/1.1\r\n\x00: bad\r\n\r\n")
    entrance.loop.turn()

    assert refusal(transport)[0] == b"HTTP/1.1 400 Bad Request"


def test_an_error_of_ours_costs_that_connection_only(
    entrance: Entrance, caplog: pytest.LogCaptureFixture
) -> None:
    entrance.host.error = ValueError("broken")
    _, transport = waiting(entrance)
    other, healthy = entrance.connect()
    with caplog.at_level(logging.ERROR):
        entrance.loop.turn()
        assert transport.aborted
        entrance.host.error = None
        other.data_received(UPGRADE)
        entrance.loop.turn()

    assert healthy.take().startswith(b"HTTP/1.1 101 ")
    assert [record.message for record in caplog.records] == ["an arrival could not be handled"]


# --- a stalled loop -------------------------------------------------------------------------------


def test_a_head_is_not_late_because_we_stood_still(entrance: Entrance) -> None:
    gate, transport = entrance.connect()
    gate.data_received(UPGRADE[:-2])
    entrance.loop.stall(HANDSHAKE_TIMEOUT * 3)
    entrance.loop.turn()
    assert transport.take() == b""

    gate.data_received(UPGRADE[-2:])
    assert transport.take().startswith(b"HTTP/1.1 101 ")


def test_a_head_that_stays_out_is_late_after_a_stall_too(entrance: Entrance) -> None:
    _, transport = entrance.connect()
    entrance.loop.stall(HANDSHAKE_TIMEOUT * 3)
    entrance.loop.turn()
    entrance.loop.advance(HANDSHAKE_TIMEOUT + 2 * TICK)

    assert refusal(transport)[0] == b"HTTP/1.1 408 Request Timeout"


def test_who_waits_is_not_sent_away_because_we_stood_still(entrance: Entrance) -> None:
    _, transport = waiting(entrance)
    entrance.loop.stall(QUEUE_MAX * 3)
    # The wheel's timer comes before what waits for the next turn, as in uvloop.
    entrance.wheel._turn()
    entrance.loop.turn()

    assert transport.take().startswith(b"HTTP/1.1 101 ")


def test_a_head_of_the_largest_size_may_wait_too(entrance: Entrance) -> None:
    entrance.fill()
    gate, transport = entrance.connect()
    filler = HEAD_MAX_BYTES - len(UPGRADE) - len("X-Filler: \r\n")
    gate.data_received(
        UPGRADE.replace(b"\r\n\r\n", b"\r\nX-Filler: " + b"x" * min(filler, 8000) + b"\r\n\r\n")
    )
    entrance.loop.turn()

    assert transport.take().startswith(b"HTTP/1.1 101 ")
