"""The server HTTP API as anything that can send a request calls it: keys, bodies, sizes, errors."""

import asyncio
import base64
import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from tests.integration.conftest import StartServer
from tests.support.peer import connected
from tests.support.scrape import api, call_api, counted, scrape
from tests.support.server import API_KEY, DEFAULT_CONFIG, ServerProcess, free_port
from tests.support.wire import Response, fetch

PAYLOAD_MAX_BYTES = 1024 * 1024
BODY_MAX_BYTES = 16 * 1024 * 1024
KEY = {"X-API-Key": API_KEY}

CONFIG = f"""
{DEFAULT_CONFIG}

[[namespaces]]
name = "plain"
allow_subscribe_for_client = true
"""


@pytest.fixture(scope="module")
def server(start_server: StartServer) -> ServerProcess:
    return start_server(CONFIG)


async def post(
    server: ServerProcess,
    method: str,
    body: bytes | str = b"{}",
    headers: Mapping[str, str] = KEY,
) -> Response:
    data = body.encode() if isinstance(body, str) else body
    return await fetch(server.port, f"/api/{method}", method="POST", headers=headers, body=data)


async def error_of(server: ServerProcess, method: str, **request: Any) -> int:
    """The code of a call that must fail as calls do: with status 200."""
    response = await call_api(server, method, **request)
    assert response.status == 200
    answer = response.json()
    assert answer.keys() == {"error"}, answer
    assert answer["error"]["message"]
    return int(answer["error"]["code"])


# --- keys -----------------------------------------------------------------------------------------


async def test_the_key_may_come_in_three_ways(server: ServerProcess) -> None:
    for query, headers in (
        ("", {"X-API-Key": API_KEY}),
        ("", {"x-api-key": API_KEY}),
        ("", {"Authorization": f"apikey {API_KEY}"}),
        ("", {"Authorization": f"ApiKey   {API_KEY} "}),
        (f"?api_key={API_KEY}", {}),
    ):
        response = await post(server, f"info{query}", headers=headers)

        assert response.status == 200, (query, headers)
        assert response.headers["content-type"].startswith("application/json")
        assert response.json()["result"]["nodes"]


async def test_without_the_key_nothing_is_answered(server: ServerProcess) -> None:
    """Neither which methods there are nor whether a body can be read."""
    before = await counted(server, "publications_total", {"kind": "durable"})
    for query, headers in (
        ("", {}),
        ("", {"X-API-Key": ""}),
        ("", {"X-API-Key": API_KEY[:-1]}),
        ("", {"X-API-Key": API_KEY + "x"}),
        ("", {"X-API-Key": "ключ"}),
        ("", {"X-API-Key": "x" * 8000}),
        ("", {"Authorization": API_KEY}),
        ("", {"Authorization": f"Bearer {API_KEY}"}),
        ("", {"Authorization": f"apikey{API_KEY}"}),
        ("", {"Cookie": f"api_key={API_KEY}"}),
        ("?api_key=wrong", {}),
        (f"?api_key={API_KEY}", {"X-API-Key": "wrong"}),
    ):
        for method in (f"publish{query}", f"no_such_method{query}"):
            for body in ('{"channel":"chat:x","data":1}', "{"):
                response = await post(server, method, body, headers)

                assert response.status == 401, (method, headers)
                assert response.headers["content-type"].startswith("application/problem+json")
                assert API_KEY not in response.body.decode()
    assert await counted(server, "publications_total", {"kind": "durable"}) == before


async def test_without_a_key_of_its_own_the_server_refuses_everybody(
    start_server: StartServer,
) -> None:
    server = start_server(CONFIG, GATEWAY_API_KEY="")
    for headers in ({}, {"X-API-Key": ""}, {"Authorization": "apikey "}):
        response = await post(server, "info", headers=headers)

        assert response.status == 401
        assert "api_key" in response.json()["detail"]


async def test_an_internal_port_takes_the_api_and_the_metrics_off_the_first_one(
    start_server: StartServer,
) -> None:
    """And there, among friends, it may do without a key."""
    internal = free_port()
    server = start_server(f"internal_port = {internal}\napi_insecure = true\n{CONFIG}")
    outside = [
        (await post(server, "info")).status,
        (await fetch(server.port, "/metrics")).status,
        (await fetch(server.port, "/api/health")).status,
    ]
    inside = [
        (await fetch(internal, "/api/info", method="POST", body=b"{}")).status,
        (await fetch(internal, "/metrics")).status,
        (await fetch(internal, "/api/health")).status,
    ]

    assert outside == [404, 404, 200]
    assert inside == [200, 200, 200]


# --- requests that are none -----------------------------------------------------------------------

