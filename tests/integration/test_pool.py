"""The pool over a real server that stops, crashes, refuses and comes back."""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import psutil
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from store.pool import (
    SESSION_SETTINGS,
    Connection,
    Database,
    DatabaseError,
    DatabaseProblem,
    PoolStatistics,
    connect,
    is_unavailable,
)
from tests.support.cluster import Cluster, StopMode
from tests.support.proxy import Proxy

# Longer than any test: what waits for this is ended by the test.
_FOREVER = "select pg_sleep(600)"


@pytest.fixture
async def database(empty_database_url: str) -> AsyncIterator[Database]:
    database = await Database.open(empty_database_url, pool_max=4)
    yield database
    await database.close()


@pytest.fixture
async def admin(empty_database_url: str) -> AsyncIterator[Connection]:
    """A connection beside the pool."""
    connection = await connect(empty_database_url)
    yield connection
    await connection.close()


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


async def _wait_for_statement(admin: Connection, statement: str) -> int:
    """Wait until somebody runs `statement`, and give the process number of its backend."""
    while True:
        pid: int | None = await admin.fetchval(
            "select pid from pg_stat_activity where query = $1 and state = 'active'", statement
        )
        if pid is not None:
            return pid


async def _error_of(function: Callable[..., Awaitable[object]], *arguments: object) -> Exception:
    """What the call raises: some of asyncpg's raise at once, most when awaited."""
    with pytest.raises(Exception) as caught:
        await function(*arguments)
    return caught.value


async def _result(task: "asyncio.Task[Any]") -> object:
    return await task


async def test_every_connection_has_our_settings_for_as_long_as_it_lives(
    database: Database,
) -> None:
    async def settings() -> tuple[int, dict[str, str]]:
        async with database.pool.acquire() as connection:
            rows = await connection.fetch(
                "select name, current_setting(name) from pg_settings where name = any($1)",
                [*SESSION_SETTINGS, "application_name"],
            )
            return connection.get_server_pid(), dict(rows)

    first, again = await settings(), await settings()
    assert first == again
    # Over TCP, so the keepalives are in force and not ignored.
    assert again[1] == {**SESSION_SETTINGS, "application_name": "capegate"}


async def test_over_a_unix_socket_the_same_settings_do_no_harm(cluster: Cluster) -> None:
    database = await Database.open(cluster.url(unix_socket=True))
    assert await database.pool.fetchval("show jit") == "off"
    await database.close()


async def test_a_transaction_left_open_is_rolled_back(
    database: Database, loop_errors: list[dict[str, Any]]
) -> None:
    async with database.pool.acquire() as connection:
        await connection.execute("create table draft ()")
        await connection.execute("begin")
        await connection.execute("drop table draft")
    # asyncpg tells the loop's handler: it is a mistake in our code.
    assert "active transaction" in loop_errors.pop()["message"]
    assert await database.pool.fetchval("select to_regclass('draft') is not null")
    assert await database.pool.fetchval("show jit") == "off"


async def test_it_connects_when_needed_and_counts(database: Database) -> None:
    assert database.statistics() == PoolStatistics(open=1, idle=1, max=4)
    async with database.pool.acquire(), database.pool.acquire():
        assert database.statistics() == PoolStatistics(open=2, idle=0, max=4)
    assert database.statistics() == PoolStatistics(open=2, idle=2, max=4)


# Opening


def _wrong_password(url: str) -> str:
    password = urlsplit(url).password
    assert password is not None
    return url.replace(password, "not-the-password")


