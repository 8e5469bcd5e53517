"""The public Python client, `centrifuge-python`, against a real server."""

from collections.abc import AsyncIterator

import pytest

from tests.integration.conftest import StartServer
from tests.support.sdk_behaviour import CONFIG, SDKBehaviour
from tests.support.sdk_python import Python, python_sdk
from tests.support.server import ServerProcess


@pytest.fixture(scope="module")
def server(start_server: StartServer) -> ServerProcess:
    return start_server(CONFIG)


@pytest.fixture
async def sdk() -> AsyncIterator[Python]:
    async with python_sdk() as sdk:
        yield sdk


class TestPython(SDKBehaviour):
    """All of it."""
