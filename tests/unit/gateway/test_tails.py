"""Tails reach back as far as their limits allow, and never over a hole."""

import pytest

from gateway.channel import Channel
from gateway.protocol.channels import ChannelOptions
from gateway.tails import TAIL_MAX, TAIL_MAX_BYTES, TAILS_MAX_BYTES, Tails
from metrics.instruments import REGISTRY

# One object: a tail that is full of it takes no memory.
BIG = bytes(TAIL_MAX_BYTES)
CHANNELS_MAX = TAILS_MAX_BYTES // TAIL_MAX_BYTES


def channel(name: str = "chat:1") -> Channel:
    return Channel(name, ChannelOptions(history_size=1000, history_ttl=60))


def offsets(tails: Tails, of: Channel, after: int) -> list[int] | None:
    """The offsets that the tail has after another one, None when it doesn't reach back to it."""
    entries = tails.after(of, after)
    return None if entries is None else [offset for offset, _ in entries]


def reads_from_tails() -> float:
    value = REGISTRY.get_sample_value("capegate_log_reads_total", {"source": "tail"})
    assert value is not None
    return value


@pytest.fixture
def tails() -> Tails:
    return Tails()


def test_a_tail_gives_what_comes_after_an_offset(tails: Tails) -> None:
    chat = channel()
    for offset in (4, 5, 6):
        tails.keep(chat, offset, b"pub %d" % offset)

    assert tails.after(chat, 4) == [(5, b"pub 5"), (6, b"pub 6")]


def test_a_tail_reaches_back_to_just_before_its_first_publication(tails: Tails) -> None:
    chat = channel()
    for offset in (4, 5, 6):
        tails.keep(chat, offset, b"pub")

    assert offsets(tails, chat, after=3) == [4, 5, 6]
    assert offsets(tails, chat, after=2) is None


def test_whoever_has_everything_misses_nothing(tails: Tails) -> None:
    chat = channel()
    tails.keep(chat, 7, b"pub")

    assert offsets(tails, chat, after=7) == []


def test_a_channel_without_a_tail_answers_nothing(tails: Tails) -> None:
    assert tails.after(channel(), 0) is None


def test_only_answers_are_counted_as_reads(tails: Tails) -> None:
    chat = channel()
    tails.keep(chat, 7, b"pub")
    before = reads_from_tails()

    tails.after(chat, 1)
    assert reads_from_tails() == before
    tails.after(chat, 6)
    assert reads_from_tails() == before + 1


def test_a_tail_keeps_a_limited_number_of_publications(tails: Tails) -> None:
    chat = channel()
    for offset in range(1, TAIL_MAX + 11):
        tails.keep(chat, offset, b"pub")

    assert offsets(tails, chat, after=9) is None
    assert offsets(tails, chat, after=10) == list(range(11, TAIL_MAX + 11))


def test_a_tail_keeps_a_limited_number_of_bytes(tails: Tails) -> None:
    chat = channel()
    quarter = bytes(TAIL_MAX_BYTES // 4)
    for offset in range(1, 5):
        tails.keep(chat, offset, quarter)
    assert offsets(tails, chat, after=0) == [1, 2, 3, 4]

    tails.keep(chat, 5, b"x")

    assert offsets(tails, chat, after=0) is None
    assert offsets(tails, chat, after=1) == [2, 3, 4, 5]
    assert chat.tail_bytes == 3 * len(quarter) + 1


def test_a_publication_over_the_limit_leaves_a_tail_that_starts_behind_it(tails: Tails) -> None:
    chat = channel()
    tails.keep(chat, 1, b"small")
    tails.keep(chat, 2, BIG + b"x")
    assert tails.after(chat, 2) is None
    assert chat.tail_bytes == 0

    tails.keep(chat, 3, b"small")

    assert offsets(tails, chat, after=1) is None
    assert offsets(tails, chat, after=2) == [3]


def test_channels_have_tails_of_their_own(tails: Tails) -> None:
    first, second = channel("chat:1"), channel("chat:2")
    tails.keep(first, 1, b"one")
    tails.keep(second, 1, b"two")

    tails.drop(first)

    assert tails.after(first, 0) is None
    assert tails.after(second, 0) == [(1, b"two")]


def test_a_dropped_tail_begins_again(tails: Tails) -> None:
    chat = channel()
    tails.keep(chat, 1, b"one")
    tails.drop(chat)
    tails.drop(chat)

    tails.keep(chat, 5, b"five")

    assert offsets(tails, chat, after=1) is None
    assert offsets(tails, chat, after=4) == [5]
    assert chat.tail_bytes == len(b"five")


def test_all_tails_together_stay_within_their_limit(tails: Tails) -> None:
    channels = [channel(f"chat:{number}") for number in range(CHANNELS_MAX)]
    for each in channels:
        tails.keep(each, 1, BIG)
    assert all(each.tail for each in channels)

    one_more = channel("chat:more")
    tails.keep(one_more, 1, b"x")

    assert not channels[0].tail
    assert channels[0].tail_bytes == 0
    assert all(each.tail for each in channels[1:])
    assert tails.after(one_more, 0) == [(1, b"x")]


def test_the_tail_that_goes_first_was_published_to_longest_ago(tails: Tails) -> None:
    channels = [channel(f"chat:{number}") for number in range(CHANNELS_MAX)]
    for each in channels:
        tails.keep(each, 1, BIG)
    tails.keep(channels[0], 2, BIG)

    tails.keep(channel("chat:more"), 1, b"x")

    assert channels[0].tail
    assert not channels[1].tail
    assert channels[2].tail


def test_dropped_tails_make_room_for_others(tails: Tails) -> None:
    channels = [channel(f"chat:{number}") for number in range(CHANNELS_MAX)]
    for each in channels:
        tails.keep(each, 1, BIG)

    tails.drop(channels[-1])
    tails.keep(channel("chat:more"), 1, BIG)

    assert all(each.tail for each in channels[:-1])


def test_trimmed_publications_make_room_for_others(tails: Tails) -> None:
    busy = channel("busy")
    others = [channel(f"chat:{number}") for number in range(CHANNELS_MAX - 1)]
    for each in others:
        tails.keep(each, 1, BIG)

    for offset in range(1, 100):
        tails.keep(busy, offset, BIG)

    assert all(each.tail for each in others)
    assert offsets(tails, busy, after=98) == [99]
