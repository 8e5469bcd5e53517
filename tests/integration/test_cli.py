"""The commands as processes, against a real database."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cluster import Cluster
from tests.support.tokens import SECRET

ROOT = Path(__file__).resolve().parents[2]


def environment(**environ: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), **environ}


def capegate(folder: Path, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gateway", *arguments],
        cwd=folder,
        env=environment(**environ),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def the_line(result: subprocess.CompletedProcess[str]) -> str:
    """The one line on stderr of a command that failed."""
    assert result.returncode == 1, result.stderr
    (line,) = result.stderr.splitlines()
    return line


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def test_migrate_goes_up_and_down(folder: Path, empty_database_url: str) -> None:
    """With the database's URL alone, as in a job that runs before the deploy."""
    environ = {"DATABASE_URL": empty_database_url}

    up = capegate(folder, "migrate", **environ)
    again = capegate(folder, "migrate", **environ)
    down = capegate(folder, "migrate", "--to", "base", **environ)
    first = capegate(folder, "migrate", "--to", "0001", **environ)

    for result in (up, again, down, first):
        assert (result.returncode, result.stderr) == (0, "")
    assert up.stdout.startswith("applied 0001\n")
    assert "applied" not in again.stdout
    assert again.stdout == up.stdout.splitlines()[-1] + "\n"
    assert "undid 0001\n" in down.stdout
    assert down.stdout.endswith("The database is at base, empty.\n")
    assert first.stdout == "applied 0001\nThe database is at revision 0001.\n"


def test_migrate_to_nowhere_is_one_line(folder: Path, database_url: str) -> None:
    line = the_line(capegate(folder, "migrate", "--to", "0777", DATABASE_URL=database_url))

    assert line.startswith("capegate: Can't upgrade the database to '0777'")


def test_check_says_how_the_database_is(
    folder: Path, database_url: str, empty_database_url: str, cluster: Cluster
) -> None:
    secret = {"GATEWAY_TOKEN_HMAC_SECRET": SECRET}

    migrated = capegate(folder, "check", DATABASE_URL=database_url, **secret)
    empty = capegate(folder, "check", DATABASE_URL=empty_database_url, **secret)
    missing = capegate(folder, "check", DATABASE_URL=cluster.url("no_such_database"), **secret)

    assert (migrated.returncode, empty.returncode) == (0, 0)
    assert "The database answers and has revision " in migrated.stdout
    assert "The database answers and has no schema yet; the next start" in empty.stdout
    assert 'The database "no_such_database" does not exist' in the_line(missing)
    assert "note: api_key isn't set" in migrated.stdout


def test_check_finds_a_database_that_is_newer(
    folder: Path, database_url: str, cluster: Cluster
) -> None:
    name = database_url.rpartition("/")[2].partition("?")[0]
    cluster.execute("update alembic_version set version_num = '9999'", database=name)

    result = capegate(folder, "check", DATABASE_URL=database_url, GATEWAY_TOKEN_HMAC_SECRET=SECRET)

    assert "newer than this gateway" in the_line(result)


def test_serve_says_in_one_line_why_it_cannot_start(folder: Path) -> None:
    database = {
        "DATABASE_URL": "postgresql://u:hunter2@127.0.0.1:1/x",
        "GATEWAY_TOKEN_HMAC_SECRET": SECRET,
    }
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        in_use = the_line(capegate(folder, "serve", "--port", port, **database))
    unreachable = the_line(capegate(folder, "serve", "--port", "0", **database))

    assert "port is in use" in in_use
    assert "nothing listens there" in unreachable
    assert "hunter2" not in in_use + unreachable


@pytest.fixture
def served(folder: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "gateway", "serve", "--dev", "--port", "0"],
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    yield process
    if process.poll() is None:
        process.kill()
    process.communicate()


def test_serve_starts_from_nothing_and_ends_cleanly(
    folder: Path, served: subprocess.Popen[str]
) -> None:
    assert served.stdout is not None
    ready = served.stdout.readline()
    assert "ready" in ready

    token = capegate(folder, "token", "--user", "alice")
    busy = the_line(capegate(folder, "migrate"))
    served.send_signal(signal.SIGTERM)

    # It is the server's secret, so nothing had to be made.
    assert (token.returncode, token.stderr) == (0, "")
    assert "Another gateway uses" in busy
    assert served.wait(30) == 0
    assert capegate(folder, "migrate").returncode == 0
