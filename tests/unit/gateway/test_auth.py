"""Tokens: every algorithm verifies, and every way in which one can be wrong is refused."""

import asyncio
import base64
import hashlib
import hmac
import json
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import jwt
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from gateway.auth import CLOCK_SKEW, HEADERS_MAX, MintError, TokenVerifier, mint
from gateway.key_set import COOLDOWN
from gateway.protocol.claims import KeyMissing, TokenError, TokenExpired, TokenInvalid
from gateway.settings import Settings, load
from tests.support import tokens
from tests.support.tokens import OTHER_SECRET, SECRET, sign

NOW = 1_800_000_000.0
HOUR = NOW + 3600

PEM_SETTING = {
    **dict.fromkeys(tokens.RSA, "token_rsa_public_key"),
    **dict.fromkeys(tokens.ECDSA, "token_ecdsa_public_key"),
    "EdDSA": "token_eddsa_public_key",
}


def configure(**values: object) -> Settings:
    return load(None, {}, values)


def verifier(**values: object) -> TokenVerifier:
    return TokenVerifier(configure(**values))


def hmac_verifier(**values: object) -> TokenVerifier:
    return verifier(token_hmac_secret=SECRET, **values)


def encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def assemble(header: object, payload: bytes, secret: str = SECRET) -> str:
    """A token with any header and payload, correctly signed with HS256."""
    head = header if isinstance(header, bytes) else json.dumps(header).encode()
    text = f"{encode(head)}.{encode(payload)}"
    return f"{text}.{encode(hmac.digest(secret.encode(), text.encode(), hashlib.sha256))}"


def refuse(subject: TokenVerifier, token: str, reason: str = "it") -> None:
    with pytest.raises(TokenInvalid, match=reason):
        subject.verify_connect(token, NOW)


# Algorithms


@pytest.mark.parametrize("algorithm", tokens.HMAC)
def test_hmac_tokens_verify_with_the_secret(algorithm: str) -> None:
    token = sign({"sub": "alice", "exp": HOUR}, algorithm)

    assert hmac_verifier().verify_connect(token, NOW).user == "alice"
    refuse(verifier(token_hmac_secret=OTHER_SECRET), token, "signature doesn't verify")


@pytest.mark.parametrize("algorithm", tokens.ASYMMETRIC)
def test_asymmetric_tokens_verify_with_the_public_key(algorithm: str) -> None:
    subject = verifier(**{PEM_SETTING[algorithm]: tokens.public_pem(algorithm)})
    claims = {"sub": "alice", "exp": HOUR, "channel": "$room"}

    assert subject.verify_subscribe(sign(claims, algorithm), NOW).channel == "$room"
    refuse(subject, sign({"sub": "alice"}, algorithm, number=1), "signature doesn't verify")


def test_every_kind_of_key_can_be_configured_beside_the_others() -> None:
    subject = hmac_verifier(
        token_rsa_public_key=tokens.public_pem("RS256"),
        token_ecdsa_public_key=tokens.public_pem("ES384"),
        token_eddsa_public_key=tokens.public_pem("EdDSA"),
    )

    for algorithm in (*tokens.HMAC, *tokens.RSA, "ES384", "EdDSA"):
        assert subject.verify_connect(sign({"sub": "alice"}, algorithm), NOW).user == "alice"
    refuse(subject, sign({"sub": "alice"}, "ES256"), "no key of its algorithm")


def test_an_algorithm_without_a_key_is_refused() -> None:
    for algorithm in tokens.ASYMMETRIC:
        refuse(hmac_verifier(), sign({}, algorithm), "no key of its algorithm is configured")


# Forgeries


@pytest.mark.parametrize(
    "algorithm", ["none", "None", "NONE", "", None, "HS1", "PS256", 7, ["HS256"]]
)
def test_an_algorithm_that_is_not_on_the_list_is_refused(algorithm: object) -> None:
    header = {"typ": "JWT", "alg": algorithm}

    refuse(hmac_verifier(), assemble(header, b'{"sub":"mallory"}'), "algorithm isn't accepted")
    unsigned = assemble(header, b'{"sub":"mallory"}').rpartition(".")[0] + "."
    refuse(hmac_verifier(), unsigned, "algorithm isn't accepted")


