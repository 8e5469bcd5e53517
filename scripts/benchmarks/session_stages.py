"""The stages about sessions: what it costs to come back, to be away, to idle, and a storm."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

from scripts.benchmarks import procfs
from scripts.benchmarks.arena import KEPT, SETTINGS, Arena, Cores, bare
from scripts.benchmarks.children import BenchmarkFailed, LoadProcess
from scripts.benchmarks.figures import median
from scripts.benchmarks.gateways import gateway
from scripts.benchmarks.messages import Attach, Cost, Detach, Gather, Resume, Target
from scripts.benchmarks.plan import Plan
from scripts.benchmarks.rows import Aim, Row, Unit
from scripts.benchmarks.stages import Measurement, by_turns, cost_row, still_resident_bytes
from scripts.storms import messages as crowds
from scripts.storms import report as storm_report
from scripts.storms import scrape, storm

_RESUME_AIM = Aim(0.75, of_ratio=True)
_RESUMES_AIM = Aim(5_000, at_least=True)
_DETACHED_AIM = Aim(2 * 1024)
_IDLE_AIM = Aim(1e-6)
_LAG_AIM = Aim(storm_report.LAG_AIM)
_NOBODY = Aim(0)

_LOBBY = f"{KEPT}:lobby"
_IDLE_SETTINGS = "ping_interval = {ping}\npong_timeout = {pong}\n" + storm.SETTINGS
_GATHER_TIMEOUT = 120.0

_SHORT_DEADLINES = """\
handshake_timeout = 1.0
stale_close_delay = 1.0
close_timeout = 1.0
"""
_DEADLINES_OVER = 1.5


async def resume(arena: Arena, plan: Plan) -> list[Row]:
    """A session that goes on over a new socket, against a whole connect."""
    load = arena.gateway.load
    in_flight = plan.connects_in_flight
    connect = Gather(plan.connects, [_LOBBY], in_flight)

    async def connects() -> Cost:
        cost = (await load.gather(connect)).cost
        await load.dismiss()
        return cost

    async def opens() -> Cost:
        cost = (await load.attach(Attach(plan.connects, _LOBBY, in_flight))).cost
        await load.detach(Detach())
        return cost

    async def resumes() -> Cost:
        cost = (await load.resume(Resume(in_flight))).cost
        await load.detach(Detach())
        return cost

    opened = await opens()
    measurements: dict[str, Measurement[Cost]] = {"resume": resumes, "connect": connects}
    await by_turns(plan, 1, measurements)
    costs = await by_turns(plan, plan.repeats, measurements)
    ours = costs["resume"]
    cpu = cost_row(
        "resume, CPU",
        ours,
        costs["connect"],
        baseline_name="a stock client's connect: handshake, HS256 token, one subscription",
        aim=_RESUME_AIM,
        note=(
            f"{in_flight} in flight, handshake included; to open a session, connect and subscribe "
            f"took {Unit.MICROSECONDS.text(opened.server_cpu_per_unit)}"
        ),
    )
    per_core = [1 / cost.server_cpu_per_unit for cost in ours]
    rate = Row(
        "resumes per core",
        Unit.PER_SECOND,
        median(per_core),
        aim=_RESUMES_AIM,
        server_busy=median(cost.server_busy for cost in ours),
        load_busy=median(cost.load_busy for cost in ours),
        note=(
            "by CPU time; "
            f"{Unit.PER_SECOND.text(median(cost.units_per_second for cost in ours))} by the clock"
        ),
        samples={"measured": per_core},
    )
    return [cpu, rate]


async def detached(folder: Path, cores: Cores, plan: Plan) -> list[Row]:
    """Memory of sessions that wait for their clients.

    They come and go in small groups, so that what sockets take is taken once and used again, and
    what grows is what stays. The server forgets what is left of a socket at its deadlines, which
    are short here for the same reason.
    """
    group = plan.detached_group
    attach = Attach(group, _LOBBY, plan.connects_in_flight)
    async with (
        gateway(folder, _SHORT_DEADLINES + SETTINGS, cores.server) as server,
        LoadProcess.start(Target(server.port, server.pid, server.secret), cores.load) as load,
    ):

        async def leave_some(groups: int) -> int:
            for _ in range(groups):
                await load.attach(attach)
                await load.detach(Detach(forget=True))
            await asyncio.sleep(_DEADLINES_OVER)
            return await still_resident_bytes(server.pid)

        groups = plan.crowd // group
        before = await leave_some(plan.detached_warmup)
        after = await leave_some(groups)
        waiting = (await scrape.metrics(server.internal_port)).value("sessions", state="detached")
    if waiting != (plan.detached_warmup + groups) * group:
        raise BenchmarkFailed(f"{waiting:,.0f} sessions wait for their clients, not all")
    return [
        Row(
            f"memory per detached session at {groups * group:,}",
            Unit.BYTES,
            (after - before) / (groups * group),
            aim=_DETACHED_AIM,
            note=f"a user, one subscription, nothing unacknowledged; {group} at a time had sockets",
        )
    ]


async def idle(folder: Path, cores: Cores, plan: Plan) -> list[Row]:
    """What a session costs when nothing happens but pings, and what bare pings cost meanwhile."""
    interval, count = plan.idle_ping_interval, plan.crowd
    settings = _IDLE_SETTINGS.format(ping=interval, pong=interval / 4)
    async with (
        gateway(folder, settings, cores.server) as server,
        bare(cores) as (bare_pid, bare_port),
        storm.CrowdProcess.start(crowds.Ground(server.port, server.secret), cores.load) as crowd,
        LoadProcess.start(Target(bare_port, bare_pid), cores.load) as load,
    ):
        alone = await _cpu_per_second([server.pid, bare_pid], interval / 5)
        await load.gather(Gather(count, [], plan.connects_in_flight, ping_interval=interval))
        await crowd.gather(
            crowds.Gather(count, count, ["storm:idle"], plan.connects_in_flight, _GATHER_TIMEOUT)
        )
        await still_resident_bytes(server.pid)  # what came with them is over
        pings = await _pings(server.internal_port)
        busy = await _cpu_per_second([server.pid, bare_pid], interval)
        pings = await _pings(server.internal_port) - pings
        await crowd.do(crowds.Disperse())
    if abs(pings - count) > count / 10:
        raise BenchmarkFailed(f"{pings:,.0f} pings were answered instead of {count:,}")
    ours, theirs = (
        (with_clients - without) / count * interval / plan.ping_interval
        for with_clients, without in zip(busy, alone, strict=True)
    )
    return [
        Row(
            f"idle session per second, CPU, at {count:,}",
            Unit.MICROSECONDS,
            ours,
            baseline=theirs,
            baseline_name="as many bytes to and fro between uvloop transports",
            ratio=ours / theirs,
            aim=_IDLE_AIM,
            server_busy=busy[0],
            note=(
                f"a ping and its answer every {plan.ping_interval:g} s"
                + (f", from one every {interval:g} s" if interval != plan.ping_interval else "")
                + f"; the server alone used {alone[0]:.1%} of its core"
            ),
        )
    ]


async def _cpu_per_second(pids: Sequence[int], seconds: float) -> list[float]:
    loop = asyncio.get_running_loop()
    before, began = [procfs.cpu_seconds(pid) for pid in pids], loop.time()
    await asyncio.sleep(seconds)
    elapsed = loop.time() - began
    return [
        (procfs.cpu_seconds(pid) - start) / elapsed for pid, start in zip(pids, before, strict=True)
    ]


async def _pings(port: int) -> float:
    """How many pings were answered since the start."""
    return (await scrape.metrics(port)).value("round_trip_seconds_count")


async def storms(folder: Path, cores: Cores, plan: Plan) -> list[Row]:
    """Everybody comes back at once: after `kill -9`, and after a deploy."""
    rows: list[Row] = []
    for blow in plan.storm_blows:
        rows.extend(await _storm(folder, cores, plan, storm.Blow(blow)))
    return rows


async def _storm(folder: Path, cores: Cores, plan: Plan, blow: storm.Blow) -> Sequence[Row]:
    count = plan.storm_clients
    wanted = storm.Storm(count, count, blow, plan.storm_publish_rate, count // plan.storm_room)
    outcome = await storm.raise_storm(wanted, folder, cores)
    returned, audited = outcome.returned, outcome.audited
    if not outcome.is_clean:
        raise BenchmarkFailed(storm_report.table(outcome))
    name = f"{'kill -9' if blow is storm.Blow.KILL else 'SIGTERM'}, {count:,} clients"
    rows = [
        Row(
            f"{name}, all back",
            Unit.SECONDS,
            outcome.recovery,
            aim=Aim(outcome.bound),
            server_busy=outcome.server_busy,
            load_busy=returned.load_busy,
            others_busy=outcome.others_busy,
            note=(
                f"from when they could come to the last; the limit is {storm.BOUND_FACTOR} times "
                f"what the measured capacity of {outcome.capacity:,.0f}/s takes; "
                f"{returned.resumed:,} resumed, {returned.recovered:,} recovered; "
                f"0 lost and 0 doubled of {audited.deliveries:,} deliveries and "
                f"{audited.acknowledged:,} publishes; away for "
                f"{Unit.SECONDS.text(outcome.ready - outcome.ended)}"
            ),
            samples={"returns": returned.returns},
        ),
        Row(f"{name}, loop lag p99", Unit.MILLISECONDS, outcome.lag_p99, aim=_LAG_AIM),
    ]
    if blow is storm.Blow.TERM:
        noticed = count - returned.resumed + outcome.presence_changed
        rows.append(
            Row(
                f"{name}, not resumed or seen to move",
                Unit.COUNT,
                noticed + returned.joins + returned.leaves,
                aim=_NOBODY,
            )
        )
    return rows
