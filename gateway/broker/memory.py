"""The broker of a single process: what is published is delivered here, at once and exactly once."""

from collections.abc import Sequence

from gateway.broker.contract import Committed, Receiver, Transient


class MemoryBroker:
    """Hands publications straight to the hub of this process."""

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver

    def publish_committed(self, publications: Sequence[Committed]) -> None:
        """See `Broker`."""
        self._receiver.deliver_committed(publications)

    def publish_transient(self, publication: Transient) -> None:
        """See `Broker`."""
        self._receiver.deliver_transient(publication)
