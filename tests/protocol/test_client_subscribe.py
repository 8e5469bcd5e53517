"""Subscribing and unsubscribing, by the client and by the server."""

from typing import Any

import pytest

from gateway.protocol import codes
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
    INSUFFICIENT_STATE,
    INTERNAL,
    INVALID_TOKEN,
    UNSUBSCRIBED_BY_SERVER,
    UNSUBSCRIBED_INSUFFICIENT,
)
from gateway.protocol.subscription import Joined, SubscriptionState
from tests.support.recording import (
    LOGGED,
    OPEN,
    World,
    make_rules,
    subscribe_grant,
)


def connected(**options: Any) -> World:
    world = World(**options)
    world.at_once, at_once = True, world.at_once
    world.connect_as("alice")
    world.at_once = at_once
    world.take_sent()
    world.steps.clear()
    world.asked.clear()
    return world


# --- what may be subscribed to ----------------------------------------------------------------


def test_a_subscription_is_prepared_joined_and_answered_in_this_order() -> None:
    world = connected()

    assert world.subscribe("open:a") == {}
    assert world.steps == ["prepare open:a", "join open:a", "reply 3"]
    assert world.client.subscriptions["open:a"].state is SubscriptionState.LIVE


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        ({"channel": "nowhere:a"}, 102),
        ({"channel": "open:ü"}, 107),
        ({"channel": "x" * 256}, 107),
        ({"channel": "nowhere:" + "x" * 256}, 107),
        ({"channel": "closed:a"}, 103),
        ({"channel": "$open:a"}, 103),
        ({"channel": "$nowhere:a"}, 102),
        ({"channel": "talk#bob"}, 103),
        ({"channel": "open:a", "type": 1}, 108),
        ({"channel": "open:a", "tf": {"op": "eq"}}, 108),
        # In the order of A.4.4: the first thing that is wrong counts.
        ({"channel": "nowhere:a", "type": 1}, 102),
        ({"channel": "$open:a", "type": 1}, 108),
    ],
)
def test_a_channel_that_may_not_be_entered_is_an_error(request_: dict[str, Any], code: int) -> None:
    world = connected()

    reply = world.ask("subscribe", **request_)

    assert reply["error"]["code"] == code
    assert world.client.subscriptions == {}
    assert world.asked == []
    assert world.is_open()


def test_a_channel_for_named_users_is_open_to_them() -> None:
    world = connected()

    assert world.subscribe("talk#bob,alice") == {}


def test_a_subscribe_without_a_channel_ends_the_connection() -> None:
    world = connected()
    world.ask("subscribe", channel="")

    assert world.closed is BAD_PROTOCOL


def test_a_channel_is_subscribed_to_once() -> None:
    world = connected()
    world.subscribe("open:a")

    assert world.ask("subscribe", channel="open:a")["error"]["code"] == 105
    assert list(world.inside) == ["open:a"]


def test_a_channel_that_is_opening_is_subscribed_to_already() -> None:
    world = connected(at_once=False)
    world.say({"id": 5, "subscribe": {"channel": "open:a"}})

    assert world.ask("subscribe", channel="open:a")["error"]["code"] == 105
    world.question("prepare").answer(None)
    assert world.take_sent()[-1] == {"id": 5, "subscribe": {}}


def test_a_client_has_so_many_channels_and_no_more() -> None:
    world = connected(rules=make_rules(channels_max=2))
    world.subscribe("open:a")
    world.subscribe("open:b")
    assert world.ask("subscribe", channel="open:c")["error"]["code"] == 106
    # One that it has is still that, and not one too many.
    assert world.ask("subscribe", channel="open:a")["error"]["code"] == 105

    world.ask("unsubscribe", channel="open:a")
    assert world.subscribe("open:c") == {}


def test_channels_that_are_opening_count_as_well() -> None:
    world = connected(rules=make_rules(channels_max=1), at_once=False)
    world.say({"id": 5, "subscribe": {"channel": "open:a"}})

    assert world.ask("subscribe", channel="open:b")["error"]["code"] == 106


