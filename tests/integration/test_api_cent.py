"""The server API, used by `cent`: Centrifugo's own client for Python, which nobody here wrote."""

import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from cent import (
    AsyncClient,
    BatchRequest,
    BoolValue,
    BroadcastRequest,
    CentApiResponseError,
    CentRequest,
    CentTransportError,
    CentUnauthorizedError,
    ChannelOptionsOverride,
    ChannelsRequest,
    Client,
    ConnectionsRequest,
    Disconnect,
    DisconnectRequest,
    HistoryRemoveRequest,
    HistoryRequest,
    InfoRequest,
    PresenceRequest,
    PresenceStatsRequest,
    PublishRequest,
    RefreshRequest,
    StreamPosition,
    SubscribeRequest,
    UnsubscribeRequest,
)

from gateway.protocol import codes
from tests.integration.conftest import StartServer
from tests.support.peer import connected, expect_end
from tests.support.server import API_KEY, DEFAULT_CONFIG, ServerProcess

CONFIG = f"""
expiry_grace = 0
{DEFAULT_CONFIG}
"""

UNSUBSCRIBED = {"code": 2000, "reason": "server unsubscribe"}


@pytest.fixture(scope="module")
def server(start_server: StartServer) -> ServerProcess:
    return start_server(CONFIG)


@pytest.fixture
async def cent(server: ServerProcess) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(f"{server.http_url}/api", API_KEY) as client:
        yield client


async def publish(cent: AsyncClient, channel: str, *data: object) -> str:
    """Publish one after the other; returns the epoch."""
    epoch = ""
    for item in data:
        epoch = (await cent.publish(PublishRequest(channel=channel, data=item))).epoch
    return epoch


# --- publish and broadcast ------------------------------------------------------------------------


async def test_a_publication_with_history_has_a_position(
    server: ServerProcess, cent: AsyncClient, room: str
) -> None:
    async with connected(server) as alice:
        await alice.call("subscribe", channel=room)
        first = await cent.publish(PublishRequest(channel=room, data={"text": "hello"}))
        second = await cent.publish(PublishRequest(channel=room, data="again"))

        assert (first.offset, second.offset) == (1, 2)
        assert first.epoch == second.epoch != ""
        pubs = await alice.publications(2, room)
        assert [(pub["data"], pub["offset"]) for pub in pubs] == [
            ({"text": "hello"}, 1),
            ("again", 2),
        ]


async def test_a_publication_without_history_has_no_position(
    server: ServerProcess, cent: AsyncClient
) -> None:
    async with connected(server) as alice:
        await alice.call("subscribe", channel="live:score")
        result = await cent.publish(PublishRequest(channel="live:score", data=[1, 2]))

        assert (result.offset, result.epoch) == (0, "")
        pub = await alice.publication("live:score")
        assert pub["data"] == [1, 2]
        assert "offset" not in pub


async def test_a_broadcast_answers_for_each_channel(
    server: ServerProcess, cent: AsyncClient, room: str
) -> None:
    channels = [room, "nowhere:1", "live:score", f"{room}-b"]
    async with connected(server) as alice:
        for channel in (room, "live:score"):
            await alice.call("subscribe", channel=channel)
        result = await cent.broadcast(BroadcastRequest(channels=channels, data={"n": 1}))

        offsets = [reply.result and reply.result.offset for reply in result.responses]
        assert offsets == [1, None, 0, 1]
        failures = [reply.error and reply.error.code for reply in result.responses]
        assert failures == [None, codes.UNKNOWN_CHANNEL.code, None, None]
        assert {push["channel"]: push["pub"]["data"] for push in await alice.quiet()} == {
            room: {"n": 1},
            "live:score": {"n": 1},
        }


# --- subscribe and unsubscribe --------------------------------------------------------------------


