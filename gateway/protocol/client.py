"""The channel protocol (PROTOCOL.md part A) of one client, as a state machine.

Theory of operation
-------------------
Text messages and the time go in; what the client asks of the world goes out through `Actions`,
whose answers come back as calls: `verified`, `prepared`, `published`, and so on. Nothing here
waits, looks at a clock or knows a socket. Times are seconds of one monotonic clock; what a token
says in wall-clock time is turned into a lifetime by whoever verifies it.

A client goes through four phases:

    NEW ──connect──▶ CONNECTING ──verified, subscriptions prepared──▶ CONNECTED
     │                   │                                                │
     │                   └──error reply──▶ FAILED                         │
     └───────────────────────┴───────────────┴──────── close ──▶ CLOSED ◀─┘

In CONNECTING, commands wait in line (the SDK sends its subscribe commands right behind connect). In
FAILED any further command is a protocol error. Commands are handled in order; the answers of those
that need the database may come in another order, as their ids allow.

A subscription is OPENING until the world has what joining needs (`prepared`); joining, the reply
and becoming LIVE then happen in one step, so no publication can slip between the reply and the
first push. One that was cancelled while it opened is answered then and no longer in the table.
"""

from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from typing import Final

from gateway.protocol import codec
from gateway.protocol.actions import (
    Actions,
    ClientRules,
    ConnectGrant,
    Published,
    Publishing,
    SubscribeGrant,
)
from gateway.protocol.channels import ChannelOptions, is_private
from gateway.protocol.claims import (
    ConnectClaims,
    KeyMissing,
    ServerSubscription,
    SubscribeClaims,
    TokenError,
    TokenExpired,
)
from gateway.protocol.codec import Command, Method, StreamPosition
from gateway.protocol.codes import (
    ALREADY_SUBSCRIBED,
    BAD_PROTOCOL,
    BAD_REQUEST,
    CHANNEL_LIMIT,
    CONNECTION_EXPIRED,
    EXPIRED,
    INSUFFICIENT_STATE,
    INTERNAL,
    INVALID_TOKEN,
    LIMIT_EXCEEDED,
    NO_PONG,
    NOT_AVAILABLE,
    PERMISSION_DENIED,
    STALE,
    SUBSCRIPTION_EXPIRED,
    TOKEN_EXPIRED,
    TOO_MANY,
    TOO_MANY_REQUESTS,
    UNAVAILABLE,
    UNRECOVERABLE,
    Disconnect,
    ErrorCode,
    Unsubscribe,
)
from gateway.protocol.limits import TokenBucket, is_unfit_for_others
from gateway.protocol.permissions import Operation
from gateway.protocol.subscription import NEVER, Subscription, SubscriptionState

IDEMPOTENCY_KEY_LENGTH_MAX: Final = 64
HISTORY_LIMIT_MAX: Final = 300
# Commands of one client that may wait for the database at once, and that may wait behind connect.
# The SDKs send a few; the bound keeps one client from filling the publish queue alone.
IN_FLIGHT_MAX: Final = 1024
# Characters of messages that may wait behind connect, while a token's key is fetched: nobody has
# shown yet who they are. The SDKs send one message with everything.
WAITING_MAX: Final = 256 * 1024
# How much of that one command takes: the answers to these may be a megabyte long.
_WEIGHTS: Final[Mapping[Method, int]] = {"history": 64}
# Refused commands in a row (rate) after which a client that doesn't listen is closed.
REFUSALS_MAX: Final = 256


class Phase(Enum):
    """Where a client is between its first byte and its last."""

    NEW = "new"
    CONNECTING = "connecting"
    CONNECTED = "connected"
    FAILED = "failed"
    CLOSED = "closed"


