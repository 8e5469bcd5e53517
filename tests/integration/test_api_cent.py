"""The server API, used by `cent`: Centrifugo's own client for Python, which nobody here wrote."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import cent
import pytest

from tests.integration.conftest import StartServer
from tests.support.peer import Ended, connected
from tests.support.server import API_KEY, DEFAULT_CONFIG, ServerProcess

CONFIG = f"""
{DEFAULT_CONFIG}

[[namespaces]]
name = "plain"
allow_subscribe_for_client = true
"""


@pytest.fixture(scope="module")
def server(start_server: StartServer) -> ServerProcess:
    return start_server(CONFIG)


@pytest.fixture
async def client(server: ServerProcess) -> AsyncIterator[cent.AsyncClient]:
    async with aiohttp.ClientSession() as session:
        yield cent.AsyncClient(f"{server.http_url}/api", API_KEY, session=session)


# --- publishing -----------------------------------------------------------------------------------


async def test_publish_returns_the_position_once_it_is_durable(
    server: ServerProcess, client: cent.AsyncClient, room: str
) -> None:
    async with connected(server) as alice:
        epoch = (await alice.call("subscribe", channel=room))["epoch"]
        for offset in (1, 2):
            result = await client.publish(
                cent.PublishRequest(channel=room, data={"n": offset}, tags={"kind": "test"})
            )
            assert (result.offset, result.epoch) == (offset, epoch)
            publication = await alice.publication(room)

            assert abs(publication.pop("time") / 1000 - time.time()) < 60
            assert publication == {
                "data": {"n": offset},
                "offset": offset,
                "tags": {"kind": "test"},
            }


async def test_publish_without_history_has_no_position(
    server: ServerProcess, client: cent.AsyncClient, room: str
) -> None:
    """Because the channel keeps none, or because this publication asks for it."""
    async with connected(server) as alice:
        await alice.call("subscribe", channel="plain:x")
        await alice.call("subscribe", channel=room)
        for request in (
            cent.PublishRequest(channel="plain:x", data=1),
            cent.PublishRequest(channel=room, data=2, skip_history=True),
        ):
            result = await client.publish(request)
            assert (result.offset, result.epoch) == (0, "")
        assert [pub["data"] for pub in await alice.publications(2)] == [1, 2]

    assert (await client.history(cent.HistoryRequest(channel=room, limit=-1))).offset == 0


async def test_publish_with_a_repeated_key_returns_the_first_position(
    client: cent.AsyncClient, room: str
) -> None:
    requests = [
        cent.PublishRequest(channel=room, data=number, idempotency_key=key)
        for number, key in enumerate(["a", "a", "b", "a"])
    ]
    offsets = [(await client.publish(request)).offset for request in requests]
    found = await client.history(cent.HistoryRequest(channel=room, limit=10))

    assert offsets == [1, 1, 2, 1]
    assert [publication.data for publication in found.publications] == [0, 2]


async def test_publish_takes_json_in_base64(client: cent.AsyncClient, room: str) -> None:
    await client.publish(cent.PublishRequest(channel=room, data=None, b64data="eyJhIjogWzFdfQ=="))
    found = await client.history(cent.HistoryRequest(channel=room, limit=1))

    assert found.publications[0].data == {"a": [1]}


async def test_broadcast_answers_for_each_channel(
    server: ServerProcess, client: cent.AsyncClient, room: str
) -> None:
    async with connected(server) as alice:
        await alice.call("subscribe", channel=room)
        result = await client.broadcast(
            cent.BroadcastRequest(channels=[room, "unknown:x", f"{room}-2", "plain:x"], data="all")
        )
        assert (await alice.publication(room))["data"] == "all"

    first, unknown, second, plain = result.responses
    assert first.result is not None
    assert second.result is not None
    assert plain.result is not None
    assert unknown.error is not None
    assert (first.result.offset, second.result.offset, plain.result.offset) == (1, 1, 0)
    assert first.result.epoch != second.result.epoch
    assert (unknown.error.code, unknown.error.message) == (102, "unknown channel")


# --- history --------------------------------------------------------------------------------------


async def test_history_pages_both_ways(client: cent.AsyncClient, room: str) -> None:
    for number in range(1, 11):
        await client.publish(cent.PublishRequest(channel=room, data=number))

    async def read(**request: Any) -> list[Any]:
        found = await client.history(cent.HistoryRequest(channel=room, **request))
        assert found.offset == 10
        assert [publication.offset for publication in found.publications] == [
            publication.data for publication in found.publications
        ]
        return [publication.data for publication in found.publications]

    epoch = (await client.history(cent.HistoryRequest(channel=room))).epoch
    middle = cent.StreamPosition(offset=4, epoch=epoch)
    assert await read() == []
    assert await read(limit=-1) == list(range(1, 11))
    assert await read(limit=3) == [1, 2, 3]
    assert await read(limit=3, reverse=True) == [10, 9, 8]
    assert await read(limit=3, since=middle) == [5, 6, 7]
    assert await read(limit=100, since=middle, reverse=True) == [3, 2, 1]
    assert await read(limit=5, since=cent.StreamPosition(offset=10, epoch=epoch)) == []
    with pytest.raises(cent.CentApiResponseError) as caught:
        await read(limit=1, since=cent.StreamPosition(offset=4, epoch="another"))
    assert caught.value.code == 112


async def test_history_remove_keeps_the_position(client: cent.AsyncClient, room: str) -> None:
    before = await client.publish(cent.PublishRequest(channel=room, data="old"))
    await client.history_remove(cent.HistoryRemoveRequest(channel=room))
    emptied = await client.history(cent.HistoryRequest(channel=room, limit=-1))
    after = await client.publish(cent.PublishRequest(channel=room, data="new"))
    found = await client.history(cent.HistoryRequest(channel=room, limit=-1))

    assert emptied.publications == []
    assert (emptied.offset, emptied.epoch) == (1, before.epoch)
    assert (after.offset, after.epoch) == (2, before.epoch)
    assert [(pub.offset, pub.data) for pub in found.publications] == [(2, "new")]


# --- presence, channels, info ---------------------------------------------------------------------


async def test_presence_says_who_is_there(
    server: ServerProcess, client: cent.AsyncClient, room: str
) -> None:
    async with (
        connected(server, "alice", claims={"info": {"name": "Alice"}}) as first,
        connected(server, "alice") as second,
        connected(server, "bob") as bob,
    ):
        for peer in (first, second, bob):
            await peer.call("subscribe", channel=room)
        presence = (await client.presence(cent.PresenceRequest(channel=room))).presence
        stats = await client.presence_stats(cent.PresenceStatsRequest(channel=room))

        assert {who.client: (who.user, who.conn_info) for who in presence.values()} == {
            first.client: ("alice", {"name": "Alice"}),
            second.client: ("alice", None),
            bob.client: ("bob", None),
        }
        assert presence.keys() == {first.client, second.client, bob.client}
        assert (stats.num_clients, stats.num_users) == (3, 2)
        await bob.call("unsubscribe", channel=room)
        stats = await client.presence_stats(cent.PresenceStatsRequest(channel=room))
        assert (stats.num_clients, stats.num_users) == (2, 1)


async def test_channels_lists_those_with_subscribers(
    server: ServerProcess, client: cent.AsyncClient, room: str
) -> None:
    async with connected(server, "alice") as alice, connected(server, "bob") as bob:
        for channel in (room, "plain:listed"):
            await alice.call("subscribe", channel=channel)
        await bob.call("subscribe", channel=room)
        everything = (await client.channels(cent.ChannelsRequest())).channels
        some = (await client.channels(cent.ChannelsRequest(pattern=f"{room[:-1]}?"))).channels

        assert everything[room].num_clients == 2
        assert everything["plain:listed"].num_clients == 1
        assert some.keys() == {room}
    async with asyncio.timeout(15):
        while room in (await client.channels(cent.ChannelsRequest())).channels:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_info_says_what_runs(
    server: ServerProcess, client: cent.AsyncClient, room: str
) -> None:
    async with connected(server, "alice") as alice, connected(server, "bob"):
        await alice.call("subscribe", channel=room)
        (node,) = (await client.info(cent.InfoRequest())).nodes

        assert node.name == "capegate"
        assert node.version == alice.connected["version"]
        assert node.uid
        assert node.num_clients >= 2
        assert node.num_users >= 2
        assert node.num_channels >= 1
        assert node.num_subs >= 1
        assert node.uptime >= 0


# --- what happens to connections ------------------------------------------------------------------


async def test_subscribe_and_unsubscribe_reach_every_connection_of_a_user(
    server: ServerProcess, client: cent.AsyncClient, room: str
) -> None:
    async with connected(server, "carol") as first, connected(server, "carol") as second:
        await client.subscribe(
            cent.SubscribeRequest(
                user="carol", channel=room, info={"role": "guest"}, data={"welcome": True}
            )
        )
        for peer in (first, second):
            push = await peer.push()
            assert push["channel"] == room
            assert push["subscribe"]["data"] == {"welcome": True}
            assert push["subscribe"]["recoverable"] is True
        presence = (await client.presence(cent.PresenceRequest(channel=room))).presence
        assert [who.chan_info for who in presence.values()] == [{"role": "guest"}] * 2
        await client.publish(cent.PublishRequest(channel=room, data="hello"))
        assert [(await peer.publication(room))["data"] for peer in (first, second)] == ["hello"] * 2

        await client.unsubscribe(cent.UnsubscribeRequest(user="carol", channel=room))
        for peer in (first, second):
            push = await peer.push(lambda push: "unsubscribe" in push)
            assert push == {
                "channel": room,
                "unsubscribe": {"code": 2000, "reason": "server unsubscribe"},
            }


async def test_subscribe_can_mean_one_connection_and_other_options(
    server: ServerProcess, client: cent.AsyncClient, room: str
) -> None:
    for number in range(3):
        await client.publish(cent.PublishRequest(channel=room, data=number))
    epoch = (await client.history(cent.HistoryRequest(channel=room))).epoch
    async with connected(server, "carol") as first, connected(server, "carol") as second:
        await client.subscribe(
            cent.SubscribeRequest(
                user="carol",
                client=second.client,
                channel=room,
                recover_since=cent.StreamPosition(offset=1, epoch=epoch),
                override=cent.ChannelOptionsOverride(
                    presence=cent.BoolValue(value=False),
                    force_push_join_leave=cent.BoolValue(value=True),
                ),
            )
        )
        result = (await second.push())["subscribe"]
        assert result["recovered"] is True
        assert [pub["data"] for pub in result["publications"]] == [1, 2]
        assert await first.quiet() == []
        assert (await client.presence(cent.PresenceRequest(channel=room))).presence == {}
        async with connected(server, "dave") as dave:
            await dave.call("subscribe", channel=room)
            join = await second.push(lambda push: "join" in push)
            while join["join"]["info"]["user"] != "dave":  # its own comes first
                join = await second.push(lambda push: "join" in push)


async def test_disconnect_closes_a_users_connections(
    server: ServerProcess, client: cent.AsyncClient
) -> None:
    async with (
        connected(server, "erin") as spared,
        connected(server, "erin") as first,
        connected(server, "erin") as second,
        connected(server, "frank") as other,
    ):
        await client.disconnect(cent.DisconnectRequest(user="erin", whitelist=[spared.client]))
        forced = Ended(3503, {"reason": "force disconnect", "reconnect": False})
        assert [await first.ended(), await second.ended()] == [forced, forced]
        await client.disconnect(
            cent.DisconnectRequest(
                user="erin", disconnect=cent.Disconnect(code=4100, reason="come back later")
            )
        )
        assert await spared.ended() == Ended(4100, {"reason": "come back later", "reconnect": True})
        assert await other.quiet() == []


async def test_disconnect_can_mean_one_connection(
    server: ServerProcess, client: cent.AsyncClient
) -> None:
    async with connected(server, "erin") as first, connected(server, "erin") as second:
        await client.disconnect(cent.DisconnectRequest(user="erin", client=second.client))
        # Somebody else's connection isn't found under this name.
        await client.disconnect(cent.DisconnectRequest(user="frank", client=first.client))

        assert (await second.ended()).code == 3503
        assert await first.quiet() == []


async def test_refresh_sets_how_long_connections_live(
    server: ServerProcess, client: cent.AsyncClient
) -> None:
    async with connected(server, "gina") as gina:
        soon = int(time.time()) + 600
        await client.refresh(cent.RefreshRequest(user="gina", expire_at=soon))
        push = await gina.push()
        assert push["refresh"]["expires"] is True
        assert 590 <= push["refresh"]["ttl"] <= 600
        await client.refresh(cent.RefreshRequest(user="gina"))
        assert await gina.push() == {"refresh": {}}
        await client.refresh(cent.RefreshRequest(user="gina", expired=True))

        assert (await gina.ended()).code == 3005


# --- batch, errors, the synchronous client --------------------------------------------------------


@pytest.mark.parametrize("parallel", [False, True])
async def test_batch_runs_several_commands(
    client: cent.AsyncClient, room: str, parallel: bool
) -> None:
    result = await client.batch(
        cent.BatchRequest(
            requests=[
                cent.PublishRequest(channel=room, data=1),
                cent.BroadcastRequest(channels=[f"{room}-2", f"{room}-3"], data=2),
                cent.PresenceStatsRequest(channel=room),
                cent.InfoRequest(),
                cent.ChannelsRequest(pattern=room),
            ],
            parallel=parallel,
        )
    )
    published, broadcast, stats, info, channels = result.replies

    assert isinstance(published, cent.PublishResult)
    assert published.offset == 1
    assert isinstance(broadcast, cent.BroadcastResult)
    assert [one.result and one.result.offset for one in broadcast.responses] == [1, 1]
    assert isinstance(stats, cent.PresenceStatsResult)
    assert stats.num_clients == 0
    assert isinstance(info, cent.InfoResult)
    assert isinstance(channels, cent.ChannelsResult)
    assert channels.channels == {}


async def test_batch_without_parallel_keeps_the_order(client: cent.AsyncClient, room: str) -> None:
    requests: list[Any] = [cent.PublishRequest(channel=room, data=number) for number in range(5)]
    requests += [cent.HistoryRequest(channel=room, limit=-1)]
    result = await client.batch(cent.BatchRequest(requests=requests))
    history = result.replies[-1]

    assert isinstance(history, cent.HistoryResult)
    assert [publication.data for publication in history.publications] == list(range(5))


async def test_errors_reach_the_caller(client: cent.AsyncClient) -> None:
    async def code_of(coroutine: Any) -> int:
        with pytest.raises(cent.CentApiResponseError) as caught:
            await coroutine
        return int(caught.value.code)

    assert await code_of(client.publish(cent.PublishRequest(channel="no:x", data=1))) == 102
    assert await code_of(client.publish(cent.PublishRequest(channel="", data=1))) == 107
    assert await code_of(client.presence(cent.PresenceRequest(channel="plain:x"))) == 108
    assert await code_of(client.history(cent.HistoryRequest(channel="plain:x"))) == 108
    assert await code_of(client.history_remove(cent.HistoryRemoveRequest(channel="plain:x"))) == 108


async def test_a_wrong_key_is_unauthorized(server: ServerProcess) -> None:
    async with aiohttp.ClientSession() as session:
        client = cent.AsyncClient(f"{server.http_url}/api", "wrong", session=session)
        with pytest.raises(cent.CentUnauthorizedError):
            await client.info(cent.InfoRequest())


def test_the_synchronous_client_works_as_well(server: ServerProcess, room: str) -> None:
    with cent.Client(f"{server.http_url}/api", API_KEY) as client:
        offsets = [client.publish(cent.PublishRequest(channel=room, data=n)).offset for n in (1, 2)]
        found = client.history(cent.HistoryRequest(channel=room, limit=10))

    assert offsets == [1, 2]
    assert [publication.data for publication in found.publications] == [1, 2]
