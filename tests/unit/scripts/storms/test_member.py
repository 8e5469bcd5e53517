"""A member counts whatever breaks the promise of exactly once and in order."""

import json
from typing import Any

import pytest

from scripts.storms.member import Member, MemberBroken, Room

NOW = 100.0


@pytest.fixture
def room() -> Room:
    return Room("storm:room")


@pytest.fixture
def member(room: Room) -> Member:
    return Member(7, "a token", room, [], watches=False)


def take(member: Member, *messages: dict[str, Any], now: float = NOW) -> list[Any]:
    """Give it messages in one frame; what it answers, parsed."""
    payload = "\n".join(map(json.dumps, messages)).encode()
    return [json.loads(line) for answer in member.take(payload, now) for line in answer.split()]


def publication(offset: int, message: str = "") -> dict[str, Any]:
    data = {"id": message or f"m{offset}"}
    return {"push": {"channel": "storm:room", "pub": {"offset": offset, "data": data}}}


def subscribed(offset: int = 0, **result: Any) -> dict[str, Any]:
    return {"id": 2, "subscribe": {"epoch": "e", "offset": offset, **result}}


def enter(member: Member, offset: int = 0) -> None:
    member.begin()
    take(member, {"id": 1, "connect": {"ping": 25}}, subscribed(offset))


def test_it_begins_wherever_the_room_is(member: Member) -> None:
    connect, subscribe = map(json.loads, member.begin().split(b"\n"))

    assert connect == {"id": 1, "connect": {"token": "a token"}}
    assert subscribe == {"id": 2, "subscribe": {"channel": "storm:room"}}
    take(member, {"id": 1, "connect": {"ping": 25}}, subscribed(4))
    assert (member.subscribed, member.offset, member.ping) == (True, 4, 25)


def test_it_recovers_from_where_it_was(member: Member) -> None:
    enter(member, offset=4)
    take(member, publication(5))
    member.end()
    _, subscribe = map(json.loads, member.begin().split(b"\n"))
    missed = [publication(6)["push"]["pub"], publication(7)["push"]["pub"]]
    take(member, subscribed(5, was_recovering=True, recovered=True, publications=missed))

    assert subscribe["subscribe"] == {
        "channel": "storm:room",
        "recover": True,
        "epoch": "e",
        "offset": 5,
    }
    assert (member.offset, member.received, member.was_recovered) == (7, 3, True)
    assert (member.lost, member.doubled, member.unrecovered) == (0, 0, 0)


def test_what_is_missing_counts_as_lost(member: Member) -> None:
    enter(member)
    take(member, publication(1), publication(4))

    assert (member.lost, member.offset) == (2, 4)


def test_what_comes_again_counts_as_doubled(member: Member) -> None:
    enter(member)
    take(member, publication(1), publication(2), publication(1), publication(2))

    assert (member.doubled, member.lost, member.received) == (2, 0, 2)


def test_what_could_not_be_recovered_counts_as_lost(member: Member) -> None:
    enter(member, offset=3)
    member.end()
    member.begin()
    take(member, subscribed(9, was_recovering=True, gap={"from": 4, "to": 9}))

    assert (member.unrecovered, member.lost, member.offset) == (1, 6, 9)


def test_two_members_that_are_given_different_messages_are_noticed(room: Room) -> None:
    for message in ("one", "another"):
        member = Member(1, "", room, [], watches=False)
        enter(member)
        take(member, publication(1, message))

    assert room.wrong == 1


def test_a_publish_is_sent_again_with_the_same_key_until_it_is_acknowledged(
    member: Member,
) -> None:
    enter(member)
    (first,) = member.publish(64, NOW)
    member.end()
    member.begin()
    (again,) = take(member, subscribed(0, was_recovering=True, recovered=True))
    take(member, {"id": again["id"], "publish": {"offset": 12}})

    sent = json.loads(first)
    assert again["publish"] == sent["publish"]
    assert again["id"] != sent["id"]
    assert sent["publish"]["idempotency_key"] == sent["publish"]["data"]["id"] == "7-1"
    assert len(json.dumps(sent["publish"]["data"], separators=(",", ":"))) == 64
    assert member.acknowledged == {"7-1": 12}
    assert member.outstanding == 0


def test_a_publish_without_a_subscription_waits_for_one(member: Member) -> None:
    assert not member.publish(64, NOW)
    member.begin()
    (sent,) = take(member, subscribed())

    assert sent["publish"]["data"]["id"] == "7-1"


def test_a_publish_that_is_refused_for_a_moment_is_sent_once_more(member: Member) -> None:
    enter(member)
    (first,) = member.publish(64, NOW)
    (other,) = member.publish(64, NOW)
    take(member, {"id": json.loads(first)["id"], "error": {"code": 111, "message": "later"}})
    assert member.refused
    (again,) = map(json.loads, member.again(NOW))

    assert again["publish"] == json.loads(first)["publish"]
    take(member, {"id": again["id"], "publish": {"offset": 1}})
    take(member, {"id": json.loads(other)["id"], "publish": {"offset": 2}})
    assert member.acknowledged == {"7-1": 1, "7-2": 2}


def test_a_subscription_that_is_refused_for_a_moment_is_asked_for_once_more(
    member: Member,
) -> None:
    member.begin()
    take(member, {"id": 2, "error": {"code": 100, "message": "internal"}})
    (again,) = map(json.loads, member.again(NOW))

    assert again == {"id": 2, "subscribe": {"channel": "storm:room"}}
    assert not member.again(NOW)


def test_any_other_refusal_ends_the_run(member: Member) -> None:
    member.begin()
    with pytest.raises(MemberBroken, match="103"):
        take(member, {"id": 2, "error": {"code": 103, "message": "permission denied"}})


def test_a_reply_that_nobody_waits_for_ends_the_run(member: Member) -> None:
    enter(member)
    with pytest.raises(MemberBroken):
        take(member, {"id": 77, "publish": {"offset": 1}})


def test_only_replies_on_an_uninterrupted_line_are_timed(member: Member) -> None:
    enter(member)
    first, second = (json.loads(*member.publish(64, NOW)) for _ in range(2))
    take(member, {"id": first["id"], "publish": {"offset": 1}}, now=NOW + 0.5)
    member.interrupt()
    take(member, {"id": second["id"], "publish": {"offset": 2}}, now=NOW + 60)

    assert member.latencies == [0.5]


def test_it_answers_pings_and_counts_who_of_the_sessions_comes_and_goes(member: Member) -> None:
    enter(member)
    session, stock = (
        {"info": {"user": f"{kind}-1", "client": "c"}} for kind in ("session", "stock")
    )
    answers = take(
        member,
        {"push": {"channel": "storm:room", "join": session}},
        {"push": {"channel": "storm:room", "join": stock}},
        {"push": {"channel": "storm:room", "leave": session}},
        {},
    )

    assert answers == [{}]
    assert (member.joins, member.leaves) == (1, 1)


def test_it_subscribes_again_when_the_server_says_that_its_position_is_lost(
    member: Member,
) -> None:
    enter(member, offset=3)
    (again,) = take(
        member, {"push": {"channel": "storm:room", "unsubscribe": {"code": 2500, "reason": ""}}}
    )

    assert again["subscribe"]["offset"] == 3
    assert not member.subscribed
