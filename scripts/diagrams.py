"""State diagrams for the docs, drawn from the tables that the code runs on.

`python -m scripts.diagrams` draws them anew where a page has a place for one:

    <!-- diagram: NAME -->
    …
    <!-- end of diagram -->

Mermaid is text, so a change of the table is a readable change of the page, and GitHub shows the
picture. A test redraws them and compares.
"""

import re
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Final, TypeVar

from gateway.protocol import client_states, health, session

PAGE: Final = Path(__file__).resolve().parent.parent / "docs" / "sessions.md"

State = TypeVar("State", bound=Enum)
Event = TypeVar("Event", bound=Enum)

_PLACE: Final = re.compile(
    r"(?P<begin><!-- diagram: (?P<name>\w+) -->\n).*?(?P<end><!-- end of diagram -->)", re.DOTALL
)


def state_diagram(
    transitions: Mapping[State, Mapping[Event, State]], first: State, how: str = ""
) -> str:
    """A table as Mermaid; `how` says what leads to the first state.

    Events that lead from one state to the same other one share an arrow. Those that change nothing
    stand inside the state, behind ↻. An event that leads to the same state from everywhere but an
    end has one arrow, from "any state". A state that nothing leads away from is an end.
    """
    ends = {state for state, following in transitions.items() if set(following.values()) <= {state}}
    everywhere = _everywhere([transitions[state] for state in transitions if state not in ends])
    lines = ["stateDiagram-v2", "    direction LR", f"    [*] --> {_id(first)}{how and ': '}{how}"]
    for state, following in transitions.items():
        events: dict[State, list[str]] = {}
        for event, target in following.items():
            if everywhere.get(event) is not target:
                events.setdefault(target, []).append(event.value)
        if unchanged := events.pop(state, None):
            lines += [f"    {_id(state)}: {_id(state)}", f"    {_id(state)}: ↻ {_all(unchanged)}"]
        lines += [
            f"    {_id(state)} --> {_id(target)}: {_all(names)}" for target, names in events.items()
        ]
    if everywhere:
        lines.append('    state "any state" as any')
    lines += [f"    any --> {_id(state)}: {event.value}" for event, state in everywhere.items()]
    lines += [f"    {_id(state)} --> [*]" for state in transitions if state in ends]
    return "\n".join(lines)


def _everywhere(followings: Sequence[Mapping[Event, State]]) -> Mapping[Event, State]:
    """The events that lead to the same state in all of them, if they are more than one can see."""
    if len(followings) < 4:
        return {}
    return {
        event: target
        for event, target in followings[0].items()
        if all(following.get(event) is target for following in followings)
    }


def _id(state: Enum) -> str:
    return str(state.value)


def _all(events: Sequence[str]) -> str:
    return ", ".join(events)


DIAGRAMS: Final[Mapping[str, str]] = {
    "session": state_diagram(session.TRANSITIONS, session.SessionState.ATTACHED, "open"),
    "line": state_diagram(health.TRANSITIONS, health.LineState.IDLE),
    "client": state_diagram(client_states.TRANSITIONS, client_states.ClientState.IDLE),
}


def redrawn(page: str) -> str:
    """The page with each diagram as its table is now. Raises `KeyError` for an unknown name."""
    return _PLACE.sub(
        lambda place: f"{place['begin']}```mermaid\n{DIAGRAMS[place['name']]}\n```\n{place['end']}",
        page,
    )


def main() -> None:
    """Redraw the page."""
    PAGE.write_text(redrawn(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
