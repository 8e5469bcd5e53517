"""One client of one room above its line: what it was given, what it published. No sockets here.

It keeps what a stock SDK keeps, an epoch and an offset, and recovers by them whenever it begins a
new connection. Its publishes carry idempotency keys and are sent again until they are acknowledged.
Whatever breaks the promise of exactly once and in order is counted where it is seen.
"""

from collections.abc import Sequence
from typing import Final

import msgspec
from msgspec import Struct

TEMPORARY_CODES: Final = frozenset({100, 111})
SESSION_USER: Final = "session-"
STOCK_USER: Final = "stock-"

_FILL: Final = "x" * 65_536
_PONG: Final = b"{}"
_NOTHING: Final[Sequence[bytes]] = ()
_RESUBSCRIBE_FROM: Final = 2500  # codes of an unsubscribe push that ask for another subscribe


class MemberBroken(Exception):
    """The server answered what no client can go on with."""


class _Data(Struct, frozen=True, gc=False):
    id: str = ""


class _Publication(Struct, gc=False):
    offset: int = 0
    data: _Data = _Data()


class _Info(Struct, gc=False):
    user: str = ""


class _Presence(Struct, gc=False):
    info: _Info


class _Unsubscribe(Struct, gc=False):
    code: int = 0


class _Push(Struct, gc=False):
    channel: str = ""
    pub: _Publication | None = None
    join: _Presence | None = None
    leave: _Presence | None = None
    unsubscribe: _Unsubscribe | None = None


class _Error(Struct, gc=False):
    code: int
    message: str = ""


class _Connected(Struct, gc=False):
    ping: float = 0.0


class _Subscribed(Struct, gc=False):
    epoch: str = ""
    offset: int = 0
    was_recovering: bool = False
    recovered: bool = False
    publications: list[_Publication] = []


class _Published(Struct, gc=False):
    offset: int = 0


class _Message(Struct, gc=False):
    id: int = 0
    push: _Push | None = None
    error: _Error | None = None
    connect: _Connected | None = None
    subscribe: _Subscribed | None = None
    publish: _Published | None = None


_decode: Final = msgspec.json.Decoder(_Message).decode


class Room:
    """What all clients of a room have learned of its log, together."""

    __slots__ = ("name", "seen", "top", "wrong")

    def __init__(self, name: str) -> None:
        self.name = name
        self.seen: dict[int, str] = {}  # message ids by offset
        self.top = 0
        self.wrong = 0  # deliveries that were another message than others got there

    def note(self, offset: int, message: str) -> None:
        """Somebody was given, or told of, a message."""
        if self.seen.setdefault(offset, message) != message:
            self.wrong += 1
        self.top = max(self.top, offset)


class _Publish:
    """A publish without a good reply yet."""

    __slots__ = ("command", "frame", "sent_at")

    def __init__(self) -> None:
        self.command = 0  # 0: it was refused, or never sent
        self.frame = b""
        self.sent_at = 0.0  # 0 when it was sent on a line that has ended