def test_a_refused_channel_takes_no_place() -> None:
    world = connected(rules=make_rules(channels_max=1))
    world.ask("subscribe", channel="closed:a")

    assert world.subscribe("open:a") == {}


# --- tokens -----------------------------------------------------------------------------------


def test_a_token_opens_a_private_channel() -> None:
    world = connected(tokens={"s": subscribe_grant("$closed:a", "alice", info=b'{"role":"host"}')})

    assert world.subscribe("$closed:a", token="s") == {}
    assert world.inside["$closed:a"].chan_info == b'{"role":"host"}'


def test_a_token_opens_any_channel() -> None:
    world = connected(
        tokens={
            "s": subscribe_grant("closed:a", "alice", client="client-1"),
            "u": subscribe_grant("talk#bob", "alice"),
        }
    )

    assert world.subscribe("closed:a", token="s") == {}
    assert world.subscribe("talk#bob", token="u") == {}


@pytest.mark.parametrize(
    ("lifetime", "ttl"), [(None, None), (60.0, 60), (60.9, 60), (0.2, 1), (1e9, 10**9)]
)
def test_the_reply_says_for_how_long_the_token_holds(
    lifetime: float | None, ttl: int | None
) -> None:
    world = connected(tokens={"s": subscribe_grant("open:a", "alice", lifetime)})
    world.client.deadline_moved = False

    result = world.subscribe("open:a", token="s")

    assert (result.get("expires"), result.get("ttl")) == ((True, ttl) if ttl else (None, None))
    assert world.client.deadline_moved


@pytest.mark.parametrize(
    ("error", "code"),
    [(TokenInvalid("forged"), 103), (TokenExpired(), 109), (KeyMissing("k"), 100)],
)
def test_a_token_that_cannot_be_honoured_is_an_error(error: TokenError, code: int) -> None:
    world = connected(tokens={"s": error})

    assert world.ask("subscribe", channel="open:a", token="s")["error"]["code"] == code
    assert world.client.subscriptions == {}
    assert world.is_open()


@pytest.mark.parametrize("lifetime", [0.0, -5.0])
def test_a_subscription_whose_time_is_over_already_is_error_109(lifetime: float) -> None:
    world = connected(tokens={"s": subscribe_grant("open:a", "alice", lifetime)})

    assert world.ask("subscribe", channel="open:a", token="s")["error"]["code"] == 109
    assert world.client.subscriptions == {}


@pytest.mark.parametrize(
    "grant",
    [
        subscribe_grant("open:b", "alice"),
        subscribe_grant("open:a", "bob"),
        subscribe_grant("open:a", ""),
        subscribe_grant("open:a", "alice", client="client-2"),
    ],
    ids=["another channel", "another user", "nobody", "another client"],
)
def test_somebody_elses_token_ends_the_connection(grant: Any) -> None:
    world = connected(tokens={"s": grant})
    world.ask("subscribe", channel="open:a", token="s")

    assert world.closed is INVALID_TOKEN
    assert world.sent == []


def test_a_token_changes_the_options_before_the_client_asks_for_more() -> None:
    options = ChannelOptions(**OPEN, **LOGGED, allow_recovery=True, join_leave=True)
    world = connected(rules=make_rules({"log": options}))
    override = OptionsOverride(presence=True, join_leave=False)
    world.tokens["s"] = subscribe_grant("log:a", "alice", override=override)

    result = world.subscribe("log:a", token="s", recoverable=True, join_leave=True)

    assert result == {"recoverable": True, "positioned": True}
    entered = world.inside["log:a"]
    assert (entered.presence, entered.join_leave, entered.push_join_leave) == (True, False, False)


def test_a_token_that_is_verified_too_late_does_nothing() -> None:
    world = connected(at_once=False)
    world.say({"id": 5, "subscribe": {"channel": "open:a", "token": "s"}})
    world.say({"id": 6, "unsubscribe": {"channel": "open:a"}})
    world.take_sent()
    world.question("subscribe token").answer(subscribe_grant("open:a", "alice"))

    assert world.questions == []
    assert world.take_sent() == []
    assert world.client.subscriptions == {}


