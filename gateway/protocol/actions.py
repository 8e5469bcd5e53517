"""What a client needs of the world, and the values that cross that line."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from msgspec import Struct

from gateway.protocol.channels import ChannelOptions
from gateway.protocol.claims import ConnectClaims, SubscribeClaims, TokenError
from gateway.protocol.codec import Method, StreamPosition
from gateway.protocol.codes import Disconnect, ErrorCode
from gateway.protocol.permissions import ChannelRules
from gateway.protocol.subscription import Joined, Subscription


@dataclass(frozen=True, slots=True)
class ConnectGrant:
    """A good connection token, and for how many seconds more it holds (None: for ever)."""

    claims: ConnectClaims
    lifetime: float | None = None


@dataclass(frozen=True, slots=True)
class SubscribeGrant:
    """A good subscription token, and for how many seconds more it holds (None: for ever)."""

    claims: SubscribeClaims
    lifetime: float | None = None


class Publishing(Struct, frozen=True, gc=False):
    """A publication, checked and permitted. `data`, `info` and `tags` are raw JSON."""

    channel: str
    options: ChannelOptions
    data: bytes
    info: bytes | None = None
    tags: bytes | None = None
    idempotency_key: str = ""
    ephemeral: bool = False


class Published(Struct, frozen=True, gc=False):
    """Where a publication landed; offset 0 means that its channel keeps no log."""

    offset: int = 0
    epoch: str = ""
    duplicate: bool = False


@dataclass(frozen=True, slots=True)
class ClientRules:
    """What holds for every client of this server. Times in seconds."""

    channels: ChannelRules
    version: str
    ping_interval: float
    pong_timeout: float
    stale_close_delay: float
    expiry_grace: float
    channels_max: int
    commands_per_second: float
    commands_burst: float
    allow_anonymous: bool = False
    insecure: bool = False
    personal_channel: bool = False


class Actions(Protocol):
    """What a client needs of the world. No call waits.

    An answer may come before the call returns; it brings the time at which it came.
    """

    def send(self, payload: bytes) -> None:
        """Queue one reply or push for this client; order is kept."""

    def ping(self) -> None:
        """Send a health ping."""

    def close(self, disconnect: Disconnect, detail: str) -> None:
        """End the connection; `detail` is for the log."""

    def verify_connect(
        self, token: str, answer: Callable[[ConnectGrant | TokenError, float], None]
    ) -> None:
        """Check a connection token."""

    def verify_subscribe(
        self, token: str, answer: Callable[[SubscribeGrant | TokenError, float], None]
    ) -> None:
        """Check a subscription token."""

    def register(self) -> Disconnect | None:
        """Make the now identified client known; refuses when the user has too many."""

    def prepare(
        self, subscription: Subscription, answer: Callable[[ErrorCode | None, float], None]
    ) -> None:
        """Get everything at hand that joining the channel needs."""

    def join(self, subscription: Subscription) -> Joined | None:
        """Enter a prepared channel; its pushes start after what is sent in the same step.

        None when the client won't have a subscription that can't be recovered (A.5.7).
        """

    def leave(self, subscription: Subscription) -> None:
        """Leave a joined channel, with its presence."""

    def publish(self, command_id: int, publishing: Publishing) -> None:
        """Publish; `Client.published` follows."""

    def presence(self, command_id: int, channel: str, stats_only: bool) -> None:
        """Read who is there; `Client.answer` follows."""

    def history(
        self,
        command_id: int,
        channel: str,
        options: ChannelOptions,
        limit: int,
        since: StreamPosition | None,
        reverse: bool,
    ) -> None:
        """Read the log; `Client.answer` follows."""

    def call(self, command_id: int, method: str, data: bytes) -> None:
        """Call a registered RPC; `Client.answer` follows."""

    def command_seen(self, method: Method) -> None:
        """Count a command."""

    def error_seen(self, method: Method, error: ErrorCode) -> None:
        """Count an error reply."""
