"""One storm from beginning to end: gather, publish, signal, start again, wait, compare.

The server and the crowd have a core each. What is measured is gathered in an `Outcome`.
"""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

import msgspec

from scripts.benchmarks import procfs
from scripts.benchmarks.arena import Cores
from scripts.benchmarks.children import Worker, child
from scripts.benchmarks.figures import median
from scripts.benchmarks.gateways import GatewayProcess, gateway
from scripts.storms import scrape
from scripts.storms.member import SESSION_USER
from scripts.storms.messages import (
    Answer,
    Audit,
    Audited,
    AwaitReturn,
    Disperse,
    Done,
    Gather,
    Gathered,
    Ground,
    Mark,
    Publish,
    Returned,
    Settle,
)

SETTINGS = """\
commands_per_second = 1000000
commands_burst = 1000000

[[namespaces]]
name = "storm"
history_size = 1000000
history_ttl = 3600.0
force_recovery = true
presence = true
join_leave = true
allow_subscribe_for_client = true
allow_publish_for_client = true
"""

_IN_FLIGHT = 64
_GATHER_TIMEOUT = 120.0
_RETURN_TIMEOUT = 120.0
_SETTLE_TIMEOUT = 30.0
_ANSWER_TIMEOUT = 180.0
_CALM = 2.0  # seconds of publishing before the signal
_LOOK = 0.25  # seconds between two looks at the metrics
BOUND_FACTOR = 1.5


class Blow(Enum):
    """What befalls the server."""

    KILL = "kill"
    TERM = "term"

    @property
    def number(self) -> signal.Signals:
        """The signal."""
        return signal.SIGKILL if self is Blow.KILL else signal.SIGTERM


@dataclass(frozen=True, slots=True)
class Storm:
    """How big, and how."""

    clients: int = 5000
    sessions: int = 5000
    blow: Blow = Blow.KILL
    publish_rate: float = 50.0
    rooms: int = 100
    backoff_max: float = 4.0
    """The longest delay of clients that were told no moment: shorter than usual, so that all of
    them are at the door soon and what is seen is the server's doing, not their patience."""
    restart_time: float = 5.0
    """What the server is told to expect of its restart: at a deploy clients come after that."""
    seed: int = 0

    @property
    def settings(self) -> str:
        """Of the server, as TOML."""
        return f"restart_time = {self.restart_time}\n{SETTINGS}"

    @property
    def room_names(self) -> list[str]:
        """The rooms."""
        return [f"storm:room-{number}" for number in range(self.rooms)]


@dataclass(frozen=True, slots=True)
class Look:
    """One look at the server while clients come back. The rates are clients per second."""

    at: float
    connects: float
    resumes: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of it. Moments are seconds since the signal."""

    storm: Storm
    gathered: float
    """Seconds that it took everybody to connect at the beginning."""
    ended: float
    """When the old process had ended."""
    ready: float
    """When the new one was."""
    returned: Returned
    """With all its moments since the signal as well."""
    looks: Sequence[Look]
    lag_p99: float
    lag_count: int
    slots: dict[str, int]
    """What the server counted, by event."""
    resumes: dict[str, int]
    """The same of attempts to resume, by outcome."""
    presence_changed: int
    """Clients with sessions who are in a room only before, or only after."""
    audited: Audited
    server_busy: float
    """The new process's share of one core while clients came back."""
    others_busy: float
    """The share of the machine that processes not of this storm had since the signal."""

    @property
    def last_return(self) -> float:
        """When the last client was back; the end of waiting, if somebody is missing."""
        return max(self.returned.returns, default=0.0)

    @property
    def door_open(self) -> float:
        """From when on clients could come back.

        At a deploy they are told moments from the expected end of the restart on, so that isn't
        earlier even if the restart was faster.
        """
        if self.storm.blow is Blow.TERM:
            return max(self.ready, self.storm.restart_time)
        return self.ready

    @property
    def recovery(self) -> float:
        """Seconds from then until the last one had."""
        return self.last_return - self.door_open

    @property
    def capacity(self) -> float:
        """Clients per second that the server thought it could receive, of those who came.

        The median over all looks, each the mean of both kinds by how many of them there were.
        """
        came = self.returned
        anew = came.recovered + came.unrecovered
        total = max(anew + came.resumed, 1)
        rates = [
            total / (anew / look.connects + came.resumed / look.resumes)
            for look in self.looks
            if look.connects and look.resumes
        ]
        return median(rates) if rates and anew + came.resumed else 0.0

    @property
    def bound(self) -> float:
        """How long recovery may take: half as long again as the capacity says.

        Few clients are received faster than they come by themselves when nobody told them a
        moment; their longest delay is the least that they need.
        """
        if not self.capacity:
            return 0.0
        bound = BOUND_FACTOR * self.storm.clients / self.capacity
        all_told = self.storm.blow is Blow.TERM and self.storm.sessions == self.storm.clients
        return bound if all_told else max(bound, self.storm.backoff_max)

    @property
    def is_clean(self) -> bool:
        """Whether everybody is back and nothing was lost or doubled."""
        return not self.returned.missing and self.audited.is_clean


