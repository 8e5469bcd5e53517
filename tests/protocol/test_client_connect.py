"""The connect command: who gets in, with what, and why not."""

from typing import Any

import pytest

from gateway.protocol.channels import ChannelOptions
from gateway.protocol.claims import (
    KeyMissing,
    OptionsOverride,
    ServerSubscription,
    TokenError,
    TokenExpired,
    TokenInvalid,
)
from gateway.protocol.client_base import Phase
from gateway.protocol.codec import StreamPosition
from gateway.protocol.codes import (
    BAD_PROTOCOL,
    CHANNEL_LIMIT,
    CONNECTION_LIMIT,
    INTERNAL,
    INVALID_TOKEN,
    STALE,
    Disconnect,
)
from gateway.protocol.subscription import Joined, SubscriptionState
from tests.support.recording import LOGGED, OPEN, START, World, connect_grant, make_rules

MEMBERS_ONLY = make_rules(allow_anonymous=False)


# --- who gets in ------------------------------------------------------------------------------


def test_a_good_token_lets_its_user_in() -> None:
    world = World(MEMBERS_ONLY, tokens={"t": connect_grant("alice", info=b'{"name":"A"}')})

    result = world.connect(token="t")

    assert result == {"client": "client-1", "version": "1.2.3", "ping": 25, "pong": True}
    assert (world.client.user, world.client.info) == ("alice", b'{"name":"A"}')
    assert world.registered == 1


def test_nobody_gets_in_without_a_token_unless_that_is_allowed() -> None:
    world = World(MEMBERS_ONLY)
    assert world.ask("connect") is None
    assert world.closed is BAD_PROTOCOL
    assert world.registered == 0

    for rules in (make_rules(), make_rules(allow_anonymous=False, insecure=True)):
        world = World(rules)
        world.connect()
        assert world.client.user == ""
        assert world.registered == 1


def test_a_token_counts_where_anonymous_clients_are_allowed_too() -> None:
    world = World(make_rules(insecure=True), tokens={"bad": TokenInvalid("forged")})
    world.ask("connect", token="bad")

    assert world.closed is INVALID_TOKEN


def test_an_invalid_token_ends_the_connection() -> None:
    world = World(tokens={"t": TokenInvalid("the signature is wrong")})
    assert world.ask("connect", token="t") is None

    assert world.closed is INVALID_TOKEN
    assert world.detail == "the signature is wrong"
    assert world.registered == 0


@pytest.mark.parametrize(
    ("error", "code", "temporary"), [(TokenExpired(), 109, False), (KeyMissing("k1"), 100, True)]
)
def test_an_expired_or_unverifiable_token_is_an_error_reply(
    error: TokenError, code: int, temporary: bool
) -> None:
    world = World(tokens={"t": error})

    reply = world.ask("connect", token="t")

    assert reply["error"]["code"] == code
    assert reply["error"].get("temporary", False) is temporary
    assert world.client.phase is Phase.FAILED
    assert world.is_open()
    assert [(method, error.code) for method, error in world.errors] == [("connect", code)]


@pytest.mark.parametrize("lifetime", [0.0, -5.0])
def test_a_connection_whose_time_is_over_already_is_error_110(lifetime: float) -> None:
    world = World(tokens={"t": connect_grant("alice", lifetime)})

    assert world.ask("connect", token="t")["error"]["code"] == 110
    assert world.registered == 0


def test_one_connection_too_many_of_a_user_is_closed() -> None:
    world = World(registration=CONNECTION_LIMIT)
    assert world.ask("connect") is None

    assert world.closed is CONNECTION_LIMIT


def test_a_token_that_is_verified_after_the_end_does_nothing() -> None:
    world = World(at_once=False)
    world.say({"id": 1, "connect": {"token": "t"}})
    world.pass_time(10.0)
    assert world.closed is STALE

    world.question("connect token").answer(connect_grant("alice"))

    assert world.registered == 0
    assert world.client.phase is Phase.CLOSED


# --- what the reply says ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lifetime", "ttl"), [(None, None), (60.0, 60), (60.9, 60), (0.2, 1), (1e9, 10**9)]
)
def test_the_reply_says_for_how_long_the_token_holds(
    lifetime: float | None, ttl: int | None
) -> None:
    world = World()
    result = world.connect_as("alice", lifetime)

    assert (result.get("expires"), result.get("ttl")) == ((True, ttl) if ttl else (None, None))


def test_without_pings_the_reply_announces_none() -> None:
    result = World(make_rules(ping_interval=0.0)).connect()
    assert "ping" not in result
    assert "pong" not in result


