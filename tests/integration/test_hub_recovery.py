"""The hub over a real log: recovery, catching up, and what is missed in silence.

A `Reader` stands for a connection: it takes what is written to it, holds it to the promise of each
publication once and in order, and may stop reading.
"""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest

from gateway import hub as hub_module
from gateway.broker.memory import MemoryBroker
from gateway.channel import Recorder, Sink
from gateway.hub import Hub
from gateway.protocol.actions import Published, Publishing
from gateway.protocol.channels import ChannelOptions
from gateway.protocol.codec import StreamPosition
from gateway.protocol.codes import INTERNAL, ErrorCode
from gateway.protocol.subscription import Joined
from gateway.streams import StreamLimits, Streams, new_epoch
from metrics import instruments
from store.pool import Database, connect
from tests.support.proxy import Proxy
from tests.support.waiting import until

DEADLINE = 60.0
PAGE = 16
OPTIONS = ChannelOptions(history_size=1_000_000, history_ttl=3600, force_recovery=True)
LIMITS = StreamLimits(publish_timeout=2.0, recovery_page=PAGE)
CHAT = "chat"


class Node:
    """What one gateway process has between its sockets and the database."""

    def __init__(self, database: Database, limits: StreamLimits) -> None:
        self.hub = Hub(asyncio.get_running_loop())
        broker = MemoryBroker(self.hub)
        self.streams = Streams(
            database, limits, broker.publish_committed, self.hub.check_positions, new_epoch()
        )
        self.hub.use(self.streams)
        self.published = 0
        self.faults: list[str] = []
        """What readers got and shouldn't have; the hub would survive it if they raised."""

    def publish(self, channel: str = CHAT, data: object = None) -> asyncio.Future[Any]:
        """Publish data, or the next number."""
        self.published += 1
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        payload = orjson.dumps(self.published if data is None else data)
        self.streams.append(Publishing(channel, OPTIONS, payload), future.set_result)
        return future

    async def fill(self, count: int, channel: str = CHAT, data: object = None) -> str:
        """Publish so many, and give the epoch."""
        outcomes = await asyncio.gather(*(self.publish(channel, data) for _ in range(count)))
        last = outcomes[-1]
        assert isinstance(last, Published)
        return last.epoch


@asynccontextmanager
async def running(url: str, limits: StreamLimits = LIMITS) -> AsyncIterator[Node]:
    database = await Database.open(url, pool_max=4)
    node = Node(database, limits)
    await node.streams.start()
    try:
        yield node
    finally:
        await node.streams.stop()
        await node.hub.stop()
        await database.close()
    assert not node.faults


@pytest.fixture
async def node(database_url: str) -> AsyncIterator[Node]:
    async with asyncio.timeout(DEADLINE), running(database_url) as node:
        yield node


@pytest.fixture
async def other(database_url: str) -> AsyncIterator[Node]:
    """Another process, of which `node` hears nothing."""
    async with running(database_url) as node:
        yield node


@pytest.fixture
async def admin(database_url: str) -> AsyncIterator[Any]:
    connection = await connect(database_url)
    yield connection
    connection.terminate()


def frames(data: bytes) -> Iterator[bytes]:
    """The payloads of a server's text frames."""
    while data:
        assert data[0] == 0x81
        size, start = data[1], 2
        if size == 126:
            size, start = int.from_bytes(data[2:4], "big"), 4
        elif size == 127:
            size, start = int.from_bytes(data[2:10], "big"), 10
        yield data[start : start + size]
        data = data[start + size :]


