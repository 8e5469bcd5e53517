"""What a reader misses while it doesn't read: nothing, a number, or what it comes to (B.6)."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.chaos.conftest import CONFIG
from tests.support.scrape import scrape, wait_for_level
from tests.support.server import ServerProcess, mint
from tests.support.ws import Client, Feed

LOGGED = "chat:busy"
UNLOGGED = "live:ticks"
ROOM = "room:lobby"
ROOM_CONFIG = """
[[namespaces]]
name = "room"
presence = true
join_leave = true
force_push_join_leave = true
allow_subscribe_for_client = true
allow_presence_for_client = true
"""

PADDING = "x" * 20_000
FILLING = 600  # 12 megabytes: more than what the kernel takes for one connection
TICKS = 3000
VISITORS = 60
# Small enough that the kernel doesn't buffer for ever, large enough to read fast again.
RECEIVE_BUFFER_BYTES = 65536


@pytest.fixture
async def server(folder: Path, database_url: str) -> AsyncIterator[ServerProcess]:
    """A gateway that is patient with slow readers."""
    server = ServerProcess(
        folder,
        database_url=database_url,
        config=CONFIG + ROOM_CONFIG,
        environment={"GATEWAY_SLOW_READER_TIMEOUT": "100"},
    )
    await asyncio.to_thread(server.start)
    yield server
    await asyncio.to_thread(server.kill)


class Reader:
    """A client in all three channels, and what it believes."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.feed = Feed(LOGGED)
        self.present: set[str] = set()
        self.heard = 0
        """Joins and leaves."""
        self.gaps: list[dict[str, int]] = []

    @classmethod
    async def enter(cls, server: ServerProcess, user: str) -> "Reader":
        """Subscribe to everything."""
        client = await Client.open(
            server.ws_url, mint(user), receive_buffer_bytes=RECEIVE_BUFFER_BYTES
        )
        self = cls(client)
        await client.follow(self.feed)
        await client.send("subscribe", channel=UNLOGGED)
        await client.send("subscribe", channel=ROOM)
        self.present = await self.look()
        return self

    async def look(self) -> set[str]:
        """Ask who is in the room."""
        result = await self.client.send("presence", channel=ROOM)
        return set(result["presence"])

    async def agree(self) -> None:
        """Wait until it believes what is so."""
        truth = await self.look()

        def agrees() -> bool:
            self.digest()
            return self.present == truth

        await self.client.until(agrees)

    def digest(self) -> None:
        """Take the pushes that came so far."""
        for push in self.client.pushes:
            if "join" in push:
                self.present.add(push["join"]["info"]["client"])
            elif "leave" in push:
                self.present.discard(push["leave"]["info"]["client"])
            else:
                assert push["channel"] == UNLOGGED, push
                self.gaps.append(push["gap"])
                continue
            self.heard += 1
        self.client.pushes.clear()

    def ticks(self, *, typing: bool) -> list[int]:
        """What it got in the channel without a log."""
        return [
            number
            for kind, number in self.client.transient.get(UNLOGGED, ())
            if (kind == "typing") is typing
        ]


async def visit(server: ServerProcess, number: int) -> Client:
    """Come into the room."""
    visitor = await Client.open(server.ws_url, mint(f"visitor-{number}"))
    await visitor.send("subscribe", channel=ROOM)
    return visitor


async def test_a_reader_that_pauses_loses_only_what_it_is_told(server: ServerProcess) -> None:
    early = [await visit(server, number) for number in range(10)]
    slow, fast = await Reader.enter(server, "slow"), await Reader.enter(server, "fast")
    publisher = await Client.open(server.ws_url, mint("publisher"))
    await slow.client.until(lambda: len(slow.client.pushes) == 2)  # itself, and the other
    slow.digest()
    slow.client.pause()

    async def fill(count: int) -> None:
        for start in range(0, count, 50):
            await asyncio.gather(
                *(
                    publisher.publish(LOGGED, [number, PADDING])
                    for number in range(start, min(start + 50, count))
                )
            )

    async def tick() -> None:
        for start in range(0, TICKS, 100):
            await asyncio.gather(
                *(publisher.publish(UNLOGGED, ["tick", start + i]) for i in range(100)),
                *(
                    publisher.publish(UNLOGGED, ["typing", start + i], ephemeral=True)
                    for i in range(0, 100, 10)
                ),
            )

    async def come_and_go() -> list[Client]:
        """Every second one goes again, and so do those who were there before."""
        staying = []
        for number in range(VISITORS):
            visitor = await visit(server, 100 + number)
            if number % 2:
                staying.append(visitor)
            else:
                await visitor.close()
        for visitor in early[:5]:
            await visitor.close()
        return staying

    await fill(FILLING)
    await wait_for_level(server, "paused_connections", 1)
    _, _, staying = await asyncio.gather(fill(100), tick(), come_and_go())
    await fast.client.until(
        lambda: len(fast.feed.received) == FILLING + 100 and len(fast.ticks(typing=False)) == TICKS
    )
    await fast.agree()
    assert fast.ticks(typing=False) == list(range(TICKS))
    assert fast.ticks(typing=True) == list(range(0, TICKS, 10))
    assert fast.gaps == []
    slow.client.resume()
    await slow.client.until(lambda: len(slow.feed.received) == FILLING + 100)
    await publisher.publish(UNLOGGED, ["tick", TICKS])
    await slow.client.until(lambda: slow.ticks(typing=False)[-1:] == [TICKS])

    # Of the log, everything.
    for reader in (slow, fast):
        assert not reader.feed.faults
        assert [data[0] for data in reader.feed.data] == [*range(FILLING), *range(100)]
        assert reader.feed.lost_positions == 0
    # Of what is in no log, a part, and how much is missing.
    await slow.agree()
    got = slow.ticks(typing=False)
    missed = sum(gap["dropped"] for gap in slow.gaps)
    assert missed > TICKS / 2
    assert len(got) + missed == TICKS + 1
    assert got == sorted(set(got))
    typing_missed = TICKS // 10 - len(slow.ticks(typing=True))
    assert typing_missed > 0
    # Of joins and leaves, what they come to.
    assert slow.present == fast.present
    assert {visitor.connected["client"] for visitor in staying} < slow.present
    assert slow.heard < fast.heard - VISITORS / 2
    # And all of it is counted.
    samples = await scrape(server)
    drops = {
        kind: samples.value("drops_total", {"kind": kind})
        for kind in ("transient", "ephemeral", "presence")
    }
    assert drops == {"transient": missed, "ephemeral": typing_missed, "presence": 0}
    assert samples.value("demotions_total") >= 1
    for client in (slow.client, fast.client, publisher, *early[5:], *staying):
        await client.close()
