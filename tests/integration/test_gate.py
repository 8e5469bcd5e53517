"""Both doors to a WebSocket, over raw sockets: the first request of a connection, and a later one.

And what a gate has to hold off: heads that are slow, large or no heads at all, and too many.
"""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from enum import Enum
from typing import Any

import pytest

from tests.integration.conftest import StartServer
from tests.support.peer import Peer, connected, open_peer
from tests.support.scrape import counted, wait_for, wait_for_level
from tests.support.server import DEFAULT_CONFIG, ServerProcess, mint
from tests.support.wire import (
    KEY,
    PATH,
    TEXT,
    Response,
    Wire,
    fetch,
    frame,
    head,
    upgrade_headers,
    wire,
)

HANDSHAKE_TIMEOUT = 1.0
HEAD_MAX_BYTES = 16 * 1024
ACCEPT = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="  # RFC 6455, 1.3, for `KEY`

CONFIG = f"""
handshake_timeout = {HANDSHAKE_TIMEOUT}
{DEFAULT_CONFIG}
"""

# 127.0.0.1 speaks for others; 127.0.0.2 may not.
STRICT_CONFIG = f"""
connections_max = 5
connections_per_address_max = 2
trusted_proxies = ["127.0.0.1/32", "10.0.0.0/8"]
allowed_origins = ["https://chat.example.com"]
{DEFAULT_CONFIG}
"""


class Door(Enum):
    """Where a request for a WebSocket may come on its connection."""

    FIRST_REQUEST = "first request"
    KEPT_ALIVE = "kept-alive"

    async def reach(self, link: Wire) -> None:
        """Bring a fresh connection to this door."""
        if self is Door.KEPT_ALIVE:
            assert (await link.request("GET", "/api/health")).status == 200


@pytest.fixture(scope="module")
def server(start_server: StartServer) -> ServerProcess:
    return start_server(CONFIG)


@pytest.fixture(scope="module")
def strict_server(start_server: StartServer) -> ServerProcess:
    return start_server(STRICT_CONFIG)


@pytest.fixture
async def strict(strict_server: ServerProcess) -> ServerProcess:
    """The strict server once those of the test before have left."""
    await wait_for_level(strict_server, "connections", 0)
    return strict_server


@pytest.fixture(params=Door, ids=lambda door: door.value)
def door(request: pytest.FixtureRequest) -> Door:
    door: Door = request.param
    return door


@pytest.fixture
async def link(server: ServerProcess, door: Door) -> AsyncIterator[Wire]:
    """A connection in front of a door."""
    async with wire(server.port) as connection:
        await door.reach(connection)
        yield connection


UPGRADE = head(headers=upgrade_headers())


async def connect(link: Wire) -> dict[str, Any]:
    return await Peer(link).call("connect", token=mint("alice"))


# --- the way in -----------------------------------------------------------------------------------


async def test_an_upgrade_becomes_a_websocket(link: Wire) -> None:
    response = await link.upgrade()

    assert response == Response(
        101,
        {"upgrade": "websocket", "connection": "Upgrade", "sec-websocket-accept": ACCEPT},
        b"",
    )
    assert (await connect(link))["client"]
    link.send_close(1000)
    assert (await link.close()).code == 1000
    assert await link.rest() == b""


async def test_headers_are_read_as_http_has_them(link: Wire) -> None:
    """Names and tokens in any case, lists of tokens, and a query."""
    response = await link.upgrade(
        "?v=1",
        Upgrade="h2c, WebSocket",
        Connection="keep-alive,  UPGRADE",
        Sec_WebSocket_Key=f"  {KEY} ",
        Sec_WebSocket_Protocol="chat, centrifuge-json",
    )

    assert response.status == 101
    assert response.headers["sec-websocket-accept"] == ACCEPT
    assert response.headers["sec-websocket-protocol"] == "centrifuge-json"


