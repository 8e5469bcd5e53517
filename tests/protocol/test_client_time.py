"""Pings, expiring tokens, rates: what time does to a client. Times are numbers."""

from typing import Any

import pytest

from gateway.protocol.claims import KeyMissing, TokenExpired, TokenInvalid
from gateway.protocol.client import REFUSALS_MAX, Client
from gateway.protocol.codes import (
    BAD_PROTOCOL,
    CONNECTION_EXPIRED,
    INVALID_TOKEN,
    NO_PONG,
    SUBSCRIPTION_EXPIRED,
    TOO_MANY,
)
from tests.support.recording import START, World, connect_grant, make_rules, subscribe_grant

NEVER = float("inf")


def connected(lifetime: float | None = None, **options: Any) -> World:
    world = World(**options)
    world.connect_as("alice", lifetime)
    world.take_sent()
    return world


def until_ping(world: World) -> float:
    """Let time go by until the next ping is sent; returns how long that took."""
    before, count = world.now, world.pings
    while world.pings == count:
        world.pass_time(world.client.next_deadline() - world.now)
    return world.now - before


# --- pings ------------------------------------------------------------------------------------


def test_the_first_ping_comes_at_some_point_in_the_second_half_of_an_interval() -> None:
    moments = set()
    for number in range(50):
        world = World(make_rules(pong_timeout=8.0))
        world.client = Client(f"client-{number}", world.rules, world, world.now)
        world.connect()
        moments.add(until_ping(world))

    assert all(12.5 <= moment < 25.0 for moment in moments)
    # Those who came together don't all get theirs together.
    assert max(moments) - min(moments) > 5.0


def test_pings_come_at_the_interval_as_long_as_they_are_answered() -> None:
    world = connected()
    until_ping(world)
    for _ in range(5):
        world.say({})
        assert until_ping(world) == 25.0

    assert world.is_open()


def test_a_ping_that_is_not_answered_in_time_ends_the_connection() -> None:
    world = connected()
    until_ping(world)
    assert world.client.next_deadline() == world.now + 8.0
    world.pass_time(7.9)
    assert world.is_open()
    world.pass_time(0.1)

    assert world.closed is NO_PONG


def test_only_a_pong_answers_a_ping() -> None:
    world = connected()
    until_ping(world)
    world.ask("ping")
    world.pass_time(8.0)

    assert world.closed is NO_PONG


def test_a_pong_without_a_ping_ends_the_connection() -> None:
    world = connected()
    until_ping(world)
    world.say({})
    assert world.is_open()
    world.say({})

    assert world.closed is BAD_PROTOCOL


def test_native_pings_are_answered_by_native_pongs() -> None:
    world = connected(native_ping=True)
    until_ping(world)
    world.client.native_pong()
    world.pass_time(8.0)
    assert world.is_open()

    until_ping(world)
    world.pass_time(8.0)
    assert world.closed is NO_PONG


def test_a_pong_of_the_protocols_own_is_none_where_pings_are_native() -> None:
    world = connected(native_ping=True)
    until_ping(world)
    world.say({})

    assert world.closed is BAD_PROTOCOL


def test_without_an_interval_there_are_no_pings() -> None:
    world = connected(rules=make_rules(ping_interval=0.0))
    assert world.client.next_deadline() == NEVER
    world.pass_time(10_000.0)

    assert world.pings == 0
    assert world.is_open()


def test_a_pong_that_we_could_not_read_is_given_new_time() -> None:
    world = connected()
    until_ping(world)
    world.now += 30.0  # nothing was read meanwhile, and nothing ticked
    world.client.excuse_pong(world.now)
    world.pass_time(7.9)
    assert world.is_open()
    world.pass_time(0.1)

    assert world.closed is NO_PONG


def test_no_pong_is_excused_that_is_not_due() -> None:
    world = connected()
    deadline = world.client.next_deadline()
    world.client.excuse_pong(world.now)

    assert world.client.next_deadline() == deadline


def test_a_late_tick_pings_once() -> None:
    world = connected()
    world.now += 1000.0
    world.client.tick(world.now)

    assert world.pings == 1
    assert world.client.next_deadline() == world.now + 8.0


def test_a_tick_with_nothing_due_does_nothing() -> None:
    world = connected(lifetime=60.0)
    world.steps.clear()
    world.client.tick(world.now)

    assert world.steps == []


# --- a connection's lifetime ------------------------------------------------------------------

QUIET = make_rules(ping_interval=0.0)


def test_a_connection_that_is_not_refreshed_ends_after_the_grace() -> None:
    world = connected(60.0, rules=QUIET)
    assert world.client.next_deadline() == START + 60.0 + 25.0
    world.pass_time(84.9)
    assert world.is_open()
    world.pass_time(0.1)

    assert world.closed is CONNECTION_EXPIRED


