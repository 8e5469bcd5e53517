"""The rooms of the page as the server has them, by its HTTP API."""

from typing import Any

import aiohttp

from tests.support.server import API_KEY, ServerProcess


async def api(server: ServerProcess, method: str, **params: object) -> dict[str, Any]:
    """Call the server's HTTP API."""
    url = f"{server.http_url}/api/{method}"
    async with (
        aiohttp.ClientSession(headers={"X-API-Key": API_KEY}) as session,
        session.post(url, json=params) as response,
    ):
        answer = await response.json()
    assert "error" not in answer, answer
    result: dict[str, Any] = answer["result"]
    return result


async def say(server: ServerProcess, room: str, text: str) -> None:
    """Publish a message of the server's own."""
    await api(server, "publish", channel=f"chat:{room}", data={"text": text})


async def stored(server: ServerProcess, room: str) -> list[str]:
    """The texts in the room's log, oldest first."""
    history = await api(server, "history", channel=f"chat:{room}", limit=-1)
    return [publication["data"]["text"] for publication in history["publications"]]


async def fill_room(server: ServerProcess, room: str, count: int) -> list[str]:
    """Publish so many messages; returns their texts."""
    texts = [f"message {number}" for number in range(1, count + 1)]
    for text in texts:
        await say(server, room, text)
    return texts
