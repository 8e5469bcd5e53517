"""Every way in which a gateway says no to a client, provoked over a real socket (PROTOCOL.md A.4,
A.6, A.8): the code, a close reason that is JSON and never empty, and the counter that counts it.

What only time brings about is in test_connection_lifetime.py, what comes of reading too slowly or
asking for too much in test_slow_clients.py.
"""

import asyncio
import time
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import jwt
import pytest

from gateway.protocol import codes
from tests.integration.conftest import StartServer
from tests.support.cluster import Cluster
from tests.support.peer import CommandError, connected, expect_end, open_peer
from tests.support.scrape import api, call_api, counted, counting, scrape, wait_for
from tests.support.server import DEFAULT_CONFIG, TOKEN_SECRET, ServerProcess, mint
from tests.support.wire import BINARY

CHANNELS_MAX = 8
CONFIG = f"""
channels_per_client_max = {CHANNELS_MAX}
{DEFAULT_CONFIG}

[[namespaces]]
name = "closed"
history_size = 10
history_ttl = "1h"
presence = true

[[namespaces]]
name = "bare"
allow_subscribe_for_client = true
allow_publish_for_subscriber = true
allow_presence_for_client = true
allow_history_for_client = true

[[namespaces]]
name = "lower"
channel_regex = "^[a-z]+$"
allow_subscribe_for_client = true
allow_publish_for_client = true
"""


@pytest.fixture(scope="module")
def server(start_server: StartServer) -> ServerProcess:
    return start_server(CONFIG)


async def wait_for_ends(server: ServerProcess, code: int, count: float) -> None:
    """Wait until so many connections have ended with a code."""
    await wait_for(server, "disconnects_total", count, {"code": str(code)})


async def ends(server: ServerProcess, code: int) -> float:
    """How many connections have ended with a code."""
    return await counted(server, "disconnects_total", {"code": str(code)})


# --- commands that are none: 3501 -----------------------------------------------------------------

MALFORMED = {
    "not JSON": "connect",
    "nothing": "",
    "white space": " \n \r\n",
    "an array": "[]",
    "a string": '"connect"',
    "null": "null",
    "half an object": '{"id":1,"connect":{',
    "an object and more": '{"id":1,"connect":{}} x',
    "a good command and a bad one": '{"id":1,"connect":{}}\n{',
    "a line break inside": '{"id":1,\n"connect":{}}',
    "a BOM": '\ufeff{"id":1,"connect":{}}',
    "a NUL": '{"id":1,"connect":{}}\0',
    "an id below zero": '{"id":-1,"connect":{}}',
    "an id above 32 bits": '{"id":4294967296,"connect":{}}',
    "a broken id": '{"id":1.5,"connect":{}}',
    "an id in quotes": '{"id":"1","connect":{}}',
    "an id that is true": '{"id":true,"connect":{}}',
    "a method that is an array": '{"id":1,"connect":[]}',
    "a method that is a string": '{"id":1,"connect":"x"}',
    "a token that is a number": '{"id":1,"connect":{"token":1}}',
    "subs that are an array": '{"id":1,"connect":{"subs":[]}}',
    "a position above 53 bits": '{"id":1,"connect":{"subs":{"c":{"offset":9007199254740992}}}}',
    "a position below zero": '{"id":1,"connect":{"subs":{"chat:x":{"offset":-1}}}}',
    "a lone surrogate": '{"id":1,"connect":{"name":"\\ud800"}}',
    "a control character": '{"id":1,"connect":{"name":"\x01"}}',
    "nesting without end": '{"id":1,"connect":{"data":' + "[" * 30_000,
    "a lot of nesting": '{"id":1,"connect":{"x":' + "[" * 20_000 + "]" * 20_000 + "}}",
}

