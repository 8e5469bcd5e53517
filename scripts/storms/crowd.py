"""The crowd's process: thousands of clients in one uvloop, told what to do line by line.

Run as `python -m scripts.storms.crowd GROUND`, GROUND being the JSON of a `messages.Ground`.
Requests come on standard input, answers go to standard output, and the process ends with its input.
"""

import asyncio
import dataclasses
import gc
import resource
import sys
import time
from collections.abc import Callable, Iterator
from typing import assert_never

import jwt
import msgspec
import uvloop

from gateway.protocol.client_policy import DEFAULT_BACKOFF, SessionPolicy
from scripts.benchmarks import wire
from scripts.benchmarks.messages import Failed
from scripts.storms.audit import audit
from scripts.storms.member import SESSION_USER, STOCK_USER, Member, Room
from scripts.storms.messages import (
    Answer,
    Audit,
    AwaitReturn,
    Cut,
    Disperse,
    Done,
    Gather,
    Gathered,
    Ground,
    Mark,
    Publish,
    Request,
    Returned,
    Settle,
)
from scripts.storms.visitors import Grounds, Return, SessionVisitor, StockVisitor, Visitor

_TOKEN_LIFETIME = 3600
_LOOK = 0.02
_PUBLISH_STEP = 0.02
_STUCK_TOLD = 10


class CrowdFailed(Exception):
    """Something did not happen in time."""