class CrowdProcess(Worker):
    """The harness's end of a crowd."""

    @classmethod
    @asynccontextmanager
    async def start(cls, ground: Ground, core: int | None) -> AsyncIterator["CrowdProcess"]:
        """Starts one, on a core of its own if there is one."""
        arguments = ["-m", "scripts.storms.crowd", msgspec.json.encode(ground).decode()]
        async with child(arguments, stdin=asyncio.subprocess.PIPE) as process:
            if core is not None:
                procfs.pin(process.pid, core)
            yield cls(process, Answer)

    async def do(self, request: msgspec.Struct) -> None:
        """Have it do something that is answered by Done."""
        await self.ask(request, Done, _ANSWER_TIMEOUT)

    async def gather(self, request: Gather) -> Gathered:
        """Bring clients."""
        return await self.ask(request, Gathered, _ANSWER_TIMEOUT)

    async def await_return(self, timeout: float = _RETURN_TIMEOUT) -> Returned:
        """Wait until everybody is back."""
        return await self.ask(AwaitReturn(timeout), Returned, _ANSWER_TIMEOUT)

    async def audit(self, request: Audit) -> Audited:
        """Hold what everybody was told against the log."""
        return await self.ask(request, Audited, _ANSWER_TIMEOUT)


@dataclass(slots=True)
class _Watch:
    """Looks at the metrics of one process, for as long as `looking` is entered."""

    port: int
    began: float
    first: scrape.Samples = field(default_factory=scrape.Samples)
    last: scrape.Samples = field(default_factory=scrape.Samples)
    looks: list[Look] = field(default_factory=list)

    async def look(self) -> None:
        """Look once. Raises OSError when nobody answers."""
        samples = self.last = await scrape.metrics(self.port)
        self.looks.append(
            Look(
                time.monotonic() - self.began,
                samples.value("accept_rate", kind="connect"),
                samples.value("accept_rate", kind="resume"),
            )
        )

    @asynccontextmanager
    async def looking(self) -> AsyncIterator[None]:
        """Look a few times a second, at what answers."""

        async def run() -> None:
            while True:
                with suppress(OSError):
                    await self.look()
                await asyncio.sleep(_LOOK)

        task = asyncio.create_task(run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def count(self, name: str, **labels: str) -> int:
        """What was counted between the first look and the last."""
        return int(self.last.value(name, **labels) - self.first.value(name, **labels))

    def loop_lag(self) -> dict[float, float]:
        """The same of the loop's lag."""
        return scrape.added(self.last.loop_lag(), (self.first.loop_lag(), -1))


async def raise_storm(
    storm: Storm, folder: Path, cores: Cores, say: Callable[[str], None] = lambda _: None
) -> Outcome:
    """Have a storm of its own server, whose data are in `folder`. Raises BenchmarkFailed.

    `say` is told how far it is.
    """
    say("a server with a database of its own")
    async with (
        gateway(folder, storm.settings, cores.server) as server,
        CrowdProcess.start(Ground(server.port, server.secret), cores.load) as crowd,
    ):
        say(f"{storm.clients:,} clients")
        gathered = await crowd.gather(
            Gather(
                storm.clients,
                storm.sessions,
                storm.room_names,
                _IN_FLIGHT,
                _GATHER_TIMEOUT,
                storm.backoff_max,
                storm.seed,
            )
        )
        await crowd.do(Publish(storm.publish_rate))
        await asyncio.sleep(_CALM)
        say(storm.blow.number.name)
        outcome = await _strike(storm, server, crowd, gathered)
        await crowd.do(Disperse())
        return outcome


async def _strike(
    storm: Storm, server: GatewayProcess, crowd: CrowdProcess, gathered: Gathered
) -> Outcome:
    door = scrape.Door(server.internal_port, server.api_key)
    present = await scrape.presence_in(door, storm.room_names)
    samples = await scrape.metrics(server.internal_port)
    await crowd.do(Mark())
    began, busy = time.monotonic(), _others_cpu_seconds(server, crowd)
    old = _Watch(server.internal_port, began, samples, samples)
    async with old.looking():
        await server.end(storm.blow.number)
    ended = time.monotonic() - began
    await server.start()
    ready = time.monotonic() - began
    new = _Watch(server.internal_port, began)
    cpu = procfs.cpu_seconds(server.pid)
    async with new.looking():
        returned = _since(began, await crowd.await_return())
    cpu = procfs.cpu_seconds(server.pid) - cpu
    busy = _others_cpu_seconds(server, crowd) - busy
    elapsed = time.monotonic() - began
    await new.look()
    await crowd.do(Settle(_SETTLE_TIMEOUT))
    present_after = await scrape.presence_in(door, storm.room_names)
    logs = [await scrape.log_of(door, room) for room in storm.room_names]
    lag = scrape.added(new.loop_lag(), (old.loop_lag(), 1))
    return Outcome(
        storm=storm,
        gathered=gathered.elapsed,
        ended=ended,
        ready=ready,
        returned=returned,
        looks=[*(look for look in new.looks if look.at <= max(returned.returns, default=0.0))],
        lag_p99=scrape.bucket_quantile(lag, 0.99),
        lag_count=int(max(lag.values(), default=0.0)),
        slots={
            event: sum(one.count("reconnect_slots_total", event=event) for one in (old, new))
            for event in ("handed_out", "honoured", "early", "late", "missed")
        },
        resumes={
            outcome: sum(one.count("session_resumes_total", outcome=outcome) for one in (old, new))
            for outcome in ("resumed", "unknown", "expired", "fenced", "overflow")
        },
        presence_changed=len(_with_session(present) ^ _with_session(present_after)),
        audited=await crowd.audit(Audit(logs)),
        server_busy=cpu / (elapsed - ready),
        others_busy=max(busy, 0.0) / (elapsed * (os.cpu_count() or 1)),
    )


def _others_cpu_seconds(server: GatewayProcess, crowd: CrowdProcess) -> float:
    """What all cores have spent on anything else than this storm, since ever."""
    ours = procfs.reaped_cpu_seconds(os.getpid())  # the old server, once it has ended
    for pid in (os.getpid(), server.pid, crowd.pid):
        ours += procfs.cpu_seconds(pid)
    if server.database_pid is not None:
        ours += procfs.tree_cpu_seconds(server.database_pid)
    return procfs.machine_busy_seconds() - ours


def _since(began: float, returned: Returned) -> Returned:
    """The same with moments counted from then."""
    return msgspec.structs.replace(
        returned,
        dials=[at - began for at in returned.dials],
        refusals=[at - began for at in returned.refusals],
        returns=[at - began for at in returned.returns],
    )


def _with_session(present: dict[str, str]) -> set[tuple[str, str]]:
    return {item for item in present.items() if item[1].startswith(SESSION_USER)}
