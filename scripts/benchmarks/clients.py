"""Clients that cost little: they share one read buffer, and most only count bytes.

A connection begins as a Greeter, which walks through a dialect's steps and then hands the transport
to the client that it was made for.
"""

import asyncio
import math
import re
import socket
import time
from array import array
from collections.abc import Callable, Sequence
from typing import cast

from scripts.benchmarks import payloads, wire
from scripts.benchmarks.dialects import SessionTicket, Step

# Everything is read into this one buffer: a loop runs one callback at a time, and each client is
# done with the bytes, or has copied them, before it returns.
_SCRATCH = memoryview(bytearray(256 * 1024))

_CONNECT_TIMEOUT = 5.0
_PORTS_PER_ADDRESS = 10_000
_BIND_ADDRESS_NO_PORT = 24  # <linux/in.h>; the socket module names it from Python 3.12 on

_ANSWER = b"!" * 60
_REPLY_ID = re.compile(rb'"id":(\d+)')


class ConnectionFailed(Exception):
    """A connection ended, or answered wrongly, when it should have stayed."""


class Client(asyncio.BufferedProtocol):
    """A connection after its greeting."""

    __slots__ = ("closed", "transport")

    def __init__(self) -> None:
        self.transport: asyncio.Transport
        self.closed = False

    def get_buffer(self, sizehint: int) -> memoryview:
        """The buffer that all share."""
        return _SCRATCH

    def connection_lost(self, exc: Exception | None) -> None:
        """Seen by whoever closes, or counts, connections."""
        self.closed = True


class Greeter(asyncio.BufferedProtocol):
    """Walks through the steps of a greeting; then `done` is resolved, or gets the error."""

    __slots__ = ("_client", "_received", "_step", "_steps", "_transport", "done")

    def __init__(
        self, steps: Sequence[Step], client: Client, loop: asyncio.AbstractEventLoop
    ) -> None:
        self._steps = iter(steps)
        self._client = client
        self._received = b""
        self.done: asyncio.Future[None] = loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Sends the first step."""
        self._transport = cast(asyncio.Transport, transport)
        self._step = next(self._steps)
        self._transport.write(self._step.sent)

    def get_buffer(self, sizehint: int) -> memoryview:
        """The buffer that all share."""
        return _SCRATCH

    def buffer_updated(self, nbytes: int) -> None:
        """Sends the next step once this one is accepted."""
        self._received += _SCRATCH[:nbytes]
        try:
            if not self._step.accepted(self._received):
                return
        except Exception as error:
            self._fail(error)
            return
        self._received = b""
        step = next(self._steps, None)
        if step is not None:
            self._step = step
            self._transport.write(step.sent)
            return
        self._client.transport = self._transport
        self._transport.set_protocol(self._client)
        if not self.done.done():
            self.done.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """The server hung up during the greeting."""
        self._fail(ConnectionFailed(f"closed during the greeting, after {self._received[:300]!r}"))

    def _fail(self, error: Exception) -> None:
        if not self.done.done():
            self.done.set_exception(error)
        self._transport.abort()


class Tally:
    """The bytes that all subscribers of an audience have received, and when a round is complete.

    A round is complete when the probe has seen all of its publications and everybody has received
    as many bytes as the probe: publications of one channel are the same bytes for all. The probe
    parses, the others need not.
    """

    def __init__(self) -> None:
        self.received = 0
        self.expected: float = math.inf
        self._waiter: asyncio.Future[None] | None = None

    def begin(self) -> None:
        """A round starts: nothing of it can be complete before the probe says what to expect."""
        self.received = 0
        self.expected = math.inf
        self._waiter = asyncio.get_running_loop().create_future()

    async def wait(self, seconds: float) -> None:
        """Until the round is complete. Raises ConnectionFailed when it isn't in that time."""
        if self._waiter is None:
            raise AssertionError("wait() belongs behind begin()")
        try:
            async with asyncio.timeout(seconds):
                await self._waiter
        except TimeoutError:
            raise ConnectionFailed(
                f"deliveries are missing: {self.received} of {self.expected} bytes arrived"
            ) from None

    def expect(self, total_bytes: int) -> None:
        """The probe knows now what everybody gets."""
        self.expected = total_bytes
        if self.received >= total_bytes:
            self.complete()

    def complete(self) -> None:
        """Everything that was expected, or more, is here."""
        if self.received > self.expected:
            self.fail(ConnectionFailed(f"received {self.received} bytes, not {self.expected}"))
        elif self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def fail(self, error: Exception) -> None:
        """The round will never be complete."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(error)


class CountingClient(Client):
    """A subscriber that counts."""

    __slots__ = ("_tally", "received_bytes")

    def __init__(self, tally: Tally) -> None:
        super().__init__()
        self._tally = tally
        self.received_bytes = 0

    def buffer_updated(self, nbytes: int) -> None:
        """Counts; a total can't hide that one subscriber lost what another got twice."""
        self.received_bytes += nbytes
        tally = self._tally
        tally.received += nbytes
        if tally.received >= tally.expected:
            tally.complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """No subscriber leaves during a round."""
        super().connection_lost(exc)
        self._tally.fail(ConnectionFailed(f"a subscriber's connection ended: {exc}"))


