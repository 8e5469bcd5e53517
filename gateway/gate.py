"""The listening protocol: upgrades become links, everything else is aiohttp's.

Every TCP connection begins here. When the head of its first request is complete, the socket either
becomes a `Link` at once, without a task or an aiohttp object, or is handed to aiohttp as it came.
A later request on a kept-alive connection may be an upgrade too (some proxies do that); by then the
connection is aiohttp's, and `upgrade_route` takes it back.
"""

import asyncio
import ipaddress
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

import orjson
from aiohttp import web
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http import HttpRequestParser
from aiohttp.http_exceptions import BadHttpMessage

from gateway.connections import ConnectionManager
from gateway.protocol.handshake import Accepted, OriginPolicy, Refused, negotiate
from gateway.wheel import Wheel
from metrics import instruments

logger = logging.getLogger(__name__)

WEBSOCKET_PATH: Final = "/connection/websocket"
HEAD_MAX_BYTES: Final = 16 * 1024  # what Node and Tomcat allow; cookies and tokens fit
_REQUEST_PREFIX: Final = b"GET " + WEBSOCKET_PATH.encode()

Networks = Sequence[ipaddress.IPv4Network | ipaddress.IPv6Network]


@dataclass(frozen=True, slots=True)
class Reception:
    """What the gate needs to receive a connection."""

    loop: asyncio.AbstractEventLoop
    manager: ConnectionManager
    wheel: Wheel
    http: Callable[[], asyncio.Protocol]  # makes aiohttp's protocol for one connection
    origins: OriginPolicy
    deflate: bool
    handshake_timeout: float
    trusted_proxies: Networks = ()

    def admit(
        self, method: str, query: str, headers: Mapping[str, str], peer: str
    ) -> tuple[Accepted | Refused, str]:
        """Decide on an upgrade and say on whose behalf it comes (the client's address)."""
        address = client_address(peer, headers.get("X-Forwarded-For"), self.trusted_proxies)
        decision: Accepted | Refused | None = self.manager.refusal(address)
        if decision is None:
            decision = negotiate(method, query, headers, self.origins, self.deflate)
        outcome = decision.outcome if isinstance(decision, Refused) else "accepted"
        instruments.HANDSHAKES.labels(outcome).inc()
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
        address = hop.strip()
    return address


def _is_in(address: str, networks: Networks) -> bool:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    return any(parsed in network for network in networks)


class Gate(asyncio.Protocol):
    """A TCP connection until its first request's head is complete."""

    __slots__ = ("_due", "_head", "_reception", "_transport", "wheel_tick")

    def __init__(self, reception: Reception) -> None:
        self._reception = reception
        self._transport: asyncio.Transport | None = None
        self._head = bytearray()
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
        if self._head or b"\r\n\r\n" not in data:
            searched = max(0, len(self._head) - 3)
            self._head += data
            if self._head.find(b"\r\n\r\n", searched) < 0:
                self._wait_for_more()
                return
            data = bytes(self._head)
            self._head.clear()
        transport, self._transport = self._transport, None
        if transport is None:
            return  # refused already; what still comes is not looked at
        if data.startswith(_REQUEST_PREFIX) and data[len(_REQUEST_PREFIX) :][:1] in b" ?":
            self._take_upgrade(transport, data)
        else:
            self._hand_over(transport, data)

    # --- the wheel's: a head that doesn't come to its end -----------------------------------------

    def next_deadline(self) -> float:
        """See `wheel.Timed`."""
        return self._due if self._transport is not None else float("inf")

    def tick(self, now: float) -> None:
        """See `wheel.Timed`."""
        self._refuse(Refused(408, "the request's head took too long", "timeout"))

    def _wait_for_more(self) -> None:
        if len(self._head) > HEAD_MAX_BYTES:
            reason = f"the request's head has more than {HEAD_MAX_BYTES} bytes"
            self._refuse(Refused(431, reason, "bad_request"))

    # --- the two ways on --------------------------------------------------------------------------

    def _take_upgrade(self, transport: asyncio.Transport, data: bytes) -> None:
        reception = self._reception
        parser = HttpRequestParser(BaseProtocol(reception.loop), reception.loop, 2**16)
        try:
            messages, _, tail = parser.feed_data(data)
        except BadHttpMessage:
            self._transport = transport
            self._refuse(Refused(400, "the request can't be read as HTTP/1.1", "bad_request"))
            return
        message = messages[0][0]
        peer = transport.get_extra_info("peername")
        decision, address = reception.admit(
            message.method,
            message.url.raw_query_string,
            message.headers,
            peer[0] if peer else "",
        )
        if isinstance(decision, Refused):
            _write_refusal(transport, decision)
            return
        link = reception.manager.accept(transport, decision, address)
        if tail:
            link.data_received(bytes(tail))

    def _hand_over(self, transport: asyncio.Transport, data: bytes) -> None:
        handler = self._reception.http()
        transport.set_protocol(handler)
        handler.connection_made(transport)
        handler.data_received(data)

    def _refuse(self, refused: Refused) -> None:
        transport, self._transport = self._transport, None
        if transport is not None:
            instruments.HANDSHAKES.labels(refused.outcome).inc()
            _write_refusal(transport, refused)


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


def _write_refusal(transport: asyncio.Transport, refused: Refused) -> None:
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
    transport.write("\r\n".join([*lines, "", ""]).encode() + body)
    transport.close()


def upgrade_route(reception: Reception) -> Callable[[web.Request], Any]:
    """The second door: an aiohttp handler for upgrades on connections that are aiohttp's already.

    aiohttp writes nothing but the head of the 101 itself; then the transport gets a new protocol
    and aiohttp is told that its connection is gone. A `WebSocketResponse` would instead send a
    close frame when the handler returns.
    """

    async def handler(request: web.Request) -> web.StreamResponse:
        transport = request.transport
        protocol = request.protocol
        if transport is None:
            raise ConnectionResetError("the connection is gone")
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