NOT_A_CONNECT = {
    "a pong": {},
    "an id alone": {"id": 1},
    "no id": {"connect": {}},
    "an id of zero": {"id": 0, "connect": {}},
    "no known method": {"id": 1, "conect": {}},
    "another method": {"id": 1, "subscribe": {"channel": "chat:x"}},
    "two methods": {"id": 1, "connect": {}, "ping": {}},
    "a message": {"send": {"data": 1}},
    "no credentials": {"id": 1, "connect": {}},
}


@pytest.mark.parametrize("connected_first", [False, True], ids=["at first", "once connected"])
async def test_what_is_no_command_ends_the_connection(
    server: ServerProcess, connected_first: bool
) -> None:
    before = await ends(server, 3501)
    for name, text in MALFORMED.items():
        opening = connected(server) if connected_first else open_peer(server)
        async with opening as peer:
            peer.wire.send(text)
            ended = await peer.ended()

            assert ended == (3501, {"reason": "bad request", "reconnect": False}), name
    await wait_for_ends(server, 3501, before + len(MALFORMED))


async def test_the_first_command_must_be_a_connect_with_credentials(server: ServerProcess) -> None:
    for name, command in NOT_A_CONNECT.items():
        async with open_peer(server) as peer:
            peer.send(command)

            assert (await peer.ended()).code == 3501, name


AFTER_CONNECT = {
    "a second connect": {"id": 5, "connect": {"token": mint("alice")}},
    "a pong without a ping": {},
    "a command without id": {"ping": {}},
    "an id alone": {"id": 5},
    "no known method": {"id": 5, "map_publish": {}},
    "two methods": {"id": 5, "ping": {}, "publish": {"channel": "chat:x", "data": 1}},
    "a refresh without a token": {"id": 5, "refresh": {}},
} | {
    f"{method} without a channel": {"id": 5, method: {}}
    for method in (
        "subscribe",
        "unsubscribe",
        "publish",
        "presence",
        "presence_stats",
        "history",
        "sub_refresh",
    )
}


async def test_a_client_that_breaks_the_protocol_is_closed(server: ServerProcess) -> None:
    for name, command in AFTER_CONNECT.items():
        async with connected(server) as peer:
            peer.send(command)

            assert (await peer.ended()).code == 3501, name


async def test_a_connection_is_unusable_after_a_failed_connect(server: ServerProcess) -> None:
    async with open_peer(server) as peer:
        assert await peer.error("connect", token=mint("alice", ttl=-10)) == 109
        peer.begin("connect", token=mint("alice"))

        await expect_end(server, peer, codes.BAD_PROTOCOL)


async def test_good_commands_before_a_bad_one_are_answered(
    server: ServerProcess, room: str
) -> None:
    """Also those that came in the same message as the connect, before its reply."""
    async with open_peer(server) as peer:
        peer.send(
            {"id": 1, "connect": {"token": mint("alice")}},
            {"id": 2, "subscribe": {"channel": room}},
            {"id": 3, "publish": {"channel": room, "data": "last words"}},
        )
        assert (await peer.reply(1))["connect"]["client"]
        assert (await peer.reply(2))["subscribe"]["recoverable"]
        assert (await peer.reply(3))["publish"]["offset"] == 1
        peer.send({"id": 4, "ping": {}}, {"id": 5, "connect": {}})

        assert await peer.reply(4) == {"id": 4, "ping": {}}
        await expect_end(server, peer, codes.BAD_PROTOCOL)


async def test_a_binary_message_is_closed_with_3506(server: ServerProcess) -> None:
    for data in (b"\x05\x08\x01\x1a\x00", b"{}", b""):
        async with connected(server) as peer:
            peer.wire.send(data, BINARY)

            await expect_end(server, peer, codes.INAPPROPRIATE_PROTOCOL)


async def test_a_message_that_nobody_handles_is_closed_with_3508(server: ServerProcess) -> None:
    async with connected(server) as peer:
        peer.send({"send": {"data": {"hello": 1}}})

        await expect_end(server, peer, codes.UNAVAILABLE)


