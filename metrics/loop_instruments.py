"""Instruments that cost little to feed, for what happens with every message.

Only the event loop's thread may feed and read them. prometheus_client's own take a lock for each
increment, and its histogram walks through its buckets: a microsecond and more, against 0.1 here.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.utils import floatToGoString


class Count:
    """A number that only grows: one series of a `LoopCounter`."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0

    def inc(self, amount: int = 1) -> None:
        """Add to it."""
        self.value += amount


class LoopCounter:
    """Counts by labels; `labels` is for the start of the program, its result for every message."""

    def __init__(
        self,
        name: str,
        documentation: str,
        label_names: Sequence[str],
        registry: CollectorRegistry,
    ) -> None:
        self.label_names = tuple(label_names)
        self._name = name
        self._documentation = documentation
        self._counts: dict[tuple[str, ...], Count] = {}
        if not label_names:
            self.labels()
        registry.register(self)

    def labels(self, *values: str) -> Count:
        """The series with these values."""
        assert len(values) == len(self.label_names), f"{self._name} has {self.label_names}"
        return self._counts.setdefault(values, Count())

    def describe(self) -> Iterator[Metric]:
        """See `prometheus_client.registry.Collector`."""
        yield CounterMetricFamily(self._name, self._documentation, labels=self.label_names)

    def collect(self) -> Iterator[Metric]:
        """See `prometheus_client.registry.Collector`."""
        family = CounterMetricFamily(self._name, self._documentation, labels=self.label_names)
        for values, count in self._counts.items():
            family.add_metric(values, count.value)
        yield family


class LoopHistogram:
    """A histogram. `buckets` are upper bounds, ascending; the one for all the rest is added."""

    label_names = ()

    def __init__(
        self, name: str, documentation: str, buckets: Iterable[float], registry: CollectorRegistry
    ) -> None:
        self._name = name
        self._documentation = documentation
        self._bounds = [*map(float, buckets), float("inf")]
        self._counts = [0] * len(self._bounds)
        self._sum = 0.0
        registry.register(self)

    def observe(self, value: float) -> None:
        """Count a value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def describe(self) -> Iterator[Metric]:
        """See `prometheus_client.registry.Collector`."""
        return self.collect()

    def collect(self) -> Iterator[Metric]:
        """See `prometheus_client.registry.Collector`."""
        bounds = map(floatToGoString, self._bounds)
        yield HistogramMetricFamily(
            self._name,
            self._documentation,
            buckets=list(zip(bounds, accumulate(self._counts), strict=True)),
            sum_value=self._sum,
        )
