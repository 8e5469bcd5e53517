"""The servers that are compared, each with its own load process, started fresh for every stage.

Each server runs on one core and both load processes on another, so that neither takes time from the
other; of each kind only one works at any moment. PostgreSQL runs where the kernel puts it.
"""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from scripts.benchmarks import procfs
from scripts.benchmarks.children import LoadProcess, child, printed_line
from scripts.benchmarks.gateways import gateway
from scripts.benchmarks.messages import Target

LIVE = "live"
"""Namespace without history: the hub alone."""

KEPT = "kept"
"""Namespace with durable history: every publication is committed before anybody sees it."""

# Pings would be bytes that no publication accounts for, so none comes within a run. Rates are
# limits on clients, which is not what is measured here.
SETTINGS = """\
ping_interval = 3600.0
commands_per_second = 1000000
commands_burst = 1000000

[[namespaces]]
name = "live"
allow_subscribe_for_client = true
allow_publish_for_client = true

[[namespaces]]
name = "kept"
history_size = 1000
history_ttl = 3600.0
force_recovery = true
allow_subscribe_for_client = true
allow_publish_for_client = true
allow_history_for_client = true
"""


@dataclass(frozen=True, slots=True)
class Cores:
    """Where to run what; None where there is only one core to share."""

    server: int | None
    load: int | None

    @classmethod
    def of_this_machine(cls) -> "Cores":
        """The first two that this process may use."""
        usable = sorted(os.sched_getaffinity(0))
        return cls(usable[0], usable[1]) if len(usable) > 1 else cls(None, None)


@dataclass(frozen=True, slots=True)
class Side:
    """One server and its load."""

    pid: int
    load: LoadProcess


@dataclass(frozen=True, slots=True)
class Arena:
    """Both sides. `database_pid` is the gateway's PostgreSQL, where it could be found."""

    gateway: Side
    bare: Side
    database_pid: int | None
    _began: float
    _busy_before: float

    def others_busy(self) -> float:
        """The share of this machine's cores that went to processes not of this benchmark.

        Since the arena was opened. What they take makes latencies longer and rates lower.
        """
        elapsed = time.monotonic() - self._began
        busy = procfs.machine_busy_seconds() - self._busy_before
        ours = sum(
            procfs.cpu_seconds(pid) + procfs.reaped_cpu_seconds(pid)
            for side in (self.gateway, self.bare)
            for pid in (side.pid, side.load.pid)
        )
        if self.database_pid is not None:
            ours += procfs.tree_cpu_seconds(self.database_pid)
        cores = os.cpu_count() or 1
        return max(busy - ours, 0.0) / (elapsed * cores)


@asynccontextmanager
async def arena(folder: Path, cores: Cores) -> AsyncIterator[Arena]:
    """Starts the gateway, the baseline and a load process for each; stops all of them.

    The gateway's data stays in `folder`, so that a later arena starts faster.
    """
    began, busy_before = time.monotonic(), procfs.machine_busy_seconds()
    async with (
        gateway(folder, SETTINGS, cores.server) as server,
        bare(cores) as (bare_pid, bare_port),
        LoadProcess.start(Target(server.port, server.pid, server.secret), cores.load) as ours,
        LoadProcess.start(Target(bare_port, bare_pid), cores.load) as theirs,
    ):
        yield Arena(
            Side(server.pid, ours),
            Side(bare_pid, theirs),
            server.database_pid,
            began,
            busy_before,
        )


@asynccontextmanager
async def bare(cores: Cores) -> AsyncIterator[tuple[int, int]]:
    """Starts the baseline server; gives its process and its port."""
    arguments = ["-m", "scripts.benchmarks.bare"]
    async with child(arguments, stdin=asyncio.subprocess.PIPE) as process:
        port = int(await printed_line(process))
        if cores.server is not None:
            procfs.pin(process.pid, cores.server)
        yield process.pid, port