# --- connection tokens ----------------------------------------------------------------------------


FORGED = {
    "garbage": "garbage",
    "three garbage segments": "a.b.c",
    "another secret": mint("alice", secret="another secret of at least 32 bytes, surely"),
    "no signature": jwt.encode({"sub": "alice"}, "", "none"),
    "a cut signature": mint("alice")[:-4],
    "a subscription's": mint("alice", channel="chat:x"),
    "a user that is a number": jwt.encode({"sub": 1}, TOKEN_SECRET, "HS256"),
    "an end that is a text": jwt.encode({"sub": "a", "expire_at": "2099"}, TOKEN_SECRET, "HS256"),
    "an end in a hundred years": mint("alice", ttl=100 * 365 * 86400),
    "not valid yet": mint("alice", nbf=int(time.time()) + 3600),
    "channels that are a text": mint("alice", channels="chat:x"),
}


async def test_a_forged_connection_token_is_closed_with_3500(server: ServerProcess) -> None:
    before = await ends(server, 3500)
    for name, token in FORGED.items():
        async with open_peer(server) as peer:
            peer.begin("connect", token=token)
            ended = await peer.ended()

            assert ended == (3500, {"reason": "invalid token", "reconnect": False}), name
    await wait_for_ends(server, 3500, before + len(FORGED))


async def test_an_expired_connection_token_is_error_109(server: ServerProcess) -> None:
    async with (
        counting(server, "command_errors_total", {"method": "connect", "code": "109"}),
        open_peer(server) as peer,
    ):
        with pytest.raises(CommandError) as caught:
            await peer.call("connect", token=mint("alice", ttl=-1))

    assert caught.value.message == "token expired"


async def test_a_connection_whose_own_time_is_over_is_error_110(server: ServerProcess) -> None:
    async with (
        counting(server, "command_errors_total", {"method": "connect", "code": "110"}),
        open_peer(server) as peer,
    ):
        assert await peer.error("connect", token=mint("a", expire_at=int(time.time()) - 1)) == 110


async def test_a_token_with_too_many_channels_is_closed_with_3505(server: ServerProcess) -> None:
    channels = [f"chat:{number}" for number in range(CHANNELS_MAX + 1)]
    async with open_peer(server) as peer:
        peer.begin("connect", token=mint("alice", channels=channels))

        await expect_end(server, peer, codes.CHANNEL_LIMIT)


async def test_a_token_with_an_impossible_channel_is_closed_with_3501(
    server: ServerProcess,
) -> None:
    for channel in ("unknown:x", "lower:UPPER", "x" * 256):
        async with open_peer(server) as peer:
            peer.begin("connect", token=mint("alice", channels=[channel]))

            assert (await peer.ended()).code == 3501, channel


# --- errors of commands: the connection lives -----------------------------------------------------

Case = tuple[str, dict[str, Any], int]

