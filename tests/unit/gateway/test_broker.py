"""What a broker promises, held against the one of a single process."""

from collections.abc import Sequence

import pytest

from gateway.broker.contract import Broker, Committed, Receiver, Transient
from gateway.broker.memory import MemoryBroker


class Hub:
    """A receiver that notes what comes, in the order in which it comes."""

    def __init__(self) -> None:
        self.came: list[Committed | Transient] = []

    def deliver_committed(self, publications: Sequence[Committed]) -> None:
        self.came.extend(publications)

    def deliver_transient(self, publication: Transient) -> None:
        self.came.append(publication)


def committed(offset: int, channel: str = "chat") -> Committed:
    return Committed(channel, offset, "epoch", b'{"data":%d,"offset":%d}' % (offset, offset))


def transient(number: int, *, ephemeral: bool = False) -> Transient:
    return Transient("chat", b'{"data":%d}' % number, ephemeral)


def broker_for(receiver: Receiver) -> Broker:
    return MemoryBroker(receiver)


@pytest.fixture
def hub() -> Hub:
    return Hub()


@pytest.fixture
def broker(hub: Hub) -> Broker:
    return broker_for(hub)


def test_a_process_gets_what_it_published_itself(broker: Broker, hub: Hub) -> None:
    broker.publish_committed([committed(1)])
    broker.publish_transient(transient(2))
    broker.publish_transient(transient(3, ephemeral=True))

    assert hub.came == [committed(1), transient(2), transient(3, ephemeral=True)]


def test_committed_publications_of_a_channel_come_in_the_order_of_their_offsets(
    broker: Broker, hub: Hub
) -> None:
    broker.publish_committed([committed(1), committed(1, "news"), committed(2)])
    broker.publish_committed([committed(3), committed(2, "news")])

    for channel, offsets in (("chat", [1, 2, 3]), ("news", [1, 2])):
        came = [one for one in hub.came if one.channel == channel]
        assert came == [committed(offset, channel) for offset in offsets]


def test_transient_publications_come_once_in_the_order_in_which_they_were_sent(
    broker: Broker, hub: Hub
) -> None:
    sent = [transient(number, ephemeral=bool(number % 3)) for number in range(20)]

    for publication in sent:
        broker.publish_transient(publication)

    assert hub.came == sent


def test_the_same_publication_sent_twice_comes_twice(broker: Broker, hub: Hub) -> None:
    """A broker carries; it is the receiver that drops what it has."""
    broker.publish_transient(transient(1))
    broker.publish_transient(transient(1))

    assert hub.came == [transient(1), transient(1)]


def test_within_a_process_nothing_is_between_publishing_and_delivery(
    broker: Broker, hub: Hub
) -> None:
    """So publications of a turn reach their subscribers in the write of that turn."""
    batch = [committed(1), committed(2)]

    broker.publish_committed(batch)

    assert hub.came == batch
    assert hub.came[0] is batch[0], "within a process nothing is copied"


def test_a_batch_stays_a_batch() -> None:
    """The hub marks a commit's end by it."""
    batches: list[list[Committed]] = []

    class Batches(Hub):
        def deliver_committed(self, publications: Sequence[Committed]) -> None:
            batches.append(list(publications))

    broker = broker_for(Batches())
    broker.publish_committed([committed(1), committed(2)])
    broker.publish_committed([committed(3)])

    assert batches == [[committed(1), committed(2)], [committed(3)]]
