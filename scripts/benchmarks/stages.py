"""The stages of a run: each measures the gateway and the baseline by turns and makes rows."""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from scripts.benchmarks import payloads, procfs
from scripts.benchmarks.arena import KEPT, LIVE, Arena, Side
from scripts.benchmarks.figures import median, median_distribution, median_ratio
from scripts.benchmarks.messages import Cost, Flood, Flooded, Gather, Pace, Paced, Rounds
from scripts.benchmarks.plan import Flooding, Pacing, Plan, Stage
from scripts.benchmarks.rows import Aim, Row, Unit

_FANOUT_AIM = Aim(1.10, of_ratio=True)
_BURST_AIM = Aim(0.25, of_ratio=True)
_MEMORY_AIM = Aim(5 * 1024)
_CONNECT_AIM = Aim(200e-6)
_DURABLE_AIM = Aim(15_000, at_least=True)
_LATENCY_AIM = Aim(20e-3)

_WARMUP_CLIENTS = 20
"""Few: what they leave in the allocator's pools is memory that the crowd need not ask for."""

_MEMORY_LOOK = 0.2
_MEMORY_STILL_BYTES = 64 * 1024
_MEMORY_TIMEOUT = 5.0

_SYNC_BYTES = 8192  # one page of PostgreSQL

_Result = TypeVar("_Result")
Measurement = Callable[[], Awaitable[_Result]]


async def by_turns(
    plan: Plan, repeats: int, measurements: Mapping[str, Measurement[_Result]]
) -> dict[str, list[_Result]]:
    """Repeats all measurements one after the other, every second time in the reverse order.

    So what drifts (clock speed, caches, a neighbour) hits all of them alike. Ends early when the
    plan's time for it is over.
    """
    results: dict[str, list[_Result]] = {name: [] for name in measurements}
    end = time.monotonic() + plan.repeating_seconds
    for repeat in range(repeats):
        if repeat >= plan.repeats_min and time.monotonic() > end:
            break
        names = list(measurements)
        for name in names if repeat % 2 == 0 else reversed(names):
            results[name].append(await measurements[name]())
    return results


async def crowd(arena: Arena, plan: Plan, wanted: Collection[Stage]) -> list[Row]:
    """Memory per client at the full number of clients, then fan-out to all of them."""
    channel = f"{LIVE}:crowd"
    rows = []
    ours = await _memory_per_client(arena.gateway, plan, channel)
    theirs = await _memory_per_client(arena.bare, plan, channel)
    if Stage.MEMORY in wanted:
        row = Row(
            f"memory per client at {plan.crowd:,}",
            Unit.BYTES,
            ours,
            baseline=theirs,
            baseline_name="an open uvloop transport",
            ratio=ours / theirs,
            aim=_MEMORY_AIM,
        )
        rows.append(row)
    if Stage.FANOUT in wanted:
        measurements = await _fanout_measurements(arena, channel, plan, plan.crowd_rounds)
        costs = await by_turns(plan, plan.repeats, measurements)
        rows.append(_fanout_row(plan.crowd, costs))
    return rows


async def audience(arena: Arena, plan: Plan, wanted: Collection[Stage]) -> list[Row]:
    """Fan-out to fewer, one by one and in bursts."""
    channel = f"{LIVE}:audience"
    request = Gather(plan.audience, [channel], plan.connects_in_flight)
    for side in (arena.gateway, arena.bare):
        await side.load.gather(request)
    frame = await _received(arena.gateway, channel, plan, 1)
    burst = await _received(arena.gateway, channel, plan, plan.burst)
    bursts = plan.burst_rounds
    requests = {
        "send": _rounds(channel, plan, plan.audience_rounds, verbatim=frame, by_send=True),
        "bare burst": _rounds(channel, plan, bursts, publications=plan.burst, verbatim=burst),
    }
    measurements = await _fanout_measurements(arena, channel, plan, plan.audience_rounds)
    measurements |= {name: _costs(arena.bare, request) for name, request in requests.items()}
    ours = _rounds(channel, plan, bursts, publications=plan.burst)
    measurements["gateway burst"] = _costs(arena.gateway, ours)
    costs = await by_turns(plan, plan.repeats, measurements)
    rows = []
    if Stage.FANOUT in wanted:
        rows.append(cost_row(f"bare send call, {plan.audience:,} sockets", costs["send"]))
        rows.append(_fanout_row(plan.audience, costs))
    if Stage.BURST in wanted:
        alone = median(cost.server_cpu_per_unit for cost in costs["bare burst"])
        row = cost_row(
            f"bursts of {plan.burst} to {plan.audience:,}, CPU per delivery",
            costs["gateway burst"],
            costs["bare"],
            baseline_name="one bare write per delivery",
            aim=_BURST_AIM,
            note=f"the same bytes in one bare write: {Unit.MICROSECONDS.text(alone)}",
        )
        rows.append(row)
    return rows


