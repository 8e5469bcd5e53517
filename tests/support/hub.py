"""What tests do with a hub: enter its channels as connections do, and let the loop turn."""

import asyncio
import json
from collections.abc import Callable

from gateway.broker.contract import Transient
from gateway.hub import Hub
from gateway.protocol.channels import ChannelOptions
from gateway.protocol.codec import StreamPosition, publication
from gateway.protocol.codes import ErrorCode
from gateway.protocol.subscription import Joined
from metrics.instruments import REGISTRY
from tests.support.logbook import Reader, SessionReader

LOG = ChannelOptions(history_size=100, history_ttl=3600.0)
PLAIN = ChannelOptions()
CHAT = "chat:lobby"
LIVE = "live:ticks"


async def turn() -> None:
    """Let what was begun in this turn of the loop end with it."""
    await asyncio.sleep(0)


async def until(condition: Callable[[], object], turns: int = 500) -> None:
    """Let the loop turn until something holds."""
    for _ in range(turns):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("it didn't come to hold")


async def settle(turns: int = 30) -> None:
    """Let the loop turn for as long as anything that is under way could take."""
    for _ in range(turns):
        await asyncio.sleep(0)


def counted(name: str, **labels: str) -> float:
    """The value of one of our instruments."""
    return REGISTRY.get_sample_value(f"capegate_{name}", labels) or 0.0


async def prepared(
    hub: Hub, channel: str, options: ChannelOptions, since: StreamPosition | None = None
) -> ErrorCode | None:
    """Have at hand what entering a channel takes, or the error."""
    answer: asyncio.Future[ErrorCode | None] = asyncio.get_running_loop().create_future()
    hub.prepare(channel, options, since, answer.set_result)
    return await answer


async def joined(
    hub: Hub,
    reader: Reader,
    channel: str = CHAT,
    options: ChannelOptions = LOG,
    since: StreamPosition | None = None,
    *,
    listens: bool = False,
    only_recovered: bool = False,
) -> Joined | None:
    """Enter a channel as a connection does: in the step in which it is prepared."""
    answer: asyncio.Future[Joined | None] = asyncio.get_running_loop().create_future()

    def enter(error: ErrorCode | None) -> None:
        assert error is None
        result = hub.join(reader, channel, options, since, listens, only_recovered)
        if result is not None:
            reader.channels[channel] = listens
        answer.set_result(result)

    reader.hub = hub
    hub.prepare(channel, options, since, enter)
    return await answer


async def reader_in(
    hub: Hub,
    *channels: str,
    options: ChannelOptions = LOG,
    listens: bool = False,
    deflate: bool = False,
    minds: bool = True,
) -> Reader:
    """A connection without a session in some channels."""
    reader = Reader(deflate=deflate, minds=minds)
    for channel in channels:
        await joined(hub, reader, channel, options, listens=listens)
    return reader


async def session_in(
    hub: Hub, *channels: str, options: ChannelOptions = LOG, listens: bool = False
) -> SessionReader:
    """A connection with a session in some channels."""
    reader = SessionReader()
    for channel in channels:
        await joined(hub, reader, channel, options, listens=listens)
    return reader


def transient(data: object, channel: str = LIVE, *, ephemeral: bool = False) -> Transient:
    """A publication without a place in a log."""
    return Transient(channel, publication(json.dumps(data).encode()), ephemeral)


def data_of(reader: Reader, channel: str) -> list[object]:
    """What it got in a channel."""
    return [
        push["pub"]["data"]
        for push in reader.pushes
        if push["channel"] == channel and "pub" in push
    ]
