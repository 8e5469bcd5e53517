"""The listening protocol: upgrades become links, everything else is aiohttp's.

Every TCP connection begins here. When the head of its first request is complete, the socket either
becomes a `Link` at once, without a task or an aiohttp object, or is handed to aiohttp as it came.
A later request on a kept-alive connection may be an upgrade too (some proxies do that); by then the
connection is aiohttp's, and `upgrade_route` takes it back.
"""

import asyncio
import ipaddress
import logging
import select
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from http import HTTPStatus
from time import perf_counter
from typing import Any, Final, Protocol

import orjson
from aiohttp import web
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http import HttpRequestParser
from aiohttp.http_exceptions import BadHttpMessage
from multidict import CIMultiDict, MultiMapping

from gateway.acceptance import QUEUE_MAX, AcceptControl, Arrival
from gateway.link import Link
from gateway.protocol.handshake import Accepted, OriginPolicy, Refused, negotiate
from gateway.wheel import Wheel
from metrics import instruments

logger = logging.getLogger(__name__)

WEBSOCKET_PATH: Final = "/connection/websocket"
HEAD_MAX_BYTES: Final = 16 * 1024  # what Node and Tomcat allow; cookies and tokens fit
# What may be held of an upgrade that waits for its turn: its head, and a first message behind it.
HELD_MAX_BYTES: Final = 4 * HEAD_MAX_BYTES
_ACCEPTED: Final = instruments.HANDSHAKES.labels("accepted")
_ABANDONED: Final = instruments.HANDSHAKES.labels("abandoned")
_HANGUP: Final = getattr(select, "POLLRDHUP", 0)  # Linux has it
_REQUEST_PREFIX: Final = b"GET " + WEBSOCKET_PATH.encode()

Networks = Sequence[ipaddress.IPv4Network | ipaddress.IPv6Network]


class Host(Protocol):
    """Who takes in whom the gate lets through: `connections.ConnectionManager`."""

    def refusal(self, address: str) -> Refused | None:
        """Why there is no room for one more from this address."""

    def accept(self, transport: asyncio.Transport, accepted: Accepted, address: str) -> Link:
        """Answer a granted upgrade and give the transport a link."""


@dataclass(frozen=True, slots=True)
class Reception:
    """What the gate needs to receive a connection."""

    loop: asyncio.AbstractEventLoop
    manager: Host
    acceptance: AcceptControl
    wheel: Wheel
    http: Callable[[], asyncio.Protocol]  # makes aiohttp's protocol for one connection
    origins: OriginPolicy
    deflate: bool
    handshake_timeout: float
    trusted_proxies: Networks = ()

    def admit(
        self, method: str, query: str, headers: MultiMapping[str], peer: str
    ) -> tuple[Accepted | Refused, str]:
        """Decide on an upgrade and say on whose behalf it comes (the client's address)."""
        headers = _merged(headers)
        address = client_address(peer, headers.get("X-Forwarded-For"), self.trusted_proxies)
        decision: Accepted | Refused | None = self.manager.refusal(address)
        if decision is None:
            decision = negotiate(method, query, headers, self.origins, self.deflate)
        if isinstance(decision, Refused):
            instruments.HANDSHAKES.labels(decision.outcome).inc()
        else:
            _ACCEPTED.inc()
        return decision, address


def client_address(peer: str, forwarded_for: str | None, trusted: Networks) -> str:
    """The client's address: the peer's, or what trusted proxies say of whom they speak for.

    Read from the right: the nearest proxy's word is the one we can trust.
    """
    if not trusted or not forwarded_for:
        return peer
    address = peer
    for hop in reversed(forwarded_for.split(",")):
        if not _is_in(address, trusted):
            break
        address = _without_port(hop.strip())
    return address


def _without_port(address: str) -> str:
    """Some proxies write `192.0.2.1:4711` and `[2001:db8::1]:4711`."""
    if address.startswith("["):
        return address[1:].partition("]")[0]
    host, _, port = address.partition(":")
    return address if ":" in port else host


def _is_in(address: str, networks: Networks) -> bool:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is not None:
        parsed = parsed.ipv4_mapped  # how IPv4 looks to a socket that listens to both
    return any(parsed in network for network in networks)


def _merged(headers: MultiMapping[str]) -> MultiMapping[str]:
    """Headers with those that are repeated as one list (RFC 9110, 5.3).

    A proxy may add its X-Forwarded-For as a line behind the client's own; to look at the first
    alone would be to believe the client.
    """
    if len(set(map(str.lower, headers))) == len(headers):
        return headers
    merged: CIMultiDict[str] = CIMultiDict()
    for name, value in headers.items():
        merged[name] = f"{merged[name]},{value}" if name in merged else value
    return merged