@pytest.mark.parametrize(
    ("lifetime", "result", "ends"),
    [
        (100.0, {"expires": True, "ttl": 100}, 125.0),
        (None, {}, NEVER),
    ],
)
def test_a_refresh_gives_new_time(
    lifetime: float | None, result: dict[str, Any], ends: float
) -> None:
    world = connected(60.0, rules=QUIET)
    world.tokens["new"] = connect_grant("alice", lifetime)
    world.client.deadline_moved = False
    world.pass_time(70.0)

    reply = world.ask("refresh", token="new")

    assert reply == {"refresh": {"client": "client-1", "version": "1.2.3", **result}}
    assert world.client.next_deadline() == world.now + ends
    assert world.client.deadline_moved


@pytest.mark.parametrize(
    ("grant", "closed"),
    [
        (TokenInvalid("forged"), INVALID_TOKEN),
        (TokenExpired(), CONNECTION_EXPIRED),
        (connect_grant("bob"), INVALID_TOKEN),
        (connect_grant(""), INVALID_TOKEN),
    ],
    ids=["forged", "expired", "another user's", "nobody's"],
)
def test_a_refresh_with_a_bad_token_ends_the_connection(grant: Any, closed: Any) -> None:
    world = connected(60.0, tokens={"bad": grant})
    world.ask("refresh", token="bad")

    assert world.closed is closed
    assert world.sent == []


@pytest.mark.parametrize(
    ("grant", "code"),
    [
        (connect_grant("alice", 0.0), 110),
        (connect_grant("alice", -1.0), 110),
        (KeyMissing("k"), 100),
    ],
)
def test_a_refresh_that_gives_no_time_is_an_error(grant: Any, code: int) -> None:
    world = connected(60.0, rules=QUIET, tokens={"bad": grant})

    assert world.ask("refresh", token="bad")["error"]["code"] == code
    assert world.is_open()
    assert world.client.next_deadline() == START + 85.0


def test_a_refresh_without_a_token_ends_the_connection() -> None:
    world = connected(60.0)
    world.ask("refresh")

    assert world.closed is BAD_PROTOCOL


def test_a_refresh_may_bring_new_info() -> None:
    world = connected(60.0)
    before = world.client.client_info("open:a")
    world.tokens["same"] = connect_grant("alice")
    world.ask("refresh", token="same")
    assert world.client.client_info("open:a") == before

    world.tokens["new"] = connect_grant("alice", info=b'"new"')
    world.ask("refresh", token="new")

    assert world.client.client_info("open:a") == (
        b'{"user":"alice","client":"client-1","conn_info":"new"}'
    )


def test_a_refresh_that_is_verified_after_the_end_does_nothing() -> None:
    world = connected(60.0)
    world.at_once = False
    world.ask("refresh", token="t")
    world.client.closed()
    world.question("connect token").answer(connect_grant("alice"))

    assert world.sent == []


@pytest.mark.parametrize(
    ("lifetime", "refresh", "deadline"),
    [(100.0, {"expires": True, "ttl": 100}, START + 125.0), (None, {}, NEVER)],
)
def test_the_server_refreshes_a_connection_and_says_so(
    lifetime: float | None, refresh: dict[str, Any], deadline: float
) -> None:
    world = connected(60.0, rules=QUIET)
    world.client.refresh_by_server(lifetime, world.now)

    assert world.take_sent() == [{"push": {"refresh": refresh}}]
    assert world.client.next_deadline() == deadline


def test_a_refresh_by_the_server_while_connecting_is_told_with_the_reply() -> None:
    world = World(rules=QUIET, at_once=False)
    world.say({"id": 1, "connect": {"token": "t", "subs": {"log:a": {}}}})
    world.question("connect token").answer(connect_grant("alice", 60.0))
    world.client.refresh_by_server(500.0, world.now)
    assert world.sent == []
    world.question("prepare").answer(None)

    assert world.sent[0]["connect"]["ttl"] == 500


# --- a subscription's lifetime ----------------------------------------------------------------


def with_subscription(lifetime: float | None = 60.0, **options: Any) -> World:
    world = connected(None, rules=QUIET, **options)
    world.tokens["s"] = subscribe_grant("open:a", "alice", lifetime)
    world.subscribe("open:a", token="s")
    world.take_sent()
    return world


def test_a_subscription_that_is_not_refreshed_ends_the_connection_after_the_grace() -> None:
    world = with_subscription()
    world.subscribe("open:b")
    assert world.client.next_deadline() == START + 60.0 + 25.0
    world.pass_time(84.9)
    assert world.is_open()
    world.pass_time(0.1)

    assert world.closed is SUBSCRIPTION_EXPIRED


def test_a_subscription_that_is_gone_expires_no_more() -> None:
    world = with_subscription()
    world.ask("unsubscribe", channel="open:a")

    assert world.client.next_deadline() == NEVER


@pytest.mark.parametrize(
    ("lifetime", "result", "ends"),
    [(100.0, {"expires": True, "ttl": 100}, 125.0), (None, {}, NEVER)],
)
def test_a_sub_refresh_gives_new_time(
    lifetime: float | None, result: dict[str, Any], ends: float
) -> None:
    world = with_subscription()
    world.tokens["new"] = subscribe_grant("open:a", "alice", lifetime)
    world.client.deadline_moved = False
    world.pass_time(70.0)

    assert world.ask("sub_refresh", channel="open:a", token="new") == {"sub_refresh": result}
    assert world.client.next_deadline() == world.now + ends
    assert world.client.deadline_moved


