"""The server API, `/api/health`, `/api/ready` and `/metrics`, as bare HTTP (PROTOCOL.md A.11)."""

import asyncio
import base64
import http.client
import io
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from gateway.protocol import codes
from handlers.api import METHODS
from metrics.instruments import REGISTRY
from tests.integration.conftest import StartServer
from tests.support.cluster import Cluster
from tests.support.fuzzing import REPEATABLE
from tests.support.peer import connected
from tests.support.ports import free_port
from tests.support.scrape import wait_for_level
from tests.support.server import API_KEY, DEFAULT_CONFIG, ServerProcess
from tests.support.wire import DEADLINE, head, wire

BODY_MAX_BYTES = 16 * 1024 * 1024
PAYLOAD_MAX_BYTES = 1024 * 1024
PUBLISH_TIMEOUT = 0.5
CHANNELS_MAX = 20

CONFIG = f"""
channels_per_client_max = {CHANNELS_MAX}
publish_timeout = {PUBLISH_TIMEOUT}
{DEFAULT_CONFIG}
"""


@pytest.fixture(scope="module")
def server(start_server: StartServer) -> ServerProcess:
    return start_server(CONFIG)


@pytest.fixture
async def stranger(server: ServerProcess) -> AsyncIterator[aiohttp.ClientSession]:
    """Requests without a key."""
    async with aiohttp.ClientSession(server.http_url) as session:
        yield session


@pytest.fixture
async def backend(server: ServerProcess) -> AsyncIterator[aiohttp.ClientSession]:
    """Requests with the key."""
    async with aiohttp.ClientSession(
        server.http_url, headers={"X-API-Key": API_KEY, "Content-Type": "application/json"}
    ) as session:
        yield session


async def answer(backend: aiohttp.ClientSession, method: str, body: bytes) -> Any:
    """What the API answers, which must be with status 200."""
    async with backend.post(f"/api/{method}", data=io.BytesIO(body)) as response:
        assert response.status == 200, await response.text()
        assert response.content_type == "application/json"
        return await response.json()


async def call(backend: aiohttp.ClientSession, method: str, /, **request: object) -> Any:
    """The result of a call, which must succeed."""
    return (await answer(backend, method, json.dumps(request).encode()))["result"]


async def error(backend: aiohttp.ClientSession, method: str, /, **request: object) -> Any:
    """The error of a call, which must fail."""
    return (await answer(backend, method, json.dumps(request).encode()))["error"]


async def problem(response: aiohttp.ClientResponse) -> str:
    """The detail of a problem document (RFC 9457), checked."""
    assert response.content_type == "application/problem+json"
    document = await response.json()
    assert document["status"] == response.status
    assert document.keys() == {"type", "title", "status", "detail"}
    detail = document["detail"]
    assert isinstance(detail, str)
    assert detail != ""
    return detail


# --- the key --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "query"),
    [
        ({"X-API-Key": API_KEY}, {}),
        ({"Authorization": f"apikey {API_KEY}"}, {}),
        ({"Authorization": f"ApiKey {API_KEY}"}, {}),
        ({}, {"api_key": API_KEY}),
    ],
)
async def test_the_key_is_taken_from_header_or_query(
    stranger: aiohttp.ClientSession, headers: dict[str, str], query: dict[str, str]
) -> None:
    async with stranger.post("/api/info", headers=headers, params=query, json={}) as response:
        assert response.status == 200
        assert "result" in await response.json()


@pytest.mark.parametrize(
    ("headers", "query"),
    [
        ({}, {}),
        ({"X-API-Key": ""}, {}),
        ({"X-API-Key": "guessed"}, {}),
        ({"X-API-Key": "gu\xe9ssed"}, {}),
        ({"X-API-Key": API_KEY[:-1]}, {}),
        ({"X-API-Key": API_KEY + "x"}, {}),
        ({"X-API-Key": API_KEY.upper()}, {}),
        ({"Authorization": f"Bearer {API_KEY}"}, {}),
        ({"Authorization": "apikey guessed"}, {}),
        ({"Authorization": "apikey"}, {}),
        ({}, {"api_key": "guessed"}),
        ({"Cookie": f"api_key={API_KEY}"}, {}),
    ],
)
async def test_without_the_key_nothing_is_done_or_said(
    server: ServerProcess,
    stranger: aiohttp.ClientSession,
    headers: dict[str, str],
    query: dict[str, str],
) -> None:
    """Not even whether a method exists or a body makes sense; nor what the key looked like."""
    for method in (*METHODS, "batch", "no-such-method"):
        async with stranger.post(
            f"/api/{method}", headers=headers, params=query, data=b"not JSON"
        ) as response:
            assert response.status == 401
            assert "X-API-Key" in await problem(response)
            said = await response.text() + str(response.headers)
        assert API_KEY not in said
        assert "guessed" not in said
    assert "guessed" not in server.log()
    assert API_KEY not in server.log()


