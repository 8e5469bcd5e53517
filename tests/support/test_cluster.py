"""The cluster does what other tests rely on."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import asyncpg
import pytest

from tests.support.cluster import Cluster, ClusterError, find_postmaster, wait_until_ended

_OWNER = """
import os, signal, sys
from tests.support.cluster import Cluster
cluster = Cluster()
cluster.start()
print(cluster._folder, flush=True)
sys.stdin.read()
os.kill(os.getpid(), signal.SIGKILL)
"""


async def _select_one(url: str) -> int:
    connection = await asyncpg.connect(url)
    try:
        one: int = await connection.fetchval("select 1")
        return one
    finally:
        await connection.close()


async def test_answers_over_tcp_and_over_its_socket(cluster: Cluster) -> None:
    assert await _select_one(cluster.url()) == 1
    assert await _select_one(cluster.url(unix_socket=True)) == 1


async def test_refuses_another_password(cluster: Cluster) -> None:
    host = f"127.0.0.1:{cluster.port}"

    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(f"postgresql://postgres:wrong@{host}/postgres")


def test_a_failing_statement_says_why(cluster: Cluster) -> None:
    with pytest.raises(ClusterError, match='relation "nowhere" does not exist'):
        cluster.execute("select * from nowhere")


def test_a_database_starts_as_a_copy_of_its_template(cluster: Cluster) -> None:
    template = cluster.create_database()
    cluster.execute("create table t as select 7 as n", database=template)

    copy = cluster.create_database(template=template)
    cluster.execute("insert into t values (8)", database=copy)

    assert cluster.execute("select n from t", database=copy) == "7\n8"
    assert cluster.execute("select n from t", database=template) == "7"
    cluster.drop_database(copy)
    cluster.drop_database(template)


async def test_a_database_in_use_is_dropped(cluster: Cluster) -> None:
    name = cluster.create_database()
    connection = await asyncpg.connect(cluster.url(name))

    cluster.drop_database(name)

    with pytest.raises((asyncpg.PostgresError, OSError, asyncpg.InterfaceError)):
        await connection.fetchval("select 1")
    await connection.close()


def test_what_was_committed_survives_stop_and_kill_at_the_same_addresses() -> None:
    with Cluster(fsync=True) as cluster:
        url = cluster.url()
        assert cluster.execute("show fsync") == "on"
        cluster.execute("create table t as select 7 as n")

        cluster.stop()
        assert not cluster.is_running
        with pytest.raises(ClusterError):
            cluster.execute("select 1")
        cluster.start()
        cluster.restart()
        cluster.execute("insert into t values (8)")
        cluster.kill()
        assert not cluster.is_running
        cluster.start()

        assert cluster.execute("select n from t") == "7\n8"
        assert cluster.url() == url


def test_a_killed_run_leaves_no_server_and_no_folder() -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", _OWNER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parent.parent.parent,
        # In a group of its own, so that this test can wait for whatever is left of it.
        start_new_session=True,
    )
    assert owner.stdin is not None
    assert owner.stdout is not None
    folder = Path(owner.stdout.readline().strip())
    postmaster = find_postmaster(folder / "data")
    assert postmaster is not None
    owner.stdin.close()  # it was found, so the owner may go

    # The reaper has the pipe too: its end says that the reaper has ended.
    assert owner.stdout.read() == ""
    owner.stdout.close()

    assert owner.wait() == -signal.SIGKILL
    wait_until_ended([postmaster])
    assert not folder.exists()


def test_settings_in_the_environment_lead_nowhere_else(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(os.environ, "PGHOST", "/nowhere")
    monkeypatch.setitem(os.environ, "PGOPTIONS", "--nonsense")

    assert cluster.execute("select 1") == "1"