@pytest.mark.parametrize("algorithm", tokens.ASYMMETRIC)
def test_a_public_key_is_no_hmac_secret(algorithm: str) -> None:
    """The confusion attack: sign with HS256 and the public key, which everyone may know."""
    pem = tokens.public_pem(algorithm)
    subject = verifier(**{PEM_SETTING[algorithm]: pem})
    both = hmac_verifier(**{PEM_SETTING[algorithm]: pem})

    for secret in (pem, pem.strip(), pem.strip() + "\n"):
        forged = assemble({"alg": "HS256"}, b'{"sub":"mallory"}', secret)
        refuse(subject, forged)
        refuse(both, forged)


@pytest.mark.parametrize("algorithm", ["HS256", *tokens.ASYMMETRIC])
def test_a_changed_token_is_refused(algorithm: str) -> None:
    key = {PEM_SETTING[algorithm]: tokens.public_pem(algorithm)} if algorithm != "HS256" else {}
    subject = hmac_verifier(**key)
    head, body, signature = sign({"sub": "alice"}, algorithm).split(".")
    other = encode(b'{"sub":"mallory"}')

    for forged in (
        f"{head}.{other}.{signature}",
        f"{head}.{body}.{encode(b'x' * 64)}",
        f"{head}.{body}.",
        f"{head}.{body}.{signature[:-4]}",
    ):
        refuse(subject, forged)


def test_a_signature_of_another_hmac_algorithm_is_refused() -> None:
    _, body, signature = sign({"sub": "alice"}, "HS512").split(".")
    head = sign({}, "HS256").split(".")[0]

    refuse(hmac_verifier(), f"{head}.{body}.{signature}", "signature doesn't verify")


@pytest.mark.parametrize(
    "header",
    [
        {"alg": "HS256", "crit": ["exp"]},
        {"alg": "HS256", "crit": ["b64"], "b64": False},
        {"alg": "HS256", "crit": []},
        {"alg": "HS256", "b64": False},
        {"alg": "HS256", "b64": 0},
        {"alg": "HS256", "kid": 7},
        {"alg": "HS256", "kid": None},
        {"alg": "HS256", "kid": "k" * 257},
        {},
        [],
        None,
        "HS256",
        b"",
        b"{",
        b"\xff",
        b"[" * 5000,
    ],
)
def test_a_header_that_is_wrong_or_asks_for_more_is_refused(header: object) -> None:
    refuse(hmac_verifier(), assemble(header, b'{"sub":"alice"}'))


@pytest.mark.parametrize(
    "payload", [b"", b"{", b"[]", b"null", b"7", b'"alice"', b"\xff", b"[" * 5000, b'{"sub":NaN}']
)
def test_a_signed_payload_that_is_no_object_is_refused(payload: bytes) -> None:
    refuse(hmac_verifier(), assemble({"alg": "HS256"}, payload), "payload isn't")


@pytest.mark.parametrize(
    "token", ["", ".", "..", "...", "a.b", "a.b.c.d", "é.é.é", "\ud800..", " . . ", "a.b.c"]
)
def test_garbage_is_refused(token: str) -> None:
    refuse(hmac_verifier(), token)


def test_each_value_has_one_text() -> None:
    """Base64 has several; only the canonical one counts, without padding or line breaks."""
    head, body, signature = sign({"sub": "alice", "info": "ab"}).split(".")
    last = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    # 32 bytes leave four bits of the last character unused.
    twin = signature[:-1] + last[last.index(signature[-1]) ^ 1]

    for text in (twin, signature + "=", signature + "\n", " " + signature):
        refuse(hmac_verifier(), f"{head}.{body}.{text}", "base64url")


def test_the_alphabet_is_that_of_urls() -> None:
    payload = b'{"info":"' + "ÿþ?>".encode() * 3 + b'"}'
    token = assemble({"alg": "HS256"}, payload)
    assert set("-_") & set(token.split(".")[1])

    assert hmac_verifier().verify_connect(token, NOW).info is not None
    refuse(hmac_verifier(), token.replace("-", "+").replace("_", "/"))


# Times


