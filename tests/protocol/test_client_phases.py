"""Every command in every phase of a client, with the outcome that PROTOCOL.md A.4 gives it."""

import json
from typing import Any, Final

import pytest

from gateway.protocol import codes
from gateway.protocol.claims import TokenExpired
from gateway.protocol.client import WAITING_MAX
from gateway.protocol.client_base import IN_FLIGHT_MAX, Phase
from gateway.protocol.codec import METHODS
from gateway.protocol.codes import BAD_PROTOCOL, TOO_MANY, UNAVAILABLE, Disconnect
from tests.support.recording import World, connect_grant

# Each command with what becomes of it in a connected client: a result under its method's name, an
# error by its code, or the end of the connection.
COMMANDS: Final[dict[str, tuple[Any, str | int | Disconnect]]] = {
    "connect": ({"id": 9, "connect": {}}, BAD_PROTOCOL),
    "subscribe": ({"id": 9, "subscribe": {"channel": "open:a"}}, "subscribe"),
    "unsubscribe": ({"id": 9, "unsubscribe": {"channel": "open:a"}}, "unsubscribe"),
    "publish": ({"id": 9, "publish": {"channel": "open:a", "data": 1}}, "publish"),
    "presence": ({"id": 9, "presence": {"channel": "log:a"}}, "presence"),
    "presence_stats": ({"id": 9, "presence_stats": {"channel": "log:a"}}, "presence_stats"),
    "history": ({"id": 9, "history": {"channel": "log:a"}}, "history"),
    "rpc": ({"id": 9, "rpc": {"method": "x"}}, "rpc"),
    "send": ({"id": 9, "send": {"data": 1}}, UNAVAILABLE),
    "send without an id": ({"send": {"data": 1}}, UNAVAILABLE),
    "refresh": ({"id": 9, "refresh": {"token": "good"}}, "refresh"),
    "sub_refresh": ({"id": 9, "sub_refresh": {"channel": "open:a", "token": "t"}}, 103),
    "ping": ({"id": 9, "ping": {}}, "ping"),
    "a pong": ({}, BAD_PROTOCOL),
    "an id alone": ({"id": 9}, BAD_PROTOCOL),
    "an unknown method": ({"id": 9, "teleport": {}}, BAD_PROTOCOL),
    "two methods": ({"id": 9, "ping": {}, "rpc": {}}, BAD_PROTOCOL),
    "connect and another": ({"id": 9, "connect": {}, "ping": {}}, BAD_PROTOCOL),
    **{
        f"{method} without an id": ({method: {"channel": "open:a"}}, BAD_PROTOCOL)
        for method in METHODS
        if method != "send"
    },
}
MALFORMED: Final = ["", "\n", "null", "{", '{"id":"9","ping":{}}']
BY_NAME = pytest.mark.parametrize("name", COMMANDS)


def expect(world: World, outcome: str | int | Disconnect) -> None:
    """Check what became of the one command that was sent since the last look."""
    if isinstance(outcome, Disconnect):
        assert world.closed is outcome
        assert world.client.phase is Phase.CLOSED
        return
    assert world.is_open(), world.detail
    (reply,) = world.take_sent()
    assert reply["id"] == 9
    if isinstance(outcome, int):
        assert reply["error"]["code"] == outcome
        assert set(reply) == {"id", "error"}
    else:
        assert set(reply) == {"id", outcome}


# --- new --------------------------------------------------------------------------------------


@BY_NAME
def test_a_new_client_takes_a_connect_and_nothing_else(name: str) -> None:
    world = World()
    world.say(COMMANDS[name][0])

    if name == "connect":
        expect(world, "connect")
        assert world.client.phase is Phase.CONNECTED
    else:
        expect(world, BAD_PROTOCOL)
        assert world.sent == []
        assert world.commands == []


@pytest.mark.parametrize("command", [{"connect": {}}, {"id": 0, "connect": {}}])
def test_a_connect_needs_an_id(command: object) -> None:
    world = World()
    world.say(command)

    expect(world, BAD_PROTOCOL)


# --- connecting -------------------------------------------------------------------------------


def connecting() -> World:
    """A client that waits for its token to be verified."""
    world = World(at_once=False)
    world.say({"id": 1, "connect": {"token": "t"}})
    assert world.client.phase is Phase.CONNECTING
    return world


@BY_NAME
def test_a_connecting_client_keeps_commands_until_it_is_connected(name: str) -> None:
    world = connecting()
    world.say(COMMANDS[name][0])
    assert world.sent == []
    assert world.is_open()
    assert world.client.phase is Phase.CONNECTING

    world.tokens["good"] = connect_grant("alice")
    world.at_once = True
    world.question("connect token").answer(connect_grant("alice"))

    assert world.sent.pop(0)["id"] == 1
    expect(world, COMMANDS[name][1])


