"""The public JavaScript client, `centrifuge` from npm, on Node against a real server."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.integration.conftest import StartServer
from tests.support.scrape import api
from tests.support.sdk import Publication, SDKError
from tests.support.sdk_behaviour import CONFIG, SDKBehaviour, connect, publish, subscribe
from tests.support.sdk_js import Node, node_process
from tests.support.server import ServerProcess, mint


@pytest.fixture(scope="module")
def server(start_server: StartServer) -> ServerProcess:
    return start_server(CONFIG)


@pytest.fixture
async def sdk() -> AsyncIterator[Node]:
    async with node_process() as node:
        yield node


class TestJavaScript(SDKBehaviour):
    """All of it, and what has no word in the SDK: by commands of one's own through `ws`."""

    async def test_raw_commands_publish_what_is_ephemeral_or_repeated(
        self, sdk: Node, server: ServerProcess, room: str
    ) -> None:
        subscription = await subscribe(await connect(sdk, server), room)
        socket = await RawSocket.open(sdk, server)
        ephemeral = await socket.call("publish", channel=room, data="typing", ephemeral=True)
        first = await socket.call("publish", channel=room, data="once", idempotency_key="k")
        second = await socket.call("publish", channel=room, data="again", idempotency_key="k")
        third = await socket.call("publish", channel=room, data="other", idempotency_key="l")

        assert ephemeral == {}
        assert first["offset"] == 1
        assert second == first | {"duplicate": True}
        assert third["offset"] == 2
        received = await subscription.events.take("publication", 3)
        assert [(pub.data, pub.offset) for pub in received] == [
            ("typing", 0),
            ("once", 1),
            ("other", 2),
        ]
        # An ephemeral one moved nobody's position.
        await publish(server, room, [3])
        assert await subscription.events.next("publication") == Publication(3, 3)

    async def test_a_message_that_is_too_large_is_final(
        self, sdk: Node, server: ServerProcess, room: str
    ) -> None:
        """To send it again and again would help nobody."""
        alice = await connect(sdk, server)
        with pytest.raises(SDKError):
            await alice.publish(room, "x" * 70_000)

        reason = "message size limit exceeded"
        assert (await alice.events.next("disconnected")).reason == reason

    async def test_raw_commands_are_told_which_publications_are_gone(
        self, sdk: Node, server: ServerProcess, room: str
    ) -> None:
        await publish(server, room, range(1, 6))
        socket = await RawSocket.open(sdk, server)
        epoch = (await socket.call("history", channel=room))["epoch"]
        await api(server, "history_remove", channel=room)
        await publish(server, room, [6])
        result = await socket.call("subscribe", channel=room, recover=True, offset=2, epoch=epoch)

        assert result == {
            "recoverable": True,
            "positioned": True,
            "was_recovering": True,
            "epoch": epoch,
            "offset": 6,
            "gap": {"from": 3, "to": 6},
        }


class RawSocket:
    """Commands through the `ws` package."""

    def __init__(self, remote: Node, name: str) -> None:
        self._remote = remote
        self._name = name
        self._id = 0

    @classmethod
    async def open(cls, remote: Node, server: ServerProcess) -> "RawSocket":
        """A socket that has connected as bob."""
        await remote.call("open_socket", socket="raw", url=server.ws_url)
        socket = cls(remote, "raw")
        await socket.call("connect", token=mint("bob"))
        return socket

    async def call(self, method: str, **request: Any) -> dict[str, Any]:
        """Send a command and return its result."""
        self._id += 1
        command = {"id": self._id, method: request}
        await self._remote.call("send", socket=self._name, text=json.dumps(command))
        while True:
            message = await self._remote.events[self._name].next("message")
            for line in message.split("\n"):
                reply = json.loads(line)
                if reply.get("id") == self._id:
                    assert "error" not in reply, reply
                    result: dict[str, Any] = reply[method]
                    return result
