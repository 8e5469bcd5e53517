"""State diagrams as text."""

from enum import Enum

import pytest

from scripts.diagrams import DIAGRAMS, redrawn, state_diagram


class Light(Enum):
    """A lamp's states."""

    OFF = "off"
    ON = "on"
    BLINKING = "blinking"
    DIM = "dim"
    BROKEN = "broken"


class Touch(Enum):
    """What happens to a lamp."""

    PRESS = "press"
    TURN = "turn"
    DROP = "drop"


def lines(*expected: str) -> str:
    return "\n".join(("stateDiagram-v2", "    direction LR", *expected))


def test_every_transition_is_an_arrow() -> None:
    table = {Light.OFF: {Touch.PRESS: Light.ON}, Light.ON: {Touch.PRESS: Light.OFF}}

    assert state_diagram(table, Light.OFF) == lines(
        "    [*] --> off",
        "    off --> on: press",
        "    on --> off: press",
    )


def test_events_that_lead_to_the_same_state_share_an_arrow() -> None:
    table: dict[Light, dict[Touch, Light]] = {
        Light.OFF: {Touch.PRESS: Light.ON, Touch.TURN: Light.ON},
        Light.ON: {},
    }

    assert state_diagram(table, Light.OFF, "buy") == lines(
        "    [*] --> off: buy",
        "    off --> on: press, turn",
        "    on --> [*]",
    )


def test_events_that_change_nothing_stand_in_the_state() -> None:
    table = {
        Light.ON: {Touch.PRESS: Light.ON, Touch.TURN: Light.ON, Touch.DROP: Light.BROKEN},
        Light.BROKEN: {Touch.DROP: Light.BROKEN},
    }

    assert state_diagram(table, Light.ON) == lines(
        "    [*] --> on",
        "    on: on",
        "    on: ↻ press, turn",
        "    on --> broken: drop",
        "    broken: broken",
        "    broken: ↻ drop",
        "    broken --> [*]",
    )


def test_what_may_happen_everywhere_has_one_arrow() -> None:
    table: dict[Light, dict[Touch, Light]] = {
        Light.OFF: {Touch.PRESS: Light.ON, Touch.DROP: Light.BROKEN},
        Light.ON: {Touch.PRESS: Light.DIM, Touch.DROP: Light.BROKEN},
        Light.DIM: {Touch.PRESS: Light.BLINKING, Touch.DROP: Light.BROKEN},
        Light.BLINKING: {Touch.PRESS: Light.OFF, Touch.DROP: Light.BROKEN},
        Light.BROKEN: {},
    }

    assert state_diagram(table, Light.OFF) == lines(
        "    [*] --> off",
        "    off --> on: press",
        "    on --> dim: press",
        "    dim --> blinking: press",
        "    blinking --> off: press",
        '    state "any state" as any',
        "    any --> broken: drop",
        "    broken --> [*]",
    )


def test_a_page_gets_its_diagrams_and_keeps_the_rest() -> None:
    page = (
        "# Lamps\n\n<!-- diagram: line -->\nold\n<!-- end of diagram -->\n\nmore\n"
        "<!-- diagram: session -->\n<!-- end of diagram -->\n"
    )

    drawn = redrawn(page)

    assert drawn == (
        f"# Lamps\n\n<!-- diagram: line -->\n```mermaid\n{DIAGRAMS['line']}\n```\n"
        "<!-- end of diagram -->\n\nmore\n"
        f"<!-- diagram: session -->\n```mermaid\n{DIAGRAMS['session']}\n```\n"
        "<!-- end of diagram -->\n"
    )
    assert redrawn(drawn) == drawn


def test_an_unknown_diagram_is_told() -> None:
    with pytest.raises(KeyError, match="lamp"):
        redrawn("<!-- diagram: lamp -->\n<!-- end of diagram -->")
