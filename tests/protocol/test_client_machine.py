"""Any order of commands, answers, ticks and interventions, held against what always holds.

Answers come when they come: at once, later, in another order, or never.
"""

from typing import Any, Final

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

from gateway.protocol import client as client_module
from gateway.protocol import client_base
from gateway.protocol.actions import Published
from gateway.protocol.claims import (
    KeyMissing,
    ServerSubscription,
    TokenExpired,
    TokenInvalid,
)
from gateway.protocol.client_base import Phase
from gateway.protocol.codec import StreamPosition
from gateway.protocol.codes import (
    INTERNAL,
    TOO_MANY_REQUESTS,
    UNSUBSCRIBED_BY_SERVER,
    UNSUBSCRIBED_INSUFFICIENT,
)
from gateway.protocol.subscription import Joined, SubscriptionState
from tests.support.fuzzing import REPEATABLE
from tests.support.recording import (
    Question,
    World,
    connect_grant,
    make_rules,
    subscribe_grant,
)

CHANNELS_MAX: Final = 3
IN_FLIGHT_MAX: Final = 4
WEIGHTS: Final = {"history": 2}
LATE: Final = 25  # turns after which things may happen that end a client
NAMES: Final = ["open:a", "open:b", "log:a", "log:b", "closed:a", "$open:a", "nowhere:a"]
AFTER: Final = {
    Phase.NEW: set(Phase),
    Phase.CONNECTING: {Phase.CONNECTING, Phase.CONNECTED, Phase.FAILED, Phase.CLOSED},
    Phase.CONNECTED: {Phase.CONNECTED, Phase.CLOSED},
    Phase.FAILED: {Phase.FAILED, Phase.CLOSED},
    Phase.CLOSED: {Phase.CLOSED},
}
ERRORS_OF: Final = {
    "connect": {100, 109, 110, 111},
    "subscribe": {100, 102, 103, 105, 106, 107, 108, 109, 111, 112},
    "unsubscribe": {111},
    "publish": {100, 102, 103, 107, 108, 111},
    "presence": {100, 102, 103, 107, 108, 111},
    "presence_stats": {100, 102, 103, 107, 108, 111},
    "history": {100, 102, 103, 107, 108, 111},
    "rpc": {100, 111},
    "refresh": {100, 110, 111},
    "sub_refresh": {100, 103, 107, 109, 110, 111},
    "send": {111},
    "ping": {111},
}

# Mostly what works: a refused command leads nowhere.
names = st.sampled_from([*NAMES[:4] * 3, *NAMES[4:]])
tokens = st.sampled_from(["", "", "own", "another's"])
subscribes = st.fixed_dictionaries(
    {"channel": names},
    optional={
        "token": tokens,
        "recover": st.booleans(),
        "offset": st.integers(0, 9),
        "flag": st.sampled_from([0, 2]),
        "join_leave": st.booleans(),
        "type": st.sampled_from([0, 0, 0, 1]),
    },
)
commands = st.one_of(
    subscribes.map(lambda request: ("subscribe", request)),
    subscribes.map(lambda request: ("subscribe", request)),
    names.map(lambda name: ("unsubscribe", {"channel": name})),
    names.map(lambda name: ("publish", {"channel": name, "data": 1})),
    st.tuples(
        st.sampled_from(["presence", "presence_stats", "history"]),
        st.sampled_from(NAMES[1:5]).map(lambda name: {"channel": name}),
    ),
    st.tuples(st.just("sub_refresh"), st.fixed_dictionaries({"channel": names, "token": tokens})),
    st.sampled_from([("rpc", {"method": "x"}), ("refresh", {"token": "t"}), ("ping", {})]),
)
rare_commands = st.sampled_from(["connect", "send", "refresh"])
server_subscriptions = st.dictionaries(
    st.sampled_from(NAMES[:6]), st.just(ServerSubscription()), max_size=1
)