async def connects(arena: Arena, plan: Plan) -> list[Row]:
    """Handshake, token and one subscription, against an accepted connection and one line."""
    request = Gather(plan.connects, [f"{LIVE}:lobby"], plan.connects_in_flight)

    def measurement(side: Side) -> Measurement[Cost]:
        async def measure() -> Cost:
            gathered = await side.load.gather(request)
            await side.load.dismiss()
            return gathered.cost

        return measure

    measurements = {"gateway": measurement(arena.gateway), "bare": measurement(arena.bare)}
    await by_turns(plan, 1, measurements)
    costs = await by_turns(plan, plan.repeats, measurements)
    ours, theirs = costs["gateway"], costs["bare"]
    cpu = cost_row(
        "connect, CPU",
        ours,
        theirs,
        baseline_name="accept, one line in, one line out",
        aim=_CONNECT_AIM,
        note=f"{plan.connects_in_flight} in flight, HS256 token, one subscription each",
    )
    rates = [cost.units_per_second for cost in ours]
    bare_rates = [cost.units_per_second for cost in theirs]
    rate = Row(
        "connects",
        Unit.PER_SECOND,
        median(rates),
        baseline=median(bare_rates),
        ratio=median_ratio(rates, bare_rates),
        server_busy=median(cost.server_busy for cost in ours),
        load_busy=median(cost.load_busy for cost in ours),
        samples={"gateway": rates, "bare": bare_rates},
    )
    return [cpu, rate]


async def durable(arena: Arena, plan: Plan, folder: Path) -> list[Row]:
    """Acknowledged publishes to channels with history, against the disk's own speed."""
    rows = []
    for flooding in plan.durable_loads:
        rows.extend(await _durable(arena, plan, flooding, folder))
    return rows


async def _durable(arena: Arena, plan: Plan, flooding: Flooding, folder: Path) -> list[Row]:
    floods: list[Flooded] = []
    syncs: list[float] = []
    database_shares: list[float] = []
    for repeat in range(plan.durable_repeats):
        syncs.append(await asyncio.to_thread(_syncs_per_second, folder, plan.syncs))
        prefix = f"{KEPT}:flood-{flooding.publishers}-{repeat}"
        request = Flood(
            [f"{prefix}-{number}" for number in range(flooding.channels)],
            flooding.publishers,
            flooding.window,
            plan.payload_bytes,
            plan.durable_seconds,
            plan.durable_warmup,
        )
        before, began = _database_cpu(arena), time.monotonic()
        floods.append(await arena.gateway.load.flood(request))
        database_shares.append((_database_cpu(arena) - before) / (time.monotonic() - began))
    rates = [flood.cost.units_per_second for flood in floods]
    latency = median_distribution([flood.latency for flood in floods])
    name = f"durable publishes, {flooding.publishers:,} clients"
    rate = Row(
        name,
        Unit.PER_SECOND,
        median(rates),
        baseline=median(syncs),
        baseline_name="fdatasync of one page after the other",
        ratio=median_ratio(rates, syncs),
        aim=_DURABLE_AIM,
        server_busy=median(flood.cost.server_busy for flood in floods),
        load_busy=median(flood.cost.load_busy for flood in floods),
        note=(
            f"{flooding.window} outstanding per client, {flooding.channels} channels; "
            f"{_commits(arena)}; PostgreSQL used {median(database_shares):.0%} of a core"
        ),
        samples={"gateway": rates, "fdatasync": syncs, "postgresql_busy": database_shares},
    )
    p50 = Row(f"{name}, acknowledged p50", Unit.MILLISECONDS, latency.p50)
    p99 = Row(f"{name}, acknowledged p99", Unit.MILLISECONDS, latency.p99)
    return [rate, p50, p99]


