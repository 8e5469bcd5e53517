"""Group commit and shared reads over a real PostgreSQL, and over lines to it that break."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest

from gateway.broker.contract import Committed
from gateway.protocol.actions import Published, Publishing
from gateway.protocol.channels import ChannelOptions
from gateway.protocol.codec import StreamPosition
from gateway.protocol.codes import INTERNAL, TOO_MANY_REQUESTS, UNRECOVERABLE, ErrorCode
from gateway.streams import LogUnavailable, StreamLimits, Streams, new_epoch
from metrics import instruments
from store.pool import Database, connect
from tests.support.cluster import Cluster
from tests.support.proxy import COMMITTED, STATEMENT_COMMITTED, Proxy
from tests.support.waiting import until

DEADLINE = 20.0
TIMEOUT = 1.0  # publish_timeout here
SLACK = 0.5  # what an answer may be late by, on a busy machine
OPTIONS = ChannelOptions(history_size=100_000, history_ttl=3600)
LIMITS = StreamLimits(publish_timeout=TIMEOUT, recovery_page=16)

Outcome = Published | ErrorCode


class Journal:
    """Streams, and what they have told those around them."""

    def __init__(self, database: Database, limits: StreamLimits) -> None:
        self.committed: list[Committed] = []
        self.doubts = 0
        self.limits = limits
        self.streams = Streams(
            database, limits, self.committed.extend, self._doubt, f"node-{new_epoch()}"
        )

    def _doubt(self) -> None:
        self.doubts += 1

    def publish(
        self,
        data: object,
        *,
        channel: str = "chat",
        key: str = "",
        info: bytes | None = None,
        tags: bytes | None = None,
    ) -> asyncio.Future[Outcome]:
        """Append a publication; the future has what its publisher is told."""
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        # A second answer would be an error in the loop.
        self.streams.append(
            Publishing(channel, OPTIONS, orjson.dumps(data), info, tags, key), future.set_result
        )
        return future

    def offsets(self, channel: str = "chat") -> list[int]:
        """The offsets of a channel that were handed to subscribers."""
        return [each.offset for each in self.committed if each.channel == channel]


@asynccontextmanager
async def journal(
    url: str, limits: StreamLimits = LIMITS, pool_max: int = 4
) -> AsyncIterator[Journal]:
    database = await Database.open(url, pool_max=pool_max)
    try:
        made = Journal(database, limits)
        await made.streams.start()
        yield made
        await made.streams.stop()
    finally:
        await database.close()


@pytest.fixture
async def plain(database_url: str) -> AsyncIterator[Journal]:
    """Streams with nothing between them and the database."""
    async with asyncio.timeout(DEADLINE), journal(database_url) as made:
        yield made


@pytest.fixture
async def line(database_url: str) -> AsyncIterator[Proxy]:
    async with Proxy.before(database_url) as proxy:
        yield proxy


@pytest.fixture
async def proxied(database_url: str, line: Proxy) -> AsyncIterator[Journal]:
    """Streams behind `line`, with one publication in "chat", so that everything is warm."""
    async with asyncio.timeout(DEADLINE), journal(line.url(database_url)) as made:
        assert (await made.publish("first")).offset == 1  # type: ignore[union-attr]
        made.committed.clear()
        yield made


@pytest.fixture
async def admin(database_url: str) -> AsyncIterator[Any]:
    connection = await connect(database_url)
    yield connection
    connection.terminate()


async def stored(admin: Any, channel: str = "chat") -> list[tuple[int, Any]]:
    rows = await admin.fetch(
        'select "offset", data from messages where channel = $1 order by "offset"', channel
    )
    return [(offset, orjson.loads(data)) for offset, data in rows]


async def wait_for_waiters(admin: Any, count: int) -> None:
    """Wait until so many statements of this database wait for a lock."""
    while count != await admin.fetchval(
        "select count(*) from pg_stat_activity"
        " where datname = current_database() and wait_event_type = 'Lock'"
    ):
        pass


# --- writing --------------------------------------------------------------------------------------


async def test_a_publication_is_durable_when_its_publisher_is_answered(
    plain: Journal, admin: Any
) -> None:
    info, tags = b'{"user":"alice","client":"1"}', b'{"kind":"greeting"}'
    before = time.time()
    outcome = await plain.publish({"text": "hi"}, info=info, tags=tags)

    assert isinstance(outcome, Published)
    assert (outcome.offset, outcome.duplicate) == (1, False)
    assert await stored(admin) == [(1, {"text": "hi"})]
    (committed,) = plain.committed
    assert (committed.channel, committed.offset, committed.epoch) == ("chat", 1, outcome.epoch)
    pub = orjson.loads(committed.pub)
    assert before - 1 < pub.pop("time") / 1000 < time.time() + 1
    assert pub == {
        "data": {"text": "hi"},
        "info": orjson.loads(info),
        "tags": orjson.loads(tags),
        "offset": 1,
    }
    # And the same when it is read back.
    page = await plain.streams.page("chat", OPTIONS, 0, StreamPosition(1, outcome.epoch))
    assert page is not None
    assert page.publications == [(1, committed.pub)]


async def test_subscribers_come_before_publishers(plain: Journal) -> None:
    seen = []
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def done(outcome: Outcome) -> None:
        seen.extend(plain.offsets())
        future.set_result(None)

    plain.streams.append(Publishing("chat", OPTIONS, b"1"), done)
    await future
    assert seen == [1]


async def test_what_gathers_during_a_commit_goes_into_the_next_one(
    plain: Journal, admin: Any
) -> None:
    publishes = [plain.publish(number, channel=f"c{number % 3}") for number in range(2500)]
    outcomes = await asyncio.gather(*publishes)

    # The first one may go alone; the rest in batches of a thousand at most.
    assert await admin.fetchval("select batch from publishers") <= 4
    for number, outcome in enumerate(outcomes):
        assert isinstance(outcome, Published)
        assert outcome.offset == number // 3 + 1
    for channel in ("c0", "c1", "c2"):
        offsets = [offset for offset, _ in await stored(admin, channel)]
        assert offsets == plain.offsets(channel) == list(range(1, len(offsets) + 1))
    assert plain.doubts == 0


async def test_a_key_stores_and_delivers_once(plain: Journal, admin: Any) -> None:
    outcomes = [
        *await asyncio.gather(
            plain.publish(1, key="k"), plain.publish(2), plain.publish(3, key="k")
        ),
        await plain.publish(4, key="k"),
    ]
    assert [outcome.duplicate for outcome in outcomes if isinstance(outcome, Published)] == [
        False,
        False,
        True,
        True,
    ]
    assert [getattr(outcome, "offset", None) for outcome in outcomes] == [1, 2, 1, 1]
    assert await stored(admin) == [(1, 1), (2, 2)]
    assert plain.offsets() == [1, 2]


async def test_a_channel_whose_stream_was_forgotten_begins_anew(plain: Journal, admin: Any) -> None:
    first = await plain.publish(1)
    other = await plain.publish("x", channel="other")
    await admin.execute("delete from publications")
    await admin.execute("delete from streams where channel = 'chat'")

    again = await asyncio.gather(
        plain.publish(2), plain.publish("y", channel="other"), plain.publish(3)
    )

    assert isinstance(first, Published)
    assert isinstance(other, Published)
    assert all(isinstance(outcome, Published) for outcome in again)
    assert [getattr(outcome, "offset", None) for outcome in again] == [1, 2, 2]
    assert getattr(again[0], "epoch", "") not in ("", first.epoch)
    assert getattr(again[1], "epoch", "") == other.epoch
    assert await stored(admin) == [(1, 2), (2, 3)]


async def test_a_database_restored_from_a_backup_takes_publications_again(
    plain: Journal, admin: Any
) -> None:
    await plain.publish(1)
    await admin.execute("delete from publishers")

    assert await plain.publish(2) == INTERNAL
    outcome = await plain.publish(3)
    assert isinstance(outcome, Published)
    assert plain.doubts == 1
    assert await stored(admin) == [(1, 1), (outcome.offset, 3)]


async def test_stopping_commits_what_is_queued_and_takes_no_more(
    database_url: str, admin: Any
) -> None:
    async with journal(database_url) as made:
        publishes = [made.publish(number) for number in range(1500)]
        await made.streams.stop()
        outcomes = [publish.result() for publish in publishes]
        assert await made.publish("late") == INTERNAL

    assert all(isinstance(outcome, Published) for outcome in outcomes)
    assert len(await stored(admin)) == 1500


async def test_stopping_without_a_database_answers_everybody_once_and_in_time(
    proxied: Journal, line: Proxy
) -> None:
    line.refuse()
    line.cut()
    publishes = [proxied.publish(number) for number in range(10)]
    # The first batch has been given up, the second one waits for the database.
    assert await publishes[0] == INTERNAL
    publishes += [proxied.publish(number) for number in range(10)]

    begun = time.monotonic()
    await proxied.streams.stop()
    # There is nothing to wait for any more.
    assert time.monotonic() - begun < TIMEOUT + SLACK

    assert [publish.result() for publish in publishes] == [INTERNAL] * 20


async def test_stopping_on_a_silent_line_is_bounded(proxied: Journal, line: Proxy) -> None:
    line.hold()
    publishes = [proxied.publish(number) for number in range(10)]
    begun = time.monotonic()
    await proxied.streams.stop()
    assert time.monotonic() - begun < TIMEOUT + SLACK
    assert [publish.result() for publish in publishes] == [INTERNAL] * 10


# --- a database that goes away --------------------------------------------------------------------


async def test_backends_that_are_ended_cost_nobody_an_error(plain: Journal, admin: Any) -> None:
    others = "from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
    for round_ in range(5):
        publishes = [plain.publish((round_, number)) for number in range(50)]
        await admin.execute(f"select pg_terminate_backend(pid) {others}")
        for outcome in await asyncio.gather(*publishes):
            assert isinstance(outcome, Published)
    assert [offset for offset, _ in await stored(admin)] == plain.offsets()
    assert len(plain.offsets()) == 250


@pytest.mark.parametrize("how", ["refused", "silent", "stopped", "lost"])
async def test_publishers_wait_no_longer_than_they_should(
    proxied: Journal, line: Proxy, cluster: Cluster, how: str
) -> None:
    """However the database is gone, and whether a publication is the first or comes later."""
    match how:
        case "refused":
            line.refuse()
            line.cut()
        case "silent":
            line.hold()
        case "lost":
            line.hold()
            line.lose()
        case "stopped":
            await asyncio.to_thread(cluster.stop)
    slowest = 0.0
    for _ in range(4):
        publishes = []
        begun = time.monotonic()
        for number in range(3):
            publishes.append(proxied.publish(number))
            await asyncio.sleep(TIMEOUT / 10)
        assert await asyncio.gather(*publishes) == [INTERNAL] * 3
        slowest = max(slowest, time.monotonic() - begun)
    assert slowest < TIMEOUT * 1.2 + SLACK
    assert proxied.committed == []
    assert proxied.streams.queued == 0

    if how == "stopped":
        await asyncio.to_thread(cluster.start)
    line.accept()
    line.release()
    begun = time.monotonic()
    while not isinstance(outcome := await proxied.publish("again"), Published):
        assert outcome == INTERNAL
    # Nobody waits for lines that were lost to be found out one by one.
    assert time.monotonic() - begun < 3 * TIMEOUT + SLACK
    assert proxied.doubts


async def test_the_queue_is_bounded_in_number_and_in_bytes(database_url: str, line: Proxy) -> None:
    limits = StreamLimits(
        publish_timeout=TIMEOUT, publish_queue_max=100, publish_queue_max_bytes=10_000
    )
    async with asyncio.timeout(DEADLINE), journal(line.url(database_url), limits) as made:
        await made.publish("first")
        line.hold()
        waiting = [made.publish("being committed")]
        await asyncio.sleep(0)
        waiting += [made.publish(number) for number in range(100)]
        assert made.streams.queued == 100
        assert made.streams.queued_bytes == sum(len(str(number)) for number in range(100))
        assert await made.publish("one too many") == TOO_MANY_REQUESTS
        assert set(await asyncio.gather(*waiting)) == {INTERNAL}

        waiting = [made.publish("x" * 998) for _ in range(10)]
        assert await made.publish("one too many") == TOO_MANY_REQUESTS
        assert set(await asyncio.gather(*waiting)) == {INTERNAL}
        assert made.streams.queued == 0

        line.release()
        while not isinstance(await made.publish("again"), Published):
            pass
        # What was counted in was counted out.
        results = await asyncio.gather(*(made.publish("x" * 998) for _ in range(10)))
        assert all(isinstance(result, Published) for result in results)


# --- commits in doubt -----------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["", "k"])
async def test_a_commit_whose_answer_was_lost_is_neither_lost_nor_doubled(
    proxied: Journal, line: Proxy, admin: Any, key: str
) -> None:
    cut = line.cut_before_answer(COMMITTED if key else STATEMENT_COMMITTED)
    outcomes = await asyncio.gather(
        proxied.publish("a", key=key), proxied.publish("b"), proxied.publish("c", channel="other")
    )

    assert cut.is_set()
    assert [getattr(outcome, "offset", outcome) for outcome in outcomes] == [2, 3, 1]
    assert not any(getattr(outcome, "duplicate", True) for outcome in outcomes)
    assert await stored(admin) == [(1, "first"), (2, "a"), (3, "b")]
    assert (proxied.offsets(), proxied.offsets("other")) == ([2, 3], [1])
    assert await proxied.publish("d", key=key) == (
        Published(2, outcomes[0].epoch, True)  # type: ignore[union-attr]
        if key
        else Published(4, outcomes[0].epoch, False)  # type: ignore[union-attr]
    )


@pytest.mark.parametrize("key", ["", "k"])
async def test_an_attempt_that_outlives_its_publishers_is_found_in_the_log(
    proxied: Journal, line: Proxy, admin: Any, database_url: str, key: str
) -> None:
    """It waits for a lock for longer than they do, and is then written."""
    holder = await connect(database_url)
    transaction = holder.transaction()
    await transaction.start()
    await holder.execute("select from streams for update")
    in_time = proxied.publish("doubtful", key=key)
    await wait_for_waiters(admin, 1)
    line.cut()
    begun = time.monotonic()

    assert await in_time == INTERNAL
    assert time.monotonic() - begun < TIMEOUT + SLACK
    assert proxied.doubts == 0  # not before it is known how it ended
    after = proxied.publish("after")
    await transaction.rollback()
    await holder.close()
    outcome = await after

    # Whether the lost attempt made it depends on whether PostgreSQL still had it in hand.
    kept = await stored(admin)
    assert proxied.doubts == 1
    assert isinstance(outcome, Published)
    assert kept in (
        [(1, "first"), (2, "after")],
        [(1, "first"), (2, "doubtful"), (3, "after")],
    )
    assert proxied.offsets() == [outcome.offset]
    if key:
        again = await proxied.publish("doubtful", key=key)
        assert isinstance(again, Published)
        assert again.duplicate == (len(kept) == 3)


@pytest.mark.parametrize("key", ["", "k"])
async def test_a_commit_that_arrives_late_is_not_written(
    proxied: Journal, line: Proxy, admin: Any, key: str
) -> None:
    """Its packets were under way until everybody had given it up."""
    line.hold_present()
    assert await proxied.publish("late", key=key) == INTERNAL
    while not isinstance(await proxied.publish("after"), Published):
        pass

    lines = line.lines
    line.release()
    # The late one reaches PostgreSQL, whose answer nobody hears; then its line ends.
    await until(lambda: line.lines < lines)
    assert [data for _, data in await stored(admin)] == ["first", "after"]
    assert isinstance(await proxied.publish("last"), Published)


async def test_every_byte_of_a_commit_may_be_the_last(
    proxied: Journal, line: Proxy, admin: Any
) -> None:
    """Cut at many places of the conversation, in both directions, with keys and without."""
    for keyed in (False, True):
        sent, received = line.to_server_bytes, line.to_client_bytes
        await proxied.publish(f"probe {keyed}", key="probe" if keyed else "")
        sizes = {
            "to_server": line.to_server_bytes - sent,
            "to_client": line.to_client_bytes - received,
        }
        for way, size in sizes.items():
            for place in sorted({1, 2, *range(5, size, max(size // 12, 1)), size - 1, size}):
                name = f"{keyed} {way} {place}"
                line.cut_after(**{way: place})
                outcome = await proxied.publish(name, key=name if keyed else "")
                assert isinstance(outcome, Published), name
                assert not outcome.duplicate, name
    kept = await stored(admin)
    assert [offset for offset, _ in kept] == list(range(1, len(kept) + 1))
    assert len({data for _, data in kept}) == len(kept)
    assert [1, *proxied.offsets()] == [offset for offset, _ in kept]


# --- reading --------------------------------------------------------------------------------------


def database_reads() -> float:
    """How many reads of the log went to the database so far."""
    value = instruments.REGISTRY.get_sample_value(
        "capegate_log_reads_total", {"source": "database"}
    )
    return value or 0.0


async def fill(plain: Journal, count: int, channel: str = "chat") -> str:
    """Publish 1, 2, 3, … and give the epoch."""
    outcomes = await asyncio.gather(
        *(plain.publish(number + 1, channel=channel) for number in range(count))
    )
    last = outcomes[-1]
    assert isinstance(last, Published)
    assert last.offset == count
    return last.epoch


async def age(admin: Any, channel: str, first: int, last: int) -> None:
    """Make some publications older than history goes back."""
    await admin.execute(
        """
        update publications p set published_at = published_at - interval '2 hours'
        from streams s
        where s.channel = $1 and p.stream_id = s.id and p."offset" between $2 and $3
        """,
        channel,
        first,
        last,
    )


def offsets_of(publications: Sequence[tuple[int, bytes]]) -> list[int]:
    for offset, pub in publications:
        assert orjson.loads(pub)["offset"] == offset
    return [offset for offset, _ in publications]


async def test_a_channel_without_a_log_gets_one_when_it_is_asked_for(plain: Journal) -> None:
    position = await plain.streams.position("new")
    assert position.offset == 0
    assert position.epoch
    assert await plain.streams.position("new") == position
    assert await plain.publish(1, channel="new") == Published(1, position.epoch)
    assert await plain.streams.positions(["new", "nowhere"]) == {
        "new": StreamPosition(1, position.epoch)
    }


async def test_pages_are_aligned_and_reach_up_to_the_top(plain: Journal) -> None:
    epoch = await fill(plain, 40)
    streams = plain.streams

    for after in (0, 5, 15):
        page = await streams.page("chat", OPTIONS, after, StreamPosition(40, epoch))
        assert page is not None
        assert (page.epoch, page.until) == (epoch, 16)
        assert offsets_of(page.publications) == list(range(1, 17))
        assert offsets_of(page.after(after)) == list(range(after + 1, 17))
    last = await streams.page("chat", OPTIONS, 39, StreamPosition(40, epoch))
    assert last is not None
    assert (last.until, offsets_of(last.after(39))) == (40, [40])
    assert offsets_of(last.after(40)) == []
    assert await streams.page("nowhere", OPTIONS, 0, StreamPosition(40, epoch)) is None


async def test_a_page_is_read_once_for_all_who_want_it(plain: Journal) -> None:
    top = StreamPosition(64, await fill(plain, 64))
    before = database_reads()

    pages = await asyncio.gather(
        *(plain.streams.page("chat", OPTIONS, number % 64, top) for number in range(10_000))
    )

    assert database_reads() - before == 4
    assert len({id(page) for page in pages}) == 4


async def test_a_cached_page_that_is_too_short_is_read_again(plain: Journal) -> None:
    epoch = await fill(plain, 5)
    first = await plain.streams.page("chat", OPTIONS, 0, StreamPosition(5, epoch))
    assert first is not None
    assert first.until == 5

    await plain.publish(6)
    second = await plain.streams.page("chat", OPTIONS, 5, StreamPosition(6, epoch))
    assert second is not None
    assert offsets_of(second.after(5)) == [6]


async def test_a_page_of_another_epoch_is_not_served(plain: Journal, admin: Any) -> None:
    epoch = await fill(plain, 5)
    old = await plain.streams.page("chat", OPTIONS, 0, StreamPosition(5, epoch))
    await admin.execute("delete from publications")
    await admin.execute("delete from streams")
    epoch = await fill(plain, 5)

    page = await plain.streams.page("chat", OPTIONS, 0, StreamPosition(5, epoch))
    assert old is not None
    assert page is not None
    assert page.epoch == epoch != old.epoch
    assert page.publications != old.publications


async def test_a_page_has_what_size_and_time_let_history_keep(plain: Journal, admin: Any) -> None:
    epoch = await fill(plain, 10)
    small = ChannelOptions(history_size=4, history_ttl=3600)
    page = await plain.streams.page("chat", small, 0, StreamPosition(10, epoch))
    assert page is not None
    assert offsets_of(page.publications) == [7, 8, 9, 10]

    epoch = await fill(plain, 10, "aged")
    await age(admin, "aged", 1, 8)
    page = await plain.streams.page("aged", OPTIONS, 0, StreamPosition(10, epoch))
    assert page is not None
    assert (offsets_of(page.publications), page.until) == ([9, 10], 10)


async def test_a_page_has_no_hole_even_if_clocks_made_one(plain: Journal, admin: Any) -> None:
    epoch = await fill(plain, 10)
    await age(admin, "chat", 6, 6)
    page = await plain.streams.page("chat", OPTIONS, 0, StreamPosition(10, epoch))
    assert page is not None
    assert offsets_of(page.publications) == [7, 8, 9, 10]


async def test_who_stops_waiting_for_a_read_does_not_end_it_for_the_others(
    proxied: Journal, line: Proxy
) -> None:
    top = await proxied.streams.position("chat")
    line.hold()
    impatient = asyncio.create_task(proxied.streams.page("chat", OPTIONS, 0, top))
    patient = asyncio.create_task(proxied.streams.page("chat", OPTIONS, 0, top))
    await asyncio.sleep(0)
    impatient.cancel()
    await asyncio.gather(impatient, return_exceptions=True)
    line.release()
    page = await patient
    assert page is not None
    assert offsets_of(page.publications) == [1]


@pytest.mark.parametrize("how", ["refused", "silent", "stopped"])
async def test_readers_wait_no_longer_than_they_should(
    proxied: Journal, line: Proxy, cluster: Cluster, how: str
) -> None:
    match how:
        case "refused":
            line.refuse()
            line.cut()
        case "silent":
            line.hold()
        case "stopped":
            await asyncio.to_thread(cluster.stop)
    streams = proxied.streams
    begun = time.monotonic()
    results = await asyncio.gather(
        *(streams.position(f"c{number}") for number in range(20)),
        *(
            streams.page("chat", OPTIONS, number * 16, StreamPosition(1000, "E"))
            for number in range(20)
        ),
        streams.positions(["chat"]),
        streams.history("chat", OPTIONS, 10),
        streams.clear("chat"),
        return_exceptions=True,
    )
    assert {type(result) for result in results} == {LogUnavailable}
    assert time.monotonic() - begun < TIMEOUT + SLACK

    if how == "stopped":
        await asyncio.to_thread(cluster.start)
    line.accept()
    line.release()
    assert (await streams.position("chat")).offset == 1


async def test_a_read_that_loses_its_line_is_tried_again(proxied: Journal, line: Proxy) -> None:
    for place in (1, 10, 50, 100, 200):
        line.cut_after(to_client=place)
        assert (await proxied.streams.positions(["chat"]))["chat"].offset == 1


async def test_history_reads_both_ways_between_positions(plain: Journal) -> None:
    epoch = await fill(plain, 10)

    async def offsets(limit: int, since: int | None = None, reverse: bool = False) -> list[int]:
        position = None if since is None else StreamPosition(since, epoch)
        found = await plain.streams.history("chat", OPTIONS, limit, position, reverse)
        assert not isinstance(found, ErrorCode)
        pubs, top = found
        assert top == StreamPosition(10, epoch)
        return [orjson.loads(pub)["offset"] for pub in pubs]

    assert await offsets(0) == []
    assert await offsets(3) == [1, 2, 3]
    assert await offsets(3, reverse=True) == [10, 9, 8]
    assert await offsets(3, since=4) == [5, 6, 7]
    assert await offsets(3, since=4, reverse=True) == [3, 2, 1]
    assert await offsets(99, since=10) == []
    unrelated = StreamPosition(4, "another")
    assert await plain.streams.history("chat", OPTIONS, 3, unrelated) == UNRECOVERABLE


async def test_cleared_history_is_gone_at_once_also_from_memory(plain: Journal) -> None:
    epoch = await fill(plain, 5)
    top = StreamPosition(5, epoch)
    await plain.streams.page("chat", OPTIONS, 0, top)

    await plain.streams.clear("chat")

    page = await plain.streams.page("chat", OPTIONS, 0, top)
    assert page is not None
    assert page.publications == []
    assert await plain.publish("next") == Published(6, epoch)
