"""The double of a client's world answers as it is told, and objects to what no client may do."""

import pytest

from gateway.protocol.channels import ChannelOptions
from gateway.protocol.client_base import Phase
from gateway.protocol.codes import INTERNAL, NO_PONG, SHUTDOWN
from gateway.protocol.subscription import Joined, Subscription
from tests.support.recording import START, World, connect_grant, make_rules, subscribe_grant


def test_questions_are_answered_at_once_or_when_the_test_says_so() -> None:
    at_once, later = World(), World(at_once=False)

    at_once.connect()
    assert at_once.subscribe("open:a") == {}
    later.say({"id": 1, "connect": {}})
    assert later.ask("subscribe", channel="open:a") is None
    assert [question.kind for question in later.questions] == ["prepare"]
    later.question("prepare").answer(INTERNAL)

    assert later.questions == []
    assert later.sent[-1]["error"]["code"] == 100


def test_a_question_is_answered_once() -> None:
    world = World(at_once=False)
    world.say({"id": 1, "connect": {"token": "t"}})
    question = world.question("connect token")
    question.answer(connect_grant())

    with pytest.raises(AssertionError, match="twice"):
        question.answer(connect_grant())


def test_time_passes_from_deadline_to_deadline() -> None:
    world = World(make_rules(ping_interval=10.0, pong_timeout=5.0))
    world.connect()
    world.pass_time(4.0)
    assert (world.pings, world.now) == (0, START + 4.0)
    world.pass_time(20.0)

    assert world.pings == 1
    assert world.closed is NO_PONG
    assert world.now == START + 24.0


def test_what_no_client_may_do_is_an_error() -> None:
    world = World()
    subscription = Subscription("open:a", ChannelOptions())

    with pytest.raises(AssertionError):
        world.send(b'{"id":1}\n{"id":2}')
    with pytest.raises(ValueError, match=r"JSON|Expecting"):
        world.send(b"rubbish")
    with pytest.raises(KeyError):
        world.leave(subscription)
    world.join(subscription)
    with pytest.raises(AssertionError, match="twice"):
        world.join(subscription)
    with pytest.raises(AssertionError, match="inside"):
        world.close(SHUTDOWN, "")


def test_nothing_may_happen_after_the_end() -> None:
    world = World()
    world.close(SHUTDOWN, "done")
    subscription = Subscription("open:a", ChannelOptions())

    assert not world.is_open()
    for act in (
        lambda: world.send(b"{}"),
        world.ping,
        lambda: world.close(SHUTDOWN, ""),
        world.register,
        lambda: world.prepare(subscription, lambda error, now: None),
        lambda: world.join(subscription),
        lambda: world.call(1, "x", b""),
    ):
        with pytest.raises(AssertionError, match="after the end"):
            act()


def test_a_hole_is_hidden_from_nobody_but_those_who_insist() -> None:
    world = World(joins={"open:a": None})
    subscription = Subscription("open:a", ChannelOptions())
    assert world.join(subscription) == Joined(recovered=False)
    world.leave(subscription)
    subscription.reject_unrecovered = True

    assert world.join(subscription) is None
    assert world.inside == {}


def test_what_was_sent_can_be_taken_in_portions() -> None:
    world = World()
    world.connect()

    assert [message["id"] for message in world.take_sent()] == [2]
    assert world.take_sent() == []
    assert world.ask("ping") == {"ping": {}}
    assert world.client.phase is Phase.CONNECTED


def test_a_token_of_one_kind_is_invalid_as_the_other() -> None:
    world = World(tokens={"s": subscribe_grant("open:a"), "t": connect_grant("")})
    world.connect(token="t")

    assert world.ask("subscribe", channel="open:a", token="t")["error"]["code"] == 103
    assert world.subscribe("open:a", token="s") == {}
