"""How to greet a server and publish to it: the gateway's way and the baseline's."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import jwt

from gateway.protocol import session_frames
from scripts.benchmarks import wire

_TOKEN_LIFETIME = 3600
# So many attempts that sessions are kept for as long as the server keeps any.
_LONG_BACKOFF = session_frames.BackoffDeclaration(attempts=100)
_SESSION = session_frames.PREFIX.encode()
_RESUMED = b'{"session":{"resumed":'


class Refused(Exception):
    """The server answered a greeting with something else than success."""

    def __init__(self, answer: bytes) -> None:
        super().__init__(f"refused: {answer[:300]!r}")


@dataclass(frozen=True, slots=True)
class Step:
    """Something to send, and how to know from all that came back that it was accepted.

    `accepted` raises Refused, or an UnexpectedFrame, when it never will be.
    """

    sent: bytes
    accepted: Callable[[bytes], bool]


class Dialect(Protocol):
    """What the load process must know of a server. Nothing here waits."""

    def subscriber(self, number: int, channel: str) -> Sequence[Step]:
        """The steps that open the subscriber of this number."""

    def publisher(self, number: int, channel: str, *, by_send: bool) -> Sequence[Step]:
        """The steps that open a publisher. Only the baseline knows `by_send`."""

    def publish(self, channel: str, items: Sequence[bytes]) -> bytes:
        """The bytes that publish some items at once."""


class GatewayDialect:
    """WebSocket, JSON commands, a signed token per connection."""

    def __init__(self, port: int, secret: str) -> None:
        self.upgrade = Step(wire.upgrade_request(port), _is_upgraded)
        self._secret = secret

    def subscriber(self, number: int, channel: str) -> Sequence[Step]:
        """Upgrade, then connect and subscribe in the first frame, as SDKs do."""
        commands = (self._connect(number), wire.subscribe_command(channel))
        return self.upgrade, Step(wire.joined(commands), _answers(b'"subscribe":'))

    def publisher(self, number: int, channel: str, *, by_send: bool) -> Sequence[Step]:
        """Upgrade and connect; `channel` is named by each publish."""
        if by_send:
            raise AssertionError("only the baseline can be told to use bare system calls")
        return self.upgrade, Step(wire.joined([self._connect(number)]), _answers(b'"connect":'))

    def publish(self, channel: str, items: Sequence[bytes]) -> bytes:
        """One frame with a publish command for each item."""
        return wire.joined(
            wire.publish_command(number, channel, item) for number, item in enumerate(items, 1)
        )

    def _connect(self, number: int) -> bytes:
        now = int(time.time())
        claims = {"sub": f"user-{number}", "iat": now, "exp": now + _TOKEN_LIFETIME}
        return wire.connect_command(jwt.encode(claims, self._secret, algorithm="HS256"))


class SessionTicket:
    """What a client must know to come back for its session."""

    __slots__ = ("attempt", "received", "token")

    def __init__(self) -> None:
        self.token = ""
        self.received = 0  # payload frames
        self.attempt = 0


class SessionDialect:
    """The gateway's own clients: a session below the same commands."""

    def __init__(self, gateway: GatewayDialect) -> None:
        self._gateway = gateway
        self._open = wire.client_frame(session_frames.open_frame(_LONG_BACKOFF))

    def open(self, number: int, channel: str, ticket: SessionTicket) -> Sequence[Step]:
        """Upgrade, then open, connect and subscribe at once, as our clients do."""
        upgrade, greeting = self._gateway.subscriber(number, channel)

        def accepted(received: bytes) -> bool:
            if not greeting.accepted(received):
                return False
            payloads, _ = wire.split_frames(received)
            for payload in payloads:
                if payload.startswith(_SESSION):
                    opened = session_frames.decode_server_frame(payload).opened
                    ticket.token = opened.token if opened is not None else ticket.token
                else:
                    ticket.received += 1
            if not ticket.token:
                raise Refused(received)
            return True

        return upgrade, Step(self._open + greeting.sent, accepted)

    @staticmethod
    def acknowledge(ticket: SessionTicket) -> bytes:
        """The bytes that say how much was received."""
        return wire.client_frame(session_frames.ack(ticket.received))

    def resume(self, ticket: SessionTicket) -> Sequence[Step]:
        """Upgrade, then go on where the session was."""
        ticket.attempt += 1
        frame = session_frames.resume_frame(ticket.token, ticket.received, ticket.attempt)

        def accepted(received: bytes) -> bool:
            payloads, rest = wire.split_frames(received)
            if payloads and not payloads[0].startswith(_RESUMED):
                raise Refused(received)
            return bool(payloads) and not rest

        return self._gateway.upgrade, Step(wire.client_frame(frame), accepted)


class BareDialect:
    """One line, then bytes as they are (see bare.py)."""

    def subscriber(self, number: int, channel: str) -> Sequence[Step]:
        """One line."""
        return (Step(f"subscribe {channel}\n".encode(), _is_ok),)

    @staticmethod
    def pinged(interval: float) -> Sequence[Step]:
        """One line."""
        return (Step(f"ping {interval}\n".encode(), _is_ok),)

    def publisher(self, number: int, channel: str, *, by_send: bool) -> Sequence[Step]:
        """One line."""
        role = "send" if by_send else "publish"
        return (Step(f"{role} {channel}\n".encode(), _is_ok),)

    def publish(self, channel: str, items: Sequence[bytes]) -> bytes:
        """The frames that subscribers are to receive, ready made."""
        return b"".join(wire.server_frame(wire.publication_push(channel, item)) for item in items)


def _is_upgraded(received: bytes) -> bool:
    if not b"HTTP/1.1 101 ".startswith(received[:13]):
        raise Refused(received)
    return received.endswith(wire.HEAD_END)


def _answers(marker: bytes) -> Callable[[bytes], bool]:
    def accepted(received: bytes) -> bool:
        payloads, rest = wire.split_frames(received)
        if any(b'"error":' in payload for payload in payloads):
            raise Refused(received)
        # A frame that has only begun to arrive belongs to the answer too.
        return not rest and any(marker in payload for payload in payloads)

    return accepted


def _is_ok(received: bytes) -> bool:
    return received == b"ok\n"
