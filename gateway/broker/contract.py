"""What a broker promises to the hub.

A broker carries what was published to every process that has subscribers, its own included. It is
a hint with a payload, not the truth: the truth about a channel with history is its log.

Guarantees every implementation gives, and one behaviour suite checks:

* `committed` publications of one channel arrive in the order of their offsets, each perhaps more
  than once or not at all; a receiver drops what it has and reads what is missing from the log.
* `transient` ones arrive at most once, in the order in which one process sent them.
* No call waits. A broker that can't reach the others drops, counts, and says so when asked.
"""

from collections.abc import Sequence
from typing import Protocol

from msgspec import Struct


class Committed(Struct, frozen=True, gc=False):
    """A publication that is in the log. `pub` is its Publication object in JSON."""

    channel: str
    offset: int
    epoch: str
    pub: bytes


class Transient(Struct, frozen=True, gc=False):
    """A publication without a place in a log; an ephemeral one is the first to be dropped."""

    channel: str
    pub: bytes
    ephemeral: bool


class Receiver(Protocol):
    """The process's own end: the hub."""

    def deliver_committed(self, publications: Sequence[Committed]) -> None:
        """Take publications that are in the log."""

    def deliver_transient(self, publication: Transient) -> None:
        """Take one that isn't."""


class Broker(Protocol):
    """Carries publications between processes."""

    def publish_committed(self, publications: Sequence[Committed]) -> None:
        """Carry a batch that was committed."""

    def publish_transient(self, publication: Transient) -> None:
        """Carry a publication that isn't logged."""