def test_with_native_pings_the_reply_announces_none_of_the_protocols_own() -> None:
    result = World(native_ping=True).connect()
    assert "ping" not in result
    assert "pong" not in result


def test_the_reply_comes_before_anything_else() -> None:
    world = World()
    world.say({"id": 1, "connect": {}}, {"id": 2, "subscribe": {"channel": "open:a"}})

    assert world.steps == ["register ", "reply 1", "prepare open:a", "join open:a", "reply 2"]


# --- server-side subscriptions ----------------------------------------------------------------


def test_a_token_subscribes_its_client_to_channels() -> None:
    world = World()
    info = b'{"role":"host"}'
    result = world.connect_as(
        "alice",
        subs={
            "open:a": ServerSubscription(info=info, data=b"[1]"),
            "log:b": ServerSubscription(),
            "$closed:c": ServerSubscription(),
        },
    )

    assert result["subs"] == {
        "open:a": {"data": [1]},
        "log:b": {"recoverable": True, "positioned": True},
        "$closed:c": {},
    }
    assert list(world.inside) == ["open:a", "log:b", "$closed:c"]
    assert all(one.state is SubscriptionState.LIVE for one in world.inside.values())
    assert all(one.server_side for one in world.inside.values())
    assert world.inside["open:a"].chan_info == info


def test_a_token_changes_the_options_of_its_channels() -> None:
    world = World()
    override = OptionsOverride(presence=True, force_recovery=False)
    world.connect_as(
        "alice",
        subs={
            "open:a": ServerSubscription(override=override),
            "log:b": ServerSubscription(override=override),
        },
    )

    assert world.inside["open:a"].presence
    assert not world.inside["log:b"].recoverable


def test_the_reply_waits_until_every_channel_is_prepared() -> None:
    world = World(at_once=False)
    world.say({"id": 1, "connect": {"token": "t"}})
    subs = {"log:a": ServerSubscription(), "log:b": ServerSubscription()}
    world.question("connect token").answer(connect_grant("alice", subs=subs))
    first, second = world.questions
    assert [one.kind for one in (first, second)] == ["prepare", "prepare"]

    second.answer(None)
    assert world.sent == []
    assert world.inside == {}
    first.answer(None)

    assert [reply["id"] for reply in world.sent] == [1]
    assert list(world.inside) == ["log:a", "log:b"]
    assert world.steps[-3:] == ["join log:a", "join log:b", "reply 1"]


def test_a_channel_that_cannot_be_prepared_fails_the_connect() -> None:
    world = World(outcomes={"prepare": INTERNAL})
    world.tokens["t"] = connect_grant(
        "alice", subs={"log:a": ServerSubscription(), "log:b": ServerSubscription()}
    )

    reply = world.ask("connect", token="t")

    assert reply["error"] == {"code": 100, "message": "internal server error", "temporary": True}
    assert world.client.phase is Phase.FAILED
    assert world.client.subscriptions == {}
    assert world.inside == {}


def test_a_channel_that_is_prepared_after_the_connect_failed_is_not_joined() -> None:
    world = World(at_once=False)
    world.say({"id": 1, "connect": {"token": "t"}})
    subs = {"log:a": ServerSubscription(), "log:b": ServerSubscription()}
    world.question("connect token").answer(connect_grant("alice", subs=subs))
    first, second = world.questions
    first.answer(INTERNAL)
    second.answer(None)

    assert len(world.sent) == 1
    assert world.inside == {}


def test_a_subscription_that_the_server_ended_meanwhile_is_not_joined() -> None:
    world = World(at_once=False)
    world.say({"id": 1, "connect": {"token": "t"}})
    subs = {"log:a": ServerSubscription(), "log:b": ServerSubscription()}
    world.question("connect token").answer(connect_grant("alice", subs=subs))
    del world.client.subscriptions["log:a"]
    for question in world.questions:
        question.answer(None)

    assert list(world.sent[0]["connect"]["subs"]) == ["log:b"]


@pytest.mark.parametrize("channel", ["nowhere:a", "open:ü", "x" * 256, ""])
def test_a_token_with_an_impossible_channel_ends_the_connection(channel: str) -> None:
    world = World(tokens={"t": connect_grant("alice", subs={channel: ServerSubscription()})})
    world.ask("connect", token="t")

    assert world.closed is BAD_PROTOCOL
    assert world.asked[1:] == []


def test_a_token_with_too_many_channels_ends_the_connection() -> None:
    rules = make_rules(channels_max=2)
    names = ["open:a", "open:b", "open:c"]
    for count, closed in ((2, None), (3, CHANNEL_LIMIT)):
        subs = {name: ServerSubscription() for name in names[:count]}
        world = World(rules, tokens={"t": connect_grant("alice", subs=subs)})
        world.ask("connect", token="t")

        assert world.closed is closed


