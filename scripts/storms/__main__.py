"""`scripts/storm`: kills or stops a real server under load, starts it again, counts everything.

Ends with 0 when everybody is back and nothing was lost or doubled, whether or not it was fast;
with 1 otherwise, or when something did not work; with 2 on wrong arguments.
"""

import argparse
import asyncio
import json
import resource
import signal
import sys
import tempfile
from pathlib import Path

from scripts.benchmarks.arena import Cores
from scripts.benchmarks.children import BenchmarkFailed
from scripts.storms import chart, report
from scripts.storms.storm import Blow, Outcome, Storm, raise_storm

# Descriptors that the server or the crowd needs besides one per client, and one more for each
# client that moves.
_SPARE_DESCRIPTORS = 200
_CLIENTS_PER_ROOM = 50


def main() -> int:
    """Does what the command line asks for; returns the exit status."""
    options = _arguments()
    storm = _storm(options)
    try:
        with tempfile.TemporaryDirectory(prefix="capegate-storm-") as name:
            folder = Path(name)
            folder.chmod(0o711)  # root's PostgreSQL runs as another user, who has to pass through
            outcome = asyncio.run(_run(storm, folder))
    except BenchmarkFailed as failure:
        print(f"scripts/storm: {failure}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("scripts/storm: interrupted", file=sys.stderr)
        return 130
    options.out.write_text(chart.draw(outcome))
    if options.json is not None:
        options.json.write_text(json.dumps(report.as_json(outcome), indent=2) + "\n")
    print(f"{report.table(outcome)}\n\narrivals against capacity are drawn in {options.out}")
    return 0 if outcome.is_clean else 1


async def _run(storm: Storm, folder: Path) -> Outcome:
    task = asyncio.current_task()
    assert task is not None
    # As Ctrl-C does: cancelled, so that every child is ended on the way out.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await raise_storm(storm, folder, Cores.of_this_machine(), say=_say)


def _storm(options: argparse.Namespace) -> Storm:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    clients = options.clients
    if hard != resource.RLIM_INFINITY and hard < clients + _SPARE_DESCRIPTORS:
        clients = hard - _SPARE_DESCRIPTORS
        _say(f"only {hard:,} open files are allowed: {clients:,} clients, not {options.clients:,}")
    return Storm(
        clients=clients,
        sessions=round(clients * options.sessions),
        blow=Blow(options.signal),
        publish_rate=options.publish_rate,
        rooms=options.rooms or max(1, clients // _CLIENTS_PER_ROOM),
        backoff_max=options.backoff_max,
        restart_time=options.restart_time,
        seed=options.seed,
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/storm",
        description="Kill or stop a real server under load, start it again, count everything.",
    )
    add = parser.add_argument
    add("--clients", type=_count, default=5000, metavar="N", help="how many (default: 5000)")
    add(
        "--signal",
        choices=[blow.value for blow in Blow],
        default=Blow.KILL.value,
        help="kill -9, or SIGTERM as at a deploy (default: kill)",
    )
    add(
        "--sessions",
        type=_share,
        default=1.0,
        metavar="SHARE",
        help="share of clients with a session, from 0 to 1; the others behave as the stock SDK",
    )
    add(
        "--publish-rate",
        type=float,
        default=50.0,
        metavar="N",
        help="messages per second, all clients together (default: 50)",
    )
    add("--rooms", type=_count, metavar="N", help="default: one for every 50 clients")
    add(
        "--backoff-max",
        type=float,
        default=4.0,
        metavar="SECONDS",
        help="the longest delay of clients that were told no moment (default: 4)",
    )
    add(
        "--restart-time",
        type=float,
        default=5.0,
        metavar="SECONDS",
        help="what the server expects of its restart: first moment that it tells (default: 5)",
    )
    add("--seed", type=int, default=0, metavar="N", help="of everything that is random")
    add("--out", type=Path, default=Path("storm.svg"), metavar="FILE", help="default: storm.svg")
    add("--json", type=Path, metavar="FILE", help="write the figures there too")
    return parser.parse_args()


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def _share(text: str) -> float:
    share = float(text)
    if not 0 <= share <= 1:
        raise argparse.ArgumentTypeError("must be from 0 to 1")
    return share


def _say(line: str) -> None:
    print(f"· {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
