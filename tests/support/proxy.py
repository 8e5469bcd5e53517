"""A TCP proxy between a gateway and PostgreSQL that breaks the line in the ways that lines break.

It runs on the test's own loop. Each accepted connection, with the one it opens to the server, is a
*line*. What can happen to lines:

* `cut`: both ends see a reset, now; `cut_after`: at the n-th byte from now, in either direction;
  `cut_before_answer`: when the server has given a certain answer, of which nothing gets through.
* `refuse`: new lines are reset at once; `accept` ends that.
* `hold`: nothing passes, on old lines and new ones, and nobody is told; `hold_present`: new ones
  work; `hold_answers`: what the server says on them. `release` lets what was held go on, even when
  the client has gone meanwhile: packets that were long under way.
* `lose`: the present lines stay silent for ever, new ones work: a firewall forgot them.
"""

import asyncio
import socket
import struct
from collections.abc import Coroutine
from typing import Any, Final, Self
from urllib.parse import urlsplit, urlunsplit

COMMITTED: Final = b"COMMIT\0"
"""PostgreSQL's word that a transaction has been committed."""

STATEMENT_COMMITTED: Final = b"s\0\0\0\x04Z\0\0\0\x05I"
"""PortalSuspended, ReadyForQuery (idle). The same about a statement that was a transaction of its
own, and of which asyncpg's `fetchval` wanted one row."""

# With a linger time of zero a socket that is closed sends a reset, not an orderly end.
_RESET: Final = struct.pack("ii", 1, 0)
_READ_BYTES: Final = 65536


