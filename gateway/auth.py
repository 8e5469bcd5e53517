"""Verifies the tokens of clients (PROTOCOL.md A.9), and mints them for development and operators.

Theory of operation. A token names an algorithm and perhaps a key id. Both only *select* among the
keys that were configured, each of which is bound to the algorithms of its own kind; nothing else
in the header is believed. The signature is computed by PyJWT's algorithms. The compact
serialization around it is taken apart here, because that is on the path of every connect: PyJWT's
own `decode` looks at each character in Python and takes 32 µs for a token of 193 bytes, of which
2 µs are the HMAC; all of `verify_connect` takes 8 µs. It takes no serialization and no signature
that `decode` would refuse, which a test holds it to.
"""

import asyncio
import binascii
import time
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

import jwt
import orjson

from gateway.key_set import KeySet
from gateway.keys import (
    ECDSA_ALGORITHMS,
    EDDSA_ALGORITHMS,
    HMAC_ALGORITHMS,
    RSA_ALGORITHMS,
    Kind,
    VerifyKey,
    hmac_key,
    parse_pem,
)
from gateway.protocol.claims import (
    ConnectClaims,
    KeyMissing,
    SubscribeClaims,
    TokenExpired,
    TokenInvalid,
)
from gateway.settings import Settings
from gateway.token_claims import connect_claims, moment, subscribe_claims

MINT_TTL = 86_400.0
"""How long a minted token is good for unless told otherwise: a working day and the night."""

CLOCK_SKEW = 5.0
"""How far the clock of whoever issues tokens may be ahead of ours in `nbf`: a token that is used
at once must not be refused for good because of it."""

KEY_ID_LENGTH_MAX = 256
"""Key ids are hashes or names. They end up in log lines, so an invented one must not be long."""

HEADERS_MAX = 64
"""Decoded headers that are remembered: one for each key and library of an issuer."""

_ALGORITHMS = frozenset(HMAC_ALGORITHMS + RSA_ALGORITHMS + ECDSA_ALGORITHMS + EDDSA_ALGORITHMS)
_FROM_URL_SAFE = bytes.maketrans(b"-_", b"+/")
_TO_URL_SAFE = bytes.maketrans(b"+/", b"-_")
_PADDING = (b"", None, b"==", b"=")


class MintError(Exception):
    """No token can be minted with these settings. The message says what to change."""


