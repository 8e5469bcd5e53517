"""The public JavaScript client over our `ResumableWebSocket`, on Node against a real server."""

from collections.abc import AsyncIterator

import pytest

from tests.integration.conftest import StartServer
from tests.support.sdk import SDKClient
from tests.support.sdk_behaviour import CONFIG, SDKBehaviour
from tests.support.sdk_js import Node, node_process
from tests.support.server import ServerProcess

# As quick as the SDK itself in these tests.
QUICK = {"backoff": {"min": 50, "max": 500}}


@pytest.fixture(scope="module")
def server(start_server: StartServer) -> ServerProcess:
    return start_server(CONFIG)


@pytest.fixture
async def sdk() -> AsyncIterator[Node]:
    async with node_process(resumable=QUICK) as node:
        yield node


class TestJavaScriptOverSessions(SDKBehaviour):
    """The SDK does all that it does over a plain socket."""

    async def wait_until_lost(self, client: SDKClient) -> None:
        """The SDK isn't told while the session may live."""
        while (await client.events.next("line"))["state"] != "waiting":
            pass
