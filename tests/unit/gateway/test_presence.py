"""Who is in a channel: each client once, each user once however many clients it has."""

import pytest

from gateway.presence import Presence, PresenceStats


@pytest.fixture
def presence() -> Presence:
    return Presence()


def test_a_channel_names_its_clients_with_their_info(presence: Presence) -> None:
    presence.add("chat", "c1", "alice", b'{"client":"c1"}')
    presence.add("chat", "c2", "bob", b'{"client":"c2"}')

    assert presence.clients("chat") == {"c1": b'{"client":"c1"}', "c2": b'{"client":"c2"}'}


def test_a_channel_that_nobody_is_in_is_empty(presence: Presence) -> None:
    assert presence.clients("chat") == {}
    assert presence.stats("chat") == PresenceStats(num_clients=0, num_users=0)


def test_a_user_with_several_clients_counts_once(presence: Presence) -> None:
    presence.add("chat", "c1", "alice", b"{}")
    presence.add("chat", "c2", "alice", b"{}")
    presence.add("chat", "c3", "bob", b"{}")

    assert presence.stats("chat") == PresenceStats(num_clients=3, num_users=2)


def test_a_user_is_there_until_its_last_client_left(presence: Presence) -> None:
    presence.add("chat", "c1", "alice", b"{}")
    presence.add("chat", "c2", "alice", b"{}")

    presence.remove("chat", "c1")
    assert presence.stats("chat") == PresenceStats(num_clients=1, num_users=1)
    presence.remove("chat", "c2")
    assert presence.stats("chat") == PresenceStats(num_clients=0, num_users=0)


def test_a_client_that_comes_again_has_its_newest_info(presence: Presence) -> None:
    presence.add("chat", "c1", "alice", b'{"mood":"good"}')
    presence.add("chat", "c1", "alice", b'{"mood":"better"}')

    assert presence.clients("chat") == {"c1": b'{"mood":"better"}'}
    assert presence.stats("chat") == PresenceStats(num_clients=1, num_users=1)


def test_a_client_leaves_one_channel_and_stays_in_another(presence: Presence) -> None:
    presence.add("chat", "c1", "alice", b"{}")
    presence.add("news", "c1", "alice", b"{}")

    presence.remove("chat", "c1")

    assert presence.clients("chat") == {}
    assert presence.clients("news") == {"c1": b"{}"}


def test_whoever_was_never_there_may_leave(presence: Presence) -> None:
    presence.add("chat", "c1", "alice", b"{}")

    presence.remove("chat", "c2")
    presence.remove("news", "c1")

    assert presence.clients("chat") == {"c1": b"{}"}


def test_who_was_there_when_asked_does_not_change_afterwards(presence: Presence) -> None:
    """An answer may still be on its way while somebody leaves."""
    presence.add("chat", "c1", "alice", b"{}")
    clients = presence.clients("chat")

    presence.remove("chat", "c1")

    assert clients == {"c1": b"{}"}
