"""The hub with a log in memory: who gets what, in how many writes, and what slowness costs whom."""

import asyncio
import json
import logging

import pytest

from gateway import catchup as catchup_module
from gateway import hub as hub_module
from gateway import tails as tails_module
from gateway.hub import Hub
from gateway.protocol.channels import ChannelOptions
from gateway.protocol.codec import StreamPosition
from gateway.protocol.codes import INTERNAL, ErrorCode
from gateway.protocol.subscription import Joined
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
    settle,
    transient,
    turn,
    until,
)
from tests.support.logbook import Logbook, Reader, texts

# --- fan-out ----------------------------------------------------------------------------------


async def test_ten_publications_of_a_turn_are_one_write(hub: Hub, log: Logbook) -> None:
    reader = await reader_in(hub, CHAT)
    for _ in range(10):
        hub.deliver_committed(log.write(CHAT))
    assert hub.has_pending
    assert reader.writes == []
    await turn()

    assert len(reader.writes) == 1
    assert len(texts(reader.writes[0])) == 10
    assert reader.offsets(CHAT) == list(range(1, 11))
    assert not hub.has_pending


async def test_publications_of_two_turns_are_two_writes(hub: Hub, log: Logbook) -> None:
    reader = await reader_in(hub, CHAT)
    for _ in range(2):
        hub.deliver_committed(log.write(CHAT))
        await turn()

    assert [len(texts(data)) for data in reader.writes] == [1, 1]


async def test_several_channels_of_a_turn_are_one_write_to_each_subscriber(
    hub: Hub, log: Logbook
) -> None:
    both = await reader_in(hub, CHAT, "chat:other")
    one = await reader_in(hub, "chat:other")
    hub.deliver_committed([*log.write(CHAT, 2), *log.write("chat:other", 3)])
    hub.deliver_committed(log.write(CHAT))
    await turn()

    assert len(both.writes) == 1
    assert both.offsets(CHAT) == [1, 2, 3]
    assert both.offsets("chat:other") == [1, 2, 3]
    assert len(one.writes) == 1
    assert one.offsets("chat:other") == [1, 2, 3]


async def test_subscribers_share_the_bytes_that_are_the_same(hub: Hub, log: Logbook) -> None:
    readers = [await reader_in(hub, CHAT) for _ in range(3)]
    hub.deliver_committed(log.write(CHAT, 2))
    await turn()
    pairs = [await reader_in(hub, CHAT, "chat:other") for _ in range(3)]
    hub.deliver_committed([*log.write(CHAT), *log.write("chat:other")])
    await turn()

    assert all(reader.writes[0] is readers[0].writes[0] for reader in readers)
    assert all(pair.writes[0] is pairs[0].writes[0] for pair in pairs)


async def test_compressed_frames_go_to_those_who_asked_for_them(hub: Hub, log: Logbook) -> None:
    plain = await reader_in(hub, CHAT)
    deflated = [await reader_in(hub, CHAT, deflate=True) for _ in range(2)]
    hub.deliver_committed([*log.write(CHAT, data="x" * 1000), *log.write(CHAT, data="short")])
    await turn()

    assert plain.offsets(CHAT) == deflated[0].offsets(CHAT) == [1, 2]
    assert deflated[0].writes[0] is deflated[1].writes[0]
    assert len(deflated[0].writes[0]) < len(plain.writes[0]) / 4
    # The short one isn't worth it.
    assert plain.writes[0].endswith(deflated[0].writes[0][-60:])
    assert deflated[0].writes[0][0] == 0xC1


async def test_a_channel_without_subscribers_costs_nothing(hub: Hub, log: Logbook) -> None:
    hub.deliver_committed(log.write(CHAT))
    hub.deliver_transient(transient(1))
    hub.announce_join(LIVE, "alice", b"{}")
    hub.announce_leave(LIVE, "alice", b"{}")
    hub.leave(Reader(), LIVE)
    hub.forget_tail(LIVE)

    assert not hub.has_pending
    assert hub.channels() == {}


async def test_a_sink_that_raises_costs_nobody_else_their_message(
    hub: Hub, log: Logbook, caplog: pytest.LogCaptureFixture
) -> None:
    broken, *others = [await reader_in(hub, CHAT, "chat:other") for _ in range(3)]
    broken.failing = True
    with caplog.at_level(logging.ERROR):
        hub.deliver_committed(log.write(CHAT))
        await turn()
        hub.deliver_committed([*log.write(CHAT), *log.write("chat:other")])
        await turn()

    assert [reader.offsets(CHAT) for reader in others] == [[1, 2]] * 2
    assert len(caplog.records) == 2


async def test_deliveries_are_counted(hub: Hub, log: Logbook) -> None:
    before = counted("deliveries_total")
    for _ in range(3):
        await reader_in(hub, CHAT, LIVE, listens=True)
    for round_ in (1, 2):
        hub.deliver_committed(log.write(CHAT, 2))
        hub.announce_join(CHAT, "alice", b"{}")
        hub.deliver_transient(transient(1))
        await turn()

        assert counted("deliveries_total") - before == 3 * 4 * round_


# --- entering and leaving ---------------------------------------------------------------------