class Member:
    """See the module. What it returns is to be sent, in order, as one message each."""

    __slots__ = (
        "_command",
        "_connect",
        "_published",
        "_publishes",
        "_subscribing",
        "_waiting",
        "_watches",
        "acknowledged",
        "doubled",
        "epoch",
        "joins",
        "latencies",
        "leaves",
        "lost",
        "number",
        "offset",
        "ping",
        "received",
        "refused",
        "room",
        "subscribed",
        "unrecovered",
        "was_recovered",
    )

    def __init__(
        self, number: int, token: str, room: Room, latencies: list[float], *, watches: bool
    ) -> None:
        self.number = number
        self.room = room
        self._connect = b'{"id":1,"connect":{"token":"%b"}}' % token.encode()
        self._watches = watches
        self._command = 2  # the id of the last command
        self._publishes: dict[str, _Publish] = {}  # by message id
        self._waiting: dict[int, str] = {}  # message ids by command
        self._published = 0
        self.latencies = latencies
        self.epoch = ""
        self.offset = -1  # before the first subscription
        self.ping = 0.0
        self.subscribed = False
        self._subscribing = False  # the command is under way
        self.was_recovered = False  # by the last subscription
        self.refused = False  # something was, for a moment: `again` sends it once more
        self.received = 0
        self.lost = 0
        self.doubled = 0
        self.unrecovered = 0
        self.joins = 0
        self.leaves = 0
        self.acknowledged: dict[str, int] = {}  # offsets by message id

    # --- the connection ---------------------------------------------------------------------------

    def begin(self) -> bytes:
        """A connection begins: connect and subscribe, as SDKs do, in one message."""
        self.end()
        return self._connect + b"\n" + self._subscribe()

    def end(self) -> None:
        """The connection is lost; what wasn't acknowledged goes out over the next one."""
        self.subscribed = False
        self._subscribing = False
        self.refused = False
        self._waiting.clear()

    def interrupt(self) -> None:
        """The line is lost, and perhaps not the connection: times measured over it mean nothing."""
        for publish in self._publishes.values():
            publish.sent_at = 0.0

    def again(self, now: float) -> Sequence[bytes]:
        """Ask once more for what was refused for a moment."""
        if not self.refused:
            return _NOTHING  # that was another connection
        self.refused = False
        if not self.subscribed:
            return _NOTHING if self._subscribing else (self._subscribe(),)
        return [self._send(*item, now) for item in self._publishes.items() if not item[1].command]

    def _subscribe(self) -> bytes:
        self._subscribing = True
        extra = b',"join_leave":true' if self._watches else b""
        if self.offset >= 0:
            extra += b',"recover":true,"epoch":"%b","offset":%d' % (
                self.epoch.encode(),
                self.offset,
            )
        return b'{"id":2,"subscribe":{"channel":"%b"%b}}' % (self.room.name.encode(), extra)

    # --- publishing -------------------------------------------------------------------------------

    @property
    def published(self) -> int:
        """How many messages it has begun to publish."""
        return self._published

    @property
    def outstanding(self) -> int:
        """How many of them are not acknowledged."""
        return len(self._publishes)

    def publish(self, payload_bytes: int, now: float) -> Sequence[bytes]:
        """Publish one more; later, if there is no subscription now."""
        self._published += 1
        message = f"{self.number}-{self._published}"
        publish = self._publishes[message] = _Publish()
        head = b'{"id":"%b","text":"' % message.encode()
        text = _FILL[: max(0, payload_bytes - len(head) - 2)].encode()
        publish.frame = b'"publish":{"channel":"%b","idempotency_key":"%b","data":%b%b"}}}' % (
            self.room.name.encode(),
            message.encode(),
            head,
            text,
        )
        return (self._send(message, publish, now),) if self.subscribed else _NOTHING

    def _send(self, message: str, publish: _Publish, now: float) -> bytes:
        self._command += 1
        publish.command = self._command
        publish.sent_at = now
        self._waiting[publish.command] = message
        return b'{"id":%d,%b' % (publish.command, publish.frame)

    # --- what comes -------------------------------------------------------------------------------

    def take(self, payload: bytes, now: float) -> Sequence[bytes]:
        """Take one message of the server's. Raises MemberBroken."""
        if b"\n" not in payload:
            return self._take(_decode(payload), now)
        answers: list[bytes] = []
        for line in payload.split(b"\n"):
            answers += self._take(_decode(line), now)
        return answers

    def _take(self, message: _Message, now: float) -> Sequence[bytes]:
        push = message.push
        if push is not None:
            if push.pub is not None:
                self._deliver(push.pub)
            elif push.join is not None:
                self.joins += push.join.info.user.startswith(SESSION_USER)
            elif push.leave is not None:
                self.leaves += push.leave.info.user.startswith(SESSION_USER)
            elif push.unsubscribe is not None:
                return self._unsubscribed(push.unsubscribe.code)
            return _NOTHING
        if message.error is not None:
            self._take_error(message.id, message.error)
        elif message.publish is not None:
            self._take_published(message.id, message.publish, now)
        elif message.subscribe is not None:
            self._take_subscribed(message.subscribe)
            return [self._send(*item, now) for item in self._publishes.items()]
        elif message.connect is not None:
            self.ping = message.connect.ping
        elif not message.id:
            return (_PONG,)
        return _NOTHING

    def _deliver(self, publication: _Publication) -> None:
        offset = publication.offset
        expected = self.offset + 1
        if offset < expected:
            self.doubled += 1
            return
        self.lost += offset - expected
        self.offset = offset
        self.received += 1
        self.room.note(offset, publication.data.id)

    def _take_subscribed(self, result: _Subscribed) -> None:
        self.subscribed = True
        self._subscribing = False
        self.was_recovered = result.recovered
        if self.offset < 0:
            self.offset = result.offset
        elif not result.recovered:
            # An honest hole, and still one: whoever runs this keeps enough history for all of it.
            self.unrecovered += 1
            self.lost += max(0, result.offset - self.offset)
            self.offset = result.offset
        self.epoch = result.epoch
        for publication in result.publications:
            self._deliver(publication)

    def _take_published(self, command: int, result: _Published, now: float) -> None:
        message = self._waiting.pop(command, None)
        publish = None if message is None else self._publishes.pop(message, None)
        if message is None or publish is None:
            raise MemberBroken(f"a reply to publish {command}, which waits for none")
        if publish.sent_at:
            self.latencies.append(now - publish.sent_at)
        self.acknowledged[message] = result.offset
        self.room.note(result.offset, message)

    def _take_error(self, command: int, error: _Error) -> None:
        if error.code not in TEMPORARY_CODES:
            raise MemberBroken(f"command {command} was answered by error {error.code}")
        self.refused = True
        message = self._waiting.pop(command, None)
        if message is None:
            self._subscribing = False
        else:
            self._publishes[message].command = 0

    def _unsubscribed(self, code: int) -> Sequence[bytes]:
        if code < _RESUBSCRIBE_FROM:
            raise MemberBroken(f"unsubscribed with code {code}")
        self.subscribed = False
        return (self._subscribe(),)
