"""Remote procedures that handlers register for clients (PROTOCOL.md A.12)."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from gateway.protocol.codes import METHOD_NOT_FOUND, NOT_AVAILABLE, ErrorCode


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls: the connection's client id and user, "" for anonymous."""

    client: str
    user: str


class RPCError(Exception):
    """Answer a call with an error. Application codes are 400 to 1999 (A.6)."""

    def __init__(self, error: ErrorCode) -> None:
        super().__init__(error.message)
        self.error = error


# Takes the caller and the request's data in raw JSON, b"" for none; returns the answer's.
Procedure = Callable[[Caller, bytes], Awaitable[bytes]]


class Procedures:
    """The registered procedures, by name such as `invoice.list`."""

    def __init__(self) -> None:
        self._procedures: dict[str, Procedure] = {}

    def register(self, name: str, procedure: Procedure) -> None:
        """Make a procedure callable. Each name is given once."""
        if name in self._procedures:
            raise ValueError(f"the procedure {name!r} is registered twice")
        self._procedures[name] = procedure

    def find(self, name: str) -> Procedure | ErrorCode:
        """The procedure; 108 when there are none at all, 104 when there is none of that name."""
        if not self._procedures:
            return NOT_AVAILABLE
        return self._procedures.get(name, METHOD_NOT_FOUND)