# --- positions --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("joined", "result"),
    [
        (
            Joined(StreamPosition(9, "e")),
            {"recoverable": True, "positioned": True, "epoch": "e", "offset": 9},
        ),
        # Recovered: the offset is the client's own, and it advances with the publications (A.5.3).
        (
            Joined(StreamPosition(9, "e"), recovered=True, publications=(b'{"offset":6}',)),
            {
                "recoverable": True,
                "positioned": True,
                "epoch": "e",
                "offset": 5,
                "was_recovering": True,
                "recovered": True,
                "publications": [{"offset": 6}],
            },
        ),
        # Not recovered: the top, and what is missing (A.12).
        (
            Joined(StreamPosition(9, "e"), recovered=False, gap=(6, 9)),
            {
                "recoverable": True,
                "positioned": True,
                "epoch": "e",
                "offset": 9,
                "was_recovering": True,
                "gap": {"from": 6, "to": 9},
            },
        ),
    ],
)
def test_the_reply_says_where_the_client_is(joined: Joined, result: dict[str, Any]) -> None:
    world = connected(joins={"log:a": joined})

    assert world.subscribe("log:a", recover=True, epoch="e", offset=5) == result
    assert world.entered_from["log:a"] == StreamPosition(5, "e")


def test_who_has_no_position_is_told_none() -> None:
    options = ChannelOptions(**OPEN, **LOGGED)
    world = connected(rules=make_rules({"log": options}))
    world.joins["log:a"] = Joined(StreamPosition(9, "e"))

    assert world.subscribe("log:a", recover=True, offset=5, recoverable=True) == {}
    assert world.entered_from["log:a"] is None


def test_a_position_asked_for_is_answered_with_one() -> None:
    options = ChannelOptions(**OPEN, **LOGGED, allow_positioning=True)
    world = connected(rules=make_rules({"log": options}))
    world.joins["log:a"] = Joined(StreamPosition(9, "e"))

    assert world.subscribe("log:a", positioned=True) == {
        "epoch": "e",
        "offset": 9,
        "positioned": True,
    }


def test_who_wants_no_hole_gets_error_112() -> None:
    world = connected(joins={"log:a": None})

    reply = world.ask("subscribe", channel="log:a", recover=True, offset=5, flag=2)

    assert reply["error"]["code"] == 112
    assert world.client.subscriptions == {}
    assert world.inside == {}


def test_a_log_that_cannot_be_read_is_an_error() -> None:
    world = connected(outcomes={"prepare": INTERNAL})

    assert world.ask("subscribe", channel="log:a")["error"]["code"] == 100
    assert world.client.subscriptions == {}


# --- unsubscribing ----------------------------------------------------------------------------


def test_unsubscribing_leaves_the_channel() -> None:
    world = connected()
    world.subscribe("open:a")
    world.steps.clear()

    assert world.ask("unsubscribe", channel="open:a") == {"unsubscribe": {}}
    assert world.steps == ["leave open:a", "reply 4"]
    assert world.client.subscriptions == {}


def test_unsubscribing_is_no_error_without_a_subscription() -> None:
    world = connected()

    assert world.ask("unsubscribe", channel="nowhere:x") == {"unsubscribe": {}}
    assert world.steps == ["reply 3"]


def test_an_unsubscribe_without_a_channel_ends_the_connection() -> None:
    world = connected()
    world.ask("unsubscribe")

    assert world.closed is BAD_PROTOCOL


def test_unsubscribing_from_a_channel_that_is_opening_answers_both_commands() -> None:
    world = connected(at_once=False)
    world.say({"id": 5, "subscribe": {"channel": "open:a"}})
    replies = world.say({"id": 6, "unsubscribe": {"channel": "open:a"}})

    assert [reply["id"] for reply in replies] == [5, 6]
    # The SDK may subscribe again at once; a final error would end that for it.
    assert replies[0]["error"]["temporary"] is True
    assert replies[1] == {"id": 6, "unsubscribe": {}}


