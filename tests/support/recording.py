"""A double of the world around one client (`gateway.protocol.actions.Actions`).

It notes what the client does and holds what the client asks, to be answered at once, later, in
another order, or never. What no client may do, whatever a test is about, fails in here: send after
the end, enter a channel twice, leave one that it isn't in, send what isn't JSON on one line.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

from gateway.protocol.actions import (
    ClientRules,
    ConnectGrant,
    Published,
    Publishing,
    SubscribeGrant,
)
from gateway.protocol.channels import ChannelOptions, Namespaces
from gateway.protocol.claims import ConnectClaims, SubscribeClaims, TokenError, TokenInvalid
from gateway.protocol.client import Client
from gateway.protocol.client_base import Phase
from gateway.protocol.codec import Method, StreamPosition
from gateway.protocol.codes import Disconnect, ErrorCode
from gateway.protocol.permissions import ChannelRules
from gateway.protocol.subscription import Joined, Subscription

START: Final = 1000.0
"""The time at which every world begins, in seconds."""

LOGGED: Final[Mapping[str, Any]] = {"history_size": 100, "history_ttl": 3600.0}
"""Options that make a channel keep a log."""

OPEN: Final[Mapping[str, Any]] = {
    f"allow_{what}_for_{whom}": True
    for what in ("subscribe", "publish", "presence", "history")
    for whom in ("client", "anonymous")
}
"""Options that allow everything to everybody."""

_NAMESPACES: Final = {
    "open": ChannelOptions(**OPEN),
    "log": ChannelOptions(**OPEN, **LOGGED, presence=True, join_leave=True, force_recovery=True),
    "closed": ChannelOptions(),
}


def make_rules(
    namespaces: Mapping[str, ChannelOptions] = _NAMESPACES,
    default: ChannelOptions = _NAMESPACES["open"],
    *,
    channel_length_max: int = 255,
    **changes: Any,
) -> ClientRules:
    """Rules with the product's own defaults, where anonymous clients may connect."""
    insecure = bool(changes.get("insecure", False))
    rules = ClientRules(
        channels=ChannelRules(Namespaces(default, namespaces), channel_length_max, insecure),
        version="1.2.3",
        ping_interval=25.0,
        pong_timeout=8.0,
        stale_close_delay=10.0,
        expiry_grace=25.0,
        channels_max=128,
        commands_per_second=200.0,
        commands_burst=1000.0,
        allow_anonymous=True,
    )
    return replace(rules, **changes)


def connect_grant(
    user: str = "alice", lifetime: float | None = None, **claims: Any
) -> ConnectGrant:
    """What a good connection token gives."""
    return ConnectGrant(ConnectClaims(user, **claims), lifetime)


def subscribe_grant(
    channel: str, user: str = "", lifetime: float | None = None, **claims: Any
) -> SubscribeGrant:
    """What a good subscription token gives."""
    return SubscribeGrant(SubscribeClaims(user, channel, **claims), lifetime)


Kind = Literal[
    "connect token", "subscribe token", "prepare", "publish", "presence", "history", "rpc"
]


@dataclass(slots=True, eq=False)
class Question:
    """What a client waits for. `subject` is the token, the channel or the procedure's name."""

    kind: Kind
    subject: str
    details: Any
    _answer: Callable[[Any], None]
    answered: bool = False

    def answer(self, outcome: Any = None) -> None:
        """Answer it, now. Each question is answered once."""
        assert not self.answered, f"answered {self.kind} twice"
        self.answered = True
        self._answer(outcome)


