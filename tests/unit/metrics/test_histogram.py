"""A histogram of ours says what prometheus_client's own would say."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram, generate_latest

from metrics.histogram import LoopHistogram

BUCKETS = (0.5, 1, 2.5, 10.0)


@given(st.lists(st.floats(0, 20) | st.sampled_from([0.5, 1.0, 2.5, 10.0, float("inf")])))
def test_it_says_what_the_librarys_would(values: list[float]) -> None:
    pages = []
    for kind in (LoopHistogram, Histogram):
        registry = CollectorRegistry()
        histogram = kind("wait_seconds", "For how long.", buckets=BUCKETS, registry=registry)
        for value in values:
            histogram.observe(value)
        pages.append(generate_latest(registry).decode().splitlines())

    ours, theirs = pages
    # The library writes the count and the sum in another order, and when each series began.
    assert sorted(ours) == sorted(line for line in theirs if "_created" not in line)


def test_a_name_is_given_once() -> None:
    registry = CollectorRegistry()
    LoopHistogram("wait_seconds", "For how long.", BUCKETS, registry)

    with pytest.raises(ValueError, match="Duplicated"):
        Histogram("wait_seconds", "For how long.", registry=registry)
