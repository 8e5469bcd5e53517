"""The connections to PostgreSQL: which URL, how they are opened, and which errors mean "down".

DatabaseError        the database can't be used as it is configured; says what to do
is_unavailable(exc)  the server or the line is gone: try again later
connect(url)         one connection, for migrations and for a check
Database             the pool that everything else shares
"""

import asyncio
import contextlib
import socket
import ssl
import urllib.parse
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, Self, TypeAlias

import asyncpg

if TYPE_CHECKING:
    from asyncpg.pool import PoolConnectionProxy

# Only the stubs know these as generic.
Connection: TypeAlias = "asyncpg.Connection[Any]"
Pool: TypeAlias = "asyncpg.Pool[Any]"

APPLICATION_NAME = "capegate"

CONNECT_TIMEOUT = 10.0
"""Seconds for one connection. Databases that sleep when idle take a few to wake up."""

COMMAND_TIMEOUT = 30.0
"""Seconds for one statement, unless the caller says less. It ends the wait on a line that died
without a word, which TCP alone gives up only after a quarter of an hour."""

SESSION_SETTINGS = {
    # The statements are short and prepared; compiling one costs more than running it.
    "jit": "off",
    # Group commits hold row locks. A gateway that stops in the middle of a transaction (frozen, cut
    # off) gives them back after this: soon enough that the others' publishers, and its own over a
    # new line, are only late. Between two statements of ours there is a round trip and no more.
    "idle_in_transaction_session_timeout": "3s",
    # The same for a gateway whose machine is gone: the server notices in about a minute, not in two
    # hours. Ignored on a Unix socket.
    "tcp_keepalives_idle": "30",
    "tcp_keepalives_interval": "10",
    "tcp_keepalives_count": "3",
}

# Set by a statement once per connection, not in the startup packet: PgBouncer refuses startup
# parameters that it doesn't know.
_SESSION_SQL = "; ".join(f"set {name} = '{value}'" for name, value in SESSION_SETTINGS.items())

# What libpq or another driver understands and asyncpg would pass on to the server, which refuses
# it. Platforms put them into DATABASE_URL; none of them changes what we connect to.
_PARAMETERS_OF_OTHER_DRIVERS = frozenset(
    {
        "channel_binding",
        "connect_timeout",
        "connection_limit",
        "fallback_application_name",
        "gssencmode",
        "keepalives",
        "keepalives_count",
        "keepalives_idle",
        "keepalives_interval",
        "pgbouncer",
        "pool_timeout",
        "sslcompression",
        "sslsni",
        "tcp_user_timeout",
    }
)

_SCHEMES = frozenset({"postgres", "postgresql", "postgres+asyncpg", "postgresql+asyncpg"})


class DatabaseProblem(Enum):
    """Why the database can't be used."""

    BAD_URL = "bad_url"
    UNREACHABLE = "unreachable"
    REFUSED = "refused"
    """The server answered and doesn't let us in: user, password, TLS, pg_hba.conf."""
    DATABASE_MISSING = "database_missing"


class DatabaseError(Exception):
    """The database can't be used as configured. One line for people; never has the password."""

    def __init__(self, problem: DatabaseProblem, message: str) -> None:
        super().__init__(message)
        self.problem = problem


@dataclass(frozen=True, slots=True)
class Target:
    """A database URL that was looked through: what asyncpg takes, and what people may see."""

    dsn: str = field(repr=False)
    """With the password. For asyncpg only."""
    server: str
    """Where the server is, for messages: `host:port`, a socket's folder, or a list of them."""
    database: str
    """The database's name, or "" if it is left to the environment (PGDATABASE, the user's name)."""
    application_name: str | None
    """Ours, or None if the URL sets one."""


