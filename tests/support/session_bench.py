"""All that is between a client's socket and the log, in one place and on a loop that stands still.

Real are the link, newcomers, connections, the manager, the book of sessions, the hub, presence, the
wheel and the accept control. Doubles are what is around them: the transport, the log, tokens, time.
A token is its user's name; what else it may say is written behind it: see `Tokens`.
"""

import asyncio
import json
from collections.abc import Coroutine, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, TypeVar, cast

from gateway.acceptance import AcceptControl
from gateway.auth import TokenVerifier
from gateway.broker.memory import MemoryBroker
from gateway.connection import Services
from gateway.connections import ConnectionLimits, ConnectionManager
from gateway.hub import Hub
from gateway.presence import Presence
from gateway.protocol.actions import Publishing
from gateway.protocol.backoff import RetentionBounds
from gateway.protocol.channels import ChannelOptions
from gateway.protocol.claims import (
    ConnectClaims,
    KeyMissing,
    ServerSubscription,
    SubscribeClaims,
    TokenInvalid,
)
from gateway.protocol.frames import CLOSE, PING, PONG, TEXT
from gateway.protocol.handshake import Accepted
from gateway.protocol.health import DeadlineBounds
from gateway.protocol.session import TailLimits
from gateway.publisher import Publisher
from gateway.resume_tokens import ResumeTokens
from gateway.rpc import Procedures
from gateway.session_connection import SessionConnection
from gateway.sessions import SessionLimits, Sessions
from gateway.wheel import Wheel
from metrics.instruments import REGISTRY
from tests.support.fake_loop import FakeLoop
from tests.support.logbook import Logbook
from tests.support.recording import OPEN, make_rules
from tests.support.transport import RecordingTransport
from tests.support.wire import frame

T = TypeVar("T")

KEY: Final = bytes(range(32))
NODE: Final = "node-1"
ADDRESS: Final = "192.0.2.1"
PING_INTERVAL: Final = 25.0
STALE: Final = 10.0
CLOSE_TIMEOUT: Final = 5.0
SLOW_READER_TIMEOUT: Final = 10.0
STABLE: Final = 30.0
DETECTION: Final = 35.0
BACKOFF: Final[Mapping[str, object]] = {
    "min": 500,
    "max": 20000,
    "factor": 2,
    "jitter": "full",
    "attempts": 8,
    "timeout": 5000,
}
RETENTION: Final = 148.5
"""What `BACKOFF` needs with `DETECTION` and the default slack, in seconds."""

LOG: Final = "chat:lobby"
PLAIN: Final = "live:ticks"
NAMESPACES: Final = {
    "chat": ChannelOptions(
        **OPEN,
        history_size=1000,
        history_ttl=3600.0,
        presence=True,
        join_leave=True,
        force_recovery=True,
        force_push_join_leave=True,
    ),
    "live": ChannelOptions(**OPEN, presence=True, join_leave=True, force_push_join_leave=True),
    "bare": ChannelOptions(**OPEN),
}


