"""The states of a client's session and what leads from one to another, as a table.

`client_session` tells what they mean. An event without an entry can't happen in that state.
"""

from enum import Enum
from typing import Final


class ClientState(Enum):
    """What a client's session has and waits for."""

    IDLE = "idle"  # not started
    WAITING = "waiting"  # no line; the next attempt is made at `retry_at`
    DIALING = "dialing"  # a line is being opened
    OPENING = "opening"  # `open` was sent
    RESUMING = "resuming"  # `resume` was sent
    LIVE = "live"
    MOVING = "moving"  # live, and another line is being opened
    SWITCHING = "switching"  # live, and `resume` was sent on the other line
    ENDED = "ended"


class ClientEvent(Enum):
    """What happens to a client's session."""

    START = "start"
    DUE = "due"  # the moment for the next line has come
    OPEN = "open"  # the line is there and gets `open`
    RESUME = "resume"  # the line is there and gets `resume`
    ACCEPT = "accept"  # `opened` or `resumed`
    REFUSE = "refuse"  # `gone`: this line gets `open`
    LOSE = "lose"  # the line that serves, or would have, is lost
    LOSE_NEXT = "lose next"  # the line that was to replace it is lost
    BREAK = "break"  # the session is over, and another will begin
    END = "end"


_S = ClientState
_E = ClientEvent
TRANSITIONS: Final[dict[ClientState, dict[ClientEvent, ClientState]]] = {
    _S.IDLE: {_E.START: _S.DIALING, _E.END: _S.ENDED},
    _S.WAITING: {_E.DUE: _S.DIALING, _E.BREAK: _S.WAITING, _E.END: _S.ENDED},
    _S.DIALING: {
        _E.OPEN: _S.OPENING,
        _E.RESUME: _S.RESUMING,
        _E.LOSE: _S.WAITING,
        _E.BREAK: _S.DIALING,  # the line that is being opened will do for the next session
        _E.END: _S.ENDED,
    },
    _S.OPENING: {
        _E.ACCEPT: _S.LIVE,
        _E.LOSE: _S.WAITING,
        _E.BREAK: _S.WAITING,
        _E.END: _S.ENDED,
    },
    _S.RESUMING: {
        _E.ACCEPT: _S.LIVE,
        _E.REFUSE: _S.OPENING,
        _E.LOSE: _S.WAITING,
        _E.BREAK: _S.WAITING,
        _E.END: _S.ENDED,
    },
    _S.LIVE: {
        _E.DUE: _S.MOVING,
        _E.LOSE: _S.WAITING,
        _E.BREAK: _S.WAITING,
        _E.END: _S.ENDED,
    },
    _S.MOVING: {
        _E.RESUME: _S.SWITCHING,
        _E.LOSE: _S.DIALING,
        _E.LOSE_NEXT: _S.LIVE,
        _E.BREAK: _S.WAITING,
        _E.END: _S.ENDED,
    },
    _S.SWITCHING: {
        _E.ACCEPT: _S.LIVE,
        _E.REFUSE: _S.OPENING,
        _E.LOSE: _S.RESUMING,
        _E.LOSE_NEXT: _S.WAITING,
        _E.BREAK: _S.WAITING,
        _E.END: _S.ENDED,
    },
    _S.ENDED: {},
}