@pytest.mark.parametrize(
    ("change", "problem", "words"),
    [
        (_wrong_password, DatabaseProblem.REFUSED, "password authentication failed"),
        (lambda url: url + "x", DatabaseProblem.DATABASE_MISSING, "does not exist"),
        (
            lambda url: url + "?sslmode=require",
            DatabaseProblem.UNREACHABLE,
            "rejected SSL upgrade",
        ),
        (
            lambda url: url.replace("127.0.0.1", "127.0.0.1.nowhere.invalid"),
            DatabaseProblem.UNREACHABLE,
            "the host name is not known",
        ),
        (
            lambda url: url.replace("@127.0.0.1", "@%2Fnowhere"),
            DatabaseProblem.UNREACHABLE,
            "there is no such socket",
        ),
    ],
    ids=["password", "database", "tls", "host", "socket"],
)
async def test_opening_fails_with_one_line_that_says_why(
    empty_database_url: str,
    change: Callable[[str], str],
    problem: DatabaseProblem,
    words: str,
) -> None:
    for opening in (Database.open, connect):
        error = await _error_of(opening, change(empty_database_url))
        assert isinstance(error, DatabaseError)
        assert error.problem is problem
        assert words in str(error)
        assert "\n" not in str(error)
        for password in (urlsplit(empty_database_url).password, "not-the-password"):
            assert str(password) not in str(error)


@pytest.mark.parametrize(
    ("restriction", "problem", "words"),
    [
        (
            "alter role {role} connection limit 0",
            DatabaseProblem.UNREACHABLE,
            "too many connections",
        ),
        (
            "revoke connect on database {database} from public",
            DatabaseProblem.REFUSED,
            "permission denied for database",
        ),
        ("alter role {role} nologin", DatabaseProblem.REFUSED, "not permitted to log in"),
    ],
)
async def test_a_server_that_does_not_let_us_in_is_quoted(
    empty_database_url: str,
    admin: Connection,
    restriction: str,
    problem: DatabaseProblem,
    words: str,
) -> None:
    database = urlsplit(empty_database_url).path[1:]
    role = f"role_of_{database}"
    await admin.execute(f"create role {role} login password 'secret'")
    try:
        await admin.execute(restriction.format(role=role, database=database))
        error = await _error_of(
            Database.open,
            f"postgresql://{role}:secret@127.0.0.1:{urlsplit(empty_database_url).port}/{database}",
        )
    finally:
        await admin.execute(f"drop role {role}")
    assert isinstance(error, DatabaseError)
    assert error.problem is problem
    assert words in str(error)
    assert "secret" not in str(error)


