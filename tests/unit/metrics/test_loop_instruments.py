"""Instruments of ours say what prometheus_client's own would say."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from metrics.loop_instruments import LoopCounter, LoopHistogram

BUCKETS = (0.5, 1, 2.5, 10.0)


@given(st.lists(st.floats(0, 20) | st.sampled_from([0.5, 1.0, 2.5, 10.0, float("inf")])))
def test_a_histogram_says_what_the_librarys_would(values: list[float]) -> None:
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


@pytest.mark.parametrize("label_names", [("kind",), ("kind", "code")])
@given(
    increments=st.lists(
        st.tuples(st.sampled_from("ab"), st.sampled_from("xy"), st.integers(0, 2**53))
    )
)
def test_a_counter_says_what_the_librarys_would(
    label_names: tuple[str, ...], increments: list[tuple[str, str, int]]
) -> None:
    pages = []
    for kind in (LoopCounter, Counter):
        registry = CollectorRegistry()
        counter = kind("sent_total", "How many.", label_names, registry=registry)
        for *values, amount in increments:
            counter.labels(*values[: len(label_names)]).inc(amount)
        pages.append(generate_latest(registry).decode().splitlines())

    ours, theirs = pages
    assert sorted(ours) == sorted(line for line in theirs if "_created" not in line)


def test_a_counter_without_labels_begins_with_zero() -> None:
    registry = CollectorRegistry()
    counter = LoopCounter("sent_total", "How many.", (), registry)
    assert registry.get_sample_value("sent_total") == 0
    counter.labels().inc()
    assert registry.get_sample_value("sent_total") == 1


def test_a_counter_wants_all_its_labels() -> None:
    counter = LoopCounter("sent_total", "How many.", ("kind",), CollectorRegistry())
    with pytest.raises(AssertionError):
        counter.labels()


def test_a_name_is_given_once() -> None:
    registry = CollectorRegistry()
    LoopHistogram("wait_seconds", "For how long.", BUCKETS, registry)

    with pytest.raises(ValueError, match="Duplicated"):
        Histogram("wait_seconds", "For how long.", registry=registry)