@pytest.mark.parametrize(
    ("grant", "code"),
    [
        (TokenExpired(), 109),
        (KeyMissing("k"), 100),
        (subscribe_grant("open:a", "alice", 0.0), 110),
        (subscribe_grant("open:a", "alice", -1.0), 110),
    ],
)
def test_a_sub_refresh_that_gives_no_time_is_an_error(grant: Any, code: int) -> None:
    world = with_subscription(tokens={"bad": grant})

    assert world.ask("sub_refresh", channel="open:a", token="bad")["error"]["code"] == code
    assert world.client.next_deadline() == START + 85.0
    assert list(world.inside) == ["open:a"]


@pytest.mark.parametrize(
    "grant",
    [
        TokenInvalid("forged"),
        subscribe_grant("open:b", "alice"),
        subscribe_grant("open:a", "bob"),
        subscribe_grant("open:a", "alice", client="client-2"),
    ],
    ids=["forged", "another channel's", "another user's", "another client's"],
)
def test_a_sub_refresh_with_a_bad_token_ends_the_connection(grant: Any) -> None:
    world = with_subscription(tokens={"bad": grant})
    world.ask("sub_refresh", channel="open:a", token="bad")

    assert world.closed is INVALID_TOKEN


def test_a_sub_refresh_needs_a_channel_a_subscription_and_a_token() -> None:
    world = with_subscription()

    assert world.ask("sub_refresh", channel="open:a")["error"]["code"] == 107
    assert world.ask("sub_refresh", channel="open:b", token="s")["error"]["code"] == 103
    world.at_once = False
    world.say({"id": 50, "subscribe": {"channel": "open:c"}})
    assert world.ask("sub_refresh", channel="open:c", token="s")["error"]["code"] == 103
    world.ask("sub_refresh", token="s")
    assert world.closed is BAD_PROTOCOL


def test_a_sub_refresh_of_a_subscription_that_ended_meanwhile_is_refused() -> None:
    world = with_subscription()
    world.at_once = False
    world.say({"id": 50, "sub_refresh": {"channel": "open:a", "token": "s"}})
    world.say({"id": 51, "unsubscribe": {"channel": "open:a"}})
    world.take_sent()
    world.question("subscribe token").answer(subscribe_grant("open:a", "alice"))

    (reply,) = world.take_sent()
    assert (reply["id"], reply["error"]["code"]) == (50, 103)


def test_a_sub_refresh_that_is_verified_after_the_end_does_nothing() -> None:
    world = with_subscription()
    world.at_once = False
    world.say({"id": 50, "sub_refresh": {"channel": "open:a", "token": "s"}})
    world.client.closed()
    world.question("subscribe token").answer(subscribe_grant("open:a", "alice"))

    assert world.take_sent() == []


# --- rates ------------------------------------------------------------------------------------


def test_commands_over_the_rate_are_error_111_and_do_nothing() -> None:
    world = connected(rules=make_rules(commands_per_second=2.0, commands_burst=3.0))
    for _ in range(3):
        assert world.ask("rpc", method="x") == {"rpc": {}}

    refused = world.ask("rpc", method="x")

    assert refused["error"] == {"code": 111, "message": "too many requests", "temporary": True}
    assert len(world.asked) == 1 + 3
    world.pass_time(0.5)
    assert world.ask("rpc", method="x") == {"rpc": {}}
    assert "error" in world.ask("rpc", method="x")


def test_who_goes_on_at_a_refused_rate_is_closed() -> None:
    world = connected(rules=make_rules(commands_per_second=1.0, commands_burst=1.0))
    world.ask("ping")
    for _ in range(REFUSALS_MAX):
        assert world.ask("ping")["error"]["code"] == 111
    world.ask("ping")

    assert world.closed is TOO_MANY


def test_one_command_within_the_rate_forgives_the_refused_ones() -> None:
    world = connected(rules=make_rules(commands_per_second=1.0, commands_burst=1.0))
    world.ask("ping")
    for _ in range(3):
        for _ in range(REFUSALS_MAX):
            world.ask("ping")
        world.pass_time(1.0)
        assert world.ask("ping") == {"ping": {}}

    assert world.is_open()


def test_a_refused_message_without_an_id_has_no_answer() -> None:
    world = connected(rules=make_rules(commands_per_second=1.0, commands_burst=1.0))
    world.ask("ping")
    world.take_sent()
    world.say({"send": {}})

    assert world.is_open()
    assert world.take_sent() == []


def test_pongs_cost_nothing() -> None:
    world = connected(rules=make_rules(commands_per_second=0.01, commands_burst=1.0))
    for _ in range(5):
        until_ping(world)
        world.say({})

    assert world.ask("ping") == {"ping": {}}
