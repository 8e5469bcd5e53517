"""Reading a gateway's metrics, without a gateway."""

import pytest

from scripts.storms.scrape import Samples, added, bucket_quantile

TEXT = """\
# HELP capegate_sessions Sessions, by state.
# TYPE capegate_sessions gauge
capegate_sessions{state="attached"} 12.0
capegate_connections 3.0
capegate_loop_lag_seconds_bucket{le="0.01"} 5.0
capegate_loop_lag_seconds_bucket{le="0.1"} 9.0
capegate_loop_lag_seconds_bucket{le="+Inf"} 10.0
python_gc_objects_collected_total{generation="0"} 7.0
"""
INFINITY = float("inf")


def test_series_are_found_by_name_and_label() -> None:
    samples = Samples(TEXT)

    assert samples.value("connections") == 3
    assert samples.value("sessions", state="attached") == 12
    assert samples.value("sessions", state="detached") == 0
    assert samples.loop_lag() == {0.01: 5, 0.1: 9, INFINITY: 10}


@pytest.mark.parametrize(
    ("share", "expected"), [(0.5, 0.01), (0.25, 0.005), (0.7, 0.055), (0.9, 0.1), (0.99, 0.1)]
)
def test_a_quantile_is_linear_inside_its_bucket(share: float, expected: float) -> None:
    buckets = {0.01: 5.0, 0.1: 9.0, INFINITY: 10.0}

    assert bucket_quantile(buckets, share) == pytest.approx(expected)


def test_a_quantile_of_nothing_is_nothing() -> None:
    assert bucket_quantile({}, 0.99) == 0
    assert bucket_quantile({0.01: 0.0, INFINITY: 0.0}, 0.99) == 0


def test_histograms_add_up() -> None:
    total = added({0.1: 5.0, INFINITY: 6.0}, ({0.1: 2.0, INFINITY: 2.0}, -1), ({0.1: 1.0}, 1))

    assert total == {0.1: 4.0, INFINITY: 4.0}
