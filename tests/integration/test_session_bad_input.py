"""docs/sessions.md, "Odd input, and its answer", over real sockets: each one, and nothing else."""

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress
from typing import Any, Self

import pytest
import websockets
from websockets.asyncio.client import ClientConnection

from tests.integration.conftest import StartServer
from tests.support.server import DEFAULT_CONFIG, ServerProcess, mint

CONFIG = f"""
session_tail_max_frames = 16
session_stable = 30
stale_close_delay = 1
detached_sessions_per_address_max = 8
{DEFAULT_CONFIG}
"""
FORGED = "A" * 56


@pytest.fixture(scope="module")
def server(start_server: StartServer) -> ServerProcess:
    return start_server(CONFIG)


@pytest.fixture
async def sockets(server: ServerProcess) -> AsyncIterator["Sockets"]:
    async with Sockets(server) as opened:
        yield opened


class Socket:
    """One socket; messages are objects."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection

    async def send(self, *messages: object) -> None:
        for message in messages:
            await self._connection.send(json.dumps(message))

    async def say(self, **frame: object) -> None:
        await self.send({"session": frame})

    async def receive(self) -> dict[str, Any]:
        message = json.loads(await self._connection.recv())
        assert isinstance(message, dict)
        return message

    async def heard(self) -> dict[str, Any]:
        frame = (await self.receive())["session"]
        assert isinstance(frame, dict)
        return frame

    async def closed(self) -> int:
        """The code with which the server closes it, whatever comes before."""
        with suppress(websockets.ConnectionClosedError):
            async for _ in self._connection:
                pass
        assert self._connection.close_code is not None
        return self._connection.close_code

    async def lose(self) -> None:
        self._connection.transport.abort()
        await self._connection.wait_closed()

    async def begin(self, **backoff: object) -> str:
        """Open a session, connect, subscribe; returns its token. Three frames each way."""
        await self.say(open={"backoff": backoff})
        await self.connect()
        opened = (await self.heard())["opened"]
        assert (await self.receive())["connect"]["client"]
        assert "subscribe" in await self.receive()
        token = opened["token"]
        assert isinstance(token, str)
        return token

    async def connect(self) -> None:
        await self.send(
            {"id": 1, "connect": {"token": mint("alice")}},
            {"id": 2, "subscribe": {"channel": "live:room"}},
        )

    async def resume(self, token: str, received: int, attempt: int = 0) -> dict[str, Any]:
        await self.say(resume={"token": token, "received": received, "attempt": attempt})
        return await self.heard()

    async def is_alive(self, id_: int = 9) -> bool:
        await self.send({"id": id_, "presence": {"channel": "live:room"}})
        reply = await self.receive()
        while "id" not in reply:
            reply = await self.receive()
        return bool(reply["id"] == id_)


class Sockets:
    """Opens them, and closes them in the end."""

    def __init__(self, server: ServerProcess) -> None:
        self._url = f"ws://127.0.0.1:{server.port}/connection/websocket"
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._stack.aclose()

    async def open(self) -> Socket:
        return Socket(await self._stack.enter_async_context(websockets.connect(self._url)))


# The replies to `connect` and `subscribe`.
BEGUN = 2
GONE_UNKNOWN = {"gone": {"reason": "unknown"}}
GONE_FENCED = {"gone": {"reason": "fenced"}}
GONE_OVERFLOW = {"gone": {"reason": "overflow"}}
GONE_EXPIRED = {"gone": {"reason": "expired"}}


# --- tokens ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("token", [FORGED, "", "ä", "A" * 512])
async def test_a_forged_token_is_unknown_and_a_session_may_begin_there(
    sockets: Sockets, token: str
) -> None:
    socket = await sockets.open()

    assert await socket.resume(token, 0) == GONE_UNKNOWN
    assert await socket.begin()


async def test_a_damaged_token_is_unknown(sockets: Sockets) -> None:
    socket, other = await sockets.open(), await sockets.open()
    token = await socket.begin()
    damaged = ("B" if token[20] == "A" else "A").join((token[:20], token[21:]))

    assert await other.resume(damaged, BEGUN) == GONE_UNKNOWN
    assert await socket.is_alive()


async def test_the_token_of_a_session_that_was_left_is_unknown(sockets: Sockets) -> None:
    socket, other = await sockets.open(), await sockets.open()
    token = await socket.begin()
    await socket.say(leave={})
    assert await socket.closed() == 3000

    assert await other.resume(token, BEGUN) == GONE_UNKNOWN


async def test_the_token_of_a_session_that_had_to_make_room_is_expired(sockets: Sockets) -> None:
    tokens = []
    for _ in range(9):
        socket = await sockets.open()
        tokens.append(await socket.begin())
        await socket.lose()
    other = await sockets.open()

    # The server hears of a lost socket when it does; the last one is detached by then as well.
    assert (await other.resume(tokens[-1], BEGUN))["resumed"]
    assert await (await sockets.open()).resume(tokens[0], BEGUN) == GONE_EXPIRED


async def test_a_token_is_good_again_and_again(sockets: Sockets) -> None:
    token = await (await sockets.open()).begin()

    for generation in range(2, 5):
        resumed = (await (await sockets.open()).resume(token, BEGUN))["resumed"]
        assert resumed["generation"] == generation


async def test_after_four_vain_resumes_the_socket_is_closed(sockets: Sockets) -> None:
    socket = await sockets.open()

    for _ in range(4):
        assert await socket.resume(FORGED, 0) == GONE_UNKNOWN
    await socket.say(resume={"token": FORGED, "received": 0})
    assert await socket.closed() == 3501


# --- counts ---------------------------------------------------------------------------------------


async def test_a_count_from_the_future_ends_the_session(sockets: Sockets) -> None:
    first, second, third = [await sockets.open() for _ in range(3)]
    token = await first.begin()

    await second.say(resume={"token": token, "received": BEGUN + 1})

    assert await second.closed() == 3501
    assert "gone" in await third.resume(token, BEGUN)


async def test_a_count_below_what_was_acknowledged_ends_the_session(sockets: Sockets) -> None:
    first, second, third = [await sockets.open() for _ in range(3)]
    token = await first.begin()
    await first.say(ack=BEGUN)
    assert await first.is_alive()

    assert await second.resume(token, BEGUN - 1) == GONE_OVERFLOW
    assert await third.resume(token, BEGUN) == GONE_OVERFLOW


@pytest.mark.parametrize(
    "frame",
    [
        {"ack": BEGUN + 1},
        {"pong": {"received": BEGUN + 1, "sent": 2}},
        {"pong": {"received": BEGUN, "sent": 3}},
        {"pong": {"received": BEGUN, "sent": 1}},
    ],
    ids=json.dumps,
)
async def test_impossible_counts_end_the_session(sockets: Sockets, frame: object) -> None:
    socket, other = await sockets.open(), await sockets.open()
    token = await socket.begin()

    await socket.send({"session": frame})

    assert await socket.closed() == 3501
    assert await other.resume(token, BEGUN) == GONE_UNKNOWN


async def test_old_acknowledgements_and_superfluous_pongs_are_ignored(sockets: Sockets) -> None:
    socket = await sockets.open()
    await socket.begin()

    await socket.say(ack=2)
    await socket.say(ack=1)
    await socket.say(pong={"received": 2, "sent": 2})
    await socket.say(pong={"received": 1, "sent": 2})

    assert await socket.is_alive()


async def test_a_client_that_acknowledges_nothing_is_asked_and_can_not_resume(
    sockets: Sockets,
) -> None:
    socket, other = await sockets.open(), await sockets.open()
    token = await socket.begin()
    asked = 0
    for number in range(10, 40):
        await socket.send({"id": number, "presence": {"channel": "live:room"}})
        reply = await socket.receive()
        while reply.get("id") != number:
            asked += "ping" in reply.get("session", {})
            reply = await socket.receive()

    assert asked >= 1
    assert await other.resume(token, BEGUN) == GONE_OVERFLOW


# --- sockets that race ----------------------------------------------------------------------------


async def test_a_former_socket_is_evicted(sockets: Sockets) -> None:
    first, second = await sockets.open(), await sockets.open()
    token = await first.begin()

    assert (await second.resume(token, BEGUN, 1))["resumed"]["generation"] == 2
    assert await first.heard() == GONE_FENCED
    assert await first.closed() == 3000
    assert await second.is_alive()


async def test_a_straggler_changes_nothing(sockets: Sockets) -> None:
    first, second, straggler = [await sockets.open() for _ in range(3)]
    token = await first.begin()
    await second.resume(token, BEGUN, 2)

    # Whatever its count: from the past, from the future.
    assert await straggler.resume(token, 0, 1) == GONE_FENCED
    assert await straggler.resume(token, 1000, 1) == GONE_FENCED
    assert await second.is_alive()


# --- frames where they don't belong ---------------------------------------------------------------


@pytest.mark.parametrize(
    "message",
    [
        {"session": {}},
        {"session": None},
        {"session": {"unknown": {}}},
        {"session": {"ack": -1}},
        {"session": {"ack": 1}, "id": 1},
        {"session": {"open": {}}},
        {"session": {"resume": {"token": FORGED, "received": 0}}},
    ],
    ids=json.dumps,
)
async def test_a_session_ends_by_a_frame_that_makes_no_sense(
    sockets: Sockets, message: object
) -> None:
    socket, other = await sockets.open(), await sockets.open()
    token = await socket.begin()

    await socket.send(message)

    assert await socket.closed() == 3501
    assert await other.resume(token, BEGUN) == GONE_UNKNOWN


@pytest.mark.parametrize(
    "message",
    [
        {"session": {"ack": 0}},
        {"session": {"pong": {"received": 0, "sent": 0}}},
        {"session": {"leave": {}}},
        {"session": {"opened": {}}},
        {"session": {"open": {"backoff": {"max": None}}}},
        {"session": {"open": {"backoff": {"min": "500"}}}},
    ],
    ids=json.dumps,
)
async def test_what_can_not_be_a_first_message(sockets: Sockets, message: object) -> None:
    socket = await sockets.open()

    await socket.send(message)

    assert await socket.closed() == 3501


@pytest.mark.parametrize(
    "message",
    [
        {"session": {"open": {}}},
        {"session": {"ack": 1}},
        {"session": {"resume": {"token": FORGED, "received": 0}}},
        {"id": 2, "session": {"ack": 1}},
    ],
    ids=json.dumps,
)
async def test_a_session_frame_in_stock_traffic(sockets: Sockets, message: object) -> None:
    socket = await sockets.open()
    await socket.send({"id": 1, "connect": {"token": mint("alice")}})
    assert "connect" in await socket.receive()

    await socket.send(message)

    assert await socket.closed() == 3501


async def test_a_session_frame_before_connect_is_nothing_special(sockets: Sockets) -> None:
    socket = await sockets.open()
    await socket.say(open={})
    await socket.say(ack=0)
    assert "opened" in await socket.heard()
    await socket.connect()

    assert "connect" in await socket.receive()


# --- absurd declarations, floods ------------------------------------------------------------------


@pytest.mark.parametrize(
    "backoff",
    [
        {"factor": 1e308},
        {"min": 1e308, "max": 1e308, "timeout": 1e308},
        {"attempts": 2**31},
        {"attempts": 10**30},
        {"min": 60_000, "max": 1},
        {"min": -1, "max": -1, "factor": -1, "jitter": -1, "attempts": -1, "timeout": -1},
    ],
    ids=json.dumps,
)
async def test_an_absurd_backoff_is_granted_what_makes_sense(
    sockets: Sockets, backoff: dict[str, Any]
) -> None:
    socket = await sockets.open()
    await socket.say(open={"backoff": backoff})

    assert 10_000 <= (await socket.heard())["opened"]["retain"] <= 300_000


async def test_a_session_that_never_connected_is_not_kept(sockets: Sockets) -> None:
    socket, other = await sockets.open(), await sockets.open()
    await socket.say(open={})
    token = (await socket.heard())["opened"]["token"]
    await socket.lose()
    await other.say(open={})
    assert "opened" in await other.heard()

    assert await (await sockets.open()).resume(token, 0) == GONE_UNKNOWN


async def test_a_session_whose_client_does_not_connect_is_closed(sockets: Sockets) -> None:
    socket = await sockets.open()
    await socket.say(open={})

    assert await socket.closed() == 3502