NOT_JSON: dict[str, bytes] = {
    "text": b"hello",
    "half an object": b'{"channel":"chat:x"',
    "two objects": b"{}{}",
    "not UTF-8": b'{"channel":"\xff"}',
    "NaN": b'{"channel":"chat:x","data":NaN}',
    "a form": b"channel=chat:x&data=1",
    "nesting without end": b"[" * 100_000,
    "a BOM": b"\xef\xbb\xbf{}",
}

UNUSABLE: dict[str, str] = {
    "nothing": "",
    "null": "null",
    "an array": "[]",
    "a number": "1",
    "no channel": '{"data":1}',
    "an empty channel": '{"channel":"","data":1}',
    "a channel that is a number": '{"channel":1,"data":1}',
    "a channel that is too long": json.dumps({"channel": "c" * 256, "data": 1}),
    "a channel with a NUL": '{"channel":"chat:\\u0000","data":1}',
    "a channel that isn't ASCII": '{"channel":"chat:é","data":1}',
    "tags that are an array": '{"channel":"chat:x","data":1,"tags":[]}',
    "a tag that is a number": '{"channel":"chat:x","data":1,"tags":{"a":1}}',
    "a long key": json.dumps({"channel": "chat:x", "data": 1, "idempotency_key": "k" * 65}),
    "a key with a NUL": '{"channel":"chat:x","data":1,"idempotency_key":"\\u0000"}',
    "a flag that is a text": '{"channel":"chat:x","data":1,"skip_history":"maybe"}',
    "base64 that is none": '{"channel":"chat:x","b64data":"!"}',
    "base64 of no JSON": json.dumps(
        {"channel": "chat:x", "b64data": base64.b64encode(b"{").decode()}
    ),
    "data too deep": json.dumps({"channel": "chat:x", "data": json.loads("[" * 129 + "]" * 129)}),
    "data too large": json.dumps({"channel": "chat:x", "data": "x" * PAYLOAD_MAX_BYTES}),
}


async def test_a_body_that_is_not_json_is_a_bad_request(server: ServerProcess) -> None:
    for name, body in NOT_JSON.items():
        for method in ("publish", "batch"):
            response = await post(server, method, body)

            assert response.status == 400, name
            assert response.headers["content-type"].startswith("application/problem+json")
            assert response.json()["status"] == 400


async def test_a_body_that_makes_no_sense_is_error_107(server: ServerProcess) -> None:
    labels = {"method": "publish", "code": "107"}
    before = await counted(server, "api_requests_total", labels)
    for name, body in UNUSABLE.items():
        response = await post(server, "publish", body)

        assert response.status == 200, name
        assert response.json()["error"]["code"] == 107, name
        assert response.json()["error"]["message"], name
        assert len(response.body) < 1000, name
    assert await counted(server, "api_requests_total", labels) == before + len(UNUSABLE)


async def test_a_method_that_does_not_exist_is_not_found(server: ServerProcess) -> None:
    for method in ("no_such_method", "PUBLISH", "publish/", "map_publish", "__init__"):
        assert (await post(server, method)).status == 404, method


async def test_other_verbs_are_not_allowed(server: ServerProcess) -> None:
    for verb in ("GET", "PUT", "DELETE", "OPTIONS"):
        response = await fetch(server.port, "/api/publish", method=verb, headers=KEY)

        assert response.status == 405, verb


async def test_a_body_that_is_too_large_is_refused_by_its_size(server: ServerProcess) -> None:
    response = await post(server, "publish", b" " * (BODY_MAX_BYTES + 1))

    assert response.status == 413


async def test_what_is_unknown_is_ignored(server: ServerProcess, room: str) -> None:
    """Newer clients must be able to call older servers."""
    result = await api(server, "publish", channel=room, data=1, new_field={"a": 1}, delta=True)

    assert result["offset"] == 1


# --- publish and broadcast ------------------------------------------------------------------------


async def test_any_json_is_data(server: ServerProcess, room: str) -> None:
    payloads: list[Any] = [
        None,
        False,
        0,
        -1.5,
        2**63,
        "",
        "line\nbreak \u2028 and \x00 and 🌍",
        [],
        {},
        {"nested": [{"deep": [1, "2", None]}]},
    ]
    async with connected(server) as alice:
        await alice.call("subscribe", channel=room)
        for payload in payloads:
            await api(server, "publish", channel=room, data=payload)
        received = [publication["data"] for publication in await alice.publications(len(payloads))]
    found = await api(server, "history", channel=room, limit=100)

    assert received == payloads
    assert [publication["data"] for publication in found["publications"]] == payloads


