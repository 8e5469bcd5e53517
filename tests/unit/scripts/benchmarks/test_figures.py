import pytest

from scripts.benchmarks import figures


def test_the_median_is_a_measured_value() -> None:
    assert figures.median([3.0, 1.0, 2.0]) == 2.0
    assert figures.median([4.0, 1.0, 3.0, 2.0]) == 2.0


def test_ratios_are_taken_pair_by_pair() -> None:
    assert figures.median_ratio([2.0, 30.0, 4.0], [1.0, 10.0, 4.0]) == 2.0


def test_pairs_must_be_complete() -> None:
    with pytest.raises(ValueError, match="shorter"):
        figures.median_ratio([1.0, 2.0], [1.0])


def test_quantiles_are_durations_that_happened_in_seconds() -> None:
    found = figures.distribution(1_000_000 * number for number in range(1, 1_001))

    assert (found.count, found.longest) == (1_000, 1.0)
    assert (found.p50, found.p99, found.p999) == (0.501, 0.991, 1.0)


def test_quantiles_of_nothing_are_an_error() -> None:
    with pytest.raises(ValueError, match="no durations"):
        figures.distribution([])


def test_repeats_are_summed_up_by_their_medians_and_the_longest_of_all() -> None:
    runs = [
        figures.Distribution(10, 0.1, 0.4, 0.9, 9.0),
        figures.Distribution(20, 0.3, 0.5, 0.7, 1.0),
        figures.Distribution(30, 0.2, 0.6, 0.8, 2.0),
    ]

    assert figures.median_distribution(runs) == figures.Distribution(60, 0.2, 0.5, 0.8, 9.0)