@pytest.mark.parametrize(("channel", "options"), [(CHAT, LOG), (LIVE, PLAIN)])
async def test_whoever_enters_gets_what_comes_later_and_nothing_of_before(
    hub: Hub, log: Logbook, channel: str, options: ChannelOptions
) -> None:
    def publish(data: str) -> None:
        if options is LOG:
            hub.deliver_committed(log.write(channel, data=data))
        else:
            hub.deliver_transient(transient([0, data], channel))

    early = await reader_in(hub, channel, options=options)
    publish("before")
    late = Reader()
    hub.join(late, channel, options, None, listens=False)
    publish("after")
    await turn()

    assert [data[1] for data in data_of(early, channel)] == ["before", "after"]  # type: ignore[index]
    assert [data[1] for data in data_of(late, channel)] == ["after"]  # type: ignore[index]


async def test_whoever_enters_one_channel_leaves_others_their_turn(hub: Hub, log: Logbook) -> None:
    """A flush for every newcomer would write a mass reconnect piecemeal."""
    reader = await reader_in(hub, CHAT)
    assert await prepared(hub, "chat:other", LOG) is None
    hub.deliver_committed(log.write(CHAT))
    hub.join(Reader(), "chat:other", LOG, None, listens=False)
    assert reader.writes == []
    hub.deliver_committed(log.write(CHAT))
    await turn()

    assert len(reader.writes) == 1


async def test_whoever_leaves_gets_nothing_more_and_the_others_everything(
    hub: Hub, log: Logbook
) -> None:
    leaving, staying = await reader_in(hub, CHAT), await reader_in(hub, CHAT)
    hub.deliver_committed(log.write(CHAT))
    await turn()
    hub.leave(leaving, CHAT)
    hub.leave(leaving, CHAT)
    hub.deliver_committed(log.write(CHAT))
    await turn()

    assert leaving.offsets(CHAT) == [1]
    assert staying.offsets(CHAT) == [1, 2]


async def test_channels_and_their_subscribers_can_be_listed(hub: Hub) -> None:
    readers = [await reader_in(hub, CHAT) for _ in range(2)]
    await reader_in(hub, LIVE, options=PLAIN)

    assert hub.channels() == {CHAT: 2, LIVE: 1}
    assert hub.channels("chat:*") == {CHAT: 2}
    assert hub.channels("*:[l-t]*") == {CHAT: 2, LIVE: 1}
    assert hub.channels("CHAT:*") == {}
    assert [hub.subscribers(name) for name in (CHAT, LIVE, "no:where")] == [2, 1, 0]
    assert (counted("subscriptions"), counted("channels")) == (3, 2)
    for reader in readers:
        hub.leave(reader, CHAT)
    assert hub.channels() == {LIVE: 1}
    assert (counted("subscriptions"), counted("channels")) == (1, 1)


async def test_nobody_enters_a_log_before_its_position_is_known(hub: Hub) -> None:
    with pytest.raises(AssertionError, match="prepared"):
        hub.join(Reader(), CHAT, LOG, None, listens=False)


async def test_a_channel_without_a_log_is_entered_without_a_read(hub: Hub, log: Logbook) -> None:
    answers: list[ErrorCode | None] = []
    hub.prepare(LIVE, PLAIN, StreamPosition(5, "x"), answers.append)

    assert answers == [None]
    assert hub.join(Reader(), LIVE, PLAIN, StreamPosition(5, "x"), False) == Joined()
    assert log.reads == 0


async def test_whoever_enters_a_log_learns_its_position(hub: Hub, log: Logbook) -> None:
    log.write(CHAT, 7)

    assert await joined(hub, Reader()) == Joined(StreamPosition(7, "epoch-1"))
    assert await joined(hub, Reader(), "chat:empty") == Joined(StreamPosition(0, "epoch-1"))


async def test_a_position_that_is_known_is_not_read_again(hub: Hub, log: Logbook) -> None:
    await reader_in(hub, CHAT)
    reads = log.reads
    answers: list[ErrorCode | None] = []
    hub.prepare(CHAT, LOG, None, answers.append)

    assert answers == [None]
    assert log.reads == reads


@pytest.mark.parametrize("failure", [None, ValueError("broken")])
async def test_a_log_that_cannot_be_read_is_an_error(
    hub: Hub, log: Logbook, failure: Exception | None, caplog: pytest.LogCaptureFixture
) -> None:
    log.failure, log.unavailable = failure, failure is None
    assert await prepared(hub, CHAT, LOG) is INTERNAL
    # What is no accident of the database's is worth a line.
    assert len(caplog.records) == (0 if failure is None else 1)

    log.unavailable = False
    assert await prepared(hub, CHAT, LOG) is None


async def test_what_passes_while_the_position_is_read_is_counted_in(hub: Hub, log: Logbook) -> None:
    log.write(CHAT, 2)
    log.held = asyncio.Event()
    reader = Reader()
    entering = asyncio.ensure_future(joined(hub, reader))
    await until(lambda: log.reads)
    hub.deliver_committed(log.write(CHAT, 2))
    log.held.set()

    assert await entering == Joined(StreamPosition(4, "epoch-1"))
    hub.deliver_committed(log.write(CHAT))
    await turn()
    assert reader.offsets(CHAT) == [5]


# --- joins and leaves -------------------------------------------------------------------------