def parse_url(url: str) -> Target:
    """Look through a database URL, in any of the forms that platforms set.

    `postgres://` and `postgresql://`, with `+asyncpg` or without; TCP hosts, or a Unix socket's
    folder as `?host=/path`. Raises DatabaseError (BAD_URL); the message quotes nothing of the URL,
    as any part of a wrong one can be the password.
    """
    parts = _split(url)
    if parts.scheme not in _SCHEMES:
        raise _bad_url("it must start with postgresql:// or postgres://")
    if parts.fragment or "#" in url or parts.netloc.count("@") > 1 or "@" in parts.path:
        raise _bad_url(
            "a special character in the user, the password or the database must be "
            "percent-encoded: @ as %40, # as %23, / as %2F, ? as %3F, : as %3A"
        )
    hosts = parts.netloc.rpartition("@")[2]
    try:
        query = dict(urllib.parse.parse_qsl(parts.query, strict_parsing=bool(parts.query)))
    except ValueError:
        raise _bad_url("what follows the ? must be name=value pairs joined by &") from None
    for port in [*_ports(hosts), *filter(None, query.get("port", "").split(","))]:
        if not port.isdecimal() or not 0 < int(port) < 65536:
            raise _bad_url(
                "the port must be a number from 1 to 65535 (is a special character in the "
                "password not percent-encoded?)"
            )
    # Some platforms and drivers write ssl=true where libpq has sslmode.
    if query.pop("ssl", "").lower() in {"1", "true"}:
        query.setdefault("sslmode", "require")
    query = {
        name: value for name, value in query.items() if name not in _PARAMETERS_OF_OTHER_DRIVERS
    }
    scheme = parts.scheme.partition("+")[0]
    # Put together by hand: urlunsplit() drops the // of `postgresql:///name`.
    dsn = f"{scheme}://{parts.netloc}{parts.path}"
    if query:
        dsn += "?" + urllib.parse.urlencode(query)
    return Target(
        dsn=dsn,
        server=urllib.parse.unquote(hosts) or query.get("host", "") or "the default address",
        database=urllib.parse.unquote(parts.path[1:])
        or query.get("dbname", "")
        or query.get("database", ""),
        application_name=None if "application_name" in query else APPLICATION_NAME,
    )


def _split(url: str) -> urllib.parse.SplitResult:
    try:
        return urllib.parse.urlsplit(url.strip())
    except ValueError:
        raise _bad_url("its host can't be read") from None


def _ports(hosts: str) -> list[str]:
    """The ports in `host:port,[::1]:port,host`."""
    found = []
    for host in hosts.split(","):
        address = host.rpartition("]")[2] if host.startswith("[") else host
        _, colon, port = address.partition(":")
        if colon:
            found.append(port)
    return found


def _bad_url(reason: str) -> DatabaseError:
    return DatabaseError(DatabaseProblem.BAD_URL, f"The database URL is not usable: {reason}.")


async def connect(url: str, *, timeout: float = CONNECT_TIMEOUT) -> Connection:
    """Open one connection outside of any pool. Raises DatabaseError."""
    target = parse_url(url)
    try:
        return await _connect(target, timeout)
    except Exception as exc:
        raise _explain(exc, target, timeout) from exc


async def _connect(target: Target, timeout: float) -> Connection:
    connection: Connection = await asyncpg.connect(**_connect_arguments(target, timeout))
    return connection


def _connect_arguments(target: Target, timeout: float) -> dict[str, Any]:
    arguments: dict[str, Any] = {"dsn": target.dsn, "timeout": timeout}
    if target.application_name is not None:
        arguments["server_settings"] = {"application_name": target.application_name}
    return arguments


