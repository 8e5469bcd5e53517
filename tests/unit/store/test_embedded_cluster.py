"""The embedded server's folder, without a server."""

import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from store.embedded_cluster import ClusterFolder, PidFile
from store.embedded_errors import EmbeddedServerError

_PID_FILE = """1234
/data/postgres/cluster
1700000000
5432
/data/postgres/socket

  5378 32768
{status}
"""


@pytest.fixture
def folder() -> Iterator[ClusterFolder]:
    # `tmp_path` is as long as the test's name and more: too long for a socket's.
    with TemporaryDirectory(prefix="capegate-") as name:
        folder = ClusterFolder(Path(name))
        folder.prepare()
        yield folder


def test_a_pid_file_says_where_the_server_is(tmp_path: Path) -> None:
    (tmp_path / "postmaster.pid").write_text(_PID_FILE.format(status="ready   "))
    assert PidFile.read(tmp_path) == PidFile(1234, Path("/data/postgres/socket"), "ready")


@pytest.mark.parametrize("length", range(0, len(_PID_FILE) - len("{status}\n"), 5))
def test_a_part_of_a_pid_file_is_none(tmp_path: Path, length: int) -> None:
    """PostgreSQL writes it line by line as it starts, and a crash can cut it anywhere."""
    (tmp_path / "postmaster.pid").write_text(_PID_FILE[:length])
    assert PidFile.read(tmp_path) is None


def test_no_pid_file_is_none(tmp_path: Path) -> None:
    assert PidFile.read(tmp_path) is None


def test_its_folder_is_private(folder: ClusterFolder) -> None:
    assert folder.home.stat().st_mode & 0o777 == 0o700


def test_a_folder_can_be_taken_once(folder: ClusterFolder) -> None:
    folder.lock()
    second = ClusterFolder(folder.home.parent)
    with pytest.raises(EmbeddedServerError, match=f"process {os.getpid()}"):
        second.lock()
    folder.unlock()
    second.lock()
    second.unlock()


def test_taking_it_twice_and_giving_it_back_twice_does_nothing(folder: ClusterFolder) -> None:
    for _ in range(2):
        folder.lock()
    for _ in range(2):
        folder.unlock()


def test_a_link_in_place_of_the_lock_is_not_followed(folder: ClusterFolder, tmp_path: Path) -> None:
    """Root opens it in a folder of another user."""
    (folder.home / "lock").symlink_to(tmp_path / "victim")
    with pytest.raises(OSError, match="symbolic links"):
        folder.lock()
    assert not (tmp_path / "victim").exists()


def test_the_socket_lies_beside_the_cluster_where_its_path_fits(folder: ClusterFolder) -> None:
    assert folder.socket_folder(None) == folder.home / "socket"


@pytest.mark.parametrize("name", ["x" * 100, "a,b", 'a"b', "a\\b", "é" * 40])
def test_the_socket_lies_elsewhere_where_its_path_does_not_fit(tmp_path: Path, name: str) -> None:
    folder, other = ClusterFolder(tmp_path / name), ClusterFolder(tmp_path / f"other{name}")
    socket, other_socket = folder.socket_folder(None), other.socket_folder(None)
    try:
        assert len(os.fsencode(socket / ".s.PGSQL.5432")) < 104
        assert not {",", '"', "\\"} & set(str(socket))
        assert socket.stat().st_mode & 0o777 == 0o700
        assert folder.socket_folder(None) == socket
        assert other_socket != socket
    finally:
        socket.rmdir()
        other_socket.rmdir()


def test_what_a_crashed_server_left_in_the_socket_folder_is_removed(folder: ClusterFolder) -> None:
    left = folder.socket_folder(None) / ".s.PGSQL.5432.lock"
    left.write_text(str(os.getpid()))
    folder.socket_folder(None)
    assert not left.exists()


def test_somebody_else_s_socket_folder_is_refused(folder: ClusterFolder, tmp_path: Path) -> None:
    """In /tmp, anybody can have been there first: a link to a folder of ours will not do."""
    (tmp_path / "elsewhere").mkdir()
    (folder.home / "socket").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(EmbeddedServerError, match="belongs to somebody else"):
        folder.socket_folder(None)


def test_last_words_are_the_last_fatal_error_since_the_start(folder: ClusterFolder) -> None:
    (folder.log / "postgres-Mon.log").write_text(
        "2026-11-23 01:00:00.000 UTC [1] FATAL:  an older failure\n"
        "2026-11-23 02:00:01.000 UTC [2] LOG:  starting\n"
        "2026-11-23 02:00:02.000 UTC [2] FATAL:  no space left\n"
        "2026-11-23 02:00:03.000 UTC [2] LOG:  shutting down\n"
    )
    since = 1795399200.0  # 2026-11-23 02:00:00 UTC
    assert folder.last_words(since).startswith("no space left (")
    assert folder.last_words(since + 60).startswith("see the log in ")
