"""Error, unsubscribe and disconnect codes as data (PROTOCOL.md A.6 to A.8).

`docs/codes.md` lists the same tables; a test holds the two together.
"""

from dataclasses import dataclass
from typing import Final

import orjson

CLOSE_REASON_MAX_BYTES: Final = 123  # RFC 6455, 5.5: a control frame carries at most 125 bytes


@dataclass(frozen=True, slots=True)
class ErrorCode:
    """An error reply. A temporary one asks the client to try again."""

    code: int
    message: str
    when: str
    temporary: bool = False


@dataclass(frozen=True, slots=True)
class Unsubscribe:
    """Why the server ended a subscription; from 2500 on the SDK subscribes again."""

    code: int
    reason: str
    when: str


@dataclass(frozen=True, slots=True)
class Disconnect:
    """Why the server closes the connection, in the WebSocket close frame's code and reason."""

    code: int
    reason: str
    when: str

    @property
    def reconnect(self) -> bool:
        """Whether the client should come back by itself (by the code's range, A.8)."""
        return self.code < 3500 or 4000 <= self.code < 4500 or self.code >= 5000


INTERNAL = ErrorCode(100, "internal server error", "the server or its database failed", True)
UNAUTHORIZED = ErrorCode(101, "unauthorized", "the connection has no identity for this")
UNKNOWN_CHANNEL = ErrorCode(102, "unknown channel", "the channel's namespace does not exist")
PERMISSION_DENIED = ErrorCode(103, "permission denied", "the namespace or the token forbids it")
METHOD_NOT_FOUND = ErrorCode(104, "method not found", "no RPC of that name is registered")
ALREADY_SUBSCRIBED = ErrorCode(105, "already subscribed", "subscribed to the channel already")
LIMIT_EXCEEDED = ErrorCode(106, "limit exceeded", "more channels than a client may have")
BAD_REQUEST = ErrorCode(107, "bad request", "a name, size or value is not acceptable")
NOT_AVAILABLE = ErrorCode(108, "not available", "the feature is off for this channel or server")
TOKEN_EXPIRED = ErrorCode(109, "token expired", "fetch a new token and try again")
EXPIRED = ErrorCode(110, "expired", "the connection's own lifetime is over")
TOO_MANY_REQUESTS = ErrorCode(111, "too many requests", "too much at once; try later", True)
UNRECOVERABLE = ErrorCode(112, "unrecoverable position", "history no longer reaches that position")
CONCURRENT_PAGINATION = ErrorCode(
    113, "concurrent pagination", "another page of the same channel is being read", True
)

ERRORS: Final = (
    INTERNAL,
    UNAUTHORIZED,
    UNKNOWN_CHANNEL,
    PERMISSION_DENIED,
    METHOD_NOT_FOUND,
    ALREADY_SUBSCRIBED,
    LIMIT_EXCEEDED,
    BAD_REQUEST,
    NOT_AVAILABLE,
    TOKEN_EXPIRED,
    EXPIRED,
    TOO_MANY_REQUESTS,
    UNRECOVERABLE,
    CONCURRENT_PAGINATION,
)

UNSUBSCRIBED_BY_CLIENT = Unsubscribe(0, "unsubscribe called", "the client asked for it")
UNSUBSCRIBED_BY_DISCONNECT = Unsubscribe(1, "disconnect", "the connection ended")
UNSUBSCRIBED_BY_SERVER = Unsubscribe(2000, "server unsubscribe", "the server API asked for it")
UNSUBSCRIBED_INSUFFICIENT = Unsubscribe(
    2500, "insufficient state", "publications are missing; subscribe again and recover"
)
UNSUBSCRIBED_EXPIRED = Unsubscribe(2501, "subscription expired", "the subscription's token ended")
UNSUBSCRIBED_INVALIDATED = Unsubscribe(
    2502, "state invalidated", "the client's cached state is no longer valid"
)

