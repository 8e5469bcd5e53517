"""`scripts/bench`: measures, prints a table, writes JSON. See docs/benchmarks.md.

Ends with 0 whether or not the aims are met, because a busy machine is no failure; with 1 when
something did not work, such as a delivery that was lost; with 2 on wrong arguments.
"""

import argparse
import asyncio
import dataclasses
import resource
import signal
import sys
import tempfile
from collections.abc import Awaitable, Callable, Collection, Iterator
from datetime import UTC, datetime
from pathlib import Path

from scripts.benchmarks import report, session_stages, stages
from scripts.benchmarks.arena import Arena, Cores, arena
from scripts.benchmarks.children import ROOT, BenchmarkFailed
from scripts.benchmarks.plan import DEFAULT, QUICK, Plan, Stage
from scripts.benchmarks.rows import Row

_RESULTS = ROOT / "bench-results"
# Descriptors that a server or a load process needs besides one per client.
_SPARE_DESCRIPTORS = 200

Measure = Callable[[Path, Cores], Awaitable[list[Row]]]
InArena = Callable[[Arena], Awaitable[list[Row]]]


def main() -> int:
    """Runs what the command line asks for; returns the exit status."""
    options = _arguments()
    began = datetime.now(UTC)
    plan = _fitted(QUICK if options.quick else DEFAULT)
    try:
        with tempfile.TemporaryDirectory(prefix="capegate-bench-") as name:
            folder = Path(name)
            folder.chmod(0o711)  # root's PostgreSQL runs as another user, who has to pass through
            rows = asyncio.run(_run(plan, options.only, folder))
    except BenchmarkFailed as failure:
        print(f"scripts/bench: {failure}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("scripts/bench: interrupted", file=sys.stderr)
        return 130
    path = options.json or _RESULTS / f"{began:%Y%m%dT%H%M%SZ}.json"
    report.write_json(path, plan, rows, began)
    print(f"\n{report.machine_line()}\n\n{report.table(rows)}\n\nwritten to {path}")
    return 0


async def _run(plan: Plan, wanted: Collection[Stage], folder: Path) -> list[Row]:
    task = asyncio.current_task()
    assert task is not None
    # As Ctrl-C does: cancelled, so that every child is ended on the way out.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    rows: list[Row] = []
    cores = Cores.of_this_machine()
    for title, measure in _stages(plan, wanted, folder):
        _say(title)
        rows.extend(await measure(folder, cores))
    return rows


def _with_arena(measure: InArena) -> Measure:
    """Servers of its own, so that no stage inherits another's heap or sockets."""

    async def run(folder: Path, cores: Cores) -> list[Row]:
        async with arena(folder, cores) as servers:
            found = await measure(servers)
            others = servers.others_busy()
        return [dataclasses.replace(row, others_busy=others) for row in found]

    return run


def _stages(plan: Plan, wanted: Collection[Stage], folder: Path) -> Iterator[tuple[str, Measure]]:
    for title, measure in _arena_stages(plan, wanted, folder):
        yield title, _with_arena(measure)
    if Stage.DETACHED in wanted:
        title = f"{plan.crowd:,} detached sessions"
        yield title, lambda folder, cores: session_stages.detached(folder, cores, plan)
    if Stage.IDLE in wanted:
        title = f"{plan.crowd:,} idle sessions"
        yield title, lambda folder, cores: session_stages.idle(folder, cores, plan)
    if Stage.STORM in wanted:
        title = f"{plan.storm_clients:,} clients come back at once"
        yield title, lambda folder, cores: session_stages.storms(folder, cores, plan)


def _arena_stages(
    plan: Plan, wanted: Collection[Stage], folder: Path
) -> Iterator[tuple[str, InArena]]:
    if {Stage.MEMORY, Stage.FANOUT} & set(wanted):
        title = f"{plan.crowd:,} clients: memory, fan-out"
        yield title, lambda servers: stages.crowd(servers, plan, wanted)
    if {Stage.FANOUT, Stage.BURST} & set(wanted):
        title = f"{plan.audience:,} clients: fan-out, bursts"
        yield title, lambda servers: stages.audience(servers, plan, wanted)
    if Stage.CONNECTS in wanted:
        yield "connects", lambda servers: stages.connects(servers, plan)
    if Stage.DURABLE in wanted:
        yield "durable publishes", lambda servers: stages.durable(servers, plan, folder)
    if Stage.LATENCY in wanted:
        yield "latency under load", lambda servers: stages.latency(servers, plan)
    if Stage.RESUME in wanted:
        yield "resumes", lambda servers: session_stages.resume(servers, plan)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description="Measure the gateway against a baseline run beside it.",
    )
    parser.add_argument("--quick", action="store_true", help="fewer repeats: within two minutes")
    parser.add_argument(
        "--only",
        type=_stage_names,
        default=list(Stage),
        metavar="NAMES",
        help=f"comma-separated: {', '.join(Stage)}",
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="where to write (default: bench-results/)"
    )
    return parser.parse_args()


def _stage_names(text: str) -> list[Stage]:
    try:
        return [Stage(name.strip()) for name in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{error}; known are {', '.join(Stage)}") from None


def _fitted(plan: Plan) -> Plan:
    """Raises the limit of open files, for the children too, and fits the crowd into it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard == resource.RLIM_INFINITY or hard >= plan.crowd + _SPARE_DESCRIPTORS:
        return plan
    crowd = hard - _SPARE_DESCRIPTORS
    _say(f"only {hard:,} open files are allowed: measuring {crowd:,} clients, not {plan.crowd:,}")
    return dataclasses.replace(plan, crowd=crowd, storm_clients=min(plan.storm_clients, crowd))


def _say(line: str) -> None:
    print(f"· {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
