"""From a verified token's payload to claims (PROTOCOL.md A.9).

The payload is signed, but whoever signed it may be wrong about the types, so every claim is
checked. Nothing here raises anything but TokenInvalid, and no reason quotes what the token holds.
"""

import base64
import binascii
import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import orjson

from gateway.protocol.claims import (
    ConnectClaims,
    OptionsOverride,
    ServerSubscription,
    SubscribeClaims,
    TokenInvalid,
)

OVERRIDE_NAMES = tuple(field.name for field in fields(OptionsOverride))

_PLAIN_SUBSCRIPTION = ServerSubscription()
_NO_SUBSCRIPTIONS: Mapping[str, ServerSubscription] = {}


def connect_claims(payload: Mapping[str, Any]) -> ConnectClaims:
    """The claims of a connection token. Raises TokenInvalid."""
    if payload.get("channel"):
        raise TokenInvalid("it is a subscription token: it has a channel")
    return ConnectClaims(
        user=_text(payload, "sub"),
        expire_at=_expire_at(payload),
        info=_json(payload, "info"),
        subs=_subscriptions(payload),
        meta=_raw(payload, "meta"),
    )


def subscribe_claims(payload: Mapping[str, Any]) -> SubscribeClaims:
    """The claims of a subscription token. Raises TokenInvalid."""
    channel = _text(payload, "channel")
    if not channel:
        raise TokenInvalid("it is no subscription token: it has no channel")
    return SubscribeClaims(
        user=_text(payload, "sub"),
        channel=channel,
        client=_text(payload, "client"),
        expire_at=_expire_at(payload),
        info=_json(payload, "info"),
        override=_override(payload),
    )


def moment(payload: Mapping[str, Any], name: str) -> float:
    """A claim that is there and is a number of unix seconds. Raises TokenInvalid."""
    value = payload[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise TokenInvalid(f"{name} isn't a number")
    return float(value)


def _expire_at(payload: Mapping[str, Any]) -> float:
    """When what the token opened ends: `expire_at` itself (0 for never), else `exp`, else never."""
    if payload.get("expire_at") is None:
        return moment(payload, "exp") if "exp" in payload else 0.0
    expire_at = moment(payload, "expire_at")
    if expire_at < 0:
        raise TokenInvalid("expire_at is negative")
    return expire_at


def _text(payload: Mapping[str, Any], name: str) -> str:
    value = payload.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise TokenInvalid(f"{name} isn't a string")
    return value


def _raw(payload: Mapping[str, Any], name: str) -> bytes | None:
    value = payload.get(name)
    return None if value is None else _dump(value, name)


def _json(payload: Mapping[str, Any], name: str) -> bytes | None:
    """A claim that is JSON in place, or JSON in base64 under the name with `b64` before it.

    It is written anew, so that no line break in it can end up between two frames' objects.
    """
    encoded = payload.get(f"b64{name}")
    if encoded is None or encoded == "":
        return _raw(payload, name)
    if not isinstance(encoded, str):
        raise TokenInvalid(f"b64{name} isn't a string")
    try:
        decoded = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        raise TokenInvalid(f"b64{name} isn't base64") from None
    try:
        value = orjson.loads(decoded)
    except orjson.JSONDecodeError:
        raise TokenInvalid(f"b64{name} holds no JSON") from None
    return None if value is None else _dump(value, f"b64{name}")


def _dump(value: object, name: str) -> bytes:
    try:
        return orjson.dumps(value)
    except orjson.JSONEncodeError:
        # orjson reads deeper nesting than it writes.
        raise TokenInvalid(f"{name} is nested too deeply") from None


def _subscriptions(payload: Mapping[str, Any]) -> Mapping[str, ServerSubscription]:
    channels, subs = payload.get("channels"), payload.get("subs")
    if channels is None and subs is None:
        return _NO_SUBSCRIPTIONS
    found: dict[str, ServerSubscription] = {}
    if channels is not None:
        if not isinstance(channels, list):
            raise TokenInvalid("channels isn't a list")
        for channel in channels:
            if not isinstance(channel, str) or not channel:
                raise TokenInvalid("channels holds something else than names")
            found[channel] = _PLAIN_SUBSCRIPTION
    if subs is not None:
        if not isinstance(subs, dict):
            raise TokenInvalid("subs isn't an object")
        for channel, options in subs.items():
            found[channel] = _subscription(channel, options)
    return found


def _subscription(channel: str, options: object) -> ServerSubscription:
    if not channel:
        raise TokenInvalid("subs holds an empty name")
    if options is None:
        return _PLAIN_SUBSCRIPTION
    if not isinstance(options, dict):
        raise TokenInvalid("subs holds something else than objects")
    return ServerSubscription(
        info=_json(options, "info"), data=_json(options, "data"), override=_override(options)
    )


def _override(payload: Mapping[str, Any]) -> OptionsOverride | None:
    override = payload.get("override")
    if override is None:
        return None
    if not isinstance(override, dict):
        raise TokenInvalid("override isn't an object")
    values: dict[str, bool] = {}
    for name in OVERRIDE_NAMES:
        option = override.get(name)
        if option is None:
            continue
        # An issuer that leaves out empty values writes false as an empty object.
        value = option.get("value", False) if isinstance(option, dict) else None
        if not isinstance(value, bool):
            raise TokenInvalid(f"override of {name} isn't an object with a boolean value")
        values[name] = value
    return OptionsOverride(**values)
