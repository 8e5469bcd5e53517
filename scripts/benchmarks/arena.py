"""The servers that are compared, each with its own load process, started fresh for every stage.

Each server runs on one core and both load processes on another, so that neither takes time from the
other; of each kind only one works at any moment. PostgreSQL runs where the kernel puts it.
"""

import asyncio
import os
import secrets
import signal
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from scripts.benchmarks import procfs
from scripts.benchmarks.children import BenchmarkFailed, LoadProcess, child, printed_line
from scripts.benchmarks.messages import Target
from scripts.benchmarks.polling import is_true_within

LIVE = "live"
"""Namespace without history: the hub alone."""

KEPT = "kept"
"""Namespace with durable history: every publication is committed before anybody sees it."""

_READY_TIMEOUT = 60.0
_READY_INTERVAL = 0.05
_DATABASE_STOP_TIMEOUT = 10.0
_LOG_TAIL_BYTES = 4_000

# Pings would be bytes that no publication accounts for, so none comes within a run. Rates are
# limits on clients, which is not what is measured here.
_CONFIG = """\
host = "127.0.0.1"
port = {port}
data_dir = "{data_dir}"
log_level = "warning"
token_hmac_secret = "{secret}"
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

# What a platform may have set for the real service must not leak into the one that is measured.
_SETTING_NAMES = ("DATABASE_URL", "REDIS_URL", "PORT")
_SETTING_PREFIX = "GATEWAY_"


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
    secret = secrets.token_urlsafe(32)
    port = _free_port()
    async with (
        _gateway(folder, port, secret, cores) as pid,
        _bare(cores) as (bare_pid, bare_port),
        LoadProcess.start(Target(port, pid, secret), cores.load) as gateway_load,
        LoadProcess.start(Target(bare_port, bare_pid), cores.load) as bare_load,
    ):
        database_pid = _postmaster(folder)
        yield Arena(
            Side(pid, gateway_load),
            Side(bare_pid, bare_load),
            database_pid,
            began,
            busy_before,
        )


@asynccontextmanager
async def _gateway(folder: Path, port: int, secret: str, cores: Cores) -> AsyncIterator[int]:
    config = folder / "gateway.toml"
    config.write_text(_CONFIG.format(port=port, data_dir=folder / "data", secret=secret))
    arguments = ["-m", "gateway", "serve", "--config", str(config)]
    log_path = folder / "gateway.log"
    try:
        with log_path.open("wb") as log:
            async with child(arguments, environment=_environment(), stdout=log) as process:
                await _wait_ready(process, port, log_path)
                # Only now, so that PostgreSQL, which it has started, isn't held on its core.
                if cores.server is not None:
                    procfs.pin(process.pid, cores.server)
                yield process.pid
                if process.returncode is not None:
                    raise BenchmarkFailed(f"the gateway ended by itself:\n{_tail(log_path)}")
    finally:
        await _stop_database(folder)


@asynccontextmanager
async def _bare(cores: Cores) -> AsyncIterator[tuple[int, int]]:
    arguments = ["-m", "scripts.benchmarks.bare"]
    async with child(arguments, stdin=asyncio.subprocess.PIPE) as process:
        port = int(await printed_line(process))
        if cores.server is not None:
            procfs.pin(process.pid, cores.server)
        yield process.pid, port


async def _wait_ready(process: asyncio.subprocess.Process, port: int, log_path: Path) -> None:
    try:
        async with asyncio.timeout(_READY_TIMEOUT):
            while not await _is_ready(port):
                if process.returncode is not None:
                    raise BenchmarkFailed(f"the gateway did not start:\n{_tail(log_path)}")
                await asyncio.sleep(_READY_INTERVAL)
    except TimeoutError:
        raise BenchmarkFailed(f"the gateway is never ready:\n{_tail(log_path)}") from None


async def _is_ready(port: int) -> bool:
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    try:
        writer.write(b"GET /api/ready HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
        return b" 200 " in await reader.readline()
    except OSError:
        return False
    finally:
        writer.close()


def _environment() -> dict[str, str]:
    return {
        name: value
        for name, value in os.environ.items()
        if name not in _SETTING_NAMES and not name.startswith(_SETTING_PREFIX)
    }


def _postmaster(folder: Path) -> int | None:
    """The embedded server by the file it keeps in its data folder."""
    for path in folder.rglob("postmaster.pid"):
        pid = int(path.read_text().split()[0])
        if procfs.is_alive(pid):
            return pid
    return None


async def _stop_database(folder: Path) -> None:
    """Ends a PostgreSQL that its gateway has left behind: a killed gateway can't end it itself."""
    pid = _postmaster(folder)
    if pid is None:
        return
    os.kill(pid, signal.SIGINT)  # a fast shutdown
    await is_true_within(_DATABASE_STOP_TIMEOUT, lambda: not procfs.is_alive(pid))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _tail(path: Path) -> str:
    return path.read_bytes()[-_LOG_TAIL_BYTES:].decode(errors="replace")