class Crowd:
    """Carries out requests, one after the other; clients and publishers go on meanwhile."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self._rooms: list[Room] = []
        self._visitors: list[Visitor] = []
        self._grounds = Grounds(ground.port, wire.upgrade_request(ground.port), seed=0)
        self._publishing: asyncio.Task[None] | None = None
        self._marked_at = time.monotonic()
        self._cpu_at_mark = time.process_time()

    async def answer(self, request: Request) -> Answer:
        """The answer to a request. Raises when it couldn't be carried out."""
        match request:
            case Gather():
                return await self._gather(request)
            case Publish():
                self._stop_publishing()
                self._publishing = asyncio.create_task(self._publish(request))
            case Mark():
                self._mark()
            case Cut():
                for visitor in self._visitors:
                    visitor.cut()
            case AwaitReturn():
                await self._wait(request.timeout, lambda: not self._grounds.away)
                return self._returned()
            case Settle():
                self._stop_publishing()
                await self._wait(request.timeout, self._is_settled)
            case Audit():
                members = [visitor.member for visitor in self._visitors]
                return audit(self._rooms, members, request.logs)
            case Disperse():
                await self._disperse()
            case _:
                assert_never(request)
        return Done()

    def check(self) -> None:
        """Raises what went wrong with anybody so far."""
        if self._grounds.failure is not None:
            raise self._grounds.failure

    async def _gather(self, request: Gather) -> Gathered:
        grounds = self._grounds
        grounds.random.seed(request.seed)
        self._rooms = [Room(name) for name in request.rooms]
        self._visitors = list(self._make(request))
        waiting = iter(self._visitors)

        def start_next() -> None:
            visitor = next(waiting, None)
            if visitor is not None:
                visitor.start()

        grounds.away.update(self._visitors)
        grounds.call_when_returned(start_next)
        began = time.monotonic()
        for _ in range(request.in_flight):
            start_next()
        try:
            if not await self._wait(request.timeout, lambda: not grounds.away):
                raise CrowdFailed(f"{len(grounds.away)} never got in: {self._stuck()}")
        finally:
            grounds.call_when_returned(None)
        return Gathered(time.monotonic() - began)

    def _make(self, request: Gather) -> Iterator[Visitor]:
        grounds = self._grounds
        backoff = dataclasses.replace(DEFAULT_BACKOFF, max=request.backoff_max)
        policy = SessionPolicy(grounds.random.random, backoff)
        expires_at = int(time.time()) + _TOKEN_LIFETIME
        for number in range(request.clients):
            with_session = number < request.sessions
            user = f"{SESSION_USER if with_session else STOCK_USER}{number}"
            claims = {"sub": user, "exp": expires_at}
            token = jwt.encode(claims, self._ground.secret, algorithm="HS256")
            room = self._rooms[number % len(self._rooms)]
            watches = number < len(self._rooms)
            member = Member(number, token, room, grounds.latencies, watches=watches)
            address = self._address(number) if self._ground.addresses else None
            if with_session:
                yield SessionVisitor(grounds, member, address, policy)
            else:
                yield StockVisitor(grounds, member, address, request.backoff_max)

    @staticmethod
    def _address(number: int) -> str:
        """One of the sixteen million that are all this machine."""
        return f"127.{1 + (number >> 16) % 254}.{(number >> 8) % 256}.{number % 256}"

    # --- publishing -------------------------------------------------------------------------------

    async def _publish(self, request: Publish) -> None:
        """Publish at random moments (a Poisson process), whether or not anybody is connected."""
        rng = self._grounds.random
        due = time.monotonic()
        while request.per_second:
            now = time.monotonic()
            while due <= now:
                due += rng.expovariate(request.per_second)
                rng.choice(self._visitors).publish(request.payload_bytes)
            await asyncio.sleep(_PUBLISH_STEP)

    def _stop_publishing(self) -> None:
        if self._publishing is not None:
            self._publishing.cancel()
            self._publishing = None

    def _is_settled(self) -> bool:
        members = [visitor.member for visitor in self._visitors]
        return not any(one.outstanding or one.offset < one.room.top for one in members)

    # --- the storm --------------------------------------------------------------------------------

    def _mark(self) -> None:
        self._grounds.begin_notes()
        for visitor in self._visitors:
            visitor.await_return()
            visitor.member.joins = visitor.member.leaves = 0
        self._marked_at = time.monotonic()
        self._cpu_at_mark = time.process_time()

    def _returned(self) -> Returned:
        grounds = self._grounds
        here = [visitor for visitor in self._visitors if visitor not in grounds.away]
        members = [visitor.member for visitor in self._visitors]
        latencies = sorted(grounds.latencies)
        elapsed = time.monotonic() - self._marked_at
        return Returned(
            missing=len(grounds.away),
            stuck=self._stuck(),
            resumed=sum(visitor.how is Return.RESUMED for visitor in here),
            recovered=sum(visitor.how is Return.RECOVERED for visitor in here),
            unrecovered=sum(visitor.how is Return.UNRECOVERED for visitor in here),
            dials=grounds.dials,
            refusals=grounds.refusals,
            returns=grounds.returns,
            slots_told=grounds.slots_told,
            slots_lateness=grounds.slots_lateness,
            joins=sum(member.joins for member in members),
            leaves=sum(member.leaves for member in members),
            acknowledged_p50=_quantile(latencies, 0.5),
            acknowledged_p99=_quantile(latencies, 0.99),
            load_busy=(time.process_time() - self._cpu_at_mark) / elapsed,
        )

    def _stuck(self) -> list[str]:
        return [visitor.describe() for visitor in list(self._grounds.away)[:_STUCK_TOLD]]

    async def _disperse(self) -> None:
        self._stop_publishing()
        for visitor in self._visitors:
            visitor.leave()
        await asyncio.sleep(0)
        self._visitors = []
        self._grounds.away.clear()

    async def _wait(self, seconds: float, condition: Callable[[], bool]) -> bool:
        """Look until the condition holds or the time is over; says which it was."""
        give_up_at = time.monotonic() + seconds
        while not condition():
            self.check()
            if time.monotonic() > give_up_at:
                return False
            await asyncio.sleep(_LOOK)
        return True


def _quantile(ordered: list[float], share: float) -> float:
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else 0.0


async def _serve(ground: Ground) -> None:
    loop = asyncio.get_running_loop()
    requests = asyncio.StreamReader(limit=16 * 1024 * 1024)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(requests), sys.stdin)
    crowd = Crowd(ground)
    while line := await requests.readline():
        answer: Answer
        try:
            answer = await crowd.answer(msgspec.json.decode(line, type=Request))
            crowd.check()
        except Exception as error:  # whatever it was, it belongs to the harness
            answer = Failed(f"{type(error).__name__}: {error}")
        print(msgspec.json.encode(answer).decode(), flush=True)


def main() -> None:
    """Serves requests until standard input ends."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    gc.disable()  # nothing here makes cycles per message, and a collection would be a pause
    uvloop.run(_serve(msgspec.json.decode(sys.argv[1], type=Ground)))


if __name__ == "__main__":
    main()