# --- bodies ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"not JSON",
        b"{'channel': 'chat:1'}",
        b"\xff\xfe",
        b'{"channel": "chat:1", "data": NaN}',
        b'{"channel": "chat:1", "data": 1e999}',
        b'{"channel": "chat:1", "data": "\\ud800"}',
        b"[" * 100_000,
        b'{"channel": "chat:1"}{"channel": "chat:2"}',
    ],
    ids=lambda body: repr(body[:40]),
)
async def test_a_body_that_is_not_json_is_400(backend: aiohttp.ClientSession, body: bytes) -> None:
    for method in ("publish", "batch"):
        async with backend.post(f"/api/{method}", data=body) as response:
            assert response.status == 400
            assert "JSON" in await problem(response)


@pytest.mark.parametrize(
    ("method", "request_", "field"),
    [
        ("publish", {"data": 1}, "channel"),
        ("publish", {"channel": ["S3CRET"], "data": 1}, "channel"),
        ("publish", {"channel": None, "data": 1}, "channel"),
        ("publish", {"channel": "chat:1", "data": 1, "tags": {"k": ["S3CRET"]}}, "tags.k"),
        ("publish", {"channel": "chat:1", "data": 1, "tags": "S3CRET"}, "tags"),
        ("publish", {"channel": "chat:1", "data": 1, "skip_history": "S3CRET"}, "skip_history"),
        ("publish", {"channel": "chat:1", "data": 1, "version": "S3CRET"}, "version"),
        (
            "publish",
            {"channel": "chat:1", "data": 1, "idempotency_key": "S3CRET" * 11},
            "idempotency_key",
        ),
        (
            "publish",
            {"channel": "chat:1", "data": 1, "idempotency_key": "S3CRET\0"},
            "idempotency_key",
        ),
        ("publish", {"channel": "chat:1"}, "data"),
        ("publish", {"channel": "chat:1", "dta": "S3CRET"}, "data"),
        ("broadcast", {"channels": "S3CRET", "data": 1}, "channels"),
        ("broadcast", {"channels": ["chat:1", {"a": "S3CRET"}], "data": 1}, "channels.1"),
        ("broadcast", {"channels": ["chat:1"] * 10_001, "data": 1}, "channels"),
        ("subscribe", {"channel": "chat:1", "user": {"a": "S3CRET"}}, "user"),
        ("subscribe", {"channel": "chat:1", "user": "a", "override": {"presence": 3}}, "override"),
        ("disconnect", {"user": "alice", "whitelist": [1]}, "whitelist.0"),
        ("disconnect", {"user": "alice", "code": "S3CRET"}, "code"),
        ("refresh", {"user": "alice", "expire_at": "S3CRET"}, "expire_at"),
        ("refresh", {"user": "alice", "expire_at": -1}, "expire_at"),
        ("refresh", {"user": "alice", "expire_at": "9" * 1000}, "expire_at"),
        ("history", {"channel": "chat:1", "limit": "S3CRET"}, "limit"),
        ("history", {"channel": "chat:1", "since": {"offset": -1}}, "since.offset"),
        ("history", {"channel": "chat:1", "since": {"offset": 2**53}}, "since.offset"),
        ("channels", {"pattern": 7}, "pattern"),
        ("batch", {"commands": {"S3CRET": {}}}, "commands"),
        ("batch", {}, "commands"),
    ],
)
async def test_a_wrong_field_is_named_and_its_value_is_not(
    backend: aiohttp.ClientSession, method: str, request_: dict[str, object], field: str
) -> None:
    refused = await error(backend, method, **request_)

    assert refused["code"] == codes.BAD_REQUEST.code
    assert field in refused["message"]
    assert "S3CRET" not in refused["message"]
    assert len(refused["message"]) < 300


