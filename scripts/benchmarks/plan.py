"""How much is measured: every count and every duration of a run, in one place.

A run is bounded by these numbers and by nothing else. The default run takes under four minutes on
two cores, the quick one under 45 seconds.
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
)
