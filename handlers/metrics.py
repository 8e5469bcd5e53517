"""`/metrics` for Prometheus."""

from collections.abc import Awaitable, Callable

from aiohttp import web

from metrics.exposition import CONTENT_TYPE, exposition


def setup_metrics(app: web.Application, refresh: Callable[[], Awaitable[None]]) -> None:
    """Add `/metrics`; `refresh` brings gauges up to date that are only looked at when asked."""

    async def metrics(request: web.Request) -> web.Response:
        await refresh()
        return web.Response(body=exposition(), headers={"Content-Type": CONTENT_TYPE})

    app.router.add_get("/metrics", metrics)
