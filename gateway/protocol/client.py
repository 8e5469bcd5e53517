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

Its parts are `client_base`, `client_subscriptions` and `client_operations`.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Final

from gateway.protocol import codec
from gateway.protocol.actions import ConnectGrant
from gateway.protocol.channels import ChannelOptions
from gateway.protocol.claims import (
    ConnectClaims,
    KeyMissing,
    ServerSubscription,
    TokenError,
    TokenExpired,
)
from gateway.protocol.client_base import IN_FLIGHT_MAX, Phase, seconds_left
from gateway.protocol.client_operations import OperatingClient
from gateway.protocol.codec import Command, Method
from gateway.protocol.codes import (
    BAD_PROTOCOL,
    CHANNEL_LIMIT,
    CONNECTION_EXPIRED,
    EXPIRED,
    INTERNAL,
    INVALID_TOKEN,
    NO_PONG,
    STALE,
    SUBSCRIPTION_EXPIRED,
    TOKEN_EXPIRED,
    TOO_MANY,
    TOO_MANY_REQUESTS,
    Disconnect,
    ErrorCode,
)
from gateway.protocol.subscription import NEVER, Subscription

# Characters of messages that may wait behind connect, while a token's key is fetched: nobody has
# shown yet who they are. The SDKs send one message with everything.
WAITING_MAX: Final = 256 * 1024
# Refused commands in a row (rate) after which a client that doesn't listen is closed.
REFUSALS_MAX: Final = 256
# A member of an enumeration is found by its name each time: these are asked for with every command.
_CONNECTING: Final = Phase.CONNECTING
_CONNECTED: Final = Phase.CONNECTED
_CLOSED: Final = Phase.CLOSED


class Client(OperatingClient):
    """One client's state. `receive` and `tick` are called by the connection; see the module."""

    __slots__ = ()

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
        self._token_ends = self._first_end()

    # --- input ------------------------------------------------------------------------------------

    def receive(self, message: str, now: float) -> None:
        """Take one text message."""
        if self.phase is _CLOSED:
            return
        try:
            commands = codec.decode_commands(message)
        except codec.MalformedCommand as error:
            self._close(BAD_PROTOCOL, str(error))
            return
        if self.phase is _CONNECTING:
            self._waiting_size += len(message)
        for command in commands:
            self._take(command, now)

    def native_pong(self) -> None:
        """A native pong frame came (A.1.4)."""
        self._pong_by = NEVER

    def _take(self, command: Command, now: float) -> None:
        phase = self.phase
        if phase is _CONNECTED:
            self._dispatch(command, now)
        elif phase is _CONNECTING:
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
            self._hold_until(now + grant.lifetime)
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

    def _finish_connect(self, now: float) -> None:
        results = {}
        for channel, subscription in list(self.subscriptions.items()):
            result = self._enter(subscription, now)
            if result is not None:
                results[channel] = result
            else:
                self._take_out(subscription)
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
            ttl=seconds_left(self.expires_at, now),
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
        self._hold_until(NEVER if grant.lifetime is None else now + grant.lifetime)
        if grant.claims.info:
            self.info = grant.claims.info
            self._info_json = b""
        result = codec.refresh_result(
            self.id, self._rules.version, seconds_left(self.expires_at, now)
        )
        self._actions.send(codec.reply(command_id, "refresh", result))

    def refresh_by_server(self, lifetime: float | None, now: float) -> None:
        """Set how long the connection may last, in seconds (None: for ever)."""
        self._hold_until(NEVER if lifetime is None else now + lifetime)
        if self.phase is Phase.CONNECTED:  # or else the connect reply will tell
            self._actions.send(codec.refresh_push(seconds_left(self.expires_at, now)))

    # --- time -------------------------------------------------------------------------------------

    def next_deadline(self) -> float:
        """When `tick` has something to do next; infinity for never."""
        if self.phase is _CLOSED:
            return NEVER
        token_ends = self._token_ends + self._rules.expiry_grace
        return min(self._ping_at, self._pong_by, self._stale_at, token_ends)

    def _hold_until(self, expires_at: float) -> None:
        former, self.expires_at = self.expires_at, expires_at
        self._token_replaced(former, expires_at)

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
        if self.phase is _CLOSED:
            return
        if now >= self._stale_at:
            self._close(STALE, "no successful connect in time")
        elif now >= self._pong_by:
            self._close(NO_PONG, "")
        elif now >= self._token_ends + self._rules.expiry_grace:
            own = now >= self.expires_at + self._rules.expiry_grace
            expired = CONNECTION_EXPIRED if own else SUBSCRIPTION_EXPIRED
            self._close(expired, "not refreshed in time")
        elif now >= self._ping_at:
            self._ping_at = now + self._rules.ping_interval
            self._pong_by = now + self._rules.pong_timeout
            self._actions.ping()


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
