"""Saved sessions and the key of resume tokens in a real PostgreSQL."""

import asyncio
import os
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest

from store import sessions
from store.pool import Connection, connect
from store.sessions import SavedRow

NOW = datetime(2026, 5, 4, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)

_IS_ANYBODY_WAITING = "select wait_event_type = 'Lock' from pg_stat_activity where pid = $1"


@pytest.fixture
async def connection(database_url: str) -> AsyncIterator[Connection]:
    connection = await connect(database_url)
    yield connection
    await connection.close()


def rows(count: int, *, expires_at: datetime = NOW + HOUR, state: bytes = b"x") -> list[SavedRow]:
    return [SavedRow(os.urandom(16), NOW, expires_at, state) for _ in range(count)]


# --- the key ------------------------------------------------------------------------------------


async def test_the_first_process_makes_the_key_for_all(connection: Connection) -> None:
    assert await sessions.session_key(connection, b"first") == b"first"
    assert await sessions.session_key(connection, b"second") == b"first"
    assert await connection.fetchval("select count(*) from session_keys") == 1


async def test_processes_that_start_together_agree(database_url: str) -> None:
    connections = [await connect(database_url) for _ in range(8)]
    try:
        keys = await asyncio.gather(
            *(
                sessions.session_key(connection, bytes([number]))
                for number, connection in enumerate(connections)
            )
        )
    finally:
        for connection in connections:
            connection.terminate()
    assert len(set(keys)) == 1


async def test_one_that_meets_an_uncommitted_key_waits_for_it(
    database_url: str, connection: Connection
) -> None:
    watcher = connection
    first, second = await connect(database_url), await connect(database_url)
    try:
        transaction = first.transaction()
        await transaction.start()
        assert await sessions.session_key(first, b"first") == b"first"
        waiting = asyncio.ensure_future(sessions.session_key(second, b"second"))
        while not await watcher.fetchval(_IS_ANYBODY_WAITING, second.get_server_pid()):
            assert not waiting.done()
        await transaction.commit()
        assert await waiting == b"first"
    finally:
        first.terminate()
        second.terminate()


async def test_a_key_that_is_deleted_is_made_anew(connection: Connection) -> None:
    await sessions.session_key(connection, b"first")
    await connection.execute("delete from session_keys")
    assert await sessions.session_key(connection, b"second") == b"second"


async def test_there_can_be_one_key_only(connection: Connection) -> None:
    await sessions.session_key(connection, b"first")
    with pytest.raises(asyncpg.UniqueViolationError):
        await connection.execute("insert into session_keys (key) values ('x')")
    with pytest.raises(asyncpg.CheckViolationError):
        await connection.execute("insert into session_keys (is_only, key) values (false, 'x')")


# --- saved sessions -----------------------------------------------------------------------------


async def test_what_is_saved_is_taken_as_it_was(connection: Connection) -> None:
    saved = [
        SavedRow(bytes(16), NOW, NOW + HOUR, b""),
        SavedRow(os.urandom(16), NOW + HOUR, NOW, os.urandom(300_000)),
    ]
    await sessions.save(connection, "one", saved)
    assert sorted(await sessions.take(connection, "one")) == sorted(saved)


async def test_it_is_taken_once(connection: Connection) -> None:
    await sessions.save(connection, "one", rows(3))
    assert len(await sessions.take(connection, "one")) == 3
    assert await sessions.take(connection, "one") == []


async def test_two_that_take_at_once_share_nothing(database_url: str) -> None:
    """Two processes of one name are their operator's mistake, and no session doubles by it."""
    first, second = await connect(database_url), await connect(database_url)
    try:
        await sessions.save(first, "one", rows(50))
        taken = await asyncio.gather(
            sessions.take(first, "one"), sessions.take(second, "one"), return_exceptions=False
        )
    finally:
        first.terminate()
        second.terminate()
    assert sorted(map(len, taken)) == [0, 50]


async def test_a_node_takes_its_own(connection: Connection) -> None:
    one, two = rows(2), rows(3)
    await sessions.save(connection, "one", one)
    await sessions.save(connection, "two", two)
    assert sorted(await sessions.take(connection, "two")) == sorted(two)
    assert sorted(await sessions.take(connection, "one")) == sorted(one)


@pytest.mark.parametrize("name", ["", "node:8080", "Nöde 'x' \\ %s", "n" * 255])
async def test_any_name_will_do(connection: Connection, name: str) -> None:
    await sessions.save(connection, name, rows(1))
    assert len(await sessions.take(connection, name)) == 1


async def test_what_is_saved_replaces_what_nobody_took(connection: Connection) -> None:
    await sessions.save(connection, "one", rows(5))
    new = rows(2)
    await sessions.save(connection, "one", new)
    assert sorted(await sessions.take(connection, "one")) == sorted(new)


async def test_all_are_saved_or_none(connection: Connection) -> None:
    before = rows(2)
    await sessions.save(connection, "one", before)
    with pytest.raises(asyncpg.UniqueViolationError):
        await sessions.save(connection, "one", rows(3) + rows(1) * 2)
    assert sorted(await sessions.take(connection, "one")) == sorted(before)


async def test_nothing_to_save_is_fine(connection: Connection) -> None:
    await sessions.save(connection, "one", [])
    assert await sessions.take(connection, "one") == []


async def test_ten_thousand_are_saved_and_taken_within_a_moment(connection: Connection) -> None:
    many = rows(10_000, state=os.urandom(2000))
    async with asyncio.timeout(10):
        await sessions.save(connection, "one", many)
        assert len(await sessions.take(connection, "one")) == 10_000


async def test_what_nobody_took_in_time_is_forgotten(connection: Connection) -> None:
    kept = rows(2, expires_at=NOW + HOUR)
    await sessions.save(connection, "one", kept)
    await sessions.save(connection, "two", rows(3, expires_at=NOW - HOUR))
    assert await sessions.forget_expired(connection, NOW) == 3
    assert await sessions.forget_expired(connection, NOW) == 0
    assert sorted(await sessions.take(connection, "one")) == sorted(kept)


async def test_finding_a_nodes_own_reads_an_index(connection: Connection) -> None:
    for number in range(20):
        await sessions.save(connection, f"node-{number}", rows(200))
    await connection.execute("analyze saved_sessions")
    for query, argument in ((sessions._TAKE, "node-3"), (sessions._FORGET, NOW - HOUR)):
        plan = await connection.fetch(f"explain {query}", argument)
        assert any("Index" in line[0] for line in plan), plan