async def test_a_client_is_subscribed_and_unsubscribed(
    server: ServerProcess, cent: AsyncClient, room: str
) -> None:
    async with connected(server) as alice, connected(server, "bob") as bob:
        epoch = await publish(cent, room, "before")
        await cent.subscribe(SubscribeRequest(user="alice", channel=room, data={"why": "invited"}))
        push = await alice.push(lambda push: "subscribe" in push)
        assert push["channel"] == room
        assert push["subscribe"] == {
            "recoverable": True,
            "positioned": True,
            "epoch": epoch,
            "offset": 1,
            "data": {"why": "invited"},
        }

        await publish(cent, room, "during")
        assert (await alice.publication(room))["data"] == "during"

        await cent.unsubscribe(UnsubscribeRequest(user="alice", channel=room))
        assert await alice.push(lambda push: "unsubscribe" in push) == {
            "channel": room,
            "unsubscribe": UNSUBSCRIBED,
        }
        await publish(cent, room, "after")
        assert await alice.quiet() == []
        assert await bob.quiet() == []


async def test_a_subscription_can_begin_in_the_past_and_show_who_it_is(
    server: ServerProcess, cent: AsyncClient, room: str
) -> None:
    async with connected(server) as alice:
        epoch = await publish(cent, room, 1, 2, 3)
        await cent.subscribe(
            SubscribeRequest(
                user="alice",
                channel=room,
                info={"role": "guest"},
                recover_since=StreamPosition(offset=1, epoch=epoch),
                override=ChannelOptionsOverride(join_leave=BoolValue(value=False)),
            )
        )
        subscribed = (await alice.push(lambda push: "subscribe" in push))["subscribe"]
        assert [pub["data"] for pub in subscribed["publications"]] == [2, 3]

        presence = (await cent.presence(PresenceRequest(channel=room))).presence
        assert presence[alice.client].chan_info == {"role": "guest"}


async def test_one_client_of_a_user_is_subscribed_and_unsubscribed(
    server: ServerProcess, cent: AsyncClient, room: str
) -> None:
    async with connected(server) as phone, connected(server) as laptop:
        await cent.subscribe(SubscribeRequest(user="alice", client=phone.client, channel=room))
        await phone.push(lambda push: "subscribe" in push)
        assert await laptop.quiet() == []

        await laptop.call("subscribe", channel=room)
        await cent.unsubscribe(UnsubscribeRequest(user="alice", client=phone.client, channel=room))
        await phone.push(lambda push: "unsubscribe" in push)
        await publish(cent, room, "for one")
        assert (await laptop.publication(room))["data"] == "for one"
        assert await phone.quiet() == []


async def test_nobody_is_meant_by_an_unknown_user_client_or_session(
    server: ServerProcess, cent: AsyncClient, room: str
) -> None:
    """Sessions are what emulated transports have; naming one must not reach all of a user."""
    async with connected(server) as alice:
        await alice.call("subscribe", channel=room)
        aims: list[dict[str, Any]] = [
            {"user": "nobody"},
            {"user": "nobody", "client": alice.client},
            {"user": "alice", "client": "0" * 32},
            {"user": "alice", "session": "0" * 32},
        ]
        for aim in aims:
            await cent.subscribe(SubscribeRequest(channel=f"{room}-b", **aim))
            await cent.unsubscribe(UnsubscribeRequest(channel=room, **aim))
            await cent.refresh(RefreshRequest(expired=True, **aim))
            await cent.disconnect(DisconnectRequest(**aim))

        assert [push for push in await alice.quiet() if "join" not in push] == []


# --- disconnect and refresh -----------------------------------------------------------------------


async def test_all_clients_of_a_user_are_disconnected_but_those_on_the_whitelist(
    server: ServerProcess, cent: AsyncClient
) -> None:
    async with (
        connected(server) as phone,
        connected(server) as laptop,
        connected(server, "bob") as bob,
    ):
        await cent.disconnect(DisconnectRequest(user="alice", whitelist=[laptop.client]))

        await expect_end(server, phone, codes.FORCE_DISCONNECT)
        assert await laptop.quiet() == []
        assert await bob.quiet() == []

        await cent.disconnect(DisconnectRequest(user="alice"))
        await expect_end(server, laptop, codes.FORCE_DISCONNECT)


@pytest.mark.parametrize(
    ("asked", "code", "reason", "reconnect"),
    [
        (Disconnect(code=4500, reason="banned"), 4500, "banned", False),
        (Disconnect(code=4001, reason="moved"), 4001, "moved", True),
        (Disconnect(code=4001), 4001, "disconnected", True),
        (Disconnect(code=3011), 3011, "force reconnect", True),
        (Disconnect(reason="bye"), 3503, "bye", False),
    ],
    ids=str,
)
async def test_a_disconnect_has_the_code_and_reason_asked_for(
    server: ServerProcess,
    cent: AsyncClient,
    asked: Disconnect,
    code: int,
    reason: str,
    reconnect: bool,
) -> None:
    async with connected(server) as alice:
        await cent.disconnect(
            DisconnectRequest(user="alice", client=alice.client, disconnect=asked)
        )

        assert await alice.ended() == (code, {"reason": reason, "reconnect": reconnect})


