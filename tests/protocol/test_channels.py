"""Channel names, and whose options they have."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.protocol.channels import (
    OPTION_NAMES,
    ChannelOptions,
    Namespaces,
    allowed_users,
    is_private,
)
from tests.support.fuzzing import REPEATABLE

DEFAULT = ChannelOptions(presence=True)
CHAT = ChannelOptions(history_size=10, history_ttl=60.0)
ROOMS = ChannelOptions(channel_regex=r"^[a-z]+$")
NAMESPACES = Namespaces(DEFAULT, {"chat": CHAT, "rooms": ROOMS})


@pytest.mark.parametrize(
    ("channel", "options"),
    [
        ("news", DEFAULT),
        ("$news", DEFAULT),
        ("#alice", DEFAULT),
        ("chat:lobby", CHAT),
        ("$chat:lobby", CHAT),
        ("chat:lobby:inner", CHAT),
        ("chat:", CHAT),
        ("chat:lobby#alice,bob", CHAT),
        ("chat", DEFAULT),
        ("Chat:lobby", None),
        ("unknown:lobby", None),
        ("#alice:lobby", None),
        ("$$chat:lobby", None),
        (":lobby", None),
    ],
)
def test_the_namespace_before_the_first_colon_has_the_options(
    channel: str, options: ChannelOptions | None
) -> None:
    assert NAMESPACES.options(channel) is options


def test_later_changes_to_the_given_mapping_change_nothing() -> None:
    named = {"chat": CHAT}
    namespaces = Namespaces(DEFAULT, named)
    named.clear()

    assert namespaces.options("chat:lobby") is CHAT


@pytest.mark.parametrize("channel", ["news", "chat:lobby #1", "~!@%^&*()_+|", " "])
def test_a_name_of_printable_ascii_is_valid(channel: str) -> None:
    assert NAMESPACES.name_is_valid(channel, DEFAULT)


@pytest.mark.parametrize("channel", ["zürich", "a\nb", "a\0b", "tab\t", "\x7f", "room\U0001f600"])
def test_any_other_name_is_not(channel: str) -> None:
    assert not NAMESPACES.name_is_valid(channel, DEFAULT)


@pytest.mark.parametrize(
    ("channel", "valid"),
    [
        ("rooms:kitchen", True),
        ("rooms:Kitchen", False),
        ("rooms:kitchen:2", False),
        ("rooms:", False),
        ("kitchen", True),
        ("Kitchen", False),
    ],
)
def test_the_part_behind_the_namespace_must_match_its_pattern(channel: str, valid: bool) -> None:
    assert NAMESPACES.name_is_valid(channel, ROOMS) is valid


@pytest.mark.parametrize(
    ("size", "ttl", "keeps"), [(0, 0.0, False), (10, 0.0, False), (0, 60.0, False), (1, 0.5, True)]
)
def test_history_needs_a_size_and_a_time(size: int, ttl: float, keeps: bool) -> None:
    assert ChannelOptions(history_size=size, history_ttl=ttl).keeps_history is keeps


def test_a_dollar_sign_in_front_makes_a_channel_private() -> None:
    assert is_private("$chat:lobby")
    assert is_private("$")
    assert not is_private("chat:$lobby")
    assert not is_private("")


@pytest.mark.parametrize(
    ("channel", "users"),
    [
        ("chat:lobby", None),
        ("#alice", {"alice"}),
        ("chat:dialog#alice,bob", {"alice", "bob"}),
        ("chat:#1#alice", {"alice"}),
        ("chat:nobody#", {""}),
    ],
)
def test_users_behind_the_last_hash_are_those_who_may_enter(
    channel: str, users: set[str] | None
) -> None:
    assert allowed_users(channel) == users


@given(st.text(max_size=40))
@settings(REPEATABLE, max_examples=200)
def test_any_text_can_be_asked_about(channel: str) -> None:
    options = NAMESPACES.options(channel)

    if options is not None:
        NAMESPACES.name_is_valid(channel, options)
    is_private(channel)
    allowed_users(channel)


def test_every_option_has_a_name_and_is_off_by_itself() -> None:
    options = ChannelOptions()

    assert len(OPTION_NAMES) == 21
    assert not any(getattr(options, name) for name in OPTION_NAMES)
