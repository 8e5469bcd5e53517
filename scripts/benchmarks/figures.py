"""The little arithmetic that rows need."""

from collections.abc import Iterable, Sequence

import msgspec


class Distribution(msgspec.Struct, frozen=True):
    """Quantiles of some durations, in seconds."""

    count: int
    p50: float
    p99: float
    p999: float
    longest: float


def median(values: Iterable[float]) -> float:
    """The middle value; the lower one of two, so that it is always a measured one."""
    ordered = sorted(values)
    return ordered[(len(ordered) - 1) // 2]


def median_ratio(measured: Sequence[float], baseline: Sequence[float]) -> float:
    """The median of the ratios of pairs that were measured one right after the other."""
    return median(ours / theirs for ours, theirs in zip(measured, baseline, strict=True))


def distribution(durations_ns: Iterable[int]) -> Distribution:
    """Quantiles by nearest rank: each is a duration that did happen."""
    ordered = sorted(durations_ns)
    if not ordered:
        raise ValueError("no durations were measured")

    def quantile(share: float) -> float:
        return ordered[min(int(share * len(ordered)), len(ordered) - 1)] / 1e9

    return Distribution(len(ordered), quantile(0.5), quantile(0.99), quantile(0.999), quantile(1.0))


def median_distribution(runs: Sequence[Distribution]) -> Distribution:
    """Quantile by quantile, the median over repeats; the longest is the longest of all."""
    return Distribution(
        sum(run.count for run in runs),
        median(run.p50 for run in runs),
        median(run.p99 for run in runs),
        median(run.p999 for run in runs),
        max(run.longest for run in runs),
    )
