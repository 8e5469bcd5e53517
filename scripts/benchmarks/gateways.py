"""The real gateway as a child process, with an embedded PostgreSQL; it can be ended and started."""

import asyncio
import os
import secrets
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from pathlib import Path

from scripts.benchmarks import procfs
from scripts.benchmarks.children import BenchmarkFailed, child, printed_line
from scripts.benchmarks.polling import is_true_within

_STOP_TIMEOUT = 30.0
_DATABASE_STOP_TIMEOUT = 10.0
_LOG_TAIL_BYTES = 4_000
_READY = " is ready"

_CONFIG = """\
host = "127.0.0.1"
port = {port}
internal_port = {internal_port}
data_dir = "{data_dir}"
log_level = "warning"
token_hmac_secret = "{secret}"
api_key = "{api_key}"
"""

# What a platform may have set for the real service must not leak into the one that is measured.
_SETTING_NAMES = ("DATABASE_URL", "REDIS_URL", "PORT")
_SETTING_PREFIX = "GATEWAY_"


class GatewayProcess:
    """One gateway; its ports, its secrets and its data stay the same from one start to the next.

    Metrics and the server API are at `internal_port`, where no client is in front of who asks.
    """

    def __init__(self, folder: Path, settings: str, core: int | None) -> None:
        self.port, self.internal_port = _free_ports(2)
        self.secret = secrets.token_urlsafe(32)
        self.api_key = secrets.token_urlsafe(32)
        self._folder = folder
        self._core = core
        self._log = folder / "gateway.log"
        self._config = folder / "gateway.toml"
        head = _CONFIG.format(
            port=self.port,
            internal_port=self.internal_port,
            data_dir=folder / "data",
            secret=self.secret,
            api_key=self.api_key,
        )
        self._config.write_text(head + settings)
        self._process: asyncio.subprocess.Process | None = None
        self._stack = AsyncExitStack()

    @property
    def pid(self) -> int:
        """Of the process that runs now."""
        assert self._process is not None, "start() comes first"
        return self._process.pid

    @property
    def database_pid(self) -> int | None:
        """The embedded server by the file that it keeps in its data folder."""
        for path in self._folder.rglob("postmaster.pid"):
            pid = int(path.read_text().split()[0])
            if procfs.is_alive(pid):
                return pid
        return None

    async def start(self) -> None:
        """Start it; returns when it says that it is ready. Raises BenchmarkFailed."""
        arguments = ["-m", "gateway", "serve", "--config", str(self._config)]
        with self._log.open("ab") as log:
            self._process = process = await self._stack.enter_async_context(
                child(arguments, environment=_environment(), stderr=log)
            )
        try:
            while _READY not in await printed_line(process):
                pass
        except BenchmarkFailed:
            raise BenchmarkFailed(f"the gateway did not start:\n{self.last_words()}") from None
        # Only now, so that PostgreSQL, which it has started, isn't held on its core.
        if self._core is not None:
            procfs.pin(process.pid, self._core)

    async def end(self, number: signal.Signals) -> None:
        """Send a signal that ends it, and wait until it has ended. Raises BenchmarkFailed."""
        process, self._process = self._process, None
        assert process is not None, "start() comes first"
        process.send_signal(number)
        try:
            async with asyncio.timeout(_STOP_TIMEOUT):
                status = await process.wait()
        except TimeoutError:
            raise BenchmarkFailed(f"the gateway doesn't end:\n{self.last_words()}") from None
        if status != (0 if number == signal.SIGTERM else -number):
            raise BenchmarkFailed(f"the gateway ended with {status}:\n{self.last_words()}")

    async def close(self) -> None:
        """End whatever still runs, a PostgreSQL that was left behind among it."""
        process = self._process
        broken = process is not None and process.returncode is not None
        await self._stack.aclose()
        pid = self.database_pid
        if pid is not None:
            os.kill(pid, signal.SIGINT)  # a fast shutdown
            await is_true_within(_DATABASE_STOP_TIMEOUT, lambda: not procfs.is_alive(pid))
        if broken:
            raise BenchmarkFailed(f"the gateway ended by itself:\n{self.last_words()}")

    def last_words(self) -> str:
        """The end of its log."""
        return self._log.read_bytes()[-_LOG_TAIL_BYTES:].decode(errors="replace")


@asynccontextmanager
async def gateway(folder: Path, settings: str, core: int | None) -> AsyncIterator[GatewayProcess]:
    """A gateway that runs, on a core of its own if there is one; `settings` are lines of TOML."""
    process = GatewayProcess(folder, settings, core)
    try:
        await process.start()
        yield process
    finally:
        await process.close()


def _environment() -> dict[str, str]:
    return {
        name: value
        for name, value in os.environ.items()
        if name not in _SETTING_NAMES and not name.startswith(_SETTING_PREFIX)
    }


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
