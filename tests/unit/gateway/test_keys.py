"""Keys are bound to the algorithms of their own kind when they are read."""

import json
from contextlib import suppress
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from gateway.keys import VerifyKey, hmac_key, parse_key_set, parse_pem
from tests.support import tokens


def pem_of(key: Any) -> str:
    pem: bytes = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return pem.decode()


def algorithms_of(*entries: dict[str, Any]) -> list[tuple[str, ...]]:
    return [key.algorithms for key in parse_key_set(tokens.key_set(*entries))]


def test_a_pem_key_has_the_algorithms_of_its_kind() -> None:
    assert parse_pem(tokens.public_pem("RS256"), "RSA").algorithms == tokens.RSA
    for algorithm in tokens.ECDSA:
        assert parse_pem(tokens.public_pem(algorithm), "ECDSA").algorithms == (algorithm,)
    assert parse_pem(tokens.public_pem("EdDSA"), "EdDSA").algorithms == ("EdDSA",)
    assert hmac_key("secret").algorithms == tokens.HMAC


def test_a_key_does_not_verify_with_algorithms_of_another_kind() -> None:
    key = hmac_key(tokens.SECRET)

    assert not any(key.verifies(name, b"input", b"signature") for name in tokens.ASYMMETRIC)
    assert not key.verifies("none", b"input", b"")


@pytest.mark.parametrize(
    ("pem", "message"),
    [
        ("", "BEGIN PUBLIC KEY"),
        ("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----", "BEGIN PUBLIC KEY"),
        ("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----", "openssl x509"),
        (tokens.public_pem("ES256"), "RSA tokens"),
        (pem_of(rsa.generate_private_key(65537, 1024)), "fewer than 2048 bits"),
    ],
)
def test_a_pem_that_is_no_usable_rsa_key_is_refused(pem: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_pem(pem, "RSA")


def test_a_curve_without_an_algorithm_is_refused() -> None:
    with pytest.raises(ValueError, match="ECDSA tokens"):
        parse_pem(pem_of(ec.generate_private_key(ec.SECP256K1())), "ECDSA")


def test_a_private_key_is_refused_and_not_repeated() -> None:
    pem: bytes = tokens.private_key("RS256").private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    )

    with pytest.raises(ValueError, match="is a private key") as caught:
        parse_pem(pem.decode(), "RSA")

    assert pem.decode().splitlines()[1] not in str(caught.value)


def test_a_key_set_holds_keys_of_every_kind() -> None:
    entries = [tokens.jwk(algorithm, algorithm) for algorithm in ("RS256", "ES384", "EdDSA")]

    keys = parse_key_set(tokens.key_set(*entries))

    assert [key.kid for key in keys] == ["RS256", "ES384", "EdDSA"]
    assert [key.algorithms for key in keys] == [tokens.RSA, ("ES384",), ("EdDSA",)]


def test_alg_narrows_a_key_and_never_widens_it() -> None:
    usable = tokens.jwk("EdDSA", "k")

    assert algorithms_of(tokens.jwk("RS256", "k", alg="RS384")) == [("RS384",)]
    for alg in ("HS256", "ES256", "PS256", "none", "", 7, ["RS256"]):
        assert algorithms_of(tokens.jwk("RS256", "k", alg=alg), usable) == [("EdDSA",)]


@pytest.mark.parametrize(
    "entry",
    [
        {"kty": "oct", "k": "c2VjcmV0LXRoYXQtd291bGQtYmUtbG9uZy1lbm91Z2gtZm9yLUhTMjU2", "kid": "k"},
        tokens.jwk("RS256", "k", use="enc"),
        tokens.jwk("RS256", "k", key_ops=["encrypt"]),
        tokens.jwk("RS256", "k", key_ops="verify"),
        {**tokens.jwk("RS256", None), "kid": 7},
        {"kty": "RSA", "kid": "k"},
        {"kty": "RSA", "kid": "k", "n": 7, "e": []},
        {"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"},
        {"kty": "EC", "crv": ["P-256"], "x": {}, "y": None},
        {"kty": "OKP", "crv": "X25519", "x": "AA"},
        {"kty": ["RSA"]},
        {},
        "key",
        None,
    ],
)
def test_entries_that_verify_nothing_here_are_left_out(entry: object) -> None:
    usable = tokens.jwk("EdDSA", "good")

    keys = parse_key_set(json.dumps({"keys": [entry, usable]}).encode())

    assert [key.kid for key in keys] == ["good"]


def test_a_private_key_in_a_set_is_used_as_its_public_one() -> None:
    from jwt.algorithms import OKPAlgorithm

    entry = {**OKPAlgorithm.to_jwk(tokens.private_key("EdDSA"), as_dict=True), "kid": "k"}
    entry.pop("key_ops", None)
    assert "d" in entry

    (key,) = parse_key_set(tokens.key_set(entry))

    signature = tokens.private_key("EdDSA").sign(b"input")
    assert key.verifies("EdDSA", b"input", signature)


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"[]", b"{}", b'{"keys": {}}', b'{"keys": []}', b'{"keys": [{}]}', b"\xff"]
)
def test_what_is_no_key_set_is_refused(raw: bytes) -> None:
    with pytest.raises(ValueError, match=r"JSON|key"):
        parse_key_set(raw)


MEMBERS = ("kty", "crv", "x", "y", "n", "e", "d", "k", "alg", "use", "key_ops", "kid")
VALUES = (
    st.sampled_from(
        ["RSA", "EC", "OKP", "oct", "P-256", "P-521", "Ed25519", "Ed448", "AQAB", "sig"]
    )
    | st.text(max_size=8)
    | st.integers()
    | st.none()
    | st.lists(st.text(max_size=4), max_size=2)
)


@given(st.lists(st.dictionaries(st.sampled_from(MEMBERS), VALUES), max_size=3))
@hypothesis_settings(deadline=None)
def test_any_key_set_gives_keys_or_a_value_error(entries: list[dict[str, Any]]) -> None:
    raw = json.dumps({"keys": entries}).encode()

    with suppress(ValueError):
        assert all(isinstance(key, VerifyKey) for key in parse_key_set(raw))