@pytest.mark.parametrize("body", [b"[]", b"null", b"7", b'"S3CRET"'])
async def test_a_body_that_is_not_an_object_is_error_107(
    backend: aiohttp.ClientSession, body: bytes
) -> None:
    for method in (*METHODS, "batch"):
        refused = (await answer(backend, method, body))["error"]
        assert refused["code"] == codes.BAD_REQUEST.code
        assert "S3CRET" not in refused["message"]


async def test_an_empty_body_is_an_empty_object(backend: aiohttp.ClientSession) -> None:
    assert "nodes" in (await answer(backend, "info", b""))["result"]


async def test_fields_of_other_versions_are_ignored(
    backend: aiohttp.ClientSession, room: str
) -> None:
    result = await call(backend, "publish", channel=room, data=1, delta=True, no_such_field=[1])

    assert result["offset"] == 1


async def test_an_unknown_method_is_404(backend: aiohttp.ClientSession) -> None:
    for method in ("no-such-method", "rpc", "map_publish", "_call", "channels_"):
        async with backend.post(f"/api/{method}", json={}) as response:
            assert response.status == 404
            await problem(response)


async def test_only_post_calls_a_method(backend: aiohttp.ClientSession, room: str) -> None:
    for verb in ("GET", "PUT", "DELETE", "PATCH", "OPTIONS"):
        async with backend.request(
            verb, "/api/publish", params={"channel": room, "data": "1"}
        ) as response:
            assert response.status == 405
            assert response.headers["Allow"] == "POST"


async def test_a_body_that_is_too_large_is_413(backend: aiohttp.ClientSession, room: str) -> None:
    start = json.dumps({"channel": room, "data": ""}).encode()[:-2]
    whole = start + b"x" * (BODY_MAX_BYTES - len(start)) + b'"}'
    async with backend.post("/api/publish", data=io.BytesIO(whole)) as response:
        assert response.status == 413
        await problem(response)
    assert (await call(backend, "history", channel=room))["offset"] == 0


async def test_a_payload_that_is_too_large_is_error_107(
    backend: aiohttp.ClientSession, room: str
) -> None:
    largest = "x" * (PAYLOAD_MAX_BYTES - 2)
    assert (await call(backend, "publish", channel=room, data=largest))["offset"] == 1

    for request in (
        {"data": largest + "x"},
        {"b64data": base64.b64encode(b'"x' + largest.encode() + b'"').decode()},
        {"data": largest[:-10], "tags": {"key": "value"}},
    ):
        refused = await error(backend, "publish", channel=room, **request)
        assert refused == {"code": codes.BAD_REQUEST.code, "message": "the payload is too large"}
    assert (await call(backend, "history", channel=room))["offset"] == 1


async def test_a_compressed_body_is_understood_and_a_broken_one_is_400(
    server: ServerProcess, backend: aiohttp.ClientSession, room: str
) -> None:
    body = json.dumps({"channel": room, "data": "z" * 1000}).encode()
    async with backend.post("/api/publish", data=body, compress="deflate") as response:
        assert (await response.json())["result"]["offset"] == 1
    async with backend.post(
        "/api/publish", data=body, headers={"Content-Encoding": "gzip"}
    ) as response:
        assert response.status == 400
        assert "Content-Encoding" in await problem(response)
    assert '"level": "error"' not in server.log()


# --- payloads -------------------------------------------------------------------------------------


async def received(server: ServerProcess, room: str, publish: Callable[[], Any]) -> str:
    """The only frame that a subscriber gets by it, as text."""
    async with connected(server) as alice:
        await alice.call("subscribe", channel=room)
        await alice.quiet()
        await publish()
        return await alice.wire.text()


async def test_a_payload_in_several_lines_arrives_in_one(
    server: ServerProcess, backend: aiohttp.ClientSession, room: str
) -> None:
    """A line break between two values would split the frame into two replies for an SDK."""
    data = {"text": "two\nlines", "list": [1, 2.5, None, True], "nested": {"ключ": "✓"}}
    pretty = json.dumps({"channel": room, "data": data}, indent=4).replace("\n", "\r\n").encode()

    frame = await received(server, room, lambda: answer(backend, "publish", pretty))

    assert "\n" not in frame
    assert json.loads(frame)["push"]["pub"]["data"] == data


