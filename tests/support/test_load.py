"""The audit of a log, and of what a subscriber saw, finds what is wrong."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from store.pool import connect
from tests.support.load import Load, Place, check_log
from tests.support.ws import Feed

SUBSCRIBED = {"epoch": "E", "recoverable": True, "positioned": True}


def publication(offset: int) -> dict[str, Any]:
    return {"offset": offset, "data": offset}


def begun(**result: Any) -> Feed:
    """A feed that began at 5, has got 6, and has now this answer to its second subscribe."""
    feed = Feed("chat")
    feed.begin({**SUBSCRIBED, "offset": 5})
    feed.take(publication(6))
    assert feed.request() == {"channel": "chat", "recover": True, "epoch": "E", "offset": 6}
    if result:
        feed.begin({**SUBSCRIBED, **result})
    return feed


def test_a_feed_goes_on_where_it_was() -> None:
    feed = begun(was_recovering=True, recovered=True, offset=6, publications=[publication(7)])
    feed.take(publication(8))
    assert feed.received == [(6, 6), (7, 7), (8, 8)]
    assert not feed.faults


def test_a_feed_from_the_start_recovers_from_zero() -> None:
    feed = Feed("chat", from_start=True)
    assert feed.request() == {"channel": "chat", "recover": True, "epoch": "", "offset": 0}
    feed.begin({**SUBSCRIBED, "recovered": True, "publications": [publication(1)]})
    assert feed.received == [(1, 1)]
    assert not feed.faults


@pytest.mark.parametrize("offset", [5, 6, 8])
def test_a_feed_notes_what_is_missing_or_comes_again(offset: int) -> None:
    feed = begun()
    feed.take(publication(offset))
    assert feed.faults == [f"{offset} came after 6"]


@pytest.mark.parametrize(
    "result",
    [
        {"recovered": False, "offset": 9, "gap": {"from": 7, "to": 9}},
        {"recovered": True, "offset": 9},
        {"recovered": True, "offset": 6, "epoch": "another"},
        {"recovered": True, "offset": 6, "publications": [publication(8)]},
    ],
)
def test_a_feed_notes_a_recovery_that_is_none(result: dict[str, Any]) -> None:
    assert begun(was_recovering=True, **result).faults


@pytest.fixture
async def admin(database_url: str) -> AsyncIterator[Any]:
    """A database with messages 1 to 3 in "a"."""
    connection = await connect(database_url)
    await connection.execute("insert into streams (channel, epoch, top) values ('a', 'E', 3)")
    await connection.execute(
        """
        insert into publications (stream_id, "offset", published_at, data)
        select id, n, now(), convert_to(format('{"id":"%s"}', n), 'UTF8')
        from streams, generate_series(1, 3) n
        """
    )
    yield connection
    await connection.close()


@pytest.fixture
async def load() -> Load:
    """What the publishers of those were told: the first two were acknowledged."""
    load = Load("ws://nowhere", ["a"])
    load.begun = 5
    load.acknowledged = {"1": Place("a", 1, "E"), "2": Place("a", 2, "E")}
    load.in_doubt = {"3"}
    load.refused = {"4": 100, "5": 111}
    return load


async def test_a_log_that_is_as_it_should_be(admin: Any, load: Load, database_url: str) -> None:
    assert await check_log(database_url, load) == 3


def renamed(offset: int, name: int) -> str:
    """Give another id to the message at an offset."""
    return f"""update publications set data = '{{"id":"{name}"}}' where "offset" = {offset}"""


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        ('delete from publications where "offset" = 2', "a gap in a"),
        ("update streams set top = 4", "a gap in a"),
        ("update streams set epoch = 'F'", "acknowledged, but not there"),
        (f"{renamed(2, 3)}; {renamed(3, 2)}", "acknowledged, but not there"),
        (renamed(3, 1), "stored twice"),
        (renamed(3, 5), "refused, but there"),
        (renamed(3, 9), "never sent"),
    ],
)
async def test_a_log_that_was_harmed(
    admin: Any, load: Load, database_url: str, harm: str, said: str
) -> None:
    await admin.execute(harm)
    with pytest.raises(AssertionError, match=said):
        await check_log(database_url, load)


async def test_keyed_messages_must_all_be_there(admin: Any, load: Load, database_url: str) -> None:
    load.keyed = True
    load.refused = {}
    with pytest.raises(AssertionError, match="never stored: \\['4', '5'\\]"):
        await check_log(database_url, load)
    load.begun = 3
    assert await check_log(database_url, load) == 3
