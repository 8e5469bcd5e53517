"""How much is measured: every count and every duration of a run, in one place.

A run is bounded by these numbers and by nothing else. The default run takes under seven minutes on
two cores, the quick one under two.
"""

from dataclasses import dataclass
from enum import StrEnum


class Stage(StrEnum):
    """The groups of rows that `--only` chooses from."""

    MEMORY = "memory"
    FANOUT = "fanout"
    BURST = "burst"
    CONNECTS = "connects"
    DURABLE = "durable"
    LATENCY = "latency"
    RESUME = "resume"
    DETACHED = "detached"
    IDLE = "idle"
    STORM = "storm"


@dataclass(frozen=True, slots=True)
class Pacing:
    """A steady load: publications per second over some channels of equal size."""

    publications_per_second: int
    channels: int
    subscribers_per_channel: int

    @property
    def deliveries_per_second(self) -> int:
        """What reaches subscribers each second."""
        return self.publications_per_second * self.subscribers_per_channel


@dataclass(frozen=True, slots=True)
class Flooding:
    """As many publishes as get acknowledged: each publisher leaves `window` unacknowledged."""

    publishers: int
    window: int
    channels: int


@dataclass(frozen=True, slots=True)
class Plan:
    """Counts and durations (seconds) of one run."""

    payload_bytes: int = 128
    burst: int = 10

    repeats: int = 9
    """Interleaved pairs per row. Odd, so that a median is a measured value."""

    repeats_min: int = 3
    repeating_seconds: float = 20.0
    """When a group of rows has taken that long, it makes do with the repeats it has, as long as
    these are `repeats_min`: on a machine that others use, a run still comes to an end."""

    audience: int = 1_000
    audience_rounds: int = 80
    """Publications per repeat to the audience: about half a second."""

    burst_rounds: int = 40

    crowd: int = 10_000
    crowd_rounds: int = 8

    connects: int = 1_000
    """Connections opened per repeat."""

    connects_in_flight: int = 32
    """Below every listen backlog in use, so that no SYN is dropped and retried a second later."""

    durable_repeats: int = 3
    durable_seconds: float = 4.0
    durable_warmup: float = 1.0
    durable_loads: tuple[Flooding, ...] = (Flooding(16, 64, 16), Flooding(1_000, 1, 50))

    syncs: int = 300
    """Writes of one page with fdatasync per durable repeat: the disk's own speed."""

    latency_repeats: int = 3
    latency_seconds: float = 5.0
    latency_warmup: float = 1.0
    latency_loads: tuple[Pacing, ...] = (Pacing(500, 10, 100), Pacing(50, 1, 1_000))

    detached_group: int = 500
    """Sessions that have sockets at the same time, before they wait for their clients."""

    detached_warmup: int = 2
    """Groups before the count begins, so that what the first ones leave in pools isn't counted."""

    ping_interval: float = 25.0
    """What the idle row is about, and `idle_ping_interval` what is measured: in that time each
    session is pinged once."""

    idle_ping_interval: float = 25.0

    storm_blows: tuple[str, ...] = ("kill", "term")
    storm_clients: int = 10_000
    storm_room: int = 50
    """Clients in each room."""

    storm_publish_rate: float = 50.0


DEFAULT = Plan()

QUICK = Plan(
    repeats=3,
    repeats_min=1,
    repeating_seconds=8.0,
    audience_rounds=40,
    burst_rounds=20,
    crowd_rounds=4,
    connects=500,
    durable_repeats=1,
    durable_seconds=2.0,
    durable_warmup=0.5,
    syncs=100,
    latency_repeats=1,
    latency_seconds=2.0,
    latency_warmup=0.5,
    latency_loads=(Pacing(500, 10, 100),),
    idle_ping_interval=5.0,
    storm_clients=2_000,
)