async def test_a_payload_in_base64_arrives_like_any_other(
    server: ServerProcess, backend: aiohttp.ClientSession, room: str
) -> None:
    data = {"text": "✓", "list": [1, 2]}
    encoded = base64.b64encode(json.dumps(data, indent=1).encode()).decode()

    frame = await received(
        server, room, lambda: call(backend, "publish", channel=room, data="no", b64data=encoded)
    )

    assert "\n" not in frame
    assert json.loads(frame)["push"]["pub"]["data"] == data


@pytest.mark.parametrize(
    "b64data",
    [
        "!",
        "S3CRET",
        "é",
        base64.b64encode(b"not JSON").decode(),
        base64.b64encode(b'{"a":1}\n{"b":2}').decode(),
        base64.b64encode(b"\xff").decode(),
        base64.b64encode(b"[" * 200 + b"]" * 200).decode(),
        base64.b64encode(b"[" * 500 + b"]" * 500).decode(),
    ],
    ids=lambda text: text[:20],
)
async def test_base64_that_holds_no_json_is_error_107(
    backend: aiohttp.ClientSession, room: str, b64data: str
) -> None:
    for method, request in (
        ("publish", {"channel": room, "b64data": b64data}),
        ("broadcast", {"channels": [room], "b64data": b64data}),
        ("subscribe", {"channel": room, "user": "alice", "b64data": b64data}),
        ("subscribe", {"channel": room, "user": "alice", "b64info": b64data}),
    ):
        refused = await error(backend, method, **request)
        assert refused["code"] == codes.BAD_REQUEST.code
        assert b64data not in refused["message"]


async def test_numbers_arrive_as_javascript_would_read_them(
    server: ServerProcess, backend: aiohttp.ClientSession, room: str
) -> None:
    body = b'{"channel": "%s", "data": [18446744073709551615, 1e2, 123456789012345678901234]}'

    frame = await received(server, room, lambda: answer(backend, "publish", body % room.encode()))

    data = json.loads(frame)["push"]["pub"]["data"]
    assert data == [2**64 - 1, 100.0, 1.2345678901234568e23]


async def test_a_null_that_is_meant_is_published(
    server: ServerProcess, backend: aiohttp.ClientSession, room: str
) -> None:
    frame = await received(server, room, lambda: call(backend, "publish", channel=room, data=None))

    assert json.loads(frame)["push"]["pub"]["data"] is None


async def test_tags_arrive_and_are_kept(
    server: ServerProcess, backend: aiohttp.ClientSession, room: str
) -> None:
    tags = {"lang": "de", "zero": "\0", "quote": '"\n'}

    frame = await received(
        server, room, lambda: call(backend, "publish", channel=room, data=1, tags=tags)
    )

    assert json.loads(frame)["push"]["pub"]["tags"] == tags
    history = await call(backend, "history", channel=room, limit=1)
    assert history["publications"][0]["tags"] == tags


# --- publish --------------------------------------------------------------------------------------


async def test_a_publish_that_is_repeated_is_stored_and_delivered_once(
    server: ServerProcess, backend: aiohttp.ClientSession, room: str
) -> None:
    request = {"channel": room, "data": "once", "idempotency_key": "order-17"}
    async with connected(server) as alice:
        await alice.call("subscribe", channel=room)
        await alice.quiet()
        first = await call(backend, "publish", **request)
        at_once = await asyncio.gather(*(call(backend, "publish", **request) for _ in range(5)))
        other = await call(backend, "publish", **request | {"idempotency_key": "order-18"})
        elsewhere = await call(backend, "publish", **request | {"channel": f"{room}-b"})

        assert at_once == [{**first, "duplicate": True}] * 5
        assert (first["offset"], other["offset"], elsewhere["offset"]) == (1, 2, 1)
        assert "duplicate" not in first | other | elsewhere
        assert [push["pub"]["offset"] for push in await alice.quiet()] == [1, 2]
    history = await call(backend, "history", channel=room, limit=10)
    assert [pub["offset"] for pub in history["publications"]] == [1, 2]


