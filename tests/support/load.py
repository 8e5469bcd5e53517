"""Publishers and subscribers that go on through every failure, and an audit of what they were told.

`Load` publishes, `Audience` subscribes; `check_log` holds the log against both.
"""

import asyncio
import random
from collections.abc import Sequence
from typing import Any, Final, NamedTuple, Self

import asyncpg
import orjson

from tests.support.server import mint
from tests.support.waiting import until
from tests.support.ws import DEADLINE, Client, CommandError, ConnectionLost, Feed

RETRY_DELAY: Final = 0.02
"""Seconds until a publisher tries again that was refused or has no connection."""


class Place(NamedTuple):
    """Where an acknowledged message is, by the reply."""

    channel: str
    offset: int
    epoch: str


class Load:
    """Publishers of numbered messages. `async with Load(…) as load:` runs them.

    Each has `outstanding` publishes under way at any time, in `channels` drawn by `seed`. Messages
    are `{"id": "<name><number>"}` with `padding_bytes` more. With `keyed` each has its id as
    idempotency key and is tried until it is acknowledged; otherwise it is tried once.
    """

    def __init__(
        self,
        url: str,
        channels: Sequence[str],
        *,
        publishers: int = 2,
        outstanding: int = 25,
        keyed: bool = False,
        padding_bytes: int = 0,
        name: str = "",
        seed: int = 0,
    ) -> None:
        self.acknowledged: dict[str, Place] = {}
        """Messages with a good reply, by id."""
        self.refused: dict[str, int] = {}
        """Error codes of those with another one. Keyed: of the last try."""
        self.in_doubt: set[str] = set()
        """Those whose connection broke before there was a reply. Not keyed only."""
        self.begun = 0
        """How many messages were sent; their numbers count from 1."""
        self.slowest = 0.0
        """The longest time in seconds that a reply took, good or bad."""
        self.keyed = keyed
        self.name = name
        self._url = url
        self._channels = channels
        self._padding = "x" * padding_bytes
        self._random = random.Random(seed)
        self._stopping = False
        self._publishers = publishers
        self._outstanding = outstanding
        self._clients: list[_Connection] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._changed = asyncio.Condition()

    async def __aenter__(self) -> Self:
        for number in range(self._publishers):
            connection = _Connection(self._url, f"publisher-{number}")
            self._clients.append(connection)
            self._tasks += [
                asyncio.create_task(self._publish(connection)) for _ in range(self._outstanding)
            ]
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            await self.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for connection in self._clients:
            await connection.close()

    async def stop(self, deadline: float = DEADLINE) -> None:
        """Let what is under way come to its end, and begin nothing new."""
        self._stopping = True
        async with asyncio.timeout(deadline):
            await asyncio.gather(*self._tasks)

    async def more(self, count: int, deadline: float = DEADLINE) -> None:
        """Wait until so many more messages are acknowledged."""
        wanted = len(self.acknowledged) + count
        async with asyncio.timeout(deadline), self._changed:
            await self._changed.wait_for(lambda: len(self.acknowledged) >= wanted)

    async def more_refused(self, count: int, deadline: float = DEADLINE) -> None:
        """Wait until so many more messages are refused."""
        wanted = len(self.refused) + count
        async with asyncio.timeout(deadline), self._changed:
            await self._changed.wait_for(lambda: len(self.refused) >= wanted)

    async def _publish(self, connection: "_Connection") -> None:
        while not self._stopping:
            self.begun += 1
            channel = self._random.choice(self._channels)
            await self._publish_one(connection, channel, f"{self.name}{self.begun}")

    async def _publish_one(self, connection: "_Connection", channel: str, name: str) -> None:
        data = {"id": name} | ({"padding": self._padding} if self._padding else {})
        while True:
            client = await connection.client()
            began = asyncio.get_running_loop().time()
            try:
                result = await client.publish(channel, data, key=name if self.keyed else "")
            except CommandError as error:
                if not error.temporary:
                    raise
                await self._note(began, self.refused, name, error.code)
                await asyncio.sleep(RETRY_DELAY)
            except ConnectionLost:
                if not self.keyed:
                    self.in_doubt.add(name)
            else:
                place = Place(channel, result["offset"], result["epoch"])
                self.refused.pop(name, None)
                await self._note(began, self.acknowledged, name, place)
                return
            if not self.keyed:
                return

    async def _note(self, began: float, notes: dict[str, Any], name: str, what: object) -> None:
        self.slowest = max(self.slowest, asyncio.get_running_loop().time() - began)
        async with self._changed:
            notes[name] = what
            self._changed.notify_all()


