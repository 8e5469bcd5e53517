"""Who may do what in which channel: PROTOCOL.md A.4.4 and A.4.5 as tables."""

from dataclasses import replace

import pytest

from gateway.protocol.channels import ChannelOptions, Namespaces
from gateway.protocol.codes import BAD_REQUEST, UNKNOWN_CHANNEL, ErrorCode
from gateway.protocol.permissions import ChannelRules, Operation

CLOSED = ChannelOptions()
OPEN = ChannelOptions(allow_subscribe_for_client=True)
PUBLIC = ChannelOptions(allow_subscribe_for_client=True, allow_subscribe_for_anonymous=True)
NAMESPACES = Namespaces(CLOSED, {"open": OPEN, "rooms": ChannelOptions(channel_regex="^[a-z]+$")})

RULES = ChannelRules(NAMESPACES, channel_length_max=20)
INSECURE = replace(RULES, insecure=True)


@pytest.mark.parametrize(
    ("channel", "answer"),
    [
        ("news", CLOSED),
        ("open:lobby", OPEN),
        ("x" * 20, CLOSED),
        ("x" * 21, BAD_REQUEST),
        ("nowhere:" + "x" * 20, BAD_REQUEST),
        ("nowhere:lobby", UNKNOWN_CHANNEL),
        ("nowhere:lobbÿ", UNKNOWN_CHANNEL),
        ("open:lobbÿ", BAD_REQUEST),
        ("rooms:Kitchen", BAD_REQUEST),
    ],
)
def test_a_name_is_resolved_or_refused(channel: str, answer: ChannelOptions | ErrorCode) -> None:
    assert RULES.resolve(channel) is answer


@pytest.mark.parametrize(
    ("channel", "options", "user", "allowed", "allowed_insecurely"),
    [
        ("lobby", CLOSED, "alice", False, True),
        ("lobby", CLOSED, "", False, True),
        ("lobby", OPEN, "alice", True, True),
        ("lobby", OPEN, "", False, True),
        ("lobby", PUBLIC, "", True, True),
        # Anonymous clients are clients first.
        ("lobby", ChannelOptions(allow_subscribe_for_anonymous=True), "", False, True),
        ("lobby", ChannelOptions(allow_subscribe_for_anonymous=True), "alice", False, True),
        # A private channel wants a token, whatever else holds.
        ("$lobby", PUBLIC, "alice", False, False),
        # The name's own list of users decides, not the namespace.
        ("#alice", CLOSED, "alice", True, True),
        ("#alice", PUBLIC, "bob", False, True),
        ("talk#alice,bob", CLOSED, "bob", True, True),
        ("talk#alice,bob", CLOSED, "bo", False, True),
        ("talk#", PUBLIC, "", False, True),
    ],
)
def test_who_may_subscribe_without_a_token(
    channel: str, options: ChannelOptions, user: str, allowed: bool, allowed_insecurely: bool
) -> None:
    assert RULES.may_subscribe(channel, options, user) is allowed
    assert INSECURE.may_subscribe(channel, options, user) is allowed_insecurely


@pytest.mark.parametrize("operation", Operation)
@pytest.mark.parametrize("for_client", [False, True])
@pytest.mark.parametrize("for_subscriber", [False, True])
@pytest.mark.parametrize("for_anonymous", [False, True])
@pytest.mark.parametrize("subscribed", [False, True])
@pytest.mark.parametrize("user", ["alice", ""])
def test_who_may_publish_or_read(
    operation: Operation,
    for_client: bool,
    for_subscriber: bool,
    for_anonymous: bool,
    subscribed: bool,
    user: str,
) -> None:
    name = operation.value
    granted = {
        f"allow_{name}_for_client": for_client,
        f"allow_{name}_for_subscriber": for_subscriber,
        f"allow_{name}_for_anonymous": for_anonymous,
    }
    # Everything that another operation allows must not matter.
    others = {
        f"allow_{other.value}_for_{whom}": True
        for other in Operation
        for whom in ("client", "subscriber", "anonymous")
        if other is not operation
    }
    options = ChannelOptions(**granted, **others)  # type: ignore[arg-type]

    expected = (for_client or (for_subscriber and subscribed)) and (user != "" or for_anonymous)

    assert RULES.may(operation, options, user, subscribed) is expected
    assert INSECURE.may(operation, options, user, subscribed) is True
