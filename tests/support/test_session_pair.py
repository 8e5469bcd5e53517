"""The network between two sessions does what the test says, and nothing else."""

import pytest

from gateway.protocol.client_policy import SessionPolicy
from gateway.protocol.client_states import ClientState
from gateway.protocol.session import TailLimits
from tests.support.session_pair import Close, Line, SessionPair


@pytest.fixture
def pair() -> SessionPair:
    """Both ends of a session whose client has said something."""
    pair = SessionPair(SessionPolicy(lambda: 0.5), TailLimits())
    pair.accept(1)
    pair.client.send()
    pair.deliver(1, "to_server", 2)
    pair.deliver(1, "to_client")
    return pair


def received(pair: SessionPair) -> tuple[int, int]:
    """How many frames the client's layer above has got, and the server's."""
    assert pair.client.story is not None
    mate = pair.mate()
    assert mate is not None
    return len(pair.client.story.received), len(mate.story.received)


def serve(pair: SessionPair, count: int) -> None:
    mate = pair.mate()
    assert mate is not None
    pair.server.send(mate, [count])


def test_what_is_under_way_waits(pair: SessionPair) -> None:
    serve(pair, 3)
    pair.client.send()
    assert pair.network.carrying == [(1, "to_server"), (1, "to_client")]
    assert received(pair) == (0, 1)

    pair.deliver(1, "to_client", 2)
    assert received(pair) == (2, 1)
    pair.deliver(1, "to_server", 9)
    assert received(pair) == (2, 2)


def test_a_cut_lets_the_beginning_through(pair: SessionPair) -> None:
    serve(pair, 3)
    pair.network.cut(1, 0, 2)
    pair.deliver(1, "to_client", 9)

    assert received(pair) == (2, 1)
    assert pair.client.session.state is ClientState.WAITING


def test_silence_tells_nobody(pair: SessionPair) -> None:
    serve(pair, 3)
    pair.network.silence(1)
    serve(pair, 3)

    assert pair.network.carrying == []
    assert pair.client.session.state is ClientState.LIVE


def test_behind_an_end_nothing_is_sent() -> None:
    line = Line()
    line.put("to_client", b"a")
    line.put("to_client", Close(1000))
    line.put("to_client", b"b")

    assert list(line.to_client) == [b"a", Close(1000)]


@pytest.mark.parametrize("saving", [True, False])
def test_a_restart_ends_lines_and_maybe_sessions(pair: SessionPair, saving: bool) -> None:
    story = pair.client.story
    pair.server.restart(saving=saving)
    pair.come_to_rest()

    assert (pair.client.story is story) == saving
    assert len(pair.client.losses) == (0 if saving else 1)


def test_in_the_end_everything_arrives(pair: SessionPair) -> None:
    serve(pair, 3)
    pair.client.send()
    pair.network.silence(1)
    serve(pair, 3)
    pair.client.send()
    pair.come_to_rest()

    assert received(pair) == (6, 3)


def test_time_passes_for_both(pair: SessionPair) -> None:
    pair.network.cut(1, 0, 0)
    pair.deliver(1, "to_server")
    mate = pair.mate()
    assert mate is not None
    pair.pass_time(mate.session.expires_at - pair.now)

    assert pair.mate() is None
    assert pair.client.session.state is ClientState.WAITING
