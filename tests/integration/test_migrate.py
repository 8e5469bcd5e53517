"""Migrations on a real server: up, down, together, and when they fail."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from store import migrate
from store.migrate import MigrationError, revisions
from store.pool import Connection, DatabaseError, DatabaseProblem, connect
from tests.support.cluster import Cluster

_HEAD = revisions()[-1]

# What a schema consists of, for comparing. Alembic's table is there also when nothing else is.
_SCHEMA = """
    select c.relname, c.relkind::text, c.reloptions::text, a.attname, a.attnotnull,
           format_type(a.atttypid, a.atttypmod), a.attidentity::text, a.attcollation,
           pg_get_expr(d.adbin, d.adrelid), pg_get_viewdef(c.oid), pg_get_indexdef(c.oid),
           col_description(c.oid, a.attnum), obj_description(c.oid)
    from pg_class c
    join pg_attribute a on a.attrelid = c.oid and a.attnum > 0
    left join pg_attrdef d on d.adrelid = c.oid and d.adnum = a.attnum
    where c.relnamespace = 'public'::regnamespace and c.relname not like 'alembic%'
    order by c.relname, a.attnum
"""


@pytest.fixture
async def connection(empty_database_url: str) -> AsyncIterator[Connection]:
    connection = await connect(empty_database_url)
    yield connection
    await connection.close()


async def _schema(connection: Connection) -> list[tuple[object, ...]]:
    return [tuple(row) for row in await connection.fetch(_SCHEMA)]


async def test_an_empty_database_gets_every_revision_once(
    empty_database_url: str, connection: Connection
) -> None:
    assert await migrate.current(empty_database_url) is None
    assert await migrate.upgrade(empty_database_url) == list(revisions())
    assert await migrate.current(empty_database_url) == _HEAD
    assert await connection.fetchval("select to_regclass('publications') is not null")
    assert await migrate.upgrade(empty_database_url) == []


async def test_down_undoes_everything_that_up_did(
    empty_database_url: str, connection: Connection
) -> None:
    assert await migrate.upgrade(empty_database_url)
    full = await _schema(connection)
    assert full
    assert await migrate.downgrade(empty_database_url, "base") == list(reversed(revisions()))
    assert await _schema(connection) == []
    assert await migrate.current(empty_database_url) is None
    assert await migrate.upgrade(empty_database_url) == list(revisions())
    assert await _schema(connection) == full


async def test_each_revision_can_be_taken_back_by_itself(
    empty_database_url: str, connection: Connection
) -> None:
    for revision in revisions():
        before = await _schema(connection)
        assert await migrate.upgrade(empty_database_url, revision) == [revision]
        assert await migrate.downgrade(empty_database_url, "-1") == [revision]
        assert await _schema(connection) == before
        assert await migrate.upgrade(empty_database_url, revision) == [revision]


async def test_every_form_of_the_url_is_taken(cluster: Cluster, empty_database_url: str) -> None:
    name = empty_database_url.rpartition("/")[2]
    scheme = "postgresql://"
    forms = [
        cluster.url(name, unix_socket=True),
        empty_database_url.replace(scheme, "postgres://"),
        empty_database_url.replace(scheme, "postgresql+asyncpg://"),
        empty_database_url + "?sslmode=prefer&channel_binding=prefer",
    ]
    for url in forms:
        assert await migrate.upgrade(url) == list(revisions())
        assert await migrate.current(url) == _HEAD
        assert await migrate.downgrade(url, "base")


async def test_processes_that_start_together_take_turns(empty_database_url: str) -> None:
    """Each applies everything or finds it done, and none sees half of it."""
    code = (
        "import asyncio, os; from store import migrate\n"
        "print(*asyncio.run(migrate.upgrade(os.environ['URL'])))"
    )
    processes = [
        await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            code,
            stdout=subprocess.PIPE,
            env={**os.environ, "URL": empty_database_url},
            cwd=Path(__file__).parents[2],
        )
        for _ in range(4)
    ]
    outputs = [(await process.communicate())[0].split() for process in processes]
    assert [process.returncode for process in processes] == [0] * 4
    assert sorted(outputs, key=len) == [[], [], [], [name.encode() for name in revisions()]]


async def test_a_process_waits_for_the_one_that_migrates(
    empty_database_url: str, connection: Connection
) -> None:
    async with connection.transaction():
        await _hold_the_lock(connection)
        waiting = asyncio.create_task(migrate.upgrade(empty_database_url))
        await _wait_until_one_waits(connection)
        assert not waiting.done()
    assert await waiting == list(revisions())


async def test_a_server_that_goes_while_migrating_is_unreachable(
    empty_database_url: str, connection: Connection
) -> None:
    async with connection.transaction():
        await _hold_the_lock(connection)
        waiting = asyncio.create_task(migrate.upgrade(empty_database_url))
        backend = await _wait_until_one_waits(connection)
        await connection.execute("select pg_terminate_backend($1)", backend)
        with pytest.raises(DatabaseError, match="went away while migrating") as caught:
            await waiting
    assert caught.value.problem is DatabaseProblem.UNREACHABLE


async def _hold_the_lock(connection: Connection) -> None:
    from store.revisions import LOCK

    await connection.execute("select pg_advisory_xact_lock($1)", LOCK)


async def _wait_until_one_waits(connection: Connection) -> int:
    while True:
        pid: int | None = await connection.fetchval(
            "select pid from pg_locks where locktype = 'advisory' and not granted"
            " and database = (select oid from pg_database where datname = current_database())"
        )
        if pid is not None:
            return pid


async def test_a_revision_that_fails_leaves_the_schema_as_it_was(
    empty_database_url: str, connection: Connection
) -> None:
    """The first revision makes this table too, after others."""
    await connection.execute("create table publishers ()")
    with pytest.raises(MigrationError, match=r"publishers.* Nothing was changed") as caught:
        await migrate.upgrade(empty_database_url)
    assert "\n" not in str(caught.value)
    tables = await connection.fetch("select tablename from pg_tables where schemaname = 'public'")
    assert [row["tablename"] for row in tables] == ["publishers"]


async def test_a_table_in_use_is_not_waited_for_long(
    empty_database_url: str, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everybody else who wants the table would wait behind the migration."""
    monkeypatch.setattr("store.revisions.LOCK_TIMEOUT", "20ms")
    await migrate.upgrade(empty_database_url)
    before = await _schema(connection)
    async with connection.transaction():
        await connection.execute("lock table publications")
        with pytest.raises(MigrationError, match="lock timeout"):
            await migrate.downgrade(empty_database_url, "base")
    assert await _schema(connection) == before
    assert await migrate.current(empty_database_url) == _HEAD


