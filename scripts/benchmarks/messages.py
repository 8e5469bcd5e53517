"""What the harness asks of a load process, and what it answers: one JSON object a line."""

import msgspec

from scripts.benchmarks.figures import Distribution


class Target(msgspec.Struct, frozen=True):
    """The server under load. `secret` signs tokens; without one it is the bare baseline."""

    port: int
    pid: int
    secret: str | None = None


# Requests, from the harness.


class Gather(msgspec.Struct, tag=True, frozen=True):
    """Open `count` subscribers, spread evenly over `channels`. Answered by Gathered."""

    count: int
    channels: list[str]
    in_flight: int
    timed: bool = False
    """Whether they read the time of sending out of each publication, or only count bytes."""
    ping_interval: float = 0.0
    """For the baseline only: they subscribe to nothing, and answer a ping that comes so often."""


class Dismiss(msgspec.Struct, tag=True, frozen=True):
    """Close all subscribers. Answered by Dismissed when their sockets are gone here."""


class Attach(msgspec.Struct, tag=True, frozen=True):
    """Open `count` clients with a session, each subscribed to the channel, and acknowledge all.

    Answered by Gathered; the cost is that of opening.
    """

    count: int
    channel: str
    in_flight: int


class Detach(msgspec.Struct, tag=True, frozen=True):
    """Break the lines of all clients with sessions. Answered by Dismissed when the server is done
    with that.

    `forget` says that nobody will come back for them.
    """

    forget: bool = False


class Resume(msgspec.Struct, tag=True, frozen=True):
    """Have all detached clients resume their sessions. Answered by Gathered."""

    in_flight: int


class Rounds(msgspec.Struct, tag=True, frozen=True):
    """Publish `rounds` times, each when every subscriber has all of the one before.

    Answered by Rounded. `items` are the publications of one round, written at once; `verbatim` is
    what to write instead of them. `by_send` has the baseline use bare system calls.
    """

    rounds: int
    channel: str
    items: list[bytes] = []
    verbatim: bytes = b""
    by_send: bool = False
    patience: float = 10.0
    """Seconds after which a round counts as lost. All of a plan take less than one."""


class Flood(msgspec.Struct, tag=True, frozen=True):
    """Publish as fast as acknowledgements come, each publisher leaving `window` outstanding.

    Publishers are spread evenly over the channels. Answered by Flooded, after the log's own offsets
    were compared with the acknowledgements.
    """

    channels: list[str]
    publishers: int
    window: int
    payload_bytes: int
    seconds: float
    warmup: float


class Pace(msgspec.Struct, tag=True, frozen=True):
    """Publish at a rate, at random moments, whether or not the server keeps up.

    Answered by Paced. The subscribers must have been gathered as timed ones of the same channels.
    """

    channels: list[str]
    publications_per_second: int
    payload_bytes: int
    seconds: float
    warmup: float
    seed: int


Request = Gather | Dismiss | Attach | Detach | Resume | Rounds | Flood | Pace


# Answers, from the load process.


class Cost(msgspec.Struct, frozen=True):
    """What some units of work (deliveries, connects, publishes) took. Times in seconds.

    `turned_away`: connects that a busy server sent away first, which is in the cost.
    """

    units: int
    elapsed: float
    server_cpu: float
    load_cpu: float
    turned_away: int = 0

    @property
    def server_cpu_per_unit(self) -> float:
        """User plus system time of the server process."""
        return self.server_cpu / self.units

    @property
    def units_per_second(self) -> float:
        """The rate reached."""
        return self.units / self.elapsed

    @property
    def server_busy(self) -> float:
        """The server's share of one core."""
        return self.server_cpu / self.elapsed

    @property
    def load_busy(self) -> float:
        """The load process's share of one core; near 1, it is the limit and not the server."""
        return self.load_cpu / self.elapsed


class Gathered(msgspec.Struct, tag=True, frozen=True):
    """All who were to come are there."""

    cost: Cost


class Dismissed(msgspec.Struct, tag=True, frozen=True):
    """All who were to go are gone."""


class Rounded(msgspec.Struct, tag=True, frozen=True):
    """Every subscriber received every publication; `received` is what each got in one round."""

    cost: Cost
    received: bytes


class Flooded(msgspec.Struct, tag=True, frozen=True):
    """Every publish was acknowledged, and the log holds exactly those."""

    cost: Cost
    latency: Distribution


class Paced(msgspec.Struct, tag=True, frozen=True):
    """Every subscriber received every publication.

    `latency` is from just before the publisher's write to the subscriber's read; `lateness` is how
    far behind its own schedule the load process published.
    """

    cost: Cost
    latency: Distribution
    lateness: Distribution


class Failed(msgspec.Struct, tag=True, frozen=True):
    """The request could not be carried out: lost deliveries, refused connections, a timeout."""

    reason: str


Answer = Gathered | Dismissed | Rounded | Flooded | Paced | Failed
