"""Keys and tokens for tests: every algorithm, and every way in which a token can be wrong."""

import functools
import json
from collections.abc import Mapping
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import get_default_algorithms

SECRET = "a secret of at least sixty-four bytes, as HS512 would like it best"
OTHER_SECRET = "some other secret of at least sixty-four bytes, which isn't the one"

HMAC = ("HS256", "HS384", "HS512")
RSA = ("RS256", "RS384", "RS512")
ECDSA = ("ES256", "ES384", "ES512")
EDDSA = ("EdDSA",)
ASYMMETRIC = (*RSA, *ECDSA, *EDDSA)

_CURVES = {"ES256": ec.SECP256R1(), "ES384": ec.SECP384R1(), "ES512": ec.SECP521R1()}


def private_key(algorithm: str, number: int = 0) -> Any:
    """A private key for the algorithm; another one for each number, the same in a whole run."""
    return _key(algorithm, number)


@functools.cache
def _key(algorithm: str, number: int) -> Any:
    if algorithm in RSA:
        return _rsa_key(number)
    if algorithm in ECDSA:
        return ec.generate_private_key(_CURVES[algorithm])
    return ed25519.Ed25519PrivateKey.generate()


@functools.cache
def _rsa_key(number: int) -> rsa.RSAPrivateKey:
    # One for all three algorithms, since making it takes a while.
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def public_pem(algorithm: str, number: int = 0) -> str:
    """The public key of `private_key` as PEM."""
    key = private_key(algorithm, number).public_key()
    pem: bytes = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return pem.decode()


def jwk(algorithm: str, kid: str | None, number: int = 0, **members: Any) -> dict[str, Any]:
    """The public key of `private_key` as a JSON Web Key."""
    key = private_key(algorithm, number).public_key()
    entry: dict[str, Any] = get_default_algorithms()[algorithm].to_jwk(key, as_dict=True)
    entry.pop("key_ops", None)
    return {**entry, **({} if kid is None else {"kid": kid}), **members}


def key_set(*entries: Mapping[str, Any]) -> bytes:
    """A JSON Web Key Set."""
    return json.dumps({"keys": entries}).encode()


def sign(
    claims: Mapping[str, Any],
    algorithm: str = "HS256",
    *,
    number: int = 0,
    secret: str = SECRET,
    headers: Mapping[str, Any] | None = None,
) -> str:
    """A token with the claims, signed with `secret` or the `private_key` of that number."""
    key = secret if algorithm in HMAC else private_key(algorithm, number)
    return jwt.encode(dict(claims), key, algorithm, headers=dict(headers or {}))