async def test_joins_and_leaves_reach_those_who_listen(hub: Hub) -> None:
    listener = await reader_in(hub, LIVE, options=PLAIN, listens=True)
    other = await reader_in(hub, LIVE, options=PLAIN)
    hub.announce_join(LIVE, "alice", b'{"user":"alice"}')
    hub.announce_leave(LIVE, "alice", b'{"user":"bob"}')
    await turn()

    assert listener.pushes == [
        {"channel": LIVE, "join": {"info": {"user": "alice"}}},
        {"channel": LIVE, "leave": {"info": {"user": "bob"}}},
    ]
    assert len(listener.writes) == 1
    assert other.writes == []


async def test_whoever_left_listens_no_more(hub: Hub) -> None:
    first = await reader_in(hub, LIVE, options=PLAIN, listens=True)
    second = await reader_in(hub, LIVE, options=PLAIN, listens=True)
    for reader in (first, second):
        hub.leave(reader, LIVE)
        hub.announce_leave(LIVE, "alice", b"{}")
        await turn()

    assert first.writes == []
    assert len(second.writes) == 1


async def test_whoever_enters_does_not_hear_of_those_before(hub: Hub) -> None:
    first = await reader_in(hub, LIVE, options=PLAIN, listens=True)
    hub.announce_join(LIVE, "alice", b'{"user":"alice"}')
    second = Reader()
    hub.join(second, LIVE, PLAIN, None, listens=True)
    await turn()

    assert len(first.writes) == 1
    assert second.writes == []


async def test_a_slow_reader_hears_of_joins_when_it_reads_again(hub: Hub) -> None:
    slow = await reader_in(hub, LIVE, options=PLAIN, listens=True)
    await reader_in(hub, LIVE, options=PLAIN)
    before = counted("drops_total", kind="presence")
    slow.pause()
    hub.announce_join(LIVE, "alice", b'{"user":"alice"}')
    await turn()
    assert slow.writes == []

    slow.resume()
    hub.announce_leave(LIVE, "alice", b'{"user":"alice"}')
    await turn()
    assert [set(push) for push in slow.pushes] == [{"channel", "join"}, {"channel", "leave"}]
    assert counted("drops_total", kind="presence") == before


async def test_a_slow_listener_listens_again_after_all_others_left(hub: Hub) -> None:
    slow = await reader_in(hub, LIVE, options=PLAIN, listens=True)
    other = await reader_in(hub, LIVE, options=PLAIN, listens=True)
    slow.pause()
    hub.leave(other, LIVE)
    slow.resume()
    hub.announce_join(LIVE, "alice", b"{}")
    await turn()

    assert len(slow.pushes) == 1


# --- slow readers -----------------------------------------------------------------------------


async def test_a_slow_reader_of_a_log_catches_up_and_misses_nothing(hub: Hub, log: Logbook) -> None:
    slow, fast = await reader_in(hub, CHAT), await reader_in(hub, CHAT)
    before = counted("demotions_total")
    slow.room = 1
    hub.deliver_committed(log.write(CHAT, 3))
    await turn()
    assert slow.paused
    for _ in range(5):
        hub.deliver_committed(log.write(CHAT, 2))
        await turn()
    assert slow.offsets(CHAT) == [1, 2, 3]
    assert fast.offsets(CHAT) == list(range(1, 14))
    assert counted("demotions_total") - before == 1

    slow.resume()
    await until(lambda: len(slow.offsets(CHAT)) == 13)
    hub.deliver_committed(log.write(CHAT))
    await settle()
    assert slow.offsets(CHAT) == fast.offsets(CHAT) == list(range(1, 15))
    # It is live again: with the others, in one write.
    assert slow.writes[-1] is fast.writes[-1]


async def test_a_slow_reader_that_missed_nothing_is_live_again_without_a_read(
    hub: Hub, log: Logbook
) -> None:
    slow = await reader_in(hub, CHAT)
    reads = log.reads
    slow.pause()
    slow.resume()
    await settle()
    hub.deliver_committed(log.write(CHAT))
    await turn()

    assert slow.offsets(CHAT) == [1]
    assert log.reads == reads


async def test_what_waits_for_the_end_of_the_turn_is_written_before_a_demotion(
    hub: Hub, log: Logbook
) -> None:
    slow = await reader_in(hub, CHAT)
    hub.deliver_committed(log.write(CHAT, 2))
    slow.pause()
    hub.deliver_committed(log.write(CHAT, 2))
    await settle()
    assert slow.offsets(CHAT) == [1, 2]

    slow.resume()
    await settle()
    assert slow.offsets(CHAT) == [1, 2, 3, 4]


async def test_whoever_fills_up_amid_a_flush_gets_all_of_it_and_nothing_more(
    hub: Hub, log: Logbook
) -> None:
    readers = [await reader_in(hub, CHAT, LIVE) for _ in range(5)]
    for reader in readers[1:4]:
        reader.room = 1
    hub.deliver_committed(log.write(CHAT, 2))
    await turn()
    hub.deliver_committed(log.write(CHAT, 2))
    await turn()

    assert [reader.offsets(CHAT) for reader in readers] == [
        [1, 2, 3, 4],
        *[[1, 2]] * 3,
        [1, 2, 3, 4],
    ]