@pytest.mark.parametrize("code", [1, 1000, 2999, 5000])
async def test_a_disconnect_code_that_clients_would_misread_is_refused(
    server: ServerProcess, cent: AsyncClient, code: int
) -> None:
    async with connected(server) as alice:
        with pytest.raises(CentApiResponseError) as failure:
            await cent.disconnect(
                DisconnectRequest(user="alice", disconnect=Disconnect(code=code, reason="?"))
            )

        assert failure.value.code == codes.BAD_REQUEST.code
        assert await alice.quiet() == []


async def test_a_refresh_sets_when_a_connection_ends(
    server: ServerProcess, cent: AsyncClient
) -> None:
    async with connected(server, claims={"exp": int(time.time()) + 60}) as alice:
        await cent.refresh(RefreshRequest(user="alice", expire_at=int(time.time()) + 600))
        refresh = (await alice.push())["refresh"]
        assert refresh["expires"] is True
        assert 597 <= refresh["ttl"] <= 600

        await cent.refresh(RefreshRequest(user="alice"))
        assert (await alice.push())["refresh"] == {}

        await cent.refresh(RefreshRequest(user="alice", expire_at=int(time.time()) + 1))
        assert (await alice.push())["refresh"]["expires"] is True
        await expect_end(server, alice, codes.CONNECTION_EXPIRED)


@pytest.mark.parametrize("ending", [{"expired": True}, {"expire_at": 1}], ids=str)
async def test_a_refresh_can_end_a_connection_now(
    server: ServerProcess, cent: AsyncClient, ending: dict[str, Any]
) -> None:
    async with connected(server) as alice:
        await cent.refresh(RefreshRequest(user="alice", **ending))

        await expect_end(server, alice, codes.CONNECTION_EXPIRED)


# --- presence and history -------------------------------------------------------------------------


async def test_presence_names_who_is_in_a_channel(
    server: ServerProcess, cent: AsyncClient, room: str
) -> None:
    async with (
        connected(server, claims={"info": {"name": "Alice"}}) as phone,
        connected(server) as laptop,
        connected(server, "bob") as bob,
    ):
        for peer in (phone, laptop, bob):
            await peer.call("subscribe", channel=room)
        presence = (await cent.presence(PresenceRequest(channel=room))).presence
        assert {(client, info.user) for client, info in presence.items()} == {
            (phone.client, "alice"),
            (laptop.client, "alice"),
            (bob.client, "bob"),
        }
        assert presence[phone.client].client == phone.client
        assert presence[phone.client].conn_info == {"name": "Alice"}

        stats = await cent.presence_stats(PresenceStatsRequest(channel=room))
        assert (stats.num_clients, stats.num_users) == (3, 2)

        await laptop.call("unsubscribe", channel=room)
        stats = await cent.presence_stats(PresenceStatsRequest(channel=room))
        assert (stats.num_clients, stats.num_users) == (2, 2)


@pytest.mark.parametrize(
    ("limit", "since", "reverse", "offsets"),
    [
        (None, None, None, []),
        (0, None, False, []),
        (2, None, False, [1, 2]),
        (-1, None, False, [1, 2, 3, 4, 5]),
        (10, None, True, [5, 4, 3, 2, 1]),
        (10, 3, False, [4, 5]),
        (1, 3, False, [4]),
        (10, 3, True, [2, 1]),
        (1, 3, True, [2]),
        (10, 5, False, []),
    ],
)
async def test_history_is_read_from_either_end(
    cent: AsyncClient,
    room: str,
    limit: int | None,
    since: int | None,
    reverse: bool | None,
    offsets: list[int],
) -> None:
    epoch = await publish(cent, room, *({"n": number} for number in range(1, 6)))
    position = None if since is None else StreamPosition(offset=since, epoch=epoch)

    result = await cent.history(
        HistoryRequest(channel=room, limit=limit, since=position, reverse=reverse)
    )

    assert [pub.offset for pub in result.publications] == offsets
    assert [pub.data for pub in result.publications] == [{"n": offset} for offset in offsets]
    assert (result.offset, result.epoch) == (5, epoch)