async def test_frames_right_behind_the_head_are_not_lost(link: Wire) -> None:
    """Some clients don't wait for the 101; a whole frame and the half of another."""
    command = json.dumps({"id": 1, "connect": {"token": mint("alice")}}).encode()
    ping = frame(TEXT, b'{"id":2,"ping":{}}')
    await link.write_apart(UPGRADE + frame(TEXT, command) + ping[:5], ping[5:])

    assert (await link.response()).status == 101
    assert json.loads(await link.text())["connect"]["client"]
    assert json.loads(await link.text()) == {"id": 2, "ping": {}}


async def test_a_head_may_be_split_anywhere(server: ServerProcess, door: Door) -> None:
    for position in range(1, len(UPGRADE)):
        async with wire(server.port) as link:
            await door.reach(link)
            await link.write_apart(UPGRADE[:position], UPGRADE[position:])

            response = await link.response()
            assert response.status == 101, f"split at {position}: {response}"


async def test_a_head_may_drip_in_byte_by_byte(link: Wire) -> None:
    await link.write_apart(*(UPGRADE[index : index + 1] for index in range(len(UPGRADE))))

    assert (await link.response()).status == 101
    assert (await connect(link))["client"]


async def test_a_client_that_goes_at_once_leaves_nothing(server: ServerProcess, door: Door) -> None:
    for position in (1, len(UPGRADE) // 2, len(UPGRADE)):
        async with wire(server.port) as link:
            await door.reach(link)
            link.write(UPGRADE[:position])
            link.writer.transport.abort()

    await wait_for_level(server, "connections", 0)


async def test_two_hundred_at_once_get_in_by_each_door(server: ServerProcess, door: Door) -> None:
    async def enter(link: Wire) -> str:
        await door.reach(link)
        assert (await link.upgrade()).status == 101
        return str((await connect(link))["client"])

    async with AsyncExitStack() as stack:
        links = [await stack.enter_async_context(wire(server.port)) for _ in range(200)]
        clients = await asyncio.gather(*map(enter, links))
        assert await counted(server, "connections") == 200

    assert len(set(clients)) == 200
    await wait_for_level(server, "connections", 0)


# --- refusals -------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[dict[str, str | None], int, str]] = {
    "another origin": ({"Origin": "https://evil.example"}, 403, "bad_origin"),
    "an origin that begins alike": ({"Origin": "http://127.0.0.1.evil.example"}, 403, "bad_origin"),
    "an origin with another port": ({"Origin": "http://127.0.0.1:1"}, 403, "bad_origin"),
    "the null origin": ({"Origin": "null"}, 403, "bad_origin"),
    "an empty origin": ({"Origin": ""}, 403, "bad_origin"),
    "no address as origin": ({"Origin": "http://[::1"}, 403, "bad_origin"),
    "an old version": ({"Sec_WebSocket_Version": "8"}, 426, "bad_version"),
    "no version": ({"Sec_WebSocket_Version": None}, 426, "bad_version"),
    "no key": ({"Sec_WebSocket_Key": None}, 400, "bad_request"),
    "a short key": ({"Sec_WebSocket_Key": "c2hvcnQ="}, 400, "bad_request"),
    "a key that is not base64": ({"Sec_WebSocket_Key": "!" * 24}, 400, "bad_request"),
    "no upgrade": ({"Upgrade": None}, 426, "not_websocket"),
    "an upgrade to something else": ({"Upgrade": "h2c"}, 426, "not_websocket"),
    "an upgrade that the connection doesn't name": (
        {"Connection": "keep-alive"},
        426,
        "not_websocket",
    ),
}


