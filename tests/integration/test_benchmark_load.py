"""The load process against the baseline server: what is counted must be what was delivered."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from scripts.benchmarks.children import BenchmarkFailed, LoadProcess, child, printed_line
from scripts.benchmarks.messages import Gather, Pace, Rounds, Target

CHANNEL = "live:test"
SUBSCRIBERS = 20
ITEMS = [b'"one"', b'"two"']


@dataclass(frozen=True, slots=True)
class Setup:
    """A baseline server and a load process for it."""

    server_pid: int
    load: LoadProcess


@pytest.fixture
async def setup() -> AsyncIterator[Setup]:
    arguments = ["-m", "scripts.benchmarks.bare"]
    async with child(arguments, stdin=asyncio.subprocess.PIPE) as server:
        target = Target(int(await printed_line(server)), server.pid)
        async with LoadProcess.start(target, core=None) as load:
            yield Setup(server.pid, load)


@pytest.mark.parametrize("by_send", [False, True])
async def test_every_subscriber_receives_every_round(setup: Setup, by_send: bool) -> None:
    await setup.load.gather(Gather(SUBSCRIBERS, [CHANNEL], in_flight=5))

    answer = await setup.load.rounds(Rounds(7, CHANNEL, ITEMS, by_send=by_send))

    assert answer.cost.units == SUBSCRIBERS * 7 * len(ITEMS)
    assert answer.cost.server_cpu > 0
    assert answer.received.count(b'"pub":') == len(ITEMS)


async def test_dismissed_subscribers_receive_nothing_more(setup: Setup) -> None:
    await setup.load.gather(Gather(SUBSCRIBERS, [CHANNEL], in_flight=5))
    await setup.load.dismiss()
    await setup.load.gather(Gather(3, [CHANNEL], in_flight=5))

    answer = await setup.load.rounds(Rounds(1, CHANNEL, ITEMS))

    assert answer.cost.units == 3 * len(ITEMS)


async def test_paced_publications_reach_the_members_of_their_channel(setup: Setup) -> None:
    channels = [f"{CHANNEL}-{number}" for number in range(4)]
    await setup.load.gather(Gather(SUBSCRIBERS, channels, in_flight=5, timed=True))

    answer = await setup.load.pace(Pace(channels, 400, 128, seconds=0.2, warmup=0.05, seed=1))

    members = SUBSCRIBERS // len(channels)
    assert answer.latency.count == answer.lateness.count * members
    assert 0 < answer.latency.p50 <= answer.latency.p99 <= answer.latency.longest


async def test_a_server_that_dies_fails_the_run(setup: Setup) -> None:
    await setup.load.gather(Gather(SUBSCRIBERS, [CHANNEL], in_flight=5))
    os.kill(setup.server_pid, signal.SIGKILL)

    with pytest.raises(BenchmarkFailed):
        await setup.load.rounds(Rounds(1, CHANNEL, ITEMS))


async def test_a_channel_of_nobody_loses_its_deliveries_and_says_so(setup: Setup) -> None:
    await setup.load.gather(Gather(4, [CHANNEL, "live:other"], in_flight=2))

    with pytest.raises(BenchmarkFailed, match="deliveries are missing"):
        await setup.load.rounds(Rounds(1, CHANNEL, ITEMS, patience=0.1))
