"""The journals of joins and leaves are bounded, and whoever that costs something is told."""

import json
from typing import Any

import pytest

from gateway import backlogs as backlogs_module
from gateway.backlogs import Backlogs
from gateway.channel import Channel, Piece
from gateway.protocol.channels import ChannelOptions
from tests.support.hub import counted
from tests.support.logbook import Reader

OPTIONS = ChannelOptions(join_leave=True)


@pytest.fixture
def backlogs() -> Backlogs:
    return Backlogs()


@pytest.fixture
def room() -> Channel:
    return Channel("live:room", OPTIONS)


def joins(backlogs: Backlogs, channel: Channel, *clients: object, size: int = 10) -> None:
    """Let clients come whose ClientInfo is of a size."""
    for client in clients:
        info = json.dumps(str(client).ljust(size - 2)).encode()
        assert len(info) == size
        backlogs.note(channel, str(client), joins=True, info=info)


def told(piece: Piece | None) -> list[Any]:
    """The clients that came, and the gap as it is."""
    if piece is None:
        return []
    pushes = [json.loads(push)["push"] for push in piece.pushes]
    return [push["gap"] if "gap" in push else push["join"]["info"].rstrip() for push in pushes]


def test_nothing_is_kept_for_nobody(backlogs: Backlogs, room: Channel) -> None:
    reader = Reader()
    joins(backlogs, room, "alice")
    assert not backlogs.waits(room, reader)
    assert backlogs.take(room, reader) is None
    backlogs.leave(room, reader)
    backlogs.wait(room, reader)
    assert backlogs.waits(room, reader)

    assert backlogs.take(room, reader) is None
    assert not backlogs.waits(room, reader)


def test_whoever_waits_already_goes_on_waiting(backlogs: Backlogs, room: Channel) -> None:
    reader = Reader()
    backlogs.wait(room, reader)
    joins(backlogs, room, "alice")
    backlogs.wait(room, reader)

    assert told(backlogs.take(room, reader)) == ["alice"]


def test_whoever_does_not_wait_is_told_nothing(backlogs: Backlogs, room: Channel) -> None:
    backlogs.wait(room, Reader())
    joins(backlogs, room, "alice")

    assert backlogs.take(room, Reader()) is None


def test_too_many_events_are_a_gap_for_those_who_missed_them(
    backlogs: Backlogs, room: Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backlogs_module, "EVENTS_MAX", 3)
    before = counted("drops_total", kind="presence")
    early, late, last = Reader(), Reader(), Reader()
    backlogs.wait(room, early)
    joins(backlogs, room, 1, 2)
    backlogs.wait(room, late)
    joins(backlogs, room, 3, 4, 5)
    backlogs.wait(room, last)

    assert told(backlogs.take(room, late)) == ["3", "4", "5"]
    assert counted("drops_total", kind="presence") == before
    assert told(backlogs.take(room, early)) == [{"presence": 2}, "3", "4", "5"]
    assert counted("drops_total", kind="presence") - before == 2
    joins(backlogs, room, 6, 7, 8, 9)
    assert told(backlogs.take(room, last)) == [{"presence": 1}, "7", "8", "9"]
    assert counted("drops_total", kind="presence") - before == 3


def test_whoever_leaves_has_missed_what_was_forgotten_too(
    backlogs: Backlogs, room: Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backlogs_module, "EVENTS_MAX", 3)
    before = counted("drops_total", kind="presence")
    reader = Reader()
    backlogs.wait(room, reader)
    joins(backlogs, room, *range(5))
    backlogs.leave(room, reader)

    assert counted("drops_total", kind="presence") - before == 2


def test_the_summary_is_of_what_is_left(
    backlogs: Backlogs, room: Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backlogs_module, "EVENTS_MAX", 2)
    reader = Reader()
    backlogs.wait(room, reader)
    joins(backlogs, room, "alice", "bob")
    backlogs.note(room, "alice", joins=False, info=b'"alice"')
    piece = backlogs.take(room, reader)

    assert piece is not None
    assert [json.loads(push)["push"] for push in piece.pushes] == [
        {"channel": "live:room", "gap": {"presence": 1}},
        {"channel": "live:room", "join": {"info": "bob     "}},
        {"channel": "live:room", "leave": {"info": "alice"}},
    ]


def test_large_events_are_bounded_by_their_size(
    backlogs: Backlogs, room: Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backlogs_module, "EVENTS_MAX_BYTES", 100)
    reader = Reader()
    backlogs.wait(room, reader)
    joins(backlogs, room, 1, 2, 3, size=40)
    assert told(backlogs.take(room, reader)) == [{"presence": 1}, "2", "3"]

    backlogs.wait(room, reader)
    joins(backlogs, room, "huge", size=101)
    assert told(backlogs.take(room, reader)) == [{"presence": 1}]


def test_all_journals_together_are_bounded(
    backlogs: Backlogs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backlogs_module, "JOURNALS_MAX_BYTES", 100)
    rooms = [Channel(f"live:{number}", OPTIONS) for number in range(4)]
    reader = Reader()
    for room in rooms:
        backlogs.wait(room, reader)
    joins(backlogs, rooms[1], "a", size=40)
    joins(backlogs, rooms[0], "b", size=40)
    joins(backlogs, rooms[2], "c", size=40)  # and the second room, published in first, is emptied
    joins(backlogs, rooms[1], "d", size=20)

    assert [told(backlogs.take(room, reader)) for room in rooms] == [
        ["b"],
        [{"presence": 1}, "d"],
        ["c"],
        [],
    ]
    assert backlogs._size == 0


def test_one_event_above_all_bounds_is_forgotten_at_once(
    backlogs: Backlogs, room: Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backlogs_module, "JOURNALS_MAX_BYTES", 50)
    reader = Reader()
    backlogs.wait(room, reader)
    joins(backlogs, room, "large", size=60)
    joins(backlogs, room, "small")

    assert told(backlogs.take(room, reader)) == [{"presence": 1}, "small"]


def test_an_event_makes_what_was_summed_up_before_worthless(
    backlogs: Backlogs, room: Channel
) -> None:
    readers = [Reader() for _ in range(3)]
    for reader in readers:
        backlogs.wait(room, reader)
    joins(backlogs, room, "alice")
    assert told(backlogs.take(room, readers[0])) == ["alice"]
    joins(backlogs, room, "bob")

    first, second = (backlogs.take(room, reader) for reader in readers[1:])
    assert first is second
    assert told(first) == ["alice", "bob"]