async def test_a_repeated_publish_without_history_is_delivered_once(
    server: ServerProcess, backend: aiohttp.ClientSession
) -> None:
    request = {"channel": "live:once", "data": 1, "idempotency_key": "order-17"}
    async with connected(server) as alice:
        await alice.call("subscribe", channel="live:once")
        assert await call(backend, "publish", **request) == {}
        assert await call(backend, "publish", **request) == {"duplicate": True}

        assert len(await alice.quiet()) == 1


async def test_what_skips_history_is_delivered_and_not_stored(
    server: ServerProcess, backend: aiohttp.ClientSession, room: str
) -> None:
    async with connected(server) as alice:
        await alice.call("subscribe", channel=room)
        await alice.quiet()
        assert await call(backend, "publish", channel=room, data="typing", skip_history=True) == {}
        assert (await call(backend, "publish", channel=room, data="text"))["offset"] == 1

        pushes = await alice.quiet()
        assert [(push["pub"]["data"], push["pub"].get("offset")) for push in pushes] == [
            ("typing", None),
            ("text", 1),
        ]
    history = await call(backend, "history", channel=room, limit=10)
    assert [pub["data"] for pub in history["publications"]] == ["text"]


@pytest.mark.parametrize(
    ("method", "request_", "expected"),
    [
        ("publish", {"channel": "nowhere:1", "data": 1}, codes.UNKNOWN_CHANNEL),
        ("history", {"channel": "nowhere:1"}, codes.UNKNOWN_CHANNEL),
        ("presence", {"channel": "nowhere:1"}, codes.UNKNOWN_CHANNEL),
        ("history", {"channel": "live:1"}, codes.NOT_AVAILABLE),
        ("history_remove", {"channel": "plain"}, codes.NOT_AVAILABLE),
        ("presence", {"channel": "live:1"}, codes.NOT_AVAILABLE),
        ("publish", {"channel": "chat:1", "data": 1, "version": 1}, codes.NOT_AVAILABLE),
        ("publish", {"channel": "chat:" + "x" * 251, "data": 1}, codes.BAD_REQUEST),
        ("publish", {"channel": "chat:\0", "data": 1}, codes.BAD_REQUEST),
        ("publish", {"channel": "chat:é", "data": 1}, codes.BAD_REQUEST),
    ],
)
async def test_what_a_channel_does_not_have_is_refused(
    backend: aiohttp.ClientSession,
    method: str,
    request_: dict[str, object],
    expected: codes.ErrorCode,
) -> None:
    assert (await error(backend, method, **request_))["code"] == expected.code


async def test_one_connection_that_is_full_does_not_keep_a_users_others_out(
    server: ServerProcess, backend: aiohttp.ClientSession
) -> None:
    async with connected(server) as full, connected(server) as free:
        for number in range(CHANNELS_MAX):
            await full.call("subscribe", channel=f"live:{number}")
        refused = await error(backend, "subscribe", user="alice", channel="live:one-more")

        assert refused["code"] == codes.LIMIT_EXCEEDED.code
        assert (await free.push())["channel"] == "live:one-more"


@pytest.mark.parametrize("parallel", [False, True])
async def test_a_batch_answers_each_command_in_its_place(
    backend: aiohttp.ClientSession, room: str, parallel: bool
) -> None:
    commands: list[object] = [
        {"publish": {"channel": room, "data": 1}},
        {"publish": {"channel": "nowhere:1", "data": 1}},
        {"no_such_method": {}},
        {"batch": {"commands": []}},
        {},
        {"publish": {}, "info": {}},
        {"publish": "S3CRET"},
        {"presence_stats": {"channel": room}},
    ]
    body = json.dumps({"commands": commands, "parallel": parallel}).encode()
    replies = (await answer(backend, "batch", body))["replies"]

    assert replies[0]["publish"]["offset"] == 1
    assert [reply["error"]["code"] for reply in replies[1:7]] == [102, 104, 104, 104, 104, 107]
    assert replies[7] == {"presence_stats": {"num_clients": 0, "num_users": 0}}
    assert "S3CRET" not in str(replies)


