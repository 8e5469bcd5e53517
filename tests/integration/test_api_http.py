"""The server API, `/api/health`, `/api/ready` and `/metrics`, as bare HTTP (PROTOCOL.md A.11)."""

from collections.abc import AsyncIterator

import aiohttp
import pytest

from tests.integration.conftest import StartServer
from tests.support.server import API_KEY, ServerProcess


@pytest.fixture(scope="module")
def server(start_server: StartServer) -> ServerProcess:
    return start_server()


@pytest.fixture
async def http(server: ServerProcess) -> AsyncIterator[aiohttp.ClientSession]:
    """Calls of the server without a key."""
    async with aiohttp.ClientSession(server.http_url) as session:
        yield session


@pytest.mark.parametrize(
    ("headers", "query"),
    [
        ({"X-API-Key": API_KEY}, {}),
        ({"Authorization": f"apikey {API_KEY}"}, {}),
        ({"Authorization": f"ApiKey {API_KEY}"}, {}),
        ({}, {"api_key": API_KEY}),
    ],
)
async def test_the_key_is_taken_from_header_or_query(
    http: aiohttp.ClientSession, headers: dict[str, str], query: dict[str, str]
) -> None:
    async with http.post("/api/info", headers=headers, params=query, json={}) as response:
        assert response.status == 200
        assert "result" in await response.json()
