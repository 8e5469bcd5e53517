"""Public keys that verify tokens: from PEM text and from JSON Web Key Sets.

A key is bound to the algorithms of its own kind when it is read. Nothing later asks the token what
it would like to be verified with, so an RSA key can't be mistaken for an HMAC secret.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hmac import compare_digest
from hmac import digest as hmac_digest
from typing import Any, Literal

import orjson
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from jwt import PyJWK
from jwt.algorithms import get_default_algorithms
from jwt.exceptions import PyJWTError

HMAC_ALGORITHMS = ("HS256", "HS384", "HS512")
RSA_ALGORITHMS = ("RS256", "RS384", "RS512")
ECDSA_ALGORITHMS = ("ES256", "ES384", "ES512")
EDDSA_ALGORITHMS = ("EdDSA",)

Kind = Literal["RSA", "ECDSA", "EdDSA"]

RSA_BITS_MIN = 2048
"""RFC 7518, 3.3: "A key of size 2048 bits or larger MUST be used"."""

_HMAC_DIGESTS = {"HS256": "sha256", "HS384": "sha384", "HS512": "sha512"}  # RFC 7518, 3.2
_ALGORITHMS = get_default_algorithms()
_BY_KIND: dict[Kind, tuple[str, ...]] = {
    "RSA": RSA_ALGORITHMS,
    "ECDSA": ECDSA_ALGORITHMS,
    "EdDSA": EDDSA_ALGORITHMS,
}
_ECDSA_BY_CURVE = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}


@dataclass(frozen=True, slots=True)
class VerifyKey:
    """A key, and the only algorithms it verifies with.

    `kid` is None for a key that was configured by itself rather than in a set.
    """

    kid: str | None
    algorithms: tuple[str, ...]
    key: Any

    def verifies(self, algorithm: str, signing_input: bytes, signature: bytes) -> bool:
        """Whether the signature is this key's over the input, by an algorithm of its own kind."""
        if algorithm not in self.algorithms:
            return False
        digest = _HMAC_DIGESTS.get(algorithm)
        if digest is not None:
            # What PyJWT's algorithm does with it as well, without the objects in between: a third.
            return compare_digest(hmac_digest(self.key, signing_input, digest), signature)
        return _ALGORITHMS[algorithm].verify(signing_input, self.key, signature)


def hmac_key(secret: str) -> VerifyKey:
    """A shared secret, as UTF-8."""
    return VerifyKey(None, HMAC_ALGORITHMS, secret.encode())


def parse_pem(text: str, kind: Kind) -> VerifyKey:
    """Read a PEM public key that must be of the kind.

    Raises ValueError with what is wrong and what to do; never quotes the text.
    """
    if "PRIVATE KEY" in text:
        raise ValueError(
            "is a private key, which belongs to whoever issues the tokens; put its public key here"
            " (openssl pkey -in private.pem -pubout)"
        )
    if "CERTIFICATE" in text:
        raise ValueError(
            "is a certificate; put its public key here (openssl x509 -in cert.pem -pubkey -noout)"
        )
    try:
        key = load_pem_public_key(text.encode())
    except (ValueError, UnsupportedAlgorithm):
        raise ValueError(
            "isn't a PEM public key; it begins with -----BEGIN PUBLIC KEY-----"
        ) from None
    algorithms = _algorithms_of(key)
    if algorithms is None or algorithms[0] not in _BY_KIND[kind]:
        raise ValueError(f"isn't a key that {kind} tokens are verified with; give one that is")
    _check_strength(key)
    return VerifyKey(None, algorithms, key)


def parse_key_set(raw: bytes) -> tuple[VerifyKey, ...]:
    """Read a JSON Web Key Set (RFC 7517).

    Keys of kinds or for uses that don't verify tokens here are left out, as the RFC asks. So are
    symmetric ones: a secret has no place in a document that is there to be published. Raises
    ValueError when it isn't a key set, or when nothing in it is of use.
    """
    try:
        document = orjson.loads(raw)
    except orjson.JSONDecodeError:
        raise ValueError("isn't JSON; give a JSON Web Key Set") from None
    entries = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(entries, list):
        raise ValueError('isn\'t a JSON Web Key Set; it is an object with a list "keys"')
    keys = tuple(key for key in map(_parse_jwk, entries) if key is not None)
    if not keys:
        raise ValueError(
            "holds no key that verifies tokens; add an RSA, EC or OKP (Ed25519) public key"
        )
    return keys


def _parse_jwk(entry: object) -> VerifyKey | None:
    if not isinstance(entry, dict) or entry.get("use", "sig") != "sig":
        return None
    operations = entry.get("key_ops", ["verify"])
    kid = entry.get("kid")
    if not isinstance(operations, list) or "verify" not in operations:
        return None
    if kid is not None and not isinstance(kid, str):
        return None
    key, algorithms = _parse_asymmetric(entry)
    if key is None:
        return None
    # "alg" narrows a key to one algorithm; it can't widen it to another kind's.
    named = entry.get("alg")
    if named is not None:
        if named not in algorithms:
            return None
        algorithms = (named,)
    return VerifyKey(kid, tuple(algorithms), key)


def _parse_asymmetric(entry: dict[str, Any]) -> tuple[Any, Sequence[str]]:
    public = {name: value for name, value in entry.items() if name not in _PRIVATE_MEMBERS}
    public.pop("alg", None)
    try:
        key = PyJWK(public).key
        algorithms = _algorithms_of(key)
        _check_strength(key)
    # PyJWK reads members of any type without checking, so what a hostile set raises is open.
    except (PyJWTError, ValueError, TypeError, AttributeError, KeyError, UnsupportedAlgorithm):
        return None, ()
    return (None, ()) if algorithms is None else (key, algorithms)


_PRIVATE_MEMBERS = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth"})


def _algorithms_of(key: object) -> tuple[str, ...] | None:
    if isinstance(key, rsa.RSAPublicKey):
        return RSA_ALGORITHMS
    if isinstance(key, ec.EllipticCurvePublicKey):
        name = _ECDSA_BY_CURVE.get(key.curve.name)
        return None if name is None else (name,)
    if isinstance(key, Ed25519PublicKey | Ed448PublicKey):
        return EDDSA_ALGORITHMS
    return None


def _check_strength(key: object) -> None:
    if isinstance(key, rsa.RSAPublicKey) and key.key_size < RSA_BITS_MIN:
        raise ValueError(f"has fewer than {RSA_BITS_MIN} bits; make a longer one")