@dataclass(slots=True)
class World:
    """A client, and everything around it.

    With `at_once` each question is answered before the client's call returns, by `tokens` and
    `outcomes` or, where those say nothing, with success; unknown tokens are invalid.
    """

    rules: ClientRules = field(default_factory=make_rules)
    at_once: bool = True
    native_ping: bool = False
    now: float = START
    tokens: dict[str, ConnectGrant | SubscribeGrant | TokenError] = field(default_factory=dict)
    outcomes: dict[Kind, Any] = field(default_factory=dict)
    joins: dict[str, Joined | None] = field(default_factory=dict)
    """How subscriptions enter their channels, where that isn't just `Joined()`. None: they can't be
    recovered, so those who insist don't enter."""
    registration: Disconnect | None = None

    client: Client = field(init=False)
    asked: list[Question] = field(init=False, default_factory=list)
    sent: list[Any] = field(init=False, default_factory=list)
    """Replies and pushes, parsed."""
    steps: list[str] = field(init=False, default_factory=list)
    """Sends, joins and leaves in their order, such as "join open:x" and "reply 3"."""
    inside: dict[str, Subscription] = field(init=False, default_factory=dict)
    """The channels that were joined and not left."""
    entered_from: dict[str, StreamPosition | None] = field(init=False, default_factory=dict)
    """From where each channel was asked to be recovered when it was joined last."""
    closed: Disconnect | None = field(init=False, default=None)
    detail: str = field(init=False, default="")
    pings: int = field(init=False, default=0)
    registered: int = field(init=False, default=0)
    commands: list[Method] = field(init=False, default_factory=list)
    errors: list[tuple[Method, ErrorCode]] = field(init=False, default_factory=list)
    _next_id: int = field(init=False, default=1)

    def __post_init__(self) -> None:
        self.client = Client("client-1", self.rules, self, self.now, self.native_ping)

    # --- what tests do ------------------------------------------------------------------------

    def say(self, *commands: object) -> list[Any]:
        """Send commands in one message; text goes as it is. Returns what came back by then."""
        lines = [one if isinstance(one, str) else json.dumps(one) for one in commands]
        before = len(self.sent)
        self.client.receive("\n".join(lines), self.now)
        return self.sent[before:]

    def new_id(self) -> int:
        """An id that no command had yet."""
        self._next_id += 1
        return self._next_id

    def ask(self, method: str, /, **request: object) -> Any:
        """Send one command; returns its reply without the id, None when there is none yet."""
        command_id = self.new_id()
        replies = [
            one
            for one in self.say({"id": command_id, method: request})
            if one.get("id") == command_id
        ]
        assert len(replies) <= 1, replies
        if not replies:
            return None
        reply = dict(replies[0])
        del reply["id"]
        return reply

    def connect(self, **request: object) -> Any:
        """Connect with success; returns the result."""
        reply = self.ask("connect", **request)
        assert reply is not None, f"no reply; closed: {self.closed} {self.detail}"
        assert self.client.phase is Phase.CONNECTED, reply
        return reply["connect"]

    def connect_as(self, user: str, lifetime: float | None = None, **claims: Any) -> Any:
        """Connect with a token of this user; returns the result."""
        self.tokens["t"] = connect_grant(user, lifetime, **claims)
        return self.connect(token="t")

    def subscribe(self, channel: str, **request: object) -> Any:
        """Subscribe with success; returns the result."""
        return self.ask("subscribe", channel=channel, **request)["subscribe"]

    def is_open(self) -> bool:
        """Whether the client hasn't asked for its end."""
        return self.closed is None

    def pass_time(self, seconds: float) -> None:
        """Let time go by, with a tick at each deadline and one at the end."""
        end = self.now + seconds
        while self.client.next_deadline() <= end:
            self.now = max(self.now, self.client.next_deadline())
            self.client.tick(self.now)
        self.now = end
        self.client.tick(end)

    @property
    def questions(self) -> list[Question]:
        """What is still unanswered, oldest first."""
        return [question for question in self.asked if not question.answered]

    def question(self, kind: Kind) -> Question:
        """The oldest unanswered question of a kind."""
        return next(question for question in self.questions if question.kind == kind)

    def take_sent(self) -> list[Any]:
        """What was sent since this was called last."""
        sent, self.sent = self.sent, []
        return sent

    # --- what the client does -----------------------------------------------------------------

    def _act(self, step: str) -> None:
        assert self.closed is None, f"{step} after the end"
        self.steps.append(step)

    def _ask(
        self, kind: Kind, subject: str, details: Any, answer: Callable[[Any], None], default: Any
    ) -> None:
        self._act(f"{kind} {subject}")
        question = Question(kind, subject, details, answer)
        self.asked.append(question)
        if self.at_once:
            question.answer(self.outcomes.get(kind, default))

    def send(self, payload: bytes) -> None:
        """See `Actions`."""
        assert b"\n" not in payload
        message = json.loads(payload)
        self._act(f"reply {message['id']}" if "id" in message else "push")
        self.sent.append(message)

    def ping(self) -> None:
        """See `Actions`."""
        self._act("ping")
        self.pings += 1

    def close(self, disconnect: Disconnect, detail: str) -> None:
        """See `Actions`."""
        self._act("close")
        assert not self.inside, "closed while inside channels"
        self.closed = disconnect
        self.detail = detail

    def verify_connect(
        self, token: str, answer: Callable[[ConnectGrant | TokenError, float], None]
    ) -> None:
        """See `Actions`."""
        default = self.tokens.get(token)
        if not isinstance(default, ConnectGrant | TokenError):
            default = TokenInvalid("unknown")
        self._ask("connect token", token, None, lambda grant: answer(grant, self.now), default)

    def verify_subscribe(
        self, token: str, answer: Callable[[SubscribeGrant | TokenError, float], None]
    ) -> None:
        """See `Actions`."""
        default = self.tokens.get(token)
        if not isinstance(default, SubscribeGrant | TokenError):
            default = TokenInvalid("unknown")
        self._ask("subscribe token", token, None, lambda grant: answer(grant, self.now), default)

    def register(self) -> Disconnect | None:
        """See `Actions`."""
        self._act(f"register {self.client.user}")
        self.registered += 1
        return self.registration

    def prepare(
        self, subscription: Subscription, answer: Callable[[ErrorCode | None, float], None]
    ) -> None:
        """See `Actions`."""
        self._ask(
            "prepare",
            subscription.channel,
            subscription,
            lambda error: answer(error, self.now),
            None,
        )

    def join(self, subscription: Subscription) -> Joined | None:
        """See `Actions`."""
        channel = subscription.channel
        self._act(f"join {channel}")
        assert channel not in self.inside, f"joined {channel} twice"
        self.entered_from[channel] = subscription.since
        joined = self.joins.get(channel, Joined())
        if joined is None and not subscription.reject_unrecovered:
            joined = Joined(recovered=False)
        if joined is not None:
            self.inside[channel] = subscription
        return joined

    def leave(self, subscription: Subscription) -> None:
        """See `Actions`."""
        self._act(f"leave {subscription.channel}")
        assert self.inside.pop(subscription.channel) is subscription

    def publish(self, command_id: int, publishing: Publishing) -> None:
        """See `Actions`."""
        self._ask(
            "publish",
            publishing.channel,
            publishing,
            lambda outcome: self.client.published(command_id, outcome),
            Published(),
        )

    def presence(self, command_id: int, channel: str, stats_only: bool) -> None:
        """See `Actions`."""
        method: Method = "presence_stats" if stats_only else "presence"
        self._ask(
            "presence",
            channel,
            stats_only,
            lambda outcome: self.client.answer(command_id, method, outcome),
            b"{}",
        )

    def history(
        self,
        command_id: int,
        channel: str,
        options: ChannelOptions,
        limit: int,
        since: StreamPosition | None,
        reverse: bool,
    ) -> None:
        """See `Actions`."""
        self._ask(
            "history",
            channel,
            (options, limit, since, reverse),
            lambda outcome: self.client.answer(command_id, "history", outcome),
            b"{}",
        )

    def call(self, command_id: int, method: str, data: bytes) -> None:
        """See `Actions`."""
        self._ask(
            "rpc",
            method,
            data,
            lambda outcome: self.client.answer(command_id, "rpc", outcome),
            b"{}",
        )

    def command_seen(self, method: Method) -> None:
        """See `Actions`."""
        self.commands.append(method)

    def error_seen(self, method: Method, error: ErrorCode) -> None:
        """See `Actions`."""
        self.errors.append((method, error))
