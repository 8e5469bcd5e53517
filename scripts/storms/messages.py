"""What the harness asks of the crowd's process, and what that answers: one JSON object a line.

Moments are on the monotonic clock, which all processes of a machine share.
"""

import msgspec

from scripts.benchmarks.messages import Failed


class Ground(msgspec.Struct, frozen=True):
    """Where the crowd connects to, and the secret that signs its tokens.

    `addresses`: each client comes from an address of its own, as on the internet; else all come
    from one.
    """

    port: int
    secret: str
    addresses: bool = True


# Requests, from the harness.


class Gather(msgspec.Struct, tag=True, frozen=True):
    """Bring clients, of which the first `sessions` have sessions. Answered by Gathered.

    They are spread evenly over the rooms; the first of each room asks for joins and leaves.
    """

    clients: int
    sessions: int
    rooms: list[str]
    in_flight: int
    timeout: float
    backoff_max: float = 20.0
    """The longest delay of clients that were told no moment, in seconds."""
    seed: int = 0


class Publish(msgspec.Struct, tag=True, frozen=True):
    """From now on, publish so many messages a second, by anyone at random moments. Done."""

    per_second: float
    payload_bytes: int = 128


class Mark(msgspec.Struct, tag=True, frozen=True):
    """The storm begins: from here on everybody is awaited on a new line. Done."""


class Cut(msgspec.Struct, tag=True, frozen=True):
    """Break every line, as if the network had gone; the clients come back by their rules. Done."""


class AwaitReturn(msgspec.Struct, tag=True, frozen=True):
    """Wait until everybody is back, or for so long. Answered by Returned."""

    timeout: float


class Settle(msgspec.Struct, tag=True, frozen=True):
    """Publish no more, and wait until all is acknowledged and read, or for so long. Done."""

    timeout: float


class RoomLog(msgspec.Struct, frozen=True):
    """What the server's log has of a room: message ids, of the offsets from 1 on."""

    room: str
    ids: list[str]


class Audit(msgspec.Struct, tag=True, frozen=True):
    """Hold what everybody was told against the log. Answered by Audited."""

    logs: list[RoomLog]


class Disperse(msgspec.Struct, tag=True, frozen=True):
    """Everybody leaves. Done."""


Request = Gather | Publish | Mark | Cut | AwaitReturn | Settle | Audit | Disperse


# Answers, from the crowd.


class Done(msgspec.Struct, tag=True, frozen=True):
    """That is so now."""


class Gathered(msgspec.Struct, tag=True, frozen=True):
    """Everybody is connected and subscribed."""

    elapsed: float


class Returned(msgspec.Struct, tag=True, frozen=True):
    """How everybody came back since the mark.

    `missing` are those who are not back, some of them described in `stuck`. `dials` are attempts
    that reached a server, `refusals` those that it sent away, `returns` those that ended in a
    subscription.
    """

    missing: int
    stuck: list[str]
    resumed: int
    recovered: int
    unrecovered: int
    dials: list[float]
    refusals: list[float]
    returns: list[float]
    slots_told: int
    slots_lateness: list[float]
    """By how many seconds clients came after the moments that they were told."""
    joins: int
    leaves: int
    """Pushes of those who watch, about clients with sessions."""
    acknowledged_p50: float
    acknowledged_p99: float
    """From a publish on a line to its reply on the same one; 0 when there was none."""
    load_busy: float
    """The crowd's share of one core; near 1, it is the limit and not the server."""


class Audited(msgspec.Struct, tag=True, frozen=True):
    """What the log and the clients say of each other.

    A delivery is one publication that one client was to get. `faults` describes some of what is
    wrong.
    """

    published: int
    acknowledged: int
    logged: int
    deliveries: int
    lost_publishes: int
    doubled_publishes: int
    lost_deliveries: int
    doubled_deliveries: int
    wrong_deliveries: int
    faults: list[str]

    @property
    def lost(self) -> int:
        """Of both kinds."""
        return self.lost_publishes + self.lost_deliveries

    @property
    def doubled(self) -> int:
        """Of both kinds."""
        return self.doubled_publishes + self.doubled_deliveries

    @property
    def is_clean(self) -> bool:
        """Whether everything is there, once, and the same for all."""
        return not (self.lost or self.doubled or self.wrong_deliveries)


Answer = Done | Gathered | Returned | Audited | Failed
