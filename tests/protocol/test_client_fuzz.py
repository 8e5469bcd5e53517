"""Whatever text a client sends, it gets replies or a documented close, and nothing is raised."""

import json
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.protocol.client_base import Phase
from gateway.protocol.codec import METHODS
from gateway.protocol.codes import DISCONNECTS, ERRORS
from tests.support.fuzzing import REPEATABLE
from tests.support.recording import World, connect_grant, subscribe_grant

ERROR_CODES = {error.code for error in ERRORS}

names = st.sampled_from(["open:a", "log:a", "closed:a", "$open:a", "nowhere:a", "", "x" * 300, "ü"])
odd = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-1, 2**64),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=8),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=4), st.integers(), max_size=2),
)
fields = {
    "channel": names,
    "token": st.sampled_from(["", "t", "open:a", "unknown"]),
    "data": odd,
    "offset": st.integers(0, 2**53 - 1),
    "epoch": st.text(max_size=5),
    "recover": st.booleans(),
    "flag": st.integers(-3, 3),
    "limit": st.integers(-5, 1000),
    "since": st.fixed_dictionaries({}, optional={"offset": st.integers(0, 9), "epoch": st.text()}),
    "reverse": st.booleans(),
    "method": st.text(max_size=5),
    "idempotency_key": st.text(max_size=70),
    "ephemeral": st.booleans(),
    "type": st.sampled_from([0, 1]),
    "subs": st.dictionaries(names, st.just({"recover": True}), max_size=3),
}
good_requests = st.fixed_dictionaries({}, optional=fields)
nearly_good_requests = st.one_of(
    good_requests,
    st.fixed_dictionaries({}, optional={name: values | odd for name, values in fields.items()}),
)
ids = st.integers(1, 2**32 - 1)
good_commands = st.builds(
    lambda command_id, method, request: {"id": command_id, method: request},
    ids,
    st.sampled_from([method for method in METHODS if method not in ("connect", "send")]),
    good_requests,
)
nearly_good_commands = st.one_of(
    good_commands,
    st.dictionaries(
        st.sampled_from([*METHODS, "id", "teleport"]), nearly_good_requests | ids | odd, max_size=3
    ),
)


def connected() -> World:
    world = World(
        tokens={"t": connect_grant("alice"), "open:a": subscribe_grant("open:a", "alice", 60.0)}
    )
    world.connect(token="t")
    world.subscribe("log:a")
    world.take_sent()
    return world


def check_replies(world: World, expected_ids: set[int]) -> None:
    """Each reply is to one of these commands, and says a result or a documented error."""
    for message in world.take_sent():
        assert message["id"] in expected_ids
        if "error" in message:
            assert message["error"]["code"] in ERROR_CODES
    if world.closed is not None:
        assert world.closed in DISCONNECTS
        assert world.client.phase is Phase.CLOSED


def ids_in(text: str) -> set[int]:
    found = set()
    for line in text.split("\n"):
        try:
            command: Any = json.loads(line)
        except ValueError:
            continue
        if isinstance(command, dict) and isinstance(command.get("id"), int):
            found.add(command["id"])
    return found


@given(st.lists(st.text(max_size=100), max_size=3))
@settings(REPEATABLE, max_examples=300)
def test_any_text_is_answered_or_ends_the_connection(texts: list[str]) -> None:
    for world in (World(), connected()):
        for text in texts:
            world.say(text)
            check_replies(world, ids_in(text))


@given(st.lists(nearly_good_commands, min_size=1, max_size=4))
@example([{"id": 5, "subscribe": {"channel": "\U0001f600"}}])
@example([{"id": 5, "publish": {"channel": "open:a", "data": "\udc00"}}])
@settings(REPEATABLE, max_examples=500)
def test_nearly_good_commands_are_answered_or_end_the_connection(commands: list[Any]) -> None:
    for world in (World(), connected()):
        text = "\n".join(map(json.dumps, commands))
        world.say(text)
        check_replies(world, ids_in(text))


@given(st.lists(good_commands, min_size=1, max_size=4))
@settings(REPEATABLE, max_examples=500)
def test_good_commands_are_all_answered_unless_one_ends_the_connection(
    commands: list[dict[str, Any]],
) -> None:
    world = connected()
    for command in commands:
        before = len(world.sent)
        world.say(command)
        if world.closed is not None:
            assert world.closed.code in (3005, 3500, 3501)
            return
        replies = world.sent[before:]
        assert [reply["id"] for reply in replies] == [command["id"]]
        assert set(replies[0]) <= set(command) | {"error"}


@given(
    st.lists(good_commands, min_size=1, max_size=3),
    st.integers(0, 10_000),
    st.sampled_from(['"', "{", "}", "\\", "\n", "\0", "9", ",", "é"]),
)
@settings(REPEATABLE, max_examples=500)
def test_one_wrong_character_is_answered_or_ends_the_connection(
    commands: list[Any], place: int, character: str
) -> None:
    text = "\n".join(map(json.dumps, commands))
    place %= len(text)
    text = text[:place] + character + text[place + 1 :]
    world = connected()
    world.say(text)

    check_replies(world, ids_in(text))


@given(st.binary(max_size=60))
@settings(REPEATABLE, max_examples=200)
def test_text_from_any_bytes_is_answered_or_ends_the_connection(data: bytes) -> None:
    world = connected()
    world.say(data.decode("latin-1"))

    check_replies(world, ids_in(data.decode("latin-1")))