async def test_a_slow_reader_without_a_log_misses_what_is_counted(hub: Hub) -> None:
    slow = await reader_in(hub, LIVE, options=PLAIN)
    fast = await reader_in(hub, LIVE, options=PLAIN)
    dropped = counted("drops_total", kind="transient")
    ephemeral = counted("drops_total", kind="ephemeral")
    slow.pause()
    for number in range(3):
        hub.deliver_transient(transient(number))
        await turn()
    hub.deliver_transient(transient("typing", ephemeral=True))
    await turn()
    assert slow.writes == []
    assert counted("drops_total", kind="transient") - dropped == 3
    assert counted("drops_total", kind="ephemeral") - ephemeral == 1

    slow.resume()
    hub.deliver_transient(transient("after"))
    await turn()
    assert data_of(slow, LIVE) == ["after"]
    assert data_of(fast, LIVE) == [0, 1, 2, "typing", "after"]
    assert counted("drops_total", kind="transient") - dropped == 3


async def test_a_channel_of_slow_readers_only_drops_and_counts_as_well(hub: Hub) -> None:
    slow = await reader_in(hub, LIVE, options=PLAIN)
    dropped = counted("drops_total", kind="transient")
    slow.pause()
    hub.deliver_transient(transient(1))
    await turn()

    assert counted("drops_total", kind="transient") - dropped == 1
    hub.leave(slow, LIVE)
    assert hub.channels() == {}


async def test_ephemeral_messages_pass_by_those_who_catch_up(hub: Hub, log: Logbook) -> None:
    slow, fast = await reader_in(hub, CHAT), await reader_in(hub, CHAT)
    ephemeral = counted("drops_total", kind="ephemeral")
    slow.pause()
    hub.deliver_committed(log.write(CHAT))
    hub.deliver_transient(transient([0, "typing"], CHAT, ephemeral=True))
    await turn()
    slow.resume()
    await settle()

    assert slow.offsets(CHAT) == [1]
    assert fast.offsets(CHAT) == [1, 0]
    assert counted("drops_total", kind="ephemeral") - ephemeral == 1


async def test_whoever_is_full_when_it_enters_is_written_nothing(hub: Hub, log: Logbook) -> None:
    reader = Reader()
    reader.paused = True
    await joined(hub, reader)
    await joined(hub, reader, LIVE, PLAIN)
    hub.deliver_committed(log.write(CHAT))
    hub.deliver_transient(transient(1))
    await settle()
    assert reader.writes == []
    assert hub.channels() == {CHAT: 1, LIVE: 1}

    reader.resume()
    hub.deliver_transient(transient(2))
    await settle()
    assert reader.offsets(CHAT) == [1]
    assert data_of(reader, LIVE) == [2]


async def test_reading_again_in_channels_that_are_gone_does_nothing(hub: Hub) -> None:
    reader = Reader()
    hub.writing_paused(reader, ["no:where"])
    hub.writing_resumed(reader, {"no:where": True})
    assert hub.channels() == {}

    await reader_in(hub, CHAT)
    hub.writing_resumed(reader, {CHAT: False})
    assert hub.channels() == {CHAT: 1}


# --- recovering -------------------------------------------------------------------------------


async def test_a_short_loss_is_recovered_from_memory(hub: Hub, log: Logbook) -> None:
    await reader_in(hub, CHAT)
    hub.deliver_committed(log.write(CHAT, 10))
    reads, tails = log.reads, counted("log_reads_total", source="tail")
    reader = Reader()

    result = await joined(hub, reader, since=StreamPosition(6, "epoch-1"))

    assert result is not None
    assert (result.recovered, result.position) == (True, StreamPosition(10, "epoch-1"))
    assert [json.loads(pub)["offset"] for pub in result.publications] == [7, 8, 9, 10]
    assert log.reads == reads
    assert counted("log_reads_total", source="tail") - tails == 1
    hub.deliver_committed(log.write(CHAT))
    await turn()
    assert reader.offsets(CHAT) == [11]


async def test_a_long_loss_is_recovered_page_by_page(hub: Hub, log: Logbook) -> None:
    log.write(CHAT, 30)
    reader = Reader()

    result = await joined(hub, reader, since=StreamPosition(2, ""))

    assert result is not None
    assert (result.recovered, result.gap) == (True, None)
    first = [json.loads(pub)["offset"] for pub in result.publications]
    assert first == [3, 4]
    hub.deliver_committed(log.write(CHAT, 3))
    await until(lambda: len(reader.offsets(CHAT)) == 29)
    hub.deliver_committed(log.write(CHAT))
    await settle()
    assert [*first, *reader.offsets(CHAT)] == list(range(3, 35))
    assert not reader.lost


async def test_many_who_recover_share_each_read(hub: Hub, log: Logbook) -> None:
    log.write(CHAT, 20)
    readers = [Reader() for _ in range(50)]
    await joined(hub, readers[0], since=StreamPosition(0, ""))
    reads = log.reads
    for reader in readers[1:]:
        await joined(hub, reader, since=StreamPosition(0, ""))
    await until(lambda: all(len(reader.offsets(CHAT)) == 16 for reader in readers))

    assert log.reads - reads <= 4


async def test_a_page_is_written_in_pieces_so_that_a_full_socket_is_noticed(
    hub: Hub, log: Logbook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catchup_module, "CATCH_UP_BYTES", 100)
    log.page_size = 100
    log.write(CHAT, 20, data="x" * 60)
    reader = Reader()
    result = await joined(hub, reader, since=StreamPosition(0, ""))
    assert result is not None
    # The reply too holds no more than that, and one publication at least.
    assert len(result.publications) == 1
    reader.room = 3
    await settle()
    assert reader.offsets(CHAT) == [2, 3, 4]

    reader.resume()
    await until(lambda: len(reader.offsets(CHAT)) == 19)
    assert reader.offsets(CHAT) == list(range(2, 21))


