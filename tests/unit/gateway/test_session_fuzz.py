"""Whatever clients, networks and operators do: no error of ours, no harm to others, no leak."""

import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.connection import Connection
from gateway.protocol.backoff import RetentionBounds
from gateway.protocol.claims import ServerSubscription
from gateway.protocol.codes import (
    FORCE_RECONNECT,
    NO_PONG,
    SHUTDOWN,
    SLOW,
    UNSUBSCRIBED_BY_SERVER,
    UNSUBSCRIBED_INSUFFICIENT,
)
from gateway.protocol.session import TailLimits
from tests.support.session_bench import LOG, PLAIN, Bench, Socket, data_of
from tests.support.wire import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, frame

ANEW = "chat:anew"  # a channel whose log begins anew, and the witness isn't in
SOCKETS = 3

numbers = st.one_of(
    st.integers(0, 12), st.sampled_from([-1, 2**31, 2**53 - 1, 2**53, 1e308, 0.5, True, None, "3"])
)
json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, st.text(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)
channels = st.sampled_from([LOG, PLAIN, ANEW, "bare:x", "none:x", "$bare", ""])

members = st.one_of(
    st.builds(lambda backoff: {"open": {"backoff": backoff}}, json_values),
    st.builds(
        lambda numbers: {
            "open": {
                "backoff": dict(
                    zip(("min", "max", "factor", "attempts", "timeout"), numbers, strict=True)
                )
            }
        },
        st.lists(numbers, min_size=5, max_size=5),
    ),
    st.just({"open": {}}),
    st.builds(lambda number: {"ack": number}, numbers),
    st.builds(lambda a, b: {"pong": {"received": a, "sent": b}}, numbers, numbers),
    st.just({"leave": {}}),
    st.builds(
        lambda token, received: {"resume": {"token": token, "received": received}},
        st.one_of(st.text(max_size=60), json_values),
        numbers,
    ),
    st.dictionaries(
        st.sampled_from(["open", "resume", "ack", "pong", "leave", "x"]), json_values, max_size=3
    ),
)
session_frames = st.builds(lambda member: {"session": member}, st.one_of(members, json_values))
commands = st.one_of(
    st.builds(
        lambda number, channel, data: {"id": number, "publish": {"channel": channel, "data": data}},
        st.integers(1, 9),
        channels,
        json_values,
    ),
    st.builds(
        lambda number, method, channel: {"id": number, method: {"channel": channel}},
        st.integers(1, 9),
        st.sampled_from(["subscribe", "unsubscribe", "presence", "presence_stats", "history"]),
        channels,
    ),
    st.builds(lambda number: {"id": number, "ping": {}}, st.integers(1, 9)),
    st.sampled_from(
        [
            {"id": 1, "connect": {"token": "alice"}},
            {"id": 1, "connect": {"token": f"alice subs={LOG},{ANEW}"}},
            {"id": 1, "connect": {"token": "alice ttl=3"}},
            {"id": 1, "connect": {"token": "alice late"}},
            {"id": 1, "connect": {"token": "bad"}},
            {"id": 2, "subscribe": {"channel": "$bare", "token": "alice $bare late"}},
            {},
        ]
    ),
)
texts = st.one_of(
    st.text(max_size=20),
    st.builds(lambda text: '{"session":' + text, st.text(max_size=20)),
    st.builds(json.dumps, session_frames),
    st.builds(json.dumps, commands),
    st.builds(
        lambda one, other: f"{json.dumps(one)}\n{json.dumps(other)}", session_frames, commands
    ),
)
raw = st.one_of(
    st.builds(lambda text: frame(TEXT, text.encode("utf-8", "surrogatepass")), texts),
    st.builds(
        lambda code, rest: frame(CLOSE, code.to_bytes(2) + rest),
        st.sampled_from([0, 999, 1000, 1001, 1005, 1006, 1011, 3000, 3008, 3012, 4000, 65535]),
        st.binary(max_size=4),
    ),
    st.builds(
        frame,
        st.sampled_from([BINARY, PING, PONG, CLOSE, CONTINUATION, 0x5]),
        st.binary(max_size=9),
    ),
    st.binary(max_size=20),
)
which = st.integers(0, SOCKETS - 1)
steps = st.one_of(
    st.tuples(st.just("send"), which, raw),
    st.tuples(st.just("begin"), which, st.booleans()),
    st.tuples(st.just("resume"), which, st.integers(-3, 1), st.integers(0, 3)),
    st.tuples(st.sampled_from(["cut", "fill", "drain", "choke"]), which),
    st.tuples(st.just("publish"), channels, st.booleans()),
    st.tuples(st.just("time"), st.sampled_from([0.1, 1.0, 6.0])),
    st.tuples(
        st.just("server"),
        st.sampled_from(["subscribe", "unsubscribe", "insufficient", "refresh", "expire"])
        | st.sampled_from([SHUTDOWN, SLOW, NO_PONG, FORCE_RECONNECT]),
        channels,
    ),
    st.tuples(st.just("keys")),
    st.tuples(st.just("anew")),
    st.tuples(st.just("sweep")),
)


