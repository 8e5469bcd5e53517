"""A publication goes through the log or past it, and a key lets it past only once."""

import json
from collections.abc import Callable, Sequence
from typing import Any, cast

import pytest

from gateway.broker.contract import Committed, Transient
from gateway.protocol.actions import Published, Publishing
from gateway.protocol.channels import ChannelOptions
from gateway.protocol.codes import TOO_MANY_REQUESTS, ErrorCode
from gateway.publisher import TRANSIENT_KEYS_MAX, Publisher
from gateway.streams import Streams
from metrics.instruments import REGISTRY

LOGGED = ChannelOptions(history_size=10, history_ttl=60)
UNLOGGED = ChannelOptions()
WINDOW = 300.0

Answer = Published | ErrorCode


class Log:
    """Takes publications as `Streams` does, and lets the test say when they are committed."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Publishing, Callable[[Answer], None]]] = []

    def append(self, publishing: Publishing, done: Callable[[Answer], None]) -> None:
        self.waiting.append((publishing, done))


class Wire:
    """A broker that notes what it was given."""

    def __init__(self) -> None:
        self.transient: list[Transient] = []

    def publish_committed(self, publications: Sequence[Committed]) -> None:
        raise AssertionError("only the log knows what was committed")

    def publish_transient(self, publication: Transient) -> None:
        self.transient.append(publication)


class Clock:
    """Stands in for the `time` module. The two clocks differ, as they do."""

    def __init__(self) -> None:
        self.now = 5000.0
        self.wall = 1_700_000_000.25

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.wall


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def wire() -> Wire:
    return Wire()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("gateway.publisher.time", clock)
    return clock


@pytest.fixture
def publisher(log: Log, wire: Wire, clock: Clock) -> Publisher:
    return Publisher(cast(Streams, log), wire, WINDOW)


def publishing(
    channel: str = "chat", *, options: ChannelOptions = UNLOGGED, key: str = "", **more: Any
) -> Publishing:
    return Publishing(channel, options, b'{"text":"hi"}', idempotency_key=key, **more)


def publish(publisher: Publisher, what: Publishing) -> list[Answer]:
    answers: list[Answer] = []
    publisher.publish(what, answers.append)
    return answers


def counted(kind: str) -> float:
    value = REGISTRY.get_sample_value("capegate_publications_total", {"kind": kind})
    assert value is not None
    return value


def test_with_history_the_answer_is_the_logs(publisher: Publisher, log: Log, wire: Wire) -> None:
    what = publishing(options=LOGGED)

    answers = publish(publisher, what)

    assert answers == []
    ((appended, done),) = log.waiting
    assert appended is what
    done(Published(offset=7, epoch="e"))
    assert answers == [Published(offset=7, epoch="e")]
    # The log's own feed brings it to the subscribers, so that they get it in the log's order.
    assert wire.transient == []


def test_what_the_log_refuses_goes_nowhere(publisher: Publisher, log: Log, wire: Wire) -> None:
    answers = publish(publisher, publishing(options=LOGGED))

    ((_, done),) = log.waiting
    done(TOO_MANY_REQUESTS)

    assert answers == [TOO_MANY_REQUESTS]
    assert wire.transient == []


@pytest.mark.parametrize(
    "options",
    [UNLOGGED, ChannelOptions(history_size=10), ChannelOptions(history_ttl=60)],
    ids=["no history", "no time to live", "no size"],
)
def test_without_history_a_publication_goes_straight_out(
    publisher: Publisher, log: Log, wire: Wire, options: ChannelOptions
) -> None:
    answers = publish(publisher, publishing(options=options))

    assert answers == [Published()]
    (sent,) = wire.transient
    assert (sent.channel, sent.ephemeral) == ("chat", False)
    assert json.loads(sent.pub)["data"] == {"text": "hi"}
    assert log.waiting == []


def test_subscribers_get_all_that_was_published(publisher: Publisher, wire: Wire) -> None:
    publish(publisher, publishing(info=b'{"user":"alice"}', tags=b'{"lang":"en"}'))

    (sent,) = wire.transient
    assert json.loads(sent.pub) == {
        "data": {"text": "hi"},
        "info": {"user": "alice"},
        "tags": {"lang": "en"},
        "time": 1_700_000_000_250,
    }


@pytest.mark.parametrize("options", [LOGGED, UNLOGGED], ids=["history", "no history"])
def test_an_ephemeral_publication_passes_the_log_by(
    publisher: Publisher, log: Log, wire: Wire, options: ChannelOptions
) -> None:
    answers = publish(publisher, publishing(options=options, ephemeral=True))

    assert answers == [Published()]
    (sent,) = wire.transient
    assert sent == Transient("chat", b'{"data":{"text":"hi"}}', ephemeral=True)
    assert log.waiting == []


def test_publications_past_the_log_are_counted_by_kind(publisher: Publisher) -> None:
    transient, ephemeral = counted("transient"), counted("ephemeral")

    publish(publisher, publishing())
    publish(publisher, publishing())
    publish(publisher, publishing(ephemeral=True))
    publish(publisher, publishing(options=LOGGED))

    assert counted("transient") == transient + 2
    assert counted("ephemeral") == ephemeral + 1


def test_publications_go_out_in_the_order_in_which_they_came(
    publisher: Publisher, wire: Wire
) -> None:
    for number in range(10):
        publish(publisher, publishing(f"chat:{number}", ephemeral=bool(number % 2)))

    assert [sent.channel for sent in wire.transient] == [f"chat:{number}" for number in range(10)]


def test_a_broker_has_the_publication_before_it_is_answered(
    publisher: Publisher, wire: Wire
) -> None:
    sent_at_answer: list[int] = []

    publisher.publish(publishing(), lambda answer: sent_at_answer.append(len(wire.transient)))

    assert sent_at_answer == [1]


@pytest.mark.parametrize("ephemeral", [False, True], ids=["transient", "ephemeral"])
def test_a_repeated_key_is_answered_and_sent_to_nobody(
    publisher: Publisher, wire: Wire, ephemeral: bool
) -> None:
    kind = "ephemeral" if ephemeral else "transient"
    before = counted(kind)

    first = publish(publisher, publishing(key="k1", ephemeral=ephemeral))
    second = publish(publisher, publishing(key="k1", ephemeral=ephemeral))

    assert first == [Published()]
    assert second == [Published(duplicate=True)]
    assert len(wire.transient) == 1
    assert counted(kind) == before + 1


def test_without_a_key_nothing_is_a_repetition(publisher: Publisher, wire: Wire) -> None:
    publish(publisher, publishing())
    answers = publish(publisher, publishing())

    assert answers == [Published()]
    assert len(wire.transient) == 2


def test_keys_are_each_channels_own(publisher: Publisher, wire: Wire) -> None:
    publish(publisher, publishing("chat:1", key="k1"))
    publish(publisher, publishing("chat:2", key="k1"))
    publish(publisher, publishing("chat:1", key="k2"))

    assert len(wire.transient) == 3


def test_a_key_holds_for_the_window_and_no_longer(
    publisher: Publisher, wire: Wire, clock: Clock
) -> None:
    publish(publisher, publishing(key="k1"))

    clock.now += WINDOW - 0.001
    assert publish(publisher, publishing(key="k1")) == [Published(duplicate=True)]
    clock.now += 0.001
    assert publish(publisher, publishing(key="k1")) == [Published()]

    assert len(wire.transient) == 2


def test_a_repetition_does_not_lengthen_the_window(publisher: Publisher, clock: Clock) -> None:
    publish(publisher, publishing(key="k1"))
    for _ in range(3):
        clock.now += WINDOW / 4
        assert publish(publisher, publishing(key="k1")) == [Published(duplicate=True)]

    clock.now += WINDOW / 4

    assert publish(publisher, publishing(key="k1")) == [Published()]


def test_a_wall_clock_that_jumps_moves_no_window(publisher: Publisher, clock: Clock) -> None:
    publish(publisher, publishing(key="k1"))

    clock.wall += 10 * WINDOW

    assert publish(publisher, publishing(key="k1")) == [Published(duplicate=True)]


def test_each_key_ends_by_its_own_window(publisher: Publisher, clock: Clock) -> None:
    publish(publisher, publishing(key="k1"))
    clock.now += WINDOW / 2
    publish(publisher, publishing(key="k2"))

    clock.now += WINDOW / 2

    assert publish(publisher, publishing(key="k1")) == [Published()]
    assert publish(publisher, publishing(key="k2")) == [Published(duplicate=True)]


def test_the_log_looks_after_its_own_keys(publisher: Publisher, log: Log) -> None:
    for _ in range(2):
        publish(publisher, publishing(options=LOGGED, key="k1"))

    assert len(log.waiting) == 2


def test_beyond_the_limit_the_oldest_keys_are_forgotten(publisher: Publisher) -> None:
    for number in range(TRANSIENT_KEYS_MAX + 2):
        publish(publisher, publishing(key=f"k{number}"))

    newest = publish(publisher, publishing(key=f"k{TRANSIENT_KEYS_MAX + 1}"))
    oldest = publish(publisher, publishing(key="k0"))

    assert newest == [Published(duplicate=True)]
    assert oldest == [Published()]