def test_a_channel_can_be_entered_anew_while_its_first_opening_is_under_way() -> None:
    world = connected(at_once=False)
    world.say({"id": 5, "subscribe": {"channel": "open:a"}})
    first = world.question("prepare")
    world.say({"id": 6, "unsubscribe": {"channel": "open:a"}})
    world.say({"id": 7, "subscribe": {"channel": "open:a"}})
    world.take_sent()

    first.answer(None)
    assert world.inside == {}
    world.question("prepare").answer(None)

    assert world.take_sent() == [{"id": 7, "subscribe": {}}]
    assert list(world.inside) == ["open:a"]


def test_a_server_side_subscription_can_be_ended_by_its_client() -> None:
    world = connected(at_once=False)
    world.client.subscribe_by_server("open:a", ServerSubscription())
    replies = world.say({"id": 6, "unsubscribe": {"channel": "open:a"}})
    world.question("prepare").answer(None)

    assert replies == [{"id": 6, "unsubscribe": {}}]
    assert world.inside == {}


# --- by the server ----------------------------------------------------------------------------


def test_the_server_subscribes_a_client() -> None:
    world = connected()
    grant = ServerSubscription(info=b'"i"', data=b"[1]", override=OptionsOverride(presence=True))

    assert world.client.subscribe_by_server("open:a", grant) is None

    assert world.take_sent() == [{"push": {"channel": "open:a", "subscribe": {"data": [1]}}}]
    assert world.steps == ["prepare open:a", "join open:a", "push"]
    entered = world.inside["open:a"]
    assert (entered.server_side, entered.chan_info, entered.presence) == (True, b'"i"', True)


def test_the_server_subscribes_to_channels_that_the_client_could_not_enter() -> None:
    world = connected()

    assert world.client.subscribe_by_server("$closed:a", ServerSubscription()) is None
    assert list(world.inside) == ["$closed:a"]


def test_the_server_can_recover_a_subscription_that_is_recoverable() -> None:
    world = connected()
    since = StreamPosition(5, "e")
    world.client.subscribe_by_server("log:a", ServerSubscription(), since)
    world.client.subscribe_by_server("open:a", ServerSubscription(), since)

    assert world.entered_from == {"log:a": since, "open:a": None}


def test_a_subscription_that_is_there_is_left_as_it_is() -> None:
    world = connected()
    world.subscribe("open:a")
    world.take_sent()

    assert world.client.subscribe_by_server("open:a", ServerSubscription(data=b"1")) is None
    assert world.take_sent() == []
    assert not world.inside["open:a"].server_side


def test_the_server_is_told_when_it_cannot_subscribe_a_client() -> None:
    world = connected(rules=make_rules(channels_max=1))
    subscribe = world.client.subscribe_by_server

    assert subscribe("nowhere:a", ServerSubscription()) is codes.BAD_REQUEST
    assert subscribe("", ServerSubscription()) is codes.BAD_REQUEST
    assert subscribe("open:a", ServerSubscription()) is None
    assert subscribe("open:b", ServerSubscription()) is codes.LIMIT_EXCEEDED


@pytest.mark.parametrize("phase", [Phase.NEW, Phase.CONNECTING, Phase.FAILED, Phase.CLOSED])
def test_a_client_that_is_not_connected_is_passed_over(phase: Phase) -> None:
    world = World(at_once=False)
    if phase is not Phase.NEW:
        world.say({"id": 1, "connect": {"token": "t"}})
    if phase is Phase.FAILED:
        world.question("connect token").answer(TokenExpired())
    if phase is Phase.CLOSED:
        world.client.closed()
    assert world.client.phase is phase
    world.take_sent()

    assert world.client.subscribe_by_server("open:a", ServerSubscription()) is None
    world.client.refresh_by_server(60.0, world.now)

    assert world.take_sent() == []
    assert world.client.subscriptions == {}