class Proxy:
    """A proxy to one server, on a port of its own: `async with Proxy(host, port) as proxy:`."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._listener: socket.socket | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._lines: dict[_Line, None] = {}
        self._refusing = False
        self._holding = False
        # Bytes that pass before the cut, by direction (True: to the server).
        self._left: dict[bool, int] = {}
        self._answer: bytes | None = None
        self._cut = asyncio.Event()
        self.port = 0
        """Where clients connect."""
        self.to_server_bytes = 0
        """What clients have sent to the server through here."""
        self.to_client_bytes = 0
        """What the server has sent to clients through here."""
        self.answers_held = 0
        """How many lines hold something that the server has said."""

    @classmethod
    def before(cls, url: str) -> Self:
        """A proxy to the server of a database URL; see `url`."""
        parts = urlsplit(url)
        assert parts.hostname is not None, "only TCP has a line"
        return cls(parts.hostname, parts.port or 5432)

    def url(self, url: str) -> str:
        """The database URL with this proxy in the server's place."""
        parts = urlsplit(url)
        login, at, _ = parts.netloc.rpartition("@")
        return urlunsplit(parts._replace(netloc=f"{login}{at}127.0.0.1:{self.port}"))

    async def __aenter__(self) -> Self:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self._listener.setblocking(False)
        self.port = self._listener.getsockname()[1]
        self._spawn(self._accept(self._listener))
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._listener is not None, "entered"
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._listener.close()

    @property
    def lines(self) -> int:
        """How many lines are open."""
        return len(self._lines)

    # --- what can happen --------------------------------------------------------------------------

    def cut(self) -> None:
        """Reset every line."""
        for line in list(self._lines):
            line.cut()

    def cut_after(
        self, *, to_server: int | None = None, to_client: int | None = None
    ) -> asyncio.Event:
        """Let so many bytes more through, of all lines together, and then reset every line.

        The event is set when that has happened. It happens once: lines that come later are whole.
        """
        limits = {True: to_server, False: to_client}
        self._left = {way: limit for way, limit in limits.items() if limit is not None}
        self._cut = asyncio.Event()
        return self._cut

    def cut_before_answer(self, answer: bytes) -> asyncio.Event:
        """Reset every line when the server has sent `answer`, and let nothing of it through.

        See `COMMITTED` and `STATEMENT_COMMITTED`. The event is set at the cut. It happens once.
        """
        self._answer = answer
        self._cut = asyncio.Event()
        return self._cut

    def refuse(self) -> None:
        """Reset new lines."""
        self._refusing = True

    def accept(self) -> None:
        """Take new lines again."""
        self._refusing = False

    def hold(self) -> None:
        """Let nothing pass any more, in silence."""
        self._holding = True
        self.hold_present()

    def hold_present(self) -> None:
        """Let nothing of the present lines pass, in silence."""
        for line in self._lines:
            line.hold(True, False)

    def hold_answers(self) -> None:
        """Let nothing pass of what the server says on the present lines."""
        for line in self._lines:
            line.hold(False)

    def release(self) -> None:
        """Let everything pass again, what was held first."""
        self._holding = False
        for line in self._lines:
            line.release()

    def lose(self) -> None:
        """Let nothing of the present lines pass, ever."""
        self.hold_present()
        for line in self._lines:
            line.lost = True

    # --- how --------------------------------------------------------------------------------------

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            client, _ = await loop.sock_accept(listener)
            if self._refusing:
                _reset(client)
            else:
                self._spawn(self._run(client))

    async def _run(self, client: socket.socket) -> None:
        """One line from its beginning to its end."""
        line = _Line(client)
        if self._holding:
            line.hold(True, False)
        self._lines[line] = None
        try:
            await line.passable[True].wait()
            await asyncio.get_running_loop().sock_connect(line.server, self._target)
            async with asyncio.TaskGroup() as ways:
                ways.create_task(self._carry(line, to_server=True))
                ways.create_task(self._carry(line, to_server=False))
        except* OSError:
            line.reset()
        finally:
            del self._lines[line]
            line.client.close()
            line.server.close()

    async def _carry(self, line: "_Line", to_server: bool) -> None:
        """Carry one direction of a line until its sender has ended it."""
        loop = asyncio.get_running_loop()
        source, target = (line.client, line.server)[:: 1 if to_server else -1]
        while True:
            try:
                data = await loop.sock_recv(source, _READ_BYTES)
            except ConnectionError:
                data = b""  # the other end gets an orderly one, behind all that came before
            self.answers_held += not to_server
            await line.passable[to_server].wait()
            self.answers_held -= not to_server
            if line.was_reset:
                return
            if not data:
                target.shutdown(socket.SHUT_WR)
                return
            passed, cut = self._judge(data, to_server)
            if passed:
                await loop.sock_sendall(target, passed)
            if to_server:
                self.to_server_bytes += len(passed)
            else:
                self.to_client_bytes += len(passed)
            if cut:
                self.cut()
                self._cut.set()
                return

    def _judge(self, data: bytes, to_server: bool) -> tuple[bytes, bool]:
        """What of some bytes may pass, and whether every line is cut behind them."""
        if not to_server and self._answer is not None and self._answer in data:
            self._answer = None
            return b"", True
        left = self._left.get(to_server)
        if left is None:
            return data, False
        if len(data) < left:
            self._left[to_server] = left - len(data)
            return data, False
        self._left.clear()
        return data[:left], True


class _Line:
    """A client's connection and the one to the server that belongs to it."""

    def __init__(self, client: socket.socket) -> None:
        self.client = client
        self.server = socket.socket()
        for end in (self.client, self.server):
            end.setblocking(False)
            # Bytes go on as they came, however few.
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # By direction; to the server: True.
        self.passable = {True: asyncio.Event(), False: asyncio.Event()}
        self.lost = False
        self.was_reset = False
        self._task = asyncio.current_task()
        self.release()

    def hold(self, *directions: bool) -> None:
        """Let nothing pass in these directions."""
        for to_server in directions:
            self.passable[to_server].clear()

    def release(self) -> None:
        """Let everything pass, unless the line is lost."""
        if not self.lost:
            for passable in self.passable.values():
                passable.set()

    def cut(self) -> None:
        """Reset both ends and be done."""
        self.reset()
        assert self._task is not None, "made by its task"
        self._task.cancel()

    def reset(self) -> None:
        """Reset both ends. What has passed is in the kernel's hands and arrives."""
        self.was_reset = True
        _reset(self.client)
        _reset(self.server)


def _reset(end: socket.socket) -> None:
    if end.fileno() >= 0:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        end.close()
