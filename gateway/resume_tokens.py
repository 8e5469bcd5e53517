"""Resume tokens: signed names of sessions (PROTOCOL.md B.2.4).

A token names a session and the node that keeps it. It is the session that names the user: it has
one for all its life, and ends with it. The signature keeps anybody from asking the node about
sessions that it never had, and from looking for those of others.
"""

import base64
import binascii
import hashlib
import hmac
import os
from typing import Final, NewType

SessionId = NewType("SessionId", bytes)

SESSION_ID_BYTES: Final = 16
KEY_BYTES: Final = 32
_NODE_BYTES: Final = 8
_MAC_BYTES: Final = 18  # RFC 2104, 5: not less than half of the hash
_SIZE: Final = _NODE_BYTES + SESSION_ID_BYTES + _MAC_BYTES  # a multiple of 3: no padding
_LENGTH: Final = _SIZE // 3 * 4  # in characters
_URL_SAFE: Final = bytes.maketrans(b"-_", b"+/")


class ResumeTokens:
    """Signs and reads the tokens of one node. `key` is shared by all nodes of one database."""

    def __init__(self, key: bytes, node: str) -> None:
        self._key = key
        self._node = hashlib.sha256(node.encode()).digest()[:_NODE_BYTES]

    def new_id(self) -> SessionId:
        """An id that nobody can guess."""
        return SessionId(os.urandom(SESSION_ID_BYTES))

    def sign(self, session: SessionId) -> str:
        """The token that names a session, 56 characters."""
        named = self._node + session
        return base64.urlsafe_b64encode(named + self._mac(named)).decode()

    def read(self, token: str) -> SessionId | None:
        """The session that a token names; None when it is forged, damaged or another node's."""
        if len(token) != _LENGTH:
            return None  # among others, padding behind a good one
        try:
            # What base64.urlsafe_b64decode does, which wouldn't mind other characters.
            raw = binascii.a2b_base64(token.encode("ascii").translate(_URL_SAFE), strict_mode=True)
        except (binascii.Error, ValueError):
            return None
        named = raw[:-_MAC_BYTES]
        if len(raw) != _SIZE or not hmac.compare_digest(raw[-_MAC_BYTES:], self._mac(named)):
            return None
        if named[:_NODE_BYTES] != self._node:
            return None
        return SessionId(named[_NODE_BYTES:])

    def _mac(self, named: bytes) -> bytes:
        return hmac.digest(self._key, named, "sha256")[:_MAC_BYTES]