@pytest.mark.parametrize("exp", [NOW, NOW - 1, 0, -5, NOW - 0.5])
def test_a_token_is_expired_from_its_exp_on(exp: float) -> None:
    with pytest.raises(TokenExpired):
        hmac_verifier().verify_connect(sign({"sub": "alice", "exp": exp}), NOW)
    with pytest.raises(TokenExpired):
        hmac_verifier().verify_subscribe(sign({"channel": "c", "exp": exp}), NOW)


def test_a_token_is_good_until_its_exp() -> None:
    assert hmac_verifier().verify_connect(sign({"exp": NOW + 1}), NOW).expire_at == NOW + 1
    assert hmac_verifier().verify_connect(sign({}), NOW).expire_at == 0


def test_an_expired_forgery_is_a_forgery() -> None:
    """Otherwise the client would be sent for a new token again and again."""
    refuse(hmac_verifier(), sign({"exp": NOW - 1}, secret=OTHER_SECRET))
    refuse(hmac_verifier(token_audience="us"), sign({"exp": NOW - 1, "aud": "them"}))


def test_a_token_is_not_good_before_its_nbf() -> None:
    refuse(hmac_verifier(), sign({"nbf": NOW + CLOCK_SKEW + 1}), "nbf")
    hmac_verifier().verify_connect(sign({"nbf": NOW + CLOCK_SKEW - 1}), NOW)
    hmac_verifier().verify_connect(sign({"nbf": NOW - 100}), NOW)


def test_an_exp_too_far_ahead_is_not_honoured() -> None:
    refuse(hmac_verifier(), sign({"exp": NOW + 31_536_001}), "token_lifetime_max")
    hmac_verifier().verify_connect(sign({"exp": NOW + 31_536_000}), NOW)
    refuse(hmac_verifier(token_lifetime_max="1h"), sign({"exp": NOW + 3601}), "token_lifetime_max")


@pytest.mark.parametrize("name", ["exp", "nbf"])
@pytest.mark.parametrize("value", ["2000000000", None, True, [], {}])
def test_a_time_that_is_no_number_is_refused(name: str, value: object) -> None:
    token = assemble({"alg": "HS256"}, json.dumps({name: value}).encode())

    refuse(hmac_verifier(), token, f"{name} isn't a number")


# For whom


@pytest.mark.parametrize("audience", ["us", ["us"], ["them", "us"], ["us", 7]])
def test_the_audience_must_hold_ours(audience: object) -> None:
    token = assemble({"alg": "HS256"}, json.dumps({"aud": audience}).encode())

    hmac_verifier(token_audience="us").verify_connect(token, NOW)
    hmac_verifier().verify_connect(token, NOW)


@pytest.mark.parametrize("audience", ["them", "", None, [], ["u"], 7, {"us": 1}, [["us"]]])
def test_another_audience_is_refused(audience: object) -> None:
    token = assemble({"alg": "HS256"}, json.dumps({"aud": audience}).encode())

    refuse(hmac_verifier(token_audience="us"), token, "aud")
    refuse(hmac_verifier(token_audience="us"), sign({}), "aud")


def test_the_issuer_must_be_ours() -> None:
    subject = hmac_verifier(token_issuer="us")

    subject.verify_connect(sign({"iss": "us"}), NOW)
    for payload in (b'{"iss":"them"}', b'{"iss":["us"]}', b'{"iss":null}', b"{}"):
        refuse(subject, assemble({"alg": "HS256"}, payload), "iss")


# Changing the secret


def test_the_previous_secret_is_honoured_until_its_time() -> None:
    subject = hmac_verifier(
        token_hmac_previous_secret=OTHER_SECRET, token_hmac_previous_until=NOW + 10
    )

    for algorithm in tokens.HMAC:
        old, new = sign({}, algorithm, secret=OTHER_SECRET), sign({}, algorithm)
        subject.verify_connect(old, NOW)
        subject.verify_connect(old, NOW + 9)
        for later in (NOW + 10, NOW + 11):
            with pytest.raises(TokenInvalid, match="signature doesn't verify"):
                subject.verify_connect(old, later)
            subject.verify_connect(new, later)