async def test_whoever_is_full_while_it_catches_up_waits_and_costs_nothing(
    hub: Hub, log: Logbook
) -> None:
    log.write(CHAT, 12)
    reader = Reader()
    await joined(hub, reader, since=StreamPosition(0, ""))
    reader.room = 1
    await settle()
    reads, seen = log.reads, reader.offsets(CHAT)
    hub.deliver_committed(log.write(CHAT))
    await settle()

    assert log.reads == reads
    assert reader.offsets(CHAT) == seen
    reader.resume()
    await until(lambda: len(reader.offsets(CHAT)) == 9)


async def test_compressed_frames_are_made_for_those_who_catch_up_too(
    hub: Hub, log: Logbook
) -> None:
    log.write(CHAT, 8, data="x" * 500)
    plain, *deflated = Reader(), Reader(deflate=True), Reader(deflate=True)
    for reader in (plain, *deflated):
        await joined(hub, reader, since=StreamPosition(0, ""))
    await until(lambda: all(len(reader.offsets(CHAT)) == 4 for reader in (plain, *deflated)))

    assert len(deflated[0].writes[0]) < len(plain.writes[0]) / 3
    assert deflated[0].writes[0] is deflated[1].writes[0]


async def test_a_sink_that_raises_holds_up_nobody_who_catches_up(
    hub: Hub, log: Logbook, caplog: pytest.LogCaptureFixture
) -> None:
    log.write(CHAT, 12)
    broken, other = Reader(), Reader()
    broken.failing = True
    for reader in (broken, other):
        await joined(hub, reader, since=StreamPosition(0, ""))
    await until(lambda: len(other.offsets(CHAT)) == 8)

    assert other.offsets(CHAT) == list(range(5, 13))


async def test_whoever_leaves_while_it_catches_up_is_gone(hub: Hub, log: Logbook) -> None:
    log.write(CHAT, 20)
    log.held = asyncio.Event()
    log.held.set()
    reader = Reader()
    await joined(hub, reader, since=StreamPosition(0, ""))
    log.held.clear()
    await settle()
    hub.leave(reader, CHAT)
    written = len(reader.writes)
    log.held.set()
    await settle()

    assert len(reader.writes) == written
    assert hub.channels() == {}


@pytest.mark.parametrize("failure", [None, ValueError("broken")])
async def test_catching_up_goes_on_when_the_log_can_be_read_again(
    hub: Hub, log: Logbook, failure: Exception | None
) -> None:
    log.write(CHAT, 12)
    reader = Reader()
    await joined(hub, reader, since=StreamPosition(0, ""))
    log.failure, log.unavailable = failure, failure is None
    await settle()
    log.unavailable = False
    await until(lambda: len(reader.offsets(CHAT)) == 8)

    assert reader.offsets(CHAT) == list(range(5, 13))
    assert not reader.lost


async def test_nobody_is_sent_what_the_hub_has_not_been_handed_yet(hub: Hub, log: Logbook) -> None:
    """A commit is in the log a moment before the hub learns of it."""
    log.write(CHAT, 6)
    live = await reader_in(hub, CHAT)
    later = log.write(CHAT, 4)
    late = Reader()
    result = await joined(hub, late, since=StreamPosition(4, ""))
    assert result is not None
    assert [json.loads(pub)["offset"] for pub in result.publications] == [5, 6]
    await settle()
    assert late.offsets(CHAT) == []

    hub.deliver_committed(later)
    await settle()
    assert late.offsets(CHAT) == live.offsets(CHAT) == [7, 8, 9, 10]


async def test_nobody_who_catches_up_runs_ahead_either(hub: Hub, log: Logbook) -> None:
    slow = await reader_in(hub, CHAT)
    slow.pause()
    hub.deliver_committed(log.write(CHAT, 2))
    later = log.write(CHAT, 2)
    hub.forget_tail(CHAT)
    slow.resume()
    await settle()
    assert slow.offsets(CHAT) == [1, 2]

    hub.deliver_committed(later)
    await settle()
    assert slow.offsets(CHAT) == [1, 2, 3, 4]


async def test_what_arrives_while_several_catch_up_comes_once(hub: Hub, log: Logbook) -> None:
    readers = [await reader_in(hub, CHAT) for _ in range(6)]
    for reader in readers:
        reader.pause()
        hub.deliver_committed(log.write(CHAT, 2))
        await turn()
    for reader in readers:
        reader.resume()
    for _ in range(40):
        hub.deliver_committed(log.write(CHAT))
        await turn()
    await settle()

    assert [reader.offsets(CHAT) for reader in readers] == [list(range(1, 53))] * 6


