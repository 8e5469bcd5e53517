"""Where a publication goes: through the log when its channel keeps history, else straight out."""

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from gateway.broker.contract import Broker, Transient
from gateway.protocol.actions import Published, Publishing
from gateway.protocol.codec import publication
from gateway.protocol.codes import ErrorCode
from gateway.streams import Streams
from metrics import instruments

TRANSIENT_KEYS_MAX: Final = 100_000


class Publisher:
    """Publishes for clients and for the server API alike."""

    def __init__(self, streams: Streams, broker: Broker, idempotency_window: float) -> None:
        self._streams = streams
        self._broker = broker
        self._window = idempotency_window
        # Idempotency keys of publications that the log doesn't see, oldest first.
        self._keys: OrderedDict[tuple[str, str], float] = OrderedDict()
        self._transient = instruments.PUBLICATIONS.labels("transient")
        self._ephemeral = instruments.PUBLICATIONS.labels("ephemeral")

    def publish(
        self, publishing: Publishing, done: Callable[[Published | ErrorCode], None]
    ) -> None:
        """Publish; `done` is called once the publication is as safe as its channel promises.

        That is at once without history, and after the commit with it (see `Streams.append`).
        """
        if publishing.options.keeps_history and not publishing.ephemeral:
            self._streams.append(publishing, done)
            return
        if publishing.idempotency_key and self._is_repeated(publishing):
            done(Published(duplicate=True))
            return
        (self._ephemeral if publishing.ephemeral else self._transient).inc()
        pub = publication(
            publishing.data,
            publishing.info,
            publishing.tags,
            time_ms=0 if publishing.ephemeral else int(time.time() * 1000),
        )
        self._broker.publish_transient(Transient(publishing.channel, pub, publishing.ephemeral))
        done(Published())

    def _is_repeated(self, publishing: Publishing) -> bool:
        """Whether the key was used within the window; notes it if not."""
        now = time.monotonic()
        keys = self._keys
        while keys and (
            next(iter(keys.values())) <= now - self._window or len(keys) > TRANSIENT_KEYS_MAX
        ):
            keys.popitem(last=False)
        name = (publishing.channel, publishing.idempotency_key)
        if name in keys:
            return True
        keys[name] = now
        return False
