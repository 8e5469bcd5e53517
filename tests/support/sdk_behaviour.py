"""What a public SDK must be able to do with this server, whichever SDK it is.

A test module makes a class of `SDKBehaviour` and two fixtures, `sdk` and `server` (with `CONFIG`).
"""

import asyncio
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support.scrape import api, counted, wait_for
from tests.support.sdk import (
    SDK,
    History,
    In,
    Info,
    Position,
    Publication,
    Reason,
    SDKClient,
    SDKError,
    SDKSubscription,
)
from tests.support.server import DEFAULT_CONFIG, ServerProcess, mint

# Short, so that who lives on has refreshed the token; SDKs ask for it in the second of its end.
EXPIRY_GRACE = 1
CONFIG = f"""
expiry_grace = {EXPIRY_GRACE}
{DEFAULT_CONFIG}
"""


def soon() -> float:
    """The end of a token that is still good when a slow machine has connected with it."""
    return time.time() + 3.2


async def connect(sdk: SDK, server: ServerProcess, user: str = "alice", **claims: Any) -> SDKClient:
    """A client of a user that has connected."""
    client = await sdk.client(server.ws_url, token=mint(user, **claims))
    await client.connect()
    return client


async def subscribe(client: SDKClient, channel: str, **options: Any) -> SDKSubscription:
    """A subscription that has been accepted."""
    subscription = await client.subscription(channel, **options)
    await subscription.subscribe()
    return subscription


async def publish(server: ServerProcess, channel: str, numbers: Sequence[int]) -> None:
    """Publish numbers by the server API, in order."""
    commands = [{"publish": {"channel": channel, "data": number}} for number in numbers]
    replies = await api(server, "batch", commands=commands)
    assert all("publish" in reply for reply in replies)


async def expect_numbers(subscription: SDKSubscription, numbers: Sequence[int]) -> None:
    """The next publications are these, each once and in order, and nothing else has come."""
    publications = await subscription.events.take("publication", len(numbers))
    assert [publication.data for publication in publications] == list(numbers)
    offsets = [publication.offset for publication in publications]
    assert offsets == list(range(offsets[0], offsets[0] + len(numbers)))
    assert subscription.events.left("publication") == []