# --- what cannot be recovered -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("since", "gap"),
    [
        (StreamPosition(2, "epoch-1"), (3, 12)),
        (StreamPosition(2, ""), (3, 12)),
        (StreamPosition(2, "another"), (1, 12)),
        (StreamPosition(99, "epoch-1"), None),
        (StreamPosition(99, ""), None),
    ],
)
async def test_a_hole_is_named(
    hub: Hub, log: Logbook, since: StreamPosition, gap: tuple[int, int] | None
) -> None:
    log.write(CHAT, 12)
    log.trim(CHAT, 8)
    reader = Reader()
    result = await joined(hub, reader, since=since)

    assert result == Joined(StreamPosition(12, "epoch-1"), recovered=False, gap=gap)
    hub.deliver_committed(log.write(CHAT))
    await settle()
    assert reader.offsets(CHAT) == [13]


async def test_who_wants_no_hole_does_not_enter(hub: Hub, log: Logbook) -> None:
    log.write(CHAT, 12)
    log.trim(CHAT, 8)
    reader = Reader()

    assert await joined(hub, reader, since=StreamPosition(2, ""), only_recovered=True) is None
    assert hub.channels() == {}
    result = await joined(hub, reader, since=StreamPosition(9, ""), only_recovered=True)
    assert result is not None
    assert result.recovered


async def test_recoveries_are_counted_by_their_result(hub: Hub, log: Logbook) -> None:
    log.write(CHAT, 12)
    log.trim(CHAT, 8)
    good = counted("recoveries_total", recovered="true")
    bad = counted("recoveries_total", recovered="false")
    await joined(hub, Reader(), since=StreamPosition(12, "epoch-1"))
    await joined(hub, Reader(), since=StreamPosition(1, "epoch-1"))
    await joined(hub, Reader())

    assert counted("recoveries_total", recovered="true") - good == 1
    assert counted("recoveries_total", recovered="false") - bad == 1


async def test_a_client_that_knows_more_is_believed_if_the_log_agrees(
    hub: Hub, log: Logbook
) -> None:
    log.write(CHAT, 3)
    live = await reader_in(hub, CHAT)
    log.write(CHAT, 3)  # and nobody told the hub
    result = await joined(hub, Reader(), since=StreamPosition(5, "epoch-1"))

    assert result is not None
    assert (result.recovered, result.position) == (True, StreamPosition(6, "epoch-1"))
    await until(lambda: live.offsets(CHAT) == [4, 5, 6])


async def test_a_client_that_claims_more_than_there_is_costs_one_read(
    hub: Hub, log: Logbook
) -> None:
    await reader_in(hub, CHAT)
    hub.deliver_committed(log.write(CHAT, 3))
    reads = log.reads
    result = await joined(hub, Reader(), since=StreamPosition(99, "epoch-1"))

    assert result == Joined(StreamPosition(3, "epoch-1"), recovered=False)
    assert log.reads == reads + 1


async def test_a_history_that_was_removed_while_somebody_catches_up_is_a_lost_position(
    hub: Hub, log: Logbook
) -> None:
    minds, does_not = await reader_in(hub, CHAT), await reader_in(hub, CHAT, minds=False)
    for reader in (minds, does_not):
        reader.pause()
    hub.deliver_committed(log.write(CHAT, 10))
    log.trim(CHAT, 10)
    hub.forget_tail(CHAT)
    for reader in (minds, does_not):
        reader.resume()
    await until(lambda: minds.lost and does_not.lost)
    hub.deliver_committed(log.write(CHAT))
    await settle()

    assert minds.offsets(CHAT) == []
    assert does_not.offsets(CHAT) == [11]
    assert hub.subscribers(CHAT) == 1


# --- what the hub itself missed ---------------------------------------------------------------


async def test_a_publication_that_comes_twice_is_written_once(hub: Hub, log: Logbook) -> None:
    reader = await reader_in(hub, CHAT)
    first, second = log.write(CHAT, 2)
    for batch in ([first], [first, second], [second], [first]):
        hub.deliver_committed(batch)
        await turn()

    assert reader.offsets(CHAT) == [1, 2]


async def test_a_publication_that_is_missing_is_read_from_the_log(hub: Hub, log: Logbook) -> None:
    readers = [await reader_in(hub, CHAT) for _ in range(2)]
    deflated = await reader_in(hub, CHAT, deflate=True)
    hub.deliver_committed(log.write(CHAT))
    log.write(CHAT, 5)
    hub.deliver_committed(log.write(CHAT))
    hub.deliver_committed(log.write(CHAT))
    await until(lambda: all(len(reader.offsets(CHAT)) == 8 for reader in readers))
    hub.deliver_committed(log.write(CHAT))
    await settle()

    for reader in (*readers, deflated):
        assert reader.offsets(CHAT) == list(range(1, 10))
        assert not reader.lost


async def test_what_was_missed_in_silence_is_found_by_a_check(hub: Hub, log: Logbook) -> None:
    reader, other = await reader_in(hub, CHAT), await reader_in(hub, "chat:other")
    hub.deliver_committed(log.write(CHAT))
    log.write(CHAT, 3)
    hub.check_positions()
    hub.check_positions()
    await until(lambda: reader.offsets(CHAT) == [1, 2, 3, 4])

    assert other.writes == []
    assert other.lost == []


async def test_a_check_that_is_asked_for_during_a_check_is_made_after_it(
    hub: Hub, log: Logbook
) -> None:
    reader = await reader_in(hub, CHAT)
    log.held = asyncio.Event()
    hub.check_positions()
    reads = log.reads
    await until(lambda: log.reads > reads)
    log.write(CHAT, 2)  # too late for the check that is under way
    hub.check_positions()
    log.held.set()
    await until(lambda: reader.offsets(CHAT) == [1, 2])