def test_the_secret_can_give_way_to_another_kind_of_key() -> None:
    subject = verifier(
        token_eddsa_public_key=tokens.public_pem("EdDSA"),
        token_hmac_previous_secret=SECRET,
        token_hmac_previous_until=NOW + 10,
    )

    subject.verify_connect(sign({}), NOW)
    subject.verify_connect(sign({}, "EdDSA"), NOW)
    with pytest.raises(TokenInvalid):
        subject.verify_connect(sign({}), NOW + 10)


# Key sets


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Publisher:
    """A server that publishes a key set, on loopback."""

    def __init__(self) -> None:
        self.keys = b""
        self.status = 200
        self.requests = 0
        app = web.Application()
        app.router.add_get("/keys", self._answer)
        self.server = TestServer(app)

    async def _answer(self, _request: web.Request) -> web.Response:
        self.requests += 1
        return web.Response(body=self.keys, status=self.status)

    @property
    def url(self) -> str:
        return str(self.server.make_url("/keys"))


@pytest.fixture
async def publisher() -> AsyncIterator[Publisher]:
    publisher = Publisher()
    await publisher.server.start_server()
    yield publisher
    await publisher.server.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


StartVerifier = Callable[..., Any]


@pytest.fixture
async def start(clock: Clock) -> AsyncIterator[StartVerifier]:
    started: list[TokenVerifier] = []

    async def start(**values: object) -> TokenVerifier:
        # In a thread, for reading a key set's file to check it may block.
        settings = await asyncio.to_thread(configure, **values)
        subject = TokenVerifier(settings, clock=clock)
        started.append(subject)
        await subject.start()
        return subject

    yield start
    for subject in started:
        await subject.close()


def signed_by(kid: str | None, algorithm: str = "EdDSA", number: int = 0) -> str:
    headers: Mapping[str, Any] = {} if kid is None else {"kid": kid}
    return sign({"sub": "alice"}, algorithm, number=number, headers=headers)


async def test_a_key_set_is_read_from_a_file(tmp_path: Path, start: StartVerifier) -> None:
    file = tmp_path / "keys.json"
    entries = [tokens.jwk(algorithm, algorithm) for algorithm in tokens.ASYMMETRIC]
    file.write_bytes(tokens.key_set(*entries))

    subject = await start(token_jwks_file=str(file))

    for algorithm in tokens.ASYMMETRIC:
        assert subject.verify_connect(signed_by(algorithm, algorithm), NOW).user == "alice"


async def test_a_changed_file_is_noticed_when_a_key_is_missing(
    tmp_path: Path, start: StartVerifier, clock: Clock
) -> None:
    file = tmp_path / "keys.json"
    file.write_bytes(tokens.key_set(tokens.jwk("EdDSA", "old")))
    subject = await start(token_jwks_file=str(file))
    file.write_bytes(tokens.key_set(tokens.jwk("EdDSA", "new", 1)))
    clock.now += COOLDOWN

    with pytest.raises(KeyMissing):
        subject.verify_connect(signed_by("new", number=1), NOW)
    assert await subject.refresh_keys()

    subject.verify_connect(signed_by("new", number=1), NOW)


async def test_keys_rotate_behind_a_url(
    publisher: Publisher, start: StartVerifier, clock: Clock
) -> None:
    old, new = tokens.jwk("ES256", "old"), tokens.jwk("ES256", "new", 1)
    publisher.keys = tokens.key_set(old)
    subject = await start(token_jwks_url=publisher.url)
    subject.verify_connect(signed_by("old", "ES256"), NOW)

    publisher.keys = tokens.key_set(old, new)
    clock.now += COOLDOWN
    with pytest.raises(KeyMissing) as caught:
        subject.verify_connect(signed_by("new", "ES256", 1), NOW)
    assert caught.value.kid == "new"
    assert await subject.refresh_keys()
    subject.verify_connect(signed_by("new", "ES256", 1), NOW)
    subject.verify_connect(signed_by("old", "ES256"), NOW)

    publisher.keys = tokens.key_set(new)
    clock.now += COOLDOWN
    assert await subject.refresh_keys()
    with pytest.raises(KeyMissing):
        subject.verify_connect(signed_by("old", "ES256"), NOW)