class Client:
    """One client's state. `receive` and `tick` are called by the connection; see the module."""

    __slots__ = (
        "_actions",
        "_bucket",
        "_connect_id",
        "_connect_left",
        "_in_flight",
        "_info_json",
        "_ping_at",
        "_pong_by",
        "_refusals",
        "_rules",
        "_session",
        "_stale_at",
        "_waiting",
        "_waiting_size",
        "deadline_moved",
        "expires_at",
        "id",
        "info",
        "native_ping",
        "phase",
        "subscriptions",
        "user",
    )

    def __init__(
        self,
        client_id: str,
        rules: ClientRules,
        actions: Actions,
        now: float,
        native_ping: bool = False,
        session: bool = False,
    ) -> None:
        self.id = client_id
        self.user = ""
        self.info: bytes | None = None
        self.phase = Phase.NEW
        self.subscriptions: dict[str, Subscription] = {}
        self._rules = rules
        self._actions = actions
        self.native_ping = native_ping
        self._session = session  # a session layer below does the pinging (PROTOCOL.md B.1)
        # Set when `next_deadline` may have come nearer; cleared by the caller.
        self.deadline_moved = False
        self._bucket = TokenBucket(rules.commands_burst, now)
        self._refusals = 0
        self._in_flight = 0
        self._info_json = b""
        self._connect_id = 0
        self._connect_left = 0  # subscriptions that the connect reply still waits for
        self._waiting: list[Command] | None = None
        self._waiting_size = 0
        self._stale_at = now + rules.stale_close_delay
        self._ping_at = NEVER
        self._pong_by = NEVER
        self.expires_at = NEVER  # when its token ends; the grace comes on top

    def restore(
        self,
        user: str,
        info: bytes | None,
        expires_at: float,
        subscriptions: Iterable[Subscription],
    ) -> None:
        """Go on as a client that a former process had connected and subscribed."""
        assert self.phase is Phase.NEW, "it has a life of its own already"
        self.phase = Phase.CONNECTED
        self.user = user
        self.info = info
        self.expires_at = expires_at
        self._stale_at = NEVER
        self.subscriptions = {sub.channel: sub for sub in subscriptions}

    @property
    def is_waited_for(self) -> bool:
        """Whether a command of its, or a subscription, waits for an answer from elsewhere."""
        return self._in_flight > 0 or any(
            sub.state is SubscriptionState.OPENING for sub in self.subscriptions.values()
        )

    # --- input ------------------------------------------------------------------------------------

    def receive(self, message: str, now: float) -> None:
        """Take one text message."""
        if self.phase is Phase.CLOSED:
            return
        try:
            commands = codec.decode_commands(message)
        except codec.MalformedCommand as error:
            self._close(BAD_PROTOCOL, str(error))
            return
        if self.phase is Phase.CONNECTING:
            self._waiting_size += len(message)
        for command in commands:
            self._take(command, now)

    def native_pong(self) -> None:
        """A native pong frame came (A.1.4)."""
        self._pong_by = NEVER

    def _take(self, command: Command, now: float) -> None:
        phase = self.phase
        if phase is Phase.CONNECTED:
            self._dispatch(command, now)
        elif phase is Phase.CONNECTING:
            assert self._waiting is not None, "set with the phase"
            if len(self._waiting) >= IN_FLIGHT_MAX or self._waiting_size > WAITING_MAX:
                self._close(TOO_MANY, "too many commands before the connect reply")
            else:
                self._waiting.append(command)
        elif phase is Phase.NEW:
            if command.connect is None or not command.id or codec.method_of(command) is None:
                self._close(BAD_PROTOCOL, "the first command must be connect")
            else:
                self._actions.command_seen("connect")
                self._connect(command.id, command.connect, now)
        elif phase is Phase.FAILED:
            self._close(BAD_PROTOCOL, "a command after a failed connect")

    def _dispatch(self, command: Command, now: float) -> None:
        method = codec.method_of(command)
        if method is None:
            if command == _EMPTY:
                self._take_pong()
            else:
                self._close(BAD_PROTOCOL, "a command needs exactly one known method")
            return
        if command.id == 0 and method != "send":
            self._close(BAD_PROTOCOL, "a command without id")
            return
        self._actions.command_seen(method)
        rules = self._rules
        if not self._bucket.take(now, rules.commands_per_second, rules.commands_burst):
            self._refuse(command.id, method)
            return
        self._refusals = 0
        _HANDLERS[method](self, command.id, command, now)

    def _take_pong(self) -> None:
        if self._session:
            return  # a client library that doesn't swallow its SDK's answers to session pings
        if self._pong_by == NEVER or self.native_ping:
            self._close(BAD_PROTOCOL, "a pong without a ping")
        else:
            self._pong_by = NEVER

    def _refuse(self, command_id: int, method: Method) -> None:
        self._refusals += 1
        if self._refusals > REFUSALS_MAX:
            self._close(TOO_MANY, "commands went on at a refused rate")
        elif command_id:
            self._fail(command_id, method, TOO_MANY_REQUESTS)

    # --- connect ----------------------------------------------------------------------------------

    def _connect(self, command_id: int, request: codec.ConnectRequest, now: float) -> None:
        self.phase = Phase.CONNECTING
        self._connect_id = command_id
        self._waiting = []
        rules = self._rules
        if request.token:

            def answer(grant: ConnectGrant | TokenError, now: float) -> None:
                if self.phase is not Phase.CONNECTING:
                    return
                if isinstance(grant, TokenExpired):
                    self._fail_connect(TOKEN_EXPIRED)
                elif isinstance(grant, KeyMissing):
                    self._fail_connect(INTERNAL)
                elif isinstance(grant, TokenError):
                    self._close(INVALID_TOKEN, str(grant))
                else:
                    self._identify(grant, request, now)

            self._actions.verify_connect(request.token, answer)
        elif rules.allow_anonymous or rules.insecure:
            self._identify(ConnectGrant(ConnectClaims(user="")), request, now)
        else:
            self._close(BAD_PROTOCOL, "no token, and anonymous connections are off")

    def _identify(self, grant: ConnectGrant, request: codec.ConnectRequest, now: float) -> None:
        claims = grant.claims
        if grant.lifetime is not None:
            if grant.lifetime <= 0:
                self._fail_connect(EXPIRED)
                return
            self.expires_at = now + grant.lifetime
            self.deadline_moved = True
        self.user = claims.user
        self.info = claims.info
        refusal = self._actions.register()
        if refusal is not None:
            self._close(refusal, "too many connections of one user")
            return
        subscriptions = self._server_subscriptions(claims.subs, request.subs)
        if isinstance(subscriptions, Disconnect):
            self._close(subscriptions, "the channels of the connection token")
            return
        if not subscriptions:
            self._finish_connect(now)
            return
        self._connect_left = len(subscriptions)
        for subscription in subscriptions:
            self.subscriptions[subscription.channel] = subscription
        for subscription in subscriptions:
            self._actions.prepare(subscription, self._take_prepared_at_connect)

    def _take_prepared_at_connect(self, error: ErrorCode | None, now: float) -> None:
        if self.phase is not Phase.CONNECTING:
            return
        if error is not None:
            self._fail_connect(error)
            return
        self._connect_left -= 1
        if self._connect_left == 0:
            self._finish_connect(now)

    def _server_subscriptions(
        self,
        granted: Mapping[str, ServerSubscription],
        asked: Mapping[str, codec.SubscribeRequest],
    ) -> list[Subscription] | Disconnect:
        """The token's channels, the personal one, and those asked for that need no token."""
        rules = self._rules.channels
        grants = dict(granted)
        if self._rules.personal_channel and self.user:
            grants.setdefault(f"#{self.user}", ServerSubscription())
        for channel in asked:
            if not channel or channel in grants:
                continue
            options = rules.resolve(channel)
            if isinstance(options, ChannelOptions) and rules.may_subscribe(
                channel, options, self.user
            ):
                grants[channel] = ServerSubscription()
        if len(grants) > self._rules.channels_max:
            return CHANNEL_LIMIT
        subscriptions = []
        for channel, grant in grants.items():
            subscription = self._server_subscription(channel, grant)
            if subscription is None:
                return BAD_PROTOCOL
            request = asked.get(channel)
            if request is not None:
                subscription.ask(request)
            subscriptions.append(subscription)
        return subscriptions

    def _server_subscription(self, channel: str, grant: ServerSubscription) -> Subscription | None:
        options = self._rules.channels.resolve(channel) if channel else None
        if not isinstance(options, ChannelOptions):
            return None
        subscription = Subscription(channel, options)
        subscription.server_side = True
        subscription.chan_info = grant.info
        subscription.data = grant.data
        subscription.apply(grant.override)
        return subscription

    def _finish_connect(self, now: float) -> None:
        results = {}
        for channel, subscription in list(self.subscriptions.items()):
            result = self._enter(subscription, now)
            if result is not None:
                results[channel] = result
            else:
                del self.subscriptions[channel]
        rules = self._rules
        self.phase = Phase.CONNECTED
        self._stale_at = NEVER
        self.deadline_moved = True
        if rules.ping_interval and not self._session:
            # A random point between half an interval and a whole one (A.3): ids are random.
            fraction = (hash(self.id) & 0xFFFF) / 0x10000
            self._ping_at = now + rules.ping_interval * (0.5 + fraction / 2)
        protocol_pings = rules.ping_interval > 0 and not self.native_ping
        result = codec.connect_result(
            client=self.id,
            version=rules.version,
            # Whole seconds on the wire; a client allows ten more before it calls silence a loss.
            ping=max(1, int(rules.ping_interval)) if protocol_pings else 0,
            pong=protocol_pings,
            ttl=_seconds_left(self.expires_at, now),
            subs=results,
        )
        self._actions.send(codec.reply(self._connect_id, "connect", result))
        waiting, self._waiting = self._waiting, None
        for command in waiting or ():
            self._take(command, now)

    def _fail_connect(self, error: ErrorCode) -> None:
        self.phase = Phase.FAILED
        self._waiting = None
        self.subscriptions.clear()  # none is live before the connect reply
        self._fail(self._connect_id, "connect", error)

    # --- subscribe --------------------------------------------------------------------------------

    def _subscribe(self, command_id: int, command: Command, now: float) -> None:
        request = command.subscribe
        assert request is not None, "dispatched by its presence"
        channel = request.channel
        if not channel:
            self._close(BAD_PROTOCOL, "subscribe without a channel")
            return
        options = self._may_open(request)
        if isinstance(options, ErrorCode):
            self._fail(command_id, "subscribe", options)
            return
        subscription = Subscription(channel, options)
        subscription.command_id = command_id
        if request.token:
            self.subscriptions[channel] = subscription

            def answer(grant: SubscribeGrant | TokenError, now: float) -> None:
                self._take_subscribe_grant(subscription, request, grant, now)

            self._actions.verify_subscribe(request.token, answer)
        elif self._rules.channels.may_subscribe(channel, options, self.user):
            self.subscriptions[channel] = subscription
            subscription.ask(request)
            self._open(subscription)
        else:
            self._fail(command_id, "subscribe", PERMISSION_DENIED)

    def _may_open(self, request: codec.SubscribeRequest) -> ChannelOptions | ErrorCode:
        channel = request.channel
        options = self._rules.channels.resolve(channel)
        if isinstance(options, ErrorCode):
            return options
        if request.type or bytes(request.tf):
            return NOT_AVAILABLE
        if channel in self.subscriptions:
            return ALREADY_SUBSCRIBED
        if len(self.subscriptions) >= self._rules.channels_max:
            return LIMIT_EXCEEDED
        if is_private(channel) and not request.token:
            return PERMISSION_DENIED
        return options

    def _take_subscribe_grant(
        self,
        subscription: Subscription,
        request: codec.SubscribeRequest,
        grant: SubscribeGrant | TokenError,
        now: float,
    ) -> None:
        if self.subscriptions.get(subscription.channel) is not subscription:
            return
        if isinstance(grant, TokenError):
            self._drop(subscription, _refusal(grant))
        elif not self._token_fits(grant.claims, subscription.channel):
            self._close(INVALID_TOKEN, "a subscription token of another channel, user or client")
        elif not self._hold(subscription, grant, now):
            self._drop(subscription, TOKEN_EXPIRED)
        else:
            subscription.apply(grant.claims.override)
            subscription.ask(request)
            self._open(subscription)

    def _token_fits(self, claims: SubscribeClaims, channel: str) -> bool:
        return (
            claims.channel == channel
            and claims.user == self.user
            and claims.client in ("", self.id)
        )

    def _hold(self, subscription: Subscription, grant: SubscribeGrant, now: float) -> bool:
        """Note how long the token holds; False when it has already ended."""
        if grant.lifetime is not None and grant.lifetime <= 0:
            return False
        subscription.expires_at = NEVER if grant.lifetime is None else now + grant.lifetime
        self.deadline_moved = True
        subscription.chan_info = grant.claims.info
        return True

    def _open(self, subscription: Subscription) -> None:
        def answer(error: ErrorCode | None, now: float) -> None:
            if self.subscriptions.get(subscription.channel) is not subscription:
                return
            if error is not None:
                self._drop(subscription, error)
            else:
                self._finish_subscribe(subscription, now)

        self._actions.prepare(subscription, answer)

    def _finish_subscribe(self, subscription: Subscription, now: float) -> None:
        result = self._enter(subscription, now)
        if result is None:
            self._drop(subscription, UNRECOVERABLE)
        elif subscription.command_id:
            self._actions.send(codec.reply(subscription.command_id, "subscribe", result))
        else:
            self._actions.send(codec.subscribe_push(subscription.channel, result))

    def _enter(self, subscription: Subscription, now: float) -> bytes | None:
        """Join and go live; return the SubscribeResult, None when the client won't have it."""
        joined = self._actions.join(subscription)
        if joined is None:
            return None
        subscription.state = SubscriptionState.LIVE
        position = joined.position if subscription.positioned else None
        since = subscription.since
        if joined.recovered and since is not None and position is not None:
            # The client's own offset: it advances as it processes the publications (A.5.3).
            position = StreamPosition(since.offset, position.epoch)
        subscription.since = None
        return codec.subscribe_result(
            position=position,
            recoverable=subscription.recoverable,
            positioned=subscription.positioned,
            recovered=joined.recovered,
            publications=joined.publications,
            gap=joined.gap,
            ttl=_seconds_left(subscription.expires_at, now),
            data=subscription.data,
        )

    def _drop(self, subscription: Subscription, error: ErrorCode) -> None:
        """Give a subscription up that never went live."""
        del self.subscriptions[subscription.channel]
        if subscription.command_id:
            self._fail(subscription.command_id, "subscribe", error)

    def _unsubscribe(self, command_id: int, command: Command, now: float) -> None:
        request = command.unsubscribe
        assert request is not None, "dispatched by its presence"
        if not request.channel:
            self._close(BAD_PROTOCOL, "unsubscribe without a channel")
            return
        subscription = self.subscriptions.get(request.channel)
        if subscription is not None:
            self._remove(subscription)
            if subscription.state is SubscriptionState.OPENING and subscription.command_id:
                # Temporary, as the SDK may be subscribing again already and takes it for that one.
                self._fail(subscription.command_id, "subscribe", TOO_MANY_REQUESTS)
        self._actions.send(codec.reply(command_id, "unsubscribe"))

    def _remove(self, subscription: Subscription) -> None:
        del self.subscriptions[subscription.channel]
        if subscription.state is SubscriptionState.LIVE:
            self._actions.leave(subscription)

    # --- what the server does to a client ---------------------------------------------------------

    def subscribe_by_server(
        self, channel: str, grant: ServerSubscription, since: StreamPosition | None = None
    ) -> ErrorCode | None:
        """Subscribe the client; a `subscribe` push follows.

        Nothing to do is a success: subscribed already, or not connected (yet, or any more).
        """
        if self.phase is not Phase.CONNECTED or channel in self.subscriptions:
            return None
        if len(self.subscriptions) >= self._rules.channels_max:
            return LIMIT_EXCEEDED
        subscription = self._server_subscription(channel, grant)
        if subscription is None:
            return BAD_REQUEST
        subscription.since = since if subscription.recoverable else None
        self.subscriptions[channel] = subscription
        self._open(subscription)
        return None

    def unsubscribe_by_server(self, channel: str, unsubscribe: Unsubscribe) -> bool:
        """End one subscription and tell the client; False when there is none."""
        subscription = self.subscriptions.get(channel)
        if subscription is None:
            return False
        opening = subscription.state is SubscriptionState.OPENING
        if opening and subscription.command_id:
            # No reply has gone out, so an error is what the client understands.
            self._drop(subscription, PERMISSION_DENIED)
            return True
        self._remove(subscription)
        self._actions.send(codec.unsubscribe_push(channel, unsubscribe))
        return True

    def lose_position(self, channel: str, unsubscribe: Unsubscribe) -> bool:
        """The log can't give what this subscription still needs (A.5.6).

        False when the subscription doesn't follow positions and simply goes on.
        """
        subscription = self.subscriptions.get(channel)
        if subscription is None:
            return True
        if not subscription.positioned:
            return False
        if subscription.server_side:
            self._close(INSUFFICIENT_STATE, f"missing publications in {channel!r}")
        else:
            self.unsubscribe_by_server(channel, unsubscribe)
        return True

    def refresh_by_server(self, lifetime: float | None, now: float) -> None:
        """Set how long the connection may last, in seconds (None: for ever)."""
        self.expires_at = NEVER if lifetime is None else now + lifetime
        if self.phase is Phase.CONNECTED:  # or else the connect reply will tell
            self._actions.send(codec.refresh_push(_seconds_left(self.expires_at, now)))

    def closed(self) -> None:
        """The connection ended, whoever ended it: leave everything."""
        self.phase = Phase.CLOSED
        self._waiting = None
        for subscription in list(self.subscriptions.values()):
            self._remove(subscription)

    # --- publish, presence, history, rpc ----------------------------------------------------------

    def _publish(self, command_id: int, command: Command, now: float) -> None:
        request = command.publish
        assert request is not None, "dispatched by its presence"
        options = self._allow(Operation.PUBLISH, request.channel)
        if options is None:
            return
        data = bytes(request.data)
        error = options if isinstance(options, ErrorCode) else None
        if error is None and request.type:
            error = NOT_AVAILABLE
        if error is None and (
            not data
            or len(request.idempotency_key) > IDEMPOTENCY_KEY_LENGTH_MAX
            or "\0" in request.idempotency_key
            or is_unfit_for_others(data)
        ):
            error = BAD_REQUEST
        if error is not None or isinstance(options, ErrorCode):
            self._fail(command_id, "publish", error or BAD_REQUEST)
            return
        if self._begin(command_id, "publish"):
            self._actions.publish(
                command_id,
                Publishing(
                    request.channel,
                    options,
                    data,
                    self.client_info(request.channel),
                    None,
                    request.idempotency_key,
                    request.ephemeral,
                ),
            )

    def published(self, command_id: int, outcome: Published | ErrorCode) -> None:
        """The answer to `Actions.publish`."""
        if isinstance(outcome, ErrorCode):
            self.answer(command_id, "publish", outcome)
        else:
            self.answer(
                command_id,
                "publish",
                codec.publish_result(outcome.offset, outcome.epoch, outcome.duplicate),
            )

    def _presence(self, command_id: int, command: Command, now: float) -> None:
        assert command.presence is not None, "dispatched by its presence"
        self._read_presence(command_id, command.presence.channel, "presence")

    def _presence_stats(self, command_id: int, command: Command, now: float) -> None:
        assert command.presence_stats is not None, "dispatched by its presence"
        self._read_presence(command_id, command.presence_stats.channel, "presence_stats")

    def _read_presence(self, command_id: int, channel: str, method: Method) -> None:
        options = self._allow(Operation.PRESENCE, channel)
        if options is None:
            return
        if isinstance(options, ErrorCode):
            self._fail(command_id, method, options)
        elif not options.presence:
            self._fail(command_id, method, NOT_AVAILABLE)
        elif self._begin(command_id, method):
            self._actions.presence(command_id, channel, method == "presence_stats")

    def _history(self, command_id: int, command: Command, now: float) -> None:
        request = command.history
        assert request is not None, "dispatched by its presence"
        options = self._allow(Operation.HISTORY, request.channel)
        if options is None:
            return
        if isinstance(options, ErrorCode):
            self._fail(command_id, "history", options)
        elif not options.keeps_history:
            self._fail(command_id, "history", NOT_AVAILABLE)
        elif self._begin(command_id, "history"):
            limit = request.limit
            if limit < 0 or limit > HISTORY_LIMIT_MAX:
                limit = HISTORY_LIMIT_MAX
            self._actions.history(
                command_id, request.channel, options, limit, request.since, request.reverse
            )

    def _rpc(self, command_id: int, command: Command, now: float) -> None:
        assert command.rpc is not None, "dispatched by its presence"
        if self._begin(command_id, "rpc"):
            self._actions.call(command_id, command.rpc.method, bytes(command.rpc.data))

    def _send(self, command_id: int, command: Command, now: float) -> None:
        self._close(UNAVAILABLE, "no handler takes messages sent without an id")

    def _ping(self, command_id: int, command: Command, now: float) -> None:
        self._actions.send(codec.reply(command_id, "ping"))

    def _allow(self, operation: Operation, channel: str) -> ChannelOptions | ErrorCode | None:
        """The channel's options if the operation is allowed there; None when it cost the link."""
        if not channel:
            self._close(BAD_PROTOCOL, f"{operation.value} without a channel")
            return None
        rules = self._rules.channels
        options = rules.resolve(channel)
        if isinstance(options, ErrorCode):
            return options
        subscribed = channel in self.subscriptions
        if not rules.may(operation, options, self.user, subscribed):
            return PERMISSION_DENIED
        return options

    def _begin(self, command_id: int, method: Method) -> bool:
        """Count a command that will be answered later; refuse it when too many wait."""
        weight = _WEIGHTS.get(method, 1)
        if self._in_flight + weight > IN_FLIGHT_MAX:
            self._fail(command_id, method, TOO_MANY_REQUESTS)
            return False
        self._in_flight += weight
        return True

    def _end(self, method: Method) -> None:
        self._in_flight -= _WEIGHTS.get(method, 1)

    def answer(self, command_id: int, method: Method, outcome: bytes | ErrorCode) -> None:
        """The result of a command that had to wait."""
        self._end(method)
        if self.phase is Phase.CLOSED:
            return
        if isinstance(outcome, ErrorCode):
            self._fail(command_id, method, outcome)
        else:
            self._actions.send(codec.reply(command_id, method, outcome))

    def client_info(self, channel: str) -> bytes:
        """This client's ClientInfo as others see it in a channel."""
        subscription = self.subscriptions.get(channel)
        if subscription is not None and subscription.chan_info:
            return codec.client_info(self.user, self.id, self.info, subscription.chan_info)
        if not self._info_json:
            self._info_json = codec.client_info(self.user, self.id, self.info)
        return self._info_json

    # --- token refresh ----------------------------------------------------------------------------

    def _refresh(self, command_id: int, command: Command, now: float) -> None:
        assert command.refresh is not None, "dispatched by its presence"
        token = command.refresh.token
        if not token:
            self._close(BAD_PROTOCOL, "refresh without a token")
            return

        def answer(grant: ConnectGrant | TokenError, now: float) -> None:
            self._end("refresh")
            if self.phase is not Phase.CONNECTED:
                return
            if isinstance(grant, TokenExpired):
                self._close(CONNECTION_EXPIRED, "refreshed with an expired token")
            elif isinstance(grant, KeyMissing):
                self._fail(command_id, "refresh", INTERNAL)
            elif isinstance(grant, TokenError):
                self._close(INVALID_TOKEN, str(grant))
            elif grant.claims.user != self.user:
                self._close(INVALID_TOKEN, "refreshed with another user's token")
            else:
                self._take_refresh(command_id, grant, now)

        if self._begin(command_id, "refresh"):
            self._actions.verify_connect(token, answer)

    def _take_refresh(self, command_id: int, grant: ConnectGrant, now: float) -> None:
        if grant.lifetime is not None and grant.lifetime <= 0:
            self._fail(command_id, "refresh", EXPIRED)
            return
        self.expires_at = NEVER if grant.lifetime is None else now + grant.lifetime
        self.deadline_moved = True
        if grant.claims.info:
            self.info = grant.claims.info
            self._info_json = b""
        result = codec.refresh_result(
            self.id, self._rules.version, _seconds_left(self.expires_at, now)
        )
        self._actions.send(codec.reply(command_id, "refresh", result))

    def _sub_refresh(self, command_id: int, command: Command, now: float) -> None:
        request = command.sub_refresh
        assert request is not None, "dispatched by its presence"
        if not request.channel:
            self._close(BAD_PROTOCOL, "sub_refresh without a channel")
            return
        subscription = self.subscriptions.get(request.channel)
        if subscription is None or subscription.state is not SubscriptionState.LIVE:
            self._fail(command_id, "sub_refresh", PERMISSION_DENIED)
            return
        if not request.token:
            self._fail(command_id, "sub_refresh", BAD_REQUEST)
            return

        def answer(grant: SubscribeGrant | TokenError, now: float) -> None:
            self._end("sub_refresh")
            if self.phase is not Phase.CONNECTED:
                return
            if self.subscriptions.get(subscription.channel) is not subscription:
                self._fail(command_id, "sub_refresh", PERMISSION_DENIED)  # unsubscribed meanwhile
            elif isinstance(grant, TokenExpired | KeyMissing):
                self._fail(command_id, "sub_refresh", _refusal(grant))
            elif isinstance(grant, TokenError):
                self._close(INVALID_TOKEN, str(grant))
            elif not self._token_fits(grant.claims, subscription.channel):
                self._close(INVALID_TOKEN, "a subscription token of another channel or client")
            elif not self._hold(subscription, grant, now):
                self._fail(command_id, "sub_refresh", EXPIRED)
            else:
                ttl = _seconds_left(subscription.expires_at, now)
                result = codec.sub_refresh_result(ttl)
                self._actions.send(codec.reply(command_id, "sub_refresh", result))

        if self._begin(command_id, "sub_refresh"):
            self._actions.verify_subscribe(request.token, answer)

    # --- time -------------------------------------------------------------------------------------

    def next_deadline(self) -> float:
        """When `tick` has something to do next; infinity for never."""
        if self.phase is Phase.CLOSED:
            return NEVER
        deadline = min(self._ping_at, self._pong_by, self._stale_at)
        grace = self._rules.expiry_grace
        expires_at = self.expires_at
        for subscription in self.subscriptions.values():
            expires_at = min(expires_at, subscription.expires_at)
        return min(deadline, expires_at + grace)

    def excuse_pong(self, now: float) -> None:
        """We didn't read for a while: a pong that is due may be among what we didn't read."""
        if self._pong_by != NEVER:
            self._pong_by = now + self._rules.pong_timeout

    def excuse(self, seconds: float) -> None:
        """We stood still for so long ourselves, and the client isn't late because of that.

        What its tokens say stays as it is: their time goes on for everybody.
        """
        self._pong_by += seconds
        self._stale_at += seconds

    def tick(self, now: float) -> None:
        """Do what is due at `now`."""
        if self.phase is Phase.CLOSED:
            return
        grace = self._rules.expiry_grace
        if now >= self._stale_at:
            self._close(STALE, "no successful connect in time")
        elif now >= self._pong_by:
            self._close(NO_PONG, "")
        elif now >= self.expires_at + grace:
            self._close(CONNECTION_EXPIRED, "not refreshed in time")
        elif any(now >= sub.expires_at + grace for sub in self.subscriptions.values()):
            self._close(SUBSCRIPTION_EXPIRED, "not refreshed in time")
        elif now >= self._ping_at:
            self._ping_at = now + self._rules.ping_interval
            self._pong_by = now + self._rules.pong_timeout
            self._actions.ping()

    # --- output -----------------------------------------------------------------------------------

    def _fail(self, command_id: int, method: Method, error: ErrorCode) -> None:
        self._actions.error_seen(method, error)
        self._actions.send(codec.error_reply(command_id, error))

    def _close(self, disconnect: Disconnect, detail: str) -> None:
        self.closed()
        self._actions.close(disconnect, detail)


def _refusal(error: TokenError) -> ErrorCode:
    """The error reply for a subscription token that can't be honoured."""
    if isinstance(error, TokenExpired):
        return TOKEN_EXPIRED
    # A key that can't be had right now says nothing about the token: the client tries again.
    return INTERNAL if isinstance(error, KeyMissing) else PERMISSION_DENIED


def _seconds_left(deadline: float, now: float) -> int | None:
    """Whole seconds until a deadline, at least one; None when there is none."""
    return None if deadline == NEVER else max(1, int(deadline - now))


def _second_connect(client: Client, command_id: int, command: Command, now: float) -> None:
    client._close(BAD_PROTOCOL, "a second connect")


_EMPTY: Final = Command()
_HANDLERS: Final[Mapping[Method, Callable[[Client, int, Command, float], None]]] = {
    "connect": _second_connect,
    "subscribe": Client._subscribe,
    "unsubscribe": Client._unsubscribe,
    "publish": Client._publish,
    "presence": Client._presence,
    "presence_stats": Client._presence_stats,
    "history": Client._history,
    "rpc": Client._rpc,
    "send": Client._send,
    "refresh": Client._refresh,
    "sub_refresh": Client._sub_refresh,
    "ping": Client._ping,
}