@pytest.mark.parametrize("expire_at", [2**53 - 1, 10**12])
async def test_a_connection_may_last_until_the_end_of_time(
    server: ServerProcess, backend: aiohttp.ClientSession, expire_at: int
) -> None:
    async with connected(server) as alice:
        await call(backend, "refresh", user="alice", expire_at=expire_at)

        refresh = (await alice.push())["refresh"]
        assert refresh["expires"] is True
        assert refresh["ttl"] > 10**9
        assert await alice.quiet() == []


# --- without a database ---------------------------------------------------------------------------


@pytest.fixture
def stopped_database(cluster: Cluster, server: ServerProcess) -> Iterator[Callable[[], None]]:
    """The database doesn't run; call this to start it again."""
    cluster.stop("immediate")
    yield cluster.start
    cluster.start()


async def status(session: aiohttp.ClientSession, path: str) -> tuple[int, Any]:
    async with session.get(path) as response:
        return response.status, await response.json()


async def test_without_a_database_what_needs_it_fails_in_time_and_the_rest_goes_on(
    server: ServerProcess,
    backend: aiohttp.ClientSession,
    room: str,
    stopped_database: Callable[[], None],
) -> None:
    async with connected(server) as alice:
        await alice.call("subscribe", channel="live:score")
        begun = time.monotonic()
        refused = await asyncio.gather(
            error(backend, "publish", channel=room, data="lost"),
            error(backend, "history", channel=room, limit=1),
            error(backend, "history_remove", channel=room),
        )
        assert PUBLISH_TIMEOUT * 0.5 < time.monotonic() - begun < PUBLISH_TIMEOUT * 2 + 2
        assert [failure["code"] for failure in refused] == [codes.INTERNAL.code] * 3
        responses = (await call(backend, "broadcast", channels=[room, "live:score"], data="b"))[
            "responses"
        ]
        assert responses[0]["error"]["code"] == codes.INTERNAL.code
        assert responses[1] == {"result": {}}

        assert (await alice.publication("live:score"))["data"] == "b"
        assert await status(backend, "/api/health") == (200, {"status": "ok"})
        code, ready = await status(backend, "/api/ready")
        assert (code, ready["status"]) == (503, "unavailable")
        assert ready["checks"] == {"database": "unreachable", "loop": "ok", "process": "ok"}
        await wait_for_level(server, "database_up", 0)

        await asyncio.to_thread(stopped_database)
        async with asyncio.timeout(DEADLINE):
            while (await status(backend, "/api/ready"))[0] != 200:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        await wait_for_level(server, "database_up", 1)
        # Who is told 100 tries again, with a key: it is stored once, whatever came of the others.
        request = {"channel": room, "data": "found", "idempotency_key": "order-17"}
        async with asyncio.timeout(DEADLINE):
            while "error" in await answer(backend, "publish", json.dumps(request).encode()):
                pass
        history = await call(backend, "history", channel=room, limit=10)
        assert [pub["data"] for pub in history["publications"]] == ["found"]
        assert (await alice.quiet()) == []


# --- health and metrics ---------------------------------------------------------------------------


async def test_health_and_version_need_no_key(stranger: aiohttp.ClientSession) -> None:
    assert await status(stranger, "/api/health") == (200, {"status": "ok"})
    assert await status(stranger, "/health") == (200, {"status": "ok"})
    code, ready = await status(stranger, "/api/ready")
    assert (code, ready["status"]) == (200, "ok")
    assert 0 <= ready["loop_lag_ms"] < 1000
    code, version = await status(stranger, "/api/version")
    assert (code, version.keys()) == (200, {"version"})


async def test_an_internal_port_takes_the_api_and_the_metrics_off_the_public_one(
    start_server: StartServer,
) -> None:
    port = free_port()
    server = start_server(GATEWAY_INTERNAL_PORT=str(port))
    headers = {"X-API-Key": API_KEY}
    async with (
        aiohttp.ClientSession(server.http_url, headers=headers) as public,
        aiohttp.ClientSession(f"http://127.0.0.1:{port}", headers=headers) as internal,
        connected(server) as alice,
    ):
        await alice.call("subscribe", channel="live:score")
        for method in (*METHODS, "batch"):
            async with public.post(f"/api/{method}", json={}) as response:
                assert response.status in (404, 405), method
        async with public.get("/metrics") as response:
            assert response.status == 404
        for path in ("/api/health", "/api/ready"):
            for session in (public, internal):
                assert (await status(session, path))[0] == 200
        async with public.get("/") as response:
            assert response.status == 200

        await call(internal, "publish", channel="live:score", data="inside")
        assert (await alice.publication())["data"] == "inside"
        async with internal.get("/metrics") as response:
            assert "capegate_api_requests_total" in await response.text()
        for path in ("/", "/connection/websocket", "/static/gateway.js"):
            async with internal.get(path) as response:
                assert response.status == 404