class SDKBehaviour:
    """The tests."""

    async def wait_until_lost(self, client: SDKClient) -> None:
        """A client that has connected once has noticed that its server is gone."""
        await client.events.take("connecting", 2)

    @pytest.fixture
    def compressing_server(self, start_server: Callable[..., ServerProcess]) -> ServerProcess:
        """A server that negotiates compression, as these SDKs' sockets offer it."""
        return start_server(CONFIG, GATEWAY_COMPRESSION="true")

    @pytest.fixture
    def own_server(self, database_url: str, tmp_path: Path) -> Iterator[ServerProcess]:
        """A server that a test may kill."""
        with ServerProcess(tmp_path, database_url=database_url, config=CONFIG) as server:
            yield server

    @pytest.fixture
    def other_server(self, database_url: str, tmp_path: Path) -> Iterator[ServerProcess]:
        """Another process on the database of `own_server`."""
        folder = tmp_path / "other"
        folder.mkdir()
        with ServerProcess(folder, database_url=database_url, config=CONFIG) as server:
            yield server

    # --- connecting and talking -------------------------------------------------------------------

    async def test_it_connects_and_leaves(self, sdk: SDK, server: ServerProcess) -> None:
        client = await sdk.client(server.ws_url, token=mint("alice"))
        assert await client.connect()
        await client.disconnect()

        assert await client.events.next("disconnected") == Reason(0, "disconnect called")
        assert client.events.left("error") == []

    async def test_everybody_gets_what_anybody_publishes(
        self, sdk: SDK, server: ServerProcess, room: str
    ) -> None:
        alice = await connect(sdk, server, "alice", info={"name": "Alice"})
        bob = await connect(sdk, server, "bob")
        subscriptions = [await subscribe(client, room) for client in (alice, bob)]
        await subscriptions[0].publish({"text": "from a subscription"})
        await bob.publish(room, ["from", "a client", 2, None])
        await api(server, "publish", channel=room, data="from a server", tags={"kind": "news"})

        for subscription in subscriptions:
            first, second, third = await subscription.events.take("publication", 3)
            assert first.data == {"text": "from a subscription"}
            assert (first.info.user, first.info.conn_info) == ("alice", {"name": "Alice"})
            assert second.data == ["from", "a client", 2, None]
            assert second.info.user == "bob"
            assert third == Publication("from a server", 3, None, {"kind": "news"})
            assert (first.offset, second.offset) == (1, 2)

    async def test_it_reads_what_the_server_compressed(
        self, sdk: SDK, compressing_server: ServerProcess, room: str
    ) -> None:
        subscription = await subscribe(await connect(sdk, compressing_server), room)
        long_text = "a long text that compresses well, " * 50
        await subscription.publish(long_text)
        await subscription.publish("short")

        received = await subscription.events.take("publication", 2)
        assert [publication.data for publication in received] == [long_text, "short"]

    async def test_a_subscription_says_where_it_begins(
        self, sdk: SDK, server: ServerProcess, room: str
    ) -> None:
        await publish(server, room, [1, 2, 3])
        alice = await connect(sdk, server)
        subscribed = await (await alice.subscription(room)).subscribe()

        assert subscribed.channel == room
        assert subscribed.recoverable
        assert subscribed.positioned
        assert not subscribed.was_recovering
        assert subscribed.position is not None
        assert subscribed.position.offset == 3
        assert subscribed.position.epoch

    async def test_after_leaving_a_channel_it_hears_nothing_of_it(
        self, sdk: SDK, server: ServerProcess, room: str
    ) -> None:
        alice = await connect(sdk, server)
        left, stayed = await subscribe(alice, room), await subscribe(alice, f"{room}-2")
        await left.unsubscribe()
        assert (await left.events.next("unsubscribed")).code == 0
        await publish(server, room, [1])
        await publish(server, f"{room}-2", [2])

        await expect_numbers(stayed, [2])
        assert left.events.left("publication") == []

    async def test_a_refused_operation_raises_the_servers_error(
        self, sdk: SDK, server: ServerProcess
    ) -> None:
        alice = await connect(sdk, server)
        for operation, code in (
            (alice.publish("unknown:x", 1), 102),
            (alice.publish("c" * 256, 1), 107),
            (alice.rpc("invoice.list", {}), 108),
        ):
            with pytest.raises(SDKError) as caught:
                await operation
            assert caught.value.code == code

    async def test_a_final_error_ends_a_subscription(self, sdk: SDK, server: ServerProcess) -> None:
        alice = await connect(sdk, server)
        for channel, code in (("unknown:x", 102), ("chat:x#bob", 103), ("c" * 256, 107)):
            subscription = await alice.subscription(channel)
            await subscription.begin()

            assert (await subscription.events.next("unsubscribed")).code == code

    # --- presence and history ---------------------------------------------------------------------

    async def test_presence_says_who_is_there(
        self, sdk: SDK, server: ServerProcess, room: str
    ) -> None:
        clients = [
            await connect(sdk, server, user, info={"n": number})
            for number, user in enumerate(("alice", "alice", "bob"))
        ]
        subscriptions = [await subscribe(client, room) for client in clients]

        presence = await subscriptions[0].presence()
        assert sorted((info.user, info.conn_info["n"]) for info in presence.values()) == [
            ("alice", 0),
            ("alice", 1),
            ("bob", 2),
        ]
        assert all(info.client == client for client, info in presence.items())
        assert await subscriptions[0].presence_stats() == (3, 2)
        await subscriptions[2].unsubscribe()
        while await subscriptions[0].presence_stats() != (2, 1):
            pass

    async def test_history_reads_from_anywhere_in_both_directions(
        self, sdk: SDK, server: ServerProcess, room: str
    ) -> None:
        await publish(server, room, range(1, 11))
        subscription = await subscribe(await connect(sdk, server), room)

        def numbers(history: History) -> list[int]:
            assert history.position.offset == 10
            assert [pub.offset for pub in history.publications] == [
                pub.data for pub in history.publications
            ]
            return [publication.data for publication in history.publications]

        top = await subscription.history()
        middle = Position(4, top.position.epoch)
        assert numbers(top) == []
        assert numbers(await subscription.history(3)) == [1, 2, 3]
        assert numbers(await subscription.history(-1)) == list(range(1, 11))
        assert numbers(await subscription.history(3, reverse=True)) == [10, 9, 8]
        assert numbers(await subscription.history(3, since=middle)) == [5, 6, 7]
        assert numbers(await subscription.history(100, since=middle)) == [5, 6, 7, 8, 9, 10]
        assert numbers(await subscription.history(2, since=middle, reverse=True)) == [3, 2]
        with pytest.raises(SDKError) as caught:
            await subscription.history(1, since=Position(4, "another"))
        assert caught.value.code == 112

    async def test_joins_and_leaves_reach_who_listens(
        self, sdk: SDK, server: ServerProcess, room: str
    ) -> None:
        alice = await connect(sdk, server, "alice")
        listening = await subscribe(alice, room, join_leave=True)
        assert (await listening.events.next("join")).user == "alice"
        deaf = await subscribe(await connect(sdk, server, "carol"), room)
        assert (await listening.events.next("join")).user == "carol"
        bob = await sdk.client(server.ws_url, token=mint("bob", info={"name": "Bob"}))
        bobs_id = await bob.connect()
        await subscribe(bob, room)
        joined = await listening.events.next("join")
        await bob.disconnect()

        assert joined == Info(bobs_id, "bob", {"name": "Bob"})
        assert await listening.events.next("leave") == joined
        assert deaf.events.left("join") == deaf.events.left("leave") == []

    # --- channels that not everybody may enter ----------------------------------------------------

    async def test_a_private_channel_opens_with_a_token(
        self, sdk: SDK, server: ServerProcess
    ) -> None:
        channel = f"$chat:{secrets.token_hex(4)}"
        alice = await connect(sdk, server)
        token = mint("alice", channel=channel, info={"role": "owner"})
        subscription = await subscribe(alice, channel, tokens=[token])
        await subscription.events.next("token")
        (info,) = (await subscription.presence()).values()
        assert info.chan_info == {"role": "owner"}
        await publish(server, channel, [1])
        await expect_numbers(subscription, [1])

        refused = await alice.subscription(f"{channel}-2")
        await refused.begin()
        assert (await refused.events.next("unsubscribed")).code == 103

    async def test_a_limited_channel_opens_for_its_users(
        self, sdk: SDK, server: ServerProcess, room: str
    ) -> None:
        channel = f"{room}#alice,bob"
        alice, bob = await connect(sdk, server, "alice"), await connect(sdk, server, "bob")
        subscriptions = [await subscribe(client, channel) for client in (alice, bob)]
        await subscriptions[0].publish(1)
        for subscription in subscriptions:
            await expect_numbers(subscription, [1])

        carol = await (await connect(sdk, server, "carol")).subscription(channel)
        await carol.begin()
        assert (await carol.events.next("unsubscribed")).code == 103

    # --- tokens that end --------------------------------------------------------------------------

    async def test_a_connection_outlives_its_token_by_refreshing_it(
        self, sdk: SDK, server: ServerProcess, room: str
    ) -> None:
        refreshes = await counted(server, "commands_total", {"method": "refresh"})
        end = soon()
        client = await sdk.client(server.ws_url, tokens=[mint("alice", exp=end), mint("alice")])
        await client.connect()
        await client.events.take("token", 2)
        await wait_for(server, "commands_total", refreshes + 1, {"method": "refresh"})
        subscription = await subscribe(client, room)
        while time.time() <= end + EXPIRY_GRACE + 0.5:
            await subscription.publish(time.time())

        assert len(client.events.left("connecting")) == 1
        assert client.events.left("error") == []

    async def test_a_token_that_has_ended_is_replaced_before_connecting(
        self, sdk: SDK, server: ServerProcess
    ) -> None:
        """109: the SDK asks for another one and comes back by itself."""
        client = await sdk.client(server.ws_url, tokens=[mint("alice", ttl=-10), mint("alice")])
        await client.connect()

        assert await client.events.next("error") == 109
        await client.events.take("token", 2)

    async def test_a_forged_token_is_final(self, sdk: SDK, server: ServerProcess) -> None:
        token = mint("alice", secret="another secret of at least 32 bytes, surely")
        client = await sdk.client(server.ws_url, token=token)
        await client.begin()

        ended = await client.events.next("disconnected")
        assert ended.code == 3500
        assert "invalid token" in ended.reason

    async def test_a_subscription_outlives_its_token_by_refreshing_it(
        self, sdk: SDK, server: ServerProcess
    ) -> None:
        channel = f"$chat:{secrets.token_hex(4)}"
        refreshes = await counted(server, "commands_total", {"method": "sub_refresh"})
        alice = await connect(sdk, server)
        end = soon()
        tokens = [mint("alice", channel=channel, exp=end), mint("alice", channel=channel)]
        subscription = await subscribe(alice, channel, tokens=tokens)
        await subscription.events.take("token", 2)
        await wait_for(server, "commands_total", refreshes + 1, {"method": "sub_refresh"})
        while time.time() <= end + EXPIRY_GRACE + 0.5:
            await subscription.publish(time.time())

        assert len(subscription.events.left("subscribing")) == 1
        assert subscription.events.left("error") == []

    # --- server-side subscriptions ----------------------------------------------------------------

    async def test_a_token_subscribes_its_client(
        self, sdk: SDK, server: ServerProcess, room: str
    ) -> None:
        other = f"{room}-2"
        alice = await connect(
            sdk, server, channels=[room], subs={other: {"data": {"welcome": True}}}
        )
        subscribed = {one.channel: one for one in await alice.events.take("subscribed", 2)}
        assert subscribed.keys() == {room, other}
        assert subscribed[room].recoverable
        assert subscribed[other].data == {"welcome": True}
        await publish(server, room, [1])
        await publish(server, other, [2])

        assert await alice.events.next("publication") == In(room, Publication(1, 1))
        assert await alice.events.next("publication") == In(other, Publication(2, 1))

    async def test_the_server_subscribes_and_unsubscribes_a_client(
        self, sdk: SDK, server: ServerProcess, room: str
    ) -> None:
        user = secrets.token_hex(4)
        alice = await connect(sdk, server, user)
        await api(server, "subscribe", user=user, channel=room, data={"hello": user})
        subscribed = await alice.events.next("subscribed")
        assert (subscribed.channel, subscribed.data) == (room, {"hello": user})
        await publish(server, room, [1])
        assert await alice.events.next("publication") == In(room, Publication(1, 1))
        await api(server, "unsubscribe", user=user, channel=room)

        assert await alice.events.next("unsubscribed") == In(room)

    async def test_the_server_ends_a_client_side_subscription(
        self, sdk: SDK, server: ServerProcess, room: str
    ) -> None:
        user = secrets.token_hex(4)
        subscription = await subscribe(await connect(sdk, server, user), room)
        await api(server, "unsubscribe", user=user, channel=room)

        assert await subscription.events.next("unsubscribed") == Reason(2000, "server unsubscribe")

    # --- the server closes ------------------------------------------------------------------------

    async def test_it_obeys_a_close_that_is_final(self, sdk: SDK, server: ServerProcess) -> None:
        user = secrets.token_hex(4)
        alice = await connect(sdk, server, user)
        await api(server, "disconnect", user=user)

        ended = await alice.events.next("disconnected")
        assert ended.code == 3503
        assert "force disconnect" in ended.reason

    async def test_it_comes_back_after_a_close_that_is_not_and_recovers(
        self, sdk: SDK, server: ServerProcess, room: str
    ) -> None:
        user = secrets.token_hex(4)
        alice = await connect(sdk, server, user, channels=[f"{room}-2"])
        subscription = await subscribe(alice, room)
        await publish(server, room, [1])
        await expect_numbers(subscription, [1])
        await api(server, "disconnect", user=user, code=3011)
        # Some of these while it is away, some once it is back: it can't tell.
        for number in range(2, 30):
            await publish(server, room, [number])
            await publish(server, f"{room}-2", [number])

        await expect_numbers(subscription, range(2, 30))
        server_side = await alice.events.take("publication", 28)
        assert [publication.what.data for publication in server_side] == list(range(2, 30))
        assert [reason.code for reason in alice.events.left("connecting")] == [0, 3011]
        subscribed = (await subscription.events.take("subscribed", 1))[0]
        assert (subscribed.was_recovering, subscribed.recovered) == (True, True)

    # --- the server is killed ---------------------------------------------------------------------

    async def test_it_recovers_after_the_server_was_killed(
        self, own_server: ServerProcess, sdk: SDK, room: str
    ) -> None:
        """While the server is away nothing can be published; others are back before it is."""
        server = own_server
        alice = await connect(sdk, server, channels=[f"{room}-2"])
        subscription = await subscribe(alice, room)
        for channel in (room, f"{room}-2"):
            await publish(server, channel, range(1, 6))
        await expect_numbers(subscription, range(1, 6))
        await alice.events.take("publication", 5)
        await asyncio.to_thread(server.kill)
        await self.wait_until_lost(alice)
        with pytest.raises(ConnectionError):
            await api(server, "publish", channel=room, data="lost")

        await asyncio.to_thread(server.start)
        for channel in (room, f"{room}-2"):
            await publish(server, channel, range(6, 11))
        await expect_numbers(subscription, range(6, 11))
        server_side = await alice.events.take("publication", 5)
        assert [publication.what.data for publication in server_side] == list(range(6, 11))
        await subscription.publish(11)
        await expect_numbers(subscription, [11])

    async def test_it_recovers_a_thousand_publications_without_a_cap(
        self, own_server: ServerProcess, other_server: ServerProcess, sdk: SDK, room: str
    ) -> None:
        """All of them missed: another process on the same database takes them meanwhile."""
        server = own_server
        alice = await connect(sdk, server, channels=[f"{room}-2"])
        subscription = await subscribe(alice, room)
        await publish(server, room, [1])
        await expect_numbers(subscription, [1])
        await asyncio.to_thread(server.kill)
        await self.wait_until_lost(alice)
        for start in range(2, 1002, 100):
            await publish(other_server, room, range(start, start + 100))
            await publish(other_server, f"{room}-2", range(start, start + 100))
        await asyncio.to_thread(server.start)

        await expect_numbers(subscription, range(2, 1002))
        server_side = await alice.events.take("publication", 1000)
        assert [publication.what.data for publication in server_side] == list(range(2, 1002))
        subscribed = (await subscription.events.take("subscribed", 1))[0]
        assert (subscribed.was_recovering, subscribed.recovered) == (True, True)
        await subscription.publish(1002)
        await expect_numbers(subscription, [1002])

    async def test_it_learns_when_history_no_longer_reaches_back(
        self, sdk: SDK, server: ServerProcess, room: str
    ) -> None:
        alice = await connect(sdk, server)
        subscription = await subscribe(alice, room)
        await publish(server, room, range(1, 6))
        await expect_numbers(subscription, range(1, 6))
        await alice.disconnect()
        await publish(server, room, range(6, 11))
        await api(server, "history_remove", channel=room)
        await publish(server, room, [11])
        await alice.begin()
        subscribed = await subscription.events.next("subscribed")

        assert (subscribed.was_recovering, subscribed.recovered) == (True, False)
        assert subscribed.position.offset == 11
        await publish(server, room, [12])
        await expect_numbers(subscription, [12])