@pytest.mark.parametrize(("changes", "status", "outcome"), REFUSED.values(), ids=REFUSED.keys())
async def test_a_bad_handshake_is_refused_with_a_reason(
    server: ServerProcess, link: Wire, changes: dict[str, str | None], status: int, outcome: str
) -> None:
    before = await counted(server, "handshakes_total", {"outcome": outcome})
    response = await link.upgrade(**changes)

    assert response.status == status
    assert response.headers["content-type"].startswith("application/problem+json")
    problem = response.json()
    assert problem["status"] == status
    assert problem["title"]
    assert problem["detail"]
    if outcome == "bad_version":
        assert response.headers["sec-websocket-version"] == "13"
    if outcome == "not_websocket":
        assert response.headers["upgrade"] == "websocket"
    assert await counted(server, "handshakes_total", {"outcome": outcome}) == before + 1


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
async def test_a_websocket_is_opened_with_get_only(link: Wire, method: str) -> None:
    response = await link.request(method, PATH, headers=upgrade_headers())

    assert response.status == 405
    assert response.headers["allow"] == "GET"


async def test_the_hosts_own_pages_may_connect(server: ServerProcess, link: Wire) -> None:
    own = f"127.0.0.1:{server.port}"
    response = await link.upgrade(Host=own, Origin=f"http://{own}")

    assert response.status == 101


async def test_a_list_of_origins_replaces_the_own_host(strict: ServerProcess, door: Door) -> None:
    own = f"127.0.0.1:{strict.port}"
    statuses = {}
    for origin in ("https://chat.example.com", "HTTPS://Chat.Example.com", f"http://{own}", None):
        async with wire(strict.port) as link:
            await door.reach(link)
            statuses[origin] = (await link.upgrade(Host=own, Origin=origin)).status
        await wait_for_level(strict, "connections", 0)

    assert list(statuses.values()) == [101, 101, 403, 101]


@pytest.mark.parametrize(
    ("query", "changes"),
    [
        ("", {"Sec_WebSocket_Protocol": "centrifuge-protobuf"}),
        ("?cf_protocol=protobuf", {}),
        ("?format=protobuf", {}),
    ],
)
async def test_protobuf_is_closed_with_3506(
    server: ServerProcess, link: Wire, query: str, changes: dict[str, str | None]
) -> None:
    """After an accepted upgrade, because a browser can't read a refused one."""
    response = await link.upgrade(query, **changes)
    assert response.status == 101
    assert response.headers.get("sec-websocket-protocol") == changes.get("Sec_WebSocket_Protocol")

    close = await link.closed()
    assert close.code == 3506
    assert close.advice() == {"reason": "inappropriate protocol", "reconnect": False}


# --- slow, large and broken heads -----------------------------------------------------------------


async def test_a_head_that_takes_too_long_is_answered_with_408(server: ServerProcess) -> None:
    """However steadily it drips: the time counts from the connection's first moment."""
    before = await counted(server, "handshakes_total", {"outcome": "timeout"})
    async with wire(server.port) as link:
        begun = asyncio.get_running_loop().time()
        answer = asyncio.ensure_future(link.response())
        for byte in UPGRADE[:-1]:
            link.write(bytes((byte,)))
            done, _ = await asyncio.wait([answer], timeout=HANDSHAKE_TIMEOUT / 20)
            if done:
                break
        response = await answer
        took = asyncio.get_running_loop().time() - begun

        assert response.status == 408
        assert response.headers["connection"] == "close"
        assert response.json()["status"] == 408
        assert took >= HANDSHAKE_TIMEOUT * 0.9
        assert await link.rest() == b""
    assert await counted(server, "handshakes_total", {"outcome": "timeout"}) == before + 1


async def test_who_connects_and_says_nothing_is_closed_too(server: ServerProcess) -> None:
    async with wire(server.port) as link:
        assert (await link.response()).status == 408
        assert await link.rest() == b""


async def test_a_slow_head_holds_nobody_up(server: ServerProcess) -> None:
    async with AsyncExitStack() as stack:
        for _ in range(50):
            slow = await stack.enter_async_context(wire(server.port))
            slow.write(UPGRADE[:-2])
        async with connected(server) as alice:
            assert await alice.quiet() == []