class Probe(CountingClient):
    """The one subscriber that parses: it finds out how many bytes a round has."""

    __slots__ = ("_awaited", "_rest", "_round", "audience")

    def __init__(self, tally: Tally) -> None:
        super().__init__(tally)
        self.audience = 0
        """How many subscribers there are, this one included."""
        self._awaited = 0
        self._round = b""
        self._rest = b""

    def begin(self, publications: int) -> None:
        """A round of some publications starts."""
        self._awaited = publications
        self._round = b""

    @property
    def received(self) -> bytes:
        """All that came in this round."""
        return self._round

    def buffer_updated(self, nbytes: int) -> None:
        """Counts publications too."""
        data = bytes(_SCRATCH[:nbytes])
        self._round += data
        frames, self._rest = wire.split_frames(self._rest + data)
        self._awaited -= wire.count_publications(frames)
        super().buffer_updated(nbytes)
        if self._awaited <= 0 and not self._rest:
            self._tally.expect(len(self._round) * self.audience)


class TimingClient(Client):
    """A subscriber that notes how long each publication took to come."""

    __slots__ = ("_latencies_ns", "_rest")

    def __init__(self, latencies_ns: "array[int]") -> None:
        super().__init__()
        self._latencies_ns = latencies_ns
        self._rest = b""

    def buffer_updated(self, nbytes: int) -> None:
        """The time is taken first: what follows is the load's own work, not the delivery's."""
        now_ns = time.monotonic_ns()
        frames, self._rest = wire.split_frames(self._rest + _SCRATCH[:nbytes])
        for frame in frames:
            for sent_ns in payloads.sent_at_ns(frame):
                self._latencies_ns.append(now_ns - sent_ns)


class Publisher(Client):
    """Writes, and gives the frames that come back to whoever wants them."""

    __slots__ = ("_on_frame", "_rest", "failure")

    def __init__(self, on_frame: Callable[[bytes], None] | None = None) -> None:
        super().__init__()
        self._on_frame = on_frame
        self._rest = b""
        self.failure: Exception | None = None

    def buffer_updated(self, nbytes: int) -> None:
        """Replies are looked at for errors only, unless somebody wants them."""
        frames, self._rest = wire.split_frames(self._rest + _SCRATCH[:nbytes])
        for frame in frames:
            if b'"error":' in frame:
                self.failure = ConnectionFailed(f"a publish was refused: {frame[:300]!r}")
            elif self._on_frame is not None:
                self._on_frame(frame)

    @property
    def is_broken(self) -> bool:
        """Whether `check` would raise."""
        return self.failure is not None or self.closed

    def check(self) -> None:
        """Raises what went wrong so far."""
        if self.failure is not None:
            raise self.failure
        if self.closed:
            raise ConnectionFailed("a publisher's connection ended")


class Answerer(Client):
    """A client of the baseline that answers whatever comes."""

    __slots__ = ()

    def buffer_updated(self, nbytes: int) -> None:
        """About as many bytes as the answer to a ping of the gateway."""
        self.transport.write(_ANSWER)


class Bystander(Client):
    """A client with a session that takes no notice of what comes: nothing, in these stages."""

    __slots__ = ("ticket",)

    def __init__(self, ticket: SessionTicket) -> None:
        super().__init__()
        self.ticket = ticket

    def buffer_updated(self, nbytes: int) -> None:
        """Nothing is done with it."""


def reply_ids(frame: bytes) -> list[int]:
    """The ids of all replies in a frame."""
    return [int(found) for found in _REPLY_ID.findall(frame)]


Greeting = tuple[Sequence[Step], Client]


class Opener:
    """Opens connections to one port, from as many source addresses as their number needs."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._opened = 0
        self.turned_away = 0
        """How often the server sent somebody away who had to come back, because it was busy."""

    async def open(self, steps: Sequence[Step], client: Client) -> None:
        """Returns when the greeting is complete. Raises what the server answered instead.

        Whoever is told a moment to come back does so.
        """
        while True:
            try:
                await self._open(steps, client)
            except wire.UnexpectedFrame as frame:
                retry = frame.retry
                if retry is None:
                    raise
            else:
                return
            self.turned_away += 1
            await asyncio.sleep(retry)

    async def _open(self, steps: Sequence[Step], client: Client) -> None:
        loop = asyncio.get_running_loop()
        greeter = Greeter(steps, client, loop)
        await loop.create_connection(lambda: greeter, sock=self._connected_socket())
        await greeter.done

    async def open_all(self, greetings: Sequence[Greeting], in_flight: int) -> None:
        """Opens all of them, a limited number at any time."""
        waiting = iter(greetings)

        async def worker() -> None:
            for steps, client in waiting:
                await self.open(steps, client)

        async with asyncio.TaskGroup() as group:
            for _ in range(in_flight):
                group.create_task(worker())

    def _connected_socket(self) -> socket.socket:
        # A blocking connect: on loopback the handshake is over before the call returns, as long as
        # the server's backlog has room, so it blocks nobody.
        address = f"127.0.0.{2 + self._opened // _PORTS_PER_ADDRESS % 250}"
        self._opened += 1
        connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            connection.settimeout(_CONNECT_TIMEOUT)
            connection.setsockopt(socket.IPPROTO_IP, _BIND_ADDRESS_NO_PORT, 1)
            connection.bind((address, 0))
            connection.connect(("127.0.0.1", self._port))
            connection.setblocking(False)
        except OSError:
            connection.close()
            raise
        return connection