class TokenVerifier:
    """Verifies tokens with the configured keys.

    A key set (JWKS) is read by `start` and kept fresh until `close`; before, its tokens raise
    KeyMissing. Everything else works without either.
    """

    def __init__(self, settings: Settings, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._audience = settings.token_audience
        self._issuer = settings.token_issuer
        self._lifetime_max = settings.token_lifetime_max
        # Headers of tokens that verified, by their text: an issuer's tokens all begin alike.
        self._headers: dict[bytes, tuple[str, str | None]] = {}
        self._keys = _configured_keys(settings)
        self._previous: VerifyKey | None = None
        self._previous_until = 0.0
        if settings.token_hmac_previous_secret is not None:
            self._previous = hmac_key(settings.token_hmac_previous_secret.get_secret_value())
            self._previous_until = settings.token_hmac_previous_until or 0.0
        self._key_set = _key_set(settings, clock)

    def verify_connect(self, token: str, now: float) -> ConnectClaims:
        """The claims of a connection token. `now` is in unix seconds.

        Raises TokenInvalid, TokenExpired, or KeyMissing when `refresh_keys` may help.
        """
        return connect_claims(self._payload(token, now))

    def verify_subscribe(self, token: str, now: float) -> SubscribeClaims:
        """The claims of a subscription token; raises as `verify_connect` does.

        Whether they are for this connection's user and channel is the caller's to compare.
        """
        return subscribe_claims(self._payload(token, now))

    async def start(self) -> None:
        """Read the key set, if there is one, and keep it fresh. A failure is only logged."""
        if self._key_set is not None:
            await self._key_set.start()

    async def refresh_keys(self) -> bool:
        """Look for new keys after a KeyMissing. True when verifying again may go otherwise.

        The key set is read once for all who ask at a time, and at most every ten seconds.
        """
        return self._key_set is not None and await self._key_set.refresh()

    async def close(self) -> None:
        """Stop keeping the key set fresh."""
        if self._key_set is not None:
            await self._key_set.close()

    def _payload(self, token: str, now: float) -> Mapping[str, Any]:
        """The payload of a token that is genuine, meant for us, and good at the moment."""
        try:
            text = token.encode("ascii")
            head, body, signature = text.split(b".")
        except UnicodeEncodeError:
            raise TokenInvalid("it isn't ASCII") from None
        except ValueError:
            raise TokenInvalid("it hasn't three segments") from None
        signing_input = text[: len(head) + 1 + len(body)]
        header = self._headers.get(head)
        if header is not None:
            self._check_signature(*header, signing_input, _decode(signature), now)
        else:
            header = _read_header(head)
            self._check_signature(*header, signing_input, _decode(signature), now)
            self._remember(head, header)
        try:
            payload = orjson.loads(_decode(body))
        except orjson.JSONDecodeError:
            raise TokenInvalid("its payload isn't JSON") from None
        if not isinstance(payload, dict):
            raise TokenInvalid("its payload isn't an object")
        self._check_recipient(payload)
        self._check_times(payload, now)
        return payload

    def _remember(self, head: bytes, header: tuple[str, str | None]) -> None:
        if len(self._headers) >= HEADERS_MAX:
            self._headers.clear()
        self._headers[head] = header

    def _check_signature(
        self, algorithm: str, kid: str | None, signing_input: bytes, signature: bytes, now: float
    ) -> None:
        key_set = self._key_set
        if key_set is not None:
            chosen = key_set.keys if kid is None else (key_set.get(kid),)
            for key in chosen:
                if key is not None and key.verifies(algorithm, signing_input, signature):
                    return
        key = self._keys.get(algorithm)
        if key is not None and key.verifies(algorithm, signing_input, signature):
            return
        previous = self._previous if now < self._previous_until else None
        if previous is not None and previous.verifies(algorithm, signing_input, signature):
            return
        if key_set is not None and algorithm not in HMAC_ALGORITHMS:
            if kid is not None and key_set.get(kid) is None:
                raise KeyMissing(kid)
            if not key_set.keys:
                raise KeyMissing(kid or "")
        if key is None and key_set is None:
            raise TokenInvalid("no key of its algorithm is configured")
        raise TokenInvalid("its signature doesn't verify")

    def _check_recipient(self, payload: Mapping[str, Any]) -> None:
        if self._issuer is not None and payload.get("iss") != self._issuer:
            raise TokenInvalid("its iss isn't token_issuer")
        if self._audience is not None:
            audience = payload.get("aud")
            if isinstance(audience, str):
                audience = [audience]
            if not isinstance(audience, list) or self._audience not in audience:
                raise TokenInvalid("its aud doesn't hold token_audience")

    def _check_times(self, payload: Mapping[str, Any], now: float) -> None:
        if "nbf" in payload and moment(payload, "nbf") > now + CLOCK_SKEW:
            raise TokenInvalid("it isn't valid yet: nbf lies ahead")
        if "exp" in payload:
            end = moment(payload, "exp")
            if end <= now:
                raise TokenExpired("its exp has passed")
            if end - now > self._lifetime_max:
                raise TokenInvalid("its exp lies further ahead than token_lifetime_max")


def mint(
    settings: Settings,
    user: str,
    *,
    channel: str | None = None,
    ttl: float = MINT_TTL,
    info: object = None,
    now: float | None = None,
) -> str:
    """Make a connection token, or with `channel` a subscription token, good for `ttl` seconds.

    An empty `user` is anonymous. `info` is any JSON value. `now` is in unix seconds, the system's
    clock by default. Raises MintError when there is no secret to sign with, or for a `ttl` that
    the verifier wouldn't honour.
    """
    secret = settings.token_hmac_secret
    if secret is None:
        raise MintError("token_hmac_secret isn't set, and only its tokens can be minted here")
    if not 1 <= ttl <= settings.token_lifetime_max:
        raise MintError(
            f"ttl must be from 1 to token_lifetime_max, {settings.token_lifetime_max:g} s"
        )
    issued_at = int(time.time() if now is None else now)
    claims: dict[str, Any] = {"sub": user, "iat": issued_at, "exp": issued_at + int(ttl)}
    if settings.token_audience is not None:
        claims["aud"] = settings.token_audience
    if settings.token_issuer is not None:
        claims["iss"] = settings.token_issuer
    if channel is not None:
        claims["channel"] = channel
    if info is not None:
        claims["info"] = info
    return jwt.encode(claims, secret.get_secret_value(), "HS256")


def _read_header(head: bytes) -> tuple[str, str | None]:
    """The algorithm and the key id that a header names."""
    try:
        header = orjson.loads(_decode(head))
    except orjson.JSONDecodeError:
        raise TokenInvalid("its header isn't JSON") from None
    if not isinstance(header, dict):
        raise TokenInvalid("its header isn't an object")
    algorithm, kid = header.get("alg"), header.get("kid")
    if not isinstance(algorithm, str) or algorithm not in _ALGORITHMS:
        raise TokenInvalid("its algorithm isn't accepted")
    if "crit" in header or header.get("b64", True) is not True:
        raise TokenInvalid("its header asks for an extension")
    if "kid" not in header:
        return algorithm, None
    if not isinstance(kid, str) or len(kid) > KEY_ID_LENGTH_MAX:
        raise TokenInvalid("its key id isn't a short string")
    return algorithm, kid


def _decode(segment: bytes) -> bytes:
    """Decode base64url without padding (RFC 7515, 2), strictly: one text for each value."""
    padding = _PADDING[len(segment) % 4]
    if padding is not None:
        try:
            decoded = binascii.a2b_base64(segment.translate(_FROM_URL_SAFE) + padding)
        except binascii.Error:
            pass
        else:
            # The decoder skips what it doesn't know; writing it again shows whether it did.
            again = binascii.b2a_base64(decoded, newline=False).translate(_TO_URL_SAFE)
            if again.rstrip(b"=") == segment:
                return decoded
    raise TokenInvalid("it isn't base64url")


def _configured_keys(settings: Settings) -> dict[str, VerifyKey]:
    """The keys that were configured one by one, by the algorithms they verify."""
    pems: tuple[tuple[str | None, Kind], ...] = (
        (settings.token_rsa_public_key, "RSA"),
        (settings.token_ecdsa_public_key, "ECDSA"),
        (settings.token_eddsa_public_key, "EdDSA"),
    )
    keys = [parse_pem(pem, kind) for pem, kind in pems if pem is not None]
    if settings.token_hmac_secret is not None:
        keys.append(hmac_key(settings.token_hmac_secret.get_secret_value()))
    return {algorithm: key for key in keys for algorithm in key.algorithms}


def _key_set(settings: Settings, clock: Callable[[], float]) -> KeySet | None:
    interval = settings.token_jwks_refresh
    path, url = settings.token_jwks_file, settings.token_jwks_url
    if path is not None:
        return KeySet(
            lambda: asyncio.to_thread(path.read_bytes),
            where=str(path),
            interval=interval,
            clock=clock,
        )
    if url is not None:
        # Late, because an HTTP client takes a while to import and few settings need one.
        from gateway.key_fetch import fetch  # noqa: PLC0415

        where = urlsplit(url).hostname or ""
        return KeySet(lambda: fetch(url), where=where, interval=interval, clock=clock)
    return None
