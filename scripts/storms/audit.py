"""What everybody was told, held against the log."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from scripts.storms.member import Member, Room
from scripts.storms.messages import Audited, RoomLog

_FAULTS_TOLD = 20


def audit(rooms: Iterable[Room], members: Sequence[Member], logs: Sequence[RoomLog]) -> Audited:
    """Compare. The members have settled: they publish no more, and have read what there was."""
    ids = {log.room: log.ids for log in logs}
    places = {
        message: (log.room, offset)
        for log in logs
        for offset, message in enumerate(log.ids, start=1)
    }
    times = Counter(message for log in logs for message in log.ids)
    doubled_publishes = sum(times.values()) - len(times)
    lost_publishes = 0
    lost_deliveries = 0
    for member in members:
        top = len(ids[member.room.name])
        lost_deliveries += member.lost + max(0, top - member.offset)
        lost_publishes += member.outstanding + sum(
            places.get(message) != (member.room.name, offset)
            for message, offset in member.acknowledged.items()
        )
    return Audited(
        published=sum(member.published for member in members),
        acknowledged=sum(len(member.acknowledged) for member in members),
        logged=sum(times.values()),
        deliveries=sum(member.received for member in members),
        lost_publishes=lost_publishes,
        doubled_publishes=doubled_publishes,
        lost_deliveries=lost_deliveries,
        doubled_deliveries=sum(member.doubled for member in members),
        wrong_deliveries=sum(_wrong(room, ids[room.name]) for room in rooms),
        faults=list(_faults(members, ids, places, times))[:_FAULTS_TOLD],
    )


def _wrong(room: Room, log: Sequence[str]) -> int:
    """Deliveries, or acknowledgements, of something else than the log has there."""
    return room.wrong + sum(
        not 0 < offset <= len(log) or log[offset - 1] != message
        for offset, message in room.seen.items()
    )


def _faults(
    members: Sequence[Member],
    logs: dict[str, list[str]],
    places: dict[str, tuple[str, int]],
    times: Counter[str],
) -> Iterator[str]:
    """Sentences about what is wrong, for people."""
    for member in members:
        name, top = member.room.name, len(logs[member.room.name])
        if member.lost:
            yield f"client {member.number} of {name} missed {member.lost} publications"
        if member.doubled:
            yield f"client {member.number} of {name} got {member.doubled} publications again"
        if member.offset < top:
            yield f"client {member.number} of {name} has come to {member.offset} of {top}"
        if member.outstanding:
            yield f"client {member.number} of {name} waits for {member.outstanding} replies"
        for message, offset in member.acknowledged.items():
            if places.get(message) != (name, offset):
                yield f"{message} was acknowledged at {offset} of {name}, but isn't there"
    for message, count in times.items():
        if count > 1:
            yield f"{message} is in the log {count} times"
