"""Commands in, replies and pushes out, as JSON that the public SDKs write and read."""

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.protocol import codec, codes
from gateway.protocol.codec import (
    METHODS,
    Command,
    MalformedCommand,
    StreamPosition,
    decode_commands,
    method_of,
)
from tests.support.fuzzing import REPEATABLE


def decode(*objects: object) -> list[Command]:
    return decode_commands("\n".join(json.dumps(one) for one in objects))


# --- commands ---------------------------------------------------------------------------------


def test_every_field_of_a_connect_is_read() -> None:
    (command,) = decode(
        {
            "id": 1,
            "connect": {
                "token": "t",
                "data": {"a": 1},
                "name": "js",
                "version": "5.7.1",
                "headers": {"x": "y"},
                "subs": {"news": {"recover": True, "epoch": "e", "offset": 7}},
            },
        }
    )

    assert command.id == 1
    assert command.connect is not None
    assert (command.connect.token, command.connect.name) == ("t", "js")
    assert command.connect.version == "5.7.1"
    assert json.loads(bytes(command.connect.data)) == {"a": 1}
    assert list(command.connect.subs) == ["news"]
    asked = command.connect.subs["news"]
    assert (asked.recover, asked.epoch, asked.offset) == (True, "e", 7)


def test_every_field_of_a_subscribe_is_read() -> None:
    request = {
        "channel": "chat:a",
        "token": "t",
        "recover": True,
        "epoch": "e",
        "offset": 2**53 - 1,
        "positioned": True,
        "recoverable": True,
        "join_leave": True,
        "delta": "fossil",
        "flag": 2,
        "type": 1,
    }
    (command,) = decode({"id": 1, "subscribe": {**request, "data": [1], "tf": {"op": "eq"}}})

    assert command.subscribe is not None
    assert {name: getattr(command.subscribe, name) for name in request} == request
    assert bytes(command.subscribe.data) == b"[1]"
    assert json.loads(bytes(command.subscribe.tf)) == {"op": "eq"}


def test_every_field_of_the_other_commands_is_read() -> None:
    publish, history, rpc, refresh, sub_refresh = decode(
        {
            "id": 1,
            "publish": {
                "channel": "c",
                "data": "x",
                "idempotency_key": "k",
                "ephemeral": True,
                "type": 1,
            },
        },
        {
            "id": 2,
            "history": {
                "channel": "c",
                "limit": -1,
                "since": {"offset": 5, "epoch": "e"},
                "reverse": True,
            },
        },
        {"id": 3, "rpc": {"method": "m", "data": {"x": None}}},
        {"id": 4, "refresh": {"token": "t"}},
        {"id": 5, "sub_refresh": {"channel": "c", "token": "t"}},
    )

    assert publish.publish is not None
    assert (publish.publish.channel, bytes(publish.publish.data)) == ("c", b'"x"')
    assert (publish.publish.idempotency_key, publish.publish.ephemeral) == ("k", True)
    assert publish.publish.type == 1
    assert history.history is not None
    assert (history.history.channel, history.history.limit) == ("c", -1)
    assert (history.history.since, history.history.reverse) == (StreamPosition(5, "e"), True)
    assert rpc.rpc is not None
    assert (rpc.rpc.method, json.loads(bytes(rpc.rpc.data))) == ("m", {"x": None})
    assert refresh.refresh is not None
    assert refresh.refresh.token == "t"
    assert sub_refresh.sub_refresh is not None
    assert (sub_refresh.sub_refresh.channel, sub_refresh.sub_refresh.token) == ("c", "t")


@pytest.mark.parametrize("method", METHODS)
def test_an_empty_request_is_one_with_nothing_in_it(method: codec.Method) -> None:
    (command,) = decode({"id": 1, method: {}})

    assert method_of(command) == method
    assert getattr(command, method) == type(getattr(command, method))()


@pytest.mark.parametrize("method", METHODS)
def test_a_method_that_is_null_is_none(method: codec.Method) -> None:
    (command,) = decode({"id": 1, method: None})

    assert method_of(command) is None


def test_a_command_has_exactly_one_method() -> None:
    for first in METHODS:
        for second in METHODS:
            (command,) = decode({"id": 1, first: {}, second: {}})
            assert method_of(command) == (first if first == second else None)
    assert method_of(Command()) is None
    assert method_of(Command(id=5)) is None
    everything: dict[str, object] = {method: {} for method in METHODS}
    assert method_of(decode({"id": 1, **everything})[0]) is None


