"""Is it alive, is it ready, which version is it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from aiohttp import web

LAG_MAX: Final = 1.0  # seconds; a loop that is later than this serves nobody well
PING_TIMEOUT: Final = 2.0


class Pingable(Protocol):
    """The database, as far as health goes."""

    async def ping(self, timeout: float = 2.0) -> bool:
        """Whether it answers in time."""


@dataclass(frozen=True, slots=True)
class Health:
    """What is looked at. `lag` is by how many seconds the loop ran its last timer late."""

    database: Pingable
    lag: Callable[[], float]
    stopping: Callable[[], bool]
    version: str


def setup_health(app: web.Application, health: Health) -> None:
    """Add `/api/health`, `/api/ready` and `/api/version`, and `/health` as others call it."""

    async def live(request: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def ready(request: web.Request) -> web.Response:
        lag = health.lag()
        checks = {
            "database": "ok" if await health.database.ping(PING_TIMEOUT) else "unreachable",
            "loop": "ok" if lag <= LAG_MAX else "lagging",
            "process": "stopping" if health.stopping() else "ok",
        }
        good = all(state == "ok" for state in checks.values())
        return web.json_response(
            {
                "status": "ok" if good else "unavailable",
                "checks": checks,
                "loop_lag_ms": round(lag * 1000, 1),
            },
            status=200 if good else 503,
        )

    async def version(request: web.Request) -> web.Response:
        return web.json_response({"version": health.version})

    app.router.add_get("/api/health", live)
    app.router.add_get("/health", live)
    app.router.add_get("/api/ready", ready)
    app.router.add_get("/api/version", version)