UNSUBSCRIBES: Final = (
    UNSUBSCRIBED_BY_CLIENT,
    UNSUBSCRIBED_BY_DISCONNECT,
    UNSUBSCRIBED_BY_SERVER,
    UNSUBSCRIBED_INSUFFICIENT,
    UNSUBSCRIBED_EXPIRED,
    UNSUBSCRIBED_INVALIDATED,
)

CONNECTION_CLOSED = Disconnect(3000, "connection closed", "an ordinary end")
SHUTDOWN = Disconnect(3001, "shutdown", "this process is stopping")
SERVER_ERROR = Disconnect(3004, "internal server error", "the server failed on this connection")
CONNECTION_EXPIRED = Disconnect(3005, "connection expired", "the token was not refreshed in time")
SUBSCRIPTION_EXPIRED = Disconnect(
    3006, "subscription expired", "a subscription's token was not refreshed in time"
)
SLOW = Disconnect(3008, "slow", "the client stayed behind with reading for too long")
WRITE_ERROR = Disconnect(3009, "write error", "writing to the socket failed")
INSUFFICIENT_STATE = Disconnect(
    3010, "insufficient state", "publications of a server-side subscription are missing"
)
FORCE_RECONNECT = Disconnect(3011, "force reconnect", "the server API asked for it")
NO_PONG = Disconnect(3012, "no pong", "a ping was not answered in time")
TOO_MANY = Disconnect(3013, "too many requests", "over a rate or capacity; see `retry`")
STATE_INVALIDATED = Disconnect(3014, "state invalidated", "tokens and positions must be dropped")
INVALID_TOKEN = Disconnect(3500, "invalid token", "the token is forged, malformed or foreign")
BAD_PROTOCOL = Disconnect(3501, "bad request", "the client broke the protocol")
STALE = Disconnect(3502, "stale", "no successful connect in time")
FORCE_DISCONNECT = Disconnect(3503, "force disconnect", "the server API asked for it")
CONNECTION_LIMIT = Disconnect(3504, "connection limit", "too many connections of this user")
CHANNEL_LIMIT = Disconnect(3505, "channel limit", "too many channels on this connection")
INAPPROPRIATE_PROTOCOL = Disconnect(
    3506, "inappropriate protocol", "a protocol or frame type that this server doesn't speak"
)
FORBIDDEN = Disconnect(3507, "permission denied", "this client may not connect")
UNAVAILABLE = Disconnect(3508, "not available", "a message that nothing here handles")
TOO_MANY_ERRORS = Disconnect(3509, "too many errors", "error after error on one connection")

DISCONNECTS: Final = (
    CONNECTION_CLOSED,
    SHUTDOWN,
    SERVER_ERROR,
    CONNECTION_EXPIRED,
    SUBSCRIPTION_EXPIRED,
    SLOW,
    WRITE_ERROR,
    INSUFFICIENT_STATE,
    FORCE_RECONNECT,
    NO_PONG,
    TOO_MANY,
    STATE_INVALIDATED,
    INVALID_TOKEN,
    BAD_PROTOCOL,
    STALE,
    FORCE_DISCONNECT,
    CONNECTION_LIMIT,
    CHANNEL_LIMIT,
    INAPPROPRIATE_PROTOCOL,
    FORBIDDEN,
    UNAVAILABLE,
    TOO_MANY_ERRORS,
)


def close_reason(reason: str, *, reconnect: bool, retry_ms: int | None = None) -> bytes:
    """The close frame's reason: JSON of at most 123 bytes, never empty (PROTOCOL.md A.12).

    `retry_ms` is the delay for this one connection. A reason too long for the frame is cut.
    """
    members: dict[str, object] = {"reason": reason, "reconnect": reconnect}
    if retry_ms is not None:
        members["retry"] = retry_ms
    encoded = orjson.dumps(members)
    excess = len(encoded) - CLOSE_REASON_MAX_BYTES
    while excess > 0 and reason:
        reason = reason[: -max(1, excess // 4)]
        members["reason"] = reason
        encoded = orjson.dumps(members)
        excess = len(encoded) - CLOSE_REASON_MAX_BYTES
    return encoded
