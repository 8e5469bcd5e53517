"""The embedded PostgreSQL as a gateway uses it: started, killed, found again, refused."""

import asyncio
import os
import pwd
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import asyncpg
import psutil
import pytest

from store.embedded import EmbeddedServer, EmbeddedServerError
from store.embedded_user import ServerUser, let_in
from tests.support.cluster import find_postmaster, wait_until_ended

_ROOT = Path(__file__).parents[2]

# A gateway as far as the server is concerned. It says the URL, and waits to be killed.
_GATEWAY = """
import sys
from pathlib import Path
from store.embedded import EmbeddedServer
print(EmbeddedServer(Path(sys.argv[1])).start(), flush=True)
sys.stdin.read()
"""


# Not pytest's tmp_path: root's server passes through closed folders by an access control entry, and
# every pytest that starts meanwhile takes all such entries from the folder around its own.
@pytest.fixture
def folder() -> Iterator[Path]:
    """An empty folder."""
    with TemporaryDirectory(prefix="capegate-test-") as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def made() -> Iterator[Path]:
    """A data folder whose cluster is made. Every test leaves it stopped and sound."""
    with TemporaryDirectory(prefix="capegate-test-") as folder:
        server = EmbeddedServer(Path(folder) / "data")
        server.start()
        server.stop()
        yield Path(folder) / "data"


@pytest.fixture
def server(made: Path) -> Iterator[EmbeddedServer]:
    server = EmbeddedServer(made)
    yield server
    server.stop()
    # One that a killed gateway left and that this test did not take over.
    if (left := find_postmaster(made / "postgres" / "cluster")) is not None:
        left.send_signal(signal.SIGINT)
        wait_until_ended([left])


def _query(url: str, sql: str) -> Any:
    async def ask() -> Any:
        connection = await asyncpg.connect(url)
        try:
            return await connection.fetchval(sql)
        finally:
            await connection.close()

    return asyncio.run(ask())


def _postmaster(data_dir: Path) -> psutil.Process:
    process = find_postmaster(data_dir / "postgres" / "cluster")
    assert process is not None
    return process


def _is_stopped(data_dir: Path) -> bool:
    return find_postmaster(data_dir / "postgres" / "cluster") is None


@contextmanager
def _gateway(data_dir: Path) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """Another process that started the server; killed at the end, if it still runs."""
    with subprocess.Popen(
        [sys.executable, "-c", _GATEWAY, data_dir],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=_ROOT,
    ) as process:
        assert process.stdout is not None
        try:
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()


