"""What every test gets: a watched loop, its own database, and a place after the cheaper ones."""

import asyncio
import gc
import os
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import hypothesis
import pytest
import uvloop
from blockbuster import blockbuster_ctx
from pytest_asyncio import is_async_test

from store import migrate
from tests.support.cluster import Cluster

# The folders in the order in which they are begun. A failure in the first two ends the run before
# the rest, or soon after when several processes share it: what is built on a broken part says
# nothing new. Of the slow ones those come first that have few and long files.
_QUICK_FOLDERS = ("unit", "protocol")
_SLOW_FOLDERS = ("support", "browser", "chaos", "integration", "load")

# Turns of the loop after a test in which callbacks that are already on their way may run: a closing
# transport needs two, a cancelled task one for each `await` in its `finally`.
_TURNS_TO_SETTLE = 20

# Who may block the loop all the same.
_MAY_BLOCK = {
    # A module is imported once, and late only where somebody meant it.
    "<frozen importlib._bootstrap>": {"_find_and_load"},
    # Looks for key files in the home folder, for every connection.
    "asyncpg/connect_utils.py": {"_parse_connect_arguments"},
    # Read their files before there is any traffic.
    "store/migrate.py": {"revisions"},
    "store/revisions.py": {"run", "_run_alembic"},
}


def pytest_configure() -> None:
    """Keeps chance and the developer's own settings out of the tests.

    Hypothesis draws the same examples each time; `HYPOTHESIS_PROFILE=explore` looks for new ones.
    """
    hypothesis.settings.register_profile(
        "same",
        derandomize=True,
        deadline=None,
        database=None,
        # A verdict on the machine's load, not on the code.
        suppress_health_check=[hypothesis.HealthCheck.too_slow],
    )
    hypothesis.settings.register_profile("explore", deadline=None, max_examples=2000)
    hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))
    for name in list(os.environ):
        if name.startswith("GATEWAY_") or name in {"DATABASE_URL", "REDIS_URL", "PORT"}:
            del os.environ[name]


def _rank(item: pytest.Item) -> int:
    folder = item.path.relative_to(item.config.rootpath / "tests").parts[0]
    order = (*_QUICK_FOLDERS, *_SLOW_FOLDERS)
    return order.index(folder) if folder in order else len(order)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=_rank)


def pytest_collection_finish() -> None:
    # What is there now stays, so no test's collection has to look at it again.
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(
    item: pytest.Item, nextitem: pytest.Item | None
) -> Generator[None, object, object]:
    result = yield
    if (
        nextitem is not None
        and item.session.testsfailed
        and _rank(item) < len(_QUICK_FOLDERS) <= _rank(nextitem)
    ):
        item.session.shouldfail = "unit or protocol tests failed: nothing slower was started"
    return result


def pytest_asyncio_loop_factories(
    item: pytest.Item,
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Everything runs on uvloop, as in production; unit tests on asyncio in debug mode as well."""
    factories: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
        "uvloop": uvloop.new_event_loop
    }
    if _rank(item) < len(_QUICK_FOLDERS):
        factories["asyncio"] = _debugging_loop
    return factories


def _debugging_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    loop.set_debug(True)
    return loop


@pytest.fixture(autouse=True)
def _watched_loop(request: pytest.FixtureRequest) -> None:
    # First of all fixtures, so that it looks when the others have cleaned up.
    if is_async_test(request.node):
        request.getfixturevalue("loop_errors")


@pytest.fixture
async def loop_errors() -> AsyncIterator[list[dict[str, Any]]]:
    """What reached the loop's exception handler, as asyncio describes it.

    The test fails when something is in this list at the end, or when a task is left over: after
    the other fixtures, since what they have started is theirs to end. A test that expects an error
    takes it out of the list.
    """
    loop = asyncio.get_running_loop()
    errors: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: errors.append(context))
    yield errors
    for _ in range(_TURNS_TO_SETTLE):
        await asyncio.sleep(0)
    leftover = asyncio.all_tasks() - {asyncio.current_task()}
    # A failed task that nobody asked for its result says so when it is collected.
    gc.collect()
    assert not leftover, "the test left tasks running"
    assert not errors, "the test made the loop's exception handler run"


@pytest.fixture(autouse=True, scope="session")
def _no_blocking_calls() -> Iterator[None]:
    """A call by our code that blocks the running loop is an error (BlockingError)."""
    with blockbuster_ctx(["gateway", "handlers", "store", "metrics"]) as blockbuster:
        for function in blockbuster.functions.values():
            for file, callers in _MAY_BLOCK.items():
                function.can_block_in(file, callers)
        yield


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """The run's PostgreSQL server. A test may stop it; it runs again when the next test begins."""
    with Cluster() as cluster:
        yield cluster


@pytest.fixture(scope="session")
def template_database(cluster: Cluster) -> str:
    """The name of a database with all migrations, for `Cluster.create_database`."""
    return _migrated(cluster)


@pytest.fixture
def database_url(cluster: Cluster, template_database: str) -> Iterator[str]:
    """A database of the test's own, with all migrations and nothing in it."""
    cluster.start()
    name = cluster.create_database(template=template_database)
    yield cluster.url(name)
    cluster.start()
    cluster.drop_database(name)


@pytest.fixture
def empty_database_url(cluster: Cluster) -> Iterator[str]:
    """A database of the test's own, without migrations."""
    cluster.start()
    name = cluster.create_database()
    yield cluster.url(name)
    cluster.start()
    cluster.drop_database(name)


@pytest.fixture
def durable_cluster() -> Iterator[Cluster]:
    """A server of the test's own where a commit waits for the disk, as in production."""
    with Cluster(fsync=True) as cluster:
        yield cluster


@pytest.fixture
def durable_database_url(durable_cluster: Cluster) -> str:
    """A migrated database on `durable_cluster`."""
    return durable_cluster.url(_migrated(durable_cluster))


def _migrated(cluster: Cluster) -> str:
    name = cluster.create_database()
    # In a thread, because this one may already have the test's loop.
    with ThreadPoolExecutor(1) as executor:
        executor.submit(asyncio.run, migrate.upgrade(cluster.url(name))).result()
    return name