class ClientMachine(RuleBasedStateMachine):
    """One client of a small server, and a world that takes its time."""

    def __init__(self) -> None:
        super().__init__()
        self._patch = pytest.MonkeyPatch()
        for module in (client_module, client_base):
            self._patch.setattr(module, "IN_FLIGHT_MAX", IN_FLIGHT_MAX)
        self._patch.setattr(client_base, "_WEIGHTS", WEIGHTS)
        self.world = World(
            make_rules(channels_max=CHANNELS_MAX, commands_per_second=1.0, commands_burst=40.0),
            at_once=False,
        )
        self.phase = Phase.NEW
        self.unanswered: dict[int, str] = {}
        self.ended = False
        self.turns = 0
        self.pongs = 0

    # --- what happens -------------------------------------------------------------------------

    def say(self, *commands: tuple[str, dict[str, Any]]) -> None:
        lines = []
        for method, request in commands:
            command_id = self.world.new_id()
            lines.append({"id": command_id, method: request})
            self.unanswered[command_id] = method
        self.world.say(*lines)

    @initialize(
        token=st.sampled_from(["", "t", "t"]),
        subs=st.sampled_from([1, 2, 5]).flatmap(
            lambda size: st.dictionaries(
                names, st.just({"recover": True, "flag": 2}), max_size=size
            )
        ),
        unrecoverable=names,
        granted=server_subscriptions,
        prompt=st.integers(0, 4),
        behind=st.lists(commands, max_size=3),
    )
    def connect(
        self,
        token: str,
        subs: dict[str, Any],
        unrecoverable: str,
        granted: dict[str, ServerSubscription],
        prompt: int,
        behind: list[Any],
    ) -> None:
        self.world.joins[unrecoverable] = None
        self.say(("connect", {"token": token, "subs": subs}), *behind)
        if prompt and token:
            self.world.question("connect token").answer(connect_grant("alice", subs=granted))
        if prompt > 1:
            self.answer_everything()

    @rule(
        commands=st.lists(commands, min_size=1, max_size=5), prompt=st.sampled_from([True, False])
    )
    def say_commands(self, commands: list[tuple[str, dict[str, Any]]], prompt: bool) -> None:
        self.say(*commands)
        if prompt:
            self.answer_everything()

    @rule(first=names, then=names)
    def subscribe_and_think_better_of_it(self, first: str, then: str) -> None:
        self.say(
            ("subscribe", {"channel": first}),
            ("unsubscribe", {"channel": first}),
            ("subscribe", {"channel": then}),
        )

    @precondition(lambda self: self.world.inside)
    @rule(data=st.data())
    def refresh_and_think_better_of_it(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(list(self.world.inside)))
        self.say(
            ("sub_refresh", {"channel": name, "token": "own"}), ("unsubscribe", {"channel": name})
        )

    @rule(method=st.sampled_from(["publish", "presence", "history", "rpc"]))
    def say_too_much_at_once(self, method: str) -> None:
        request = {"channel": "log:a", "data": 1} if method != "rpc" else {"method": "x"}
        self.say(*[(method, request)] * (IN_FLIGHT_MAX + 2))

    def answer_everything(self) -> None:
        """With success, the last question first."""
        while self.world.questions:
            question = self.world.questions[-1]
            if question.kind == "connect token":
                question.answer(connect_grant(self.world.client.user))
            elif question.kind == "subscribe token":
                channel = next(iter(self.world.client.subscriptions), "open:a")
                question.answer(subscribe_grant(channel, self.world.client.user))
            elif question.kind == "prepare":
                question.answer(None)
            elif question.kind == "publish":
                question.answer(Published(5, "e"))
            else:
                question.answer(b"{}")

    @precondition(lambda self: self.turns > LATE)
    @rule(method=rare_commands)
    def say_something_final(self, method: str) -> None:
        self.say((method, {}))

    def pong(self) -> None:
        if self.world.pings > self.pongs:
            self.pongs = self.world.pings
            self.world.say({})

    @precondition(lambda self: self.world.questions)
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        question = data.draw(st.sampled_from(self.world.questions))
        question.answer(data.draw(self.outcomes(question)))

    def outcomes(self, question: Question) -> st.SearchStrategy[Any]:
        late = self.turns > LATE
        lifetimes = st.sampled_from([None, 60.0, 0.0] if late else [None, 60.0])
        if question.kind == "connect token":
            good: st.SearchStrategy[Any] = st.builds(
                connect_grant, st.just("alice"), lifetimes, subs=server_subscriptions
            )
            return good | st.sampled_from([TokenExpired(), KeyMissing("k")]) if late else good
        if question.kind == "subscribe token":
            # The world doesn't say for whom it is: whoever opens, or refreshes, one of these.
            subscriptions = self.world.client.subscriptions
            wanted = st.sampled_from(sorted(subscriptions) or ["open:a"])
            good = st.builds(subscribe_grant, wanted, st.just(self.world.client.user), lifetimes)
            bad = st.sampled_from([TokenExpired(), KeyMissing("k")])
            return good | bad | st.just(TokenInvalid("x")) if late else good | bad
        if question.kind == "prepare":
            return st.sampled_from([None, None, None, INTERNAL])
        if question.kind == "publish":
            return st.sampled_from([Published(), Published(5, "e"), INTERNAL, TOO_MANY_REQUESTS])
        return st.sampled_from([b"{}", b"{}", INTERNAL])

    @rule(seconds=st.sampled_from([0.0, 0.5, 3.0, 7.0]))
    def time_goes_by(self, seconds: float) -> None:
        self.world.pass_time(seconds)
        self.pong()

        assert self.world.client.next_deadline() > self.world.now

    @rule(
        name=names,
        joined=st.sampled_from(
            [None, Joined(), Joined(StreamPosition(9, "e"), recovered=True, publications=(b"{}",))]
        ),
    )
    def joining_will_go_like_this(self, name: str, joined: Joined | None) -> None:
        self.world.joins[name] = joined

    @precondition(lambda self: self.turns > LATE)
    @rule(seconds=st.sampled_from([12.0, 40.0, 200.0]))
    def much_time_goes_by(self, seconds: float) -> None:
        self.world.pass_time(seconds)

        assert self.world.client.next_deadline() > self.world.now

    @rule(name=names)
    def the_server_subscribes(self, name: str) -> None:
        self.world.client.subscribe_by_server(name, ServerSubscription())

    @rule(name=names)
    def the_server_unsubscribes(self, name: str) -> None:
        self.world.client.unsubscribe_by_server(name, UNSUBSCRIBED_BY_SERVER)

    @rule(data=st.data())
    def a_position_is_lost(self, data: st.DataObject) -> None:
        late = self.turns > LATE
        there = [name for name, one in self.world.inside.items() if late or not one.server_side]
        if there:
            name = data.draw(st.sampled_from(there))
            self.world.client.lose_position(name, UNSUBSCRIBED_INSUFFICIENT)

    @rule(lifetime=st.sampled_from([None, 60.0]))
    def the_server_refreshes(self, lifetime: float | None) -> None:
        self.world.client.refresh_by_server(lifetime, self.world.now)

    @precondition(lambda self: self.turns > LATE)
    @rule()
    def the_line_is_cut(self) -> None:
        self.world.client.closed()
        self.ended = True
        self.steps_at_the_end = len(self.world.steps)

    # --- what always holds --------------------------------------------------------------------

    @invariant()
    def each_command_gets_one_reply_at_most(self) -> None:
        self.turns += 1
        for message in self.world.take_sent():
            if "id" in message:
                # KeyError: a second reply, or one to a command that was never sent.
                method = self.unanswered.pop(message["id"])
                if "error" in message:
                    assert message["error"]["code"] in ERRORS_OF[method], message
                else:
                    assert set(message) == {"id", method}
            else:
                assert set(message) == {"push"}

    @invariant()
    def phases_follow_the_diagram(self) -> None:
        phase = self.world.client.phase
        assert phase in AFTER[self.phase]
        self.phase = phase
        assert (phase is Phase.CLOSED) == (self.world.closed is not None or self.ended)

    @invariant()
    def nothing_happens_after_the_end(self) -> None:
        """The world objects by itself when the client asked for the end."""
        if self.ended:
            assert len(self.world.steps) == self.steps_at_the_end
            assert self.world.client.next_deadline() == float("inf")

    @invariant()
    def a_client_is_inside_its_live_subscriptions_and_no_others(self) -> None:
        live = {
            name: subscription
            for name, subscription in self.world.client.subscriptions.items()
            if subscription.state is SubscriptionState.LIVE
        }
        assert live == self.world.inside

    @invariant()
    def the_next_deadline_is_never_behind_the_end_of_a_token(self) -> None:
        client = self.world.client
        if client.phase is not Phase.CLOSED:
            ends = [client.expires_at, *(sub.expires_at for sub in client.subscriptions.values())]
            assert client._token_ends == min(ends)
            assert client.next_deadline() <= min(ends) + client._rules.expiry_grace

    @invariant()
    def limits_are_kept(self) -> None:
        assert len(self.world.client.subscriptions) <= CHANNELS_MAX
        waiting = [
            WEIGHTS.get(question.kind, 1)
            for question in self.world.questions
            if question.kind in ("publish", "presence", "history", "rpc")
        ]
        assert sum(waiting) <= IN_FLIGHT_MAX

    def teardown(self) -> None:
        """In the end everything is answered, and a client that is still there has all replies."""
        try:
            self.answer_everything()
            self.each_command_gets_one_reply_at_most()
            self.phases_follow_the_diagram()
            assert self.phase is not Phase.CONNECTING
            if self.phase is Phase.CONNECTED:
                assert self.unanswered == {}
                self.nothing_is_held_up()
                self.world.client.closed()
            assert self.world.inside == {}
        finally:
            self._patch.undo()

    def nothing_is_held_up(self) -> None:
        """Once all is answered, as many commands may be in flight as at first."""
        self.world.now += 100.0  # and none is refused for its rate
        self.say(*[("rpc", {"method": "x"})] * (IN_FLIGHT_MAX + 1))
        assert len(self.world.questions) == IN_FLIGHT_MAX
        assert [reply["error"]["code"] for reply in self.world.take_sent()] == [111]


# When it fails, finding the shortest way to fail takes its time.
TestClientMachine = pytest.mark.timeout(600)(ClientMachine.TestCase)
TestClientMachine.settings = settings(REPEATABLE, max_examples=200, stateful_step_count=50)
