"""A hub that reads a log in memory."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from gateway import catchup as catchup_module
from gateway import hub as hub_module
from gateway.hub import Hub
from tests.support.logbook import Logbook


@pytest.fixture
def log() -> Logbook:
    return Logbook()


@pytest.fixture
async def hub(log: Logbook, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Hub]:
    monkeypatch.setattr(hub_module, "LOG_RETRY_DELAY", 0.0)
    monkeypatch.setattr(catchup_module, "LOG_RETRY_DELAY", 0.0)
    hub = Hub(asyncio.get_running_loop())
    hub.use(log.streams)
    yield hub
    await hub.stop()
