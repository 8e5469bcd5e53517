"""The bodies of server API requests (PROTOCOL.md A.11), field for field as Centrifugo has them."""

import base64
import binascii
from typing import Annotated, Any

import orjson
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from gateway.protocol.claims import OptionsOverride
from gateway.protocol.limits import is_unfit_for_others

OFFSET_MAX = 2**53 - 1
UNIX_TIME_MAX = 2**53 - 1  # seconds; what JSON numbers hold exactly

ChannelName = Annotated[str, StringConstraints(min_length=1)]
Offset = Annotated[int, Field(ge=0, le=OFFSET_MAX)]


class UnusableData(ValueError):
    """`data` or `b64data` isn't what JSON clients can be sent."""


class Request(BaseModel):
    """Unknown fields are ignored, as newer clients of older servers rely on."""

    model_config = ConfigDict(extra="ignore", strict=False)


class WithData(Request):
    """A request with a payload, as JSON or as JSON in base64."""

    data: Any = None
    b64data: str = ""

    def payload(self) -> bytes:
        """The payload as compact JSON; `null` only if it was given. Raises `UnusableData`."""
        if not self.b64data and "data" not in self.model_fields_set:
            raise UnusableData("there is neither data nor b64data")
        return _payload(self.data, self.b64data)


def _payload(data: Any, b64data: str) -> bytes:
    try:
        if b64data:
            # Parsed and written again: one line, and certainly JSON.
            data = orjson.loads(base64.b64decode(b64data, validate=True))
        payload = orjson.dumps(data)
    except (binascii.Error, ValueError, orjson.JSONEncodeError) as error:
        raise UnusableData(f"the payload is not JSON: {error}") from None
    if is_unfit_for_others(payload):
        raise UnusableData("the payload is nested too deeply")
    return payload


class PublishRequest(WithData):
    """`publish`."""

    channel: ChannelName
    skip_history: bool = False
    tags: dict[str, str] | None = None
    idempotency_key: Annotated[str, StringConstraints(max_length=64)] = ""
    version: int = 0


class BroadcastRequest(WithData):
    """`broadcast`."""

    channels: Annotated[list[ChannelName], Field(max_length=10_000)]
    skip_history: bool = False
    tags: dict[str, str] | None = None
    idempotency_key: Annotated[str, StringConstraints(max_length=64)] = ""
    version: int = 0


class Position(Request):
    """A place in a channel's log."""

    offset: Offset = 0
    epoch: str = ""


class Flag(Request):
    """A boolean that can be left out."""

    value: bool


class Override(Request):
    """Channel options for one subscription."""

    presence: Flag | None = None
    join_leave: Flag | None = None
    force_recovery: Flag | None = None
    force_positioning: Flag | None = None
    force_push_join_leave: Flag | None = None

    def options(self) -> OptionsOverride:
        """The same as the protocol core has it."""
        values = {
            name: None if flag is None else flag.value
            for name in type(self).model_fields
            for flag in (getattr(self, name),)
        }
        return OptionsOverride(**values)


class Target(Request):
    """Whose connections are meant: all of a user's, or the one with this client id.

    `session` is what connections over emulated transports have. There are none of those here, so
    who names one means nobody; it must not be taken for "all of the user's".
    """

    user: str = ""
    client: str = ""
    session: str = ""


class SubscribeRequest(Target, WithData):
    """`subscribe`."""

    channel: ChannelName
    info: Any = None
    b64info: str = ""
    override: Override | None = None
    recover_since: Position | None = None

    def channel_info(self) -> bytes | None:
        """`info` as compact JSON. Raises `UnusableData`."""
        return _payload(self.info, self.b64info) if self.info is not None or self.b64info else None

    def subscription_data(self) -> bytes | None:
        """`data` as compact JSON. Raises `UnusableData`."""
        return self.payload() if self.data is not None or self.b64data else None


class UnsubscribeRequest(Target):
    """`unsubscribe`."""

    channel: ChannelName


class DisconnectCode(Request):
    """The close code and reason to use."""

    code: Annotated[int, Field(ge=0, le=4999)] = 0
    reason: str = ""


class DisconnectRequest(Target, DisconnectCode):
    """`disconnect`; the code stands by itself or, as older clients send it, in an object."""

    whitelist: list[str] = Field(default_factory=list)
    disconnect: DisconnectCode | None = None


class RefreshRequest(Target):
    """`refresh`."""

    expired: bool = False
    expire_at: Annotated[int, Field(ge=0, le=UNIX_TIME_MAX)] = 0


class ChannelRequest(Request):
    """`presence`, `presence_stats` and `history_remove`."""

    channel: ChannelName


class HistoryRequest(Request):
    """`history`."""

    channel: ChannelName
    limit: int = 0
    since: Position | None = None
    reverse: bool = False


class ChannelsRequest(Request):
    """`channels`."""

    pattern: str = ""


class InfoRequest(Request):
    """`info`."""


class BatchRequest(Request):
    """`batch`: each command is an object with one method and its request."""

    commands: Annotated[list[dict[str, Any]], Field(max_length=10_000)]
    parallel: bool = False
