import pytest

from scripts.benchmarks import report
from scripts.benchmarks.rows import Aim, Row, Unit, Verdict


@pytest.mark.parametrize(
    ("aim", "verdict"),
    [
        (Aim(2e-6), Verdict.MET),
        (Aim(1e-6), Verdict.MISSED),
        (Aim(1.5, of_ratio=True), Verdict.MET),
        (Aim(1.4, of_ratio=True), Verdict.MISSED),
        (Aim(2e-6, at_least=True), Verdict.MET),
        (Aim(3e-6, at_least=True), Verdict.MISSED),
        (None, Verdict.NO_AIM),
    ],
)
def test_an_aim_is_met_up_to_its_limit(aim: Aim | None, verdict: Verdict) -> None:
    assert Row("row", Unit.MICROSECONDS, 2e-6, ratio=1.5, aim=aim).verdict is verdict


def test_values_are_printed_in_their_unit() -> None:
    assert Unit.MICROSECONDS.text(1234.5e-6) == "1,234.50 µs"
    assert Unit.MILLISECONDS.text(0.0123) == "12.30 ms"
    assert Unit.BYTES.text(5120) == "5,120 B"
    assert Unit.PER_SECOND.text(15_000.4) == "15,000 /s"


def test_the_table_shows_figures_verdicts_and_notes() -> None:
    rows = [
        Row(
            "fan-out",
            Unit.MICROSECONDS,
            6.9e-6,
            baseline=6.4e-6,
            baseline_name="a bare write",
            ratio=1.08,
            aim=Aim(1.1, of_ratio=True),
        ),
        Row("rate", Unit.PER_SECOND, 9_000, aim=Aim(15_000, at_least=True), load_busy=0.95),
    ]

    _, rule, fanout, rate, _, fanout_note, rate_note = report.table(rows).splitlines()

    assert set(rule) == {"-"}
    assert fanout.split() == ["fan-out", "6.90", "µs", "6.40", "µs", "1.08x", "≤", "1.10x", "met"]
    assert rate.split() == ["rate", "9,000", "/s", "≥", "15,000", "/s", "MISSED", "95%"]
    assert fanout_note == "fan-out: baseline is a bare write"
    assert "the load process was the limit" in rate_note
