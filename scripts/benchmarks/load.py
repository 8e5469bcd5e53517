"""The load process: subscribers and publishers in one uvloop, told what to do line by line.

Run as `python -m scripts.benchmarks.load TARGET`, TARGET being the JSON of a Target. Requests come
on standard input, answers go to standard output (messages.py), and the process ends with its input.

It must cost less than the server it drives, so frames are built before the clock starts, what
arrives is counted rather than parsed, and the garbage collector is off. Its own CPU time is part of
every answer: when that comes near the elapsed time, the load was the limit.
"""

import asyncio
import gc
import sys
import time
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import assert_never

import msgspec
import uvloop

from scripts.benchmarks import procfs
from scripts.benchmarks.clients import (
    Answerer,
    Bystander,
    Client,
    ConnectionFailed,
    CountingClient,
    Greeting,
    Opener,
    Probe,
    Publisher,
    Tally,
    TimingClient,
)
from scripts.benchmarks.dialects import (
    BareDialect,
    Dialect,
    GatewayDialect,
    SessionDialect,
    SessionTicket,
)
from scripts.benchmarks.figures import distribution
from scripts.benchmarks.messages import (
    Answer,
    Attach,
    Cost,
    Detach,
    Dismiss,
    Dismissed,
    Failed,
    Flood,
    Flooded,
    Gather,
    Gathered,
    Pace,
    Paced,
    Request,
    Resume,
    Rounded,
    Rounds,
    Target,
)
from scripts.benchmarks.polling import is_true_within
from scripts.benchmarks.publishing import FloodingPublisher, Schedule

# Longer than any request of a plan takes when all is well; a request that hangs ends with this.
_REQUEST_TIMEOUT = 60.0
_ARRIVAL_TIMEOUT = 10.0
_CLOSE_TIMEOUT = 20.0
_DRAIN_TIMEOUT = 10.0

# The server counts as idle when it used less than this share of a core over one look.
_IDLE_SHARE = 0.03
_IDLE_LOOK = 0.05
_IDLE_TIMEOUT = 5.0


class Meter:
    """Takes the cost of what happens between `start` and `stop`."""

    def __init__(self, server_pid: int) -> None:
        self._server_pid = server_pid

    async def settle(self) -> None:
        """Waits until the server is done with what came before, for a bounded time."""
        give_up_at = time.monotonic() + _IDLE_TIMEOUT
        busy = True
        while busy and time.monotonic() < give_up_at:
            before, began = procfs.cpu_seconds(self._server_pid), time.monotonic()
            await asyncio.sleep(_IDLE_LOOK)
            used = procfs.cpu_seconds(self._server_pid) - before
            busy = used > _IDLE_SHARE * (time.monotonic() - began)

    def start(self) -> None:
        """The clock starts."""
        self._server_cpu = procfs.cpu_seconds(self._server_pid)
        self._load_cpu = time.process_time()
        self._began = time.monotonic()

    def stop(self, units: int) -> Cost:
        """The clock stops, `units` having been done."""
        elapsed = time.monotonic() - self._began
        load_cpu = time.process_time() - self._load_cpu
        server_cpu = procfs.cpu_seconds(self._server_pid) - self._server_cpu
        return Cost(units, elapsed, server_cpu, load_cpu)


@dataclass(slots=True)
class Audience:
    """The subscribers gathered last."""

    tally: Tally
    counters: list[CountingClient]
    timed: list[TimingClient]
    latencies_ns: "array[int]"

    def clients(self) -> list[Client]:
        """All of them."""
        return [*self.counters, *self.timed]


