"""Publishing, presence, history and procedures: who may, with what, and how it is answered."""

import json
from typing import Any

import pytest

from gateway.protocol.actions import Published
from gateway.protocol.channels import ChannelOptions
from gateway.protocol.client_base import IN_FLIGHT_MAX
from gateway.protocol.codec import Method, StreamPosition
from gateway.protocol.codes import BAD_PROTOCOL, INTERNAL, METHOD_NOT_FOUND, UNAVAILABLE
from tests.support.recording import (
    LOGGED,
    Kind,
    World,
    connect_grant,
    make_rules,
    subscribe_grant,
)


def connected(**options: Any) -> World:
    world = World(**options)
    world.at_once, at_once = True, world.at_once
    world.connect_as("alice", info=b'{"n":1}')
    world.at_once = at_once
    world.take_sent()
    world.asked.clear()
    return world


# --- in a channel -----------------------------------------------------------------------------

CHANNEL_METHODS: list[Method] = ["publish", "presence", "presence_stats", "history"]
IN_A_CHANNEL = pytest.mark.parametrize("method", CHANNEL_METHODS)


@IN_A_CHANNEL
@pytest.mark.parametrize(
    ("channel", "code"),
    [
        ("nowhere:a", 102),
        ("log:ü", 107),
        ("x" * 256, 107),
        ("closed:a", 103),
        # What a name says of tokens and users is about entering only.
        ("$log:a", None),
        ("log:a#bob", None),
        ("log:a", None),
    ],
)
def test_a_channel_is_open_to_a_command_or_not(
    method: Method, channel: str, code: int | None
) -> None:
    world = connected()

    reply = world.ask(method, channel=channel, data=1)

    if code is None:
        assert set(reply) == {method}
        assert [question.subject for question in world.asked] == [channel]
    else:
        assert reply["error"]["code"] == code
        assert world.asked == []
    assert world.is_open()


@IN_A_CHANNEL
def test_a_command_without_a_channel_ends_the_connection(method: Method) -> None:
    world = connected()
    world.ask(method, data=1)

    assert world.closed is BAD_PROTOCOL
    assert world.sent == []


@IN_A_CHANNEL
def test_subscribers_may_do_what_is_for_subscribers(method: Method) -> None:
    operation = method.removesuffix("_stats")
    options = ChannelOptions(
        **LOGGED,
        presence=True,
        allow_subscribe_for_client=True,
        **{f"allow_{operation}_for_subscriber": True},  # type: ignore[arg-type]
    )
    world = connected(rules=make_rules({"room": options}))
    assert world.ask(method, channel="room:a", data=1)["error"]["code"] == 103

    world.subscribe("room:a")
    assert set(world.ask(method, channel="room:a", data=1)) == {method}
    assert world.ask(method, channel="room:b", data=1)["error"]["code"] == 103

    world.ask("unsubscribe", channel="room:a")
    assert world.ask(method, channel="room:a", data=1)["error"]["code"] == 103


@pytest.mark.parametrize("method", ["presence", "presence_stats", "history"])
def test_what_a_channel_does_not_keep_is_not_available(method: Method) -> None:
    world = connected()

    assert world.ask(method, channel="open:a")["error"]["code"] == 108
    # Who isn't allowed to ask doesn't learn that.
    assert world.ask(method, channel="closed:a")["error"]["code"] == 103


# --- publish ----------------------------------------------------------------------------------


def test_a_publication_carries_who_published_it() -> None:
    world = connected()
    world.ask("publish", channel="open:a", data={"text": "hi"})

    (question,) = world.asked
    publishing = question.details
    assert (publishing.channel, json.loads(publishing.data)) == ("open:a", {"text": "hi"})
    assert publishing.options is world.rules.channels.namespaces.options("open:a")
    assert json.loads(publishing.info) == {
        "user": "alice",
        "client": "client-1",
        "conn_info": {"n": 1},
    }
    assert (publishing.tags, publishing.idempotency_key, publishing.ephemeral) == (None, "", False)