async def test_a_client_is_told_that_history_was_removed(
    server: ServerProcess, cent: AsyncClient, room: str
) -> None:
    epoch = await publish(cent, room, 1, 2, 3)
    async with connected(server) as alice:
        await cent.history_remove(HistoryRemoveRequest(channel=room))

        history = await cent.history(HistoryRequest(channel=room, limit=-1))
        assert history.publications == []
        assert (history.offset, history.epoch) == (3, epoch)
        behind = await alice.call("subscribe", channel=room, recover=True, epoch=epoch, offset=1)
        assert (behind["was_recovering"], behind.get("recovered", False)) == (True, False)
        assert behind["gap"] == {"from": 2, "to": 3}
        assert (behind["offset"], behind.get("publications", [])) == (3, [])

        await alice.call("unsubscribe", channel=room)
        up_to_date = await alice.call(
            "subscribe", channel=room, recover=True, epoch=epoch, offset=3
        )
        assert up_to_date["recovered"] is True
        await publish(cent, room, 4)
        pub = await alice.publication(room)
        assert (pub["data"], pub["offset"]) == (4, 4)


# --- what is there --------------------------------------------------------------------------------


async def test_channels_are_those_with_subscribers(
    server: ServerProcess, cent: AsyncClient, room: str
) -> None:
    async with connected(server) as alice, connected(server, "bob") as bob:
        await alice.call("subscribe", channel=room)
        await bob.call("subscribe", channel=room)
        await bob.call("subscribe", channel="live:score")

        async def counts(pattern: str | None) -> dict[str, int]:
            result = await cent.channels(ChannelsRequest(pattern=pattern))
            return {name: channel.num_clients for name, channel in result.channels.items()}

        assert await counts(None) == {room: 2, "live:score": 1}
        assert await counts("chat:*") == {room: 2}
        assert await counts("live:s?ore") == {"live:score": 1}
        assert await counts("live:[a-z]*") == {"live:score": 1}
        assert await counts("score") == {}
        await bob.call("unsubscribe", channel=room)
        assert await counts(room) == {room: 1}


async def test_info_counts_what_is_connected(
    server: ServerProcess, cent: AsyncClient, room: str
) -> None:
    async with connected(server) as phone, connected(server), connected(server, "bob") as bob:
        await phone.call("subscribe", channel=room)
        await bob.call("subscribe", channel=room)
        await bob.call("subscribe", channel="live:score")
        (node,) = (await cent.info(InfoRequest())).nodes

        assert (node.num_clients, node.num_users) == (3, 2)
        assert (node.num_channels, node.num_subs) == (2, 3)
        assert node.version == phone.connected["version"]
        assert node.uid
        assert 0 <= node.uptime < 600


# --- batch ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("parallel", [False, True])
async def test_a_batch_has_a_result_for_each_command(
    cent: AsyncClient, room: str, parallel: bool
) -> None:
    requests: list[CentRequest[Any]] = [
        PublishRequest(channel=room, data=1),
        PublishRequest(channel=f"{room}-b", data=1),
        PresenceStatsRequest(channel=room),
        BroadcastRequest(channels=["live:score"], data=1),
    ]
    batch = await cent.batch(BatchRequest(requests=requests, parallel=parallel))
    replies = [reply.model_dump() for reply in batch.replies]

    assert [set(reply) for reply in replies] == [
        {"offset", "epoch"},
        {"offset", "epoch"},
        {"num_clients", "num_users"},
        {"responses"},
    ]
    assert [reply["offset"] for reply in replies[:2]] == [1, 1]


async def test_a_batch_that_is_not_parallel_keeps_its_order(cent: AsyncClient, room: str) -> None:
    data = list(range(20))
    await cent.batch(
        BatchRequest(requests=[PublishRequest(channel=room, data=number) for number in data])
    )

    history = await cent.history(HistoryRequest(channel=room, limit=-1))
    assert [pub.data for pub in history.publications] == data