class Load:
    """Carries out requests against one server, one after the other."""

    def __init__(self, target: Target) -> None:
        self._dialect: Dialect = BareDialect()
        if target.secret:
            self._dialect = gateway = GatewayDialect(target.port, target.secret)
            self._sessions = SessionDialect(gateway)
        self._bystanders: list[Bystander] = []
        self._opener = Opener(target.port)
        self._meter = Meter(target.pid)
        self._audience = Audience(Tally(), [], [], array("q"))
        self._users = 0

    async def answer(self, request: Request) -> Answer:
        """The answer to a request. Raises when it couldn't be carried out."""
        match request:
            case Gather():
                return await self._gather(request)
            case Dismiss():
                return await self._dismiss()
            case Attach():
                return await self._attach(request)
            case Detach():
                return await self._detach(request)
            case Resume():
                return await self._resume(request)
            case Rounds():
                return await self._rounds(request)
            case Flood():
                return await self._flood(request)
            case Pace():
                return await self._pace(request)
            case _:
                assert_never(request)

    async def _gather(self, request: Gather) -> Answer:
        tally, latencies_ns = Tally(), array("q")
        counters: list[CountingClient] = []
        timed: list[TimingClient] = []
        greetings: list[Greeting] = []
        for number in range(request.count):
            client: Client
            if request.ping_interval:
                greetings.append((BareDialect.pinged(request.ping_interval), Answerer()))
                continue
            if request.timed:
                client = TimingClient(latencies_ns)
                timed.append(client)
            else:
                client = Probe(tally) if number == 0 else CountingClient(tally)
                counters.append(client)
            channel = request.channels[number % len(request.channels)]
            greetings.append((self._dialect.subscriber(self._next_user(), channel), client))
        self._audience = Audience(tally, counters, timed, latencies_ns)
        return await self._open_all(greetings, request.in_flight)

    async def _dismiss(self) -> Answer:
        clients = self._audience.clients()
        for client in clients:
            client.transport.close()
        if not await is_true_within(_CLOSE_TIMEOUT, lambda: all(one.closed for one in clients)):
            raise ConnectionFailed("connections do not close")
        self._audience = Audience(Tally(), [], [], array("q"))
        return Dismissed()

    async def _attach(self, request: Attach) -> Answer:
        came = [Bystander(SessionTicket()) for _ in range(request.count)]
        self._bystanders += came
        greetings: list[Greeting] = [
            (self._sessions.open(self._next_user(), request.channel, one.ticket), one)
            for one in came
        ]
        answer = await self._open_all(greetings, request.in_flight)
        for one in came:
            one.transport.write(self._sessions.acknowledge(one.ticket))
        await self._meter.settle()
        return answer

    async def _detach(self, request: Detach) -> Answer:
        for one in self._bystanders:
            one.transport.abort()
        everybody = self._bystanders
        if not await is_true_within(_CLOSE_TIMEOUT, lambda: all(one.closed for one in everybody)):
            raise ConnectionFailed("connections do not close")
        if request.forget:
            self._bystanders = []
        await self._meter.settle()
        return Dismissed()

    async def _resume(self, request: Resume) -> Answer:
        self._bystanders = came = [Bystander(one.ticket) for one in self._bystanders]
        greetings: list[Greeting] = [(self._sessions.resume(one.ticket), one) for one in came]
        return await self._open_all(greetings, request.in_flight)

    async def _open_all(self, greetings: Sequence[Greeting], in_flight: int) -> Answer:
        await self._meter.settle()
        turned_away = self._opener.turned_away
        self._meter.start()
        await self._opener.open_all(greetings, in_flight)
        cost = self._meter.stop(len(greetings))
        turned_away = self._opener.turned_away - turned_away
        return Gathered(msgspec.structs.replace(cost, turned_away=turned_away))

    async def _rounds(self, request: Rounds) -> Answer:
        tally, counters = self._audience.tally, self._audience.counters
        probe = counters[0]
        assert isinstance(probe, Probe)
        probe.audience = len(counters)
        before = [counter.received_bytes for counter in counters]
        publisher = await self._publisher(request.channel, by_send=request.by_send)
        frame = request.verbatim or self._dialect.publish(request.channel, request.items)
        await self._meter.settle()
        self._meter.start()
        try:
            for _ in range(request.rounds):
                tally.begin()
                probe.begin(len(request.items))
                publisher.transport.write(frame)
                await tally.wait(request.patience)
        except ConnectionFailed:
            publisher.check()  # a refusal explains more than what it leads to
            raise
        cost = self._meter.stop(request.rounds * len(request.items) * len(counters))
        publisher.check()
        publisher.transport.close()
        received = {
            counter.received_bytes - start for counter, start in zip(counters, before, strict=True)
        }
        if len(received) != 1:
            raise ConnectionFailed(f"subscribers received different amounts: {sorted(received)}")
        return Rounded(cost, probe.received)

    async def _flood(self, request: Flood) -> Answer:
        floods = [
            FloodingPublisher(
                request.channels[number % len(request.channels)],
                request.window,
                request.payload_bytes,
            )
            for number in range(request.publishers)
        ]
        for flood in floods:
            await self._open_publisher(flood.publisher, flood.channel)
        await self._meter.settle()
        for flood in floods:
            flood.begin()
        await asyncio.sleep(request.warmup)
        for flood in floods:
            flood.mark()
        self._meter.start()
        await asyncio.sleep(request.seconds)
        cost = self._meter.stop(sum(flood.acknowledged_since_mark for flood in floods))
        for flood in floods:
            flood.stop()
        if not await is_true_within(_DRAIN_TIMEOUT, lambda: all(one.is_drained for one in floods)):
            raise ConnectionFailed("publishes stay without an answer")
        await self._compare_with_log(floods)
        for flood in floods:
            flood.publisher.transport.close()
        return Flooded(cost, distribution(ns for flood in floods for ns in flood.latencies_ns))

    async def _compare_with_log(self, floods: Sequence[FloodingPublisher]) -> None:
        """Fails unless each channel's log has as many publications as were acknowledged."""
        acknowledged: Counter[str] = Counter()
        for flood in floods:
            acknowledged[flood.channel] += flood.acknowledged
        askers = {flood.channel: flood for flood in floods}
        for asker in askers.values():
            asker.ask_top()
        everybody = askers.values()
        await is_true_within(_DRAIN_TIMEOUT, lambda: all(asker.knows_top for asker in everybody))
        for channel, asker in askers.items():
            if asker.top != acknowledged[channel]:
                raise ConnectionFailed(
                    f"{channel}: {acknowledged[channel]} acknowledged, {asker.top} in the log"
                )

    async def _pace(self, request: Pace) -> Answer:
        publishers = [await self._publisher(channel) for channel in request.channels]
        members = len(self._audience.timed) // len(request.channels)
        latencies_ns = self._audience.latencies_ns
        await self._meter.settle()
        del latencies_ns[:]
        warmup = Schedule(request, publishers, self._dialect)
        await warmup.run(request.warmup)
        await self._arrivals(warmup.published * members)
        del latencies_ns[:]
        schedule = Schedule(request, publishers, self._dialect)
        self._meter.start()
        await schedule.run(request.seconds)
        await self._arrivals(schedule.published * members)
        cost = self._meter.stop(len(latencies_ns))
        for publisher in publishers:
            publisher.check()
            publisher.transport.close()
        return Paced(cost, distribution(latencies_ns), distribution(schedule.lateness_ns))

    async def _arrivals(self, expected: int) -> None:
        """Waits until that many publications were read, and fails on any other number."""
        arrived = self._audience.latencies_ns
        await is_true_within(_ARRIVAL_TIMEOUT, lambda: len(arrived) >= expected)
        if len(arrived) != expected:
            raise ConnectionFailed(f"{len(arrived)} deliveries instead of {expected}")

    async def _publisher(self, channel: str, *, by_send: bool = False) -> Publisher:
        publisher = Publisher()
        await self._open_publisher(publisher, channel, by_send=by_send)
        return publisher

    async def _open_publisher(
        self, publisher: Publisher, channel: str, *, by_send: bool = False
    ) -> None:
        steps = self._dialect.publisher(self._next_user(), channel, by_send=by_send)
        await self._opener.open(steps, publisher)

    def _next_user(self) -> int:
        self._users += 1
        return self._users


def _reason(error: BaseException) -> str:
    """The first of a group's errors: the others follow from it."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}"


async def _serve(target: Target) -> None:
    loop = asyncio.get_running_loop()
    requests = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(requests), sys.stdin)
    load = Load(target)
    while line := await requests.readline():
        answer: Answer
        try:
            async with asyncio.timeout(_REQUEST_TIMEOUT):
                answer = await load.answer(msgspec.json.decode(line, type=Request))
        except Exception as error:  # whatever it was, it belongs to the harness
            answer = Failed(_reason(error))
        print(msgspec.json.encode(answer).decode(), flush=True)


def main() -> None:
    """Serves requests until standard input ends."""
    gc.disable()
    uvloop.run(_serve(msgspec.json.decode(sys.argv[1], type=Target)))


if __name__ == "__main__":
    main()