def test_unknown_fields_and_methods_are_ignored() -> None:
    (command,) = decode({"id": 1, "teleport": {"x": 1}, "ping": {"y": 2}, "z": [None]})

    assert method_of(command) == "ping"


@pytest.mark.parametrize(
    "text",
    [
        '{"id":1,"ping":{}}\n{"id":2,"ping":{}}',
        '{"id":1,"ping":{}}\n\n{"id":2,"ping":{}}\n',
        '\n{"id":1,"ping":{}}\r\n \t {"id":2,"ping":{}}\n\n',
        '{ "id" : 1 , "ping" : { } }\n\r\n{"ping":{},"id":2}',
    ],
)
def test_commands_are_separated_by_newlines_and_blanks_do_not_count(text: str) -> None:
    assert [command.id for command in decode_commands(text)] == [1, 2]


@pytest.mark.parametrize("command_id", [0, 1, 2**32 - 1])
def test_an_id_is_an_unsigned_number_of_32_bits(command_id: int) -> None:
    assert decode({"id": command_id, "ping": {}})[0].id == command_id


MALFORMED = [
    "",
    " ",
    "\n",
    "\n\n \n",
    "null",
    "[]",
    "1",
    '"ping"',
    "{",
    "{}}",
    '{"id":1,"ping":{}}{"id":2,"ping":{}}',
    '{"id":1,"ping":{}}\nrubbish',
    '{"id":1,\n"ping":{}}',
    '{"id":-1,"ping":{}}',
    '{"id":4294967296,"ping":{}}',
    '{"id":1.5,"ping":{}}',
    '{"id":"1","ping":{}}',
    '{"id":true,"ping":{}}',
    '{"id":1,"ping":[]}',
    '{"id":1,"ping":1}',
    '{"id":1,"subscribe":{"channel":1}}',
    '{"id":1,"subscribe":{"channel":null}}',
    '{"id":1,"subscribe":{"channel":"c","offset":-1}}',
    '{"id":1,"subscribe":{"channel":"c","offset":9007199254740992}}',
    '{"id":1,"subscribe":{"channel":"c","recover":1}}',
    '{"id":1,"history":{"channel":"c","limit":1.5}}',
    '{"id":1,"history":{"channel":"c","since":5}}',
    '{"id":1,"connect":{"subs":[]}}',
    '{"id":1,"publish":{"channel":"c","data":}}',
    '{"id":1,"publish":{"channel":"c","data":1,}}',
    '{"id":1,"publish":{"channel":"c","data":[1 2]}}',
    '{"id":1,"publish":{"channel":"c","data":"\\ud800"}}',
    '{"id":1,"publish":{"channel":"c","data":"a\tb"}}',
    '{"id":1,"publish":{"channel":"c","data":NaN}}',
    '{"id":1,"publish":{"channel":"c","data":01}}',
    '{"id":1,"publish":{"channel":"c","data":' + "[" * 20_000 + "]" * 20_000 + "}}",
    '{"id":1,"publish":{"channel":"c","data":\ud800}}',
    "\ufeff{}",
]


@pytest.mark.parametrize("text", MALFORMED, ids=lambda text: ascii(text[:50]))
def test_what_is_no_command_is_malformed(text: str) -> None:
    with pytest.raises(MalformedCommand):
        decode_commands(text)


def test_one_malformed_command_spoils_its_message() -> None:
    with pytest.raises(MalformedCommand):
        decode_commands('{"id":1,"ping":{}}\n{"id":')


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=10,
).map(lambda value: json.loads(json.dumps(value).replace("Infinity", "1e400")))


@given(json_values, st.booleans())
@example(1e400, True)
@settings(REPEATABLE)
def test_payloads_go_through_as_they_are(value: Any, ascii_only: bool) -> None:
    data = json.dumps(value, ensure_ascii=ascii_only).replace("Infinity", "1e400")

    (command,) = decode_commands(f'{{"id":1,"publish":{{"data": {data} ,"channel":"c"}}}}')

    assert command.publish is not None
    assert bytes(command.publish.data).strip() == data.encode()