@pytest.mark.parametrize("target", [PATH, "/api/health"])
@pytest.mark.parametrize("segments", ["in one piece", "in many pieces"])
async def test_a_large_head_is_answered_with_431(
    server: ServerProcess, target: str, segments: str
) -> None:
    large = head(
        target=target, headers=upgrade_headers() | {f"X-{n}": "x" * 1000 for n in range(40)}
    )
    assert len(large) > 2 * HEAD_MAX_BYTES
    async with wire(server.port) as link:
        if segments == "in one piece":
            link.write(large)
        else:
            for position in range(0, len(large), 1024):
                await link.write_apart(large[position : position + 1024])

        response = await link.response()
        assert response.status == 431
        assert response.json()["title"] == "Request Header Fields Too Large"
        assert await link.rest() == b""


async def test_a_head_that_never_ends_is_answered_with_431(server: ServerProcess) -> None:
    async with wire(server.port) as link:
        link.write(b"GET /" + b"x" * 100_000)

        assert (await link.response()).status == 431


async def test_a_head_with_large_cookies_gets_in(link: Wire) -> None:
    response = await link.upgrade(Cookie="session=" + "x" * 7000, X_Other="y" * 7000)

    assert response.status == 101


GARBAGE = {
    "TLS": bytes.fromhex("16030100a5010000a10303") + bytes(100) + b"\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "zeros": bytes(64) + b"\r\n\r\n",
    "no version": b"GET " + PATH.encode() + b"\r\n\r\n",
    "a header without a colon": b"GET " + PATH.encode() + b" HTTP/1.1\r\nUpgrade\r\n\r\n",
    "a header with a control character": (
        b"GET " + PATH.encode() + b" HTTP/1.1\r\nHost: a\r\nX: \x00\r\n\r\n"
    ),
    "two lengths": (
        b"GET " + PATH.encode() + b" HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n"
    ),
    "a bad target": b"GET " + PATH.encode() + b"?\xff\xfe HTTP/1.1\r\nHost: a\r\n\r\n",
}


@pytest.mark.parametrize("data", GARBAGE.values(), ids=GARBAGE.keys())
async def test_garbage_costs_its_sender_the_connection_and_nobody_else(
    server: ServerProcess, data: bytes
) -> None:
    async with connected(server) as alice, wire(server.port) as link:
        link.write(data)
        answer = await link.rest()

        assert not answer or re.match(rb"HTTP/\d\.\d 4\d\d ", answer), answer
        assert await alice.quiet() == []
    assert "Traceback" not in server.log()


# --- too many -------------------------------------------------------------------------------------


async def test_a_full_server_answers_with_503_and_when_to_come_back(
    strict: ServerProcess, door: Door
) -> None:
    async with AsyncExitStack() as stack:
        peers = [
            await stack.enter_async_context(
                connected(strict, X_Forwarded_For=f"203.0.113.{number}")
            )
            for number in range(5)
        ]
        before = await counted(strict, "handshakes_total", {"outcome": "full"})
        async with wire(strict.port) as link:
            await door.reach(link)
            response = await link.upgrade(X_Forwarded_For="203.0.113.99")

        assert response.status == 503
        assert int(response.headers["retry-after"]) > 0
        assert response.headers["content-type"].startswith("application/problem+json")
        assert response.json()["status"] == 503
        await wait_for(strict, "handshakes_total", before + 1, {"outcome": "full"})
        for peer in peers:
            assert await peer.quiet() == []

    await wait_for_level(strict, "connections", 0)
    async with connected(strict):
        pass


async def test_one_address_gets_only_so_many_connections(strict: ServerProcess, door: Door) -> None:
    async with (
        connected(strict, source="127.0.0.2"),
        connected(strict, source="127.0.0.2"),
        wire(strict.port, source="127.0.0.2") as third,
        wire(strict.port, source="127.0.0.3") as other,
    ):
        before = await counted(strict, "handshakes_total", {"outcome": "address_limit"})
        await door.reach(third)
        response = await third.upgrade()

        assert response.status == 429
        assert int(response.headers["retry-after"]) > 0
        assert response.json()["detail"]
        await wait_for(strict, "handshakes_total", before + 1, {"outcome": "address_limit"})
        assert (await other.upgrade()).status == 101