class Reader:
    """A subscriber. With a `budget` it stops reading after so many writes, like a full socket."""

    deflate = False

    def __init__(self, node: Node, *, positioned: bool = True, budget: int | None = None) -> None:
        self._node = node
        self._positioned = positioned
        self._loose = False
        self.budget = budget
        self.paused = False
        self.joined: Joined | None = None
        self.at = -1
        """The offset of the last publication it has got; -1: it isn't subscribed."""
        self.epoch = ""
        self.count = 0
        self.lost = 0

    @property
    def sink(self) -> Sink:
        return self._write

    @property
    def record(self) -> Recorder | None:
        return None

    def _write(self, data: bytes) -> None:
        for payload in frames(data):
            push = orjson.loads(payload)["push"]
            if push["channel"] != CHAT or self.at < 0:
                self._node.faults.append(f"unexpected: {push}")
            self._take(push["pub"]["offset"])
        if self.budget is not None:
            self.budget -= 1
            if self.budget <= 0:
                self.pause()

    def _take(self, offset: int) -> None:
        if offset != self.at + 1 and not (self._loose and offset > self.at):
            self._node.faults.append(f"{offset} came after {self.at}")
        self.at = offset
        self.count += 1

    def position_lost(self, channel: str) -> bool:
        assert channel == CHAT
        if not self._positioned:
            # It takes what comes, from wherever that is.
            self._loose = True
            self.at = 0
            return False
        self.lost += 1
        self.at = -1
        self._node.hub.leave(self, channel)
        return True

    def pause(self) -> None:
        if not self.paused:
            self.paused = True
            self._node.hub.writing_paused(self, {CHAT: False})

    def resume(self, budget: int | None = None) -> None:
        self.budget = budget
        if self.paused:
            self.paused = False
            self._node.hub.writing_resumed(self, {CHAT: False})

    async def join(self, since: int | None = None, epoch: str | None = None) -> Joined:
        """Subscribe, and recover when a position is given."""
        position = (
            None if since is None else StreamPosition(since, self.epoch if epoch is None else epoch)
        )
        future: asyncio.Future[ErrorCode | None] = asyncio.get_running_loop().create_future()

        def prepared(error: ErrorCode | None) -> None:
            # In the same step, as connections do.
            if error is None:
                self._join(position)
            future.set_result(error)

        self._node.hub.prepare(CHAT, OPTIONS, position, prepared)
        error = await future
        assert error is None, error
        assert self.joined is not None
        return self.joined

    def _join(self, since: StreamPosition | None) -> None:
        self.joined = self._node.hub.join(self, CHAT, OPTIONS, since, listens=False)
        assert self.joined is not None
        assert self.joined.position is not None
        self.epoch = self.joined.position.epoch
        if self.joined.recovered and since is not None:
            self.at = since.offset
            for pub in self.joined.publications:
                self._take(orjson.loads(pub)["offset"])
        else:
            assert not self.joined.publications
            self.at = self.joined.position.offset


def database_reads() -> float:
    """How many reads of the log went to the database so far."""
    labels = {"source": "database"}
    return instruments.REGISTRY.get_sample_value("capegate_log_reads_total", labels) or 0.0


def busy() -> set[str]:
    """Names of the coroutines that run beside the test."""
    coroutines = (task.get_coro() for task in asyncio.all_tasks() - {asyncio.current_task()})
    return {getattr(coroutine, "__qualname__", "?") for coroutine in coroutines}


async def until_settled() -> None:
    """Wait until the hub has nothing left to do."""
    await until(lambda: not any(name.startswith("Hub.") for name in busy()))


# --- recovering -----------------------------------------------------------------------------------


async def test_a_new_subscriber_gets_what_comes_from_now_on(node: Node) -> None:
    await node.fill(5)
    reader = Reader(node)
    joined = await reader.join()
    assert joined.position == StreamPosition(5, reader.epoch)
    assert (joined.recovered, joined.publications) == (None, ())

    await node.fill(100)
    await until(lambda: reader.at == 105)
    assert reader.count == 100


