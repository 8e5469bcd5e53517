"""What a gateway says of itself, by HTTP: its metrics, and what its server API knows."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from scripts.storms.messages import RoomLog

_TIMEOUT = 10.0
_PAGE = 10_000
_PREFIX = "capegate_"
_LAG_BUCKET = "loop_lag_seconds_bucket"


class Door(NamedTuple):
    """Where a gateway listens, and the key of its server API."""

    port: int
    api_key: str


class Samples:
    """One look at `/metrics`: values by series, as they are written there without the prefix."""

    def __init__(self, text: str = "") -> None:
        self._values: dict[str, float] = {}
        for line in text.splitlines():
            if line.startswith(_PREFIX):
                series, _, value = line.removeprefix(_PREFIX).rpartition(" ")
                self._values[series] = float(value)

    def value(self, name: str, **labels: str) -> float:
        """The value of a series with at most one label; 0 when nothing was counted yet."""
        series = name + "".join(f'{{{key}="{text}"}}' for key, text in labels.items())
        return self._values.get(series, 0.0)

    def loop_lag(self) -> dict[float, float]:
        """How often the event loop was at most so many seconds late."""
        head = f'{_LAG_BUCKET}{{le="'
        return {
            float(series[len(head) : -2].replace("+Inf", "inf")): count
            for series, count in self._values.items()
            if series.startswith(head)
        }


def bucket_quantile(buckets: Mapping[float, float], share: float) -> float:
    """A quantile of a cumulative histogram, linear inside its bucket, as Prometheus computes it."""
    limits = sorted(buckets)
    rank = share * buckets[limits[-1]] if limits else 0.0
    lower, below = 0.0, 0.0
    for limit in limits:
        count = buckets[limit]
        if count >= rank and count > below:
            return (
                lower
                if limit == float("inf")
                else lower + (limit - lower) * ((rank - below) / (count - below))
            )
        lower, below = limit, count
    return 0.0


def added(
    first: Mapping[float, float], *others: tuple[Mapping[float, float], int]
) -> dict[float, float]:
    """A histogram with others added to it, or taken from it (-1)."""
    total = dict(first)
    for histogram, sign in others:
        for limit, count in histogram.items():
            total[limit] = total.get(limit, 0.0) + sign * count
    return total


async def metrics(port: int) -> Samples:
    """Everything that is counted now. Raises OSError when nobody listens."""
    return Samples((await _fetch(port, "GET", "/metrics")).decode())


async def log_of(door: Door, room: str) -> RoomLog:
    """The ids of all messages that the log has of a room."""
    ids: list[str] = []
    since: dict[str, Any] = {}
    while True:
        result = await _call(door, "history", channel=room, limit=_PAGE, **since)
        publications = result["publications"]
        ids += (publication["data"]["id"] for publication in publications)
        if not publications or publications[-1]["offset"] >= result["offset"]:
            return RoomLog(room, ids)
        offset = publications[-1]["offset"]
        since = {"since": {"offset": offset, "epoch": result["epoch"]}}


async def presence_in(door: Door, rooms: Sequence[str]) -> dict[str, str]:
    """The users who are in any of the rooms, by client id."""
    users: dict[str, str] = {}
    for room in rooms:
        result = await _call(door, "presence", channel=room)
        users |= {client: info["user"] for client, info in result["presence"].items()}
    return users


async def _call(door: Door, method: str, **request: Any) -> Any:
    body = msgspec.json.encode(request)
    head = f"X-API-Key: {door.api_key}\r\nContent-Type: application/json\r\n"
    answer = msgspec.json.decode(
        await _fetch(door.port, "POST", f"/api/{method}", head=head, body=body)
    )
    if "result" not in answer:
        raise OSError(f"the server API answered {answer}")
    return answer["result"]


async def _fetch(port: int, method: str, path: str, *, head: str = "", body: bytes = b"") -> bytes:
    """The body of an answer with status 200. Raises OSError, TimeoutError being one."""
    async with asyncio.timeout(_TIMEOUT):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(
                f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
                f"Content-Length: {len(body)}\r\n{head}\r\n".encode()
                + body
            )
            answer = await reader.read()
        finally:
            writer.close()
    status, _, content = answer.partition(b"\r\n\r\n")
    if b" 200 " not in status[:16]:
        raise OSError(f"{path} was answered by {answer[:200]!r}")
    return content