async def exposed(session: aiohttp.ClientSession) -> tuple[set[str], set[str]]:
    """The names of our metrics, and every series with its labels."""
    async with session.get("/metrics") as response:
        assert response.status == 200
        assert response.content_type == "text/plain"
        families = list(text_string_to_metric_families(await response.text()))
    # Counters and histograms also say when they were made, as a gauge of its own in this format.
    ours = {
        family.name.removesuffix("_created")
        for family in families
        if family.name.startswith("capegate_")
    }
    return ours, {
        f"{sample.name}{sorted(sample.labels.items())}"
        for family in families
        for sample in family.samples
    }


async def test_metrics_are_those_that_are_declared(stranger: aiohttp.ClientSession) -> None:
    names, _ = await exposed(stranger)

    declared = {family.name for family in REGISTRY.collect()}
    assert names == {name for name in declared if name.startswith("capegate_")}


async def live(
    server: ServerProcess, backend: aiohttp.ClientSession, user: str, channels: list[str]
) -> None:
    """Everything that people do, in channels of their own, and some mistakes."""
    async with connected(server, user) as peer:
        for channel in channels:
            await peer.call("subscribe", channel=channel)
            await peer.call("publish", channel=channel, data=user)
            await peer.error("presence", channel=f"nowhere-{channel}")
            await call(backend, "publish", channel=channel, data=user)
            await call(backend, "history", channel=channel, limit=1)
            await error(backend, "publish", channel=f"no-{channel}", data=user)
            await error(backend, "publish", channel=channel, data=user, tags=[user])
            await peer.call("history", channel=channel, limit=1)
            async with backend.post(f"/api/{user}", json={}) as response:
                assert response.status == 404
        await call(backend, "disconnect", user=user, code=4000 + len(channels), reason=user)
        await peer.ended()


async def test_the_number_of_series_does_not_depend_on_channels_and_users(
    server: ServerProcess, backend: aiohttp.ClientSession, room: str
) -> None:
    await live(server, backend, "first", [room])
    _, before = await exposed(backend)

    for number in range(5):
        channels = [f"{room}-{number}-{channel}" for channel in range(8 + number)]
        await live(server, backend, f"user{number}", channels)

    _, after = await exposed(backend)
    assert after == before
    assert not any(room in series or "user1" in series for series in after)


# --- bodies from people who mean no good ----------------------------------------------------------

NAMES = [
    *("channel", "channels", "data", "b64data", "info", "b64info", "user", "client", "session"),
    *("tags", "idempotency_key", "skip_history", "version", "since", "recover_since", "offset"),
    *("epoch", "limit", "reverse", "override", "presence", "value", "whitelist", "disconnect"),
    *("code", "reason", "expired", "expire_at", "pattern", "commands", "parallel", *METHODS),
]
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([0, -1, 2**31, 2**53, 2**63, 2**64, 10**400, 1e308, -1e308, 0.5]),
    st.text(max_size=8),
    st.sampled_from(
        ["chat:1", "live:1", "$chat:1", "chat:#a", "nowhere:1", ":", "alice", "[", "*"]
    ),
    st.sampled_from(["\0", "\ud800", "9" * 5000, "x" * 300, "bnVsbA==", "1e999", "true", "nan"]),
)
JSON = st.recursive(
    VALUES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=3), inner, max_size=4)
    ),
    max_leaves=8,
)
REQUESTS = st.dictionaries(st.sampled_from(NAMES), JSON, max_size=6)
# With a channel that exists, more of the request is looked at.
GOOD_REQUESTS = st.builds(
    lambda request: {"channel": "chat:1", "channels": ["chat:1"], "user": "alice", **request},
    REQUESTS,
)
COMMANDS = st.builds(
    lambda commands, parallel: {"commands": commands, "parallel": parallel},
    st.lists(
        st.dictionaries(
            st.sampled_from([*METHODS, "batch"]), GOOD_REQUESTS | JSON, min_size=1, max_size=1
        ),
        max_size=4,
    ),
    st.booleans(),
)