@pytest.mark.parametrize("since", [0, 1, 15, 16, 17, 500, 989, 990])
async def test_any_gap_is_recovered_page_by_page(node: Node, other: Node, since: int) -> None:
    """Another process has written the log, so nothing of it is in memory here."""
    epoch = await other.fill(990)
    reader = Reader(node)

    joined = await reader.join(since, epoch)
    assert joined.recovered is True
    assert joined.gap is None
    assert len(joined.publications) == min((since // PAGE + 1) * PAGE, 990) - since
    await until(lambda: reader.at == 990)
    await until_settled()

    assert reader.count == 990 - since
    # And it is live now.
    node.hub.check_positions()
    await node.fill(1)
    await until(lambda: reader.at == 991)


async def test_an_empty_epoch_stands_for_the_present_one(node: Node, other: Node) -> None:
    await other.fill(50)
    reader = Reader(node)
    assert (await reader.join(7, "")).recovered is True
    await until(lambda: reader.at == 50)


@pytest.mark.parametrize(("since", "gap"), [(0, (1, 40)), (20, (21, 40)), (31, (32, 40))])
async def test_what_history_no_longer_has_is_a_gap_that_is_named(
    node: Node, other: Node, admin: Any, since: int, gap: tuple[int, int]
) -> None:
    epoch = await other.fill(40)
    await admin.execute('delete from publications where "offset" <= 32')
    await admin.execute("update streams set floor = 32")
    reader = Reader(node)

    joined = await reader.join(since, epoch)
    assert (joined.recovered, joined.gap) == (False, gap)
    assert joined.position == StreamPosition(40, epoch)
    await node.fill(1)
    await until(lambda: reader.at == 41)


async def test_positions_that_never_were_are_not_recovered(node: Node, other: Node) -> None:
    epoch = await other.fill(10)
    for since, of in ((11, epoch), (5, "another"), (1 << 50, ""), (5, "_"), (0, "_")):
        reader = Reader(node)
        joined = await reader.join(since, of)
        assert joined.recovered is False
        assert joined.position == StreamPosition(10, epoch)
        node.hub.leave(reader, CHAT)


async def test_who_wants_all_or_nothing_does_not_enter_without(node: Node, other: Node) -> None:
    epoch = await other.fill(10)
    await Reader(node).join()
    reader = Reader(node)
    since = StreamPosition(11, epoch)
    assert node.hub.join(reader, CHAT, OPTIONS, since, False, only_recovered=True) is None
    assert node.hub.subscribers(CHAT) == 1


async def test_ten_thousand_recoveries_read_each_page_once(node: Node, other: Node) -> None:
    epoch = await other.fill(200)
    before = database_reads()
    readers = [Reader(node) for _ in range(10_000)]

    await asyncio.gather(*(reader.join(0, epoch) for reader in readers))
    await until(lambda: all(reader.at == 200 for reader in readers))

    pages = -(-200 // PAGE)
    assert database_reads() - before == pages + 1  # and the position
    assert {reader.count for reader in readers} == {200}


async def test_recoveries_from_everywhere_cost_little_more_than_from_one_place(
    node: Node, other: Node
) -> None:
    """Looking for those at one position must not cost the square of their number."""
    epoch = await other.fill(1500)

    async def recover(places: list[int]) -> float:
        readers = [Reader(node) for _ in places]
        begun = time.process_time()
        await asyncio.gather(
            *(reader.join(at, epoch) for at, reader in zip(places, readers, strict=True))
        )
        await until(lambda: all(reader.at == 1500 for reader in readers), DEADLINE)
        assert sum(reader.count for reader in readers) == sum(1500 - at for at in places)
        return time.process_time() - begun

    together = await recover([750] * 1500)
    before = database_reads()
    scattered = await recover(list(range(1500)))

    assert database_reads() - before <= 1500 / PAGE + 1
    assert scattered < 3 * together


async def test_publications_that_arrive_while_recovering_are_merged(
    node: Node, other: Node
) -> None:
    """From here, and from another process whose news come later or never."""
    epoch = await other.fill(500)
    rng = random.Random(2)
    readers: list[Reader] = []

    async def publish(on: Node, count: int) -> None:
        for _ in range(count):
            await asyncio.gather(*(on.publish() for _ in range(rng.randint(1, 9))))

    async def recover() -> None:
        for _ in range(60):
            reader = Reader(node)
            readers.append(reader)
            await reader.join(rng.randrange(500), epoch)

    await asyncio.gather(publish(node, 60), publish(other, 60), recover())
    node.hub.check_positions()
    top = 500 + node.published + other.published - 500
    await until(lambda: all(reader.at == top for reader in readers))
    await until_settled()


async def test_nobody_runs_ahead_of_what_this_process_was_handed(node: Node, other: Node) -> None:
    """The log's last page has publications that nobody has told this process of."""
    epoch = await other.fill(40)
    first = Reader(node)
    await first.join()
    await other.fill(5)

    reader = Reader(node)
    await reader.join(0, epoch)
    await until(lambda: reader.at >= 40)
    await until_settled()
    assert reader.at == first.at == 40

    node.hub.check_positions()
    await until(lambda: reader.at == first.at == 45)
    await node.fill(1)
    await until(lambda: reader.at == first.at == 46)


async def test_who_knows_more_than_this_process_is_believed_if_the_log_agrees(
    node: Node, other: Node
) -> None:
    epoch = await other.fill(10)
    first = Reader(node)
    await first.join()
    await other.fill(30)

    reader = Reader(node)
    assert (await reader.join(35, epoch)).recovered is True
    await until(lambda: reader.at == first.at == 40)


# --- what is missed in silence --------------------------------------------------------------------


async def test_the_next_publication_shows_that_some_were_missed(node: Node, other: Node) -> None:
    readers = [Reader(node) for _ in range(3)]
    await asyncio.gather(*(reader.join() for reader in readers))
    await node.fill(3)
    await other.fill(300)

    await node.fill(1)
    await until(lambda: all(reader.at == 304 for reader in readers))


async def test_a_check_shows_it_without_one(node: Node, other: Node) -> None:
    reader = Reader(node)
    await reader.join()
    await other.fill(300)

    node.hub.check_positions()
    await until(lambda: reader.at == 300)


async def test_a_check_that_is_asked_for_during_a_check_is_made(
    database_url: str, other: Node
) -> None:
    """The first one may have looked already where something has just gone missing."""
    async with Proxy.before(database_url) as line, running(line.url(database_url)) as node:
        reader = Reader(node)
        await reader.join()
        line.hold_answers()
        node.hub.check_positions()
        await until(lambda: line.answers_held == 1)
        await other.fill(3)
        node.hub.check_positions()
        line.release()
        await until(lambda: reader.at == 3)


async def test_a_new_epoch_is_noticed_and_everybody_told(node: Node, admin: Any) -> None:
    epoch = await node.fill(20)
    live, slow, loose = Reader(node), Reader(node), Reader(node, positioned=False)
    for reader in (live, slow, loose):
        await reader.join()
    slow.pause()
    await node.fill(1)
    await until(lambda: live.at == 21)
    await admin.execute("delete from publications")
    await admin.execute("delete from streams")

    again = await node.fill(2)
    assert again != epoch
    await until(lambda: live.lost == slow.lost == 1)
    await until(lambda: loose.at == 2)
    joined = await live.join(21, epoch)
    assert (joined.recovered, joined.position) == (False, StreamPosition(2, again))
    await node.fill(3)
    await until(lambda: live.at == loose.at == 5)


async def test_a_new_epoch_that_another_process_began_is_found_by_the_check(
    node: Node, other: Node, admin: Any
) -> None:
    await node.fill(20)
    reader = Reader(node)
    await reader.join()
    await admin.execute("delete from publications")
    await admin.execute("delete from streams")
    epoch = await other.fill(30)

    node.hub.check_positions()
    await until(lambda: reader.lost == 1)
    joined = await reader.join(20)
    assert (joined.recovered, joined.position) == (False, StreamPosition(30, epoch))


async def test_a_log_that_went_back_in_time_is_noticed(node: Node, admin: Any) -> None:
    """A standby took over that had missed the last commits: the same epoch, and less in it."""
    await node.fill(20)
    reader = Reader(node)
    await reader.join()
    await admin.execute('delete from publications where "offset" > 15')
    await admin.execute("update streams set top = 15")

    node.hub.check_positions()
    await until(lambda: reader.lost == 1)
    joined = await reader.join(20)
    assert joined.recovered is False
    assert joined.position is not None
    assert joined.position.offset == 15
    await node.fill(2)
    await until(lambda: reader.at == 17)


# --- slow readers ---------------------------------------------------------------------------------


async def test_a_slow_reader_is_demoted_and_catches_up(node: Node) -> None:
    fast, slow = Reader(node), Reader(node)
    await fast.join()
    await slow.join()
    await node.fill(3)
    await until(lambda: slow.at == 3)

    slow.pause()
    await node.fill(1000)
    await until(lambda: fast.at == 1003)
    assert slow.at == 3
    assert not any(name.startswith("Hub.") for name in busy())

    slow.resume()
    await until(lambda: slow.at == 1003)
    await node.fill(2)
    await until(lambda: slow.at == fast.at == 1005)
    assert slow.lost == 0


async def test_a_reader_that_pauses_while_it_catches_up_goes_on_there(node: Node) -> None:
    slow = Reader(node, budget=1)
    await slow.join()
    await node.fill(2000, data="x" * 1000)
    await until(lambda: slow.at > 0)

    resumed = 0
    while slow.at < 2000:
        await until(lambda: slow.paused)
        slow.resume(budget=1)
        resumed += 1
    # Between two looks at the pressure it is written 64 KiB at most.
    assert resumed >= 2000 * 1000 / 65536 - 1
    await node.fill(1)


async def test_readers_of_every_speed_get_everything_once(node: Node) -> None:
    """Forty readers with random pauses, come and go while others publish."""
    rng = random.Random(5)
    readers = [Reader(node) for _ in range(40)]
    for reader in readers:
        await reader.join()
    running = True

    async def publish() -> None:
        for _ in range(150):
            await asyncio.gather(
                *(
                    node.publish(data="x" * rng.choice((1, 500, 30_000)))
                    for _ in range(rng.randint(1, 30))
                )
            )

    async def disturb() -> None:
        while running:
            reader = rng.choice(readers)
            match rng.randrange(4):
                case 0:
                    reader.pause()
                case 1:
                    reader.resume(rng.randint(1, 5))
                case 2:
                    reader.resume()
                case _ if reader.at >= 0 and not reader.paused:
                    node.hub.leave(reader, CHAT)
                    assert (await reader.join(reader.at)).recovered
            await asyncio.sleep(0)

    disturbing = asyncio.create_task(disturb())
    await publish()
    running = False
    await disturbing
    for reader in readers:
        reader.resume()
    await until(lambda: all(reader.at == node.published for reader in readers))
    await until_settled()
    assert not any(reader.lost for reader in readers)
    await node.fill(1)
    await until(lambda: all(reader.at == node.published for reader in readers))


async def test_who_stays_behind_for_longer_than_history_loses_its_position(
    node: Node, admin: Any
) -> None:
    slow, loose = Reader(node), Reader(node, positioned=False)
    await slow.join()
    await loose.join()
    slow.pause()
    loose.pause()
    # More than memory keeps of a channel.
    epoch = await node.fill(400)
    await admin.execute('delete from publications where "offset" <= 390')
    await admin.execute("update streams set floor = 390")

    slow.resume()
    loose.resume()
    await until(lambda: slow.lost == 1)
    joined = await slow.join(0, epoch)
    assert (joined.recovered, joined.gap) == (False, (1, 400))
    await node.fill(1)
    await until(lambda: slow.at == loose.at == 401)
    assert loose.count == 1


# --- without a database ---------------------------------------------------------------------------


async def test_catching_up_waits_for_the_database(database_url: str, other: Node) -> None:
    async with (
        asyncio.timeout(DEADLINE),
        Proxy.before(database_url) as line,
        running(line.url(database_url)) as node,
    ):
        epoch = await other.fill(100)
        reader = Reader(node)
        await reader.join(0, epoch)
        late = Reader(node)
        line.refuse()
        line.cut()
        answers: list[ErrorCode | None] = []
        node.hub.prepare("elsewhere", OPTIONS, None, answers.append)
        await until(lambda: bool(answers))
        assert answers == [INTERNAL]

        line.accept()
        await until(lambda: reader.at == 100)
        await late.join(50, epoch)
        await until(lambda: late.at == 100)


async def test_channels_that_wait_for_the_database_make_room_for_nobody(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More of them than are kept without subscribers, and two clients for each."""
    monkeypatch.setattr(hub_module, "IDLE_CHANNELS_MAX", 5)
    async with (
        asyncio.timeout(DEADLINE),
        Proxy.before(database_url) as line,
        running(line.url(database_url)) as node,
    ):
        names = [f"c{number}" for number in range(50)]
        line.hold()
        answers: list[ErrorCode | None] = []
        joined: list[Joined | None] = []
        for name in names * 2:

            def prepared(error: ErrorCode | None, name: str = name) -> None:
                answers.append(error)
                joined.append(node.hub.join(Reader(node), name, OPTIONS, None, False))

            node.hub.prepare(name, OPTIONS, None, prepared)
            await asyncio.sleep(0)
        line.release()
        await until(lambda: len(answers) == 100)
        await until_settled()

        assert set(answers) == {None}
        assert len(joined) == 100
        assert node.hub.channels() == dict.fromkeys(names, 2)
