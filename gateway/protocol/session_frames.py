"""The JSON of session frames (PROTOCOL.md B.1), both ways. Times on the wire are milliseconds.

A session frame is a text message with the single top-level key `session`. What follows it is one
member that names the frame. The server's frames always begin with `PREFIX`; a client's may have
white space in front of it and around the key, but writes the key as it is, without escapes.

Which layer a message belongs to is seen from its beginning alone (`is_session_frame`), because it
is asked for every message. So one that begins with the key `session` and then has others, or
another object behind it, is a session frame that is malformed, and not part A's; and one in which
`session` comes later is part A's, where it is no command.

In the client's frames a member that is `null` is absent, and only known frames are accepted. In
the server's, a client ignores what it doesn't know.
"""

import re
from typing import Annotated, Final, Literal

import msgspec
import orjson
from msgspec import Meta, Struct

from gateway.protocol.backoff import DeclaredBackoff
from gateway.protocol.health import Quality
from gateway.protocol.session import Gone

PREFIX: Final = '{"session":'
_PREFIX_LENGTH: Final = len(PREFIX)
# JSON's white space (RFC 8259, 2); `\s` would be more than that.
_LOOSE_PREFIX: Final = re.compile(r'[ \t\n\r]*\{[ \t\n\r]*"session"[ \t\n\r]*:')

# Exactly what a double holds: clients count in JavaScript.
FrameCount = Annotated[int, Meta(ge=0, le=2**53 - 1)]
Milliseconds = Annotated[float, Meta(ge=0, le=2**53 - 1)]
TOKEN_LENGTH_MAX: Final = 512


class BackoffDeclaration(Struct, frozen=True, gc=False):
    """How a client says it retries, in milliseconds; absent members are what our own clients do.

    Any number is accepted; `DeclaredBackoff` makes sense of absurd ones.
    """

    min: float = 500.0
    max: float = 20_000.0
    factor: float = 2.0
    jitter: Literal["full", "none"] | float = "full"
    attempts: int = 8
    timeout: float = 5000.0

    def in_seconds(self) -> DeclaredBackoff:
        """The schedule that is meant."""
        return DeclaredBackoff(
            min=self.min / 1000,
            max=self.max / 1000,
            factor=self.factor,
            jitter=self.jitter,
            attempts=self.attempts,
            timeout=self.timeout / 1000,
        )


class Open(Struct, frozen=True, gc=False):
    """`open`: begin a session."""

    backoff: BackoffDeclaration = BackoffDeclaration()


class Resume(Struct, frozen=True, gc=False):
    """`resume`: go on with a session on this socket."""

    token: Annotated[str, Meta(max_length=TOKEN_LENGTH_MAX)]
    received: FrameCount
    attempt: FrameCount = 0


class Counts(Struct, frozen=True, gc=False):
    """`pong`: the sender's two counts."""

    received: FrameCount
    sent: FrameCount


class Leave(Struct, frozen=True, gc=False):
    """`leave`: end the session now."""


