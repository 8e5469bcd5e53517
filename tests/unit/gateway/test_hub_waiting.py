"""Whoever can't be written to costs the others nothing, and learns in the end what it missed."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from gateway import catchup as catchup_module
from gateway.hub import Hub
from gateway.protocol.codec import StreamPosition
from tests.support.hub import (
    CHAT,
    LIVE,
    LOG,
    PLAIN,
    counted,
    data_of,
    joined,
    prepared,
    reader_in,
    session_in,
    settle,
    transient,
    turn,
    until,
)
from tests.support.logbook import Logbook, Reader, SessionReader

OTHER = "chat:other"


def gaps_of(reader: Reader, channel: str = LIVE) -> list[dict[str, int]]:
    return [push["gap"] for push in reader.pushes if push["channel"] == channel and "gap" in push]


def presence_of(reader: Reader, channel: str = LIVE) -> list[tuple[str, Any]]:
    """Joins, leaves and gaps, in order, as their kind and what they say."""
    return [
        (kind, push[kind].get("info", push[kind]))
        for push in reader.pushes
        if push["channel"] == channel
        for kind in ("join", "leave", "gap")
        if kind in push
    ]


def join(hub: Hub, client: str, channel: str = LIVE) -> None:
    hub.announce_join(channel, client, json.dumps(client).encode())


def leave(hub: Hub, client: str, channel: str = LIVE) -> None:
    hub.announce_leave(channel, client, json.dumps(client).encode())


# --- sessions without a socket, and a log -------------------------------------------------------


async def test_a_session_gets_what_others_get_through_its_recorder(hub: Hub, log: Logbook) -> None:
    session, stock = await session_in(hub, CHAT), await reader_in(hub, CHAT)
    hub.deliver_committed(log.write(CHAT, 3))
    await turn()

    assert session.offsets(CHAT) == [1, 2, 3]
    assert [count for _, count in session.tail] == [3]
    assert session.writes[0] is stock.writes[0]


async def test_nothing_is_kept_for_a_session_without_a_socket_but_its_position(
    hub: Hub, log: Logbook
) -> None:
    session, live = await session_in(hub, CHAT), await reader_in(hub, CHAT)
    demotions = counted("demotions_total")
    session.detach()
    hub.deliver_committed(log.write(CHAT, 3))
    await settle()

    assert session.tail == []
    assert hub._channels[CHAT].pump is None
    assert live.offsets(CHAT) == [1, 2, 3]
    assert hub.position(session, CHAT) == StreamPosition(0, "epoch-1")
    assert hub.subscribers(CHAT) == 2
    assert counted("demotions_total") == demotions


async def test_what_waits_for_the_end_of_the_turn_goes_into_the_tail_before(
    hub: Hub, log: Logbook
) -> None:
    session = await session_in(hub, CHAT)
    hub.deliver_committed(log.write(CHAT, 2))
    session.detach()

    assert session.offsets(CHAT) == [1, 2]
    assert session.writes == []
    assert hub.position(session, CHAT) == StreamPosition(2, "epoch-1")


async def test_a_session_that_missed_nothing_is_live_again_at_once(hub: Hub, log: Logbook) -> None:
    session, live = await session_in(hub, CHAT), await reader_in(hub, CHAT)
    reads = log.reads
    session.detach()
    session.attach()
    assert hub._channels[CHAT].pump is None
    hub.deliver_committed(log.write(CHAT))
    await turn()

    assert session.writes[0] is live.writes[0]
    assert log.reads == reads


async def test_what_memory_holds_is_written_in_the_step_of_the_attach(
    hub: Hub, log: Logbook
) -> None:
    sessions = [await session_in(hub, CHAT) for _ in range(3)]
    recoveries = counted("recoveries_total", recovered="true")
    for session in sessions:
        session.detach()
    hub.deliver_committed(log.write(CHAT, 5))
    await turn()
    reads, tails = log.reads, counted("log_reads_total", source="tail")
    for session in sessions:
        session.attach()

        assert session.offsets(CHAT) == [1, 2, 3, 4, 5]
        assert len(session.writes) == 1
    assert hub._channels[CHAT].pump is None
    assert log.reads == reads
    # Looked up and encoded once for all who lack the same.
    assert all(session.writes[0] is sessions[0].writes[0] for session in sessions)
    assert counted("log_reads_total", source="tail") - tails == 1
    assert counted("recoveries_total", recovered="true") == recoveries
    hub.deliver_committed(log.write(CHAT))
    await turn()
    assert [session.offsets(CHAT) for session in sessions] == [[1, 2, 3, 4, 5, 6]] * 3


async def test_what_others_wait_for_comes_before_the_attach(hub: Hub, log: Logbook) -> None:
    """What is pending was published before: it must not come a second time."""
    session, live = await session_in(hub, CHAT), await reader_in(hub, CHAT)
    session.detach()
    hub.deliver_committed(log.write(CHAT, 2))
    session.attach()
    hub.deliver_committed(log.write(CHAT))
    await settle()

    assert session.offsets(CHAT) == live.offsets(CHAT) == [1, 2, 3]


async def test_what_does_not_fit_one_piece_is_left_to_the_pump(
    hub: Hub, log: Logbook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catchup_module, "CATCH_UP_BYTES", 100)
    session = await session_in(hub, CHAT)
    session.detach()
    hub.deliver_committed(log.write(CHAT, 6, data="x" * 60))
    session.attach()
    assert session.tail == []
    await until(lambda: len(session.offsets(CHAT)) == 6)

    assert session.offsets(CHAT) == [1, 2, 3, 4, 5, 6]
    assert len(session.writes) == 6


async def test_what_memory_no_longer_holds_is_read_page_by_page(hub: Hub, log: Logbook) -> None:
    sessions = [await session_in(hub, CHAT) for _ in range(20)]
    for session in sessions:
        session.detach()
    hub.deliver_committed(log.write(CHAT, 10))
    hub.forget_tail(CHAT)
    reads = log.reads
    for session in sessions:
        session.attach()
    hub.deliver_committed(log.write(CHAT, 2))
    await until(lambda: all(len(session.offsets(CHAT)) == 12 for session in sessions))
    hub.deliver_committed(log.write(CHAT))
    await settle()

    assert [session.offsets(CHAT) for session in sessions] == [list(range(1, 14))] * 20
    assert log.reads - reads == 3


async def test_removed_history_is_not_handed_out_from_memory(hub: Hub, log: Logbook) -> None:
    early, late = await session_in(hub, CHAT), await session_in(hub, CHAT)
    early.detach()
    late.detach()
    hub.deliver_committed(log.write(CHAT, 4))
    early.attach()
    log.trim(CHAT, 4)
    hub.forget_tail(CHAT)
    late.attach()
    await until(lambda: late.lost)

    assert early.offsets(CHAT) == [1, 2, 3, 4]
    assert late.offsets(CHAT) == []


async def test_pieces_in_memory_are_few(
    hub: Hub, log: Logbook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catchup_module, "PIECES_MAX", 2)
    sessions = []
    for _ in range(5):
        sessions.append(await session_in(hub, CHAT))
        sessions[-1].detach()
        hub.deliver_committed(log.write(CHAT))
    for session in sessions:
        session.attach()

    assert [session.offsets(CHAT) for session in sessions] == [
        list(range(first, 6)) for first in range(1, 6)
    ]
    assert len(hub._catch_up._pieces) == 2


async def test_a_session_may_lose_its_socket_while_it_catches_up(hub: Hub, log: Logbook) -> None:
    log.write(CHAT, 30)
    session = SessionReader()
    await joined(hub, session, since=StreamPosition(0, ""))
    await until(lambda: session.offsets(CHAT))
    log.held = asyncio.Event()
    await settle()
    session.detach()
    seen = session.offsets(CHAT)
    log.held.set()
    await settle()
    assert session.offsets(CHAT) == seen
    assert hub.position(session, CHAT) == StreamPosition(seen[-1], "epoch-1")
    assert not hub._channels[CHAT].catching_up

    session.attach()
    await until(lambda: len(session.offsets(CHAT)) == 26)
    assert session.offsets(CHAT) == list(range(5, 31))


async def test_many_that_wait_are_not_looked_at_while_others_catch_up(
    hub: Hub, log: Logbook
) -> None:
    for _ in range(10):
        (await session_in(hub, CHAT)).detach()
        (await reader_in(hub, CHAT)).pause()
    log.write(CHAT, 10)
    hub.check_positions()
    await settle()

    channel = hub._channels[CHAT]
    assert (len(channel.parked), len(channel.catching_up)) == (20, 0)
    assert channel.pump is not None
    assert channel.pump.done()
    assert log.reads == 2  # of positions: nobody reads pages for those who wait


async def test_a_socket_that_is_full_by_its_replay_waits_like_any_other(
    hub: Hub, log: Logbook
) -> None:
    session = await session_in(hub, CHAT)
    await joined(hub, session, LIVE, PLAIN)
    session.detach()
    hub.deliver_committed(log.write(CHAT, 2))
    session.attach(full=True)
    hub.deliver_transient(transient(1))
    await settle()
    assert session.tail == []

    session.resume()
    assert session.offsets(CHAT) == [1, 2]
    assert data_of(session, LIVE) == []
    assert gaps_of(session) == [{"dropped": 1}]


async def test_a_socket_that_fills_up_amid_the_attach_gets_the_rest_later(
    hub: Hub, log: Logbook
) -> None:
    names = [f"chat:{number}" for number in range(4)]
    session = await session_in(hub, *names)
    session.detach()
    for name in names:
        hub.deliver_committed(log.write(name, 2))
    await turn()
    session.room = 2
    session.attach()
    hub.deliver_committed([committed for name in names for committed in log.write(name)])
    await settle()
    assert [session.offsets(name) for name in names] == [[1, 2], [1, 2], [], []]

    session.resume()
    await settle()
    assert [session.offsets(name) for name in names] == [[1, 2, 3]] * 4


async def test_a_session_may_lose_its_socket_amid_a_flush(hub: Hub, log: Logbook) -> None:
    first, second, third = [await session_in(hub, CHAT, OTHER) for _ in range(3)]
    original = second._write

    def write_and_lose(data: bytes) -> None:
        original(data)
        second.detach()

    second._write = write_and_lose  # type: ignore[method-assign]
    hub.deliver_committed([*log.write(CHAT), *log.write(OTHER)])
    await turn()
    hub.deliver_committed([*log.write(CHAT), *log.write(OTHER)])
    await turn()

    assert [reader.offsets(CHAT) for reader in (first, second, third)] == [[1, 2], [1], [1, 2]]
    assert hub.position(second, OTHER) == StreamPosition(1, "epoch-1")


@pytest.mark.parametrize("channels", [(CHAT,), (CHAT, OTHER)])
async def test_a_session_may_end_amid_a_flush(
    hub: Hub, log: Logbook, channels: tuple[str, ...]
) -> None:
    sessions = [await session_in(hub, *channels) for _ in range(3)]
    sessions[1]._write = lambda data: sessions[1].end()  # type: ignore[method-assign]
    for _ in range(2):
        hub.deliver_committed([committed for name in channels for committed in log.write(name)])
        await turn()

    assert sessions[0].offsets(CHAT) == sessions[2].offsets(CHAT) == [1, 2]
    assert hub.subscribers(CHAT) == 2


async def test_a_session_may_end_while_it_is_written_to_by_the_pump(
    hub: Hub, log: Logbook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catchup_module, "CATCH_UP_BYTES", 10)
    log.write(CHAT, 8)
    sessions = [SessionReader() for _ in range(3)]
    sessions[0]._write = lambda data: sessions[0].end()  # type: ignore[method-assign]
    for session in sessions:
        await joined(hub, session, since=StreamPosition(0, ""))
    await until(lambda: len(sessions[2].offsets(CHAT)) == 7)

    assert sessions[1].offsets(CHAT) == sessions[2].offsets(CHAT) == list(range(2, 9))
    assert len(sessions[0].tail) == 1
    assert hub.channels() == {CHAT: 2}


async def test_detaching_and_attaching_twice_changes_nothing(hub: Hub, log: Logbook) -> None:
    session = await session_in(hub, CHAT)
    await joined(hub, session, LIVE, PLAIN, listens=True)
    for _ in range(2):
        session.detach()
    assert hub.channels() == {CHAT: 1, LIVE: 1}
    for _ in range(2):
        session.attach()
    hub.deliver_committed(log.write(CHAT))
    hub.deliver_transient(transient(1))
    join(hub, "alice")
    await turn()

    assert session.offsets(CHAT) == [1]
    assert data_of(session, LIVE) == [1]
    assert presence_of(session) == [("join", "alice")]


async def test_channels_that_are_gone_are_passed_over(hub: Hub) -> None:
    session = SessionReader()
    hub.detach(session, {"no:where": True})
    hub.attach(session, {"no:where": True})

    assert hub.take_presence_backlog(session, {"no:where": True}) == []
    assert hub.position(session, "no:where") is None
    assert hub.channels() == {}


# --- sessions without a socket, and no log ------------------------------------------------------


async def test_without_a_log_publications_go_into_the_tail(hub: Hub) -> None:
    session, live = [await session_in(hub, LIVE, options=PLAIN) for _ in range(2)]
    dropped = counted("drops_total", kind="transient")
    ephemeral = counted("drops_total", kind="ephemeral")
    session.detach()
    hub.deliver_transient(transient(1))
    hub.deliver_transient(transient("typing", ephemeral=True))
    hub.deliver_transient(transient(2))
    await turn()
    assert session.writes == []
    assert data_of(session, LIVE) == [1, 2]
    assert session.tail[0][1] == 2

    session.attach()
    hub.deliver_transient(transient("typing", ephemeral=True))
    await turn()
    assert data_of(session, LIVE) == [1, 2, "typing"]
    assert data_of(live, LIVE) == [1, "typing", 2, "typing"]
    assert gaps_of(session) == []
    assert counted("drops_total", kind="transient") == dropped
    assert counted("drops_total", kind="ephemeral") - ephemeral == 1


async def test_only_sessions_without_a_socket_left_are_recorded_for_too(hub: Hub) -> None:
    session = await session_in(hub, LIVE, options=PLAIN)
    session.detach()
    hub.deliver_transient(transient("typing", ephemeral=True))
    hub.deliver_transient(transient(1))
    session.attach()
    hub.deliver_transient(transient(2))
    await turn()

    assert data_of(session, LIVE) == [1, 2]
    assert hub._channels[LIVE].recording is None


async def test_a_slow_session_that_loses_its_socket_has_its_gap_in_front_of_what_follows(
    hub: Hub,
) -> None:
    session = await session_in(hub, LIVE, options=PLAIN)
    dropped = counted("drops_total", kind="transient")
    hub.deliver_transient(transient(1))
    session.pause()
    hub.deliver_transient(transient(2))
    hub.deliver_transient(transient(3))
    session.detach()
    hub.deliver_transient(transient(4))
    session.attach()
    hub.deliver_transient(transient(5))
    await turn()

    kinds = [push.get("gap", push.get("pub", {}).get("data")) for push in session.pushes]
    assert kinds == [1, {"dropped": 2}, 4, 5]
    assert counted("drops_total", kind="transient") - dropped == 2


async def test_a_session_that_joins_without_a_socket_is_recorded_for_as_well(
    hub: Hub, log: Logbook
) -> None:
    session = SessionReader()
    session.attached, session.paused = False, True
    await joined(hub, session, LIVE, PLAIN, listens=True)
    await joined(hub, session, CHAT)
    hub.detach(session, [LIVE])
    hub.detach(session, [CHAT])
    hub.deliver_transient(transient(1))
    hub.deliver_committed(log.write(CHAT))
    join(hub, "alice")
    await settle()
    assert data_of(session, LIVE) == [1]
    assert session.offsets(CHAT) == []

    session.attach()
    assert session.offsets(CHAT) == [1]
    assert presence_of(session) == [("join", "alice")]


# --- what a slow reader misses ------------------------------------------------------------------


@pytest.mark.parametrize("with_session", [False, True])
async def test_a_slow_reader_learns_how_much_it_missed(hub: Hub, with_session: bool) -> None:
    if with_session:
        slow: Reader = await session_in(hub, LIVE, options=PLAIN)
    else:
        slow = await reader_in(hub, LIVE, options=PLAIN)
    await reader_in(hub, LIVE, options=PLAIN)
    hub.deliver_transient(transient("before"))
    for missed in (2, 3):
        slow.pause()
        for number in range(missed):
            hub.deliver_transient(transient(number))
            hub.deliver_transient(transient("typing", ephemeral=True))
            await turn()
        slow.resume()
        hub.deliver_transient(transient("after"))
        await turn()
    slow.pause()
    hub.deliver_transient(transient("typing", ephemeral=True))
    slow.resume()

    kinds = [push.get("gap", push.get("pub", {}).get("data")) for push in slow.pushes]
    assert kinds == ["before", {"dropped": 2}, "after", {"dropped": 3}, "after"]


async def test_a_gap_is_compressed_for_nobody_and_counted_as_delivered(hub: Hub) -> None:
    slow = await reader_in(hub, LIVE, options=PLAIN, deflate=True)
    slow.pause()
    hub.deliver_transient(transient(1))
    await turn()
    before = counted("deliveries_total")
    slow.resume()
    hub.deliver_transient(transient(2))
    await turn()

    assert [set(push) for push in slow.pushes] == [{"channel", "gap"}, {"channel", "pub"}]
    assert counted("deliveries_total") - before == 2


@pytest.mark.parametrize("at_hand", [False, True])
async def test_what_is_in_no_log_is_missed_in_a_channel_with_a_log_too(
    hub: Hub, log: Logbook, at_hand: bool
) -> None:
    slow, session = await reader_in(hub, CHAT), await session_in(hub, CHAT)
    slow.pause()
    session.detach()
    hub.deliver_committed(log.write(CHAT, 2))
    hub.deliver_transient(transient([0, "unlogged"], CHAT))
    if not at_hand:
        hub.forget_tail(CHAT)
    slow.resume()
    session.attach()
    if not at_hand:
        # It is missed by those who catch up as well.
        hub.deliver_transient(transient([0, "unlogged"], CHAT))
    await settle()

    for reader in (slow, session):
        assert reader.offsets(CHAT) == [1, 2]
        assert gaps_of(reader, CHAT) == [{"dropped": 1 if at_hand else 2}]


async def test_whoever_recovers_learns_what_it_missed_meanwhile(hub: Hub, log: Logbook) -> None:
    log.write(CHAT, 12)
    await reader_in(hub, CHAT)
    hub.deliver_transient(transient([0, "before"], CHAT))
    late = Reader()
    await joined(hub, late, since=StreamPosition(0, ""))
    hub.deliver_transient(transient([0, "meanwhile"], CHAT))
    await until(lambda: len(late.offsets(CHAT)) == 8)
    await settle()

    assert gaps_of(late, CHAT) == [{"dropped": 1}]


async def test_a_gap_that_fills_the_socket_is_not_told_twice(hub: Hub, log: Logbook) -> None:
    slow = await reader_in(hub, CHAT)
    await joined(hub, slow, LIVE, PLAIN, listens=True)
    slow.pause()
    hub.deliver_transient(transient(1))
    join(hub, "alice")
    slow.paused = False
    slow.room = 1
    hub.writing_resumed(slow, [LIVE, CHAT])
    assert slow.paused
    hub.deliver_transient(transient(2))
    hub.deliver_committed(log.write(CHAT))
    slow.resume()
    hub.deliver_transient(transient(3))
    await settle()

    assert gaps_of(slow) == [{"dropped": 1}, {"dropped": 1}]
    assert data_of(slow, LIVE) == [3]
    assert slow.offsets(CHAT) == [1]
    assert [kind for kind, _ in presence_of(slow)] == ["gap", "join", "gap"]


async def test_a_slow_reader_takes_the_pump_no_time(hub: Hub, log: Logbook) -> None:
    log.write(CHAT, 12)
    reader = Reader()
    await joined(hub, reader, since=StreamPosition(0, ""))
    reader.pause()
    await settle()
    assert reader.writes == []
    channel = hub._channels[CHAT]
    assert channel.pump is not None
    assert channel.pump.done()

    reader.resume()
    await until(lambda: len(reader.offsets(CHAT)) == 8)


async def test_whoever_fills_up_while_another_is_written_to_waits_as_well(
    hub: Hub, log: Logbook
) -> None:
    first, second = [await reader_in(hub, CHAT) for _ in range(2)]
    for reader in (first, second):
        await joined(hub, reader, LIVE, PLAIN)
        reader.pause()
    hub.deliver_committed(log.write(CHAT, 8))
    hub.forget_tail(CHAT)
    for reader in (first, second):
        reader.resume()
    first.room = 1
    original = first._write

    def publish_and_write(data: bytes) -> None:
        # Pausing it writes what is pending, and that is one write too many for the other.
        second.room = 1
        hub.deliver_transient(transient(1))
        original(data)

    first._write = publish_and_write  # type: ignore[method-assign]
    await until(lambda: first.paused)
    first._write = original  # type: ignore[method-assign]
    assert second.paused
    await settle()
    assert [data_of(reader, LIVE) for reader in (first, second)] == [[1], [1]]
    assert second.offsets(CHAT) == []

    for reader in (first, second):
        reader.resume()
    await until(lambda: len(first.offsets(CHAT)) == len(second.offsets(CHAT)) == 8)
    assert first.offsets(CHAT) == second.offsets(CHAT) == list(range(1, 9))


# --- joins and leaves ---------------------------------------------------------------------------


@pytest.mark.parametrize("with_session", [False, True])
async def test_of_each_client_only_what_it_comes_to_is_told(hub: Hub, with_session: bool) -> None:
    waiting: Reader
    if with_session:
        waiting = session = await session_in(hub, LIVE, options=PLAIN, listens=True)
        session.detach()
        come_back: Callable[[], None] = session.attach
    else:
        waiting = await reader_in(hub, LIVE, options=PLAIN, listens=True)
        waiting.pause()
        come_back = waiting.resume
    live = await reader_in(hub, LIVE, options=PLAIN, listens=True)
    join(hub, "came and stayed")
    leave(hub, "went")
    join(hub, "came and went")
    leave(hub, "went and came")
    join(hub, "came, went and came")
    leave(hub, "came and went")
    join(hub, "went and came")
    leave(hub, "came, went and came")
    join(hub, "came, went and came")
    await turn()
    assert waiting.pushes == []
    come_back()

    assert presence_of(waiting) == [
        ("join", "came and stayed"),
        ("leave", "went"),
        ("join", "came, went and came"),
    ]
    assert len(live.pushes) == 9


async def test_a_client_that_came_back_another_is_told(hub: Hub) -> None:
    slow = await reader_in(hub, LIVE, options=PLAIN, listens=True)
    slow.pause()
    hub.announce_leave(LIVE, "alice", b'{"name":"Alice"}')
    hub.announce_join(LIVE, "alice", b'{"name":"Alice B."}')
    slow.resume()

    assert presence_of(slow) == [("join", {"name": "Alice B."})]


async def test_a_client_that_joins_twice_is_told_once_with_what_it_is_now(hub: Hub) -> None:
    slow = await reader_in(hub, LIVE, options=PLAIN, listens=True)
    slow.pause()
    hub.announce_join(LIVE, "alice", b'{"name":"Alice"}')
    hub.announce_join(LIVE, "alice", b'{"name":"Alice B."}')
    slow.resume()

    assert presence_of(slow) == [("join", {"name": "Alice B."})]


async def test_everybody_is_told_of_the_time_since_it_stopped_listening(hub: Hub) -> None:
    readers = [await reader_in(hub, LIVE, options=PLAIN, listens=True) for _ in range(4)]
    for number, reader in enumerate(readers):
        join(hub, f"client-{number}")
        reader.pause()
    leave(hub, "client-2")
    await turn()
    told = []
    for reader in readers:
        before = len(reader.pushes)
        reader.resume()
        told.append(presence_of(reader)[before:])
    join(hub, "later")
    await turn()

    assert told == [
        [("join", "client-1"), ("join", "client-3")],
        [("join", "client-3")],
        [("join", "client-3"), ("leave", "client-2")],
        [("leave", "client-2")],
    ]
    assert all(presence_of(reader)[-1] == ("join", "later") for reader in readers)


async def test_whoever_stopped_listening_at_the_same_time_is_written_the_same_bytes(
    hub: Hub,
) -> None:
    sessions = [await session_in(hub, LIVE, options=PLAIN, listens=True) for _ in range(3)]
    for session in sessions:
        session.detach()
    join(hub, "alice")
    for session in sessions:
        session.attach()

    assert all(session.writes[0] is sessions[0].writes[0] for session in sessions)


async def test_whoever_does_not_listen_is_told_of_nobody(hub: Hub) -> None:
    slow = await reader_in(hub, LIVE, options=PLAIN)
    await reader_in(hub, LIVE, options=PLAIN, listens=True)
    slow.pause()
    join(hub, "alice")
    slow.resume()
    join(hub, "bob")
    await turn()

    assert slow.pushes == []


async def test_whoever_enters_without_reading_is_told_of_those_who_come_later(hub: Hub) -> None:
    reader = Reader()
    reader.paused = True
    await joined(hub, reader, LIVE, PLAIN, listens=True)
    join(hub, "alice")
    await turn()
    assert reader.writes == []

    reader.resume()
    assert presence_of(reader) == [("join", "alice")]


async def test_whoever_leaves_while_it_waits_is_told_nothing(hub: Hub) -> None:
    slow, session = (
        await reader_in(hub, LIVE, options=PLAIN, listens=True),
        await session_in(hub, LIVE, options=PLAIN, listens=True),
    )
    slow.pause()
    session.detach()
    join(hub, "alice")
    for reader in (slow, session):
        hub.leave(reader, LIVE)
    slow.resume()
    session.attach()

    assert slow.pushes == session.pushes == []
    assert hub.channels() == {}
    assert hub._backlogs._journals == {}


async def test_joins_are_forgotten_with_the_last_who_waited_for_them(hub: Hub) -> None:
    slow = await reader_in(hub, LIVE, options=PLAIN, listens=True)
    for _ in range(2):
        slow.pause()
        join(hub, "alice")
        slow.resume()
        assert hub._backlogs._journals == {}

    assert presence_of(slow) == [("join", "alice")] * 2
    assert hub._backlogs._size == 0


# --- the log begins anew, or lost what somebody needs -------------------------------------------


async def test_a_new_epoch_is_a_lost_position_for_whoever_waits(hub: Hub, log: Logbook) -> None:
    session, slow = await session_in(hub, CHAT), await reader_in(hub, CHAT)
    careless = await reader_in(hub, CHAT, minds=False)
    hub.deliver_committed(log.write(CHAT, 5))
    session.detach()
    slow.pause()
    careless.pause()
    log.begin_anew(CHAT)
    hub.deliver_committed(log.write(CHAT, 2))
    await settle()
    assert session.lost == slow.lost == careless.lost == [CHAT]
    assert hub.channels() == {CHAT: 1}

    careless.resume()
    await settle()
    assert careless.offsets(CHAT) == [1, 2, 3, 4, 5, 1, 2]


async def test_a_lost_position_may_end_sessions_in_all_their_channels(
    hub: Hub, log: Logbook
) -> None:
    sessions = [await session_in(hub, CHAT, OTHER) for _ in range(4)]
    for session in sessions:
        await joined(hub, session, LIVE, PLAIN, listens=True)
        session.leaves_all = True
    for session in sessions[:3]:
        session.detach()
    hub.deliver_committed(log.write(CHAT, 5))
    log.begin_anew(CHAT)
    hub.deliver_committed(log.write(CHAT, 2))
    await settle()

    assert hub.channels() == {}
    assert all(session.lost == [CHAT] for session in sessions)
    assert counted("subscriptions") == 0


async def test_a_trimmed_log_is_noticed_when_the_session_comes_back(hub: Hub, log: Logbook) -> None:
    session = await session_in(hub, CHAT)
    session.detach()
    hub.deliver_committed(log.write(CHAT, 10))
    log.trim(CHAT, 8)
    hub.forget_tail(CHAT)
    await settle()
    assert session.lost == []

    session.attach()
    await until(lambda: session.lost)
    assert hub.channels() == {}


async def test_what_this_process_missed_is_caught_up_by_sessions_with_a_socket_too(
    hub: Hub, log: Logbook
) -> None:
    attached, away = await session_in(hub, CHAT), await session_in(hub, CHAT)
    away.detach()
    log.write(CHAT, 5)
    hub.deliver_committed(log.write(CHAT))
    await until(lambda: len(attached.offsets(CHAT)) == 6)
    assert away.tail == []

    away.attach()
    await until(lambda: len(away.offsets(CHAT)) == 6)


# --- leaving, and being counted -----------------------------------------------------------------


@pytest.mark.parametrize("state", ["live", "paused", "detached", "catching up", "without a log"])
async def test_whoever_leaves_is_gone_whatever_state_it_is_in(
    hub: Hub, log: Logbook, state: str
) -> None:
    log.write(CHAT, 12)
    session = SessionReader()
    channel = LIVE if state == "without a log" else CHAT
    options = PLAIN if state == "without a log" else LOG
    since = StreamPosition(0, "") if state == "catching up" else None
    await joined(hub, session, channel, options, since, listens=True)
    if state == "paused":
        session.pause()
    elif state in ("detached", "without a log"):
        session.detach()
    assert (hub.channels(), counted("subscriptions")) == ({channel: 1}, 1)
    hub.leave(session, channel)
    assert (hub.channels(), counted("subscriptions")) == ({}, 0)
    hub.leave(session, channel)
    session.attach()
    hub.deliver_committed(log.write(CHAT))
    hub.deliver_transient(transient(1))
    join(hub, "alice", channel)
    await settle()

    assert session.tail == []
    assert counted("subscriptions") == 0


# --- from one process to the next ---------------------------------------------------------------


async def test_a_session_is_restored_where_it_was(hub: Hub, log: Logbook) -> None:
    committed = log.write(CHAT, 8)
    recoveries = counted("recoveries_total", recovered="true")
    session = SessionReader()
    session.hub, session.attached, session.paused = hub, False, True
    position = StreamPosition(3, "epoch-1")
    assert await prepared(hub, CHAT, LOG, position) is None
    assert hub.restore(session, CHAT, LOG, position, listens=True)
    assert hub.restore(session, LIVE, PLAIN, None, listens=False)
    session.channels = {CHAT: True, LIVE: False}
    assert hub.channels() == {CHAT: 1, LIVE: 1}
    assert hub.position(session, CHAT) == position
    assert hub.position(session, LIVE) is None
    hub.deliver_committed(committed)  # again: a broker may do that
    hub.deliver_transient(transient(1))
    hub.deliver_transient(transient("typing", ephemeral=True))
    join(hub, "alice", CHAT)
    join(hub, "alice", LIVE)
    await settle()
    assert data_of(session, LIVE) == [1]
    assert session.offsets(CHAT) == []

    session.attach()
    await until(lambda: session.offsets(CHAT) == [4, 5, 6, 7, 8])
    assert presence_of(session, CHAT) == [("join", "alice")]
    assert presence_of(session, LIVE) == []
    assert counted("recoveries_total", recovered="true") == recoveries


@pytest.mark.parametrize(
    "position", [StreamPosition(3, "another"), StreamPosition(9, "epoch-1"), None]
)
async def test_a_session_is_not_restored_into_another_log(
    hub: Hub, log: Logbook, position: StreamPosition | None
) -> None:
    log.write(CHAT, 8)
    assert await prepared(hub, CHAT, LOG, position) is None

    assert not hub.restore(SessionReader(), CHAT, LOG, position, listens=True)
    assert hub.channels() == {}


async def test_nobody_is_restored_before_the_position_is_known(hub: Hub) -> None:
    with pytest.raises(AssertionError, match="prepared"):
        hub.restore(SessionReader(), CHAT, LOG, StreamPosition(0, "x"), listens=False)


async def test_whoever_is_restored_gets_nothing_of_what_waits_for_the_others(hub: Hub) -> None:
    live, session = await session_in(hub, LIVE, options=PLAIN), SessionReader()
    away = await session_in(hub, LIVE, options=PLAIN)
    away.detach()
    hub.deliver_transient(transient(1))
    session.hub, session.attached, session.paused = hub, False, True
    hub.restore(session, LIVE, PLAIN, None, listens=False)
    hub.deliver_transient(transient(2))
    await turn()

    assert data_of(live, LIVE) == data_of(away, LIVE) == [1, 2]
    assert data_of(session, LIVE) == [2]


async def test_where_somebody_is_can_be_asked_in_every_state(hub: Hub, log: Logbook) -> None:
    log.write(CHAT, 12)
    live, slow, late = await reader_in(hub, CHAT), await reader_in(hub, CHAT), Reader()
    slow.pause()
    hub.deliver_committed(log.write(CHAT))
    await joined(hub, late, since=StreamPosition(0, ""))

    assert hub.position(live, CHAT) == StreamPosition(13, "epoch-1")
    assert hub.position(slow, CHAT) == StreamPosition(12, "epoch-1")
    assert hub.position(late, CHAT) == StreamPosition(4, "epoch-1")
    assert hub.position(Reader(), CHAT) is None


async def test_what_a_session_would_be_told_can_be_taken_along(hub: Hub, log: Logbook) -> None:
    session = await session_in(hub, CHAT, options=LOG, listens=True)
    await joined(hub, session, LIVE, PLAIN, listens=True)
    session.detach()
    join(hub, "alice", CHAT)
    join(hub, "bob")
    hub.deliver_transient(transient([0, "unlogged"], CHAT))
    names = [CHAT, LIVE]
    taken = [json.loads(push)["push"] for push in hub.take_presence_backlog(session, names)]

    assert taken == [
        {"channel": CHAT, "gap": {"dropped": 1}},
        {"channel": CHAT, "join": {"info": "alice"}},
        {"channel": LIVE, "join": {"info": "bob"}},
    ]
    assert hub.take_presence_backlog(session, names) == []
    leave(hub, "alice", CHAT)
    session.attach()
    assert session.pushes == [{"channel": CHAT, "leave": {"info": "alice"}}]
