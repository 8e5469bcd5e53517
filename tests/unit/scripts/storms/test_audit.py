"""What clients were told against the log: every kind of fault is found, and named."""

import json

from scripts.storms.audit import audit
from scripts.storms.member import Member, Room
from scripts.storms.messages import Audited, RoomLog

NAME = "storm:room"


def make(room: Room, *, publishes: dict[int, str] | None = None, received: int = 0) -> Member:
    """A member that was given the first so many messages, and published some, by offset."""
    member = Member(1, "", room, [], watches=False)
    member.begin()
    member.take(b'{"id":2,"subscribe":{"epoch":"e"}}', 0.0)
    for offset in range(1, received + 1):
        pub = {"offset": offset, "data": {"id": f"m{offset}"}}
        member.take(json.dumps({"push": {"channel": NAME, "pub": pub}}).encode(), 0.0)
    member.acknowledged = {message: offset for offset, message in (publishes or {}).items()}
    return member


def hold(members: list[Member], room: Room, ids: list[str]) -> Audited:
    return audit([room], members, [RoomLog(NAME, ids)])


def test_all_is_well() -> None:
    room = Room(NAME)
    audited = hold([make(room, publishes={1: "m1"}, received=2)], room, ["m1", "m2"])

    assert audited.is_clean
    assert not audited.faults
    assert (audited.logged, audited.deliveries, audited.acknowledged) == (2, 2, 1)


def test_who_did_not_come_to_the_top_has_lost_what_is_between() -> None:
    room = Room(NAME)
    audited = hold([make(room, received=1)], room, ["m1", "m2", "m3"])

    assert (audited.lost_deliveries, audited.is_clean) == (2, False)
    assert audited.faults == [f"client 1 of {NAME} has come to 1 of 3"]


def test_what_was_acknowledged_must_be_in_the_log_at_its_place() -> None:
    room = Room(NAME)
    audited = hold([make(room, publishes={2: "m1", 3: "gone"}, received=2)], room, ["m1", "m2"])

    assert (audited.lost_publishes, audited.is_clean) == (2, False)
    assert len(audited.faults) == 2


def test_a_message_that_is_in_the_log_twice_is_doubled() -> None:
    room = Room(NAME)
    audited = hold([], room, ["m1", "m1", "m2"])

    assert (audited.doubled_publishes, audited.is_clean) == (1, False)
    assert audited.faults == ["m1 is in the log 2 times"]


def test_what_was_given_must_be_what_the_log_has() -> None:
    room = Room(NAME)
    audited = hold([make(room, received=2)], room, ["m1", "another"])

    assert (audited.wrong_deliveries, audited.is_clean) == (1, False)


def test_a_publish_without_a_reply_is_lost() -> None:
    room = Room(NAME)
    member = make(room)
    member.publish(64, 0.0)
    audited = hold([member], room, [])

    assert (audited.published, audited.lost_publishes) == (1, 1)