FORWARDED: dict[str, tuple[str, int]] = {
    "the same client": ("203.0.113.1", 429),
    "another client": ("203.0.113.2", 101),
    "the same client, who claims to be others": ("198.51.100.7, 203.0.113.1", 429),
    "the same client through a second proxy": ("203.0.113.1, 10.1.2.3", 429),
    "another client, who claims to be a proxy": ("203.0.113.1, 203.0.113.2", 101),
    "the same client in a header of its own": (
        "198.51.100.7\r\nX-Forwarded-For: 203.0.113.1",
        429,
    ),
    "the same client with a port": ("203.0.113.1:4711", 429),
    "no address at all": ("unknown", 101),
}


@pytest.mark.parametrize(("header", "status"), FORWARDED.values(), ids=FORWARDED.keys())
async def test_a_trusted_proxy_says_whose_connection_it_is(
    strict: ServerProcess, door: Door, header: str, status: int
) -> None:
    async with (
        connected(strict, X_Forwarded_For="203.0.113.1"),
        connected(strict, X_Forwarded_For="203.0.113.1"),
        wire(strict.port) as link,
    ):
        await door.reach(link)

        assert (await link.upgrade(X_Forwarded_For=header)).status == status


async def test_nobody_else_is_believed_about_addresses(strict: ServerProcess, door: Door) -> None:
    async with (
        connected(strict, source="127.0.0.2", X_Forwarded_For="203.0.113.1"),
        connected(strict, source="127.0.0.2", X_Forwarded_For="203.0.113.2"),
        wire(strict.port, source="127.0.0.2") as link,
    ):
        await door.reach(link)

        assert (await link.upgrade(X_Forwarded_For="203.0.113.3")).status == 429


async def test_a_place_is_free_again_when_its_client_has_left(strict: ServerProcess) -> None:
    for _ in range(3):
        async with open_peer(strict, source="127.0.0.2"), open_peer(strict, source="127.0.0.2"):
            pass
        await wait_for_level(strict, "connections", 0)


# --- everything else is HTTP ----------------------------------------------------------------------


async def test_requests_on_a_kept_alive_connection_are_answered(server: ServerProcess) -> None:
    async with wire(server.port) as link:
        for target, status in (("/api/health", 200), ("/nowhere", 404), ("/api/version", 200)):
            assert (await link.request("GET", target)).status == status


async def test_pipelined_requests_are_answered_in_order(server: ServerProcess) -> None:
    async with wire(server.port) as link:
        requests = [
            head(target=target, headers={"Host": "a"})
            for target in ("/api/version", "/nowhere", "/api/health")
        ]
        link.write(b"".join(requests))
        answers = [await link.response() for _ in requests]

    assert [answer.status for answer in answers] == [200, 404, 200]
    assert "version" in answers[0].json()


async def test_a_body_may_come_with_its_head_or_later(server: ServerProcess) -> None:
    body = b'{"channels":["chat:x"]}'
    request = head("POST", "/api/channels", {"Host": "a", "Content-Length": str(len(body))}) + body
    for position in (10, len(request) - len(body), len(request) - 5, len(request)):
        async with wire(server.port) as link:
            await link.write_apart(*filter(None, (request[:position], request[position:])))

            assert (await link.response()).status == 401


@pytest.mark.parametrize("target", [f"{PATH}/", f"{PATH}x", f"/x{PATH}", "/connection/sse"])
async def test_addresses_that_look_alike_are_not_websockets(
    server: ServerProcess, target: str
) -> None:
    response = await fetch(server.port, target, headers=upgrade_headers())

    assert response.status == 404