async def test_layout_of_the_request_does_not_reach_the_wire(
    server: ServerProcess, room: str
) -> None:
    """A line break outside of a string would end a message there (A.1.2)."""
    body = json.dumps({"channel": room, "data": {"a": [1, 2]}}, indent=4)
    async with connected(server) as alice:
        await alice.call("subscribe", channel=room)
        await post(server, "publish", body)
        encoded = base64.b64encode(b'{\n "a": [\n 1 ]\r\n}').decode()
        await api(server, "publish", channel=room, b64data=encoded)
        frames = [await alice.wire.text() for _ in range(2)]

    assert all("\n" not in frame for frame in frames)
    assert [json.loads(frame)["push"]["pub"]["data"] for frame in frames] == [
        {"a": [1, 2]},
        {"a": [1]},
    ]


async def test_data_may_be_as_large_as_a_mebibyte(server: ServerProcess, room: str) -> None:
    largest = "x" * (PAYLOAD_MAX_BYTES - 2)
    async with connected(server) as alice:
        await alice.call("subscribe", channel=room)
        assert (await api(server, "publish", channel=room, data=largest))["offset"] == 1

        assert (await alice.publication())["data"] == largest


async def test_skip_history_delivers_and_keeps_nothing(server: ServerProcess, room: str) -> None:
    async with connected(server) as alice:
        await alice.call("subscribe", channel=room)
        assert await api(server, "publish", channel=room, data=1, skip_history=True) == {}
        assert await alice.publication() == {"data": 1}
    found = await api(server, "history", channel=room, limit=10)

    assert (found["publications"], found["offset"]) == ([], 0)


async def test_tags_travel_with_a_publication(server: ServerProcess, room: str) -> None:
    tags = {"ticker": "BTC", "": "empty name", "ключ": "значение"}
    async with connected(server) as alice:
        await alice.call("subscribe", channel=room)
        await api(server, "publish", channel=room, data=1, tags=tags)
        await api(server, "publish", channel=room, data=2, tags={})
        first, second = await alice.publications(2)
        found = await api(server, "history", channel=room, limit=1)

    assert first["tags"] == tags
    assert "tags" not in second
    assert found["publications"][0]["tags"] == tags


async def test_a_repeated_key_stores_and_sends_once(server: ServerProcess, room: str) -> None:
    """Also when all of them come at the same time."""
    async with connected(server) as alice:
        await alice.call("subscribe", channel=room)
        request = {"channel": room, "data": "once", "idempotency_key": "k" * 64}
        results = await asyncio.gather(*(api(server, "publish", **request) for _ in range(20)))
        again = await api(server, "publish", **request)
        await api(server, "publish", channel=room, data="end", idempotency_key="another")
        received = await alice.publications(2)

    assert {result["offset"] for result in results} == {1}
    assert sorted("duplicate" in result for result in results) == [False] + [True] * 19
    assert again == results[0] | {"duplicate": True}
    assert [publication["data"] for publication in received] == ["once", "end"]


async def test_a_repeated_key_counts_within_its_channel_only(
    server: ServerProcess, room: str
) -> None:
    channels = [room, f"{room}-2", "plain:x"]
    request: dict[str, Any] = {"channels": channels, "data": 1, "idempotency_key": "key"}
    first = await api(server, "broadcast", **request)
    second = await api(server, "broadcast", **request)

    assert ["duplicate" in one["result"] for one in first["responses"]] == [False] * 3
    assert [one["result"].get("duplicate") for one in second["responses"]] == [True] * 3


async def test_a_repeated_key_without_history_is_not_delivered_again(
    server: ServerProcess, room: str
) -> None:
    async with connected(server) as alice:
        await alice.call("subscribe", channel=f"plain:{room[5:]}")
        channel = f"plain:{room[5:]}"
        request = {"channel": channel, "data": 1, "idempotency_key": "key"}
        assert await api(server, "publish", **request) == {}
        assert await api(server, "publish", **request) == {"duplicate": True}
        assert len(await alice.quiet()) == 1


async def test_a_broadcast_to_many_channels_is_one_request(
    server: ServerProcess, room: str
) -> None:
    channels = [f"{room}-{number}" for number in range(1000)]
    result = await api(server, "broadcast", channels=channels, data="all")

    assert [one["result"]["offset"] for one in result["responses"]] == [1] * 1000
    assert await error_of(server, "broadcast", channels=["plain:x"] * 10_001, data=1) == 107
    assert await api(server, "broadcast", channels=[], data=1) == {"responses": []}


# --- the other methods ----------------------------------------------------------------------------

