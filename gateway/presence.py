"""Who is in which channel of this process."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from gateway.protocol.health import Quality


@dataclass(frozen=True, slots=True)
class PresenceStats:
    """How many clients and distinct users are in a channel."""

    num_clients: int
    num_users: int


class Line(Protocol):
    """What is known of a client's line."""

    @property
    def quality(self) -> Quality:
        """How well it is at the moment."""


class Presence:
    """Clients by channel, each with its ClientInfo in JSON."""

    def __init__(self) -> None:
        self._channels: dict[str, dict[str, tuple[str, bytes, Line | None]]] = {}

    def add(
        self, channel: str, client: str, user: str, info: bytes, line: Line | None = None
    ) -> None:
        """Note that a client is in a channel, or that its info changed."""
        self._channels.setdefault(channel, {})[client] = (user, info, line)

    def remove(self, channel: str, client: str) -> None:
        """Note that a client left; unknown ones are ignored."""
        clients = self._channels.get(channel)
        if clients is not None and clients.pop(client, None) is not None and not clients:
            del self._channels[channel]

    def clients(self, channel: str) -> Mapping[str, bytes]:
        """ClientInfo in JSON by client id, with the line's `quality` where it is measured (B.4)."""
        return {
            client: info if line is None else _with_quality(info, line.quality)
            for client, (_, info, line) in self._channels.get(channel, {}).items()
        }

    def stats(self, channel: str) -> PresenceStats:
        """How many there are."""
        clients = self._channels.get(channel, {})
        return PresenceStats(len(clients), len({user for user, _, _ in clients.values()}))


def _with_quality(info: bytes, quality: Quality) -> bytes:
    """ClientInfo, a JSON object that is never empty, with one member more."""
    return b'%b,"quality":"%b"}' % (info[:-1], quality.value.encode())