async def latency(arena: Arena, plan: Plan) -> list[Row]:
    """From publish to delivery under each steady load, durable against a bare relay."""
    rows = []
    for seed, pacing in enumerate(plan.latency_loads):
        rows.extend(await _latency(arena, plan, pacing, seed))
    return rows


async def _latency(arena: Arena, plan: Plan, pacing: Pacing, seed: int) -> list[Row]:
    channels = [f"{KEPT}:room-{seed}-{number}" for number in range(pacing.channels)]
    subscribers = pacing.channels * pacing.subscribers_per_channel
    gather = Gather(subscribers, channels, plan.connects_in_flight, timed=True)
    request = Pace(
        channels,
        pacing.publications_per_second,
        plan.payload_bytes,
        plan.latency_seconds,
        plan.latency_warmup,
        seed,
    )

    def measurement(side: Side) -> Measurement[Paced]:
        async def measure() -> Paced:
            return await side.load.pace(request)

        return measure

    for side in (arena.gateway, arena.bare):
        await side.load.gather(gather)
    measurements = {"gateway": measurement(arena.gateway), "bare": measurement(arena.bare)}
    runs = await by_turns(plan, plan.latency_repeats, measurements)
    for side in (arena.gateway, arena.bare):
        await side.load.dismiss()
    ours = median_distribution([run.latency for run in runs["gateway"]])
    theirs = median_distribution([run.latency for run in runs["bare"]])
    lateness = median(run.lateness.p99 for run in runs["gateway"])
    costs = [run.cost for run in runs["gateway"]]
    load = f"{pacing.publications_per_second}/s to {pacing.subscribers_per_channel:,} each"
    name = f"publish to delivery, {load}"

    def row(quantile: str, value: float, baseline: float) -> Row:
        return Row(
            f"{name}, {quantile}",
            Unit.MILLISECONDS,
            value,
            baseline=baseline,
            ratio=value / baseline,
        )

    p99 = Row(
        f"{name}, p99",
        Unit.MILLISECONDS,
        ours.p99,
        baseline=theirs.p99,
        baseline_name="a bare relay, nothing stored",
        ratio=ours.p99 / theirs.p99,
        aim=_LATENCY_AIM,
        server_busy=median(cost.server_busy for cost in costs),
        load_busy=median(cost.load_busy for cost in costs),
        note=(
            f"{pacing.deliveries_per_second:,} deliveries/s with durable history; longest "
            f"{Unit.MILLISECONDS.text(ours.longest)}; the load published up to "
            f"{Unit.MILLISECONDS.text(lateness)} late (p99)"
        ),
        samples={
            "gateway": [run.latency.p99 for run in runs["gateway"]],
            "bare": [run.latency.p99 for run in runs["bare"]],
        },
    )
    return [row("p50", ours.p50, theirs.p50), p99, row("p99.9", ours.p999, theirs.p999)]


def _rounds(
    channel: str,
    plan: Plan,
    rounds: int,
    *,
    publications: int = 1,
    verbatim: bytes = b"",
    by_send: bool = False,
) -> Rounds:
    items = [payloads.plain(plan.payload_bytes)] * publications
    return Rounds(rounds, channel, items, verbatim, by_send)


def _costs(side: Side, request: Rounds) -> Measurement[Cost]:
    async def measure() -> Cost:
        return (await side.load.rounds(request)).cost

    return measure


async def _received(side: Side, channel: str, plan: Plan, publications: int) -> bytes:
    """The bytes that each subscriber gets for some publications: one round shows them."""
    request = _rounds(channel, plan, 1, publications=publications)
    return (await side.load.rounds(request)).received


