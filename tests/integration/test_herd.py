"""Thousands who come at once, over real sockets: everybody is received, and those who are here
already don't wait for it.

Turns of the loop are counted rather than seconds: how long one takes is the machine's affair.
"""

import asyncio
import resource
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager

import pytest
from aiohttp import web

from gateway.acceptance import TURN_BUDGET, AcceptControl
from gateway.gate import Gate, Reception, upgrade_route
from gateway.link import Link
from gateway.listener import accepting
from gateway.protocol.handshake import Accepted, OriginPolicy, Refused
from gateway.wheel import Wheel
from tests.integration.conftest import StartServer
from tests.support.peer import Peer, connected
from tests.support.scrape import scrape
from tests.support.server import ServerProcess, mint
from tests.support.wire import PATH, TEXT, Wire, frame, head, upgrade_headers, wire

HERD = 2000
COST = 0.001  # seconds of the accept control's clock that an upgrade takes
UPGRADE = head("GET", PATH, upgrade_headers())


@pytest.fixture(scope="module", autouse=True)
def _enough_files() -> Iterator[None]:
    """Both ends of the herd are in this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Echo:
    """The owner of a link that sends back what it gets."""

    def __init__(self, link: Link) -> None:
        self._link = link
        link.use(self)

    def text_received(self, text: str) -> None:
        self._link.send(text.encode())

    def binary_received(self) -> None: ...

    def native_pong(self) -> None: ...

    def writing_paused(self) -> None: ...

    def writing_resumed(self) -> None: ...

    def link_closing(self) -> None: ...

    def link_lost(self, code: int) -> None: ...


class Entrance:
    """A listening gate. Each upgrade takes `COST` seconds of a clock that only this moves."""

    def __init__(self) -> None:
        self.received = 0
        self._transports: list[asyncio.Transport] = []
        self.clock = 0.0
        self.loop = asyncio.get_running_loop()
        self.acceptance = AcceptControl(self.loop, clock=lambda: self.clock)
        self.reception = Reception(
            loop=self.loop,
            manager=self,
            acceptance=self.acceptance,
            wheel=Wheel(self.loop),
            http=asyncio.Protocol,
            origins=OriginPolicy(),
            deflate=False,
            handshake_timeout=60.0,
        )

    def refusal(self, address: str) -> Refused | None:
        """See `gate.Host`."""
        return None

    def accept(self, transport: asyncio.Transport, accepted: Accepted, address: str) -> Link:
        """See `gate.Host`."""
        self.clock += COST
        self.received += 1
        self._transports.append(transport)
        transport.write(accepted.response)
        link = Link(transport, 65536, accepted.deflate)
        Echo(link)
        transport.set_protocol(link)
        return link

    @asynccontextmanager
    async def open(self) -> AsyncIterator[int]:
        """Listen; gives the port."""
        listener = socket.socket()
        listener.setblocking(False)
        listener.bind(("127.0.0.1", 0))
        try:
            async with accepting(listener, lambda: Gate(self.reception)):
                yield listener.getsockname()[1]
        finally:
            for transport in self._transports:
                transport.abort()


def plain_socket(stack: ExitStack, port: int) -> socket.socket:
    """A connection that the loop knows nothing of."""
    client = stack.enter_context(socket.socket())
    client.connect(("127.0.0.1", port))
    client.setblocking(False)
    return client


async def turns_until(condition: Callable[[], bool], most: int) -> int:
    """Let the loop turn until something is true; returns how often it had to."""
    for turn in range(most):
        if condition():
            return turn
        await asyncio.sleep(0)
    raise AssertionError(f"not within {most} turns")


def answered(client: socket.socket) -> bool:
    """Whether there is something to read."""
    try:
        return bool(client.recv(65536, socket.MSG_PEEK))
    except BlockingIOError:
        return False


async def test_upgrades_that_are_all_there_at_once_take_a_slice_of_each_turn() -> None:
    entrance = Entrance()
    with ExitStack() as stack:
        async with entrance.open() as port:
            here = plain_socket(stack, port)
            here.send(UPGRADE)
            await turns_until(lambda: answered(here), 1000)
            here.recv(65536)

            herd = []
            for _ in range(HERD):
                herd.append(plain_socket(stack, port))
                await asyncio.sleep(0)  # takes it
            for client in herd:
                client.send(UPGRADE)
            assert entrance.received == 1

            # Whoever is here talks all the while.
            waits, most, echoes = [], 0, 0
            here.send(frame(TEXT, b"hello"))
            waited = 0
            while entrance.received < HERD + 1:
                before = entrance.received
                await asyncio.sleep(0)
                most = max(most, entrance.received - before)
                waited += 1
                if answered(here):
                    here.recv(65536)
                    here.send(frame(TEXT, b"hello"))
                    waits.append(waited)
                    echoes, waited = echoes + 1, 0

            # What a slice holds, and what is read in the turn in which it all begins.
            assert most <= 2 * TURN_BUDGET / COST + 2
            assert max(waits) <= 4
            assert echoes >= HERD * COST / TURN_BUDGET / 4
            await turns_until(lambda: all(map(answered, herd)), 1000)
            assert all(client.recv(12) == b"HTTP/1.1 101" for client in herd)


async def test_who_gives_up_while_waiting_is_not_received() -> None:
    entrance = Entrance()
    with ExitStack() as stack:
        async with entrance.open() as port:
            herd = []
            for _ in range(400):
                herd.append(plain_socket(stack, port))
                await asyncio.sleep(0)
            for client in herd:
                client.send(UPGRADE)
            await turns_until(lambda: entrance.acceptance.statistics().waiting > 300, 1000)
            gone = entrance.received
            for client in herd[200:]:
                client.close()
            await turns_until(lambda: not entrance.acceptance.statistics().waiting, 1000)

            assert gone < 100
            assert 200 <= entrance.received <= 200 + gone


async def test_who_gives_up_while_waiting_at_the_second_door_is_no_error(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    entrance = Entrance()
    waiting: list[Callable[[], None]] = []
    monkeypatch.setattr(entrance.acceptance, "run", lambda _, take: waiting.append(take))
    requests: list[web.Request] = []
    outcomes: list[BaseException | None] = []

    async def door(request: web.Request) -> web.StreamResponse:
        requests.append(request)
        try:
            response: web.StreamResponse = await upgrade(request)
        except BaseException as error:
            outcomes.append(error)
            raise
        outcomes.append(None)
        return response

    upgrade = upgrade_route(entrance.reception)
    app = web.Application()
    app.router.add_get(PATH, door)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        with ExitStack() as stack:
            plain_socket(stack, runner.addresses[0][1]).send(UPGRADE)
            await turns_until(lambda: bool(waiting), 1000)
        await turns_until(lambda: requests[0].transport is None, 1000)
        waiting.pop()()
        await turns_until(lambda: bool(outcomes), 10)
    finally:
        await runner.cleanup()

    assert entrance.received == 0
    assert outcomes == [None]
    assert [record for record in caplog.records if record.name.startswith("aiohttp")] == []


# --- the whole gateway ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(start_server: StartServer) -> ServerProcess:
    return start_server()


async def test_two_thousand_clients_that_come_at_once_are_all_received(
    server: ServerProcess,
) -> None:
    command = b'{"id":1,"connect":{"token":"%s"}}' % mint("herd").encode()
    hello = UPGRADE + frame(TEXT, command)
    async with connected(server) as here:
        streams = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(HERD)]
        herd = [Peer(Wire(reader, writer)) for reader, writer in streams]
        talking = asyncio.create_task(_talk(here))
        for peer in herd:
            peer.wire.write(hello)
        for peer in herd:
            assert (await peer.wire.response()).status == 101
            assert (await peer.reply(1))["connect"]["client"]
        talking.cancel()
        (talked,) = await asyncio.gather(talking, return_exceptions=True)
        samples = await scrape(server)
        for peer in herd:
            peer.wire.writer.close()
        await asyncio.gather(
            *(peer.wire.writer.wait_closed() for peer in herd), return_exceptions=True
        )

    assert isinstance(talked, asyncio.CancelledError)
    assert samples.value("handshakes_total", {"outcome": "accepted"}) == HERD + 1
    for kind in ("connect", "resume", "upgrade"):
        assert samples.value("accept_refusals_total", {"kind": kind}) == 0
    assert samples.value("arrivals_waiting") == 0


async def test_upgrades_on_connections_that_were_used_before_wait_for_their_turn_too(
    server: ServerProcess,
) -> None:
    """As some proxies do it. These come to the gateway by way of aiohttp."""
    async with AsyncExitStack() as stack:
        links = [await stack.enter_async_context(wire(server.port)) for _ in range(500)]
        for link in links:
            assert (await link.request("GET", "/api/health")).status == 200
        command = frame(TEXT, b'{"id":1,"connect":{"token":"%s"}}' % mint("proxied").encode())
        for link in links:
            link.write(UPGRADE + command)
        for link in links:
            assert (await link.response()).status == 101
            assert b'"client"' in (await link.frame()).payload


async def _talk(peer: Peer) -> None:
    while True:
        await peer.call("ping")
        await asyncio.sleep(0.002)
