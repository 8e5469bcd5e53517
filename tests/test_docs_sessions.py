"""docs/sessions.md says what the session layer does: its pictures, figures, codes and examples."""

import json
import re
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any, Final

import pytest

from gateway.newcomer import VAIN_RESUMES_MAX
from gateway.protocol import client_states, health, session
from gateway.protocol.backoff import (
    CENTRIFUGE_DART,
    CENTRIFUGE_GO,
    CENTRIFUGE_JAVA,
    CENTRIFUGE_JS,
    CENTRIFUGE_PYTHON,
    CENTRIFUGE_SWIFT,
    RetentionBounds,
    TabledBackoff,
    needed_retention,
    retention,
)
from gateway.protocol.client_policy import _RESUMABLE, DEFAULT_BACKOFF, SessionPolicy
from gateway.protocol.session import Gone
from gateway.protocol.session_frames import (
    ClientFrame,
    Open,
    ServerFrame,
    decode_client_frame,
    decode_server_frame,
    is_session_frame,
)
from gateway.session_connection import ACK_EVERY
from gateway.sessions import ENDED_REMEMBERED
from gateway.settings import Settings
from scripts.diagrams import DIAGRAMS, redrawn

PAGE: Final = Path(__file__).resolve().parent.parent / "docs" / "sessions.md"
TEXT: Final = PAGE.read_text(encoding="utf-8")
DETECTION: Final = (
    Settings.model_fields["ping_interval"].default
    + Settings.model_fields["ping_deadline_max"].default
)
TABLES: Final[Mapping[str, Mapping[Any, Mapping[Any, Any]]]] = {
    "session": session.TRANSITIONS,
    "line": health.TRANSITIONS,
    "client": client_states.TRANSITIONS,
}


def section(heading: str) -> str:
    _, found, rest = TEXT.partition(f"\n{heading}\n")
    assert found, heading
    return re.split(r"^#+ ", rest, maxsplit=1, flags=re.MULTILINE)[0]


def rows(text: str) -> list[list[str]]:
    """The cells of all tables, without their heads."""
    bodies = re.findall(r"^\|[-|]+\|\n((?:\|.*\n)*)", text, re.MULTILINE)
    lines = [line for body in bodies for line in body.splitlines()]
    return [[cell.strip() for cell in line[1:-1].split("|")] for line in lines]


# --- pictures -------------------------------------------------------------------------------------


def test_the_pictures_are_what_the_script_draws() -> None:
    assert redrawn(TEXT) == TEXT, "run python -m scripts.diagrams"


@pytest.mark.parametrize("name", TABLES)
def test_a_picture_has_every_transition_of_its_table_and_no_other(name: str) -> None:
    table = {
        before.value: {event.value: after.value for event, after in following.items()}
        for before, following in TABLES[name].items()
    }
    _, found, behind = TEXT.partition(f"<!-- diagram: {name} -->")
    picture = behind.partition("<!-- end")[0]
    ends = re.findall(r"^    (\w+) --> \[\*\]$", picture, re.MULTILINE)
    arrows = [
        *re.findall(r"^    (\w+) --> (\w+): (.+)$", picture, re.MULTILINE),
        *((state, state, names) for state, names in re.findall(r"(\w+): ↻ (.+)", picture)),
    ]
    drawn = [
        (state, event, after)
        for before, after, events in arrows
        for event in events.split(", ")
        for state in (
            [state for state in table if state not in ends] if before == "any" else [before]
        )
    ]

    assert found
    assert sorted(drawn) == sorted(
        (before, event, after)
        for before, following in table.items()
        for event, after in following.items()
    )


def test_every_table_is_drawn() -> None:
    assert set(re.findall(r"<!-- diagram: (\w+) -->", TEXT)) == set(DIAGRAMS) == set(TABLES)


@pytest.mark.parametrize("name", TABLES)
def test_every_state_can_be_reached_and_left_or_is_an_end(name: str) -> None:
    table = TABLES[name]
    (first,) = re.findall(r"\[\*\] --> (\w+)", DIAGRAMS[name])
    reached: set[Enum] = set()
    coming = {state for state in table if state.value == first}
    while coming:
        reached |= coming
        coming = {after for state in coming for after in table[state].values()} - reached
    ends = {state.value for state in table if set(table[state].values()) <= {state}}

    assert reached == set(table)
    assert ends == set(re.findall(r"(\w+) --> \[\*\]", DIAGRAMS[name]))


# --- figures --------------------------------------------------------------------------------------

SDKS: Final = {
    "centrifuge-js 5.8": CENTRIFUGE_JS,
    "centrifuge-python 0.7": CENTRIFUGE_PYTHON,
    "centrifuge-go 0.12": CENTRIFUGE_GO,
    "centrifuge-dart 0.16": CENTRIFUGE_DART,
    "centrifuge-swift 0.9": CENTRIFUGE_SWIFT,
    "centrifuge-java 0.7": CENTRIFUGE_JAVA,
}