def test_a_publication_carries_what_the_channels_token_says_of_its_publisher() -> None:
    world = connected(tokens={"s": subscribe_grant("open:a", "alice", info=b'"host"')})
    world.subscribe("open:a", token="s")
    for channel in ("open:a", "open:b"):
        world.ask("publish", channel=channel, data=1)

    infos = [json.loads(one.details.info) for one in world.asked if one.kind == "publish"]
    plain = {"user": "alice", "client": "client-1", "conn_info": {"n": 1}}
    assert infos == [{**plain, "chan_info": "host"}, plain]


@pytest.mark.parametrize(
    ("outcome", "reply"),
    [
        (Published(), {"publish": {}}),
        (Published(7, "e"), {"publish": {"offset": 7, "epoch": "e"}}),
        (
            Published(7, "e", duplicate=True),
            {"publish": {"offset": 7, "epoch": "e", "duplicate": True}},
        ),
        (
            INTERNAL,
            {"error": {"code": 100, "message": "internal server error", "temporary": True}},
        ),
    ],
)
def test_a_publication_is_answered_with_its_place(outcome: Any, reply: Any) -> None:
    world = connected(outcomes={"publish": outcome})

    assert world.ask("publish", channel="open:a", data=1) == reply


def test_a_key_and_its_being_ephemeral_go_along() -> None:
    world = connected()
    world.ask("publish", channel="open:a", data=1, idempotency_key="k" * 64, ephemeral=True)

    assert world.asked[0].details.idempotency_key == "k" * 64
    assert world.asked[0].details.ephemeral is True


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        ({}, 107),
        ({"data": 1, "idempotency_key": "k" * 65}, 107),
        ({"data": 1, "idempotency_key": "a\0b"}, 107),
        ({"data": json.loads("[" * 129 + "]" * 129)}, 107),
        ({"data": 1, "type": 1}, 108),
        ({"type": 1}, 108),
    ],
)
def test_what_cannot_be_published_is_an_error(request_: dict[str, Any], code: int) -> None:
    world = connected()

    assert world.ask("publish", channel="open:a", **request_)["error"]["code"] == code
    # Who may not publish there doesn't learn what is wrong with it.
    assert world.ask("publish", channel="closed:a", **request_)["error"]["code"] == 103
    assert world.asked == []


def test_an_integer_that_pythons_parser_refuses_is_an_error() -> None:
    world = connected()
    digits = "1" * 4301
    replies = world.say(f'{{"id":7,"publish":{{"channel":"open:a","data":{digits}}}}}')

    assert replies[0]["error"]["code"] == 107


@pytest.mark.parametrize("data", [None, 0, "", [], {}, False])
def test_any_json_can_be_published(data: object) -> None:
    world = connected()
    world.ask("publish", channel="open:a", data=data)

    assert json.loads(world.asked[0].details.data) == data


# --- presence and history ---------------------------------------------------------------------


def test_presence_and_its_numbers_are_two_questions() -> None:
    world = connected(outcomes={"presence": b'{"x":1}'})

    assert world.ask("presence", channel="log:a") == {"presence": {"x": 1}}
    assert world.ask("presence_stats", channel="log:a") == {"presence_stats": {"x": 1}}
    assert [question.details for question in world.asked] == [False, True]


@pytest.mark.parametrize(
    ("request_", "limit", "since", "reverse"),
    [
        ({}, 0, None, False),
        ({"limit": 10, "reverse": True}, 10, None, True),
        ({"limit": -1}, 300, None, False),
        ({"limit": 301}, 300, None, False),
        ({"limit": 300, "since": {"offset": 5, "epoch": "e"}}, 300, StreamPosition(5, "e"), False),
        ({"limit": 1, "since": {}}, 1, StreamPosition(0, ""), False),
    ],
)
def test_history_is_read_in_pages(
    request_: dict[str, Any], limit: int, since: StreamPosition | None, reverse: bool
) -> None:
    world = connected(outcomes={"history": b'{"offset":9}'})

    assert world.ask("history", channel="log:a", **request_) == {"history": {"offset": 9}}
    options = world.rules.channels.namespaces.options("log:a")
    assert world.asked[0].details == (options, limit, since, reverse)


