"""Child processes that never outlive their harness, and the harness's end of a load process."""

import asyncio
import ctypes
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO, Any, TypeVar

import msgspec

from scripts.benchmarks import procfs
from scripts.benchmarks.messages import (
    Answer,
    Attach,
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
    Resume,
    Rounded,
    Rounds,
    Target,
)

ROOT = Path(__file__).resolve().parents[2]

_STOP_TIMEOUT = 20.0
_START_TIMEOUT = 30.0
# A load process gives up by itself before that.
_ANSWER_TIMEOUT = 90.0
# The longest line that a child may print: the answer of one that speaks for ten thousand clients.
_LINE_MAX_BYTES = 16 * 1024 * 1024

_SET_PARENT_DEATH_SIGNAL = 1  # <linux/prctl.h>: PR_SET_PDEATHSIG


_Expected = TypeVar("_Expected", bound=msgspec.Struct)


class BenchmarkFailed(Exception):
    """Something did not work; this is not about speed."""


@asynccontextmanager
async def child(
    arguments: Sequence[str],
    *,
    environment: Mapping[str, str] | None = None,
    stdin: int = asyncio.subprocess.DEVNULL,
    stdout: int | IO[bytes] = asyncio.subprocess.PIPE,
    stderr: int | IO[bytes] | None = None,
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Runs this Python with some arguments in the project's root, and ends it in any case.

    First politely (standard input closed, SIGTERM), and after a while by SIGKILL.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *arguments,
        cwd=ROOT,
        env=environment,
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        limit=_LINE_MAX_BYTES,
        preexec_fn=_end_with_parent(os.getpid()),
    )
    try:
        yield process
    finally:
        await _end(process)


class Worker:
    """A child that carries out requests: one JSON object a line each way, in the order of asking.

    `answers` is the union of everything that it may say.
    """

    def __init__(self, process: asyncio.subprocess.Process, answers: Any) -> None:
        self._process = process
        self._decode = msgspec.json.Decoder(answers).decode
        self.pid = process.pid

    async def ask(
        self, request: msgspec.Struct, expected: type[_Expected], timeout: float = _ANSWER_TIMEOUT
    ) -> _Expected:
        """The answer, of the type that belongs to the request. Raises BenchmarkFailed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(msgspec.json.encode(request) + b"\n")
        try:
            async with asyncio.timeout(timeout):
                line = await self._process.stdout.readline()
        except TimeoutError:
            raise BenchmarkFailed("a load process does not answer") from None
        if not line:
            raise BenchmarkFailed("a load process ended")
        answer = self._decode(line)
        if isinstance(answer, Failed):
            raise BenchmarkFailed(f"{type(request).__name__.lower()}: {answer.reason}")
        if not isinstance(answer, expected):
            raise AssertionError(f"{request} was answered by {answer}")
        return answer


class LoadProcess(Worker):
    """The harness's end: one method per request, each returning its own kind of answer."""

    @classmethod
    @asynccontextmanager
    async def start(cls, target: Target, core: int | None) -> AsyncIterator["LoadProcess"]:
        """Starts one against a server, on a core of its own if there is one."""
        arguments = ["-m", "scripts.benchmarks.load", msgspec.json.encode(target).decode()]
        async with child(arguments, stdin=asyncio.subprocess.PIPE) as process:
            if core is not None:
                procfs.pin(process.pid, core)
            yield cls(process, Answer)

    async def gather(self, request: Gather) -> Gathered:
        """Opens subscribers."""
        return await self.ask(request, Gathered)

    async def dismiss(self) -> None:
        """Closes them."""
        await self.ask(Dismiss(), Dismissed)

    async def attach(self, request: Attach) -> Gathered:
        """Opens clients with sessions."""
        return await self.ask(request, Gathered)

    async def detach(self, request: Detach) -> None:
        """Breaks their lines."""
        await self.ask(request, Dismissed)

    async def resume(self, request: Resume) -> Gathered:
        """Has them come back."""
        return await self.ask(request, Gathered)

    async def rounds(self, request: Rounds) -> Rounded:
        """Publishes round by round."""
        return await self.ask(request, Rounded)

    async def flood(self, request: Flood) -> Flooded:
        """Publishes as fast as it is acknowledged."""
        return await self.ask(request, Flooded)

    async def pace(self, request: Pace) -> Paced:
        """Publishes at a rate."""
        return await self.ask(request, Paced)


async def printed_line(process: asyncio.subprocess.Process) -> str:
    """The next line that a child prints. Raises BenchmarkFailed when it ends instead."""
    assert process.stdout is not None
    async with asyncio.timeout(_START_TIMEOUT):
        line = await process.stdout.readline()
    if not line:
        raise BenchmarkFailed("a process of the benchmark ended before it was ready")
    return line.decode().strip()


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    if process.stdin is not None:
        process.stdin.close()
    process.terminate()
    try:
        async with asyncio.timeout(_STOP_TIMEOUT):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()


def _end_with_parent(parent_pid: int) -> Callable[[], None]:
    """What a child does before its program starts: ask for SIGTERM should the harness be killed."""
    libc = ctypes.CDLL(None, use_errno=True)

    def prepare() -> None:
        libc.prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGTERM)
        if os.getppid() != parent_pid:  # it was killed between the fork and the line above
            os._exit(1)

    return prepare