REFUSED_COMMANDS: dict[str, Case] = {
    # 102
    "subscribe in an unknown namespace": ("subscribe", {"channel": "unknown:x"}, 102),
    "publish in an unknown namespace": ("publish", {"channel": "unknown:x", "data": 1}, 102),
    "presence in an unknown namespace": ("presence", {"channel": "unknown:x"}, 102),
    "stats in an unknown namespace": ("presence_stats", {"channel": "unknown:x"}, 102),
    "history in an unknown namespace": ("history", {"channel": "unknown:x"}, 102),
    "an empty namespace": ("subscribe", {"channel": ":x"}, 102),
    # 103
    "subscribe where nobody may": ("subscribe", {"channel": "closed:x"}, 103),
    "publish where nobody may": ("publish", {"channel": "closed:x", "data": 1}, 103),
    "presence where nobody may": ("presence", {"channel": "closed:x"}, 103),
    "stats where nobody may": ("presence_stats", {"channel": "closed:x"}, 103),
    "history where nobody may": ("history", {"channel": "closed:x"}, 103),
    "a private channel without a token": ("subscribe", {"channel": "$chat:x"}, 103),
    "another user's channel": ("subscribe", {"channel": "chat:x#bob"}, 103),
    "other users' channel": ("subscribe", {"channel": "chat:x#bob,carol"}, 103),
    "nobody's channel": ("subscribe", {"channel": "chat:x#"}, 103),
    "publish for subscribers only": ("publish", {"channel": "bare:x", "data": 1}, 103),
    "sub_refresh without a subscription": ("sub_refresh", {"channel": "chat:x", "token": "t"}, 103),
    # 107
    "a name that is too long": ("subscribe", {"channel": "c" * 256}, 107),
    "a name that its namespace refuses": ("subscribe", {"channel": "lower:UPPER"}, 107),
    "a name that isn't ASCII": ("subscribe", {"channel": "chat:zoë"}, 107),
    "a name with a space at its end": ("publish", {"channel": "chat:\t", "data": 1}, 107),
    "a name with a NUL": ("history", {"channel": "chat:\0"}, 107),
    "publish without data": ("publish", {"channel": "chat:x"}, 107),
    "a long idempotency key": (
        "publish",
        {"channel": "chat:x", "data": 1, "idempotency_key": "k" * 65},
        107,
    ),
    "an idempotency key with a NUL": (
        "publish",
        {"channel": "chat:x", "data": 1, "idempotency_key": "\0"},
        107,
    ),
    # 108
    "presence that is off": ("presence", {"channel": "bare:x"}, 108),
    "stats that are off": ("presence_stats", {"channel": "bare:x"}, 108),
    "history that is off": ("history", {"channel": "bare:x"}, 108),
    "rpc without any procedure": ("rpc", {"method": "invoice.list", "data": {}}, 108),
    "a map subscription": ("subscribe", {"channel": "chat:x", "type": 1}, 108),
    "a filter": ("subscribe", {"channel": "chat:x", "tf": {"key": "a"}}, 108),
    "a map publication": ("publish", {"channel": "chat:x", "data": 1, "type": 1}, 108),
}  # fmt: skip


async def test_refused_commands_get_their_error_and_nothing_else_happens(
    server: ServerProcess,
) -> None:
    async with connected(server) as alice:
        before = await scrape(server)
        expected: dict[tuple[str, int], int] = {}
        for name, (method, request, code) in REFUSED_COMMANDS.items():
            with pytest.raises(CommandError) as caught:
                await alice.call(method, **request)
            known = {error.code: error for error in codes.ERRORS}[code]

            assert caught.value.code == code, name
            assert caught.value.message == known.message, name
            assert caught.value.temporary is known.temporary, name
            expected[method, code] = expected.get((method, code), 0) + 1
        after = await scrape(server)
        assert await alice.quiet() == []

    for (method, code), count in expected.items():
        labels = {"method": method, "code": str(code)}
        name = "command_errors_total"
        assert after.value(name, labels) - before.value(name, labels) == count


async def test_deep_data_is_error_107(server: ServerProcess, room: str) -> None:
    """It would break the parsers of those who receive it."""
    async with connected(server) as alice:
        for depth, outcome in ((128, "publish"), (129, "error")):
            alice.wire.send(
                f'{{"id":{depth},"publish":{{"channel":"{room}",'
                f'"data":{"[" * depth}{"]" * depth}}}}}'
            )
            assert outcome in await alice.reply(depth)


async def test_who_may_publish_only_as_a_subscriber_may_once_subscribed(
    server: ServerProcess,
) -> None:
    async with connected(server) as alice:
        assert await alice.error("publish", channel="bare:a", data=1) == 103
        await alice.call("subscribe", channel="bare:a")
        assert await alice.call("publish", channel="bare:a", data=1) == {}
        await alice.call("unsubscribe", channel="bare:a")
        assert await alice.error("publish", channel="bare:a", data=1) == 103


