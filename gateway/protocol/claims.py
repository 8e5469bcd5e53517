"""What a verified token says (PROTOCOL.md A.9), free of how it was verified.

Exception hierarchy:

* TokenError
    * TokenInvalid — forged, malformed, for somebody else, or not acceptable here
    * TokenExpired — was good once; the client should fetch a new one (code 109)
    * KeyMissing — signed by a key we have not seen; fetching the key set may help
"""

from collections.abc import Mapping
from dataclasses import dataclass, field


class TokenError(Exception):
    """A token that can't be honoured."""


class TokenInvalid(TokenError):
    """Forged, malformed or not meant for this server. `reason` never holds the token."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class TokenExpired(TokenError):
    """The token was valid until its `exp`."""


class KeyMissing(TokenError):
    """No key of that id is known (yet)."""

    def __init__(self, kid: str) -> None:
        super().__init__(f"no key {kid!r} is known")
        self.kid = kid


@dataclass(frozen=True, slots=True)
class OptionsOverride:
    """Channel options that a token sets for one subscription; None leaves the namespace's."""

    presence: bool | None = None
    join_leave: bool | None = None
    force_recovery: bool | None = None
    force_positioning: bool | None = None
    force_push_join_leave: bool | None = None


@dataclass(frozen=True, slots=True)
class ServerSubscription:
    """A subscription that the connection token (or the server API) makes for the client.

    `info` and `data` are raw JSON.
    """

    info: bytes | None = None
    data: bytes | None = None
    override: OptionsOverride | None = None


@dataclass(frozen=True, slots=True)
class ConnectClaims:
    """Who connects. `expire_at` is in unix seconds, 0 means never; `info` is raw JSON."""

    user: str
    expire_at: float = 0.0
    info: bytes | None = None
    subs: Mapping[str, ServerSubscription] = field(default_factory=dict)
    meta: bytes | None = None


@dataclass(frozen=True, slots=True)
class SubscribeClaims:
    """What a subscription token permits; an empty `client` means any of the user's."""

    user: str
    channel: str
    client: str = ""
    expire_at: float = 0.0
    info: bytes | None = None
    override: OptionsOverride | None = None
