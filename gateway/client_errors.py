"""What users of `gateway.client` may have to handle.

    ClientError
     ├── CannotConnect         no connection came about in the time given
     │    └── UpgradeRefused   the server answered the upgrade with a status that stays
     ├── Closed                the client was closed by its owner
     │    └── Disconnected     the server closed it, and doesn't want it back
     ├── ConnectionLost        a command may have been carried out or not: its reply got lost
     ├── CommandError          the server refused a command
     ├── MessageTooBig         a command is bigger than servers take
     ├── Unsubscribed          the server ended a subscription for good
     └── PublicationsLost      a subscription goes on, but not where it was

Short losses of the network are nobody's error and are not seen here.
"""


class ClientError(Exception):
    """Everything that `gateway.client` raises, but for wrong arguments."""


class CannotConnect(ClientError):
    """No connection came about in the time given; the last failure is the cause."""


class UpgradeRefused(CannotConnect):
    """The server answered with an HTTP status instead of a WebSocket."""

    def __init__(self, status: int) -> None:
        super().__init__(f"the server answered with HTTP status {status}")
        self.status = status


class Closed(ClientError):
    """The client is closed."""

    def __init__(self, message: str = "the client is closed") -> None:
        super().__init__(message)


class Disconnected(Closed):
    """The server closed the connection for good; codes from docs/codes.md."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"the server disconnected this client: {reason} ({code})")
        self.code = code
        self.reason = reason


class ConnectionLost(ClientError):
    """The connection ended before the reply, and the command is not one to send twice."""

    def __init__(self, method: str) -> None:
        super().__init__(f"the connection was lost before {method} was answered")
        self.method = method


class CommandError(ClientError):
    """An error reply; codes from docs/codes.md. A temporary one may work later."""

    def __init__(self, method: str, code: int, reason: str, *, temporary: bool) -> None:
        super().__init__(f"{method} was refused: {reason} ({code})")
        self.method = method
        self.code = code
        self.reason = reason
        self.temporary = temporary


class MessageTooBig(ClientError):
    """Servers close a connection on which so big a message comes, so it was not sent."""

    def __init__(self, size_bytes: int, limit_bytes: int) -> None:
        super().__init__(f"a command of {size_bytes} bytes; {limit_bytes} are allowed")
        self.size_bytes = size_bytes
        self.limit_bytes = limit_bytes


class Unsubscribed(ClientError):
    """The server ended this subscription, and it isn't to be taken up again."""

    def __init__(self, channel: str, code: int, reason: str) -> None:
        super().__init__(f"unsubscribed from {channel}: {reason} ({code})")
        self.channel = channel
        self.code = code
        self.reason = reason


class PublicationsLost(ClientError):
    """Publications are missing from here on; what comes next can be had by iterating again.

    `first` and `last` are the offsets of what is missing, as far as known; None where they aren't.
    """

    def __init__(self, channel: str, first: int | None = None, last: int | None = None) -> None:
        which = "publications" if first is None else f"publications {first} to {last}"
        super().__init__(f"{which} of {channel} are lost")
        self.channel = channel
        self.first = first
        self.last = last
