"""The opening handshake of a WebSocket (RFC 6455, 4.2), decided from the request's head alone."""

import base64
import binascii
import hashlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final
from urllib.parse import parse_qsl, urlsplit

GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, 1.3
JSON_SUBPROTOCOL: Final = "centrifuge-json"
PROTOBUF_SUBPROTOCOL: Final = "centrifuge-protobuf"

_DEFLATE_REPLY: Final = "permessage-deflate; server_no_context_takeover; client_no_context_takeover"
# Headers of whose values clients have a handful: taken apart once, which saves 6 µs a handshake.
TOKENS_REMEMBERED: Final = 256
# Offered parameters that our answer satisfies (RFC 7692, 7.1). A smaller server window is not among
# them: zlib's raw streams are made with the full one.
_DEFLATE_PARAMETERS: Final = frozenset(
    {"server_no_context_takeover", "client_no_context_takeover", "client_max_window_bits"}
)


@dataclass(frozen=True, slots=True)
class Accepted:
    """The upgrade is granted: send `response`, then speak frames."""

    response: bytes
    deflate: bool = False
    native_ping: bool = False
    protobuf: bool = False


@dataclass(frozen=True, slots=True)
class Refused:
    """The upgrade is refused: answer with this HTTP status. `outcome` is the metric's label."""

    status: int
    reason: str
    outcome: str
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class OriginPolicy:
    """Which web pages may open a socket here.

    Without a list, only pages of the same host; `*` admits any. A request without `Origin` doesn't
    come from a web page and is admitted: the check protects browsers' users (RFC 6455, 10.2).
    """

    allowed: frozenset[str] = frozenset()

    def admits(self, origin: str | None, host: str) -> bool:
        """Whether a page of `origin` may connect to a server addressed as `host`."""
        if origin is None:
            return True
        if self.allowed:
            return "*" in self.allowed or origin.lower().rstrip("/") in self.allowed
        own = urlsplit(origin).netloc.lower()
        return own != "" and own == host.lower()


def accept_key(key: str) -> bytes:
    """The value of `Sec-WebSocket-Accept` (RFC 6455, 4.2.2)."""
    return base64.b64encode(hashlib.sha1(key.encode() + GUID, usedforsecurity=False).digest())


def negotiate(
    method: str,
    query: str,
    headers: Mapping[str, str],
    origins: OriginPolicy,
    deflate_enabled: bool,
) -> Accepted | Refused:
    """Decide on an upgrade request; `headers` looks names up without regard to case."""
    refusal = _check_upgrade(method, headers) or _check_origin(headers, origins)
    if refusal is not None:
        return refusal
    key = headers["Sec-WebSocket-Key"].strip()
    lines = [
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + accept_key(key)
    ]
    parameters = dict(parse_qsl(query)) if query else {}
    offered = _tokens(headers.get("Sec-WebSocket-Protocol", ""), lower=False)
    # Of a client's several subprotocols the one that is spoken here.
    subprotocol = next(filter(offered.__contains__, (JSON_SUBPROTOCOL, PROTOBUF_SUBPROTOCOL)), None)
    if subprotocol is not None:
        lines.append(b"Sec-WebSocket-Protocol: " + subprotocol.encode())
    protobuf = subprotocol == PROTOBUF_SUBPROTOCOL or "protobuf" in (
        parameters.get("cf_protocol"),
        parameters.get("format"),
    )
    deflate = deflate_enabled and accepts_deflate(headers.get("Sec-WebSocket-Extensions", ""))
    if deflate:
        lines.append(b"Sec-WebSocket-Extensions: " + _DEFLATE_REPLY.encode())
    return Accepted(
        response=b"\r\n".join([*lines, b"\r\n"]),
        deflate=deflate,
        native_ping=parameters.get("cf_ws_frame_ping_pong") == "true",
        protobuf=protobuf,
    )


def _check_upgrade(method: str, headers: Mapping[str, str]) -> Refused | None:
    if method != "GET":
        return Refused(405, "a WebSocket is opened with GET", "bad_request", (("Allow", "GET"),))
    if "websocket" not in _tokens(headers.get("Upgrade", "")) or "upgrade" not in _tokens(
        headers.get("Connection", "")
    ):
        return Refused(
            426,
            "this address speaks WebSocket: send 'Connection: Upgrade' and 'Upgrade: websocket'",
            "not_websocket",
            (("Upgrade", "websocket"), ("Connection", "Upgrade")),
        )
    if headers.get("Sec-WebSocket-Version", "").strip() != "13":
        return Refused(
            426,
            "only version 13 of the WebSocket protocol is spoken here",
            "bad_version",
            (("Sec-WebSocket-Version", "13"),),
        )
    try:
        nonce = base64.b64decode(headers.get("Sec-WebSocket-Key", "").strip(), validate=True)
    except (binascii.Error, ValueError):
        nonce = b""
    if len(nonce) != 16:
        return Refused(400, "Sec-WebSocket-Key must be 16 bytes in base64", "bad_request")
    return None


def _check_origin(headers: Mapping[str, str], origins: OriginPolicy) -> Refused | None:
    try:
        admitted = origins.admits(headers.get("Origin"), headers.get("Host", ""))
    except ValueError:  # urlsplit's answer to a malformed address
        admitted = False
    if admitted:
        return None
    return Refused(
        403, "this origin is not allowed: add it to the setting allowed_origins", "bad_origin"
    )


@lru_cache(TOKENS_REMEMBERED)
def _tokens(header: str, lower: bool = True) -> Collection[str]:
    return frozenset(part.strip().lower() if lower else part.strip() for part in header.split(","))


def accepts_deflate(extensions: str) -> bool:
    """Whether any offer in `Sec-WebSocket-Extensions` is met by our permessage-deflate."""
    return any(
        name == "permessage-deflate" and parameters <= _DEFLATE_PARAMETERS
        for name, parameters in _offers(extensions)
    )


def _offers(extensions: str) -> Iterator[tuple[str, frozenset[str]]]:
    for offer in extensions.split(","):
        name, *parameters = (part.strip().lower() for part in offer.split(";"))
        names = frozenset(parameter.partition("=")[0].strip() for parameter in parameters)
        yield name, names