class _State(Enum):
    READING = "reading"  # the head isn't complete
    WAITING = "waiting"  # it is, and the accept control has the turn
    REFUSED = "refused"


class Gate(asyncio.Protocol):
    """A TCP connection until its first request's head is complete, and has had its turn."""

    __slots__ = ("_asked_at", "_due", "_head", "_reception", "_state", "_transport", "wheel_tick")

    def __init__(self, reception: Reception) -> None:
        self._reception = reception
        self._transport: asyncio.Transport | None = None  # None once it is another's, or lost
        self._head = bytearray()
        self._state = _State.READING
        self._asked_at = 0.0  # when the head was complete
        self._due = reception.loop.time() + reception.handshake_timeout
        self.wheel_tick = 0

    # --- the transport's --------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        self._transport = transport  # type: ignore[assignment]
        self._reception.wheel.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self._transport = None

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        if self._state is not _State.READING:
            if self._state is _State.WAITING:
                self._hold(data)
            return  # what comes behind a refusal is not looked at
        searched = 0
        if self._head:
            searched = max(0, len(self._head) - 3)
            self._head += data
            data = bytes(self._head)
        end = data.find(b"\r\n\r\n", searched)
        if end > HEAD_MAX_BYTES or (end < 0 and len(data) > HEAD_MAX_BYTES):
            reason = f"the request's head has more than {HEAD_MAX_BYTES} bytes"
            self._refuse(Refused(431, reason, "bad_request"))
        elif end >= 0:
            self._open(data)
        elif not self._head:
            self._head += data

    # --- the wheel's: a head that doesn't come to its end -----------------------------------------

    def next_deadline(self) -> float:
        """See `wheel.Timed`."""
        return self._due if self._transport is not None else float("inf")

    def tick(self, now: float) -> None:
        """See `wheel.Timed`."""
        if self._state is _State.READING:
            self._refuse(Refused(408, "the request's head took too long", "timeout"))
        elif self._state is _State.WAITING:
            self._send_away(now)
        elif self._transport is not None:
            self._transport.abort()

    def excuse(self, seconds: float) -> None:
        """See `wheel.Timed`."""
        self._due += seconds
        self._asked_at += seconds

    # --- the two ways on --------------------------------------------------------------------------

    def _open(self, data: bytes) -> None:
        """Take a complete head, with what came behind it."""
        if data.startswith(_REQUEST_PREFIX) and data[len(_REQUEST_PREFIX) :][:1] in b" ?":
            self._head = bytearray(data)
            self._state = _State.WAITING
            self._asked_at = self._reception.loop.time()
            self._reception.acceptance.run(Arrival.UPGRADE, self._take_turn)
        else:
            self._head.clear()
            transport = self._give_away()
            handler = self._reception.http()
            transport.set_protocol(handler)
            handler.connection_made(transport)
            handler.data_received(data)

    def _hold(self, data: bytes) -> None:
        """Keep what comes behind the head of an upgrade that waits for its turn.

        Reading goes on, so that a client that gives up is noticed, until too much is there.
        """
        self._head += data
        if len(self._head) > HELD_MAX_BYTES and self._transport is not None:
            self._transport.pause_reading()

    def _take_turn(self) -> None:
        """The turn of an upgrade has come."""
        transport = self._transport
        if self._state is not _State.WAITING or transport is None or transport.is_closing():
            return  # lost, or sent away
        if self._reception.acceptance.is_behind and _has_hung_up(transport):
            _ABANDONED.inc()
            transport.abort()
            return
        now = self._reception.loop.time()
        if now - self._asked_at > QUEUE_MAX:
            self._send_away(now)
            return
        data = bytes(self._head)
        if len(data) > HELD_MAX_BYTES:
            transport.resume_reading()
        try:
            self._take_upgrade(data)
        except BaseException:  # in a later turn the transport wouldn't learn of it
            transport.abort()
            raise

    def _send_away(self, now: float) -> None:
        """More clients come than can be received, and this one has waited for too long."""
        busy = (("Retry-After", str(self._reception.acceptance.send_away(now))),)
        self._refuse(Refused(503, "more clients come than can be received", "busy", busy))

    def _give_away(self) -> asyncio.Transport:
        transport, self._transport = self._transport, None
        assert transport is not None, "a lost connection gives no data"
        return transport

    def _take_upgrade(self, data: bytes) -> None:
        reception = self._reception
        parser = HttpRequestParser(BaseProtocol(reception.loop), reception.loop, 2**16)
        try:
            messages, _, tail = parser.feed_data(data)
        except BadHttpMessage:
            reason = "the request can't be read as HTTP/1.1"
            self._refuse(Refused(400, reason, "bad_request"))
            return
        message = messages[0][0]
        assert self._transport is not None, "a lost connection gives no data"
        peer = self._transport.get_extra_info("peername")
        decision, address = reception.admit(
            message.method,
            message.url.raw_query_string,
            message.headers,
            peer[0] if peer else "",
        )
        if isinstance(decision, Refused):
            self._answer(decision)
            return
        link = reception.manager.accept(self._give_away(), decision, address)
        if tail:
            link.data_received(bytes(tail))

    def _refuse(self, refused: Refused) -> None:
        instruments.HANDSHAKES.labels(refused.outcome).inc()
        self._answer(refused)

    def _answer(self, refused: Refused) -> None:
        """Answer with a refusal, and drop what still comes until the client closes its end.

        To close at once would be to meet it with a reset, and the client might not see the answer.
        """
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        if self._state is _State.WAITING and len(self._head) > HELD_MAX_BYTES:
            transport.resume_reading()  # or the client's end would never be seen
        self._state = _State.REFUSED
        self._head.clear()
        transport.write(_refusal(refused))
        transport.write_eof()
        self._due = self._reception.loop.time() + self._reception.handshake_timeout


