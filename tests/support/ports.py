"""Ports for servers that tests start, stop and start again."""

import errno
import random
import socket
from typing import Final

# Below those that Linux gives to outgoing connections unless it is told otherwise: while a server
# of ours is down, its port must not become the other end of some other test's connection.
_RANGE: Final = range(12_000, 32_000)
_chance = random.SystemRandom()  # tests may seed `random`, and several run at the same time


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nothing uses right now."""
    while True:
        port = _chance.choice(_RANGE)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
            else:
                return port