@given(
    st.sampled_from(
        [
            '{"a":[1,-2.5e3,"x\\u00e9\\n",true,null,{}],"b":""}',
            '["\\"\\\\/\\b\\f\\r\\t",0.1,-0,1E+9]',
            "[[[],[{}]],[[false]]]",
        ]
    ),
    st.lists(
        st.tuples(st.integers(0, 60), st.sampled_from('"\\{}[],:019eE+-.ut\x01 é')), max_size=3
    ),
    st.integers(0, 4),
)
@settings(REPEATABLE, max_examples=1000)
def test_nothing_that_others_could_not_parse_goes_through(
    text: str, changes: list[tuple[int, str]], cut: int
) -> None:
    """One publisher's slip must not reach subscribers as JSON that isn't any."""
    for place, character in changes:
        text = text[: place % len(text)] + character + text[place % len(text) + 1 :]
    text = text[: len(text) - cut] if cut else text
    message = f'{{"id":1,"publish":{{"channel":"c","data":{text}}}}}'
    try:
        (command,) = decode_commands(message)
    except MalformedCommand:
        return

    if command.publish is not None and bytes(command.publish.data):
        data = bytes(command.publish.data)
        assert b"\n" not in data
        json.loads(data, parse_constant=pytest.fail)


@given(st.text(max_size=80) | st.sampled_from(MALFORMED))
@settings(REPEATABLE, max_examples=500)
def test_any_text_is_commands_or_malformed(text: str) -> None:
    try:
        commands = decode_commands(text)
    except MalformedCommand:
        return

    assert commands
    for command in commands:
        method_of(command)


# --- replies and pushes -----------------------------------------------------------------------

TRICKY = 'a "quoted"\\name\n/é\x00'


def test_a_reply_names_its_command() -> None:
    assert json.loads(codec.reply(7, "unsubscribe")) == {"id": 7, "unsubscribe": {}}
    assert json.loads(codec.reply(2**32 - 1, "rpc", b'{"data":1}')) == {
        "id": 2**32 - 1,
        "rpc": {"data": 1},
    }


@pytest.mark.parametrize("error", codes.ERRORS, ids=lambda error: str(error.code))
def test_an_error_says_whether_it_is_temporary(error: codes.ErrorCode) -> None:
    expected: dict[str, object] = {"code": error.code, "message": error.message}
    if error.temporary:
        expected["temporary"] = True

    assert json.loads(codec.error_reply(3, error)) == {"id": 3, "error": expected}


def test_client_info_leaves_out_what_is_not_there() -> None:
    assert json.loads(codec.client_info("", "id", None)) == {"user": "", "client": "id"}
    assert json.loads(codec.client_info(TRICKY, "id", b'{"n":1}', b"[2]")) == {
        "user": TRICKY,
        "client": "id",
        "conn_info": {"n": 1},
        "chan_info": [2],
    }


def test_a_publication_leaves_out_what_is_not_there() -> None:
    assert json.loads(codec.publication(b"null")) == {"data": None}
    assert json.loads(
        codec.publication(b'"x"', b'{"user":"a"}', b'{"k":"v"}', offset=5, time_ms=1700)
    ) == {"data": "x", "info": {"user": "a"}, "tags": {"k": "v"}, "offset": 5, "time": 1700}


def test_a_connect_result_leaves_out_what_is_not_there() -> None:
    bare = codec.connect_result(client="id", version="1", ping=0, pong=False)
    full = codec.connect_result(
        client="id",
        version=TRICKY,
        ping=25,
        pong=True,
        ttl=60,
        subs={"a": b"{}", TRICKY: b'{"recoverable":true}'},
        data=b'{"hello":1}',
    )

    assert json.loads(bare) == {"client": "id", "version": "1"}
    assert json.loads(full) == {
        "client": "id",
        "version": TRICKY,
        "ping": 25,
        "pong": True,
        "expires": True,
        "ttl": 60,
        "subs": {"a": {}, TRICKY: {"recoverable": True}},
        "data": {"hello": 1},
    }


def test_a_refresh_result_says_when_the_token_ends() -> None:
    assert json.loads(codec.refresh_result("id", "1", None)) == {"client": "id", "version": "1"}
    assert json.loads(codec.refresh_result("id", "1", 60)) == {
        "client": "id",
        "version": "1",
        "expires": True,
        "ttl": 60,
    }
    assert json.loads(codec.sub_refresh_result(None)) == {}
    assert json.loads(codec.sub_refresh_result(60)) == {"expires": True, "ttl": 60}