REFUSED: dict[str, tuple[str, dict[str, Any], int]] = {
    "publish in an unknown namespace": ("publish", {"channel": "no:x", "data": 1}, 102),
    "a versioned publication": ("publish", {"channel": "chat:x", "data": 1, "version": 1}, 108),
    "subscribe in an unknown namespace": ("subscribe", {"channel": "no:x", "user": "a"}, 102),
    "subscribe nobody": ("subscribe", {"channel": "chat:x"}, 107),
    "subscribe with info that is no JSON": (
        "subscribe",
        {"channel": "chat:x", "user": "a", "b64info": "!"},
        107,
    ),
    "subscribe from an impossible position": (
        "subscribe",
        {"channel": "chat:x", "user": "a", "recover_since": {"offset": 2**53}},
        107,
    ),
    "unsubscribe nobody": ("unsubscribe", {"channel": "chat:x"}, 107),
    "unsubscribe from an unknown namespace": ("unsubscribe", {"channel": "no:x", "user": "a"}, 102),
    "disconnect nobody": ("disconnect", {}, 107),
    "disconnect with a code of the protocol's": ("disconnect", {"user": "a", "code": 1000}, 107),
    "disconnect with a code below all": ("disconnect", {"user": "a", "code": 2999}, 107),
    "disconnect with a code above all": ("disconnect", {"user": "a", "code": 5000}, 107),
    "refresh nobody": ("refresh", {}, 107),
    "refresh until a text": ("refresh", {"user": "a", "expire_at": "soon"}, 107),
    "presence that is off": ("presence", {"channel": "plain:x"}, 108),
    "presence of nothing": ("presence", {}, 107),
    "stats that are off": ("presence_stats", {"channel": "plain:x"}, 108),
    "history that is off": ("history", {"channel": "plain:x"}, 108),
    "history of an unknown namespace": ("history", {"channel": "no:x"}, 102),
    "history from a negative offset": (
        "history",
        {"channel": "chat:x", "since": {"offset": -1}},
        107,
    ),
    "history_remove where there is none": ("history_remove", {"channel": "plain:x"}, 108),
    "channels by a number": ("channels", {"pattern": 1}, 107),
}


async def test_refused_calls_get_their_error(server: ServerProcess) -> None:
    for name, (method, request, code) in REFUSED.items():
        assert await error_of(server, method, **request) == code, name


async def test_calls_for_users_who_are_not_here_succeed(server: ServerProcess) -> None:
    """They may be elsewhere, or come later: it is no mistake to name them."""
    for method, request in (
        ("subscribe", {"channel": "chat:x"}),
        ("unsubscribe", {"channel": "chat:x"}),
        ("disconnect", {}),
        ("refresh", {"expired": True}),
    ):
        assert await api(server, method, user="nobody", **request) == {}
        assert await api(server, method, client="no-such-client", **request) == {}


async def test_history_takes_any_limit(server: ServerProcess, room: str) -> None:
    for number in range(5):
        await api(server, "publish", channel=room, data=number)

    for limit, count in ((0, 0), (1, 1), (5, 5), (10**6, 5), (-1, 5), (-(2**60), 5), (2**60, 5)):
        found = await api(server, "history", channel=room, limit=limit)
        assert len(found["publications"]) == count, limit


async def test_a_batch_answers_each_command_in_order(server: ServerProcess, room: str) -> None:
    replies = await api(
        server,
        "batch",
        commands=[
            {"publish": {"channel": room, "data": 1}},
            {"publish": {"channel": "no:x", "data": 1}},
            {"publish": {"data": 1}},
            {"no_such_method": {}},
            {"batch": {"commands": []}},
            {},
            {"info": {}, "channels": {}},
            {"presence_stats": None},
            {"history": {"channel": room, "limit": 1}},
        ],
    )

    assert [next(iter(reply)) for reply in replies] == ["publish"] + ["error"] * 7 + ["history"]
    assert [reply["error"]["code"] for reply in replies if "error" in reply] == [
        102,
        107,
        104,
        104,
        104,
        104,
        107,
    ]
    assert len(replies[-1]["history"]["publications"]) == 1


async def test_a_batch_that_is_none_is_error_107(server: ServerProcess) -> None:
    requests: list[dict[str, Any]] = [
        {},
        {"commands": {}},
        {"commands": [1]},
        {"commands": [{}] * 10_001},
    ]
    for request in requests:
        assert await error_of(server, "batch", **request) == 107


async def test_every_call_is_counted_by_method_and_outcome(server: ServerProcess) -> None:
    calls: list[tuple[str, Callable[[], Any], str]] = [
        ("info", lambda: api(server, "info"), "0"),
        ("channels", lambda: api(server, "channels"), "0"),
        ("presence", lambda: error_of(server, "presence", channel="plain:x"), "108"),
        ("publish", lambda: error_of(server, "publish", channel="no:x", data=1), "102"),
        ("info", lambda: api(server, "batch", commands=[{"info": {}}]), "0"),
    ]
    for method, call, code in calls:
        before = await scrape(server)
        await call()
        after = await scrape(server)

        labels = {"method": method, "code": code}
        assert (
            after.value("api_requests_total", labels)
            == before.value("api_requests_total", labels) + 1
        )
