"""The JSON of the channel protocol as a client writes and reads it (PROTOCOL.md part A).

The server's side of the same is `protocol.codec`. Payloads of publications stay raw until somebody
wants them.
"""

import json
from collections.abc import Mapping
from typing import Any, Final

import msgspec
from msgspec import Raw, Struct

# What a server takes as one message by default (A.1); with a bigger one it ends the connection.
MESSAGE_MAX_BYTES: Final = 65_536

_NULL: Final = Raw(b"null")


class ClientInfo(Struct, frozen=True, gc=False):
    """Who published, or is in a channel. The two infos are whatever JSON the tokens said."""

    user: str = ""
    client: str = ""
    conn_info: Any = None
    chan_info: Any = None


class PublicationMessage(Struct, frozen=True):
    """A publication on the wire; `offset` 0 means that it has no place in a log."""

    data: Raw = _NULL
    info: ClientInfo | None = None
    tags: dict[str, str] = {}
    offset: int = 0
    time: int = 0


class Gap(Struct, frozen=True, gc=False, rename={"first": "from", "last": "to"}):
    """Offsets that could not be recovered."""

    first: int
    last: int


class ErrorMessage(Struct, frozen=True, gc=False):
    """An error reply."""

    code: int
    message: str = ""
    temporary: bool = False


class ConnectResult(Struct, frozen=True, gc=False):
    """`connect`."""

    client: str = ""
    version: str = ""
    expires: bool = False
    ttl: int = 0


class SubscribeResult(Struct, frozen=True):
    """`subscribe`."""

    recoverable: bool = False
    positioned: bool = False
    epoch: str = ""
    offset: int = 0
    publications: list[PublicationMessage] = []
    was_recovering: bool = False
    recovered: bool = False
    gap: Gap | None = None
    expires: bool = False
    ttl: int = 0


class PublishResult(Struct, frozen=True, gc=False):
    """`publish`."""

    offset: int = 0
    epoch: str = ""
    duplicate: bool = False


class HistoryResult(Struct, frozen=True):
    """`history`."""

    publications: list[PublicationMessage] = []
    offset: int = 0
    epoch: str = ""


class PresenceResult(Struct, frozen=True):
    """`presence`."""

    presence: dict[str, ClientInfo] = {}


class PresenceStats(Struct, frozen=True, gc=False):
    """How many are in a channel."""

    num_clients: int = 0
    num_users: int = 0


class RPCResult(Struct, frozen=True):
    """`rpc`."""

    data: Raw = _NULL


class Lifetime(Struct, frozen=True, gc=False):
    """`refresh` and `sub_refresh`: in how many seconds to do it again."""

    expires: bool = False
    ttl: int = 0


class Nothing(Struct, frozen=True, gc=False):
    """A result without anything in it."""


class UnsubscribePush(Struct, frozen=True, gc=False):
    """`unsubscribe`, by the server."""

    code: int = 0
    reason: str = ""


class Push(Struct, frozen=True, gc=False):
    """What the server says of its own accord. Kinds that aren't here are not looked at."""

    channel: str = ""
    pub: PublicationMessage | None = None
    unsubscribe: UnsubscribePush | None = None
    refresh: Lifetime | None = None


class ServerMessage(Struct, frozen=True, gc=False):
    """A reply (with `id`), a push, or neither: a ping."""

    id: int = 0
    error: ErrorMessage | None = None
    push: Push | None = None
    publish: PublishResult | None = None
    subscribe: SubscribeResult | None = None
    unsubscribe: Nothing | None = None
    connect: ConnectResult | None = None
    presence: PresenceResult | None = None
    presence_stats: PresenceStats | None = None
    history: HistoryResult | None = None
    rpc: RPCResult | None = None
    refresh: Lifetime | None = None
    sub_refresh: Lifetime | None = None


class MalformedMessage(Exception):
    """The server sent something else than replies and pushes."""


_decode = msgspec.json.Decoder(ServerMessage).decode


def decode_messages(frame: bytes) -> list[ServerMessage]:
    """The messages of one frame, in order. Raises `MalformedMessage`."""
    try:
        return [_decode(line) for line in frame.split(b"\n") if line and not line.isspace()]
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise MalformedMessage(str(error)) from None


def decode_value(raw: Raw) -> Any:
    """Somebody's payload. Raises `MalformedMessage`."""
    try:
        return msgspec.json.decode(raw)
    except (msgspec.MsgspecError, UnicodeError):
        pass
    # Valid JSON may have numbers that msgspec won't make floats of, such as 1e999; and whoever
    # publishes one must not stop those who listen.
    try:
        return json.loads(bytes(raw))
    except (ValueError, RecursionError) as error:
        raise MalformedMessage(str(error)) from None


def encode_command(command_id: int, method: str, request: Mapping[str, object]) -> bytes:
    """One command. Raises TypeError for what has no JSON."""
    return msgspec.json.encode({"id": command_id, method: request})