async def test_a_check_waits_for_the_database(hub: Hub, log: Logbook) -> None:
    reader = await reader_in(hub, CHAT)
    log.write(CHAT)
    log.unavailable = True
    hub.check_positions()
    await settle()
    assert reader.writes == []
    log.unavailable = False
    await until(lambda: reader.offsets(CHAT) == [1])


async def test_a_check_finds_many_channels_in_portions(
    hub: Hub, log: Logbook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_module, "POSITIONS_AT_ONCE", 2)
    names = [f"chat:{number}" for number in range(5)]
    reader = await reader_in(hub, *names)
    for name in names:
        log.write(name)
    reads = log.reads
    hub.check_positions()
    await until(lambda: len(reader.pushes) == 5)

    assert log.reads - reads == 3 + 5


async def test_a_check_that_fails_is_logged_and_the_next_one_made(
    hub: Hub, log: Logbook, caplog: pytest.LogCaptureFixture
) -> None:
    reader = await reader_in(hub, CHAT)
    log.write(CHAT)
    log.failure = ValueError("broken")
    hub.check_positions()
    await until(lambda: caplog.records)
    assert reader.writes == []
    hub.check_positions()
    await until(lambda: reader.offsets(CHAT) == [1])


async def test_a_check_takes_no_notice_of_channels_that_went_meanwhile(
    hub: Hub, log: Logbook, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone, stays = await reader_in(hub, CHAT), await reader_in(hub, "chat:other")
    monkeypatch.setattr(hub_module, "IDLE_CHANNELS_MAX", 0)
    log.write("chat:other")
    log.held = asyncio.Event()
    reads = log.reads
    hub.check_positions()
    await until(lambda: log.reads > reads)
    hub.leave(gone, CHAT)
    log.held.set()
    await until(lambda: stays.offsets("chat:other") == [1])


async def test_a_log_that_nothing_was_published_to_yet_is_missing_nothing(
    hub: Hub, log: Logbook
) -> None:
    reader = await reader_in(hub, CHAT)
    log._epochs.clear()
    hub.check_positions()
    await settle()

    assert not reader.lost
    assert hub.subscribers(CHAT) == 1


# --- a log that begins anew -------------------------------------------------------------------


async def test_a_new_epoch_ends_the_positions_of_the_old_one(hub: Hub, log: Logbook) -> None:
    minds, does_not = await reader_in(hub, CHAT), await reader_in(hub, CHAT, minds=False)
    slow = await reader_in(hub, CHAT, minds=False)
    slow.pause()
    hub.deliver_committed(log.write(CHAT, 5))
    log.begin_anew(CHAT)
    hub.deliver_committed(log.write(CHAT, 2))
    await settle()

    assert minds.lost == [CHAT]
    assert minds.offsets(CHAT) == [1, 2, 3, 4, 5]
    assert does_not.offsets(CHAT) == [1, 2, 3, 4, 5, 1, 2]
    slow.resume()
    await until(lambda: slow.offsets(CHAT) == [1, 2])
    hub.deliver_committed(log.write(CHAT))
    await settle()
    assert slow.offsets(CHAT) == [1, 2, 3]
    result = await joined(hub, Reader(), since=StreamPosition(5, "epoch-1"))
    assert result == Joined(StreamPosition(3, "epoch-2"), recovered=False, gap=(1, 3))


async def test_a_new_epoch_is_found_by_a_check(hub: Hub, log: Logbook) -> None:
    reader = await reader_in(hub, CHAT)
    hub.deliver_committed(log.write(CHAT, 5))
    log.begin_anew(CHAT)
    log.write(CHAT, 2)
    hub.check_positions()
    await until(lambda: reader.lost)

    assert await joined(hub, Reader()) == Joined(StreamPosition(2, "epoch-2"))


async def test_pages_of_a_former_epoch_are_nobodys(hub: Hub, log: Logbook) -> None:
    log.write(CHAT, 12)
    reader = Reader(minds=False)
    await joined(hub, reader, since=StreamPosition(0, ""))
    log.held = asyncio.Event()
    await settle()
    # The read of the second page has looked, and while it is on its way:
    log.begin_anew(CHAT)
    hub.deliver_committed(log.write(CHAT, 1, data="new"))
    log.held.set()
    await until(lambda: reader.writes)
    await settle()

    assert data_of(reader, CHAT) == [[1, "new"]]


async def test_a_position_that_both_epochs_have_is_read_in_the_new_one(
    hub: Hub, log: Logbook
) -> None:
    log.write(CHAT, 12)
    reader = Reader(minds=False)
    await joined(hub, reader, since=StreamPosition(0, ""))
    log.held = asyncio.Event()
    await settle()
    # It stands at 4 and reads on; in the new epoch the hub hears of 5 first.
    log.begin_anew(CHAT)
    log.write(CHAT, 4, data="new")
    hub.deliver_committed(log.write(CHAT, data="new"))
    log.held.set()
    await until(lambda: reader.writes)
    await settle()

    assert data_of(reader, CHAT) == [[5, "new"]]
    assert reader.lost == [CHAT]


async def test_a_log_that_began_anew_in_silence_is_noticed_by_whoever_reads_it(
    hub: Hub, log: Logbook
) -> None:
    await reader_in(hub, CHAT)
    hub.deliver_committed(log.write(CHAT, 3))
    hub.forget_tail(CHAT)
    log.begin_anew(CHAT)
    log.write(CHAT, 3)
    late = Reader()
    await joined(hub, late, since=StreamPosition(1, ""))
    await until(lambda: late.lost)
    await settle()

    assert await joined(hub, Reader()) == Joined(StreamPosition(3, "epoch-2"))


async def test_a_log_that_went_back_in_time_is_noticed_by_a_check(
    hub: Hub, log: Logbook, caplog: pytest.LogCaptureFixture
) -> None:
    reader = await reader_in(hub, CHAT)
    committed = log.write(CHAT, 5)
    hub.deliver_committed(committed)
    await turn()
    log._publications[CHAT] = log._publications[CHAT][:3]
    hub.check_positions()
    await until(lambda: reader.lost)

    assert await joined(hub, Reader()) == Joined(StreamPosition(3, "epoch-1"))


# --- channels without subscribers -------------------------------------------------------------


async def test_a_channel_that_everybody_left_keeps_its_position_and_its_tail(
    hub: Hub, log: Logbook
) -> None:
    reader = await reader_in(hub, CHAT)
    hub.deliver_committed(log.write(CHAT, 3))
    hub.leave(reader, CHAT)
    hub.deliver_committed(log.write(CHAT, 2))
    reads = log.reads

    result = await joined(hub, Reader(), since=StreamPosition(1, "epoch-1"))

    assert result is not None
    assert [json.loads(pub)["offset"] for pub in result.publications] == [2, 3, 4, 5]
    assert log.reads == reads


async def test_the_channel_that_was_left_longest_ago_makes_room(
    hub: Hub, log: Logbook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_module, "IDLE_CHANNELS_MAX", 2)
    names = ["chat:a", "chat:b", "chat:c"]
    readers = {name: await reader_in(hub, name) for name in names}
    for name in names:
        hub.leave(readers[name], name)
    for name, reads in (("chat:b", 0), ("chat:c", 0), ("chat:a", 1)):
        before = log.reads
        assert await prepared(hub, name, LOG) is None
        assert (name, log.reads - before) == (name, reads)


async def test_a_channel_that_is_being_entered_makes_room_for_nobody(
    hub: Hub, log: Logbook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_module, "IDLE_CHANNELS_MAX", 1)
    log.held = asyncio.Event()
    readers = [Reader() for _ in range(4)]
    entering = [
        asyncio.ensure_future(joined(hub, reader, f"chat:{number}"))
        for number, reader in enumerate(readers)
    ]
    await until(lambda: log.reads == 4)
    log.held.set()

    assert await asyncio.gather(*entering) == [Joined(StreamPosition(0, "epoch-1"))] * 4


async def test_a_channel_without_a_log_is_forgotten_with_its_last_subscriber(hub: Hub) -> None:
    readers = [await reader_in(hub, LIVE, options=PLAIN) for _ in range(2)]
    for reader in readers:
        assert LIVE in hub._channels
        hub.leave(reader, LIVE)

    assert LIVE not in hub._channels


async def test_a_check_forgets_channels_that_nobody_is_in_and_no_log_knows(
    hub: Hub, log: Logbook
) -> None:
    reader = await reader_in(hub, CHAT)
    hub.leave(reader, CHAT)
    log._epochs.clear()
    hub.check_positions()
    await until(lambda: CHAT not in hub._channels)


async def test_tails_are_bounded_in_number_and_bytes(
    hub: Hub, log: Logbook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tails_module, "TAIL_MAX", 4)
    await reader_in(hub, CHAT)
    hub.deliver_committed(log.write(CHAT, 10))
    reads = log.reads
    assert await prepared(hub, CHAT, LOG, StreamPosition(6, "epoch-1")) is None
    assert log.reads == reads
    assert await prepared(hub, CHAT, LOG, StreamPosition(5, "epoch-1")) is None
    assert log.reads > reads

    monkeypatch.setattr(tails_module, "TAIL_MAX_BYTES", 300)
    await reader_in(hub, "chat:large")
    hub.deliver_committed(log.write("chat:large", 4, data="x" * 120))
    reads = log.reads
    assert await prepared(hub, "chat:large", LOG, StreamPosition(2, "epoch-1")) is None
    assert log.reads == reads
    assert await prepared(hub, "chat:large", LOG, StreamPosition(1, "epoch-1")) is None
    assert log.reads > reads


async def test_all_tails_together_are_bounded_too(
    hub: Hub, log: Logbook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tails_module, "TAILS_MAX_BYTES", 1000)
    names = [f"chat:{number}" for number in range(4)]
    for name in names:
        await reader_in(hub, name)
        hub.deliver_committed(log.write(name, 2, data="x" * 150))
    await turn()

    kept = [bool(hub._channels[name].tail) for name in names]
    assert kept == [False, False, True, True]


async def test_stopping_ends_whatever_is_under_way(log: Logbook) -> None:
    hub = Hub(asyncio.get_running_loop())
    hub.use(log.streams)
    log.write(CHAT, 12)
    await joined(hub, Reader(), since=StreamPosition(0, ""))
    log.held = asyncio.Event()
    await settle()
    await hub.stop()

    assert asyncio.all_tasks() == {asyncio.current_task()}