async def test_a_second_subscription_to_a_channel_is_error_105(
    server: ServerProcess, room: str
) -> None:
    async with connected(server) as alice:
        await alice.call("subscribe", channel=room)
        assert await alice.error("subscribe", channel=room) == 105
        # Also when the first isn't answered yet.
        first, second = (alice.begin("subscribe", channel=f"{room}-2") for _ in range(2))
        assert (await alice.reply(second))["error"]["code"] == 105
        assert "subscribe" in await alice.reply(first)


async def test_one_channel_too_many_is_error_106(server: ServerProcess, room: str) -> None:
    async with connected(server) as alice:
        for number in range(CHANNELS_MAX):
            await alice.call("subscribe", channel=f"{room}-{number}")
        assert await alice.error("subscribe", channel=room) == 106
        await alice.call("unsubscribe", channel=f"{room}-0")
        await alice.call("subscribe", channel=room)


async def test_an_unrecoverable_position_is_error_112_for_who_asks(
    server: ServerProcess, room: str
) -> None:
    async with connected(server) as alice:
        request = {"channel": room, "recover": True, "epoch": "_", "offset": 0, "flag": 2}
        assert await alice.error("subscribe", **request) == 112
        # Nothing is left of it.
        assert await alice.error("history", channel=room, since={"epoch": "_", "offset": 1}) == 112
        await alice.call("subscribe", channel=room)


async def test_unsubscribing_is_no_error_without_a_subscription(
    server: ServerProcess, room: str
) -> None:
    async with connected(server) as alice:
        assert await alice.call("unsubscribe", channel=room) == {}


# --- subscription tokens --------------------------------------------------------------------------


async def test_a_bad_subscription_token_is_error_103_and_an_expired_one_109(
    server: ServerProcess,
) -> None:
    channel = "$chat:secret"
    forged = mint("alice", channel=channel, secret="another secret of at least 32 bytes, surely")
    async with connected(server) as alice:
        assert await alice.error("subscribe", channel=channel, token="garbage") == 103
        assert await alice.error("subscribe", channel=channel, token=forged) == 103
        assert await alice.error("subscribe", channel=channel, token=mint("alice")) == 103
        expired = mint("alice", channel=channel, ttl=-1)
        assert await alice.error("subscribe", channel=channel, token=expired) == 109
        over = mint("alice", channel=channel, expire_at=int(time.time()) - 1)
        assert await alice.error("subscribe", channel=channel, token=over) == 109
        good = mint("alice", channel=channel, client=alice.client)
        assert "epoch" in await alice.call("subscribe", channel=channel, token=good)


async def test_somebody_elses_subscription_token_is_closed_with_3500(
    server: ServerProcess,
) -> None:
    channel = "$chat:secret"
    for name, token in {
        "another channel's": mint("alice", channel="$chat:other"),
        "another user's": mint("bob", channel=channel),
        "an anonymous one": mint("", channel=channel),
        "another client's": mint("alice", channel=channel, client="somebody"),
    }.items():
        async with connected(server) as alice:
            alice.begin("subscribe", channel=channel, token=token)

            assert (await alice.ended()).code == 3500, name


# --- what the server API asks for -----------------------------------------------------------------


@pytest.mark.parametrize("disconnect", codes.DISCONNECTS, ids=lambda disconnect: disconnect.code)
async def test_the_server_api_closes_with_any_documented_code(
    server: ServerProcess, disconnect: codes.Disconnect
) -> None:
    async with connected(server, "victim") as victim:
        await api(server, "disconnect", user="victim", code=disconnect.code)

        await expect_end(server, victim, disconnect)


