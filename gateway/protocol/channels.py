"""Channel names and the options of their namespaces.

A channel is `namespace:rest` or, without a colon, belongs to the default options. Two marks inside
the name carry meaning, as in Centrifugo: a channel that starts with `$` can only be entered with a
subscription token, and what follows a `#` is the comma-separated list of the users who may enter.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields

PRIVATE_PREFIX = "$"
NAMESPACE_BOUNDARY = ":"
USER_BOUNDARY = "#"
USER_SEPARATOR = ","


@dataclass(frozen=True, slots=True)
class ChannelOptions:
    """What a namespace allows and keeps. Names are Centrifugo's where the same thing exists there.

    `history_ttl` is in seconds. History is kept only when both `history_size` and `history_ttl`
    are above zero.
    """

    history_size: int = 0
    history_ttl: float = 0.0
    force_recovery: bool = False
    force_positioning: bool = False
    allow_recovery: bool = False
    allow_positioning: bool = False
    presence: bool = False
    join_leave: bool = False
    force_push_join_leave: bool = False
    allow_subscribe_for_client: bool = False
    allow_subscribe_for_anonymous: bool = False
    allow_publish_for_client: bool = False
    allow_publish_for_subscriber: bool = False
    allow_publish_for_anonymous: bool = False
    allow_presence_for_client: bool = False
    allow_presence_for_subscriber: bool = False
    allow_presence_for_anonymous: bool = False
    allow_history_for_client: bool = False
    allow_history_for_subscriber: bool = False
    allow_history_for_anonymous: bool = False
    channel_regex: str = ""

    @property
    def keeps_history(self) -> bool:
        """Whether publications are committed to the log (and so have offsets)."""
        return self.history_size > 0 and self.history_ttl > 0

    def name_fits(self, rest: str) -> bool:
        """Whether the part of the name behind the namespace matches `channel_regex`."""
        return not self.channel_regex or re.search(self.channel_regex, rest) is not None


OPTION_NAMES = tuple(option.name for option in fields(ChannelOptions))


class Namespaces:
    """Finds the options of a channel by its name."""

    __slots__ = ("_default", "_named")

    def __init__(self, default: ChannelOptions, named: Mapping[str, ChannelOptions]) -> None:
        self._default = default
        self._named = dict(named)

    def options(self, channel: str) -> ChannelOptions | None:
        """The channel's options, or None when it names a namespace that doesn't exist."""
        name, boundary, _ = channel.partition(NAMESPACE_BOUNDARY)
        if not boundary:
            return self._default
        return self._named.get(name.removeprefix(PRIVATE_PREFIX))

    def name_is_valid(self, channel: str, options: ChannelOptions) -> bool:
        """Whether the name is one the wire and the log can carry and its namespace accepts.

        Printable ASCII only, as in Centrifugo: names travel in URLs, logs and metrics.
        """
        if not channel.isascii() or not channel.isprintable():
            return False
        _, boundary, rest = channel.partition(NAMESPACE_BOUNDARY)
        return options.name_fits(rest if boundary else channel)


def is_private(channel: str) -> bool:
    """Whether only a subscription token opens the channel."""
    return channel.startswith(PRIVATE_PREFIX)


def allowed_users(channel: str) -> frozenset[str] | None:
    """The users that the name itself admits, or None when it doesn't limit them."""
    _, boundary, users = channel.rpartition(USER_BOUNDARY)
    if not boundary:
        return None
    return frozenset(users.split(USER_SEPARATOR))