def _explain(exc: Exception, target: Target, timeout: float) -> Exception:
    """The DatabaseError for what connecting raised; other exceptions (bugs) as they are."""
    server = target.server
    match exc:
        case asyncpg.ClientConfigurationError():
            # asyncpg's own words; they name the option, and parse_url() has seen to the rest.
            return _bad_url(str(exc).partition("\n")[0])
        case asyncpg.InvalidCatalogNameError():
            name = f'The database "{target.database}"' if target.database else "The database"
            return DatabaseError(
                DatabaseProblem.DATABASE_MISSING,
                f"{name} does not exist on {server}. Create it, or correct the database URL.",
            )
        case (
            asyncpg.InvalidAuthorizationSpecificationError() | asyncpg.InsufficientPrivilegeError()
        ):
            return DatabaseError(
                DatabaseProblem.REFUSED, f"PostgreSQL at {server} refused the login: {exc}."
            )
        case asyncpg.InterfaceError():
            return DatabaseError(
                DatabaseProblem.REFUSED,
                f"PostgreSQL at {server} asks for a login that is not supported: {exc}.",
            )
        case ssl.SSLError():
            reason = getattr(exc, "verify_message", "") or exc.reason or str(exc)
            return DatabaseError(
                DatabaseProblem.REFUSED,
                f"The TLS connection to PostgreSQL at {server} failed: {reason}. "
                "See sslmode and sslrootcert in the database URL.",
            )
        case TimeoutError():
            reason = f"no answer within {timeout:g} s"
        case socket.gaierror():
            reason = "the host name is not known"
        case ConnectionRefusedError():
            reason = "nothing listens there"
        case FileNotFoundError():
            reason = "there is no such socket"
        case OSError():
            reason = exc.strerror or str(exc)
        case asyncpg.PostgresError() | asyncpg.InternalClientError():
            # Starting up, shutting down, too many connections, no primary among the hosts, ….
            reason = str(exc)
        case _:
            return exc
    return DatabaseError(
        DatabaseProblem.UNREACHABLE, f"Can't connect to PostgreSQL at {server}: {reason}."
    )


# The server ended the session, or does not take new ones, or can't be written to.
_UNAVAILABLE = (
    OSError,  # TimeoutError and ssl.SSLError are among them
    asyncpg.PostgresConnectionError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.CannotConnectNowError,
    asyncpg.DatabaseDroppedError,
    asyncpg.IdleSessionTimeoutError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.TooManyConnectionsError,
    # No host of the URL is the one that is asked for: a failover is under way.
    asyncpg.TargetServerAttributeNotMatched,
    # After a failover: we are still connected to what is now the standby.
    asyncpg.ReadOnlySQLTransactionError,
    # These three only come while connecting: a password or database that was changed meanwhile.
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    DatabaseError,
)

# asyncpg says "closed" with the class that it uses for a caller's mistakes, too.
_CLOSED = (
    "connection is closed",
    "pool is closed",
    "pool is closing",
    # The pool takes a connection back as soon as it is lost, also from the hands of its user.
    "released back to the pool",
)


# What asyncpg says of a connection that the server has ended, with a reason, while nobody used it:
# until the end of the line is read, too, it takes the reason for an operation.
_ENDED_WHILE_IDLE = "cannot switch to state"


def is_unavailable(exc: BaseException) -> bool:
    """Whether `exc`, from asyncpg or this module, means that the database is out of reach for now.

    Then the same statement may well work later, on another connection; whether it was carried out
    is unknown if it was a commit. False for errors of the statement itself and for our own mistakes
    (another operation in progress, a wrong argument).
    """
    if isinstance(exc, _UNAVAILABLE):
        return True
    if isinstance(exc, asyncpg.InternalClientError):
        return _ENDED_WHILE_IDLE in str(exc)
    return type(exc) is asyncpg.InterfaceError and any(words in str(exc) for words in _CLOSED)


@dataclass(frozen=True, slots=True)
class PoolStatistics:
    """The pool at this moment, in connections."""

    open: int
    idle: int
    max: int


