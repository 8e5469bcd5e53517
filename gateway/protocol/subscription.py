"""One client's subscription: what was granted, what was asked, and how it entered its channel."""

from dataclasses import dataclass
from enum import Enum
from sys import intern
from typing import Final

from gateway.protocol.channels import ChannelOptions
from gateway.protocol.claims import OptionsOverride
from gateway.protocol.codec import StreamPosition, SubscribeRequest

FLAG_REJECT_UNRECOVERED: Final = 2  # subscribe.flag, A.5.7
NEVER: Final = float("inf")


class SubscriptionState(Enum):
    """Whether a subscription receives publications yet."""

    OPENING = "opening"
    LIVE = "live"


class Subscription:
    """One channel of one client, and what was granted for it."""

    __slots__ = (
        "chan_info",
        "channel",
        "command_id",
        "data",
        "expires_at",
        "join_leave",
        "options",
        "positioned",
        "presence",
        "push_join_leave",
        "recoverable",
        "reject_unrecovered",
        "server_side",
        "since",
        "state",
    )

    def __init__(self, channel: str, options: ChannelOptions) -> None:
        # Each client's command brings a copy of the name; ten thousand in a channel share one.
        self.channel = intern(channel)
        self.options = options
        self.state = SubscriptionState.OPENING
        self.command_id = 0  # of the subscribe command; 0 when the server subscribes
        self.server_side = False
        self.presence = options.presence
        self.join_leave = options.join_leave  # others learn of this client
        self.push_join_leave = options.join_leave and options.force_push_join_leave
        self.recoverable = options.keeps_history and options.force_recovery
        self.positioned = self.recoverable or (options.keeps_history and options.force_positioning)
        self.chan_info: bytes | None = None
        self.data: bytes | None = None  # for the client, with the reply
        self.expires_at = NEVER
        self.since: StreamPosition | None = None  # where the client asks to recover from
        self.reject_unrecovered = False

    def apply(self, override: OptionsOverride | None) -> None:
        """Let a token change the namespace's options for this subscription."""
        if override is None:
            return
        keeps_history = self.options.keeps_history
        if override.presence is not None:
            self.presence = override.presence
        if override.join_leave is not None:
            self.join_leave = override.join_leave
        if override.force_push_join_leave is not None:
            self.push_join_leave = self.join_leave and override.force_push_join_leave
        if override.force_recovery is not None:
            self.recoverable = keeps_history and override.force_recovery
        if override.force_positioning is not None:
            self.positioned = keeps_history and override.force_positioning
        self.positioned = self.positioned or self.recoverable

    def ask(self, request: SubscribeRequest) -> None:
        """Add what the client asks for, as far as the namespace allows it."""
        options = self.options
        if options.keeps_history:
            if request.recoverable and options.allow_recovery:
                self.recoverable = self.positioned = True
            if request.positioned and options.allow_positioning:
                self.positioned = True
        if request.join_leave and self.join_leave:
            self.push_join_leave = True
        if request.recover and self.recoverable:
            self.since = StreamPosition(request.offset, request.epoch)
        self.reject_unrecovered = bool(request.flag & FLAG_REJECT_UNRECOVERED)


@dataclass(frozen=True, slots=True)
class Joined:
    """How a subscription entered its channel.

    `position` is the top at that moment, None for channels without a log. `recovered` is None when
    the client did not ask; `publications` are the recovered ones, encoded; `gap` the offsets that
    history no longer has.
    """

    position: StreamPosition | None = None
    recovered: bool | None = None
    publications: tuple[bytes, ...] = ()
    gap: tuple[int, int] | None = None