class TaskLoop(FakeLoop):
    """A loop that stands still and runs tasks."""

    def create_task(
        self, coroutine: Coroutine[Any, Any, T], *, name: str | None = None, context: Any = None
    ) -> "asyncio.Task[T]":
        """See asyncio."""
        return asyncio.Task(coroutine, loop=self, name=name)

    def create_future(self) -> "asyncio.Future[Any]":
        """See asyncio."""
        return asyncio.Future(loop=self)

    def call_later(self, delay: float, callback: Any, *args: Any, context: Any = None) -> Any:
        """See asyncio."""
        return self.call_at(self.now + delay, callback, *args, context=context)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Let the test see it, also what is no exception: a task that nobody waited for."""
        raise context.get("exception") or AssertionError(context["message"])

    def turn(self) -> None:
        """Run what is due, once, as the running loop."""
        with _running(self):
            super().turn()

    def settle(self) -> None:
        """Run everything that needs no time to pass."""
        for _ in range(100_000):
            if not self._ready:
                return
            self.turn()
        raise AssertionError("it never comes to rest")

    def pass_time(self, seconds: float) -> None:
        """Let time pass; whatever becomes due runs at its moment, with all that follows from it."""
        self.settle()
        end = self.now + seconds
        while self._timers and self._timers[0].when() <= end:
            self.now = max(self.now, self._timers[0].when())
            self.turn()
            self.settle()
        self.now = end

    def run(self, coroutine: Coroutine[Any, Any, T], seconds: float = 600.0) -> T:
        """Run something to its end, letting time pass where it has to."""
        task = self.create_task(coroutine)
        end = self.now + seconds
        self.settle()
        while not task.done():
            assert self._timers, "it waits for something that never comes"
            assert self._timers[0].when() <= end, "it takes too long"
            self.pass_time(max(0.0, self._timers[0].when() - self.now))
        return task.result()


@contextmanager
def _running(loop: TaskLoop) -> Iterator[None]:
    before = asyncio._get_running_loop()
    asyncio._set_running_loop(loop)
    try:
        yield
    finally:
        asyncio._set_running_loop(before)


class Tokens:
    """Tokens that can be read: `alice`, `alice subs=chat:a,chat:b`, `alice ttl=60`, `alice late`.

    A subscription token names user and channel: `alice chat:a`. Those that are `late` need a key
    that comes when `keys` is set.
    """

    def __init__(self) -> None:
        self.keys: asyncio.Event = asyncio.Event()
        self._fetched = False

    def verify_connect(self, token: str, now: float) -> ConnectClaims:
        """See `TokenVerifier`."""
        user, *words = token.split(" ")
        if user == "bad":
            raise TokenInvalid("it is bad")
        self._need_key(words)
        said = dict(word.split("=") for word in words if "=" in word)
        subs = {name: ServerSubscription() for name in said.get("subs", "").split(",") if name}
        expire_at = now + float(said["ttl"]) if "ttl" in said else 0.0
        return ConnectClaims(user, expire_at=expire_at, subs=subs)

    def verify_subscribe(self, token: str, now: float) -> SubscribeClaims:
        """See `TokenVerifier`."""
        user, channel, *words = token.split(" ")
        self._need_key(words)
        said = dict(word.split("=") for word in words if "=" in word)
        expire_at = now + float(said["ttl"]) if "ttl" in said else 0.0
        return SubscribeClaims(user, channel, expire_at=expire_at)

    def _need_key(self, words: list[str]) -> None:
        if "late" in words and not self._fetched:
            raise KeyMissing("its key isn't here yet")

    async def refresh_keys(self) -> bool:
        """See `TokenVerifier`."""
        await self.keys.wait()
        self._fetched = True
        return True


class Socket:
    """A client's end of one socket: it says what it is told, and keeps what it hears, parsed."""

    def __init__(self, bench: "Bench", address: str) -> None:
        self.bench = bench
        self.transport = BenchTransport(bench.loop, (address, 4711))
        self.link = bench.manager.accept(self.transport, Accepted(b""), address)
        self.transport.take()
        self._close_code: int | None = None
        self._close_reason: dict[str, Any] = {}
        self.received = 0
        """Payload frames that were heard."""
        self._heard: list[Any] = []

    # --- out --------------------------------------------------------------------------------------

    def say(self, *messages: object) -> None:
        """Send messages, each in a frame of its own, all in one segment; text goes as it is."""
        self.send(
            b"".join(
                frame(TEXT, (one if isinstance(one, str) else dumps(one)).encode())
                for one in messages
            )
        )

    def send(self, data: bytes) -> None:
        """Send bytes, if the socket takes any."""
        if self.transport.reading and not self.is_gone:
            self.link.data_received(data)
        self.bench.loop.settle()

    def session(self, **frames: object) -> None:
        """Send a session frame."""
        self.say({"session": frames})

    def close(self, code: int | None = 1000) -> None:
        """Send a close frame and wait for the end."""
        self.send(frame(CLOSE, b"" if code is None else code.to_bytes(2)))

    def answer_close(self) -> None:
        """Answer the server's close frame, which ends the connection."""
        assert self.closed is not None, "it isn't closing"
        self.send(frame(CLOSE, self.closed.to_bytes(2)))

    def cut(self) -> None:
        """Let the connection break."""
        self.transport.abort()
        self.bench.loop.settle()

    # --- in ---------------------------------------------------------------------------------------

    @property
    def is_gone(self) -> bool:
        """Whether nothing goes over it any more."""
        return self.link.lost

    @property
    def closed(self) -> int | None:
        """The code of the server's close frame, None when none has come."""
        self._read()
        return self._close_code

    @property
    def close_reason(self) -> dict[str, Any]:
        """Its reason."""
        self._read()
        return self._close_reason

    def take(self) -> list[Any]:
        """What was heard since this was called last, each JSON object by itself."""
        self._read()
        heard, self._heard = self._heard, []
        return heard

    def take_session(self) -> list[dict[str, Any]]:
        """The session frames among that; the rest goes on waiting."""
        self._read()
        found = [one["session"] for one in self._heard if "session" in one]
        self._heard = [one for one in self._heard if "session" not in one]
        return found

    def _read(self) -> None:
        for opcode, payload in self.transport.take_frames():
            assert self._close_code is None, "RFC 6455, 5.5.1: nothing comes behind a close frame"
            if opcode == TEXT:
                self.received += not payload.startswith(b'{"session":')
                self._heard += [json.loads(line) for line in payload.split(b"\n")]
            elif opcode == CLOSE:
                self._close_code = int.from_bytes(payload[:2])
                self._close_reason = json.loads(payload[2:] or b"{}")
            else:
                assert opcode in (PING, PONG)