def test_a_server_side_subscription_that_cannot_open_is_dropped_in_silence() -> None:
    world = connected(outcomes={"prepare": INTERNAL})
    world.client.subscribe_by_server("open:a", ServerSubscription())

    assert world.take_sent() == []
    assert world.client.subscriptions == {}


def test_the_server_ends_a_subscription() -> None:
    world = connected()
    world.subscribe("open:a")
    world.take_sent()

    assert world.client.unsubscribe_by_server("open:a", UNSUBSCRIBED_BY_SERVER)
    assert not world.client.unsubscribe_by_server("open:a", UNSUBSCRIBED_BY_SERVER)

    assert world.take_sent() == [
        {
            "push": {
                "channel": "open:a",
                "unsubscribe": {"code": 2000, "reason": "server unsubscribe"},
            }
        }
    ]
    assert world.inside == {}


def test_a_subscription_that_the_server_ends_while_it_opens_is_refused() -> None:
    """No reply has gone out, so a push about it would mean nothing to the client."""
    world = connected(at_once=False)
    world.say({"id": 5, "subscribe": {"channel": "open:a"}})

    assert world.client.unsubscribe_by_server("open:a", UNSUBSCRIBED_BY_SERVER)

    (reply,) = world.take_sent()
    assert (reply["id"], reply["error"]["code"]) == (5, 103)
    world.question("prepare").answer(None)
    assert world.take_sent() == []


def test_a_server_side_subscription_that_the_server_ends_while_it_opens_is_gone() -> None:
    world = connected(at_once=False)
    world.client.subscribe_by_server("open:a", ServerSubscription())
    world.client.unsubscribe_by_server("open:a", UNSUBSCRIBED_BY_SERVER)
    world.question("prepare").answer(None)

    assert world.inside == {}
    assert world.client.subscriptions == {}


# --- positions that are lost ------------------------------------------------------------------


def test_a_lost_position_ends_a_subscription_so_that_the_sdk_recovers() -> None:
    world = connected()
    world.subscribe("log:a")
    world.take_sent()

    assert world.client.lose_position("log:a", UNSUBSCRIBED_INSUFFICIENT)

    (push,) = world.take_sent()
    assert push["push"]["unsubscribe"] == {"code": 2500, "reason": "insufficient state"}
    assert world.inside == {}


def test_a_lost_position_of_a_server_side_subscription_ends_the_connection() -> None:
    world = connected()
    world.client.subscribe_by_server("log:a", ServerSubscription())

    assert world.client.lose_position("log:a", UNSUBSCRIBED_INSUFFICIENT)

    assert world.closed is INSUFFICIENT_STATE
    assert "log:a" in world.detail


def test_who_follows_no_positions_goes_on() -> None:
    world = connected(rules=make_rules({"log": ChannelOptions(**OPEN, **LOGGED)}))
    world.subscribe("log:a")
    world.take_sent()

    assert not world.client.lose_position("log:a", UNSUBSCRIBED_INSUFFICIENT)
    assert world.take_sent() == []
    assert list(world.inside) == ["log:a"]


def test_a_position_can_be_lost_where_nobody_is_any_more() -> None:
    world = connected()

    assert world.client.lose_position("log:a", UNSUBSCRIBED_INSUFFICIENT)
    assert world.take_sent() == []


# --- the end ----------------------------------------------------------------------------------


def test_a_client_that_ends_leaves_every_channel_once() -> None:
    world = connected()
    for name in ("open:a", "open:b", "log:c"):
        world.subscribe(name)
    world.at_once = False
    world.say({"id": 9, "subscribe": {"channel": "open:d"}})
    world.steps.clear()
    world.client.closed()
    world.client.closed()

    assert world.steps == ["leave open:a", "leave open:b", "leave log:c"]
    world.question("prepare").answer(None)
    assert world.inside == {}


def test_a_client_leaves_before_its_connection_is_closed() -> None:
    world = connected()
    world.subscribe("open:a")
    world.steps.clear()
    world.say({"send": {}})

    assert world.steps == ["leave open:a", "close"]