class Database:
    """The pool, and whether the server answers.

    Open it with `open()`. A pool that has lost its server needs no care: each acquire connects
    anew. Connections are not reset between two users, which saves a round trip each time, so
    session state (SET, LISTEN, advisory locks of the session) doesn't belong on them; a transaction
    that somebody left open is rolled back.
    """

    def __init__(self, target: Target, pool: Pool) -> None:
        self.pool = pool
        self._target = target
        # A connection of its own: whether the server answers and whether the pool is busy are two
        # questions.
        self._probe: Connection | None = None
        self._probing = asyncio.Lock()
        self._healthy = True

    @classmethod
    async def open(cls, url: str, *, pool_max: int = 8, timeout: float = CONNECT_TIMEOUT) -> Self:
        """Connect once, to know that it works. Raises DatabaseError."""
        target = parse_url(url)
        try:
            # min_size 0: asyncpg keeps a minimum up in the background and logs each failure while
            # the server is away. Connections come when they are needed and stay for five minutes.
            pool = await asyncpg.create_pool(
                min_size=0,
                max_size=pool_max,
                max_inactive_connection_lifetime=300.0,
                command_timeout=COMMAND_TIMEOUT,
                init=_start_session,
                reset=_keep_session,
                **_connect_arguments(target, timeout),
            )
            try:
                async with pool.acquire():
                    pass
            except BaseException:
                pool.terminate()
                raise
        except Exception as exc:
            raise _explain(exc, target, timeout) from exc
        return cls(target, pool)

    @contextlib.asynccontextmanager
    async def connection(self, timeout: float) -> AsyncIterator["PoolConnectionProxy[Any]"]:
        """A connection for a block that ends within `timeout` seconds, the wait for one included.

        Otherwise TimeoutError comes, and at once. Whether the statement in hand was carried out is
        then unknown.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        async with contextlib.AsyncExitStack() as stack:
            async with asyncio.timeout_at(deadline):
                connection = await stack.enter_async_context(self.pool.acquire())
            late = False

            def cut() -> None:
                # A statement that is cancelled instead is waited for, and a transaction is rolled
                # back by another one: on a line that died without a word that takes until
                # COMMAND_TIMEOUT.
                nonlocal late
                late = True
                connection.terminate()

            timer = loop.call_at(deadline, cut)
            try:
                yield connection
            except Exception as exc:
                if not late:
                    raise
                # The idle ones may be as dead: let nobody else find that out one by one.
                await self.pool.expire_connections()
                raise TimeoutError from exc
            finally:
                timer.cancel()

    def healthy(self) -> bool:
        """Whether the server answered the last ping; True before the first one."""
        return self._healthy

    async def ping(self, timeout: float = 2.0) -> bool:
        """Ask the server for an answer within `timeout` seconds. Never raises for its absence.

        It has its own connection and says nothing about a busy pool. Pings take turns.
        """
        try:
            async with asyncio.timeout(timeout), self._probing:
                await self._ask(timeout)
            self._healthy = True
        except Exception as exc:
            self._healthy = False
            if not is_unavailable(exc):
                raise
        return self._healthy

    async def _ask(self, timeout: float) -> None:
        try:
            if self._probe is None or self._probe.is_closed():
                self._probe = await _connect(self._target, timeout)
            await self._probe.fetchval("select 1")
        except BaseException:
            # After a timeout, too: its answer may come later and would be taken for the next one's.
            self._drop_probe()
            raise

    def statistics(self) -> PoolStatistics:
        """How many connections there are."""
        return PoolStatistics(
            open=self.pool.get_size(), idle=self.pool.get_idle_size(), max=self.pool.get_max_size()
        )

    async def close(self, timeout: float = 5.0) -> None:
        """Wait up to `timeout` seconds for users to give their connections back; then cut them."""
        self._drop_probe()
        try:
            await asyncio.wait_for(self.pool.close(), timeout)
        except TimeoutError:
            self.pool.terminate()

    def _drop_probe(self) -> None:
        if self._probe is not None:
            self._probe.terminate()
            self._probe = None


async def _start_session(connection: Connection) -> None:
    await connection.execute(_SESSION_SQL)


async def _keep_session(connection: Connection) -> None:
    """Instead of asyncpg's reset, which also would undo SESSION_SETTINGS."""
