"""The Python client against a real server, on a line that is good."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from gateway.client import (
    CannotConnect,
    Closed,
    CommandError,
    Disconnected,
    Gateway,
    MessageTooBig,
    Publication,
    PublicationsLost,
    QueueLimits,
    State,
    StreamPosition,
    Subscription,
    Unsubscribed,
    UpgradeRefused,
    connect,
)
from tests.integration.conftest import StartServer
from tests.support.ports import free_port
from tests.support.scrape import api, counted
from tests.support.server import DEFAULT_CONFIG, ServerProcess, mint
from tests.support.waiting import DEADLINE, until

CONFIG = f"""
expiry_grace = 1
{DEFAULT_CONFIG}
"""


@pytest.fixture(scope="module")
def server(start_server: StartServer) -> ServerProcess:
    return start_server(CONFIG)


@pytest.fixture
async def alice(server: ServerProcess) -> AsyncIterator[Gateway]:
    async with connect(server.ws_url, mint("alice")) as gw:
        yield gw


async def take(messages: Subscription, count: int) -> list[Any]:
    """The data of the next publications."""
    taken: list[Any] = []
    async with asyncio.timeout(DEADLINE):
        while len(taken) < count:
            taken.append((await anext(messages)).data)
    return taken


async def publish(server: ServerProcess, channel: str, *data: object) -> None:
    """By the server API, in order."""
    await api(
        server, "batch", commands=[{"publish": {"channel": channel, "data": one}} for one in data]
    )


def soon() -> float:
    """The end of a token that is good for a little more than a second."""
    return time.time() + 1.2


# --- commands -------------------------------------------------------------------------------------


async def test_a_publication_comes_to_its_publisher_too(alice: Gateway, room: str) -> None:
    async with alice.subscribe(room) as messages:
        published = await alice.publish(room, {"text": "schön 🌍"})
        publication = await anext(messages)

    assert published.position is not None
    assert not published.duplicate
    assert publication.data == {"text": "schön 🌍"}
    assert publication.channel == room
    assert publication.offset == published.position.offset == 1
    assert publication.info is not None
    assert publication.info.user == "alice"
    assert publication.info.client == alice.client_id
    assert messages.position == published.position


async def test_a_channel_without_a_log_has_no_positions(alice: Gateway) -> None:
    channel = f"live:{secrets.token_hex(4)}"
    async with alice.subscribe(channel) as messages:
        published = await alice.publish(channel, [1, None])
        publication = await anext(messages)

    assert published.position is None
    assert (publication.data, publication.offset) == ([1, None], 0)
    assert messages.position is None


async def test_a_key_makes_a_publication_happen_once(alice: Gateway, room: str) -> None:
    first = await alice.publish(room, 1, key="one")
    again = await alice.publish(room, 1, key="one")
    other = await alice.publish(room, 1)

    assert (again.position, again.duplicate) == (first.position, True)
    assert other.position is not None
    assert (other.position.offset, other.duplicate) == (2, False)


async def test_an_ephemeral_publication_is_not_stored(alice: Gateway, room: str) -> None:
    async with alice.subscribe(room) as messages:
        published = await alice.publish(room, "typing", ephemeral=True)
        publication = await anext(messages)

    assert published.position is None
    assert (publication.data, publication.offset) == ("typing", 0)
    assert (await alice.history(room)).publications == ()


async def test_history_is_read_in_parts(alice: Gateway, room: str) -> None:
    for number in range(5):
        await alice.publish(room, number)

    everything = await alice.history(room)
    part = await alice.history(room, limit=2, since=StreamPosition(1, everything.top.epoch))
    newest = await alice.history(room, limit=1, reverse=True)
    top = await alice.history(room, limit=0)

    assert [one.data for one in everything.publications] == [0, 1, 2, 3, 4]
    assert [one.offset for one in part.publications] == [2, 3]
    assert [one.data for one in newest.publications] == [4]
    assert (top.publications, top.top) == ((), everything.top)


async def test_presence_tells_who_is_there(
    server: ServerProcess, alice: Gateway, room: str
) -> None:
    async with connect(server.ws_url, mint("bob", info={"name": "Bob"})) as bob:
        async with alice.subscribe(room), bob.subscribe(room):
            present = await alice.presence(room)
            stats = await bob.presence_stats(room)

        assert {info.user for info in present.values()} == {"alice", "bob"}
        assert present[bob.client_id].conn_info == {"name": "Bob"}
        assert (stats.num_clients, stats.num_users) == (2, 2)


async def test_leaving_at_the_end_is_seen_at_once(
    server: ServerProcess, alice: Gateway, room: str
) -> None:
    async with connect(server.ws_url, mint("bob")) as bob, bob.subscribe(room):
        assert (await alice.presence_stats(room)).num_clients == 1
    ends = await counted(server, "session_ends_total", {"reason": "left"})

    assert ends >= 1
    assert (await alice.presence_stats(room)).num_clients == 0


async def test_many_commands_at_once_wait_for_their_turn(alice: Gateway, room: str) -> None:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(alice.publish(room, number)) for number in range(1000)]

    offsets = [task.result().position for task in tasks]
    assert sorted(one.offset for one in offsets if one is not None) == list(range(1, 1001))


async def test_error_replies_are_raised(alice: Gateway) -> None:
    with pytest.raises(CommandError) as raised:
        await alice.publish("nowhere:1", 1)
    assert (raised.value.method, raised.value.code, raised.value.temporary) == (
        "publish",
        102,
        False,
    )
    with pytest.raises(CommandError) as raised:
        await alice.rpc("invoice.list", {"year": 2024})
    assert raised.value.code == 108


async def test_what_is_too_big_is_not_sent(alice: Gateway, room: str) -> None:
    with pytest.raises(MessageTooBig) as raised:
        await alice.publish(room, "x" * 65_536)

    assert raised.value.size_bytes > raised.value.limit_bytes == 65_536
    assert (await alice.publish(room, "x" * 60_000)).position is not None


async def test_what_has_no_json_is_not_sent(alice: Gateway, room: str) -> None:
    with pytest.raises(TypeError):
        await alice.publish(room, object())

    assert (await alice.publish(room, 1)).position == (await alice.history(room)).top


async def test_a_command_may_be_given_up(alice: Gateway, room: str) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await alice.publish(room, 1)

    assert (await alice.publish(room, 2)).position is not None


# --- subscriptions --------------------------------------------------------------------------------


async def test_a_subscription_begins_with_what_is_published_now(
    server: ServerProcess, alice: Gateway, room: str
) -> None:
    await publish(server, room, 1, 2)
    async with alice.subscribe(room) as messages:
        await publish(server, room, 3, 4)

        assert await take(messages, 2) == [3, 4]


async def test_a_subscription_may_go_on_where_another_was(
    server: ServerProcess, alice: Gateway, room: str
) -> None:
    async with alice.subscribe(room) as messages:
        await publish(server, room, 1, 2, 3)
        assert await take(messages, 2) == [1, 2]
        position = messages.position
    await publish(server, room, 4)
    async with alice.subscribe(room, recover=position) as messages:
        assert await take(messages, 2) == [3, 4]


async def test_a_subscription_may_begin_with_the_log(
    server: ServerProcess, alice: Gateway, room: str
) -> None:
    """However long that is: it comes in pages."""
    for start in range(0, 900, 100):
        await publish(server, room, *range(start, start + 100))
    async with alice.subscribe(room, recover=StreamPosition()) as messages:
        await publish(server, room, 900)

        assert await take(messages, 901) == list(range(901))


async def test_what_the_log_no_longer_has_is_told(
    server: ServerProcess, alice: Gateway, room: str
) -> None:
    async with alice.subscribe(room) as messages:
        await publish(server, room, 1)
        await take(messages, 1)
        position = messages.position
    await publish(server, room, 2, 3)
    await api(server, "history_remove", channel=room)
    async with alice.subscribe(room, recover=position) as messages:
        with pytest.raises(PublicationsLost) as raised:
            await anext(messages)
        lost = raised.value
        assert (lost.channel, lost.first, lost.last) == (room, 2, 3)

        await publish(server, room, 4)
        assert await take(messages, 1) == [4]
        assert messages.position == (await alice.history(room)).top


async def test_a_position_of_another_life_of_the_log_is_told(
    server: ServerProcess, alice: Gateway, room: str
) -> None:
    await publish(server, room, 1, 2)
    async with alice.subscribe(room, recover=StreamPosition(1, "another")) as messages:
        with pytest.raises(PublicationsLost):
            await anext(messages)
        await publish(server, room, 3)

        assert await take(messages, 1) == [3]


async def test_an_iteration_may_be_left_and_begun_again(
    server: ServerProcess, alice: Gateway, room: str
) -> None:
    await publish(server, room, 1, 2, 3, 4)
    seen = []
    async with alice.subscribe(room, recover=StreamPosition()) as messages:
        for _ in range(2):
            async for publication in messages:
                seen.append(publication.data)
                if len(seen) % 2 == 0:
                    break

    assert seen == [1, 2, 3, 4]


async def test_an_iteration_ends_when_its_subscription_is_left(alice: Gateway, room: str) -> None:
    async def iterate() -> list[Publication]:
        return [publication async for publication in messages]

    async with asyncio.TaskGroup() as group, alice.subscribe(room) as messages:
        iteration = group.create_task(iterate())
        await alice.publish(room, 1)
        await until(lambda: messages.position is not None and messages.position.offset == 1)

    assert [publication.data for publication in iteration.result()] == [1]


async def test_a_slow_iteration_on_a_log_loses_nothing(
    server: ServerProcess, alice: Gateway, room: str
) -> None:
    """Its queue takes what it may, and the rest comes when there is room."""
    limits = QueueLimits(publications=10)
    async with alice.subscribe(room, limits=limits) as messages:
        await publish(server, room, *range(100))
        await alice.presence(room)  # behind all of them

        assert len(messages._queue) <= 10
        assert await take(messages, 100) == list(range(100))
        await publish(server, room, 100)
        assert await take(messages, 1) == [100]


async def test_queues_are_limited_by_bytes_as_well(
    server: ServerProcess, alice: Gateway, room: str
) -> None:
    big = "x" * 1000
    async with alice.subscribe(room, limits=QueueLimits(bytes=2500)) as messages:
        await publish(server, room, *[big] * 10)
        await alice.presence(room)

        assert len(messages._queue) == 2
        assert await take(messages, 10) == [big] * 10


async def test_a_publication_over_the_limit_is_taken_alone(
    server: ServerProcess, alice: Gateway, room: str
) -> None:
    async with alice.subscribe(room, limits=QueueLimits(bytes=5)) as messages:
        await publish(server, room, "longer than that", "and this one too")

        assert await take(messages, 2) == ["longer than that", "and this one too"]


async def test_a_slow_iteration_without_a_log_is_told_what_it_lost(
    server: ServerProcess, alice: Gateway, room: str
) -> None:
    channel = f"live:{secrets.token_hex(4)}"
    async with alice.subscribe(channel, limits=QueueLimits(publications=3)) as messages:
        await publish(server, channel, *range(10))
        await alice.presence(room)

        assert await take(messages, 3) == [0, 1, 2]
        with pytest.raises(PublicationsLost):
            await anext(messages)
        await publish(server, channel, 10)
        assert await take(messages, 1) == [10]


async def test_a_refused_subscription_is_an_error(alice: Gateway) -> None:
    for channel, code in (("nowhere:1", 102), ("$chat:secret", 103)):
        with pytest.raises(CommandError) as raised:
            async with alice.subscribe(channel):
                raise AssertionError("it was refused")
        assert raised.value.code == code


async def test_a_channel_has_one_subscription_at_a_time(alice: Gateway, room: str) -> None:
    async with alice.subscribe(room):
        with pytest.raises(ValueError, match="already"):
            await alice.subscribe(room).__aenter__()
    async with alice.subscribe(room) as messages:
        await alice.publish(room, 1)

        assert await take(messages, 1) == [1]


async def test_a_subscription_is_used_once_and_by_one(alice: Gateway, room: str) -> None:
    async with alice.subscribe(room) as messages:
        with pytest.raises(RuntimeError, match="once"):
            await messages.__aenter__()
        waiting = asyncio.ensure_future(anext(messages))
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="already"):
            await anext(messages)
        await alice.publish(room, 1)

        assert (await waiting).data == 1
    with pytest.raises(RuntimeError, match="once"):
        await messages.__aenter__()


async def test_leaving_right_after_joining_is_in_order(alice: Gateway, room: str) -> None:
    for _ in range(5):
        async with alice.subscribe(room):
            pass
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0), alice.subscribe(room):
            pass
    async with alice.subscribe(room) as messages:
        await alice.publish(room, 1)

        assert await take(messages, 1) == [1]


async def test_a_subscription_ended_by_the_server_ends_the_iteration(
    server: ServerProcess, alice: Gateway, room: str
) -> None:
    async with alice.subscribe(room) as messages:
        await alice.publish(room, 1)
        await api(server, "unsubscribe", user="alice", channel=room)

        assert await take(messages, 1) == [1]
        with pytest.raises(Unsubscribed) as raised:
            await anext(messages)
    assert (raised.value.channel, raised.value.code) == (room, 2000)


# --- tokens ---------------------------------------------------------------------------------------


async def test_a_private_channel_needs_a_token(alice: Gateway) -> None:
    channel = f"$chat:{secrets.token_hex(4)}"
    token = mint("alice", channel=channel)
    async with alice.subscribe(channel, token=token) as messages:
        await alice.publish(channel, 1)

        assert await take(messages, 1) == [1]


async def test_an_expired_token_is_replaced(server: ServerProcess) -> None:
    channel = f"$chat:{secrets.token_hex(4)}"
    tokens = [mint("alice", ttl=-10), mint("alice")]
    sub_tokens = [
        mint("alice", channel=channel, ttl=-10),
        mint("alice", channel=channel),
    ]

    async def get_token() -> str:
        return tokens.pop(0)

    async def get_sub_token() -> str:
        return sub_tokens.pop(0)

    async with (
        connect(server.ws_url, get_token) as gw,
        gw.subscribe(channel, token=get_sub_token) as messages,
    ):
        await gw.publish(channel, 1)

        assert await take(messages, 1) == [1]
    assert tokens == sub_tokens == []


async def test_an_expired_token_that_cannot_be_replaced_is_an_error(server: ServerProcess) -> None:
    with pytest.raises(CommandError) as raised:
        async with connect(server.ws_url, mint("alice", ttl=-10)):
            raise AssertionError("it was refused")

    assert raised.value.code == 109


async def test_lifetimes_are_prolonged_in_time(server: ServerProcess, room: str) -> None:
    """Of the connection and of a subscription; nobody notices."""
    channel = f"$chat:{secrets.token_hex(4)}"
    asked: list[str] = []

    async def get_token() -> str:
        asked.append("connection")
        return mint("alice", exp=soon())

    async def get_sub_token() -> str:
        asked.append("subscription")
        return mint("alice", channel=channel, exp=soon())

    async with (
        connect(server.ws_url, get_token) as gw,
        gw.subscribe(channel, token=get_sub_token) as messages,
    ):
        client_id = gw.client_id
        await until(lambda: asked.count("connection") >= 3 and asked.count("subscription") >= 3)
        await gw.publish(channel, 1)

        assert await take(messages, 1) == [1]
        assert gw.client_id == client_id


async def test_a_getter_that_fails_is_asked_again(
    server: ServerProcess, room: str, caplog: pytest.LogCaptureFixture
) -> None:
    failures = [ConnectionRefusedError("the token service is away")] * 2

    async def get_token() -> str:
        if failures:
            raise failures.pop()
        return mint("alice")

    async with connect(server.ws_url, get_token) as gw:
        assert (await gw.publish(room, 1)).position is not None
    assert caplog.text.count("there is no token") == 2


async def test_a_getter_that_never_succeeds_is_the_cause(server: ServerProcess) -> None:
    failure = ConnectionRefusedError("the token service is away")

    async def get_token() -> str:
        raise failure

    with pytest.raises(CannotConnect) as raised:
        async with connect(server.ws_url, get_token, timeout=0.2):
            raise AssertionError("without a token")

    assert raised.value.__cause__ is failure


# --- connecting and ending ------------------------------------------------------------------------


async def test_nobody_listens() -> None:
    with pytest.raises(CannotConnect) as raised:
        async with connect(f"ws://127.0.0.1:{free_port()}/connection/websocket", timeout=0.2):
            raise AssertionError("nobody listens")

    assert isinstance(raised.value.__cause__, aiohttp.ClientConnectorError)


async def test_a_wrong_address_is_refused_at_once(server: ServerProcess) -> None:
    with pytest.raises(UpgradeRefused) as raised:
        async with connect(f"ws://127.0.0.1:{server.port}/elsewhere", mint("alice")):
            raise AssertionError("nothing is there")

    assert raised.value.status == 404


async def test_a_forged_token_is_refused_for_good(server: ServerProcess) -> None:
    with pytest.raises(Disconnected) as raised:
        async with connect(server.ws_url, mint("alice", secret="another secret of 32 bytes or so")):
            raise AssertionError("it is forged")

    assert (raised.value.code, raised.value.reason) == (3500, "invalid token")


async def test_a_client_that_is_sent_away_for_good(server: ServerProcess, room: str) -> None:
    user = secrets.token_hex(4)
    async with connect(server.ws_url, mint(user)) as gw, gw.subscribe(room) as messages:
        waiting = asyncio.ensure_future(anext(messages))
        await api(server, "disconnect", user=user)
        await gw.wait_for(State.CLOSED)

        with pytest.raises(Disconnected) as raised:
            await waiting
        assert raised.value.code == 3503
        with pytest.raises(Disconnected):
            await gw.publish(room, 1)
        with pytest.raises(Disconnected):
            async with gw.subscribe("chat:other"):
                raise AssertionError("closed")


async def test_a_client_that_is_sent_away_and_may_come_back(
    server: ServerProcess, room: str
) -> None:
    user = secrets.token_hex(4)
    async with connect(server.ws_url, mint(user)) as gw, gw.subscribe(room) as messages:
        client_id = gw.client_id
        await api(server, "disconnect", user=user, code=3011, reason="force reconnect")
        await publish(server, room, 1)

        assert await take(messages, 1) == [1]
        assert gw.client_id != client_id


async def test_after_its_end_a_client_does_nothing(server: ServerProcess, room: str) -> None:
    async with connect(server.ws_url, mint("alice")) as gw:
        messages = await gw.subscribe(room).__aenter__()
    assert gw.state is State.CLOSED

    with pytest.raises(Closed):
        await gw.publish(room, 1)
    with pytest.raises(Closed):
        await anext(messages)
    await messages.__aexit__()


async def test_what_waits_when_a_client_ends_is_told(server: ServerProcess, room: str) -> None:
    async with connect(server.ws_url, mint("alice")) as gw:
        waiting = asyncio.ensure_future(gw.publish(room, 1))
        await asyncio.sleep(0)

    with pytest.raises(Closed):
        await waiting


async def test_clients_may_share_what_they_connect_with(server: ServerProcess, room: str) -> None:
    async with aiohttp.ClientSession() as http:
        async with (
            connect(server.ws_url, mint("alice"), http=http) as alice,
            connect(server.ws_url, mint("bob"), http=http) as bob,
            bob.subscribe(room) as messages,
        ):
            await alice.publish(room, 1)

            assert await take(messages, 1) == [1]
        assert not http.closed


async def test_a_client_tells_how_its_line_is(start_server: StartServer) -> None:
    server = start_server(f"ping_interval = 1\npong_timeout = 0.5\n{DEFAULT_CONFIG}")
    async with connect(server.ws_url, mint("alice")) as gw:
        assert gw.state is State.CONNECTED
        assert (gw.rtt, gw.quality, gw.retry_at) == (None, None, None)
        await until(lambda: gw.rtt is not None)

        assert gw.rtt is not None
        assert 0 < gw.rtt < DEADLINE
        assert gw.quality is not None