DOCUMENTED = {error.code for error in codes.ERRORS}


def post(server: ServerProcess, method: str, body: bytes) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=DEADLINE)
    try:
        connection.request("POST", f"/api/{method}", body, {"X-API-Key": API_KEY})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def check_answer(answered: dict[str, Any]) -> None:
    """It is a result or a documented error; and not 100, because nothing is broken here."""
    if "error" in answered:
        assert answered["error"]["code"] in DOCUMENTED - {codes.INTERNAL.code}, answered
        assert answered["error"]["message"] != ""
    else:
        assert len(answered) == 1, answered


@settings(REPEATABLE, max_examples=150)
@given(
    method=st.sampled_from([*METHODS, "batch"]),
    request=GOOD_REQUESTS | REQUESTS | COMMANDS | JSON,
)
@example(method="refresh", request={"user": "alice", "expire_at": "9" * 400})
@example(method="publish", request={"channel": "chat:1", "data": [[[1e308]]], "tags": {"": "\0"}})
def test_hostile_requests_get_a_documented_answer(
    server: ServerProcess, method: str, request: object
) -> None:
    code, body = post(server, method, json.dumps(request).encode())
    answered = json.loads(body)

    if code == 400:
        # What Python writes and isn't JSON: lone surrogates, and numbers beyond all floats.
        assert answered["title"] == "Bad Request"
        return
    assert code == 200
    if method == "batch" and "replies" in answered:
        for reply in answered["replies"]:
            check_answer(reply)
    else:
        check_answer(answered)
        assert answered.keys() <= {"result", "error"}
    assert '"level": "error"' not in server.log()


@settings(REPEATABLE, max_examples=50)
@given(
    method=st.sampled_from([*METHODS, "batch"]),
    body=st.binary(max_size=50) | st.text('{}[]",:0e-+\\u\n', max_size=30).map(str.encode),
)
def test_hostile_bytes_get_a_documented_answer(
    server: ServerProcess, method: str, body: bytes
) -> None:
    code, answered = post(server, method, body)

    assert code in (200, 400)
    if code == 200:
        check_answer(json.loads(answered))


@settings(REPEATABLE, max_examples=50)
@given(method=st.text(min_size=1, max_size=20).filter(lambda method: method not in METHODS))
@example(method="..")
@example(method="\0")
@example(method="publish/")
@example(method="../metrics")
@example(method="__class__")
def test_hostile_method_names_are_404(server: ServerProcess, method: str) -> None:
    code, _ = post(server, quote(method.encode(errors="replace"), safe=""), b"{}")

    assert code == 404


async def test_a_sender_who_leaves_in_the_middle_is_no_failure_of_ours(
    server: ServerProcess, backend: aiohttp.ClientSession
) -> None:
    """And no line in the log, which anybody with a flaky line could fill otherwise."""
    before = server.log()
    async with wire(server.port) as sender:
        headers = {"Host": "a", "X-API-Key": API_KEY, "Content-Length": "100"}
        await sender.write_apart(head("POST", "/api/publish", headers), b'{"channel":')
    await call(backend, "info")

    assert server.log() == before


async def test_hostile_values_that_reach_a_connection_do_it_no_harm(
    server: ServerProcess, backend: aiohttp.ClientSession, room: str
) -> None:
    unfit = "\0\r\n\u2028\x7f"
    requests: list[tuple[str, dict[str, object]]] = [
        ("subscribe", {"info": unfit, "data": {unfit: unfit}}),
        ("unsubscribe", {}),
        ("subscribe", {"recover_since": {"offset": 2**53 - 1, "epoch": unfit}}),
        ("unsubscribe", {}),
        ("refresh", {"expire_at": 2**53 - 1}),
    ]
    async with connected(server) as alice:
        for method, request in requests:
            assert await call(backend, method, user="alice", channel=room, **request) == {}
            while method not in await alice.push():
                pass
        await call(backend, "disconnect", user="alice", code=4999, reason=unfit * 100)

        ended = await alice.ended()
    assert ended.code == 4999
    assert (unfit * 100).startswith(ended.advice["reason"])
