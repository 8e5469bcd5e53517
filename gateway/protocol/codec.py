"""Commands in, replies and pushes out: the JSON of part A (PROTOCOL.md A.2, A.3).

Payloads (`data`, `conn_info`, …) stay raw JSON from socket to socket. What many will read is
composed as bytes once; what one will read is composed by the functions at the end. All bytes here
are the contents of WebSocket text messages; `frames` wraps them.
"""

from collections.abc import Iterable, Mapping
from typing import Annotated, Final, Literal, get_args

import msgspec
import orjson
from msgspec import Meta, Raw, Struct

from gateway.protocol.codes import ErrorCode, Unsubscribe

type_u32 = Annotated[int, Meta(ge=0, le=2**32 - 1)]
# PostgreSQL's bigint and the double of JavaScript both hold it exactly.
type_offset = Annotated[int, Meta(ge=0, le=2**53 - 1)]

NO_RAW: Final = Raw(b"")


class SubscribeRequest(Struct, gc=False):
    """`subscribe`, and one value of `connect.subs`."""

    channel: str = ""
    token: str = ""
    recover: bool = False
    epoch: str = ""
    offset: type_offset = 0
    data: Raw = NO_RAW
    positioned: bool = False
    recoverable: bool = False
    join_leave: bool = False
    delta: str = ""
    tf: Raw = NO_RAW
    flag: int = 0
    type: int = 0


class ConnectRequest(Struct):
    """`connect`."""

    token: str = ""
    data: Raw = NO_RAW
    subs: dict[str, SubscribeRequest] = {}
    name: str = ""
    version: str = ""


class ChannelRequest(Struct, gc=False):
    """`unsubscribe`, `presence` and `presence_stats`."""

    channel: str = ""


class PublishRequest(Struct, gc=False):
    """`publish`, with the additions of A.12."""

    channel: str = ""
    data: Raw = NO_RAW
    idempotency_key: str = ""
    ephemeral: bool = False
    type: int = 0


class StreamPosition(Struct, frozen=True, gc=False):
    """A place in a channel's log: everything up to `offset` in the life named by `epoch`."""

    offset: type_offset = 0
    epoch: str = ""


class HistoryRequest(Struct):
    """`history`."""

    channel: str = ""
    limit: int = 0
    since: StreamPosition | None = None
    reverse: bool = False


class RPCRequest(Struct, gc=False):
    """`rpc`."""

    method: str = ""
    data: Raw = NO_RAW


class SendRequest(Struct, gc=False):
    """`send`."""

    data: Raw = NO_RAW


class RefreshRequest(Struct, gc=False):
    """`refresh`."""

    token: str = ""


class SubRefreshRequest(Struct, gc=False):
    """`sub_refresh`."""

    channel: str = ""
    token: str = ""


class PingRequest(Struct, gc=False):
    """`ping`."""


class Command(Struct):
    """One command: an id and exactly one method, or nothing at all, which is a pong."""

    id: type_u32 = 0
    connect: ConnectRequest | None = None
    subscribe: SubscribeRequest | None = None
    unsubscribe: ChannelRequest | None = None
    publish: PublishRequest | None = None
    presence: ChannelRequest | None = None
    presence_stats: ChannelRequest | None = None
    history: HistoryRequest | None = None
    rpc: RPCRequest | None = None
    send: SendRequest | None = None
    refresh: RefreshRequest | None = None
    sub_refresh: SubRefreshRequest | None = None
    ping: PingRequest | None = None
    # Not a method: so that a session frame where none belongs isn't taken for an empty object.
    session: Raw | None = None


# The most common ones first: they are looked for in this order.
Method = Literal[
    "publish",
    "subscribe",
    "unsubscribe",
    "connect",
    "presence",
    "presence_stats",
    "history",
    "rpc",
    "send",
    "refresh",
    "sub_refresh",
    "ping",
]
METHODS: Final[tuple[Method, ...]] = get_args(Method)

_decode = msgspec.json.Decoder(Command).decode

_NONE_BUT_ONE: Final = len(METHODS)  # one member of a command is a method, `session` is none


