"""Who may do what in which channel (PROTOCOL.md A.4.4, A.4.5)."""

from dataclasses import dataclass
from enum import Enum

from gateway.protocol.channels import ChannelOptions, Namespaces, allowed_users, is_private
from gateway.protocol.codes import BAD_REQUEST, UNKNOWN_CHANNEL, ErrorCode


class Operation(Enum):
    """What clients ask to do in a channel besides subscribing."""

    PUBLISH = "publish"
    PRESENCE = "presence"
    HISTORY = "history"


@dataclass(frozen=True, slots=True)
class ChannelRules:
    """Names, namespaces and whether the checks are on at all."""

    namespaces: Namespaces
    channel_length_max: int
    insecure: bool = False

    def resolve(self, channel: str) -> ChannelOptions | ErrorCode:
        """The options of a channel named by a client, or why the name won't do."""
        if len(channel) > self.channel_length_max:
            return BAD_REQUEST
        options = self.namespaces.options(channel)
        if options is None:
            return UNKNOWN_CHANNEL
        if not self.namespaces.name_is_valid(channel, options):
            return BAD_REQUEST
        return options

    def may_subscribe(self, channel: str, options: ChannelOptions, user: str) -> bool:
        """Whether a client may subscribe without a subscription token."""
        if is_private(channel):
            return False
        users = allowed_users(channel)
        if users is not None:
            return self.insecure or (user != "" and user in users)
        if options.allow_subscribe_for_client and (user or options.allow_subscribe_for_anonymous):
            return True
        return self.insecure

    def may(
        self, operation: Operation, options: ChannelOptions, user: str, subscribed: bool
    ) -> bool:
        """Whether a client may publish, or read presence or history."""
        if operation is Operation.PUBLISH:
            for_client = options.allow_publish_for_client
            for_subscriber = options.allow_publish_for_subscriber
            for_anonymous = options.allow_publish_for_anonymous
        elif operation is Operation.PRESENCE:
            for_client = options.allow_presence_for_client
            for_subscriber = options.allow_presence_for_subscriber
            for_anonymous = options.allow_presence_for_anonymous
        else:
            for_client = options.allow_history_for_client
            for_subscriber = options.allow_history_for_subscriber
            for_anonymous = options.allow_history_for_anonymous
        if (for_client or (for_subscriber and subscribed)) and (user or for_anonymous):
            return True
        return self.insecure