async def _fanout_measurements(
    arena: Arena, channel: str, plan: Plan, rounds: int
) -> dict[str, Measurement[Cost]]:
    """One publication a round; the baseline writes the very frame that the gateway sends."""
    frame = await _received(arena.gateway, channel, plan, 1)
    return {
        "gateway": _costs(arena.gateway, _rounds(channel, plan, rounds)),
        "bare": _costs(arena.bare, _rounds(channel, plan, rounds, verbatim=frame)),
    }


def _fanout_row(subscribers: int, costs: Mapping[str, Sequence[Cost]]) -> Row:
    return cost_row(
        f"fan-out to {subscribers:,}, CPU per delivery",
        costs["gateway"],
        costs["bare"],
        baseline_name="the same frame written to as many uvloop transports",
        aim=_FANOUT_AIM,
    )


def cost_row(
    name: str,
    costs: Sequence[Cost],
    baseline: Sequence[Cost] = (),
    *,
    baseline_name: str = "",
    aim: Aim | None = None,
    note: str = "",
) -> Row:
    """A row of CPU per unit."""
    turned_away = sum(cost.turned_away for cost in costs)
    if turned_away:
        note = f"{note}; {turned_away:,} were sent away first, for a moment".removeprefix("; ")
    ours = [cost.server_cpu_per_unit for cost in costs]
    theirs = [cost.server_cpu_per_unit for cost in baseline]
    return Row(
        name,
        Unit.MICROSECONDS,
        median(ours),
        baseline=median(theirs) if theirs else None,
        baseline_name=baseline_name,
        ratio=median_ratio(ours, theirs) if theirs else None,
        aim=aim,
        server_busy=median(cost.server_busy for cost in costs),
        load_busy=median(cost.load_busy for cost in costs),
        note=note,
        samples={"measured": ours, "baseline": theirs},
    )


async def _memory_per_client(side: Side, plan: Plan, channel: str) -> float:
    """Resident bytes that each of the crowd adds to a server that has served a few before."""
    await side.load.gather(Gather(_WARMUP_CLIENTS, [channel], plan.connects_in_flight))
    await side.load.dismiss()
    before = await still_resident_bytes(side.pid)
    await side.load.gather(Gather(plan.crowd, [channel], plan.connects_in_flight))
    return (await still_resident_bytes(side.pid) - before) / plan.crowd


async def still_resident_bytes(pid: int) -> int:
    """Resident memory once it has stopped changing, or after a bounded time."""
    give_up_at = time.monotonic() + _MEMORY_TIMEOUT
    last = procfs.resident_bytes(pid)
    while time.monotonic() < give_up_at:
        await asyncio.sleep(_MEMORY_LOOK)
        now = procfs.resident_bytes(pid)
        if abs(now - last) < _MEMORY_STILL_BYTES:
            return now
        last = now
    return last


def _commits(arena: Arena) -> str:
    """What is known about the durability of a commit; the embedded server says it when started."""
    known = [] if arena.database_pid is None else procfs.command_line(arena.database_pid)
    synced = all(f"--{name}=on" in known for name in ("fsync", "synchronous_commit"))
    return "fsync and synchronous_commit on" if synced else "fsync not confirmed"


def _database_cpu(arena: Arena) -> float:
    return 0.0 if arena.database_pid is None else procfs.tree_cpu_seconds(arena.database_pid)


def _syncs_per_second(folder: Path, count: int) -> float:
    """How often this disk makes one page durable: what a commit can't be faster than."""
    path = folder / "sync-probe"
    page = os.urandom(_SYNC_BYTES)
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY)
    try:
        os.write(descriptor, page)
        os.fdatasync(descriptor)
        began = time.monotonic()
        for _ in range(count):
            # In place, as PostgreSQL writes its preallocated log: no metadata to sync.
            os.pwrite(descriptor, page, 0)
            os.fdatasync(descriptor)
        return count / (time.monotonic() - began)
    finally:
        os.close(descriptor)
        path.unlink()
