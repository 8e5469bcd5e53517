"""Migrations: what schema the database has, and bringing it to the one this code needs.

Revisions are in `store/migrations/versions/`: `0002_what_it_does.py` for Alembic, and beside it the
SQL that it runs, `0002_what_it_does.up.sql` and `….down.sql`. They follow each other by number.
Alembic's own table `alembic_version` says which one the database has.

Most starts find nothing to do. They need one small query and no Alembic, whose import takes a third
of a second; so that import is in `store.revisions`, and happens late.
"""

import functools
import importlib.resources
from pathlib import Path
from typing import Literal

import asyncpg

from store.pool import Connection, connect

Command = Literal["upgrade", "downgrade"]

MIGRATIONS = Path(str(importlib.resources.files("store") / "migrations"))
"""Alembic's script folder. The same path in the source tree and in an installed wheel."""


class MigrationError(Exception):
    """The schema can't be brought to the revision asked for. Nothing was changed. One line."""


@functools.cache
def revisions() -> tuple[str, ...]:
    """Every revision this code has, oldest first."""
    return tuple(
        sorted(path.name.partition("_")[0] for path in (MIGRATIONS / "versions").glob("[0-9]*.py"))
    )


async def current(url: str) -> str | None:
    """The revision the database has; None before the first. Raises DatabaseError."""
    connection = await connect(url)
    try:
        return await _current(connection)
    finally:
        await connection.close()


async def upgrade(url: str, revision: str = "head") -> list[str]:
    """Bring the schema up to `revision`. Gives the revisions that were applied, oldest first.

    All of them or none: they share one transaction. Processes that start together take turns, and
    all but the first find nothing to do.

    Raises DatabaseError if the database is out of reach, MigrationError if it is newer than this
    code or refuses a statement.
    """
    connection = await connect(url)
    try:
        before = await _current(connection)
        _check_known(before)
        if before == revisions()[-1] and revision in ("head", before):
            return []
        return await _run("upgrade", connection, revision)
    finally:
        await connection.close()


async def downgrade(url: str, revision: str) -> list[str]:
    """Take the schema back to `revision`: a number, `-1` for one step, `base` for empty.

    Gives the revisions that were undone, newest first; otherwise like `upgrade`. What only the
    newer schema could hold is lost.
    """
    connection = await connect(url)
    try:
        _check_known(await _current(connection))
        return await _run("downgrade", connection, revision)
    finally:
        await connection.close()


async def _current(connection: Connection) -> str | None:
    try:
        found: str | None = await connection.fetchval("select version_num from alembic_version")
    except asyncpg.UndefinedTableError:
        return None
    return found


def _check_known(revision: str | None) -> None:
    if revision is not None and revision not in revisions():
        raise MigrationError(
            f"The database is at revision {revision}, and this version of the gateway only knows "
            f"revisions up to {revisions()[-1]}. Start the newer gateway, or take the schema back "
            "with that one first."
        )


async def _run(command: Command, connection: Connection, revision: str) -> list[str]:
    from store.revisions import run  # noqa: PLC0415  Alembic: see the module's first lines

    return await run(command, connection, revision)
