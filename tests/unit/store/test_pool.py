"""Reading a database URL, and telling errors that pass from errors that stay."""

import asyncio
import ssl

import asyncpg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from store.pool import (
    APPLICATION_NAME,
    DatabaseError,
    DatabaseProblem,
    Target,
    connect,
    is_unavailable,
    parse_url,
)


@pytest.mark.parametrize(
    ("url", "dsn", "server", "database"),
    [
        (
            "postgres://ann:secret@db.example:6432/chat",
            "postgres://ann:secret@db.example:6432/chat",
            "db.example:6432",
            "chat",
        ),
        (
            "postgresql+asyncpg://ann@db.example/chat",
            "postgresql://ann@db.example/chat",
            "db.example",
            "chat",
        ),
        (
            "postgresql://ann:p%40ss@[::1]:5432/chat?sslmode=require",
            "postgresql://ann:p%40ss@[::1]:5432/chat?sslmode=require",
            "[::1]:5432",
            "chat",
        ),
        (
            "postgresql://ann@a:1,b:2/chat?target_session_attrs=primary",
            "postgresql://ann@a:1,b:2/chat?target_session_attrs=primary",
            "a:1,b:2",
            "chat",
        ),
        (
            "postgresql://ann@/chat?host=/var/run/postgresql&port=5433",
            "postgresql://ann@/chat?host=%2Fvar%2Frun%2Fpostgresql&port=5433",
            "/var/run/postgresql",
            "chat",
        ),
        (
            "postgresql://ann@%2Fvar%2Frun%2Fpostgresql/chat",
            "postgresql://ann@%2Fvar%2Frun%2Fpostgresql/chat",
            "/var/run/postgresql",
            "chat",
        ),
        ("postgresql:///chat", "postgresql:///chat", "the default address", "chat"),
        ("postgresql://", "postgresql://", "the default address", ""),
        (" postgres://h/d?dbname=x \n", "postgres://h/d?dbname=x", "h", "d"),
    ],
)
def test_a_url_is_read_in_every_form_that_platforms_set(
    url: str, dsn: str, server: str, database: str
) -> None:
    assert parse_url(url) == Target(
        dsn=dsn, server=server, database=database, application_name=APPLICATION_NAME
    )


@pytest.mark.parametrize(
    ("query", "kept"),
    [
        ("sslmode=require&channel_binding=require", "sslmode=require"),  # Neon
        ("pgbouncer=true&connection_limit=1&pool_timeout=20", ""),  # Prisma
        ("ssl=true", "sslmode=require"),  # node-postgres, JDBC
        ("ssl=true&sslmode=verify-full", "sslmode=verify-full"),
        ("ssl=false", ""),
        ("connect_timeout=10&keepalives=1&gssencmode=disable", ""),  # libpq
        ("options=-csearch_path%3Dchat", "options=-csearch_path%3Dchat"),
    ],
)
def test_parameters_of_other_drivers_are_not_passed_on(query: str, kept: str) -> None:
    assert parse_url(f"postgresql://h/d?{query}").dsn.partition("?")[2] == kept


def test_an_application_name_in_the_url_stays() -> None:
    assert parse_url("postgresql://h/d?application_name=blue").application_name is None


@pytest.mark.parametrize(
    ("url", "advice"),
    [
        ("", "must start with postgresql://"),
        ("mysql://ann:secret@h/d", "must start with postgresql://"),
        ("ann:secret@h/d", "must start with postgresql://"),
        ("postgresql://ann:secret@x@h/d", "percent-encoded"),
        ("postgresql://ann:secret#x@h/d", "percent-encoded"),
        ("postgresql://ann:secret/x@h/d", "percent-encoded"),
        ("postgresql://ann:secret?x@h/d", "name=value"),
        ("postgresql://ann:secret@h:port/d", "port"),
        ("postgresql://ann:secret@h:99999/d", "port"),
        ("postgresql://ann@h/d?port=secret", "port"),
        ("postgresql://ann:secret@[::1/d", "host"),
        ("postgresql://ann:secret@h/d?sslmode", "name=value"),
    ],
)
def test_a_bad_url_is_refused_with_advice_and_without_the_password(url: str, advice: str) -> None:
    with pytest.raises(DatabaseError) as caught:
        parse_url(url)
    assert caught.value.problem is DatabaseProblem.BAD_URL
    assert advice in str(caught.value)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


_ANYTHING = st.text(st.characters(codec="utf-8"), max_size=12)


@given(before=_ANYTHING, after=_ANYTHING)
def test_no_message_and_no_repr_has_the_password(before: str, after: str) -> None:
    """Whatever stands around it, also where the URL is cut in an unexpected place."""
    password = "Tr0ub4dor"
    assert password not in _shown(f"postgresql://ann:{before}{password}{after}@h/d")


def _shown(url: str) -> str:
    try:
        return repr(parse_url(url))
    except DatabaseError as exc:
        return str(exc)


async def test_a_wrong_option_is_a_bad_url_in_the_words_of_the_driver() -> None:
    with pytest.raises(DatabaseError, match="sslmode") as caught:
        await connect("postgresql://ann:secret@127.0.0.1/d?sslmode=no-verify")
    assert caught.value.problem is DatabaseProblem.BAD_URL
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "exc",
    [
        ConnectionRefusedError(),
        ConnectionResetError(),
        TimeoutError(),
        OSError(113, "No route to host"),
        ssl.SSLError(),
        asyncpg.PostgresConnectionError(),
        asyncpg.ConnectionDoesNotExistError("connection was closed in the middle of operation"),
        asyncpg.ConnectionFailureError(),
        asyncpg.CannotConnectNowError("the database system is starting up"),
        asyncpg.AdminShutdownError("terminating connection due to administrator command"),
        asyncpg.CrashShutdownError(),
        asyncpg.IdleInTransactionSessionTimeoutError(),
        asyncpg.TooManyConnectionsError(),
        asyncpg.ReadOnlySQLTransactionError(),
        asyncpg.InvalidPasswordError(),
        asyncpg.InvalidCatalogNameError(),
        asyncpg.InterfaceError("connection is closed"),
        asyncpg.InterfaceError("pool is closing"),
        asyncpg.InterfaceError("pool is closed"),
        DatabaseError(DatabaseProblem.UNREACHABLE, "away"),
        asyncpg.InternalClientError(
            "cannot switch to state 12; another operation (2) is in progress"
        ),
    ],
    ids=repr,
)
def test_an_absent_server_is_unavailable(exc: BaseException) -> None:
    assert is_unavailable(exc)


@pytest.mark.parametrize(
    "exc",
    [
        asyncpg.PostgresSyntaxError(),
        asyncpg.UniqueViolationError(),
        asyncpg.UndefinedTableError(),
        asyncpg.SerializationError(),
        asyncpg.DeadlockDetectedError(),
        asyncpg.LockNotAvailableError(),
        asyncpg.QueryCanceledError(),
        asyncpg.DiskFullError(),
        asyncpg.DataError("invalid input for query argument $1: 'connection is closed'"),
        asyncpg.InterfaceError("cannot perform operation: another operation is in progress"),
        asyncpg.InterfaceError(
            "cannot call PreparedStmt.fetch(): the prepared statement is closed"
        ),
        asyncpg.InternalClientError("got result for unknown protocol state 3"),
        ValueError("pool is closed"),
        asyncio.CancelledError(),
        KeyboardInterrupt(),
    ],
    ids=repr,
)
def test_a_statement_s_own_error_is_not_unavailable(exc: BaseException) -> None:
    assert not is_unavailable(exc)
