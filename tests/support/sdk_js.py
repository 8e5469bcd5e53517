"""The public JavaScript client, `centrifuge` from npm, in a Node process (tests/sdk_js/)."""

import asyncio
import itertools
import json
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from tests.support.sdk import (
    DEADLINE,
    Events,
    History,
    In,
    Info,
    Position,
    Publication,
    Reason,
    SDKError,
    Subscribed,
)
from tests.support.tools import SDK_FOLDER, node

LINE_MAX_BYTES = 16 * 1024 * 1024


class Node:
    """A Node process that does what it is told, and tells what happens there."""

    def __init__(
        self, process: asyncio.subprocess.Process, resumable: Mapping[str, Any] | None
    ) -> None:
        self._process = process
        self._resumable = resumable
        self._ids = itertools.count(1)
        self._calls: dict[int, asyncio.Future[Any]] = {}
        self._names = (f"c{number}" for number in itertools.count(1))
        self.events: dict[str, Events] = defaultdict(Events)

    async def call(self, call: str, **request: Any) -> Any:
        """Call one of the functions in remote.mjs. Raises `SDKError`."""
        call_id = next(self._ids)
        self._calls[call_id] = asyncio.get_running_loop().create_future()
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"id": call_id, "call": call, **request}).encode())
        self._process.stdin.write(b"\n")
        async with asyncio.timeout(DEADLINE):
            return await self._calls[call_id]

    async def read(self) -> None:
        """Take what the process says until it ends."""
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            message = json.loads(line)
            if "id" not in message:
                name, context = message["event"], message["context"]
                is_client = "/" not in message["source"]
                self.events[message["source"]].add(name, _event(name, context, is_client))
                continue
            answer = self._calls.pop(message["id"])
            if answer.done():
                continue
            if error := message.get("error"):
                answer.set_exception(SDKError(error["code"], error["message"]))
            else:
                answer.set_result(message["result"])

    async def client(
        self, url: str, *, token: str | None = None, tokens: Sequence[str] = ()
    ) -> "JavaScriptClient":
        """See `sdk.SDK`."""
        name = next(self._names)
        await self.call(
            "open",
            client=name,
            url=url,
            token=token,
            tokens=tokens,
            resumable=self._resumable,
            options={},
        )
        return JavaScriptClient(self, name)


@asynccontextmanager
async def node_process(*, resumable: Mapping[str, Any] | None = None) -> AsyncIterator[Node]:
    """A Node process; its clients end with it.

    With `resumable` they go over a `ResumableWebSocket` (clients/js) with these options. What that
    tells of its line are events of the client's named "line".
    """
    process = await asyncio.create_subprocess_exec(
        node(),
        SDK_FOLDER / "remote.mjs",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=LINE_MAX_BYTES,
    )
    remote = Node(process, resumable)
    reading = asyncio.create_task(remote.read())
    try:
        yield remote
    finally:
        assert process.stdin is not None
        process.stdin.close()
        async with asyncio.timeout(DEADLINE):
            await reading
            await process.wait()


class JavaScriptClient:
    """See `sdk.SDKClient`."""

    def __init__(self, remote: Node, name: str) -> None:
        self._remote = remote
        self._name = name
        self.events = remote.events[name]

    async def _call(self, call: str, **request: Any) -> Any:
        return await self._remote.call(call, client=self._name, **request)

    async def connect(self) -> str:
        """See `sdk.SDKClient`."""
        await self.begin()
        client: str = await self.events.next("connected")
        return client

    async def begin(self) -> None:
        """See `sdk.SDKClient`."""
        await self._call("connect")

    async def disconnect(self) -> None:
        """See `sdk.SDKClient`."""
        await self._call("disconnect")

    async def publish(self, channel: str, data: Any) -> None:
        """See `sdk.SDKClient`."""
        await self._call("publish", channel=channel, data=data)

    async def rpc(self, method: str, data: Any) -> Any:
        """See `sdk.SDKClient`."""
        return (await self._call("rpc", method=method, data=data))["data"]

    async def subscription(
        self,
        channel: str,
        *,
        tokens: Sequence[str] = (),
        recoverable: bool = False,
        join_leave: bool = False,
    ) -> "JavaScriptSubscription":
        """See `sdk.SDKClient`."""
        options = {"recoverable": recoverable, "joinLeave": join_leave}
        await self._call("new_subscription", channel=channel, tokens=tokens, options=options)
        return JavaScriptSubscription(self._remote, self._name, channel)


