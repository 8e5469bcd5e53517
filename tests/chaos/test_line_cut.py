"""The line between the gateway and PostgreSQL breaks at every place, in every way, under load."""

import random
from collections.abc import AsyncIterator

import pytest

from tests.chaos.conftest import PUBLISH_TIMEOUT, Start
from tests.support.load import Audience, Load, check_log
from tests.support.proxy import COMMITTED, STATEMENT_COMMITTED, Proxy
from tests.support.server import ServerProcess

CHANNELS = [f"chat:{number}" for number in range(4)]
CUTS = 40
WAIT_MAX = PUBLISH_TIMEOUT * 1.2 + 1.0

both = pytest.mark.parametrize("keyed", [False, True], ids=["tried once", "tried with keys"])


@pytest.fixture
async def line(database_url: str) -> AsyncIterator[Proxy]:
    async with Proxy.before(database_url) as line:
        yield line


@pytest.fixture
async def server(start: Start, database_url: str, line: Proxy) -> ServerProcess:
    """A gateway whose line to its database is ours."""
    return await start(line.url(database_url))


@pytest.fixture
async def unhurried(start: Start, database_url: str, line: Proxy) -> ServerProcess:
    """The same, and its publishers have time for another try, however busy the machine is."""
    return await start(line.url(database_url), publish_timeout="15")


@both
async def test_cuts_at_any_byte_in_either_direction(
    unhurried: ServerProcess, line: Proxy, database_url: str, keyed: bool
) -> None:
    rng = random.Random(f"cut {keyed}")
    async with (
        Audience(unhurried.ws_url, CHANNELS) as audience,
        Load(unhurried.ws_url, CHANNELS, keyed=keyed) as load,
    ):
        await load.more(100)
        for _ in range(CUTS):
            # A batch is some kilobytes: any place of it, and of those that follow it.
            way = rng.choice(["to_server", "to_client"])
            await line.cut_after(
                **{way: rng.randint(1, 20_000 if way == "to_server" else 2000)}
            ).wait()
            await load.more(rng.randint(1, 60))
        await load.stop()
        await check_log(database_url, load, audience=audience)

    assert not load.refused
    assert not load.in_doubt


@both
async def test_commits_whose_answer_is_lost(
    unhurried: ServerProcess, line: Proxy, database_url: str, keyed: bool
) -> None:
    """Exactly between the commit and its answer, again and again."""
    answer = COMMITTED if keyed else STATEMENT_COMMITTED
    async with (
        Audience(unhurried.ws_url, CHANNELS) as audience,
        Load(unhurried.ws_url, CHANNELS, keyed=keyed) as load,
    ):
        await load.more(100)
        for _ in range(CUTS):
            await line.cut_before_answer(answer).wait()
            await load.more(1)
        await load.stop()
        await check_log(database_url, load, audience=audience)
    assert not load.refused


@both
async def test_lines_that_die_without_a_word(
    server: ServerProcess, line: Proxy, database_url: str, keyed: bool
) -> None:
    """Held for a while, lost for ever, or held until everybody has given up."""
    async with (
        Audience(server.ws_url, CHANNELS) as audience,
        Load(server.ws_url, CHANNELS, keyed=keyed) as load,
    ):
        for break_line, until_refused in (
            (line.hold, False),
            (line.lose, True),
            (line.hold, True),
            (line.hold_present, True),
            (line.hold_answers, True),
        ):
            await load.more(300)
            load.slowest = 0.0
            break_line()
            if until_refused:
                await load.more_refused(1)
            line.release()
            # A transaction that was cut off keeps its locks for three seconds.
            await load.more(100, deadline=10)
            assert load.slowest < WAIT_MAX
        await load.stop()
        await check_log(database_url, load, audience=audience)