def sdk_row(name: str, backoff: TabledBackoff) -> list[str]:
    five = needed_retention(backoff, 0.0, 0.0)
    kept = retention(backoff, DETECTION, RetentionBounds())
    delays = ", ".join(f"{delay:g}" for delay in backoff.delays)
    return [name, delays, f"{backoff.timeout:g}", f"{five:g}", f"{kept:g}"]


def test_stock_schedules_are_listed_as_they_are() -> None:
    listed = rows(section("## How long a session is kept"))

    assert [row for row in listed if row[0] in SDKS] == [
        sdk_row(name, backoff) for name, backoff in SDKS.items()
    ]


def test_the_worked_example_comes_to_what_the_code_comes_to() -> None:
    kept = retention(DEFAULT_BACKOFF, DETECTION, RetentionBounds())

    assert f"the session is kept for {kept:g} s" in TEXT
    assert set(re.findall(r'"retain":(\d+)', TEXT)) == {f"{kept * 1000:.0f}"}


def test_the_bounds_of_retention_are_the_settings_defaults() -> None:
    bounds = RetentionBounds()

    assert bounds.floor == Settings.model_fields["session_retention_min"].default
    assert bounds.ceiling == Settings.model_fields["session_retention_max"].default
    assert ["slack", f"{bounds.slack:g} s, for the handshake of the attempt that succeeds"] in rows(
        TEXT
    )


def test_grades_are_listed_as_they_are() -> None:
    listed = rows(section("## Health"))

    assert listed == [
        *(
            [f"`{quality.value}`", f"{srtt * 1000:g} ms", f"{spread * 1000:g} ms"]
            for quality, (srtt, spread) in zip(health.Quality, health._GRADES, strict=False)
        ),
        [f"`{health.Quality.POOR.value}`", "beyond that", ""],
    ]


def test_numbers_in_the_text_are_those_of_the_code() -> None:
    words = {4: "four", 8: "eight"}
    policy = SessionPolicy(chance=float)

    assert f"a `gone` for each of {words[VAIN_RESUMES_MAX]}" in TEXT
    assert f"the last {words[health._MISSES_REMEMBERED]} pings" in TEXT
    assert f"the last {ENDED_REMEMBERED:,}" in TEXT
    assert TEXT.count(f"After {ACK_EVERY} of them") == 2
    assert (policy.ack_frames, policy.ack_bytes) == (ACK_EVERY, 32 * 1024)
    assert f"the ping interval and {policy.patience:g} s" in TEXT


# --- codes, frames, settings ----------------------------------------------------------------------


def test_close_codes_are_listed_as_they_are() -> None:
    resumed, _ = rows(section("### Close codes"))
    codes: set[int] = set()
    for part in resumed[0].split(", "):
        first, _, last = part.partition(" to ")
        codes |= set(range(int(first), int(last or first) + 1))

    assert codes == _RESUMABLE


@pytest.mark.parametrize(
    ("side", "frames"), [("client", ClientFrame), ("server", ServerFrame)], ids=["client", "server"]
)
def test_every_frame_is_listed(side: str, frames: type[ClientFrame | ServerFrame]) -> None:
    _, _, table = section("## Frames").partition(f"| from the {side} | meaning |\n")
    listed = rows(table.partition("\n\n")[0] + "\n")

    assert [row[0].strip("`") for row in listed] == list(frames.__struct_fields__)


def test_every_reason_has_its_input() -> None:
    answers = " ".join(row[1] for row in rows(section("## Odd input, and its answer")))

    assert set(re.findall(r"`gone`, `(\w+)`", answers)) == {reason.value for reason in Gone}


def test_examples_are_valid_frames() -> None:
    (block,) = re.findall(r"^```\n(.*?)^```", section("## Frames"), re.MULTILINE | re.DOTALL)
    lines = [line for line in block.splitlines() if line.startswith(("> ", "< "))]
    kinds = set()
    for line in lines:
        message = line[2:]
        if is_session_frame(message):
            (decode_client_frame if line.startswith(">") else decode_server_frame)(message)
            kinds |= set(json.loads(message)["session"])

    assert kinds == {"open", "opened", "ping", "pong", "resume", "resumed"}
    opened = decode_client_frame(lines[0][2:])
    assert isinstance(opened, Open)
    assert opened.backoff.in_seconds() == DEFAULT_BACKOFF


def test_settings_on_the_page_exist() -> None:
    named = re.findall(r"`((?:session|detached|connections|unauthenticated|ping|stale)_\w+)`", TEXT)

    assert named
    assert set(named) <= set(Settings.model_fields)