class Fuzz:
    """A gateway, clients that do anything, and a witness who must not notice."""

    def __init__(self) -> None:
        self.bench = Bench(
            tail=TailLimits(frames=16, bytes=4096),
            retention=RetentionBounds(floor=2.0, ceiling=8.0),
            ping_interval=25.0,
            expiry_grace=2.0,
            memory_max_bytes=20_000,
            connections_per_user_max=3,
            detached_per_address_max=4,
        )
        self.bench.publish(ANEW, "first")
        self.witness = self.bench.stock(LOG, PLAIN, token="witness")
        self.sockets: list[Socket] = [self.bench.socket() for _ in range(SOCKETS)]
        self.tokens = [""] * SOCKETS
        self.counts = [0] * SOCKETS
        self.published = 0
        self.seen: list[Any] = []

    def run(self, step: tuple[Any, ...]) -> None:
        """One thing that happens."""
        what, *how = step
        getattr(self, f"_{what}")(*how)
        self.bench.loop.settle()
        for socket in self.sockets:
            socket.take()
        self.seen += self.witness.take()
        while {} in self.seen:
            self.seen.remove({})
            self.witness.say({})

    def _socket(self, number: int) -> Socket:
        if self.sockets[number].is_gone:
            self.sockets[number] = self.bench.socket(f"192.0.2.{number}")
        return self.sockets[number]

    def _send(self, number: int, data: bytes) -> None:
        self._socket(number).send(data)

    def _begin(self, number: int, connects: bool) -> None:
        socket = self._socket(number)
        socket.session(open={})
        for one in socket.take():
            if "opened" in one.get("session", {}):
                self.tokens[number] = one["session"]["opened"]["token"]
        if connects:
            socket.say({"id": 1, "connect": {"token": f"user{number}"}})
            for place, channel in enumerate((LOG, PLAIN, ANEW), 2):
                socket.say({"id": place, "subscribe": {"channel": channel}})

    def _resume(self, number: int, off: int, attempt: int) -> None:
        found = self.bench.sessions.find(self.tokens[number])
        count = found.session.sent if hasattr(found, "session") else 3
        self._socket(number).session(
            resume={
                "token": self.tokens[number],
                "received": max(0, count + off),
                "attempt": attempt,
            }
        )

    def _cut(self, number: int) -> None:
        self._socket(number).cut()

    def _fill(self, number: int) -> None:
        self._socket(number).transport.fill()

    def _drain(self, number: int) -> None:
        socket = self._socket(number)
        socket.transport.buffered = 0
        socket.transport.drain()

    def _choke(self, number: int) -> None:
        socket = self._socket(number)
        socket.transport.fill()
        socket.transport.buffered = 1 << 30

    def _publish(self, channel: str, ephemeral: bool) -> None:
        if channel in ("none:x", "", "$bare"):
            return
        self.published += 1
        self.bench.publish_now(channel, f"n{self.published}", ephemeral=ephemeral)

    def _time(self, seconds: float) -> None:
        self.bench.loop.pass_time(seconds)

    def _server(self, what: object, channel: str) -> None:
        for connection in list(self.bench.manager.all):
            if connection.client.user == "witness":
                continue
            client = connection.client
            if what == "subscribe":
                client.subscribe_by_server(channel, ServerSubscription())
            elif what == "unsubscribe":
                client.unsubscribe_by_server(channel, UNSUBSCRIBED_BY_SERVER)
            elif what == "insufficient":
                client.lose_position(channel, UNSUBSCRIBED_INSUFFICIENT)
            elif what in ("refresh", "expire"):
                connection.refresh(60.0 if what == "refresh" else 1.0)
            else:
                connection.disconnect(what)  # type: ignore[arg-type]

    def _keys(self) -> None:
        self.bench.tokens.keys.set()

    def _anew(self) -> None:
        self.bench.log.begin_anew(ANEW)
        self.bench.publish_now(ANEW, "of another epoch")

    def _sweep(self) -> None:
        self.bench.sessions.sweep()

    def check(self) -> None:
        """What must hold at any time."""
        bench = self.bench
        for connection in bench.manager.with_session:
            link = connection.link
            assert connection.detached is link.closing
            assert connection.detached or link.owner is connection
        held = bench.holds()
        for name in ("connections", "clients", "sessions"):
            held_here = held.get(name, 0)
            assert isinstance(held_here, int)
            assert held_here <= SOCKETS * 20

    def finish(self) -> None:
        """Everybody goes; look at what the witness saw, and at what is left."""
        bench = self.bench
        self.witness.say({"id": 99, "ping": {}})
        self.seen += self.witness.take()
        assert {"id": 99, "ping": {}} in self.seen
        offsets = [
            one["push"]["pub"]["offset"]
            for one in self.seen
            if "push" in one
            and one["push"].get("channel") == LOG
            and "offset" in one["push"].get("pub", {})
        ]
        assert offsets == list(range(1, len(offsets) + 1))
        here = set(_present(self.seen, PLAIN)) | {self._me()}
        assert here == set(bench.presence.clients(PLAIN))
        for socket in self.sockets:
            if not socket.is_gone:
                socket.cut()
        self.witness.cut()
        bench.tokens.keys.set()
        bench.loop.pass_time(30.0)  # stale, slow, expired
        assert bench.holds() == {}

    def _me(self) -> str:
        (connection,) = self.bench.manager.find("witness")
        assert isinstance(connection, Connection)
        return connection.client.id


