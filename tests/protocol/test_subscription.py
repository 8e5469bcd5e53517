"""What a namespace, a token and a client's wishes make of one subscription."""

import pytest

from gateway.protocol.channels import ChannelOptions
from gateway.protocol.claims import OptionsOverride
from gateway.protocol.codec import StreamPosition, SubscribeRequest
from gateway.protocol.subscription import NEVER, Subscription, SubscriptionState

LOG = {"history_size": 10, "history_ttl": 60.0}


def subscription(**options: object) -> Subscription:
    return Subscription("chat:lobby", ChannelOptions(**options))  # type: ignore[arg-type]


def test_a_new_subscription_is_opening_and_asks_for_nothing() -> None:
    new = subscription()

    assert new.state is SubscriptionState.OPENING
    assert (new.command_id, new.server_side, new.expires_at) == (0, False, NEVER)
    assert (new.chan_info, new.data, new.since, new.reject_unrecovered) == (None, None, None, False)
    assert not any((new.presence, new.join_leave, new.push_join_leave))
    assert not any((new.recoverable, new.positioned))


@pytest.mark.parametrize(
    ("options", "recoverable", "positioned"),
    [
        ({**LOG}, False, False),
        ({**LOG, "force_recovery": True}, True, True),
        ({**LOG, "force_positioning": True}, False, True),
        ({"force_recovery": True, "force_positioning": True}, False, False),
        ({**LOG, "allow_recovery": True, "allow_positioning": True}, False, False),
    ],
)
def test_the_namespace_forces_positions_where_there_is_a_log(
    options: dict[str, object], recoverable: bool, positioned: bool
) -> None:
    new = subscription(**options)

    assert (new.recoverable, new.positioned) == (recoverable, positioned)


@pytest.mark.parametrize(
    ("options", "request_", "recoverable", "positioned"),
    [
        ({**LOG, "allow_recovery": True}, {"recoverable": True}, True, True),
        ({**LOG, "allow_recovery": True}, {"positioned": True}, False, False),
        ({**LOG, "allow_positioning": True}, {"positioned": True}, False, True),
        ({**LOG, "allow_positioning": True}, {"recoverable": True}, False, False),
        ({**LOG}, {"recoverable": True, "positioned": True}, False, False),
        (
            {"allow_recovery": True, "allow_positioning": True},
            {"recoverable": True, "positioned": True},
            False,
            False,
        ),
        ({**LOG, "force_recovery": True}, {}, True, True),
    ],
)
def test_a_client_gets_positions_that_its_namespace_allows(
    options: dict[str, object], request_: dict[str, bool], recoverable: bool, positioned: bool
) -> None:
    new = subscription(**options)
    new.ask(SubscribeRequest(**request_))  # type: ignore[arg-type]

    assert (new.recoverable, new.positioned) == (recoverable, positioned)


def test_a_client_recovers_from_its_position_where_that_is_possible() -> None:
    request = SubscribeRequest(recover=True, epoch="e", offset=7)
    forced, plain = subscription(**LOG, force_recovery=True), subscription(**LOG)
    for new in (forced, plain):
        new.ask(request)

    assert forced.since == StreamPosition(7, "e")
    assert plain.since is None


def test_a_client_may_ask_to_recover_and_to_be_recoverable_at_once() -> None:
    new = subscription(**LOG, allow_recovery=True)
    new.ask(SubscribeRequest(recoverable=True, recover=True, offset=7))

    assert new.since == StreamPosition(7, "")


@pytest.mark.parametrize(
    ("flag", "rejects"), [(0, False), (1, False), (2, True), (3, True), (4, False), (-1, True)]
)
def test_the_second_flag_rejects_what_cannot_be_recovered(flag: int, rejects: bool) -> None:
    new = subscription()
    new.ask(SubscribeRequest(flag=flag))

    assert new.reject_unrecovered is rejects


def test_joins_and_leaves_are_pushed_to_who_asks_or_to_all() -> None:
    quiet = subscription(join_leave=True)
    assert (quiet.join_leave, quiet.push_join_leave) == (True, False)
    quiet.ask(SubscribeRequest(join_leave=True))
    assert quiet.push_join_leave

    assert subscription(join_leave=True, force_push_join_leave=True).push_join_leave

    none = subscription(force_push_join_leave=True)
    none.ask(SubscribeRequest(join_leave=True))
    assert not none.push_join_leave


def test_a_token_changes_options_one_by_one() -> None:
    new = subscription(**LOG, presence=True, force_recovery=True)
    new.apply(OptionsOverride(presence=False))
    assert (new.presence, new.recoverable, new.positioned) == (False, True, True)

    new.apply(OptionsOverride(join_leave=True, force_push_join_leave=True))
    assert (new.presence, new.join_leave, new.push_join_leave) == (False, True, True)

    new.apply(OptionsOverride(force_recovery=False, force_positioning=False))
    assert (new.recoverable, new.positioned) == (False, False)


def test_a_token_without_overrides_changes_nothing() -> None:
    new = subscription(**LOG, presence=True, join_leave=True, force_recovery=True)
    for override in (None, OptionsOverride()):
        new.apply(override)

        assert (new.presence, new.join_leave, new.push_join_leave) == (True, True, False)
        assert (new.recoverable, new.positioned) == (True, True)


def test_a_token_can_force_positions_only_where_there_is_a_log() -> None:
    forced = OptionsOverride(force_recovery=True, force_positioning=True)
    logged, unlogged = subscription(**LOG), subscription()
    for new in (logged, unlogged):
        new.apply(forced)

    assert (logged.recoverable, logged.positioned) == (True, True)
    assert (unlogged.recoverable, unlogged.positioned) == (False, False)


def test_recovery_implies_positions_whatever_a_token_says_of_them() -> None:
    new = subscription(**LOG)
    new.apply(OptionsOverride(force_recovery=True, force_positioning=False))

    assert (new.recoverable, new.positioned) == (True, True)


def test_joins_that_a_token_switched_off_are_not_pushed() -> None:
    new = subscription(join_leave=True)
    new.apply(OptionsOverride(join_leave=False, force_push_join_leave=True))
    new.ask(SubscribeRequest(join_leave=True))

    assert (new.join_leave, new.push_join_leave) == (False, False)