@pytest.mark.parametrize("parallel", [False, True])
async def test_a_failing_command_of_a_batch_does_not_stop_the_others(
    cent: AsyncClient, room: str, parallel: bool
) -> None:
    """cent looks for the method's name in each reply, so here a failed one is a KeyError."""
    requests = [
        PublishRequest(channel=room, data=1),
        PublishRequest(channel="nowhere:1", data=2),
        PublishRequest(channel=f"{room}-b", data=3),
    ]
    with pytest.raises(KeyError, match="publish"):
        await cent.batch(BatchRequest(requests=requests, parallel=parallel))

    for channel, data in ((room, 1), (f"{room}-b", 3)):
        history = await cent.history(HistoryRequest(channel=channel, limit=1))
        assert [pub.data for pub in history.publications] == [data]


# --- errors ---------------------------------------------------------------------------------------

FAILURES: list[tuple[CentRequest[Any], codes.ErrorCode]] = [
    (PublishRequest(channel="nowhere:1", data=1), codes.UNKNOWN_CHANNEL),
    (PublishRequest(channel="chat:\n", data=1), codes.BAD_REQUEST),
    (PublishRequest(channel="", data=1), codes.BAD_REQUEST),
    (PublishRequest(channel="chat:1", data=None), codes.BAD_REQUEST),
    (PublishRequest(channel="chat:1", data=1, idempotency_key="k" * 65), codes.BAD_REQUEST),
    (SubscribeRequest(user="", channel="chat:1"), codes.BAD_REQUEST),
    (SubscribeRequest(user="alice", channel="nowhere:1"), codes.UNKNOWN_CHANNEL),
    (UnsubscribeRequest(user="", channel="chat:1"), codes.BAD_REQUEST),
    (UnsubscribeRequest(user="alice", channel="nowhere:1"), codes.UNKNOWN_CHANNEL),
    (DisconnectRequest(user=""), codes.BAD_REQUEST),
    (RefreshRequest(user=""), codes.BAD_REQUEST),
    (PresenceRequest(channel="live:1"), codes.NOT_AVAILABLE),
    (PresenceStatsRequest(channel="live:1"), codes.NOT_AVAILABLE),
    (HistoryRequest(channel="live:1"), codes.NOT_AVAILABLE),
    (
        HistoryRequest(channel="chat:1", since=StreamPosition(offset=0, epoch="of long ago")),
        codes.UNRECOVERABLE,
    ),
    (HistoryRemoveRequest(channel="live:1"), codes.NOT_AVAILABLE),
    (HistoryRemoveRequest(channel="nowhere:1"), codes.UNKNOWN_CHANNEL),
]


@pytest.mark.parametrize(("request_", "error"), FAILURES, ids=repr)
async def test_an_error_has_its_code(
    cent: AsyncClient, request_: CentRequest[Any], error: codes.ErrorCode
) -> None:
    with pytest.raises(CentApiResponseError) as failure:
        await getattr(cent, request_.api_method)(request_)

    assert failure.value.code == error.code
    assert failure.value.message != ""


async def test_a_method_of_centrifugo_pro_does_not_exist(cent: AsyncClient) -> None:
    with pytest.raises(CentTransportError) as failure:
        await cent.connections(ConnectionsRequest(user="alice", expression=""))

    assert failure.value.status_code == 404


async def test_a_wrong_key_is_unauthorized(server: ServerProcess) -> None:
    for key in ("wrong", "", API_KEY + "x", API_KEY[:-1]):
        async with AsyncClient(f"{server.http_url}/api", key) as stranger:
            with pytest.raises(CentUnauthorizedError):
                await stranger.info(InfoRequest())


def test_the_blocking_client_is_served_as_well(server: ServerProcess, room: str) -> None:
    with Client(f"{server.http_url}/api", API_KEY) as cent:
        published = cent.publish(PublishRequest(channel=room, data={"text": "ünïcode ✓"}))
        history = cent.history(HistoryRequest(channel=room, limit=10))
        with pytest.raises(CentApiResponseError, match="unknown channel"):
            cent.publish(PublishRequest(channel="nowhere:1", data=1))

    assert published.offset == history.offset == 1
    assert history.publications[0].data == {"text": "ünïcode ✓"}
    with (
        Client(f"{server.http_url}/api", "wrong") as stranger,
        pytest.raises(CentUnauthorizedError),
    ):
        stranger.info(InfoRequest())