async def test_a_newer_database_is_left_alone(
    empty_database_url: str, connection: Connection
) -> None:
    await migrate.upgrade(empty_database_url)
    await connection.execute("update alembic_version set version_num = '9999'")
    for attempt in (
        migrate.upgrade(empty_database_url),
        migrate.downgrade(empty_database_url, "base"),
    ):
        with pytest.raises(MigrationError, match=f"9999.* up to {_HEAD}"):
            await attempt
    assert await migrate.current(empty_database_url) == "9999"


async def test_an_unknown_revision_is_refused(empty_database_url: str) -> None:
    with pytest.raises(MigrationError, match="8888"):
        await migrate.upgrade(empty_database_url, "8888")
    with pytest.raises(MigrationError, match="8888"):
        await migrate.downgrade(empty_database_url, "8888")


async def test_an_unreachable_database_is_one_clear_line() -> None:
    for attempt in (
        migrate.current("postgresql://ann@/chat?host=/nowhere"),
        migrate.upgrade("postgresql://ann@/chat?host=/nowhere"),
        migrate.downgrade("postgresql://ann@/chat?host=/nowhere", "base"),
    ):
        with pytest.raises(DatabaseError, match="there is no such socket"):
            await attempt


async def test_the_log_can_be_read_with_psql(
    empty_database_url: str, connection: Connection
) -> None:
    await migrate.upgrade(empty_database_url)
    stream = await connection.fetchval(
        "insert into streams (channel, epoch, top) values ('chat:1', 'xyz', 1) returning id"
    )
    await connection.execute(
        "insert into publications values ($1, 1, now(), $2, null, null)",
        stream,
        '{"text":"grüße"}'.encode(),
    )
    row = await connection.fetchrow('select channel, "offset", data, info, epoch from messages')
    assert row is not None
    assert tuple(row) == ("chat:1", 1, '{"text":"grüße"}', None, "xyz")


async def test_channels_are_in_byte_order(empty_database_url: str, connection: Connection) -> None:
    """As Python sorts them: group commits lock rows in this order."""
    await migrate.upgrade(empty_database_url)
    names = ["a", "B", "é", "Z", "chat:10", "chat:9", "#x", "𝄞", "ﬀ"]
    await connection.executemany(
        "insert into streams (channel, epoch) values ($1, '')", [(name,) for name in names]
    )
    rows = await connection.fetch("select channel from streams order by channel")
    assert [row["channel"] for row in rows] == sorted(names)