def method_of(command: Command) -> Method | None:
    """The command's one method; None when it has none, several, or a session frame's member."""
    if msgspec.structs.astuple(command).count(None) != _NONE_BUT_ONE:
        return None
    for method in METHODS:
        if getattr(command, method) is not None:
            return method
    return None  # it was `session` alone


class MalformedCommand(Exception):
    """A message that holds something else than commands; the connection ends with 3501."""


def decode_commands(message: str) -> list[Command]:
    """The commands of one text message, separated by newlines, in order.

    Raises `MalformedCommand`; a message without any command is malformed too (A.1).
    """
    try:
        if "\n" not in message:
            return [_decode(message)]
        commands = [_decode(line) for line in message.split("\n") if line and not line.isspace()]
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise MalformedCommand(str(error)) from None
    if not commands:
        raise MalformedCommand("a message without commands")
    return commands


# --- pieces ---------------------------------------------------------------------------------------

quote = orjson.dumps  # a str to its JSON


def client_info(
    user: str, client: str, conn_info: bytes | None, chan_info: bytes | None = None
) -> bytes:
    """ClientInfo as JSON."""
    parts = [b'{"user":', quote(user), b',"client":', quote(client)]
    if conn_info:
        parts += (b',"conn_info":', conn_info)
    if chan_info:
        parts += (b',"chan_info":', chan_info)
    parts.append(b"}")
    return b"".join(parts)


def publication(
    data: bytes,
    info: bytes | None = None,
    tags: bytes | None = None,
    offset: int = 0,
    time_ms: int = 0,
) -> bytes:
    """Publication as JSON; offset 0 means that it has no place in a log."""
    parts = [b'{"data":', data]
    if info:
        parts += (b',"info":', info)
    if tags:
        parts += (b',"tags":', tags)
    if offset:
        parts.append(b',"offset":%d' % offset)
    if time_ms:
        parts.append(b',"time":%d' % time_ms)
    parts.append(b"}")
    return b"".join(parts)


def error_object(error: ErrorCode) -> bytes:
    """An error as replies carry it."""
    temporary = b',"temporary":true' if error.temporary else b""
    return b'{"code":%d,"message":%b%b}' % (error.code, quote(error.message), temporary)


# --- replies --------------------------------------------------------------------------------------


def reply(command_id: int, method: str, result: bytes = b"{}") -> bytes:
    """A successful reply."""
    return b'{"id":%d,"%b":%b}' % (command_id, method.encode(), result)


def error_reply(command_id: int, error: ErrorCode) -> bytes:
    """A failed command's reply."""
    return b'{"id":%d,"error":%b}' % (command_id, error_object(error))


def connect_result(
    *,
    client: str,
    version: str,
    ping: int,
    pong: bool,
    ttl: int | None = None,
    subs: Mapping[str, bytes] | None = None,
    data: bytes | None = None,
) -> bytes:
    """ConnectResult; `ttl` in seconds when the connection expires, `ping` in seconds."""
    parts = [b'{"client":', quote(client), b',"version":', quote(version)]
    if ttl is not None:
        parts.append(b',"expires":true,"ttl":%d' % ttl)
    if data:
        parts += (b',"data":', data)
    if subs:
        members = b",".join(quote(channel) + b":" + result for channel, result in subs.items())
        parts += (b',"subs":{', members, b"}")
    if ping:
        parts.append(b',"ping":%d' % ping)
    if pong:
        parts.append(b',"pong":true')
    parts.append(b"}")
    return b"".join(parts)


def refresh_result(client: str, version: str, ttl: int | None) -> bytes:
    """RefreshResult; `ttl` in seconds, None when the connection no longer expires."""
    lifetime = b"" if ttl is None else b',"expires":true,"ttl":%d' % ttl
    return b'{"client":%b,"version":%b%b}' % (quote(client), quote(version), lifetime)


def sub_refresh_result(ttl: int | None) -> bytes:
    """SubRefreshResult."""
    return b"{}" if ttl is None else b'{"expires":true,"ttl":%d}' % ttl


def publish_result(offset: int, epoch: str, duplicate: bool) -> bytes:
    """PublishResult with the position, if there is one (A.12)."""
    if not offset:
        return b'{"duplicate":true}' if duplicate else b"{}"
    repeated = b',"duplicate":true' if duplicate else b""
    return b'{"offset":%d,"epoch":%b%b}' % (offset, quote(epoch), repeated)


