"""What a gateway counts, read as Prometheus reads it."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from tests.support.server import API_KEY, ServerProcess
from tests.support.wire import DEADLINE, Response, fetch

_POLL = 0.01


class Samples:
    """One scrape."""

    def __init__(self, text: str) -> None:
        self._samples = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def value(self, name: str, labels: Mapping[str, str] | None = None) -> float:
        """The value of a series, without the prefix of its name; 0 when it wasn't counted yet."""
        return self._samples.get((f"capegate_{name}", frozenset((labels or {}).items())), 0.0)


async def scrape(server: ServerProcess) -> Samples:
    """Everything that is counted now."""
    response = await fetch(server.port, "/metrics")
    assert response.status == 200, response
    return Samples(response.body.decode())


async def counted(
    server: ServerProcess, name: str, labels: Mapping[str, str] | None = None
) -> float:
    """One series now."""
    return (await scrape(server)).value(name, labels)


async def wait_for(
    server: ServerProcess, name: str, value: float, labels: Mapping[str, str] | None = None
) -> None:
    """Wait until a counter has reached `value`."""
    await _poll(server, name, labels, lambda now: now >= value)


async def wait_for_level(server: ServerProcess, name: str, value: float) -> None:
    """Wait until a gauge stands at `value`."""
    await _poll(server, name, None, lambda now: now == value)


@asynccontextmanager
async def counting(
    server: ServerProcess, name: str, labels: Mapping[str, str]
) -> AsyncIterator[None]:
    """What happens inside is counted in this series, before or soon after the end of the block."""
    before = await counted(server, name, labels)
    yield
    await wait_for(server, name, before + 1, labels)


async def _poll(
    server: ServerProcess,
    name: str,
    labels: Mapping[str, str] | None,
    reached: Callable[[float], bool],
) -> None:
    now = 0.0
    try:
        async with asyncio.timeout(DEADLINE):
            while not reached(now := await counted(server, name, labels)):  # noqa: ASYNC110
                await asyncio.sleep(_POLL)
    except TimeoutError:
        raise AssertionError(f"{name} {labels or ''} stayed at {now}") from None


async def call_api(server: ServerProcess, method: str, **request: Any) -> Response:
    """A call of the server API with its key."""
    return await fetch(
        server.port,
        f"/api/{method}",
        method="POST",
        headers={"X-API-Key": API_KEY, "Content-Type": "application/json"},
        body=json.dumps(request).encode(),
    )


async def api(server: ServerProcess, method: str, **request: Any) -> Any:
    """The result of a call of the server API, which must succeed."""
    response = await call_api(server, method, **request)
    assert response.status == 200, response
    answer = response.json()
    assert "error" not in answer, answer
    return answer["result"] if method != "batch" else answer["replies"]
