"""A socket that nobody speaks over any more, until its closing handshake is over."""

from typing import Protocol

from gateway.link import Link
from gateway.wheel import Wheel


class Sockets(Protocol):
    """Who counts the open sockets."""

    def socket_lost(self, link: Link, code: int) -> None:
        """A socket is closed; `code` is the close code that ended it."""


class Departed:
    """Owns a link whose session went on elsewhere, or waits without a socket.

    Nothing that still comes over it has any effect (PROTOCOL.md B.2.2).
    """

    __slots__ = ("_link", "_sockets", "wheel_tick")

    def __init__(self, sockets: Sockets, wheel: Wheel, link: Link, close_due: float) -> None:
        self._sockets = sockets
        self._link = link
        self.wheel_tick = 0
        link.use(self)
        link.close_due = close_due
        if link.paused and not link.lost:
            link.transport.resume_reading()  # or its close frame would never be seen
        wheel.add(self)

    # --- the link's owner -------------------------------------------------------------------------

    def text_received(self, text: str) -> None:
        """See `link.Owner`."""

    def binary_received(self) -> None:
        """See `link.Owner`."""

    def native_pong(self) -> None:
        """See `link.Owner`."""

    def writing_paused(self) -> None:
        """See `link.Owner`."""

    def writing_resumed(self) -> None:
        """See `link.Owner`."""

    def link_closing(self) -> None:
        """See `link.Owner`."""

    def link_lost(self, code: int) -> None:
        """See `link.Owner`."""
        self._sockets.socket_lost(self._link, code)

    # --- the wheel's ------------------------------------------------------------------------------

    def next_deadline(self) -> float:
        """See `wheel.Timed`."""
        return float("inf") if self._link.lost else self._link.close_due

    def tick(self, now: float) -> None:
        """See `wheel.Timed`."""
        self._link.abort()

    def excuse(self, seconds: float) -> None:
        """See `wheel.Timed`."""
        self._link.close_due += seconds