def subscribe_result(
    *,
    position: StreamPosition | None = None,
    recoverable: bool = False,
    positioned: bool = False,
    recovered: bool | None = None,
    publications: Iterable[bytes] = (),
    gap: tuple[int, int] | None = None,
    ttl: int | None = None,
    data: bytes | None = None,
) -> bytes:
    """SubscribeResult. `recovered` is None when the client did not ask to recover.

    `gap` is the range of offsets that could not be recovered (A.12).
    """
    members = []
    if ttl is not None:
        members.append(b'"expires":true,"ttl":%d' % ttl)
    if recoverable:
        members.append(b'"recoverable":true')
    if position is not None:
        members.append(b'"epoch":%b' % quote(position.epoch))
        if position.offset:
            members.append(b'"offset":%d' % position.offset)
    if positioned:
        members.append(b'"positioned":true')
    recovered_publications = b",".join(publications)
    if recovered_publications:
        members.append(b'"publications":[%b]' % recovered_publications)
    if recovered is not None:
        members.append(b'"was_recovering":true')
        if recovered:
            members.append(b'"recovered":true')
    if gap is not None:
        members.append(b'"gap":{"from":%d,"to":%d}' % gap)
    if data:
        members.append(b'"data":' + data)
    return b"{%b}" % b",".join(members)


def presence_result(clients: Mapping[str, bytes]) -> bytes:
    """PresenceResult from client ids and their ClientInfo."""
    members = b",".join(quote(client) + b":" + info for client, info in clients.items())
    return b'{"presence":{%b}}' % members


def presence_stats_result(num_clients: int, num_users: int) -> bytes:
    """PresenceStatsResult."""
    return b'{"num_clients":%d,"num_users":%d}' % (num_clients, num_users)


def history_result(publications: Iterable[bytes], position: StreamPosition) -> bytes:
    """HistoryResult; `position` is the top of the channel."""
    return b'{"publications":[%b],"offset":%d,"epoch":%b}' % (
        b",".join(publications),
        position.offset,
        quote(position.epoch),
    )


def rpc_result(data: bytes | None) -> bytes:
    """RPCResult."""
    return b'{"data":%b}' % (data or b"null")


# --- pushes ---------------------------------------------------------------------------------------


def publication_push(channel_json: bytes, pub: bytes) -> bytes:
    """A publication for all subscribers of a channel; `channel_json` is its quoted name."""
    return b'{"push":{"channel":%b,"pub":%b}}' % (channel_json, pub)


def join_push(channel_json: bytes, info: bytes) -> bytes:
    """Somebody subscribed."""
    return b'{"push":{"channel":%b,"join":{"info":%b}}}' % (channel_json, info)


def leave_push(channel_json: bytes, info: bytes) -> bytes:
    """Somebody's subscription ended."""
    return b'{"push":{"channel":%b,"leave":{"info":%b}}}' % (channel_json, info)


def gap_push(channel_json: bytes, *, dropped: int = 0, presence: int = 0) -> bytes:
    """This client read too slowly: so many publications without history it will never get.

    `presence` is how many joins and leaves it wasn't told. An addition that stock SDKs ignore.
    """
    members = []
    if dropped:
        members.append(b'"dropped":%d' % dropped)
    if presence:
        members.append(b'"presence":%d' % presence)
    return b'{"push":{"channel":%b,"gap":{%b}}}' % (channel_json, b",".join(members))


def unsubscribe_push(channel: str, unsubscribe: Unsubscribe) -> bytes:
    """The server ended this client's subscription."""
    return b'{"push":{"channel":%b,"unsubscribe":{"code":%d,"reason":%b}}}' % (
        quote(channel),
        unsubscribe.code,
        quote(unsubscribe.reason),
    )


def subscribe_push(channel: str, result: bytes) -> bytes:
    """The server subscribed this client; `result` is a SubscribeResult."""
    return b'{"push":{"channel":%b,"subscribe":%b}}' % (quote(channel), result)


def refresh_push(ttl: int | None) -> bytes:
    """The server changed the connection's lifetime."""
    return b'{"push":{"refresh":%b}}' % sub_refresh_result(ttl)


PING: Final = b"{}"
