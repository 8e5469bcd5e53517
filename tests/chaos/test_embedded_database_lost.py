"""The embedded PostgreSQL dies under a gateway that goes on."""

import asyncio
import os
import signal
from pathlib import Path

import aiohttp

from tests.support.server import API_KEY, ServerProcess

RECOVERY_TIMEOUT = 30.0


async def test_an_embedded_database_that_was_killed_is_started_again(folder: Path) -> None:
    """What was acknowledged before is there, and what is published again is stored once."""
    server = ServerProcess(folder)
    await asyncio.to_thread(server.start)
    try:
        async with aiohttp.ClientSession(headers={"X-API-Key": API_KEY}) as session:

            async def call(method: str, **body: object) -> dict[str, object]:
                async with session.post(f"{server.http_url}/api/{method}", json=body) as response:
                    answer: dict[str, object] = await response.json()
                    return answer

            first = await call("publish", channel="chat:room", data=1)
            assert "result" in first

            os.kill(_postmaster(folder), signal.SIGKILL)
            async with asyncio.timeout(RECOVERY_TIMEOUT):
                second: dict[str, object] = {}
                while "result" not in second:
                    # Each is answered when the server gave the database time to come back.
                    second = await call(
                        "publish", channel="chat:room", data=2, idempotency_key="two"
                    )

            history = await call("history", channel="chat:room", limit=10)
            assert isinstance(history["result"], dict)
            assert [pub["data"] for pub in history["result"]["publications"]] == [1, 2]
    finally:
        await asyncio.to_thread(server.terminate)


def _postmaster(folder: Path) -> int:
    pid_file = folder / "data" / "postgres" / "cluster" / "postmaster.pid"
    return int(pid_file.read_text().split("\n", 1)[0])