async def test_invented_key_ids_do_not_flood_the_publisher(
    publisher: Publisher, start: StartVerifier, clock: Clock
) -> None:
    publisher.keys = tokens.key_set(tokens.jwk("EdDSA", "k"))
    subject = await start(token_jwks_url=publisher.url)
    clock.now += COOLDOWN

    for number in range(100):
        with pytest.raises(KeyMissing):
            subject.verify_connect(signed_by(f"invented-{number}"), NOW)
        await subject.refresh_keys()

    assert publisher.requests == 2


async def test_keys_outlive_their_publisher(
    publisher: Publisher, start: StartVerifier, clock: Clock
) -> None:
    publisher.keys = tokens.key_set(tokens.jwk("EdDSA", "k"))
    subject = await start(token_jwks_url=publisher.url)
    publisher.status = 500
    clock.now += COOLDOWN

    assert not await subject.refresh_keys()

    subject.verify_connect(signed_by("k"), NOW)


async def test_a_publisher_that_is_down_at_the_start_is_asked_again(
    publisher: Publisher, start: StartVerifier, clock: Clock
) -> None:
    publisher.status = 503
    subject = await start(token_jwks_url=publisher.url)
    for token in (signed_by("k"), signed_by(None)):
        with pytest.raises(KeyMissing):
            subject.verify_connect(token, NOW)

    publisher.status, publisher.keys = 200, tokens.key_set(tokens.jwk("EdDSA", "k"))
    clock.now += COOLDOWN
    assert await subject.refresh_keys()

    subject.verify_connect(signed_by("k"), NOW)


async def test_a_token_without_key_id_is_tried_with_every_key_of_its_algorithm(
    publisher: Publisher, start: StartVerifier
) -> None:
    publisher.keys = tokens.key_set(
        tokens.jwk("RS256", "a"), tokens.jwk("EdDSA", "b", 1), tokens.jwk("EdDSA", None)
    )
    subject = await start(token_jwks_url=publisher.url)

    subject.verify_connect(signed_by(None), NOW)
    subject.verify_connect(signed_by(None, number=1), NOW)
    refuse(subject, signed_by(None, number=2), "signature doesn't verify")


async def test_a_key_id_names_the_only_key_that_may_verify(
    publisher: Publisher, start: StartVerifier
) -> None:
    publisher.keys = tokens.key_set(tokens.jwk("EdDSA", "a"), tokens.jwk("EdDSA", "b", 1))
    subject = await start(token_jwks_url=publisher.url)

    refuse(subject, signed_by("b"), "signature doesn't verify")


async def test_a_key_in_a_set_is_no_hmac_secret(publisher: Publisher, start: StartVerifier) -> None:
    publisher.keys = tokens.key_set(
        tokens.jwk("RS256", "k"), {"kty": "oct", "kid": "s", "k": encode(SECRET.encode())}
    )
    subject = await start(token_jwks_url=publisher.url)

    for kid in ("k", "s", "unknown"):
        header = {"alg": "HS256", "kid": kid}
        for secret in (SECRET, tokens.public_pem("RS256"), publisher.keys.decode()):
            refuse(subject, assemble(header, b"{}", secret), "signature doesn't verify")


async def test_single_keys_count_beside_a_set(publisher: Publisher, start: StartVerifier) -> None:
    publisher.keys = tokens.key_set(tokens.jwk("EdDSA", "k"))
    subject = await start(
        token_jwks_url=publisher.url,
        token_hmac_secret=SECRET,
        token_eddsa_public_key=tokens.public_pem("EdDSA", 1),
    )

    subject.verify_connect(sign({}), NOW)
    subject.verify_connect(sign({}, headers={"kid": "whatever"}), NOW)
    subject.verify_connect(signed_by("k"), NOW)
    subject.verify_connect(signed_by("not-in-the-set", number=1), NOW)


async def test_without_a_key_set_there_is_nothing_to_refresh() -> None:
    subject = await asyncio.to_thread(hmac_verifier)

    await subject.start()
    assert not await subject.refresh_keys()
    await subject.close()


# Minting


