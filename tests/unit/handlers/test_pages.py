"""The page and its files: what is served, how, and what isn't."""

import re
from collections.abc import Awaitable, Callable, Mapping
from html.parser import HTMLParser
from importlib.resources.abc import Traversable
from posixpath import join, normpath

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient

from handlers.pages import (
    CLIENT_FILES,
    CONTENT_SECURITY_POLICY,
    PAGE,
    STATIC_FILES,
    client_folder,
    load_files,
    page_folder,
    setup_pages,
)

Client = TestClient[web.Request, web.Application]
AioHttpClient = Callable[[web.Application], Awaitable[Client]]

SERVED = {f"static/{name}": (page_folder(), name) for name in STATIC_FILES} | {
    f"client/{name}": (client_folder(), name) for name in CLIENT_FILES
}
"""Where each address' file is."""


@pytest.fixture
def app() -> web.Application:
    app = web.Application()
    setup_pages(app)
    return app


@pytest.fixture
async def client(app: web.Application, aiohttp_client: AioHttpClient) -> Client:
    return await aiohttp_client(app)


async def test_the_page_is_served_at_the_root_with_the_strict_policy(client: Client) -> None:
    async with client.get("/") as response:
        body = await response.text()
    assert response.status == 200
    assert response.headers["Content-Type"] == "text/html; charset=utf-8"
    assert response.headers["Content-Security-Policy"] == CONTENT_SECURITY_POLICY
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["X-Frame-Options"] == "DENY"
    assert response.headers["Referrer-Policy"] == "no-referrer"
    assert response.headers["Cache-Control"] == "no-cache"
    assert body.startswith("<!doctype html>")


@pytest.mark.parametrize("address", SERVED)
async def test_every_listed_file_is_served_with_its_type(client: Client, address: str) -> None:
    folder, name = SERVED[address]
    async with client.get(f"/{address}") as response:
        body = await response.read()
    assert response.status == 200
    assert response.headers["Content-Type"] == {**STATIC_FILES, **CLIENT_FILES}[name]
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert body == (folder / name).read_bytes()


async def test_a_browser_that_has_the_version_gets_304_without_a_body(client: Client) -> None:
    async with client.get("/static/main.js") as response:
        etag = response.headers["ETag"]
    for held in (etag, f"W/{etag}", f'"other", {etag}', "*"):
        async with client.get("/static/main.js", headers={"If-None-Match": held}) as response:
            assert response.status == 304
            assert await response.read() == b""
            assert response.headers["ETag"] == etag
            assert response.headers["Cache-Control"] == "no-cache"


async def test_a_browser_that_has_another_version_gets_the_file(client: Client) -> None:
    async with client.get("/static/main.js", headers={"If-None-Match": '"other"'}) as response:
        assert response.status == 200


@pytest.mark.parametrize("folder", ["static", "client"])
@pytest.mark.parametrize(
    "name",
    [
        "missing.js",
        "use-gateway.js",
        "pages.py",
        "..%2Fpages.py",
        "%2e%2e%2fpages.py",
        "main.js%00",
        "static%2Fmain.js",
    ],
)
async def test_nothing_that_is_not_listed_is_served(client: Client, folder: str, name: str) -> None:
    async with client.get(f"/{folder}/{name}") as response:
        assert response.status in {400, 404}


async def test_a_head_request_gets_the_headers_only(client: Client) -> None:
    async with client.head("/") as response:
        assert response.status == 200
        assert int(response.headers["Content-Length"]) > 0
        assert await response.read() == b""


async def test_only_reading_is_allowed(client: Client) -> None:
    async with client.post("/") as response:
        assert response.status == 405


@pytest.mark.parametrize(
    ("folder", "listed", "for_others"),
    [(page_folder(), STATIC_FILES, set()), (client_folder(), CLIENT_FILES, {"use-gateway.js"})],
)
def test_every_file_in_a_folder_is_listed(
    folder: Traversable, listed: Mapping[str, str], for_others: set[str]
) -> None:
    """A module that is imported but not listed works nowhere; one that isn't used isn't served."""
    assert {file.name for file in folder.iterdir()} - for_others == set(listed)


class _References(HTMLParser):
    """Collects what the page would load, and whatever its policy forbids."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.forbidden: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "style" or name.startswith("on"):
                self.forbidden.append(f"{tag} {name}")
            if name in {"src", "href"} and value is not None and not value.startswith("#"):
                self.loaded.append(value)
        if tag == "style" or (tag == "script" and "src" not in dict(attrs)):
            self.forbidden.append(tag)


def test_the_page_loads_only_what_this_server_has_and_the_policy_allows() -> None:
    references = _References()
    references.feed((page_folder() / PAGE).read_text())
    assert references.forbidden == []
    assert references.loaded
    for reference in references.loaded:
        assert reference == "favicon.svg" or reference in SERVED


def test_modules_import_only_what_is_served_where_they_look_for_it() -> None:
    for address, (folder, name) in SERVED.items():
        for imported in re.findall(r'from "(.+?)";', (folder / name).read_text()):
            assert normpath(join(address, "..", imported)) in SERVED, f"{address}: {imported}"


def test_every_module_is_asked_for_before_it_is_found_in_another() -> None:
    """One round trip for all of them, not one for each level of imports."""
    modules = {address for address in SERVED if address.endswith(".js")}
    references = _References()
    references.feed((page_folder() / PAGE).read_text())
    assert modules <= set(references.loaded)


def test_a_missing_file_is_noticed_at_the_start() -> None:
    with pytest.raises(FileNotFoundError):
        load_files(page_folder(), {"missing.js": "text/javascript"})
