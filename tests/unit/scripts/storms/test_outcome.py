"""What is made of a storm's figures: the bound, the table, the picture."""

import dataclasses
from xml.etree import ElementTree

import pytest
from msgspec.structs import replace

from scripts.storms import chart, report
from scripts.storms.messages import Audited, Returned
from scripts.storms.storm import Blow, Look, Outcome, Storm

SVG = "{http://www.w3.org/2000/svg}"
RETURNED = Returned(
    missing=0,
    stuck=[],
    resumed=0,
    recovered=4,
    unrecovered=0,
    dials=[2.0, 2.1, 2.2, 2.3, 3.0],
    refusals=[2.3],
    returns=[2.05, 2.12, 2.14, 3.0],
    slots_told=1,
    slots_lateness=[0.01],
    joins=0,
    leaves=0,
    acknowledged_p50=0.01,
    acknowledged_p99=0.02,
    load_busy=0.5,
)
AUDITED = Audited(
    published=9,
    acknowledged=9,
    logged=9,
    deliveries=36,
    lost_publishes=0,
    doubled_publishes=0,
    lost_deliveries=0,
    doubled_deliveries=0,
    wrong_deliveries=0,
    faults=[],
)
OUTCOME = Outcome(
    storm=Storm(clients=4, sessions=4, rooms=1),
    gathered=0.1,
    ended=0.1,
    ready=2.0,
    returned=RETURNED,
    looks=[Look(2.0, connects=5.0, resumes=50.0), Look(2.5, connects=6.0, resumes=60.0)],
    lag_p99=0.05,
    lag_count=12,
    slots={"handed_out": 1, "honoured": 1, "early": 0},
    resumes={"unknown": 4},
    presence_changed=8,
    audited=AUDITED,
    server_busy=0.7,
    others_busy=0.0,
)


def verdicts(outcome: Outcome) -> dict[str, str]:
    """The last words of the lines of the table that have one."""
    found = {}
    for line in report.table(outcome).splitlines():
        words = line.split("  ")
        if words[-1] in ("met", "MISSED"):
            found[words[0]] = words[-1]
    return found


def test_recovery_counts_from_when_clients_could_come_back() -> None:
    assert OUTCOME.recovery == pytest.approx(1.0)
    assert OUTCOME.capacity == 5.0
    assert OUTCOME.bound == 4.0  # the clients' own longest delay
    many = dataclasses.replace(OUTCOME.storm, clients=40)
    assert dataclasses.replace(OUTCOME, storm=many).bound == pytest.approx(1.5 * 40 / 5.0)


def test_capacity_is_that_of_those_who_came() -> None:
    resumed = replace(RETURNED, resumed=4, recovered=0)
    mixed = replace(RETURNED, resumed=2, recovered=2)

    assert dataclasses.replace(OUTCOME, returned=resumed).capacity == 50.0
    # Two at 5 a second and two at 50: 0.44 seconds for four.
    assert dataclasses.replace(OUTCOME, returned=mixed).capacity == pytest.approx(4 / 0.44)


def test_the_table_says_what_was_met() -> None:
    assert verdicts(OUTCOME) == {
        "lost": "met",
        "doubled": "met",
        "back": "met",
        "time to recover": "met",
        "loop lag": "met",
    }


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"audited": replace(AUDITED, lost_deliveries=1)}, "lost"),
        ({"audited": replace(AUDITED, doubled_publishes=1)}, "doubled"),
        ({"returned": replace(RETURNED, missing=1)}, "back"),
        ({"returned": replace(RETURNED, returns=[9.0])}, "time to recover"),
        ({"lag_p99": 0.2}, "loop lag"),
    ],
)
def test_the_table_says_what_was_missed(change: dict[str, object], line: str) -> None:
    outcome = dataclasses.replace(OUTCOME, **change)  # type: ignore[arg-type]

    assert verdicts(outcome)[line] == "MISSED"


def test_presence_counts_at_a_deploy() -> None:
    deploy = dataclasses.replace(OUTCOME.storm, blow=Blow.TERM)
    outcome = dataclasses.replace(OUTCOME, storm=deploy)

    assert verdicts(outcome)["presence of sessions"] == "MISSED"
    unmoved = dataclasses.replace(outcome, presence_changed=0)
    assert verdicts(unmoved)["presence of sessions"] == "met"


@pytest.mark.parametrize(
    "change",
    [
        {"audited": replace(AUDITED, lost_publishes=1)},
        {"audited": replace(AUDITED, wrong_deliveries=1)},
        {"returned": replace(RETURNED, missing=1)},
    ],
)
def test_an_outcome_is_clean_only_without_any_loss(change: dict[str, object]) -> None:
    assert OUTCOME.is_clean
    assert not dataclasses.replace(OUTCOME, **change).is_clean  # type: ignore[arg-type]


def test_moments_are_counted_in_tenths_of_a_second() -> None:
    assert chart.per_bin([0.0, 0.05, 0.31], 0.5) == [2, 0, 0, 1, 0, 0]


def test_the_picture_is_svg_with_a_bar_for_each_tenth_of_a_second() -> None:
    root = ElementTree.fromstring(chart.draw(OUTCOME))
    fills = [rect.get("fill") for rect in root.iter(f"{SVG}rect")]
    texts = [text.text or "" for text in root.iter(f"{SVG}text")]

    # Received in three tenths of a second, sent away in one; and the colours of the legend.
    assert fills.count("#2f7ed8") == 3 + 1
    assert fills.count("#e08214") == 1 + 1
    assert any("seconds since the signal" in text for text in texts)
    assert any("clients per 100 ms" in text for text in texts)
    assert texts[0] == root.findtext(f"{SVG}title")


def test_a_picture_of_nobody_is_one_too() -> None:
    nobody = replace(RETURNED, returns=[], refusals=[], recovered=0, missing=4)
    outcome = dataclasses.replace(OUTCOME, returned=nobody, looks=[])

    ElementTree.fromstring(chart.draw(outcome))
    assert outcome.capacity == 0
    assert "0 of 4" in report.table(outcome)