class BenchTransport(RecordingTransport):
    """One that tells its protocol of its end, in a later turn as transports do."""

    def __init__(self, loop: TaskLoop, peer: tuple[str, int]) -> None:
        super().__init__(peer)
        self.loop = loop

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """See `asyncio.WriteTransport`."""
        if not self.closing:
            super().write(data)

    def close(self) -> None:
        """See `asyncio.BaseTransport`."""
        if not self.closing:
            self.loop.call_soon(self._end)
        super().close()

    def abort(self) -> None:
        """See `asyncio.WriteTransport`."""
        if not self.closing:
            self.loop.call_soon(self._end)
        super().abort()

    def write_eof(self) -> None:
        """See `asyncio.WriteTransport`; the client sees it and ends its side."""
        super().write_eof()
        self.close()

    def _end(self) -> None:
        self._protocol.connection_lost(None)


class Bench:
    """A gateway from its sockets to its log. What can be set is what settings would set."""

    def __init__(
        self,
        *,
        loop: TaskLoop | None = None,
        log: Logbook | None = None,
        tail: TailLimits | None = None,
        retention: RetentionBounds | None = None,
        sessions_max: int = 0,
        detached_per_address_max: int = 0,
        memory_max_bytes: int = 0,
        connections_max: int = 10_000,
        connections_per_address_max: int = 0,
        connections_per_user_max: int = 0,
        strangers_per_address_max: int = 0,
        node: str = NODE,
        namespaces: Mapping[str, ChannelOptions] = NAMESPACES,
        rate_max: float = 0.0,
        **rules: Any,
    ) -> None:
        self.loop = TaskLoop() if loop is None else loop
        self.tokens = Tokens()
        self.log = Logbook() if log is None else log
        self.hub = Hub(cast(asyncio.AbstractEventLoop, self.loop))
        self.hub.use(self.log.streams)
        broker = MemoryBroker(self.hub)
        self.log.publish_to(broker)
        self.presence = Presence()
        self.acceptance = AcceptControl(cast(asyncio.AbstractEventLoop, self.loop), rate_max)
        self.wheel = Wheel(cast(asyncio.AbstractEventLoop, self.loop), self.acceptance.observe_lag)
        self.publisher = Publisher(self.log.streams, broker, 300.0)
        self.procedures = Procedures()
        self.services = Services(
            loop=cast(asyncio.AbstractEventLoop, self.loop),
            rules=make_rules(
                namespaces,
                **{
                    "ping_interval": PING_INTERVAL,
                    "stale_close_delay": STALE,
                    "commands_per_second": 1e9,
                    "commands_burst": 1e9,
                    **rules,
                },
            ),
            hub=self.hub,
            streams=self.log.streams,
            publisher=self.publisher,
            presence=self.presence,
            verifier=cast(TokenVerifier, self.tokens),
            procedures=self.procedures,
            wheel=self.wheel,
            acceptance=self.acceptance,
            close_timeout=CLOSE_TIMEOUT,
            slow_reader_timeout=SLOW_READER_TIMEOUT,
            deadline_bounds=DeadlineBounds(),
        )
        self.sessions: Sessions[SessionConnection] = Sessions(
            ResumeTokens(KEY, node),
            SessionLimits(
                tail=tail or TailLimits(),
                retention=retention or RetentionBounds(),
                detection=DETECTION,
                stable=STABLE,
                sessions_max=sessions_max,
                detached_per_address_max=detached_per_address_max,
                memory_max_bytes=memory_max_bytes,
            ),
        )
        self.manager = ConnectionManager(
            self.services,
            ConnectionLimits(
                connections_max=connections_max,
                connections_per_address_max=connections_per_address_max,
                connections_per_user_max=connections_per_user_max,
                strangers_per_address_max=strangers_per_address_max,
                message_size_max_bytes=65536,
                write_buffer_high_bytes=65536,
            ),
            self.sessions,
        )
        self._paused_before = _paused()
        self.wheel.start()

    # --- clients ----------------------------------------------------------------------------------

    def socket(self, address: str = ADDRESS) -> Socket:
        """A socket that has said nothing yet."""
        return Socket(self, address)

    def opened(self, address: str = ADDRESS, **backoff: object) -> tuple[Socket, str]:
        """A socket with a session that hasn't connected, and the session's token."""
        socket = self.socket(address)
        socket.session(open={"backoff": {**BACKOFF, **backoff}})
        (frame,) = socket.take_session()
        return socket, frame["opened"]["token"]

    def session(
        self,
        *channels: str,
        token: str = "alice",
        address: str = ADDRESS,
        **backoff: object,
    ) -> tuple[Socket, str]:
        """A socket with a session, connected and in some channels; all that was heard is taken."""
        socket, resume_token = self.opened(address, **backoff)
        socket.say({"id": 1, "connect": {"token": token}})
        for number, channel in enumerate(channels, 2):
            socket.say({"id": number, "subscribe": {"channel": channel}})
        replies = [one for one in socket.take() if "id" in one]
        assert [one["id"] for one in replies] == list(range(1, len(channels) + 2)), replies
        assert not [one for one in replies if "error" in one], replies
        return socket, resume_token

    def resume(self, token: str, received: int, attempt: int = 0, address: str = ADDRESS) -> Socket:
        """A socket that has asked to go on with a session."""
        socket = self.socket(address)
        socket.session(resume={"token": token, "received": received, "attempt": attempt})
        return socket

    def stock(self, *channels: str, token: str = "bob", address: str = ADDRESS) -> Socket:
        """A client without a session, connected and in some channels."""
        socket = self.socket(address)
        socket.say({"id": 1, "connect": {"token": token}})
        for number, channel in enumerate(channels, 2):
            socket.say({"id": number, "subscribe": {"channel": channel}})
        assert [one["id"] for one in socket.take() if "id" in one] == list(
            range(1, len(channels) + 2)
        )
        return socket

    def found(self, token: str) -> SessionConnection:
        """The connection that a resume token names."""
        found = self.sessions.find(token)
        assert isinstance(found, SessionConnection), found
        return found

    def publish(self, channel: str, *data: object, ephemeral: bool = False) -> None:
        """Publish as the server API does, each in a turn of its own."""
        for one in data:
            self.publish_now(channel, one, ephemeral=ephemeral)
            self.loop.settle()

    def publish_now(self, channel: str, data: object, *, ephemeral: bool = False) -> None:
        """Publish, and let the loop turn when it likes."""
        options = self.services.rules.channels.resolve(channel)
        assert isinstance(options, ChannelOptions)
        self.publisher.publish(
            Publishing(channel, options, json.dumps(data).encode(), ephemeral=ephemeral),
            lambda outcome: None,
        )

    # --- what is left -----------------------------------------------------------------------------

    def holds(self) -> dict[str, object]:
        """All that is held on behalf of clients, by where; nothing when everybody has gone."""
        manager, hub = self.manager, self.hub
        held = {
            "links": len(manager._links),
            "connections": len(manager._connections),
            "users": manager.num_users,
            "clients": manager.num_clients,
            "addresses": dict(manager._addresses),
            "strangers": {name: len(links) for name, links in manager._strangers.items()},
            "sessions": len(self.sessions),
            "detached": len(self.sessions.detached),
            "detached by address": {
                name: len(kept) for name, kept in self.sessions._detached_of.items()
            },
            "channels": hub.channels(),
            "subscriptions": hub._subscriptions,
            "active channels": hub._active,
            "journals": len(hub._backlogs._journals),
            "presence": {name: len(here) for name, here in self.presence._channels.items()},
            "paused": _paused() - self._paused_before,
            "tasks": len(self.services.tasks),
        }
        return {name: what for name, what in held.items() if what}


def dumps(message: object) -> str:
    """JSON as clients write it."""
    return json.dumps(message, separators=(",", ":"))


def _paused() -> float:
    return REGISTRY.get_sample_value("capegate_paused_connections") or 0.0


def counted(name: str, **labels: str) -> float:
    """The value of one of our instruments."""
    return REGISTRY.get_sample_value(f"capegate_{name}", labels) or 0.0


def data_of(messages: list[Any], channel: str) -> list[Any]:
    """The data of the publications of a channel among some messages, in order."""
    return [
        one["push"]["pub"]["data"]
        for one in messages
        if "push" in one and one["push"].get("channel") == channel and "pub" in one["push"]
    ]


def payload_frames(messages: list[Any]) -> list[Any]:
    """What isn't the session layer's."""
    return [one for one in messages if "session" not in one]