@pytest.mark.parametrize(
    ("offset", "duplicate", "expected"),
    [
        (0, False, {}),
        (0, True, {"duplicate": True}),
        (5, False, {"offset": 5, "epoch": "e"}),
        (5, True, {"offset": 5, "epoch": "e", "duplicate": True}),
    ],
)
def test_a_publish_result_has_the_position(
    offset: int, duplicate: bool, expected: dict[str, object]
) -> None:
    assert json.loads(codec.publish_result(offset, "e", duplicate)) == expected


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, {}),
        ({"position": StreamPosition(0, "e")}, {"epoch": "e"}),
        (
            {"position": StreamPosition(5, "e"), "positioned": True, "recoverable": True},
            {"epoch": "e", "offset": 5, "positioned": True, "recoverable": True},
        ),
        ({"recovered": False}, {"was_recovering": True}),
        ({"recovered": True}, {"was_recovering": True, "recovered": True}),
        (
            {"recovered": True, "publications": (b'{"data":1}', b'{"data":2}')},
            {
                "was_recovering": True,
                "recovered": True,
                "publications": [{"data": 1}, {"data": 2}],
            },
        ),
        (
            {"recovered": False, "gap": (3, 9)},
            {"was_recovering": True, "gap": {"from": 3, "to": 9}},
        ),
        ({"ttl": 60, "data": b"[1]"}, {"expires": True, "ttl": 60, "data": [1]}),
    ],
)
def test_a_subscribe_result_leaves_out_what_is_not_there(
    arguments: dict[str, Any], expected: dict[str, object]
) -> None:
    assert json.loads(codec.subscribe_result(**arguments)) == expected


def test_presence_and_history_results() -> None:
    infos = {"id": codec.client_info("alice", "id", None), TRICKY: b"{}"}
    assert json.loads(codec.presence_result({})) == {"presence": {}}
    assert json.loads(codec.presence_result(infos)) == {
        "presence": {"id": {"user": "alice", "client": "id"}, TRICKY: {}}
    }
    assert json.loads(codec.presence_stats_result(3, 2)) == {"num_clients": 3, "num_users": 2}
    assert json.loads(codec.history_result([], StreamPosition(0, "e"))) == {
        "publications": [],
        "offset": 0,
        "epoch": "e",
    }
    assert json.loads(codec.history_result([b"{}", b"{}"], StreamPosition(2, "e"))) == {
        "publications": [{}, {}],
        "offset": 2,
        "epoch": "e",
    }


def test_an_rpc_result_without_data_is_null() -> None:
    assert json.loads(codec.rpc_result(b"[1]")) == {"data": [1]}
    assert json.loads(codec.rpc_result(None)) == {"data": None}
    assert json.loads(codec.rpc_result(b"")) == {"data": None}


def test_pushes_name_their_channel() -> None:
    name = codec.quote(TRICKY)
    pushes: list[tuple[bytes, dict[str, object]]] = [
        (codec.publication_push(name, b'{"data":1}'), {"pub": {"data": 1}}),
        (codec.join_push(name, b'{"user":""}'), {"join": {"info": {"user": ""}}}),
        (codec.leave_push(name, b'{"user":""}'), {"leave": {"info": {"user": ""}}}),
        (
            codec.unsubscribe_push(TRICKY, codes.UNSUBSCRIBED_BY_SERVER),
            {"unsubscribe": {"code": 2000, "reason": "server unsubscribe"}},
        ),
        (codec.subscribe_push(TRICKY, b'{"positioned":true}'), {"subscribe": {"positioned": True}}),
    ]
    for push, expected in pushes:
        assert json.loads(push) == {"push": {"channel": TRICKY, **expected}}


def test_a_refresh_push_has_no_channel() -> None:
    assert json.loads(codec.refresh_push(60)) == {"push": {"refresh": {"expires": True, "ttl": 60}}}
    assert json.loads(codec.refresh_push(None)) == {"push": {"refresh": {}}}


def test_a_ping_is_an_object_that_is_neither_reply_nor_push() -> None:
    assert json.loads(codec.PING) == {}