def _has_hung_up(transport: asyncio.Transport) -> bool:
    """Whether the client has closed its end although it was never answered. Takes 2 µs.

    Under load arrivals wait, some of them in the kernel, where nobody sees for how long. Once that
    is longer than clients wait, whoever is received has just left, and while that is done the next
    ones leave.
    """
    if not _HANGUP:
        return False
    end = transport.get_extra_info("socket")
    if end is None or end.fileno() < 0:
        return False
    poll = select.poll()
    poll.register(end.fileno(), _HANGUP)
    return bool(poll.poll(0))


def problem(refused: Refused) -> bytes:
    """The refusal as a problem document (RFC 9457)."""
    return orjson.dumps(
        {
            "type": "about:blank",
            "title": HTTPStatus(refused.status).phrase,
            "status": refused.status,
            "detail": refused.reason,
        }
    )


def _refusal(refused: Refused) -> bytes:
    """The refusal as an HTTP response."""
    body = problem(refused)
    names = {name.lower() for name, _ in refused.headers}
    headers = [
        *refused.headers,
        ("Content-Type", "application/problem+json"),
        ("Content-Length", str(len(body))),
    ]
    if "connection" not in names:
        headers.append(("Connection", "close"))
    lines = [f"HTTP/1.1 {refused.status} {HTTPStatus(refused.status).phrase}"]
    lines += [f"{name}: {value}" for name, value in headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


def upgrade_route(reception: Reception) -> Callable[[web.Request], Any]:
    """The second door: an aiohttp handler for upgrades on connections that are aiohttp's already.

    aiohttp writes nothing but the head of the 101 itself; then the transport gets a new protocol
    and aiohttp is told that its connection is gone. A `WebSocketResponse` would instead send a
    close frame when the handler returns.
    """

    async def handler(request: web.Request) -> web.StreamResponse:
        await _turn(reception)
        began = perf_counter()
        try:
            return receive(request)
        finally:
            reception.acceptance.spent(perf_counter() - began, Arrival.UPGRADE)

    def receive(request: web.Request) -> web.StreamResponse:
        transport = request.transport
        protocol = request.protocol
        if transport is None:
            _ABANDONED.inc()  # while it waited for its turn
            return web.StreamResponse()  # to nobody
        peer = transport.get_extra_info("peername")
        decision, address = reception.admit(
            request.method,
            request.rel_url.raw_query_string,
            request.headers,
            peer[0] if peer else "",
        )
        if isinstance(decision, Refused):
            return web.Response(
                status=decision.status,
                body=problem(decision),
                headers=dict(decision.headers),
                content_type="application/problem+json",
            )
        tail = protocol._message_tail
        protocol._message_tail = b""
        protocol.transport = None
        protocol.connection_lost(None)
        link = reception.manager.accept(transport, decision, address)
        if tail:
            link.data_received(tail)
        return web.StreamResponse(status=101)

    return handler


async def _turn(reception: Reception) -> None:
    """Wait until the accept control lets one more upgrade in."""
    turn = reception.loop.create_future()

    def take() -> None:
        if not turn.done():  # cancelled, when the client has gone
            turn.set_result(None)

    reception.acceptance.run(Arrival.UPGRADE, take)
    await turn