async def test_the_server_api_closes_with_codes_and_reasons_of_the_application(
    server: ServerProcess,
) -> None:
    for code, reconnect in ((4000, True), (4499, True), (4500, False), (4999, False)):
        async with connected(server, "victim") as victim:
            reason = "because " + "é" * 200
            async with counting(server, "disconnects_total", {"code": "other"}):
                await api(server, "disconnect", user="victim", code=code, reason=reason)
                close = await victim.wire.closed()

        assert close.code == code
        assert len(close.reason.encode()) <= 123
        assert close.advice()["reconnect"] is reconnect
        assert reason.startswith(close.advice()["reason"])


async def test_an_unsubscribe_by_the_server_api_is_pushed_with_2000(
    server: ServerProcess, room: str
) -> None:
    async with connected(server, "bob") as bob:
        await bob.call("subscribe", channel=room)
        await api(server, "unsubscribe", user="bob", channel=room)

        assert await bob.push(lambda push: "unsubscribe" in push) == {
            "channel": room,
            "unsubscribe": {"code": 2000, "reason": "server unsubscribe"},
        }
        await api(server, "publish", channel=room, data="unheard")
        assert await bob.quiet() == []


# --- a server that stops, and one whose database has ----------------------------------------------


async def test_a_server_that_stops_closes_everybody_with_3001_and_a_delay_of_their_own(
    start_server: StartServer,
) -> None:
    server = start_server(CONFIG)
    async with AsyncExitStack() as stack:
        peers = [
            await stack.enter_async_context(connected(server, f"user{number}"))
            for number in range(20)
        ]
        stopping = asyncio.ensure_future(asyncio.to_thread(server.terminate))
        ends = [await peer.ended() for peer in peers]
        delays = {ended.advice.pop("retry") for ended in ends}

        assert {ended.code for ended in ends} == {3001}
        assert all(ended.advice == {"reason": "shutdown", "reconnect": True} for ended in ends)
        assert len(delays) > 2  # each its own moment; a few fit into a millisecond
        assert await stopping == 0


async def test_a_database_that_is_away_is_error_100_and_only_where_it_is_needed(
    tmp_path: Path, room: str
) -> None:
    def start() -> tuple[Cluster, ServerProcess]:
        cluster = Cluster()
        cluster.start()
        server = ServerProcess(
            tmp_path,
            database_url=cluster.url(cluster.create_database()),
            config="publish_timeout = 0.5\n" + CONFIG,
        )
        server.start()
        return cluster, server

    cluster, server = await asyncio.to_thread(start)
    try:
        async with connected(server) as alice, connected(server, "bob") as bob:
            for peer in (alice, bob):
                await peer.call("subscribe", channel=room)
                await peer.call("subscribe", channel="live:x")
            await alice.call("publish", channel=room, data="before")
            await asyncio.to_thread(cluster.stop, "immediate")

            for method, request in (
                ("publish", {"channel": room, "data": "lost"}),
                ("subscribe", {"channel": f"{room}-new"}),
                ("history", {"channel": room, "limit": 1}),
            ):
                labels = {"method": method, "code": "100"}
                async with counting(server, "command_errors_total", labels):
                    with pytest.raises(CommandError) as caught:
                        await alice.call(method, **request)
                assert (caught.value.code, caught.value.temporary) == (100, True)
            # What needs no log goes on.
            await alice.call("publish", channel="live:x", data="live")
            await alice.call("publish", channel=room, data="typing", ephemeral=True)
            assert [pub["data"] for pub in await bob.publications(3)] == [
                "before",
                "live",
                "typing",
            ]
            assert len((await alice.call("presence", channel=room))["presence"]) == 2
            assert (await call_api(server, "publish", channel=room, data=1)).json() == {
                "error": {"code": 100, "message": "internal server error"}
            }

            await asyncio.to_thread(cluster.start)
            result: dict[str, Any] = {}
            while not result:
                with suppress(CommandError):
                    result = await alice.call("publish", channel=room, data="after")
            assert (await bob.publication(room))["data"] == "after"
            assert result["offset"] == 2
    finally:
        await asyncio.to_thread(server.terminate)
        await asyncio.to_thread(cluster.close)