def _present(seen: list[Any], channel: str) -> set[str]:
    """Who is in a channel by its joins and leaves, each of which must make sense."""
    here: set[str] = set()
    for one in seen:
        push = one.get("push", {})
        if push.get("channel") != channel:
            continue
        if "join" in push:
            client = push["join"]["info"]["client"]
            assert client not in here, "it joined twice"
            here.add(client)
        elif "leave" in push:
            client = push["leave"]["info"]["client"]
            assert client in here, "it left before it had joined"
            here.remove(client)
    return here


class _Recorder(logging.Handler):
    def __init__(self, records: list[logging.LogRecord]) -> None:
        super().__init__(logging.ERROR)
        self._records = records

    def emit(self, record: logging.LogRecord) -> None:
        self._records.append(record)


@pytest.fixture
def errors() -> Iterator[list[logging.LogRecord]]:
    """What was logged as an error."""
    records: list[logging.LogRecord] = []
    handler = _Recorder(records)
    logger = logging.getLogger("gateway")
    logger.addHandler(handler)
    yield records
    logger.removeHandler(handler)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(steps, max_size=40))
def test_nothing_that_comes_does_harm(
    errors: list[logging.LogRecord], story: list[tuple[Any, ...]]
) -> None:
    errors.clear()
    fuzz = Fuzz()
    for step in story:
        fuzz.run(step)
        fuzz.check()
    fuzz.finish()
    assert [record.getMessage() for record in errors] == []


@settings(max_examples=150)
@given(st.lists(raw, min_size=1, max_size=12))
def test_whatever_a_session_sends_others_get_their_messages(
    data: list[bytes],
) -> None:
    bench = Bench(tail=TailLimits(frames=16), retention=RetentionBounds(floor=1.0, ceiling=2.0))
    witness = bench.stock(LOG, PLAIN, token="witness")
    socket, token = bench.session(LOG, PLAIN)
    for number, one in enumerate(data):
        socket.send(one)
        bench.publish(PLAIN, f"n{number}")
    mine = [one for one in data_of(witness.take(), PLAIN) if str(one).startswith("n")]
    assert mine == [f"n{number}" for number in range(len(data))]
    if not socket.is_gone:
        socket.cut()
    witness.cut()
    bench.loop.pass_time(20.0)
    assert bench.holds() == {}
    assert not hasattr(bench.sessions.find(token), "session")
