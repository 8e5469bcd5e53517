"""The log's SQL against a real PostgreSQL: positions, fences, keys, locks, trimming, plans."""

import asyncio
import itertools
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import pytest

from store import streams as log
from store.pool import Connection, connect

DEADLINE = 30.0
NOW = datetime(2026, 5, 4, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
LONG_AGO = NOW - timedelta(days=1000)

Connect = Callable[[], Awaitable[Connection]]


@pytest.fixture
async def connections(database_url: str) -> AsyncIterator[Connect]:
    """Makes connections to the test's database."""
    made = []

    async def make() -> Connection:
        made.append(await connect(database_url))
        return made[-1]

    yield make
    for connection in made:
        connection.terminate()


@pytest.fixture
async def connection(connections: Connect) -> Connection:
    return await connections()


class Node:
    """A gateway process as far as the log knows: a name and a count of batches."""

    def __init__(self, connection: Connection, name: str = "one") -> None:
        self.connection = connection
        self.name = name
        self.batch = 0

    async def register(self) -> None:
        await log.register_publisher(self.connection, self.name)

    async def commit(
        self,
        *entries: log.Entry,
        at: datetime = NOW,
        window: timedelta = 5 * MINUTE,
    ) -> list[log.Placed | None]:
        """The next batch."""
        self.batch += 1
        return await self.commit_again(*entries, at=at, window=window)

    async def commit_again(
        self,
        *entries: log.Entry,
        at: datetime = NOW,
        window: timedelta = 5 * MINUTE,
        over: "Connection | None" = None,
    ) -> list[log.Placed | None]:
        """The same batch."""
        return await log.commit(
            over or self.connection, self.name, self.batch, entries, at, at - window
        )


@pytest.fixture
async def node(connection: Connection) -> Node:
    node = Node(connection)
    await node.register()
    return node


async def open_stream(connection: Connection, channel: str, epoch: str = "") -> log.Stream:
    """The stream of a channel, made if need be, in the epoch E-<channel>."""
    return (await log.open_streams(connection, {channel: epoch or f"E-{channel}"}))[channel]


def entry(stream: log.Stream, text: object, key: str = "") -> log.Entry:
    """A publication of some JSON."""
    return log.Entry(stream.id, orjson.dumps(text), None, None, key)


async def rows(connection: Connection, channel: str) -> list[tuple[int, Any]]:
    """What is stored of a channel: offsets and data."""
    found = await connection.fetch(
        'select "offset", data from messages where channel = $1 order by "offset"', channel
    )
    return [(offset, orjson.loads(data)) for offset, data in found]


async def fill(
    node: Node, stream: log.Stream, count: int, at: datetime = NOW, spacing: timedelta = MINUTE
) -> None:
    """Publish 1, 2, 3, …, each `spacing` after the one before; the last one `at` that time."""
    first = at - spacing * (count - 1)
    for number in range(count):
        await node.commit(entry(stream, number + 1), at=first + number * spacing)


@asynccontextmanager
async def locked(connection: Connection, stream: log.Stream) -> AsyncIterator[None]:
    """Holds a stream's row, so that commits to it wait."""
    async with connection.transaction():
        await connection.execute("select from streams where id = $1 for update", stream.id)
        yield


async def wait_for_waiters(connection: Connection, count: int) -> None:
    """Wait until so many statements of this database wait for a lock."""
    async with asyncio.timeout(DEADLINE):
        while count != await connection.fetchval(
            "select count(*) from pg_stat_activity"
            " where datname = current_database() and wait_event_type = 'Lock'"
        ):
            pass


# --- commits --------------------------------------------------------------------------------------


async def test_offsets_count_up_per_channel_in_the_order_given(
    node: Node, connection: Connection
) -> None:
    a = await open_stream(connection, "a")
    b = await open_stream(connection, "b")

    places = await node.commit(entry(a, 1), entry(b, 2), entry(a, 3), entry(a, 4))
    assert places == [
        (1, "E-a", False),
        (1, "E-b", False),
        (2, "E-a", False),
        (3, "E-a", False),
    ]
    assert await node.commit(entry(b, 5), entry(a, 6)) == [(2, "E-b", False), (4, "E-a", False)]

    assert await rows(connection, "a") == [(1, 1), (2, 3), (3, 4), (4, 6)]
    assert await rows(connection, "b") == [(1, 2), (2, 5)]
    assert (await open_stream(connection, "a")).top == 4


async def test_what_was_published_is_stored_byte_for_byte(
    node: Node, connection: Connection
) -> None:
    a = await open_stream(connection, "a")
    data, info, tags = '{"ü" :  1e0,"x":"\\u0000"}'.encode(), b'{"user":"\\n"}', b'{"t":"1"}'

    await node.commit(log.Entry(a.id, data, info, tags, ""), at=NOW)

    page = await log.read_page(connection, "a", 0, 10, LONG_AGO)
    assert page == log.Page("E-a", 1, 0, [log.Row(1, NOW, data, info, tags)])


async def test_streams_are_made_once_and_keep_their_epoch(connection: Connection) -> None:
    made = await log.open_streams(connection, {"b": "first", "a": "first"})
    again = await log.open_streams(connection, {"a": "second", "c": "second", "b": "second"})

    assert {channel: stream.epoch for channel, stream in again.items()} == {
        "a": "first",
        "b": "first",
        "c": "second",
    }
    assert again["a"] == made["a"]
    assert (await log.find_streams(connection, ["a", "nowhere"])) == {"a": made["a"]}


async def test_a_stream_that_is_gone_costs_only_its_own_entries(
    node: Node, connection: Connection
) -> None:
    a, gone = await open_stream(connection, "a"), await open_stream(connection, "gone")
    await connection.execute("delete from streams where id = $1", gone.id)

    for key in ("", "key"):
        places = await node.commit(entry(gone, 1, key), entry(a, 2, key), entry(gone, 3))
        assert places[0] is None
        assert places[2] is None
        assert places[1] is not None

    assert await rows(connection, "a") == [(1, 2), (2, 2)]
    assert await connection.fetchval("select count(*) from publications") == 2


# --- the fence ------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["", "k"])
async def test_a_batch_is_written_once_and_its_outcome_is_remembered(
    node: Node, connection: Connection, key: str
) -> None:
    a, b = await open_stream(connection, "a"), await open_stream(connection, "b")
    await node.commit(entry(a, 0, key))
    batch = [entry(a, 1), entry(b, 2, key), entry(a, 0, key), entry(a, 3)]

    places = await node.commit(*batch)
    for _ in range(2):
        with pytest.raises(log.Fenced):
            await node.commit_again(*batch)
        assert await log.outcome(connection, node.name, node.batch, batch) == places

    duplicate = bool(key)
    assert [place and place.duplicate for place in places] == [False, False, duplicate, False]
    assert len(await rows(connection, "a")) == (3 if duplicate else 4)


@pytest.mark.parametrize("number", [-1, 0, 1, 3, 99])
@pytest.mark.parametrize("key", ["", "k"])
async def test_only_the_next_number_is_written(
    node: Node, connection: Connection, number: int, key: str
) -> None:
    a = await open_stream(connection, "a")
    await node.commit(entry(a, 1))

    node.batch = number
    with pytest.raises(log.Fenced):
        await node.commit_again(entry(a, 2, key))

    assert await rows(connection, "a") == [(1, 1)]
    assert await connection.fetchval("select count(*) from idempotency_keys") == 0
    assert (await open_stream(connection, "a")).top == 1


@pytest.mark.parametrize("key", ["", "k"])
async def test_of_two_attempts_at_once_one_writes(
    node: Node, connection: Connection, connections: Connect, key: str
) -> None:
    a = await open_stream(connection, "a")
    holder, second = await connections(), await connections()
    node.batch = 1

    async with locked(holder, a):
        attempts = [
            asyncio.create_task(node.commit_again(entry(a, 1, key), over=over))
            for over in (connection, second)
        ]
        await wait_for_waiters(holder, 2)
    results = await asyncio.gather(*attempts, return_exceptions=True)

    assert sorted(map(repr, results)) == sorted(
        ["[Placed(offset=1, epoch='E-a', duplicate=False)]", repr(log.Fenced("batch 1 of one"))]
    )
    assert await log.outcome(connection, "one", 1, [entry(a, 1, key)]) == [(1, "E-a", False)]
    assert await rows(connection, "a") == [(1, 1)]


@pytest.mark.parametrize("key", ["", "k"])
async def test_a_used_up_batch_can_never_be_written(
    node: Node, connection: Connection, key: str
) -> None:
    a = await open_stream(connection, "a")

    await log.use_up(connection, node.name, 1)
    node.batch = 1
    with pytest.raises(log.Fenced):
        await node.commit_again(entry(a, 1, key))

    assert await rows(connection, "a") == []
    assert await node.commit(entry(a, 2, key)) == [(1, "E-a", False)]


@pytest.mark.parametrize("key", ["", "k"])
async def test_using_a_batch_up_waits_for_the_attempt_under_way_and_keeps_it(
    node: Node, connection: Connection, connections: Connect, key: str
) -> None:
    a = await open_stream(connection, "a")
    holder, other = await connections(), await connections()
    node.batch = 1

    async with locked(holder, a):
        attempt = asyncio.create_task(node.commit_again(entry(a, 1, key)))
        await wait_for_waiters(holder, 1)
        using_up = asyncio.create_task(log.use_up(other, node.name, 1))
        await wait_for_waiters(holder, 2)
    assert await attempt == [(1, "E-a", False)]
    await using_up

    assert await rows(connection, "a") == [(1, 1)]
    # The next number works: the fence is where it should be.
    assert await node.commit(entry(a, 2, key and "other")) == [(2, "E-a", False)]


@pytest.mark.parametrize("past", ["delete from publishers", "update publishers set batch = 2"])
async def test_using_up_makes_good_a_fence_that_the_database_has_forgotten(
    node: Node, connection: Connection, past: str
) -> None:
    """A database restored from yesterday's backup, or a standby that missed the last commits."""
    a = await open_stream(connection, "a")
    await fill(node, a, 5)
    await connection.execute(past)

    with pytest.raises(log.Fenced):
        await node.commit(entry(a, 6))
    with pytest.raises(log.FenceLost):
        await log.outcome(connection, node.name, node.batch, [entry(a, 6)])
    await log.use_up(connection, node.name, node.batch)

    with pytest.raises(log.Fenced):
        await node.commit_again(entry(a, 6))
    assert await node.commit(entry(a, 7)) == [(6, "E-a", False)]


async def test_nodes_have_fences_of_their_own(node: Node, connection: Connection) -> None:
    a = await open_stream(connection, "a")
    other = Node(connection, "two")
    await other.register()
    await fill(node, a, 3)

    assert await other.commit(entry(a, 4)) == [(4, "E-a", False)]
    assert await node.commit(entry(a, 5)) == [(5, "E-a", False)]


# --- idempotency keys -----------------------------------------------------------------------------


async def test_a_repeated_key_gets_the_first_position_and_stores_nothing(
    node: Node, connection: Connection
) -> None:
    a, b = await open_stream(connection, "a"), await open_stream(connection, "b")
    other = Node(connection, "two")
    await other.register()

    first = await node.commit(entry(a, 0), entry(a, 1, "k"), entry(a, 2, "k"), entry(b, 3, "k"))
    assert first == [(1, "E-a", False), (2, "E-a", False), (2, "E-a", True), (1, "E-b", False)]
    assert await node.commit(entry(a, 4, "k"), entry(a, 5)) == [(2, "E-a", True), (3, "E-a", False)]
    assert await other.commit(entry(a, 6, "k")) == [(2, "E-a", True)]

    assert await rows(connection, "a") == [(1, 0), (2, 1), (3, 5)]
    assert await rows(connection, "b") == [(1, 3)]


async def test_a_key_counts_for_the_window_from_its_first_use(
    node: Node, connection: Connection
) -> None:
    a = await open_stream(connection, "a")
    window = 5 * MINUTE

    async def at(moment: datetime) -> log.Placed | None:
        (place,) = await node.commit(entry(a, str(moment), "k"), at=moment, window=window)
        return place

    assert await at(NOW) == (1, "E-a", False)
    # A repetition doesn't make it count longer.
    assert await at(NOW + 3 * MINUTE) == (1, "E-a", True)
    assert await at(NOW + window) == (1, "E-a", True)
    later = NOW + window + timedelta(microseconds=1)
    assert await at(later) == (2, "E-a", False)
    assert await at(later + window) == (2, "E-a", True)


async def test_the_same_new_key_from_two_nodes_at_once_is_stored_once(
    node: Node, connection: Connection, connections: Connect
) -> None:
    a = await open_stream(connection, "a")
    other = Node(await connections(), "two")
    await other.register()
    holder = await connections()

    async with locked(holder, a):
        commits = [
            asyncio.create_task(each.commit(entry(a, each.name, "k"), entry(a, each.name)))
            for each in (node, other)
        ]
        await wait_for_waiters(holder, 2)
    places = await asyncio.gather(*commits)

    assert sorted(place.duplicate for (place, _) in places if place) == [False, True]
    assert [place and place.offset for (place, _) in places] == [1, 1]
    assert [offset for offset, _ in await rows(connection, "a")] == [1, 2, 3]


async def test_old_keys_are_forgotten_in_steps(node: Node, connection: Connection) -> None:
    a = await open_stream(connection, "a")
    for number in range(10):
        await node.commit(entry(a, number, f"k{number}"), at=NOW + number * MINUTE)

    before = NOW + 7 * MINUTE
    assert [await log.forget_keys(connection, before, 3) for _ in range(4)] == [3, 3, 1, 0]

    assert await connection.fetch("select key from idempotency_keys order by key") == [
        ("k7",),
        ("k8",),
        ("k9",),
    ]


async def test_an_old_key_that_a_commit_uses_again_is_not_waited_for(
    node: Node, connection: Connection, connections: Connect
) -> None:
    """The two would wait for each other if each had a key that the other one wants."""
    a = await open_stream(connection, "a")
    await node.commit(entry(a, 1, "again"), entry(a, 2, "old"))
    other = await connections()
    late = NOW + 60 * MINUTE

    async with other.transaction(), asyncio.timeout(DEADLINE):
        node.batch += 1
        assert await node.commit_again(entry(a, 3, "again"), at=late, over=other) == [
            (3, "E-a", False)
        ]
        assert await log.forget_keys(connection, late, 10) == 1

    assert await connection.fetch("select key from idempotency_keys") == [("again",)]


# --- several at once ------------------------------------------------------------------------------


async def _deadlocks(connection: Connection) -> int:
    # What other sessions counted is visible once they have gone, or told to flush.
    await connection.execute("select pg_stat_force_next_flush()")
    await connection.execute("select pg_stat_clear_snapshot()")
    count: int = await connection.fetchval(
        "select deadlocks from pg_stat_database where datname = current_database()"
    )
    return count


async def test_publishers_on_the_same_channels_and_the_janitor_never_deadlock(
    connections: Connect,
) -> None:
    """Four publishers, in any order of channels, with keys and without, beside trims and forgets.

    A reader looks on: it never sees a publication before the one below it.
    """
    connection = await connections()
    channels = [f"c{number}" for number in range(12)]
    streams = await log.open_streams(connection, dict.fromkeys(channels, "E"))
    running = True

    async def publish(number: int) -> int:
        rng = random.Random(number)
        node = Node(await connections(), f"node-{number}")
        await node.register()
        count = 0
        for batch in range(60):
            chosen = rng.choices(channels, k=rng.randint(1, 24))
            entries = [
                entry(
                    streams[channel],
                    f"{number}-{batch}-{index}",
                    # The keys of all publishers meet, and come again after their window.
                    f"k{rng.randrange(40)}" if rng.random() < 0.3 and batch % 2 else "",
                )
                for index, channel in enumerate(chosen)
            ]
            places = await node.commit(*entries, at=NOW + batch * MINUTE, window=3 * MINUTE)
            count += sum(place is not None and not place.duplicate for place in places)
        return count

    async def trim() -> None:
        over = await connections()
        deleted = 1
        while running or deleted:
            found = await log.find_streams(over, random.Random(deleted).sample(channels, 12))
            keep = [(stream.id, stream.top - 20, LONG_AGO) for stream in found.values()]
            deleted = sum((await log.trim(over, keep, 7)).values())

    async def forget() -> None:
        over = await connections()
        while running:
            await log.forget_keys(over, NOW + 50 * MINUTE, 5)
            await log.forget_streams(over, NOW, NOW, 10)

    async def read() -> None:
        over = await connections()
        for channel in itertools.cycle(channels):
            if not running:
                return
            page = await log.read_page(over, channel, 0, 1 << 40, LONG_AGO)
            assert page is not None
            offsets = [row.offset for row in page.rows]
            assert offsets == list(range(page.floor + 1, page.top + 1))

    async with asyncio.timeout(DEADLINE), asyncio.TaskGroup() as others:
        for task in (trim(), forget(), read()):
            others.create_task(task)
        stored = await asyncio.gather(*(publish(number) for number in range(4)))
        running = False

    tops = await log.find_streams(connection, channels)
    assert sum(stream.top for stream in tops.values()) == sum(stored)
    for channel, stream in tops.items():
        kept = [offset for offset, _ in await rows(connection, channel)]
        assert kept == list(range(stream.top - len(kept) + 1, stream.top + 1))
    assert await _deadlocks(connection) == 0


async def test_channels_are_made_by_two_at_once_in_any_order(connections: Connect) -> None:
    names = [f"c{number}" for number in range(200)]
    first, second = await connections(), await connections()
    for round_ in range(5):
        channels = [f"{name}-{round_}" for name in names]
        async with asyncio.timeout(DEADLINE):
            one, two = await asyncio.gather(
                log.open_streams(first, dict.fromkeys(channels, "first")),
                log.open_streams(second, dict.fromkeys(reversed(channels), "second")),
            )
        assert one == two
        assert one.keys() == set(channels)


async def test_a_trim_and_a_commit_lock_streams_in_the_same_order(
    node: Node, connection: Connection, connections: Connect
) -> None:
    """The trim has the higher id first, by its plan; the channels' names say the opposite."""
    z = await open_stream(connection, "z")
    a = await open_stream(connection, "a")
    await fill(node, z, 3)
    await fill(node, a, 3)
    holder, trimmer = await connections(), await connections()

    # Whoever comes first holds "a" alone while it waits, so the other can't be behind it on "z".
    async with asyncio.timeout(DEADLINE):
        async with locked(holder, a):
            trim = asyncio.create_task(
                log.trim(trimmer, [(z.id, 2, LONG_AGO), (a.id, 2, LONG_AGO)], 10)
            )
            await wait_for_waiters(holder, 1)
            assert await _is_free(holder, z)
        await trim


async def _is_free(connection: Connection, stream: log.Stream) -> bool:
    query = "select from streams where id = $1 for update skip locked"
    return await connection.fetchrow(query, stream.id) is not None


# --- trimming -------------------------------------------------------------------------------------


async def test_trimming_by_size_removes_exactly_what_is_below_in_steps(
    node: Node, connection: Connection
) -> None:
    a, b = await open_stream(connection, "a"), await open_stream(connection, "b")
    await fill(node, a, 25)
    await fill(node, b, 5)

    async def trim() -> dict[int, int]:
        return await log.trim(connection, [(a.id, 20, LONG_AGO), (b.id, 3, LONG_AGO)], 8)

    assert await trim() == {a.id: 8, b.id: 3}
    assert await trim() == {a.id: 8}
    assert await trim() == {a.id: 4}
    assert await trim() == {}

    assert [offset for offset, _ in await rows(connection, "a")] == [21, 22, 23, 24, 25]
    assert [offset for offset, _ in await rows(connection, "b")] == [4, 5]
    found = await log.find_streams(connection, ["a", "b"])
    assert (found["a"].floor, found["a"].top) == (20, 25)
    assert (found["b"].floor, found["b"].top) == (3, 5)
    assert await node.commit(entry(a, "next")) == [(26, "E-a", False)]


async def test_trimming_by_time_removes_exactly_what_is_older(
    node: Node, connection: Connection
) -> None:
    a = await open_stream(connection, "a")
    await fill(node, a, 10, at=NOW)

    cutoff = NOW - 3 * MINUTE
    assert await log.trim(connection, [(a.id, 0, cutoff)], 100) == {a.id: 6}
    assert [offset for offset, _ in await rows(connection, "a")] == [7, 8, 9, 10]

    just_after = NOW + timedelta(microseconds=1)
    assert await log.trim(connection, [(a.id, 0, just_after)], 100) == {a.id: 4}
    assert (await open_stream(connection, "a")).floor == 10


async def test_whoever_was_trimmed_between_two_others_takes_them_out_of_sight(
    node: Node, connection: Connection
) -> None:
    """Clocks of two gateways differ: what history shows has no hole all the same."""
    a = await open_stream(connection, "a")
    for minutes in (10, 2, 9, 1):
        await node.commit(entry(a, minutes), at=NOW - minutes * MINUTE)

    await log.trim(connection, [(a.id, 0, NOW - 5 * MINUTE)], 100)

    page = await log.read_page(connection, "a", 0, 100, LONG_AGO)
    assert page is not None
    assert (page.floor, [row.offset for row in page.rows]) == (3, [4])


async def test_a_cleared_channel_is_empty_at_once_and_goes_on_counting(
    node: Node, connection: Connection
) -> None:
    a = await open_stream(connection, "a")
    await fill(node, a, 3)

    await log.clear(connection, "a")

    assert await log.read_page(connection, "a", 0, 9, LONG_AGO) == log.Page("E-a", 3, 3, [])
    await node.commit(entry(a, "next"))
    page = await log.read_page(connection, "a", 0, 9, LONG_AGO)
    assert page is not None
    assert [row.offset for row in page.rows] == [4]


async def test_streams_with_something_to_trim_are_found_page_by_page(
    node: Node, connection: Connection
) -> None:
    streams = [await open_stream(connection, f"c{number}") for number in range(7)]
    for stream in streams[1:]:
        await node.commit(entry(stream, 1))
    # Cleared, so that nothing shows; its row is still to be deleted.
    await log.clear(connection, "c3")
    # Cleared and trimmed: nothing left.
    await log.clear(connection, "c5")
    await log.trim(connection, [(streams[5].id, 1, LONG_AGO)], 10)

    found: list[str] = []
    after = 0
    while page := await log.trimmable(connection, after, 2):
        assert len(page) <= 2
        found += [stream.channel for stream in page]
        after = page[-1].id
    assert found == ["c1", "c2", "c3", "c4", "c6"]


async def test_only_empty_and_idle_streams_are_forgotten(
    node: Node, connection: Connection
) -> None:
    used, cleared = await open_stream(connection, "used"), await open_stream(connection, "cleared")
    young = await open_stream(connection, "young")
    await open_stream(connection, "never used")
    for stream in (used, cleared, young):
        await node.commit(entry(stream, 1), at=NOW + MINUTE if stream is young else NOW)
    await log.trim(connection, [(cleared.id, 1, LONG_AGO), (young.id, 1, LONG_AGO)], 10)
    await connection.execute("update streams set updated_at = $1 where top = 0", NOW)

    late = NOW + timedelta(seconds=1)
    # The one that was never used goes by the second time alone.
    assert await log.forget_streams(connection, LONG_AGO, NOW, 10) == 0
    assert await log.forget_streams(connection, LONG_AGO, late, 10) == 1
    assert await log.forget_streams(connection, late, late, 10) == 1

    assert set(await log.find_streams(connection, ["used", "cleared", "young", "never used"])) == {
        "used",
        "young",
    }
    assert (await open_stream(connection, "cleared", "another")).epoch == "another"


async def test_a_stream_that_is_being_published_to_is_not_forgotten(
    node: Node, connection: Connection, connections: Connect
) -> None:
    a = await open_stream(connection, "a")
    other = await connections()
    late = datetime.now(UTC) + timedelta(days=1)

    async with other.transaction():
        await log.commit(other, node.name, 1, [entry(a, 1)], late, late)
        # It isn't waited for either.
        async with asyncio.timeout(DEADLINE):
            assert await log.forget_streams(connection, late, late, 10) == 0

    assert await log.forget_streams(connection, late, late, 10) == 0
    assert await rows(connection, "a") == [(1, 1)]


async def test_publishers_that_are_gone_are_forgotten(connection: Connection) -> None:
    for name in ("silent", "alive"):
        await log.register_publisher(connection, name)
    await connection.execute("update publishers set updated_at = $1", NOW)

    await log.touch_publisher(connection, "alive")
    assert await log.forget_publishers(connection, NOW + MINUTE) == 1
    assert await connection.fetch("select node from publishers") == [("alive",)]


# --- reading --------------------------------------------------------------------------------------


async def test_a_page_is_what_history_has_of_a_stretch(node: Node, connection: Connection) -> None:
    a = await open_stream(connection, "a")
    await fill(node, a, 10, at=NOW)
    await log.trim(connection, [(a.id, 2, LONG_AGO)], 100)

    async def offsets(after: int, until: int, not_before: datetime = LONG_AGO) -> list[int]:
        page = await log.read_page(connection, "a", after, until, not_before)
        assert page is not None
        assert (page.epoch, page.top, page.floor) == ("E-a", 10, 2)
        return [row.offset for row in page.rows]

    assert await offsets(0, 5) == [3, 4, 5]
    assert await offsets(5, 8) == [6, 7, 8]
    assert await offsets(8, 100) == [9, 10]
    assert await offsets(0, 100, NOW - 2 * MINUTE) == [8, 9, 10]
    assert await offsets(10, 100) == []
    assert await log.read_page(connection, "nowhere", 0, 10, LONG_AGO) is None


async def test_history_goes_up_and_down_between_its_bounds(
    node: Node, connection: Connection
) -> None:
    a = await open_stream(connection, "a")
    await fill(node, a, 10, at=NOW)

    async def offsets(above: int, below: int, limit: int, reverse: bool) -> list[int]:
        found = await log.read_history(
            connection,
            a,
            above=above,
            below=below,
            not_before=NOW - 7 * MINUTE,
            limit=limit,
            reverse=reverse,
        )
        return [row.offset for row in found]

    assert await offsets(0, 11, 100, False) == [3, 4, 5, 6, 7, 8, 9, 10]
    assert await offsets(4, 8, 2, False) == [5, 6]
    assert await offsets(4, 8, 2, True) == [7, 6]
    assert await offsets(0, 11, 100, True) == [10, 9, 8, 7, 6, 5, 4, 3]


# --- plans ----------------------------------------------------------------------------------------

# Enough that the planner has a reason to use an index: thousands of pages, and few of them needed.
_LARGE = {"streams", "publications", "idempotency_keys"}
_MANY = """
insert into streams (channel, epoch, top)
    select 'c' || n, 'E', 10 from generate_series(1, 20000) n;
insert into publications (stream_id, "offset", published_at, data)
    select s.id, n, now() - interval '1 day' * n, '"payload"'
    from streams s, generate_series(1, 10) n;
insert into idempotency_keys (stream_id, key, "offset", created_at)
    select id, 'k', 1, now() - interval '1 second' * id from streams;
"""


def _scans(plan: dict[str, Any]) -> Iterable[tuple[str, str]]:
    """Each table in a plan and how it is read."""
    if "Relation Name" in plan and plan["Node Type"] != "ModifyTable":
        yield plan["Relation Name"], plan["Node Type"]
    for inner in plan.get("Plans", ()):
        yield from _scans(inner)


async def _explained(
    connection: Connection, call: Callable[[Connection], Awaitable[object]], *, generic: bool
) -> set[tuple[str, str]]:
    """How the statements of a call read each table, with their values known or not."""
    queries: list[Any] = []
    with connection.query_logger(queries.append):
        await call(connection)
        await asyncio.sleep(0)  # the logger is called in the loop's next turn
    scans = set()
    for query in queries:
        if not query.args:
            continue  # begin, commit
        if generic:
            await connection.execute(f"prepare it as {query.query}")
            nulls = ", ".join(["null"] * len(query.args))
            text = f"explain (format json) execute it ({nulls})"
            plans = orjson.loads(await connection.fetchval(text))
            await connection.execute("deallocate it")
        else:
            text = f"explain (format json) {query.query}"
            plans = orjson.loads(await connection.fetchval(text, *query.args))
        scans |= set(_scans(plans[0]["Plan"]))
    return scans


@pytest.mark.parametrize("generic", [False, True], ids=["custom", "generic"])
async def test_what_runs_often_reads_by_an_index(connection: Connection, generic: bool) -> None:
    """Both plans that PostgreSQL may take for a prepared statement."""
    await connection.execute(_MANY)
    await connection.execute("vacuum analyze")
    await connection.execute(
        f"set plan_cache_mode = force_{'generic' if generic else 'custom'}_plan"
    )
    node = Node(connection)
    await node.register()
    names = [f"c{number}" for number in range(1, 20000, 1000)]
    streams = list((await log.find_streams(connection, names)).values())
    entries = [entry(stream, 1) for stream in streams]
    now = datetime.now(UTC)

    async def commit(connection: Connection) -> None:
        await node.commit(*entries, at=now)

    async def commit_keyed(connection: Connection) -> None:
        await node.commit(*(entry(stream, 1, "new") for stream in streams), at=now)

    async def history(connection: Connection) -> None:
        for reverse in (False, True):
            await log.read_history(
                connection,
                streams[0],
                above=0,
                below=10,
                not_before=LONG_AGO,
                limit=5,
                reverse=reverse,
            )

    keep: Sequence[tuple[int, int, datetime]] = [(stream.id, 5, LONG_AGO) for stream in streams]
    calls: dict[str, Callable[[Connection], Awaitable[object]]] = {
        "commit": commit,
        "commit with keys": commit_keyed,
        "find": lambda c: log.find_streams(c, names),
        "page": lambda c: log.read_page(c, "c77", 0, 256, LONG_AGO),
        "history": history,
        "clear": lambda c: log.clear(c, "c78"),
        "trimmable": lambda c: log.trimmable(c, 5000, 200),
        "trim": lambda c: log.trim(c, keep, 500),
        "forget keys": lambda c: log.forget_keys(c, LONG_AGO, 1000),
        "forget streams": lambda c: log.forget_streams(c, now, now, 1000),
    }
    for name, call in calls.items():
        scans = await _explained(connection, call, generic=generic)
        assert {table for table, _ in scans} & _LARGE, name
        whole = {table for table, how in scans if how == "Seq Scan"} & _LARGE
        if name == "forget streams":
            # Once a minute, so that nothing has to keep an index on the last change.
            whole.discard("streams")
        assert not whole, f"{name} reads all of {whole}"