class JavaScriptSubscription:
    """See `sdk.SDKSubscription`."""

    def __init__(self, remote: Node, client: str, channel: str) -> None:
        self._remote = remote
        self._target = {"client": client, "channel": channel}
        self.events = remote.events[f"{client}/{channel}"]

    async def _call(self, call: str, **request: Any) -> Any:
        return await self._remote.call(call, **self._target, **request)

    async def subscribe(self) -> Subscribed:
        """See `sdk.SDKSubscription`."""
        await self.begin()
        subscribed: Subscribed = await self.events.next("subscribed")
        return subscribed

    async def begin(self) -> None:
        """See `sdk.SDKSubscription`."""
        await self._call("subscribe")

    async def unsubscribe(self) -> None:
        """See `sdk.SDKSubscription`."""
        await self._call("unsubscribe")

    async def publish(self, data: Any) -> None:
        """See `sdk.SDKSubscription`."""
        await self._call("publish_to", data=data)

    async def presence(self) -> Mapping[str, Info]:
        """See `sdk.SDKSubscription`."""
        clients = (await self._call("presence"))["clients"]
        return {client: _info(info) for client, info in clients.items()}

    async def presence_stats(self) -> tuple[int, int]:
        """See `sdk.SDKSubscription`."""
        stats = await self._call("presence_stats")
        return stats["numClients"], stats["numUsers"]

    async def history(
        self, limit: int = 0, since: Position | None = None, reverse: bool = False
    ) -> History:
        """See `sdk.SDKSubscription`."""
        options: dict[str, Any] = {"limit": limit, "reverse": reverse}
        if since is not None:
            options["since"] = {"offset": since.offset, "epoch": since.epoch}
        found = await self._call("history", options=options)
        return History(
            [_publication(publication) for publication in found["publications"]],
            Position(found["offset"], found["epoch"]),
        )


def _event(name: str, context: Any, is_client: bool) -> Any:
    """An SDK's event in our words."""
    match name:
        case "connecting" | "disconnected":
            return Reason(context["code"], context["reason"])
        case "connected":
            return context["client"]
        case "error":
            return context["error"]["code"]
        case "subscribed":
            return _subscribed(context)
        case "subscribing" | "unsubscribed" if not is_client:
            return Reason(context["code"], context["reason"])
        case "publication" | "join" | "leave":
            what = _publication(context) if name == "publication" else _info(context["info"])
            return In(context["channel"], what) if is_client else what
        case "subscribing" | "unsubscribed":
            return In(context["channel"])
        case _:
            return context


def _subscribed(context: Mapping[str, Any]) -> Subscribed:
    position = context.get("streamPosition")
    return Subscribed(
        channel=context["channel"],
        recoverable=context["recoverable"],
        positioned=context["positioned"],
        was_recovering=context["wasRecovering"],
        recovered=context["recovered"],
        position=None if position is None else Position(position["offset"], position["epoch"]),
        data=context.get("data"),
    )


def _publication(context: Mapping[str, Any]) -> Publication:
    info = context.get("info")
    return Publication(
        data=context["data"],
        offset=context.get("offset", 0),
        info=None if info is None else _info(info),
        tags=context.get("tags", {}),
    )


def _info(info: Mapping[str, Any]) -> Info:
    return Info(info["client"], info["user"], info.get("connInfo"), info.get("chanInfo"))