async def test_a_server_with_the_wrong_certificate_is_refused(
    tmp_path: Path,
) -> None:
    """PostgreSQL's way into TLS, with no PostgreSQL behind it: nobody must come that far."""
    ours, theirs = _certificate(tmp_path / "ours"), _certificate(tmp_path / "theirs")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(theirs)

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(8)  # SSLRequest
        writer.write(b"S")
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await writer.start_tls(context)
        writer.close()

    async with await asyncio.start_server(greet, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        url = (
            f"postgresql://ann:secret@127.0.0.1:{port}/chat?sslmode=verify-full&sslrootcert={ours}"
        )
        error = await _error_of(Database.open, url)
    assert isinstance(error, DatabaseError)
    assert error.problem is DatabaseProblem.REFUSED
    assert "self-signed certificate" in str(error)
    assert "sslrootcert" in str(error)


def _certificate(path: Path) -> Path:
    """A self-signed certificate for 127.0.0.1 with its key, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, path.name)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False
        )
        .sign(key, hashes.SHA256())
    )
    path.write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        + certificate.public_bytes(Encoding.PEM)
    )
    return path


async def test_a_port_where_nothing_listens_is_unreachable(
    empty_database_url: str,
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        error = await _error_of(Database.open, f"postgresql://ann:secret@127.0.0.1:{port}/chat")
    assert str(error) == f"Can't connect to PostgreSQL at 127.0.0.1:{port}: nothing listens there."


async def test_a_server_that_says_nothing_is_unreachable(silent_port: int) -> None:
    url = f"postgresql://ann:secret@127.0.0.1:{silent_port}/chat?sslmode=disable"
    for opening in (Database.open, connect):
        error = await _error_of(partial(opening, timeout=0.05), url)
        assert isinstance(error, DatabaseError)
        assert error.problem is DatabaseProblem.UNREACHABLE
        assert "no answer within 0.05 s" in str(error)


# The server goes and comes


@pytest.mark.parametrize("mode", ["fast", "immediate"])
async def test_a_stopped_server_is_unavailable_and_comes_back(
    database: Database, cluster: Cluster, mode: StopMode
) -> None:
    assert await database.ping()
    assert database.healthy()

    await asyncio.to_thread(cluster.stop, mode)
    # Twice: first by a connection that was open, then by a new one.
    for _ in range(2):
        assert is_unavailable(await _error_of(database.pool.fetchval, "select 1"))
        assert not await database.ping()
        assert not database.healthy()

    await asyncio.to_thread(cluster.start)
    assert await database.ping()
    assert database.healthy()
    assert await database.pool.fetchval("select 1") == 1


async def test_a_server_killed_in_mid_statement_is_unavailable(
    database: Database, cluster: Cluster, empty_database_url: str
) -> None:
    admin = await connect(empty_database_url)
    running = asyncio.create_task(database.pool.execute(_FOREVER))
    await _wait_for_statement(admin, _FOREVER)
    await asyncio.to_thread(cluster.kill)
    assert is_unavailable(await _error_of(_result, running))
    assert is_unavailable(await _error_of(admin.fetchval, "select 1"))


async def test_a_terminated_backend_is_unavailable_and_so_is_the_rest_of_its_transaction(
    database: Database, admin: Connection
) -> None:
    async with database.pool.acquire() as connection:
        await connection.execute("begin")
        statement = asyncio.create_task(connection.execute(_FOREVER))
        backend = await _wait_for_statement(admin, _FOREVER)
        await admin.execute("select pg_terminate_backend($1)", backend)
        assert is_unavailable(await _error_of(_result, statement))
        assert is_unavailable(await _error_of(connection.execute, "commit"))
    assert await database.pool.fetchval("select 1") == 1


async def test_idle_connections_that_were_terminated_are_replaced(
    database: Database, admin: Connection
) -> None:
    """At most one statement sees each of them go."""
    async with database.pool.acquire(), database.pool.acquire():
        pass
    await admin.execute(
        "select pg_terminate_backend(pid, 5000) from pg_stat_activity"
        " where datname = current_database() and pid <> pg_backend_pid()"
    )
    results = [await _outcome(database) for _ in range(4)]
    assert results[-1] == 1
    assert all(result == 1 or is_unavailable(result) for result in results)


async def _outcome(database: Database) -> Any:
    try:
        return await database.pool.fetchval("select 1")
    except Exception as exc:
        return exc


async def test_a_transaction_that_waits_too_long_is_ended_by_the_server(database: Database) -> None:
    """So that a gateway that stands still gives back its locks."""
    async with database.pool.acquire() as connection:
        await connection.execute("set idle_in_transaction_session_timeout = '1ms'")
        await connection.execute("begin")
        lost = asyncio.Event()
        connection.add_termination_listener(lambda _: lost.set())
        await lost.wait()
        assert is_unavailable(await _error_of(connection.execute, "commit"))


async def test_a_closed_pool_is_unavailable(empty_database_url: str) -> None:
    database = await Database.open(empty_database_url)
    await database.close()
    assert is_unavailable(await _error_of(database.pool.fetchval, "select 1"))


@pytest.mark.parametrize(
    "statement",
    [
        "selekt 1",
        "select * from nowhere",
        "select 1/0",
        "insert into once values (1), (1)",
        "set statement_timeout = '1ms'; select pg_sleep(600)",
    ],
)
async def test_a_refused_statement_is_not_unavailable(database: Database, statement: str) -> None:
    await database.pool.execute("create table once (number int primary key)")
    assert not is_unavailable(await _error_of(database.pool.execute, statement))


async def test_our_own_mistakes_are_not_unavailable(database: Database) -> None:
    async with database.pool.acquire() as connection:
        assert not is_unavailable(await _error_of(connection.fetchval, "select $1::int", "one"))
        first = asyncio.create_task(connection.execute(_FOREVER))
        await asyncio.sleep(0)
        assert not is_unavailable(await _error_of(connection.execute, "select 1"))
        first.cancel()
        await asyncio.wait([first])


# Health


async def test_a_busy_pool_is_healthy(database: Database) -> None:
    held = [await database.pool.acquire() for _ in range(4)]
    assert await database.ping()
    for connection in held:
        await database.pool.release(connection)


async def test_a_server_that_stands_still_is_not_healthy(
    database: Database, admin: Connection
) -> None:
    assert await database.ping()
    numbers = await admin.fetch(
        "select pid from pg_stat_activity"
        " where datname = current_database() and pid <> pg_backend_pid()"
    )
    backends = [psutil.Process(row["pid"]) for row in numbers]
    for backend in backends:
        backend.suspend()
    try:
        # Both wait for the same answer, the second one in vain for its turn.
        assert not any(await asyncio.gather(database.ping(0.2), database.ping(0.1)))
        assert not database.healthy()
    finally:
        for backend in backends:
            backend.resume()
    assert await database.ping()
    assert database.healthy()


async def test_pings_take_turns(database: Database) -> None:
    assert await asyncio.gather(*(database.ping() for _ in range(5))) == [True] * 5


# Closing


async def test_closing_waits_for_what_is_under_way(empty_database_url: str) -> None:
    database = await Database.open(empty_database_url)
    statement = asyncio.create_task(database.pool.fetchval("select 1 from pg_sleep(0.05)"))
    await asyncio.sleep(0)
    await database.close()
    assert await statement == 1


async def test_closing_cuts_what_takes_too_long(empty_database_url: str, admin: Connection) -> None:
    database = await Database.open(empty_database_url)
    statement = asyncio.create_task(database.pool.execute(_FOREVER))
    await _wait_for_statement(admin, _FOREVER)
    await database.close(timeout=0.05)
    assert is_unavailable(await _error_of(_result, statement))


@pytest.mark.parametrize("in_transaction", [False, True])
async def test_a_block_on_a_silent_line_ends_in_time_and_the_idle_lines_are_left(
    empty_database_url: str, in_transaction: bool
) -> None:
    loop = asyncio.get_running_loop()
    async with Proxy.before(empty_database_url) as line:
        database = await Database.open(line.url(empty_database_url), pool_max=4)
        async with database.pool.acquire(), database.pool.acquire():
            pass

        async def run() -> None:
            async with database.connection(0.2) as connection:
                if not in_transaction:
                    line.lose()
                async with connection.transaction():
                    line.lose()
                    await connection.fetchval("select 1")

        begun = loop.time()
        with pytest.raises(TimeoutError):
            await run()
        assert loop.time() - begun < 0.2 + 0.3

        # The second one was lost as well, and nobody had to wait for it.
        async with database.connection(2.0) as connection:
            assert await connection.fetchval("select 1") == 1
        await database.close(0.1)


async def test_an_error_inside_a_block_is_its_own(database: Database) -> None:
    with pytest.raises(asyncpg.PostgresSyntaxError):
        async with database.connection(2.0) as connection:
            await connection.execute("nonsense")
    assert database.statistics().idle == 1


async def test_the_wait_for_a_connection_counts_for_the_block(database: Database) -> None:
    async with contextlib.AsyncExitStack() as users:
        for _ in range(4):
            await users.enter_async_context(database.pool.acquire())
        with pytest.raises(TimeoutError):
            async with database.connection(0.05):
                raise AssertionError("there is no fifth connection")
    async with database.connection(2.0) as connection:
        assert await connection.fetchval("select 1") == 1
