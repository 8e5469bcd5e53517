"""`kill -9` of the gateway under load: what was acknowledged is there, once, for everybody."""

import asyncio
import random

import pytest

from tests.chaos.conftest import Start
from tests.support.load import Audience, Load, check_log

ROUNDS = 4
CHANNELS = [f"chat:{number}" for number in range(5)]


@pytest.mark.parametrize("keyed", [False, True], ids=["tried once", "tried with keys"])
async def test_nothing_acknowledged_is_lost_and_nothing_is_doubled(
    database_url: str, start: Start, keyed: bool
) -> None:
    rng = random.Random(f"kill {keyed}")
    server = await start(database_url)
    async with (
        Audience(server.ws_url, CHANNELS) as audience,
        Load(server.ws_url, CHANNELS, keyed=keyed) as load,
    ):
        for _ in range(ROUNDS):
            await load.more(rng.randint(50, 1500))
            await asyncio.to_thread(server.kill)
            await asyncio.to_thread(server.start)
        await load.more(100)
        await load.stop()
        count = await check_log(database_url, load, audience=audience)

    assert count >= len(load.acknowledged)
    # The moments were such that something was under way.
    assert keyed or load.in_doubt
