"""The demonstration page: a chat room in plain ES modules, served from inside the package.

Beside its own files the page uses the JavaScript client's modules as they are published. An
installation has them in this package, where setup.cfg puts them; the source tree has them in
`clients/js/src`, once.

What is served is an explicit list. The files are read once, when the application is set up; nothing
that a request says ever becomes a path on disk. Every answer carries an ETag and is revalidated
before use (`no-cache`), so that a deploy reaches the browser at its next load and an unchanged file
costs one 304.
"""

import hashlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from types import MappingProxyType

from aiohttp import ETag, web

_Handler = Callable[[web.Request], Awaitable[web.Response]]

_HTML = "text/html; charset=utf-8"
_CSS = "text/css; charset=utf-8"
_JAVASCRIPT = "text/javascript; charset=utf-8"
_SVG = "image/svg+xml"

PAGE = "index.html"
ICON = "favicon.svg"
STATIC_FILES: Mapping[str, str] = MappingProxyType(
    {
        PAGE: _HTML,
        ICON: _SVG,
        "style.css": _CSS,
        "main.js": _JAVASCRIPT,
        "dom.js": _JAVASCRIPT,
        "identity.js": _JAVASCRIPT,
        "join.js": _JAVASCRIPT,
        "log.js": _JAVASCRIPT,
        "view.js": _JAVASCRIPT,
        "words.js": _JAVASCRIPT,
        "room.js": _JAVASCRIPT,
        "conversation.js": _JAVASCRIPT,
        "outbox.js": _JAVASCRIPT,
        "commands.js": _JAVASCRIPT,
        "errors.js": _JAVASCRIPT,
        "indicator.js": _JAVASCRIPT,
        "verdict.js": _JAVASCRIPT,
        "gateway.js": _JAVASCRIPT,
    }
)
"""Every file of the page that can be asked for, with its content type."""

CLIENT_FILES: Mapping[str, str] = MappingProxyType(
    dict.fromkeys(
        (
            "backoff.js",
            "clock.js",
            "frames.js",
            "index.js",
            "line.js",
            "place.js",
            "resumable-websocket.js",
            "session.js",
            "status.js",
        ),
        _JAVASCRIPT,
    )
)
"""The same of the JavaScript client, without what only other applications use."""

CONTENT_SECURITY_POLICY = (
    "default-src 'none'"
    "; script-src 'self'"
    "; style-src 'self'"
    "; connect-src 'self'"
    "; img-src 'self' data:"
    # Not covered by default-src.
    "; base-uri 'none'"
    "; form-action 'none'"
    "; frame-ancestors 'none'"
)

SECURITY_HEADERS: Mapping[str, str] = MappingProxyType(
    {
        "Content-Security-Policy": CONTENT_SECURITY_POLICY,
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
    }
)


@dataclass(frozen=True, slots=True)
class StaticFile:
    """One packaged file, ready to be sent."""

    body: bytes
    etag: str
    content_type: str

    def response(self, request: web.Request) -> web.Response:
        """The whole file, or 304 when the browser already has this very version."""
        headers = {**SECURITY_HEADERS, "Cache-Control": "no-cache", "ETag": f'"{self.etag}"'}
        if _matches(request.if_none_match, self.etag):
            return web.Response(status=304, headers=headers)
        headers["Content-Type"] = self.content_type
        return web.Response(body=self.body, headers=headers)


def page_folder() -> Traversable:
    """The folder with the page's own files."""
    return resources.files("handlers") / "static"


def client_folder() -> Traversable:
    """The folder with the JavaScript client's modules."""
    installed = resources.files("handlers") / "client"
    if installed.is_dir():
        return installed
    return Path(__file__).parent.parent / "clients" / "js" / "src"


def load_files(folder: Traversable, content_types: Mapping[str, str]) -> dict[str, StaticFile]:
    """Reads the files that are named with their content types.

    Raises FileNotFoundError when the installation lacks one: better at start than as a broken page.
    """
    files = {}
    for name, content_type in content_types.items():
        body = (folder / name).read_bytes()
        files[name] = StaticFile(body, hashlib.sha256(body).hexdigest()[:32], content_type)
    return files


def setup_pages(app: web.Application) -> None:
    """Adds `/`, `/favicon.svg`, `/static/{name}` and `/client/{name}` to the application."""
    page = load_files(page_folder(), STATIC_FILES)
    client = load_files(client_folder(), CLIENT_FILES)
    app.router.add_get("/", _serve(page[PAGE]))
    app.router.add_get("/favicon.svg", _serve(page[ICON]))
    app.router.add_get("/static/{name}", _serve_from(page))
    app.router.add_get("/client/{name}", _serve_from(client))


def _serve_from(files: Mapping[str, StaticFile]) -> _Handler:
    async def handler(request: web.Request) -> web.Response:
        file = files.get(request.match_info["name"])
        if file is None:
            raise web.HTTPNotFound(headers=SECURITY_HEADERS)
        return file.response(request)

    return handler


def _serve(file: StaticFile) -> _Handler:
    async def handler(request: web.Request) -> web.Response:
        return file.response(request)

    return handler


def _matches(candidates: tuple[ETag, ...] | None, etag: str) -> bool:
    # If-None-Match compares weakly (RFC 9110, 13.1.2): a proxy that compresses weakens our tag.
    return any(candidate.value in ("*", etag) for candidate in candidates or ())
