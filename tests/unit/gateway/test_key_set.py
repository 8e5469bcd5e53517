"""The key set is read once for all who ask, not too often, and an old one outlives a failure."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer, unused_port

from gateway.key_fetch import FETCH_BYTES_MAX, fetch
from gateway.key_set import COOLDOWN, KeySet
from tests.support import tokens

FIRST = tokens.key_set(tokens.jwk("EdDSA", "first"))
SECOND = tokens.key_set(tokens.jwk("EdDSA", "second"))


class Source:
    """Gives what a test puts there, and counts. `gate` holds readers up while it is cleared."""

    def __init__(self, *answers: bytes | Exception) -> None:
        self.answers = list(answers)
        self.reads = 0
        self.read_again = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()

    async def read(self) -> bytes:
        self.reads += 1
        if self.reads > 1:
            self.read_again.set()
        await self.gate.wait()
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


MakeKeySet = Callable[..., KeySet]


@pytest.fixture
async def make() -> AsyncIterator[MakeKeySet]:
    made: list[KeySet] = []

    def make(
        read: Callable[[], Awaitable[bytes]], *, clock: Clock | None = None, interval: float = 3600
    ) -> KeySet:
        key_set = KeySet(read, where="somewhere", interval=interval, clock=clock or Clock())
        made.append(key_set)
        return key_set

    yield make
    for key_set in made:
        await key_set.close()


def ids(key_set: KeySet) -> list[str | None]:
    return [key.kid for key in key_set.keys]


async def test_a_set_is_empty_until_it_is_read(make: MakeKeySet) -> None:
    key_set = make(Source(FIRST).read)

    assert key_set.get("first") is None
    assert await key_set.refresh()
    assert key_set.get("first") is not None
    assert key_set.get("other") is None


async def test_it_is_read_at_most_once_in_the_cooldown(make: MakeKeySet) -> None:
    source, clock = Source(FIRST, SECOND), Clock()
    key_set = make(source.read, clock=clock)
    await key_set.start()

    clock.now += COOLDOWN - 0.01
    # The set was read just now, so verifying again may go otherwise than before that.
    assert await key_set.refresh()
    assert (source.reads, ids(key_set)) == (1, ["first"])
    clock.now += 0.02
    assert await key_set.refresh()
    assert (source.reads, ids(key_set)) == (2, ["second"])


async def test_all_who_ask_at_a_time_share_one_reading(make: MakeKeySet) -> None:
    source = Source(FIRST)
    source.gate.clear()
    key_set = make(source.read)

    asking = [asyncio.create_task(key_set.refresh()) for _ in range(50)]
    await asyncio.sleep(0)
    asking[0].cancel()
    asking[7].cancel()
    await asyncio.sleep(0)
    source.gate.set()
    answers = await asyncio.gather(*asking, return_exceptions=True)

    assert source.reads == 1
    assert isinstance(answers[0], asyncio.CancelledError)
    assert isinstance(answers[7], asyncio.CancelledError)
    assert answers.count(True) == 48


@pytest.mark.parametrize("failure", [OSError("down"), TimeoutError("slow"), b"<html>", b"{}"])
async def test_a_failure_keeps_the_old_keys(
    make: MakeKeySet, failure: bytes | Exception, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    key_set = make(Source(FIRST, failure, SECOND).read, clock=clock)
    await key_set.start()
    clock.now += COOLDOWN

    with caplog.at_level(logging.WARNING):
        assert not await key_set.refresh()

    assert ids(key_set) == ["first"]
    assert "kept the old token keys: somewhere" in caplog.text
    assert not await key_set.refresh()  # still within the cooldown
    clock.now += COOLDOWN
    assert await key_set.refresh()
    assert ids(key_set) == ["second"]


async def test_a_bug_in_reading_is_logged_and_keeps_the_old_keys(
    make: MakeKeySet, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    key_set = make(Source(FIRST, KeyError("bug")).read, clock=clock)
    await key_set.start()
    clock.now += COOLDOWN

    assert not await key_set.refresh()

    assert ids(key_set) == ["first"]
    assert "failed to read the token key set" in caplog.text


async def test_a_started_set_is_read_again_and_again(make: MakeKeySet) -> None:
    source = Source(FIRST, SECOND)
    key_set = make(source.read, interval=0.0)

    await key_set.start()
    await source.read_again.wait()
    await key_set.refresh()  # waits for the reading that is under way

    assert ids(key_set) == ["second"]


async def test_closing_ends_a_reading_and_lets_go_of_who_waits(make: MakeKeySet) -> None:
    source = Source(FIRST)
    source.gate.clear()
    key_set = make(source.read)
    asking = asyncio.create_task(key_set.refresh())
    await asyncio.sleep(0)

    await key_set.close()

    assert not await asking
    assert key_set.keys == ()


# Over HTTP


@pytest.fixture
async def server() -> AsyncIterator[TestServer]:
    async def redirect(_request: web.Request) -> web.Response:
        raise web.HTTPFound("/keys")

    async def compressed(_request: web.Request) -> web.Response:
        response = web.Response(body=b"{" + b" " * 10_000_000)
        response.enable_compression(web.ContentCoding.gzip)
        return response

    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            while True:
                await response.write(b" " * 65536)
        except ConnectionError:
            return response

    async def cut_off(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "1000"})
        await response.prepare(request)
        await response.write(b"{")
        assert request.transport is not None
        request.transport.abort()
        return response

    async def keys(_request: web.Request) -> web.Response:
        return web.Response(body=FIRST)

    app = web.Application()
    app.router.add_get("/keys", keys)
    for handler in (redirect, compressed, endless, cut_off):
        app.router.add_get(f"/{handler.__name__}", handler)
    server = TestServer(app)
    await server.start_server()
    yield server
    await server.close()


async def test_a_set_is_fetched(server: TestServer) -> None:
    assert await fetch(str(server.make_url("/keys"))) == FIRST


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/nowhere", "status 404"),
        ("/redirect", "status 302"),
        ("/endless", f"longer than {FETCH_BYTES_MAX}"),
        ("/cut_off", "can't be reached"),
    ],
)
async def test_an_answer_that_is_no_key_set_is_an_os_error(
    server: TestServer, path: str, message: str
) -> None:
    with pytest.raises(OSError, match=message):
        await fetch(str(server.make_url(path)))


async def test_a_compressed_answer_is_not_blown_up(server: TestServer) -> None:
    """It is 10 kB on the wire, and would be more than the limit."""
    assert len(await fetch(str(server.make_url("/compressed")))) < FETCH_BYTES_MAX


async def test_nobody_listening_is_an_os_error() -> None:
    with pytest.raises(OSError, match="can't be reached"):
        await fetch(f"http://127.0.0.1:{unused_port()}/keys")


async def test_a_server_that_says_nothing_is_a_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    import aiohttp

    monkeypatch.setattr("gateway.key_fetch._TIMEOUT", aiohttp.ClientTimeout(total=0.05))
    connected = asyncio.Event()

    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connected.set()
        await reader.read()
        writer.close()

    server = await asyncio.start_server(hold, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]

    with pytest.raises(TimeoutError, match="longer than"):
        await fetch(f"http://127.0.0.1:{port}/keys")

    assert connected.is_set()
    server.close()
    await server.wait_closed()