def test_a_minted_token_verifies() -> None:
    settings = configure(token_hmac_secret=SECRET, token_audience="us", token_issuer="me")
    subject = TokenVerifier(settings)

    connect = subject.verify_connect(mint(settings, "alice", info={"a": [1]}, now=NOW), NOW)
    subscribe = subject.verify_subscribe(
        mint(settings, "alice", channel="$room", ttl=60, now=NOW), NOW
    )

    assert (connect.user, connect.info, connect.expire_at) == ("alice", b'{"a":[1]}', NOW + 86400)
    assert (subscribe.user, subscribe.channel, subscribe.expire_at) == ("alice", "$room", NOW + 60)


@pytest.mark.parametrize("ttl", [0, -1, 0.5, 31_536_001, float("inf"), float("nan")])
def test_a_token_that_would_not_be_honoured_is_not_minted(ttl: float) -> None:
    with pytest.raises(MintError, match="ttl"):
        mint(configure(token_hmac_secret=SECRET), "alice", ttl=ttl)


def test_nothing_is_minted_without_the_secret() -> None:
    with pytest.raises(MintError, match="token_hmac_secret"):
        mint(configure(token_eddsa_public_key=tokens.public_pem("EdDSA")), "alice")


# Whatever comes


SUBJECT = hmac_verifier(
    token_rsa_public_key=tokens.public_pem("RS256"),
    token_ecdsa_public_key=tokens.public_pem("ES256"),
    token_eddsa_public_key=tokens.public_pem("EdDSA"),
    token_audience="us",
)
GENUINE = [sign({"sub": "alice", "aud": "us", "exp": HOUR}, a) for a in ("HS256", "ES256", "EdDSA")]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
NAMES = st.sampled_from(["alg", "typ", "kid", "crit", "b64", "jwk", "jku", "x5c"])
CLAIMS = st.sampled_from(
    ["sub", "exp", "nbf", "iat", "aud", "iss", "jti", "info", "subs", "channel"]
)


def accepts(token: str) -> bool:
    try:
        SUBJECT.verify_connect(token, NOW)
    except TokenError:
        return False
    return True


@given(st.text() | st.from_regex(r"\A[\w-]{0,9}(\.[\w-]{0,9}){2}\Z"))
@hypothesis_settings(deadline=None)
def test_any_text_is_refused_as_a_token(text: str) -> None:
    assert not accepts(text)


@given(
    header=st.dictionaries(NAMES, JSON | st.sampled_from(["HS256", "ES256", "EdDSA"])),
    payload=st.dictionaries(CLAIMS, JSON),
)
@hypothesis_settings(deadline=None)
def test_any_signed_content_is_accepted_or_refused(
    header: dict[str, Any], payload: dict[str, Any]
) -> None:
    accepts(assemble({"alg": "HS256", **header}, json.dumps(payload).encode()))


@given(
    token=st.sampled_from(GENUINE),
    position=st.integers(0, 10_000),
    replacement=st.text("ABCabc01_-.=+/ \n\0é", max_size=3),
    length=st.integers(0, 3),
)
@hypothesis_settings(deadline=None, max_examples=400)
def test_nothing_is_accepted_that_pyjwt_would_refuse(
    token: str, position: int, replacement: str, length: int
) -> None:
    position %= len(token)
    changed = token[:position] + replacement + token[position + length :]

    if accepts(changed):
        algorithm = json.loads(base64.urlsafe_b64decode(changed.split(".")[0] + "=="))["alg"]
        key = SECRET if algorithm == "HS256" else tokens.private_key(algorithm).public_key()
        assert jwt.decode(changed, key, [algorithm], audience="us", options={"verify_exp": False})
        assert changed == token


def test_what_is_remembered_of_headers_is_bounded() -> None:
    subject = hmac_verifier()

    for number in range(HEADERS_MAX * 3):
        subject.verify_connect(sign({}, headers={"kid": str(number)}), NOW)
        refuse(subject, sign({}, secret=OTHER_SECRET, headers={"kid": f"forged-{number}"}))

    assert len(subject._headers) <= HEADERS_MAX
    assert not any(b"forged" in base64.urlsafe_b64decode(head + b"==") for head in subject._headers)