@pytest.mark.parametrize(
    ("kind", "method"), [("presence", "presence"), ("history", "history"), ("rpc", "rpc")]
)
def test_what_fails_is_answered_with_an_error(kind: Kind, method: Method) -> None:
    world = connected(outcomes={kind: METHOD_NOT_FOUND})

    assert world.ask(method, channel="log:a", method="x")["error"]["code"] == 104
    assert world.errors == [(method, METHOD_NOT_FOUND)]


# --- procedures, and the rest -----------------------------------------------------------------


def test_a_procedure_is_called_with_its_data() -> None:
    world = connected(outcomes={"rpc": b'{"data":[2]}'})

    assert world.ask("rpc", method="invoice.list", data={"page": 1}) == {"rpc": {"data": [2]}}
    assert world.ask("rpc", method="invoice.list") == {"rpc": {"data": [2]}}

    assert [question.subject for question in world.asked] == ["invoice.list"] * 2
    assert [json.loads(question.details or b"0") for question in world.asked] == [{"page": 1}, 0]


def test_a_ping_is_answered() -> None:
    assert connected().ask("ping") == {"ping": {}}


def test_a_message_that_nobody_takes_ends_the_connection() -> None:
    world = connected()
    world.say({"send": {"data": 1}})

    assert world.closed is UNAVAILABLE


# --- many at once -----------------------------------------------------------------------------


def test_commands_may_be_answered_in_any_order() -> None:
    world = connected(at_once=False)
    world.say(
        {"id": 11, "publish": {"channel": "open:a", "data": 1}},
        {"id": 12, "history": {"channel": "log:a"}},
        {"id": 13, "rpc": {"method": "x"}},
        {"id": 14, "ping": {}},
    )
    world.question("rpc").answer(b"{}")
    world.question("history").answer(INTERNAL)
    world.question("publish").answer(Published(3, "e"))

    assert [reply["id"] for reply in world.take_sent()] == [14, 13, 12, 11]


def test_an_answer_after_the_end_is_not_sent() -> None:
    world = connected(at_once=False)
    world.say(
        {"id": 11, "rpc": {"method": "x"}}, {"id": 12, "publish": {"channel": "open:a", "data": 1}}
    )
    world.client.closed()
    world.question("rpc").answer(b"{}")
    world.question("publish").answer(INTERNAL)

    assert world.take_sent() == []
    assert world.errors == []


def burst_world() -> World:
    return connected(at_once=False, rules=make_rules(commands_burst=100_000.0))


@pytest.mark.parametrize(
    ("method", "kind", "weight"),
    [
        ("publish", "publish", 1),
        ("rpc", "rpc", 1),
        ("presence", "presence", 1),
        ("presence_stats", "presence", 1),
        ("refresh", "connect token", 1),
        ("history", "history", 64),
    ],
)
def test_only_so_many_commands_may_wait_for_an_answer(
    method: Method, kind: Kind, weight: int
) -> None:
    world = burst_world()
    request = {"channel": "log:a", "data": 1, "method": "x", "token": "t"}
    count = IN_FLIGHT_MAX // weight
    for _ in range(count):
        assert world.ask(method, **request) is None

    refused = world.ask(method, **request)
    assert refused["error"]["code"] == 111
    assert refused["error"]["temporary"] is True
    assert len(world.questions) == count

    answer = connect_grant("alice") if method == "refresh" else INTERNAL
    world.question(kind).answer(answer)
    assert world.ask(method, **request) is None


def test_the_bound_is_on_all_of_them_together() -> None:
    world = burst_world()
    world.at_once = True
    world.tokens["s"] = subscribe_grant("open:a", "alice", 60.0)
    world.subscribe("open:a", token="s")
    world.at_once = False
    for _ in range(IN_FLIGHT_MAX - 64):
        world.ask("rpc", method="x")
    assert world.ask("history", channel="log:a") is None

    assert world.ask("sub_refresh", channel="open:a", token="s")["error"]["code"] == 111
    assert world.ask("rpc", method="x")["error"]["code"] == 111
    # What needs no wait goes on.
    assert world.ask("ping") == {"ping": {}}

    world.question("history").answer(INTERNAL)
    assert world.ask("sub_refresh", channel="open:a", token="s") is None
    for _ in range(63):
        assert world.ask("rpc", method="x") is None
    assert world.ask("rpc", method="x")["error"]["code"] == 111
