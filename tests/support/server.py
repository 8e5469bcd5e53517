"""A real gateway in a process of its own, as an operator would start it.

Nothing here needs a running loop, and `start` and the stops wait: in a coroutine, call them by
`asyncio.to_thread`.
"""

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO, Self

import jwt

from tests.support.ports import free_port

START_TIMEOUT = 60.0
STOP_TIMEOUT = 30.0
TOKEN_SECRET = "a secret of the tests, long enough for HMAC"
API_KEY = "an-api-key-of-the-tests"

# Namespaces that most tests need. `chat` is durable and open; `live` keeps nothing.
DEFAULT_CONFIG = """
commands_per_second = 100000
commands_burst = 100000

[channel]
allow_subscribe_for_client = true
allow_publish_for_client = true

[[namespaces]]
name = "chat"
history_size = 10000
history_ttl = "1h"
force_recovery = true
presence = true
join_leave = true
allow_subscribe_for_client = true
allow_publish_for_subscriber = true
allow_publish_for_client = true
allow_presence_for_client = true
allow_history_for_client = true

[[namespaces]]
name = "live"
allow_subscribe_for_client = true
allow_publish_for_client = true
"""


def mint(user: str, *, secret: str = TOKEN_SECRET, ttl: float = 3600, **claims: object) -> str:
    """A token of the tests' secret; `claims` are added, or replace those of the same name."""
    now = int(time.time())
    return jwt.encode({"sub": user, "iat": now, "exp": int(now + ttl), **claims}, secret, "HS256")


class ServerProcess:
    """One gateway process; the port stays the same over restarts.

    With `database_url` it uses that database, otherwise an embedded one in `folder`/data.
    """

    def __init__(
        self,
        folder: Path,
        *,
        database_url: str | None = None,
        config: str = DEFAULT_CONFIG,
        environment: dict[str, str] | None = None,
        port: int | None = None,
    ) -> None:
        self.port = free_port() if port is None else port
        self._folder = folder
        self._config = folder / "gateway.toml"
        self._config.write_text(config)
        self._log = folder / "gateway.log"
        self._process: subprocess.Popen[str] | None = None
        self._environment = {
            name: value for name, value in os.environ.items() if not name.startswith("GATEWAY_")
        } | {
            "GATEWAY_TOKEN_HMAC_SECRET": TOKEN_SECRET,
            "GATEWAY_API_KEY": API_KEY,
            "GATEWAY_DATA_DIR": str(folder / "data"),
            "GATEWAY_LOG_FORMAT": "json",
            "PYTHONUNBUFFERED": "1",
        }
        if database_url is not None:
            self._environment["DATABASE_URL"] = database_url
        self._environment |= environment or {}

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.terminate()

    @property
    def http_url(self) -> str:
        """Without a slash at its end."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def ws_url(self) -> str:
        """Where clients connect."""
        return f"ws://127.0.0.1:{self.port}/connection/websocket"

    @property
    def pid(self) -> int:
        """Of the running process."""
        assert self._process is not None, "start() comes first"
        return self._process.pid

    def start(self) -> None:
        """Start and wait until it says that it is ready."""
        assert self._process is None, "it runs already"
        with self._log.open("a") as log:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    *("-m", "gateway", "serve", "--port", str(self.port)),
                    *("--config", str(self._config)),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=self._environment,
            )
        lines: queue.Queue[str] = queue.Queue()
        assert self._process.stdout is not None
        threading.Thread(target=_read, args=(self._process.stdout, lines), daemon=True).start()
        deadline = time.monotonic() + START_TIMEOUT
        while True:
            try:
                line = lines.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                self.kill()
                raise AssertionError(f"the gateway wasn't ready in time:\n{self.log()}") from None
            if not line:
                code = self._process.wait()
                self._process = None
                raise AssertionError(f"the gateway ended with {code}:\n{self.log()}")
            if "is ready" in line:
                return

    def kill(self) -> None:
        """End it like a power loss would: SIGKILL."""
        self._end(signal.SIGKILL)

    def terminate(self) -> int | None:
        """Ask it to stop (SIGTERM) and wait; returns its exit code, None if it didn't run."""
        return self._end(signal.SIGTERM)

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal and don't wait."""
        assert self._process is not None, "start() comes first"
        self._process.send_signal(number)

    def wait(self) -> int:
        """Wait until it has ended by itself; returns its exit code."""
        assert self._process is not None, "start() comes first"
        code = self._process.wait(STOP_TIMEOUT)
        self._process = None
        return code

    def log(self) -> str:
        """What it wrote to stderr since the first start."""
        return self._log.read_text() if self._log.exists() else ""

    def _end(self, number: signal.Signals) -> int | None:
        if self._process is None:
            return None
        process, self._process = self._process, None
        process.send_signal(number)
        try:
            return process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise AssertionError(f"the gateway didn't stop in time:\n{self.log()}") from None


def _read(stream: IO[str], lines: "queue.Queue[str]") -> None:
    with stream:
        for line in stream:
            lines.put(line)
    lines.put("")
