"""Who is in which channel of this process."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PresenceStats:
    """How many clients and distinct users are in a channel."""

    num_clients: int
    num_users: int


class Presence:
    """Clients by channel, each with its ClientInfo in JSON."""

    def __init__(self) -> None:
        self._channels: dict[str, dict[str, tuple[str, bytes]]] = {}

    def add(self, channel: str, client: str, user: str, info: bytes) -> None:
        """Note that a client is in a channel, or that its info changed."""
        self._channels.setdefault(channel, {})[client] = (user, info)

    def remove(self, channel: str, client: str) -> None:
        """Note that a client left; unknown ones are ignored."""
        clients = self._channels.get(channel)
        if clients is not None and clients.pop(client, None) is not None and not clients:
            del self._channels[channel]

    def clients(self, channel: str) -> Mapping[str, bytes]:
        """ClientInfo in JSON by client id."""
        return {client: info for client, (_, info) in self._channels.get(channel, {}).items()}

    def stats(self, channel: str) -> PresenceStats:
        """How many there are."""
        clients = self._channels.get(channel, {})
        return PresenceStats(len(clients), len({user for user, _ in clients.values()}))
