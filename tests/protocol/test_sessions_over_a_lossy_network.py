"""A client's and a server's session, and a network that loses, cuts, delays and stalls at will.

In the end, when the network has been good for a while, each side has received exactly what the
other sent, once and in order, or its session was lost and it was told.
"""

from typing import Final

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from gateway.protocol.backoff import DeclaredBackoff
from gateway.protocol.client_policy import SessionPolicy
from gateway.protocol.client_states import ClientState
from gateway.protocol.session import TailLimits
from tests.support.fuzzing import REPEATABLE
from tests.support.session_pair import Peer, SessionPair

# Small, so that they are reached.
POLICY: Final = SessionPolicy(
    chance=lambda: 0.5,
    backoff=DeclaredBackoff(min=0.5, max=8.0, attempts=8, timeout=5.0),
    tail=TailLimits(frames=20, bytes=2000),
    ack_frames=3,
    ack_bytes=200,
)
LIMITS: Final = TailLimits(frames=24, bytes=2000)
# Turns after which things may happen that end most sessions.
EARLY: Final = 10
LATE: Final = 40
few = st.integers(0, 6)


class SessionMachine(RuleBasedStateMachine):
    """Anything may happen to the network, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.pair = SessionPair(POLICY, LIMITS)
        self.turns = 0
        self.seen: dict[str, int] = {}  # how much of what each has received was looked at

    @initialize(greeted=st.sampled_from([True, True, True, False]))
    def begin(self, greeted: bool) -> None:
        """Mostly with a session that is worth keeping: nothing ends it before it has payload."""
        if greeted:
            self.pair.accept(1)
            self.pair.client.send()
            self.pair.deliver(1, "to_server", 2)
            self.pair.deliver(1, "to_client", 1)

    # --- what both ends do --------------------------------------------------------------------

    @precondition(lambda self: self.pair.client.story)
    @rule(count=st.integers(1, 4))
    def the_client_sends(self, count: int) -> None:
        for _ in range(count):
            if self.pair.client.story is not None:  # one too many ends the session
                self.pair.client.send()

    @precondition(lambda self: self.pair.server.peers)
    @rule(
        data=st.data(),
        batches=st.lists(st.integers(1, 4), min_size=1, max_size=4),
        at_once=st.sampled_from([False, True, True]),
    )
    def the_server_sends(self, data: st.DataObject, batches: list[int], at_once: bool) -> None:
        """And maybe the client has got it, and has said so, before anything else happens."""
        peer = self.one_of(data, list(self.pair.server.peers.values()))
        self.pair.server.send(peer, batches)
        line = peer.line
        if at_once and line is not None:
            for way in ("to_client", "to_server"):
                if (line, way) in self.pair.network.carrying:
                    self.pair.deliver(line, way, 100)

    @precondition(lambda self: self.attached)
    @rule(data=st.data())
    def the_server_pings(self, data: st.DataObject) -> None:
        self.pair.server.ping(self.one_of(data, self.attached))

    @precondition(lambda self: self.attached)
    @rule(
        data=st.data(),
        retry=st.sampled_from([0.0, 0.3, 4.0]),
        told=st.sampled_from([True, True, False]),
    )
    def the_server_asks_to_move(self, data: st.DataObject, retry: float, told: bool) -> None:
        """And mostly, the client has another line soon, on which `resume` is under way."""
        peer = self.one_of(data, self.attached)
        self.pair.server.move(peer, retry)
        line = peer.line
        if told and line is not None and (line, "to_client") in self.pair.network.carrying:
            self.pair.deliver(line, "to_client", 100)
            self.the_client_tries_again(0)

    @precondition(lambda self: self.attached)
    @rule(
        data=st.data(),
        code=st.sampled_from([3001, 3008, 3012]),
        retry_ms=st.sampled_from([None, 0, 700]),
    )
    def the_server_closes_a_line(
        self, data: st.DataObject, code: int, retry_ms: int | None
    ) -> None:
        self.pair.server.close(self.one_of(data, self.attached), code, retry_ms)

    @precondition(lambda self: self.turns > EARLY)
    @rule()
    def the_server_hands_over_to_another_process(self) -> None:
        self.pair.server.restart(saving=True)

    @precondition(lambda self: self.turns > LATE)
    @rule(
        what=st.sampled_from(["client floods", "server floods", "server forgets", "client leaves"])
    )
    def something_rare_happens(self, what: str) -> None:
        client, server = self.pair.client, self.pair.server
        if what == "client floods":
            while client.story is not None:
                client.send()
        elif what == "server floods":
            for peer in server.peers.values():
                server.send(peer, [7] * 4)
        elif what == "server forgets":
            server.restart(saving=False)
        elif client.session.state is not ClientState.ENDED:
            client.leave()

    # --- what the network does ----------------------------------------------------------------

    @precondition(lambda self: self.pair.network.dialled)
    @rule(data=st.data(), refused=st.sampled_from([False, False, False, True]))
    def an_attempt_ends(self, data: st.DataObject, refused: bool) -> None:
        line = data.draw(st.sampled_from(self.pair.network.dialled))
        if refused:
            self.pair.refuse(line)
        else:
            self.pair.accept(line)

    @precondition(lambda self: self.pair.network.carrying)
    @rule(data=st.data(), count=st.integers(1, 8))
    def messages_arrive(self, data: st.DataObject, count: int) -> None:
        line, way = data.draw(st.sampled_from(self.pair.network.carrying))
        self.pair.deliver(line, way, count)

    @precondition(lambda self: len(self.pair.network.carrying) > 1)
    @rule()
    def what_is_oldest_arrives(self) -> None:
        line, way = self.pair.network.carrying[0]
        self.pair.deliver(line, way, 1)

    @rule(rounds=st.integers(1, 4))
    def the_newest_line_is_good(self, rounds: int) -> None:
        """And what is under way on older ones comes late."""
        for _ in range(rounds):
            for number in self.pair.network.dialled[-1:]:
                self.pair.accept(number)
            number = max(self.pair.network.lines, default=0)
            for way in ("to_server", "to_client"):
                if (number, way) in self.pair.network.carrying:
                    self.pair.deliver(number, way, 100)

    @rule(patience=st.integers(0, 3))
    def the_client_tries_again(self, patience: int) -> None:
        """And gets as far as `patience` goes: `resume`, its answer, or beyond."""
        session = self.pair.client.session
        if session.retry_at < float("inf"):
            self.pair.pass_time(max(0.0, session.retry_at - self.pair.now))
        for number in self.pair.network.dialled[-1:]:
            self.pair.accept(number)
        self.the_newest_line_is_good(patience)

    @precondition(lambda self: self.pair.client.session.state is ClientState.WAITING)
    @rule()
    def an_attempt_is_overtaken(self) -> None:
        """Its `resume` is still under way when the client gives it up and makes another attempt."""
        self.the_client_tries_again(0)
        self.pair.pass_time(POLICY.backoff.timeout)
        self.the_client_tries_again(3)

    @precondition(lambda self: self.open_lines)
    @rule(
        data=st.data(),
        to_server=few,
        to_client=few,
        patience=st.sampled_from([None, 0, 1, 2, 3, 3]),
    )
    def a_line_is_cut(
        self, data: st.DataObject, to_server: int, to_client: int, patience: int | None
    ) -> None:
        """And mostly, both ends see that before anything else happens."""
        line = data.draw(st.sampled_from(self.open_lines))
        self.pair.network.cut(line, to_server, to_client)
        if patience is not None:
            for way in ("to_server", "to_client"):
                self.pair.deliver(line, way, 100)
            self.the_client_tries_again(patience)

    @precondition(lambda self: self.attached)
    @rule(
        data=st.data(),
        batches=st.lists(st.integers(2, 5), min_size=1, max_size=2),
        client_sends=st.integers(0, 4),
        to_server=few,
        to_client=few,
    )
    def a_line_is_cut_in_the_middle(
        self,
        data: st.DataObject,
        batches: list[int],
        client_sends: int,
        to_server: int,
        to_client: int,
    ) -> None:
        """Some of what was just written arrives; then the client comes back at once."""
        peer = self.one_of(data, self.attached)
        line = peer.line
        assert line is not None
        if line == self.pair.client.session.line:
            self.the_client_sends(client_sends)
        self.pair.server.send(peer, batches)
        self.pair.network.cut(line, to_server, to_client)
        for way in ("to_client", "to_server"):
            self.pair.deliver(line, way, 100)
        self.the_client_tries_again(3)

    @precondition(lambda self: self.open_lines)
    @rule(data=st.data())
    def a_line_falls_silent(self, data: st.DataObject) -> None:
        self.pair.network.silence(data.draw(st.sampled_from(self.open_lines)))

    @rule(seconds=st.sampled_from([0.1, 1.0, 1.0, 1.0, 5.0, 5.0, 31.0, 36.0, 61.0]))
    def time_goes_by(self, seconds: float) -> None:
        self.pair.pass_time(seconds)

    # --- what always holds --------------------------------------------------------------------

    @property
    def attached(self) -> list[Peer]:
        return [peer for peer in self.pair.server.peers.values() if peer.is_attached]

    @property
    def open_lines(self) -> list[int]:
        lines = self.pair.network.lines
        return [number for number, line in lines.items() if line.accepted and not line.is_silent]

    @staticmethod
    def one_of(data: st.DataObject, peers: list[Peer]) -> Peer:
        """Drawn by name, which reads better when it is printed."""
        by_token = {peer.token: peer for peer in peers}
        return by_token[data.draw(st.sampled_from(sorted(by_token)))]

    @invariant()
    def what_arrived_is_the_beginning_of_what_was_sent(self) -> None:
        self.turns += 1
        sent = {story.name: story.sent for story in self.pair.client.stories}
        sent |= {peer.story.name: peer.story.sent for peer in self.pair.server.all_peers}
        stories = [
            *self.pair.client.stories,
            *(peer.story for peer in self.pair.server.all_peers),
        ]
        for story in stories:
            count = len(story.received)
            if count != self.seen.get(story.name, 0):
                self.seen[story.name] = count
                assert story.received in (of[:count] for of in sent.values()), story.name

    @invariant()
    def a_session_has_one_line(self) -> None:
        of_line = self.pair.server.of_line
        assert {peer.token for peer in of_line.values()} == {peer.token for peer in self.attached}
        assert len(of_line) == len(self.attached)

    @invariant()
    def tails_are_bounded(self) -> None:
        session = self.pair.client.session
        assert session.unacknowledged <= POLICY.tail.frames
        assert session.tail_bytes <= POLICY.tail.bytes
        for peer in self.pair.server.peers.values():
            assert peer.session.unacknowledged <= LIMITS.frames
            assert peer.session.tail_bytes <= LIMITS.bytes

    @invariant()
    def every_loss_is_told(self) -> None:
        client = self.pair.client
        lives = client.story is not None
        ended = client.session.state is ClientState.ENDED
        assert lives <= len(client.stories) - len(client.losses) <= lives + ended
        reasons = [loss.reason for loss in client.losses]
        assert reasons.count("session fenced") <= self.pair.server.usurped

    def teardown(self) -> None:
        self.pair.come_to_rest()
        self.what_arrived_is_the_beginning_of_what_was_sent()
        self.every_loss_is_told()
        client = self.pair.client
        assert all(not loss.final for loss in client.losses)
        if client.session.state is not ClientState.ENDED:
            mate = self.pair.mate()
            assert client.story is not None
            assert mate is not None
            assert client.story.received == mate.story.sent
            assert mate.story.received == client.story.sent


# When it fails, finding the shortest way to fail takes its time.
TestSessionMachine = pytest.mark.timeout(600)(SessionMachine.TestCase)
TestSessionMachine.settings = settings(REPEATABLE, max_examples=500, stateful_step_count=60)
