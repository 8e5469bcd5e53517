"""Running the revisions with Alembic, over asyncpg. Imported by `store.migrate` when there is work.

One transaction holds everything: the lock, every revision, the new entry in `alembic_version`. It
commits as a whole or leaves the schema as it was. Alembic finds its script folder and gets its
connection in code; there is no alembic.ini.
"""

from collections.abc import Mapping
from typing import Any

import alembic.command
import alembic.config
import alembic.util
import asyncpg
import sqlalchemy
import sqlalchemy.exc
import sqlalchemy.ext.asyncio
from alembic import op

from store.migrate import MIGRATIONS, Command, MigrationError
from store.pool import Connection, DatabaseError, DatabaseProblem, is_unavailable

# Any number will do, as long as nothing else locks it in the same database.
LOCK = 0x63617065_67617465  # "capegate"

LOCK_TIMEOUT = "10s"
"""How long a statement may wait for others' locks on a table. Whoever comes after waits behind it,
so a migration that can't begin must not hold up the traffic of the gateways that still run."""


async def run(command: Command, connection: Connection, revision: str) -> list[str]:
    """Run an Alembic command in one transaction on `connection`; see `store.migrate`."""

    async def hand_over() -> Connection:
        return connection

    # asyncpg has read the URL already and knows more forms than SQLAlchemy does.
    engine = sqlalchemy.ext.asyncio.create_async_engine(
        "postgresql+asyncpg://", async_creator=hand_over, poolclass=sqlalchemy.NullPool
    )
    applied: list[str] = []
    try:
        async with engine.begin() as transaction:
            await transaction.execute(
                sqlalchemy.text("select pg_advisory_xact_lock(:key)"), {"key": LOCK}
            )
            await transaction.execute(sqlalchemy.text(f"set local lock_timeout = '{LOCK_TIMEOUT}'"))
            await transaction.run_sync(_run_alembic, command, revision, applied)
    except alembic.util.CommandError as exc:
        raise MigrationError(f"Can't {command} the database to {revision!r}: {exc}.") from exc
    except (sqlalchemy.exc.DBAPIError, asyncpg.PostgresError, OSError) as exc:
        cause = _driver_error(exc)
        if is_unavailable(cause):
            raise DatabaseError(
                DatabaseProblem.UNREACHABLE, f"The database went away while migrating: {cause}."
            ) from exc
        raise MigrationError(
            f"Can't {command} the database to {revision!r}: {cause}. Nothing was changed."
        ) from exc
    finally:
        await engine.dispose()
    return applied


def run_sql(name: str) -> None:
    """For a revision's upgrade() and downgrade(): run the SQL file `name` that lies beside it."""
    sql = (MIGRATIONS / "versions" / name).read_text(encoding="utf-8")
    pooled = op.get_bind().connection.dbapi_connection
    assert pooled is not None, "engine.begin() holds a connection"
    # Around SQLAlchemy: only asyncpg's simple query protocol takes many statements at once.
    pooled.run_async(lambda driver: _execute(driver, sql))


async def _execute(connection: Connection, sql: str) -> None:
    assert connection.is_in_transaction(), "SQLAlchemy has begun one: a revision is all or nothing"
    await connection.execute(sql)


def _run_alembic(
    connection: sqlalchemy.Connection, command: Command, revision: str, applied: list[str]
) -> None:
    config = alembic.config.Config()
    # Alembic's options interpolate, as in an .ini file.
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))

    def note(step: Any, **_: Mapping[str, Any]) -> None:
        applied.append(step.up_revision_id)

    config.attributes["connection"] = connection
    config.attributes["on_version_apply"] = note
    getattr(alembic.command, command)(config, revision)


def _driver_error(exc: BaseException) -> BaseException:
    """What asyncpg raised, from within SQLAlchemy's wrappers."""
    if isinstance(exc, sqlalchemy.exc.DBAPIError) and exc.orig is not None:
        return exc.orig.__cause__ or exc.orig
    return exc
