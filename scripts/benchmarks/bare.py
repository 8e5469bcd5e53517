"""The baseline: a server that does nothing but write the same bytes to every transport.

Run as `python -m scripts.benchmarks.bare`; prints its port, ends when its standard input does.

A connection says in its first line what it is: `subscribe CHANNEL`, `publish CHANNEL` or
`send CHANNEL`, and is answered `ok`. From then on, whatever a publisher writes is written as it is
to every subscriber: through uvloop's `transport.write` for `publish`, through one bare `send`
system call per subscriber for `send`. There is no framing, no decoding, no queue, no timer: the
least that a Python server can do for a delivery, an open connection or a connect.

`ping SECONDS` is the exception: all such connections are written some bytes once in that time, a
few at each tick of one timer, and what they answer is read.
"""

import asyncio
import os
import socket
import sys
from collections import defaultdict
from collections.abc import Callable
from typing import cast

import uvloop

# As much as any of the servers compared listens with.
_BACKLOG = 1024

# What a ping of the gateway is about as long as, and how often its wheel turns.
_PING = b"?" * 100
_TICK = 0.25

Members = dict[asyncio.Transport, None]


class Bare(asyncio.Protocol):
    """One connection."""

    __slots__ = ("_channels", "_members", "_pinger", "_relay", "_transport")

    def __init__(self, channels: defaultdict[bytes, Members], pinger: "Pinger") -> None:
        self._channels = channels
        self._pinger = pinger
        self._members: Members | None = None
        self._relay: Callable[[bytes], None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Nothing is done before the first line."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """The first line, then what a publisher wants relayed."""
        if self._relay is not None:
            self._relay(data)
            return
        role, channel = data.split()
        members = self._channels[channel]
        if role == b"subscribe":
            members[self._transport] = None
            self._members = members
        elif role == b"ping":
            self._pinger.add(self._transport, float(channel))
            self._relay = _ignore
        elif role == b"publish":
            self._relay = by_transport(members)
        elif role == b"send":
            self._relay = by_system_call(members)
        else:
            raise AssertionError(f"no role {role!r}: the load process and this module disagree")
        self._transport.write(b"ok\n")

    def connection_lost(self, exc: Exception | None) -> None:
        """Forgets a subscriber."""
        if self._members is not None:
            del self._members[self._transport]


class Pinger:
    """Writes to many transports, each once in an interval, in turn."""

    def __init__(self) -> None:
        self._transports: list[asyncio.Transport] = []
        self._interval = 0.0
        self._next = 0.0  # whose turn it is, as a fraction of all

    def add(self, transport: asyncio.Transport, interval: float) -> None:
        """Ping one more from now on; all have the same interval."""
        if not self._transports:
            self._interval = interval
            self._arm()
        self._transports.append(transport)

    def _arm(self) -> None:
        asyncio.get_running_loop().call_later(_TICK, self._tick)

    def _tick(self) -> None:
        self._arm()
        count = len(self._transports)
        first = int(self._next * count)
        self._next += _TICK / self._interval
        for number in range(first, int(self._next * count)):
            transport = self._transports[number % count]
            if not transport.is_closing():  # all go at once, at the end
                transport.write(_PING)
        self._next %= 1.0


def _ignore(data: bytes) -> None:
    """What is to be done with the answer to a ping."""


def by_transport(members: Members) -> Callable[[bytes], None]:
    """Relays by uvloop's own write."""

    def relay(data: bytes) -> None:
        for transport in members:
            transport.write(data)

    return relay


def by_system_call(members: Members) -> Callable[[bytes], None]:
    """Relays by one `send` each to the subscribers of now."""
    sends = []
    for transport in members:
        # A descriptor of its own, which is closed with this relay and not with the transport.
        descriptor = os.dup(transport.get_extra_info("socket").fileno())
        sends.append(socket.socket(fileno=descriptor).send)

    def relay(data: bytes) -> None:
        for send in sends:
            if send(data) != len(data):
                raise AssertionError("a send was cut short: more was sent than sockets hold")

    return relay


async def main() -> None:
    """Serves until standard input ends."""
    loop = asyncio.get_running_loop()
    channels: defaultdict[bytes, Members] = defaultdict(dict)
    pinger = Pinger()
    server = await loop.create_server(
        lambda: Bare(channels, pinger), "127.0.0.1", 0, backlog=_BACKLOG
    )
    input_ended = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(input_ended), sys.stdin)
    print(server.sockets[0].getsockname()[1], flush=True)
    await input_ended.read()


if __name__ == "__main__":
    uvloop.run(main())