@BY_NAME
def test_commands_behind_a_connect_that_fails_are_forgotten(name: str) -> None:
    world = connecting()
    world.say(COMMANDS[name][0])
    world.question("connect token").answer(TokenExpired())

    assert [reply["error"]["code"] for reply in world.sent] == [109]
    assert world.client.phase is Phase.FAILED
    assert world.is_open()


def test_kept_commands_are_handled_in_order_until_one_ends_the_connection() -> None:
    world = connecting()
    world.say({"id": 2, "ping": {}}, {"id": 3, "publish": {"channel": "open:a", "data": 1}})
    world.say({"id": 4, "subscribe": {"channel": "open:a"}})
    world.say({"id": 5, "connect": {}}, {"id": 6, "ping": {}})
    world.at_once = True
    world.question("connect token").answer(connect_grant("alice"))

    assert [reply["id"] for reply in world.sent] == [1, 2, 3, 4]
    assert world.closed is BAD_PROTOCOL


def test_only_so_many_commands_are_kept() -> None:
    world = connecting()
    for _ in range(IN_FLIGHT_MAX):
        world.say({"id": 9, "ping": {}})
    assert world.is_open()
    world.say({"id": 9, "ping": {}})

    assert world.closed is TOO_MANY


def test_only_so_many_characters_are_kept() -> None:
    """Whoever waits for a token's key hasn't shown who they are, and may be many."""
    world = connecting()
    message = json.dumps({"id": 9, "publish": {"channel": "open:a", "data": "x" * 65_000}})
    for _ in range(WAITING_MAX // len(message)):
        world.say(message)
    assert world.is_open()
    world.say(message)

    assert world.closed is TOO_MANY


# --- connected --------------------------------------------------------------------------------


@BY_NAME
def test_a_connected_client_handles_each_command(name: str) -> None:
    world = World(tokens={"good": connect_grant("alice")})
    world.connect_as("alice")
    world.take_sent()
    world.say(COMMANDS[name][0])

    expect(world, COMMANDS[name][1])


def test_every_command_is_counted_by_its_method() -> None:
    world = World(tokens={"good": connect_grant("")})
    world.connect()
    for method in METHODS:
        if method not in ("connect", "send"):
            world.say(COMMANDS[method][0])
    world.say({"send": {}})

    assert sorted(world.commands) == sorted(METHODS)
    assert world.errors == [("sub_refresh", codes.PERMISSION_DENIED)]


# --- failed and closed ------------------------------------------------------------------------


@BY_NAME
def test_a_client_whose_connect_failed_is_closed_at_its_next_command(name: str) -> None:
    world = World(tokens={"old": TokenExpired()})
    world.say({"id": 1, "connect": {"token": "old"}})
    assert world.client.phase is Phase.FAILED
    assert world.is_open()
    world.take_sent()
    world.say(COMMANDS[name][0])

    expect(world, BAD_PROTOCOL)
    assert world.sent == []


@BY_NAME
def test_a_closed_client_does_nothing_more(name: str) -> None:
    world = World()
    world.connect()
    world.client.closed()
    before = list(world.steps)
    world.say(COMMANDS[name][0])

    # The world itself was never asked to close: somebody else ended the connection.
    assert world.steps == before
    assert world.client.phase is Phase.CLOSED


@pytest.mark.parametrize("text", MALFORMED)
def test_what_is_no_command_ends_the_connection_in_every_phase(text: str) -> None:
    new, waiting, connected = World(), connecting(), World()
    connected.connect()
    failed = World(tokens={"old": TokenExpired()})
    failed.say({"id": 1, "connect": {"token": "old"}})

    for world in (new, waiting, connected, failed):
        world.say(text)
        expect(world, BAD_PROTOCOL)

    new.say(text)  # the world would object to a second end


def test_commands_behind_one_that_ends_the_connection_are_not_handled() -> None:
    world = World()
    world.connect()
    world.say({"send": {}}, {"id": 3, "publish": {"channel": "open:a", "data": 1}})

    assert world.closed is UNAVAILABLE
    assert world.asked == []


def test_commands_before_one_that_ends_the_connection_are() -> None:
    world = World()
    world.say({"id": 1, "connect": {}}, {"id": 2, "ping": {}}, {"id": 3, "connect": {}})

    assert [reply["id"] for reply in world.sent] == [1, 2]
    assert world.closed is BAD_PROTOCOL
    assert world.detail == "a second connect"
