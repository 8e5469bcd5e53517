"""Gateways that the tests of a module share, each on a database of its own."""

import secrets
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.support.cluster import Cluster
from tests.support.server import DEFAULT_CONFIG, ServerProcess

# They assert like tests do; without this a failure in them would not say what it saw.
for _module in ("wire", "peer", "scrape", "sdk", "sdk_behaviour"):
    if f"tests.support.{_module}" not in sys.modules:
        pytest.register_assert_rewrite(f"tests.support.{_module}")

StartServer = Callable[..., ServerProcess]


@pytest.fixture(scope="module")
def start_server(
    cluster: Cluster, template_database: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[StartServer]:
    """Starts a gateway, `start_server(config, GATEWAY_…="…")`, which ends with the module.

    Whatever clients did to it: an error in its log is an error of the module's last test.
    """
    cluster.start()
    servers: list[ServerProcess] = []
    with ExitStack() as stack:

        def start(config: str = DEFAULT_CONFIG, **environment: str) -> ServerProcess:
            database = cluster.create_database(template=template_database)
            stack.callback(cluster.drop_database, database)
            server = ServerProcess(
                tmp_path_factory.mktemp("gateway"),
                database_url=cluster.url(database),
                config=config,
                environment=environment,
            )
            servers.append(server)
            return stack.enter_context(server)

        yield start
    for server in servers:
        lines = server.log().splitlines()
        assert [line for line in lines if '"level": "error"' in line] == []


@pytest.fixture
def room() -> str:
    """A channel with history that no other test uses."""
    return f"chat:{secrets.token_hex(4)}"
