"""`/dev/token`: a connection token for whoever asks, for development only.

The composition root adds this route only when development mode is on. Even then it answers nobody
but the page of this very server: a token lets its bearer speak as any user, and a developer's
browser is full of other people's pages. Three checks, because no single one covers every browser
and every attack:

- `Sec-Fetch-Site`, where the browser sends it, must be `same-origin` or `none` (typed by hand);
- `Origin`, where the browser sends it, must name the host that was asked;
- that host must be an address, `localhost` or explicitly allowed, so that a foreign name that was
  pointed at this machine (DNS rebinding) doesn't count as "same origin".

Programs that send neither header (curl, scripts) are answered: they aren't somebody's browser.
"""

import ipaddress
from collections.abc import Callable, Collection
from urllib.parse import urlsplit

from aiohttp import web

USER_LENGTH_MAX = 64
"""In characters. Long enough for a name or an e-mail address, short enough for every list."""

_HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def setup_dev(
    app: web.Application, mint: Callable[[str], str], *, allowed_hosts: Collection[str] = ()
) -> None:
    """Adds `GET` and `POST /dev/token?user=<name>`, answering `{"token": "…"}`.

    `mint` makes a connection token for a user name that was found valid. `allowed_hosts` are host
    names, without port, that may be used beside addresses and `localhost`. Refusals are problem
    documents (RFC 9457) whose `detail` says what to do.
    """
    hosts = frozenset(host.lower() for host in allowed_hosts)

    async def token(request: web.Request) -> web.Response:
        refusal = _foreign(request, hosts)
        if refusal is not None:
            return _problem(403, "Not from this page", refusal)
        user = request.query.get("user", "")
        if not user_is_valid(user):
            return _problem(
                400,
                "Not a usable name",
                f"A name has 1 to {USER_LENGTH_MAX} printable characters and neither starts nor"
                " ends with a space. Please choose another one.",
            )
        return web.json_response({"token": mint(user)}, headers=_HEADERS)

    app.router.add_get("/dev/token", token, allow_head=False)
    app.router.add_post("/dev/token", token)


def user_is_valid(user: str) -> bool:
    """Whether the name has 1 to 64 printable characters, without surrounding spaces."""
    return 0 < len(user) <= USER_LENGTH_MAX and user.isprintable() and user == user.strip()


def _foreign(request: web.Request, allowed_hosts: Collection[str]) -> str | None:
    """Why the request isn't from a page of this server, or None when it is."""
    site = request.headers.get("Sec-Fetch-Site")
    if site not in (None, "same-origin", "none"):
        return "Another web site asked for this token; only the page of this server may."
    origin = request.headers.get("Origin")
    if origin is not None and origin.lower().partition("://")[2] != request.host.lower():
        return f"The origin of the request isn't this server ({request.host})."
    if not _host_is_trusted(request.host, allowed_hosts):
        return (
            "Development tokens are given out only under an address or localhost."
            " Open the page as http://127.0.0.1 or http://localhost with the server's port."
        )
    return None


def _host_is_trusted(host: str, allowed_hosts: Collection[str]) -> bool:
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    if name == "localhost" or name.endswith(".localhost") or name in allowed_hosts:
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _problem(status: int, title: str, detail: str) -> web.Response:
    return web.json_response(
        {"title": title, "status": status, "detail": detail},
        status=status,
        content_type="application/problem+json",
        headers=_HEADERS,
    )
