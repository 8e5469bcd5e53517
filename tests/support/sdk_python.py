"""The public Python client, `centrifuge-python`, in this process."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import centrifuge

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

Result = TypeVar("Result")


class Python:
    """Makes clients; see `sdk.SDK`."""

    def __init__(self) -> None:
        self._clients: list[PythonClient] = []

    async def client(
        self, url: str, *, token: str | None = None, tokens: Sequence[str] = ()
    ) -> "PythonClient":
        """See `sdk.SDK`."""
        client = PythonClient(url, token, tokens)
        self._clients.append(client)
        return client

    async def close(self) -> None:
        """Disconnect everybody and wait until nothing of them runs any more."""
        for client in self._clients:
            await client.disconnect()
        async with asyncio.timeout(DEADLINE):
            for client in self._clients:
                await client.ended()


@asynccontextmanager
async def python_sdk() -> AsyncIterator[Python]:
    """The SDK; its clients end with it."""
    sdk = Python()
    try:
        yield sdk
    finally:
        await sdk.close()


class PythonClient:
    """See `sdk.SDKClient`."""

    def __init__(self, url: str, token: str | None, tokens: Sequence[str]) -> None:
        self.events = Events()
        self._client = centrifuge.Client(
            url,
            events=_ClientEvents(self.events),
            token=token or "",
            get_token=_next_of(tokens, self.events),
            min_reconnect_delay=0.05,
            max_reconnect_delay=0.5,
            proxy=None,
        )

    async def connect(self) -> str:
        """See `sdk.SDKClient`."""
        await self.begin()
        client: str = await self.events.next("connected")
        return client

    async def begin(self) -> None:
        """See `sdk.SDKClient`."""
        await self._client.connect()

    async def disconnect(self) -> None:
        """See `sdk.SDKClient`."""
        await self._client.disconnect()

    async def ended(self) -> None:
        """Wait for what still runs after `disconnect`."""
        while self._client._background_tasks:
            await asyncio.wait(self._client._background_tasks)

    async def publish(self, channel: str, data: Any) -> None:
        """See `sdk.SDKClient`."""
        await _reply(self._client.publish(channel, data))

    async def rpc(self, method: str, data: Any) -> Any:
        """See `sdk.SDKClient`."""
        return (await _reply(self._client.rpc(method, data))).data

    async def subscription(
        self,
        channel: str,
        *,
        tokens: Sequence[str] = (),
        recoverable: bool = False,
        join_leave: bool = False,
    ) -> "PythonSubscription":
        """See `sdk.SDKClient`."""
        events = Events()
        subscription = self._client.new_subscription(
            channel,
            events=_SubscriptionEvents(events),
            get_token=_next_of(tokens, events),
            min_resubscribe_delay=0.05,
            recoverable=recoverable,
            join_leave=join_leave,
        )
        return PythonSubscription(subscription, events)


class PythonSubscription:
    """See `sdk.SDKSubscription`."""

    def __init__(self, subscription: centrifuge.Subscription, events: Events) -> None:
        self._subscription = subscription
        self.events = events

    async def subscribe(self) -> Subscribed:
        """See `sdk.SDKSubscription`."""
        await self.begin()
        subscribed: Subscribed = await self.events.next("subscribed")
        return subscribed

    async def begin(self) -> None:
        """See `sdk.SDKSubscription`."""
        await self._subscription.subscribe()

    async def unsubscribe(self) -> None:
        """See `sdk.SDKSubscription`."""
        await self._subscription.unsubscribe()

    async def publish(self, data: Any) -> None:
        """See `sdk.SDKSubscription`."""
        await _reply(self._subscription.publish(data))

    async def presence(self) -> Mapping[str, Info]:
        """See `sdk.SDKSubscription`."""
        clients = (await _reply(self._subscription.presence())).clients
        return {client: _info(info) for client, info in clients.items()}

    async def presence_stats(self) -> tuple[int, int]:
        """See `sdk.SDKSubscription`."""
        stats = await _reply(self._subscription.presence_stats())
        return stats.num_clients, stats.num_users

    async def history(
        self, limit: int = 0, since: Position | None = None, reverse: bool = False
    ) -> History:
        """See `sdk.SDKSubscription`."""
        position = None if since is None else centrifuge.StreamPosition(since.offset, since.epoch)
        found = await _reply(self._subscription.history(limit, position, reverse))
        return History(
            [_publication(publication) for publication in found.publications],
            Position(found.offset, found.epoch),
        )


class _ClientEvents(centrifuge.ClientEventHandler):  # type: ignore[misc]  # it has no types
    def __init__(self, events: Events) -> None:
        self._events = events

    async def on_connecting(self, ctx: Any) -> None:
        self._events.add("connecting", Reason(ctx.code, ctx.reason))

    async def on_connected(self, ctx: Any) -> None:
        self._events.add("connected", ctx.client)

    async def on_disconnected(self, ctx: Any) -> None:
        self._events.add("disconnected", Reason(ctx.code, ctx.reason))

    async def on_error(self, ctx: Any) -> None:
        self._events.add("error", getattr(ctx.error, "code", ctx.code))

    async def on_subscribed(self, ctx: Any) -> None:
        self._events.add("subscribed", _subscribed(ctx))

    async def on_subscribing(self, ctx: Any) -> None:
        self._events.add("subscribing", In(ctx.channel))

    async def on_unsubscribed(self, ctx: Any) -> None:
        self._events.add("unsubscribed", In(ctx.channel))

    async def on_publication(self, ctx: Any) -> None:
        self._events.add("publication", In(ctx.channel, _publication(ctx.pub)))

    async def on_join(self, ctx: Any) -> None:
        self._events.add("join", In(ctx.channel, _info(ctx.info)))

    async def on_leave(self, ctx: Any) -> None:
        self._events.add("leave", In(ctx.channel, _info(ctx.info)))


class _SubscriptionEvents(centrifuge.SubscriptionEventHandler):  # type: ignore[misc]  # no types
    def __init__(self, events: Events) -> None:
        self._events = events

    async def on_subscribing(self, ctx: Any) -> None:
        self._events.add("subscribing", Reason(ctx.code, ctx.reason))

    async def on_subscribed(self, ctx: Any) -> None:
        self._events.add("subscribed", _subscribed(ctx))

    async def on_unsubscribed(self, ctx: Any) -> None:
        self._events.add("unsubscribed", Reason(ctx.code, ctx.reason))

    async def on_publication(self, ctx: Any) -> None:
        self._events.add("publication", _publication(ctx.pub))

    async def on_join(self, ctx: Any) -> None:
        self._events.add("join", _info(ctx.info))

    async def on_leave(self, ctx: Any) -> None:
        self._events.add("leave", _info(ctx.info))

    async def on_error(self, ctx: Any) -> None:
        self._events.add("error", getattr(ctx.error, "code", ctx.code))


def _next_of(tokens: Sequence[str], events: Events) -> Callable[..., Awaitable[str]] | None:
    """A getter of tokens: each call gives the next one, at last the same."""
    if not tokens:
        return None
    left = list(tokens)

    async def get_token(channel: str = "") -> str:
        events.add("token", None)
        return left.pop(0) if len(left) > 1 else left[0]

    return get_token


async def _reply(operation: Awaitable[Result]) -> Result:
    """The result of an operation, its error in our words."""
    try:
        return await operation
    except centrifuge.ReplyError as error:
        raise SDKError(error.code, str(error)) from error


def _subscribed(ctx: Any) -> Subscribed:
    position = ctx.stream_position
    return Subscribed(
        channel=ctx.channel,
        recoverable=ctx.recoverable,
        positioned=ctx.positioned,
        was_recovering=ctx.was_recovering,
        recovered=ctx.recovered,
        position=None if position is None else Position(position.offset, position.epoch),
        data=ctx.data,
    )


def _publication(publication: Any) -> Publication:
    return Publication(
        data=publication.data,
        offset=publication.offset,
        info=None if publication.info is None else _info(publication.info),
        tags=publication.tags,
    )


def _info(info: Any) -> Info:
    return Info(info.client, info.user, info.conn_info, info.chan_info)
