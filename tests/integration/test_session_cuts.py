"""The line is cut at every byte of an exchange, and again while the session is resumed."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest

from gateway.protocol.client_policy import SessionPolicy
from tests.integration.conftest import StartServer
from tests.support.proxy import Proxy
from tests.support.scrape import counted
from tests.support.server import DEFAULT_CONFIG, ServerProcess, mint
from tests.support.session_client import Reader, SessionClient
from tests.support.ws import Client

# A tail that asks for an acknowledgement within the exchange, and no limit that a cut could meet.
CONFIG = f"""
session_tail_max_frames = 10
{DEFAULT_CONFIG}
"""
POLICY = SessionPolicy(chance=lambda: 0.0)  # comes back at once
AT_ONCE = 24
DEADLINE = 20.0
TOKEN = mint("cut")


@pytest.fixture(scope="module")
def server(start_server: StartServer) -> ServerProcess:
    return start_server(CONFIG)


@dataclass
class Exchange:
    """One client behind a proxy of its own, from its first byte to its goodbye."""

    name: str
    publisher: Client
    proxy: Proxy
    reader: Reader = field(init=False)
    client: SessionClient = field(init=False)
    was_asked: bool = False
    """Whether the server wanted an acknowledgement on the last line."""

    def __post_init__(self) -> None:
        self.logged, self.plain = f"chat:{self.name}", f"live:{self.name}"
        self.reader = Reader(TOKEN, self.logged, self.plain)
        self.client = SessionClient(self.proxy.port, POLICY, self.reader)

    async def run(self) -> None:
        """Talk: each side sends to both channels, before and after the other did."""
        reader = self.reader
        self.client.start()
        await reader.until(lambda: len(reader.subscribed) == 2)
        reader.publish(self.logged, "1")
        reader.publish(self.plain, "2")
        await reader.until(lambda: reader.is_answered("1") and reader.is_answered("2"))
        await self.publisher.publish(self.logged, "3")
        losses = len(reader.losses) if self.plain in reader.subscribed else -1
        await self.publisher.publish(self.plain, "4")
        reader.publish(self.logged, "5")
        await reader.until(
            lambda: (
                reader.is_answered("5")
                and len(reader.data[self.logged]) == 3
                and ("4" in reader.data[self.plain] or len(reader.losses) != losses)
                and self.plain in reader.subscribed
            )
        )
        self.was_asked = self.client.session.quality is not None
        await self.client.leave()

    def check(self) -> None:
        """Everything came once and in order. What is in no log may be lost with a session."""
        reader = self.reader
        assert reader.data[self.logged] == ["1", "3", "5"]
        plain = reader.data[self.plain]
        if reader.losses:
            assert plain in ([], ["2"], ["4"], ["2", "4"])
        else:
            assert plain == ["2", "4"]


async def undisturbed(server: ServerProcess, publisher: Client, name: str) -> tuple[int, int]:
    """How many bytes an exchange takes, to the server and from it."""
    async with Proxy("127.0.0.1", server.port) as proxy:
        exchange = Exchange(name, publisher, proxy)
        await exchange.run()
        exchange.check()
        assert exchange.client.dialled == 1
        assert exchange.was_asked
        assert not exchange.reader.losses
        return proxy.to_server_bytes, proxy.to_client_bytes


@dataclass
class Tally:
    """What came of all of them."""

    cuts: int = 0
    resumed: int = 0
    lost: int = 0


async def cut(
    server: ServerProcess, publisher: Client, first: dict[str, int], second: dict[str, int]
) -> tuple[int, Exchange]:
    """An exchange whose first line is cut, and whose second one is as well."""
    name = "-".join(f"{way}{count}" for way, count in first.items())
    async with Proxy("127.0.0.1", server.port) as proxy:
        exchange = Exchange(name, publisher, proxy)
        cut_first = proxy.cut_after(**first)

        async def cut_again() -> None:
            await cut_first.wait()
            proxy.cut_after(**second)

        again = asyncio.ensure_future(cut_again())
        try:
            async with asyncio.timeout(DEADLINE):
                await exchange.run()
        finally:
            again.cancel()
            await exchange.client.leave()
        exchange.check()
        return int(cut_first.is_set()), exchange


@pytest.fixture
async def publisher(server: ServerProcess) -> AsyncIterator[Client]:
    client = await Client.open(server.ws_url, mint("publisher"))
    yield client
    await client.close()


@pytest.mark.parametrize("way", ["to_server", "to_client"])
async def test_cut_at_any_byte_everything_arrives_once(
    server: ServerProcess, publisher: Client, way: str
) -> None:
    sizes = dict(
        zip(
            ("to_server", "to_client"),
            await undisturbed(server, publisher, f"whole-{way}"),
            strict=True,
        )
    )
    other_way = "to_client" if way == "to_server" else "to_server"
    positions = iter(range(1, sizes[way] + 1))
    tally = Tally()

    async def work() -> None:
        for position in positions:
            # The second line: at each byte of it in turn, up and down.
            second = {(way, other_way)[position % 2]: 1 + position % 500}
            was_cut, exchange = await cut(server, publisher, {way: position}, second)
            tally.cuts += was_cut
            tally.lost += bool(exchange.reader.losses)
            tally.resumed += not exchange.reader.losses and exchange.client.dialled > 1

    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(work())
    # Some exchanges are a few bytes shorter than the first one was.
    assert tally.cuts >= sizes[way] - 50
    # Before the client is connected there is nothing to resume.
    assert tally.resumed > tally.cuts / 4
    assert tally.lost + tally.resumed >= tally.cuts - 200, "a cut handshake costs neither"
    assert await counted(server, "sessions", {"state": "attached"}) == 0