class ClientFrame(Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """A session frame of a client: exactly one member is set."""

    open: Open | None = None
    resume: Resume | None = None
    ack: FrameCount | None = None
    pong: Counts | None = None
    leave: Leave | None = None


class _ClientMessage(Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    session: ClientFrame


class MalformedSessionFrame(Exception):
    """A session frame that can't be understood; the connection ends with 3501."""


def is_session_frame(message: str) -> bool:
    """Whether a text message belongs to the session layer rather than to part A."""
    if message[:_PREFIX_LENGTH] == PREFIX:
        return True
    # Nearly all payload frames begin like this; only others are looked at more closely.
    if message[:2] == '{"' and message[:10] != '{"session"':
        return False
    return _LOOSE_PREFIX.match(message) is not None


_decode_client = msgspec.json.Decoder(_ClientMessage).decode


def decode_client_frame(message: str) -> Open | Resume | int | Counts | Leave:
    """A client's session frame; a number is an acknowledgement. Raises `MalformedSessionFrame`."""
    try:
        frame = _decode_client(message).session
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise MalformedSessionFrame(str(error)) from None
    found: Open | Resume | int | Counts | Leave | None = None
    for member in (frame.pong, frame.ack, frame.resume, frame.open, frame.leave):
        if member is not None:
            if found is not None:
                raise MalformedSessionFrame("a session frame has only one member")
            found = member
    if found is None:
        raise MalformedSessionFrame("a session frame has a member")
    return found


# --- from the server ------------------------------------------------------------------------------


_QUALITY: Final = {quality: quality.value.encode() for quality in Quality}


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


def _round_trip_ms(seconds: float) -> int:
    """0 says that nothing was measured yet, so it is not a short round trip's."""
    return max(_ms(seconds), 1) if seconds else 0


def opened(token: str, generation: int, ping: float, retain: float, stable: float) -> bytes:
    """The session has begun; times in seconds."""
    return (
        b'{"session":{"opened":{"token":%b,"generation":%d,"ping":%d,"retain":%d,"stable":%d}}}'
        % (
            orjson.dumps(token),
            generation,
            _ms(ping),
            _ms(retain),
            _ms(stable),
        )
    )


def resumed(generation: int, received: int, replay: int, retain: float, stable: float) -> bytes:
    """The session goes on, and `replay` payload frames follow; times in seconds."""
    return (
        b'{"session":{"resumed":{"generation":%d,"received":%d,"replay":%d,"retain":%d,"stable":%d}}}'
        % (generation, received, replay, _ms(retain), _ms(stable))
    )


def gone(reason: Gone) -> bytes:
    """The session can't be resumed."""
    return b'{"session":{"gone":{"reason":"%b"}}}' % reason.value.encode()


def ping(received: int, sent: int, rtt: float, quality: Quality, retain: float) -> bytes:
    """A health ping and an acknowledgement; times in seconds, `rtt` 0 before it is known."""
    return b'{"session":{"ping":{"received":%d,"sent":%d,"rtt":%d,"quality":"%b","retain":%d}}}' % (
        received,
        sent,
        _round_trip_ms(rtt),
        _QUALITY[quality],
        _ms(retain),
    )


def ack(received: int) -> bytes:
    """A cumulative acknowledgement."""
    return b'{"session":{"ack":%d}}' % received


def move(retry: float, deadline: float) -> bytes:
    """The server drains: come back on another socket after `retry` seconds."""
    return b'{"session":{"move":{"retry":%d,"deadline":%d}}}' % (_ms(retry), _ms(deadline))


# --- from the client, and how a client reads the server -------------------------------------------


def open_frame(backoff: BackoffDeclaration) -> bytes:
    """Begin a session."""
    return b'{"session":{"open":{"backoff":%b}}}' % msgspec.json.encode(backoff)


def resume_frame(token: str, received: int, attempt: int) -> bytes:
    """Go on with a session on this socket."""
    return b'{"session":{"resume":{"token":%b,"received":%d,"attempt":%d}}}' % (
        orjson.dumps(token),
        received,
        attempt,
    )


def pong(received: int, sent: int) -> bytes:
    """The answer to a ping."""
    return b'{"session":{"pong":{"received":%d,"sent":%d}}}' % (received, sent)


LEAVE: Final = b'{"session":{"leave":{}}}'


class Opened(Struct, frozen=True, gc=False):
    """`opened`."""

    token: str
    generation: int
    ping: Milliseconds
    retain: Milliseconds
    stable: Milliseconds


class ResumedFrame(Struct, frozen=True, gc=False):
    """`resumed`."""

    generation: int
    received: FrameCount
    replay: FrameCount
    retain: Milliseconds
    stable: Milliseconds


class GoneFrame(Struct, frozen=True, gc=False):
    """`gone`."""

    reason: str


class Ping(Struct, frozen=True, gc=False):
    """`ping`."""

    received: FrameCount
    sent: FrameCount
    rtt: Milliseconds = 0.0
    quality: str = Quality.GOOD.value
    retain: Milliseconds | None = None


class Move(Struct, frozen=True, gc=False):
    """`move`."""

    retry: Milliseconds
    deadline: Milliseconds


class ServerFrame(Struct, frozen=True, gc=False):
    """A session frame of the server; members of later versions are ignored."""

    opened: Opened | None = None
    resumed: ResumedFrame | None = None
    gone: GoneFrame | None = None
    ping: Ping | None = None
    ack: FrameCount | None = None
    move: Move | None = None


class _ServerMessage(Struct, frozen=True, gc=False):
    session: ServerFrame


_decode_server = msgspec.json.Decoder(_ServerMessage).decode


def decode_server_frame(message: str | bytes) -> ServerFrame:
    """A server's session frame. Raises `MalformedSessionFrame`."""
    try:
        return _decode_server(message).session
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise MalformedSessionFrame(str(error)) from None
