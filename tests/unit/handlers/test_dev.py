"""The development route that hands out tokens, and whom it refuses."""

from collections.abc import Awaitable, Callable

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient
from hypothesis import given
from hypothesis import strategies as st

from handlers.dev import USER_LENGTH_MAX, setup_dev, user_is_valid

Client = TestClient[web.Request, web.Application]
AioHttpClient = Callable[[web.Application], Awaitable[Client]]


@pytest.fixture
async def client(aiohttp_client: AioHttpClient) -> Client:
    app = web.Application()
    setup_dev(app, lambda user: f"token-of-{user}", allowed_hosts=["Dev.example"])
    return await aiohttp_client(app)


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_token_is_made_for_the_name(client: Client, method: str) -> None:
    async with client.request(method, "/dev/token", params={"user": "Zoë van Wyk"}) as response:
        assert response.status == 200
        assert await response.json() == {"token": "token-of-Zoë van Wyk"}
        assert response.headers["Cache-Control"] == "no-store"
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert "Access-Control-Allow-Origin" not in response.headers


@pytest.mark.parametrize("user", ["", " ", " ada", "ada ", "a\nb", "a\x00b", "a\u202eb", "a" * 65])
async def test_a_name_that_cannot_be_shown_is_refused_with_advice(
    client: Client, user: str
) -> None:
    async with client.post("/dev/token", params={"user": user}) as response:
        assert response.status == 400
        assert response.content_type == "application/problem+json"
        assert "Please choose another one" in (await response.json())["detail"]


async def test_a_missing_name_is_refused(client: Client) -> None:
    async with client.post("/dev/token") as response:
        assert response.status == 400


@pytest.mark.parametrize("site", ["cross-site", "same-site", "whatever"])
async def test_another_site_gets_no_token(client: Client, site: str) -> None:
    headers = {"Sec-Fetch-Site": site}
    async with client.get("/dev/token", params={"user": "ada"}, headers=headers) as response:
        assert response.status == 403
        assert "token" not in await response.json()


@pytest.mark.parametrize("site", ["same-origin", "none"])
async def test_the_page_itself_gets_one(client: Client, site: str) -> None:
    headers = {"Sec-Fetch-Site": site, "Origin": str(client.make_url("")).rstrip("/")}
    async with client.post("/dev/token", params={"user": "ada"}, headers=headers) as response:
        assert response.status == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "", "http://127.0.0.1:1"])
async def test_a_foreign_origin_gets_no_token(client: Client, origin: str) -> None:
    """For browsers that don't send Sec-Fetch-Site."""
    headers = {"Origin": origin}
    async with client.post("/dev/token", params={"user": "ada"}, headers=headers) as response:
        assert response.status == 403


@pytest.mark.parametrize("host", ["evil.example:8000", "localhost.evil.example", "[::1", "", "a b"])
async def test_a_foreign_name_for_this_machine_gets_no_token(client: Client, host: str) -> None:
    """DNS rebinding makes the attacker's page and this server one origin to the browser."""
    headers = {"Host": host, "Origin": f"http://{host}", "Sec-Fetch-Site": "same-origin"}
    async with client.post("/dev/token", params={"user": "ada"}, headers=headers) as response:
        assert response.status in {400, 403}


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1:8000",
        "192.168.1.20",
        "[::1]:8000",
        "localhost:8000",
        "x.localhost",
        "DEV.example",
    ],
)
async def test_addresses_localhost_and_allowed_names_are_trusted(client: Client, host: str) -> None:
    headers = {"Host": host, "Origin": f"http://{host}", "Sec-Fetch-Site": "same-origin"}
    async with client.post("/dev/token", params={"user": "ada"}, headers=headers) as response:
        assert response.status == 200


@given(st.text(max_size=USER_LENGTH_MAX + 2))
def test_a_valid_name_is_short_printable_and_trimmed(user: str) -> None:
    expected = 1 <= len(user) <= 64 and user.isprintable() and user.strip() == user
    assert user_is_valid(user) is expected