def test_users_have_a_channel_of_their_own_where_that_is_on() -> None:
    world = World(make_rules(personal_channel=True))
    assert list(world.connect_as("alice")["subs"]) == ["#alice"]

    anonymous = World(make_rules(personal_channel=True))
    assert "subs" not in anonymous.connect()

    world = World(make_rules(personal_channel=True))
    subs = {"#alice": ServerSubscription(data=b"1"), "open:a": ServerSubscription()}
    assert world.connect_as("alice", subs=subs)["subs"] == {"#alice": {"data": 1}, "open:a": {}}


# --- what a returning client asks for ---------------------------------------------------------


def test_a_returning_client_recovers_its_server_side_subscriptions() -> None:
    world = World(tokens={"t": connect_grant("alice", subs={"log:a": ServerSubscription()})})
    world.joins["log:a"] = Joined(
        StreamPosition(9, "e"), recovered=True, publications=(b'{"data":8}', b'{"data":9}')
    )

    result = world.connect(token="t", subs={"log:a": {"recover": True, "epoch": "e", "offset": 7}})

    assert world.entered_from["log:a"] == StreamPosition(7, "e")
    assert result["subs"]["log:a"] == {
        "recoverable": True,
        "positioned": True,
        "epoch": "e",
        "offset": 7,
        "was_recovering": True,
        "recovered": True,
        "publications": [{"data": 8}, {"data": 9}],
    }


def test_a_client_gets_channels_that_it_asks_for_if_it_may_enter_them_without_a_token() -> None:
    world = World()
    asked: dict[str, Any] = {
        name: {} for name in ("open:a", "closed:b", "$open:c", "nowhere:d", "", "x#alice", "x#bob")
    }
    world.tokens["t"] = connect_grant("alice")

    result = world.connect(token="t", subs=asked)

    assert list(result["subs"]) == ["open:a", "x#alice"]
    assert world.client.phase is Phase.CONNECTED


def test_channels_that_are_asked_for_count_too() -> None:
    world = World(make_rules(channels_max=2))
    world.ask("connect", subs={f"open:{number}": {} for number in range(3)})

    assert world.closed is CHANNEL_LIMIT


def test_a_channel_that_cannot_be_recovered_is_left_out_for_who_wants_that() -> None:
    world = World(joins={"log:a": None})

    result = world.connect(subs={"log:a": {"recover": True, "offset": 7, "flag": 2}, "open:b": {}})

    assert list(result["subs"]) == ["open:b"]
    assert list(world.client.subscriptions) == ["open:b"]
    # And it can be had by asking for it.
    world.joins.clear()
    assert "recoverable" in world.subscribe("log:a")


def test_positions_are_granted_as_the_namespace_allows() -> None:
    options = ChannelOptions(**OPEN, **LOGGED, allow_recovery=True)
    world = World(make_rules({"log": options}))

    result = world.connect(subs={"log:a": {"recoverable": True}, "log:b": {}})

    assert result["subs"] == {"log:a": {"recoverable": True, "positioned": True}, "log:b": {}}


# --- time -------------------------------------------------------------------------------------


@pytest.mark.parametrize("connect", [None, "waiting", "failed"])
def test_a_client_that_has_not_connected_in_time_is_closed(connect: str | None) -> None:
    world = World(at_once=False)
    if connect is not None:
        world.say({"id": 1, "connect": {"token": "t"}})
    if connect == "failed":
        world.question("connect token").answer(TokenExpired())
    assert world.client.next_deadline() == START + 10.0

    world.pass_time(9.9)
    assert world.is_open()
    world.pass_time(0.1)

    assert world.closed is STALE
    assert world.client.next_deadline() == float("inf")


def test_a_client_that_has_connected_is_not_stale() -> None:
    world = World(make_rules(ping_interval=0.0))
    world.connect()

    assert world.client.next_deadline() == float("inf")
    world.pass_time(1000.0)
    assert world.is_open()


def test_connecting_moves_the_deadline() -> None:
    world = World()
    assert not world.client.deadline_moved
    world.connect_as("alice", lifetime=60.0)

    assert world.client.deadline_moved


def test_a_refused_user_leaves_nothing_behind() -> None:
    refusal = Disconnect(4000, "go away", "")
    world = World(registration=refusal)
    world.tokens["t"] = connect_grant("alice", subs={"open:a": ServerSubscription()})
    world.ask("connect", token="t")

    assert world.closed is refusal
    assert world.client.subscriptions == {}
    assert [one.kind for one in world.asked] == ["connect token"]
