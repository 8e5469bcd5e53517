"""The options of channels, by namespace: what stands in `[channel]` and `[[namespaces]]`."""

from typing import Annotated

from pydantic import BaseModel, Field, ValidationInfo, field_validator

from gateway.protocol.channels import OPTION_NAMES, ChannelOptions
from gateway.settings_values import MODEL_CONFIG, Count, DurationOrZero, Regex


class ChannelSettings(BaseModel):
    """What a namespace, or a channel outside of any, allows and keeps.

    Everything is off by default: a channel opens by decision, not by omission.
    """

    model_config = MODEL_CONFIG

    history_size: Count = 0
    """Publications kept for each channel. 0 keeps none; history needs `history_ttl` too."""

    history_ttl: DurationOrZero = 0.0
    """How long a publication is kept. 0 keeps none; history needs `history_size` too."""

    force_recovery: bool = False
    """Every subscription can recover what it missed, without asking for it. Needs history."""

    force_positioning: bool = False
    """Every subscription is told when it lost a publication. Needs history."""

    allow_recovery: bool = False
    """A subscription that asks to be recoverable is. Needs history."""

    allow_positioning: bool = False
    """A subscription that asks to be positioned is. Needs history."""

    presence: bool = False
    """Who is in the channel can be asked for."""

    join_leave: bool = False
    """Joins and leaves are sent to the subscriptions that ask for them."""

    force_push_join_leave: bool = False
    """Joins and leaves are sent to every subscription. Needs `join_leave`."""

    allow_subscribe_for_client: bool = False
    """Users subscribe without a subscription token."""

    allow_subscribe_for_anonymous: bool = False
    """Anonymous connections may, too, what `allow_subscribe_for_client` lets users do."""

    allow_publish_for_client: bool = False
    """Users publish, subscribed or not."""

    allow_publish_for_subscriber: bool = False
    """Users publish while they are subscribed."""

    allow_publish_for_anonymous: bool = False
    """Anonymous connections may, too, what lets users publish."""

    allow_presence_for_client: bool = False
    """Users ask for presence, subscribed or not."""

    allow_presence_for_subscriber: bool = False
    """Users ask for presence while they are subscribed."""

    allow_presence_for_anonymous: bool = False
    """Anonymous connections may, too, what lets users ask for presence."""

    allow_history_for_client: bool = False
    """Users ask for history, subscribed or not."""

    allow_history_for_subscriber: bool = False
    """Users ask for history while they are subscribed."""

    allow_history_for_anonymous: bool = False
    """Anonymous connections may, too, what lets users ask for history."""

    channel_regex: Regex = ""
    """What a channel's name behind its namespace must match (searched for, so anchor it). Empty
    accepts every name."""

    @field_validator("history_ttl")
    @classmethod
    def _history_needs_both(cls, ttl: float, info: ValidationInfo) -> float:
        size = info.data.get("history_size")
        if size and not ttl:
            raise ValueError('must be above 0 when history_size is; set it, for example to "7d"')
        if ttl and size == 0:
            raise ValueError("has no effect without history_size; set that above 0 too")
        return ttl

    @field_validator("force_recovery", "force_positioning", "allow_recovery", "allow_positioning")
    @classmethod
    def _positions_need_history(cls, wanted: bool, info: ValidationInfo) -> bool:
        if wanted and info.data.get("history_size") == 0 and info.data.get("history_ttl") == 0:
            raise ValueError(
                "needs history, which is off; set history_size and history_ttl, or remove it"
            )
        return wanted

    @field_validator("force_push_join_leave")
    @classmethod
    def _pushes_need_join_leave(cls, wanted: bool, info: ValidationInfo) -> bool:
        if wanted and info.data.get("join_leave") is False:
            raise ValueError("has no effect without join_leave; set that to true, or remove it")
        return wanted

    def options(self) -> ChannelOptions:
        """The same as the protocol core takes it."""
        return ChannelOptions(**{name: getattr(self, name) for name in OPTION_NAMES})


class NamespaceSettings(ChannelSettings):
    """A namespace: its name and its options."""

    name: Annotated[str, Field(pattern=r"^[-a-zA-Z0-9_.]{2,}$")]
    """What stands in front of the colon in the names of its channels."""


DEVELOPMENT_CHANNEL = ChannelSettings(
    history_size=1000,
    history_ttl=7 * 86400.0,
    force_recovery=True,
    presence=True,
    join_leave=True,
    force_push_join_leave=True,
    allow_subscribe_for_client=True,
    allow_publish_for_subscriber=True,
    allow_presence_for_client=True,
    allow_history_for_client=True,
)
"""What channels allow in development where nothing else is configured."""

DEVELOPMENT_NAMESPACE = "chat"
"""The namespace of the demo page."""