@contextmanager
def _as_user(name: str) -> Iterator[None]:
    """Root acts as another user for a while: files and sockets see that one."""
    entry = pwd.getpwnam(name)
    os.setegid(entry.pw_gid)
    os.seteuid(entry.pw_uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


def test_a_first_start_makes_everything(folder: Path) -> None:
    server = EmbeddedServer(folder / "new" / "data")
    url = server.start()
    try:
        assert server.is_running()
        assert _query(url, "select current_database() || '/' || current_user") == (
            "capegate/capegate"
        )
        assert _query(url, "select version()").startswith("PostgreSQL 18")
    finally:
        server.stop()
    assert not server.is_running()


def test_nothing_acknowledged_can_be_lost_and_nobody_comes_over_the_network(
    server: EmbeddedServer,
) -> None:
    url = server.start()
    settings = {
        "fsync": "on",
        "synchronous_commit": "on",
        "full_page_writes": "on",
        "data_checksums": "on",
        "listen_addresses": "",
        "server_encoding": "UTF8",
        "jit": "off",
        "shared_buffers": "128MB",
    }
    for name, value in settings.items():
        assert _query(url, f"show {name}") == value, name
    _query(url, "alter system set fsync = off")
    server.stop()
    assert _query(server.start(), "show fsync") == "on"
    _query(url, "alter system reset all")


def test_every_setting_of_ours_is_in_force(server: EmbeddedServer) -> None:
    """PostgreSQL would not start with an unknown one, but it tolerates being overruled."""
    url = server.start()
    assert (
        _query(url, "select count(*) from pg_file_settings where not applied or error is not null")
        == 0
    )


def test_data_is_kept_between_starts(server: EmbeddedServer) -> None:
    _query(server.start(), "create table kept as select 42 as answer")
    server.stop()
    url = server.start()
    assert _query(url, "select answer from kept") == 42
    _query(url, "drop table kept")


def test_stopping_cuts_connections_and_can_be_said_twice(
    server: EmbeddedServer, made: Path
) -> None:
    url = server.start()

    async def sleep_while_it_stops() -> None:
        connection = await asyncpg.connect(url)
        with pytest.raises((asyncpg.AdminShutdownError, asyncpg.PostgresConnectionError)):
            await asyncio.gather(
                connection.execute("select pg_sleep(600)"), asyncio.to_thread(server.stop)
            )

    asyncio.run(sleep_while_it_stops())
    assert _is_stopped(made)
    server.stop()


def test_stopping_before_any_start_does_nothing(folder: Path) -> None:
    EmbeddedServer(folder / "data").stop()
    assert not (folder / "data").exists()


def test_starting_twice_is_starting_once(server: EmbeddedServer, made: Path) -> None:
    url = server.start()
    process = _postmaster(made)
    assert server.start() == url
    assert _postmaster(made) == process


# After a crash


@pytest.mark.parametrize("how", ["terminate", "kill"])
def test_a_server_that_ended_is_started_anew(server: EmbeddedServer, made: Path, how: str) -> None:
    _query(server.start(), "create table kept as select 42 as answer")
    process = _postmaster(made)
    processes = [process, *process.children(recursive=True)]
    getattr(process, how)()
    wait_until_ended(processes)
    assert not server.is_running()
    url = server.start()
    assert server.is_running()
    assert _query(url, "select answer from kept") == 42
    _query(url, "drop table kept")


def test_a_server_outlives_a_killed_gateway_and_is_found_again(
    server: EmbeddedServer, made: Path
) -> None:
    started = "select pg_postmaster_start_time()"
    with _gateway(made) as (gateway, url):
        before = _query(url, started)
        gateway.kill()
        gateway.wait()
        assert _query(url, started) == before
    assert server.start() == url
    assert _query(url, started) == before
    server.stop()
    assert _is_stopped(made)


def test_a_server_that_is_stopping_is_waited_for(server: EmbeddedServer, made: Path) -> None:
    """The gateway was killed while it was stopping its server."""
    with _gateway(made) as (gateway, _):
        gateway.kill()
    process = _postmaster(made)
    process.send_signal(signal.SIGINT)
    assert _query(server.start(), "select 1") == 1
    assert _postmaster(made) != process


def test_a_crashed_server_s_processes_are_waited_for(server: EmbeddedServer, made: Path) -> None:
    """Killed without its other processes, PostgreSQL refuses to start beside them."""
    with _gateway(made) as (gateway, _):
        gateway.kill()
    process = _postmaster(made)
    left = next(p for p in process.children() if "checkpointer" in " ".join(p.cmdline()))
    left.suspend()
    process.kill()
    wait_until_ended([process])

    async def resume_while_it_starts() -> str:
        starting = asyncio.create_task(asyncio.to_thread(server.start))
        # It can only end when it runs again; the start has to wait for that.
        await asyncio.to_thread(left.resume)
        return await starting

    assert _query(asyncio.run(resume_while_it_starts()), "select 1") == 1


def test_a_pid_file_that_names_another_process_is_no_server(
    server: EmbeddedServer, made: Path
) -> None:
    """After a power cut the number in the file may be anybody's, also of the server's own user."""
    cluster = made / "postgres" / "cluster"
    uid = cluster.stat().st_uid
    with subprocess.Popen(
        ["/bin/cat"], stdin=subprocess.PIPE, cwd="/", user=None if os.geteuid() else uid
    ) as other:
        (cluster / "postmaster.pid").write_text(
            f"{other.pid}\n{cluster}\n1700000000\n5432\n{made}/postgres/socket\n\n  1 1\nready   \n"
        )
        assert _query(server.start(), "select 1") == 1
        assert other.poll() is None


def test_a_first_start_that_was_cut_off_is_begun_again(folder: Path) -> None:
    left = folder / "data" / "postgres" / "cluster.new.1234"
    (left / "base").mkdir(parents=True)
    server = EmbeddedServer(folder / "data")
    assert _query(server.start(), "select 1") == 1
    server.stop()
    assert not left.exists()


def test_a_database_that_was_dropped_is_made_again(server: EmbeddedServer) -> None:
    url = server.start()
    _query(url.replace("/capegate?", "/postgres?"), "drop database capegate")
    server.stop()
    assert _query(server.start(), "select current_database()") == "capegate"


# Refused


def test_a_second_gateway_is_refused_while_the_first_is_alive(
    server: EmbeddedServer, made: Path
) -> None:
    with _gateway(made) as (gateway, url):
        with pytest.raises(EmbeddedServerError, match=rf"Another gateway.*process {gateway.pid}"):
            server.start()
        assert _query(url, "select 1") == 1


def test_a_cluster_of_another_major_version_is_refused(server: EmbeddedServer, made: Path) -> None:
    version = made / "postgres" / "cluster" / "PG_VERSION"
    ours = version.read_text()
    version.write_text("17\n")
    try:
        with pytest.raises(EmbeddedServerError, match=r"PostgreSQL 17.*is 18.*pg_dump"):
            server.start()
    finally:
        version.write_text(ours)


def test_a_start_that_fails_says_why_and_can_be_tried_again(
    server: EmbeddedServer, made: Path
) -> None:
    broken = made / "postgres" / "cluster" / "postgresql.auto.conf"
    broken.write_text("max_connections = 'many'\n")
    try:
        with pytest.raises(EmbeddedServerError, match=r"configuration file .* contains errors"):
            server.start()
        assert _is_stopped(made)
    finally:
        broken.write_text("")
    # The lock was given back, too.
    another = EmbeddedServer(made)
    assert _query(another.start(), "select 1") == 1
    another.stop()


def test_a_folder_that_cannot_be_made_is_one_clear_line(folder: Path) -> None:
    (folder / "file").touch()
    with pytest.raises(EmbeddedServerError, match=r"can't start: .*file"):
        EmbeddedServer(folder / "file" / "data").start()


# Where the data is, and who may come


@pytest.mark.parametrize("name", ["d" * 150, "with, comma and 'quote'", "100% größer"])
def test_any_folder_will_do(folder: Path, name: str) -> None:
    """A Unix socket's path has at most 107 bytes, and some characters part paths."""
    server = EmbeddedServer(folder / name)
    url = server.start()
    assert _query(url, "select 1") == 1
    socket_folder = Path(_query(url, "show unix_socket_directories"))
    server.stop()
    assert not socket_folder.exists()


def test_only_our_own_users_can_connect(server: EmbeddedServer, made: Path) -> None:
    """The folder and the socket are closed to others; and if they weren't, the server is."""
    url = server.start()
    socket_folder = Path(_query(url, "show unix_socket_directories"))
    socket = socket_folder / ".s.PGSQL.5432"
    assert socket_folder.stat().st_mode & 0o077 == 0
    assert socket.stat().st_mode & 0o077 == 0
    rules = "select string_agg(type || ' ' || auth_method, ', ') from pg_hba_file_rules"
    assert _query(url, rules) == "local peer"
    if os.geteuid() != 0:
        return
    with _as_user("nobody"), pytest.raises(PermissionError):
        _query(url, "select 1")
    nobody = pwd.getpwnam("nobody")
    let_in(ServerUser(nobody.pw_uid, nobody.pw_gid), socket)
    socket.chmod(0o777)
    with (
        _as_user("nobody"),
        pytest.raises(asyncpg.InvalidAuthorizationSpecificationError, match="Peer"),
    ):
        _query(url, "select 1")


def test_the_server_knows_nothing_of_our_environment(
    server: EmbeddedServer, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GATEWAY_TOKEN_HMAC_SECRET", "secret")
    monkeypatch.setenv("PGPORT", "1")
    monkeypatch.setenv("PGOPTIONS", "-c fsync=off")
    url = server.start()
    environment = _postmaster(made).environ()
    assert not {"GATEWAY_TOKEN_HMAC_SECRET", "PGPORT", "PGOPTIONS"} & environment.keys()
    assert "port=5432" in url


def test_a_cluster_of_another_user_is_refused_or_run_by_that_user(
    server: EmbeddedServer, made: Path
) -> None:
    """Root can be anybody, and runs the server as whoever owns the data. Others can't."""
    if os.geteuid() != 0:
        cluster = made / "postgres" / "cluster"
        cluster.rename(made / "aside")
        cluster.symlink_to("/etc")
        try:
            with pytest.raises(EmbeddedServerError, match="belongs to root"):
                server.start()
        finally:
            cluster.unlink()
            (made / "aside").rename(cluster)
        return
    for owner in ("nobody", "root"):
        shutil.chown(made / "postgres", owner)
        for path in (made / "postgres").rglob("*"):
            shutil.chown(path, owner)
        assert _query(server.start(), "select 1") == 1
        # Restored from a backup by root: it goes to the user that is there for it.
        assert _postmaster(made).username() == {"nobody": "nobody", "root": "capegate"}[owner]
        server.stop()