class Audience:
    """Subscribers of all these channels from their beginning. `async with Audience(…):` runs them.

    They come back whenever their connection has broken, and recover.
    """

    def __init__(self, url: str, channels: Sequence[str], *, count: int = 2) -> None:
        self.feeds = [
            [Feed(channel, from_start=True) for channel in channels] for _ in range(count)
        ]
        """What each of them has got, by channel."""
        self.refusals = 0
        """How many subscribe commands were refused, for a moment."""
        self._connections = [_Connection(url, f"subscriber-{number}") for number in range(count)]
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        for connection, feeds in zip(self._connections, self.feeds, strict=True):
            self._tasks.append(asyncio.create_task(self._follow(connection, feeds)))
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for connection in self._connections:
            await connection.close()

    async def _follow(self, connection: "_Connection", feeds: Sequence[Feed]) -> None:
        while True:
            client = await connection.client()
            for feed in feeds:
                await self._subscribe(client, feed)
            await client.wait_ended(deadline=3600)

    async def _subscribe(self, client: Client, feed: Feed) -> None:
        while True:
            try:
                await client.follow(feed)
            except CommandError as error:
                if not error.temporary:
                    raise
                self.refusals += 1
                await asyncio.sleep(RETRY_DELAY)
            except ConnectionLost:
                return
            else:
                return


class _Connection:
    """A connection that is made again whenever it has broken."""

    def __init__(self, url: str, user: str) -> None:
        self._url = url
        self._user = user
        self._client: Client | None = None
        self._connecting = asyncio.Lock()

    async def client(self) -> Client:
        """One that works, or did a moment ago."""
        async with self._connecting:
            while self._client is None or self._client.ended is not None:
                try:
                    self._client = await Client.open(self._url, mint(self._user))
                except (OSError, ConnectionLost):
                    await asyncio.sleep(RETRY_DELAY)
            return self._client

    async def close(self) -> None:
        if self._client is not None:
            await self._client.close()


async def check_log(database_url: str, *loads: Load, audience: Audience | None = None) -> int:
    """Hold the log against what everybody was told; gives the number of messages in it.

    * Offsets of each channel are 1, 2, 3, … up to its top.
    * No message is there twice.
    * Every acknowledged one is where the reply said, in the epoch that it named.
    * Of those refused as too many, and of those never sent, there is none.
    * All messages with keys are there, once the load has been stopped.
    * Every subscriber gets to see all of it, each message once and in order.
    """
    connection = await asyncpg.connect(database_url)
    try:
        rows = await connection.fetch(
            'select channel, "offset", epoch, data from messages order by channel, "offset"'
        )
        streams = await connection.fetch("select channel, top from streams")
    finally:
        await connection.close()
    tops: dict[str, int] = dict(map(tuple, streams))
    offsets: dict[str, list[int]] = {channel: [] for channel in tops}
    places: dict[str, Place] = {}
    twice = []
    for channel, offset, epoch, data in rows:
        offsets[channel].append(offset)
        name = orjson.loads(data)["id"]
        if name in places:
            twice.append((name, places[name], offset))
        places[name] = Place(channel, offset, epoch)
    assert not twice, f"stored twice: {twice[:10]}"
    for channel, top in tops.items():
        assert offsets[channel] == list(range(1, top + 1)), f"a gap in {channel}"
    if audience is not None:
        await _check_audience(audience, tops, rows)
    sent: set[str] = set()
    for load in loads:
        mine = {f"{load.name}{number}" for number in range(1, load.begun + 1)}
        sent |= mine
        lost = [
            (name, place, places.get(name))
            for name, place in load.acknowledged.items()
            if places.get(name) != place
        ]
        assert not lost, f"acknowledged, but not there: {lost[:10]}"
        refused = [name for name, code in load.refused.items() if code == 111 and name in places]
        assert not refused, f"refused, but there: {refused[:10]}"
        if load.keyed:
            assert mine <= places.keys(), f"never stored: {sorted(mine - places.keys())[:10]}"
    assert places.keys() <= sent, f"never sent: {sorted(places.keys() - sent)[:10]}"
    return len(places)


async def _check_audience(audience: Audience, tops: dict[str, int], rows: Sequence[Any]) -> None:
    feeds = [feed for feeds in audience.feeds for feed in feeds]
    try:
        await until(lambda: all(feed.offset >= tops.get(feed.channel, 0) for feed in feeds))
    except TimeoutError:
        behind = [(feed.channel, feed.offset, tops.get(feed.channel, 0)) for feed in feeds]
        raise AssertionError(f"they are at, of: {behind}") from None
    for feed in feeds:
        assert not feed.faults, f"{feed.channel}: {feed.faults[:10]}"
        stored = [
            (offset, orjson.loads(data))
            for channel, offset, _, data in rows
            if channel == feed.channel
        ]
        assert feed.received == stored, f"{feed.channel} was seen otherwise than it is stored"
